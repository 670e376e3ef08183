//! Walks OTLP's protobuf wire format.
//!
//! Fields may come in any order, so a span is walked twice: first for its scalars, skipping over what is long, then for its attributes, once its lane is known. The
//! field numbers are those of opentelemetry-proto 1.x. Unknown fields are skipped, as protobuf asks.

use super::points::metric;
use super::wire::{Broken, Walk, text};
use super::{Unreadable, count_field};
use crate::validate::{Any, Intake, LogHead, Reason, SpanHead, Trim};
use firstfall_store::batch::Field;
use firstfall_store::builder::REDACTED;
use firstfall_store::pack::Writer;
use firstfall_store::value::{Event, Link, Pairs, Resource, Scope, Stored, Value};
use firstfall_store::{Signal, SpanId, TraceId};

/// The nested messages that a request is made of: what each level's field of the level below is called in an error.
pub fn request(signal: Signal, body: &[u8], intake: &mut Intake) -> Result<(), Unreadable> {
    let broken = |what: &'static str| {
        move |_: Broken| {
            Unreadable(format!(
                "the request is not a protobuf Export{}ServiceRequest: {what} ends early or has a field of the wrong type",
                message_name(signal)
            ))
        }
    };
    let mut walk = Walk::new(body);
    while let Some((number, wire)) = walk.next().map_err(broken("the request"))? {
        if number == 1 {
            resource_group(signal, wire.bytes().map_err(broken("the request"))?, intake).map_err(broken("a resource's group"))?;
        }
    }
    Ok(())
}

fn message_name(signal: Signal) -> &'static str {
    match signal {
        Signal::Traces => "Trace",
        Signal::Logs => "Logs",
        Signal::Metrics => "Metrics",
    }
}

/// `ResourceSpans`, `ResourceLogs`, `ResourceMetrics`: 1 resource, 2 scopes, 3 schema_url.
fn resource_group(signal: Signal, bytes: &[u8], intake: &mut Intake) -> Result<(), Broken> {
    let (mut resource, mut schema_url) = (&[][..], &[][..]);
    let mut walk = Walk::new(bytes);
    while let Some((number, wire)) = walk.next()? {
        match number {
            1 => resource = wire.bytes()?,
            3 => schema_url = wire.bytes()?,
            2 => {
                wire.bytes()?;
            }
            _ => {}
        }
    }
    let begun = intake.begin_resource_of(resource, schema_url, |intake| read_resource(resource, schema_url, intake));
    let mut walk = Walk::new(bytes);
    while let Some((number, wire)) = walk.next()? {
        if number == 2 {
            match &begun {
                Ok(()) => scope_group(signal, wire.bytes()?, intake)?,
                // Nothing can be said about items whose sender cannot be read.
                Err(reason) => intake.reject_many(*reason, count_items(signal, wire.bytes()?)?),
            }
        }
    }
    Ok(())
}

fn count_items(signal: Signal, scope: &[u8]) -> Result<u64, Broken> {
    let mut count = 0;
    let mut walk = Walk::new(scope);
    while let Some((number, wire)) = walk.next()? {
        if number == 2 {
            count += if signal == Signal::Metrics { count_points(wire.bytes()?).unwrap_or(1) } else { 1 };
        }
    }
    Ok(count)
}

fn count_points(metric: &[u8]) -> Result<u64, Broken> {
    let mut count = 0;
    let mut walk = Walk::new(metric);
    while let Some((number, wire)) = walk.next()? {
        if matches!(number, 5 | 7 | 9 | 10 | 11) {
            let mut data = Walk::new(wire.bytes()?);
            while let Some((number, _)) = data.next()? {
                count += u64::from(number == 1);
            }
        }
    }
    Ok(count)
}

/// `Resource`: 1 attributes, 2 dropped_attributes_count.
fn read_resource(bytes: &[u8], schema_url: &[u8], intake: &mut Intake) -> Result<Resource, Reason> {
    let mut resource = Resource { schema_url: text(schema_url)?, ..Resource::default() };
    // What the client left out; what we leave out is added.
    let mut said = 0;
    let mut walk = Walk::new(bytes);
    while let Some((number, wire)) = walk.next()? {
        match number {
            1 => push_pair(wire.bytes()?, &mut resource.attributes, &mut resource.dropped_attributes, intake)?,
            2 => said = wire.varint()? as u32,
            _ => {}
        }
    }
    resource.dropped_attributes = resource.dropped_attributes.saturating_add(said);
    Ok(resource)
}

/// `ScopeSpans`, `ScopeLogs`, `ScopeMetrics`: 1 scope, 2 items, 3 schema_url.
fn scope_group(signal: Signal, bytes: &[u8], intake: &mut Intake) -> Result<(), Broken> {
    let (mut scope, mut schema_url) = (&[][..], &[][..]);
    let mut walk = Walk::new(bytes);
    while let Some((number, wire)) = walk.next()? {
        match number {
            1 => scope = wire.bytes()?,
            3 => schema_url = wire.bytes()?,
            _ => {}
        }
    }
    match read_scope(scope, schema_url, intake) {
        Ok(scope) => intake.begin_scope(&scope),
        Err(reason) => {
            intake.reject_many(reason, count_items(signal, bytes)?);
            return Ok(());
        }
    }
    let mut walk = Walk::new(bytes);
    while let Some((number, wire)) = walk.next()? {
        if number != 2 {
            continue;
        }
        let item = wire.bytes()?;
        match signal {
            Signal::Traces => {
                if let Err(reason) = span(item, intake) {
                    intake.abandon(reason);
                }
            }
            Signal::Logs => {
                if let Err(reason) = log(item, intake) {
                    intake.abandon(reason);
                }
            }
            Signal::Metrics => metric(item, intake),
        }
    }
    Ok(())
}

/// `InstrumentationScope`: 1 name, 2 version, 3 attributes, 4 dropped_attributes_count.
fn read_scope(bytes: &[u8], schema_url: &[u8], intake: &mut Intake) -> Result<Scope, Reason> {
    let mut scope = Scope { schema_url: text(schema_url)?, ..Scope::default() };
    let mut said = 0;
    let mut walk = Walk::new(bytes);
    while let Some((number, wire)) = walk.next()? {
        match number {
            1 => scope.name = wire.string()?,
            2 => scope.version = wire.string()?,
            3 => push_pair(wire.bytes()?, &mut scope.attributes, &mut scope.dropped_attributes, intake)?,
            4 => said = wire.varint()? as u32,
            _ => {}
        }
    }
    scope.dropped_attributes = scope.dropped_attributes.saturating_add(said);
    Ok(scope)
}

/// `Span`. A failure inside concerns this span only.
fn span(bytes: &[u8], intake: &mut Intake) -> Result<(), Reason> {
    let mut head = SpanHead::default();
    let (mut trace_state, mut status_message) = (&[][..], &[][..]);
    let (mut dropped_attributes, mut dropped_events, mut dropped_links, mut flags) = (0u32, 0u32, 0u32, 0u32);
    let (mut attributes_from, mut events, mut links) = (None, 0usize, 0usize);
    let mut walk = Walk::new(bytes);
    loop {
        let before = walk;
        let Some((number, wire)) = walk.next()? else { break };
        match number {
            1 => head.trace_id = wire.bytes()?,
            2 => head.span_id = wire.bytes()?,
            3 => trace_state = wire.bytes()?,
            4 => head.parent_span_id = wire.bytes()?,
            5 => head.name = wire.bytes()?,
            6 => head.kind = wire.int32()?,
            7 => head.start = wire.fixed64()?,
            8 => head.end = wire.fixed64()?,
            9 => {
                wire.bytes()?;
                attributes_from.get_or_insert(before);
            }
            10 => dropped_attributes = wire.varint()? as u32,
            11 => {
                wire.bytes()?;
                events += 1;
            }
            12 => dropped_events = wire.varint()? as u32,
            13 => {
                wire.bytes()?;
                links += 1;
            }
            14 => dropped_links = wire.varint()? as u32,
            15 => {
                let mut status = Walk::new(wire.bytes()?);
                while let Some((number, wire)) = status.next()? {
                    match number {
                        2 => status_message = wire.bytes()?,
                        3 => head.status_code = wire.int32()?,
                        _ => {}
                    }
                }
            }
            16 => flags = wire.fixed32()?,
            _ => {}
        }
    }
    intake.begin_span(&head)?;
    if let Some(mut walk) = attributes_from {
        while let Some((number, wire)) = walk.next()? {
            if number == 9 {
                attribute(wire.bytes()?, intake)?;
            }
        }
    }
    if !status_message.is_empty() {
        intake.field(Field::StatusMessage, Any::Str(status_message))?;
    }
    if !trace_state.is_empty() {
        intake.field(Field::TraceState, Any::Str(trace_state))?;
    }
    if flags != 0 {
        intake.field(Field::Flags, Any::Int(flags.into()))?;
    }
    count_field(Field::DroppedAttributes, u64::from(dropped_attributes) + intake.attributes_left_out(), intake)?;
    if events > 0 || links > 0 {
        let kept_events = read_list(bytes, 11, events, intake, read_event)?;
        let kept_links = read_list(bytes, 13, links, intake, read_link)?;
        if !kept_events.is_empty() {
            dropped_events = dropped_events.saturating_add((events - kept_events.len()) as u32);
            intake.list(Field::Events, &kept_events.to_bytes())?;
        }
        if !kept_links.is_empty() {
            dropped_links = dropped_links.saturating_add((links - kept_links.len()) as u32);
            intake.list(Field::Links, &kept_links.to_bytes())?;
        }
    }
    count_field(Field::DroppedEvents, dropped_events.into(), intake)?;
    count_field(Field::DroppedLinks, dropped_links.into(), intake)?;
    intake.finish_span(&head);
    Ok(())
}

fn read_list<T>(
    bytes: &[u8],
    field: u32,
    count: usize,
    intake: &mut Intake,
    read: fn(&[u8], &mut Intake) -> Result<T, Reason>,
) -> Result<Vec<T>, Reason> {
    let mut list = Vec::new();
    if count == 0 {
        return Ok(list);
    }
    let mut walk = Walk::new(bytes);
    while let Some((number, wire)) = walk.next()? {
        if number == field {
            if list.len() == intake.limits.events_max {
                intake.trim(Trim::Events);
                break;
            }
            list.push(read(wire.bytes()?, intake)?);
        }
    }
    Ok(list)
}

/// `Span.Event`: 1 time, 2 name, 3 attributes, 4 dropped_attributes_count.
fn read_event(bytes: &[u8], intake: &mut Intake) -> Result<Event, Reason> {
    let mut event = Event::default();
    let mut said = 0;
    let mut walk = Walk::new(bytes);
    while let Some((number, wire)) = walk.next()? {
        match number {
            1 => event.time = wire.fixed64()?,
            2 => event.name = wire.string()?,
            3 => push_pair(wire.bytes()?, &mut event.attributes, &mut event.dropped_attributes, intake)?,
            4 => said = wire.varint()? as u32,
            _ => {}
        }
    }
    event.dropped_attributes = event.dropped_attributes.saturating_add(said);
    Ok(event)
}

/// `Span.Link`: 1 trace_id, 2 span_id, 3 trace_state, 4 attributes, 5 dropped_attributes_count, 6 flags.
fn read_link(bytes: &[u8], intake: &mut Intake) -> Result<Link, Reason> {
    let mut link = Link::default();
    let mut said = 0;
    let mut walk = Walk::new(bytes);
    while let Some((number, wire)) = walk.next()? {
        match number {
            1 => link.trace_id = TraceId(wire.bytes()?.try_into().unwrap_or_default()),
            2 => link.span_id = SpanId(wire.bytes()?.try_into().map_or(0, u64::from_be_bytes)),
            3 => link.trace_state = wire.string()?,
            4 => push_pair(wire.bytes()?, &mut link.attributes, &mut link.dropped_attributes, intake)?,
            5 => said = wire.varint()? as u32,
            6 => link.flags = wire.fixed32()?,
            _ => {}
        }
    }
    link.dropped_attributes = link.dropped_attributes.saturating_add(said);
    Ok(link)
}

/// `LogRecord`.
fn log(bytes: &[u8], intake: &mut Intake) -> Result<(), Reason> {
    let mut head = LogHead::default();
    let (mut severity_text, mut body) = (&[][..], None);
    let (mut dropped, mut flags) = (0u32, 0u32);
    let mut attributes_from = None;
    let mut walk = Walk::new(bytes);
    loop {
        let before = walk;
        let Some((number, wire)) = walk.next()? else { break };
        match number {
            1 => head.time = wire.fixed64()?,
            2 => head.severity_number = wire.int32()?,
            3 => severity_text = wire.bytes()?,
            5 => body = Some(wire.bytes()?),
            6 => {
                wire.bytes()?;
                attributes_from.get_or_insert(before);
            }
            7 => dropped = wire.varint()? as u32,
            8 => flags = wire.fixed32()?,
            9 => head.trace_id = wire.bytes()?,
            10 => head.span_id = wire.bytes()?,
            11 => head.observed = wire.fixed64()?,
            12 => head.event_name = wire.bytes()?,
            _ => {}
        }
    }
    intake.begin_log(&head)?;
    if let Some(mut walk) = attributes_from {
        while let Some((number, wire)) = walk.next()? {
            if number == 6 {
                attribute(wire.bytes()?, intake)?;
            }
        }
    }
    if let Some(body) = body {
        match any_value(body)? {
            Found::Plain(value) => intake.field(Field::Body, value)?,
            nested => {
                let mut encoded = Vec::new();
                encode_any(nested, 1, intake, &mut encoded)?;
                intake.field(Field::Body, Any::Nested(&encoded))?;
            }
        }
    }
    if !severity_text.is_empty() {
        intake.field(Field::SeverityText, Any::Str(severity_text))?;
    }
    if flags != 0 {
        intake.field(Field::Flags, Any::Int(flags.into()))?;
    }
    count_field(Field::DroppedAttributes, u64::from(dropped) + intake.attributes_left_out(), intake)?;
    intake.finish_log(&head);
    Ok(())
}

/// `KeyValue` of the item under construction: 1 key, 2 value.
#[inline]
pub(super) fn attribute(bytes: &[u8], intake: &mut Intake) -> Result<(), Reason> {
    let (key, value) = key_value(bytes)?;
    match any_value(value)? {
        Found::Plain(value) => intake.attribute(key, value),
        nested => {
            let mut encoded = Vec::new();
            encode_any(nested, 1, intake, &mut encoded)?;
            intake.attribute(key, Any::Nested(&encoded))
        }
    }
}

#[inline]
fn key_value(bytes: &[u8]) -> Result<(&[u8], &[u8]), Broken> {
    let (mut key, mut value) = (&[][..], &[][..]);
    let mut walk = Walk::new(bytes);
    while let Some((number, wire)) = walk.next()? {
        match number {
            1 => key = wire.bytes()?,
            2 => value = wire.bytes()?,
            _ => {}
        }
    }
    Ok((key, value))
}

enum Found<'a> {
    Plain(Any<'a>),
    Array(&'a [u8]),
    Map(&'a [u8]),
}

/// `AnyValue`: 1 string, 2 bool, 3 int, 4 double, 5 array, 6 map, 7 bytes. The last one counts.
#[inline]
fn any_value(bytes: &[u8]) -> Result<Found<'_>, Broken> {
    let mut found = Found::Plain(Any::Empty);
    let mut walk = Walk::new(bytes);
    while let Some((number, wire)) = walk.next()? {
        found = match number {
            1 => Found::Plain(Any::Str(wire.bytes()?)),
            2 => Found::Plain(Any::Bool(wire.varint()? != 0)),
            3 => Found::Plain(Any::Int(wire.varint()? as i64)),
            4 => Found::Plain(Any::Double(wire.double()?)),
            5 => Found::Array(wire.bytes()?),
            6 => Found::Map(wire.bytes()?),
            7 => Found::Plain(Any::Bytes(wire.bytes()?)),
            _ => continue,
        };
    }
    Ok(found)
}

/// Writes a value as the store keeps it. What is nested too deep becomes a text that says so.
fn encode_any(found: Found<'_>, depth: usize, intake: &mut Intake, out: &mut Vec<u8>) -> Result<(), Reason> {
    match found {
        Found::Plain(value) => encode_plain(value, out)?,
        Found::Array(bytes) | Found::Map(bytes) if depth > intake.limits.nesting_max => {
            intake.trim(Trim::Nesting);
            Value::Str(format!("[cut: {} bytes nested deeper than {} levels]", bytes.len(), intake.limits.nesting_max)).encode(out);
        }
        Found::Array(bytes) => {
            let count = count_fields(bytes, 1)?;
            out.push(7);
            out.varint(count);
            let mut walk = Walk::new(bytes);
            while let Some((number, wire)) = walk.next()? {
                if number == 1 {
                    encode_any(any_value(wire.bytes()?)?, depth + 1, intake, out)?;
                }
            }
        }
        Found::Map(bytes) => {
            let count = count_fields(bytes, 1)?;
            out.push(8);
            out.varint(count);
            let mut walk = Walk::new(bytes);
            while let Some((number, wire)) = walk.next()? {
                if number == 1 {
                    let (key, value) = key_value(wire.bytes()?)?;
                    let name = std::str::from_utf8(key).map_err(|_| Reason::NotUtf8)?;
                    out.text(key);
                    if intake.is_secret(name) {
                        Value::Str(REDACTED.to_owned()).encode(out);
                    } else {
                        encode_any(any_value(value)?, depth + 1, intake, out)?;
                    }
                }
            }
        }
    }
    Ok(())
}

fn count_fields(bytes: &[u8], field: u32) -> Result<u64, Broken> {
    let mut count = 0;
    let mut walk = Walk::new(bytes);
    while let Some((number, _)) = walk.next()? {
        count += u64::from(number == field);
    }
    Ok(count)
}

fn encode_plain(value: Any<'_>, out: &mut Vec<u8>) -> Result<(), Reason> {
    match value {
        Any::Str(text) => {
            std::str::from_utf8(text).map_err(|_| Reason::NotUtf8)?;
            out.push(1);
            out.text(text);
        }
        Any::Bool(value) => Value::Bool(value).encode(out),
        Any::Int(value) => Value::Int(value).encode(out),
        Any::Double(value) => Value::Double(value).encode(out),
        Any::Bytes(bytes) => {
            out.push(6);
            out.text(bytes);
        }
        Any::Empty | Any::Nested(_) => Value::Empty.encode(out),
    }
    Ok(())
}

/// An attribute of something that is kept as a value: resource, scope, event, link.
pub(super) fn push_pair(bytes: &[u8], pairs: &mut Pairs, dropped: &mut u32, intake: &mut Intake) -> Result<(), Reason> {
    let (key, value) = key_value(bytes)?;
    let mut key = text(key)?;
    let mut encoded = Vec::new();
    encode_any(any_value(value)?, 1, intake, &mut encoded)?;
    if pairs.len() >= intake.limits.attributes_max {
        intake.trim(Trim::Attributes);
        *dropped = dropped.saturating_add(1);
        return Ok(());
    }
    let mut value = if encoded.len() > 4 * intake.limits.value_bytes_max && encoded[0] >= 7 {
        intake.trim(Trim::Value);
        Value::Str(format!("[cut: a nested value of {} bytes]", encoded.len()))
    } else {
        Value::decode(&mut firstfall_store::pack::Cursor::new(&encoded), 0).map_err(|_| Reason::Malformed)?
    };
    intake.cap_pair(&mut key, &mut value);
    pairs.push((key, value));
    Ok(())
}
