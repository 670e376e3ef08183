//! The lean layer as a whole subscriber, for a service that has no layers of its own: `tracing`'s registry, which keeps for each span what other layers might
//! want to know, takes a third of the time of a span, and is left out. A span ends with its last handle; the registry would keep
//! it open as long as a child of it is, such as a task that goes on after its request.

use super::table::Table;
use super::{ENTERED, Lean};
use crate::setup::{OfInterest, has_colours};
use crate::wire;
use std::fmt;
use std::sync::Arc;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_core::span::Current;
use tracing_log::NormalizeEvent;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::registry::LookupSpan;

/// See the module.
pub(crate) struct Alone {
    lean: Lean,
    of_interest: OfInterest,
    /// Writes to stderr what `RUST_LOG` asks for. It is told of events only.
    terminal: Box<dyn Subscriber + Send + Sync>,
    /// The most that it wants.
    shown: LevelFilter,
}

impl Alone {
    pub fn new(mut lean: Lean, of_interest: OfInterest, shown: EnvFilter) -> Alone {
        lean.spans = Arc::new(Table::new(true));
        let within = WithinSpans { spans: Arc::clone(&lean.spans), layer: lean.number };
        let terminal = tracing_subscriber::fmt()
            .with_ansi(has_colours())
            .with_writer(std::io::stderr)
            .event_format(within)
            .with_env_filter(shown)
            .finish();
        let shown = terminal.max_level_hint().unwrap_or(LevelFilter::TRACE);
        Alone { lean, of_interest, terminal: Box::new(terminal), shown }
    }

    pub(super) fn lean(&self) -> &Lean {
        &self.lean
    }

    fn spans(&self) -> &Table {
        &self.lean.spans
    }
}

impl Subscriber for Alone {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        let exported = self.of_interest.interest(metadata);
        if metadata.is_span() {
            return exported;
        }
        // One of the two is enough; which of them it is, `event` asks again.
        let shown = self.terminal.register_callsite(metadata);
        if exported.is_always() || shown.is_never() { exported } else { shown }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        if metadata.is_span() {
            return self.of_interest.has(metadata) && !self.lean.passes_over(metadata);
        }
        self.of_interest.has(metadata) || (*metadata.level() <= self.shown && self.terminal.enabled(metadata))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.of_interest.most().max(self.shown))
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let state = self.lean.begin(attributes);
        let id = Table::id(state.span);
        self.spans().insert(&id, state);
        id
    }

    fn record(&self, id: &Id, values: &Record<'_>) {
        self.lean.record(id, values);
    }

    fn record_follows_from(&self, id: &Id, follows: &Id) {
        self.lean.follows_from(id, follows);
    }

    fn event(&self, event: &Event<'_>) {
        // A record of the `log` crate says by its fields where it comes from.
        let of_log = event.normalized_metadata();
        let metadata = of_log.as_ref().unwrap_or(event.metadata());
        if self.of_interest.has(metadata) {
            self.lean.event(event);
        }
        if *metadata.level() <= self.shown && self.terminal.enabled(metadata) {
            self.terminal.event(event);
        }
    }

    fn enter(&self, id: &Id) {
        self.lean.enter(id);
    }

    fn exit(&self, id: &Id) {
        self.lean.exit(id);
    }

    fn clone_span(&self, id: &Id) -> Id {
        self.spans().with(id, |state| state.handles += 1);
        id.clone()
    }

    fn try_close(&self, id: Id) -> bool {
        let closed = self.spans().release(&id);
        let is_closed = closed.is_some();
        if let Some(state) = closed {
            self.lean.end(state);
        }
        is_closed
    }

    fn current_span(&self) -> Current {
        let innermost = self.lean.innermost(|above| (above.id.clone(), above.code));
        innermost.map_or_else(Current::none, |(id, code)| Current::new(id, code))
    }
}

/// A line as `tracing_subscriber` writes it, within the spans that are entered here, each with its fields.
struct WithinSpans {
    spans: Arc<Table>,
    layer: u32,
}

impl WithinSpans {
    fn write(&self, out: &mut Writer<'_>) -> fmt::Result {
        let entered = ENTERED.try_with(|stack| {
            stack.borrow().iter().filter(|entered| entered.layer == self.layer).map(|entered| entered.span.id.clone()).collect::<Vec<_>>()
        });
        for id in entered.iter().flatten() {
            let written = self.spans.with(id, |state| {
                // A name may be given by what came in.
                write!(out, "{}", state.name().escape_debug())?;
                let mut between = '{';
                let mut result = Ok(());
                wire::each_attribute(&state.attributes, |key, value| {
                    result = result.and_then(|()| write!(out, "{between}{key}={}", wire::Shown(value)));
                    between = ' ';
                });
                result.and_then(|()| out.write_str(if between == ' ' { "}:" } else { ":" }))
            });
            written.unwrap_or(Ok(()))?;
        }
        if entered.is_ok_and(|entered| !entered.is_empty()) { out.write_char(' ') } else { Ok(()) }
    }
}

impl<S, N> FormatEvent<S, N> for WithinSpans
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let of_log = event.normalized_metadata();
        let metadata = of_log.as_ref().unwrap_or(event.metadata());
        SystemTime.format_time(&mut out)?;
        let colour = match *metadata.level() {
            Level::ERROR => 31,
            Level::WARN => 33,
            Level::INFO => 32,
            Level::DEBUG => 34,
            Level::TRACE => 35,
        };
        match out.has_ansi_escapes() {
            true => write!(out, " \x1b[{colour}m{:>5}\x1b[0m ", metadata.level())?,
            false => write!(out, " {:>5} ", metadata.level())?,
        }
        self.write(&mut out)?;
        write!(out, "{}: ", metadata.target())?;
        context.format_fields(out.by_ref(), event)?;
        writeln!(out)
    }
}
