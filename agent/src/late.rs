//! Instruments of layers and clients, which are often made before the agent is set up, when what they count would go nowhere: they are made at the set-up then, and
//! until that count nothing.
//!
//! Never at their first use: a meter is held while the callbacks of the service are asked, and one of them may be what uses them first.

use opentelemetry::metrics::{Counter, Histogram, Meter};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

/// How many are remembered before those are looked for that have gone meanwhile.
const WAITING_MAX: usize = 1_000;

/// Those that wait for the set-up; none once that was.
static WAITING: Mutex<Option<Vec<Weak<dyn Make>>>> = Mutex::new(Some(Vec::new()));

pub(crate) struct Late<T>(Arc<Slot<T>>);

struct Slot<T> {
    made: OnceLock<T>,
    make: Box<dyn Fn() -> T + Send + Sync>,
}

trait Make: Send + Sync {
    fn make(&self);
}

impl<T: Send + Sync> Make for Slot<T> {
    fn make(&self) {
        self.made.get_or_init(&self.make);
    }
}

impl<T> Late<T> {
    pub fn get(&self) -> Option<&T> {
        self.0.made.get()
    }
}

impl<T> Clone for Late<T> {
    fn clone(&self) -> Late<T> {
        Late(self.0.clone())
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for Late<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.made.fmt(f)
    }
}

pub(crate) fn late<T: Send + Sync + 'static>(make: impl Fn() -> T + Send + Sync + 'static) -> Late<T> {
    let slot = Arc::new(Slot { made: OnceLock::new(), make: Box::new(make) });
    let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(waiting) = &mut *waiting {
        if waiting.len() >= WAITING_MAX {
            waiting.retain(|slot| slot.strong_count() > 0);
        }
        let slot: Arc<dyn Make> = slot.clone();
        waiting.push(Arc::downgrade(&slot));
    } else {
        drop(waiting);
        slot.make();
    }
    Late(slot)
}

/// The agent's meters are there: makes what has waited for them, and from now on everything at once.
pub(crate) fn meters_are_there() {
    let waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner).take();
    waiting.into_iter().flatten().filter_map(|slot| slot.upgrade()).for_each(|slot| slot.make());
}

/// The one of the agent's own instruments.
pub(crate) fn meter() -> Meter {
    opentelemetry::global::meter("firstfall-agent")
}

pub(crate) fn histogram(name: &'static str, buckets: &[f64]) -> Histogram<f64> {
    meter().f64_histogram(name).with_unit("s").with_boundaries(buckets.to_vec()).build()
}

/// Of seconds, with the upper ends of its buckets.
pub(crate) fn seconds(name: &'static str, buckets: &'static [f64]) -> Late<Histogram<f64>> {
    late(move || histogram(name, buckets))
}

pub(crate) fn counter(name: &'static str, unit: &'static str) -> Late<Counter<u64>> {
    late(move || meter().u64_counter(name).with_unit(unit).build())
}
