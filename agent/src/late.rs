//! Instruments that are made when they are first used: layers and clients are often made before the agent is set up, and what is made then counts nowhere.

use opentelemetry::metrics::{Counter, Histogram, Meter};
use std::sync::{Arc, LazyLock};

pub(crate) type Late<T> = Arc<LazyLock<T, Box<dyn FnOnce() -> T + Send>>>;

pub(crate) fn late<T>(make: impl FnOnce() -> T + Send + 'static) -> Late<T> {
    Arc::new(LazyLock::new(Box::new(make)))
}

/// The one of the agent's own instruments.
pub(crate) fn meter() -> Meter {
    opentelemetry::global::meter("firstfall-agent")
}

/// Of seconds, with the upper ends of its buckets.
pub(crate) fn seconds(name: &'static str, buckets: &'static [f64]) -> Late<Histogram<f64>> {
    late(move || meter().f64_histogram(name).with_unit("s").with_boundaries(buckets.to_vec()).build())
}

pub(crate) fn counter(name: &'static str, unit: &'static str) -> Late<Counter<u64>> {
    late(move || meter().u64_counter(name).with_unit(unit).build())
}
