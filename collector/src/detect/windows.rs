//! What happened in each window of ten seconds, by subject, as far back as a baseline reaches. Everything here is a sum, so the order in
//! which facts arrive does not matter.

use super::facts::{Measure, PointFact, Refusal};
use super::names::{NodeId, TextId};
use firstfall_store::edge::{EdgeCell, MINUTE};
use firstfall_store::part::PartCell;
use firstfall_store::rollup::WINDOW;
use hashbrown::HashMap;
use std::collections::VecDeque;

/// The number of a window: the time of its start divided by its length.
pub type WindowNo = u32;

pub fn window_of(time: u64) -> WindowNo {
    (time / WINDOW) as WindowNo
}

/// What is counted and timed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Subject {
    /// Spans of a node that call nobody: their own time (less what their children take), and errors that begin in them.
    Own {
        node: NodeId,
        operation: TextId,
    },
    /// Calls from one node to another: the time that the caller waits beyond what the callee's span explains, and failures that no span of
    /// the callee explains. Calls to a peer wait for it all the time.
    Wait {
        from: NodeId,
        to: NodeId,
    },
    /// The same calls as the caller sees them.
    Call {
        from: NodeId,
        to: NodeId,
    },
    /// Those of them that were made again after a failure, and how many of these failed too.
    Retry {
        from: NodeId,
        to: NodeId,
    },
    /// Calls that the caller took for failed while the callee went on and answered well: how long the callee took.
    GivenUp {
        from: NodeId,
        to: NodeId,
    },
    /// Requests of a node, by the operation that took them in.
    Request {
        node: NodeId,
        operation: TextId,
    },
    /// How many of these requests reach something.
    Reach {
        node: NodeId,
        operation: TextId,
        event: Event,
    },
    /// Log records: at least WARN, at least ERROR, all.
    Logs {
        node: NodeId,
        class: LogClass,
    },
    Pattern {
        node: NodeId,
        pattern: TextId,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum LogClass {
    All,
    Warn,
    Error,
}

impl LogClass {
    /// The narrowest class of a record, by its severity number.
    pub fn of(severity: u8) -> LogClass {
        match severity {
            17.. => LogClass::Error,
            13..17 => LogClass::Warn,
            _ => LogClass::All,
        }
    }
}

/// What a request does on its way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Event {
    Step(TextId),
    Calls(NodeId),
    Says(TextId),
    /// It is refused.
    IsRefused(Refusal),
    /// A node that sends no telemetry itself refuses what it asks of it.
    IsRefusedBy(NodeId, Refusal),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    pub count: u32,
    pub errors: u32,
    pub sum_ns: u64,
    /// Failures that were seen; where they are sampled they stand for more.
    pub seen: u32,
}

impl Cell {
    pub fn of(ns: u64, failed: bool) -> Cell {
        Cell { count: 1, errors: failed.into(), sum_ns: ns, seen: failed.into() }
    }

    /// The same of a span that stands for several.
    pub fn times(self, weight: u32) -> Cell {
        Cell {
            count: self.count.saturating_mul(weight),
            errors: self.errors.saturating_mul(weight),
            sum_ns: self.sum_ns.saturating_mul(weight.into()),
            seen: self.seen,
        }
    }

    /// How many failures one that was seen stands for.
    pub fn failures_each(&self) -> f64 {
        if self.seen == 0 { 1.0 } else { f64::from(self.errors) / f64::from(self.seen) }
    }

    pub fn add(&mut self, other: &Cell) {
        self.count = self.count.saturating_add(other.count);
        self.errors = self.errors.saturating_add(other.errors);
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
        self.seen = self.seen.saturating_add(other.seen);
    }
}

/// The windows of a subject, oldest first; those in which nothing happened are absent.
#[derive(Default, Debug)]
pub struct Series {
    cells: Vec<(WindowNo, Cell)>,
}

impl Series {
    fn add(&mut self, window: WindowNo, cell: &Cell) {
        // Nearly always it is the latest.
        if let Some((found, there)) = self.cells.last_mut()
            && *found == window
        {
            return there.add(cell);
        }
        let at = self.cells.partition_point(|(w, _)| *w < window);
        match self.cells.get_mut(at) {
            Some((found, there)) if *found == window => there.add(cell),
            _ => self.cells.insert(at, (window, *cell)),
        }
    }

    /// The windows from `from` up to, not including, `to`.
    pub fn range(&self, from: WindowNo, to: WindowNo) -> impl Iterator<Item = &(WindowNo, Cell)> {
        let start = self.cells.partition_point(|(w, _)| *w < from);
        self.cells[start..].iter().take_while(move |(w, _)| *w < to)
    }

    pub fn total(&self, from: WindowNo, to: WindowNo) -> Cell {
        let mut total = Cell::default();
        self.range(from, to).for_each(|(_, cell)| total.add(cell));
        total
    }
}

/// The values of one metric of one node.
#[derive(Debug)]
pub struct PointSeries {
    pub measure: Measure,
    pub values: VecDeque<(u64, f64, f64)>,
    /// The latest point of each counter in it, by when the counter began.
    last: HashMap<u64, PointFact>,
}

/// Of each series of points so many are kept: an hour of one every ten seconds, a day and a half of one every five minutes.
const POINTS_MAX: usize = 400;
/// Subjects beyond this many are left out, and counted.
const SUBJECTS_MAX: usize = 300_000;
const METRICS_MAX: usize = 100_000;
/// Processes that count into one series at the same time.
const COUNTERS_MAX: usize = 256;
/// Edges, and parts, of minutes that wait to be kept: three minutes of ten thousand, and room for what comes late.
const EDGES_MAX: usize = 50_000;
/// How far ahead of the rest a call may end and be on the map.
const EDGES_AHEAD: u64 = 10 * MINUTE;
const TOLD_EDGES_MAX: usize = 20_000;
/// Series of points and edges of which nothing came for so long (a day) are forgotten.
const POINTS_FORGOTTEN: u64 = 86_400 * 1_000_000_000;

#[derive(Default)]
pub struct Windows {
    pub series: HashMap<Subject, Series>,
    pub points: HashMap<(NodeId, TextId), PointSeries>,
    /// Calls that only a metric tells of.
    pub told_edges: HashMap<(NodeId, NodeId), u64>,
    /// Which node answers at an address, as calls that arrived have shown, and when they last did. Balancers and pods reuse addresses.
    addresses: HashMap<NodeId, (NodeId, u64)>,
    /// What was left out because there were too many subjects.
    pub left_out: u64,
    /// Calls by the minute in which they ended, until they are kept.
    pub edges: HashMap<(u32, NodeId, NodeId), EdgeCell>,
    /// Requests by the minute in which they ended and the operation that took them in, until they are kept.
    pub parts: HashMap<(u32, NodeId, TextId), PartCell>,
    /// Up to when traces are settled.
    pub now: u64,
    /// Edges of earlier minutes were kept before a restart; what history tells of them again is not counted twice.
    pub edges_from: u32,
}

/// A call for the map: when it ended, how long the caller waited, how much of that the callee does not explain.
#[derive(Clone, Copy, Debug)]
pub struct Called {
    pub time: u64,
    pub ns: u64,
    pub unexplained: u64,
    pub failed: bool,
    /// How many calls it stands for, where they are sampled or only some are looked at.
    pub stands_for: u32,
}

impl Windows {
    /// Notes a call for the map.
    pub fn add_call(&mut self, from: NodeId, to: NodeId, call: Called) {
        let Called { time, ns, unexplained, failed, stands_for } = call;
        let Some(edge) = self.edge_at(from, to, time) else { return };
        edge.attempts += u64::from(stands_for);
        edge.errors += u64::from(stands_for) * u64::from(failed);
        edge.sum_ns = edge.sum_ns.saturating_add(ns.saturating_mul(stands_for.into()));
        edge.unexplained_ns = edge.unexplained_ns.saturating_add(unexplained.saturating_mul(stands_for.into()));
        edge.estimated |= stands_for > 1;
        edge.durations.record_many(ns, stands_for);
    }

    /// Notes that one of them was made again after a failure.
    pub fn add_retry(&mut self, from: NodeId, to: NodeId, time: u64, stands_for: u32) {
        if let Some(edge) = self.edge_at(from, to, time) {
            edge.retries += u64::from(stands_for);
        }
    }

    /// Notes what a node did of a request.
    pub fn add_part(&mut self, node: NodeId, operation: TextId, time: u64, part: &PartCell) {
        let Some(minute) = self.minute_of(time) else { return };
        let key = (minute, node, operation);
        if self.parts.len() >= EDGES_MAX && !self.parts.contains_key(&key) {
            self.left_out += 1;
            return;
        }
        self.parts.entry(key).or_default().add(part);
    }

    fn edge_at(&mut self, from: NodeId, to: NodeId, time: u64) -> Option<&mut EdgeCell> {
        let key = (self.minute_of(time)?, from, to);
        if self.edges.len() >= EDGES_MAX && !self.edges.contains_key(&key) {
            self.left_out += 1;
            return None;
        }
        Some(self.edges.entry(key).or_default())
    }

    /// The minute to which something is counted that is to be kept, if it is to.
    fn minute_of(&mut self, time: u64) -> Option<u32> {
        let minute = (time / MINUTE) as u32;
        if minute < self.edges_from {
            return None;
        }
        // A clock that is hours ahead must not fill the room with minutes that are long to come.
        if self.now > 0 && time > self.now.saturating_add(EDGES_AHEAD) {
            self.left_out += 1;
            return None;
        }
        Some(minute)
    }

    pub fn add(&mut self, subject: Subject, time: u64, cell: &Cell) {
        if let Some(series) = self.series.get_mut(&subject) {
            series.add(window_of(time), cell);
        } else if self.series.len() < SUBJECTS_MAX {
            self.series.entry(subject).or_default().add(window_of(time), cell);
        } else {
            self.left_out += 1;
        }
    }

    /// Counts records of which `class` is the narrowest class, in it and in those that hold it.
    pub fn add_logs(&mut self, node: NodeId, class: LogClass, time: u64, count: u32) {
        let cell = Cell { count, ..Cell::default() };
        for wider in [LogClass::All, LogClass::Warn, LogClass::Error] {
            if wider <= class {
                self.add(Subject::Logs { node, class: wider }, time, &cell);
            }
        }
    }

    pub fn add_point(&mut self, point: &PointFact) {
        let key = (point.node, point.metric);
        if self.points.len() >= METRICS_MAX && !self.points.contains_key(&key) {
            self.left_out += 1;
            return;
        }
        let series =
            self.points.entry(key).or_insert_with(|| PointSeries { measure: point.measure, values: VecDeque::new(), last: HashMap::new() });
        let (mut value, mut weight) = (point.value, point.weight);
        if point.cumulative {
            // Each process counts for itself, since its own start.
            if series.last.len() >= COUNTERS_MAX && !series.last.contains_key(&point.since) {
                series.last.clear();
            }
            let before = match series.last.get(&point.since) {
                Some(before) if before.time >= point.time => return,
                before => before.copied(),
            };
            series.last.insert(point.since, *point);
            let Some(before) = before else { return };
            (value, weight) = match point.measure {
                // A mean: `value` is one over all of the counter's life, `weight` of how many.
                Measure::Latency => {
                    let count = point.weight - before.weight;
                    if count <= 0.0 {
                        return;
                    }
                    ((point.value * point.weight - before.value * before.weight) / count, count)
                }
                _ => ((point.value - before.value).max(0.0), weight),
            };
        }
        let at = series.values.partition_point(|(time, ..)| *time <= point.time);
        series.values.insert(at, (point.time, value, weight));
        if series.values.len() > POINTS_MAX {
            series.values.pop_front();
        }
    }

    pub fn tell_edge(&mut self, from: NodeId, to: NodeId, time: u64) {
        if self.told_edges.len() < TOLD_EDGES_MAX || self.told_edges.contains_key(&(from, to)) {
            let seen = self.told_edges.entry((from, to)).or_insert(time);
            *seen = (*seen).max(time);
        }
    }

    /// Notes that calls to an address are answered by a node.
    pub fn learn_address(&mut self, address: NodeId, node: NodeId, time: u64) {
        let known = self.addresses.entry(address).or_insert((node, time));
        if time >= known.1 {
            *known = (node, time);
        }
    }

    /// Who is meant by an address that did not answer: whoever answered there last, within the hour.
    pub fn node_at(&self, address: NodeId, time: u64) -> NodeId {
        const REMEMBERED: u64 = 3600 * 1_000_000_000;
        match self.addresses.get(&address) {
            Some((node, seen)) if *seen + REMEMBERED >= time => *node,
            _ => address,
        }
    }

    pub fn get(&self, subject: &Subject) -> Option<&Series> {
        self.series.get(subject)
    }

    /// Forgets what no baseline reaches.
    pub fn forget_before(&mut self, window: WindowNo) {
        let oldest = (u64::from(window) * WINDOW).saturating_sub(POINTS_FORGOTTEN);
        self.points.retain(|_, series| series.values.back().is_none_or(|(time, ..)| *time >= oldest));
        self.told_edges.retain(|_, seen| *seen >= oldest);
        self.addresses.retain(|_, (_, seen)| *seen >= oldest);
        self.series.retain(|_, series| {
            series.cells.drain(..series.cells.partition_point(|(w, _)| *w < window));
            !series.cells.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(measure: Measure, points: &[(u64, u64, f64, f64)], expected: &[(f64, f64)]) {
        let mut windows = Windows::default();
        for (since, time, value, weight) in points {
            let (value, weight) = (*value, *weight);
            let point = PointFact { node: 0, metric: 1, measure, time: *time, value, cumulative: true, weight, since: *since };
            windows.add_point(&point);
        }
        let values: Vec<(f64, f64)> = windows.points[&(0, 1)].values.iter().map(|(_, value, weight)| (*value, *weight)).collect();
        assert_eq!(values, expected);
    }

    #[test]
    fn a_cumulative_count_is_what_came_since_the_point_before_of_the_same_process() {
        // Two processes count into one series; one begins again, and a late point says nothing new.
        let points = [
            (1, 10, 100.0, 0.0),
            (2, 11, 500.0, 0.0),
            (1, 20, 130.0, 0.0),
            (2, 21, 501.0, 0.0),
            (1, 15, 120.0, 0.0),
            (3, 31, 7.0, 0.0),
            (3, 41, 9.0, 0.0),
        ];
        check(Measure::Requests, &points, &[(30.0, 0.0), (1.0, 0.0), (2.0, 0.0)]);
    }

    #[test]
    fn the_mean_of_a_cumulative_histogram_is_that_of_what_came_since() {
        // 100 took a second each, then ten took three.
        check(Measure::Latency, &[(1, 10, 1.0, 100.0), (1, 20, 130.0 / 110.0, 110.0), (1, 30, 130.0 / 110.0, 110.0)], &[(3.0, 10.0)]);
    }
}
