//! The subscriber of the agent's own threads: what libraries say there is dropped.

use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::{DefaultGuard, Interest};
use tracing::{Event, Metadata, Subscriber};

/// Says of every place in the code that it is of interest, and of no level: what all subscribers of a process say of a place is put together, and if one
/// of them says no, the others are asked at each span whether they still want it. The price: places that everybody else would say no to for good, at a level
/// that somebody wants, are asked each time.
struct Quiet;

/// As long as the guard lives nothing is heard of this thread.
pub(crate) fn silence() -> DefaultGuard {
    tracing::subscriber::set_default(Quiet)
}

impl Subscriber for Quiet {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::always()
    }
    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::OFF)
    }
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        false
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}
