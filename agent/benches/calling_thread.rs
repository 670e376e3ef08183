//! What a service's thread spends on telemetry, in nanoseconds: `cargo bench -p firstfall-agent`. Each way is measured in turns, ten times; what is printed
//! is the best turn, as these machines are noisy. The collector does not exist; what is sent is dropped or thrown away.

use firstfall_agent::{Agent, Sampling};
use opentelemetry::logs::LoggerProvider;
use opentelemetry::trace::{Span, Tracer, TracerProvider};
use opentelemetry::{KeyValue, global};
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogProcessor, SdkLogRecord, SdkLoggerProvider};
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanProcessor};
use std::hint::black_box;
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

const TIMES: u32 = 50_000;

/// Nanoseconds for each time. `TURNS=500` to have something to sample.
fn best(mut work: impl FnMut()) -> f64 {
    let turns = std::env::var("TURNS").ok().and_then(|turns| turns.parse().ok()).unwrap_or(10);
    (0..turns)
        .map(|_| {
            let started = Instant::now();
            (0..TIMES).for_each(|_| work());
            started.elapsed().as_nanos() as f64 / f64::from(TIMES)
        })
        .fold(f64::MAX, f64::min)
}

fn span() {
    drop(tracing::info_span!("work", a = 1i64, b = "two", c = 3.0, d = true, e = "the fifth").entered());
}

fn log() {
    tracing::info!(a = 1i64, b = "two", "something has happened");
}

fn agent() -> Agent {
    // Nobody listens there; the queue is large, so that what is measured is not the drop.
    Agent::new("bench")
        .endpoint("http://127.0.0.1:9")
        .without_subscriber()
        .without_runtime_metrics()
        .queue_bytes(256 << 20)
        .metric_interval(Duration::from_secs(3600))
}

fn main() {
    let row = |name: &str, ns: f64| println!("| {name:<78} | {ns:>8.0} |");
    println!("| {:<78} | {:>8} |\n|{:-<80}|{:->10}|", "on the calling thread", "ns", "", "");
    let bare = tracing::subscriber::with_default(tracing_subscriber::registry(), || best(span));
    row("span with five fields: bare Registry", bare);

    let provider = SdkTracerProvider::builder().with_span_processor(Null).build();
    let tracer = provider.tracer("bench");
    let plain = tracing_subscriber::registry().with(tracing_opentelemetry::layer().with_tracer(tracer.clone()));
    row("span: tracing-opentelemetry as it comes, nothing exported", tracing::subscriber::with_default(plain, || best(span)));
    let by_api = || {
        let mut span = tracer.start("work");
        span.set_attribute(KeyValue::new("a", 1));
        span.set_attribute(KeyValue::new("b", "two"));
        span.set_attribute(KeyValue::new("c", 3.0));
        span.set_attribute(KeyValue::new("d", true));
        span.set_attribute(KeyValue::new("e", "the fifth"));
    };
    row("span: OpenTelemetry's API, nothing exported", best(by_api));

    let usual = agent().init();
    let subscriber = tracing_subscriber::registry().with(usual.layer());
    row("span: this agent, the usual way, encoded and queued", tracing::subscriber::with_default(subscriber, || best(span)));
    let lean = agent().lean().init();
    let subscriber = tracing_subscriber::registry().with(lean.layer());
    tracing::subscriber::with_default(subscriber, || {
        row("span: this agent, lean, encoded and queued", best(span));
        row("log with two fields: this agent, lean, encoded and queued", best(log));
    });
    let unsampled = agent().lean().sampling(Sampling::ratio(0.0).keep_failures(false)).init();
    let subscriber = tracing_subscriber::registry().with(unsampled.layer());
    tracing::subscriber::with_default(subscriber, || {
        row("span that is not sampled: this agent, lean, a root", best(span));
        let _root = tracing::info_span!("root").entered();
        row("span that is not sampled: this agent, lean, a child", best(span));
    });
    let empty = tracing_subscriber::registry()
        .with(tracing_subscriber::layer::Identity::new().with_filter(tracing_subscriber::filter::LevelFilter::INFO));
    row("log: bare Registry", tracing::subscriber::with_default(empty, || best(log)));
    let logger = SdkLoggerProvider::builder().with_log_processor(Null).build();
    let _ = logger.logger("bench");
    let appender = tracing_subscriber::registry().with(OpenTelemetryTracingBridge::new(&logger));
    row("log: OpenTelemetry's appender, nothing exported", tracing::subscriber::with_default(appender, || best(log)));
    let subscriber = tracing_subscriber::registry().with(usual.layer());
    row("log: this agent, the usual way, encoded and queued", tracing::subscriber::with_default(subscriber, || best(log)));

    let counter = global::meter("bench").u64_counter("counted").build();
    let attributes = [KeyValue::new("a", "one"), KeyValue::new("b", "two"), KeyValue::new("c", 3)];
    row("counter with three attributes: OpenTelemetry's API", best(|| counter.add(1, black_box(&attributes))));
    let histogram = global::meter("bench").f64_histogram("measured").build();
    row("histogram with three attributes: OpenTelemetry's API", best(|| histogram.record(0.5, black_box(&attributes))));
    for telemetry in [usual, lean, unsampled] {
        let _ = telemetry.shutdown(Duration::from_millis(100));
    }
}
