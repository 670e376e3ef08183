//! The *past*: what a store holds at one moment, to be read in order while more comes.

use crate::batch::Batch;
use crate::partition::lock;
use crate::query::{Budget, Source};
use crate::rebuild::batch_of;
use crate::{Error, Nanos, Reader, Signal};
use std::sync::atomic::Ordering;

/// Nothing that is accepted later is in it. While it lives no blocks are merged, as the old ones go with that.
pub struct Past {
    reader: Reader,
    sources: [Vec<Source>; 3],
}

impl Reader {
    pub fn past(&self) -> Past {
        self.shared.pasts.fetch_add(1, Ordering::AcqRel);
        // A merge that is under way ends first; the next ones see the count.
        let _merging = lock(&self.shared.merging);
        Past { reader: self.clone(), sources: Signal::ALL.map(|signal| self.sources(signal)) }
    }
}

impl Drop for Past {
    fn drop(&mut self) {
        self.reader.shared.pasts.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Past {
    /// Everything of a signal that may lie between two times, in the order of its earliest time, batch by batch, with that time. A batch may hold
    /// rows outside of the range.
    pub fn read(&self, signal: Signal, from: Nanos, to: Nanos, budget: &Budget, mut each: impl FnMut(Nanos, &Batch)) -> Result<(), Error> {
        let mut sources: Vec<((Nanos, Nanos), &Source)> = self.sources[signal as usize]
            .iter()
            .map(|source| (source.times(), source))
            .filter(|((min, max), _)| *min <= to && *max >= from)
            .collect();
        sources.sort_by_key(|(times, _)| *times);
        for ((earliest, _), source) in sources {
            budget.check()?;
            match source {
                Source::Live(batch) => each(earliest, batch),
                Source::Block { partition, block } => each(earliest, &batch_of(&self.reader, partition, std::slice::from_ref(block))?),
            }
        }
        Ok(())
    }

    /// The latest time of any row.
    pub fn newest(&self) -> Nanos {
        self.sources.iter().flatten().map(|source| source.times().1).max().unwrap_or(0)
    }
}
