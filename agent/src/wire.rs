//! Spans and log records as OTLP writes them, straight into a buffer: nothing is copied before, nothing is kept beside it.
//!
//! Both `ScopeSpans.spans` and `ScopeLogs.log_records` are field 2, so an item is written as that field, with its length, and a request is
//! made later by putting heads before what lies in the buffer (`request`).

use opentelemetry::logs::AnyValue;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId};
use opentelemetry::{Array, InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::SdkLogRecord;
use opentelemetry_sdk::trace::SpanData;
use std::fmt::{Debug, Write};
use std::time::{SystemTime, UNIX_EPOCH};

/// `ScopeSpans.spans`, `ScopeLogs.log_records`.
const ITEM: u32 = 2;

/// Bytes of one text; what is longer is cut at a character. A log body of a megabyte is a mistake, and must not cost the others their place.
pub const TEXT_MAX: usize = 64 << 10;
/// Values within values, so that a hostile map cannot end the stack.
const DEPTH_MAX: u32 = 16;

pub fn nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

pub fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn tag(out: &mut Vec<u8>, field: u32, wire_type: u32) {
    varint(out, u64::from(field << 3 | wire_type));
}

fn number(out: &mut Vec<u8>, field: u32, value: u64) {
    if value != 0 {
        tag(out, field, 0);
        varint(out, value);
    }
}

fn fixed64(out: &mut Vec<u8>, field: u32, value: u64) {
    tag(out, field, 1);
    out.extend_from_slice(&value.to_le_bytes());
}

fn fixed32(out: &mut Vec<u8>, field: u32, value: u32) {
    tag(out, field, 5);
    out.extend_from_slice(&value.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    tag(out, field, 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn text(out: &mut Vec<u8>, field: u32, value: &str) {
    if !value.is_empty() {
        bytes(out, field, cut(value).as_bytes());
    }
}

/// A value as it comes, before it is written.
pub enum Item<'a> {
    Str(&'a str),
    Int(i64),
    Double(f64),
    Bool(bool),
    /// By its `Debug`, which for formatted texts is the text.
    Shown(&'a dyn Debug),
    Value(&'a Value),
}

/// Takes text up to its limit, and what comes after as if it was taken.
struct Limited<'a> {
    out: &'a mut Vec<u8>,
    left: usize,
}

impl Write for Limited<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let part = &text[..text.floor_char_boundary(self.left)];
        self.left = if part.len() < text.len() { 0 } else { self.left - part.len() };
        self.out.extend_from_slice(part.as_bytes());
        Ok(())
    }
}

impl Item<'_> {
    /// Its text, for those fields that are more than attributes.
    pub fn text(&self, out: &mut String) {
        match self {
            Item::Str(text) => out.push_str(cut(text)),
            Item::Shown(shown) => drop(write!(out, "{shown:?}")),
            Item::Int(number) => drop(write!(out, "{number}")),
            Item::Double(number) => drop(write!(out, "{number}")),
            Item::Bool(yes) => drop(write!(out, "{yes}")),
            Item::Value(value) => out.push_str(&value.as_str()),
        }
    }

    /// `AnyValue`, as the message's content.
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Item::Str(text) => bytes(out, 1, cut(text).as_bytes()),
            Item::Int(number) => scalar_int(out, *number),
            Item::Double(number) => fixed64(out, 4, number.to_bits()),
            Item::Bool(yes) => scalar_bool(out, *yes),
            Item::Shown(shown) => message(out, 1, |out| {
                let _ = write!(Limited { out, left: TEXT_MAX }, "{shown:?}");
            }),
            Item::Value(v) => value(out, v),
        }
    }
}

/// `Span.attributes` and `LogRecord.attributes`.
pub const SPAN_ATTRIBUTE: u32 = 9;
pub const LOG_ATTRIBUTE: u32 = 6;

/// Bytes that a number takes.
fn varint_len(value: u64) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}

/// What stands before a text or a number, put together where nothing has to grow.
struct Head<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Head<N> {
    fn new() -> Head<N> {
        Head { bytes: [0; N], length: 0 }
    }

    fn byte(&mut self, byte: u8) {
        self.bytes[self.length] = byte;
        self.length += 1;
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }

    /// Appends it. All of the array is copied, since a copy whose length is known when this is compiled is no call, and what is too much is cut off again.
    fn write(&self, out: &mut Vec<u8>) {
        let end = out.len() + self.length;
        out.extend_from_slice(&self.bytes);
        out.truncate(end);
    }
}

/// Up to eight bytes that are put together in a register: bytes that are stored one by one and copied together right after wait for each other.
#[derive(Default)]
struct Word {
    bits: u64,
    length: u32,
}

impl Word {
    fn byte(&mut self, byte: u8) {
        self.bits |= u64::from(byte) << (8 * self.length);
        self.length += 1;
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.byte(value as u8 | 0x80);
            value >>= 7;
        }
        self.byte(value as u8);
    }

    fn write(&self, out: &mut Vec<u8>) {
        let end = out.len() + self.length as usize;
        out.extend_from_slice(&self.bits.to_le_bytes());
        out.truncate(end);
    }
}

pub fn attribute(out: &mut Vec<u8>, field: u32, key: &str, item: &Item<'_>) {
    if key.is_empty() || key.len() > TEXT_MAX {
        return any_attribute(out, field, key, item);
    }
    // Most values say beforehand how long they are: they are written at once, and nothing has to be moved.
    let (kind, text, length) = match item {
        Item::Str(text) => {
            let text = cut(text);
            (0x0a, text, varint_len(text.len() as u64) + text.len())
        }
        Item::Int(number) => (0x18, "", varint_len(*number as u64)),
        Item::Double(_) => (0x21, "", 8),
        Item::Bool(_) => (0x10, "", 1),
        Item::Shown(_) | Item::Value(_) => return any_attribute(out, field, key, item),
    };
    let content = 1 + length;
    let whole = 1 + varint_len(key.len() as u64) + key.len() + 1 + varint_len(content as u64) + content;
    out.reserve(whole + 32);
    // Lengths of texts take three bytes at most, so that each of these fits.
    let mut head = Word::default();
    head.byte((field << 3 | 2) as u8);
    head.varint(whole as u64);
    head.byte(0x0a);
    head.varint(key.len() as u64);
    head.write(out);
    out.extend_from_slice(key.as_bytes());
    let mut head = Word::default();
    head.byte(0x12);
    head.varint(content as u64);
    head.byte(kind);
    match item {
        Item::Bool(yes) => head.byte(u8::from(*yes)),
        Item::Str(_) => head.varint(text.len() as u64),
        _ => {}
    }
    head.write(out);
    match item {
        Item::Double(number) => out.extend_from_slice(&number.to_le_bytes()),
        Item::Int(number) => varint(out, *number as u64),
        _ => out.extend_from_slice(text.as_bytes()),
    }
}

fn any_attribute(out: &mut Vec<u8>, field: u32, key: &str, item: &Item<'_>) {
    message(out, field, |out| {
        text(out, 1, key);
        message(out, 2, |out| item.write(out));
    });
}

/// Reads a length where one was written; with where it ends.
fn length_at(bytes: &[u8], mut at: usize) -> (usize, usize) {
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = bytes[at];
        length |= usize::from(byte & 0x7f) << shift;
        (shift, at) = (shift + 7, at + 1);
        if byte < 0x80 {
            return (length, at);
        }
    }
}

/// Takes out an attribute that was written before, so that a later value of it stands alone. `attributes` holds nothing but attributes.
pub fn remove_attribute(attributes: &mut Vec<u8>, key: &str) {
    let mut at = 0;
    while at < attributes.len() {
        let (length, content) = length_at(attributes, at + 1);
        let (key_length, key_at) = length_at(attributes, content + 1);
        if attributes[content] == 0x0a && &attributes[key_at..key_at + key_length] == key.as_bytes() {
            attributes.drain(at..content + length);
            return;
        }
        at = content + length;
    }
}

/// Attributes one after the other, each with its `AnyValue`.
pub fn each_attribute<'a>(attributes: &'a [u8], mut each: impl FnMut(&'a str, &'a [u8])) {
    let mut at = 0;
    while at < attributes.len() {
        let (length, content) = length_at(attributes, at + 1);
        let (key_length, key_at) = length_at(attributes, content + 1);
        let key_end = key_at + key_length;
        at = content + length;
        if let (0x0a, Ok(key)) = (attributes[content], std::str::from_utf8(&attributes[key_at..key_end])) {
            let (_, value) = length_at(attributes, key_end + 1);
            each(key, &attributes[value..at]);
        }
    }
}

/// An `AnyValue` that was written here, for people: texts in quotes, numbers; of lists and maps that there is one.
pub struct Shown<'a>(pub &'a [u8]);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self.0 {
            [0x0a, ..] => {
                let (length, at) = length_at(self.0, 1);
                write!(f, "{:?}", String::from_utf8_lossy(&self.0[at..at + length]))
            }
            [0x10, yes] => write!(f, "{}", yes != 0),
            [0x18, ref number @ ..] => {
                let value = number.iter().rev().fold(0u64, |value, byte| value << 7 | u64::from(byte & 0x7f));
                write!(f, "{}", value as i64)
            }
            [0x21, ref number @ ..] => match number.try_into() {
                Ok(bytes) => write!(f, "{}", f64::from_le_bytes(bytes)),
                Err(_) => f.write_str("…"),
            },
            _ => f.write_str("…"),
        }
    }
}

/// `LogRecord.body`.
pub fn body(out: &mut Vec<u8>, item: &Item<'_>) {
    message(out, 5, |out| item.write(out));
}

/// `Span.links`.
pub fn link(out: &mut Vec<u8>, other: &SpanContext) {
    message(out, 13, |out| {
        bytes(out, 1, &other.trace_id().to_bytes());
        bytes(out, 2, &other.span_id().to_bytes());
        text(out, 3, &other.trace_state().header());
        fixed32(out, 6, flags(other.trace_flags().to_u8(), other.is_remote()));
    });
}

/// A span without its attributes, links and events.
pub struct Span<'a> {
    pub trace: [u8; 16],
    pub span: [u8; 8],
    /// Zeros: it has none.
    pub parent: [u8; 8],
    pub parent_is_remote: bool,
    pub flags: u8,
    pub trace_state: &'a str,
    pub name: &'a str,
    pub kind: u8,
    pub start: u64,
    pub end: u64,
    pub status: u8,
    pub status_message: &'a str,
    pub dropped_attributes: u32,
}

/// Appends a span whose attributes, links and events are written already.
pub fn span_of_parts(out: &mut Vec<u8>, span: &Span<'_>, attributes: &[u8], events: &[u8]) {
    let mut head = Head::<64>::new();
    head.put(&[0x0a, 16]);
    head.put(&span.trace);
    head.put(&[0x12, 8]);
    head.put(&span.span);
    if span.parent != [0; 8] {
        head.put(&[0x22, 8]);
        head.put(&span.parent);
    }
    let mut times = Head::<32>::new();
    if span.kind != 0 {
        times.put(&[0x30, span.kind]);
    }
    times.byte(0x39);
    times.put(&span.start.to_le_bytes());
    times.byte(0x41);
    times.put(&span.end.to_le_bytes());
    let (state, name, said) = (cut(span.trace_state), cut(span.name), cut(span.status_message));
    let said = if span.status == 0 { "" } else { said };
    let sized = |length: usize| if length == 0 { 0 } else { 1 + varint_len(length as u64) + length };
    let status = if span.status == 0 { 0 } else { 2 + sized(said.len()) };
    let dropped = if span.dropped_attributes == 0 { 0 } else { 1 + varint_len(span.dropped_attributes.into()) };
    let parts = head.length + sized(state.len()) + sized(name.len()) + times.length + attributes.len() + dropped + events.len();
    // Flags: a tag of two bytes and four of their own.
    let whole = parts + if span.status == 0 { 0 } else { 1 + varint_len(status as u64) + status } + 6;
    out.reserve(whole + 80);
    tag(out, ITEM, 2);
    varint(out, whole as u64);
    head.write(out);
    text(out, 3, state);
    text(out, 5, name);
    times.write(out);
    out.extend_from_slice(attributes);
    number(out, 10, span.dropped_attributes.into());
    out.extend_from_slice(events);
    if span.status != 0 {
        tag(out, 15, 2);
        varint(out, status as u64);
        text(out, 2, said);
        number(out, 3, span.status.into());
    }
    fixed32(out, 16, flags(span.flags, span.parent_is_remote));
}

/// Appends a log record; `of` is the span that it belongs to, `rest` writes its body and attributes.
pub fn log_record(
    out: &mut Vec<u8>,
    time: u64,
    severity: u64,
    severity_text: &str,
    of: Option<(TraceId, u64, TraceFlags)>,
    rest: impl FnOnce(&mut Vec<u8>),
) {
    message(out, ITEM, |out| {
        fixed64(out, 1, time);
        number(out, 2, severity);
        text(out, 3, severity_text);
        rest(out);
        if let Some((trace, span, flags)) = of {
            fixed32(out, 8, flags.to_u8().into());
            bytes(out, 9, &trace.to_bytes());
            bytes(out, 10, &span.to_be_bytes());
        }
        fixed64(out, 11, time);
    });
}

pub fn cut(value: &str) -> &str {
    &value[..value.floor_char_boundary(TEXT_MAX)]
}

/// A message within a message. Its length comes before it and is known after it: one byte is left for it, and what is longer is moved.
fn message(out: &mut Vec<u8>, field: u32, write: impl FnOnce(&mut Vec<u8>)) {
    tag(out, field, 2);
    let place = out.len();
    out.push(0);
    write(out);
    let length = out.len() - place - 1;
    if length < 0x80 {
        out[place] = length as u8;
        return;
    }
    let mut prefix = [0u8; 10];
    let mut used = 0;
    let mut rest = length as u64;
    while rest >= 0x80 {
        prefix[used] = rest as u8 | 0x80;
        rest >>= 7;
        used += 1;
    }
    prefix[used] = rest as u8;
    used += 1;
    out.resize(out.len() + used - 1, 0);
    out.copy_within(place + 1..place + 1 + length, place + used);
    out[place..place + used].copy_from_slice(&prefix[..used]);
}

fn value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Bool(v) => scalar_bool(out, *v),
        Value::I64(v) => scalar_int(out, *v),
        Value::F64(v) => fixed64(out, 4, v.to_bits()),
        Value::String(v) => bytes(out, 1, cut(v.as_str()).as_bytes()),
        Value::Array(array) => message(out, 5, |out| match array {
            Array::Bool(list) => list.iter().for_each(|v| message(out, 1, |out| scalar_bool(out, *v))),
            Array::I64(list) => list.iter().for_each(|v| message(out, 1, |out| scalar_int(out, *v))),
            Array::F64(list) => list.iter().for_each(|v| message(out, 1, |out| fixed64(out, 4, v.to_bits()))),
            Array::String(list) => list.iter().for_each(|v| message(out, 1, |out| bytes(out, 1, cut(v.as_str()).as_bytes()))),
            _ => {}
        }),
        // A kind of value that a later version of the API brings is told as its text.
        other => bytes(out, 1, cut(&other.as_str()).as_bytes()),
    }
}

fn scalar_bool(out: &mut Vec<u8>, value: bool) {
    tag(out, 2, 0);
    out.push(value.into());
}

fn scalar_int(out: &mut Vec<u8>, value: i64) {
    tag(out, 3, 0);
    varint(out, value as u64);
}

fn any(out: &mut Vec<u8>, value: &AnyValue, depth: u32) {
    match value {
        AnyValue::Boolean(v) => scalar_bool(out, *v),
        AnyValue::Int(v) => scalar_int(out, *v),
        AnyValue::Double(v) => fixed64(out, 4, v.to_bits()),
        AnyValue::String(v) => bytes(out, 1, cut(v.as_str()).as_bytes()),
        AnyValue::Bytes(v) => bytes(out, 7, &v[..v.len().min(TEXT_MAX)]),
        AnyValue::ListAny(list) if depth < DEPTH_MAX => {
            message(out, 5, |out| list.iter().for_each(|v| message(out, 1, |out| any(out, v, depth + 1))));
        }
        AnyValue::Map(map) if depth < DEPTH_MAX => message(out, 6, |out| {
            for (key, v) in map.iter() {
                message(out, 1, |out| {
                    text(out, 1, key.as_str());
                    message(out, 2, |out| any(out, v, depth + 1));
                });
            }
        }),
        _ => {}
    }
}

fn attributes<'a>(out: &mut Vec<u8>, field: u32, list: impl IntoIterator<Item = &'a KeyValue>) {
    for pair in list {
        message(out, field, |out| {
            text(out, 1, pair.key.as_str());
            message(out, 2, |out| value(out, &pair.value));
        });
    }
}

/// `Span.flags`: the trace flags, whether it is known where the parent is (bit 8), and whether it is elsewhere (bit 9).
fn flags(sampled: u8, remote: bool) -> u32 {
    u32::from(sampled) | 0x100 | if remote { 0x200 } else { 0 }
}

/// Appends a span. `trace_state` is what goes out as its state.
pub fn span(out: &mut Vec<u8>, data: &SpanData, trace_state: &str) {
    message(out, ITEM, |out| {
        bytes(out, 1, &data.span_context.trace_id().to_bytes());
        bytes(out, 2, &data.span_context.span_id().to_bytes());
        text(out, 3, trace_state);
        if data.parent_span_id != SpanId::INVALID {
            bytes(out, 4, &data.parent_span_id.to_bytes());
        }
        text(out, 5, &data.name);
        let kind = match data.span_kind {
            SpanKind::Internal => 1,
            SpanKind::Server => 2,
            SpanKind::Client => 3,
            SpanKind::Producer => 4,
            SpanKind::Consumer => 5,
        };
        number(out, 6, kind);
        fixed64(out, 7, nanos(data.start_time));
        fixed64(out, 8, nanos(data.end_time));
        attributes(out, 9, &data.attributes);
        number(out, 10, data.dropped_attributes_count.into());
        for event in data.events.iter() {
            message(out, 11, |out| {
                fixed64(out, 1, nanos(event.timestamp));
                text(out, 2, &event.name);
                attributes(out, 3, &event.attributes);
                number(out, 4, event.dropped_attributes_count.into());
            });
        }
        number(out, 12, data.events.dropped_count.into());
        for link in data.links.iter() {
            message(out, 13, |out| {
                bytes(out, 1, &link.span_context.trace_id().to_bytes());
                bytes(out, 2, &link.span_context.span_id().to_bytes());
                text(out, 3, &link.span_context.trace_state().header());
                attributes(out, 4, &link.attributes);
                number(out, 5, link.dropped_attributes_count.into());
                fixed32(out, 6, flags(link.span_context.trace_flags().to_u8(), link.span_context.is_remote()));
            });
        }
        number(out, 14, data.links.dropped_count.into());
        match &data.status {
            Status::Unset => {}
            Status::Ok => message(out, 15, |out| number(out, 3, 1)),
            Status::Error { description } => message(out, 15, |out| {
                text(out, 2, description);
                number(out, 3, 2);
            }),
        }
        fixed32(out, 16, flags(data.span_context.trace_flags().to_u8(), data.parent_span_is_remote));
    });
}

/// Appends a log record.
pub fn log(out: &mut Vec<u8>, record: &SdkLogRecord) {
    message(out, ITEM, |out| {
        if let Some(time) = record.timestamp() {
            fixed64(out, 1, nanos(time));
        }
        number(out, 2, record.severity_number().map_or(0, |severity| severity as u64));
        text(out, 3, record.severity_text().unwrap_or(""));
        if let Some(body) = record.body() {
            message(out, 5, |out| any(out, body, 0));
        }
        for (key, v) in record.attributes_iter() {
            message(out, 6, |out| {
                text(out, 1, key.as_str());
                message(out, 2, |out| any(out, v, 0));
            });
        }
        if let Some(context) = record.trace_context() {
            fixed32(out, 8, context.trace_flags.map_or(0, |flags| flags.to_u8()).into());
            bytes(out, 9, &context.trace_id.to_bytes());
            bytes(out, 10, &context.span_id.to_bytes());
        }
        if let Some(time) = record.observed_timestamp() {
            fixed64(out, 11, nanos(time));
        }
        text(out, 12, record.event_name().unwrap_or(""));
    });
}

/// `Resource`, as the message's content.
pub fn resource(resource: &Resource) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, v) in resource.iter() {
        message(&mut out, 1, |out| {
            text(out, 1, key.as_str());
            message(out, 2, |out| value(out, v));
        });
    }
    out
}

/// `InstrumentationScope`, as the message's content.
pub fn scope(scope: &InstrumentationScope) -> Vec<u8> {
    let mut out = Vec::new();
    text(&mut out, 1, scope.name());
    text(&mut out, 2, scope.version().unwrap_or(""));
    attributes(&mut out, 3, scope.attributes());
    out
}

/// A whole `ExportTraceServiceRequest` or `ExportLogsServiceRequest`: one resource, and its items by their scopes. All lengths are known, so nothing moves.
pub fn request(resource: &[u8], scopes: &[(&[u8], &[u8])]) -> Vec<u8> {
    let field = |length: usize| 1 + varint_len(length as u64) + length;
    let of_scope = |(scope, items): &(&[u8], &[u8])| field(scope.len()) + items.len();
    let content = field(resource.len()) + scopes.iter().map(|scope| field(of_scope(scope))).sum::<usize>();
    let mut out = Vec::with_capacity(field(content));
    tag(&mut out, 1, 2);
    varint(&mut out, content as u64);
    bytes(&mut out, 1, resource);
    for (scope, items) in scopes {
        tag(&mut out, 2, 2);
        varint(&mut out, of_scope(&(scope, items)) as u64);
        bytes(&mut out, 1, scope);
        out.extend_from_slice(items);
    }
    out
}

/// How many of the bytes, from the front, are whole items and at most `limit` long (but at least one item), and how many items these are.
pub fn whole_items(items: &[u8], limit: usize) -> (usize, u64) {
    let (mut at, mut count) = (0, 0);
    while at < items.len() {
        // The tag is one byte: field 2, with a length.
        let (length, next) = length_at(items, at + 1);
        if next + length > limit && count > 0 {
            break;
        }
        at = next + length;
        count += 1;
    }
    (at, count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::{Event, Link, TraceState};
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::common::v1::any_value;
    use prost::Message;
    use std::time::Duration;

    fn sample(name: &'static str) -> SpanData {
        let time = UNIX_EPOCH + Duration::from_nanos(1_800_000_000_123_456_789);
        let context = |id: u64| {
            let state = TraceState::from_key_value([("a", "1")]).expect("valid");
            SpanContext::new(TraceId::from(7), SpanId::from(id), TraceFlags::SAMPLED, true, state)
        };
        let mut events = opentelemetry_sdk::trace::SpanEvents::default();
        events.events = vec![Event::new("e", time, vec![KeyValue::new("k", 1)], 3)];
        let mut links = opentelemetry_sdk::trace::SpanLinks::default();
        links.links = vec![Link::new(context(9), vec![KeyValue::new("l", "ü".repeat(300))], 0)];
        SpanData {
            span_context: context(8),
            parent_span_id: SpanId::from(6),
            parent_span_is_remote: true,
            span_kind: SpanKind::Client,
            name: name.into(),
            start_time: time,
            end_time: time + Duration::from_millis(5),
            attributes: vec![
                KeyValue::new("int", i64::MIN),
                KeyValue::new("bool", false),
                KeyValue::new("double", -0.5),
                KeyValue::new("list", Value::Array(Array::String(vec!["a".into(), "".into()]))),
            ],
            dropped_attributes_count: 2,
            events,
            links,
            status: Status::error("broken"),
            instrumentation_scope: InstrumentationScope::builder("s").with_version("1").build(),
        }
    }

    #[test]
    fn a_request_reads_back_value_for_value() {
        let mut items = Vec::new();
        span(&mut items, &sample("one"), "ot=th:8");
        span(&mut items, &sample("two"), "");
        let head = scope(&sample("x").instrumentation_scope);
        let body = request(&resource(&Resource::builder_empty().with_service_name("svc").build()), &[(&head[..], &items[..])]);
        let read = ExportTraceServiceRequest::decode(&body[..]).expect("valid protobuf");
        let resource = &read.resource_spans[0];
        assert_eq!(resource.resource.as_ref().expect("there").attributes[0].key, "service.name");
        let scope = &resource.scope_spans[0];
        assert_eq!(scope.scope.as_ref().map(|s| (s.name.as_str(), s.version.as_str())), Some(("s", "1")));
        let [one, two] = &scope.spans[..] else { panic!("two spans") };
        assert_eq!((one.name.as_str(), two.name.as_str(), one.trace_state.as_str()), ("one", "two", "ot=th:8"));
        assert_eq!((one.kind, one.flags, one.dropped_attributes_count), (3, 0x301, 2));
        assert_eq!(one.end_time_unix_nano - one.start_time_unix_nano, 5_000_000);
        assert_eq!((one.parent_span_id.as_slice(), one.span_id.as_slice()), (&6u64.to_be_bytes()[..], &8u64.to_be_bytes()[..]));
        let value = |at: usize| one.attributes[at].value.clone().and_then(|v| v.value);
        assert_eq!(value(0), Some(any_value::Value::IntValue(i64::MIN)));
        assert_eq!(value(1), Some(any_value::Value::BoolValue(false)));
        assert_eq!(value(2), Some(any_value::Value::DoubleValue(-0.5)));
        let Some(any_value::Value::ArrayValue(list)) = value(3) else { panic!("a list") };
        assert_eq!(list.values.len(), 2);
        assert_eq!(one.events[0].dropped_attributes_count, 3);
        let link = one.links[0].attributes[0].value.clone().and_then(|v| v.value);
        assert_eq!(link, Some(any_value::Value::StringValue("ü".repeat(300))));
        assert_eq!(one.status.as_ref().map(|s| (s.code, s.message.as_str())), Some((2, "broken")));
    }

    #[test]
    fn an_attribute_is_the_same_whether_its_length_is_known_or_not() {
        let texts = ["", "short", &"x".repeat(200), &"y".repeat(20_000)];
        for key in ["k", &"key".repeat(60)] {
            for text in texts {
                let (mut known, mut moved) = (Vec::new(), Vec::new());
                attribute(&mut known, SPAN_ATTRIBUTE, key, &Item::Str(text));
                attribute(&mut moved, SPAN_ATTRIBUTE, key, &Item::Value(&Value::from(text.to_owned())));
                assert_eq!(known, moved, "{} {}", key.len(), text.len());
            }
            for number in [0, 1, 127, 128, i64::MAX, i64::MIN, -1] {
                let (mut known, mut moved) = (Vec::new(), Vec::new());
                attribute(&mut known, SPAN_ATTRIBUTE, key, &Item::Int(number));
                attribute(&mut moved, SPAN_ATTRIBUTE, key, &Item::Value(&Value::I64(number)));
                assert_eq!(known, moved, "{number}");
            }
        }
        let mut attributes = Vec::new();
        for key in ["a", "b", "c"] {
            attribute(&mut attributes, SPAN_ATTRIBUTE, key, &Item::Str(&"v".repeat(300)));
        }
        remove_attribute(&mut attributes, "b");
        remove_attribute(&mut attributes, "missing");
        let mut expected = Vec::new();
        for key in ["a", "c"] {
            attribute(&mut expected, SPAN_ATTRIBUTE, key, &Item::Str(&"v".repeat(300)));
        }
        assert_eq!(attributes, expected);
    }

    #[test]
    fn a_span_of_parts_reads_back_at_every_length() {
        let lengths = [0, 1, 60, 126, 127, 128, 300, 16_380, 20_000];
        for (length, other) in lengths.iter().flat_map(|length| lengths.map(|other| (*length, other))) {
            let (name, said, state) = ("n".repeat(length), "s".repeat(other), format!("k={}", "v".repeat(other % 250 + 1)));
            let mut attributes = Vec::new();
            if other > 0 {
                attribute(&mut attributes, SPAN_ATTRIBUTE, "key", &Item::Str(&name));
            }
            for (status, parent, dropped) in [(0, 0u64, 0), (1, 7, 1), (2, u64::MAX, 300)] {
                let span = Span {
                    trace: [1; 16],
                    span: [2; 8],
                    parent: parent.to_be_bytes(),
                    parent_is_remote: parent == 7,
                    flags: 1,
                    trace_state: if length % 2 == 0 { "" } else { &state },
                    name: &name,
                    kind: 3,
                    start: 4,
                    end: 5,
                    status,
                    status_message: &said,
                    dropped_attributes: dropped,
                };
                let mut items = Vec::new();
                span_of_parts(&mut items, &span, &attributes, &[]);
                assert_eq!(whole_items(&items, 0), (items.len(), 1));
                let body = request(&[], &[(&[], &items)]);
                let read = ExportTraceServiceRequest::decode(&body[..]).expect("sound");
                let read = &read.resource_spans[0].scope_spans[0].spans[0];
                assert_eq!((read.name.as_str(), read.trace_state.as_str(), read.kind), (name.as_str(), span.trace_state, 3));
                assert_eq!((read.start_time_unix_nano, read.end_time_unix_nano, read.dropped_attributes_count), (4, 5, dropped));
                assert_eq!(read.parent_span_id.len(), if parent == 0 { 0 } else { 8 });
                assert_eq!(read.attributes.len(), usize::from(other > 0));
                let told = read.status.as_ref().map_or((0, ""), |status| (status.code, status.message.as_str()));
                assert_eq!(told, if status == 0 { (0, "") } else { (i32::from(status), said.as_str()) });
                assert_eq!(read.flags, flags(1, parent == 7));
            }
        }
    }

    #[test]
    fn items_are_parted_where_one_ends() {
        let mut items = Vec::new();
        let ends: Vec<usize> = (0..3)
            .map(|_| {
                span(&mut items, &sample("n"), "");
                items.len()
            })
            .collect();
        assert_eq!(whole_items(&items, usize::MAX), (ends[2], 3));
        assert_eq!(whole_items(&items, ends[1]), (ends[1], 2));
        assert_eq!(whole_items(&items, ends[1] - 1), (ends[0], 1));
        assert_eq!(whole_items(&items, 1), (ends[0], 1), "one at least");
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let mut out = Vec::new();
        text(&mut out, 1, &"ü".repeat(TEXT_MAX));
        assert!(out.len() <= TEXT_MAX + 5 && std::str::from_utf8(&out[4..]).is_ok());
    }
}
