//! What left its baseline. Compares two stretches of windows, subject by subject, and says by how much and how surely each has changed.
//! Pure: the same windows give the same symptoms.

use super::names::{Names, NodeId, TextId};
use super::rules::Rules;
use super::windows::{Cell, Event, LogClass, Series, Subject, WindowNo, Windows};
use firstfall_store::rollup::WINDOW;
use hashbrown::HashMap;
use std::cell::OnceCell;
use std::ops::Range;

/// The kind of evidence, in the order in which a page lists it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Signal {
    /// Failures that begin in the node.
    Errors,
    /// Time that the node itself takes.
    OwnTime,
    /// Calls over an edge wait longer than the callee works.
    Wait,
    /// ERROR records.
    ErrorLogs,
    /// Requests are refused: 401, 403, 429.
    Refusals,
    /// Requests reach other things than they did.
    Shape,
    /// A level such as CPU or memory.
    Resource,
    /// Latency as a metric tells it.
    MetricLatency,
    /// Failed requests as metrics tell them.
    MetricErrors,
}

impl Signal {
    /// Something takes longer.
    pub fn is_of_time(self) -> bool {
        matches!(self, Signal::OwnTime | Signal::Wait | Signal::MetricLatency)
    }

    /// Told by metrics, which come at their own pace.
    pub fn is_of_points(self) -> bool {
        matches!(self, Signal::MetricLatency | Signal::MetricErrors | Signal::Resource)
    }
}

/// A subject that left its baseline.
#[derive(Clone, Debug)]
pub struct Symptom {
    pub node: NodeId,
    /// The caller, where it is about an edge to `node`.
    pub from: Option<NodeId>,
    pub signal: Signal,
    /// What exactly: an operation, a metric, a pattern.
    pub what: String,
    /// How surely it has changed, in robust deviations of the baseline.
    pub score: f64,
    /// How much it hurts: requests a second that it makes fail or wait, each counted by the part of it that is out of order.
    pub harm: f64,
    pub before: f64,
    pub after: f64,
    pub unit: &'static str,
    /// Observations before and after.
    pub n: (u64, u64),
    /// Nothing like it is in the baseline, stretch for stretch.
    pub unprecedented: bool,
}

/// The two stretches that are compared.
#[derive(Clone, Debug)]
pub struct Stretches {
    pub before: Range<WindowNo>,
    pub after: Range<WindowNo>,
    /// Event time at which `after` begins, for points, which are not bound to windows.
    pub since: u64,
    pub until: u64,
}

/// Fewer windows than this are no baseline.
pub(super) const WINDOWS_MIN: usize = 3;

pub fn median(values: &mut [f64]) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    let middle = values.len() / 2;
    let upper = *values.select_nth_unstable_by(middle, f64::total_cmp).1;
    if values.len() % 2 == 1 {
        return upper;
    }
    let lower = values[..middle].iter().copied().fold(f64::MIN, f64::max);
    (lower + upper) / 2.0
}

/// Median, and the deviation by the median of absolute deviations (1.4826 makes it that of a normal distribution).
pub(super) fn robust(values: &[f64]) -> (f64, f64) {
    let mut values = values.to_vec();
    let middle = median(&mut values);
    values.iter_mut().for_each(|v| *v = (*v - middle).abs());
    (middle, 1.4826 * median(&mut values))
}

/// How far the median of `after` lies above that of `before`, in deviations of `before` that are never taken for smaller than a share of
/// the level, or `floor`.
pub(super) fn shift(before: &[f64], after: &[f64], level_share: f64, floor: f64) -> f64 {
    if before.len() < WINDOWS_MIN || after.is_empty() {
        return 0.0;
    }
    let (level, deviation) = robust(before);
    (median(&mut after.to_vec()) - level) / deviation.max(level.abs() * level_share).max(floor)
}

/// Whether `after` lies above `before`, by ranks alone (Mann and Whitney 1947), in standard deviations. A few wild values do not move it, and a
/// few windows cannot reach far.
pub(super) fn above(before: &[f64], after: &[f64]) -> f64 {
    let (n, m) = (before.len() as f64, after.len() as f64);
    if before.len() < WINDOWS_MIN || after.is_empty() {
        return 0.0;
    }
    let mut sorted = before.to_vec();
    sorted.sort_by(f64::total_cmp);
    let wins: f64 = after
        .iter()
        .map(|v| {
            let (below, upto) = (sorted.partition_point(|b| b < v), sorted.partition_point(|b| b <= v));
            (below + upto) as f64 / 2.0
        })
        .sum();
    (wins - n * m / 2.0) / (n * m * (n + m + 1.0) / 12.0).sqrt()
}

/// What is expected of requests of which nothing is known yet: one in a hundred may fail (the default objective), as if seen on twenty.
const OBJECTIVE: f64 = 0.01;
const OBJECTIVE_WEIGHT: f64 = 20.0;

/// Deviations of a share of failures from the share before.
pub(super) fn share_shift(before: (f64, f64), after: (f64, f64)) -> f64 {
    let ((bad0, n0), (bad1, n1)) = (before, after);
    if n1 == 0.0 || bad1 == 0.0 {
        return 0.0;
    }
    let expected = (bad0 + OBJECTIVE * OBJECTIVE_WEIGHT) / (n0 + OBJECTIVE_WEIGHT);
    (bad1 / n1 - expected) / ((expected * (1.0 - expected)).max(1e-4) / n1).sqrt()
}

/// The same for a share that may rise or fall, with the uncertainty of both sides. `spread` is how many times wider the share swings
/// from window to window than chance alone would have it.
fn proportion_shift(before: (f64, f64), after: (f64, f64), spread: f64) -> f64 {
    let ((k0, n0), (k1, n1)) = (before, after);
    let expected = (k0 + 0.5) / (n0 + 1.0);
    (k1 / n1 - expected).abs() / (spread * (expected * (1.0 - expected)).max(0.002) * (1.0 / n1 + 1.0 / n0)).sqrt()
}

/// Variance of a share over windows, as a multiple of a binomial one; at least 1. Requests come in sessions, so they are not independent.
fn overdispersion(hits: &Series, requests: &Series, range: &Range<WindowNo>, share: f64) -> f64 {
    let share = share.clamp(0.01, 0.99);
    let mut hits = hits.range(range.start, range.end).peekable();
    let (mut sum, mut windows) = (0.0, 0.0);
    for (window, cell) in requests.range(range.start, range.end) {
        while hits.next_if(|(w, _)| w < window).is_some() {}
        let reached = hits.next_if(|(w, _)| w == window).map_or(0.0, |(_, c)| f64::from(c.count));
        let n = f64::from(cell.count);
        sum += (reached - share * n).powi(2) / (share * (1.0 - share) * n);
        windows += 1.0;
    }
    if windows < 2.0 { 1.0 } else { (sum / (windows - 1.0)).max(1.0) }
}

/// The windows before, in groups as long as the stretch that they are compared with (a minute at most), each folded to one value.
fn groups<T>(series: &Series, stretches: &Stretches, mut value: impl FnMut(Range<WindowNo>, &Series) -> Option<T>) -> Vec<T> {
    let length = (stretches.after.len() as u32).clamp(1, 6);
    let Range { start, end } = stretches.before;
    (0..(end.saturating_sub(start)) / length)
        .filter_map(|n| {
            let to = end - n * length;
            value(to - length..to, series)
        })
        .collect()
}

pub(super) fn highest(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(f64::MIN, f64::max)
}

fn mean(cell: &Cell) -> f64 {
    cell.sum_ns as f64 / f64::from(cell.count) / 1e9
}

/// The means of the windows in which anything was counted, with the windows. (Time may be added to a call that is counted in another one.)
fn means_by_window(series: &Series, range: &Range<WindowNo>) -> impl Iterator<Item = (WindowNo, f64)> {
    series.range(range.start, range.end).filter(|(_, cell)| cell.count > 0).map(|(window, cell)| (*window, mean(cell)))
}

fn means(series: &Series, range: &Range<WindowNo>) -> Vec<f64> {
    means_by_window(series, range).map(|(_, mean)| mean).collect()
}

/// So many deviations are far from the rest of a baseline.
const FAR: f64 = 12.0;
/// So much more of what is asked fails in a window that is far from the rest.
const FAR_SHARE: f64 = 0.05;

/// The windows of a baseline that were sick themselves: half a minute or more in a row far above the rest. An earlier failure must not make
/// the next one look usual; single wild windows stay, as they show what is usual.
fn sick_windows(values: &[(WindowNo, f64)], limit: impl FnOnce(&[f64]) -> f64) -> Vec<WindowNo> {
    const RUN: usize = 3;
    let level: Vec<f64> = values.iter().map(|(_, value)| *value).collect();
    let limit = limit(&level);
    let high: Vec<bool> = level.iter().map(|v| *v > limit).collect();
    let windows: Vec<WindowNo> = values.iter().map(|(window, _)| *window).collect();
    let mut sick = Vec::new();
    let mut at = 0;
    while at < high.len() {
        let run = high[at..].iter().take_while(|h| **h).count();
        if run >= RUN {
            sick.extend_from_slice(&windows[at..at + run]);
        }
        at += run.max(1);
    }
    // When much of the time is like that, it is usual.
    if sick.len() * 4 > windows.len() { Vec::new() } else { sick }
}

/// Those in which it took far longer.
fn slow_windows(series: &Series, range: &Range<WindowNo>) -> Vec<WindowNo> {
    let values: Vec<(WindowNo, f64)> = means_by_window(series, range).collect();
    sick_windows(&values, |level| {
        let (middle, deviation) = robust(level);
        middle + FAR * deviation.max(middle * 0.1).max(0.001)
    })
}

/// Those in which far more failed.
fn failing_windows(series: &Series, range: &Range<WindowNo>) -> Vec<WindowNo> {
    let share = |(window, cell): &(WindowNo, Cell)| (*window, f64::from(cell.errors) / f64::from(cell.count.max(1)));
    let values: Vec<(WindowNo, f64)> = series.range(range.start, range.end).map(share).collect();
    sick_windows(&values, |level| median(&mut level.to_vec()) + FAR_SHARE)
}

/// Counts in each window in which `all` has anything: a gap in the telemetry is not a time without errors.
fn counts(series: &Series, all: &Series, range: &Range<WindowNo>) -> Vec<(WindowNo, f64)> {
    let mut hits = series.range(range.start, range.end).peekable();
    all.range(range.start, range.end)
        .map(|(window, _)| {
            while hits.next_if(|(w, _)| w < window).is_some() {}
            (*window, hits.next_if(|(w, _)| w == window).map_or(0.0, |(_, cell)| f64::from(cell.count)))
        })
        .collect()
}

/// A timed subject, compared.
struct Timed {
    symptom: Symptom,
    /// Seconds a second that are spent in it beyond what was before.
    excess: f64,
}

/// Failures of a node, or of the calls to it from another.
#[derive(Default)]
struct Failures {
    was: Cell,
    is: Cell,
    /// Their share in each stretch of the baseline.
    usual: Vec<f64>,
}

impl Failures {
    fn add(&mut self, series: &Series, stretches: &Stretches, was: &Cell, is: &Cell) {
        self.is.add(is);
        if is.errors == 0 {
            return self.was.add(was);
        }
        let sick = failing_windows(series, &stretches.before);
        let well = series.range(stretches.before.start, stretches.before.end).filter(|(window, _)| !sick.contains(window));
        well.for_each(|(_, cell)| self.was.add(cell));
        self.usual.extend(groups(series, stretches, |range, series| {
            let cell = series.total(range.start, range.end);
            let is_well = !range.clone().any(|window| sick.contains(&window));
            (is_well && cell.count >= 3).then(|| f64::from(cell.errors) / f64::from(cell.count))
        }));
    }
}

/// All symptoms between two stretches, most harmful first.
pub fn symptoms(windows: &Windows, names: &Names, stretches: &Stretches, rules: &Rules) -> Vec<Symptom> {
    let Stretches { before, after, .. } = stretches;
    let judge = Judge { windows, names, stretches, rules, seconds: (after.len() as u64 * WINDOW) as f64 / 1e9, said: OnceCell::new() };
    let mut found = Vec::new();
    let mut failures: HashMap<(NodeId, Option<NodeId>), Failures> = HashMap::new();
    let mut requests: HashMap<NodeId, (Cell, Cell)> = HashMap::new();
    // With the node whose requests take the longer for it.
    let mut timings: Vec<(NodeId, Timed)> = Vec::new();
    for (subject, series) in &windows.series {
        let (was, is) = (series.total(before.start, before.end), series.total(after.start, after.end));
        match *subject {
            Subject::Own { node, operation } => {
                failures.entry((node, None)).or_default().add(series, stretches, &was, &is);
                let what = names.text_of(operation);
                timings.extend(judge.timed(series, (&was, &is), (node, None), Signal::OwnTime, what, 0.0005).map(|timed| (node, timed)));
            }
            Subject::Wait { from, to } => {
                failures.entry((to, Some(from))).or_default().add(series, stretches, &was, &is);
                timings.extend(judge.timed(series, (&was, &is), (to, Some(from)), Signal::Wait, "", 0.001).map(|timed| (from, timed)));
            }
            Subject::Request { node, .. } => {
                let entry = requests.entry(node).or_default();
                entry.0.add(&was);
                entry.1.add(&is);
            }
            Subject::Logs { node, class: LogClass::Error } => {
                found.extend(judge.error_logs(series, node, (was.count.into(), is.count.into())));
            }
            Subject::Reach { node, operation, event } => found.extend(judge.reach(series, (&was, &is), node, operation, event)),
            Subject::Call { .. } | Subject::Retry { .. } | Subject::GivenUp { .. } | Subject::Logs { .. } | Subject::Pattern { .. } => {}
        }
    }
    for (node, timed) in timings {
        // A request is out of order by the part of its time that it loses here.
        let Some((_, is)) = requests.get(&node) else { continue };
        let duration = is.sum_ns as f64 / 1e9 / f64::from(is.count.max(1));
        let count = timed.symptom.n.1.min(is.count.into()) as f64;
        let lost = timed.excess * judge.seconds / count.max(1.0) / duration.max(1e-9);
        found.push(Symptom { harm: count / judge.seconds * lost.min(1.0), ..timed.symptom });
    }
    for ((node, from), failures) in &failures {
        found.push(judge.failures(failures, *node, *from, requests.get(node)));
    }
    for ((node, metric), series) in &windows.points {
        let rate = requests.get(node).map(|(_, is)| f64::from(is.count) / judge.seconds);
        found.extend(judge.points(*node, *metric, series, rate));
    }
    found.retain(|symptom| symptom.score > rules.sure && symptom.harm > 0.0);
    // What is certain of it: the harm less so many deviations as a change needs to be believed at all.
    found.iter_mut().for_each(|symptom| symptom.harm *= 1.0 - rules.sure / symptom.score);
    found.sort_by(|a, b| b.harm.total_cmp(&a.harm).then_with(|| (a.node, a.signal, &a.what).cmp(&(b.node, b.signal, &b.what))));
    found
}

/// What is lost of a line is said in other words when the operation's lines lose less than this part of it, all together.
const IN_OTHER_WORDS: f64 = 0.5;

/// What the functions for each signal need. Those that return an option return none where the change is not sure, as soon as that is known:
/// there are thousands of subjects, and nearly all of them have not changed.
pub(super) struct Judge<'a> {
    pub(super) windows: &'a Windows,
    pub(super) names: &'a Names,
    pub(super) stretches: &'a Stretches,
    pub(super) rules: &'a Rules,
    /// Of the stretch that is judged.
    seconds: f64,
    said: OnceCell<HashMap<(NodeId, TextId), (u64, u64)>>,
}

impl Judge<'_> {
    /// Time in work of a node or in waiting for another, by the medians of its windows.
    fn timed(
        &self,
        series: &Series,
        (was, is): (&Cell, &Cell),
        (node, from): (NodeId, Option<NodeId>),
        signal: Signal,
        what: &str,
        floor: f64,
    ) -> Option<Timed> {
        let Stretches { before, after, .. } = self.stretches;
        let new = means(series, after);
        let now = median(&mut new.clone());
        if is.count < 3 {
            return None;
        }
        let sick = slow_windows(series, before);
        let well = means_by_window(series, before).filter(|(window, _)| !sick.contains(window));
        let old: Vec<f64> = well.map(|(_, mean)| mean).collect();
        if above(&old, &new) < self.rules.sure_by_rank {
            return None;
        }
        let score = shift(&old, &new, self.rules.level_share, floor);
        if score <= self.rules.sure {
            return None;
        }
        let level = median(&mut old.clone());
        let usual = groups(series, self.stretches, |range, series| {
            let mut means = means(series, &range);
            (!means.is_empty() && !range.clone().any(|window| sick.contains(&window))).then(|| median(&mut means))
        });
        let symptom = Symptom {
            node,
            from,
            signal,
            what: what.to_owned(),
            score,
            harm: 0.0,
            before: level,
            after: now,
            unit: "s",
            n: (was.count.into(), is.count.into()),
            unprecedented: now > highest(usual),
        };
        Some(Timed { symptom, excess: (now - level) * f64::from(is.count) / self.seconds })
    }

    /// ERROR records of a node, by the window.
    fn error_logs(&self, series: &Series, node: NodeId, n: (u64, u64)) -> Option<Symptom> {
        let all = self.windows.get(&Subject::Logs { node, class: LogClass::All })?;
        let old = counts(series, all, &self.stretches.before);
        let sick = sick_windows(&old, |level| {
            let (middle, deviation) = robust(level);
            middle + FAR * deviation.max(0.5)
        });
        let old: Vec<f64> = old.into_iter().filter(|(window, _)| !sick.contains(window)).map(|(_, count)| count).collect();
        let new: Vec<f64> = counts(series, all, &self.stretches.after).into_iter().map(|(_, count)| count).collect();
        if old.is_empty() {
            return None;
        }
        let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len().max(1) as f64;
        let (was, is) = (mean(&old), mean(&new));
        let deviation = (old.iter().map(|v| (v - was).powi(2)).sum::<f64>() / old.len().max(1) as f64).sqrt();
        let per_window = |range: Range<WindowNo>, series: &Series| {
            let is_well = !range.clone().any(|window| sick.contains(&window));
            is_well.then(|| f64::from(series.total(range.start, range.end).count) / range.len() as f64)
        };
        Some(Symptom {
            node,
            from: None,
            signal: Signal::ErrorLogs,
            what: String::new(),
            score: (is - was) / deviation.max(0.5),
            harm: (is - was).max(0.0) / 10.0,
            before: was / 10.0,
            after: is / 10.0,
            unit: "records/s",
            n,
            unprecedented: is > highest(groups(series, self.stretches, per_window)),
        })
    }

    /// The share of an operation's requests that reach something, or are refused.
    fn reach(&self, series: &Series, (was, is): (&Cell, &Cell), node: NodeId, operation: TextId, event: Event) -> Option<Symptom> {
        let Stretches { before, after, .. } = self.stretches;
        let requests = self.windows.get(&Subject::Request { node, operation })?;
        let (total0, total1) = (requests.total(before.start, before.end), requests.total(after.start, after.end));
        if total0.count < 10 || total1.count < 5 {
            return None;
        }
        let (share0, share1) = ((f64::from(was.count), f64::from(total0.count)), (f64::from(is.count), f64::from(total1.count)));
        // Wider swings from window to window only make it less sure.
        if proportion_shift(share0, share1, 1.0) <= self.rules.sure {
            return None;
        }
        let score = proportion_shift(share0, share1, overdispersion(series, requests, before, share0.0 / share0.1));
        if score <= self.rules.sure {
            return None;
        }
        let by_data = matches!(event, Event::Says(pattern) if !self.is_error(node, pattern));
        // A new line that is no error tells of other data. One that is missing tells of requests that end early, unless something else is said instead: where
        // the operation's lines all together lose less than half of what this one does.
        let lost = share0.0 / share0.1 - share1.0 / share1.1;
        if by_data {
            let (said0, said1) = self.said().get(&(node, operation)).copied().unwrap_or_default();
            let all_lost = said0 as f64 / share0.1 - said1 as f64 / share1.1;
            if lost <= 0.0 || all_lost < IN_OTHER_WORDS * lost {
                return None;
            }
        }
        // What a log line says varies with the data that pass through; an ERROR line does not.
        let weight = if by_data { 0.5 } else { 1.0 };
        let (who, from, signal) = match event {
            Event::IsRefused(_) => (node, None, Signal::Refusals),
            Event::IsRefusedBy(by, _) => (by, Some(node), Signal::Refusals),
            _ => (node, None, Signal::Shape),
        };
        // That fewer are refused harms nobody.
        if signal == Signal::Refusals && share1.0 * share0.1 <= share0.0 * share1.1 {
            return None;
        }
        let within = self.names.text_of(operation);
        let what = match event {
            Event::IsRefused(refusal) | Event::IsRefusedBy(_, refusal) => format!("{within} with {}", refusal.words()),
            Event::Step(step) => format!("{} in {within}", self.names.text_of(step)),
            Event::Calls(to) => format!("calls to {} in {within}", self.names.node(to).service.name),
            Event::Says(pattern) => format!("“{}” in {within}", self.names.text_of(pattern)),
        };
        let usual = groups(series, self.stretches, |range, series| {
            let total = requests.total(range.start, range.end).count;
            (total >= 3).then(|| f64::from(series.total(range.start, range.end).count) / f64::from(total))
        });
        let now = share1.0 / share1.1;
        let risen = now > highest(usual.iter().copied());
        let unprecedented = risen || (signal == Signal::Shape && -now > highest(usual.iter().map(|v| -v)));
        Some(Symptom {
            node: who,
            from,
            unprecedented,
            signal,
            what,
            score,
            harm: weight * (now - share0.0 / share0.1).abs() * share1.1 / self.seconds,
            before: share0.0 / share0.1,
            after: now,
            unit: "of requests",
            n: (u64::from(total0.count), u64::from(total1.count)),
        })
    }

    fn is_error(&self, node: NodeId, pattern: TextId) -> bool {
        let Stretches { before, after, .. } = self.stretches;
        let pattern = self.windows.get(&Subject::Pattern { node, pattern });
        pattern.is_some_and(|series| series.total(before.start, after.end).errors > 0)
    }

    /// How often the requests of each operation said things that are no errors, before and after, all lines together.
    fn said(&self) -> &HashMap<(NodeId, TextId), (u64, u64)> {
        self.said.get_or_init(|| {
            let Stretches { before, after, .. } = self.stretches;
            let mut said: HashMap<(NodeId, TextId), (u64, u64)> = HashMap::new();
            for (subject, series) in &self.windows.series {
                let Subject::Reach { node, operation, event: Event::Says(pattern) } = *subject else { continue };
                if !self.is_error(node, pattern) {
                    let sums = said.entry((node, operation)).or_default();
                    sums.0 += u64::from(series.total(before.start, before.end).count);
                    sums.1 += u64::from(series.total(after.start, after.end).count);
                }
            }
            said
        })
    }

    /// Failures that begin in a node, or in calls to it; `requests` are the node's own.
    fn failures(&self, failures: &Failures, node: NodeId, from: Option<NodeId>, requests: Option<&(Cell, Cell)>) -> Symptom {
        let Failures { was, is, usual } = failures;
        let (share0, share1) = (f64::from(was.errors) / f64::from(was.count.max(1)), f64::from(is.errors) / f64::from(is.count.max(1)));
        // Said of requests, where the failing spans are parts of them.
        let per_request = |errors: u32, spans: u32, requests: u32| {
            (f64::from(errors) / f64::from(if requests > 0 { requests } else { spans }.max(1))).min(1.0)
        };
        let (said0, said1) = match (from, requests) {
            (None, Some((r0, r1))) => (per_request(was.errors, was.count, r0.count), per_request(is.errors, is.count, r1.count)),
            _ => (share0, share1),
        };
        Symptom {
            node,
            from,
            signal: Signal::Errors,
            what: String::new(),
            // What was counted is as sure as the number of failures that were seen, not as those that they stand for.
            score: share_shift((was.errors.into(), was.count.into()), (is.errors.into(), is.count.into())) / is.failures_each().sqrt(),
            harm: (share1 - share0).max(0.0) * f64::from(is.count) / self.seconds,
            before: said0,
            after: said1,
            unit: "of requests",
            n: (was.count.into(), is.count.into()),
            unprecedented: usual.iter().all(|share| *share < share1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten requests in each of sixty windows, of which `says` gives the lines that each says, and what changed with the last three.
    fn changes_of_shape(says: impl Fn(u32) -> Vec<String>) -> Vec<String> {
        let (mut windows, mut names) = (Windows::default(), Names::default());
        let operation = names.text("GET /");
        for window in 0..60 {
            let cell = Cell { count: 10, ..Cell::default() };
            let time = u64::from(window) * WINDOW;
            windows.add(Subject::Request { node: 0, operation }, time, &cell);
            for line in says(window) {
                let pattern = names.text(&line);
                if line.starts_with("ERROR") {
                    windows.add(Subject::Pattern { node: 0, pattern }, time, &Cell { errors: 10, ..cell });
                }
                windows.add(Subject::Reach { node: 0, operation, event: Event::Says(pattern) }, time, &cell);
            }
        }
        let stretches = Stretches { before: 0..57, after: 57..60, since: 57 * WINDOW, until: 60 * WINDOW };
        let mut found = symptoms(&windows, &names, &stretches, &Rules::default());
        found.retain(|s| s.signal == Signal::Shape);
        let mut said: Vec<String> = found.into_iter().map(|s| s.what.replace(" in GET /", "")).collect();
        said.sort();
        said
    }

    #[test]
    fn a_line_that_is_missing_is_a_change_of_shape_unless_it_is_said_in_other_words() {
        let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<String>>();
        assert!(changes_of_shape(|_| lines(&["found"])).is_empty());
        assert!(changes_of_shape(|window| if window < 57 { lines(&["due on Sunday"]) } else { lines(&["due on Monday"]) }).is_empty());
        assert!(changes_of_shape(|window| if window < 57 { lines(&["found"]) } else { lines(&["found", "now in colour"]) }).is_empty());
        let cut_short = changes_of_shape(|window| if window < 57 { lines(&["found"]) } else { lines(&["ERROR no such route"]) });
        assert_eq!(cut_short, ["“ERROR no such route”", "“found”"]);
        // A new line does not stand for three that are missing, nor one whose words are others each time.
        let stops = changes_of_shape(|window| if window < 57 { lines(&["one", "two", "three"]) } else { lines(&["stops"]) });
        assert_eq!(stops, ["“one”", "“three”", "“two”"]);
        let user =
            |window: u32| format!("user {} came", ["ann", "bob", "cy", "dee", "eve"][window as usize % 5].repeat(window as usize / 5 + 1));
        let stops = changes_of_shape(|window| if window < 57 { vec![user(window), "found".to_owned()] } else { vec![user(window)] });
        assert_eq!(stops, ["“found”"]);
    }
}
