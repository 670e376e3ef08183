//! The short way from `tracing` to OTLP: spans and events are encoded straight into the queue's format, without OpenTelemetry's SDK in between, at a third of its
//! cost on the calling thread.
//!
//! What is asked of it is the same: contexts, propagators and spans of OpenTelemetry's API work with it in both directions. While one of its spans is
//! entered, `opentelemetry::Context::current()` has it as its active span; one that begins while a span of the API is active is its child.
//! `tracing_opentelemetry::OpenTelemetrySpanExt` does not reach it (that trait asks for its own layer, and does nothing here); [`SpanExt`] does, under both.

mod ext;
mod state;
mod subscriber;
mod table;

use crate::export::{Exporter, Signal};
use crate::sampling::{Sampling, with_threshold};
use crate::wire;
pub(crate) use ext::RecordNumber;
pub use ext::SpanExt;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId};
use opentelemetry::{Context, ContextGuard, InstrumentationScope};
use state::{IntoLog, IntoSpan, KEPT_BYTES_MAX, State, random};
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};
pub(crate) use subscriber::Alone;
use table::{Table, fresh, give_back};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{self, Layer};

thread_local! {
    /// Spans that are entered on this thread, the innermost last. Made after OpenTelemetry's own place for what is current, and so gone before it when the
    /// thread ends: what finds this gone must not ask for that.
    static ENTERED: RefCell<Vec<Entered>> = RefCell::new(Context::map_current(|_| Vec::new()));
    /// Where a log record is written before it is queued; a record that is made meanwhile finds none, and makes its own.
    static RECORD: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

struct Entered {
    /// The layer whose span it is.
    layer: u32,
    span: Above,
    /// While it lives, OpenTelemetry has the span as its current one.
    guard: ContextGuard,
}

/// What those that begin within a span want to know of it, without looking it up.
#[derive(Clone)]
struct Above {
    id: Id,
    code: &'static Metadata<'static>,
    trace: TraceId,
    span: u64,
    flags: TraceFlags,
    recorded: bool,
    /// It came with values of its own, such as baggage.
    has_around: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Lean {
    exporter: Exporter,
    sampling: Sampling,
    scope: InstrumentationScope,
    wanted: [bool; 3],
    spans: Arc<Table>,
    /// Tells the spans of two such layers in one process apart, whose ids are the same numbers.
    number: u32,
    /// See [`may_be_passed_over`].
    others: LevelFilter,
}

/// Whether a span of this place in the code need not be made within one that is not taken: nobody else wants to see it, and it does not say its kind. Those
/// that do are the ends of calls, which may get a parent elsewhere.
pub(crate) fn may_be_passed_over(metadata: &Metadata<'_>, others: LevelFilter) -> bool {
    metadata.is_span() && *metadata.level() > others && metadata.fields().field("otel.kind").is_none()
}

impl Above {
    fn of(id: &Id, state: &State) -> Above {
        let (code, trace, span, flags, recorded) = (state.code, state.trace, state.span, state.flags, state.recorded);
        Above { id: id.clone(), code, trace, span, flags, recorded, has_around: state.around.is_some() }
    }
}

/// What OpenTelemetry has as current, while the thread has not ended yet.
fn current<R>(look: impl FnOnce(&Context) -> R) -> Option<R> {
    ENTERED.try_with(|_| ()).ok().map(|()| Context::map_current(look))
}

impl Lean {
    /// `others` is the level from which on another layer may want to see a span; where none is known, all of them may.
    pub fn new(exporter: Exporter, sampling: Sampling, wanted: [bool; 3], others: LevelFilter) -> Lean {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let scope = InstrumentationScope::builder("firstfall-agent").build();
        Lean {
            exporter,
            sampling,
            scope,
            wanted,
            spans: Arc::new(Table::new(false)),
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            others,
        }
    }

    fn innermost<R>(&self, look: impl FnOnce(&Above) -> R) -> Option<R> {
        ENTERED
            .try_with(|stack| stack.borrow().iter().rfind(|entered| entered.layer == self.number).map(|entered| look(&entered.span)))
            .ok()?
    }

    /// A span has got another parent while it is entered here: what begins within it goes along.
    fn moved(&self, id: &Id, state: &State) {
        let _ = ENTERED.try_with(|stack| {
            for entered in stack.borrow_mut().iter_mut().filter(|entered| entered.layer == self.number && entered.span.id == *id) {
                entered.span = Above::of(id, state);
            }
        });
    }

    /// Gives a span its place: within the span of tracing that it is in, unless one of the API has begun within that.
    fn place(&self, state: &mut State, attributes: &Attributes<'_>) {
        // A parent that the code names is the parent, whatever is current.
        if let Some(parent) = attributes.parent() {
            let around = self.spans.with(parent, |above| {
                state.inherit(above);
                above.around.clone()
            });
            if let Some(around) = around {
                state.around = around;
                return;
            }
        } else if attributes.is_root() {
            return state.begin(&self.sampling);
        }
        let above = if attributes.is_contextual() { self.innermost(Above::clone) } else { None };
        let found = current(|current| {
            let active = current.span();
            let active = active.span_context();
            match &above {
                Some(above) if active.trace_id() == above.trace && active.span_id() == SpanId::from(above.span) => {
                    (state.trace, state.parent, state.flags, state.recorded) = (above.trace, above.span, above.flags, above.recorded);
                    state.trace_state = active.trace_state().clone();
                    // Within a span that came with values of its own, what is current may have more of them by now.
                    state.around = above.has_around.then(|| current.clone());
                    true
                }
                // Another trace is only followed where it came in from elsewhere: a request within the span of its connection.
                Some(above) if active.trace_id() != above.trace && !active.is_remote() => false,
                _ if active.is_valid() => {
                    state.follow(active, &self.sampling);
                    let has_around = active.is_remote() || above.as_ref().is_some_and(|above| above.has_around);
                    state.around = has_around.then(|| current.clone());
                    true
                }
                _ => false,
            }
        });
        let inherited = |above: &Above| self.spans.with(&above.id, |above| state.inherit(above));
        if found != Some(true) && above.as_ref().and_then(inherited).is_none() {
            state.begin(&self.sampling);
        }
    }

    fn send(&self, state: &State) {
        let end = wire::nanos(SystemTime::now());
        let took = Duration::from_nanos(end.saturating_sub(state.start));
        let header;
        let trace_state =
            if self.sampling.keeps(state.status == 2, took) && (!state.flags.is_sampled() || state.trace_state.get("ot").is_some()) {
                header = with_threshold(&state.trace_state, Some(0)).header();
                &header
            } else if state.flags.is_sampled() {
                header = state.trace_state.header();
                &header
            } else {
                return;
            };
        let span = wire::Span {
            trace: state.trace.to_bytes(),
            span: state.span.to_be_bytes(),
            parent: state.parent.to_be_bytes(),
            parent_is_remote: state.parent_is_remote,
            flags: state.flags.to_u8(),
            trace_state,
            name: state.name(),
            kind: state.kind,
            start: state.start,
            end,
            status: state.status,
            status_message: state.status_message.as_deref().unwrap_or(""),
            dropped_attributes: state.dropped,
        };
        self.exporter.push(Signal::Spans, &self.scope, |out| wire::span_of_parts(out, &span, &state.attributes, &state.events));
    }

    /// The span that an event belongs to.
    fn of_event(&self, event: &Event<'_>) -> Option<(TraceId, u64, TraceFlags)> {
        if let Some(of) = event.parent().and_then(|parent| self.spans.with(parent, |state| (state.trace, state.span, state.flags))) {
            return Some(of);
        }
        if !event.is_contextual() {
            return None;
        }
        let above = self.innermost(|above| (above.trace, above.span, above.flags));
        let active = current(|current| {
            let active = current.span();
            let active: &SpanContext = active.span_context();
            active.is_valid().then(|| (active.trace_id(), u64::from_be_bytes(active.span_id().to_bytes()), active.trace_flags()))
        });
        // A span of the API that has begun within one of tracing's is the nearer one.
        match (above, active.flatten()) {
            (Some(above), Some(active)) if active.0 != above.0 => Some(above),
            (above, active) => active.or(above),
        }
    }
}

fn severity(level: Level) -> (u64, &'static str) {
    match level {
        Level::ERROR => (17, "ERROR"),
        Level::WARN => (13, "WARN"),
        Level::INFO => (9, "INFO"),
        Level::DEBUG => (5, "DEBUG"),
        Level::TRACE => (1, "TRACE"),
    }
}

/// What happens to spans and events, whoever keeps their ids.
impl Lean {
    fn passes_over(&self, metadata: &Metadata<'_>) -> bool {
        self.innermost(|above| !above.recorded).unwrap_or(false) && may_be_passed_over(metadata, self.others)
    }

    /// A span that begins, and is not in the table yet.
    fn begin(&self, attributes: &Attributes<'_>) -> Box<State> {
        let mut state = fresh(attributes.metadata());
        (state.span, state.kind) = (random(), 1);
        self.place(&mut state, attributes);
        // The ends of calls may be given a parent yet, and then be taken as it was.
        let metadata = attributes.metadata();
        state.written = state.recorded || metadata.fields().field("otel.kind").is_some();
        if state.written {
            state.start = wire::nanos(SystemTime::now());
            attributes.record(&mut IntoSpan(&mut state));
        }
        state
    }

    fn record(&self, id: &Id, values: &Record<'_>) {
        let Some((written, code)) = self.spans.with(id, |state| (state.written, state.code)) else { return };
        // By themselves first, not under the lock: values are shown by code of the service's, which may look at this very span, or panic.
        let mut later = fresh(code);
        later.written = written;
        values.record(&mut IntoSpan(&mut later));
        self.spans.with(id, |state| state.take_over(&mut later));
        give_back(later);
    }

    fn follows_from(&self, id: &Id, follows: &Id) {
        if let Some(other) = self.spans.with(follows, |other| other.span_context()) {
            self.spans.with(id, |state| state.link(&other));
        }
    }

    fn event(&self, event: &Event<'_>) {
        if !self.wanted[Signal::Logs as usize] {
            return;
        }
        let now = wire::nanos(SystemTime::now());
        let metadata = event.metadata();
        let (number, text) = severity(*metadata.level());
        let of = self.of_event(event);
        // First by itself, then into the queue: what is shown is code of the service's, which may log in its turn, or panic.
        let mut record = RECORD.try_with(Cell::take).unwrap_or_default();
        let out = &mut record;
        wire::log_record(out, now, number, text, of, |out| event.record(&mut IntoLog { out, target: metadata.target() }));
        self.exporter.push(Signal::Logs, &self.scope, |out| out.extend_from_slice(&record));
        if record.capacity() <= KEPT_BYTES_MAX {
            record.clear();
            let _ = RECORD.try_with(|kept| kept.set(record));
        }
    }

    fn enter(&self, id: &Id) {
        if current(|_| ()).is_none() {
            return;
        }
        let entered = self.spans.with(id, |state| {
            let above = Above::of(id, state);
            (state.enter(), above)
        });
        if let Some((context, span)) = entered {
            let guard = context.attach();
            let entered = Entered { layer: self.number, span, guard };
            let _ = ENTERED.try_with(|stack| stack.borrow_mut().push(entered));
        }
    }

    fn exit(&self, id: &Id) {
        let left = ENTERED.try_with(|stack| {
            let mut stack = stack.borrow_mut();
            let at = stack.iter().rposition(|entered| entered.span.id == *id && entered.layer == self.number)?;
            Some(stack.remove(at).guard)
        });
        // What it held may be the last of a context with values of the service's, which go where nothing is borrowed.
        drop(left);
    }

    /// A span that has ended, and is in the table no more.
    fn end(&self, state: Box<State>) {
        if state.recorded && self.wanted[Signal::Spans as usize] {
            self.send(&state);
        }
        give_back(state);
    }
}

impl<S: Subscriber> Layer<S> for Lean {
    fn enabled(&self, metadata: &Metadata<'_>, _: layer::Context<'_, S>) -> bool {
        !self.passes_over(metadata)
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, _: layer::Context<'_, S>) {
        self.spans.insert(id, self.begin(attributes));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: layer::Context<'_, S>) {
        self.record(id, values);
    }

    fn on_follows_from(&self, id: &Id, follows: &Id, _: layer::Context<'_, S>) {
        self.follows_from(id, follows);
    }

    fn on_event(&self, event: &Event<'_>, _: layer::Context<'_, S>) {
        self.event(event);
    }

    fn on_enter(&self, id: &Id, _: layer::Context<'_, S>) {
        self.enter(id);
    }

    fn on_exit(&self, id: &Id, _: layer::Context<'_, S>) {
        self.exit(id);
    }

    fn on_close(&self, id: Id, _: layer::Context<'_, S>) {
        if let Some(state) = self.spans.remove(&id) {
            self.end(state);
        }
    }
}
