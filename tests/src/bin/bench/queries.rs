//! Questions over ten million spans: through the server as a browser asks them, and by themselves in this process.

use crate::load::{Load, Way, send};
use crate::{cpu_seconds, now, peak_mib, row};
use firstfall_store::query::{Budget, Filter, SearchQuestion, ServiceQuestion};
use firstfall_store::{Reader, TraceId};
use harness::Server;
use harness::corpus::Template;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const HOUR: u64 = 3_600_000_000_000;

fn percentile(times: &mut [f64], q: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    times[((times.len() as f64 * q).ceil() as usize).clamp(1, times.len()) - 1]
}

/// Asks `count` times and gives the median and the 99th percentile in milliseconds.
fn time(count: usize, mut ask: impl FnMut(usize)) -> (f64, f64) {
    let mut times = Vec::new();
    for n in 0..count {
        let start = Instant::now();
        ask(n);
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    (percentile(&mut times, 0.5), percentile(&mut times, 0.99))
}

fn show(name: &str, (p50, p99): (f64, f64)) {
    row(&format!("{name}, ms"), format!("p50 {p50:.1}, p99 {p99:.1}"));
}

pub fn ask(runtime: &tokio::runtime::Runtime, spans: &Arc<Vec<Template>>, count: u64, keep: Option<&str>) {
    let temporary = tempfile::tempdir().expect("a directory");
    let directory = keep.map_or(temporary.path(), Path::new);
    if !directory.join("meta.db").exists() {
        std::fs::create_dir_all(directory).expect("a directory for the spans");
        let server = Server::start(directory);
        let end = now();
        let fill = Load {
            templates: spans.clone(),
            signal: "traces",
            way: Way::Http,
            connections: 4,
            items: count,
            rate: 0,
            from: end - 2 * HOUR,
            to: end - 5_000_000_000,
        };
        runtime.block_on(send(&server, &fill));
        // Settled: all in blocks.
        assert_eq!(server.terminate(), Some(0));
    }
    let server = Server::start(directory);
    let reader = Reader::open(directory).expect("the store opens");
    let whole = ServiceQuestion { to: u64::MAX / 2, ..ServiceQuestion::default() };
    let total: u64 = reader.services(&whole, &Budget::default()).expect("read").iter().map(|s| s.items).sum();
    let newest = SearchQuestion { filter: Filter::default(), limit: 1, before: None };
    let newest = reader.search_traces(&newest, &Budget::default()).expect("found");
    let end = newest.traces.first().expect("the store has traces").start + 5_000_000_000;
    row("queries: spans over two hours", format!("{total}"));
    alone(&reader, end);
    drop(reader);
    through_server(&server, "", end, 60);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let load = Load {
                templates: spans.clone(),
                signal: "traces",
                way: Way::Http,
                connections: 2,
                items: 2_500_000,
                rate: 100_000,
                from: 0,
                to: 0,
            };
            runtime.block_on(send(&server, &load))
        });
        through_server(&server, "while 100,000 spans/s come in: ", end, 30);
        load.join().expect("the load ends well");
    });
    row("peak memory during ingest and queries, MiB", format!("{:.0}", peak_mib(&server)));
    assert_eq!(server.terminate(), Some(0));
    if keep.is_none() {
        restarts(runtime, spans, directory);
    }
}

/// Through HTTP, with the answer's JSON or HTML.
fn through_server(server: &Server, label: &str, end: u64, rounds: usize) {
    let ids: Vec<String> = (0..rounds)
        .filter_map(|n| {
            let to = (end - 2 * HOUR + 2 * HOUR * (n as u64 + 1) / (rounds as u64 + 1)) / 1_000_000;
            let found = server.api(&format!("/api/v1/traces?limit=1&from={}&to={to}", to - 60_000));
            Some(found["traces"][0]["trace_id"].as_str()?.to_owned())
        })
        .collect();
    let pages = |name: &str, count: usize, path: &dyn Fn(usize) -> String| {
        let ask = |n| {
            let path = path(n);
            assert_eq!(server.page(&path).0, 200, "{path}");
        };
        show(&format!("{label}{name}"), time(count, ask));
    };
    let (from, to) = ((end - HOUR) / 1_000_000, end / 1_000_000);
    pages("trace by id as JSON", ids.len(), &|n| format!("/api/v1/traces/{}", ids[n]));
    pages("search service + attribute + duration, 1 h", rounds, &|n| {
        let service = ["orders", "cart", "payments", "users"][n % 4];
        format!("/api/v1/traces?service={service}&attr=http.request.method=PUT&min_duration={}ms&limit=20&from={from}&to={to}", 5 + n % 20)
    });
    pages("services page, 1 h", rounds, &|_| format!("/services?from={from}&to={to}"));
    pages("one service, 1 h", rounds, &|_| format!("/api/v1/services/orders?from={from}&to={to}"));
    pages("latest errors", rounds, &|_| format!("/api/v1/traces?status=error&limit=50&from={from}&to={to}"));
}

/// The questions by themselves, in this process, without a server around them and nothing rendered.
fn alone(reader: &Reader, end: u64) {
    let budget = Budget::new(Duration::from_secs(60));
    let newest = |to: u64| {
        let filter = Filter { from: to - 60_000_000_000, to, ..Filter::default() };
        let found = reader.search_traces(&SearchQuestion { filter, limit: 1, before: None }, &budget).expect("found");
        found.traces.first().map(|t| t.trace_id)
    };
    let ids: Vec<TraceId> = (1..=200).filter_map(|n| newest(end - 2 * HOUR + 2 * HOUR * n / 201)).collect();
    let trace = |n: usize| assert!(!reader.trace(ids[n], 0, 10_000, &budget).expect("found").spans.is_empty());
    show("question alone: trace by id", time(ids.len(), trace));
    let search = |n: usize| {
        let filter = Filter {
            from: end - HOUR,
            to: end,
            service: Some(["orders", "cart", "payments", "users"][n % 4].into()),
            attributes: vec![("http.request.method".into(), "PUT".into())],
            duration_min: Some((5 + n as u64 % 20) * 1_000_000),
            ..Filter::default()
        };
        reader.search_traces(&SearchQuestion { filter, limit: 20, before: None }, &budget).expect("found");
    };
    show("question alone: search service + attribute + duration, 1 h", time(100, search));
    let question = ServiceQuestion { from: end - HOUR, to: end, step: 60_000_000_000, ..ServiceQuestion::default() };
    show("question alone: all services, 1 h", time(50, |_| assert!(!reader.services(&question, &budget).expect("read").is_empty())));
    let one = ServiceQuestion { service: Some("orders".into()), ..question };
    show(
        "question alone: operations of a service, 1 h",
        time(50, |_| assert!(!reader.operations(&one, &budget).expect("read").is_empty())),
    );
}

/// How soon a server is ready again on these data, and what it costs when nobody wants anything.
fn restarts(runtime: &tokio::runtime::Runtime, spans: &Arc<Vec<Template>>, directory: &Path) {
    let start = Instant::now();
    let server = Server::start(directory);
    row("ready after a clean stop, s", format!("{:.2}", start.elapsed().as_secs_f64()));
    // Detection looks at the past first.
    let mut before = cpu_seconds(server.id());
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let now = cpu_seconds(server.id());
        if now - std::mem::replace(&mut before, now) < 0.2 {
            break;
        }
    }
    row("a look at the past after the start, CPU s", format!("{before:.1}"));
    std::thread::sleep(Duration::from_secs(10));
    row("idle, share of a core", format!("{:.2} %", (cpu_seconds(server.id()) - before) / 10.0 * 100.0));
    let load = Load { templates: spans.clone(), signal: "traces", way: Way::Http, connections: 2, items: 60_000, rate: 0, from: 0, to: 0 };
    runtime.block_on(send(&server, &load));
    server.kill();
    let start = Instant::now();
    let server = Server::start(directory);
    row("ready after a kill, s", format!("{:.2}", start.elapsed().as_secs_f64()));
    drop(server);
}
