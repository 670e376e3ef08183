//! Writing a *block*: up to 65,536 rows of one signal, columnar, immutable, made from batches in one go.
//!
//! ```text
//! block row      directory | traces | filter            (BLOBs of the table `block`)
//! segment row    header_len(u32 LE) | header | chunk*   (BLOB of the table `segment`)
//!
//! directory :=   zstd( contexts(service, resource, scope ids of the partition)
//!                      segments(rows, errors, time min, time span, duration max, services) )
//! traces    :=   trace ids, 16 bytes each | frame( zig-zag deltas of each row's trace ordinal, in planes )
//! filter    :=   bloom filter of the trace ids, 10 bits a trace
//! header    :=   zstd( rows, lanes(service, kind, name, rows), columns(field, kind, key), shapes(columns),
//!                      chunks(inline bytes, or length in the file and length inflated) )
//! chunk     :=   a zstd frame with checksum, or the bytes themselves where zstd gains nothing
//! ```
//!
//! Rows are ordered by lane (service, kind, name) and within a lane by arrival, so times run forward and values repeat. A
//! segment is a stretch of that order that holds one big service or several small ones. The chunks of a segment
//! are, in this order: context, shape, span id, parent, time, duration, marks, and one for each column.
//!
//! - *trace*: ordinal of the row's trace among the block's, plus one; 0 is "none".
//! - *parent*: 0 none; n + 2: the n-th row of the same trace in this block; 1: an id of its own, in the order of rows.
//! - *time*: zig-zag delta to the row before, which is nearly always of the same lane. *duration*: zig-zag.
//! - *strings*: `0` dictionary in order of first use, then codes; `1` lengths, then bytes; `2` pattern: the text with its
//!   numbers taken out, as a dictionary with codes, then the numbers, a column for each place in each pattern.
//! - *shape*: which columns a row has, in the client's order; a column holds just the values of the rows that have it.

use crate::batch::{Batch, Column, Field, Interner, Kind, marks};
use crate::pack::{Writer, frame, write_planes, zigzag};
use crate::{Service, bloom::Bloom};
use hashbrown::{HashMap, HashTable};
use std::hash::BuildHasher;
use std::ops::Range;

pub const BLOCK_VERSION: u32 = 1;

/// Rows of a full block. Larger ones compress a little better and make reading one trace slower.
pub const BLOCK_ROWS: usize = 65_536;

/// A segment is cut here: reading one row inflates the chunks of its whole segment.
const SEGMENT_ROWS: usize = 4096;
/// Services with fewer rows than this share a segment, so that a thousand quiet services do not cost a thousand headers.
const SEGMENT_ROWS_OWN: usize = 1024;

/// zstd's level for chunks. On these columns 3 takes a tenth more of an encoder's time for the same bytes, 12 three times the time for 2 %
/// fewer.
const LEVEL: i32 = 1;

/// Chunks of at most this many bytes are kept in the header, which is compressed as a whole: a frame of its own costs 17.
const INLINE_BYTES_MAX: usize = 96;

pub(crate) const CHUNK_CONTEXT: usize = 0;
pub(crate) const CHUNK_SHAPE: usize = 1;
pub(crate) const CHUNK_SPAN: usize = 2;
pub(crate) const CHUNK_PARENT: usize = 3;
pub(crate) const CHUNK_TIME: usize = 4;
pub(crate) const CHUNK_DURATION: usize = 5;
pub(crate) const CHUNK_MARKS: usize = 6;
pub(crate) const CHUNK_COLUMNS: usize = 7;

pub(crate) const STRINGS_DICTIONARY: u8 = 0;
pub(crate) const STRINGS_RAW: u8 = 1;
pub(crate) const STRINGS_PATTERN: u8 = 2;

/// Stands for a number in a pattern. Texts that contain it are not split.
pub(crate) const PATTERN_HOLE: u8 = 0;

/// Gives the ids under which a partition knows services, resources and scopes.
pub trait Dictionary {
    fn service(&mut self, service: &Service) -> u32;
    fn resource(&mut self, body: &[u8]) -> u32;
    fn scope(&mut self, body: &[u8]) -> u32;
}

#[derive(Debug)]
pub struct EncodedBlock {
    pub rows: usize,
    pub time_min: u64,
    pub time_max: u64,
    pub directory: Vec<u8>,
    pub traces: Vec<u8>,
    pub filter: Vec<u8>,
    pub segments: Vec<Vec<u8>>,
}

pub(crate) fn kind_in_block(kind: Kind) -> Kind {
    if kind == Kind::Small { Kind::Wide } else { kind }
}

/// All rows of a block in its order, with references that are the block's. Batches are read from end to end once to fill it: gathering each
/// column from them, a row here and a row there, waits for memory at every step.
#[derive(Default)]
struct Rows {
    contexts: Vec<u32>,
    /// 0 is "none", n is `trace_ids[n - 1]`.
    traces: Vec<u32>,
    spans: Vec<u64>,
    parents: Vec<u64>,
    times: Vec<u64>,
    durations: Vec<i64>,
    marks: Vec<u8>,
    shapes: Vec<u32>,
    /// Where the row was: batch and row.
    refs: Vec<(u32, u32)>,
}

/// A text of a batch that has no ordinal in the block yet: one that was only seen as a body, or is about to be looked up.
const UNASKED: u32 = u32::MAX;
const BODY: u32 = u32::MAX - 1;

/// Marks the texts of a batch that are bodies of logs. Hardly one of them comes twice, so that looking each up would be for nothing: in
/// their column they are kept as patterns first, and looked up only if that fails.
fn mark_bodies(batch: &Batch, strings: &mut [u32]) {
    let body = |column: &u32| matches!(Word::of(&batch.columns[*column as usize]), Word::Body);
    let places: Vec<Option<usize>> =
        (0..batch.shape_ends.len() as u32).map(|shape| batch.shape_columns_of(shape).iter().position(body)).collect();
    if places.iter().all(Option::is_none) {
        return;
    }
    for (shape, start) in batch.shape.iter().zip(&batch.values_start) {
        if let Some(place) = places[*shape as usize] {
            strings[batch.values[*start as usize + place] as usize] = BODY;
        }
    }
}

/// A blob or text of a batch.
fn reference(batch: u32, ordinal: u32) -> u64 {
    u64::from(batch) << 32 | u64::from(ordinal)
}

/// Finds trace ids by ordinal. The ids are not in the table: of logs each may have a trace of its own, and then most of what looking them up
/// costs is fetching the table's memory.
struct Traces {
    table: HashTable<u32>,
    hasher: foldhash::fast::RandomState,
}

impl Traces {
    fn with_room(traces: usize) -> Traces {
        Traces { table: HashTable::with_capacity(traces), hasher: foldhash::fast::RandomState::default() }
    }

    /// The ordinal of a trace id among `ids`, from 1; it is added if it is new.
    fn ordinal(&mut self, id: &[u8; 16], ids: &mut Vec<[u8; 16]>) -> u32 {
        let hash = |id: &[u8; 16]| self.hasher.hash_one(u128::from_le_bytes(*id));
        let code = hash(id);
        if let Some(known) = self.table.find(code, |ordinal| ids[*ordinal as usize - 1] == *id) {
            return *known;
        }
        ids.push(*id);
        let ordinal = ids.len() as u32;
        self.table.insert_unique(code, ordinal, |ordinal| hash(&ids[*ordinal as usize - 1]));
        ordinal
    }
}

/// Per batch: what its references mean in the block.
struct Mapped<'a> {
    batch: &'a Batch,
    /// `UNASKED` where it has not been looked up.
    strings: Vec<u32>,
    lanes: Vec<u32>,
    /// The block's context of each lane of the batch.
    lane_contexts: Vec<u32>,
    traces: Vec<u32>,
    shapes: Vec<u32>,
    /// Block column and what its words are, for each entry of `shape_columns`.
    plan: Vec<(u32, Word)>,
}

/// What a batch's word for a value becomes.
#[derive(Clone, Copy)]
enum Word {
    Number,
    Wide,
    /// The block's ordinal of the text.
    Text,
    /// Batch and ordinal: see `mark_bodies`.
    Body,
    /// Batch and ordinal.
    Blob,
}

impl Word {
    fn of(column: &Column) -> Word {
        match column.kind {
            Kind::Str if column.field == Field::Body => Word::Body,
            Kind::Str => Word::Text,
            Kind::Small | Kind::Bool | Kind::Empty => Word::Number,
            Kind::Wide | Kind::Double => Word::Wide,
            Kind::Bytes | Kind::Nested => Word::Blob,
        }
    }
}

struct BlockLane {
    service: u32,
    kind: u8,
    name: u32,
    rows: usize,
}

/// Encodes all rows of `batches` (at most a few blocks' worth) as one block. Pure but for `dictionary`.
pub fn encode(batches: &[&Batch], dictionary: &mut dyn Dictionary) -> EncodedBlock {
    Encoder::new(batches, dictionary).encode()
}

struct Encoder<'a> {
    mapped: Vec<Mapped<'a>>,
    strings: Interner,
    /// Ids of the partition: (service, resource, scope).
    contexts: Vec<(u32, u32, u32)>,
    lanes: Vec<BlockLane>,
    columns: Vec<Column>,
    shapes: Vec<Vec<u32>>,
    trace_ids: Vec<[u8; 16]>,
    rows: usize,
    compressor: zstd::bulk::Compressor<'static>,
    compressed: Vec<u8>,
    /// Scratch for dictionaries: for a string of the block, when it was last seen and under which code.
    codes: Vec<(u32, u32)>,
    epoch: u32,
    service_order: HashMap<u32, Service>,
}

impl<'a> Encoder<'a> {
    fn new(batches: &[&'a Batch], dictionary: &mut dyn Dictionary) -> Encoder<'a> {
        let mut compressor = zstd::bulk::Compressor::new(LEVEL).expect("the level is one of zstd's");
        compressor.include_checksum(true).expect("zstd knows checksums");
        compressor.include_contentsize(false).expect("zstd can leave the size out");
        let mut encoder = Encoder {
            mapped: Vec::with_capacity(batches.len()),
            strings: Interner::with_capacity(batches.iter().map(|b| b.strings.len()).sum()),
            contexts: Vec::new(),
            lanes: Vec::new(),
            columns: Vec::new(),
            shapes: Vec::new(),
            trace_ids: Vec::new(),
            rows: 0,
            compressor,
            compressed: Vec::new(),
            codes: Vec::new(),
            epoch: 0,
            service_order: HashMap::new(),
        };
        let mut contexts = HashMap::new();
        let mut lanes = HashMap::new();
        let mut columns = HashMap::new();
        let mut shapes = HashMap::new();
        let mut traces = Traces::with_room(batches.iter().map(|b| b.trace_ids.len()).sum::<usize>().min(BLOCK_ROWS));
        for batch in batches {
            let mut strings = vec![UNASKED; batch.strings.len()];
            mark_bodies(batch, &mut strings);
            for (id, ordinal) in strings.iter_mut().enumerate() {
                *ordinal = if *ordinal == BODY { UNASKED } else { encoder.strings.intern(batch.strings.get(id as u32)) };
            }
            for named in batch.lanes.iter().map(|lane| lane.name).chain(batch.columns.iter().map(|column| column.key)) {
                let text = batch.strings.get(named);
                let ordinal = &mut strings[named as usize];
                if *ordinal == UNASKED {
                    *ordinal = encoder.strings.intern(text);
                }
            }
            let batch_contexts: Vec<u32> = batch
                .contexts
                .iter()
                .map(|(resource, scope)| {
                    let service = batch.service(*resource);
                    let id = dictionary.service(&service);
                    encoder.service_order.entry(id).or_insert(service);
                    let body = batch.resources[*resource as usize].body;
                    let key =
                        (id, dictionary.resource(batch.blobs.get(body)), dictionary.scope(batch.blobs.get(batch.scopes[*scope as usize])));
                    *contexts.entry(key).or_insert_with(|| {
                        encoder.contexts.push(key);
                        encoder.contexts.len() as u32 - 1
                    })
                })
                .collect();
            let batch_lanes = batch
                .lanes
                .iter()
                .map(|lane| {
                    let service = encoder.contexts[batch_contexts[lane.context as usize] as usize].0;
                    let name = strings[lane.name as usize];
                    *lanes.entry((service, lane.kind, name)).or_insert_with(|| {
                        encoder.lanes.push(BlockLane { service, kind: lane.kind, name, rows: 0 });
                        encoder.lanes.len() as u32 - 1
                    })
                })
                .collect();
            let batch_columns: Vec<u32> = batch
                .columns
                .iter()
                .map(|column| {
                    let column = Column { kind: kind_in_block(column.kind), key: strings[column.key as usize], ..*column };
                    *columns.entry((column.field, column.kind, column.key)).or_insert_with(|| {
                        encoder.columns.push(column);
                        encoder.columns.len() as u32 - 1
                    })
                })
                .collect();
            let batch_shapes = (0..batch.shape_ends.len() as u32)
                .map(|shape| {
                    let shape: Vec<u32> = batch.shape_columns_of(shape).iter().map(|c| batch_columns[*c as usize]).collect();
                    *shapes.entry(shape).or_insert_with_key(|shape| {
                        encoder.shapes.push(shape.clone());
                        encoder.shapes.len() as u32 - 1
                    })
                })
                .collect();
            let plan = batch.shape_columns.iter().map(|c| (batch_columns[*c as usize], Word::of(&batch.columns[*c as usize]))).collect();
            let batch_traces =
                std::iter::once(0).chain(batch.trace_ids.iter().map(|id| traces.ordinal(id, &mut encoder.trace_ids))).collect();
            encoder.rows += batch.rows();
            encoder.mapped.push(Mapped {
                batch,
                strings,
                lanes: batch_lanes,
                lane_contexts: batch.lanes.iter().map(|lane| batch_contexts[lane.context as usize]).collect(),
                traces: batch_traces,
                shapes: batch_shapes,
                plan,
            });
        }
        encoder
    }

    fn encode(mut self) -> EncodedBlock {
        let (rows, lane_order) = self.sort();
        let parents = self.parent_codes(&rows);

        let mut directory = Vec::new();
        directory.varint(self.contexts.len() as u64);
        for (service, resource, scope) in &self.contexts {
            for id in [service, resource, scope] {
                directory.varint((*id).into());
            }
        }
        let cuts = self.cut(&lane_order);
        directory.varint(cuts.len() as u64);
        let mut segments = Vec::with_capacity(cuts.len());
        let (mut time_min, mut time_max) = (u64::MAX, 0);
        let mut start = 0;
        for cut in cuts {
            let range = start..start + cut.rows;
            start = range.end;
            let facts = rows.facts(range.clone());
            directory.varint(cut.rows as u64);
            directory.varint(facts.errors);
            directory.varint(facts.time_min);
            directory.varint(facts.time_max - facts.time_min);
            directory.varint(facts.duration_max);
            let mut services: Vec<u32> = cut.lanes.iter().map(|(lane, _)| self.lanes[*lane as usize].service).collect();
            services.dedup();
            directory.varint(services.len() as u64);
            for service in services {
                directory.varint(service.into());
            }
            time_min = time_min.min(facts.time_min);
            time_max = time_max.max(facts.time_max);
            segments.push(self.segment(&rows, range, &cut, &parents));
        }

        let mut traces = Vec::with_capacity(self.trace_ids.len() * 16 + self.rows);
        traces.varint(self.trace_ids.len() as u64);
        traces.extend_from_slice(self.trace_ids.as_flattened());
        let mut before = 0i64;
        let deltas: Vec<u64> = rows.traces.iter().map(|t| zigzag(i64::from(*t) - std::mem::replace(&mut before, (*t).into()))).collect();
        let mut column = Vec::new();
        write_planes(&mut column, &deltas);
        traces.varint(column.len() as u64);
        traces.extend(self.compressor.compress(&column).expect("zstd compresses into memory"));

        let mut filter = Bloom::sized(self.trace_ids.len());
        for id in &self.trace_ids {
            filter.insert(id);
        }
        EncodedBlock {
            rows: self.rows,
            time_min: if self.rows == 0 { 0 } else { time_min },
            time_max,
            directory: frame(&directory),
            traces,
            filter: filter.into_bytes(),
            segments,
        }
    }

    /// All rows by lane, and the lanes in their order.
    fn sort(&mut self) -> (Rows, Vec<u32>) {
        for mapped in &self.mapped {
            for lane in &mapped.batch.lane {
                self.lanes[mapped.lanes[*lane as usize] as usize].rows += 1;
            }
        }
        let mut lane_order: Vec<u32> = (0..self.lanes.len() as u32).filter(|lane| self.lanes[*lane as usize].rows > 0).collect();
        // By name, not by id: the same rows give the same block, whatever the partition saw before.
        lane_order.sort_by(|a, b| {
            let [a, b] = [a, b].map(|lane| &self.lanes[*lane as usize]);
            let key = |lane: &BlockLane| (&self.service_order[&lane.service], lane.kind, self.strings.arena().get(lane.name));
            key(a).cmp(&key(b))
        });
        let mut next = vec![0usize; self.lanes.len()];
        let mut at = 0;
        for lane in &lane_order {
            next[*lane as usize] = at;
            at += self.lanes[*lane as usize].rows;
        }
        let mut rows = Rows {
            contexts: vec![0; self.rows],
            traces: vec![0; self.rows],
            spans: vec![0; self.rows],
            parents: vec![0; self.rows],
            times: vec![0; self.rows],
            durations: vec![0; self.rows],
            marks: vec![0; self.rows],
            shapes: vec![0; self.rows],
            refs: vec![(0, 0); self.rows],
        };
        for (number, mapped) in self.mapped.iter().enumerate() {
            let batch = mapped.batch;
            for row in 0..batch.rows() {
                let lane = batch.lane[row] as usize;
                let slot = &mut next[mapped.lanes[lane] as usize];
                rows.contexts[*slot] = mapped.lane_contexts[lane];
                rows.traces[*slot] = mapped.traces[batch.trace[row] as usize];
                rows.spans[*slot] = batch.span[row];
                rows.parents[*slot] = batch.parent[row];
                rows.times[*slot] = batch.time[row];
                rows.durations[*slot] = batch.duration[row];
                rows.marks[*slot] = batch.marks[row];
                rows.shapes[*slot] = mapped.shapes[batch.shape[row] as usize];
                rows.refs[*slot] = (number as u32, row as u32);
                *slot += 1;
            }
        }
        (rows, lane_order)
    }

    /// What stands for the parent of each row (see the top of the file).
    fn parent_codes(&self, rows: &Rows) -> Vec<u64> {
        if rows.parents.iter().all(|parent| *parent == 0) {
            return vec![0; self.rows]; // logs, and points
        }
        // The span ids of each trace side by side, so that a parent is found by looking at its few neighbours.
        let mut starts = vec![0u32; self.trace_ids.len() + 2];
        for trace in &rows.traces {
            starts[*trace as usize + 1] += 1;
        }
        for trace in 1..starts.len() {
            starts[trace] += starts[trace - 1];
        }
        let mut fill = starts.clone();
        let mut spans = vec![0u64; self.rows];
        for (span, trace) in rows.spans.iter().zip(&rows.traces) {
            let slot = &mut fill[*trace as usize];
            spans[*slot as usize] = *span;
            *slot += 1;
        }
        // Searching a trace of a million spans by looking at each would take for ever.
        const SCAN_MAX: usize = 256;
        let mut large: HashMap<u32, HashMap<u64, u32>> = HashMap::new();
        rows.parents
            .iter()
            .zip(&rows.traces)
            .map(|(parent, trace)| {
                if *parent == 0 {
                    return 0;
                }
                let family = &spans[starts[*trace as usize] as usize..starts[*trace as usize + 1] as usize];
                let rank = if *trace == 0 {
                    None
                } else if family.len() <= SCAN_MAX {
                    family.iter().position(|span| span == parent)
                } else {
                    let ranks = large
                        .entry(*trace)
                        .or_insert_with(|| family.iter().enumerate().rev().map(|(rank, span)| (*span, rank as u32)).collect());
                    ranks.get(parent).map(|rank| *rank as usize)
                };
                rank.map_or(1, |rank| rank as u64 + 2)
            })
            .collect()
    }

    fn cut(&self, lane_order: &[u32]) -> Vec<Cut> {
        let mut cuts: Vec<Cut> = Vec::new();
        let mut open = Cut::default();
        let mut at = 0;
        while at < lane_order.len() {
            let service = self.lanes[lane_order[at] as usize].service;
            let end = at + lane_order[at..].iter().take_while(|lane| self.lanes[**lane as usize].service == service).count();
            let rows: usize = lane_order[at..end].iter().map(|lane| self.lanes[*lane as usize].rows).sum();
            if rows >= SEGMENT_ROWS_OWN || open.rows + rows > SEGMENT_ROWS {
                open.close(&mut cuts);
            }
            // A big service is cut into equal parts; the cut may go through a lane.
            let part = rows.div_ceil(rows.div_ceil(SEGMENT_ROWS));
            for lane in &lane_order[at..end] {
                let mut left = self.lanes[*lane as usize].rows;
                while left > 0 {
                    let take = left.min(if rows > SEGMENT_ROWS { part - open.rows } else { left });
                    open.lanes.push((*lane, take));
                    open.rows += take;
                    left -= take;
                    if rows > SEGMENT_ROWS && open.rows >= part {
                        open.close(&mut cuts);
                    }
                }
            }
            if rows >= SEGMENT_ROWS_OWN {
                open.close(&mut cuts);
            }
            at = end;
        }
        open.close(&mut cuts);
        cuts
    }

    fn segment(&mut self, rows: &Rows, range: Range<usize>, cut: &Cut, parents: &[u64]) -> Vec<u8> {
        let parents = &parents[range.clone()];
        let contexts: Vec<u64> = rows.contexts[range.clone()].iter().map(|context| (*context).into()).collect();
        let spans: Vec<[u8; 8]> = rows.spans[range.clone()].iter().map(|span| span.to_be_bytes()).collect();
        let strangers: Vec<[u8; 8]> = parents
            .iter()
            .zip(&rows.parents[range.clone()])
            .filter(|(code, _)| **code == 1)
            .map(|(_, parent)| parent.to_be_bytes())
            .collect();
        let mut before = 0i64;
        let times: Vec<u64> = rows.times[range.clone()]
            .iter()
            .map(|time| zigzag((*time as i64).wrapping_sub(std::mem::replace(&mut before, *time as i64))))
            .collect();
        let durations: Vec<u64> = rows.durations[range.clone()].iter().map(|duration| zigzag(*duration)).collect();
        let row_marks: Vec<u64> = rows.marks[range.clone()].iter().map(|marks| (*marks).into()).collect();

        let mut shape_local = vec![u32::MAX; self.shapes.len()];
        let mut used_shapes = Vec::new();
        let mut shapes = Vec::with_capacity(range.len());
        let mut columns: Vec<Vec<u64>> = vec![Vec::new(); self.columns.len()];
        let mut used_columns = Vec::new();
        for row in range.clone() {
            let shape = rows.shapes[row] as usize;
            if shape_local[shape] == u32::MAX {
                shape_local[shape] = used_shapes.len() as u32;
                used_shapes.push(shape as u32);
            }
            shapes.push(u64::from(shape_local[shape]));
            let (number, at) = rows.refs[row];
            let mapped = &mut self.mapped[number as usize];
            let batch = mapped.batch;
            let batch_shape = batch.shape[at as usize] as usize;
            let from = if batch_shape == 0 { 0 } else { batch.shape_ends[batch_shape - 1] as usize };
            let plan = &mapped.plan[from..batch.shape_ends[batch_shape] as usize];
            let words = &batch.values[batch.values_start[at as usize] as usize..][..plan.len()];
            for ((column, what), word) in plan.iter().zip(words) {
                let values = &mut columns[*column as usize];
                if values.is_empty() {
                    used_columns.push(*column);
                    values.reserve(range.end - row);
                }
                values.push(match what {
                    Word::Number => (*word).into(),
                    Word::Wide => batch.wide[*word as usize],
                    Word::Text => {
                        let ordinal = &mut mapped.strings[*word as usize];
                        if *ordinal == UNASKED {
                            *ordinal = self.strings.intern(batch.strings.get(*word));
                        }
                        (*ordinal).into()
                    }
                    Word::Body | Word::Blob => reference(number, *word),
                });
            }
        }

        let mut header = Vec::new();
        header.varint(range.len() as u64);
        header.varint(cut.lanes.len() as u64);
        for (lane, count) in &cut.lanes {
            let lane = &self.lanes[*lane as usize];
            header.varint(lane.service.into());
            header.push(lane.kind);
            header.text(self.strings.arena().get(lane.name));
            header.varint(*count as u64);
        }
        header.varint(used_columns.len() as u64);
        for column in &used_columns {
            let column = self.columns[*column as usize];
            header.push(column.field as u8);
            header.push(column.kind as u8);
            header.text(self.strings.arena().get(column.key));
        }
        let mut column_local = vec![0u64; self.columns.len()];
        for (local, column) in used_columns.iter().enumerate() {
            column_local[*column as usize] = local as u64;
        }
        header.varint(used_shapes.len() as u64);
        for shape in &used_shapes {
            let shape = &self.shapes[*shape as usize];
            header.varint(shape.len() as u64);
            for column in shape {
                header.varint(column_local[*column as usize]);
            }
        }

        let mut body = Vec::with_capacity(range.len() * 40);
        let mut raw = Vec::new();
        let mut chunk = |encoder: &mut Self, raw: &mut Vec<u8>| {
            encoder.chunk(&mut header, &mut body, raw);
            raw.clear();
        };
        write_planes(&mut raw, &contexts);
        chunk(self, &mut raw);
        write_planes(&mut raw, &shapes);
        chunk(self, &mut raw);
        if spans.iter().any(|span| *span != [0; 8]) {
            raw.extend_from_slice(spans.as_flattened());
        }
        chunk(self, &mut raw);
        write_planes(&mut raw, parents);
        raw.extend_from_slice(strangers.as_flattened());
        chunk(self, &mut raw);
        write_planes(&mut raw, &times);
        chunk(self, &mut raw);
        write_planes(&mut raw, &durations);
        chunk(self, &mut raw);
        write_planes(&mut raw, &row_marks);
        chunk(self, &mut raw);
        for column in used_columns {
            let values = &columns[column as usize];
            let column = self.columns[column as usize];
            match column.kind {
                Kind::Str if column.field == Field::Body => self.write_bodies(values, &mut raw),
                Kind::Str => self.write_strings(values, &mut raw),
                Kind::Bytes | Kind::Nested => {
                    let blob = |word: &u64| self.mapped[(*word >> 32) as usize].batch.blobs.get(*word as u32);
                    write_raw_strings(values.iter().map(blob), &mut raw);
                }
                // The sign is flipped so that order is kept and small numbers of both signs share a narrow range.
                Kind::Small | Kind::Wide => write_planes(&mut raw, &values.iter().map(|v| v ^ 1 << 63).collect::<Vec<_>>()),
                Kind::Double | Kind::Bool | Kind::Empty => write_planes(&mut raw, values),
            }
            chunk(self, &mut raw);
        }

        let header = frame(&header);
        let mut out = Vec::with_capacity(4 + header.len() + body.len());
        out.extend_from_slice(&(header.len() as u32).to_le_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(&body);
        out
    }

    /// Appends a chunk: tag 0 inline, 1 a zstd frame, 2 the bytes as they are.
    fn chunk(&mut self, header: &mut Vec<u8>, body: &mut Vec<u8>, raw: &[u8]) {
        if raw.len() <= INLINE_BYTES_MAX {
            header.push(0);
            header.text(raw);
            return;
        }
        self.compressed.clear();
        self.compressed.reserve(zstd::zstd_safe::compress_bound(raw.len()));
        self.compressor.compress_to_buffer(raw, &mut self.compressed).expect("the buffer holds zstd's worst case");
        // Bytes that do not shrink are kept as they are, without a frame's checksum: span ids, random by nature.
        let stored = self.compressed.len() + raw.len() / 64 > raw.len();
        header.push(1 + u8::from(stored));
        let bytes: &[u8] = if stored { raw } else { &self.compressed };
        header.varint(bytes.len() as u64);
        header.varint(raw.len() as u64);
        body.extend_from_slice(bytes);
    }

    /// `references` are those of `Word::Body`.
    fn write_bodies(&mut self, references: &[u64], out: &mut Vec<u8>) {
        let text = |reference: &u64| self.mapped[(*reference >> 32) as usize].batch.strings.get(*reference as u32);
        let texts: Vec<&[u8]> = references.iter().map(text).collect();
        let texts = || texts.iter().copied();
        if references.len() >= PATTERN_ROWS_MIN && write_patterns(texts(), references.len(), out) {
            return;
        }
        let ordinals: Vec<u64> = texts().map(|text| self.strings.intern(text).into()).collect();
        if !self.write_repeated(&ordinals, out) {
            write_raw_strings(texts(), out);
        }
    }

    fn write_strings(&mut self, ordinals: &[u64], out: &mut Vec<u8>) {
        if !self.write_repeated(ordinals, out) {
            let arena = self.strings.arena();
            let texts = ordinals.iter().map(|id| arena.get(*id as u32));
            if !write_patterns(texts.clone(), ordinals.len(), out) {
                write_raw_strings(texts, out);
            }
        }
    }

    /// As a dictionary and codes. False, and nothing written, where the texts hardly repeat.
    fn write_repeated(&mut self, ordinals: &[u64], out: &mut Vec<u8>) -> bool {
        self.codes.resize(self.strings.arena().len(), (0, 0));
        self.epoch += 1;
        let mut distinct: Vec<u32> = Vec::new();
        let codes: Vec<u64> = ordinals
            .iter()
            .map(|id| {
                let slot = &mut self.codes[*id as usize];
                if slot.0 != self.epoch {
                    *slot = (self.epoch, distinct.len() as u32);
                    distinct.push(*id as u32);
                }
                slot.1.into()
            })
            .collect();
        if distinct.len() * 2 > ordinals.len() && ordinals.len() >= PATTERN_ROWS_MIN {
            return false;
        }
        let arena = self.strings.arena();
        out.push(STRINGS_DICTIONARY);
        write_dictionary(distinct.iter().map(|id| arena.get(*id)), distinct.len(), out);
        write_planes(out, &codes);
        true
    }
}

fn write_dictionary<'a>(strings: impl Iterator<Item = &'a [u8]> + Clone, count: usize, out: &mut Vec<u8>) {
    out.varint(count as u64);
    write_planes(out, &strings.clone().map(|s| s.len() as u64).collect::<Vec<_>>());
    for string in strings {
        out.extend_from_slice(string);
    }
}

fn write_raw_strings<'a>(strings: impl Iterator<Item = &'a [u8]> + Clone, out: &mut Vec<u8>) {
    out.push(STRINGS_RAW);
    write_planes(out, &strings.clone().map(|s| s.len() as u64).collect::<Vec<_>>());
    for string in strings {
        out.extend_from_slice(string);
    }
}

/// Fewer texts than this are a dictionary: there is nothing to be found in them.
const PATTERN_ROWS_MIN: usize = 4;

/// Numbers of more digits than this stay text: they would not fit.
const PATTERN_DIGITS_MAX: usize = 18;

/// Writes texts such as `/orders/4711` as one pattern and a column of numbers. False, and nothing written, where the
/// texts are too different for that.
fn write_patterns<'a>(strings: impl Iterator<Item = &'a [u8]>, count: usize, out: &mut Vec<u8>) -> bool {
    let patterns_max = (count / 8).max(1);
    let mut patterns = Interner::default();
    let mut places: Vec<Vec<Vec<u64>>> = Vec::new();
    let mut codes = Vec::with_capacity(count);
    let mut pattern = Vec::new();
    let mut numbers = Vec::new();
    for string in strings {
        if !split_numbers(string, &mut pattern, &mut numbers) {
            return false;
        }
        let code = patterns.intern(&pattern) as usize;
        if code == places.len() {
            if code == patterns_max {
                return false;
            }
            places.push(numbers.iter().map(|_| Vec::with_capacity(count / 8)).collect());
        }
        codes.push(code as u64);
        for (place, number) in places[code].iter_mut().zip(&numbers) {
            place.push(*number);
        }
    }
    out.push(STRINGS_PATTERN);
    let arena = patterns.arena();
    write_dictionary((0..arena.len() as u32).map(|id| arena.get(id)), arena.len(), out);
    write_planes(out, &codes);
    for place in places.iter().flatten() {
        write_planes(out, place);
    }
    true
}

/// Takes the numbers out of a text. A number with leading zeros stays text from its zeros on, since the zeros would be lost.
fn split_numbers(string: &[u8], pattern: &mut Vec<u8>, numbers: &mut Vec<u64>) -> bool {
    pattern.clear();
    numbers.clear();
    if memchr::memchr(PATTERN_HOLE, string).is_some() {
        return false;
    }
    let mut runs = Runs { text: string, at: 0, mask: digits_of(string) };
    let mut plain = 0;
    while let Some(start) = runs.next_digit() {
        let end = runs.end_of_digits(start);
        let digits = &string[start..end];
        if digits.len() <= PATTERN_DIGITS_MAX && (digits[0] != b'0' || digits.len() == 1) {
            pattern.extend_from_slice(&string[plain..start]);
            pattern.push(PATTERN_HOLE);
            numbers.push(number(&string[..end], digits));
            plain = end;
        }
    }
    pattern.extend_from_slice(&string[plain..]);
    true
}

/// One bit for each of the first 64 bytes, the lowest for the first: whether it is a digit. Eight bytes at a time, since texts of logs are a
/// good part of all that is sealed.
fn digits_of(text: &[u8]) -> u64 {
    let of_word = |bytes: [u8; 8]| {
        // A byte is a digit when it differs from '0' by less than ten; adding 118 carries into its top bit otherwise.
        let off = u64::from_le_bytes(bytes) ^ 0x3030_3030_3030_3030;
        let others = ((off & 0x7f7f_7f7f_7f7f_7f7f) + 0x7676_7676_7676_7676) | off;
        // The top bits of eight bytes, side by side.
        ((!others & 0x8080_8080_8080_8080) >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56
    };
    let (words, rest) = text[..text.len().min(64)].as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let tail = if rest.is_empty() { 0 } else { of_word(last) << (words.len() * 8) };
    words.iter().enumerate().fold(tail, |mask, (at, word)| mask | of_word(*word) << (at * 8))
}

/// Finds where digits begin and end, by masks of 64 bytes.
struct Runs<'a> {
    text: &'a [u8],
    /// The mask's first byte is here.
    at: usize,
    /// Digits that were not looked at yet.
    mask: u64,
}

impl Runs<'_> {
    fn advance(&mut self) -> bool {
        self.at += 64;
        self.mask = self.text.get(self.at..).map_or(0, digits_of);
        self.at < self.text.len()
    }

    fn next_digit(&mut self) -> Option<usize> {
        while self.mask == 0 {
            if !self.advance() {
                return None;
            }
        }
        Some(self.at + self.mask.trailing_zeros() as usize)
    }

    /// The end of the digits that begin at `start`, which `next_digit` gave.
    fn end_of_digits(&mut self, start: usize) -> usize {
        let mut from = start - self.at;
        loop {
            let others = !self.mask & u64::MAX << from;
            if others != 0 {
                let end = others.trailing_zeros();
                self.mask &= u64::MAX << end;
                return (self.at + end as usize).min(self.text.len());
            }
            from = 0;
            if !self.advance() {
                return self.text.len();
            }
        }
    }
}

/// The value of `digits`, with which `text` ends.
fn number(text: &[u8], digits: &[u8]) -> u64 {
    match text.last_chunk::<8>() {
        Some(last) if digits.len() <= 8 => {
            // What stands before the digits is made zeros; then tens and ones, hundreds, and ten thousands are put together side by side.
            let kept = u64::MAX << (8 * (8 - digits.len()));
            let ones = (u64::from_le_bytes(*last) ^ 0x3030_3030_3030_3030) & kept;
            let twos = ones.wrapping_mul(10).wrapping_add(ones >> 8);
            let high = (twos & 0x0000_00ff_0000_00ff).wrapping_mul(0x000f_4240_0000_0064);
            let low = (twos >> 16 & 0x0000_00ff_0000_00ff).wrapping_mul(0x0000_2710_0000_0001);
            high.wrapping_add(low) >> 32
        }
        _ => digits.iter().fold(0, |n, b| n * 10 + u64::from(b - b'0')),
    }
}

#[derive(Default)]
struct Cut {
    rows: usize,
    /// Lane and how many of its rows, in order.
    lanes: Vec<(u32, usize)>,
}

impl Cut {
    fn close(&mut self, cuts: &mut Vec<Cut>) {
        if self.rows > 0 {
            cuts.push(std::mem::take(self));
        }
    }
}

struct Facts {
    errors: u64,
    time_min: u64,
    time_max: u64,
    duration_max: u64,
}

impl Rows {
    fn facts(&self, range: Range<usize>) -> Facts {
        let times = self.times[range.clone()].iter().copied();
        Facts {
            errors: self.marks[range.clone()].iter().map(|m| u64::from(m & marks::ERROR != 0)).sum(),
            time_min: times.clone().min().unwrap_or(u64::MAX),
            time_max: times.max().unwrap_or(0),
            duration_max: self.durations[range].iter().map(|duration| (*duration).max(0) as u64).max().unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_text_is_split_as_byte_by_byte(text in "([a-z0/ é]{0,9}[0-9]{0,20}){0,12}") {
            let (mut pattern, mut numbers) = (Vec::new(), Vec::new());
            prop_assert!(split_numbers(text.as_bytes(), &mut pattern, &mut numbers));
            let (mut slow_pattern, mut slow_numbers) = (Vec::new(), Vec::new());
            for run in text.as_bytes().chunk_by(|a, b| a.is_ascii_digit() == b.is_ascii_digit()) {
                let zeros = run[0] == b'0' && run.len() > 1;
                if run[0].is_ascii_digit() && run.len() <= PATTERN_DIGITS_MAX && !zeros {
                    slow_pattern.push(PATTERN_HOLE);
                    slow_numbers.push(std::str::from_utf8(run).expect("digits").parse::<u64>().expect("a number"));
                } else {
                    slow_pattern.extend_from_slice(run);
                }
            }
            prop_assert_eq!((pattern, numbers), (slow_pattern, slow_numbers));
        }

        #[test]
        fn a_text_is_made_again_from_its_pattern_and_numbers(text in "[a-z0-9/ é]{0,40}") {
            let (mut pattern, mut numbers) = (Vec::new(), Vec::new());
            prop_assert!(split_numbers(text.as_bytes(), &mut pattern, &mut numbers));
            let mut holes = numbers.iter();
            let again: Vec<u8> = pattern
                .iter()
                .flat_map(|b| if *b == PATTERN_HOLE { holes.next().expect("a number a hole").to_string().into_bytes() } else { vec![*b] })
                .collect();
            prop_assert_eq!(again, text.into_bytes());
        }
    }
}
