//! What became of every item: exported, still here, or dropped, and why. What is accepted is always the sum of these.

use super::Signal;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why an item was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Loss {
    /// The queue was full: items came faster than they went out.
    QueueFull,
    /// The collector answered that it will never take the request.
    Refused,
    /// The collector took the request and rejected a part of its items.
    Rejected,
    /// The spool was full, and these were its oldest.
    SpoolFull,
    /// They had waited in the spool for too long.
    SpoolExpired,
    /// The spool could not be written or read.
    SpoolFailed,
    /// The process ended before they could be sent.
    Shutdown,
}

impl Loss {
    /// Each of them.
    pub const ALL: &'static [Loss] =
        &[Loss::QueueFull, Loss::Refused, Loss::Rejected, Loss::SpoolFull, Loss::SpoolExpired, Loss::SpoolFailed, Loss::Shutdown];

    /// As the value of `error.type`.
    pub fn name(self) -> &'static str {
        match self {
            Loss::QueueFull => "queue_full",
            Loss::Refused => "refused",
            Loss::Rejected => "rejected",
            Loss::SpoolFull => "spool_full",
            Loss::SpoolExpired => "spool_expired",
            Loss::SpoolFailed => "spool_failed",
            Loss::Shutdown => "shutdown",
        }
    }
}

#[derive(Default, Debug)]
pub(crate) struct Counts {
    accepted: [AtomicU64; 3],
    exported: [AtomicU64; 3],
    kept: [AtomicU64; 3],
    dropped: [[AtomicU64; Loss::ALL.len()]; 3],
    /// Processor time of the two threads of export, nanoseconds.
    pub cpu_ns: [AtomicU64; 2],
}

impl Counts {
    pub fn accept(&self, signal: Signal, items: u64) {
        self.accepted[signal as usize].fetch_add(items, Ordering::Relaxed);
    }

    pub fn export(&self, signal: Signal, items: u64) {
        self.exported[signal as usize].fetch_add(items, Ordering::Relaxed);
    }

    pub fn keep(&self, signal: Signal, items: u64) {
        self.kept[signal as usize].fetch_add(items, Ordering::Relaxed);
    }

    pub fn lose(&self, signal: Signal, loss: Loss, items: u64) {
        self.dropped[signal as usize][loss as usize].fetch_add(items, Ordering::Relaxed);
    }

    /// Without those accepted that only the queue has counted.
    pub fn of(&self, signal: Signal) -> Account {
        let at = signal as usize;
        Account {
            accepted: self.accepted[at].load(Ordering::Relaxed),
            exported: self.exported[at].load(Ordering::Relaxed),
            kept: self.kept[at].load(Ordering::Relaxed),
            dropped: std::array::from_fn(|loss| self.dropped[at][loss].load(Ordering::Relaxed)),
        }
    }
}

/// The account of one signal since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Account {
    /// Items that were offered: all of them are exported, dropped, or still under way.
    pub accepted: u64,
    /// The collector has taken them.
    pub exported: u64,
    /// Left in the spool at the end, for the next process.
    pub kept: u64,
    pub(super) dropped: [u64; Loss::ALL.len()],
}

impl Default for Account {
    fn default() -> Account {
        Counts::default().of(Signal::Spans)
    }
}

impl Account {
    /// How many were dropped for this reason.
    pub fn dropped(&self, loss: Loss) -> u64 {
        self.dropped[loss as usize]
    }

    /// For whatever reason.
    pub fn dropped_in_all(&self) -> u64 {
        self.dropped.iter().sum()
    }

    /// In the queue or the spool.
    pub fn under_way(&self) -> u64 {
        self.accepted.saturating_sub(self.exported + self.kept + self.dropped_in_all())
    }
}
