//! What is known of a span while it is open, and how fields become it.

use crate::sampling::Sampling;
use crate::wire::{self, Item};
use crate::within::OWN_TARGET;
use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use std::cell::Cell;
use std::fmt::Debug;
use std::hash::{BuildHasher, Hasher};
use tracing::Metadata;
use tracing::field::{Field, Visit};

/// Bytes of attributes and events of one span; what comes beyond is dropped, and counted in it.
const SPAN_BYTES_MAX: usize = 256 << 10;
/// How large a buffer may be that is kept for another span or record.
pub(super) const KEPT_BYTES_MAX: usize = 16 << 10;

thread_local! {
    static RANDOM: Cell<u64> = const { Cell::new(0) };
}

/// Not zero. Ids must differ, and need not be secret: wyrand (Wang Yi), which needs a multiplication, seeded by the system for each thread.
pub(super) fn random() -> u64 {
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

/// A span on its way.
pub(super) struct State {
    pub trace: TraceId,
    pub span: u64,
    pub parent: u64,
    pub parent_is_remote: bool,
    pub flags: TraceFlags,
    pub trace_state: TraceState,
    /// It goes out, or may when it is known how it ended; one that is not taken only passes its ids on.
    pub recorded: bool,
    /// Its fields are written down: also where it is not recorded yet, and may be given a parent that is.
    pub written: bool,
    pub start: u64,
    /// 0: not said.
    pub kind: u8,
    /// 0 unset, 1 ok, 2 error.
    pub status: u8,
    /// Its place in the code, and its name unless another one is given.
    pub code: &'static Metadata<'static>,
    name: String,
    pub status_message: Option<String>,
    /// Fields that have a value, by their index; the first 64 of them.
    pub seen: u64,
    /// Other attributes have one too, so that a name has to be looked for.
    pub by_name: bool,
    pub attributes: Vec<u8>,
    pub events: Vec<u8>,
    pub dropped: u32,
    /// What travels with it besides: baggage and other values.
    pub around: Option<Context>,
    /// With it as the active span: see [`State::may_keep_context`].
    context: Option<Context>,
    was_entered: bool,
    /// How many handles there are, where `tracing`'s registry does not count them.
    pub handles: usize,
}

impl State {
    pub fn new(code: &'static Metadata<'static>) -> State {
        State {
            trace: TraceId::INVALID,
            span: 0,
            parent: 0,
            parent_is_remote: false,
            flags: TraceFlags::default(),
            trace_state: TraceState::NONE,
            recorded: false,
            written: false,
            start: 0,
            kind: 0,
            status: 0,
            code,
            name: String::new(),
            status_message: None,
            seen: 0,
            by_name: false,
            attributes: Vec::new(),
            events: Vec::new(),
            dropped: 0,
            around: None,
            context: None,
            was_entered: false,
            handles: 1,
        }
    }

    pub fn name(&self) -> &str {
        if self.name.is_empty() { self.code.name() } else { &self.name }
    }

    /// As if it were new, but for the room that it has. Its ids and decisions stay: whoever uses it next says them anew.
    pub fn clear(&mut self) {
        for buffer in [&mut self.attributes, &mut self.events] {
            buffer.clear();
            if buffer.capacity() > KEPT_BYTES_MAX {
                *buffer = Vec::new();
            }
        }
        self.name.clear();
        self.name.shrink_to(KEPT_BYTES_MAX);
        (self.kind, self.status, self.seen, self.dropped, self.start) = (0, 0, 0, 0, 0);
        (self.parent, self.parent_is_remote, self.was_entered, self.by_name, self.handles) = (0, false, false, false, 1);
        (self.status_message, self.around, self.context) = (None, None, None);
        self.trace_state = TraceState::NONE;
    }

    pub fn span_context(&self) -> SpanContext {
        SpanContext::new(self.trace, SpanId::from(self.span), self.flags, false, self.trace_state.clone())
    }

    fn new_context(&self) -> Context {
        match &self.around {
            Some(around) => around.with_remote_span_context(self.span_context()),
            None => Context::map_current(|current| current.with_remote_span_context(self.span_context())),
        }
    }

    /// What else is in the context is what came with the span, or what was current when it was entered for the second time. That may be another's the next time, as in a
    /// worker's span that is entered for each message; in a call, which is one piece of work, it is not.
    fn may_keep_context(&self) -> bool {
        self.around.is_some() || self.code.target() == OWN_TARGET
    }

    /// For whoever asks: with what is current there.
    pub fn otel_context(&self) -> Context {
        match &self.context {
            Some(context) if self.around.is_some() => context.clone(),
            _ => self.new_context(),
        }
    }

    /// The context to be attached while it is entered, as a span of a future is at every poll.
    pub fn enter(&mut self) -> Context {
        // Most are entered once.
        if !std::mem::replace(&mut self.was_entered, true) || !self.may_keep_context() {
            return self.new_context();
        }
        let context = self.context.take().unwrap_or_else(|| self.new_context());
        self.context.insert(context).clone()
    }

    /// What else travels with it from now on. What did before is given back, to be dropped where no lock is held.
    #[must_use]
    pub fn surround(&mut self, around: Context) -> (Option<Context>, Option<Context>) {
        (self.around.replace(around), self.context.take())
    }

    /// Whether more may be written down; what may not is counted.
    pub fn has_room(&mut self) -> bool {
        let room = self.written && self.attributes.len() + self.events.len() <= SPAN_BYTES_MAX;
        self.dropped += u32::from(self.written && !room);
        room
    }

    pub fn link(&mut self, other: &SpanContext) {
        if self.has_room() {
            wire::link(&mut self.events, other);
        }
    }

    /// Takes the fields that were recorded later; each stands in place of what it was before.
    pub fn take_over(&mut self, later: &mut State) {
        if self.seen & later.seen != 0 || self.by_name || later.by_name {
            wire::each_attribute(&later.attributes, |key, _| wire::remove_attribute(&mut self.attributes, key));
        }
        self.seen |= later.seen;
        self.by_name |= later.by_name;
        self.dropped += later.dropped;
        if self.has_room() {
            self.attributes.extend_from_slice(&later.attributes);
        }
        if !later.name.is_empty() {
            std::mem::swap(&mut self.name, &mut later.name);
        }
        self.status_message = later.status_message.take().or(self.status_message.take());
        if later.status != 0 {
            self.status = later.status;
        }
        if later.kind != 0 {
            self.kind = later.kind;
        }
    }

    /// Goes on where another span is.
    pub fn follow(&mut self, parent: &SpanContext, sampling: &Sampling) {
        self.parent = u64::from_be_bytes(parent.span_id().to_bytes());
        self.parent_is_remote = parent.is_remote();
        self.trace = parent.trace_id();
        if sampling.follows_parent() {
            (self.flags, self.trace_state) = (parent.trace_flags(), parent.trace_state().clone());
            self.recorded = self.flags.is_sampled() || sampling.records_the_rest();
        } else {
            self.decide(sampling, parent.trace_state());
        }
        self.written |= self.recorded;
    }

    /// Goes on within a span of this layer's.
    pub fn inherit(&mut self, above: &State) {
        (self.trace, self.parent, self.flags, self.recorded) = (above.trace, above.span, above.flags, above.recorded);
        self.trace_state = above.trace_state.clone();
    }

    /// Begins a trace.
    pub fn begin(&mut self, sampling: &Sampling) {
        self.trace = TraceId::from(u128::from(random()) << 64 | u128::from(random()));
        self.decide(sampling, &TraceState::NONE);
    }

    /// Whether it is taken, where nobody else has decided.
    fn decide(&mut self, sampling: &Sampling, state: &TraceState) {
        let (taken, state) = sampling.takes(self.trace, state);
        self.flags = TraceFlags::default().with_sampled(taken);
        self.recorded = taken || sampling.records_the_rest();
        self.trace_state = state;
    }

    /// Takes what a field says of the span itself, if it is one of these.
    fn say(&mut self, name: &str, value: &Item<'_>) -> bool {
        if !matches!(name, "otel.name" | "otel.kind" | "otel.status_code" | "otel.status_description") {
            return false;
        }
        let shown;
        let text = match value {
            Item::Str(text) => wire::cut(text),
            value => {
                let mut text = String::new();
                value.text(&mut text);
                shown = text;
                wire::cut(&shown)
            }
        };
        match name {
            "otel.name" => {
                self.name.clear();
                self.name.push_str(text);
            }
            "otel.kind" => {
                const KINDS: [(&str, u8); 4] = [("server", 2), ("client", 3), ("producer", 4), ("consumer", 5)];
                self.kind = KINDS.iter().find(|(kind, _)| text.eq_ignore_ascii_case(kind)).map_or(1, |(_, kind)| *kind);
            }
            "otel.status_code" => {
                const CODES: [(&str, u8); 2] = [("ok", 1), ("error", 2)];
                self.status = CODES.iter().find(|(code, _)| text.eq_ignore_ascii_case(code)).map_or(0, |(_, code)| *code);
            }
            "otel.status_description" => (self.status, self.status_message) = (2, Some(text.to_owned())),
            _ => return false,
        }
        true
    }
}

/// Fields into a span.
pub(super) struct IntoSpan<'a>(pub &'a mut State);

impl IntoSpan<'_> {
    /// Writes a value unless it is one of the fields that say something of the span itself.
    pub fn put(&mut self, field: &Field, value: &Item<'_>) {
        let state = &mut *self.0;
        if field.name().starts_with("otel.") && state.say(field.name(), value) {
            return;
        }
        if !state.written {
            return;
        }
        let bit = 1u64.checked_shl(field.index() as u32).unwrap_or(0);
        state.by_name |= bit == 0;
        if state.seen & bit != 0 || state.by_name {
            wire::remove_attribute(&mut state.attributes, field.name());
        }
        state.seen |= bit;
        if !state.has_room() {
            return;
        }
        wire::attribute(&mut state.attributes, wire::SPAN_ATTRIBUTE, field.name(), value);
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
pub(super) struct IntoLog<'a> {
    pub out: &'a mut Vec<u8>,
    /// The `log` crate's own names for where a record came from.
    pub target: &'a str,
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
