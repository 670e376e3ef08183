//! A *generation*: what was accepted since the last one was sealed. One journal file keeps it, and queries see it from here.

use crate::Signal;
use crate::batch::Batch;
use crate::partition::{BlockInfo, Partition};
use crate::recent::{Answer, RequestHash};
use crate::rollup::{Cardinality, Rollups};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

/// A generation that is not sealed yet: its batches are durable in the journal and visible to queries from here.
pub(crate) struct Generation {
    pub number: u64,
    pub opened: Instant,
    pub content: RwLock<GenerationContent>,
    /// What of it is in partitions already. It is shown once all of it is: a try that fails in between is taken up where it ended.
    pub(crate) sealed: Mutex<Vec<SealedPart>>,
}

pub(crate) type SealedPart = (Signal, Arc<Partition>, Vec<Arc<BlockInfo>>);

pub(crate) struct GenerationContent {
    /// By signal.
    pub batches: [Vec<Arc<Batch>>; 3],
    pub rollups: [Rollups; 3],
    pub rows: [usize; 3],
    pub bytes: usize,
    pub requests: [Vec<(RequestHash, u64, Answer)>; 3],
}

impl Generation {
    pub(crate) fn new(number: u64, cardinality: Cardinality) -> Generation {
        Generation {
            number,
            opened: Instant::now(),
            sealed: Mutex::default(),
            content: RwLock::new(GenerationContent {
                batches: Default::default(),
                rollups: Signal::ALL.map(|signal| Rollups::new(signal, cardinality)),
                rows: [0; 3],
                bytes: 0,
                requests: Default::default(),
            }),
        }
    }

    /// Returns how many rows were counted under `(other)`.
    pub(crate) fn add(&self, batch: Arc<Batch>, hash: RequestHash, received: u64, answer: Answer) -> u64 {
        let mut content = self.content.write().unwrap_or_else(PoisonError::into_inner);
        let signal = batch.signal as usize;
        let overflowed = content.rollups[signal].add(&batch);
        content.rows[signal] += batch.rows();
        content.bytes += batch.byte_len();
        content.requests[signal].push((hash, received, answer));
        content.batches[signal].push(batch);
        overflowed
    }

    pub fn batches(&self, signal: Signal) -> Vec<Arc<Batch>> {
        self.content.read().unwrap_or_else(PoisonError::into_inner).batches[signal as usize].clone()
    }
}
