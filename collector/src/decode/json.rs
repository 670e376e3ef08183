//! Walks OTLP/JSON over a borrowed tape: the text is parsed once, in place, into a flat list of nodes, and read from there, since
//! fields come in any order.
//!
//! As protobuf's JSON mapping asks, names in lowerCamelCase and as in the `.proto` are known, unknown ones ignored, `null` is
//! absent, 64-bit integers are strings or numbers. As OTLP asks, ids are hexadecimal and enums numbers; names of enums are taken too.
//! What clients were seen to send beyond that is read as they mean it: integers beyond 64 bits as doubles, and `doubleValue: null`
//! (JavaScript's NaN) as NaN.

use super::{Unreadable, count_field, exemplar_id};
use crate::validate::{Any, Intake, LogHead, PointHead, Reason, SpanHead, Trim};
use base64::Engine;
use firstfall_store::batch::Field;
use firstfall_store::builder::REDACTED;
use firstfall_store::value::{Event, Link, Pairs, Resource, Scope, Stored, Value};
use firstfall_store::{Signal, SpanId, TraceId};
use simd_json::prelude::*;
use simd_json::tape;

type Json<'t, 'i> = tape::Value<'t, 'i>;

pub fn request(signal: Signal, body: &mut [u8], intake: &mut Intake) -> Result<(), Unreadable> {
    let tape = simd_json::to_tape(body).map_err(|error| Unreadable(format!("the request is not JSON: {error}")))?;
    let root = tape.as_value();
    if !root.is_object() {
        return Err(Unreadable("the request is not a JSON object".to_owned()));
    }
    let (groups, scopes, items) = match signal {
        Signal::Traces => (["resourceSpans", "resource_spans"], ["scopeSpans", "scope_spans"], ["spans", "spans"]),
        Signal::Logs => (["resourceLogs", "resource_logs"], ["scopeLogs", "scope_logs"], ["logRecords", "log_records"]),
        Signal::Metrics => (["resourceMetrics", "resource_metrics"], ["scopeMetrics", "scope_metrics"], ["metrics", "metrics"]),
    };
    for group in list(root, groups)? {
        let resource = match field(group, ["resource", "resource"]) {
            Some(resource) => read_resource(resource, intake),
            None => Ok(Resource::default()),
        };
        let resource = resource.map(|r| Resource { schema_url: string(field(group, ["schemaUrl", "schema_url"])), ..r });
        if let Ok(resource) = &resource {
            intake.begin_resource(resource);
        }
        for scope_group in list(group, scopes)? {
            let scope = match field(scope_group, ["scope", "scope"]) {
                Some(scope) => read_scope(scope, intake),
                None => Ok(Scope::default()),
            };
            let scope = scope.map(|s| Scope { schema_url: string(field(scope_group, ["schemaUrl", "schema_url"])), ..s });
            match (&resource, &scope) {
                (Ok(_), Ok(scope)) => intake.begin_scope(scope),
                (Err(reason), _) | (_, Err(reason)) => {
                    intake.reject_many(*reason, list(scope_group, items)?.count() as u64);
                    continue;
                }
            }
            for item in list(scope_group, items)? {
                let read = match signal {
                    Signal::Traces => span(item, intake),
                    Signal::Logs => log(item, intake),
                    Signal::Metrics => {
                        if let Err(reason) = metric(item, intake) {
                            intake.reject(reason);
                        }
                        Ok(())
                    }
                };
                if let Err(reason) = read {
                    intake.abandon(reason);
                }
            }
        }
    }
    Ok(())
}

fn field<'t, 'i>(object: Json<'t, 'i>, names: [&str; 2]) -> Option<Json<'t, 'i>> {
    let object = object.as_object()?;
    object.get(names[0]).or_else(|| object.get(names[1])).filter(|value| !value.is_null())
}

/// The objects of a list; absent is empty. Anything else is no request.
fn list<'t, 'i>(object: Json<'t, 'i>, names: [&'static str; 2]) -> Result<impl Iterator<Item = Json<'t, 'i>>, Unreadable> {
    let items = match field(object, names) {
        None => Vec::new(),
        Some(value) => match value.as_array() {
            Some(array) => array.iter().collect(),
            None => return Err(Unreadable(format!("the request's `{}` is not an array", names[0]))),
        },
    };
    Ok(items.into_iter())
}

fn string(value: Option<Json<'_, '_>>) -> String {
    value.and_then(|v| v.into_string()).unwrap_or("").to_owned()
}

fn text<'i>(value: Json<'_, 'i>) -> Result<&'i str, Reason> {
    value.into_string().ok_or(Reason::Malformed)
}

/// A 64-bit number as a string or a number.
fn u64_of(value: Json<'_, '_>) -> Result<u64, Reason> {
    if let Some(number) = value.as_u64() {
        return Ok(number);
    }
    match value.as_str() {
        Some(text) => text.trim().parse().map_err(|_| Reason::Malformed),
        None => match value.as_f64() {
            Some(number) if number.fract() == 0.0 && (0.0..1.8e19).contains(&number) => Ok(number as u64),
            _ => Err(Reason::Malformed),
        },
    }
}

fn u32_of(value: Json<'_, '_>) -> Result<u32, Reason> {
    u32::try_from(u64_of(value)?).map_err(|_| Reason::Malformed)
}

/// A 32-bit number with a sign, as a number or a string.
fn i32_of(value: Json<'_, '_>) -> Result<i64, Reason> {
    match int_of(value)? {
        Any::Int(number) if i32::try_from(number).is_ok() => Ok(number),
        _ => Err(Reason::Malformed),
    }
}

/// An integer, or the double that a client meant where it does not fit.
fn int_of(value: Json<'_, '_>) -> Result<Any<'static>, Reason> {
    if let Some(number) = value.as_i64() {
        return Ok(Any::Int(number));
    }
    if let Some(number) = value.as_f64().or_else(|| value.as_u64().map(|n| n as f64)) {
        return Ok(if number.fract() == 0.0 && number.abs() < 9.2e18 { Any::Int(number as i64) } else { Any::Double(number) });
    }
    let text = value.as_str().ok_or(Reason::Malformed)?.trim();
    match text.parse::<i64>() {
        Ok(number) => Ok(Any::Int(number)),
        Err(_) => text.parse::<f64>().map(Any::Double).map_err(|_| Reason::Malformed),
    }
}

fn double_of(value: Json<'_, '_>) -> Result<f64, Reason> {
    if value.is_null() {
        return Ok(f64::NAN);
    }
    if let Some(number) = value.as_f64() {
        return Ok(number);
    }
    if let Some(number) = value.as_i64() {
        return Ok(number as f64);
    }
    if let Some(number) = value.as_u64() {
        return Ok(number as f64);
    }
    match value.as_str().ok_or(Reason::Malformed)? {
        "NaN" => Ok(f64::NAN),
        "Infinity" => Ok(f64::INFINITY),
        "-Infinity" => Ok(f64::NEG_INFINITY),
        text => text.trim().parse().map_err(|_| Reason::Malformed),
    }
}

fn bool_of(value: Json<'_, '_>) -> Result<bool, Reason> {
    value.as_bool().or_else(|| value.as_str().and_then(|t| t.parse().ok())).ok_or(Reason::Malformed)
}

fn enum_of(value: Json<'_, '_>, names: &[&str]) -> Result<i32, Reason> {
    if let Some(number) = value.as_i64() {
        return i32::try_from(number).map_err(|_| Reason::Malformed);
    }
    let text = text(value)?;
    names.iter().position(|name| *name == text).map(|at| at as i32).or_else(|| text.parse().ok()).ok_or(Reason::Malformed)
}

const SPAN_KINDS: [&str; 6] =
    ["SPAN_KIND_UNSPECIFIED", "SPAN_KIND_INTERNAL", "SPAN_KIND_SERVER", "SPAN_KIND_CLIENT", "SPAN_KIND_PRODUCER", "SPAN_KIND_CONSUMER"];
const STATUS_CODES: [&str; 3] = ["STATUS_CODE_UNSET", "STATUS_CODE_OK", "STATUS_CODE_ERROR"];
const TEMPORALITIES: [&str; 3] =
    ["AGGREGATION_TEMPORALITY_UNSPECIFIED", "AGGREGATION_TEMPORALITY_DELTA", "AGGREGATION_TEMPORALITY_CUMULATIVE"];

/// An id in hexadecimal; what is not becomes bytes of the wrong length, which the intake refuses with its reason.
#[derive(Default)]
struct Id {
    bytes: [u8; 17],
    length: usize,
}

impl Id {
    fn read(value: Json<'_, '_>) -> Result<Id, Reason> {
        let text = text(value)?.as_bytes();
        let mut id = Id::default();
        let wrong = Id { bytes: [0xff; 17], length: 17 };
        if text.len() > 32 || text.len() % 2 == 1 {
            return Ok(wrong);
        }
        for (byte, pair) in id.bytes.iter_mut().zip(text.chunks_exact(2)) {
            let digit = |c: u8| (c as char).to_digit(16);
            match (digit(pair[0]), digit(pair[1])) {
                (Some(high), Some(low)) => *byte = (high * 16 + low) as u8,
                _ => return Ok(wrong),
            }
        }
        id.length = text.len() / 2;
        Ok(id)
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

fn read_resource(value: Json<'_, '_>, intake: &mut Intake) -> Result<Resource, Reason> {
    let mut resource = Resource::default();
    if let Some(dropped) = field(value, ["droppedAttributesCount", "dropped_attributes_count"]) {
        resource.dropped_attributes = u32_of(dropped)?;
    }
    push_pairs(field(value, ["attributes", "attributes"]), &mut resource.attributes, &mut resource.dropped_attributes, intake)?;
    Ok(resource)
}

fn read_scope(value: Json<'_, '_>, intake: &mut Intake) -> Result<Scope, Reason> {
    let mut scope =
        Scope { name: string(field(value, ["name", "name"])), version: string(field(value, ["version", "version"])), ..Scope::default() };
    if let Some(dropped) = field(value, ["droppedAttributesCount", "dropped_attributes_count"]) {
        scope.dropped_attributes = u32_of(dropped)?;
    }
    push_pairs(field(value, ["attributes", "attributes"]), &mut scope.attributes, &mut scope.dropped_attributes, intake)?;
    Ok(scope)
}

fn each_field<'t, 'i>(value: Json<'t, 'i>, mut each: impl FnMut(&str, Json<'t, 'i>) -> Result<(), Reason>) -> Result<(), Reason> {
    let object = value.as_object().ok_or(Reason::Malformed)?;
    for (name, value) in object.iter() {
        if !value.is_null() {
            each(name, value)?;
        }
    }
    Ok(())
}

fn array<'t, 'i>(value: Json<'t, 'i>) -> Result<tape::Array<'t, 'i>, Reason> {
    value.as_array().ok_or(Reason::Malformed)
}

fn span(value: Json<'_, '_>, intake: &mut Intake) -> Result<(), Reason> {
    let (mut trace_id, mut span_id, mut parent) = (Id::default(), Id::default(), Id::default());
    let mut head = SpanHead::default();
    let (mut trace_state, mut status_message) = ("", "");
    let (mut dropped_attributes, mut dropped_events, mut dropped_links, mut flags) = (0u32, 0u32, 0u32, 0u32);
    let (mut attributes, mut events, mut links) = (None, None, None);
    each_field(value, |name, value| {
        match name {
            "traceId" | "trace_id" => trace_id = Id::read(value)?,
            "spanId" | "span_id" => span_id = Id::read(value)?,
            "parentSpanId" | "parent_span_id" => parent = Id::read(value)?,
            "traceState" | "trace_state" => trace_state = text(value)?,
            "name" => head.name = text(value)?.as_bytes(),
            "kind" => head.kind = enum_of(value, &SPAN_KINDS)?,
            "startTimeUnixNano" | "start_time_unix_nano" => head.start = u64_of(value)?,
            "endTimeUnixNano" | "end_time_unix_nano" => head.end = u64_of(value)?,
            "attributes" => attributes = Some(value),
            "droppedAttributesCount" | "dropped_attributes_count" => dropped_attributes = u32_of(value)?,
            "events" => events = Some(array(value)?),
            "droppedEventsCount" | "dropped_events_count" => dropped_events = u32_of(value)?,
            "links" => links = Some(array(value)?),
            "droppedLinksCount" | "dropped_links_count" => dropped_links = u32_of(value)?,
            "flags" => flags = u32_of(value)?,
            "status" => {
                each_field(value, |name, value| {
                    match name {
                        "message" => status_message = text(value)?,
                        "code" => head.status_code = enum_of(value, &STATUS_CODES)?,
                        _ => {}
                    }
                    Ok(())
                })?;
            }
            _ => {}
        }
        Ok(())
    })?;
    (head.trace_id, head.span_id, head.parent_span_id) = (trace_id.bytes(), span_id.bytes(), parent.bytes());
    intake.begin_span(&head)?;
    item_attributes(attributes, intake)?;
    if !status_message.is_empty() {
        intake.field(Field::StatusMessage, Any::Str(status_message.as_bytes()))?;
    }
    if !trace_state.is_empty() {
        intake.field(Field::TraceState, Any::Str(trace_state.as_bytes()))?;
    }
    if flags != 0 {
        intake.field(Field::Flags, Any::Int(flags.into()))?;
    }
    count_field(Field::DroppedAttributes, u64::from(dropped_attributes) + intake.attributes_left_out(), intake)?;
    let kept_events = read_list(events, &mut dropped_events, intake, read_event)?;
    let kept_links = read_list(links, &mut dropped_links, intake, read_link)?;
    if !kept_events.is_empty() {
        intake.list(Field::Events, &kept_events.to_bytes())?;
    }
    if !kept_links.is_empty() {
        intake.list(Field::Links, &kept_links.to_bytes())?;
    }
    count_field(Field::DroppedEvents, dropped_events.into(), intake)?;
    count_field(Field::DroppedLinks, dropped_links.into(), intake)?;
    intake.finish_span(&head);
    Ok(())
}

fn read_list<T>(
    list: Option<tape::Array<'_, '_>>,
    dropped: &mut u32,
    intake: &mut Intake,
    read: fn(Json<'_, '_>, &mut Intake) -> Result<T, Reason>,
) -> Result<Vec<T>, Reason> {
    let mut kept = Vec::new();
    for value in list.iter().flat_map(|l| l.iter()) {
        if kept.len() == intake.limits.events_max {
            intake.trim(Trim::Events);
            let total = list.as_ref().map_or(0, tape::Array::len);
            *dropped = dropped.saturating_add((total - kept.len()) as u32);
            break;
        }
        kept.push(read(value, intake)?);
    }
    Ok(kept)
}

fn read_event(value: Json<'_, '_>, intake: &mut Intake) -> Result<Event, Reason> {
    let mut event = Event::default();
    let mut said = 0;
    each_field(value, |name, value| {
        match name {
            "timeUnixNano" | "time_unix_nano" => event.time = u64_of(value)?,
            "name" => event.name = text(value)?.to_owned(),
            "attributes" => push_pairs(Some(value), &mut event.attributes, &mut event.dropped_attributes, intake)?,
            "droppedAttributesCount" | "dropped_attributes_count" => {
                said = u32_of(value)?;
            }
            _ => {}
        }
        Ok(())
    })?;
    event.dropped_attributes = event.dropped_attributes.saturating_add(said);
    Ok(event)
}

fn read_link(value: Json<'_, '_>, intake: &mut Intake) -> Result<Link, Reason> {
    let mut link = Link::default();
    let mut said = 0;
    each_field(value, |name, value| {
        match name {
            "traceId" | "trace_id" => link.trace_id = TraceId(Id::read(value)?.bytes().try_into().unwrap_or_default()),
            "spanId" | "span_id" => link.span_id = SpanId(Id::read(value)?.bytes().try_into().map_or(0, u64::from_be_bytes)),
            "traceState" | "trace_state" => link.trace_state = text(value)?.to_owned(),
            "attributes" => push_pairs(Some(value), &mut link.attributes, &mut link.dropped_attributes, intake)?,
            "droppedAttributesCount" | "dropped_attributes_count" => {
                said = u32_of(value)?;
            }
            "flags" => link.flags = u32_of(value)?,
            _ => {}
        }
        Ok(())
    })?;
    link.dropped_attributes = link.dropped_attributes.saturating_add(said);
    Ok(link)
}

fn log(value: Json<'_, '_>, intake: &mut Intake) -> Result<(), Reason> {
    let (mut trace_id, mut span_id) = (Id::default(), Id::default());
    let mut head = LogHead::default();
    let (mut severity_text, mut body, mut attributes) = ("", None, None);
    let (mut dropped, mut flags) = (0u32, 0u32);
    each_field(value, |name, value| {
        match name {
            "timeUnixNano" | "time_unix_nano" => head.time = u64_of(value)?,
            "observedTimeUnixNano" | "observed_time_unix_nano" => head.observed = u64_of(value)?,
            "severityNumber" | "severity_number" => head.severity_number = severity_of(value)?,
            "severityText" | "severity_text" => severity_text = text(value)?,
            "body" => body = Some(value),
            "attributes" => attributes = Some(value),
            "droppedAttributesCount" | "dropped_attributes_count" => dropped = u32_of(value)?,
            "flags" => flags = u32_of(value)?,
            "traceId" | "trace_id" => trace_id = Id::read(value)?,
            "spanId" | "span_id" => span_id = Id::read(value)?,
            "eventName" | "event_name" => head.event_name = text(value)?.as_bytes(),
            _ => {}
        }
        Ok(())
    })?;
    (head.trace_id, head.span_id) = (trace_id.bytes(), span_id.bytes());
    intake.begin_log(&head)?;
    item_attributes(attributes, intake)?;
    if let Some(body) = body {
        with_any(body, intake, |value, intake| intake.field(Field::Body, value))?;
    }
    if !severity_text.is_empty() {
        intake.field(Field::SeverityText, Any::Str(severity_text.as_bytes()))?;
    }
    if flags != 0 {
        intake.field(Field::Flags, Any::Int(flags.into()))?;
    }
    count_field(Field::DroppedAttributes, u64::from(dropped) + intake.attributes_left_out(), intake)?;
    intake.finish_log(&head);
    Ok(())
}

/// `SEVERITY_NUMBER_WARN2` and the like, or a number.
fn severity_of(value: Json<'_, '_>) -> Result<i32, Reason> {
    let Some(text) = value.as_str() else { return enum_of(value, &[]) };
    let name = text.trim_start_matches("SEVERITY_NUMBER_");
    let (level, step) = match name.find(|c: char| c.is_ascii_digit()) {
        Some(0) => return text.parse().map_err(|_| Reason::Malformed),
        Some(at) => (&name[..at], name[at..].parse::<i32>().map_err(|_| Reason::Malformed)?),
        None => (name, 1),
    };
    let levels = ["TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"];
    match levels.iter().position(|l| *l == level) {
        Some(at) if (1..=4).contains(&step) => Ok(at as i32 * 4 + step),
        _ if level == "UNSPECIFIED" => Ok(0),
        _ => Err(Reason::Malformed),
    }
}

fn item_attributes(attributes: Option<Json<'_, '_>>, intake: &mut Intake) -> Result<(), Reason> {
    let Some(attributes) = attributes else { return Ok(()) };
    for pair in array(attributes)?.iter() {
        let (key, value) = key_value(pair)?;
        match value {
            Some(value) => with_any(value, intake, |value, intake| intake.attribute(key.as_bytes(), value))?,
            None => intake.attribute(key.as_bytes(), Any::Empty)?,
        }
    }
    Ok(())
}

fn key_value<'t, 'i>(pair: Json<'t, 'i>) -> Result<(&'i str, Option<Json<'t, 'i>>), Reason> {
    let (mut key, mut found) = ("", None);
    each_field(pair, |name, value| {
        match name {
            "key" => key = text(value)?,
            "value" => found = Some(value),
            _ => {}
        }
        Ok(())
    })?;
    Ok((key, found))
}

/// Reads an `AnyValue` and passes it on in the form in which columns take it.
fn with_any(value: Json<'_, '_>, intake: &mut Intake, pass: impl FnOnce(Any<'_>, &mut Intake) -> Result<(), Reason>) -> Result<(), Reason> {
    match read_any(value, 1, intake)? {
        Value::Empty => pass(Any::Empty, intake),
        Value::Str(text) => pass(Any::Str(text.as_bytes()), intake),
        Value::Bool(value) => pass(Any::Bool(value), intake),
        Value::Int(value) => pass(Any::Int(value), intake),
        Value::Double(value) => pass(Any::Double(value), intake),
        Value::Bytes(bytes) => pass(Any::Bytes(&bytes), intake),
        nested => {
            let mut encoded = Vec::new();
            nested.encode(&mut encoded);
            pass(Any::Nested(&encoded), intake)
        }
    }
}

fn read_any(value: Json<'_, '_>, depth: usize, intake: &mut Intake) -> Result<Value, Reason> {
    let object = value.as_object().ok_or(Reason::Malformed)?;
    let mut found = Value::Empty;
    for (name, value) in object.iter() {
        if value.is_null() && !matches!(name, "doubleValue" | "double_value") {
            continue;
        }
        found = match name {
            "stringValue" | "string_value" => Value::Str(text(value)?.to_owned()),
            "boolValue" | "bool_value" => Value::Bool(bool_of(value)?),
            "intValue" | "int_value" => match int_of(value)? {
                Any::Double(value) => Value::Double(value),
                Any::Int(value) => Value::Int(value),
                _ => return Err(Reason::Malformed),
            },
            "doubleValue" | "double_value" => Value::Double(double_of(value)?),
            "bytesValue" | "bytes_value" => Value::Bytes(bytes_of(text(value)?)?),
            "arrayValue" | "array_value" | "kvlistValue" | "kvlist_value" if depth > intake.limits.nesting_max => {
                intake.trim(Trim::Nesting);
                Value::Str(format!("[cut: a value nested deeper than {} levels]", intake.limits.nesting_max))
            }
            "arrayValue" | "array_value" => {
                let mut values = Vec::new();
                for value in field(value, ["values", "values"]).map(array).transpose()?.iter().flat_map(|a| a.iter()) {
                    values.push(if value.is_null() { Value::Empty } else { read_any(value, depth + 1, intake)? });
                }
                Value::Array(values)
            }
            "kvlistValue" | "kvlist_value" => {
                let mut pairs = Vec::new();
                for pair in field(value, ["values", "values"]).map(array).transpose()?.iter().flat_map(|a| a.iter()) {
                    let (key, value) = key_value(pair)?;
                    let value = match value {
                        _ if intake.is_secret(key) => Value::Str(REDACTED.to_owned()),
                        Some(value) => read_any(value, depth + 1, intake)?,
                        None => Value::Empty,
                    };
                    pairs.push((key.to_owned(), value));
                }
                Value::Map(pairs)
            }
            _ => continue,
        };
    }
    Ok(found)
}

/// Base64 in either alphabet, with or without padding, as protobuf's JSON mapping asks.
fn bytes_of(text: &str) -> Result<Vec<u8>, Reason> {
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
    const CONFIG: GeneralPurposeConfig = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    const STANDARD: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, CONFIG);
    const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::URL_SAFE, CONFIG);
    STANDARD.decode(text).or_else(|_| URL_SAFE.decode(text)).map_err(|_| Reason::Malformed)
}

/// Attributes of something that is kept as a value.
fn push_pairs(attributes: Option<Json<'_, '_>>, pairs: &mut Pairs, dropped: &mut u32, intake: &mut Intake) -> Result<(), Reason> {
    let Some(attributes) = attributes else { return Ok(()) };
    for pair in array(attributes)?.iter() {
        if pairs.len() >= intake.limits.attributes_max {
            intake.trim(Trim::Attributes);
            *dropped = dropped.saturating_add(1);
            continue;
        }
        let (key, value) = key_value(pair)?;
        let mut value = match value {
            Some(value) => read_any(value, 1, intake)?,
            None => Value::Empty,
        };
        let mut key = key.to_owned();
        intake.cap_pair(&mut key, &mut value);
        pairs.push((key, value));
    }
    Ok(())
}

fn metric(value: Json<'_, '_>, intake: &mut Intake) -> Result<(), Reason> {
    let (mut name, mut unit, mut description) = ("", "", "");
    let mut metadata: Pairs = Vec::new();
    let mut data = None;
    each_field(value, |field, value| {
        match field {
            "name" => name = text(value)?,
            "unit" => unit = text(value)?,
            "description" => description = text(value)?,
            "metadata" => push_pairs(Some(value), &mut metadata, &mut 0, intake)?,
            "gauge" => data = Some((1, value)),
            "sum" => data = Some((2, value)),
            "histogram" => data = Some((3, value)),
            "exponentialHistogram" | "exponential_histogram" => data = Some((4, value)),
            "summary" => data = Some((5, value)),
            _ => {}
        }
        Ok(())
    })?;
    let Some((kind, data)) = data else { return Ok(()) };
    let (mut temporality, mut monotonic, mut points) = (0, false, None);
    each_field(data, |field, value| {
        match field {
            "aggregationTemporality" | "aggregation_temporality" if matches!(kind, 2..=4) => temporality = enum_of(value, &TEMPORALITIES)?,
            "isMonotonic" | "is_monotonic" if kind == 2 => monotonic = bool_of(value)?,
            "dataPoints" | "data_points" => points = Some(array(value)?),
            _ => {}
        }
        Ok(())
    })?;
    for value in points.iter().flat_map(|p| p.iter()) {
        let mut head = PointHead { metric: name.as_bytes(), kind, ..PointHead::default() };
        let read = (|| {
            if let Some(time) = field(value, ["timeUnixNano", "time_unix_nano"]) {
                head.time = u64_of(time)?;
            }
            if let Some(start) = field(value, ["startTimeUnixNano", "start_time_unix_nano"]) {
                head.start = u64_of(start)?;
            }
            intake.begin_point(&head)?;
            item_attributes(field(value, ["attributes", "attributes"]), intake)?;
            for (part, text) in [(Field::Unit, unit), (Field::Description, description)] {
                if !text.is_empty() {
                    intake.field(part, Any::Str(text.as_bytes()))?;
                }
            }
            if !metadata.is_empty() {
                let mut encoded = Vec::new();
                Value::Map(metadata.clone()).encode(&mut encoded);
                intake.field(Field::Metadata, Any::Nested(&encoded))?;
            }
            if temporality != 0 {
                intake.field(Field::Temporality, Any::Int(temporality.into()))?;
            }
            if monotonic {
                intake.field(Field::Monotonic, Any::Bool(true))?;
            }
            point(value, kind, intake)?;
            count_field(Field::DroppedAttributes, intake.attributes_left_out(), intake)
        })();
        match read {
            Ok(()) => intake.finish_point(&head),
            Err(reason) => intake.abandon(reason),
        }
    }
    Ok(())
}

/// What is left of a data point. Each type has fields of its own; those of another are unknown to it.
fn point(value: Json<'_, '_>, kind: u8, intake: &mut Intake) -> Result<(), Reason> {
    let mut buckets: Pairs = Vec::new();
    let mut exemplars = Vec::new();
    let mut flags = 0;
    each_field(value, |name, value| {
        match (kind, name) {
            (1 | 2, "asDouble" | "as_double") => intake.field(Field::Value, Any::Double(double_of(value)?))?,
            (1 | 2, "asInt" | "as_int") => intake.field(Field::Value, int_of(value)?)?,
            (3..=5, "count") => intake.field(Field::Count, Any::Int(u64_of(value)? as i64))?,
            (3..=5, "sum") => intake.field(Field::Sum, Any::Double(double_of(value)?))?,
            (3 | 4, "min") => intake.field(Field::Min, Any::Double(double_of(value)?))?,
            (3 | 4, "max") => intake.field(Field::Max, Any::Double(double_of(value)?))?,
            (_, "flags") => flags = u32_of(value)?,
            (3, "bucketCounts" | "bucket_counts") => buckets.push(("counts".into(), counts_of(value)?)),
            (3, "explicitBounds" | "explicit_bounds") => {
                let mut bounds = Vec::new();
                for bound in array(value)?.iter() {
                    bounds.push(Value::Double(double_of(bound)?));
                }
                if !bounds.is_empty() {
                    buckets.push(("bounds".into(), Value::Array(bounds)));
                }
            }
            (4, "scale") => buckets.push(("scale".into(), Value::Int(i32_of(value)?))),
            (4, "zeroCount" | "zero_count") => buckets.push(("zero_count".into(), Value::Int(u64_of(value)? as i64))),
            (4, "zeroThreshold" | "zero_threshold") => buckets.push(("zero_threshold".into(), Value::Double(double_of(value)?))),
            (4, "positive" | "negative") => {
                let offset = match field(value, ["offset", "offset"]) {
                    Some(offset) => i32_of(offset)?,
                    None => 0,
                };
                let counts = match field(value, ["bucketCounts", "bucket_counts"]) {
                    Some(counts) => counts_of(counts)?,
                    None => Value::Array(Vec::new()),
                };
                buckets.push((name.to_owned(), Value::Map(vec![("offset".into(), Value::Int(offset)), ("counts".into(), counts)])));
            }
            (5, "quantileValues" | "quantile_values") => {
                let mut quantiles = Vec::new();
                for pair in array(value)?.iter() {
                    let number = |names| field(pair, names).map(double_of).transpose().map(Option::unwrap_or_default);
                    quantiles.push(Value::Array(vec![
                        Value::Double(number(["quantile", "quantile"])?),
                        Value::Double(number(["value", "value"])?),
                    ]));
                }
                if !quantiles.is_empty() {
                    buckets.push(("quantiles".into(), Value::Array(quantiles)));
                }
            }
            (1..=4, "exemplars") => {
                for exemplar in array(value)?.iter().take(intake.limits.events_max) {
                    exemplars.push(read_exemplar(exemplar, intake)?);
                }
            }
            _ => {}
        }
        Ok(())
    })?;
    buckets.retain(|(name, value)| !(name == "counts" && *value == Value::Array(Vec::new())));
    if !buckets.is_empty() {
        let mut encoded = Vec::new();
        Value::Map(buckets).encode(&mut encoded);
        intake.list(Field::Buckets, &encoded)?;
    }
    if !exemplars.is_empty() {
        let mut encoded = Vec::new();
        Value::Array(exemplars).encode(&mut encoded);
        intake.list(Field::Exemplars, &encoded)?;
    }
    count_field(Field::Flags, flags.into(), intake)
}

fn counts_of(value: Json<'_, '_>) -> Result<Value, Reason> {
    let mut counts = Vec::new();
    for count in array(value)?.iter() {
        counts.push(Value::Int(u64_of(count)? as i64));
    }
    Ok(Value::Array(counts))
}

fn read_exemplar(value: Json<'_, '_>, intake: &mut Intake) -> Result<Value, Reason> {
    let mut pairs: Pairs = Vec::new();
    each_field(value, |name, value| {
        match name {
            "timeUnixNano" | "time_unix_nano" => pairs.push(("time".into(), Value::Int(u64_of(value)? as i64))),
            "asDouble" | "as_double" => pairs.push(("value".into(), Value::Double(double_of(value)?))),
            "asInt" | "as_int" => match int_of(value)? {
                Any::Int(value) => pairs.push(("value".into(), Value::Int(value))),
                Any::Double(value) => pairs.push(("value".into(), Value::Double(value))),
                _ => {}
            },
            "spanId" | "span_id" => exemplar_id("span_id", Id::read(value)?.bytes(), 8, &mut pairs, intake),
            "traceId" | "trace_id" => exemplar_id("trace_id", Id::read(value)?.bytes(), 16, &mut pairs, intake),
            "filteredAttributes" | "filtered_attributes" => {
                let mut attributes = Vec::new();
                push_pairs(Some(value), &mut attributes, &mut 0, intake)?;
                if !attributes.is_empty() {
                    pairs.push(("attributes".into(), Value::Map(attributes)));
                }
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(Value::Map(pairs))
}
