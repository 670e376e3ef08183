//! Reading a block: its directory, its trace table, and the segments with their chunks, each inflated when it is first asked
//! for. The layout is drawn in `block`. Nothing here trusts the bytes: a damaged file is an error, never a panic.

use crate::batch::{Field, Kind};
use crate::block::*;
use crate::pack::{Cursor, Planes, corrupt, unzigzag};
use crate::{Damaged, SpanId, TraceId};
use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::OnceLock;

/// No chunk inflates to more: a block of 65,536 rows with values of 64 KiB each would, but a writer cuts blocks by bytes first.
const INFLATED_MAX: usize = 1 << 30;

/// As many rows as a block can have when a single request of 64 MiB fills it.
const ROWS_MAX: usize = 1 << 24;

fn inflate(bytes: &[u8], size: usize) -> Result<Vec<u8>, Damaged> {
    if size > INFLATED_MAX {
        return Err(corrupt("a chunk beyond 1 GiB"));
    }
    // A context costs as much to make as a small chunk to inflate, and a trace needs hundreds of chunks.
    thread_local! {
        static CONTEXT: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    }
    let mut out = Vec::with_capacity(size);
    CONTEXT
        .with_borrow_mut(|context| {
            let context = match context {
                Some(context) => context,
                None => context.insert(zstd::bulk::Decompressor::new()?),
            };
            context.decompress_to_buffer(bytes, &mut out)
        })
        .map_err(|_| corrupt("a chunk whose checksum or frame is wrong"))?;
    if out.len() == size { Ok(out) } else { Err(corrupt("a chunk of another length than its header says")) }
}

/// A frame whose size is in itself: directories and headers.
pub(crate) fn inflate_sized(bytes: &[u8]) -> Result<Vec<u8>, Damaged> {
    let size = zstd::zstd_safe::get_frame_content_size(bytes).ok().flatten().ok_or(corrupt("a frame without its size"))?;
    inflate(bytes, size as usize)
}

/// What is known of a block without opening its segments.
#[derive(Debug, Default)]
pub struct Directory {
    /// (service, resource, scope): ids of the partition.
    pub contexts: Vec<(u32, u32, u32)>,
    pub segments: Vec<SegmentInfo>,
}

#[derive(Debug)]
pub struct SegmentInfo {
    /// Its rows, in the order of the block.
    pub rows: Range<usize>,
    pub errors: u64,
    pub time_min: u64,
    pub time_max: u64,
    pub duration_max: u64,
    /// Ids of the partition.
    pub services: Vec<u32>,
}

impl Directory {
    pub fn parse(bytes: &[u8]) -> Result<Directory, Damaged> {
        let bytes = inflate_sized(bytes)?;
        let mut r = Cursor::new(&bytes);
        let mut directory = Directory::default();
        for _ in 0..r.count()? {
            directory.contexts.push((r.u32()?, r.u32()?, r.u32()?));
        }
        let mut start = 0usize;
        for _ in 0..r.count()? {
            let rows = r.varint()? as usize;
            if rows > ROWS_MAX {
                return Err(corrupt("a segment of too many rows"));
            }
            let errors = r.varint()?;
            let time_min = r.varint()?;
            let time_max = time_min.saturating_add(r.varint()?);
            let duration_max = r.varint()?;
            let mut services = Vec::new();
            for _ in 0..r.count()? {
                services.push(r.u32()?);
            }
            directory.segments.push(SegmentInfo { rows: start..start + rows, errors, time_min, time_max, duration_max, services });
            start += rows;
        }
        Ok(directory)
    }

    pub fn rows(&self) -> usize {
        self.segments.last().map_or(0, |s| s.rows.end)
    }
}

/// The trace ids of a block and the trace of each of its rows. Rows are read when they are first asked for: one filter in a hundred
/// leads here in vain.
#[derive(Debug)]
pub struct TraceTable {
    ids: Vec<[u8; 16]>,
    rows: usize,
    column: Vec<u8>,
    of_row: OnceLock<Vec<u32>>,
}

impl TraceTable {
    pub fn parse(bytes: &[u8], rows: usize) -> Result<TraceTable, Damaged> {
        let mut r = Cursor::new(bytes);
        Ok(TraceTable { ids: Self::ids(&mut r)?, rows, column: r.take(r.left())?.to_vec(), of_row: OnceLock::new() })
    }

    /// For each row of the block: 0 is "no trace", n the n-th of the table, counted from 1.
    pub fn of_row(&self) -> Result<&[u32], Damaged> {
        let read = || {
            let mut r = Cursor::new(&self.column);
            let size = r.varint()? as usize;
            if size > self.rows.saturating_mul(8) + 16 {
                return Err(corrupt("a trace table longer than its rows"));
            }
            let column = inflate(r.take(r.left())?, size)?;
            let mut trace = 0i64;
            let mut of_row = Vec::with_capacity(self.rows);
            for delta in Planes::read(&mut Cursor::new(&column), self.rows)?.to_vec() {
                trace = trace.wrapping_add(unzigzag(delta));
                if trace < 0 || trace > self.ids.len() as i64 {
                    return Err(corrupt("a row of an unknown trace"));
                }
                of_row.push(trace as u32);
            }
            Ok(of_row)
        };
        cached(&self.of_row, read).map(Vec::as_slice)
    }

    fn ids(r: &mut Cursor<'_>) -> Result<Vec<[u8; 16]>, Damaged> {
        let count = r.count()?;
        let bytes = r.take(count.checked_mul(16).ok_or(corrupt("too many traces"))?)?;
        Ok(bytes.as_chunks::<16>().0.to_vec())
    }

    /// The ordinal of a trace in the table, as rows refer to it.
    pub fn find(&self, id: &TraceId) -> Option<u32> {
        self.ids.iter().position(|i| *i == id.0).map(|at| at as u32 + 1)
    }

    pub fn id_of(&self, row: usize) -> Result<Option<TraceId>, Damaged> {
        Ok(self.of_row()?[row].checked_sub(1).map(|at| TraceId(self.ids[at as usize])))
    }
}

#[derive(Debug)]
pub struct SegmentLane {
    pub service: u32,
    pub kind: u8,
    pub name: String,
    pub rows: Range<usize>,
}

#[derive(Debug)]
pub struct SegmentColumn {
    pub field: Field,
    pub kind: Kind,
    pub key: String,
}

enum Chunk {
    Inline(Range<usize>),
    Frame { at: Range<usize>, inflated: usize },
    Stored(Range<usize>),
}

/// A segment with its header read. Its chunks are inflated on demand and kept while it lives.
///
/// A question about a few rows takes single values out of the chunks (`value`, `Planes::get`); one about all rows of a column
/// reads it whole (`values`).
pub struct Segment {
    header: Vec<u8>,
    body: Vec<u8>,
    pub rows: usize,
    pub lanes: Vec<SegmentLane>,
    pub columns: Vec<SegmentColumn>,
    pub shapes: Vec<Vec<u32>>,
    chunks: Vec<Chunk>,
    inflated: Vec<OnceLock<Vec<u8>>>,
    times: OnceLock<Vec<u64>>,
    row_shapes: OnceLock<RowShapes>,
    values: Vec<OnceLock<Values>>,
}

/// The shape of each row, and how many values each column has by that.
struct RowShapes {
    of_row: Vec<u32>,
    column_len: Vec<usize>,
}

/// One value of a column, as its `Kind` says.
#[derive(Debug)]
pub enum SegmentValue<'a> {
    Number(u64),
    Bytes(Cow<'a, [u8]>),
}

/// Who the parent of a row is.
pub enum Parent {
    None,
    /// The n-th row of the same trace in this block.
    Rank(u64),
    /// A span that is not in this block.
    Stranger(SpanId),
}

/// The values of one column, in the order of the rows that have it.
#[derive(Debug)]
pub enum Values {
    Numbers(Vec<u64>),
    /// Strings or blobs: each value's place among the distinct ones.
    Texts {
        distinct: Texts,
        codes: Vec<u32>,
    },
}

#[derive(Debug, Default)]
pub struct Texts {
    ends: Vec<u32>,
    bytes: Vec<u8>,
}

impl Texts {
    pub fn get(&self, at: u32) -> &[u8] {
        let at = at as usize;
        let start = if at == 0 { 0 } else { self.ends[at - 1] as usize };
        &self.bytes[start..self.ends[at] as usize]
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    fn push(&mut self, text: &[u8]) {
        self.bytes.extend_from_slice(text);
        self.ends.push(self.bytes.len() as u32);
    }

    fn read(r: &mut Cursor<'_>, count: usize) -> Result<Texts, Damaged> {
        let mut ends = Vec::with_capacity(count);
        let mut end = 0u64;
        for length in Planes::read(r, count)?.to_vec() {
            end = end.checked_add(length).filter(|end| *end <= u64::from(u32::MAX)).ok_or(corrupt("strings beyond 4 GiB"))?;
            ends.push(end as u32);
        }
        Ok(Texts { ends, bytes: r.take(end as usize)?.to_vec() })
    }
}

impl Segment {
    pub fn parse(body: Vec<u8>) -> Result<Segment, Damaged> {
        let mut whole = Cursor::new(&body);
        let header_len = u32::from_le_bytes(whole.array()?) as usize;
        let header = inflate_sized(whole.take(header_len)?)?;
        let mut at = 4 + header_len;

        let mut r = Cursor::new(&header);
        let rows = r.varint()? as usize;
        if rows > ROWS_MAX {
            return Err(corrupt("a segment of too many rows"));
        }
        let mut lanes = Vec::new();
        let mut start = 0usize;
        for _ in 0..r.count()? {
            let (service, kind, name, count) = (r.u32()?, r.byte()?, r.string()?, r.varint()? as usize);
            let end = start.checked_add(count).filter(|end| *end <= rows).ok_or(corrupt("lanes of too many rows"))?;
            lanes.push(SegmentLane { service, kind, name, rows: start..end });
            start = end;
        }
        if start != rows {
            return Err(corrupt("lanes that do not cover their segment"));
        }
        let mut columns = Vec::new();
        for _ in 0..r.count()? {
            let field = Field::from_code(r.byte()?).ok_or(corrupt("an unknown field"))?;
            let kind = Kind::from_code(r.byte()?).ok_or(corrupt("an unknown kind of value"))?;
            columns.push(SegmentColumn { field, kind, key: r.string()? });
        }
        let mut shapes = Vec::new();
        for _ in 0..r.count()? {
            let mut shape = Vec::new();
            for _ in 0..r.count()? {
                let column = r.u32()?;
                if column as usize >= columns.len() {
                    return Err(corrupt("a shape with an unknown column"));
                }
                shape.push(column);
            }
            shapes.push(shape);
        }
        let mut chunks = Vec::new();
        for _ in 0..CHUNK_COLUMNS + columns.len() {
            chunks.push(match r.byte()? {
                0 => {
                    let length = r.count()?;
                    let start = header.len() - r.left();
                    r.take(length)?;
                    Chunk::Inline(start..start + length)
                }
                tag => {
                    let (length, inflated) = (r.varint()? as usize, r.varint()? as usize);
                    let end = at.checked_add(length).filter(|end| *end <= body.len()).ok_or(corrupt("a chunk beyond its segment"))?;
                    let range = at..end;
                    at = end;
                    if tag == 1 { Chunk::Frame { at: range, inflated } } else { Chunk::Stored(range) }
                }
            });
        }
        let values = columns.iter().map(|_| OnceLock::new()).collect();
        let inflated = chunks.iter().map(|_| OnceLock::new()).collect();
        let (times, row_shapes) = (OnceLock::new(), OnceLock::new());
        Ok(Segment { header, body, rows, lanes, columns, shapes, chunks, inflated, times, row_shapes, values })
    }

    fn chunk(&self, chunk: usize) -> Result<Cursor<'_>, Damaged> {
        Ok(Cursor::new(match &self.chunks[chunk] {
            Chunk::Inline(range) => &self.header[range.clone()],
            Chunk::Stored(range) => &self.body[range.clone()],
            Chunk::Frame { at, inflated } => cached(&self.inflated[chunk], || inflate(&self.body[at.clone()], *inflated))?,
        }))
    }

    fn planes(&self, chunk: usize) -> Result<Planes<'_>, Damaged> {
        Planes::read(&mut self.chunk(chunk)?, self.rows)
    }

    pub fn times(&self) -> Result<&[u64], Damaged> {
        let read = || {
            let mut time = 0i64;
            let mut next = |delta| {
                time = time.wrapping_add(unzigzag(delta));
                time as u64
            };
            Ok(self.planes(CHUNK_TIME)?.to_vec().into_iter().map(&mut next).collect())
        };
        cached(&self.times, read).map(Vec::as_slice)
    }

    /// Zig-zag; `unzigzag` turns it back.
    pub fn durations(&self) -> Result<Planes<'_>, Damaged> {
        self.planes(CHUNK_DURATION)
    }

    pub fn marks(&self) -> Result<Planes<'_>, Damaged> {
        self.planes(CHUNK_MARKS)
    }

    /// The context of each row: an ordinal of the directory's contexts.
    pub fn contexts(&self) -> Result<Planes<'_>, Damaged> {
        self.planes(CHUNK_CONTEXT)
    }

    /// Time, duration and marks of a row.
    pub fn facts(&self, row: usize) -> Result<(u64, i64, u8), Damaged> {
        const BEYOND: Damaged = Damaged("a row beyond its segment");
        let time = *self.times()?.get(row).ok_or(BEYOND)?;
        let duration = self.durations()?.get(row).ok_or(BEYOND)?;
        Ok((time, unzigzag(duration), self.marks()?.get(row).ok_or(BEYOND)? as u8))
    }

    pub fn lane_of(&self, row: usize) -> &SegmentLane {
        &self.lanes[self.lanes.partition_point(|lane| lane.rows.end <= row)]
    }

    pub fn span(&self, row: usize) -> Result<SpanId, Damaged> {
        let mut chunk = self.chunk(CHUNK_SPAN)?;
        if chunk.left() == 0 {
            return Ok(SpanId(0));
        }
        let all = chunk.take(self.rows * 8)?.as_chunks::<8>().0;
        all.get(row).map(|bytes| SpanId(u64::from_be_bytes(*bytes))).ok_or(corrupt("a span beyond its segment"))
    }

    pub fn parent(&self, row: usize) -> Result<Parent, Damaged> {
        let mut chunk = self.chunk(CHUNK_PARENT)?;
        let codes = Planes::read(&mut chunk, self.rows)?;
        Ok(match codes.get(row).ok_or(corrupt("a row without its parent"))? {
            0 => Parent::None,
            1 => {
                let strangers = chunk.take(chunk.left())?.as_chunks::<8>().0;
                let id = strangers.get(codes.rank(row)).ok_or(corrupt("a parent that is missing"))?;
                Parent::Stranger(SpanId(u64::from_be_bytes(*id)))
            }
            code => Parent::Rank(code - 2),
        })
    }

    fn shapes_and_lengths(&self) -> Result<&RowShapes, Damaged> {
        cached(&self.row_shapes, || {
            let mut counts = vec![0usize; self.shapes.len()];
            let mut of_row = Vec::with_capacity(self.rows);
            for shape in self.planes(CHUNK_SHAPE)?.to_vec() {
                *counts.get_mut(shape as usize).ok_or(corrupt("a row of an unknown shape"))? += 1;
                of_row.push(shape as u32);
            }
            let mut column_len = vec![0usize; self.columns.len()];
            for (shape, count) in self.shapes.iter().zip(counts) {
                shape.iter().for_each(|column| column_len[*column as usize] += count);
            }
            Ok(RowShapes { of_row, column_len })
        })
    }

    /// The shape of each row.
    pub fn row_shapes(&self) -> Result<&[u32], Damaged> {
        Ok(&self.shapes_and_lengths()?.of_row)
    }

    fn column_len(&self, column: usize) -> Result<usize, Damaged> {
        let length = self.shapes_and_lengths()?.column_len[column];
        // A shape may name a column often; only damage makes more of it than rows can be.
        if length > ROWS_MAX { Err(corrupt("a column of too many values")) } else { Ok(length) }
    }

    /// All values of a column.
    pub fn values(&self, column: usize) -> Result<&Values, Damaged> {
        cached(&self.values[column], || {
            let (count, mut chunk) = (self.column_len(column)?, self.chunk(CHUNK_COLUMNS + column)?);
            match self.columns[column].kind {
                Kind::Str | Kind::Bytes | Kind::Nested => read_strings(&mut chunk, count),
                Kind::Small | Kind::Wide => {
                    Ok(Values::Numbers(Planes::read(&mut chunk, count)?.to_vec().into_iter().map(|v| v ^ SIGN).collect()))
                }
                Kind::Double | Kind::Bool | Kind::Empty => Ok(Values::Numbers(Planes::read(&mut chunk, count)?.to_vec())),
            }
        })
    }

    /// The `at`-th value of a column, without reading the others.
    pub fn value(&self, column: usize, at: usize) -> Result<SegmentValue<'_>, Damaged> {
        const MISSING: Damaged = Damaged("a row without its value");
        if let Some(values) = self.values[column].get() {
            return Ok(match values {
                Values::Numbers(numbers) => SegmentValue::Number(*numbers.get(at).ok_or(MISSING)?),
                Values::Texts { distinct, codes } => SegmentValue::Bytes(distinct.get(*codes.get(at).ok_or(MISSING)?).into()),
            });
        }
        let (count, mut chunk) = (self.column_len(column)?, self.chunk(CHUNK_COLUMNS + column)?);
        if at >= count {
            return Err(MISSING);
        }
        match self.columns[column].kind {
            Kind::Str | Kind::Bytes | Kind::Nested => read_string(&mut chunk, count, at).map(SegmentValue::Bytes),
            kind => {
                let number = Planes::read(&mut chunk, count)?.get(at).ok_or(MISSING)?;
                Ok(SegmentValue::Number(if matches!(kind, Kind::Small | Kind::Wide) { number ^ SIGN } else { number }))
            }
        }
    }

    /// For each value of a column, the row that has it.
    pub fn rows_of(&self, column: usize) -> Result<Vec<u32>, Damaged> {
        let per_shape: Vec<usize> = self.shapes.iter().map(|shape| shape.iter().filter(|c| **c as usize == column).count()).collect();
        let mut rows = Vec::with_capacity(self.column_len(column)?);
        for (row, shape) in self.row_shapes()?.iter().enumerate() {
            for _ in 0..per_shape[*shape as usize] {
                rows.push(row as u32);
            }
        }
        Ok(rows)
    }
}

/// Whole numbers are kept with their sign flipped, so that their order is that of unsigned ones.
const SIGN: u64 = 1 << 63;

/// One string of a column of `count`, `at` below that.
fn read_string<'a>(r: &mut Cursor<'a>, count: usize, at: usize) -> Result<Cow<'a, [u8]>, Damaged> {
    const BEYOND: Damaged = Damaged("a value beyond its dictionary");
    let text = |r: &mut Cursor<'a>, lengths: Planes<'a>, nth: usize| -> Result<&'a [u8], Damaged> {
        let start = lengths.sum_before(nth).ok_or(BEYOND)?;
        r.take(usize::try_from(start).map_err(|_| BEYOND)?)?;
        r.take(usize::try_from(lengths.get(nth).ok_or(BEYOND)?).map_err(|_| BEYOND)?)
    };
    match r.byte()? {
        STRINGS_RAW => {
            let lengths = Planes::read(r, count)?;
            text(r, lengths, at).map(Cow::Borrowed)
        }
        STRINGS_DICTIONARY => {
            let size = r.count()?;
            let lengths = Planes::read(r, size)?;
            let mut texts = *r;
            r.take(lengths.sum_before(size).and_then(|sum| usize::try_from(sum).ok()).ok_or(BEYOND)?)?;
            let code = Planes::read(r, count)?.get(at).ok_or(BEYOND)?;
            text(&mut texts, lengths, usize::try_from(code).map_err(|_| BEYOND)?).map(Cow::Borrowed)
        }
        STRINGS_PATTERN => {
            let size = r.count()?;
            let patterns = Texts::read(r, size)?;
            let codes = Planes::read(r, count)?;
            let code = codes.get(at).filter(|code| *code < size as u64).ok_or(BEYOND)? as usize;
            let nth = codes.rank(at);
            let mut uses = vec![0usize; size];
            for code in codes.to_vec() {
                *uses.get_mut(code as usize).ok_or(BEYOND)? += 1;
            }
            for (pattern, uses) in uses.iter().enumerate().take(code) {
                for _ in 0..holes(patterns.get(pattern as u32)) {
                    Planes::read(r, *uses)?;
                }
            }
            let mut out = Vec::new();
            for byte in patterns.get(code as u32) {
                if *byte == PATTERN_HOLE {
                    push_number(&mut out, Planes::read(r, uses[code])?.get(nth).ok_or(BEYOND)?);
                } else {
                    out.push(*byte);
                }
            }
            Ok(Cow::Owned(out))
        }
        _ => Err(corrupt("strings of an unknown encoding")),
    }
}

fn holes(pattern: &[u8]) -> usize {
    pattern.iter().filter(|byte| **byte == PATTERN_HOLE).count()
}

fn read_strings(r: &mut Cursor<'_>, count: usize) -> Result<Values, Damaged> {
    let codes_below = |codes: Vec<u64>, bound: usize| -> Result<Vec<u32>, Damaged> {
        if codes.iter().any(|code| *code >= bound as u64) {
            return Err(corrupt("a value beyond its dictionary"));
        }
        Ok(codes.into_iter().map(|code| code as u32).collect())
    };
    match r.byte()? {
        STRINGS_DICTIONARY => {
            let size = r.count()?;
            let distinct = Texts::read(r, size)?;
            let codes = codes_below(Planes::read(r, count)?.to_vec(), size)?;
            Ok(Values::Texts { distinct, codes })
        }
        STRINGS_RAW => Ok(Values::Texts { distinct: Texts::read(r, count)?, codes: (0..count as u32).collect() }),
        STRINGS_PATTERN => {
            let size = r.count()?;
            let patterns = Texts::read(r, size)?;
            let codes = codes_below(Planes::read(r, count)?.to_vec(), size)?;
            let mut uses = vec![0usize; size];
            codes.iter().for_each(|code| uses[*code as usize] += 1);
            let mut places: Vec<Vec<std::vec::IntoIter<u64>>> = Vec::new();
            for (pattern, uses) in uses.iter().enumerate() {
                let mut columns = Vec::new();
                for _ in 0..holes(patterns.get(pattern as u32)) {
                    columns.push(Planes::read(r, *uses)?.to_vec().into_iter());
                }
                places.push(columns);
            }
            let mut texts = Texts::default();
            let mut text = Vec::new();
            for code in codes {
                text.clear();
                let mut holes = places[code as usize].iter_mut();
                for byte in patterns.get(code) {
                    if *byte == PATTERN_HOLE {
                        let number = holes.next().and_then(Iterator::next).ok_or(corrupt("a pattern without its numbers"))?;
                        push_number(&mut text, number);
                    } else {
                        text.push(*byte);
                    }
                }
                texts.push(&text);
            }
            Ok(Values::Texts { distinct: texts, codes: (0..count as u32).collect() })
        }
        _ => Err(corrupt("strings of an unknown encoding")),
    }
}

fn push_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn cached<T>(cell: &OnceLock<T>, make: impl FnOnce() -> Result<T, Damaged>) -> Result<&T, Damaged> {
    if cell.get().is_none() {
        let value = make()?;
        let _ = cell.set(value);
    }
    Ok(cell.get().expect("it was set just now"))
}
