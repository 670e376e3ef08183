//! A time limit for each call.

use super::{Answer, Failure};
use crate::late::{Late, counter};
use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;
use std::task::{Context, Poll};
use std::time::Duration;
use tower::{Layer, Service};

/// Gives a call so much time, and then gives it up.
#[derive(Clone, Debug)]
pub struct Timeout {
    name: &'static str,
    limit: Duration,
    expired: Late<Counter<u64>>,
}

impl Timeout {
    /// `name` stands in events and metrics, and tells this one from others.
    pub fn new(name: &'static str, limit: Duration) -> Timeout {
        let expired = counter("firstfall.timeout.expired", "{call}");
        Timeout { name, limit, expired }
    }
}

impl<S> Layer<S> for Timeout {
    type Service = Timed<S>;
    fn layer(&self, inner: S) -> Timed<S> {
        Timed { inner, timeout: self.clone() }
    }
}

/// A service with a [`Timeout`].
#[derive(Clone, Debug)]
pub struct Timed<S> {
    inner: S,
    timeout: Timeout,
}

impl<S, Req> Service<Req> for Timed<S>
where
    S: Service<Req>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = Failure<S::Error>;
    type Future = Answer<S::Response, Failure<S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context).map_err(Failure::Inner)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let answer = self.inner.call(request);
        let Timeout { name, limit, expired } = self.timeout.clone();
        Box::pin(async move {
            match tokio::time::timeout(limit, answer).await {
                Ok(answer) => answer.map_err(Failure::Inner),
                Err(_) => {
                    if let Some(expired) = expired.get() {
                        expired.add(1, &[KeyValue::new("name", name)]);
                    }
                    tracing::warn!(target: "firstfall_agent::timeout", name, limit_ms = limit.as_millis() as i64, "given up: no answer in time");
                    Err(Failure::TimedOut(limit))
                }
            }
        })
    }
}
