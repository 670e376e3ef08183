//! The short way from `tracing` to OTLP: spans and events are encoded straight into the queue's format, without OpenTelemetry's SDK in between, at half of its
//! cost on the calling thread.
//!
//! What is asked of it is the same: contexts, propagators and spans of OpenTelemetry's API work with it in both directions. While one of its spans is
//! entered, `opentelemetry::Context::current()` has it as its active span; one that begins while a span of the API is active is its child.
//! `tracing_opentelemetry::OpenTelemetrySpanExt` does not reach it (that trait asks for its own layer, and does nothing here); [`SpanExt`] does, under both.

use crate::export::{Exporter, Signal};
use crate::sampling::{Sampling, with_threshold};
use crate::wire::{self, Item};
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use opentelemetry::{Context, ContextGuard, InstrumentationScope, Value};
use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use std::hash::{BuildHasher, Hasher};
use std::time::{Duration, SystemTime};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Registry;
use tracing_subscriber::layer::{self, Layer};
use tracing_subscriber::registry::LookupSpan;

/// Bytes of attributes and events of one span; what comes beyond is dropped, and counted in it.
const SPAN_BYTES_MAX: usize = 256 << 10;
/// Buffers that a thread keeps for its next spans, and how large one of these may be.
const POOL: (usize, usize) = (32, 16 << 10);

thread_local! {
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static RANDOM: Cell<u64> = const { Cell::new(0) };
    /// Spans that are entered on this thread, with what makes them OpenTelemetry's current ones.
    static ENTERED: RefCell<Vec<(u64, ContextGuard)>> = const { RefCell::new(Vec::new()) };
}

fn buffer() -> Vec<u8> {
    BUFFERS.try_with(|pool| pool.borrow_mut().pop()).ok().flatten().unwrap_or_else(|| Vec::with_capacity(512))
}

fn give_back(mut buffer: Vec<u8>) {
    if buffer.capacity() > 0 && buffer.capacity() <= POOL.1 {
        buffer.clear();
        let _ = BUFFERS.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < POOL.0 {
                pool.push(buffer);
            }
        });
    }
}

/// Not zero, and not to be guessed from outside; wyrand (Wang Yi), which needs a multiplication.
fn random() -> u64 {
    let step = |seed: u64| {
        let seed = seed.wrapping_add(0xa076_1d64_78bd_642f);
        let product = u128::from(seed) * u128::from(seed ^ 0xe703_7ed1_a0b4_28db);
        (seed, (product as u64) ^ (product >> 64) as u64)
    };
    RANDOM
        .try_with(|state| {
            let seed = match state.get() {
                0 => std::hash::RandomState::new().build_hasher().finish() | 1,
                seed => seed,
            };
            let (seed, drawn) = step(seed);
            state.set(seed);
            drawn.max(1)
        })
        .unwrap_or(1)
}

/// A span on its way, in the registry's extensions.
struct State {
    trace: TraceId,
    span: u64,
    parent: u64,
    parent_is_remote: bool,
    flags: TraceFlags,
    trace_state: TraceState,
    /// It is written down; one that is not taken only passes its ids on.
    recorded: bool,
    start: u64,
    /// 0: not said.
    kind: u8,
    /// 0 unset, 1 ok, 2 error.
    status: u8,
    /// In place of the name that the code gives.
    name: Option<String>,
    status_message: Option<String>,
    /// Fields that have a value, by their index; the first 64 of them.
    seen: u64,
    attributes: Vec<u8>,
    events: Vec<u8>,
    dropped: u32,
    /// What travels with it besides: baggage and other values.
    around: Option<Context>,
    follows_parent: bool,
    records_the_rest: bool,
}

impl Default for State {
    fn default() -> State {
        State {
            trace: TraceId::INVALID,
            span: 0,
            parent: 0,
            parent_is_remote: false,
            flags: TraceFlags::default(),
            trace_state: TraceState::NONE,
            recorded: false,
            start: 0,
            kind: 0,
            status: 0,
            name: None,
            status_message: None,
            seen: 0,
            attributes: Vec::new(),
            events: Vec::new(),
            dropped: 0,
            around: None,
            follows_parent: true,
            records_the_rest: false,
        }
    }
}

impl State {
    fn context(&self) -> SpanContext {
        SpanContext::new(self.trace, SpanId::from(self.span), self.flags, false, self.trace_state.clone())
    }

    fn otel_context(&self) -> Context {
        match &self.around {
            Some(around) => around.with_remote_span_context(self.context()),
            None => Context::map_current(|current| current.with_remote_span_context(self.context())),
        }
    }

    /// Whether more may be written down; what may not is counted.
    fn has_room(&mut self) -> bool {
        let room = self.recorded && self.attributes.len() + self.events.len() <= SPAN_BYTES_MAX;
        self.dropped += u32::from(self.recorded && !room);
        room
    }

    fn link(&mut self, other: &SpanContext) {
        if self.has_room() {
            wire::link(&mut self.events, other);
        }
    }

    /// Takes the fields that were recorded later; each stands in place of what it was before.
    fn take_over(&mut self, later: &mut State) {
        if self.seen & later.seen != 0 || later.seen == 0 {
            wire::keys(&later.attributes, |key| wire::remove_attribute(&mut self.attributes, key));
        }
        self.seen |= later.seen;
        self.dropped += later.dropped;
        if self.has_room() {
            self.attributes.extend_from_slice(&later.attributes);
        }
        self.name = later.name.take().or(self.name.take());
        self.status_message = later.status_message.take().or(self.status_message.take());
        if later.status != 0 {
            self.status = later.status;
        }
        if later.kind != 0 {
            self.kind = later.kind;
        }
    }

    /// Goes on where another span is.
    fn follow(&mut self, parent: &SpanContext) {
        self.parent = u64::from_be_bytes(parent.span_id().to_bytes());
        self.parent_is_remote = parent.is_remote();
        self.trace = parent.trace_id();
        if self.follows_parent {
            (self.flags, self.trace_state) = (parent.trace_flags(), parent.trace_state().clone());
            self.recorded = self.flags.is_sampled() || self.records_the_rest;
        }
    }

    /// Whether it is taken, where nobody else has decided.
    fn decide(&mut self, sampling: &Sampling, state: &TraceState) {
        let (taken, state) = sampling.takes(self.trace, state);
        self.flags = TraceFlags::default().with_sampled(taken);
        self.recorded = taken || self.records_the_rest;
        self.trace_state = state;
    }
}

/// Fields into a span.
struct IntoSpan<'a>(&'a mut State);

impl IntoSpan<'_> {
    /// Writes a value unless it is one of the fields that say something of the span itself.
    fn put(&mut self, field: &Field, value: &Item<'_>) {
        let state = &mut *self.0;
        if field.name().starts_with("otel.") && state.say(field.name(), value) {
            return;
        }
        if !state.recorded {
            return;
        }
        let bit = 1u64.checked_shl(field.index() as u32).unwrap_or(0);
        if state.seen & bit != 0 {
            wire::remove_attribute(&mut state.attributes, field.name());
        }
        state.seen |= bit;
        if !state.has_room() {
            return;
        }
        wire::attribute(&mut state.attributes, wire::SPAN_ATTRIBUTE, field.name(), value);
    }
}

impl State {
    fn say(&mut self, name: &str, value: &Item<'_>) -> bool {
        let mut text = String::new();
        value.text(&mut text);
        match name {
            "otel.name" => self.name = Some(text),
            "otel.kind" => {
                self.kind = match text.to_ascii_lowercase().as_str() {
                    "server" => 2,
                    "client" => 3,
                    "producer" => 4,
                    "consumer" => 5,
                    _ => 1,
                };
            }
            "otel.status_code" => {
                self.status = match text.to_ascii_lowercase().as_str() {
                    "ok" => 1,
                    "error" => 2,
                    _ => 0,
                }
            }
            "otel.status_description" => (self.status, self.status_message) = (2, Some(text)),
            _ => return false,
        }
        true
    }
}

macro_rules! visit {
    () => {
        fn record_str(&mut self, field: &Field, value: &str) {
            self.put(field, &Item::Str(value));
        }
        fn record_i64(&mut self, field: &Field, value: i64) {
            self.put(field, &Item::Int(value));
        }
        fn record_u64(&mut self, field: &Field, value: u64) {
            // OTLP has no unsigned numbers; what does not fit is told as text.
            match i64::try_from(value) {
                Ok(value) => self.put(field, &Item::Int(value)),
                Err(_) => self.put(field, &Item::Shown(&value)),
            }
        }
        fn record_f64(&mut self, field: &Field, value: f64) {
            self.put(field, &Item::Double(value));
        }
        fn record_bool(&mut self, field: &Field, value: bool) {
            self.put(field, &Item::Bool(value));
        }
        fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
            self.put(field, &Item::Shown(&DisplayAsDebug(value)));
        }
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            self.put(field, &Item::Shown(value));
        }
    };
}

struct DisplayAsDebug<'a>(&'a (dyn std::error::Error + 'static));

impl Debug for DisplayAsDebug<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self.0, f)
    }
}

impl Visit for IntoSpan<'_> {
    visit!();
}

/// Fields into a log record: the message is its body.
struct IntoLog<'a> {
    out: &'a mut Vec<u8>,
    /// The `log` crate's own names for where a record came from.
    target: &'a str,
}

impl IntoLog<'_> {
    fn put(&mut self, field: &Field, value: &Item<'_>) {
        match field.name() {
            "message" => wire::body(self.out, value),
            name if self.target == "log" && name.starts_with("log.") => {}
            name => wire::attribute(self.out, wire::LOG_ATTRIBUTE, name, value),
        }
    }
}

impl Visit for IntoLog<'_> {
    visit!();
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Lean {
    exporter: Exporter,
    sampling: Sampling,
    scope: InstrumentationScope,
    wanted: [bool; 3],
}

impl Lean {
    pub fn new(exporter: Exporter, sampling: Sampling, wanted: [bool; 3]) -> Lean {
        Lean { exporter, sampling, scope: InstrumentationScope::builder("firstfall-agent").build(), wanted }
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

impl<S> Layer<S> for Lean
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: layer::Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut state = State {
            span: random(),
            kind: 1,
            follows_parent: self.sampling.follows_parent(),
            records_the_rest: self.sampling.records_the_rest(),
            ..State::default()
        };
        // The nearest that there is: the span of tracing that this one is in, unless one of the API has begun within it.
        let current = if attributes.is_contextual() { context.lookup_current() } else { None };
        let above = attributes.parent().and_then(|parent| context.span(parent)).or(current);
        let mut known = false;
        if let Some(above) = &above
            && let Some(above) = above.extensions().get::<State>()
        {
            state.trace = above.trace;
            state.parent = above.span;
            state.flags = above.flags;
            state.recorded = above.recorded;
            state.trace_state = above.trace_state.clone();
            // Within a span that came with values of its own, what is current may have more of them by now.
            state.around = if attributes.is_contextual() { above.around.is_some().then(Context::current) } else { above.around.clone() };
            known = true;
        }
        // A parent that the code names is the parent, whatever is current.
        if attributes.is_contextual() || !(known || attributes.is_root()) {
            let inner = Context::map_current(|current| {
                let active = current.span();
                let active = active.span_context();
                let own = known && active.span_id() == SpanId::from(state.parent);
                (active.is_valid() && !own && (!known || active.trace_id() == state.trace)).then(|| active.clone())
            });
            if let Some(parent) = inner {
                state.follow(&parent);
                known = self.sampling.follows_parent();
                if !known {
                    state.decide(&self.sampling, parent.trace_state());
                    known = true;
                }
            }
        }
        if !known {
            state.trace = TraceId::from(u128::from(random()) << 64 | u128::from(random()));
            state.decide(&self.sampling, &TraceState::NONE);
        }
        if state.recorded {
            state.attributes = buffer();
            state.start = wire::nanos(SystemTime::now());
        }
        attributes.record(&mut IntoSpan(&mut state));
        span.extensions_mut().insert(state);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: layer::Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let Some(recorded) = span.extensions().get::<State>().map(|state| state.recorded) else { return };
        // By themselves first, not under the lock: values are shown by code of the service's, which may look at this very span, or panic.
        let mut later = State { recorded, attributes: buffer(), ..State::default() };
        values.record(&mut IntoSpan(&mut later));
        if let Some(state) = span.extensions_mut().get_mut::<State>() {
            state.take_over(&mut later);
        }
        give_back(later.attributes);
    }

    fn on_follows_from(&self, id: &Id, follows: &Id, context: layer::Context<'_, S>) {
        let (Some(span), Some(other)) = (context.span(id), context.span(follows)) else { return };
        let other = other.extensions().get::<State>().map(State::context);
        if let (Some(other), Some(state)) = (other, span.extensions_mut().get_mut::<State>()) {
            state.link(&other);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: layer::Context<'_, S>) {
        if !self.wanted[Signal::Logs as usize] {
            return;
        }
        let now = wire::nanos(SystemTime::now());
        let metadata = event.metadata();
        let (number, text) = severity(*metadata.level());
        let of = context.event_span(event).and_then(|span| span.extensions().get::<State>().map(|s| (s.trace, s.span, s.flags)));
        let of = of.or_else(|| {
            Context::map_current(|current| {
                let active = current.span();
                let active = active.span_context();
                active.is_valid().then(|| (active.trace_id(), u64::from_be_bytes(active.span_id().to_bytes()), active.trace_flags()))
            })
        });
        // First by itself, then into the queue: what is shown is code of the service's, which may log in its turn, or panic.
        let mut record = buffer();
        wire::log_record(&mut record, now, number, text, of, |out| event.record(&mut IntoLog { out, target: metadata.target() }));
        self.exporter.push(Signal::Logs, &self.scope, |out| out.extend_from_slice(&record));
        give_back(record);
    }

    fn on_enter(&self, id: &Id, context: layer::Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let entered = span.extensions().get::<State>().map(State::otel_context);
        if let Some(entered) = entered {
            let guard = entered.attach();
            let _ = ENTERED.try_with(|stack| stack.borrow_mut().push((id.into_u64(), guard)));
        }
    }

    fn on_exit(&self, id: &Id, _: layer::Context<'_, S>) {
        let _ = ENTERED.try_with(|stack| {
            let mut stack = stack.borrow_mut();
            if let Some(at) = stack.iter().rposition(|(entered, _)| *entered == id.into_u64()) {
                let guard = stack.remove(at);
                drop(stack);
                drop(guard);
            }
        });
    }

    fn on_close(&self, id: Id, context: layer::Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        // It goes with the span; nothing of the service's own runs under this lock.
        let mut extensions = span.extensions_mut();
        let Some(state) = extensions.get_mut::<State>() else { return };
        let (attributes, events) = (std::mem::take(&mut state.attributes), std::mem::take(&mut state.events));
        if state.recorded && self.wanted[Signal::Spans as usize] {
            self.close(state, span.name(), &attributes, &events);
        }
        give_back(attributes);
        give_back(events);
    }
}

impl Lean {
    fn close(&self, state: &State, name: &str, attributes: &[u8], events: &[u8]) {
        let end = wire::nanos(SystemTime::now());
        let took = Duration::from_nanos(end.saturating_sub(state.start));
        let trace_state =
            if self.sampling.keeps(state.status == 2, took) && (!state.flags.is_sampled() || state.trace_state.get("ot").is_some()) {
                with_threshold(&state.trace_state, Some(0)).header()
            } else if state.flags.is_sampled() {
                state.trace_state.header()
            } else {
                return;
            };
        let span = wire::Span {
            trace: state.trace.to_bytes(),
            span: state.span.to_be_bytes(),
            parent: state.parent.to_be_bytes(),
            parent_is_remote: state.parent_is_remote,
            flags: state.flags.to_u8(),
            trace_state: &trace_state,
            name: state.name.as_deref().unwrap_or(name),
            kind: state.kind,
            start: state.start,
            end,
            status: state.status,
            status_message: state.status_message.as_deref().unwrap_or(""),
            dropped_attributes: state.dropped,
        };
        self.exporter.push(Signal::Spans, &self.scope, |out| wire::span_of_parts(out, &span, attributes, events));
    }
}

/// What OpenTelemetry knows of a span of `tracing`, whichever of the agent's layers keeps it.
pub trait SpanExt {
    /// The context with this span as its active one, to be injected into a request or attached elsewhere.
    fn otel_context(&self) -> Context;
    /// Makes it a child of another span, usually of a remote one. To be called before the span is entered.
    fn set_otel_parent(&self, parent: Context);
    /// Sets an attribute that need not be a field of the span.
    fn set_otel_attribute(&self, key: &'static str, value: impl Into<Value>);
    /// Links it to another span.
    fn add_otel_link(&self, other: SpanContext);
}

fn with_state<R>(span: &Span, change: impl FnOnce(&mut State) -> R) -> Option<R> {
    span.with_subscriber(|(id, dispatch)| {
        let span = dispatch.downcast_ref::<Registry>()?.span(id)?;
        let mut extensions = span.extensions_mut();
        Some(change(extensions.get_mut::<State>()?))
    })
    .flatten()
}

impl SpanExt for Span {
    fn otel_context(&self) -> Context {
        with_state(self, |state| state.otel_context()).unwrap_or_else(|| OpenTelemetrySpanExt::context(self))
    }

    fn set_otel_parent(&self, parent: Context) {
        let context = parent.span().span_context().clone();
        let followed = with_state(self, |state| {
            if context.is_valid() {
                let recorded = state.recorded;
                state.follow(&context);
                if state.recorded && !recorded {
                    state.start = wire::nanos(SystemTime::now());
                }
            }
            state.around = Some(parent.clone());
        });
        if followed.is_none() {
            // Without a subscriber there is no span to give a parent to.
            let _ = OpenTelemetrySpanExt::set_parent(self, parent);
        }
    }

    fn set_otel_attribute(&self, key: &'static str, value: impl Into<Value>) {
        let value = value.into();
        let set = with_state(self, |state| {
            if state.has_room() {
                wire::remove_attribute(&mut state.attributes, key);
                wire::attribute(&mut state.attributes, wire::SPAN_ATTRIBUTE, key, &Item::Value(&value));
            }
        });
        if set.is_none() {
            OpenTelemetrySpanExt::set_attribute(self, key, value);
        }
    }

    fn add_otel_link(&self, other: SpanContext) {
        if with_state(self, |state| state.link(&other)).is_none() {
            OpenTelemetrySpanExt::add_link(self, other);
        }
    }
}
