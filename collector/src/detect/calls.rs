//! Which spans of a trace are calls, to whom, which of them tell of the same call, and which are a call made again.

use super::clocks::Clocks;
use super::facts::{CLIENT, CONSUMER, PRODUCER, SpanFact};
use super::names::NodeId;
use super::tree::Tree;
use super::windows::{Cell, Subject, Windows};
use hashbrown::HashMap;

/// Calls of one part of a request that are looked at when own time or retries are reckoned: a batch job makes tens of thousands, and each of its
/// spans is compared with all of them.
pub const CALLS_MAX: usize = 256;

/// A call that another span tells of too, and better.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ToldTwice {
    /// By a span within it, closer to the wire: a library that calls another one, each with its instrumentation (pika sends so). What it takes
    /// beyond that span is time that the caller waits.
    Around,
    /// By a span beside it that encloses it: a statement as SQLAlchemy and as psycopg2 tell of it, side by side.
    Within,
}

/// Whom each span calls, and the calls that are told twice.
pub struct Calls {
    pub callees: Vec<Option<NodeId>>,
    pub told_twice: Vec<Option<ToldTwice>>,
}

impl Calls {
    pub fn of(tree: &Tree<'_>, windows: &mut Windows, clocks: &mut Clocks) -> Calls {
        let callees = (0..tree.spans.len()).map(|at| callee(tree, at, windows, clocks)).collect();
        let mut calls = Calls { callees, told_twice: vec![None; tree.spans.len()] };
        for at in 0..tree.spans.len() {
            if calls.is_around(tree, at) {
                calls.told_twice[at] = Some(ToldTwice::Around);
            }
            calls.find_within(tree, at);
        }
        calls
    }

    fn is_around(&self, tree: &Tree<'_>, at: usize) -> bool {
        let span = &tree.spans[at];
        let same_call = |child: &u32| {
            let inner = &tree.spans[*child as usize];
            inner.node == span.node && inner.kind == span.kind && self.callees[*child as usize] == self.callees[at]
        };
        self.callees[at].is_some()
            && matches!(span.kind, CLIENT | PRODUCER)
            && tree.children(at).all(|child| child.node == span.node)
            && tree.places_of_children(at).iter().any(same_call)
    }

    /// Looks among the children of a span for database calls that lie within one beside them, told by another library.
    fn find_within(&mut self, tree: &Tree<'_>, parent: usize) {
        // A layer's span is the one that began just before.
        const LOOK_BACK: usize = 4;
        let node = tree.spans[parent].node;
        let told = |child: &&u32| tree.spans[**child as usize].layer != 0 && tree.spans[**child as usize].node == node;
        let mut queries: Vec<usize> = tree.places_of_children(parent).iter().filter(told).map(|child| *child as usize).collect();
        if queries.len() < 2 {
            return;
        }
        queries.sort_unstable_by_key(|at| (tree.spans[*at].start, std::cmp::Reverse(tree.spans[*at].end), *at));
        for (place, at) in queries.iter().enumerate() {
            let inner = &tree.spans[*at];
            let within = queries[place.saturating_sub(LOOK_BACK)..place].iter().any(|outer| {
                let encloses = tree.spans[*outer].end >= inner.end && tree.spans[*outer].layer != inner.layer;
                encloses && self.callees[*outer] == self.callees[*at] && self.told_twice[*outer].is_none()
            });
            if within {
                self.told_twice[*at] = Some(ToldTwice::Within);
            }
        }
    }

    /// Counts calls that are made again: those of the same span to the same callee that begin after one of them has failed, and those that say so
    /// themselves. Repeated calls without a failure are not.
    pub fn count_retries(&self, spans: &[SpanFact], windows: &mut Windows) {
        let calls = || spans.iter().enumerate().filter(|(at, _)| self.told_twice[*at] != Some(ToldTwice::Within));
        let mut failed: HashMap<(u64, NodeId), Vec<u64>> = HashMap::new();
        for (at, span) in calls() {
            if let (true, Some(to)) = (span.failed && span.parent != 0, self.callees[at]) {
                let ends = failed.entry((span.parent, to)).or_default();
                if ends.len() < CALLS_MAX {
                    ends.push(span.end);
                }
            }
        }
        for (at, span) in calls() {
            let Some(to) = self.callees[at] else { continue };
            let after_a_failure = || failed.get(&(span.parent, to)).is_some_and(|ends| ends.iter().any(|end| *end <= span.start));
            if span.again || after_a_failure() {
                windows.add(Subject::Retry { from: span.node, to }, span.end, &Cell::of(0, span.failed).times(span.weight));
                windows.add_retry(span.node, to, span.end, span.weight);
            }
        }
    }
}

/// Whom a span calls: who took it in, or whom its attributes name.
fn callee(tree: &Tree<'_>, at: usize, windows: &mut Windows, clocks: &mut Clocks) -> Option<NodeId> {
    let span = &tree.spans[at];
    let taken = tree.children(at).find(|child| child.node != span.node);
    if let (Some(taken), CLIENT) = (taken, span.kind) {
        clocks.compare(span.node, taken.node, span.by_own_clock(), taken.by_own_clock());
    }
    let callee = taken.map(|taken| taken.node);
    let peer = span.peer.filter(|_| span.kind != CONSUMER);
    if let (Some(callee), Some(address), CLIENT) = (callee, peer, span.kind) {
        windows.learn_address(address, callee, span.end);
    }
    // What is produced goes to its queue, and from there to whoever takes it.
    if span.kind == PRODUCER && peer.is_some() { peer } else { callee.or(peer.map(|peer| windows.node_at(peer, span.end))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::facts::tests::span;
    use crate::detect::join::Join;

    const SHOP: NodeId = 0;
    const PEER: NodeId = 7;

    /// Settles a trace under a root of the shop and says how many calls there were from one node to another, how many failed, and how many were
    /// made again.
    fn check(from: NodeId, to: NodeId, spans: impl IntoIterator<Item = SpanFact>) -> (u32, u32, u32) {
        let (mut join, mut windows) = (Join::default(), Windows::default());
        join.add_span(span(1, 0, SHOP, 0, 1000), &mut windows);
        spans.into_iter().for_each(|span| join.add_span(span, &mut windows));
        join.settle(u64::MAX, &mut windows);
        let total = |subject| windows.get(&subject).map(|series| series.total(0, 10)).unwrap_or_default();
        let calls = total(Subject::Call { from, to });
        let edges: u64 = windows.edges.iter().filter(|((_, a, b), _)| (*a, *b) == (from, to)).map(|(_, edge)| edge.attempts).sum();
        assert_eq!(edges, u64::from(calls.count), "the map counts the same");
        (calls.count, calls.errors, total(Subject::Retry { from, to }).count)
    }

    fn call(id: u64, parent: u64, start: u64, end: u64) -> SpanFact {
        SpanFact { kind: CLIENT, peer: Some(PEER), ..span(id, parent, SHOP, start, end) }
    }

    #[test]
    fn a_call_after_a_failed_one_is_a_retry_and_a_call_beside_it_is_not() {
        // Two fail, the third succeeds; the fourth is made while the first is under way.
        let calls = [(2, 100, 200, true), (3, 250, 300, true), (4, 350, 400, false), (5, 150, 220, false)];
        let spans = calls.map(|(id, start, end, failed)| SpanFact { failed, ..call(id, 1, start, end) });
        assert_eq!(check(SHOP, PEER, spans), (4, 2, 2));
    }

    #[test]
    fn a_call_that_says_that_it_is_made_again_is() {
        // The first is not there: it was not sampled, or its span was lost.
        assert_eq!(check(SHOP, PEER, [SpanFact { again: true, ..call(2, 1, 100, 200) }]), (1, 0, 1));
    }

    #[test]
    fn a_statement_that_two_libraries_tell_of_side_by_side_is_one_call() {
        let query = |id, start, end, layer| SpanFact { layer, ..call(id, 1, start, end) };
        // SQLAlchemy around psycopg2, twice; the second fails in both.
        let failed = |span| SpanFact { failed: true, ..span };
        let layered = [query(2, 100, 200, 1), query(3, 110, 190, 2), failed(query(4, 300, 400, 1)), failed(query(5, 310, 400, 2))];
        assert_eq!(check(SHOP, PEER, layered), (2, 1, 0));
        // Two queries at a time by one library are two.
        assert_eq!(check(SHOP, PEER, [query(2, 100, 200, 1), query(3, 110, 190, 1)]), (2, 0, 0));
        // And so are two of two libraries, one after the other.
        assert_eq!(check(SHOP, PEER, [query(2, 100, 200, 1), query(3, 210, 290, 2)]), (2, 0, 0));
    }

    #[test]
    fn a_message_that_is_sent_by_one_producer_within_another_is_one() {
        let produce = |id, parent, start, end| SpanFact { kind: PRODUCER, ..call(id, parent, start, end) };
        let taken = SpanFact { kind: CONSUMER, request: true, peer: Some(PEER), ..span(4, 3, 9, 500, 900) };
        let sent = [produce(2, 1, 100, 200), produce(3, 2, 110, 190), taken];
        assert_eq!(check(SHOP, PEER, sent), (1, 0, 0));
        assert_eq!(check(PEER, 9, sent), (1, 0, 0), "and one that is taken");
    }

    #[test]
    fn a_message_whose_producer_is_only_linked_comes_from_its_queue() {
        let taken = SpanFact { kind: CONSUMER, request: true, peer: Some(PEER), ..span(4, 0, 9, 500, 900) };
        assert_eq!(check(PEER, 9, [taken]), (1, 0, 0));
        // One that merely receives is not processing anything.
        assert_eq!(check(PEER, 9, [SpanFact { request: false, ..taken }]), (0, 0, 0));
    }
}
