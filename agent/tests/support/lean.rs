//! What the short way from `tracing` to OTLP promises, beside OpenTelemetry's API in both directions; `crate::start` says in which subscriber.

use crate::start;
use crate::support::{Collector, Mood};
use firstfall_agent::{Agent, Sampling, SpanExt, Telemetry};
use opentelemetry::baggage::BaggageExt;
use opentelemetry::trace::{Span, SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer};
use opentelemetry::{Array, Context, KeyValue, Value, global};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span as Sent;
use std::collections::HashMap;
use std::fmt::Debug;
use std::time::Duration;

fn flushed(telemetry: &Telemetry, collector: &Collector) -> HashMap<String, Sent> {
    assert!(telemetry.flush(Duration::from_secs(20)));
    collector.whole_spans().into_iter().map(|span| (span.name.clone(), span)).collect()
}

fn values(span: &Sent) -> HashMap<&str, &Any> {
    let values: HashMap<&str, &Any> =
        span.attributes.iter().filter_map(|pair| Some((pair.key.as_str(), pair.value.as_ref()?.value.as_ref()?))).collect();
    assert_eq!(values.len(), span.attributes.len(), "each key once");
    values
}

#[test]
fn fields_arrive_as_what_they_are() {
    let collector = Collector::start(Mood::Well);
    let telemetry = start(&collector, |agent| agent);
    let span = tracing::info_span!(
        "plain",
        a.int = -1i64,
        a.unsigned = 7u64,
        a.huge = u64::MAX,
        a.double = 0.5,
        a.bool = true,
        a.text = "täxt",
        a.debug = ?Some(3),
        a.empty = tracing::field::Empty,
        a.twice = 1i64,
        otel.name = "named",
        otel.kind = "client",
        otel.status_code = tracing::field::Empty,
        otel.status_description = tracing::field::Empty,
    );
    span.record("a.empty", "later").record("a.twice", 2i64).record("otel.status_description", "broken");
    span.set_otel_attribute("a.list", Value::Array(Array::I64(vec![1, i64::MAX])));
    span.add_otel_link(SpanContext::new(TraceId::from(5), SpanId::from(6), TraceFlags::SAMPLED, true, TraceState::NONE));
    span.in_scope(|| tracing::warn!(x = 2.5, y = 3u64, "said {}", "so"));
    drop(span);
    let spans = flushed(&telemetry, &collector);
    let span = &spans["named"];
    let values = values(span);
    let text = |text: &str| Any::StringValue(text.to_owned());
    for (key, expected) in [
        ("a.int", Any::IntValue(-1)),
        ("a.unsigned", Any::IntValue(7)),
        ("a.huge", text("18446744073709551615")),
        ("a.double", Any::DoubleValue(0.5)),
        ("a.bool", Any::BoolValue(true)),
        ("a.text", text("täxt")),
        ("a.debug", text("Some(3)")),
        ("a.empty", text("later")),
        ("a.twice", Any::IntValue(2)),
    ] {
        assert_eq!(values[key], &expected, "{key}");
    }
    assert!(matches!(values["a.list"], Any::ArrayValue(list) if list.values.len() == 2));
    assert_eq!((span.kind, span.status.as_ref().map(|s| (s.code, s.message.as_str())), span.links.len()), (3, Some((2, "broken")), 1));
    assert!(span.end_time_unix_nano >= span.start_time_unix_nano && span.flags & 1 == 1);
    let logs = collector.logs();
    assert!(logs.len() == 1 && logs[0].0.contains("said so") && logs[0].1 == span.span_id, "{logs:?}");
}

#[test]
fn spans_of_the_api_and_of_tracing_are_each_others_children() {
    let collector = Collector::start(Mood::Well);
    let telemetry = start(&collector, |agent| agent);
    let tracer = global::tracer("t");
    {
        let _outer = tracing::info_span!("1 tracing").entered();
        tracer.in_span("2 api", |_| {
            let inner = tracing::info_span!("3 tracing").entered();
            let mut carrier = HashMap::new();
            global::get_text_map_propagator(|p| p.inject_context(&Context::current(), &mut carrier));
            assert_eq!(carrier["traceparent"][36..52], format!("{:016x}", inner.otel_context().span().span_context().span_id()));
            tracer.start("4 api").end();
        });
        // The API's span has ended: what comes now belongs to tracing's again.
        drop(tracing::info_span!("5 tracing").entered());
    }
    assert!(!Context::current().has_active_span(), "nothing stays behind");
    let baggage = Context::new().with_baggage([KeyValue::new("user", "ann")]);
    let remote = SpanContext::new(
        TraceId::from(77),
        SpanId::from(78),
        TraceFlags::SAMPLED,
        true,
        TraceState::from_key_value([("k", "v")]).expect("valid"),
    );
    let span = tracing::info_span!("6 remote");
    span.set_otel_parent(baggage.with_remote_span_context(remote));
    span.in_scope(|| {
        let inside = tracing::info_span!("7 inside").entered();
        assert_eq!(inside.otel_context().baggage().get("user").map(ToString::to_string), Some("ann".to_owned()));
    });
    drop(span);
    let spans = flushed(&telemetry, &collector);
    for (child, parent) in
        [("2 api", "1 tracing"), ("3 tracing", "2 api"), ("4 api", "3 tracing"), ("5 tracing", "1 tracing"), ("7 inside", "6 remote")]
    {
        assert_eq!(spans[child].parent_span_id, spans[parent].span_id, "{child}");
        assert_eq!(spans[child].trace_id, spans[parent].trace_id, "{child}");
    }
    assert!(spans["1 tracing"].parent_span_id.is_empty());
    let remote = &spans["6 remote"];
    assert_eq!((remote.trace_id.as_slice(), remote.parent_span_id.as_slice()), (&77u128.to_be_bytes()[..], &78u64.to_be_bytes()[..]));
    assert_eq!((remote.trace_state.as_str(), spans["7 inside"].trace_state.as_str(), remote.flags & 0x200), ("k=v", "k=v", 0x200));
}

/// Logs while it is shown, opens a span, and panics when told to.
struct Awkward(bool);

impl Debug for Awkward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        tracing::warn!("while I am shown");
        drop(tracing::info_span!("shown").entered());
        assert!(!self.0, "I do not want to be shown");
        f.write_str("awkward")
    }
}

#[test]
fn values_that_log_or_panic_while_they_are_shown_hold_nobody_up() {
    let collector = Collector::start(Mood::Well);
    let telemetry = start(&collector, Agent::without_panics);
    let span = tracing::info_span!("outer", a = ?Awkward(false), b = tracing::field::Empty);
    let entered = span.enter();
    span.record("b", tracing::field::debug(Awkward(false)));
    tracing::warn!(c = ?Awkward(false), "an event");
    let joined = std::thread::spawn(|| tracing::warn!(c = ?Awkward(true), "a panic")).join();
    assert!(joined.is_err());
    drop(entered);
    drop(span);
    drop(tracing::info_span!("after").entered());
    let spans = flushed(&telemetry, &collector);
    assert!(spans.contains_key("after") && spans.contains_key("outer") && spans.contains_key("shown"), "{:?}", spans.keys());
    assert_eq!(values(&spans["outer"])["b"], &Any::StringValue("awkward".to_owned()));
    assert!(collector.logs().iter().any(|(body, _)| body.contains("an event")));
}

#[test]
fn of_a_sampled_service_failures_are_kept_and_everything_says_what_it_stands_for() {
    let collector = Collector::start(Mood::Well);
    let telemetry = start(&collector, |agent| agent.sampling(Sampling::ratio(0.25)));
    for n in 0..400 {
        let name = if n % 10 == 0 { "fails" } else { "works" };
        let span = tracing::info_span!("s", otel.name = name, otel.status_code = tracing::field::Empty);
        if n % 10 == 0 {
            span.record("otel.status_code", "ERROR");
        }
        drop(tracing::info_span!(parent: &span, "child").entered());
    }
    assert!(telemetry.flush(Duration::from_secs(20)));
    let spans = collector.whole_spans();
    let of = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let (fails, works, children) = (of("fails"), of("works"), of("child"));
    assert!(fails.len() == 40 && fails.iter().all(|span| span.trace_state == "ot=th:0"));
    assert!((40..150).contains(&works.len()), "a quarter of 360: {}", works.len());
    assert!(works.iter().chain(&children).all(|span| span.trace_state == "ot=th:c"));
    let failing_and_taken = fails.iter().filter(|span| span.flags & 1 == 1).count();
    assert_eq!(children.len(), works.len() + failing_and_taken);
}

#[test]
fn a_parent_that_the_code_names_is_the_parent_and_values_of_the_context_stay() {
    let collector = Collector::start(Mood::Well);
    let telemetry = start(&collector, |agent| agent.sampling(Sampling::ratio(1.0).alone()));
    let a = tracing::info_span!("a");
    a.in_scope(|| {
        let _b = tracing::info_span!("b").entered();
        drop(tracing::info_span!(parent: &a, "c").entered());
    });
    drop(a);
    // A request with baggage, to which the handler adds, as a layer of a server leaves it.
    let remote = SpanContext::new(
        TraceId::from(9),
        SpanId::from(9),
        TraceFlags::SAMPLED,
        true,
        TraceState::from_key_value([("congo", "x")]).expect("valid"),
    );
    let request = tracing::info_span!("request");
    request.set_otel_parent(Context::new().with_remote_span_context(remote));
    request.in_scope(|| {
        let _more = Context::current().with_baggage([KeyValue::new("user", "ann")]).attach();
        let call = tracing::info_span!("call");
        assert!(call.otel_context().baggage().get("user").is_some());
        assert!(call.in_scope(|| Context::current().baggage().get("user").is_some()));
    });
    drop(request);
    let spans = flushed(&telemetry, &collector);
    assert_eq!(spans["c"].parent_span_id, spans["a"].span_id);
    assert_eq!(spans["b"].parent_span_id, spans["a"].span_id);
    assert_eq!(spans["call"].parent_span_id, spans["request"].span_id);
}

#[test]
fn what_is_recorded_later_stands_in_place_of_what_was_also_past_the_sixty_fourth_field() {
    let collector = Collector::start(Mood::Well);
    let telemetry = start(&collector, |agent| agent);
    let span = tracing::info_span!("s", a = 1i64, b = "one", otel.kind = "server");
    span.record("a", 2i64).record("b", "two").record("a", 3i64);
    for n in 0..3 {
        span.set_otel_attribute("c", n);
    }
    drop(span);
    let spans = flushed(&telemetry, &collector);
    let values = values(&spans["s"]);
    assert_eq!((values["a"], values["b"], values["c"]), (&Any::IntValue(3), &Any::StringValue("two".to_owned()), &Any::IntValue(2)));
    assert_eq!(spans["s"].kind, 2);
}

fn remote(trace: u128) -> Context {
    Context::new().with_remote_span_context(SpanContext::new(
        TraceId::from(trace),
        SpanId::from(8),
        TraceFlags::SAMPLED,
        true,
        TraceState::NONE,
    ))
}

#[test]
fn a_request_within_the_span_of_its_connection_is_its_callers_and_what_moves_takes_its_children_along() {
    let collector = Collector::start(Mood::Well);
    let telemetry = start(&collector, |agent| agent);
    let connection = tracing::info_span!("connection").entered();
    {
        let _came = remote(21).attach();
        let _request = tracing::info_span!("request").entered();
        drop(tracing::info_span!("within").entered());
    }
    drop(tracing::info_span!("beside").entered());
    drop(connection);
    let late = tracing::info_span!("late").entered();
    late.set_otel_parent(remote(22));
    drop(tracing::info_span!("after").entered());
    tracing::warn!("in late");
    drop(late);
    let spans = flushed(&telemetry, &collector);
    let trace = |name: &str| u128::from_be_bytes(spans[name].trace_id.as_slice().try_into().expect("sixteen bytes"));
    assert_eq!((trace("request"), trace("within"), trace("late"), trace("after")), (21, 21, 22, 22));
    assert_eq!((&spans["within"].parent_span_id, &spans["after"].parent_span_id), (&spans["request"].span_id, &spans["late"].span_id));
    assert_eq!(spans["beside"].parent_span_id, spans["connection"].span_id);
    assert!(collector.logs().iter().any(|(body, span)| body.contains("in late") && *span == spans["late"].span_id));
}

#[test]
fn what_is_current_when_a_span_is_entered_is_not_there_the_next_time() {
    let collector = Collector::start(Mood::Well);
    let telemetry = start(&collector, |agent| agent);
    let worker = tracing::info_span!("worker");
    for user in ["ann", "bob", "eve", "joe"] {
        let _message = Context::new().with_baggage([KeyValue::new("user", user)]).attach();
        worker.in_scope(|| assert_eq!(Context::current().baggage().get("user").map(ToString::to_string).as_deref(), Some(user)));
    }
    worker.in_scope(|| assert!(Context::current().baggage().is_empty()));
    drop(worker);
    assert_eq!(flushed(&telemetry, &collector).len(), 1);
}

/// A field that is empty, then set by name, then as a field again; and a log within a span of the API, and one that says it belongs to none.
#[test]
fn a_name_has_one_value_and_a_log_its_nearest_span() {
    let collector = Collector::start(Mood::Well);
    let telemetry = start(&collector, |agent| agent);
    let span = tracing::info_span!("s", k = tracing::field::Empty, l = 1);
    span.set_otel_attribute("k", 1);
    span.record("k", 2);
    let _entered = span.enter();
    global::tracer("t").in_span("api", |_| tracing::info!("near"));
    tracing::info!(parent: None, "apart");
    drop(_entered);
    drop(span);
    let spans = flushed(&telemetry, &collector);
    assert_eq!(values(&spans["s"])["k"], &Any::IntValue(2));
    let of = |text: &str| collector.logs().iter().find(|(body, _)| body.contains(text)).map(|(_, span)| span.clone());
    assert_eq!((of("near"), of("apart")), (Some(spans["api"].span_id.clone()), Some(Vec::new())));
}

/// Thread-locals that are older than the first span log while they go, and spans that were never left are entered still.
#[test]
fn a_thread_may_end_within_a_span_and_log_as_it_goes() {
    struct LogsAtTheEnd;
    impl Drop for LogsAtTheEnd {
        fn drop(&mut self) {
            drop(tracing::info_span!("at the end").entered());
            tracing::info!("gone");
        }
    }
    thread_local!(static OLD: LogsAtTheEnd = const { LogsAtTheEnd });
    let collector = Collector::start(Mood::Well);
    let telemetry = start(&collector, |agent| agent);
    let ended = std::thread::spawn(|| {
        OLD.with(|_| ());
        std::mem::forget(tracing::info_span!("never left").entered());
    });
    assert!(ended.join().is_ok());
    assert!(telemetry.flush(Duration::from_secs(20)));
}
