//! Walks OTLP's protobuf wire format.
//!
//! A message is a sequence of fields, `tag value`; a tag is `number << 3 | wire type`. Fields may come in any order, so a span is
//! walked twice: first for its scalars, skipping over what is long, then for its attributes, once its lane is known. The
//! field numbers are those of opentelemetry-proto 1.x. Unknown fields are skipped, as protobuf asks.

use super::{Unreadable, exemplar_id, set};
use crate::validate::{Any, Intake, LogHead, PointHead, Reason, SpanHead, Trim};
use firstfall_store::batch::Field;
use firstfall_store::builder::REDACTED;
use firstfall_store::pack::Writer;
use firstfall_store::value::{Event, Link, Pairs, Resource, Scope, Stored, Value};
use firstfall_store::{Signal, SpanId, TraceId};

/// The bytes are not a sequence of fields.
#[derive(Debug)]
struct Broken;

impl From<Broken> for Reason {
    fn from(_: Broken) -> Reason {
        Reason::Malformed
    }
}

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LEN: u8 = 2;
const FIXED32: u8 = 5;

#[derive(Clone, Copy)]
struct Walk<'a> {
    rest: &'a [u8],
}

/// A field as it stands on the wire.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Len(&'a [u8]),
    Fixed32(u32),
}

impl<'a> Walk<'a> {
    fn new(bytes: &'a [u8]) -> Walk<'a> {
        Walk { rest: bytes }
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, Broken> {
        let (first, rest) = self.rest.split_first().ok_or(Broken)?;
        self.rest = rest;
        if *first < 0x80 {
            return Ok(u64::from(*first));
        }
        self.varint_long(*first)
    }

    #[inline(never)]
    fn varint_long(&mut self, first: u8) -> Result<u64, Broken> {
        let mut value = u64::from(first & 0x7f);
        for shift in (7..70).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(Broken)?;
            self.rest = rest;
            // The tenth byte has room for one bit.
            if shift == 63 && *byte > 1 {
                return Err(Broken);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Broken)
    }

    #[inline]
    fn take(&mut self, length: usize) -> Result<&'a [u8], Broken> {
        let (head, rest) = self.rest.split_at_checked(length).ok_or(Broken)?;
        self.rest = rest;
        Ok(head)
    }

    #[inline]
    fn len(&mut self) -> Result<&'a [u8], Broken> {
        let length = self.varint()?;
        self.take(usize::try_from(length).map_err(|_| Broken)?)
    }

    /// The next field, or `None` at the end.
    #[inline]
    fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, Broken> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| Broken)?;
        if number == 0 || number >= 1 << 29 {
            return Err(Broken);
        }
        let wire = match (tag & 7) as u8 {
            LEN => Wire::Len(self.len()?),
            VARINT => Wire::Varint(self.varint()?),
            FIXED64 => Wire::Fixed64(u64::from_le_bytes(*self.take(8)?.first_chunk().expect("eight bytes were taken"))),
            FIXED32 => Wire::Fixed32(u32::from_le_bytes(*self.take(4)?.first_chunk().expect("four bytes were taken"))),
            // Groups are long out of use and none of OTLP's messages has one.
            _ => return Err(Broken),
        };
        Ok(Some((number, wire)))
    }
}

impl<'a> Wire<'a> {
    #[inline]
    fn bytes(self) -> Result<&'a [u8], Broken> {
        if let Wire::Len(bytes) = self { Ok(bytes) } else { Err(Broken) }
    }
    #[inline]
    fn fixed64(self) -> Result<u64, Broken> {
        if let Wire::Fixed64(value) = self { Ok(value) } else { Err(Broken) }
    }
    fn fixed32(self) -> Result<u32, Broken> {
        if let Wire::Fixed32(value) = self { Ok(value) } else { Err(Broken) }
    }
    fn varint(self) -> Result<u64, Broken> {
        if let Wire::Varint(value) = self { Ok(value) } else { Err(Broken) }
    }
    fn int32(self) -> Result<i32, Broken> {
        Ok(self.varint()? as i32)
    }
    fn double(self) -> Result<f64, Broken> {
        self.fixed64().map(f64::from_bits)
    }
    fn string(self) -> Result<String, Reason> {
        text(self.bytes()?)
    }
}

fn text(bytes: &[u8]) -> Result<String, Reason> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Reason::NotUtf8)
}

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

fn count_field(field: Field, count: u64, intake: &mut Intake) -> Result<(), Reason> {
    if count == 0 { Ok(()) } else { intake.field(field, Any::Int(count as i64)) }
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
fn attribute(bytes: &[u8], intake: &mut Intake) -> Result<(), Reason> {
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
fn push_pair(bytes: &[u8], pairs: &mut Pairs, dropped: &mut u32, intake: &mut Intake) -> Result<(), Reason> {
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
        Value::decode(&mut firstfall_store::pack::Reader::new(&encoded), 0).map_err(|_| Reason::Malformed)?
    };
    intake.cap_pair(&mut key, &mut value);
    pairs.push((key, value));
    Ok(())
}

/// `Metric`: 1 name, 2 description, 3 unit, 5 gauge, 7 sum, 9 histogram, 10 exponential histogram, 11 summary, 12 metadata.
fn metric(bytes: &[u8], intake: &mut Intake) {
    if let Err(reason) = try_metric(bytes, intake) {
        // What could be read of it is kept; the rest counts as one.
        intake.reject(reason);
    }
}

struct Metric<'a> {
    name: &'a [u8],
    description: &'a [u8],
    unit: &'a [u8],
    metadata: Vec<u8>,
    temporality: i32,
    monotonic: bool,
}

fn try_metric(bytes: &[u8], intake: &mut Intake) -> Result<(), Reason> {
    let mut metric = Metric { name: &[], description: &[], unit: &[], metadata: Vec::new(), temporality: 0, monotonic: false };
    let mut data = None;
    let mut metadata: Pairs = Vec::new();
    let mut walk = Walk::new(bytes);
    while let Some((number, wire)) = walk.next()? {
        match number {
            1 => metric.name = wire.bytes()?,
            2 => metric.description = wire.bytes()?,
            3 => metric.unit = wire.bytes()?,
            5 => data = Some((1, wire.bytes()?)),
            7 => data = Some((2, wire.bytes()?)),
            9 => data = Some((3, wire.bytes()?)),
            10 => data = Some((4, wire.bytes()?)),
            11 => data = Some((5, wire.bytes()?)),
            12 => push_pair(wire.bytes()?, &mut metadata, &mut 0, intake)?,
            _ => {}
        }
    }
    if !metadata.is_empty() {
        Value::Map(metadata).encode(&mut metric.metadata);
    }
    let Some((kind, data)) = data else { return Ok(()) };
    let mut walk = Walk::new(data);
    while let Some((number, wire)) = walk.next()? {
        match number {
            2 if kind != 1 && kind != 5 => metric.temporality = wire.int32()?,
            3 if kind == 2 => metric.monotonic = wire.varint()? != 0,
            _ => {}
        }
    }
    let mut walk = Walk::new(data);
    while let Some((number, wire)) = walk.next()? {
        if number == 1
            && let Err(reason) = point(wire.bytes()?, kind, &metric, intake)
        {
            intake.abandon(reason);
        }
    }
    Ok(())
}

/// A data point of any type. The numbers of the fields differ from type to type.
fn point(bytes: &[u8], kind: u8, metric: &Metric<'_>, intake: &mut Intake) -> Result<(), Reason> {
    let attributes_field = match kind {
        3 => 9,
        4 => 1,
        _ => 7,
    };
    let mut head = PointHead { metric: metric.name, kind, ..PointHead::default() };
    let mut walk = Walk::new(bytes);
    while let Some((number, wire)) = walk.next()? {
        match number {
            2 => head.start = wire.fixed64()?,
            3 => head.time = wire.fixed64()?,
            _ => {}
        }
    }
    intake.begin_point(&head)?;
    let mut walk = Walk::new(bytes);
    while let Some((number, wire)) = walk.next()? {
        if number == attributes_field {
            attribute(wire.bytes()?, intake)?;
        }
    }
    for (field, value) in [(Field::Unit, metric.unit), (Field::Description, metric.description)] {
        if !value.is_empty() {
            intake.field(field, Any::Str(value))?;
        }
    }
    if !metric.metadata.is_empty() {
        intake.field(Field::Metadata, Any::Nested(&metric.metadata))?;
    }
    if metric.temporality != 0 {
        intake.field(Field::Temporality, Any::Int(metric.temporality.into()))?;
    }
    if metric.monotonic {
        intake.field(Field::Monotonic, Any::Bool(true))?;
    }
    let (mut flags, mut exemplars) = (0u32, Vec::new());
    let (mut counts, mut bounds, mut quantiles) = (Vec::new(), Vec::new(), Vec::new());
    let mut numbers: [Option<(Field, Any<'_>)>; 5] = [None; 5];
    let mut buckets: Pairs = Vec::new();
    let mut walk = Walk::new(bytes);
    while let Some((number, wire)) = walk.next()? {
        match (kind, number) {
            (1 | 2, 4) => numbers[0] = Some((Field::Value, Any::Double(wire.double()?))),
            (1 | 2, 6) => numbers[0] = Some((Field::Value, Any::Int(wire.fixed64()? as i64))),
            (3..=5, 4) => numbers[1] = Some((Field::Count, Any::Int(wire.fixed64()? as i64))),
            (3..=5, 5) => numbers[2] = Some((Field::Sum, Any::Double(wire.double()?))),
            (3, 11) | (4, 12) => numbers[3] = Some((Field::Min, Any::Double(wire.double()?))),
            (3, 12) | (4, 13) => numbers[4] = Some((Field::Max, Any::Double(wire.double()?))),
            (3, 6) => packed64(wire, &mut counts, |bits| Value::Int(bits as i64))?,
            (3, 7) => packed64(wire, &mut bounds, |bits| Value::Double(f64::from_bits(bits)))?,
            (4, 6) => {
                let scale = wire.varint()? as u32;
                set(&mut buckets, "scale", Value::Int(((scale >> 1) as i32 ^ -((scale & 1) as i32)).into()));
            }
            (4, 7) => set(&mut buckets, "zero_count", Value::Int(wire.fixed64()? as i64)),
            (4, 14) => set(&mut buckets, "zero_threshold", Value::Double(wire.double()?)),
            (4, 8) => set(&mut buckets, "positive", exponential_buckets(wire.bytes()?)?),
            (4, 9) => set(&mut buckets, "negative", exponential_buckets(wire.bytes()?)?),
            (5, 6) => quantiles.push(quantile(wire.bytes()?)?),
            (1 | 2, 5) | (3, 8) | (4, 11) if exemplars.len() < intake.limits.events_max => {
                let exemplar = exemplar(wire.bytes()?, intake)?;
                exemplars.push(exemplar);
            }
            (1 | 2 | 5, 8) | (3 | 4, 10) => flags = wire.varint()? as u32,
            _ => {}
        }
    }
    for (field, value) in numbers.into_iter().flatten() {
        intake.field(field, value)?;
    }
    for (name, list) in [("counts", counts), ("bounds", bounds), ("quantiles", quantiles)] {
        if !list.is_empty() {
            buckets.push((name.into(), Value::Array(list)));
        }
    }
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
    count_field(Field::Flags, flags.into(), intake)?;
    count_field(Field::DroppedAttributes, intake.attributes_left_out(), intake)?;
    intake.finish_point(&head);
    Ok(())
}

/// A repeated fixed64 or double, packed or one by one.
fn packed64(wire: Wire<'_>, out: &mut Vec<Value>, value: fn(u64) -> Value) -> Result<(), Reason> {
    match wire {
        Wire::Fixed64(bits) => out.push(value(bits)),
        Wire::Len(bytes) => {
            let (numbers, rest) = bytes.as_chunks::<8>();
            if !rest.is_empty() {
                return Err(Reason::Malformed);
            }
            out.extend(numbers.iter().map(|bits| value(u64::from_le_bytes(*bits))));
        }
        _ => return Err(Reason::Malformed),
    }
    Ok(())
}

/// `Buckets`: 1 offset (sint32), 2 counts (uint64).
fn exponential_buckets(bytes: &[u8]) -> Result<Value, Reason> {
    let (mut offset, mut counts) = (0i32, Vec::new());
    let mut walk = Walk::new(bytes);
    while let Some((number, wire)) = walk.next()? {
        match (number, wire) {
            (1, wire) => {
                let raw = wire.varint()? as u32;
                offset = (raw >> 1) as i32 ^ -((raw & 1) as i32);
            }
            (2, Wire::Varint(count)) => counts.push(Value::Int(count as i64)),
            (2, wire) => {
                let mut packed = Walk::new(wire.bytes()?);
                while !packed.rest.is_empty() {
                    counts.push(Value::Int(packed.varint()? as i64));
                }
            }
            _ => {}
        }
    }
    Ok(Value::Map(vec![("offset".into(), Value::Int(offset.into())), ("counts".into(), Value::Array(counts))]))
}

/// `ValueAtQuantile`: 1 quantile, 2 value.
fn quantile(bytes: &[u8]) -> Result<Value, Reason> {
    let (mut quantile, mut value) = (0.0, 0.0);
    let mut walk = Walk::new(bytes);
    while let Some((number, wire)) = walk.next()? {
        match number {
            1 => quantile = wire.double()?,
            2 => value = wire.double()?,
            _ => {}
        }
    }
    Ok(Value::Array(vec![Value::Double(quantile), Value::Double(value)]))
}

/// `Exemplar`: 2 time, 3 double, 4 span_id, 5 trace_id, 6 int, 7 filtered attributes.
fn exemplar(bytes: &[u8], intake: &mut Intake) -> Result<Value, Reason> {
    let mut pairs: Pairs = Vec::new();
    let mut attributes: Pairs = Vec::new();
    let mut walk = Walk::new(bytes);
    while let Some((number, wire)) = walk.next()? {
        match number {
            2 => set(&mut pairs, "time", Value::Int(wire.fixed64()? as i64)),
            3 => set(&mut pairs, "value", Value::Double(wire.double()?)),
            4 => exemplar_id("span_id", wire.bytes()?, 8, &mut pairs, intake),
            5 => exemplar_id("trace_id", wire.bytes()?, 16, &mut pairs, intake),
            6 => set(&mut pairs, "value", Value::Int(wire.fixed64()? as i64)),
            7 => push_pair(wire.bytes()?, &mut attributes, &mut 0, intake)?,
            _ => {}
        }
    }
    if !attributes.is_empty() {
        pairs.push(("attributes".into(), Value::Map(attributes)));
    }
    Ok(Value::Map(pairs))
}
