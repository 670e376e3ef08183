//! The state of a service as a word, always with its reason and the numbers behind it.
//!
//! By objectives: a part of the requests may fail (1 % unless the settings say otherwise), and where a latency is set, one in twenty may take longer.
//! A service that uses up what may fail faster than once is degraded, five times as fast failing. The share is judged by the lower end of its
//! Wilson interval (95 %; E. B. Wilson, 1927), so a few failures among a few requests never paint a service red.

use firstfall_store::query::ServiceSummary;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum State {
    Failing,
    Degraded,
    Silent,
    Unknown,
    Ok,
    Idle,
}

impl State {
    pub fn word(self) -> &'static str {
        match self {
            State::Failing => "failing",
            State::Degraded => "degraded",
            State::Silent => "silent",
            State::Unknown => "unknown",
            State::Ok => "ok",
            State::Idle => "idle",
        }
    }
}

/// What is asked of a service.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// The part of its requests that may fail.
    pub errors: f64,
    /// How long 19 of 20 requests may take; `None`: as long as they like.
    pub latency_ns: Option<u64>,
}

impl Default for Objective {
    fn default() -> Objective {
        Objective { errors: 0.01, latency_ns: None }
    }
}

/// What is asked of each service, by name; of all others the default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objectives {
    pub default: Objective,
    pub by_service: HashMap<String, Objective>,
}

impl Objectives {
    pub fn of(&self, service: &str) -> Objective {
        self.by_service.get(service).copied().unwrap_or(self.default)
    }
}

/// Objectives that may change while pages show them.
#[derive(Clone, Debug, Default)]
pub struct LiveObjectives(Arc<RwLock<Objectives>>);

impl LiveObjectives {
    pub fn new(objectives: Objectives) -> LiveObjectives {
        LiveObjectives(Arc::new(RwLock::new(objectives)))
    }

    pub fn of(&self, service: &str) -> Objective {
        self.0.read().unwrap_or_else(PoisonError::into_inner).of(service)
    }

    pub fn replace(&self, objectives: Objectives) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = objectives;
    }
}

/// A service that uses up its objective so many times as fast as it may is failing.
const FAILING_BURN: f64 = 5.0;
/// The part of the requests that may take longer than the latency of the objective.
const SLOW_SHARE: f64 = 0.05;
/// With fewer requests nothing is claimed, good or bad.
const REQUESTS_TO_KNOW: u64 = 20;
/// A service that had requests and says nothing for this long is silent.
pub const SILENT_AFTER: u64 = 120 * 1_000_000_000;

/// What others say of a service that is not heard.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Absence {
    /// Calls to it in the last minutes, and how many of them failed.
    pub calls: u64,
    pub failed: u64,
    /// Somebody told that it was scaled down; when.
    pub scaled_down: Option<u64>,
}

/// Whether what others say of it matters.
pub fn is_quiet(service: &ServiceSummary, end: u64) -> bool {
    end.saturating_sub(service.last_seen) > SILENT_AFTER
}

/// The state of a service that is not heard: gone, or with nothing to say.
fn of_silence(service: &ServiceSummary, quiet: u64, absence: &Absence) -> (State, String) {
    let since = format!("nothing heard for {}", crate::times::ago(quiet));
    if absence.calls > 0 {
        return (State::Silent, format!("{since}; {} of {} calls to it in the last minutes failed", absence.failed, absence.calls));
    }
    if let Some(at) = absence.scaled_down {
        return (State::Idle, format!("{since}; it was scaled down at {}", crate::times::clock(at)));
    }
    if service.speaks_unasked {
        return (State::Silent, format!("{since}, although it also speaks when nobody asks: it has ended, or cannot send"));
    }
    (State::Idle, format!("{since}; it speaks only when it is asked, and nobody asks"))
}

/// The state of a service at the end of a range, by its recent requests.
pub fn judge(service: &ServiceSummary, end: u64, objective: Objective, absence: &Absence) -> (State, String) {
    let (calls, errors) = (service.recent.calls, service.recent.errors);
    let what = if service.by_roots { "root spans" } else { "requests" };
    let quiet = end.saturating_sub(service.last_seen);
    if is_quiet(service, end) {
        return of_silence(service, quiet, absence);
    }
    if calls == 0 {
        return (State::Idle, format!("alive, but no {what} in the last minutes"));
    }
    let (mut state, mut reason) = of_share(errors, calls, what, objective);
    if matches!(state, State::Failing | State::Degraded) && service.requests.calls > calls {
        // The same over the whole range: a burst, or a leak.
        let whole = service.requests.errors as f64 / service.requests.calls.max(1) as f64 / objective.errors;
        reason.push_str(&format!("; over the whole range {}", times_of(whole)));
    }
    if let Some(limit) = objective.latency_ns.filter(|_| calls >= REQUESTS_TO_KNOW) {
        let slow = service.recent.histogram.count_above(limit);
        if wilson_low(slow, calls) > SLOW_SHARE && state > State::Degraded {
            state = State::Degraded;
            let share = 100.0 * slow as f64 / calls as f64;
            reason = format!("{share:.1} % of {calls} {what} took longer than {}, 5 % may", crate::times::span_of(limit));
        }
    }
    (state, reason)
}

fn times_of(burn: f64) -> String {
    format!("{burn:.1} times what may fail")
}

/// The state of something of which so many requests, or calls, failed.
pub fn of_share(errors: u64, calls: u64, what: &str, objective: Objective) -> (State, String) {
    if calls == 0 {
        return (State::Idle, format!("no {what}"));
    }
    let share = errors as f64 / calls as f64;
    let sure = wilson_low(errors, calls) / objective.errors;
    let numbers = format!("{errors} of {calls} {what} failed ({:.1} %)", 100.0 * share);
    let burning = || format!("{numbers}, {}", times_of(share / objective.errors));
    if calls < REQUESTS_TO_KNOW {
        (State::Unknown, format!("too few {what} to know: {calls}, {errors} failed"))
    } else if sure > FAILING_BURN {
        (State::Failing, burning())
    } else if sure > 1.0 {
        (State::Degraded, burning())
    } else {
        (State::Ok, numbers)
    }
}

/// The lower end of the 95 % interval of a share.
fn wilson_low(hits: u64, of: u64) -> f64 {
    let (n, z) = (of as f64, 1.96);
    let p = hits as f64 / n;
    let middle = p + z * z / (2.0 * n);
    let spread = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    ((middle - spread) / (1.0 + z * z / n)).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use firstfall_store::Service;
    use firstfall_store::rollup::Cell;

    fn summary(calls: u64, errors: u64, seconds_quiet: u64, end: u64) -> ServiceSummary {
        let mut recent = Cell { calls, errors, ..Cell::default() };
        (0..calls).for_each(|n| recent.histogram.record(n * 1_000_000));
        ServiceSummary {
            service: Service::named("a"),
            requests: recent.clone(),
            recent,
            by_roots: false,
            items: calls,
            points: Vec::new(),
            instances: Vec::new(),
            since: 0,
            last_seen: end - seconds_quiet * 1_000_000_000,
            speaks_unasked: true,
        }
    }

    const END: u64 = 1_000_000 * 1_000_000_000;

    fn check(calls: u64, errors: u64, seconds_quiet: u64) -> State {
        judge(&summary(calls, errors, seconds_quiet, END), END, Objective::default(), &Absence::default()).0
    }

    #[test]
    fn few_requests_never_make_a_service_red() {
        assert_eq!(check(3, 1, 1), State::Unknown);
        assert_eq!(check(1000, 2, 1), State::Ok);
        assert_eq!(check(1000, 30, 1), State::Degraded);
        assert_eq!(check(1000, 300, 1), State::Failing);
    }

    #[test]
    fn silence_is_told_from_idleness() {
        assert_eq!(check(0, 0, 5), State::Idle);
        assert_eq!(check(100, 0, 600), State::Silent);
        let asked_only = ServiceSummary { speaks_unasked: false, ..summary(100, 0, 600, END) };
        let state = |absence: Absence| judge(&asked_only, END, Objective::default(), &absence);
        assert_eq!(state(Absence::default()).0, State::Idle);
        let (silent, reason) = state(Absence { calls: 30, failed: 29, scaled_down: Some(END) });
        assert!(silent == State::Silent && reason.contains("29 of 30 calls to it in the last minutes failed"), "{reason}");
        let away = Absence { scaled_down: Some(END), ..Absence::default() };
        let gone = judge(&summary(100, 0, 600, END), END, Objective::default(), &away);
        assert!(gone.0 == State::Idle && gone.1.contains("scaled down"), "{}", gone.1);
    }

    #[test]
    fn a_service_is_judged_by_what_is_asked_of_it() {
        let strict = Objective { errors: 0.001, latency_ns: None };
        let (state, reason) = judge(&summary(10_000, 30, 1, END), END, strict, &Absence::default());
        assert!(state == State::Degraded && reason.contains("3.0 times what may fail"), "{reason}");
        assert_eq!(check(10_000, 30, 1), State::Ok);
        // Of a thousand requests of 0 to 999 ms a tenth takes longer than 900 ms.
        let quick = Objective { latency_ns: Some(900_000_000), ..Objective::default() };
        let (state, reason) = judge(&summary(1000, 0, 1, END), END, quick, &Absence::default());
        assert!(state == State::Degraded && reason.contains("took longer than 900 ms"), "{reason}");
        let slow = Objective { latency_ns: Some(980_000_000), ..Objective::default() };
        assert_eq!(judge(&summary(1000, 0, 1, END), END, slow, &Absence::default()).0, State::Ok);
    }
}
