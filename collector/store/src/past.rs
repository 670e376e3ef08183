//! The *past*: what a store holds at one moment, to be read in order while more comes.

use crate::batch::Batch;
use crate::partition::lock;
use crate::query::{Budget, Keep, Source};
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
    fn between(&self, signal: Signal, from: Nanos, to: Nanos) -> impl Iterator<Item = ((Nanos, Nanos), &Source)> {
        let timed = self.sources[signal as usize].iter().map(|source| (source.times(), source));
        timed.filter(move |((min, max), _)| *min <= to && *max >= from)
    }

    /// How many rows `read` goes through.
    pub fn rows(&self, signal: Signal, from: Nanos, to: Nanos) -> usize {
        let rows = |source: &Source| match source {
            Source::Live(batch) => batch.rows(),
            Source::Block { block, .. } => block.rows,
        };
        self.between(signal, from, to).map(|(_, source)| rows(source)).sum()
    }

    /// What of a signal may lie between two times and is to be kept, in the order of its earliest time, batch by batch, with that time. A batch
    /// may hold rows outside of the range, and one that is not in a block yet also those that are not to be kept.
    pub fn read(
        &self,
        signal: Signal,
        from: Nanos,
        to: Nanos,
        budget: &Budget,
        keep: Option<&Keep<'_>>,
        mut each: impl FnMut(Nanos, &Batch),
    ) -> Result<(), Error> {
        let mut sources: Vec<((Nanos, Nanos), &Source)> = self.between(signal, from, to).collect();
        sources.sort_by_key(|(times, _)| *times);
        for ((earliest, _), source) in sources {
            budget.check()?;
            match source {
                Source::Live(batch) => each(earliest, batch),
                Source::Block { partition, block } => {
                    each(earliest, &batch_of(&self.reader, partition, std::slice::from_ref(block), keep)?)
                }
            }
        }
        Ok(())
    }

    /// The latest time of any row.
    pub fn newest(&self) -> Nanos {
        self.sources.iter().flatten().map(|source| source.times().1).max().unwrap_or(0)
    }
}
