//! The state of a service as a word, always with its reason and the numbers behind it.
//!
//! By objectives: 1 % of requests may fail before a service is degraded, 5 % before it is failing. The share is judged by the lower
//! end of its Wilson interval (95 %; E. B. Wilson, 1927), so a few failures among a few requests never paint a service red.

use firstfall_store::query::ServiceSummary;

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

const DEGRADED_SHARE: f64 = 0.01;
const FAILING_SHARE: f64 = 0.05;
/// With fewer requests nothing is claimed, good or bad.
const REQUESTS_TO_KNOW: u64 = 20;
/// A service that had requests and says nothing for this long is silent.
const SILENT_AFTER: u64 = 120 * 1_000_000_000;

/// The state of a service at the end of a range, by its recent requests.
pub fn judge(service: &ServiceSummary, end: u64) -> (State, String) {
    let (calls, errors) = service.recent;
    let what = if service.by_roots { "root spans" } else { "requests" };
    let quiet = end.saturating_sub(service.last_seen);
    if quiet > SILENT_AFTER {
        return (State::Silent, format!("nothing heard for {}", crate::times::ago(quiet)));
    }
    if calls == 0 {
        return (State::Idle, format!("alive, but no {what} in the last minutes"));
    }
    of_share(errors, calls, what)
}

/// The state of something of which so many requests, or calls, failed.
pub fn of_share(errors: u64, calls: u64, what: &str) -> (State, String) {
    if calls == 0 {
        return (State::Idle, format!("no {what}"));
    }
    let share = wilson_low(errors, calls);
    let numbers = format!("{errors} of {calls} {what} failed ({:.1} %)", 100.0 * errors as f64 / calls as f64);
    if calls < REQUESTS_TO_KNOW {
        (State::Unknown, format!("too few {what} to know: {calls}, {errors} failed"))
    } else if share > FAILING_SHARE {
        (State::Failing, numbers)
    } else if share > DEGRADED_SHARE {
        (State::Degraded, numbers)
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

    fn check(calls: u64, errors: u64, seconds_quiet: u64) -> State {
        let end = 1_000_000 * 1_000_000_000;
        let summary = ServiceSummary {
            service: Service::named("a"),
            requests: Cell { calls, errors, ..Cell::default() },
            recent: (calls, errors),
            by_roots: false,
            items: calls,
            points: Vec::new(),
            instances: Vec::new(),
            last_seen: end - seconds_quiet * 1_000_000_000,
        };
        judge(&summary, end).0
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
    }
}
