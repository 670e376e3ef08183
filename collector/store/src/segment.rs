//! Reading a block: its directory, its trace table, and the segments with their chunks, each inflated when it is first asked
//! for. The layout is drawn in `block`. Nothing here trusts the bytes: a damaged file is an error, never a panic.

use crate::batch::{Field, Kind};
use crate::block::*;
use crate::pack::{Reader, corrupt, read_planes, unzigzag};
use crate::{Damaged, SpanId, TraceId};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::OnceLock as OnceCell;

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
        let mut r = Reader::new(&bytes);
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

/// The trace ids of a block and the trace of each of its rows.
#[derive(Debug)]
pub struct TraceTable {
    pub ids: Vec<[u8; 16]>,
    /// 0 is "none", n is `ids[n - 1]`.
    pub of_row: Vec<u32>,
}

impl TraceTable {
    pub fn parse(bytes: &[u8], rows: usize) -> Result<TraceTable, Damaged> {
        let mut r = Reader::new(bytes);
        let ids = Self::ids(&mut r)?;
        let size = r.varint()? as usize;
        if size > rows.saturating_mul(8) + 16 {
            return Err(corrupt("a trace table longer than its rows"));
        }
        let column = inflate(r.take(r.left())?, size)?;
        let mut trace = 0i64;
        let mut of_row = Vec::with_capacity(rows);
        for delta in read_planes(&mut Reader::new(&column), rows)? {
            trace = trace.wrapping_add(unzigzag(delta));
            if trace < 0 || trace > ids.len() as i64 {
                return Err(corrupt("a row of an unknown trace"));
            }
            of_row.push(trace as u32);
        }
        Ok(TraceTable { ids, of_row })
    }

    fn ids(r: &mut Reader<'_>) -> Result<Vec<[u8; 16]>, Damaged> {
        let count = r.count()?;
        let bytes = r.take(count.checked_mul(16).ok_or(corrupt("too many traces"))?)?;
        Ok(bytes.as_chunks::<16>().0.to_vec())
    }

    /// The ordinal of a trace in the table, as rows refer to it.
    pub fn find(&self, id: &TraceId) -> Option<u32> {
        self.ids.iter().position(|i| *i == id.0).map(|at| at as u32 + 1)
    }

    pub fn id_of(&self, row: usize) -> Option<TraceId> {
        self.of_row[row].checked_sub(1).map(|at| TraceId(self.ids[at as usize]))
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

/// A segment with its header read; its chunks are inflated on demand and kept while it lives.
pub struct Segment {
    header: Vec<u8>,
    body: Arc<[u8]>,
    pub rows: usize,
    pub lanes: Vec<SegmentLane>,
    pub columns: Vec<SegmentColumn>,
    pub shapes: Vec<Vec<u32>>,
    chunks: Vec<Chunk>,
    spans: OnceCell<Vec<SpanId>>,
    times: OnceCell<Vec<u64>>,
    durations: OnceCell<Vec<i64>>,
    marks: OnceCell<Vec<u8>>,
    row_shapes: OnceCell<Vec<u32>>,
    values: Vec<OnceCell<Values>>,
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

    fn read(r: &mut Reader<'_>, count: usize) -> Result<Texts, Damaged> {
        let mut ends = Vec::with_capacity(count);
        let mut end = 0u64;
        for length in read_planes(r, count)? {
            end = end.checked_add(length).filter(|end| *end <= u64::from(u32::MAX)).ok_or(corrupt("strings beyond 4 GiB"))?;
            ends.push(end as u32);
        }
        Ok(Texts { ends, bytes: r.take(end as usize)?.to_vec() })
    }
}

impl Segment {
    pub fn parse(body: Arc<[u8]>) -> Result<Segment, Damaged> {
        let mut whole = Reader::new(&body);
        let header_len = u32::from_le_bytes(whole.array()?) as usize;
        let header = inflate_sized(whole.take(header_len)?)?;
        let mut at = 4 + header_len;

        let mut r = Reader::new(&header);
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
        let values = columns.iter().map(|_| OnceCell::new()).collect();
        Ok(Segment {
            header,
            body,
            rows,
            lanes,
            columns,
            shapes,
            chunks,
            spans: OnceCell::new(),
            times: OnceCell::new(),
            durations: OnceCell::new(),
            marks: OnceCell::new(),
            row_shapes: OnceCell::new(),
            values,
        })
    }

    fn with_chunk<T>(&self, chunk: usize, read: impl FnOnce(&mut Reader<'_>) -> Result<T, Damaged>) -> Result<T, Damaged> {
        match &self.chunks[chunk] {
            Chunk::Inline(range) => read(&mut Reader::new(&self.header[range.clone()])),
            Chunk::Stored(range) => read(&mut Reader::new(&self.body[range.clone()])),
            Chunk::Frame { at, inflated } => read(&mut Reader::new(&inflate(&self.body[at.clone()], *inflated)?)),
        }
    }

    pub fn times(&self) -> Result<&[u64], Damaged> {
        cached(&self.times, || {
            self.with_chunk(CHUNK_TIME, |r| {
                let mut time = 0i64;
                Ok(read_planes(r, self.rows)?
                    .into_iter()
                    .map(|delta| {
                        time = time.wrapping_add(unzigzag(delta));
                        time as u64
                    })
                    .collect())
            })
        })
        .map(Vec::as_slice)
    }

    pub fn durations(&self) -> Result<&[i64], Damaged> {
        cached(&self.durations, || self.with_chunk(CHUNK_DURATION, |r| Ok(read_planes(r, self.rows)?.into_iter().map(unzigzag).collect())))
            .map(Vec::as_slice)
    }

    pub fn marks(&self) -> Result<&[u8], Damaged> {
        cached(&self.marks, || self.with_chunk(CHUNK_MARKS, |r| Ok(read_planes(r, self.rows)?.into_iter().map(|m| m as u8).collect())))
            .map(Vec::as_slice)
    }

    /// The context of each row: an ordinal of the directory's contexts.
    pub fn contexts(&self) -> Result<Vec<u32>, Damaged> {
        self.with_chunk(CHUNK_CONTEXT, |r| Ok(read_planes(r, self.rows)?.into_iter().map(|c| c as u32).collect()))
    }

    pub fn spans(&self) -> Result<&[SpanId], Damaged> {
        cached(&self.spans, || {
            self.with_chunk(CHUNK_SPAN, |r| {
                if r.left() == 0 {
                    return Ok(vec![SpanId(0); self.rows]);
                }
                let bytes = r.take(self.rows * 8)?;
                Ok(bytes.as_chunks::<8>().0.iter().map(|b| SpanId(u64::from_be_bytes(*b))).collect())
            })
        })
        .map(Vec::as_slice)
    }

    pub fn span(&self, row: usize) -> Result<SpanId, Damaged> {
        self.spans()?.get(row).copied().ok_or(corrupt("a span beyond its segment"))
    }

    /// The parent code of each row, and the ids of the parents that are not in the block, for the rows with code 1.
    pub fn parents(&self) -> Result<(Vec<u64>, Vec<SpanId>), Damaged> {
        self.with_chunk(CHUNK_PARENT, |r| {
            let codes = read_planes(r, self.rows)?;
            let strangers = r.take(r.left())?.as_chunks::<8>().0.iter().map(|b| SpanId(u64::from_be_bytes(*b))).collect();
            Ok((codes, strangers))
        })
    }

    pub fn row_shapes(&self) -> Result<&[u32], Damaged> {
        cached(&self.row_shapes, || {
            self.with_chunk(CHUNK_SHAPE, |r| {
                let mut shapes = Vec::with_capacity(self.rows);
                for shape in read_planes(r, self.rows)? {
                    if shape >= self.shapes.len() as u64 {
                        return Err(corrupt("a row of an unknown shape"));
                    }
                    shapes.push(shape as u32);
                }
                Ok(shapes)
            })
        })
        .map(Vec::as_slice)
    }

    /// The values of a column; as many as `column_len` says.
    pub fn values(&self, column: usize) -> Result<&Values, Damaged> {
        cached(&self.values[column], || {
            let count = self.column_len(column)?;
            self.with_chunk(CHUNK_COLUMNS + column, |r| match self.columns[column].kind {
                Kind::Str | Kind::Bytes | Kind::Nested => read_strings(r, count),
                Kind::Small | Kind::Wide => Ok(Values::Numbers(read_planes(r, count)?.into_iter().map(|v| v ^ 1 << 63).collect())),
                Kind::Double | Kind::Bool | Kind::Empty => Ok(Values::Numbers(read_planes(r, count)?)),
            })
        })
    }

    fn column_len(&self, column: usize) -> Result<usize, Damaged> {
        let per_shape: Vec<usize> = self.shapes.iter().map(|shape| shape.iter().filter(|c| **c as usize == column).count()).collect();
        Ok(self.row_shapes()?.iter().map(|shape| per_shape[*shape as usize]).sum())
    }

    /// For each value of a column, the row that has it.
    pub fn rows_of(&self, column: usize) -> Result<Vec<u32>, Damaged> {
        let per_shape: Vec<usize> = self.shapes.iter().map(|shape| shape.iter().filter(|c| **c as usize == column).count()).collect();
        let mut rows = Vec::new();
        for (row, shape) in self.row_shapes()?.iter().enumerate() {
            for _ in 0..per_shape[*shape as usize] {
                rows.push(row as u32);
            }
        }
        Ok(rows)
    }
}

fn read_strings(r: &mut Reader<'_>, count: usize) -> Result<Values, Damaged> {
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
            let codes = codes_below(read_planes(r, count)?, size)?;
            Ok(Values::Texts { distinct, codes })
        }
        STRINGS_RAW => Ok(Values::Texts { distinct: Texts::read(r, count)?, codes: (0..count as u32).collect() }),
        STRINGS_PATTERN => {
            let size = r.count()?;
            let patterns = Texts::read(r, size)?;
            let codes = codes_below(read_planes(r, count)?, size)?;
            let mut uses = vec![0usize; size];
            codes.iter().for_each(|code| uses[*code as usize] += 1);
            let mut places: Vec<Vec<std::vec::IntoIter<u64>>> = Vec::new();
            for (pattern, uses) in uses.iter().enumerate() {
                let holes = patterns.get(pattern as u32).iter().filter(|b| **b == PATTERN_HOLE).count();
                let mut columns = Vec::new();
                for _ in 0..holes {
                    columns.push(read_planes(r, *uses)?.into_iter());
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

fn cached<T>(cell: &OnceCell<T>, make: impl FnOnce() -> Result<T, Damaged>) -> Result<&T, Damaged> {
    if cell.get().is_none() {
        let value = make()?;
        let _ = cell.set(value);
    }
    Ok(cell.get().expect("it was set just now"))
}
