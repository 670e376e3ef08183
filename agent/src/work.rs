//! Work that goes on elsewhere, in the span that it belongs to: tasks, blocking calls, threads, messages.

use opentelemetry::Context;
use opentelemetry::trace::FutureExt;
use std::future::Future;
use std::thread;
use tokio::task::JoinHandle;
use tracing::{Instrument, Span};

/// `tokio::spawn`, in the current span and OpenTelemetry context.
#[track_caller]
pub fn spawn<F>(work: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(work.with_context(Context::current()).instrument(Span::current()))
}

/// `tokio::task::spawn_blocking`, in the current span and OpenTelemetry context.
#[track_caller]
pub fn spawn_blocking<F, R>(work: F) -> JoinHandle<R>
where
    F: FnOnce() -> R + Send + 'static,
    R: Send + 'static,
{
    tokio::task::spawn_blocking(carried(work))
}

/// `std::thread::spawn`, in the current span and OpenTelemetry context.
pub fn spawn_thread<F, R>(work: F) -> thread::JoinHandle<R>
where
    F: FnOnce() -> R + Send + 'static,
    R: Send + 'static,
{
    thread::spawn(carried(work))
}

/// The same work, to be done elsewhere in the span and OpenTelemetry context of here and now.
pub fn carried<F, R>(work: F) -> impl FnOnce() -> R + use<F, R>
where
    F: FnOnce() -> R,
{
    let (span, context) = (Span::current(), Context::current());
    move || {
        let _context = context.attach();
        span.in_scope(work)
    }
}

/// Something that is sent to another task or thread, with the span in which it was sent: for channels.
#[derive(Debug, Clone)]
pub struct Carried<T> {
    value: T,
    span: Span,
    context: Context,
}

impl<T> Carried<T> {
    pub fn new(value: T) -> Carried<T> {
        Carried { value, span: Span::current(), context: Context::current() }
    }

    /// Works on it in the span in which it was sent.
    pub fn work<R>(self, work: impl FnOnce(T) -> R) -> R {
        let _context = self.context.attach();
        self.span.in_scope(|| work(self.value))
    }

    /// The same for work that waits.
    pub async fn work_async<F: Future>(self, work: impl FnOnce(T) -> F) -> F::Output {
        let future = self.span.in_scope(|| work(self.value));
        future.with_context(self.context).instrument(self.span).await
    }
}
