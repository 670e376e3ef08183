//! Circuit breakers, by the metrics of those that have them: gauges of their state, or counts of how often they opened.

use super::names::{NodeId, TextId};
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use std::collections::BTreeMap;

/// Breakers, series and processes that are remembered: a name that is another one with each start must not fill the memory.
const REMEMBERED_MAX: usize = 20_000;
/// Transitions that wait to be kept as changes, or forgotten.
const TRANSITIONS_MAX: usize = 10_000;

/// How often a breaker has come into a state, where that is counted and no gauge tells the state itself.
#[derive(Clone, Copy, Debug)]
pub struct Count {
    pub node: NodeId,
    pub breaker: TextId,
    /// What tells the sender from others of its service.
    pub process: u64,
    /// All that tells one series from another.
    pub series: TextId,
    /// Open or closed, and the other of the two.
    pub state: TextId,
    pub other: TextId,
    pub opens: bool,
    pub count: f64,
    /// Since the counter began, else since the point before.
    pub cumulative: bool,
    pub since: u64,
    pub time: u64,
}

/// The state of a breaker, if that is what a gauge tells of: as Resilience4j has it (by Micrometer; the agent too), a gauge for each state, 1 for the one
/// that it is in; as one number, 0 closed, 1 half open, 2 open; as Envoy has it, 1 while a limit of a cluster is reached. Empty: not by this point.
pub fn gauge_state<'a>(metric: &str, state: &'a str, value: Option<f64>) -> Option<&'a str> {
    let of_envoy = metric.contains("circuit_breakers") && metric.ends_with("_open");
    let is_on = value == Some(1.0);
    if of_envoy {
        Some(if is_on { "open" } else { "closed" })
    } else if !metric.ends_with("circuitbreaker.state") && !metric.ends_with("circuit_breaker.state") {
        None
    } else if !state.is_empty() {
        Some(if is_on { state } else { "" })
    } else {
        let number = value.map_or(-1, |value| value as i64);
        Some(["closed", "half_open", "open"].get(usize::try_from(number).unwrap_or(usize::MAX)).copied().unwrap_or(""))
    }
}

/// The state that an event of Polly's (its counter `resilience.polly.strategy.events`) tells of, and the other one. That a breaker is half open, for one call,
/// says nothing about where it goes.
pub fn polly_event(event: &str) -> Option<(&'static str, &'static str)> {
    match event {
        "OnCircuitOpened" => Some(("open", "closed")),
        "OnCircuitClosed" => Some(("closed", "open")),
        _ => None,
    }
}

/// A process by all that its resource says, which has an id of the instance in it, or of the pod, or the process, where it is to be told from others.
pub fn process_of(resource: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(resource)
}

/// What is known of breakers.
#[derive(Default)]
pub struct Breakers {
    /// By node and breaker: its state and since when.
    states: HashMap<(NodeId, TextId), (TextId, u64)>,
    /// By process, series and start: the latest point of a count of how often a breaker came into a state.
    counts: HashMap<(u64, TextId, u64), (u64, f64)>,
    /// When metrics of a process were first heard, and last.
    first_metrics: HashMap<u64, (u64, u64)>,
    /// Node, breaker, the state before, the state after, and when.
    pub transitions: Vec<(NodeId, TextId, TextId, TextId, u64)>,
}

impl Breakers {
    pub fn hear_state(&mut self, node: NodeId, breaker: TextId, state: TextId, time: u64) {
        let full = self.states.len() >= REMEMBERED_MAX;
        match self.states.entry((node, breaker)) {
            Entry::Vacant(_) if full => {}
            Entry::Vacant(new) => {
                new.insert((state, time));
            }
            Entry::Occupied(mut known) => {
                let (old, since) = *known.get();
                if old != state && time > since {
                    if self.transitions.len() < TRANSITIONS_MAX {
                        self.transitions.push((node, breaker, old, state, time));
                    }
                    known.insert((state, time));
                }
            }
        }
    }

    pub fn hear_metrics(&mut self, process: u64, time: u64) {
        if self.first_metrics.len() < REMEMBERED_MAX || self.first_metrics.contains_key(&process) {
            let (first, latest) = self.first_metrics.entry(process).or_insert((time, time));
            (*first, *latest) = ((*first).min(time), (*latest).max(time));
        }
    }

    /// Counts of how often breakers opened and closed, as they came together: what came about more often since the point before is where a breaker is.
    /// `since` is when anything was first heard of anybody.
    pub fn hear_counts(&mut self, counts: &[Count], since: Option<u64>) {
        // By breaker of a process and export: how often it opened, and closed.
        let mut gains: BTreeMap<_, (Count, [f64; 2])> = BTreeMap::new();
        for counted in counts {
            let gained = self.gained(counted, since);
            let (_, sums) = gains.entry((counted.time, counted.node, counted.breaker, counted.process)).or_insert((*counted, [0.0; 2]));
            sums[usize::from(!counted.opens)] += gained;
        }
        for (counted, [opened, closed]) in gains.into_values() {
            if opened <= 0.0 && closed <= 0.0 {
                continue;
            }
            // One that has closed as often as it has opened is closed.
            let (state, other) =
                if (opened > closed) == counted.opens { (counted.state, counted.other) } else { (counted.other, counted.state) };
            if self.states.len() < REMEMBERED_MAX {
                self.states.entry((counted.node, counted.breaker)).or_insert((other, 0));
            }
            self.hear_state(counted.node, counted.breaker, state, counted.time);
        }
    }

    /// By how much a count has risen since the point before of its series and process.
    fn gained(&mut self, counted: &Count, heard_since: Option<u64>) -> f64 {
        let Count { process, series, since, time, count, cumulative, .. } = *counted;
        if !cumulative {
            return count;
        }
        let full = self.counts.len() >= REMEMBERED_MAX;
        match self.counts.entry((process, series, since)) {
            Entry::Vacant(_) if full => 0.0,
            Entry::Vacant(new) => {
                new.insert((time, count));
                // A counter begins with its first event. That is news where the process has sent metrics without it, or began after we came.
                let was_heard = self.first_metrics.get(&process).is_some_and(|(first, _)| *first < time);
                let is_news = was_heard || heard_since.is_some_and(|first| since > first);
                if is_news { count } else { 0.0 }
            }
            Entry::Occupied(known) if known.get().0 >= time => 0.0,
            Entry::Occupied(mut known) => count - known.insert((time, count)).1,
        }
    }

    /// Forgets what ended before a time.
    pub fn forget_before(&mut self, time: u64) {
        self.transitions.retain(|(.., at)| *at >= time);
        self.counts.retain(|_, (at, _)| *at >= time);
        self.first_metrics.retain(|_, (_, latest)| *latest >= time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Second, series, process, whether it opens, and how often.
    type Heard = (u64, TextId, u64, bool, f64);

    /// What is told of a breaker, of which this is heard in exports of points that come together.
    fn transitions(exports: &[&[Heard]]) -> Vec<(&'static str, u64)> {
        let (open, closed) = (7, 8);
        let mut breakers = Breakers::default();
        for export in exports {
            let points = export.iter().map(|(second, series, process, opens, count)| Count {
                node: 0,
                breaker: 1,
                process: *process,
                series: *series,
                state: if *opens { open } else { closed },
                other: if *opens { closed } else { open },
                opens: *opens,
                count: *count,
                cumulative: true,
                since: 0,
                time: *second * SECOND,
            });
            let points: Vec<Count> = points.collect();
            points.iter().for_each(|point| breakers.hear_metrics(point.process, point.time));
            breakers.hear_counts(&points, Some(0));
        }
        breakers.transitions.iter().map(|(.., new, time)| (if *new == open { "open" } else { "closed" }, time / SECOND)).collect()
    }

    #[test]
    fn a_breaker_whose_openings_are_counted_tells_of_each() {
        let opened = |second, count| (second, 1, 5, true, count);
        let closed = |second, count| (second, 2, 5, false, count);
        assert!(transitions(&[&[opened(10, 3.0)], &[opened(70, 3.0)]]).is_empty(), "what was counted before we came is not news");
        let told = transitions(&[
            &[opened(10, 3.0)],
            &[opened(70, 4.0)],
            &[opened(130, 4.0), closed(130, 1.0)],
            &[opened(190, 5.0), closed(190, 1.0)],
        ]);
        assert_eq!(told, [("open", 70), ("closed", 130), ("open", 190)], "the first of a kind is news too");
        // Open through an outage, with a trial that fails now and then; then opened and closed within one export.
        let told = transitions(&[&[opened(10, 1.0)], &[opened(70, 9.0)], &[opened(130, 12.0)], &[opened(190, 13.0), closed(190, 1.0)]]);
        assert_eq!(told, [("open", 70), ("closed", 190)]);
    }

    #[test]
    fn counts_of_other_processes_and_series_and_late_ones_open_no_breaker() {
        // Two processes; two kinds of exceptions in one; a point that comes late.
        let export = |second, extra: f64| [(second, 1, 5, true, 3.0), (second, 1, 6, true, 2.0 + extra), (second, 3, 5, true, 1.0)];
        let told = transitions(&[&export(10, 0.0), &export(70, 0.0), &export(130, 1.0), &export(70, 0.0), &export(190, 1.0)]);
        assert_eq!(told, [("open", 130)]);
    }

    #[test]
    fn a_gauge_tells_the_state_of_a_breaker_in_each_of_its_spellings() {
        for (metric, state, value, expected) in [
            ("resilience4j.circuitbreaker.state", "open", 1.0, Some("open")),
            ("firstfall.circuitbreaker.state", "closed", 0.0, Some("")),
            ("circuit_breaker.state", "", 2.0, Some("open")),
            ("circuit_breaker.state", "", 1.0, Some("half_open")),
            ("circuit_breaker.state", "", 7.0, Some("")),
            ("envoy_cluster_circuit_breakers_default_rq_open", "", 1.0, Some("open")),
            ("envoy.cluster.circuit_breakers.default.cx_open", "", 0.0, Some("closed")),
            ("envoy_cluster_upstream_rq_total", "", 1.0, None),
            ("state", "open", 1.0, None),
        ] {
            assert_eq!(gauge_state(metric, state, Some(value)), expected, "{metric} {state} {value}");
        }
    }
}
