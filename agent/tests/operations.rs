//! Queries and messages: what they say of themselves, and in whose trace they are, the usual way and the short one.

mod support;

use firstfall_agent::{Agent, Database, Queue, Sampling, Telemetry};
use opentelemetry::propagation::Extractor;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span as Sent;
use std::collections::HashMap;
use std::time::{Duration, SystemTime};
use support::{Collector, Mood};
use tracing::Instrument;

fn start(collector: &Collector, lean: bool, change: impl FnOnce(Agent) -> Agent) -> Telemetry {
    let agent = Agent::new("t").endpoint(&collector.url()).without_runtime_metrics().without_subscriber();
    change(if lean { agent.lean() } else { agent }).init()
}

fn flushed(telemetry: &Telemetry, collector: &Collector) -> HashMap<String, Sent> {
    assert!(telemetry.flush(Duration::from_secs(20)));
    collector.whole_spans().into_iter().map(|span| (span.name.clone(), span)).collect()
}

fn value(span: &Sent, key: &str) -> Option<Any> {
    span.attributes.iter().find(|pair| pair.key == key)?.value.as_ref()?.value.clone()
}

fn text(span: &Sent, key: &str) -> String {
    match value(span, key) {
        Some(Any::StringValue(text)) => text,
        other => format!("{other:?}"),
    }
}

fn block_on<F: Future>(work: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime").block_on(work)
}

#[test]
fn a_query_says_what_it_is_and_how_it_went() {
    for lean in [false, true] {
        let collector = Collector::start(Mood::Well);
        let telemetry = start(&collector, lean, |agent| agent);
        tracing::subscriber::with_default(telemetry.subscriber(), || {
            let database = Database::new("postgresql").namespace("shop").server("db.example", 5432);
            let read = database.query("SELECT", "orders").text("SELECT * FROM orders WHERE id = $1");
            let _ = block_on(read.run(async { Ok::<_, std::fmt::Error>(tracing::info_span!("within").in_scope(String::new)) }));
            let failed = database.query("INSERT", "orders").run_blocking(|| "x".parse::<u8>());
            assert!(failed.is_err());
            let slow = database.query("PING", "").run(std::future::pending::<Result<(), std::fmt::Error>>());
            let _ = block_on(async { tokio::time::timeout(Duration::from_millis(5), slow).await });
        });
        let spans = flushed(&telemetry, &collector);
        let read = &spans["SELECT orders"];
        assert_eq!((read.kind, read.status.as_ref().map_or(0, |status| status.code)), (3, 0), "lean: {lean}");
        for (key, expected) in [
            ("db.system.name", "postgresql"),
            ("db.namespace", "shop"),
            ("db.operation.name", "SELECT"),
            ("db.collection.name", "orders"),
            ("db.query.text", "SELECT * FROM orders WHERE id = $1"),
            ("server.address", "db.example"),
        ] {
            assert_eq!(text(read, key), expected);
        }
        assert_eq!(value(read, "server.port"), Some(Any::IntValue(5432)));
        assert_eq!(spans["within"].parent_span_id, read.span_id);
        let failed = &spans["INSERT orders"];
        assert_eq!(failed.status.as_ref().map(|s| (s.code, s.message.as_str())), Some((2, "invalid digit found in string")));
        assert_eq!(text(failed, "error.type"), "core::num::error::ParseIntError");
        let given_up = &spans["PING shop"];
        assert_eq!((text(given_up, "error.type"), given_up.status.as_ref().map_or(0, |s| s.code)), ("cancelled".to_owned(), 0));
        drop(telemetry);
    }
}

#[test]
fn a_message_is_processed_in_the_trace_of_its_sending_or_linked_to_it() {
    for lean in [false, true] {
        let collector = Collector::start(Mood::Well);
        let telemetry = start(&collector, lean, |agent| agent);
        tracing::subscriber::with_default(telemetry.subscriber(), || {
            let orders = Queue::new("rabbitmq", "orders");
            let other = Queue::new("rabbitmq", "other");
            let mut headers = HashMap::new();
            let sent =
                tracing::info_span!("request").in_scope(|| orders.sending(&mut headers).run_blocking(|| Ok::<_, std::fmt::Error>(())));
            assert!(sent.is_ok() && headers.contains_key("traceparent"));
            let work = async {
                let hour_ago = SystemTime::now() - Duration::from_secs(3600);
                let message = orders.message(&headers).attempt(3).sent_at(hour_ago).id("m-1");
                let done = message.run(async { Err::<(), _>(std::io::Error::other("no such order")) }).await;
                assert!(done.is_err());
                assert!(other.message(&headers).linked().run(async { Ok::<_, std::fmt::Error>(()) }).await.is_ok());
                let no_headers: HashMap<String, String> = HashMap::new();
                let two: [&dyn Extractor; 2] = [&headers, &no_headers];
                let third = Queue::new("rabbitmq", "third");
                assert!(third.batch(two).run(async { Ok::<_, std::fmt::Error>(()) }).await.is_ok());
            };
            // The loop that takes messages has a span of its own, which is nobody's parent here.
            block_on(work.instrument(tracing::info_span!("loop")));
        });
        let spans = flushed(&telemetry, &collector);
        let (sent, processed) = (&spans["send orders"], &spans["process orders"]);
        assert_eq!((sent.kind, processed.kind), (4, 5));
        assert_eq!(sent.parent_span_id, spans["request"].span_id);
        assert_eq!((&processed.trace_id, &processed.parent_span_id), (&sent.trace_id, &sent.span_id), "lean: {lean}");
        assert_eq!(processed.status.as_ref().map(|s| (s.code, s.message.as_str())), Some((2, "no such order")));
        assert_eq!(
            (text(processed, "error.type"), text(processed, "messaging.message.id")),
            ("std::io::error::Error".into(), "m-1".into())
        );
        assert_eq!(value(processed, "firstfall.messaging.delivery_attempt"), Some(Any::IntValue(3)));
        assert!(
            matches!(value(processed, "firstfall.messaging.queue_wait"), Some(Any::DoubleValue(waited)) if (3600.0..3700.0).contains(&waited))
        );
        for linked in ["process other", "process third"] {
            let span = &spans[linked];
            assert!(span.parent_span_id.is_empty() && span.trace_id != sent.trace_id, "{linked}, lean: {lean}");
            assert_eq!(span.links.iter().map(|link| &link.span_id).collect::<Vec<_>>(), [&sent.span_id]);
        }
        assert_eq!(value(&spans["process third"], "messaging.batch.message_count"), Some(Any::IntValue(2)));
        drop(telemetry);
    }
}

/// The loop that takes messages is not sampled, what lies within it is passed over, and yet a message whose sender was sampled is there whole.
#[test]
fn a_message_is_sampled_as_its_sender_was() {
    for lean in [false, true] {
        let collector = Collector::start(Mood::Well);
        let telemetry = start(&collector, lean, |agent| agent.sampling(Sampling::ratio(0.0).keep_failures(false)).pass_over_unsampled());
        tracing::subscriber::with_default(telemetry.subscriber(), || {
            let orders = Queue::new("kafka", "orders");
            let headers = |flags| HashMap::from([("traceparent".to_owned(), format!("00-{:032x}-{:016x}-{flags}", 7, 8))]);
            let _loop = tracing::info_span!("loop").entered();
            for (flags, id) in [("01", "taken"), ("00", "not taken")] {
                let message = headers(flags);
                let done = orders.message(&message).id(id).run_blocking(|| {
                    drop(tracing::info_span!("within", id).entered());
                    Ok::<_, std::fmt::Error>(())
                });
                assert!(done.is_ok());
            }
        });
        assert!(telemetry.flush(Duration::from_secs(20)));
        let spans = collector.whole_spans();
        let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
        assert_eq!(names, ["within", "process orders"], "lean: {lean}");
        assert_eq!((text(&spans[1], "messaging.message.id"), text(&spans[0], "id")), ("taken".to_owned(), "taken".to_owned()));
        assert_eq!((spans[1].trace_id.as_slice(), spans[1].parent_span_id.as_slice()), (&7u128.to_be_bytes()[..], &8u64.to_be_bytes()[..]));
        assert_eq!(spans[0].parent_span_id, spans[1].span_id);
        drop(telemetry);
    }
}

/// Also when the call has been entered before, as it is at every poll.
#[test]
fn what_is_current_within_a_call_goes_along_to_other_threads() {
    use opentelemetry::baggage::BaggageExt;
    use opentelemetry::trace::{FutureExt, TraceContextExt};
    use opentelemetry::{Context, KeyValue};
    let collector = Collector::start(Mood::Well);
    for lean in [false, true] {
        let telemetry = start(&collector, lean, |agent| agent);
        let _default = tracing::subscriber::set_default(telemetry.subscriber());
        let within = || {
            let current = Context::current();
            let user = current.baggage().get("user").map(ToString::to_string);
            (user, current.span().span_context().span_id())
        };
        let call = async {
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            let around = within().1;
            let elsewhere = async { firstfall_agent::spawn_thread(within).join().expect("it does not panic") };
            let with_user = Context::current().with_baggage([KeyValue::new("user", "ann")]);
            Ok::<_, std::fmt::Error>((around, elsewhere.with_context(with_user).await))
        };
        let (around, (user, span)) = block_on(Database::new("sqlite").query("SELECT", "t").run(call)).expect("it goes well");
        assert_eq!((user.as_deref(), span), (Some("ann"), around), "lean: {lean}");
    }
}

#[cfg(feature = "prometheus")]
#[test]
fn queries_and_messages_are_measured() {
    let collector = Collector::start(Mood::Well);
    let telemetry = start(&collector, true, Agent::with_exposition);
    let _ = Database::new("sqlite").query("SELECT", "t").run_blocking(|| Err::<(), _>(std::fmt::Error));
    let mut headers = HashMap::new();
    let queue = Queue::new("kafka", "q");
    let _ = queue.sending(&mut headers).run_blocking(|| Ok::<_, std::fmt::Error>(()));
    let _ = queue.message(&headers).sent_at(SystemTime::now()).run_blocking(|| Ok::<_, std::fmt::Error>(()));
    let shown = telemetry.exposition();
    for (name, with) in [
        ("db_client_operation_duration_seconds_count", r#"error_type="core::fmt::Error""#),
        ("messaging_client_operation_duration_seconds_count", r#"messaging_operation_name="send""#),
        ("messaging_process_duration_seconds_count", r#"messaging_destination_name="q""#),
        ("firstfall_messaging_queue_wait_seconds_count", r#"messaging_system="kafka""#),
    ] {
        let line = shown.lines().find(|line| line.starts_with(name) && line.contains(with));
        assert!(line.is_some_and(|line| line.ends_with(" 1")), "{name}: {shown}");
    }
}
