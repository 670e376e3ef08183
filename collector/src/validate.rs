//! What may enter: limits on every part of an item, and the rules by which an item is refused.
//!
//! An `Intake` stands between the decoders and the columns. Both decoders, protobuf and JSON, hand it the same pieces in the same
//! order; it caps what is too large, refuses what makes no sense, counts both by reason, and builds the batch. A refused item
//! leaves nothing behind and costs its neighbours nothing. No clock, disk or network: `now` comes from outside.

use crate::redact::Redaction;
use crate::{semconv, senders};
use firstfall_store::batch::{Batch, Field, marks};
use firstfall_store::builder::{BatchBuilder, NotUtf8, REDACT, REDACTED, Row};
use firstfall_store::value::{Resource, Scope, Stored, Value};
use firstfall_store::{NANOS_PER_SECOND, Service, Signal};
use std::sync::Arc;

/// Limits on the parts of an item. What exceeds one is cut and counted, not refused.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Attributes of one item, event or link; the rest is counted as dropped. The specification's default for SDKs.
    pub attributes_max: usize,
    /// A longer key is cut. No convention's key is a quarter as long.
    pub key_bytes_max: usize,
    /// A longer value is cut. A stack trace or a statement fits.
    pub value_bytes_max: usize,
    /// A longer log body is cut.
    pub body_bytes_max: usize,
    /// Names of spans, metrics and events; longer ones are cut.
    pub name_bytes_max: usize,
    /// Events, and links, of one span; the rest is counted as dropped.
    pub events_max: usize,
    /// Values nested deeper become text: recursion must end, and nobody reads further.
    pub nesting_max: usize,
    /// An item dated further ahead than this is refused: clocks drift by minutes, not by days.
    pub ahead_max_seconds: u64,
    /// Attributes whose values are not kept.
    pub redact: Redaction,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            attributes_max: 128,
            key_bytes_max: 256,
            value_bytes_max: 64 << 10,
            body_bytes_max: 256 << 10,
            name_bytes_max: 1024,
            events_max: 1024,
            nesting_max: 64,
            ahead_max_seconds: 86_400,
            redact: Redaction::default(),
        }
    }
}

/// Nothing was traced before the year 2000; a time before it is a client's mistake (often milliseconds taken for nanoseconds).
const EARLIEST: u64 = 946_684_800 * NANOS_PER_SECOND;

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($variant:ident => $text:literal, $sentence:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(usize)]
        pub enum $name { $($variant),* }
        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$variant),*];
            /// As it appears in counts.
            pub fn name(self) -> &'static str { match self { $($name::$variant => $text),* } }
            /// For people: what was wrong, and the way out.
            pub fn sentence(self) -> &'static str { match self { $($name::$variant => $sentence),* } }
        }
    };
}

reasons! {
    /// Why an item was refused.
    Reason {
        Malformed => "malformed", "could not be read as the protocol's message; check the client's encoder";
        NotUtf8 => "not_utf8", "holds a string that is not UTF-8; send bytes as a bytes value";
        TraceIdInvalid => "trace_id_invalid", "has a trace id that is not 16 bytes or is all zero";
        SpanIdInvalid => "span_id_invalid", "has a span id that is not 8 bytes or is all zero";
        TimeMissing => "time_missing", "has no start time";
        TimeTooFarAhead => "time_too_far_ahead", "is dated more than a day ahead; check the sender's clock and its unit (nanoseconds)";
        TimeTooOld => "time_too_old", "is dated before the year 2000; check the unit of its times (nanoseconds)";
    }
}

reasons! {
    /// What was cut from items that were kept.
    Trim {
        Attributes => "attributes_over_limit", "attributes beyond the limit were left out";
        Key => "key_cut", "keys were too long and were cut";
        Value => "value_cut", "values were too long and were cut";
        Nesting => "nesting_cut", "values were nested too deep; the inner part became text";
        Events => "events_over_limit", "events or links beyond the limit were left out";
        Id => "id_ignored", "ids of the wrong length were left out";
        Name => "name_cut", "names were too long and were cut";
        Redacted => "redacted", "values under keys of secrets were not kept";
    }
}

/// Counts by reason.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Discards {
    pub rejected: [u64; Reason::ALL.len()],
    pub trimmed: [u64; Trim::ALL.len()],
}

impl Discards {
    pub fn rejected_total(&self) -> u64 {
        self.rejected.iter().sum()
    }

    /// "2 spans have no start time; 1 …", empty when nothing was refused.
    pub fn sentence(&self, signal: Signal) -> String {
        let parts: Vec<String> = Reason::ALL
            .iter()
            .filter(|r| self.rejected[**r as usize] > 0)
            .map(|r| format!("{} of the {} refused: each {}", self.rejected[*r as usize], signal.items(), r.sentence()))
            .collect();
        parts.join("; ")
    }
}

/// A value on its way into a column. Nested values are encoded as the store keeps them.
#[derive(Clone, Copy, Debug)]
pub enum Any<'a> {
    Empty,
    Str(&'a [u8]),
    Bool(bool),
    Int(i64),
    Double(f64),
    Bytes(&'a [u8]),
    Nested(&'a [u8]),
}

/// The parts of a span that are not in columns of their own.
#[derive(Clone, Copy, Debug, Default)]
pub struct SpanHead<'a> {
    pub trace_id: &'a [u8],
    pub span_id: &'a [u8],
    pub parent_span_id: &'a [u8],
    pub name: &'a [u8],
    pub kind: i32,
    pub start: u64,
    pub end: u64,
    pub status_code: i32,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct LogHead<'a> {
    pub trace_id: &'a [u8],
    pub span_id: &'a [u8],
    pub event_name: &'a [u8],
    pub severity_number: i32,
    pub time: u64,
    pub observed: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct PointHead<'a> {
    pub metric: &'a [u8],
    /// 1 gauge, 2 sum, 3 histogram, 4 exponential histogram, 5 summary.
    pub kind: u8,
    pub time: u64,
    pub start: u64,
}

pub struct Intake {
    builder: BatchBuilder,
    pub limits: Limits,
    now: u64,
    pub discards: Discards,
    resource: u32,
    context: u32,
    attributes: usize,
    scratch: Vec<u8>,
}

impl From<NotUtf8> for Reason {
    fn from(_: NotUtf8) -> Reason {
        Reason::NotUtf8
    }
}

impl Intake {
    /// `now` is the wall clock in nanoseconds; `bytes` the size of the request.
    pub fn new(signal: Signal, limits: Limits, now: u64, bytes: usize) -> Intake {
        let redact = limits.redact.clone();
        let role = move |key: &[u8]| if redact.is_secret(key) { REDACT } else { semconv::role(key) };
        Intake {
            builder: BatchBuilder::new(signal, bytes, Arc::new(role)),
            limits,
            now,
            discards: Discards::default(),
            resource: 0,
            context: 0,
            attributes: 0,
            scratch: Vec::new(),
        }
    }

    pub fn finish(mut self) -> (Batch, Discards) {
        self.discards.trimmed[Trim::Redacted as usize] += self.builder.redacted();
        (self.builder.finish(), self.discards)
    }

    pub fn reject(&mut self, reason: Reason) {
        self.reject_many(reason, 1);
    }

    pub fn reject_many(&mut self, reason: Reason, count: u64) {
        self.discards.rejected[reason as usize] += count;
    }

    pub fn trim(&mut self, trim: Trim) {
        self.discards.trimmed[trim as usize] += 1;
    }

    pub fn begin_resource(&mut self, resource: &Resource) {
        self.take_resource(resource);
    }

    /// The service and the stored form of what has begun.
    fn take_resource(&mut self, resource: &Resource) -> (Service, Vec<u8>) {
        let (service, body) = (semconv::service(&resource.attributes), resource.to_bytes());
        self.resource = self.builder.resource(&service, &body);
        (service, body)
    }

    /// As `begin_resource`, for one that may have been read before: `read` is asked when it was not.
    pub fn begin_resource_of(
        &mut self,
        resource: &[u8],
        schema_url: &[u8],
        read: impl FnOnce(&mut Intake) -> Result<Resource, Reason>,
    ) -> Result<(), Reason> {
        let limits = self.limits.clone();
        if let Some(id) = senders::recall(&limits, resource, schema_url, |service, body| self.builder.resource(service, body)) {
            self.resource = id;
            return Ok(());
        }
        let cut = self.discards.trimmed;
        let read = read(self)?;
        let (service, body) = self.take_resource(&read);
        if cut == self.discards.trimmed {
            senders::remember(&limits, resource, schema_url, &service, &body);
        }
        Ok(())
    }

    pub fn begin_scope(&mut self, scope: &Scope) {
        let scope = self.builder.scope(&scope.to_bytes());
        self.context = self.builder.context(self.resource, scope);
    }

    /// Drops what was pushed of an item and counts it.
    pub fn abandon(&mut self, reason: Reason) {
        self.builder.abandon_row();
        self.reject(reason);
    }

    fn check_time(&self, time: u64) -> Result<(), Reason> {
        if time < EARLIEST {
            return Err(if time == 0 { Reason::TimeMissing } else { Reason::TimeTooOld });
        }
        if time > self.now.saturating_add(self.limits.ahead_max_seconds * NANOS_PER_SECOND) {
            return Err(Reason::TimeTooFarAhead);
        }
        Ok(())
    }

    fn cut_name<'a>(&mut self, name: &'a [u8]) -> &'a [u8] {
        if name.len() <= self.limits.name_bytes_max {
            return name;
        }
        self.trim(Trim::Name);
        cut(name, self.limits.name_bytes_max)
    }

    /// Begins a span. What follows until `finish_span` belongs to it.
    #[inline]
    pub fn begin_span(&mut self, head: &SpanHead<'_>) -> Result<(), Reason> {
        if head.trace_id.len() != 16 || head.trace_id == [0; 16] {
            return Err(Reason::TraceIdInvalid);
        }
        if head.span_id.len() != 8 || head.span_id == [0; 8] {
            return Err(Reason::SpanIdInvalid);
        }
        self.check_time(head.start)?;
        // An end that is missing or before the start is kept as it came; the duration is then none.
        if head.end != 0 {
            self.check_time(head.end)?;
        }
        self.attributes = 0;
        let name = self.cut_name(head.name);
        self.builder.place(self.context, u8::try_from(head.kind).unwrap_or(0), name)?;
        Ok(())
    }

    #[inline]
    pub fn finish_span(&mut self, head: &SpanHead<'_>) {
        let parent = id8(head.parent_span_id);
        if parent == 0 && !head.parent_span_id.is_empty() && head.parent_span_id != [0; 8] {
            self.trim(Trim::Id);
        }
        let status = if matches!(head.status_code, 1 | 2) { head.status_code as u8 } else { 0 };
        let mut row_marks = status | if parent == 0 { marks::ROOT } else { 0 };
        if semconv::is_error(status, &self.builder) {
            row_marks |= marks::ERROR;
        }
        if semconv::is_request(head.kind, &self.builder) {
            row_marks |= marks::REQUEST;
        }
        self.builder.finish_row(Row {
            trace: id16(head.trace_id),
            span: id8(head.span_id),
            parent,
            time: head.start,
            duration: head.end.wrapping_sub(head.start) as i64,
            marks: row_marks,
        });
    }

    pub fn begin_log(&mut self, head: &LogHead<'_>) -> Result<(), Reason> {
        for time in [head.time, head.observed] {
            if time != 0 {
                self.check_time(time)?;
            }
        }
        self.attributes = 0;
        let name = self.cut_name(head.event_name);
        self.builder.place(self.context, u8::try_from(head.severity_number).unwrap_or(0), name)?;
        Ok(())
    }

    pub fn finish_log(&mut self, head: &LogHead<'_>) {
        // A record without a time of its own happened when it was seen; one that nobody dated, now.
        let observed = if head.observed == 0 { self.now } else { head.observed };
        let time = if head.time == 0 { observed } else { head.time };
        let mut row_marks = if head.time == 0 { semconv::TIME_UNSET } else { 0 };
        if head.observed == 0 {
            row_marks |= semconv::OBSERVED_UNSET;
        }
        if head.severity_number >= 17 {
            row_marks |= marks::ERROR;
        }
        let mut trace = id16(head.trace_id);
        let mut span = id8(head.span_id);
        if (trace == [0; 16] && !all_zero(head.trace_id)) || (span == 0 && !all_zero(head.span_id)) {
            self.trim(Trim::Id);
            (trace, span) = if trace == [0; 16] { ([0; 16], 0) } else { (trace, 0) };
        }
        self.builder.finish_row(Row { trace, span, parent: 0, time, duration: observed.wrapping_sub(time) as i64, marks: row_marks });
    }

    pub fn begin_point(&mut self, head: &PointHead<'_>) -> Result<(), Reason> {
        self.check_time(head.time)?;
        self.attributes = 0;
        let name = self.cut_name(head.metric);
        self.builder.place(self.context, head.kind, name)?;
        Ok(())
    }

    pub fn finish_point(&mut self, head: &PointHead<'_>) {
        // Without a start the difference is the time itself, so that nothing is lost.
        self.builder.finish_row(Row { time: head.time, duration: head.time.wrapping_sub(head.start) as i64, ..Row::default() });
    }

    /// An attribute of the item. Beyond the limit it is counted and left out.
    #[inline]
    pub fn attribute(&mut self, key: &[u8], value: Any<'_>) -> Result<(), Reason> {
        self.attributes += 1;
        if self.attributes > self.limits.attributes_max {
            self.trim(Trim::Attributes);
            return Ok(());
        }
        if key.len() > self.limits.key_bytes_max {
            self.trim(Trim::Key);
            // What it is called is decided before it is cut.
            let value = if self.limits.redact.is_secret(key) {
                self.trim(Trim::Redacted);
                Any::Str(REDACTED.as_bytes())
            } else {
                value
            };
            return self.push(Field::Attribute, cut(key, self.limits.key_bytes_max), value, self.limits.value_bytes_max);
        }
        self.push(Field::Attribute, key, value, self.limits.value_bytes_max)
    }

    /// Attributes of the item that were left out here.
    pub fn attributes_left_out(&self) -> u64 {
        self.attributes.saturating_sub(self.limits.attributes_max) as u64
    }

    /// A part of the item other than an attribute.
    #[inline]
    pub fn field(&mut self, field: Field, value: Any<'_>) -> Result<(), Reason> {
        let max = if field == Field::Body { self.limits.body_bytes_max } else { self.limits.value_bytes_max };
        self.push(field, b"", value, max)
    }

    /// A part that has a limit of its own already: encoded events or links, buckets.
    pub fn list(&mut self, field: Field, encoded: &[u8]) -> Result<(), Reason> {
        Ok(self.builder.push_nested(field, b"", encoded)?)
    }

    #[inline]
    fn push(&mut self, field: Field, key: &[u8], value: Any<'_>, bytes_max: usize) -> Result<(), Reason> {
        match value {
            Any::Str(text) if text.len() <= bytes_max => self.builder.push_str(field, key, text)?,
            Any::Str(text) => {
                self.trim(Trim::Value);
                if std::str::from_utf8(text).is_err() {
                    return Err(Reason::NotUtf8);
                }
                self.scratch.clear();
                cut_marked(text, bytes_max, &mut self.scratch);
                self.builder.push_str(field, key, &self.scratch)?;
            }
            Any::Int(value) => self.builder.push_int(field, key, value)?,
            Any::Bool(value) => self.builder.push_bool(field, key, value)?,
            Any::Double(value) => self.builder.push_double(field, key, value)?,
            Any::Empty => self.builder.push_empty(field, key)?,
            Any::Bytes(bytes) => {
                if bytes.len() > bytes_max {
                    self.trim(Trim::Value);
                }
                self.builder.push_bytes(field, key, &bytes[..bytes.len().min(bytes_max)])?;
            }
            Any::Nested(encoded) if encoded.len() <= bytes_max => self.builder.push_nested(field, key, encoded)?,
            Any::Nested(encoded) => {
                self.trim(Trim::Value);
                let text = format!("[cut: a nested value of {} bytes]", encoded.len());
                self.builder.push_str(field, key, text.as_bytes())?;
            }
        }
        Ok(())
    }

    /// Whether the value under a key is a secret; then it is counted, and the caller keeps `REDACTED` instead.
    pub fn is_secret(&mut self, key: &str) -> bool {
        let secret = self.limits.redact.is_secret(key.as_bytes());
        if secret {
            self.trim(Trim::Redacted);
        }
        secret
    }

    /// Caps an attribute of an event, link, resource or scope, which the decoders build as values.
    pub fn cap_pair(&mut self, key: &mut String, value: &mut Value) {
        if self.is_secret(key) {
            *value = Value::Str(REDACTED.to_owned());
        }
        self.cap_key(key);
        if let Value::Str(text) = value
            && text.len() > self.limits.value_bytes_max
        {
            self.trim(Trim::Value);
            let mut out = Vec::new();
            cut_marked(text.as_bytes(), self.limits.value_bytes_max, &mut out);
            *text = String::from_utf8(out).expect("it was cut between characters");
        }
    }

    fn cap_key(&mut self, key: &mut String) {
        if key.len() > self.limits.key_bytes_max {
            self.trim(Trim::Key);
            key.truncate(cut(key.as_bytes(), self.limits.key_bytes_max).len());
        }
    }
}

/// The longest start of a text of at most `max` bytes that ends between two characters.
fn cut(text: &[u8], max: usize) -> &[u8] {
    let mut end = max.min(text.len());
    while end > 0 && end < text.len() && text[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    &text[..end]
}

/// Cuts a text and says so at its end.
fn cut_marked(text: &[u8], max: usize, out: &mut Vec<u8>) {
    let mark = format!("…[cut from {} bytes]", text.len());
    out.extend_from_slice(cut(text, max.saturating_sub(mark.len())));
    out.extend_from_slice(mark.as_bytes());
}

fn all_zero(id: &[u8]) -> bool {
    id.iter().all(|b| *b == 0)
}

fn id16(id: &[u8]) -> [u8; 16] {
    id.try_into().unwrap_or_default()
}

fn id8(id: &[u8]) -> u64 {
    id.try_into().map_or(0, u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters_and_says_so() {
        let text = "é".repeat(100);
        let mut out = Vec::new();
        cut_marked(text.as_bytes(), 51, &mut out);
        let out = String::from_utf8(out).expect("still UTF-8");
        assert!(out.ends_with("…[cut from 200 bytes]") && out.len() <= 51, "{out}");
    }

    #[test]
    fn an_item_of_another_age_is_refused_with_its_reason() {
        let intake = Intake::new(Signal::Traces, Limits::default(), 1_800_000_000 * NANOS_PER_SECOND, 100);
        assert_eq!(intake.check_time(0), Err(Reason::TimeMissing));
        assert_eq!(intake.check_time(1_800_000_000_000), Err(Reason::TimeTooOld));
        assert_eq!(intake.check_time(u64::MAX), Err(Reason::TimeTooFarAhead));
        assert_eq!(intake.check_time(1_700_000_000 * NANOS_PER_SECOND), Ok(()));
    }
}
