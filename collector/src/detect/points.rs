//! What metrics tell of a node: its level of CPU and memory, and, where it has no spans, how long requests take and how many fail.

use super::facts::Measure;
use super::judge::{Judge, Signal, Symptom, WINDOWS_MIN, above, highest, median, robust, share_shift, shift};
use super::names::{NodeId, TextId};
use super::windows::PointSeries;
use firstfall_store::rollup::WINDOW;

/// A baseline of points reaches at least so many of them back.
const POINTS_OF_BASELINE: u64 = 144;
impl Judge<'_> {
    /// `rate` is requests a second, where spans tell of them.
    pub(super) fn points(&self, node: NodeId, metric: TextId, series: &PointSeries, rate: Option<f64>) -> Option<Symptom> {
        let Judge { windows, names, stretches, rules, .. } = self;
        let name = names.text_of(metric);
        // Points that are minutes apart need a longer baseline than spans: as many as a day of five minutes each has half of.
        let interval = match (series.values.front(), series.values.back()) {
            (Some((first, ..)), Some((last, ..))) if series.values.len() > 1 => (last - first) / (series.values.len() as u64 - 1),
            _ => 0,
        };
        let start = (u64::from(stretches.before.start) * WINDOW)
            .min(stretches.since.saturating_sub((POINTS_OF_BASELINE + 2).saturating_mul(interval)));
        // Where points are further apart than the stretch is long, the present is the two latest.
        let since = stretches.since.min(stretches.until.saturating_sub(interval.saturating_mul(2)));
        let split = |series: &PointSeries| {
            let between =
                |from: u64, to: u64| series.values.iter().filter(move |(time, ..)| *time > from && *time <= to).map(|(_, value, _)| *value);
            (between(start, since).collect::<Vec<f64>>(), between(since, stretches.until).collect::<Vec<f64>>())
        };
        let (old, new) = split(series);
        if old.len() < WINDOWS_MIN || new.is_empty() {
            return None;
        }
        let n = (old.len() as u64, new.len() as u64);
        let sibling = |from: &str, to: &str| {
            let sibling = name.replacen(from, to, 1);
            // A counter of calls without “requests” in its name is not its own counter of errors.
            if sibling == name { None } else { windows.points.get(&(node, names.find_text(&sibling)?)) }
        };
        let seconds = (stretches.until - since) as f64 / 1e9;
        let sum = |v: &[f64]| v.iter().sum::<f64>();
        let mut unprecedented = false;
        let (signal, score, harm, before, after, unit) = match series.measure {
            Measure::Level if (name.contains("cpu") || name.contains("memory")) && !name.contains("node") => {
                let (level, deviation) = robust(&old);
                let highest = new.iter().copied().fold(f64::MIN, f64::max);
                let score = (highest - level) / deviation.max(0.25 * level.abs()).max(1e-9);
                (Signal::Resource, score, 0.5 * rate.unwrap_or(0.0) * (1.0 - level / highest.max(1e-9)).max(0.0), level, highest, "")
            }
            // Where there are spans they say it better.
            Measure::Latency if rate.is_none() && !name.contains("client") && name.contains("mean") => {
                let (level, now) = (median(&mut old.clone()), sum(&new) / new.len() as f64);
                let weights: f64 =
                    series.values.iter().filter(|(time, ..)| *time > since && *time <= stretches.until).map(|(_, _, weight)| *weight).sum();
                let score = if above(&old, &new) > 1.0 { shift(&old, &new, rules.level_share, 0.0005) } else { 0.0 };
                // The callers' requests are out of order by the part of their time that they lose here.
                let callers = windows.told_edges.keys().filter(|(_, to)| *to == node).filter_map(|(from, _)| {
                    let (_, theirs) = split(windows.points.get(&(*from, metric))?);
                    Some(sum(&theirs) / theirs.len().max(1) as f64)
                });
                let duration = callers.fold(now, f64::max);
                let lost = ((now - level) / duration.max(1e-9)).clamp(0.0, 1.0);
                unprecedented = new.iter().all(|v| *v > highest(old.iter().copied()));
                (Signal::MetricLatency, score, weights / seconds * lost, level, now, "s")
            }
            Measure::Requests if rate.is_none() => {
                let errors = ["errors", "failures", "failed"].iter().find_map(|word| sibling("requests", word))?;
                let (bad_old, bad_new) = split(errors);
                let (was, is) = ((sum(&bad_old), sum(&old)), (sum(&bad_new), sum(&new)));
                let (share0, share1) = (was.0 / was.1.max(1.0), is.0 / is.1.max(1.0));
                let usual = bad_old.iter().zip(&old).map(|(bad, all)| bad / all.max(1.0));
                unprecedented = bad_new.iter().zip(&new).all(|(bad, all)| bad / all.max(1.0) > 0.0) && share1 > highest(usual);
                (Signal::MetricErrors, share_shift(was, is), (share1 - share0).max(0.0) * is.1 / seconds, share0, share1, "of requests")
            }
            _ => return None,
        };
        Some(Symptom { node, from: None, signal, what: name.to_owned(), score, harm, before, after, unit, n, unprecedented })
    }
}
