//! Incidents: when the last half minute differs from what came before it for long enough, one opens; it keeps its own baseline from before its
//! onset, is ranked anew with each window, and closes when its symptoms have been gone for a while.
//!
//! `step` is called once for each window, in order, when all of it can have arrived. It is a pure function of what was observed.

use super::judge::{Signal, Stretches, Symptom, median};
use super::names::NodeId;
use super::rank::Candidate;
use super::windows::{Subject, WindowNo};
use super::{Diagnosis, Observed};
use firstfall_store::rollup::WINDOW;

/// The stretch that is compared with what came before it. Three windows: one slow garbage collection is not an incident, and half a minute is
/// as long as a pager may wait.
const RECENT: u32 = 3;
/// Windows of data before a baseline is one (five minutes).
const BASELINE_MIN: u32 = 30;
/// Windows before a change of shape is believed (eight minutes): what requests reach depends on who comes by, and that changes by the minute.
const SHAPE_BASELINE_MIN: usize = 50;
/// … and by how much it must change.
const SHAPE_CHANGE: f64 = 0.3;
/// A candidate whose onset lies so long after an open incident's is another one (two minutes).
const APART: u32 = 12;
/// How far back a baseline reaches (half an hour).
const BASELINE_MAX: u32 = 180;
/// Steps in a row in which a candidate must stand before an incident opens.
const STEPS_TO_OPEN: u32 = 2;
/// Windows in a row without symptoms before it closes (two minutes), since failures flap.
const QUIET_TO_CLOSE: u32 = 12;
/// A candidate opens an incident only beyond so many deviations: thousands of subjects are looked at each ten seconds, and nobody wants to
/// be woken once a week by chance.
const OPEN_SCORE: f64 = 12.0;
/// … and when it harms at least this part of its own requests.
const OPEN_SHARE: f64 = 0.1;
/// … and at least so many requests of the stretch.
const HARMED_MIN: f64 = 3.0;
/// An incident that lasts longer than this is the new normal.
const LASTING: u32 = 360;

#[derive(Clone, Debug)]
pub struct Incident {
    pub id: String,
    /// Event times, nanoseconds.
    pub onset: u64,
    pub opened_at: u64,
    pub closed_at: Option<u64>,
    /// Grows with each change that somebody would want to know of.
    pub revision: u32,
    pub candidates: Vec<Candidate>,
    pub symptoms: Vec<Symptom>,
    quiet: u32,
    /// Nodes with symptoms at any time.
    pub nodes: Vec<NodeId>,
}

impl Incident {
    pub fn is_open(&self) -> bool {
        self.closed_at.is_none()
    }

    fn onset_window(&self) -> WindowNo {
        (self.onset / WINDOW) as WindowNo
    }
}

#[derive(Default)]
pub struct Incidents {
    pub all: Vec<Incident>,
    /// For how many steps candidates have stood that no incident covers.
    standing: u32,
    first: Option<WindowNo>,
}

impl Incidents {
    /// Judges the windows up to and including `window`. Returns the places in `all` of what has changed.
    pub fn step(&mut self, observed: &Observed, window: WindowNo) -> Vec<usize> {
        let first = *self.first.get_or_insert(window);
        let mut changed: Vec<usize> = Vec::new();
        for at in 0..self.all.len() {
            if self.all[at].is_open() && self.follow(observed, window, at) {
                changed.push(at);
            }
        }
        let start = window.saturating_sub(RECENT - 1);
        let before = start.saturating_sub(BASELINE_MAX).max(first)..start;
        if before.len() < BASELINE_MIN as usize {
            return changed;
        }
        let diagnosis = compare(observed, before.clone(), start..window + 1);
        // What an open incident has touched is its own, and so is what follows it soon.
        let covered = |node: NodeId| {
            self.all
                .iter()
                .filter(|i| {
                    i.closed_at.is_none_or(|closed| closed + u64::from(RECENT + STEPS_TO_OPEN) * WINDOW > u64::from(window) * WINDOW)
                })
                .any(|i| i.nodes.contains(&node) || window < i.onset_window() + APART)
        };
        let found: Vec<&Candidate> =
            diagnosis.candidates.iter().filter(|c| !covered(c.node) && opens(observed, c, start..window + 1, before.len())).collect();
        if found.is_empty() {
            self.standing = 0;
            return changed;
        }
        self.standing += 1;
        if self.standing < STEPS_TO_OPEN {
            return changed;
        }
        self.standing = 0;
        let onset = onset(observed, found[0], before, window);
        let origin = observed.names.node(found[0].node).id();
        self.all.push(Incident {
            id: format!("{:08x}", fnv(&[&onset.to_le_bytes()[..], origin.as_bytes()].concat())),
            onset,
            opened_at: u64::from(window + 1) * WINDOW,
            closed_at: None,
            revision: 1,
            nodes: diagnosis.candidates.iter().map(|c| c.node).collect(),
            candidates: diagnosis.candidates,
            symptoms: diagnosis.symptoms,
            quiet: 0,
        });
        let at = self.all.len() - 1;
        self.rank_again(observed, window, at);
        changed.push(at);
        changed
    }

    /// Ranks an open incident over all of its time; closes it when it has been quiet. Says whether anything changed that is worth telling.
    fn follow(&mut self, observed: &Observed, window: WindowNo, at: usize) -> bool {
        let incident = &self.all[at];
        let begin = incident.onset_window();
        let start = window.saturating_sub(RECENT - 1).max(begin);
        let now = compare(observed, begin.saturating_sub(BASELINE_MAX).max(self.first.unwrap_or(0))..begin, start..window + 1);
        let baseline = begin - begin.saturating_sub(BASELINE_MAX).max(self.first.unwrap_or(0));
        let still = now.candidates.iter().any(|c| opens(observed, c, start..window + 1, baseline as usize));
        let incident = &mut self.all[at];
        incident.quiet = if still { 0 } else { incident.quiet + 1 };
        if incident.quiet >= QUIET_TO_CLOSE || window - begin > LASTING {
            incident.closed_at = Some(u64::from(window + 1) * WINDOW);
            incident.revision += 1;
            return true;
        }
        if incident.quiet > 0 {
            return false;
        }
        self.rank_again(observed, window, at)
    }

    fn rank_again(&mut self, observed: &Observed, window: WindowNo, at: usize) -> bool {
        let incident = &mut self.all[at];
        let begin = incident.onset_window();
        let before = begin.saturating_sub(BASELINE_MAX).max(self.first.unwrap_or(0))..begin;
        let diagnosis = compare(observed, before, begin..window + 1);
        if diagnosis.candidates.is_empty() {
            return false;
        }
        let origin = incident.candidates.first().map(|c| c.node);
        let changed = diagnosis.candidates.first().map(|c| c.node) != origin;
        for candidate in &diagnosis.candidates {
            if !incident.nodes.contains(&candidate.node) {
                incident.nodes.push(candidate.node);
            }
        }
        incident.candidates = diagnosis.candidates;
        incident.symptoms = diagnosis.symptoms;
        incident.revision += u32::from(changed);
        changed
    }
}

fn fnv(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn compare(observed: &Observed, before: std::ops::Range<WindowNo>, after: std::ops::Range<WindowNo>) -> Diagnosis {
    let since = u64::from(after.start) * WINDOW;
    let until = u64::from(after.end) * WINDOW;
    observed.compare(&Stretches { before, after, since, until })
}

/// Whether a candidate is sure and harmful enough to wake somebody: it has a symptom like none in its baseline, which hurts more than a
/// few requests and more than a small part of them.
fn opens(observed: &Observed, candidate: &Candidate, after: std::ops::Range<WindowNo>, baseline: usize) -> bool {
    let seconds = (after.len() as u64 * WINDOW) as f64 / 1e9;
    let requests = observed.rate(candidate.node, after);
    candidate.explained_by.is_none()
        && candidate.evidence.iter().any(|s| {
            let least = if s.signal.is_of_points() { HARMED_MIN / 600.0 } else { (OPEN_SHARE * requests).max(HARMED_MIN / seconds) };
            let known = s.signal != Signal::Shape || (baseline >= SHAPE_BASELINE_MIN && (s.after - s.before).abs() >= SHAPE_CHANGE);
            known && s.unprecedented && s.score >= OPEN_SCORE && s.harm >= least
        })
}

/// When it began: the strongest symptom's series, walked by a cumulative sum back to its last zero (Page 1954).
fn onset(observed: &Observed, candidate: &Candidate, before: std::ops::Range<WindowNo>, window: WindowNo) -> u64 {
    let fallback = u64::from(window.saturating_sub(RECENT + STEPS_TO_OPEN - 2)) * WINDOW;
    let Some(symptom) = candidate.evidence.first() else { return fallback };
    let series = observed.windows.series.iter().filter(|(subject, _)| match (subject, symptom.from) {
        (Subject::Own { node, operation }, None) => *node == symptom.node && observed.names.text_of(*operation) == symptom.what,
        (Subject::Wait { from, to }, Some(caller)) => *to == symptom.node && *from == caller,
        _ => false,
    });
    let Some((_, series)) = series.max_by_key(|(subject, _)| **subject) else { return fallback };
    let mean = |cell: &super::windows::Cell| cell.sum_ns as f64 / f64::from(cell.count.max(1));
    let mut old: Vec<f64> = series.range(before.start, before.end).map(|(_, cell)| mean(cell)).collect();
    let level = median(&mut old);
    let mut deviations: Vec<f64> = old.iter().map(|v| (v - level).abs()).collect();
    let scale = (1.4826 * median(&mut deviations)).max(0.1 * level).max(5e5);
    let (mut sum, mut zero) = (0.0f64, None);
    for (at, cell) in series.range(window.saturating_sub(30).max(before.start), window + 1) {
        let z = ((mean(cell) - level) / scale).clamp(-8.0, 8.0);
        sum = (sum + z - 2.0).max(0.0);
        if sum == 0.0 {
            zero = Some(*at + 1);
        }
    }
    zero.map_or(fallback, |zero| u64::from(zero.min(window)) * WINDOW)
}
