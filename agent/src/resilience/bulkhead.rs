//! A bulkhead: so many calls at the same time, so many more wait, and the rest is turned away at once.

use super::{Answer, Failure};
use crate::late::{Late, late, meter};
use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use tokio::sync::Semaphore;
use tower::{Layer, Service, ServiceExt};

/// So many calls at the same time; as many again wait, and the rest is turned away with [`Failure::Full`]. Clones share the places.
#[derive(Clone, Debug)]
pub struct Bulkhead {
    name: &'static str,
    places: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    waiting_max: usize,
    rejected: Late<Counter<u64>>,
}

impl Bulkhead {
    /// `calls` at the same time, and as many again that wait. `name` stands in events and metrics, and tells this one from others.
    ///
    /// # Panics
    /// With more calls than tokio's semaphores have permits, 2^61 on usual machines.
    pub fn new(name: &'static str, calls: usize) -> Bulkhead {
        let (places, waiting) = (Arc::new(Semaphore::new(calls)), Arc::new(AtomicUsize::new(0)));
        let (seen, seen_waiting) = (Arc::downgrade(&places), Arc::downgrade(&waiting));
        let rejected = late(move || {
            let (seen, seen_waiting) = (seen.clone(), seen_waiting.clone());
            meter()
                .i64_observable_up_down_counter("firstfall.bulkhead.calls")
                .with_unit("{call}")
                .with_callback(move |out| {
                    if let (Some(places), Some(waiting)) = (seen.upgrade(), seen_waiting.upgrade()) {
                        let of = |state| [KeyValue::new("name", name), KeyValue::new("state", state)];
                        out.observe(calls.saturating_sub(places.available_permits()) as i64, &of("active"));
                        out.observe(waiting.load(Ordering::Relaxed) as i64, &of("waiting"));
                    }
                })
                .build();
            meter().u64_counter("firstfall.bulkhead.rejected").with_unit("{call}").build()
        });
        Bulkhead { name, places, waiting, waiting_max: calls, rejected }
    }

    /// How many calls may wait for a place.
    pub fn waiting(mut self, calls: usize) -> Bulkhead {
        self.waiting_max = calls;
        self
    }
}

impl<S> Layer<S> for Bulkhead {
    type Service = Bulked<S>;
    fn layer(&self, inner: S) -> Bulked<S> {
        Bulked { inner, bulkhead: self.clone() }
    }
}

/// A service with a [`Bulkhead`].
#[derive(Clone, Debug)]
pub struct Bulked<S> {
    inner: S,
    bulkhead: Bulkhead,
}

/// Counts itself out when it goes.
struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<S, Req> Service<Req> for Bulked<S>
where
    S: Service<Req> + Clone + Send + 'static,
    S::Future: Send + 'static,
    Req: Send + 'static,
{
    type Response = S::Response;
    type Error = Failure<S::Error>;
    type Future = Answer<S::Response, Failure<S::Error>>;

    /// A call that is admitted waits for the service by itself.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let (inner, bulkhead) = (self.inner.clone(), self.bulkhead.clone());
        Box::pin(async move {
            let free = bulkhead.places.clone().try_acquire_owned().ok();
            let place = match free {
                Some(place) => Some(place),
                None => {
                    let before = bulkhead.waiting.fetch_add(1, Ordering::Relaxed);
                    let _waiting = Waiting(bulkhead.waiting.clone());
                    if before >= bulkhead.waiting_max { None } else { bulkhead.places.acquire_owned().await.ok() }
                }
            };
            let Some(_place) = place else {
                if let Some(rejected) = bulkhead.rejected.get() {
                    rejected.add(1, &[KeyValue::new("name", bulkhead.name)]);
                }
                tracing::warn!(target: "firstfall_agent::bulkhead", name = bulkhead.name, "turned away: too many are under way and wait");
                return Err(Failure::Full(bulkhead.name));
            };
            inner.oneshot(request).await.map_err(Failure::Inner)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn some_are_served_some_wait_and_the_rest_is_turned_away() {
        let slow = tower::service_fn(|()| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<_, ()>(())
        });
        let service = Bulkhead::new("t", 2).waiting(1).layer(slow);
        let calls: Vec<_> = (0..5).map(|_| tokio::spawn(service.clone().oneshot(()))).collect();
        let mut results = Vec::new();
        for call in calls {
            results.push(call.await.expect("it does not panic"));
        }
        assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 3, "{results:?}");
        assert_eq!(results.iter().filter(|r| **r == Err(Failure::Full("t"))).count(), 2);
        assert_eq!(service.bulkhead.places.available_permits(), 2, "all places are free again");
        assert_eq!(service.bulkhead.waiting.load(Ordering::Relaxed), 0);
    }
}
