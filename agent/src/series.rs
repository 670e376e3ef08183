//! The series of a histogram that calls are counted in, each bound to its attributes once: what is measured then is not looked up by every key and value.

use opentelemetry::KeyValue;
use opentelemetry::metrics::{BoundHistogram, Histogram};
use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

/// Series that are kept bound; what comes after is counted the usual way, up to the SDK's own limit of 2,000.
const SERIES_MAX: usize = 1_000;

/// Method, scheme, version, port, status.
pub(crate) type Rest = (&'static str, Option<&'static str>, Option<&'static str>, Option<u16>, u16);

#[derive(Debug, Default)]
struct Bound {
    /// By route or host.
    places: HashMap<Box<str>, Vec<(Rest, BoundHistogram<f64>)>>,
    count: usize,
}

#[derive(Debug)]
pub(crate) struct Series {
    histogram: Histogram<f64>,
    bound: RwLock<Bound>,
}

impl Series {
    pub fn new(histogram: Histogram<f64>) -> Series {
        Series { histogram, bound: RwLock::default() }
    }

    pub fn record_any(&self, value: f64, attributes: &[KeyValue]) {
        self.histogram.record(value, attributes);
    }

    /// `attributes` must follow from place and rest.
    pub fn record(&self, value: f64, place: &str, rest: Rest, attributes: impl FnOnce() -> Vec<KeyValue>) {
        {
            let bound = self.bound.read().unwrap_or_else(PoisonError::into_inner);
            let known = bound.places.get(place).and_then(|series| series.iter().find(|(known, _)| *known == rest));
            if let Some((_, series)) = known {
                return series.record(value);
            }
            if bound.count >= SERIES_MAX {
                drop(bound);
                return self.histogram.record(value, &attributes());
            }
        }
        let attributes = attributes();
        self.histogram.record(value, &attributes);
        let mut bound = self.bound.write().unwrap_or_else(PoisonError::into_inner);
        let known = bound.places.entry(place.into()).or_default();
        // Somebody else may have come first.
        if !known.iter().any(|(known, _)| *known == rest) {
            known.push((rest, self.histogram.bind(&attributes)));
            bound.count += 1;
        }
    }
}
