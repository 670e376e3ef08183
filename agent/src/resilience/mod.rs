//! Time limits, retries, breakers and bulkheads that report themselves: tower layers whose every decision is an event in the span of the call and a metric,
//! so that a retry storm or a breaker that stays open is seen and not guessed.
//!
//! They work on any tower service. From the outside in they usually stand as: bulkhead, breaker, retry, timeout, then the client.
//!
//! ```
//! use firstfall_agent::resilience::{Breaker, Retry, Timeout};
//! use std::time::Duration;
//! use tower::ServiceBuilder;
//!
//! # let client = tower::service_fn(|name: String| async move { Ok::<_, std::io::Error>(format!("hello {name}")) });
//! let stock = ServiceBuilder::new()
//!     .layer(Breaker::new("stock"))
//!     .layer(Retry::new("stock").attempts(3))
//!     .layer(Timeout::new("stock", Duration::from_millis(300)))
//!     .service(client);
//! # let _ = stock;
//! ```

mod breaker;
mod bulkhead;
mod retry;
mod timeout;

pub use breaker::{Breaker, Broken, Errors, Failed};
pub use bulkhead::{Bulked, Bulkhead};
pub use retry::{Always, Retried, Retry, When, is_idempotent};
pub use timeout::{Timed, Timeout};

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

type Answer<R, E> = Pin<Box<dyn Future<Output = Result<R, E>> + Send>>;

/// What a layer adds to the errors of the service within.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure<E> {
    /// The service's own.
    Inner(E),
    /// It took longer than this.
    TimedOut(Duration),
    /// The breaker of this name is open: the call was not made.
    Open(&'static str),
    /// So many are under way and wait already that the call was not made.
    Full(&'static str),
}

impl<E: std::fmt::Display> std::fmt::Display for Failure<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Inner(error) => error.fmt(f),
            Failure::TimedOut(limit) => write!(f, "no answer within {} ms", limit.as_millis()),
            Failure::Open(name) => write!(f, "the breaker {name} is open"),
            Failure::Full(name) => write!(f, "the bulkhead {name} is full"),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for Failure<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Failure::Inner(error) => Some(error),
            _ => None,
        }
    }
}

tokio::task_local! {
    static ATTEMPT: u32;
}

/// Which attempt of a call this is, inside of a [`Retry`]: 0 for the first.
pub fn attempt() -> Option<u32> {
    ATTEMPT.try_with(|attempt| *attempt).ok()
}

/// A number from 0 to 1 that need not be a secret: for jitter.
fn chance() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    // Each state has keys of its own, drawn from the system's randomness.
    let bits = std::hash::RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1u64 << 53) as f64
}
