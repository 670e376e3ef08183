//! Joins the spans of a trace, which arrive from many services, and counts what only the whole says: own time, errors that began
//! here, who called whom, and what a request reached.

use super::clocks::Clocks;
use super::facts::{CLIENT, CONSUMER, LogFact, PRODUCER, SERVER, SpanFact};
use super::names::NodeId;
use super::windows::{Called, Cell, Event, Subject, Windows};
use hashbrown::{HashMap, HashSet};

/// Spans that wait for the rest of their traces; with the trace around it one takes about 250 bytes. Past it the oldest traces are counted
/// as they are.
const PENDING_MAX: usize = 150_000;

/// Calls of one part of a request that are looked at when own time is reckoned: a batch job makes tens of thousands, and each of its spans
/// is compared with all of them.
const CALLS_MAX: usize = 256;

#[derive(Default)]
struct Trace {
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

    /// Counts the traces of which nothing new has come since `time` (event time).
    pub fn settle(&mut self, time: u64, windows: &mut Windows) {
        self.place_logs(time);
        let mut settled: Vec<Trace> = self.traces.extract_if(|_, trace| trace.newest < time).map(|(_, trace)| trace).collect();
        for trace in settled.drain(..) {
            self.pending -= trace.spans.len() + trace.logs.len();
            count(&trace, windows, &mut self.clocks);
        }
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

/// What the spans of a trace are to each other.
struct Tree<'a> {
    spans: &'a [SpanFact],
    parent: Vec<Option<u32>>,
    /// Children of all spans side by side, and where those of each begin.
    children: Vec<u32>,
    starts: Vec<u32>,
    /// Span ids in order, with where they are.
    by_id: Vec<(u64, u32)>,
}

impl<'a> Tree<'a> {
    fn of(spans: &'a [SpanFact]) -> Tree<'a> {
        let mut by_id: Vec<(u64, u32)> = spans.iter().enumerate().map(|(at, span)| (span.span, at as u32)).collect();
        by_id.sort_unstable();
        let mut tree = Tree { spans, parent: Vec::new(), children: Vec::new(), starts: vec![0; spans.len() + 1], by_id };
        tree.parent = spans
            .iter()
            .enumerate()
            .map(|(at, span)| (span.parent != 0).then(|| tree.find(span.parent)).flatten().filter(|parent| *parent as usize != at))
            .collect();
        for parent in tree.parent.iter().flatten() {
            tree.starts[*parent as usize + 1] += 1;
        }
        for at in 1..tree.starts.len() {
            tree.starts[at] += tree.starts[at - 1];
        }
        let mut fill = tree.starts.clone();
        tree.children = vec![0; tree.starts[spans.len()] as usize];
        for (at, parent) in tree.parent.iter().enumerate() {
            if let Some(parent) = parent {
                let slot = &mut fill[*parent as usize];
                tree.children[*slot as usize] = at as u32;
                *slot += 1;
            }
        }
        tree
    }

    fn find(&self, id: u64) -> Option<u32> {
        let at = self.by_id.partition_point(|(known, _)| *known < id);
        self.by_id.get(at).filter(|(known, _)| *known == id).map(|(_, at)| *at)
    }

    fn children(&self, at: usize) -> impl Iterator<Item = &SpanFact> {
        self.children[self.starts[at] as usize..self.starts[at + 1] as usize].iter().map(|child| &self.spans[*child as usize])
    }

    /// A span's duration less what its children cover of it, and less what `calls` cover: handlers that do not wait for their calls (or lie
    /// beside them) are no busier for it.
    fn own_ns(&self, at: usize, calls: &[(u64, u64)], covers: &mut Vec<(u64, u64)>) -> u64 {
        let span = &self.spans[at];
        covers.clear();
        covers.extend(self.children(at).map(|child| (child.start, child.end)).chain(calls.iter().copied()));
        covers.sort_unstable();
        let (mut covered, mut upto) = (0, span.start);
        for (start, end) in covers.iter() {
            let (start, end) = ((*start).max(upto), (*end).min(span.end));
            if end > start {
                covered += end - start;
                upto = end;
            }
        }
        span.end.saturating_sub(span.start).saturating_sub(covered)
    }

    /// Of each span the first one of its service's part in this request: the nearest one above that took it in.
    fn tops(&self) -> Vec<usize> {
        const UNKNOWN: usize = usize::MAX;
        let mut tops = vec![UNKNOWN; self.spans.len()];
        let mut path = Vec::new();
        for start in 0..self.spans.len() {
            let mut at = start;
            // Each span is walked over once; in a cycle of parents the walk meets itself, and ends there.
            let top = loop {
                if tops[at] != UNKNOWN {
                    break tops[at];
                }
                tops[at] = at;
                path.push(at);
                if matches!(self.spans[at].kind, SERVER | CONSUMER) {
                    break at;
                }
                match self.parent[at] {
                    Some(parent) if self.spans[parent as usize].node == self.spans[at].node => at = parent as usize,
                    _ => break at,
                }
            };
            path.drain(..).for_each(|at| tops[at] = top);
        }
        tops
    }
}

/// Calls of the same span to the same callee that begin after one of them has failed are that call made again. Repeated calls without a
/// failure are not.
fn retries(spans: &[SpanFact], callees: &[Option<NodeId>], windows: &mut Windows) {
    let mut failed: HashMap<(u64, NodeId), Vec<u64>> = HashMap::new();
    for (span, to) in spans.iter().zip(callees) {
        if let (true, Some(to)) = (span.failed && span.parent != 0, to) {
            let ends = failed.entry((span.parent, *to)).or_default();
            if ends.len() < CALLS_MAX {
                ends.push(span.end);
            }
        }
    }
    if failed.is_empty() {
        return;
    }
    for (span, to) in spans.iter().zip(callees) {
        let Some(to) = *to else { continue };
        if failed.get(&(span.parent, to)).is_some_and(|ends| ends.iter().any(|end| *end <= span.start)) {
            windows.add(Subject::Retry { from: span.node, to }, span.end, &Cell::of(0, span.failed).times(span.weight));
            windows.add_retry(span.node, to, span.end, span.weight);
        }
    }
}

fn count(trace: &Trace, windows: &mut Windows, clocks: &mut Clocks) {
    let tree = Tree::of(&trace.spans);
    // What each part of the request has reached.
    let mut reached: HashSet<(usize, Event)> = HashSet::new();
    let mut reach = |top: usize, event: Event| reached.insert((top, event));
    let tops = tree.tops();
    let callees: Vec<Option<NodeId>> = trace
        .spans
        .iter()
        .enumerate()
        .map(|(at, span)| {
            let taken = tree.children(at).find(|child| child.node != span.node);
            if let (Some(taken), CLIENT) = (taken, span.kind) {
                clocks.compare(span.node, taken.node, span.by_own_clock(), taken.by_own_clock());
            }
            let callee = taken.map(|taken| taken.node);
            let peer = span.peer.filter(|_| span.kind != CONSUMER);
            if let (Some(callee), Some(address), CLIENT) = (callee, peer, span.kind) {
                windows.learn_address(address, callee, span.end);
            }
            // What is produced goes to its queue, and from there to whoever takes it; see below.
            if span.kind == PRODUCER && peer.is_some() { peer } else { callee.or(peer.map(|peer| windows.node_at(peer, span.end))) }
        })
        .collect();
    // When a part of a request was waiting for calls, by its top span.
    let mut calls: HashMap<usize, Vec<(u64, u64)>> = HashMap::new();
    let mut covers = Vec::new();
    for (at, span) in trace.spans.iter().enumerate().filter(|(at, _)| callees[*at].is_some()) {
        let calls = calls.entry(tops[at]).or_default();
        if calls.len() < CALLS_MAX {
            calls.push((span.start, span.end));
        }
    }
    for (at, span) in trace.spans.iter().enumerate() {
        let to = callees[at];
        let top = tops[at];
        let request = &trace.spans[top];
        let beside = if to.is_none() { calls.get(&top).map_or(&[][..], Vec::as_slice) } else { &[] };
        let own = tree.own_ns(at, beside, &mut covers);
        let begins = span.failed && !tree.children(at).any(|child| child.failed);
        match to {
            Some(to) => {
                let waited = span.end.saturating_sub(span.start);
                windows.add(Subject::Call { from: span.node, to }, span.end, &Cell::of(waited, span.failed).times(span.weight));
                let (failed, stands_for) = (span.failed, span.weight);
                windows.add_call(span.node, to, Called { time: span.end, ns: waited, unexplained: own, failed, stands_for });
                if span.kind == PRODUCER && span.peer == Some(to) {
                    for taken in tree.children(at).filter(|child| child.kind == CONSUMER && child.node != span.node) {
                        let duration = taken.end.saturating_sub(taken.start);
                        let (failed, stands_for) = (taken.failed, taken.weight);
                        windows.add(Subject::Call { from: to, to: taken.node }, taken.end, &Cell::of(duration, failed).times(stands_for));
                        windows.add_call(to, taken.node, Called { time: taken.end, ns: duration, unexplained: 0, failed, stands_for });
                    }
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
        } else if reach(top, Event::Step(span.operation)) {
            let subject = Subject::Reach { node: request.node, operation: request.operation, event: Event::Step(span.operation) };
            windows.add(subject, request.end, &Cell { count: request.weight, ..Cell::default() });
        }
    }
    retries(&trace.spans, &callees, windows);
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
    use crate::detect::facts::INTERNAL;
    use proptest::prelude::*;

    fn span(id: u64, parent: u64, node: NodeId, start: u64, end: u64) -> SpanFact {
        SpanFact {
            trace: [1; 16],
            span: id,
            parent,
            node,
            operation: 0,
            kind: INTERNAL,
            start,
            end,
            ahead: 0,
            failed: false,
            request: false,
            refusal: None,
            peer: None,
            weight: 1,
        }
    }

    #[test]
    fn a_call_after_a_failed_one_is_a_retry_and_a_call_beside_it_is_not() {
        let (mut join, mut windows) = (Join::default(), Windows::default());
        join.add_span(span(1, 0, 0, 0, 1000), &mut windows);
        // Two fail, the third succeeds; the fourth is made while the first is under way.
        for (id, start, end, failed) in [(2, 100, 200, true), (3, 250, 300, true), (4, 350, 400, false), (5, 150, 220, false)] {
            join.add_span(SpanFact { kind: CLIENT, peer: Some(7), failed, ..span(id, 1, 0, start, end) }, &mut windows);
        }
        join.settle(u64::MAX, &mut windows);
        let total = |subject| windows.get(&subject).map(|series| series.total(0, 10)).map_or((0, 0), |cell| (cell.count, cell.errors));
        assert_eq!(total(Subject::Call { from: 0, to: 7 }), (4, 2));
        assert_eq!(total(Subject::Retry { from: 0, to: 7 }), (2, 1));
    }

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

    proptest! {
        #[test]
        fn own_time_is_what_no_child_covers(parent in (0u64..40, 0u64..40), children in prop::collection::vec((0u64..60, 0u64..60), 0..6)) {
            let (start, end) = (parent.0.min(parent.1), parent.0.max(parent.1));
            let mut spans = vec![span(1, 0, 0, start, end)];
            for (n, (a, b)) in children.iter().enumerate() {
                spans.push(span(n as u64 + 2, 1, 0, *a.min(b), *a.max(b)));
            }
            let tree = Tree::of(&spans);
            // The slow and obvious way: each nanosecond by itself.
            let expected = (start..end).filter(|t| !spans[1..].iter().any(|c| c.start <= *t && *t < c.end)).count() as u64;
            prop_assert_eq!(tree.own_ns(0, &[], &mut Vec::new()), expected);
        }

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
