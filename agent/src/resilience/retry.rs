//! Retries: within a budget, with jitter, and only of what may be done twice.

use super::{ATTEMPT, Answer, chance};
use crate::late::{Late, counter};
use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tower::{Layer, Service, ServiceExt};

/// Tokens a budget holds at most, and at the start: so many retries may come at once.
const TOKENS_MAX: f64 = 10.0;

/// Makes a call again when it has failed. By default any error is tried twice more, after 50 ms and then 100 ms, less up to all of it by chance, while
/// retries are at most a fifth of all calls: when everything fails, more calls help nobody.
#[derive(Clone, Debug)]
pub struct Retry<W = Always> {
    name: &'static str,
    attempts: u32,
    backoff: (Duration, Duration),
    budget: f64,
    tokens: Arc<Mutex<f64>>,
    when: W,
    made: Late<Counter<u64>>,
}

/// Retries whatever ends with an error.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Always;

/// Says whether a call that came out so may be made again: a function of the request and its outcome, `|request, result| …`.
pub trait When<Req, R, E> {
    /// Whether it may.
    fn again(&self, request: &Req, result: &Result<R, E>) -> bool;
}

impl<Req, R, E> When<Req, R, E> for Always {
    fn again(&self, _: &Req, result: &Result<R, E>) -> bool {
        result.is_err()
    }
}

impl<F, Req, R, E> When<Req, R, E> for F
where
    F: Fn(&Req, &Result<R, E>) -> bool,
{
    fn again(&self, request: &Req, result: &Result<R, E>) -> bool {
        self(request, result)
    }
}

impl Retry {
    /// `name` stands in events and metrics, and tells this one from others.
    pub fn new(name: &'static str) -> Retry {
        let made = counter("firstfall.retry.attempts", "{attempt}");
        let backoff = (Duration::from_millis(50), Duration::from_secs(2));
        Retry { name, attempts: 3, backoff, budget: 0.2, tokens: Arc::new(Mutex::new(TOKENS_MAX)), when: Always, made }
    }
}

impl<W> Retry<W> {
    /// How often a call is made at most, the first time included: three times unless told otherwise, once at least.
    pub fn attempts(mut self, attempts: u32) -> Retry<W> {
        self.attempts = attempts.max(1);
        self
    }

    /// The longest pause before the second attempt, doubled for each one after, up to the last; 50 ms and 2 s unless told otherwise.
    pub fn backoff(mut self, first: Duration, last: Duration) -> Retry<W> {
        self.backoff = (first, last);
        self
    }

    /// Retries as a part of all calls, from 0 to 1; a fifth unless told otherwise.
    pub fn budget(mut self, share: f64) -> Retry<W> {
        self.budget = share.clamp(0.0, 1.0);
        self
    }

    /// Only what this says, a function such as `|request: &Request, result: &Result<Response, Error>| …`; see [`is_idempotent`] for HTTP. Requests have to be `Clone + Sync`.
    pub fn when<F>(self, when: F) -> Retry<F> {
        let Retry { name, attempts, backoff, budget, tokens, made, .. } = self;
        Retry { name, attempts, backoff, budget, tokens, when, made }
    }

    /// Each call pays in a part of a token, each retry takes a whole one.
    fn pay_in(&self) {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        *tokens = (*tokens + self.budget).min(TOKENS_MAX);
    }

    fn take(&self) -> bool {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let enough = *tokens >= 1.0;
        if enough {
            *tokens -= 1.0;
        }
        enough
    }

    fn pause(&self, attempt: u32) -> Duration {
        let (first, last) = self.backoff;
        first.saturating_mul(1 << attempt.min(16)).min(last).mul_f64(chance())
    }
}

/// Whether an HTTP request may be made again: its method may be repeated without harm (RFC 9110), and it was not taken (an error, or 429, 502, 503, 504).
pub fn is_idempotent<In, Out, E>(request: &http::Request<In>, result: &Result<http::Response<Out>, E>) -> bool {
    let repeatable = matches!(request.method().as_str(), "GET" | "HEAD" | "PUT" | "DELETE" | "OPTIONS" | "TRACE");
    repeatable && result.as_ref().map_or(true, |answer| matches!(answer.status().as_u16(), 429 | 502 | 503 | 504))
}

impl<S, W: Clone> Layer<S> for Retry<W> {
    type Service = Retried<S, W>;
    fn layer(&self, inner: S) -> Retried<S, W> {
        Retried { inner, retry: self.clone() }
    }
}

/// A service with a [`Retry`].
#[derive(Clone, Debug)]
pub struct Retried<S, W = Always> {
    inner: S,
    retry: Retry<W>,
}

impl<S, Req, W> Service<Req> for Retried<S, W>
where
    S: Service<Req> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Response: Send,
    S::Error: Send,
    Req: Clone + Send + Sync + 'static,
    W: When<Req, S::Response, S::Error> + Clone + Send + Sync + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Answer<S::Response, S::Error>;

    /// Each attempt waits for the service by itself.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let (inner, retry) = (self.inner.clone(), self.retry.clone());
        retry.pay_in();
        Box::pin(async move {
            let mut attempt = 0;
            loop {
                let result = ATTEMPT.scope(attempt, inner.clone().oneshot(request.clone())).await;
                let again = retry.when.again(&request, &result);
                if attempt > 0 || again {
                    let outcome = if again || result.is_err() { "failed" } else { "succeeded" };
                    let of = [
                        KeyValue::new("name", retry.name),
                        KeyValue::new("attempt", i64::from(attempt) + 1),
                        KeyValue::new("outcome", outcome),
                    ];
                    if let Some(made) = retry.made.get() {
                        made.add(1, &of);
                    }
                }
                if !again {
                    return result;
                }
                if attempt + 1 >= retry.attempts {
                    tracing::warn!(target: "firstfall_agent::retry", name = retry.name, attempts = i64::from(attempt) + 1, "given up after the last attempt");
                    return result;
                }
                if !retry.take() {
                    tracing::warn!(target: "firstfall_agent::retry", name = retry.name, "not tried again: the budget for retries is used up");
                    return result;
                }
                let pause = retry.pause(attempt);
                attempt += 1;
                tracing::info!(
                    target: "firstfall_agent::retry",
                    name = retry.name,
                    attempt = i64::from(attempt) + 1,
                    pause_ms = pause.as_millis() as i64,
                    "trying again"
                );
                tokio::time::sleep(pause).await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Fails so many times, then succeeds; says which attempt it is.
    fn flaky(
        failures: u32,
    ) -> (Arc<AtomicU32>, impl Service<(), Response = Option<u32>, Error = &'static str, Future: Send> + Clone + Send) {
        let calls = Arc::new(AtomicU32::new(0));
        let counter = calls.clone();
        let service = tower::service_fn(move |()| {
            let number = counter.fetch_add(1, Ordering::SeqCst);
            async move { if number < failures { Err("no") } else { Ok(crate::resilience::attempt()) } }
        });
        (calls, service)
    }

    #[tokio::test(start_paused = true)]
    async fn it_tries_again_and_says_which_attempt_it_is() {
        let (calls, service) = flaky(2);
        let answer = Retry::new("t").layer(service).oneshot(()).await;
        assert_eq!((answer, calls.load(Ordering::SeqCst)), (Ok(Some(2)), 3));
        let (calls, service) = flaky(9);
        assert_eq!(Retry::new("t").attempts(4).layer(service).oneshot(()).await, Err("no"));
        assert_eq!(calls.load(Ordering::SeqCst), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn when_everything_fails_the_budget_keeps_retries_to_a_part_of_the_calls() {
        let (calls, service) = flaky(u32::MAX);
        let service = Retry::new("t").attempts(3).budget(0.1).layer(service);
        for _ in 0..200 {
            let _ = service.clone().oneshot(()).await;
        }
        let retries = calls.load(Ordering::SeqCst) - 200;
        assert!((25..=31).contains(&retries), "{retries}: a tenth of 200, and the ten that it holds at the start");
    }

    #[test]
    fn only_what_may_be_done_twice_is_done_twice() {
        let request = |method: &str| http::Request::builder().method(method).body(()).expect("valid");
        let answer = |status: u16| Ok::<_, ()>(http::Response::builder().status(status).body(()).expect("valid"));
        assert!(is_idempotent(&request("GET"), &answer(503)) && is_idempotent::<_, (), _>(&request("PUT"), &Err(())));
        assert!(!is_idempotent(&request("POST"), &answer(503)) && !is_idempotent(&request("GET"), &answer(404)));
    }
}
