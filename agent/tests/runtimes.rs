//! Under each flavour of runtime, and under none, telemetry starts, flushes and ends.

mod support;

use firstfall_agent::{Agent, SpanExt, Telemetry, spawn, spawn_blocking, spawn_thread};
use opentelemetry::trace::TraceContextExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::{Collector, Mood};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::SubscriberExt;

fn start(collector: &Collector) -> (Telemetry, tracing::subscriber::DefaultGuard) {
    let telemetry = Agent::new("t").endpoint(&collector.url()).without_subscriber().init();
    let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(telemetry.layer()));
    (telemetry, guard)
}

fn one_span_arrives(telemetry: Telemetry, collector: &Collector, before: usize) {
    drop(tracing::info_span!("one").entered());
    assert!(telemetry.shutdown(Duration::from_secs(20)).is_complete());
    assert_eq!(collector.spans().len(), before + 1);
}

#[test]
fn in_every_flavour_and_in_none() {
    let collector = Collector::start(Mood::Well);
    let (telemetry, _guard) = start(&collector);
    one_span_arrives(telemetry, &collector, 0);
    for (n, builder) in [tokio::runtime::Builder::new_current_thread(), tokio::runtime::Builder::new_multi_thread()].iter_mut().enumerate()
    {
        let runtime = builder.enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (telemetry, _guard) = start(&collector);
            // Also where shutdown holds up the only thread of the runtime.
            one_span_arrives(telemetry, &collector, n + 1);
        });
    }
}

#[test]
fn many_starts_and_stops_end_and_leave_no_threads() {
    const STARTS: usize = 1000;
    let collector = Collector::start(Mood::Well);
    let threads = || std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    let before = threads();
    for _ in 0..STARTS {
        let (telemetry, _guard) = start(&collector);
        drop(tracing::info_span!("one").entered());
        assert!(telemetry.shutdown(Duration::from_secs(20)).is_complete());
    }
    assert_eq!(collector.spans().len(), STARTS);
    // The collector's own threads, one for each connection, end with them.
    support::wait_for("threads to end", || threads() <= before + 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_elsewhere_stays_in_its_trace() {
    work_elsewhere(Agent::new("t")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_elsewhere_stays_in_its_trace_the_short_way_too() {
    work_elsewhere(Agent::new("t").lean()).await;
}

async fn work_elsewhere(agent: Agent) {
    let telemetry = agent.endpoint("http://127.0.0.1:9").init();
    fn here() -> opentelemetry::trace::TraceId {
        tracing::Span::current().otel_context().span().span_context().trace_id()
    }
    fn by_api() -> opentelemetry::trace::TraceId {
        opentelemetry::Context::current().span().span_context().trace_id()
    }
    let mut all = Vec::new();
    for _ in 0..200 {
        all.push(tokio::spawn(async {
            let span = tracing::info_span!("root");
            let root = span.otel_context().span().span_context().trace_id();
            let found = tracing::Instrument::instrument(
                async {
                    let task = spawn(async {
                        tokio::task::yield_now().await;
                        (here(), by_api(), spawn(async { here() }).await.expect("no panic"))
                    });
                    let (task, api, deeper) = task.await.expect("no panic");
                    let blocking = spawn_blocking(|| (here(), by_api())).await.expect("no panic");
                    let thread = spawn_thread(|| (here(), by_api())).join().expect("no panic");
                    let sent = firstfall_agent::Carried::new(());
                    let channel = std::thread::spawn(move || sent.work(|()| (here(), by_api()))).join().expect("no panic");
                    [task, api, deeper, blocking.0, blocking.1, thread.0, thread.1, channel.0, channel.1]
                },
                span,
            );
            assert_eq!(found.await, [root; 9]);
        }));
    }
    for task in all {
        task.await.expect("every trace kept together");
    }
    drop(telemetry);
}

/// Is asked nothing if nobody else is against it.
struct Asked(&'static AtomicUsize);

impl Subscriber for Asked {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::always()
    }
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed);
        true
    }
    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn the_agents_own_threads_make_no_others_be_asked_at_each_span_and_widen_no_level() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    tracing::subscriber::set_global_default(Asked(&ASKED)).expect("the first one");
    let collector = Collector::start(Mood::Well);
    let telemetry = Agent::new("t").endpoint(&collector.url()).without_subscriber().without_runtime_metrics().init();
    // By then its threads have begun.
    assert!(telemetry.flush(Duration::from_secs(20)));
    (0..10).for_each(|_| drop(tracing::info_span!("work").entered()));
    assert_eq!(ASKED.load(Ordering::Relaxed), 0);
    assert_eq!(LevelFilter::current(), LevelFilter::INFO);
}
