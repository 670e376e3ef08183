//! A body that is watched to its end: an answer has not been given before its last byte, and may fail, or be given up, on the way.

use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Who wants to know. Dropped without a call the body was given up.
pub trait Watch {
    fn trailers(&mut self, trailers: &HeaderMap);
    fn complete(self);
    fn failed(self, error: String);
}

pin_project! {
    /// The body of a request or answer that is measured.
    #[derive(Debug)]
    pub struct Watched<B, W> {
        #[pin]
        inner: B,
        watch: Option<W>,
    }
}

/// One that nobody watches, as layers of tower-http make of an answer of their own.
impl<B: Default, W> Default for Watched<B, W> {
    fn default() -> Self {
        Watched { inner: B::default(), watch: None }
    }
}

impl<B: Body, W: Watch> Watched<B, W> {
    /// `whole`: nothing of it will be read, as in the answer to HEAD.
    pub(crate) fn new(inner: B, watch: W, whole: bool) -> Watched<B, W> {
        if whole || inner.is_end_stream() {
            watch.complete();
            return Watched { inner, watch: None };
        }
        Watched { inner, watch: Some(watch) }
    }
}

impl<B, W> Body for Watched<B, W>
where
    B: Body,
    B::Error: std::fmt::Display,
    W: Watch,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(context));
        match &frame {
            None => {
                if let Some(watch) = this.watch.take() {
                    watch.complete();
                }
            }
            Some(Err(error)) => {
                if let Some(watch) = this.watch.take() {
                    watch.failed(error.to_string());
                }
            }
            Some(Ok(frame)) => {
                if let (Some(watch), Some(trailers)) = (this.watch.as_mut(), frame.trailers_ref()) {
                    watch.trailers(trailers);
                }
                // Whoever reads it may not ask again.
                if this.inner.is_end_stream()
                    && let Some(watch) = this.watch.take()
                {
                    watch.complete();
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
