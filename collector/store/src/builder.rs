//! Builds a batch row by row: `place` a row, `push_…` its values in the client's order, then `finish_row` or `abandon_row`.
//!
//! Rows of one lane nearly always repeat the shape, the keys and most values of the row before; the builder compares with that row first and
//! hashes only what differs.

use crate::batch::{Arena, Batch, BatchResource, Column, Field, Interner, Kind, Lane, same};
use crate::{Service, Signal};
use hashbrown::HashTable;
use std::hash::{BuildHasher, Hasher};

/// A string of an item is not UTF-8.
#[derive(Debug, PartialEq, Eq)]
pub struct NotUtf8;

/// What a row says, apart from the values that were pushed before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Row {
    pub trace: [u8; 16],
    pub span: u64,
    pub parent: u64,
    pub time: u64,
    pub duration: i64,
    pub marks: u8,
}

/// What the collector wants to do with the values of an attribute key. Small numbers from 1 name values that it wants back when a row
/// ends; 0 is "nothing", and `REDACT` says that the value is a secret, of which only the fact that it was there is kept. Asked once for
/// each key of a request.
pub type Roles = std::sync::Arc<dyn Fn(&[u8]) -> u8 + Send + Sync>;
pub const ROLES: usize = 8;
pub const REDACT: u8 = u8::MAX;
/// What stands in the place of a secret.
pub const REDACTED: &str = "[redacted]";

const NO_ROW: u32 = u32::MAX;

pub struct BatchBuilder {
    signal: Signal,
    strings: Interner,
    blobs: Arena,
    wide: Vec<u64>,
    resources: Vec<BatchResource>,
    scopes: Vec<u32>,
    contexts: Vec<(u32, u32)>,
    lanes: Vec<Lane>,
    lane_table: HashTable<u32>,
    /// The latest row of each lane, with which the next one is compared.
    lane_row: Vec<u32>,
    columns: Vec<Column>,
    column_roles: Vec<u8>,
    /// How many texts in a row were new to the batch, by column; see `text`.
    column_fresh: Vec<u8>,
    column_table: HashTable<u32>,
    shape_ends: Vec<u32>,
    shape_columns: Vec<u32>,
    shape_table: HashTable<u32>,
    trace_ids: Vec<[u8; 16]>,
    trace_table: HashTable<u32>,
    hasher: foldhash::fast::RandomState,
    roles: Roles,
    redacted: u64,

    lane: Vec<u32>,
    shape: Vec<u32>,
    trace: Vec<u32>,
    span: Vec<u64>,
    parent: Vec<u64>,
    time: Vec<u64>,
    duration: Vec<i64>,
    marks: Vec<u8>,
    values_start: Vec<u32>,
    values: Vec<u32>,

    // The row under construction.
    current_lane: u32,
    current: Vec<u32>,
    row_values: usize,
    facts: [Fact; ROLES],
    // The row it is compared with: where its columns and values are, and how many columns it has.
    like_columns: usize,
    like_values: usize,
    like_len: usize,
    like_at: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Fact {
    #[default]
    Absent,
    Int(i64),
    /// A string of the batch under construction.
    Str(u32),
}

impl BatchBuilder {
    /// `bytes` is the size of the request body, from which first capacities are guessed.
    pub fn new(signal: Signal, bytes: usize, roles: Roles) -> BatchBuilder {
        // Items as they usually come: a log of 300 bytes, a span of 500.
        let rows = (bytes / if signal == Signal::Logs { 256 } else { 400 }).clamp(4, 1 << 16);
        let mut builder = BatchBuilder {
            signal,
            strings: Interner::with_capacity(rows),
            blobs: Arena::default(),
            wide: Vec::new(),
            resources: Vec::new(),
            scopes: Vec::new(),
            contexts: Vec::new(),
            lanes: Vec::new(),
            lane_table: HashTable::new(),
            lane_row: Vec::new(),
            columns: Vec::new(),
            column_roles: Vec::new(),
            column_fresh: Vec::new(),
            column_table: HashTable::new(),
            shape_ends: Vec::new(),
            shape_columns: Vec::new(),
            shape_table: HashTable::new(),
            trace_ids: Vec::new(),
            trace_table: HashTable::with_capacity(if signal == Signal::Metrics { 0 } else { rows }),
            hasher: foldhash::fast::RandomState::default(),
            roles,
            redacted: 0,
            lane: Vec::with_capacity(rows),
            shape: Vec::with_capacity(rows),
            trace: Vec::with_capacity(rows),
            span: Vec::with_capacity(rows),
            parent: Vec::with_capacity(rows),
            time: Vec::with_capacity(rows),
            duration: Vec::with_capacity(rows),
            marks: Vec::with_capacity(rows),
            values_start: Vec::with_capacity(rows),
            values: Vec::with_capacity(rows * 12),
            current_lane: 0,
            current: Vec::with_capacity(32),
            row_values: 0,
            facts: [Fact::Absent; ROLES],
            like_columns: 0,
            like_values: 0,
            like_len: 0,
            like_at: 0,
        };
        // Bodies of logs are half of a request, and hardly one of them comes twice.
        builder.strings.reserve_bytes(if signal == Signal::Logs { bytes / 2 } else { bytes / 5 });
        builder.strings.intern(b"");
        builder
    }

    pub fn rows(&self) -> usize {
        self.lane.len()
    }

    pub fn intern(&mut self, text: &[u8]) -> Result<u32, NotUtf8> {
        self.strings.intern_checked(text, |b| std::str::from_utf8(b).is_ok()).ok_or(NotUtf8)
    }

    pub fn string(&self, id: u32) -> &[u8] {
        self.strings.arena().get(id)
    }

    pub fn resource(&mut self, service: &Service, body: &[u8]) -> u32 {
        let environment = self.strings.intern(service.environment.as_bytes());
        let namespace = self.strings.intern(service.namespace.as_bytes());
        let name = self.strings.intern(service.name.as_bytes());
        let body = self.blobs.push(body);
        self.resources.push(BatchResource { environment, namespace, name, body });
        self.resources.len() as u32 - 1
    }

    pub fn scope(&mut self, body: &[u8]) -> u32 {
        let blob = self.blobs.push(body);
        self.scopes.push(blob);
        self.scopes.len() as u32 - 1
    }

    pub fn context(&mut self, resource: u32, scope: u32) -> u32 {
        self.contexts.push((resource, scope));
        self.contexts.len() as u32 - 1
    }

    /// Begins a row in its lane.
    #[inline]
    pub fn place(&mut self, context: u32, kind: u8, name: &[u8]) -> Result<(), NotUtf8> {
        self.current.clear();
        self.row_values = self.values.len();
        self.facts = [Fact::Absent; ROLES];
        let name = self.intern(name)?;
        let lane = self.lane_of(Lane { context, kind, name });
        self.current_lane = lane;
        self.like_at = 0;
        let row = self.lane_row[lane as usize];
        if row == NO_ROW {
            self.like_len = 0;
        } else {
            let shape = self.shape[row as usize] as usize;
            self.like_columns = if shape == 0 { 0 } else { self.shape_ends[shape - 1] as usize };
            self.like_len = self.shape_ends[shape] as usize - self.like_columns;
            self.like_values = self.values_start[row as usize] as usize;
        }
        Ok(())
    }

    fn lane_of(&mut self, lane: Lane) -> u32 {
        let hash = |hasher: &foldhash::fast::RandomState, lane: &Lane| {
            let mut state = hasher.build_hasher();
            state.write_u64(u64::from(lane.context) << 32 | u64::from(lane.name));
            state.write_u8(lane.kind);
            state.finish()
        };
        let code = hash(&self.hasher, &lane);
        if let Some(id) = self.lane_table.find(code, |id| self.lanes[*id as usize] == lane) {
            return *id;
        }
        let id = self.lanes.len() as u32;
        self.lanes.push(lane);
        self.lane_row.push(NO_ROW);
        let (lanes, hasher) = (&self.lanes, &self.hasher);
        self.lane_table.insert_unique(code, id, |id| hash(hasher, &lanes[*id as usize]));
        id
    }

    /// The column for a value, and the word that the row before had in it.
    #[inline]
    fn column(&mut self, field: Field, kind: Kind, key: &[u8]) -> Result<(u32, Option<u32>), NotUtf8> {
        // The same column as in the row before, or the next one if this row left one out.
        for at in self.like_at..self.like_len.min(self.like_at + 2) {
            let id = self.shape_columns[self.like_columns + at];
            let column = self.columns[id as usize];
            if column.kind == kind && column.field == field && same(self.strings.arena().get(column.key), key) {
                self.like_at = at + 1;
                return Ok((id, Some(self.values[self.like_values + at])));
            }
        }
        let key = self.intern(key)?;
        Ok((self.column_of(Column { field, kind, key }), None))
    }

    fn column_of(&mut self, column: Column) -> u32 {
        let hash = |hasher: &foldhash::fast::RandomState, c: &Column| {
            let mut state = hasher.build_hasher();
            state.write_u64(u64::from(c.key) << 16 | u64::from(c.field as u8) << 8 | u64::from(c.kind as u8));
            state.finish()
        };
        let code = hash(&self.hasher, &column);
        if let Some(id) = self.column_table.find(code, |id| self.columns[*id as usize] == column) {
            return *id;
        }
        let id = self.columns.len() as u32;
        let role = if column.field == Field::Attribute { (self.roles)(self.strings.arena().get(column.key)) } else { 0 };
        self.columns.push(column);
        self.column_roles.push(role);
        self.column_fresh.push(0);
        let (columns, hasher) = (&self.columns, &self.hasher);
        self.column_table.insert_unique(code, id, |id| hash(hasher, &columns[*id as usize]));
        id
    }

    /// The ordinal of a column's text. Where texts never repeat (log bodies, paths with ids) looking each up is half of the cost: after a
    /// run of new ones most are just kept, and one in a while is looked up to see whether that still holds.
    fn text(&mut self, column: u32, text: &[u8]) -> Result<u32, NotUtf8> {
        const RUN: u8 = 32;
        const UNASKED: u8 = 16;
        let fresh = &mut self.column_fresh[column as usize];
        if (RUN..RUN + UNASKED).contains(fresh) {
            *fresh += 1;
            std::str::from_utf8(text).map_err(|_| NotUtf8)?;
            return Ok(self.strings.push_unasked(text));
        }
        let known = self.strings.arena().len();
        let word = self.intern(text)?;
        let fresh = &mut self.column_fresh[column as usize];
        *fresh = if word as usize == known { (*fresh + 1).min(RUN) } else { 0 };
        Ok(word)
    }

    #[inline]
    pub fn push_str(&mut self, field: Field, key: &[u8], value: &[u8]) -> Result<(), NotUtf8> {
        let (column, before) = self.column(field, Kind::Str, key)?;
        let role = self.column_roles[column as usize];
        let value = if role == REDACT { self.redact(value) } else { value };
        let word = match before {
            Some(word) if same(self.strings.arena().get(word), value) => word,
            _ => self.text(column, value)?,
        };
        self.push(column, word);
        self.note(role, Fact::Str(word));
        Ok(())
    }

    /// Counts a secret; what stands for it.
    #[cold]
    fn redact(&mut self, value: &[u8]) -> &'static [u8] {
        self.redacted += u64::from(value != REDACTED.as_bytes());
        REDACTED.as_bytes()
    }

    #[inline]
    fn note(&mut self, role: u8, fact: Fact) {
        if role != 0 && role != REDACT {
            self.facts[role as usize] = fact;
        }
    }

    /// The column for a value that is no text, or nothing when it is a secret: then its place is taken by a text.
    #[inline]
    fn column_unless_secret(&mut self, field: Field, kind: Kind, key: &[u8]) -> Result<Option<(u32, Option<u32>)>, NotUtf8> {
        let (column, before) = self.column(field, kind, key)?;
        if self.column_roles[column as usize] == REDACT {
            self.push_str(field, key, b"")?;
            return Ok(None);
        }
        Ok(Some((column, before)))
    }

    #[inline]
    pub fn push_int(&mut self, field: Field, key: &[u8], value: i64) -> Result<(), NotUtf8> {
        let small = u16::try_from(value);
        let kind = if small.is_ok() { Kind::Small } else { Kind::Wide };
        let Some((column, _)) = self.column_unless_secret(field, kind, key)? else { return Ok(()) };
        let word = match small {
            Ok(small) => small.into(),
            Err(_) => {
                self.wide.push(value as u64);
                self.wide.len() as u32 - 1
            }
        };
        self.push(column, word);
        self.note(self.column_roles[column as usize], Fact::Int(value));
        Ok(())
    }

    pub fn push_double(&mut self, field: Field, key: &[u8], value: f64) -> Result<(), NotUtf8> {
        if let Some((column, _)) = self.column_unless_secret(field, Kind::Double, key)? {
            self.wide.push(value.to_bits());
            self.push(column, self.wide.len() as u32 - 1);
        }
        Ok(())
    }

    pub fn push_bool(&mut self, field: Field, key: &[u8], value: bool) -> Result<(), NotUtf8> {
        if let Some((column, _)) = self.column_unless_secret(field, Kind::Bool, key)? {
            self.push(column, value.into());
        }
        Ok(())
    }

    pub fn push_empty(&mut self, field: Field, key: &[u8]) -> Result<(), NotUtf8> {
        if let Some((column, _)) = self.column_unless_secret(field, Kind::Empty, key)? {
            self.push(column, 0);
        }
        Ok(())
    }

    pub fn push_bytes(&mut self, field: Field, key: &[u8], value: &[u8]) -> Result<(), NotUtf8> {
        self.push_blob(field, Kind::Bytes, key, value)
    }

    /// `value` is an encoded `Value`, or a list of events or links.
    pub fn push_nested(&mut self, field: Field, key: &[u8], value: &[u8]) -> Result<(), NotUtf8> {
        self.push_blob(field, Kind::Nested, key, value)
    }

    fn push_blob(&mut self, field: Field, kind: Kind, key: &[u8], value: &[u8]) -> Result<(), NotUtf8> {
        let Some((column, before)) = self.column_unless_secret(field, kind, key)? else { return Ok(()) };
        let word = match before {
            Some(word) if self.blobs.get(word) == value => word,
            _ => self.blobs.push(value),
        };
        self.push(column, word);
        Ok(())
    }

    /// Secrets whose values were not kept.
    pub fn redacted(&self) -> u64 {
        self.redacted
    }

    #[inline]
    fn push(&mut self, column: u32, word: u32) {
        self.current.push(column);
        self.values.push(word);
    }

    /// How many values the row has so far.
    pub fn row_len(&self) -> usize {
        self.current.len()
    }

    pub fn fact(&self, role: u8) -> Fact {
        self.facts[role as usize]
    }

    #[inline]
    pub fn finish_row(&mut self, row: Row) {
        let shape = self.shape_of_current();
        let trace = self.trace_of(row.trace);
        self.lane_row[self.current_lane as usize] = self.lane.len() as u32;
        self.lane.push(self.current_lane);
        self.shape.push(shape);
        self.trace.push(trace);
        self.span.push(row.span);
        self.parent.push(row.parent);
        self.time.push(row.time);
        self.duration.push(row.duration);
        self.marks.push(row.marks);
        self.values_start.push(self.row_values as u32);
        // What is abandoned from here on is not this row's: an item may be refused before it is placed.
        self.row_values = self.values.len();
        self.current.clear();
    }

    /// Takes back what was pushed since `place`. Strings that only this row used stay: they cost bytes, not meaning.
    pub fn abandon_row(&mut self) {
        self.values.truncate(self.row_values);
        self.current.clear();
    }

    fn shape_of_current(&mut self) -> u32 {
        let row = self.lane_row[self.current_lane as usize];
        // Ten words or so: comparing them here costs less than calling the library's comparison.
        let like = &self.shape_columns[self.like_columns..self.like_columns + self.like_len];
        if row != NO_ROW && like.len() == self.current.len() && like.iter().zip(&self.current).all(|(a, b)| a == b) {
            return self.shape[row as usize];
        }
        fn columns<'a>(ends: &[u32], columns: &'a [u32], id: u32) -> &'a [u32] {
            let start = if id == 0 { 0 } else { ends[id as usize - 1] as usize };
            &columns[start..ends[id as usize] as usize]
        }
        let hash = |hasher: &foldhash::fast::RandomState, shape: &[u32]| {
            let mut state = hasher.build_hasher();
            state.write(bytemuck::must_cast_slice(shape));
            state.finish()
        };
        let code = hash(&self.hasher, &self.current);
        let (ends, all) = (&self.shape_ends, &self.shape_columns);
        if let Some(id) = self.shape_table.find(code, |id| columns(ends, all, *id) == self.current) {
            return *id;
        }
        let id = self.shape_ends.len() as u32;
        self.shape_columns.extend_from_slice(&self.current);
        self.shape_ends.push(self.shape_columns.len() as u32);
        let (ends, all, hasher) = (&self.shape_ends, &self.shape_columns, &self.hasher);
        self.shape_table.insert_unique(code, id, |id| hash(hasher, columns(ends, all, *id)));
        id
    }

    #[inline]
    fn trace_of(&mut self, trace: [u8; 16]) -> u32 {
        if trace == [0; 16] {
            return 0;
        }
        // Spans of a trace come side by side.
        if let Some(before) = self.trace.last().and_then(|t| t.checked_sub(1))
            && self.trace_ids[before as usize] == trace
        {
            return before + 1;
        }
        let hash = |hasher: &foldhash::fast::RandomState, id: &[u8; 16]| {
            let mut state = hasher.build_hasher();
            state.write_u128(u128::from_le_bytes(*id));
            state.finish()
        };
        let code = hash(&self.hasher, &trace);
        if let Some(ordinal) = self.trace_table.find(code, |ordinal| self.trace_ids[*ordinal as usize] == trace) {
            return ordinal + 1;
        }
        let ordinal = self.trace_ids.len() as u32;
        self.trace_ids.push(trace);
        let (ids, hasher) = (&self.trace_ids, &self.hasher);
        self.trace_table.insert_unique(code, ordinal, |ordinal| hash(hasher, &ids[*ordinal as usize]));
        ordinal + 1
    }

    pub fn finish(mut self) -> Batch {
        self.abandon_row();
        Batch {
            signal: self.signal,
            strings: self.strings.into_arena(),
            blobs: self.blobs,
            wide: self.wide,
            resources: self.resources,
            scopes: self.scopes,
            contexts: self.contexts,
            lanes: self.lanes,
            columns: self.columns,
            shape_ends: self.shape_ends,
            shape_columns: self.shape_columns,
            trace_ids: self.trace_ids,
            lane: self.lane,
            shape: self.shape,
            trace: self.trace,
            span: self.span,
            parent: self.parent,
            time: self.time,
            duration: self.duration,
            marks: self.marks,
            values_start: self.values_start,
            values: self.values,
        }
    }
}
