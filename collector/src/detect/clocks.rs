//! How far each service's clock is ahead, by the calls between them: a callee works while its caller waits, so their times must lie within each
//! other. What is found is taken off the times that detection reckons with; what is stored stays as it was sent.
//!
//! Only what matters to windows of ten seconds is corrected. Nobody knows the true time: whichever clock disagrees with most of its neighbours is
//! wrong.

use super::names::NodeId;
use hashbrown::{HashMap, HashSet};

const SECOND: i64 = 1_000_000_000;
/// Differences up to this are left as they are.
const FINE: i64 = 2 * SECOND;
/// So many calls in a row must agree on another difference before it is believed.
const SURE: u32 = 5;
/// Edges whose clocks are compared; more than any map that a person looks at.
const EDGES_MAX: usize = 50_000;

/// Clocks that are corrected at most.
const MOVED_MAX: usize = 64;

#[derive(Default)]
struct Edge {
    /// The callee's clock less the caller's.
    ahead: i64,
    /// Another difference, and how many calls in a row have shown it.
    other: i64,
    shown: u32,
}

#[derive(Default)]
pub struct Clocks {
    edges: HashMap<(NodeId, NodeId), Edge>,
    offsets: HashMap<NodeId, i64>,
    stale: bool,
}

impl Clocks {
    /// How far a node's clock is ahead of the one that most agree on; nanoseconds.
    pub fn offset(&self, node: NodeId) -> i64 {
        if self.offsets.is_empty() { 0 } else { self.offsets.get(&node).copied().unwrap_or(0) }
    }

    /// A time of a node by the clock that most agree on.
    pub fn correct(&self, node: NodeId, time: u64) -> u64 {
        time.saturating_add_signed(-self.offset(node))
    }

    /// How many clocks are corrected.
    pub fn corrected(&self) -> usize {
        self.offsets.len()
    }

    /// Learns from a call: when it was made and ended by the caller's clock, and by the callee's, neither corrected.
    pub fn compare(&mut self, caller: NodeId, callee: NodeId, call: (u64, u64), work: (u64, u64)) {
        let difference = |a: u64, b: u64| (a as i64).wrapping_sub(b as i64);
        let (called, worked) = (difference(call.1, call.0), difference(work.1, work.0));
        // Work that goes on after the call has ended was not waited for, and says nothing.
        if worked > called.saturating_add(FINE) {
            return;
        }
        if self.edges.len() >= EDGES_MAX && !self.edges.contains_key(&(caller, callee)) {
            // Most of them will have gone; those that have not are learnt again in five calls.
            self.edges.clear();
        }
        let ahead = difference(work.0, call.0) / 2 + difference(work.1, call.1) / 2;
        let edge = self.edges.entry((caller, callee)).or_default();
        // It may lie anywhere within the call.
        let slack = (called - worked).abs() / 2;
        let same = |a: i64, b: i64| a.saturating_sub(b).saturating_abs() <= FINE.saturating_add(slack);
        if same(ahead, edge.ahead) {
            edge.shown = 0;
        } else if edge.shown > 0 && same(ahead, edge.other) {
            edge.shown += 1;
            if edge.shown >= SURE {
                (edge.ahead, edge.shown) = (edge.other, 0);
                self.stale = true;
            }
        } else {
            (edge.other, edge.shown) = (ahead, 1);
        }
    }

    /// Reckons the offsets anew if calls have shown other ones.
    pub fn settle(&mut self) {
        if !std::mem::take(&mut self.stale) {
            return;
        }
        let mut offsets: HashMap<NodeId, i64> = HashMap::new();
        let mut edges: Vec<(NodeId, NodeId, i64)> = self.edges.iter().map(|((a, b), edge)| (*a, *b, edge.ahead)).collect();
        edges.sort_unstable();
        let mut moved: HashSet<NodeId> = HashSet::new();
        loop {
            let at = |node: NodeId| offsets.get(&node).copied().unwrap_or(0);
            // By node: all of its edges, those that do not fit, and what each of these would have its clock be. Callees first where it is even.
            let mut nodes: HashMap<NodeId, (usize, Vec<i64>, bool)> = HashMap::new();
            for (caller, callee, ahead) in &edges {
                let fits = (at(*callee) - at(*caller)).saturating_sub(*ahead).saturating_abs() <= FINE;
                for (node, wanted, called) in
                    [(*caller, at(*callee).saturating_sub(*ahead), false), (*callee, at(*caller).saturating_add(*ahead), true)]
                {
                    let entry = nodes.entry(node).or_default();
                    entry.0 += 1;
                    if !fits {
                        entry.1.push(wanted);
                        entry.2 |= called;
                    }
                }
            }
            let worst = nodes.into_iter().filter(|(node, (_, wrong, _))| !wrong.is_empty() && !moved.contains(node)).max_by(
                |(a, (all_a, wrong_a, called_a)), (b, (all_b, wrong_b, called_b))| {
                    // Shares as fractions, without rounding.
                    (wrong_a.len() * all_b)
                        .cmp(&(wrong_b.len() * all_a))
                        .then(wrong_a.len().cmp(&wrong_b.len()))
                        .then(called_a.cmp(called_b))
                        .then(b.cmp(a))
                },
            );
            // Each clock is moved once, and only so many, so this ends soon: where hundreds disagree nobody knows the time.
            let Some((node, (_, mut wanted, _))) = worst.filter(|_| moved.len() < MOVED_MAX) else { break };
            wanted.sort_unstable();
            offsets.insert(node, wanted[wanted.len() / 2]);
            moved.insert(node);
        }
        offsets.retain(|_, offset| offset.saturating_abs() > FINE);
        self.offsets = offsets;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls between nodes whose clocks are ahead by so many seconds; returns the offsets that are found.
    fn check(clocks: &[(NodeId, i64)], calls: &[(NodeId, NodeId)], expected: &[(NodeId, i64)]) {
        let mut found = Clocks::default();
        let at = |node: NodeId| clocks.iter().find(|(n, _)| *n == node).map_or(0, |(_, ahead)| *ahead) * SECOND;
        for n in 0..20 {
            for (caller, callee) in calls {
                let start = 1_000 * SECOND + n * SECOND;
                let by = |node: NodeId, time: i64| (time + at(node)) as u64;
                let call = (by(*caller, start), by(*caller, start + 40_000_000));
                let work = (by(*callee, start + 1_000_000), by(*callee, start + 39_000_000));
                found.compare(*caller, *callee, call, work);
            }
            found.settle();
        }
        let mut offsets: Vec<(NodeId, i64)> =
            found.offsets.iter().map(|(node, offset)| (*node, (*offset as f64 / SECOND as f64).round() as i64)).collect();
        offsets.sort_unstable();
        assert_eq!(offsets, expected);
    }

    #[test]
    fn a_clock_that_disagrees_with_its_neighbours_is_corrected() {
        check(&[], &[(1, 2), (2, 3)], &[]);
        check(&[(2, 120)], &[(1, 2), (2, 3), (1, 4)], &[(2, 120)]);
        check(&[(3, -90)], &[(1, 2), (2, 3), (1, 4)], &[(3, -90)]);
        check(&[(1, 120)], &[(1, 2), (1, 3), (3, 4)], &[(1, 120)]);
        check(&[(2, 120), (5, -60)], &[(1, 2), (2, 3), (1, 4), (3, 4), (4, 5), (3, 5), (1, 6), (6, 4)], &[(2, 120), (5, -60)]);
    }

    #[test]
    fn differences_of_a_second_are_left() {
        check(&[(2, 1)], &[(1, 2), (2, 3)], &[]);
    }

    #[test]
    fn a_clock_that_is_set_right_is_believed_again() {
        let mut clocks = Clocks::default();
        let tell = |clocks: &mut Clocks, ahead: u64| {
            for n in 0..10u64 {
                let start = (1000 + n) * SECOND as u64;
                let work = |time| time + ahead * SECOND as u64;
                let work = (work(start), work(start + 10));
                clocks.compare(1, 2, (start, start + 10), work);
                clocks.settle();
            }
        };
        tell(&mut clocks, 60);
        assert_eq!(clocks.offset(2), 60 * SECOND);
        tell(&mut clocks, 0);
        assert_eq!(clocks.corrected(), 0);
    }

    #[test]
    fn a_short_piece_of_work_in_a_long_call_and_work_that_nobody_waits_for_say_nothing() {
        let mut clocks = Clocks::default();
        for _ in 0..10 {
            // Twenty seconds in a queue before it, twenty seconds after the caller has gone.
            clocks.compare(1, 2, (1_000 * SECOND as u64, 1_030 * SECOND as u64), (1_020 * SECOND as u64, 1_021 * SECOND as u64));
            clocks.compare(1, 3, (1_000 * SECOND as u64, 1_001 * SECOND as u64), (1_000 * SECOND as u64, 1_020 * SECOND as u64));
            clocks.settle();
        }
        assert_eq!(clocks.corrected(), 0);
    }
}
