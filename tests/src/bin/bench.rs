//! `cargo run --release -p firstfall-tests --bin bench`: the figures of the README, measured on this machine in one run.
//!
//! The server is the real binary with its default settings; its CPU seconds are the kernel's account of that process. The generator sends
//! bodies that were encoded before and differ only in ids and times; its own cost is not counted. Ratios within one run are what can
//! be compared: machines are noisy.

use harness::Server;
use harness::corpus::{self, Template};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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

fn peak_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
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

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Http,
    Gzip,
    Grpc,
}

struct Load {
    templates: Arc<Vec<Template>>,
    signal: &'static str,
    way: Way,
    connections: usize,
    /// Items in all.
    items: u64,
    /// Items a second; 0 as fast as it goes.
    rate: u64,
    /// Event times run from here to there while the load runs; the wall clock when equal.
    from: u64,
    to: u64,
}

/// Sends the load; seconds taken and items accepted.
async fn send(server: &Server, load: &Load) -> (f64, u64) {
    static SALT: AtomicU64 = AtomicU64::new(1);
    let sent = Arc::new(AtomicU64::new(0));
    let accepted = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let mut tasks = Vec::new();
    for connection in 0..load.connections {
        let (templates, sent, accepted) = (load.templates.clone(), sent.clone(), accepted.clone());
        let address = if load.way == Way::Grpc { server.grpc.clone() } else { server.otlp.clone() };
        let (signal, way, items, rate, from, to) = (load.signal, load.way, load.items, load.rate, load.from, load.to);
        tasks.push(tokio::spawn(async move {
            let stream = tokio::net::TcpStream::connect(&address).await.expect("connect");
            let _ = stream.set_nodelay(true);
            enum Client {
                One(hyper::client::conn::http1::SendRequest<Full<bytes::Bytes>>),
                Two(hyper::client::conn::http2::SendRequest<Full<bytes::Bytes>>),
            }
            let mut client = if way == Way::Grpc {
                let (client, run) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
                    .initial_stream_window_size(1 << 20)
                    .max_frame_size(1 << 20)
                    .handshake(TokioIo::new(stream))
                    .await
                    .expect("handshake");
                tokio::spawn(run);
                Client::Two(client)
            } else {
                let (client, run) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("handshake");
                tokio::spawn(run);
                Client::One(client)
            };
            let mut body = Vec::new();
            let mut at = connection;
            loop {
                let template = &templates[at % templates.len()];
                at += 1;
                let before = sent.fetch_add(template.items as u64, Ordering::Relaxed);
                if before >= items {
                    return;
                }
                if let Some(seconds) = (before as f64 / rate.max(1) as f64).into()
                    && rate > 0
                {
                    let due = start + Duration::from_secs_f64(seconds);
                    tokio::time::sleep_until(due.into()).await;
                }
                let time = if from == to {
                    now() - 2_000_000_000
                } else {
                    from + ((to - from) as u128 * u128::from(before) / u128::from(items)) as u64
                };
                template.patch(SALT.fetch_add(1, Ordering::Relaxed), time, &mut body);
                let request = hyper::Request::post(match way {
                    Way::Grpc => format!("http://{address}/opentelemetry.proto.collector.trace.v1.TraceService/Export"),
                    _ => format!("/v1/{signal}"),
                })
                .header("host", &address);
                let request = match way {
                    Way::Http => request.header("content-type", "application/x-protobuf").body(Full::from(body.clone())),
                    Way::Gzip => {
                        let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::fastest());
                        let mut out = vec![0; compressor.gzip_compress_bound(body.len())];
                        let length = compressor.gzip_compress(&body, &mut out).expect("it fits");
                        out.truncate(length);
                        request.header("content-type", "application/x-protobuf").header("content-encoding", "gzip").body(Full::from(out))
                    }
                    Way::Grpc => {
                        let mut out = Vec::with_capacity(body.len() + 5);
                        out.push(0);
                        out.extend_from_slice(&(body.len() as u32).to_be_bytes());
                        out.extend_from_slice(&body);
                        request.header("content-type", "application/grpc").header("te", "trailers").body(Full::from(out))
                    }
                }
                .expect("a valid request");
                let response = match &mut client {
                    Client::One(client) => client.send_request(request).await.expect("answered"),
                    Client::Two(client) => client.send_request(request).await.expect("answered"),
                };
                let ok = response.status() == 200;
                let _ = response.into_body().collect().await;
                if ok {
                    accepted.fetch_add(template.items as u64, Ordering::Relaxed);
                } else {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }));
    }
    for task in tasks {
        task.await.expect("a sender ends well");
    }
    (start.elapsed().as_secs_f64(), accepted.load(Ordering::Relaxed))
}

fn stored(server: &Server, what: &str) -> u64 {
    server.api("/api/v1/stats")["stored"][what].as_u64().unwrap_or(0)
}

fn percentile(times: &mut [f64], q: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    times[((times.len() as f64 * q).ceil() as usize).clamp(1, times.len()) - 1]
}

fn time_pages(server: &Server, count: usize, mut path: impl FnMut(usize) -> String) -> (f64, f64) {
    let mut times = Vec::new();
    for n in 0..count {
        let path = path(n);
        let start = Instant::now();
        let (status, _) = server.page(&path);
        times.push(start.elapsed().as_secs_f64() * 1e3);
        assert_eq!(status, 200, "{path}");
    }
    (percentile(&mut times, 0.5), percentile(&mut times, 0.99))
}

fn row(name: &str, value: String) {
    println!("| {name:<58} | {value:>34} |");
}

fn main() {
    let seconds: u64 = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(20);
    let query_spans: u64 = std::env::args().nth(2).and_then(|a| a.parse().ok()).unwrap_or(10_000_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let spans = Arc::new(corpus::traces(1, 192, 512));
    let logs = Arc::new(corpus::logs(1, 192, 512));
    let items: usize = spans.iter().map(|t| t.items).sum();
    let bytes: usize = spans.iter().map(|t| t.body.len()).sum();
    println!("| {:<58} | {:>34} |\n|{:-<60}|{:->36}|", "figure", "this machine", "", "");
    row("span of the corpus, bytes", format!("{:.0}", bytes as f64 / items as f64));

    // What it costs merely to decode the same bodies.
    let mut bodies: Vec<Vec<u8>> = Vec::new();
    for (n, template) in spans.iter().enumerate() {
        let mut body = Vec::new();
        template.patch(n as u64 + 1, now(), &mut body);
        bodies.push(body);
    }
    let prost = {
        use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
        let start = thread_cpu();
        let mut decoded = 0usize;
        while thread_cpu() - start < 3.0 {
            for body in &bodies {
                decoded += ExportTraceServiceRequest::decode(&body[..]).map_or(0, |r| r.resource_spans.len().min(1) * items / bodies.len());
            }
        }
        (thread_cpu() - start) / decoded as f64 * 1e6
    };
    row("prost decode, CPU s per million spans", format!("{prost:.2}"));
    stages(&bodies, items);

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
        row(&format!("{name}: peak memory, MiB"), format!("{:.0}", peak_mib(server.id())));
        assert_eq!(server.terminate(), Some(0));
        if way == Way::Http {
            let disk = directory_bytes(directory.path());
            let zstd: usize = bodies.iter().map(|b| zstd::bulk::compress(b, 3).map_or(0, |c| c.len())).sum();
            let (ours, theirs) = (disk as f64 / all as f64, zstd as f64 / items as f64);
            row("spans on disk, bytes each", format!("{ours:.1} ({:.2} x zstd -3 of {theirs:.1})", ours / theirs));
        }
    }
    {
        let directory = tempfile::tempdir().expect("a directory");
        let server = Server::start(directory.path());
        let load = |items| Load { templates: logs.clone(), signal: "logs", way: Way::Http, connections: 4, items, rate: 0, from: 0, to: 0 };
        runtime.block_on(send(&server, &load(200_000)));
        let cpu = cpu_seconds(server.id());
        let (took, accepted) = runtime.block_on(send(&server, &load(seconds * 300_000)));
        let cpu = (cpu_seconds(server.id()) - cpu) / accepted as f64 * 1e6;
        row("logs: CPU s per million", format!("{cpu:.2}"));
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
    queries(&runtime, &spans, query_spans);
}

/// What each stage of the way in costs by itself, on one thread.
fn stages(bodies: &[Vec<u8>], items: usize) {
    use collector::decode::{self, Format};
    use collector::validate::{Intake, Limits};
    use firstfall_store::{Service, Signal, block};
    struct Ids(Vec<Vec<u8>>);
    impl Ids {
        fn id(&mut self, key: &[u8]) -> u32 {
            let at = self.0.iter().position(|k| k == key).unwrap_or_else(|| {
                self.0.push(key.to_vec());
                self.0.len() - 1
            });
            at as u32 + 1
        }
    }
    impl block::Dictionary for Ids {
        fn service(&mut self, service: &Service) -> u32 {
            self.id(service.name.as_bytes())
        }
        fn resource(&mut self, body: &[u8]) -> u32 {
            self.id(body)
        }
        fn scope(&mut self, body: &[u8]) -> u32 {
            self.id(body)
        }
    }
    let ns = |seconds: f64, spans: usize| format!("{:.0} ns", seconds / spans as f64 * 1e9);
    let decode_all = || {
        bodies
            .iter()
            .map(|body| {
                let mut body = body.clone();
                let mut intake = Intake::new(Signal::Traces, Limits::default(), now(), body.len());
                decode::request(Format::Protobuf, Signal::Traces, &mut body, &mut intake).expect("valid");
                intake.finish().0
            })
            .collect::<Vec<_>>()
    };
    let start = thread_cpu();
    let mut batches = Vec::new();
    for _ in 0..3 {
        batches = decode_all();
    }
    row("stage decode + validate + columns, per span", ns(thread_cpu() - start, items * 3));
    let start = thread_cpu();
    for _ in 0..3 {
        for batch in &batches {
            std::hint::black_box(batch.to_bytes());
        }
    }
    let record: usize = batches.iter().map(|b| b.to_bytes().len()).sum();
    row("stage journal record, per span", format!("{} {:.0} B", ns(thread_cpu() - start, items * 3), record as f64 / items as f64));
    let start = thread_cpu();
    for _ in 0..3 {
        let mut rollups = firstfall_store::rollup::Rollups::new(Signal::Traces, Default::default());
        for batch in &batches {
            rollups.add(batch);
        }
        std::hint::black_box(&rollups);
    }
    row("stage rollups, per span", ns(thread_cpu() - start, items * 3));
    // A whole block: bodies with other ids, so that nothing repeats but what repeats in life.
    let templates = corpus::traces(2, 128, 512);
    let block_batches: Vec<_> = templates
        .iter()
        .enumerate()
        .map(|(n, template)| {
            let mut body = Vec::new();
            template.patch(n as u64 + 99, now(), &mut body);
            let mut intake = Intake::new(Signal::Traces, Limits::default(), now(), body.len());
            decode::request(Format::Protobuf, Signal::Traces, &mut body, &mut intake).expect("valid");
            intake.finish().0
        })
        .collect();
    let rows: usize = block_batches.iter().map(|b| b.rows()).sum();
    let start = thread_cpu();
    let encoded = block::encode(&block_batches.iter().collect::<Vec<_>>(), &mut Ids(Vec::new()));
    let size: usize =
        encoded.segments.iter().map(Vec::len).sum::<usize>() + encoded.traces.len() + encoded.directory.len() + encoded.filter.len();
    row("stage block encode, per span", format!("{} {:.1} B", ns(thread_cpu() - start, rows), size as f64 / rows as f64));
}

fn queries(runtime: &tokio::runtime::Runtime, spans: &Arc<Vec<Template>>, count: u64) {
    const HOUR: u64 = 3_600_000_000_000;
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
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
    let (_, accepted) = runtime.block_on(send(&server, &fill));
    // Settled: all in blocks.
    assert_eq!(server.terminate(), Some(0));
    let server = Server::start(directory.path());
    row("queries: spans over two hours", format!("{accepted}"));
    let measure = |label: &str, rounds: usize| {
        let ids: Vec<String> = (0..rounds)
            .filter_map(|n| {
                let to = (end - 2 * HOUR + 2 * HOUR * (n as u64 + 1) / (rounds as u64 + 1)) / 1_000_000;
                let found = server.api(&format!("/api/v1/traces?limit=1&from={}&to={to}", to - 60_000));
                Some(found["traces"][0]["trace_id"].as_str()?.to_owned())
            })
            .collect();
        let show = |name: &str, (p50, p99): (f64, f64)| row(&format!("{label}{name}, ms"), format!("p50 {p50:.1}, p99 {p99:.1}"));
        show("trace by id as JSON", time_pages(&server, ids.len(), |n| format!("/api/v1/traces/{}", ids[n])));
        show(
            "search service + attribute + duration, 1 h",
            time_pages(&server, rounds, |n| {
                let service = ["orders", "cart", "payments", "users"][n % 4];
                format!("/api/v1/traces?service={service}&attr=http.request.method=PUT&min_duration={}ms&limit=20", 5 + n % 20)
            }),
        );
        show("services page, 1 h", time_pages(&server, rounds, |_| "/services".to_owned()));
        show("one service, 1 h", time_pages(&server, rounds, |_| "/api/v1/services/orders".to_owned()));
        show("latest errors", time_pages(&server, rounds, |_| "/api/v1/traces?status=error&limit=50".to_owned()));
    };
    measure("", 60);
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
        measure("while 100,000 spans/s come in: ", 30);
        load.join().expect("the load ends well");
    });
    row("peak memory during ingest and queries, MiB", format!("{:.0}", peak_mib(server.id())));
    let path = directory.path();
    let clean = {
        assert_eq!(server.terminate(), Some(0));
        let start = Instant::now();
        let server = Server::start(path);
        let took = start.elapsed().as_secs_f64();
        let idle = cpu_seconds(server.id());
        std::thread::sleep(Duration::from_secs(5));
        row("idle, share of a core", format!("{:.2} %", (cpu_seconds(server.id()) - idle) / 5.0 * 100.0));
        let load =
            Load { templates: spans.clone(), signal: "traces", way: Way::Http, connections: 2, items: 60_000, rate: 0, from: 0, to: 0 };
        runtime.block_on(send(&server, &load));
        server.kill();
        took
    };
    row("ready after a clean stop, s", format!("{clean:.2}"));
    let start = Instant::now();
    let server = Server::start(path);
    row("ready after a kill, s", format!("{:.2}", start.elapsed().as_secs_f64()));
    drop(server);
}
