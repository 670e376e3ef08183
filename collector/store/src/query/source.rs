//! Where rows are: the batches of live generations, and the blocks of partitions.

use super::{Filter, Item};
use crate::batch::Batch;
use crate::partition::{BlockInfo, Partition};
use crate::segment::{Segment, TraceTable};
use crate::{Damaged, Error, Reader, Signal, TraceId};
use hashbrown::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};

#[derive(Clone)]
pub(crate) enum Source {
    Live(Arc<Batch>),
    Block { partition: Arc<Partition>, block: Arc<BlockInfo> },
}

impl Source {
    /// The earliest and latest time of its rows (spans: their starts).
    pub fn times(&self) -> (u64, u64) {
        match self {
            Source::Live(batch) => batch.time.iter().fold((u64::MAX, 0), |(min, max), time| (min.min(*time), max.max(*time))),
            Source::Block { block, .. } => (block.time_min, block.time_max),
        }
    }
}

impl Reader {
    /// All rows of a signal, each exactly once: taken under one lock, so none is in two places while it moves.
    pub(crate) fn sources(&self, signal: Signal) -> Vec<Source> {
        let view = self.shared.view.read().unwrap_or_else(PoisonError::into_inner);
        let mut sources = Vec::new();
        for partition in &view.partitions[signal as usize] {
            for block in partition.blocks().iter() {
                sources.push(Source::Block { partition: partition.clone(), block: block.clone() });
            }
        }
        for generation in &view.live {
            sources.extend(generation.batches(signal).into_iter().map(Source::Live));
        }
        sources
    }

    /// Every row of a block that is to be kept, in its order.
    pub(crate) fn each_item_of_block(
        &self,
        partition: &Arc<Partition>,
        block: &Arc<BlockInfo>,
        keep: Option<&Keep<'_>>,
        mut each: impl FnMut(Item),
    ) -> Result<(), Error> {
        let mut open = OpenBlock::new(partition, block);
        let segments = block.directory.segments.len();
        let mut rows: Vec<Vec<u32>> = Vec::with_capacity(segments);
        match keep {
            None => {
                rows.extend(block.directory.segments.iter().map(|segment| (0..segment.rows.len() as u32).collect()));
                open.index_families(|_| true)?;
            }
            Some(keep) => {
                let mut wanted = HashSet::new();
                for number in 0..segments {
                    rows.push(open.kept_rows(number, keep, &mut wanted)?);
                }
                open.index_families(|trace| wanted.contains(&trace))?;
            }
        }
        for (number, rows) in rows.iter().enumerate() {
            open.segment_items(number, rows)?.into_iter().for_each(&mut each);
        }
        Ok(())
    }

    /// The rows of a segment that pass a filter, for a cursor that goes through all.
    pub(crate) fn filtered_segment(
        &self,
        partition: &Arc<Partition>,
        block: &Arc<BlockInfo>,
        number: usize,
        filter: &Filter,
    ) -> Result<Vec<Item>, Error> {
        let services = filter.services_in(partition);
        if !filter.may_be_in(block, number, services.as_deref()) {
            return Ok(Vec::new());
        }
        let mut open = OpenBlock::new(partition, block);
        let segment = open.segment(number)?;
        let traces = open.traces()?;
        let rows = filter.segment_rows(partition, block, number, &segment, services.as_deref(), Some(&traces))?;
        if rows.len() > 64 {
            open.index_families(|_| true)?;
        }
        open.segment_items(number, &rows)
    }

    pub(crate) fn filtered_batch(&self, batch: &Batch, filter: &Filter) -> Result<Vec<Item>, Error> {
        filter.batch_rows(batch)?.into_iter().map(|row| super::item::from_batch(batch, row as usize)).collect()
    }
}

/// Whether a row is wanted, by its kind (severity of a log record), trace and time.
pub type Keep<'a> = dyn Fn(u8, Option<TraceId>, u64) -> bool + 'a;

/// A block that a question has opened: its trace table and its segments, as they are needed.
pub(crate) struct OpenBlock {
    pub partition: Arc<Partition>,
    pub block: Arc<BlockInfo>,
    traces: Option<Arc<TraceTable>>,
    segments: Vec<Option<Arc<Segment>>>,
    /// The rows of traces that were asked for, in block order.
    families: HashMap<u32, Arc<Vec<u32>>>,
}

impl OpenBlock {
    pub fn new(partition: &Arc<Partition>, block: &Arc<BlockInfo>) -> OpenBlock {
        OpenBlock {
            partition: partition.clone(),
            block: block.clone(),
            traces: None,
            segments: vec![None; block.directory.segments.len()],
            families: HashMap::new(),
        }
    }

    pub fn traces(&mut self) -> Result<Arc<TraceTable>, Error> {
        if let Some(traces) = &self.traces {
            return Ok(traces.clone());
        }
        let traces = Arc::new(self.partition.traces(&self.block)?);
        self.traces = Some(traces.clone());
        Ok(traces)
    }

    pub fn segment(&mut self, number: usize) -> Result<Arc<Segment>, Error> {
        if let Some(segment) = &self.segments[number] {
            return Ok(segment.clone());
        }
        let segment = Arc::new(self.partition.segment(&self.block, number)?);
        self.segments[number] = Some(segment.clone());
        Ok(segment)
    }

    /// The rows of a trace, in the order of the block.
    pub fn family(&mut self, trace: u32) -> Result<Arc<Vec<u32>>, Error> {
        if let Some(rows) = self.families.get(&trace) {
            return Ok(rows.clone());
        }
        let traces = self.traces()?;
        let of_row = traces.of_row().map_err(Error::damaged(&self.partition.path))?;
        let rows: Vec<u32> = of_row.iter().enumerate().filter(|(_, t)| **t == trace).map(|(row, _)| row as u32).collect();
        let rows = Arc::new(rows);
        self.families.insert(trace, rows.clone());
        Ok(rows)
    }

    /// Finds the rows of many traces at once, before their rows are read.
    pub fn index_families(&mut self, wanted: impl Fn(u32) -> bool) -> Result<(), Error> {
        let mut families: HashMap<u32, Vec<u32>> = HashMap::new();
        let traces = self.traces()?;
        for (row, trace) in traces.of_row().map_err(Error::damaged(&self.partition.path))?.iter().enumerate() {
            if wanted(*trace) {
                families.entry(*trace).or_default().push(row as u32);
            }
        }
        self.families = families.into_iter().map(|(trace, rows)| (trace, Arc::new(rows))).collect();
        Ok(())
    }

    /// The rows of a segment that are to be kept; `wanted` collects their traces.
    fn kept_rows(&mut self, number: usize, keep: &Keep<'_>, wanted: &mut HashSet<u32>) -> Result<Vec<u32>, Error> {
        let (segment, traces) = (self.segment(number)?, self.traces()?);
        let damaged = Error::damaged(&self.partition.path);
        let times = segment.times().map_err(&damaged)?;
        let of_row = traces.of_row().map_err(&damaged)?;
        let start = self.block.directory.segments[number].rows.start;
        let mut kept = Vec::new();
        for lane in &segment.lanes {
            for row in lane.rows.clone() {
                if keep(lane.kind, traces.id_of(start + row).map_err(&damaged)?, times[row]) {
                    kept.push(row as u32);
                    wanted.insert(of_row[start + row]);
                }
            }
        }
        Ok(kept)
    }

    /// The rows that pass a filter, segment by segment: ordinals of the block with their times. Returns how many rows were looked at.
    pub fn matching(&mut self, filter: &Filter, mut found: impl FnMut(u32, u64)) -> Result<u64, Error> {
        let (partition, block) = (self.partition.clone(), self.block.clone());
        let services = filter.services_in(&partition);
        let mut looked_at = 0;
        for (number, info) in block.directory.segments.iter().enumerate() {
            if !filter.may_be_in(&block, number, services.as_deref()) {
                continue;
            }
            let traces = if filter.trace_id.is_some() { Some(self.traces()?) } else { None };
            let segment = self.segment(number)?;
            looked_at += segment.rows as u64;
            let rows = filter.segment_rows(&partition, &block, number, &segment, services.as_deref(), traces.as_deref())?;
            if rows.is_empty() {
                // Most segments that a search looks at have nothing for it, and each is a megabyte or two once it is inflated.
                self.segments[number] = None;
            } else {
                let times = segment.times().map_err(Error::damaged(&partition.path))?;
                rows.into_iter().for_each(|row| found(info.rows.start as u32 + row, times[row as usize]));
            }
        }
        Ok(looked_at)
    }

    /// Where a row of the block is: segment, and row in it.
    pub fn place_of(&self, row: u32) -> (usize, u32) {
        let segments = &self.block.directory.segments;
        let number = segments.partition_point(|s| s.rows.end <= row as usize);
        (number, row - segments[number].rows.start as u32)
    }

    /// Takes rows (ascending ordinals of the block) out.
    pub fn items(&mut self, rows: &[u32]) -> Result<Vec<Item>, Error> {
        let mut items = Vec::with_capacity(rows.len());
        let mut at = 0;
        while at < rows.len() {
            let (number, _) = self.place_of(rows[at]);
            let range = self.block.directory.segments[number].rows.clone();
            let end = at + rows[at..].iter().take_while(|row| (**row as usize) < range.end).count();
            let local: Vec<u32> = rows[at..end].iter().map(|row| row - range.start as u32).collect();
            items.extend(self.segment_items(number, &local)?);
            at = end;
        }
        Ok(items)
    }

    /// Takes rows (ascending ordinals of the segment) out of a segment.
    pub fn segment_items(&mut self, number: usize, rows: &[u32]) -> Result<Vec<Item>, Error> {
        let segment = self.segment(number)?;
        let (partition, block, traces) = (self.partition.clone(), self.block.clone(), self.traces()?);
        super::item::from_segment(&partition, &block, number, &segment, &traces, rows, |trace, rank| {
            let row = self.family(trace)?.get(rank as usize).copied();
            let row = row.ok_or_else(|| Error::damaged(&partition.path)(Damaged("a parent beyond its trace")))?;
            let (number, row) = self.place_of(row);
            self.segment(number)?.span(row as usize).map_err(Error::damaged(&partition.path))
        })
    }
}

/// The blocks that a question has open, so that its second step finds what the first has read.
#[derive(Default)]
pub(crate) struct OpenBlocks {
    by_id: HashMap<(*const Partition, i64), OpenBlock>,
}

impl OpenBlocks {
    /// A block with all segments read takes a few megabytes.
    const KEPT_MAX: usize = 16;

    pub fn get(&mut self, partition: &Arc<Partition>, block: &Arc<BlockInfo>) -> &mut OpenBlock {
        // The partition cannot go while a block of it is held here, so its address names it.
        let key = (Arc::as_ptr(partition), block.id);
        if self.by_id.len() >= Self::KEPT_MAX && !self.by_id.contains_key(&key) {
            self.by_id.clear();
        }
        self.by_id.entry(key).or_insert_with(|| OpenBlock::new(partition, block))
    }

    /// Lets go of a block that had nothing for the question.
    pub fn close(&mut self, partition: &Arc<Partition>, block: &BlockInfo) {
        self.by_id.remove(&(Arc::as_ptr(partition), block.id));
    }
}
