//! Incidents: when the last half minute differs from what came before it for long enough, one opens; it keeps its own baseline from before its
//! onset, is ranked anew while it grows, and closes when its origin's symptoms have been gone for a while.
//!
//! `step` is called once for each window, in order, when all of it can have arrived. It is a pure function of what was observed.

use super::describe::{failing_since, happening_since, slow_since};
use super::judge::{Signal, Stretches, Symptom};
use super::names::NodeId;
use super::rank::Candidate;
use super::rules::Rules;
use super::windows::{Event, Subject, WindowNo};
use super::{Diagnosis, Observed};
use firstfall_store::rollup::WINDOW;
use std::ops::Range;

/// The stretch that is compared with what came before it. Three windows: one slow garbage collection is not an incident, and half a minute is
/// as long as a pager may wait.
const RECENT: u32 = 3;
/// The long stretch, for what happens too seldom to be judged in half a minute.
const LONG: u32 = 9;
/// How far back a baseline reaches (half an hour).
const BASELINE_MAX: u32 = 180;
/// Metrics, whose points come minutes apart, have so many seconds to tell of `harmed_min` requests.
const POINTS_SECONDS: f64 = 600.0;
/// Acquaintance is asked for when an incident opens, not of one that is open, whose baseline ended with its onset.
const ACQUAINTED: usize = usize::MAX;
/// A processor that is used less than half is not busy, however idle it was.
const BUSY: f64 = 0.5;
/// An incident that lasts longer than this is the new normal.
pub const LASTING: u32 = 360;

#[derive(Clone, Debug)]
pub struct Incident {
    pub id: String,
    /// Event times, nanoseconds.
    pub onset: u64,
    pub opened_at: u64,
    pub closed_at: Option<u64>,
    /// The incident that it turned out to be a part of.
    pub absorbed_by: Option<String>,
    pub candidates: Vec<Candidate>,
    pub symptoms: Vec<Symptom>,
    quiet: u32,
    /// Nodes with symptoms at any time.
    pub nodes: Vec<NodeId>,
    /// The first window that was seen at all.
    first: WindowNo,
}

impl Incident {
    pub fn is_open(&self) -> bool {
        self.closed_at.is_none()
    }

    fn onset_window(&self) -> WindowNo {
        (self.onset / WINDOW) as WindowNo
    }

    /// The windows that it is compared with: those before its onset.
    pub fn baseline(&self) -> Range<WindowNo> {
        let begin = self.onset_window();
        begin.saturating_sub(BASELINE_MAX).max(self.first)..begin
    }

    /// The latest window in which its origin was sick, as seen from one.
    pub fn sick_until(&self, window: WindowNo) -> WindowNo {
        window.saturating_sub(self.quiet).max(self.onset_window())
    }

    /// The latest window of its origin's sickness, when an open one was last looked at in `judged`.
    fn sick_last(&self, judged: WindowNo) -> WindowNo {
        self.sick_until(self.closed_at.map_or(judged, |closed| (closed / WINDOW - 1) as WindowNo))
    }

    /// Whether its origin has another version since it was well for a window: what fails then has another cause. (A window is judged by the half minute
    /// that ends with it.) A version that came sooner may be what made it well.
    fn is_past(&self, observed: &Observed, judged: WindowNo, window: WindowNo) -> bool {
        let well = u64::from(self.sick_last(judged) + 2) * WINDOW;
        let origin = self.candidates.first().map(|c| c.node);
        origin.is_some_and(|origin| observed.changes.deployed(origin, well, u64::from(window + 1) * WINDOW))
    }

    /// Its own windows up to and including one.
    pub fn windows(&self, until: WindowNo) -> Range<WindowNo> {
        let begin = self.onset_window();
        begin..until.max(begin) + 1
    }
}

#[derive(Default)]
pub struct Incidents {
    pub all: Vec<Incident>,
    /// For how many steps in a row candidates have stood that no incident covers: at all, and surely.
    standing: [u32; 2],
    /// Those that stood in the latest step.
    stood: Vec<NodeId>,
    first: Option<WindowNo>,
}

impl Incidents {
    /// Says that there is something to compare with since a window, where judging begins later.
    pub fn known_since(&mut self, window: WindowNo) {
        self.first = Some(window);
    }

    /// Judges the windows up to and including `window`. Returns the places in `all` of what has changed.
    pub fn step(&mut self, observed: &Observed, window: WindowNo) -> Vec<usize> {
        let rules = &observed.rules;
        let first = *self.first.get_or_insert(window);
        let mut changed: Vec<usize> = Vec::new();
        for at in 0..self.all.len() {
            if self.all[at].is_open() && self.follow(observed, window, at) {
                changed.push(at);
            }
        }
        changed.extend(self.absorb(window));
        if window < first + RECENT {
            return changed;
        }
        let lately =
            |i: &&Incident| i.closed_at.is_none_or(|closed| closed + u64::from(rules.reopens) * WINDOW > u64::from(window) * WINDOW);
        let (past, known): (Vec<&Incident>, Vec<&Incident>) =
            self.all.iter().filter(lately).partition(|i| i.is_past(observed, window, window));
        // What belongs to an incident that is past does not count once more.
        let since = past.iter().map(|i| i.sick_last(window) + 1).max().unwrap_or(first);
        let stretch = |length: u32| {
            let start = window.saturating_sub(length - 1).max(since);
            (start.saturating_sub(BASELINE_MAX).max(first)..start, start..window + 1)
        };
        // What an open incident has touched is its own, and so is what follows it soon, as long as its origin has not recovered.
        let covered = |node: NodeId| {
            let covers = |i: &&&Incident| {
                i.closed_at.is_none_or(|closed| closed + u64::from(RECENT + rules.steps_to_open) * WINDOW > u64::from(window) * WINDOW)
            };
            known.iter().filter(covers).any(|i| i.nodes.contains(&node) || (i.quiet < RECENT && window < i.onset_window() + rules.apart))
        };
        let (mut before, mut present, mut diagnosis, mut found) = (0..0, 0..0, Diagnosis::default(), Vec::new());
        for length in [RECENT, LONG] {
            let (baseline, recent) = stretch(length);
            diagnosis = compare(observed, baseline.clone(), recent.clone());
            found = diagnosis
                .candidates
                .iter()
                .filter(|c| !covered(c.node) && hurts(observed, c, recent.clone(), baseline.len(), rules.stand_score).is_some())
                .cloned()
                .collect();
            (before, present) = (baseline, recent);
            if !found.is_empty() {
                break;
            }
        }
        // What is sure goes before what is only more harmful.
        let is_sure = |c: &Candidate| hurts(observed, c, present.clone(), before.len(), rules.open_score) == Some(Hurt::ByItself);
        found.sort_by_key(|c| !is_sure(c));
        let surely = found.first().is_some_and(is_sure);
        // It stands as long as one of those that stood a window ago does.
        let stood = if found.iter().any(|c| self.stood.contains(&c.node)) { self.standing } else { [0, 0] };
        self.stood = found.iter().map(|c| c.node).collect();
        self.standing = if found.is_empty() { [0, 0] } else { [stood[0] + 1, if surely { stood[1] + 1 } else { 0 }] };
        let stood = self.standing[0];
        if stood < rules.shape_steps && self.standing[1] < rules.steps_to_open {
            return changed;
        }
        (self.standing, self.stood) = ([0, 0], Vec::new());
        let is_again = |i: &&Incident| {
            let same = |c: &Candidate| c.node == found[0].node && c.fails() == found[0].fails();
            i.absorbed_by.is_none() && !i.is_open() && i.candidates.first().is_some_and(same)
        };
        let again = known.into_iter().rfind(is_again).map(|i| i.id.clone());
        let again = again.and_then(|id| self.all.iter().rposition(|i| i.id == id));
        if let Some(at) = again {
            let incident = &mut self.all[at];
            incident.closed_at = None;
            incident.quiet = 0;
            changed.push(at);
            return changed;
        }
        // It has not begun before the latest one of the same origin was over.
        let over = self.all.iter().rfind(|i| i.candidates.first().is_some_and(|c| c.node == found[0].node));
        let over = over.map_or(0, |i| u64::from(i.sick_last(window) + 1) * WINDOW);
        let onset = onset(observed, &found[0], before, window, stood).max(over);
        let origin = observed.names.node(found[0].node).id();
        self.all.push(Incident {
            id: format!("{:08x}", fnv(&[&onset.to_le_bytes()[..], origin.as_bytes()].concat())),
            onset,
            opened_at: u64::from(window + 1) * WINDOW,
            closed_at: None,
            absorbed_by: None,
            nodes: diagnosis.candidates.iter().filter(|c| is_sick(c, &observed.rules)).map(|c| c.node).collect(),
            candidates: diagnosis.candidates,
            symptoms: diagnosis.symptoms,
            quiet: 0,
            first,
        });
        let at = self.all.len() - 1;
        self.rank_again(observed, window, at);
        changed.push(at);
        changed
    }

    /// Two open incidents that have come to the same origin are one: the older, which takes in what the younger has touched.
    fn absorb(&mut self, window: WindowNo) -> Vec<usize> {
        let origin = |incident: &Incident| incident.candidates.first().map(|c| c.node);
        let open: Vec<usize> = (0..self.all.len()).filter(|at| self.all[*at].is_open()).collect();
        let mut absorbed = Vec::new();
        for (place, younger) in open.iter().enumerate() {
            let older = open[..place].iter().find(|at| self.all[**at].is_open() && origin(&self.all[**at]) == origin(&self.all[*younger]));
            let Some(older) = older else { continue };
            let nodes = self.all[*younger].nodes.clone();
            let older = &mut self.all[*older];
            older.nodes.extend(nodes);
            older.nodes.sort_unstable();
            older.nodes.dedup();
            let id = older.id.clone();
            let younger_one = &mut self.all[*younger];
            younger_one.closed_at = Some(u64::from(window + 1) * WINDOW);
            younger_one.absorbed_by = Some(id);
            absorbed.push(*younger);
        }
        absorbed
    }

    /// Forgets incidents that closed before a window.
    pub fn forget_before(&mut self, window: WindowNo) {
        self.all.retain(|i| i.closed_at.is_none_or(|closed| closed / WINDOW >= u64::from(window)));
    }

    /// Ranks an open incident over all of its time; closes it when it has been quiet. Says whether anything changed that is worth telling.
    fn follow(&mut self, observed: &Observed, window: WindowNo, at: usize) -> bool {
        let rules = &observed.rules;
        let incident = &self.all[at];
        if incident.is_past(observed, window.saturating_sub(1), window) {
            let incident = &mut self.all[at];
            incident.quiet += 1;
            incident.closed_at = Some(u64::from(window + 1) * WINDOW);
            return true;
        }
        let (before, begin) = (incident.baseline(), incident.onset_window());
        let recent = window.saturating_sub(RECENT - 1).max(begin)..window + 1;
        let now = compare(observed, before.clone(), recent.clone());
        // As long as its origin is sick; its victims may have caught something else by then.
        let origin = incident.candidates.first().map(|c| c.node);
        // Where metrics tell of it, minutes apart, that is too fine: what comes with the next point belongs to it still.
        let by_points = incident.candidates.first().and_then(|c| c.evidence.first()).is_some_and(|s| s.signal.is_of_points());
        let still = now
            .candidates
            .iter()
            .any(|c| (by_points || Some(c.node) == origin) && hurts(observed, c, recent.clone(), ACQUAINTED, rules.stand_score).is_some());
        let incident = &mut self.all[at];
        incident.quiet = if still { 0 } else { incident.quiet + 1 };
        if incident.quiet >= if by_points { rules.quiet_to_close_by_points } else { rules.quiet_to_close } || window - begin > LASTING {
            incident.closed_at = Some(u64::from(window + 1) * WINDOW);
            return true;
        }
        incident.quiet == 0 && (by_points || window - begin <= rules.grows) && self.rank_again(observed, window, at)
    }

    fn rank_again(&mut self, observed: &Observed, window: WindowNo, at: usize) -> bool {
        let incident = &mut self.all[at];
        let diagnosis = compare(observed, incident.baseline(), incident.windows(window));
        if diagnosis.candidates.is_empty() {
            return false;
        }
        let origin = incident.candidates.first().map(|c| c.node);
        let changed = diagnosis.candidates.first().map(|c| c.node) != origin;
        for candidate in diagnosis.candidates.iter().filter(|c| is_sick(c, &observed.rules)) {
            if !incident.nodes.contains(&candidate.node) {
                incident.nodes.push(candidate.node);
            }
        }
        incident.candidates = diagnosis.candidates;
        incident.symptoms = diagnosis.symptoms;
        changed
    }
}

fn fnv(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn compare(observed: &Observed, before: Range<WindowNo>, after: Range<WindowNo>) -> Diagnosis {
    let since = u64::from(after.start) * WINDOW;
    let until = u64::from(after.end) * WINDOW;
    observed.compare(&Stretches { before, after, since, until })
}

/// Whether a node belongs to an incident: as its origin, or by a symptom that is beyond doubt.
fn is_sick(candidate: &Candidate, rules: &Rules) -> bool {
    candidate.evidence.iter().any(|s| s.unprecedented && s.harm > 0.0 && s.score >= rules.sick_score)
}

/// By what a candidate hurts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Hurt {
    /// By what it does: failures, time.
    ByItself,
    /// Only by what its requests reach no more, or newly.
    ByShape,
}

/// Whether a candidate is sure and harmful enough to wake somebody: it has a symptom like none in its baseline, beyond so many deviations, which
/// hurts more than a few requests and more than a small part of them.
fn hurts(observed: &Observed, candidate: &Candidate, after: Range<WindowNo>, baseline: usize, score: f64) -> Option<Hurt> {
    let rules = &observed.rules;
    if candidate.explained_by.is_some() {
        return None;
    }
    // Its processor has become busy: a second witness, of another kind, for time that the node itself takes.
    let is_busy = candidate.evidence.iter().any(|s| {
        let cpu = s.signal == Signal::Resource && s.what.contains("cpu");
        cpu && s.score >= rules.sick_score && s.after >= BUSY && s.n.0 >= rules.points_baseline_min
    });
    let seconds = (after.len() as u64 * WINDOW) as f64 / 1e9;
    let requests = observed.rate(candidate.node, after);
    let counts = |s: &&Symptom| {
        // Before there is a baseline the objective speaks, and what cannot be mistaken.
        if baseline < rules.baseline_min && s.signal != Signal::Errors {
            let slow = matches!(s.signal, Signal::OwnTime | Signal::Wait) && s.n.0 >= rules.early_baseline_min as u64;
            return slow && s.unprecedented && s.score >= rules.early_score && baseline >= rules.early_baseline_min;
        }
        let known = s.signal != Signal::Shape || (baseline >= rules.shape_baseline_min && (s.after - s.before).abs() >= rules.shape_change);
        let known = known && (!s.signal.is_of_points() || s.n.0 >= rules.points_baseline_min);
        // Standing for a window longer says little of times, whose tail is long, and nothing of points, which are minutes apart.
        let score = match s.signal {
            Signal::OwnTime if is_busy => rules.sick_score,
            signal if signal.is_of_time() || signal.is_of_points() => rules.open_score,
            _ => score,
        };
        known && s.unprecedented && s.score >= score
    };
    let enough = |harm: f64, share: f64, by_points: bool| {
        harm >= if by_points { rules.harmed_min / POINTS_SECONDS } else { (share * requests).max(rules.harmed_min / seconds) }
    };
    // A service that is slow is slow in each of its operations, and each has a part of its requests; the same failure shows in many signals.
    let slow =
        |signals: &[Signal]| candidate.evidence.iter().filter(counts).filter(|s| signals.contains(&s.signal)).map(|s| s.harm).sum::<f64>();
    let is_slow = enough(slow(&[Signal::OwnTime, Signal::Wait]), rules.open_share, false)
        || (is_busy && enough(slow(&[Signal::OwnTime]), rules.open_share_busy, false));
    let by = |shape: bool| {
        let mut evidence = candidate.evidence.iter().filter(counts).filter(|s| (s.signal == Signal::Shape) == shape);
        evidence.any(|s| enough(s.harm, rules.open_share, s.signal.is_of_points()))
    };
    if is_slow || by(false) { Some(Hurt::ByItself) } else { by(true).then_some(Hurt::ByShape) }
}

/// When it began, by the series of its strongest symptom that has one.
/// For what has no series, where the stretch began when it first `stood`.
fn onset(observed: &Observed, candidate: &Candidate, before: Range<WindowNo>, window: WindowNo, stood: u32) -> u64 {
    let onset = candidate.evidence.iter().find_map(|symptom| {
        let timed = |subject: &Subject| match (subject, symptom.signal, symptom.from) {
            (Subject::Own { node, operation }, Signal::OwnTime, _) => {
                *node == symptom.node && observed.names.text_of(*operation) == symptom.what
            }
            (Subject::Wait { from, to }, Signal::Wait, Some(caller)) => *to == symptom.node && *from == caller,
            _ => false,
        };
        let failing = |subject: &Subject| match (subject, symptom.signal, symptom.from) {
            (Subject::Wait { from, to }, Signal::Errors, Some(caller)) => *to == symptom.node && *from == caller,
            (Subject::Request { node, .. }, Signal::Errors, None) => *node == symptom.node,
            _ => false,
        };
        let refused = |subject: &Subject| match (subject, symptom.signal, symptom.from) {
            (Subject::Reach { node, event: Event::IsRefused(_), .. }, Signal::Refusals, None) => *node == symptom.node,
            (Subject::Reach { node, event: Event::IsRefusedBy(by, _), .. }, Signal::Refusals, Some(caller)) => {
                *by == symptom.node && *node == caller
            }
            _ => false,
        };
        let all = &observed.windows.series;
        let slow = all.iter().filter(|(subject, _)| timed(subject)).filter_map(|(_, series)| slow_since(series, &before, window + 1));
        let fails = all.iter().filter(|(subject, _)| failing(subject)).filter_map(|(_, series)| failing_since(series, &before, window + 1));
        let refuses = all.iter().filter(|(subject, _)| refused(subject)).filter_map(|(_, s)| happening_since(s, &before, window + 1));
        slow.chain(fails).chain(refuses).min()
    });
    u64::from(onset.unwrap_or(window.saturating_sub(RECENT + stood - 2))) * WINDOW
}
