//! What fell first. Facts come in from batches, are joined by trace and counted in windows of event time; two stretches of windows are
//! compared; what left its baseline is ranked by who explains whom.
//!
//! ```text
//! batch → facts → join → windows → judge (symptoms) → rank (candidates) → incidents → describe (words)
//! ```
//!
//! Everything but `watch`, the outer ring, is pure: no clock, disk or network.

pub mod breakers;
pub mod callee;
pub mod calls;
pub mod changes;
pub mod clocks;
pub mod describe;
pub mod facts;
pub mod incidents;
pub mod join;
pub mod judge;
pub mod names;
pub mod pattern;
pub mod points;
pub mod rank;
pub mod rules;
pub mod tree;
pub mod watch;
pub mod windows;

use changes::Changes;
use facts::{Look, Thinning};
use firstfall_store::batch::Batch;
use firstfall_store::edge::{EdgeRow, MINUTE};
use firstfall_store::part::PartRow;
use firstfall_store::rollup::WINDOW;
use hashbrown::{HashMap, HashSet};
use join::{Join, Trace};
use judge::{Stretches, Symptom};
use names::{Names, NodeId};
use rank::Candidate;
use rules::Rules;
use windows::{LogClass, Subject, WindowNo, Windows, window_of};

/// Rows of edges that are kept at one time, the busiest first: a map of more is no map, and the file must not grow with hostile names.
const EDGES_KEPT_MAX: usize = 5000;

/// How far back a baseline reaches.
pub const BASELINE: u64 = 1800 * 1_000_000_000;

/// Everything that was seen, as far back as a baseline reaches.
#[derive(Default)]
pub struct Observed {
    pub names: Names,
    pub windows: Windows,
    join: Join,
    /// The latest event time of each node.
    newest_of: HashMap<NodeId, u64>,
    /// The earliest event time of all.
    earliest: Option<u64>,
    pub thinning: Thinning,
    pub changes: Changes,
    /// The numbers that decide.
    pub rules: Rules,
}

impl Observed {
    pub fn add(&mut self, batch: &Batch) {
        self.look_at(batch, Look { thinning: self.thinning, sampled: false });
    }

    /// A batch of the past, of which only what `thinning` keeps need be there.
    pub fn add_past(&mut self, batch: &Batch, thinning: Thinning) {
        self.look_at(batch, Look { thinning, sampled: true });
    }

    fn look_at(&mut self, batch: &Batch, look: Look) {
        let facts = facts::of(batch, &mut self.names, look);
        for mut span in facts.spans {
            span.set_clock(self.join.clocks.offset(span.node));
            self.see(span.node, span.end);
            self.join.add_span(span, &mut self.windows);
        }
        // How many records of a node and class are in a window, and the latest of them: a batch has few of these and many records.
        let mut records: HashMap<(NodeId, WindowNo, LogClass), (u32, u64)> = HashMap::new();
        for mut log in facts.logs {
            log.time = self.join.clocks.correct(log.node, log.time);
            let (count, newest) = records.entry((log.node, window_of(log.time), LogClass::of(log.severity))).or_default();
            (*count, *newest) = (*count + log.weight, (*newest).max(log.time));
            self.join.add_log(log, &mut self.windows);
        }
        for ((node, _, class), (count, newest)) in records {
            self.see(node, newest);
            self.windows.add_logs(node, class, newest, count);
        }
        for mut point in facts.points {
            point.time = self.join.clocks.correct(point.node, point.time);
            self.see(point.node, point.time);
            self.windows.add_point(&point);
        }
        for (node, version, time) in facts.versions {
            self.changes.hear_version(node, version, time);
        }
        for (node, instance, time) in facts.instances {
            self.changes.hear_instance(node, &instance, time);
        }
        for (node, breaker, state, time) in facts.breakers {
            self.changes.breakers.hear_state(node, breaker, state, time);
        }
        for (process, time) in facts.measured {
            self.changes.breakers.hear_metrics(process, time);
        }
        self.changes.hear_breaker_counts(&facts.breaker_counts);
        for (from, to, time) in facts.edges {
            self.windows.tell_edge(from, to, time);
        }
    }

    /// Forgets what no baseline reaches.
    pub fn forget_before(&mut self, window: WindowNo) {
        self.windows.forget_before(window);
        let time = u64::from(window) * WINDOW;
        self.newest_of.retain(|_, newest| *newest >= time);
        self.changes.forget_before(time);
    }

    fn see(&mut self, node: NodeId, time: u64) {
        self.earliest = Some(self.earliest.map_or(time, |earliest| earliest.min(time)));
        let newest = self.newest_of.entry(node).or_default();
        *newest = (*newest).max(time);
    }

    /// The first window since `time` in which anything happened: where judging begins, however fast the rest came in.
    pub fn first_window(&self, time: u64) -> WindowNo {
        window_of(self.earliest.unwrap_or(time).max(time))
    }

    /// The latest event time of what a node itself has sent.
    pub fn last_heard(&self, node: NodeId) -> Option<u64> {
        self.newest_of.get(&node).copied()
    }

    /// What was left out because there were too many subjects, and traces that were counted before all of them can have come.
    pub fn left_out(&self) -> (u64, u64) {
        (self.windows.left_out, self.join.cut_short)
    }

    /// How many services' clocks are wrong by seconds, and corrected.
    pub fn clocks_corrected(&self) -> usize {
        self.join.clocks.corrected()
    }

    /// How full the room is in which spans wait for the rest of their traces, from 0 to 1.
    pub fn fill(&self) -> f64 {
        self.join.fill()
    }

    /// Takes out the traces of which nothing came since `time`; `count` them, some at a time, then `settle`.
    pub fn take_settled(&mut self, time: u64) -> Vec<Trace> {
        self.join.take_settled(time)
    }

    pub fn count(&mut self, settled: &[Trace]) {
        self.join.count(settled, &mut self.windows);
    }

    /// Counts all traces of which nothing came since `time`.
    pub fn settle(&mut self, time: u64) {
        if time != u64::MAX {
            self.windows.now = self.windows.now.max(time);
        }
        self.join.settle(time, &mut self.windows);
    }

    /// Takes out the edges of the minutes that ended by a time, to keep them.
    pub fn take_edges(&mut self, until: u64) -> Vec<EdgeRow> {
        let names = &self.names;
        let over = self.windows.edges.extract_if(|(minute, ..), _| u64::from(*minute + 1) * MINUTE <= until);
        let minutes: Vec<EdgeRow> = over
            .map(|((minute, from, to), cell)| EdgeRow {
                start: u64::from(minute) * MINUTE,
                width: MINUTE,
                caller: names.node(from).clone(),
                callee: names.node(to).clone(),
                cell,
            })
            .collect();
        self.busiest(minutes, |a| (std::cmp::Reverse(a.cell.attempts), a.start, a.caller.clone(), a.callee.clone()))
    }

    /// The same for what nodes did of their requests.
    pub fn take_parts(&mut self, until: u64) -> Vec<PartRow> {
        let names = &self.names;
        let over = self.windows.parts.extract_if(|(minute, ..), _| u64::from(*minute + 1) * MINUTE <= until);
        let minutes: Vec<PartRow> = over
            .map(|((minute, node, operation), cell)| PartRow {
                start: u64::from(minute) * MINUTE,
                node: names.node(node).clone(),
                operation: names.text_of(operation).to_owned(),
                cell,
            })
            .collect();
        self.busiest(minutes, |a| (std::cmp::Reverse(a.cell.requests), a.start, a.node.clone(), a.operation.clone()))
    }

    /// As many rows as are kept; what is left out is counted.
    fn busiest<R, K: Ord>(&mut self, mut rows: Vec<R>, order: impl Fn(&R) -> K) -> Vec<R> {
        if rows.len() > EDGES_KEPT_MAX {
            rows.sort_by_cached_key(order);
            self.windows.left_out += (rows.len() - EDGES_KEPT_MAX) as u64;
            rows.truncate(EDGES_KEPT_MAX);
        }
        rows
    }

    /// Caller and callee, wherever calls were seen.
    pub fn edges(&self) -> HashSet<(NodeId, NodeId)> {
        let calls = self.windows.series.keys().filter_map(|subject| match subject {
            Subject::Call { from, to } => Some((*from, *to)),
            _ => None,
        });
        calls.chain(self.windows.told_edges.keys().copied()).collect()
    }

    /// Requests a second that a node takes in.
    pub fn rate(&self, node: NodeId, windows: std::ops::Range<WindowNo>) -> f64 {
        let count: u64 = self
            .windows
            .series
            .iter()
            .filter(|(subject, _)| matches!(subject, Subject::Request { node: n, .. } if *n == node))
            .map(|(_, series)| u64::from(series.total(windows.start, windows.end).count))
            .sum();
        count as f64 / (windows.len() as u64 * WINDOW) as f64 * 1e9
    }

    pub fn compare(&self, stretches: &Stretches) -> Diagnosis {
        let symptoms = judge::symptoms(&self.windows, &self.names, stretches, &self.rules);
        let candidates = rank::rank(&symptoms, &self.edges(), &self.rules);
        Diagnosis { candidates, symptoms }
    }

    /// The windows of a stretch of time, and those of its baseline.
    pub fn stretches(from: u64, to: u64) -> Stretches {
        let first = from.div_ceil(WINDOW) as WindowNo;
        let baseline = window_of(from.saturating_sub(BASELINE));
        Stretches { before: baseline..window_of(from), after: first..window_of(to).max(first + 1), since: from, until: to }
    }

    /// How far event time has come: the latest time that two sources agree on, as one alone may have a wrong clock.
    pub fn watermark(&self) -> u64 {
        let mut latest = [0u64; 2];
        for time in self.newest_of.values() {
            if *time > latest[0] {
                latest = [*time, latest[0]];
            } else if *time > latest[1] {
                latest[1] = *time;
            }
        }
        // A lone source, or one that is the only one still alive, is believed.
        if self.newest_of.len() < 2 { latest[0] } else { latest[1] }
    }
}

#[derive(Default)]
pub struct Diagnosis {
    /// Best first.
    pub candidates: Vec<Candidate>,
    pub symptoms: Vec<Symptom>,
}
