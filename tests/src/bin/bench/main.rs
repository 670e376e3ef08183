//! `cargo run --release -p firstfall-tests --bin bench`: the figures of `docs/figures.md`, measured on this machine in one run.
//!
//! The server is the real binary with its default settings; its CPU seconds are the kernel's account of that process. The generator sends
//! bodies that were encoded before and differ only in ids and times; its own cost is not counted. Ratios within one run are what can
//! be compared: machines are noisy.
//!
//! `bench [seconds=N] [spans=N] [only=stages|ingest|detection|logs|queries] [data=DIR]`: how long the plain ingest is meant to run at 400,000 spans/s, how many
//! spans the questions are asked over, one part alone, and a directory to keep these spans in for another run.

mod load;
mod queries;
mod stages;

use harness::Server;
use harness::corpus;
use load::{Load, Way, send};
use prost::Message;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// User and system seconds of a process, from the kernel.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks: f64 = [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<f64>().ok()).sum();
    ticks / 100.0
}

fn peak_mib(server: &Server) -> f64 {
    server.memory_kib("VmHWM") as f64 / 1024.0
}

fn thread_cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split_whitespace().next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

fn directory_bytes(path: &Path) -> u64 {
    std::fs::read_dir(path)
        .map(|entries| {
            entries
                .flatten()
                .map(|e| if e.path().is_dir() { directory_bytes(&e.path()) } else { e.metadata().map_or(0, |m| m.len()) })
                .sum()
        })
        .unwrap_or(0)
}

fn stored(server: &Server, what: &str) -> u64 {
    server.api("/api/v1/stats")["stored"][what].as_u64().unwrap_or(0)
}

fn row(name: &str, value: String) {
    println!("| {name:<58} | {value:>34} |");
}

fn main() {
    let argument = |name: &str| std::env::args().find_map(|a| a.strip_prefix(name)?.strip_prefix('=').map(str::to_owned));
    let number =
        |name: &str, default: u64| argument(name).map_or(default, |a| a.parse().unwrap_or_else(|_| panic!("{name}={a} is no number")));
    let (seconds, query_spans) = (number("seconds", 20), number("spans", 10_000_000));
    let only = argument("only");
    let wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let spans = Arc::new(corpus::traces(1, 192, 512));
    println!("| {:<58} | {:>34} |\n|{:-<60}|{:->36}|", "figure", "this machine", "", "");
    let mut bodies: Vec<Vec<u8>> = Vec::new();
    for (n, template) in spans.iter().enumerate() {
        let mut body = Vec::new();
        template.patch(n as u64 + 1, now(), &mut body);
        bodies.push(body);
    }
    if wanted("stages") {
        stages::spans(&bodies, items_of(&spans));
        stages::logs();
    }
    if wanted("ingest") {
        ingest(&runtime, &spans, &bodies, seconds);
    }
    if wanted("detection") {
        detection(&runtime, &spans, seconds);
    }
    if wanted("logs") {
        logs(&runtime, prost(&bodies, items_of(&spans)), seconds);
    }
    if wanted("queries") {
        queries::ask(&runtime, &spans, query_spans, argument("data").as_deref());
    }
}

fn items_of(templates: &[corpus::Template]) -> usize {
    templates.iter().map(|t| t.items).sum()
}

/// What it costs merely to decode these bodies into structs, CPU seconds per million spans: how fast the machine is at the moment.
fn prost(bodies: &[Vec<u8>], items: usize) -> f64 {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    let start = thread_cpu();
    let mut decoded = 0usize;
    while thread_cpu() - start < 3.0 {
        for body in bodies {
            decoded += ExportTraceServiceRequest::decode(&body[..]).map_or(0, |r| r.resource_spans.len().min(1) * items / bodies.len());
        }
    }
    (thread_cpu() - start) / decoded as f64 * 1e6
}

fn ingest(runtime: &tokio::runtime::Runtime, spans: &Arc<Vec<corpus::Template>>, bodies: &[Vec<u8>], seconds: u64) {
    let items = items_of(spans);
    let bytes: usize = spans.iter().map(|t| t.body.len()).sum();
    row("span of the corpus, bytes", format!("{:.0}", bytes as f64 / items as f64));

    let prost = prost(bodies, items);
    row("prost decode, CPU s per million spans", format!("{prost:.2}"));

    let mut http_cost = 0.0;
    for (name, way) in [("OTLP/HTTP", Way::Http), ("OTLP/HTTP gzip", Way::Gzip), ("OTLP/gRPC", Way::Grpc)] {
        let directory = tempfile::tempdir().expect("a directory");
        let server = Server::start(directory.path());
        let load = |items| Load { templates: spans.clone(), signal: "traces", way, connections: 4, items, rate: 0, from: 0, to: 0 };
        runtime.block_on(send(&server, &load(200_000)));
        let (cpu, count) = (cpu_seconds(server.id()), stored(&server, "spans"));
        let share = if way == Way::Http { seconds } else { (seconds / 2).max(5) };
        let (took, accepted) = runtime.block_on(send(&server, &load(share * 400_000)));
        let cpu = cpu_seconds(server.id()) - cpu;
        let all = stored(&server, "spans");
        assert_eq!(all - count, accepted, "every acknowledged span is counted");
        let cost = cpu / accepted as f64 * 1e6;
        if way == Way::Http {
            http_cost = cost;
        }
        row(
            &format!("{name}: CPU s per million spans"),
            format!("{cost:.2} ({:.2} x prost, {:.2} x HTTP)", cost / prost, cost / http_cost),
        );
        row(&format!("{name}: spans/s, both cores shared with the generator"), format!("{:.0}", accepted as f64 / took));
        row(&format!("{name}: peak memory, MiB"), format!("{:.0}", peak_mib(&server)));
        assert_eq!(server.terminate(), Some(0));
        if way == Way::Http {
            let disk = directory_bytes(directory.path());
            let zstd: usize = bodies.iter().map(|b| zstd::bulk::compress(b, 3).map_or(0, |c| c.len())).sum();
            let (ours, theirs) = (disk as f64 / all as f64, zstd as f64 / items as f64);
            row("spans on disk, bytes each", format!("{ours:.1} ({:.2} x zstd -3 of {theirs:.1})", ours / theirs));
        }
    }
}

/// What detection and the map add to a span: servers with and without, by turns, at a rate at which every trace is looked at.
fn detection(runtime: &tokio::runtime::Runtime, spans: &Arc<Vec<corpus::Template>>, seconds: u64) {
    const RATE: u64 = 100_000;
    const TURNS: usize = 4;
    let mut costs = [Vec::new(), Vec::new()];
    for turn in 0..2 * TURNS {
        let with = turn % 2 == 0;
        let directory = tempfile::tempdir().expect("a directory");
        let enabled = with.to_string();
        let server = Server::start_with(directory.path(), &[], &[("FIRSTFALL_DETECTION_ENABLED", &enabled)]);
        let load =
            |items, rate| Load { templates: spans.clone(), signal: "traces", way: Way::Http, connections: 4, items, rate, from: 0, to: 0 };
        runtime.block_on(send(&server, &load(200_000, 0)));
        let cpu = cpu_seconds(server.id());
        let (_, accepted) = runtime.block_on(send(&server, &load(seconds * RATE, RATE)));
        costs[usize::from(!with)].push((cpu_seconds(server.id()) - cpu) / accepted as f64 * 1e6);
        assert_eq!(server.terminate(), Some(0));
    }
    let [with, without] = costs.map(|mut costs| {
        costs.sort_by(f64::total_cmp);
        (costs[TURNS / 2 - 1] + costs[TURNS / 2]) / 2.0
    });
    row(
        "CPU s per million spans at 100,000/s, detection on; off",
        format!("{with:.2}; {without:.2} ({:.2} x, medians of {TURNS} by turns)", with / without),
    );
}

fn logs(runtime: &tokio::runtime::Runtime, prost: f64, seconds: u64) {
    let logs = Arc::new(corpus::logs(1, 192, 512));
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let load = |items| Load { templates: logs.clone(), signal: "logs", way: Way::Http, connections: 4, items, rate: 0, from: 0, to: 0 };
    runtime.block_on(send(&server, &load(200_000)));
    let cpu = cpu_seconds(server.id());
    let (took, accepted) = runtime.block_on(send(&server, &load(seconds * 300_000)));
    let cpu = (cpu_seconds(server.id()) - cpu) / accepted as f64 * 1e6;
    row("logs: CPU s per million", format!("{cpu:.2} ({:.2} x prost on spans, {prost:.2})", cpu / prost));
    row("logs: logs/s", format!("{:.0}", accepted as f64 / took));
    let all = stored(&server, "logs");
    assert_eq!(server.terminate(), Some(0));
    let (mut raw, mut count) = (0usize, 0);
    for (n, template) in logs.iter().enumerate() {
        let mut body = Vec::new();
        template.patch(n as u64 + 1, now(), &mut body);
        raw += zstd::bulk::compress(&body, 3).map_or(0, |c| c.len());
        count += template.items;
    }
    let (ours, theirs) = (directory_bytes(directory.path()) as f64 / all as f64, raw as f64 / count as f64);
    row("logs on disk, bytes each", format!("{ours:.1} ({:.2} x zstd -3 of {theirs:.1})", ours / theirs));
}
