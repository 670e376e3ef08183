//! Work that goes on elsewhere, in the span that it belongs to: tasks, blocking calls, threads, messages.

use opentelemetry::Context;
use opentelemetry::trace::FutureExt;
use std::future::Future;
use std::thread;
use tokio::task::JoinHandle;
use tracing::{Instrument, Span};

/// `tokio::spawn`, in the current span and OpenTelemetry context.
///
/// # Panics
/// Outside of a tokio runtime, as tokio's own.
#[track_caller]
pub fn spawn<F>(work: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(work.with_context(Context::current()).instrument(Span::current()))
}

/// `tokio::task::spawn_blocking`, in the current span and OpenTelemetry context.
///
/// # Panics
/// Outside of a tokio runtime, as tokio's own.
#[track_caller]
pub fn spawn_blocking<F, R>(work: F) -> JoinHandle<R>
where
    F: FnOnce() -> R + Send + 'static,
    R: Send + 'static,
{
    tokio::task::spawn_blocking(carried(work))
}

/// Ready when the process is asked to end: by SIGTERM, as service managers and orchestrators do, or by SIGINT from the keyboard. For
/// `axum::serve(…).with_graceful_shutdown(shutdown_signal())`: the guard is then dropped and flushes, where a process that simply ends loses what waits. Where signals
/// cannot be listened to it never is.
#[cfg(feature = "signal")]
pub async fn shutdown_signal() {
    #[cfg(unix)]
    let asked = async {
        use std::task::Poll;
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else { return None };
        std::future::poll_fn(|context| match term.poll_recv(context) {
            Poll::Pending => int.poll_recv(context),
            asked => asked,
        })
        .await
    };
    #[cfg(not(unix))]
    let asked = async { tokio::signal::ctrl_c().await.ok() };
    if asked.await.is_none() {
        std::future::pending().await
    }
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
        // The span first: what else is in the context goes over what the span came with.
        let _span = span.enter();
        let _context = context.attach();
        work()
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
    /// In the span that is current here.
    pub fn new(value: T) -> Carried<T> {
        Carried { value, span: Span::current(), context: Context::current() }
    }

    /// Works on it in the span in which it was sent.
    pub fn work<R>(self, work: impl FnOnce(T) -> R) -> R {
        let _span = self.span.enter();
        let _context = self.context.attach();
        work(self.value)
    }

    /// The same for work that waits.
    pub async fn work_async<F: Future>(self, work: impl FnOnce(T) -> F) -> F::Output {
        let future = self.span.in_scope(|| work(self.value));
        future.with_context(self.context).instrument(self.span).await
    }
}
