//! What a service's thread spends on telemetry, in nanoseconds: `cargo bench -p firstfall-agent`. Each way is measured in fifty turns, and the best of them is
//! printed, as these machines are noisy. What is sent goes to a thread that throws it away, between the turns.

use firstfall_agent::{Agent, Sampling, Telemetry};
use opentelemetry::logs::LoggerProvider;
use opentelemetry::trace::{Span, Tracer, TracerProvider};
use opentelemetry::{KeyValue, global};
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogProcessor, SdkLogRecord, SdkLoggerProvider};
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanProcessor};
use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt;

#[derive(Debug)]
struct Null;

impl SpanProcessor for Null {
    fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &opentelemetry::Context) {}
    fn on_end(&self, span: SpanData) {
        drop(black_box(span));
    }
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }
    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl LogProcessor for Null {
    fn emit(&self, record: &mut SdkLogRecord, _: &opentelemetry::InstrumentationScope) {
        black_box(record);
    }
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }
    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// So many at a time fill a part of the queue; it is emptied in between, which is not counted.
const TIMES: u32 = 10_000;

/// Measures one way and prints its nanoseconds for each time. `TURNS=5000 ONLY=lean` to have something to sample.
fn row(name: &str, telemetry: Option<&Telemetry>, mut work: impl FnMut()) {
    if std::env::var("ONLY").is_ok_and(|only| !name.contains(&only)) {
        return;
    }
    let turns = std::env::var("TURNS").ok().and_then(|turns| turns.parse().ok()).unwrap_or(50);
    let ns = (0..turns)
        .map(|_| {
            let started = Instant::now();
            (0..TIMES).for_each(|_| work());
            let passed = started.elapsed().as_nanos() as f64 / f64::from(TIMES);
            if let Some(telemetry) = telemetry {
                telemetry.flush(Duration::from_secs(10));
            }
            passed
        })
        .fold(f64::MAX, f64::min);
    println!("| {name:<78} | {ns:>8.0} |");
}

/// A collector that takes everything and keeps nothing.
fn sink() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || take(stream));
        }
    });
    format!("http://{address}")
}

fn take(mut stream: TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
            if line.trim().is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
        }
        std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink()).ok()?;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()?;
    }
}

fn span() {
    drop(tracing::info_span!("work", a = 1i64, b = "two", c = 3.0, d = true, e = "the fifth").entered());
}

fn log() {
    tracing::info!(a = 1i64, b = "two", "something has happened");
}

fn agent(sink: &str) -> Agent {
    Agent::new("bench").endpoint(sink).without_subscriber().without_runtime_metrics().metric_interval(Duration::from_secs(3600))
}

fn main() {
    let sink = sink();
    println!("| {:<78} | {:>8} |\n|{:-<80}|{:->10}|", "on the calling thread", "ns", "", "");
    tracing::subscriber::with_default(tracing_subscriber::registry(), || row("span with five fields: bare Registry", None, span));

    let provider = SdkTracerProvider::builder().with_span_processor(Null).build();
    let tracer = provider.tracer("bench");
    let plain = tracing_subscriber::registry().with(tracing_opentelemetry::layer().with_tracer(tracer.clone()));
    tracing::subscriber::with_default(plain, || row("span: tracing-opentelemetry as it comes, nothing exported", None, span));
    let by_api = || {
        let mut span = tracer.start("work");
        span.set_attribute(KeyValue::new("a", 1));
        span.set_attribute(KeyValue::new("b", "two"));
        span.set_attribute(KeyValue::new("c", 3.0));
        span.set_attribute(KeyValue::new("d", true));
        span.set_attribute(KeyValue::new("e", "the fifth"));
    };
    row("span: OpenTelemetry's API, nothing exported", None, by_api);

    let usual = agent(&sink).init();
    let subscriber = tracing_subscriber::registry().with(usual.layer());
    tracing::subscriber::with_default(subscriber, || row("span: this agent, the usual way, encoded and queued", Some(&usual), span));
    let lean = agent(&sink).lean().init();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(lean.layer()), || {
        row("span: this agent, lean, as a layer of a Registry, encoded and queued", Some(&lean), span);
    });
    tracing::subscriber::with_default(lean.subscriber(), || {
        row("span: this agent, lean, encoded and queued", Some(&lean), span);
        row("log with two fields: this agent, lean, encoded and queued", Some(&lean), log);
    });
    let unsampled = agent(&sink).lean().sampling(Sampling::ratio(0.0).keep_failures(false)).pass_over_unsampled().init();
    tracing::subscriber::with_default(unsampled.subscriber(), || {
        row("span that is not sampled: this agent, lean, a root", None, span);
        let _root = tracing::info_span!("root").entered();
        row("span that is not sampled: this agent, lean, a child", None, span);
    });
    let empty = tracing_subscriber::registry()
        .with(tracing_subscriber::layer::Identity::new().with_filter(tracing_subscriber::filter::LevelFilter::INFO));
    tracing::subscriber::with_default(empty, || row("log: bare Registry", None, log));
    let logger = SdkLoggerProvider::builder().with_log_processor(Null).build();
    let _ = logger.logger("bench");
    let appender = tracing_subscriber::registry().with(OpenTelemetryTracingBridge::new(&logger));
    tracing::subscriber::with_default(appender, || row("log: OpenTelemetry's appender, nothing exported", None, log));
    let subscriber = tracing_subscriber::registry().with(usual.layer());
    tracing::subscriber::with_default(subscriber, || row("log: this agent, the usual way, encoded and queued", Some(&usual), log));

    let counter = global::meter("bench").u64_counter("counted").build();
    let attributes = [KeyValue::new("a", "one"), KeyValue::new("b", "two"), KeyValue::new("c", 3)];
    row("counter with three attributes: OpenTelemetry's API", None, || counter.add(1, black_box(&attributes)));
    let histogram = global::meter("bench").f64_histogram("measured").build();
    row("histogram with three attributes: OpenTelemetry's API", None, || histogram.record(0.5, black_box(&attributes)));
    let bound = counter.bind(&attributes);
    row("counter with three attributes: bound", None, || bound.add(black_box(1)));
    let bound = histogram.bind(&attributes);
    row("histogram with three attributes: bound", None, || bound.record(black_box(0.5)));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    if threads > 1 {
        let dispatch = tracing::Dispatch::new(lean.subscriber());
        let other = || tracing::dispatcher::with_default(&dispatch, || (0..2_000_000).for_each(|_| span()));
        std::thread::scope(|scope| {
            (1..threads).for_each(|_| drop(scope.spawn(other)));
            tracing::dispatcher::with_default(&dispatch, || row("span: this agent, lean, on all processors at once", Some(&lean), span));
        });
    }
    for telemetry in [usual, lean, unsampled] {
        let _ = telemetry.shutdown(Duration::from_millis(100));
    }
}
