//! A future in the span of what it is measured as.

use opentelemetry::Context;
use pin_project_lite::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::task::{self, Poll, ready};
use tracing::Span;

/// Of the spans of the agent's own layers. They are calls, and carry the trace on, whatever else is wanted.
pub(crate) const OWN_TARGET: &str = "firstfall_agent";

pub(crate) trait HasSpan {
    fn span(&self) -> &Span;
}

pin_project! {
    /// Is polled within the span, and dropped there; gives back what has the span when it is ready.
    pub(crate) struct Within<F, C: HasSpan> {
        #[pin]
        inner: Option<F>,
        of: Option<C>,
        // What is current around the span: that there is a caller's baggage, or that nothing of this service is exported, and the trace goes on all the same.
        around: Option<Context>,
    }

    impl<F, C: HasSpan> PinnedDrop for Within<F, C> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if let Some(of) = this.of.as_ref() {
                let _around = this.around.clone().map(Context::attach);
                let _entered = of.span().enter();
                this.inner.set(None);
            }
        }
    }
}

impl<F, C: HasSpan> Within<F, C> {
    pub fn new(inner: F, of: C, around: Option<Context>) -> Within<F, C> {
        Within { inner: Some(inner), of: Some(of), around }
    }
}

impl<F: Future, C: HasSpan> Future for Within<F, C> {
    type Output = (F::Output, C);

    fn poll(self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<(F::Output, C)> {
        let mut this = self.project();
        let _around = this.around.clone().map(Context::attach);
        let of = this.of.as_ref().expect("it is not polled after it is ready");
        let output = {
            let _entered = of.span().enter();
            let inner = this.inner.as_mut().as_pin_mut().expect("it is there as long as what has the span");
            let output = ready!(inner.poll(context));
            this.inner.set(None);
            output
        };
        Poll::Ready((output, this.of.take().expect("looked at above")))
    }
}

impl<F, C: HasSpan + std::fmt::Debug> std::fmt::Debug for Within<F, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Within").field("of", &self.of).finish_non_exhaustive()
    }
}
