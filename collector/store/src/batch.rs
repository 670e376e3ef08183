//! A *batch*: the items of one request as columns. It is what the decoder builds, what the journal keeps, what queries
//! scan before a block exists, and what a block is made from, so an item is taken apart once and never put together again
//! on the way in.
//!
//! Spans, log records and metric points share the layout. A row has a *lane* (context, kind, name), the ids and times
//! that every signal has, and a *shape*: the list of columns for which it has a value, in the order in which the
//! client sent them. What only some rows have (events, a status message, a body) is a column too, under a `Field` instead of
//! an attribute key. `builder` makes one.

use crate::pack::{Cursor, Writer, corrupt, unzigzag, zigzag};
use crate::value::Value;
use crate::{Damaged, Service, Signal, SpanId, TraceId};
use hashbrown::HashTable;
use std::hash::{BuildHasher, Hasher};

/// What a column holds: an attribute, or one of the parts that only some items have.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Field {
    Attribute = 0,
    StatusMessage = 1,
    TraceState = 2,
    Flags = 3,
    DroppedAttributes = 4,
    Events = 5,
    DroppedEvents = 6,
    Links = 7,
    DroppedLinks = 8,
    SeverityText = 9,
    Body = 10,
    Unit = 20,
    Description = 21,
    Temporality = 22,
    Monotonic = 23,
    Value = 24,
    Count = 25,
    Sum = 26,
    Min = 27,
    Max = 28,
    /// Bucket bounds and counts, exponential scale and offsets, or quantiles: a nested value.
    Buckets = 29,
    Exemplars = 30,
    Metadata = 31,
}

impl Field {
    const ALL: [Field; 23] = [
        Field::Attribute,
        Field::StatusMessage,
        Field::TraceState,
        Field::Flags,
        Field::DroppedAttributes,
        Field::Events,
        Field::DroppedEvents,
        Field::Links,
        Field::DroppedLinks,
        Field::SeverityText,
        Field::Body,
        Field::Unit,
        Field::Description,
        Field::Temporality,
        Field::Monotonic,
        Field::Value,
        Field::Count,
        Field::Sum,
        Field::Min,
        Field::Max,
        Field::Buckets,
        Field::Exemplars,
        Field::Metadata,
    ];

    pub fn from_code(code: u8) -> Option<Field> {
        Field::ALL.into_iter().find(|f| *f as u8 == code)
    }
}

/// How the 32-bit word of a value is to be read.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Kind {
    /// An index into the strings.
    Str = 0,
    /// An integer from 0 to 65,535, itself.
    Small = 1,
    /// An index into the wide numbers: any other integer.
    Wide = 2,
    /// An index into the wide numbers: the bits of a double.
    Double = 3,
    Bool = 4,
    /// An index into the blobs.
    Bytes = 5,
    /// An index into the blobs: an encoded `Value`, or a list of events or links.
    Nested = 6,
    Empty = 7,
}

impl Kind {
    pub fn from_code(code: u8) -> Option<Kind> {
        use Kind::*;
        [Str, Small, Wide, Double, Bool, Bytes, Nested, Empty].into_iter().find(|k| *k as u8 == code)
    }
}

/// What a row says about itself, decided once by the collector, which knows the semantic conventions.
pub mod marks {
    /// The two lowest bits are the status code: 0 unset, 1 ok, 2 error.
    pub const STATUS: u8 = 0b11;
    /// Counts as failed: status error, or a server-side error code where the status is unset.
    pub const ERROR: u8 = 1 << 2;
    /// Counts as a request of its service: a SERVER span, or a CONSUMER span that processes.
    pub const REQUEST: u8 = 1 << 3;
    /// Has no parent.
    pub const ROOT: u8 = 1 << 4;
}

/// An append-only arena of byte strings, addressed by ordinal.
#[derive(Clone, Debug, Default)]
pub struct Arena {
    ends: Vec<u32>,
    bytes: Vec<u8>,
}

impl Arena {
    #[inline]
    pub fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.ends[id - 1] as usize };
        &self.bytes[start..self.ends[id] as usize]
    }

    pub fn str(&self, id: u32) -> &str {
        std::str::from_utf8(self.get(id)).expect("strings are checked for UTF-8 before they enter the arena")
    }

    pub fn push(&mut self, bytes: &[u8]) -> u32 {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len() as u32);
        self.ends.len() as u32 - 1
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn byte_len(&self) -> usize {
        self.bytes.len() + self.ends.len() * 4
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.varint(self.ends.len() as u64);
        let mut before = 0;
        let lengths: Vec<u32> = self.ends.iter().map(|end| end - std::mem::replace(&mut before, *end)).collect();
        out.packed_u32(&lengths);
        out.extend_from_slice(&self.bytes);
    }

    fn read(reader: &mut Cursor<'_>, text: bool) -> Result<Arena, Damaged> {
        let count = count(reader)?;
        let mut end = 0u32;
        let mut ends = reader.packed_u32(count, u32::MAX as usize)?;
        for length in &mut ends {
            end = end.checked_add(*length).ok_or(corrupt("an arena beyond 4 GiB"))?;
            *length = end;
        }
        let bytes = reader.take(end as usize)?.to_vec();
        if text {
            let all = std::str::from_utf8(&bytes).map_err(|_| corrupt("a string that is not UTF-8"))?;
            if !ends.iter().all(|end| all.is_char_boundary(*end as usize)) {
                return Err(corrupt("a string cut inside a character"));
            }
        }
        Ok(Arena { ends, bytes })
    }
}

/// Whether two short texts are equal. Keys and values are mostly below 32 bytes, often below 8 ("INFO", the empty key of a body), where
/// calling the library's comparison costs more than comparing.
#[inline]
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let word = |bytes: &[u8; 8]| u64::from_ne_bytes(*bytes);
    let half = |bytes: &[u8; 4]| u32::from_ne_bytes(*bytes);
    for (x, y) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0) {
        if word(x) != word(y) {
            return false;
        }
    }
    // What is left is compared as the last eight or four bytes, which may overlap with what was: no loop over single bytes.
    if let (Some(x), Some(y)) = (a.last_chunk::<8>(), b.last_chunk::<8>()) {
        return word(x) == word(y);
    }
    if let (Some(x), Some(y)) = (a.first_chunk::<4>(), b.first_chunk::<4>())
        && let (Some(last_x), Some(last_y)) = (a.last_chunk::<4>(), b.last_chunk::<4>())
    {
        return half(x) == half(y) && half(last_x) == half(last_y);
    }
    a.iter().zip(b).all(|(x, y)| x == y)
}

/// An arena in which equal strings have one ordinal.
#[derive(Default)]
pub struct Interner {
    arena: Arena,
    table: HashTable<u32>,
    hasher: foldhash::fast::RandomState,
}

impl Interner {
    /// With room for that many strings before its table has to grow; at most a few megabytes.
    pub fn with_capacity(strings: usize) -> Interner {
        const ROOM_MAX: usize = 1 << 19;
        Interner { table: HashTable::with_capacity(strings.min(ROOM_MAX)), ..Interner::default() }
    }

    #[inline]
    fn hash(&self, bytes: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(bytes);
        hasher.finish()
    }

    #[inline]
    pub fn find(&self, bytes: &[u8]) -> Option<u32> {
        self.table.find(self.hash(bytes), |id| self.arena.get(*id) == bytes).copied()
    }

    pub fn intern(&mut self, bytes: &[u8]) -> u32 {
        self.intern_checked(bytes, |_| true).expect("nothing is refused")
    }

    /// A new string enters only if `check` lets it; one that is there was checked before.
    #[inline]
    pub(crate) fn intern_checked(&mut self, bytes: &[u8], check: impl Fn(&[u8]) -> bool) -> Option<u32> {
        let hash = self.hash(bytes);
        if let Some(id) = self.table.find(hash, |id| same(self.arena.get(*id), bytes)) {
            return Some(*id);
        }
        if !check(bytes) {
            return None;
        }
        let id = self.arena.push(bytes);
        let (arena, hasher) = (&self.arena, &self.hasher);
        self.table.insert_unique(hash, id, |id| {
            let mut state = hasher.build_hasher();
            state.write(arena.get(*id));
            state.finish()
        });
        Some(id)
    }

    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Makes room for texts of so many bytes together.
    pub(crate) fn reserve_bytes(&mut self, bytes: usize) {
        self.arena.bytes.reserve(bytes);
    }

    /// Keeps a text without looking whether it is there: it gets an ordinal of its own.
    pub(crate) fn push_unasked(&mut self, text: &[u8]) -> u32 {
        self.arena.push(text)
    }

    pub fn into_arena(self) -> Arena {
        self.arena
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    pub field: Field,
    pub kind: Kind,
    /// The attribute's key; the empty string for other fields.
    pub key: u32,
}

#[derive(Clone, Copy, Debug)]
pub struct BatchResource {
    pub environment: u32,
    pub namespace: u32,
    pub name: u32,
    /// A blob: an encoded `Resource`.
    pub body: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane {
    pub context: u32,
    /// Span kind, severity number, or metric type.
    pub kind: u8,
    /// Span name, event name, or metric name.
    pub name: u32,
}

#[derive(Clone, Debug)]
pub struct Batch {
    pub signal: Signal,
    pub strings: Arena,
    pub blobs: Arena,
    pub wide: Vec<u64>,
    pub resources: Vec<BatchResource>,
    /// Blobs: encoded `Scope`s.
    pub scopes: Vec<u32>,
    /// (resource, scope)
    pub contexts: Vec<(u32, u32)>,
    pub lanes: Vec<Lane>,
    pub columns: Vec<Column>,
    /// Where each shape ends in `shape_columns`.
    pub shape_ends: Vec<u32>,
    pub shape_columns: Vec<u32>,
    pub trace_ids: Vec<[u8; 16]>,

    // One entry a row.
    pub lane: Vec<u32>,
    pub shape: Vec<u32>,
    /// 0 is "none", n is `trace_ids[n - 1]`.
    pub trace: Vec<u32>,
    pub span: Vec<u64>,
    pub parent: Vec<u64>,
    /// Spans: start. Logs: time. Points: time. Nanoseconds since the epoch.
    pub time: Vec<u64>,
    /// Spans: end − start. Logs: observed time − time. Points: time − start time. Nanoseconds, wrapping.
    pub duration: Vec<i64>,
    pub marks: Vec<u8>,
    /// Where a row's words begin in `values`.
    pub values_start: Vec<u32>,

    pub values: Vec<u32>,
}

/// A value of a row, still inside its batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ValueRef<'a> {
    Str(&'a str),
    Int(i64),
    Double(f64),
    Bool(bool),
    Bytes(&'a [u8]),
    Nested(&'a [u8]),
    Empty,
}

impl ValueRef<'_> {
    /// The value by itself.
    pub fn value(self) -> Value {
        match self {
            ValueRef::Str(text) => Value::Str(text.to_owned()),
            ValueRef::Int(value) => Value::Int(value),
            ValueRef::Double(value) => Value::Double(value),
            ValueRef::Bool(value) => Value::Bool(value),
            ValueRef::Bytes(bytes) => Value::Bytes(bytes.to_vec()),
            ValueRef::Nested(bytes) => Value::decode(&mut Cursor::new(bytes), 0).unwrap_or(Value::Empty),
            ValueRef::Empty => Value::Empty,
        }
    }
}

impl Batch {
    pub fn rows(&self) -> usize {
        self.lane.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lane.is_empty()
    }

    /// What it occupies in memory, for budgets.
    pub fn byte_len(&self) -> usize {
        self.strings.byte_len()
            + self.blobs.byte_len()
            + self.wide.len() * 8
            + self.trace_ids.len() * 16
            + self.rows() * (4 * 4 + 8 * 4 + 1)
            + self.values.len() * 4
            + 512
    }

    pub fn shape_of(&self, row: usize) -> &[u32] {
        self.shape_columns_of(self.shape[row])
    }

    pub fn shape_columns_of(&self, shape: u32) -> &[u32] {
        let shape = shape as usize;
        let start = if shape == 0 { 0 } else { self.shape_ends[shape - 1] as usize };
        &self.shape_columns[start..self.shape_ends[shape] as usize]
    }

    /// The columns of a row with their values, in the client's order.
    pub fn values_of(&self, row: usize) -> impl Iterator<Item = (Column, ValueRef<'_>)> {
        let start = self.values_start[row] as usize;
        self.shape_of(row).iter().enumerate().map(move |(at, column)| {
            let column = self.columns[*column as usize];
            (column, self.value_of(column.kind, self.values[start + at]))
        })
    }

    pub fn value_of(&self, kind: Kind, word: u32) -> ValueRef<'_> {
        match kind {
            Kind::Str => ValueRef::Str(self.strings.str(word)),
            Kind::Small => ValueRef::Int(word.into()),
            Kind::Wide => ValueRef::Int(self.wide[word as usize] as i64),
            Kind::Double => ValueRef::Double(f64::from_bits(self.wide[word as usize])),
            Kind::Bool => ValueRef::Bool(word != 0),
            Kind::Bytes => ValueRef::Bytes(self.blobs.get(word)),
            Kind::Nested => ValueRef::Nested(self.blobs.get(word)),
            Kind::Empty => ValueRef::Empty,
        }
    }

    pub fn trace_id(&self, row: usize) -> Option<TraceId> {
        self.trace[row].checked_sub(1).map(|ordinal| TraceId(self.trace_ids[ordinal as usize]))
    }

    pub fn span_id(&self, row: usize) -> SpanId {
        SpanId(self.span[row])
    }

    /// Spans end here; logs were observed here.
    pub fn end(&self, row: usize) -> u64 {
        self.time[row].wrapping_add_signed(self.duration[row])
    }

    pub fn service(&self, resource: u32) -> Service {
        let resource = &self.resources[resource as usize];
        Service {
            name: self.strings.str(resource.name).to_owned(),
            namespace: self.strings.str(resource.namespace).to_owned(),
            environment: self.strings.str(resource.environment).to_owned(),
        }
    }

    pub fn resource_of(&self, row: usize) -> u32 {
        self.contexts[self.lanes[self.lane[row] as usize].context as usize].0
    }

    /// As a journal record's body; `RECORD_VERSION` says how it is laid out.
    pub fn to_bytes(&self) -> Vec<u8> {
        let rows = self.rows();
        let mut out = Vec::with_capacity(self.strings.byte_len() + self.blobs.byte_len() + rows * 64 + self.values.len() * 2 + 256);
        out.push(self.signal as u8);
        out.varint(rows as u64);
        self.strings.write(&mut out);
        self.blobs.write(&mut out);
        out.varint(self.wide.len() as u64);
        out.packed(&self.wide);
        out.varint(self.resources.len() as u64);
        for resource in &self.resources {
            for id in [resource.environment, resource.namespace, resource.name, resource.body] {
                out.varint(id.into());
            }
        }
        out.varint(self.scopes.len() as u64);
        out.packed_u32(&self.scopes);
        out.varint(self.contexts.len() as u64);
        for (resource, scope) in &self.contexts {
            out.varint((*resource).into());
            out.varint((*scope).into());
        }
        out.varint(self.lanes.len() as u64);
        for lane in &self.lanes {
            out.varint(lane.context.into());
            out.push(lane.kind);
            out.varint(lane.name.into());
        }
        out.varint(self.columns.len() as u64);
        for column in &self.columns {
            out.push(column.field as u8);
            out.push(column.kind as u8);
            out.varint(column.key.into());
        }
        out.varint(self.shape_ends.len() as u64);
        out.packed_u32(&self.shape_ends);
        out.varint(self.shape_columns.len() as u64);
        out.packed_u32(&self.shape_columns);
        out.varint(self.trace_ids.len() as u64);
        out.extend_from_slice(self.trace_ids.as_flattened());
        out.packed_u32(&self.lane);
        out.packed_u32(&self.shape);
        out.packed_u32(&self.trace);
        out.packed(&self.span);
        out.packed(&self.parent);
        out.packed(&self.time);
        out.packed(&self.duration.iter().map(|d| zigzag(*d)).collect::<Vec<_>>());
        out.extend_from_slice(&self.marks);
        out.varint(self.values.len() as u64);
        out.packed_u32(&self.values);
        out
    }

    /// Reads a record of any version that was ever written. Whatever it returns is sound: every reference in it
    /// points at something, so the code behind it need not ask again.
    pub fn from_bytes(version: u32, bytes: &[u8]) -> Result<Batch, Damaged> {
        if version != RECORD_VERSION {
            return Err(corrupt("a journal record of a later version"));
        }
        let mut reader = Cursor::new(bytes);
        let r = &mut reader;
        let signal = Signal::from_code(r.byte()?).ok_or(corrupt("an unknown signal"))?;
        let rows = count(r)?;
        let strings = Arena::read(r, true)?;
        let blobs = Arena::read(r, false)?;
        let wide_len = count(r)?;
        let wide = r.packed(wide_len)?;
        let text = |r: &mut Cursor<'_>| below(r.varint()?, strings.len());
        let mut resources = Vec::new();
        for _ in 0..r.count()? {
            let (environment, namespace, name) = (text(r)?, text(r)?, text(r)?);
            resources.push(BatchResource { environment, namespace, name, body: below(r.varint()?, blobs.len())? });
        }
        let scope_count = count(r)?;
        let scopes = r.packed_u32(scope_count, blobs.len())?;
        let mut contexts = Vec::new();
        for _ in 0..r.count()? {
            contexts.push((below(r.varint()?, resources.len())?, below(r.varint()?, scopes.len())?));
        }
        let mut lanes = Vec::new();
        for _ in 0..r.count()? {
            lanes.push(Lane { context: below(r.varint()?, contexts.len())?, kind: r.byte()?, name: text(r)? });
        }
        let mut columns = Vec::new();
        for _ in 0..r.count()? {
            let field = Field::from_code(r.byte()?).ok_or(corrupt("an unknown field"))?;
            let kind = Kind::from_code(r.byte()?).ok_or(corrupt("an unknown kind of value"))?;
            columns.push(Column { field, kind, key: text(r)? });
        }
        let shape_count = count(r)?;
        let shape_ends = r.packed_u32(shape_count, usize::MAX)?;
        let columns_len = count(r)?;
        let shape_columns = r.packed_u32(columns_len, columns.len())?;
        if !shape_ends.is_sorted() || shape_ends.last().is_some_and(|end| *end as usize > columns_len) {
            return Err(corrupt("a shape beyond its columns"));
        }
        let trace_count = r.count()?;
        let (trace_ids, _) = r.take(trace_count.checked_mul(16).ok_or(corrupt("too many traces"))?)?.as_chunks::<16>();
        let trace_ids = trace_ids.to_vec();
        let lane = r.packed_u32(rows, lanes.len())?;
        let shape = r.packed_u32(rows, shape_count)?;
        let trace = r.packed_u32(rows, trace_count + 1)?;
        let span = r.packed(rows)?;
        let parent = r.packed(rows)?;
        let time = r.packed(rows)?;
        let duration = r.packed(rows)?.into_iter().map(unzigzag).collect();
        let marks = r.take(rows)?.to_vec();
        let values_len = count(r)?;
        let values = r.packed_u32(values_len, usize::MAX)?;
        let mut batch = Batch {
            signal,
            strings,
            blobs,
            wide,
            resources,
            scopes,
            contexts,
            lanes,
            columns,
            shape_ends,
            shape_columns,
            trace_ids,
            lane,
            shape,
            trace,
            span,
            parent,
            time,
            duration,
            marks,
            values_start: Vec::with_capacity(rows),
            values,
        };
        let mut at = 0usize;
        for row in 0..rows {
            batch.values_start.push(at as u32);
            let columns = batch.shape_of(row);
            let words = batch.values.get(at..at + columns.len()).ok_or(corrupt("a row without its values"))?;
            for (column, word) in columns.iter().zip(words) {
                let bound = match batch.columns[*column as usize].kind {
                    Kind::Str => batch.strings.len(),
                    Kind::Bytes | Kind::Nested => batch.blobs.len(),
                    Kind::Wide | Kind::Double => batch.wide.len(),
                    Kind::Small => 1 << 16,
                    Kind::Bool => 2,
                    Kind::Empty => 1,
                };
                below(u64::from(*word), bound)?;
            }
            at += columns.len();
        }
        Ok(batch)
    }
}

/// The layout that `Batch::to_bytes` writes.
pub const RECORD_VERSION: u32 = 1;

/// No record holds more rows, strings or values than this: sixteen million, the items of a request of 64 MiB at four
/// bytes each. It keeps a damaged count from asking for all of memory.
const COUNT_MAX: u64 = 1 << 24;

fn count(reader: &mut Cursor<'_>) -> Result<usize, Damaged> {
    below(reader.varint()?, COUNT_MAX as usize + 1).map(|count| count as usize)
}

fn below(value: u64, bound: usize) -> Result<u32, Damaged> {
    if value < bound as u64 { Ok(value as u32) } else { Err(corrupt("a reference to nothing")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn texts_are_the_same_when_their_bytes_are(a in prop::collection::vec(0u8..2, 0..20), b in prop::collection::vec(0u8..2, 0..20), at: prop::sample::Index) {
            prop_assert_eq!(same(&a, &b), a == b);
            let mut other = a.clone();
            prop_assert!(same(&a, &other));
            if !a.is_empty() {
                other[at.index(a.len())] ^= 4;
                prop_assert!(!same(&a, &other));
            }
        }
    }
}
