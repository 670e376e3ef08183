//! What left its baseline. Compares two stretches of windows, subject by subject, and says by how much and how surely each has changed.
//! Pure: the same windows give the same symptoms.

use super::facts::Measure;
use super::names::{Names, NodeId, TextId};
use super::windows::{Cell, Event, LogClass, PointSeries, Series, Subject, WindowNo, Windows};
use firstfall_store::rollup::WINDOW;
use hashbrown::HashMap;
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
    /// Requests reach other things than they did.
    Shape,
    /// A level such as CPU or memory.
    Resource,
    /// Latency as a metric tells it.
    MetricLatency,
    /// Failed requests as metrics tell them.
    MetricErrors,
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
    /// In robust deviations of the baseline.
    pub score: f64,
    pub before: f64,
    pub after: f64,
    pub unit: &'static str,
    /// Observations before and after.
    pub n: (u64, u64),
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

/// A baseline of points reaches at least so many of them back.
const POINTS_OF_BASELINE: u64 = 144;
/// Fewer windows than this are no baseline.
const WINDOWS_MIN: usize = 3;

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
fn robust(values: &[f64]) -> (f64, f64) {
    let mut values = values.to_vec();
    let middle = median(&mut values);
    values.iter_mut().for_each(|v| *v = (*v - middle).abs());
    (middle, 1.4826 * median(&mut values))
}

/// How far the median of `after` lies above that of `before`, in deviations of `before` that are never taken for smaller than a tenth of
/// the level, or `floor`.
fn shift(before: &[f64], after: &[f64], floor: f64) -> f64 {
    if before.len() < WINDOWS_MIN || after.is_empty() {
        return 0.0;
    }
    let (level, deviation) = robust(before);
    (median(&mut after.to_vec()) - level) / deviation.max(level.abs() * 0.1).max(floor)
}

/// Deviations of a share of failures from the share before.
fn share_shift(before: (f64, f64), after: (f64, f64)) -> f64 {
    let ((bad0, n0), (bad1, n1)) = (before, after);
    if n1 == 0.0 || bad1 == 0.0 {
        return 0.0;
    }
    let expected = (bad0 + 0.5) / (n0 + 1.0);
    (bad1 / n1 - expected) / ((expected * (1.0 - expected)).max(1e-4) / n1).sqrt()
}

/// The same for a share that may rise or fall, with the uncertainty of both sides.
fn proportion_shift(before: (f64, f64), after: (f64, f64)) -> f64 {
    let ((k0, n0), (k1, n1)) = (before, after);
    let expected = (k0 + 0.5) / (n0 + 1.0);
    (k1 / n1 - expected).abs() / ((expected * (1.0 - expected)).max(0.002) * (1.0 / n1 + 1.0 / n0)).sqrt()
}

fn means(series: &Series, range: &Range<WindowNo>) -> Vec<f64> {
    series.range(range.start, range.end).map(|(_, cell)| cell.sum_ns as f64 / f64::from(cell.count) / 1e9).collect()
}

/// Counts in each window, also in those in which nothing happened.
fn counts(series: &Series, range: &Range<WindowNo>) -> Vec<f64> {
    let mut counts = vec![0.0; range.len()];
    for (window, cell) in series.range(range.start, range.end) {
        counts[(window - range.start) as usize] = f64::from(cell.count);
    }
    counts
}

/// All symptoms between two stretches, strongest first.
pub fn symptoms(windows: &Windows, names: &Names, stretches: &Stretches) -> Vec<Symptom> {
    let Stretches { before, after, .. } = stretches;
    let mut found = Vec::new();
    let mut failures: HashMap<(NodeId, Option<NodeId>), (Cell, Cell)> = HashMap::new();
    for (subject, series) in &windows.series {
        let (was, is) = (series.total(before.start, before.end), series.total(after.start, after.end));
        let n = (u64::from(was.count), u64::from(is.count));
        let timed = |node, from, signal, what, floor: f64| Symptom {
            node,
            from,
            signal,
            what,
            score: if is.count >= 3 { shift(&means(series, before), &means(series, after), floor) } else { 0.0 },
            before: was.sum_ns as f64 / f64::from(was.count.max(1)) / 1e9,
            after: is.sum_ns as f64 / f64::from(is.count.max(1)) / 1e9,
            unit: "s",
            n,
        };
        match *subject {
            Subject::Own { node, operation } => {
                let entry = failures.entry((node, None)).or_default();
                entry.0.add(&was);
                entry.1.add(&is);
                found.push(timed(node, None, Signal::OwnTime, names.text_of(operation).to_owned(), 0.0005));
            }
            Subject::Wait { from, to } => {
                let entry = failures.entry((to, Some(from))).or_default();
                entry.0.add(&was);
                entry.1.add(&is);
                found.push(timed(to, Some(from), Signal::Wait, String::new(), 0.001));
            }
            Subject::Logs { node, class: LogClass::Error } => {
                let (old, new) = (counts(series, before), counts(series, after));
                let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len().max(1) as f64;
                let deviation = (old.iter().map(|v| (v - mean(&old)).powi(2)).sum::<f64>() / old.len().max(1) as f64).sqrt();
                found.push(Symptom {
                    node,
                    from: None,
                    signal: Signal::ErrorLogs,
                    what: String::new(),
                    score: (mean(&new) - mean(&old)) / deviation.max(0.5),
                    before: mean(&old) / 10.0,
                    after: mean(&new) / 10.0,
                    unit: "records/s",
                    n,
                });
            }
            Subject::Reach { node, operation, event } => {
                let Some(requests) = windows.get(&Subject::Request { node, operation }) else { continue };
                let (total0, total1) = (requests.total(before.start, before.end), requests.total(after.start, after.end));
                if total0.count < 10 || total1.count < 5 {
                    continue;
                }
                let (share0, share1) = ((f64::from(was.count), f64::from(total0.count)), (f64::from(is.count), f64::from(total1.count)));
                let what = match event {
                    Event::Step(step) => format!("{} in {}", names.text_of(step), names.text_of(operation)),
                    Event::Calls(to) => format!("calls to {} in {}", names.node(to).service.name, names.text_of(operation)),
                    Event::Says(pattern) => format!("“{}” in {}", names.text_of(pattern), names.text_of(operation)),
                };
                found.push(Symptom {
                    node,
                    from: None,
                    signal: Signal::Shape,
                    what,
                    score: proportion_shift(share0, share1),
                    before: share0.0 / share0.1,
                    after: share1.0 / share1.1,
                    unit: "of requests",
                    n: (u64::from(total0.count), u64::from(total1.count)),
                });
            }
            Subject::Call { .. } | Subject::Request { .. } | Subject::Logs { .. } | Subject::Pattern { .. } => {}
        }
    }
    for ((node, from), (was, is)) in failures {
        let score = share_shift((was.errors.into(), was.count.into()), (is.errors.into(), is.count.into()));
        found.push(Symptom {
            node,
            from,
            signal: Signal::Errors,
            what: String::new(),
            score,
            before: f64::from(was.errors) / f64::from(was.count.max(1)),
            after: f64::from(is.errors) / f64::from(is.count.max(1)),
            unit: "of spans",
            n: (was.count.into(), is.count.into()),
        });
    }
    for ((node, metric), series) in &windows.points {
        found.extend(point_symptom(windows, names, stretches, *node, *metric, series));
    }
    found.retain(|symptom| symptom.score > 0.0);
    found.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| (a.node, a.signal, &a.what).cmp(&(b.node, b.signal, &b.what))));
    found
}

fn point_symptom(
    windows: &Windows,
    names: &Names,
    stretches: &Stretches,
    node: NodeId,
    metric: TextId,
    series: &PointSeries,
) -> Option<Symptom> {
    let name = names.text_of(metric);
    // Points that are minutes apart need a longer baseline than spans: as many as a day of five minutes each has half of.
    let interval = match (series.values.front(), series.values.back()) {
        (Some((first, ..)), Some((last, ..))) if series.values.len() > 1 => (last - first) / (series.values.len() as u64 - 1),
        _ => 0,
    };
    let start = (u64::from(stretches.before.start) * WINDOW).min(stretches.since.saturating_sub(POINTS_OF_BASELINE * interval));
    let split = |series: &PointSeries| {
        let old: Vec<f64> =
            series.values.iter().filter(|(time, ..)| *time >= start && *time < stretches.since).map(|(_, value, _)| *value).collect();
        let new: Vec<f64> = series
            .values
            .iter()
            .filter(|(time, ..)| *time >= stretches.since && *time < stretches.until)
            .map(|(_, value, _)| *value)
            .collect();
        (old, new)
    };
    let (old, new) = split(series);
    if old.len() < WINDOWS_MIN || new.is_empty() {
        return None;
    }
    let n = (old.len() as u64, new.len() as u64);
    let (signal, score, before, after, unit) = match series.measure {
        Measure::Level if (name.contains("cpu") || name.contains("memory")) && !name.contains("node") => {
            let (level, deviation) = robust(&old);
            let highest = new.iter().copied().fold(f64::MIN, f64::max);
            (Signal::Resource, (highest - level) / deviation.max(0.25 * level.abs()).max(1e-9), level, highest, "")
        }
        Measure::Latency if !name.contains("client") && (name.contains("mean") || name.contains("p90")) => {
            (Signal::MetricLatency, shift(&old, &new, 0.0005), median(&mut old.clone()), median(&mut new.clone()), "s")
        }
        Measure::Requests => {
            let errors = ["errors", "failures", "failed"].iter().find_map(|word| {
                let sibling = name.replacen("requests", word, 1);
                windows.points.iter().find(|((n, m), _)| *n == node && names.text_of(*m) == sibling).map(|(_, series)| series)
            })?;
            let (bad_old, bad_new) = split(errors);
            let sum = |v: &[f64]| v.iter().sum::<f64>();
            let (was, is) = ((sum(&bad_old), sum(&old)), (sum(&bad_new), sum(&new)));
            (Signal::MetricErrors, share_shift(was, is), was.0 / was.1.max(1.0), is.0 / is.1.max(1.0), "of requests")
        }
        _ => return None,
    };
    Some(Symptom { node, from: None, signal, what: name.to_owned(), score, before, after, unit, n })
}
