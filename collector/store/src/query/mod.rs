//! Questions and answers: plain structs in, plain structs out, over sealed blocks and the live generation together.
//!
//! Every question has a `Budget`: a deadline, and a flag by which its caller can stop it. A question looks at the newest data
//! first and stops as soon as nothing older can be in its answer. How rows are chosen is in `filter`, how a row becomes an `Item`
//! in `item`; `traces`, `logs` and `services` are the questions.

mod filter;
mod item;
mod logs;
mod services;
mod source;
mod traces;

pub use filter::{Filter, Word, words};
pub use item::Item;
pub use logs::{LogAnswer, LogBucket, LogQuestion};
pub use services::{Instance, Operation, Point, ServiceQuestion, ServiceSummary};
pub use traces::{SearchAnswer, SearchQuestion, TraceAnswer, TraceSummary};

pub use source::Keep;
pub(crate) use source::Source;

use crate::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a question may take, and whether anyone still waits for it.
#[derive(Clone)]
pub struct Budget {
    deadline: Instant,
    stopped: Arc<AtomicBool>,
}

impl Budget {
    pub fn new(time: Duration) -> Budget {
        Budget { deadline: Instant::now() + time, stopped: Arc::default() }
    }

    /// Set it to end the question at its next step, when its caller has gone.
    pub fn stop_flag(&self) -> Arc<AtomicBool> {
        self.stopped.clone()
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.stopped.load(Ordering::Relaxed) || Instant::now() > self.deadline { Err(Error::Deadline) } else { Ok(()) }
    }
}

impl Default for Budget {
    /// Ten seconds: longer than any page should take, shorter than a browser's patience.
    fn default() -> Self {
        Budget::new(Duration::from_secs(10))
    }
}

/// Runs a question again when a merge replaced a block under it. Merges are seconds apart, so the second try meets none.
pub(crate) fn again_if_moved<T>(mut ask: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    for _ in 0..3 {
        match ask() {
            Err(Error::Moved) => {}
            other => return other,
        }
    }
    ask()
}
