//! Joins the spans of a trace, which arrive from many services, and counts what only the whole says: own time, errors that began
//! here, who called whom, and what a request reached.

use super::calls::{CALLS_MAX, Calls, ToldTwice};
use super::clocks::Clocks;
use super::facts::{CLIENT, CONSUMER, LogFact, PRODUCER, SERVER, SpanFact};
use super::names::NodeId;
use super::tree::{Tree, uncovered};
use super::windows::{Called, Cell, Event, Subject, Windows};
use firstfall_store::part::PartCell;
use hashbrown::{HashMap, HashSet};

/// Spans that wait for the rest of their traces; with the trace around it one takes about 250 bytes. Past it the oldest traces are counted
/// as they are.
const PENDING_MAX: usize = 150_000;

#[derive(Default)]
pub struct Trace {
    spans: Vec<SpanFact>,
    logs: Vec<LogFact>,
    newest: u64,
}

#[derive(Default)]
pub struct Join {
    traces: HashMap<[u8; 16], Trace>,
    /// Records that wait for their traces, which may not have begun: looked up when those are counted, as most records have no sampled trace.
    logs: Vec<LogFact>,
    /// Spans and records that wait.
    pending: usize,
    pub clocks: Clocks,
    /// Traces that were counted before all of them can have come.
    pub cut_short: u64,
}

impl Join {
    pub fn add_span(&mut self, fact: SpanFact, windows: &mut Windows) {
        if self.pending >= PENDING_MAX {
            self.settle(0, windows);
        }
        let trace = self.traces.entry(fact.trace).or_default();
        trace.newest = trace.newest.max(fact.end);
        trace.spans.push(fact);
        self.pending += 1;
    }

    /// Keeps what a log record says until the spans of its request are joined.
    pub fn add_log(&mut self, fact: LogFact, windows: &mut Windows) {
        // All that is asked of a pattern by itself is whether it tells of errors.
        if fact.severity >= 17 {
            let failed = Cell { count: 1, errors: 1, ..Cell::default() };
            windows.add(Subject::Pattern { node: fact.node, pattern: fact.pattern }, fact.time, &failed);
        }
        // Logs that come before their traces must not fill the room: without its trace a record is still counted.
        if fact.trace != [0; 16] && fact.span != 0 && self.pending < PENDING_MAX / 2 {
            self.logs.push(fact);
            self.pending += 1;
        }
    }

    /// Gives its records to each trace that is older than `time`, and forgets those that no trace has come for.
    fn place_logs(&mut self, time: u64) {
        let traces = &mut self.traces;
        let waiting = self.logs.len();
        let mut given = 0;
        self.logs.retain(|log| match traces.get_mut(&log.trace) {
            Some(trace) if trace.newest < time => {
                trace.logs.push(*log);
                given += 1;
                false
            }
            Some(_) => true,
            None => log.time >= time,
        });
        self.pending -= waiting - self.logs.len() - given;
    }

    /// How full the waiting room is, from 0 to 1.
    pub fn fill(&self) -> f64 {
        self.pending as f64 / PENDING_MAX as f64
    }

    /// Takes out the traces of which nothing new has come since `time` (event time), to count them.
    pub fn take_settled(&mut self, time: u64) -> Vec<Trace> {
        self.place_logs(time);
        let settled: Vec<Trace> = self.traces.extract_if(|_, trace| trace.newest < time).map(|(_, trace)| trace).collect();
        self.pending -= settled.iter().map(|trace| trace.spans.len() + trace.logs.len()).sum::<usize>();
        settled
    }

    pub fn count(&mut self, settled: &[Trace], windows: &mut Windows) {
        settled.iter().for_each(|trace| count(trace, windows, &mut self.clocks));
    }

    /// Counts the traces of which nothing new has come since `time` (event time).
    pub fn settle(&mut self, time: u64, windows: &mut Windows) {
        let settled = self.take_settled(time);
        self.count(&settled, windows);
        self.clocks.settle();
        if self.pending >= PENDING_MAX {
            let mut ages: Vec<u64> = self.traces.values().map(|trace| trace.newest).collect();
            let middle = ages.len() / 2;
            let median = *ages.select_nth_unstable(middle).1;
            let before = self.traces.len();
            if median + 1 > time {
                self.settle(median + 1, windows);
            }
            self.cut_short += (before - self.traces.len()) as u64;
        }
    }
}

/// Counts that a consumer took something from a queue.
fn take(queue: NodeId, taken: &SpanFact, windows: &mut Windows) {
    let duration = taken.end.saturating_sub(taken.start);
    let (failed, stands_for) = (taken.failed, taken.weight);
    windows.add(Subject::Call { from: queue, to: taken.node }, taken.end, &Cell::of(duration, failed).times(stands_for));
    windows.add_call(queue, taken.node, Called { time: taken.end, ns: duration, unexplained: 0, failed, stands_for });
}

fn count(trace: &Trace, windows: &mut Windows, clocks: &mut Clocks) {
    let tree = Tree::of(&trace.spans);
    // What each part of the request has reached.
    let mut reached: HashSet<(usize, Event)> = HashSet::new();
    let mut reach = |top: usize, event: Event| reached.insert((top, event));
    let tops = tree.tops();
    let calls = Calls::of(&tree, windows, clocks);
    let Calls { callees, told_twice } = &calls;
    // When a part of a request was waiting for calls, by its top span.
    let mut waits: HashMap<usize, Vec<(u64, u64)>> = HashMap::new();
    let mut covers = Vec::new();
    // The parts of which some call failed.
    let mut let_down: HashSet<usize> = HashSet::new();
    for (at, span) in trace.spans.iter().enumerate().filter(|(at, _)| callees[*at].is_some()) {
        if span.failed {
            let_down.insert(tops[at]);
        }
        let waits = waits.entry(tops[at]).or_default();
        if waits.len() < CALLS_MAX {
            waits.push((span.start, span.end));
        }
    }
    for (at, span) in trace.spans.iter().enumerate() {
        let to = callees[at];
        let top = tops[at];
        let request = &trace.spans[top];
        let beside = if to.is_none() { waits.get(&top).map_or(&[][..], Vec::as_slice) } else { &[] };
        let own = tree.own_ns(at, beside, &mut covers);
        let begins = span.failed && !tree.children(at).any(|child| child.failed);
        match to {
            // The call is counted where it is told better.
            Some(to) if told_twice[at] == Some(ToldTwice::Around) => {
                let more = Cell { sum_ns: own.saturating_mul(span.weight.into()), ..Cell::default() };
                windows.add(Subject::Wait { from: span.node, to }, span.end, &more);
            }
            Some(_) if told_twice[at] == Some(ToldTwice::Within) => {}
            Some(to) => {
                let waited = span.end.saturating_sub(span.start);
                windows.add(Subject::Call { from: span.node, to }, span.end, &Cell::of(waited, span.failed).times(span.weight));
                let (failed, stands_for) = (span.failed, span.weight);
                windows.add_call(span.node, to, Called { time: span.end, ns: waited, unexplained: own, failed, stands_for });
                if span.kind == PRODUCER && span.peer == Some(to) {
                    tree.children(at).filter(|child| child.kind == CONSUMER && child.node != span.node).for_each(|t| take(to, t, windows));
                }
                windows.add(Subject::Wait { from: span.node, to }, span.end, &Cell::of(own, begins).times(span.weight));
                let answered_later = |child: &&SpanFact| child.node == to && !child.failed && child.end > span.end;
                if let (true, Some(answer)) = (span.failed && span.kind == CLIENT, tree.children(at).find(answered_later)) {
                    let took = answer.end.saturating_sub(answer.start);
                    windows.add(Subject::GivenUp { from: span.node, to }, span.end, &Cell::of(took, false).times(span.weight));
                }
                if reach(top, Event::Calls(to)) {
                    let subject = Subject::Reach { node: request.node, operation: request.operation, event: Event::Calls(to) };
                    windows.add(subject, request.end, &Cell { count: request.weight, ..Cell::default() });
                }
            }
            None => windows.add(
                Subject::Own { node: span.node, operation: span.operation },
                span.end,
                &Cell::of(own, begins).times(span.weight),
            ),
        }
        // Its producer is in another trace, and only linked.
        if let (Some(queue), CONSUMER, true, None) = (span.peer, span.kind, span.request, tree.parent[at]) {
            take(queue, span, windows);
        }
        match span.refusal {
            Some(refusal) if top == at && span.kind == SERVER => {
                let event = Event::IsRefused(refusal);
                let subject = Subject::Reach { node: span.node, operation: span.operation, event };
                windows.add(subject, span.end, &Cell { count: span.weight, ..Cell::default() });
            }
            // What a service refuses its own spans tell.
            Some(refusal) if tree.children(at).all(|child| child.node == span.node) => {
                let event = to.filter(|_| span.kind == CLIENT).map(|to| Event::IsRefusedBy(to, refusal));
                if let Some(event) = event.filter(|event| reach(top, *event)) {
                    let subject = Subject::Reach { node: request.node, operation: request.operation, event };
                    windows.add(subject, request.end, &Cell { count: request.weight, ..Cell::default() });
                }
            }
            _ => {}
        }
        if top == at {
            let duration = span.end.saturating_sub(span.start);
            windows.add(
                Subject::Request { node: span.node, operation: span.operation },
                span.end,
                &Cell::of(duration, span.failed).times(span.weight),
            );
            // A call that nothing of its service is around is no request.
            if to.is_none() {
                let own = waits.get_mut(&top).map_or(duration, |waits| uncovered(span, waits));
                let (weight, let_down) = (u64::from(span.weight), let_down.contains(&top));
                let count = |yes: bool| weight * u64::from(yes);
                let part = PartCell {
                    requests: weight,
                    failed: count(span.failed),
                    own_errors: count(span.failed && !let_down),
                    absorbed: count(!span.failed && let_down),
                    sum_ns: duration.saturating_mul(weight),
                    own_ns: own.saturating_mul(weight),
                    estimated: weight > 1,
                };
                windows.add_part(span.node, span.operation, span.end, &part);
            }
        } else if reach(top, Event::Step(span.operation)) {
            let subject = Subject::Reach { node: request.node, operation: request.operation, event: Event::Step(span.operation) };
            windows.add(subject, request.end, &Cell { count: request.weight, ..Cell::default() });
        }
    }
    calls.count_retries(&trace.spans, windows);
    for log in &trace.logs {
        let Some(at) = tree.find(log.span) else { continue };
        let top = tops[at as usize];
        if reach(top, Event::Says(log.pattern)) {
            let request = &trace.spans[top];
            let subject = Subject::Reach { node: request.node, operation: request.operation, event: Event::Says(log.pattern) };
            windows.add(subject, request.end, &Cell { count: request.weight, ..Cell::default() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::facts::tests::span;
    use crate::detect::names::NodeId;
    use proptest::prelude::*;

    #[test]
    fn a_hundred_thousand_spans_in_a_row_or_side_by_side_are_counted_at_once() {
        const SPANS: u64 = 100_000;
        for parent_of in [|n: u64| n, |_: u64| 1] {
            let (mut join, mut windows) = (Join::default(), Windows::default());
            join.add_span(span(1, 0, 0, 0, SPANS), &mut windows);
            for n in 1..SPANS {
                // Every other one calls another node.
                join.add_span(span(n + 1, parent_of(n), (n % 2) as NodeId, n, n + 1), &mut windows);
            }
            join.settle(u64::MAX, &mut windows);
            assert_eq!(join.pending, 0);
        }
    }

    /// What node 0 did of a request from 0 to 1000 with calls to node 7, each from, to, and whether it failed.
    fn part(failed: bool, calls: &[(u64, u64, bool)]) -> (u64, u64, u64, u64) {
        let (mut join, mut windows) = (Join::default(), Windows::default());
        join.add_span(SpanFact { kind: SERVER, failed, ..span(1, 0, 0, 0, 1000) }, &mut windows);
        // One step of its own in between.
        join.add_span(span(2, 1, 0, 100, 900), &mut windows);
        for (n, (start, end, failed)) in calls.iter().enumerate() {
            let call = SpanFact { kind: CLIENT, peer: Some(7), failed: *failed, ..span(n as u64 + 3, 2, 0, *start, *end) };
            join.add_span(call, &mut windows);
        }
        join.settle(u64::MAX, &mut windows);
        let parts: Vec<PartCell> = windows.parts.values().copied().collect();
        let [PartCell { requests: 1, own_errors, absorbed, sum_ns: 1000, own_ns, failed, .. }] = parts[..] else { panic!("{parts:?}") };
        (failed, own_errors, absorbed, own_ns)
    }

    #[test]
    fn a_failure_begins_here_or_was_passed_on_or_absorbed_and_own_time_is_what_no_call_covers() {
        assert_eq!(part(false, &[]), (0, 0, 0, 1000));
        assert_eq!(part(true, &[]), (1, 1, 0, 1000));
        assert_eq!(part(true, &[(200, 500, false)]), (1, 1, 0, 700));
        assert_eq!(part(true, &[(200, 500, true)]), (1, 0, 0, 700));
        // Made again, and beside another one.
        assert_eq!(part(false, &[(200, 500, true), (500, 600, false), (550, 800, false)]), (0, 0, 1, 400));
        // A call that ends after its request was not waited for to the end.
        assert_eq!(part(false, &[(900, 1500, false)]), (0, 0, 0, 900));
    }

    proptest! {
        #[test]
        fn any_parents_at_all_are_counted_and_come_to_an_end(parents in prop::collection::vec((0u64..8, 0u32..3), 1..12)) {
            let spans = parents.iter().enumerate().map(|(n, (parent, node))| span(n as u64 % 7 + 1, *parent, *node, n as u64, n as u64 + 5));
            let (mut join, mut windows) = (Join::default(), Windows::default());
            spans.for_each(|span| join.add_span(span, &mut windows));
            join.settle(u64::MAX, &mut windows);
            prop_assert_eq!(join.pending, 0);
            let counted: u32 = windows
                .series
                .iter()
                .filter(|(subject, _)| matches!(subject, Subject::Own { .. } | Subject::Call { .. }))
                .map(|(_, series)| series.total(0, u32::MAX).count)
                .sum();
            prop_assert_eq!(counted as usize, parents.len(), "every span is work of its node or a call");
        }
    }
}
