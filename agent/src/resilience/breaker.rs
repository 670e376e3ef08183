//! A circuit breaker: when too many calls fail, none are made for a while; then a few are tried.

use super::{Answer, Failure};
use crate::late::{Late, late, meter};
use opentelemetry::KeyValue;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;
use tower::{Layer, Service};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Closed,
    /// Until then.
    Open(Instant),
    /// So many trials are under way or have gone well.
    HalfOpen {
        under_way: u32,
        well: u32,
    },
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::Open(_) => "open",
            State::HalfOpen { .. } => "half_open",
        }
    }
}

#[derive(Debug)]
struct Memory {
    state: State,
    /// Whether the latest calls have failed.
    latest: VecDeque<bool>,
    /// Counts changes of state: what was called before one tells nothing about what is after.
    turn: u64,
}

/// Opens when at least half of the last fifty calls (and of at least ten) have failed, stays so for five seconds, and closes again after three trials that
/// went well. Clones share what they know.
#[derive(Clone, Debug)]
pub struct Breaker<F = Errors> {
    name: &'static str,
    calls: usize,
    calls_min: usize,
    share: f64,
    pause: Duration,
    trials: u32,
    memory: Arc<Mutex<Memory>>,
    /// Nothing to count with, but it has to be made.
    seen_by_metrics: Late<()>,
    failed: F,
}

/// Errors are failures.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Errors;

/// Says whether a call has failed: a function of its outcome, `|result| …`.
pub trait Failed<R, E> {
    /// Whether it has.
    fn failed(&self, result: &Result<R, E>) -> bool;
}

impl<R, E> Failed<R, E> for Errors {
    fn failed(&self, result: &Result<R, E>) -> bool {
        result.is_err()
    }
}

impl<F, R, E> Failed<R, E> for F
where
    F: Fn(&Result<R, E>) -> bool,
{
    fn failed(&self, result: &Result<R, E>) -> bool {
        self(result)
    }
}

impl Breaker {
    /// `name` stands in events and metrics, and tells this one from others.
    pub fn new(name: &'static str) -> Breaker {
        let memory = Arc::new(Mutex::new(Memory { state: State::Closed, latest: VecDeque::new(), turn: 0 }));
        // Alive for as long as the breaker is; as a gauge for each state, 1 for the one that it is in, which is how dashboards know breakers.
        let seen = Arc::downgrade(&memory);
        let seen_by_metrics = late(move || {
            let (meter, seen) = (meter(), seen.clone());
            let state = meter.i64_observable_gauge("firstfall.circuitbreaker.state").with_callback(move |out| {
                let Some(memory) = seen.upgrade() else { return };
                let now = lock(&memory).state.name();
                for state in ["closed", "open", "half_open"] {
                    out.observe(i64::from(state == now), &[KeyValue::new("name", name), KeyValue::new("state", state)]);
                }
            });
            let _ = state.build();
        });
        Breaker {
            name,
            calls: 50,
            calls_min: 10,
            share: 0.5,
            pause: Duration::from_secs(5),
            trials: 3,
            memory,
            seen_by_metrics,
            failed: Errors,
        }
    }
}

fn lock(memory: &Mutex<Memory>) -> MutexGuard<'_, Memory> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<F> Breaker<F> {
    /// Opens when this share of the last so many calls has failed, once there were at least `min` of them; half of fifty and ten unless told otherwise.
    pub fn opens_at(mut self, share: f64, calls: usize, min: usize) -> Breaker<F> {
        (self.share, self.calls, self.calls_min) = (share.clamp(0.0, 1.0), calls.max(1), min.max(1));
        self
    }

    /// Stays open for so long, a day at most, and closes after so many trials that went well; five seconds and three unless told otherwise.
    pub fn recovers(mut self, pause: Duration, trials: u32) -> Breaker<F> {
        (self.pause, self.trials) = (pause.min(crate::settings::LONGEST), trials.max(1));
        self
    }

    /// What counts as a failure, such as an answer of 500: a function such as `|result: &Result<Response, Error>| …`.
    pub fn failed<G>(self, failed: G) -> Breaker<G> {
        let Breaker { name, calls, calls_min, share, pause, trials, memory, seen_by_metrics, .. } = self;
        Breaker { name, calls, calls_min, share, pause, trials, memory, seen_by_metrics, failed }
    }

    fn change(&self, memory: &mut Memory, to: State) {
        let from = memory.state.name();
        memory.state = to;
        memory.latest.clear();
        memory.turn += 1;
        tracing::warn!(target: "firstfall_agent::breaker", name = self.name, from, to = to.name(), "the breaker {} is {}", self.name, to.name());
    }

    /// The turn in which a call may be made, if it may.
    fn admit(&self) -> Option<u64> {
        let mut memory = lock(&self.memory);
        if let State::Open(until) = memory.state
            && Instant::now() >= until
        {
            self.change(&mut memory, State::HalfOpen { under_way: 0, well: 0 });
        }
        let admitted = match &mut memory.state {
            State::Closed => true,
            State::Open(_) => false,
            State::HalfOpen { under_way, well } => {
                let admitted = *under_way + *well < self.trials;
                *under_way += u32::from(admitted);
                admitted
            }
        };
        admitted.then_some(memory.turn)
    }

    fn learn(&self, turn: u64, failed: bool) {
        let mut memory = lock(&self.memory);
        if memory.turn != turn {
            return;
        }
        match &mut memory.state {
            State::Closed => {
                memory.latest.push_back(failed);
                if memory.latest.len() > self.calls {
                    memory.latest.pop_front();
                }
                let bad = memory.latest.iter().filter(|failed| **failed).count();
                if failed && memory.latest.len() >= self.calls_min && bad as f64 >= self.share * memory.latest.len() as f64 {
                    self.change(&mut memory, State::Open(Instant::now() + self.pause));
                }
            }
            State::HalfOpen { under_way, well } => {
                *under_way = under_way.saturating_sub(1);
                *well += u32::from(!failed);
                let enough = *well >= self.trials;
                if failed {
                    self.change(&mut memory, State::Open(Instant::now() + self.pause));
                } else if enough {
                    self.change(&mut memory, State::Closed);
                }
            }
            State::Open(_) => {}
        }
    }
}

/// A call that was admitted. One that is dropped on the way tells nothing of the callee, and gives its place back.
struct Trial<F> {
    breaker: Breaker<F>,
    turn: u64,
    done: bool,
}

impl<F> Drop for Trial<F> {
    fn drop(&mut self) {
        let mut memory = lock(&self.breaker.memory);
        if !self.done
            && memory.turn == self.turn
            && let State::HalfOpen { under_way, .. } = &mut memory.state
        {
            *under_way = under_way.saturating_sub(1);
        }
    }
}

impl<S, F: Clone> Layer<S> for Breaker<F> {
    type Service = Broken<S, F>;
    fn layer(&self, inner: S) -> Broken<S, F> {
        Broken { inner, breaker: self.clone() }
    }
}

/// A service with a [`Breaker`].
#[derive(Clone, Debug)]
pub struct Broken<S, F = Errors> {
    inner: S,
    breaker: Breaker<F>,
}

impl<S, Req, F> Service<Req> for Broken<S, F>
where
    S: Service<Req>,
    S::Future: Send + 'static,
    S::Response: Send,
    S::Error: Send,
    F: Failed<S::Response, S::Error> + Clone + Send + 'static,
{
    type Response = S::Response;
    type Error = Failure<S::Error>;
    type Future = Answer<S::Response, Failure<S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context).map_err(Failure::Inner)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let Some(turn) = self.breaker.admit() else {
            let name = self.breaker.name;
            tracing::info!(target: "firstfall_agent::breaker", name, "not called: the breaker is open");
            return Box::pin(async move { Err(Failure::Open(name)) });
        };
        let mut trial = Trial { breaker: self.breaker.clone(), turn, done: false };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let result = answer.await;
            trial.done = true;
            trial.breaker.learn(turn, trial.breaker.failed.failed(&result));
            result.map_err(Failure::Inner)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower::ServiceExt;

    #[tokio::test(start_paused = true)]
    async fn it_opens_when_calls_fail_and_closes_when_trials_go_well() {
        let service = tower::service_fn(|well: bool| async move { if well { Ok(()) } else { Err("no") } });
        let service = Breaker::new("t").opens_at(0.5, 20, 10).recovers(Duration::from_secs(5), 2).layer(service);
        let call = async |well: bool| service.clone().oneshot(well).await;
        for _ in 0..10 {
            assert_eq!(call(false).await, Err(Failure::Inner("no")));
        }
        assert_eq!(call(true).await, Err(Failure::Open("t")));
        tokio::time::advance(Duration::from_secs(6)).await;
        assert_eq!(call(false).await, Err(Failure::Inner("no")), "a trial");
        assert_eq!(call(true).await, Err(Failure::Open("t")), "which failed");
        tokio::time::advance(Duration::from_secs(6)).await;
        assert_eq!((call(true).await, call(true).await), (Ok(()), Ok(())));
        for _ in 0..9 {
            assert_eq!(call(false).await, Err(Failure::Inner("no")), "closed, and it has forgotten what was");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_that_is_given_up_gives_its_place_back() {
        let service = tower::service_fn(|well: bool| async move {
            if !well {
                return Err("no");
            }
            std::future::pending::<()>().await;
            Ok(())
        });
        let service = Breaker::new("t").opens_at(0.5, 4, 2).recovers(Duration::from_secs(1), 1).layer(service);
        for _ in 0..2 {
            let _ = service.clone().oneshot(false).await;
        }
        tokio::time::advance(Duration::from_secs(2)).await;
        for _ in 0..3 {
            let given_up = tokio::time::timeout(Duration::from_millis(10), service.clone().oneshot(true)).await;
            assert!(given_up.is_err(), "it was admitted, and hangs");
        }
    }
}
