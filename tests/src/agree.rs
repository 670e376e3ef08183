//! The walkers against opentelemetry-proto: what a request means by the reference, and whether we read the same.
//!
//! The reference takes the outer frame apart with prost's own primitives and decodes each item by itself with opentelemetry-proto, since we
//! refuse a broken item alone where prost refuses the request. Then it applies our rules (ids, times), written down a second time, slowly.
//! Limits on sizes are out of the way; the tests of `receive` have them. What remains are these intended differences, each found in the bytes
//! themselves, so that nothing else passes for one of them (`Odd`):
//!
//! - *group*: protobuf's long outdated groups. We refuse what holds one, prost skips it.
//! - *merged*: a message or text that may stand once and stands twice. Protobuf merges the two messages and checks both texts, we look at
//!   the last only.
//! - *deep*: values nested deeper than sixty levels. Prost refuses a hundred, we cut at our limit.
//! - *later*: fields of newer signals (profiles' string indexes, entities) that we do not read.

use collector::decode::{self, Format};
use collector::redact::Redaction;
use collector::validate::{Intake, Limits};
use firstfall_store::Signal;
use firstfall_store::batch::{Batch, Field, ValueRef, marks};
use firstfall_store::value::{Event, Link, Pairs, Resource, Scope, Stored, Value};
use firstfall_store::{SpanId, TraceId};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{self as common, AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::{logs::v1 as logs, metrics::v1 as metrics, resource::v1 as resource, trace::v1 as trace};
use prost::Message;
use prost::bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint};

/// The clock of both readings, in nanoseconds.
pub const NOW: u64 = 1_800_000_000_000_000_000;

const EARLIEST: u64 = 946_684_800_000_000_000;
const LATEST: u64 = NOW + 86_400_000_000_000;

/// An intended difference; the module says which.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Odd {
    Group,
    Merged,
    Deep,
    Later,
}

/// How two readings of a body came out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// Both read it, and all of it alike.
    Alike,
    /// Both read it; the same items were refused.
    InPart,
    /// Both refuse it whole.
    Refused,
    Odd(Odd),
    /// The reference refuses it or leaves something out; we read what can be read (JSON only).
    Lenient,
}

type Part = (u8, String, String);

/// The batch of a valid protobuf body.
pub fn batch(signal: Signal, body: &[u8]) -> Batch {
    let mut intake = Intake::new(signal, Limits::default(), NOW, body.len());
    decode::request(Format::Protobuf, signal, &mut body.to_vec(), &mut intake).expect("a valid body");
    intake.finish().0
}

/// Our reading: each item as text, and how many were refused. `None` when the request was refused whole.
pub fn ours(format: Format, signal: Signal, body: &[u8]) -> Option<(Vec<String>, u64)> {
    let limits = Limits {
        attributes_max: usize::MAX,
        key_bytes_max: usize::MAX,
        value_bytes_max: usize::MAX / 8,
        body_bytes_max: usize::MAX,
        name_bytes_max: usize::MAX,
        events_max: usize::MAX,
        redact: Redaction::new(std::iter::empty()),
        ..Limits::default()
    };
    let mut intake = Intake::new(signal, limits, NOW, body.len());
    let mut body = body.to_vec();
    decode::request(format, signal, &mut body, &mut intake).ok()?;
    let (batch, discards) = intake.finish();
    Some((read_batch(&batch), discards.rejected_total()))
}

/// Each row of a batch as text: everything that a client said in it.
pub fn read_batch(batch: &Batch) -> Vec<String> {
    (0..batch.rows())
        .map(|row| {
            let lane = batch.lanes[batch.lane[row] as usize];
            let (resource, scope) = batch.contexts[lane.context as usize];
            let resource = Resource::from_bytes(batch.blobs.get(batch.resources[resource as usize].body)).expect("own encoding");
            let scope = Scope::from_bytes(batch.blobs.get(batch.scopes[scope as usize])).expect("own encoding");
            let part = |(column, cell): (firstfall_store::batch::Column, ValueRef<'_>)| -> Part {
                let text = match (column.field, cell) {
                    (Field::Events, ValueRef::Nested(raw)) => format!("{:?}", Vec::<Event>::from_bytes(raw).expect("own encoding")),
                    (Field::Links, ValueRef::Nested(raw)) => format!("{:?}", Vec::<Link>::from_bytes(raw).expect("own encoding")),
                    (Field::Buckets | Field::Exemplars, cell) => format!("{:?}", plain(cell.value())),
                    (_, cell) => format!("{:?}", cell.value()),
                };
                (column.field as u8, batch.strings.str(column.key).to_owned(), text)
            };
            item(
                batch.signal,
                (&resource, &scope),
                (lane.kind, batch.strings.str(lane.name)),
                (batch.trace_id(row).unwrap_or_default(), batch.span_id(row), SpanId(batch.parent[row])),
                (batch.time[row], batch.duration[row]),
                batch.marks[row] & marks::STATUS,
                batch.values_of(row).map(part).collect(),
            )
        })
        .collect()
}

/// One form for what protobuf cannot tell apart: absent, and zero where no presence is kept. Maps by their keys.
fn plain(value: Value) -> Value {
    match value {
        Value::Array(values) => Value::Array(values.into_iter().map(plain).collect()),
        Value::Map(pairs) => {
            let zero = |value: &Value| match value {
                Value::Int(v) => *v == 0,
                Value::Double(v) => v.to_bits() == 0,
                Value::Bytes(v) => v.is_empty(),
                Value::Array(v) => v.is_empty(),
                Value::Map(v) => v.is_empty(),
                _ => false,
            };
            let mut pairs: Pairs = pairs.into_iter().map(|(key, value)| (key, plain(value))).collect();
            // A value of zero is said by its type, where it is one of two.
            pairs.retain(|(key, value)| key == "value" || !zero(value));
            pairs.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Map(pairs)
        }
        // The reference takes a negative zero for absent when it writes.
        Value::Double(0.0) => Value::Double(0.0),
        other => other,
    }
}

fn item(
    signal: Signal,
    (resource, scope): (&Resource, &Scope),
    (kind, name): (u8, &str),
    (trace, span, parent): (TraceId, SpanId, SpanId),
    (time, duration): (u64, i64),
    status: u8,
    parts: Vec<Part>,
) -> String {
    let zero = |(field, _, text): &Part| match *field {
        f if f == Field::Count as u8 => text == "Int(0)",
        // A summary's sum keeps no presence; those of histograms do.
        f if f == Field::Sum as u8 => kind == 5 && matches!(text.as_str(), "Double(0.0)" | "Double(-0.0)"),
        f => f == Field::Buckets as u8 && text == "Map([])",
    };
    let (attributes, mut others): (Vec<Part>, Vec<Part>) =
        parts.into_iter().filter(|p| !zero(p)).partition(|p| p.0 == Field::Attribute as u8);
    others.sort();
    format!(
        "{signal:?} {trace} {span} {parent} {kind} {name:?} {time} {duration} {status} {attributes:?} {others:?} {resource:?} {scope:?}"
    )
}

/// A field of a message: its number, its wire type, and the bytes of a length-delimited one.
type Token = (u32, WireType, Vec<u8>);

/// The fields of a message. `None` when it is not one; groups are told apart by their wire type and end the list.
fn tokens(bytes: &[u8]) -> Option<Vec<Token>> {
    let mut rest = bytes;
    let mut fields = Vec::new();
    while rest.has_remaining() {
        let (number, wire) = decode_key(&mut rest).ok()?;
        let mut content = Vec::new();
        let skipped = match wire {
            WireType::Varint => {
                decode_varint(&mut rest).ok()?;
                0
            }
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::LengthDelimited => usize::try_from(decode_varint(&mut rest).ok()?).ok()?,
            WireType::StartGroup | WireType::EndGroup => {
                fields.push((number, wire, content));
                return Some(fields);
            }
        };
        if skipped > rest.len() {
            return None;
        }
        if wire == WireType::LengthDelimited {
            content = rest[..skipped].to_vec();
        }
        rest.advance(skipped);
        fields.push((number, wire, content));
    }
    Some(fields)
}

/// The messages of OTLP as far as they hold others.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Request,
    Group,
    Scope,
    Resource,
    ScopeHead,
    Span,
    Log,
    Metric,
    Data(u32),
    Point(u32),
    Event,
    Link,
    Exemplar,
    Pair,
    Any,
    Values,
    Pairs,
    Status,
    Text,
    Leaf,
}

/// What stands in a field, and whether it may stand once only.
fn child(kind: Kind, signal: Signal, number: u32) -> Option<(Kind, bool)> {
    use Kind::*;
    Some(match (kind, number) {
        (Request, 1) => (Group, false),
        (Group, 1) => (Resource, true),
        (Group, 2) => (Scope, false),
        (Scope, 1) => (ScopeHead, true),
        (Scope, 2) => (
            match signal {
                Signal::Traces => Span,
                Signal::Logs => Log,
                Signal::Metrics => Metric,
            },
            false,
        ),
        (Resource, 1) | (ScopeHead, 3) | (Span, 9) | (Log, 6) | (Event, 3) | (Link, 4) | (Exemplar, 7) | (Metric, 12) | (Pairs, 1) => {
            (Pair, false)
        }
        (Span, 11) => (Event, false),
        (Span, 13) => (Link, false),
        (Span, 15) => (Status, true),
        (Group | Scope, 3) | (ScopeHead, 1 | 2) | (Span, 3 | 5) | (Log, 3 | 12) | (Metric, 1..=3) => (Text, true),
        (Event, 2) | (Link, 3) | (Pair, 1) | (Status, 2) => (Text, true),
        (Log, 5) | (Pair, 2) => (Any, true),
        (Metric, 5 | 7 | 9 | 10 | 11) => (Data(number), true),
        (Data(data), 1) => (Point(data), false),
        (Point(5 | 7 | 11), 7) | (Point(9), 9) | (Point(10), 1) => (Pair, false),
        (Point(5 | 7), 5) | (Point(9), 8) | (Point(10), 11) => (Exemplar, false),
        (Point(10), 8 | 9) => (Leaf, true),
        (Point(11), 6) => (Leaf, false),
        (Any, 5) => (Values, true),
        (Any, 6) => (Pairs, true),
        (Values, 1) => (Any, false),
        _ => return None,
    })
}

/// The first intended difference in a message, wherever in it.
fn odd(kind: Kind, signal: Signal, bytes: &[u8], depth: usize) -> Option<Odd> {
    if depth > 60 {
        return Some(Odd::Deep);
    }
    let fields = tokens(bytes)?;
    let mut seen = Vec::new();
    // Of a value's fields one is meant, whichever they are.
    if kind == Kind::Any && fields.iter().filter(|(n, ..)| (1..=7).contains(n)).count() > 1 {
        return Some(Odd::Merged);
    }
    for (number, wire, content) in &fields {
        if matches!(wire, WireType::StartGroup | WireType::EndGroup) {
            return Some(Odd::Group);
        }
        if matches!((kind, number), (Kind::Any, 8) | (Kind::Pair, 3) | (Kind::Resource, 3)) {
            return Some(Odd::Later);
        }
        if let Some((inner, once)) = child(kind, signal, *number) {
            if once && seen.contains(number) {
                return Some(Odd::Merged);
            }
            seen.push(*number);
            if inner != Kind::Text
                && *wire == WireType::LengthDelimited
                && let Some(found) = odd(inner, signal, content, depth + 1)
            {
                return Some(found);
            }
        }
    }
    None
}

struct Reading {
    items: Vec<String>,
    refused: u64,
}

/// Bytes that are no message, in the frame: the whole request is refused.
struct Unreadable;

fn last(fields: &[Token], number: u32) -> Result<&[u8], Unreadable> {
    let mut found = &[][..];
    for (_, wire, content) in fields.iter().filter(|(n, ..)| *n == number) {
        if *wire != WireType::LengthDelimited {
            return Err(Unreadable);
        }
        found = content;
    }
    Ok(found)
}

fn reference(signal: Signal, body: &[u8]) -> Result<Reading, Unreadable> {
    let mut reading = Reading { items: Vec::new(), refused: 0 };
    let request = tokens(body).ok_or(Unreadable)?;
    last(&request, 1)?;
    for (_, _, group) in request.iter().filter(|(n, ..)| *n == 1) {
        let group = tokens(group).ok_or(Unreadable)?;
        let (head, url) = (last(&group, 1)?, last(&group, 3)?);
        last(&group, 2)?;
        let resource = resource::Resource::decode(head).ok().zip(String::from_utf8(url.to_vec()).ok()).map(|(r, schema_url)| Resource {
            attributes: pairs(&r.attributes),
            dropped_attributes: r.dropped_attributes_count,
            schema_url,
        });
        for (_, _, scope) in group.iter().filter(|(n, ..)| *n == 2) {
            let fields = tokens(scope).ok_or(Unreadable)?;
            let Some(resource) = &resource else {
                reading.refused += count_items(signal, &fields)?;
                continue;
            };
            let (head, url) = (last(&fields, 1)?, last(&fields, 3)?);
            let scope = common::InstrumentationScope::decode(head).ok().zip(String::from_utf8(url.to_vec()).ok());
            let Some((scope, schema_url)) = scope else {
                reading.refused += count_items(signal, &fields)?;
                continue;
            };
            last(&fields, 2)?;
            let scope = Scope {
                name: scope.name,
                version: scope.version,
                attributes: pairs(&scope.attributes),
                dropped_attributes: scope.dropped_attributes_count,
                schema_url,
            };
            for (_, _, bytes) in fields.iter().filter(|(n, ..)| *n == 2) {
                let read = match signal {
                    Signal::Traces => trace::Span::decode(&bytes[..]).ok().and_then(|s| span(&s, resource, &scope)).map(|s| vec![s]),
                    Signal::Logs => logs::LogRecord::decode(&bytes[..]).ok().and_then(|l| log(&l, resource, &scope)).map(|l| vec![l]),
                    Signal::Metrics => metric(bytes, resource, &scope, &mut reading.refused),
                };
                match read {
                    Some(items) => reading.items.extend(items),
                    None => reading.refused += 1,
                }
            }
        }
    }
    Ok(reading)
}

/// Spans, log records or points of a scope of which nothing is read.
fn count_items(signal: Signal, scope: &[Token]) -> Result<u64, Unreadable> {
    let items = scope.iter().filter(|(n, ..)| *n == 2);
    if signal != Signal::Metrics {
        return Ok(items.count() as u64);
    }
    last(scope, 2)?;
    let points = |metric: &[u8]| -> Option<u64> {
        let mut points = 0;
        for (number, wire, data) in tokens(metric)? {
            if matches!(number, 5 | 7 | 9 | 10 | 11) {
                if wire != WireType::LengthDelimited {
                    return None;
                }
                points += tokens(&data)?.iter().filter(|(n, ..)| *n == 1).count() as u64;
            }
        }
        Some(points)
    };
    Ok(items.map(|(_, _, metric)| points(metric).unwrap_or(1)).sum())
}

fn dated(time: u64) -> bool {
    (EARLIEST..=LATEST).contains(&time)
}

fn id8(bytes: &[u8]) -> u64 {
    <[u8; 8]>::try_from(bytes).map_or(0, u64::from_be_bytes)
}

fn value(any: Option<&AnyValue>) -> Value {
    match any.and_then(|a| a.value.as_ref()) {
        None => Value::Empty,
        Some(any_value::Value::StringValue(text)) => Value::Str(text.clone()),
        Some(any_value::Value::BoolValue(v)) => Value::Bool(*v),
        Some(any_value::Value::IntValue(v)) => Value::Int(*v),
        Some(any_value::Value::DoubleValue(v)) => Value::Double(*v),
        Some(any_value::Value::BytesValue(v)) => Value::Bytes(v.clone()),
        Some(any_value::Value::ArrayValue(list)) => Value::Array(list.values.iter().map(|v| value(Some(v))).collect()),
        Some(any_value::Value::KvlistValue(list)) => Value::Map(pairs(&list.values)),
        Some(any_value::Value::StringValueStrindex(_)) => Value::Empty,
    }
}

fn pairs(list: &[KeyValue]) -> Pairs {
    list.iter().map(|kv| (kv.key.clone(), value(kv.value.as_ref()))).collect()
}

fn attributes(list: &[KeyValue]) -> Vec<Part> {
    pairs(list).into_iter().map(|(key, value)| (Field::Attribute as u8, key, format!("{value:?}"))).collect()
}

fn part(parts: &mut Vec<Part>, field: Field, said: bool, value: impl std::fmt::Debug) {
    if said {
        parts.push((field as u8, String::new(), format!("{value:?}")));
    }
}

fn text(text: &str) -> Value {
    Value::Str(text.to_owned())
}

fn count(parts: &mut Vec<Part>, field: Field, count: u32) {
    part(parts, field, count > 0, Value::Int(count.into()));
}

fn span(span: &trace::Span, resource: &Resource, scope: &Scope) -> Option<String> {
    let trace = TraceId(<[u8; 16]>::try_from(&span.trace_id[..]).ok()?);
    let ids = (trace, SpanId(id8(&span.span_id)), SpanId(id8(&span.parent_span_id)));
    let (start, end) = (span.start_time_unix_nano, span.end_time_unix_nano);
    if trace.0 == [0; 16] || ids.1.0 == 0 || !dated(start) || (end != 0 && !dated(end)) {
        return None;
    }
    let events: Vec<Event> = span
        .events
        .iter()
        .map(|e| Event {
            time: e.time_unix_nano,
            name: e.name.clone(),
            attributes: pairs(&e.attributes),
            dropped_attributes: e.dropped_attributes_count,
        })
        .collect();
    let links: Vec<Link> = span
        .links
        .iter()
        .map(|l| Link {
            trace_id: TraceId(<[u8; 16]>::try_from(&l.trace_id[..]).unwrap_or_default()),
            span_id: SpanId(id8(&l.span_id)),
            trace_state: l.trace_state.clone(),
            attributes: pairs(&l.attributes),
            dropped_attributes: l.dropped_attributes_count,
            flags: l.flags,
        })
        .collect();
    let status = span.status.clone().unwrap_or_default();
    let mut parts = attributes(&span.attributes);
    part(&mut parts, Field::StatusMessage, !status.message.is_empty(), text(&status.message));
    part(&mut parts, Field::TraceState, !span.trace_state.is_empty(), text(&span.trace_state));
    count(&mut parts, Field::Flags, span.flags);
    count(&mut parts, Field::DroppedAttributes, span.dropped_attributes_count);
    part(&mut parts, Field::Events, !events.is_empty(), events);
    part(&mut parts, Field::Links, !links.is_empty(), links);
    count(&mut parts, Field::DroppedEvents, span.dropped_events_count);
    count(&mut parts, Field::DroppedLinks, span.dropped_links_count);
    let code = if matches!(status.code, 1 | 2) { status.code as u8 } else { 0 };
    let kind = u8::try_from(span.kind).unwrap_or(0);
    Some(item(Signal::Traces, (resource, scope), (kind, &span.name), ids, (start, end.wrapping_sub(start) as i64), code, parts))
}

fn log(log: &logs::LogRecord, resource: &Resource, scope: &Scope) -> Option<String> {
    if [log.time_unix_nano, log.observed_time_unix_nano].into_iter().any(|t| t != 0 && !dated(t)) {
        return None;
    }
    let observed = if log.observed_time_unix_nano == 0 { NOW } else { log.observed_time_unix_nano };
    let time = if log.time_unix_nano == 0 { observed } else { log.time_unix_nano };
    let zero = |id: &[u8]| id.iter().all(|b| *b == 0);
    let trace = <[u8; 16]>::try_from(&log.trace_id[..]).unwrap_or_default();
    let span = if trace == [0; 16] && !zero(&log.trace_id) { 0 } else { id8(&log.span_id) };
    // A span id of the wrong length makes no sense without a trace either.
    let mut parts = attributes(&log.attributes);
    part(&mut parts, Field::Body, log.body.is_some(), value(log.body.as_ref()));
    part(&mut parts, Field::SeverityText, !log.severity_text.is_empty(), text(&log.severity_text));
    count(&mut parts, Field::Flags, log.flags);
    count(&mut parts, Field::DroppedAttributes, log.dropped_attributes_count);
    let span = if trace == [0; 16] && id8(&log.span_id) == 0 { 0 } else { span };
    let ids = (TraceId(trace), SpanId(span), SpanId(0));
    let kind = u8::try_from(log.severity_number).unwrap_or(0);
    Some(item(Signal::Logs, (resource, scope), (kind, &log.event_name), ids, (time, observed.wrapping_sub(time) as i64), 0, parts))
}

/// The points of a metric, each by itself; those that are refused are counted. `None` when the metric cannot be read.
fn metric(bytes: &[u8], resource: &Resource, scope: &Scope, refused: &mut u64) -> Option<Vec<String>> {
    let fields = tokens(bytes)?;
    let data = fields.iter().rev().find(|(n, ..)| matches!(n, 5 | 7 | 9 | 10 | 11));
    // The rest of it must be a metric, and the rest of its data as well; what follows looks at the points alone.
    if fields.iter().any(|(n, wire, _)| matches!(n, 5 | 7 | 9 | 10 | 11) && *wire != WireType::LengthDelimited) {
        return None;
    }
    let rest: Vec<u8> = without(bytes, &[5, 7, 9, 10, 11])?;
    // Its texts are checked with each point: without points there is nothing to refuse.
    let said = metrics::Metric::decode(&rest[..]).ok();
    let Some((number, _, data)) = data else {
        return if said.is_some() || only_texts_are_wrong(&rest) { Some(Vec::new()) } else { None };
    };
    if said.is_none() && !only_texts_are_wrong(&rest) {
        return None;
    }
    let points = tokens(data)?;
    let head = without(data, &[1])?;
    let (temporality, monotonic) = match number {
        5 => (0, false),
        11 => (0, false),
        7 => metrics::Sum::decode(&head[..]).ok().map(|s| (s.aggregation_temporality, s.is_monotonic))?,
        9 => metrics::Histogram::decode(&head[..]).ok().map(|h| (h.aggregation_temporality, false))?,
        _ => metrics::ExponentialHistogram::decode(&head[..]).ok().map(|h| (h.aggregation_temporality, false))?,
    };
    let mut items = Vec::new();
    for (_, wire, bytes) in points.iter().filter(|(n, ..)| *n == 1) {
        if *wire != WireType::LengthDelimited {
            // What was read before it is kept.
            *refused += 1;
            break;
        }
        let head = said.as_ref().map(|metric| (metric, temporality, monotonic));
        match head.and_then(|head| point(*number, bytes, head, resource, scope)) {
            Some(item) => items.push(item),
            None => *refused += 1,
        }
    }
    Some(items)
}

/// A message without some of its fields.
fn without(bytes: &[u8], numbers: &[u32]) -> Option<Vec<u8>> {
    let mut rest = bytes;
    let mut out = Vec::new();
    while !rest.is_empty() {
        let before = rest;
        let (number, wire) = decode_key(&mut rest).ok()?;
        prost::encoding::skip_field(wire, number, &mut rest, prost::encoding::DecodeContext::default()).ok()?;
        if !numbers.contains(&number) {
            out.extend_from_slice(&before[..before.len() - rest.len()]);
        }
    }
    Some(out)
}

/// Whether a metric's head can be read but for a name, description or unit that is not UTF-8.
fn only_texts_are_wrong(head: &[u8]) -> bool {
    let texts =
        tokens(head).is_some_and(|fields| fields.iter().all(|(n, wire, _)| !matches!(n, 1..=3) || *wire == WireType::LengthDelimited));
    texts && without(head, &[1, 2, 3]).is_some_and(|rest| metrics::Metric::decode(&rest[..]).is_ok())
}

fn point(
    number: u32,
    bytes: &[u8],
    (metric, temporality, monotonic): (&metrics::Metric, i32, bool),
    resource: &Resource,
    scope: &Scope,
) -> Option<String> {
    let mut parts: Vec<Part> = Vec::new();
    let mut buckets: Pairs = Vec::new();
    let ints = |list: &[u64]| Value::Array(list.iter().map(|v| Value::Int(*v as i64)).collect());
    let doubles = |list: &[f64]| Value::Array(list.iter().map(|v| Value::Double(*v)).collect());
    let (kind, own, start, time, flags, exemplars) = match number {
        5 | 7 => {
            let p = metrics::NumberDataPoint::decode(bytes).ok()?;
            match &p.value {
                Some(metrics::number_data_point::Value::AsDouble(v)) => part(&mut parts, Field::Value, true, Value::Double(*v)),
                Some(metrics::number_data_point::Value::AsInt(v)) => part(&mut parts, Field::Value, true, Value::Int(*v)),
                None => {}
            }
            (if number == 5 { 1 } else { 2 }, p.attributes, p.start_time_unix_nano, p.time_unix_nano, p.flags, p.exemplars)
        }
        9 => {
            let p = metrics::HistogramDataPoint::decode(bytes).ok()?;
            part(&mut parts, Field::Count, true, Value::Int(p.count as i64));
            for (field, value) in [(Field::Sum, p.sum), (Field::Min, p.min), (Field::Max, p.max)] {
                part(&mut parts, field, value.is_some(), Value::Double(value.unwrap_or_default()));
            }
            buckets.push(("counts".into(), ints(&p.bucket_counts)));
            buckets.push(("bounds".into(), doubles(&p.explicit_bounds)));
            (3, p.attributes, p.start_time_unix_nano, p.time_unix_nano, p.flags, p.exemplars)
        }
        10 => {
            let p = metrics::ExponentialHistogramDataPoint::decode(bytes).ok()?;
            part(&mut parts, Field::Count, true, Value::Int(p.count as i64));
            for (field, value) in [(Field::Sum, p.sum), (Field::Min, p.min), (Field::Max, p.max)] {
                part(&mut parts, field, value.is_some(), Value::Double(value.unwrap_or_default()));
            }
            buckets.push(("scale".into(), Value::Int(p.scale.into())));
            buckets.push(("zero_count".into(), Value::Int(p.zero_count as i64)));
            buckets.push(("zero_threshold".into(), Value::Double(p.zero_threshold)));
            for (name, side) in [("positive", &p.positive), ("negative", &p.negative)] {
                if let Some(side) = side {
                    let offset = ("offset".to_owned(), Value::Int(side.offset.into()));
                    buckets.push((name.into(), Value::Map(vec![offset, ("counts".into(), ints(&side.bucket_counts))])));
                }
            }
            (4, p.attributes, p.start_time_unix_nano, p.time_unix_nano, p.flags, p.exemplars)
        }
        _ => {
            let p = metrics::SummaryDataPoint::decode(bytes).ok()?;
            part(&mut parts, Field::Count, true, Value::Int(p.count as i64));
            part(&mut parts, Field::Sum, true, Value::Double(p.sum));
            let quantiles = p.quantile_values.iter().map(|q| doubles(&[q.quantile, q.value])).collect();
            buckets.push(("quantiles".into(), Value::Array(quantiles)));
            (5, p.attributes, p.start_time_unix_nano, p.time_unix_nano, p.flags, Vec::new())
        }
    };
    if !dated(time) {
        return None;
    }
    let id = |id: &[u8], length| if id.len() == length && id.iter().any(|b| *b != 0) { id.to_vec() } else { Vec::new() };
    let exemplar = |e: &metrics::Exemplar| {
        let mut pairs_of: Pairs = vec![
            ("time".into(), Value::Int(e.time_unix_nano as i64)),
            ("span_id".into(), Value::Bytes(id(&e.span_id, 8))),
            ("trace_id".into(), Value::Bytes(id(&e.trace_id, 16))),
            ("attributes".into(), Value::Map(pairs(&e.filtered_attributes))),
        ];
        match e.value {
            Some(metrics::exemplar::Value::AsDouble(v)) => pairs_of.push(("value".into(), Value::Double(v))),
            Some(metrics::exemplar::Value::AsInt(v)) => pairs_of.push(("value".into(), Value::Int(v))),
            None => {}
        }
        Value::Map(pairs_of)
    };
    parts.extend(attributes(&own));
    part(&mut parts, Field::Unit, !metric.unit.is_empty(), text(&metric.unit));
    part(&mut parts, Field::Description, !metric.description.is_empty(), text(&metric.description));
    part(&mut parts, Field::Metadata, !metric.metadata.is_empty(), Value::Map(pairs(&metric.metadata)));
    part(&mut parts, Field::Temporality, temporality != 0, Value::Int(temporality.into()));
    part(&mut parts, Field::Monotonic, monotonic, Value::Bool(true));
    part(&mut parts, Field::Buckets, true, plain(Value::Map(buckets)));
    part(&mut parts, Field::Exemplars, !exemplars.is_empty(), plain(Value::Array(exemplars.iter().map(exemplar).collect())));
    count(&mut parts, Field::Flags, flags);
    let ids = (TraceId::default(), SpanId(0), SpanId(0));
    let times = (time, time.wrapping_sub(start) as i64);
    Some(item(Signal::Metrics, (resource, scope), (kind, &metric.name), ids, times, 0, parts))
}

/// Reads a body both ways. Panics where they differ and no intended difference is in the bytes.
pub fn protobuf(signal: Signal, body: &[u8]) -> Outcome {
    let got = ours(Format::Protobuf, signal, body);
    if let Some(odd) = odd(Kind::Request, signal, body, 0) {
        return Outcome::Odd(odd);
    }
    compare(got, reference(signal, body), body)
}

fn compare(got: Option<(Vec<String>, u64)>, expected: Result<Reading, Unreadable>, body: &[u8]) -> Outcome {
    let hex = || body.iter().map(|b| format!("{b:02x}")).collect::<String>();
    match (got, expected) {
        (None, Err(Unreadable)) => Outcome::Refused,
        (Some((items, refused)), Ok(reading)) => {
            let differing = items.iter().zip(&reading.items).position(|(a, b)| a != b);
            if differing.is_some() || items.len() != reading.items.len() || (refused > 0) != (reading.refused > 0) {
                let at = differing.unwrap_or(items.len().min(reading.items.len()));
                panic!(
                    "item {at} of {} and {} differs; we refused {refused}, the reference {}\nours      {:?}\nreference {:?}\n{}\n{}",
                    items.len(),
                    reading.items.len(),
                    reading.refused,
                    items.get(at),
                    reading.items.get(at),
                    hex(),
                    String::from_utf8_lossy(body)
                );
            }
            if refused == 0 { Outcome::Alike } else { Outcome::InPart }
        }
        (got, _) => panic!(
            "{} and should not be: {} {}",
            if got.is_some() { "it is read" } else { "it is refused" },
            hex(),
            String::from_utf8_lossy(body)
        ),
    }
}

/// Reads a JSON body both ways; the reference's own reading, as protobuf, says what it means.
pub fn json(signal: Signal, body: &[u8]) -> Outcome {
    let got = ours(Format::Json, signal, body);
    // The reference does not look into what it skips, so it overlooks text there that is no JSON.
    if serde_json::from_slice::<serde_json::Value>(body).is_err() {
        assert!(got.is_none(), "{}", String::from_utf8_lossy(body));
        return Outcome::Refused;
    }
    if means_more_to_us(body) {
        return Outcome::Lenient;
    }
    let meant = match signal {
        Signal::Traces => serde_json::from_slice::<ExportTraceServiceRequest>(body).map(|r| r.encode_to_vec()),
        Signal::Logs => serde_json::from_slice::<ExportLogsServiceRequest>(body).map(|r| r.encode_to_vec()),
        Signal::Metrics => serde_json::from_slice::<ExportMetricsServiceRequest>(body).map(|r| r.encode_to_vec()),
    };
    match meant {
        Err(_) => Outcome::Lenient,
        Ok(meant) if signal == Signal::Metrics && swallowed(&meant) => Outcome::Lenient,
        Ok(meant) if odd(Kind::Request, signal, &meant, 0).is_some() => Outcome::Odd(Odd::Deep),
        Ok(meant) => compare(got, reference(signal, &meant), body),
    }
}

/// What the reference makes of a JSON body, as it writes it: without the arrays that it takes for objects, and its other liberties.
pub fn canonical(signal: Signal, body: &[u8]) -> Option<Vec<u8>> {
    match signal {
        Signal::Traces => serde_json::to_vec(&serde_json::from_slice::<ExportTraceServiceRequest>(body).ok()?),
        Signal::Logs => serde_json::to_vec(&serde_json::from_slice::<ExportLogsServiceRequest>(body).ok()?),
        Signal::Metrics => serde_json::to_vec(&serde_json::from_slice::<ExportMetricsServiceRequest>(body).ok()?),
    }
    .ok()
}

/// Whether the reference met something in a metric that it could not read: it then leaves out the data, or the value, without a word.
fn swallowed(meant: &[u8]) -> bool {
    let request = ExportMetricsServiceRequest::decode(meant).expect("it was encoded just now");
    let mut all = request.resource_metrics.iter().flat_map(|r| &r.scope_metrics).flat_map(|s| &s.metrics);
    let exemplars = |list: &[metrics::Exemplar]| list.iter().any(|e| e.value.is_none());
    let numbers = |list: &[metrics::NumberDataPoint]| list.iter().any(|p| p.value.is_none() || exemplars(&p.exemplars));
    all.any(|metric| match &metric.data {
        None => true,
        Some(metrics::metric::Data::Gauge(gauge)) => numbers(&gauge.data_points),
        Some(metrics::metric::Data::Sum(sum)) => numbers(&sum.data_points),
        Some(metrics::metric::Data::Histogram(histogram)) => histogram.data_points.iter().any(|p| exemplars(&p.exemplars)),
        Some(metrics::metric::Data::ExponentialHistogram(histogram)) => histogram.data_points.iter().any(|p| exemplars(&p.exemplars)),
        Some(metrics::metric::Data::Summary(_)) => false,
    })
}

/// Whether a JSON body has what we read and the reference does not: names as in the `.proto`, which protobuf's JSON mapping asks a reader to take
/// too, and JavaScript's way of writing NaN.
fn means_more_to_us(body: &[u8]) -> bool {
    fn look(value: &serde_json::Value) -> bool {
        match value {
            serde_json::Value::Object(fields) => fields.iter().any(|(name, value)| {
                let nan = name == "doubleValue" && value.is_null();
                nan || (name.contains('_') && name.bytes().all(|b| b == b'_' || b.is_ascii_lowercase())) || look(value)
            }),
            serde_json::Value::Array(values) => values.iter().any(look),
            _ => false,
        }
    }
    serde_json::from_slice(body).is_ok_and(|value| look(&value))
}
