//! What code asks of a span of `tracing` in OpenTelemetry's words.

use super::state::{IntoSpan, State};
use super::{Alone, Lean};
use crate::wire::{self, Item};
use opentelemetry::trace::{SpanContext, TraceContextExt};
use opentelemetry::{Context, Value};
use std::time::SystemTime;
use tracing::Span;
use tracing::span::Id;
use tracing_opentelemetry::OpenTelemetrySpanExt;

mod sealed {
    pub trait Sealed {}
    impl Sealed for tracing::Span {}
}

/// What OpenTelemetry knows of a span of `tracing`, whichever of the agent's layers keeps it. Of spans alone.
pub trait SpanExt: sealed::Sealed {
    /// The context with this span as its active one, to be injected into a request or attached elsewhere.
    fn otel_context(&self) -> Context;
    /// Makes it a child of another span, usually of a remote one. To be called before the span is entered.
    fn set_otel_parent(&self, parent: Context);
    /// Sets an attribute that need not be a field of the span.
    fn set_otel_attribute(&self, key: &'static str, value: impl Into<Value>);
    /// Links it to another span.
    fn add_otel_link(&self, other: SpanContext);
}

fn with_state<R>(span: &Span, change: impl FnOnce(&Lean, &Id, &mut State) -> R) -> Option<R> {
    span.with_subscriber(|(id, dispatch)| {
        let lean = dispatch.downcast_ref::<Lean>().or_else(|| Some(dispatch.downcast_ref::<Alone>()?.lean()))?;
        lean.spans.with(id, |state| change(lean, id, state))
    })
    .flatten()
}

/// For the agent's own calls.
pub(crate) trait RecordNumber {
    /// Records a field of the span: the lean layer needs one look-up for it, where a value of the service's is shown by code of its own first.
    fn record_number(&self, field: &'static str, value: i64);
}

impl RecordNumber for Span {
    fn record_number(&self, field: &'static str, value: i64) {
        let recorded = with_state(self, |_, _, state| {
            if let Some(field) = state.code.fields().field(field) {
                IntoSpan(state).put(&field, &Item::Int(value));
            }
        });
        if recorded.is_none() {
            self.record(field, value);
        }
    }
}

impl SpanExt for Span {
    fn otel_context(&self) -> Context {
        with_state(self, |_, _, state| state.otel_context()).unwrap_or_else(|| {
            let context = OpenTelemetrySpanExt::context(self);
            // Where no span is kept, the trace goes on as it came.
            if context.span().span_context().is_valid() { context } else { Context::current() }
        })
    }

    fn set_otel_parent(&self, parent: Context) {
        let context = parent.span().span_context().clone();
        let before = with_state(self, |lean, id, state| {
            if context.is_valid() {
                state.follow(&context, &lean.sampling);
                if state.start == 0 {
                    state.start = wire::nanos(SystemTime::now());
                }
            }
            let before = state.surround(parent.clone());
            lean.moved(id, state);
            before
        });
        if before.is_none() {
            // Without a subscriber there is no span to give a parent to.
            let _ = OpenTelemetrySpanExt::set_parent(self, parent);
        }
    }

    fn set_otel_attribute(&self, key: &'static str, value: impl Into<Value>) {
        let value = value.into();
        let set = with_state(self, |_, _, state| {
            if state.has_room() {
                state.by_name = true;
                wire::remove_attribute(&mut state.attributes, key);
                wire::attribute(&mut state.attributes, wire::SPAN_ATTRIBUTE, key, &Item::Value(&value));
            }
        });
        if set.is_none() {
            OpenTelemetrySpanExt::set_attribute(self, key, value);
        }
    }

    fn add_otel_link(&self, other: SpanContext) {
        if with_state(self, |_, _, state| state.link(&other)).is_none() {
            OpenTelemetrySpanExt::add_link(self, other);
        }
    }
}
