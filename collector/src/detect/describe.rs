//! From candidates and symptoms to words and numbers that a person can check: origins with reasons, hops, impact, what was ruled out, and
//! one sentence.

use super::incidents::Incident;
use super::judge::{Signal, Symptom, median};
use super::names::{Names, Node, NodeId, NodeKind};
use super::rank::Candidate;
use super::windows::{Cell, Series, Subject, WindowNo};
use super::{Diagnosis, Observed};
use firstfall_store::change::Change;
use firstfall_store::edge::{EdgeCell, MINUTE};
use firstfall_store::incident as noun;
use firstfall_store::rollup::WINDOW;
use hashbrown::{HashMap, HashSet};
use std::collections::VecDeque;
use std::ops::Range;

/// Candidates that are listed as origins; those below are noise to a reader.
const ORIGINS_MAX: usize = 10;
const SYMPTOMS_MAX: usize = 40;
const REASONS_MAX: usize = 5;
const HOPS_MAX: usize = 60;

/// Traffic has jumped when it is this many times the highest of the baseline …
const JUMP_FACTOR: f64 = 1.8;
/// … and at least so many requests in a window …
const JUMP_COUNT: u64 = 30;
/// … at most so many windows after the onset: later it may be its consequence.
const JUMP_WITHIN: WindowNo = 2;
/// … and of so many windows before it (a minute): the first that are heard may hold a part of their requests only.
const JUMP_BASELINE_MIN: usize = 6;
/// More attempts a call than this are worth a word: one call in ten is made twice.
const ATTEMPTS: f64 = 1.1;

/// Half as many attempts again as there are calls, and as there were before, are a storm.
const STORM: f64 = 1.5;
/// Half of the calls that fail were answered well, too late.
const IMPATIENCE: f64 = 0.5;
/// A service with traffic says something in each window; one and a half, as they end in different moments.
const SILENT_AFTER: u64 = WINDOW + WINDOW / 2;

/// In the sentence stands what requests suffer, if it does at least this part of the harm.
const SAID_FIRST: f64 = 0.3;

/// An entry point is hurt when more than this part of its requests is …
const HURT_SHARE: f64 = 0.05;
/// … and at least so many requests: one of two in the night is no spread.
const HURT_MIN: f64 = 3.0;
/// An incident is critical when this part of all requests at the entry points fails …
const CRITICAL_FAILED: f64 = 0.05;
/// … or this part of them fails or waits.
const CRITICAL_HURT: f64 = 0.5;

/// Changes so long before an onset may have caused it (a quarter of an hour) …
const CHANGES_BEFORE: u64 = 900 * 1_000_000_000;
/// … and so long after it, as the onset is not known to the second.
const CHANGES_AFTER: u64 = 30 * 1_000_000_000;

/// `03:02:51`, in UTC.
fn clock(time: u64) -> String {
    let at = (time / 1_000_000_000) % 86_400;
    format!("{:02}:{:02}:{:02}", at / 3600, at / 60 % 60, at % 60)
}

/// The whole of a diagnosis. `before` and `after` are the windows that were compared.
pub fn diagnosis(observed: &Observed, found: &Diagnosis, before: &Range<WindowNo>, after: &Range<WindowNo>) -> noun::Diagnosis {
    let names = &observed.names;
    let origins = found
        .candidates
        .iter()
        .take(ORIGINS_MAX)
        .enumerate()
        .map(|(at, candidate)| {
            let mut origin = origin(names, at, candidate);
            origin.reasons.extend(silence(observed, candidate.node, after));
            origin
        })
        .collect();
    let symptoms = found.symptoms.iter().take(SYMPTOMS_MAX).map(|s| symptom(names, s)).collect();
    let rejected = found
        .candidates
        .iter()
        .skip(1)
        .take(ORIGINS_MAX)
        .map(|c| noun::Rejected { service: names.node(c.node).service.name.clone(), reason: why_not(names, c, &found.candidates[0]) })
        .collect();
    noun::Diagnosis {
        origins,
        hops: hops(observed, found, before, after),
        symptoms,
        rejected,
        confidence: confidence(&found.candidates).to_owned(),
    }
}

pub fn incident(observed: &Observed, incident: &Incident, until: WindowNo) -> noun::Incident {
    let (before, after) = (incident.baseline(), incident.windows(incident.sick_until(until)));
    let found = Diagnosis { candidates: incident.candidates.clone(), symptoms: incident.symptoms.clone() };
    let diagnosis = diagnosis(observed, &found, &before, &after);
    let (impact, severity) = impact(observed, &before, &after);
    let now = u64::from(until + 1) * WINDOW;
    let changes =
        observed.changes.between(incident.onset.saturating_sub(CHANGES_BEFORE), incident.onset + CHANGES_AFTER, now, &observed.names);
    let mut diagnosis = diagnosis;
    let changed = diagnosis.origins.first_mut().and_then(|origin| {
        let change = trigger(origin, &changes)?;
        if change.kind == "version" {
            origin.version = Some(change.to.clone());
        }
        Some(match change.kind.as_str() {
            "version" => format!("version {} of {} was first heard at {}", change.to, change.service, clock(change.time)),
            _ => format!("{}: {}, at {}", change.service, change.words(), clock(change.time)),
        })
    });
    // Several may be true, and which of them did it is for a person to say.
    let found_triggers = [
        changed,
        more_traffic(observed, &before, incident.onset),
        impatience(observed, &found, &before, &after),
        retries(observed, &found, &before, &after),
    ];
    let triggers: Vec<String> = found_triggers.into_iter().flatten().collect();
    let trigger = (!triggers.is_empty()).then(|| triggers.join("; "));
    noun::Incident {
        id: incident.id.clone(),
        opened_at: incident.opened_at,
        onset: incident.onset,
        closed_at: incident.closed_at,
        // The store counts them.
        revision: 0,
        title: sentence(observed, &found, &impact, incident.onset, diagnosis.origins.first().and_then(|o| o.version.as_deref())),
        diagnosis,
        impact,
        trigger,
        changes,
        severity,
        absorbed_by: incident.absorbed_by.clone(),
        traces: Vec::new(),
    }
}

/// A jump in traffic at the entry points: more requests in the windows around the onset than ever in the baseline.
fn more_traffic(observed: &Observed, before: &Range<WindowNo>, onset: u64) -> Option<String> {
    let entries = entry_points(observed);
    let mut by_window: HashMap<WindowNo, u64> = HashMap::new();
    let begin = (onset / WINDOW) as WindowNo;
    for (subject, series) in &observed.windows.series {
        let Subject::Request { node, .. } = subject else { continue };
        if entries.binary_search(node).is_ok() {
            for (window, cell) in series.range(before.start, begin + JUMP_WITHIN) {
                *by_window.entry(*window).or_default() += u64::from(cell.count);
            }
        }
    }
    // The fault may have begun within the last window of the baseline.
    let before_it = (before.start..begin.saturating_sub(1)).filter_map(|window| by_window.get(&window));
    let usual = before_it.clone().max().filter(|_| before_it.count() >= JUMP_BASELINE_MIN)?;
    let jump = (begin.saturating_sub(1)..begin + JUMP_WITHIN).filter_map(|window| by_window.get(&window)).max()?;
    let rate = |count: &u64| *count as f64 * 1e9 / WINDOW as f64;
    (*jump >= JUMP_COUNT && *jump as f64 > JUMP_FACTOR * *usual as f64)
        .then(|| format!("requests from outside rose to {:.1}/s, at most {:.1}/s before", rate(jump), rate(usual)))
}

/// That nothing more is heard of a service that spoke before.
fn silence(observed: &Observed, node: NodeId, after: &Range<WindowNo>) -> Option<String> {
    let last = observed.last_heard(node)?;
    let quiet = (u64::from(after.end) * WINDOW).checked_sub(last)?;
    (quiet > SILENT_AFTER).then(|| format!("nothing has been heard from it since {}", clock(last)))
}

/// Callers that do not wait for as long as the callee takes.
fn impatience(observed: &Observed, found: &Diagnosis, before: &Range<WindowNo>, after: &Range<WindowNo>) -> Option<String> {
    let sick: HashSet<NodeId> = found.candidates.iter().map(|c| c.node).collect();
    let worst = observed.windows.series.iter().filter_map(|(subject, series)| {
        let Subject::GivenUp { from, to } = *subject else { return None };
        let answered = series.total(after.start, after.end);
        let calls = observed.windows.get(&Subject::Call { from, to })?;
        let (failed, was) = (calls.total(after.start, after.end).errors, calls.total(before.start, before.end).errors);
        // One that always gives up early is no news.
        let usual = series.total(before.start, before.end);
        if !sick.contains(&to) || (was > 0 && f64::from(usual.count) >= IMPATIENCE * f64::from(was)) {
            return None;
        }
        (f64::from(answered.count) >= HURT_MIN && f64::from(answered.count) >= IMPATIENCE * f64::from(failed))
            .then_some((answered, from, to))
    });
    let (answered, from, to) = worst.max_by_key(|(answered, from, to)| (answered.count, *from, *to))?;
    let name = |node: NodeId| &observed.names.node(node).service.name;
    let took = seconds(mean_ns(&answered) / 1e9);
    Some(format!("{} gives up before {} answers, which it does well, after {took}: the time limit is too short", name(from), name(to)))
}

/// Calls that are made again and again, to the origin or to one that suffers by it.
fn retries(observed: &Observed, found: &Diagnosis, before: &Range<WindowNo>, after: &Range<WindowNo>) -> Option<String> {
    let sick: HashSet<NodeId> = found.candidates.iter().map(|c| c.node).collect();
    let storm = observed.windows.series.keys().filter_map(|subject| {
        let Subject::Retry { from, to } = *subject else { return None };
        let now = attempts_per_call(observed, from, to, after).filter(|now| sick.contains(&to) && *now >= STORM)?;
        let usual = attempts_per_call(observed, from, to, before).unwrap_or(1.0);
        (now >= STORM * usual).then_some((now, usual, from, to))
    });
    let (now, usual, from, to) = storm.max_by(|a, b| a.0.total_cmp(&b.0).then((a.2, a.3).cmp(&(b.2, b.3))))?;
    let name = |node: NodeId| &observed.names.node(node).service.name;
    Some(format!("a retry storm: {} asks {} {now:.1} times for each call ({usual:.1} before)", name(from), name(to)))
}

/// How often a call is made until it is given up.
fn attempts_per_call(observed: &Observed, from: NodeId, to: NodeId, range: &Range<WindowNo>) -> Option<f64> {
    let attempts = observed.windows.get(&Subject::Call { from, to })?.total(range.start, range.end).count;
    let again = observed.windows.get(&Subject::Retry { from, to }).map_or(0, |series| series.total(range.start, range.end).count);
    (attempts > again).then(|| f64::from(attempts) / f64::from(attempts - again))
}

/// The change that is likeliest to have caused it: the latest of the origin itself, and one that somebody made before one that may have followed.
fn trigger<'a>(origin: &noun::Origin, changes: &'a [Change]) -> Option<&'a Change> {
    let own = changes.iter().filter(|c| {
        c.service == origin.service
            && (c.told && c.environment.is_empty() || (&c.namespace, &c.environment) == (&origin.namespace, &origin.environment))
    });
    own.max_by_key(|c| {
        let weight = match c.kind.as_str() {
            "version" => 3,
            _ if c.told => 2,
            "restart" | "scale_up" | "scale_down" | "instance" => 1,
            _ => 0,
        };
        (weight, c.time)
    })
}

fn origin(names: &Names, at: usize, candidate: &Candidate) -> noun::Origin {
    let node = names.node(candidate.node);
    let operation = candidate.evidence.iter().find(|s| s.signal == Signal::OwnTime).map(|s| s.what.clone());
    noun::Origin {
        rank: at as u32 + 1,
        node: node.id(),
        service: node.service.name.clone(),
        namespace: node.service.namespace.clone(),
        environment: node.service.environment.clone(),
        operation,
        instance: None,
        version: None,
        kind: node.kind.name().to_owned(),
        score: rounded(candidate.score),
        reasons: candidate.evidence.iter().take(REASONS_MAX).map(|s| reason(names, s)).collect(),
    }
}

fn symptom(names: &Names, s: &Symptom) -> noun::Symptom {
    let node = names.node(s.node);
    noun::Symptom {
        node: node.id(),
        service: node.service.name.clone(),
        signal: signal_name(s.signal).to_owned(),
        what: reason(names, s),
        score: rounded(s.score),
        harm: rounded(s.harm),
        before: rounded(s.before),
        after: rounded(s.after),
        unit: s.unit.to_owned(),
        n_before: s.n.0,
        n_after: s.n.1,
    }
}

fn rounded(value: f64) -> f64 {
    if value.abs() < 1e-12 || !value.is_finite() {
        return 0.0;
    }
    let scale = 10f64.powf(4.0 - value.abs().log10().ceil());
    (value * scale).round() / scale
}

fn signal_name(signal: Signal) -> &'static str {
    match signal {
        Signal::Errors => "errors",
        Signal::OwnTime => "own_time",
        Signal::Wait => "wait",
        Signal::ErrorLogs => "error_logs",
        Signal::Refusals => "refusals",
        Signal::Shape => "shape",
        Signal::Resource => "resource",
        Signal::MetricLatency => "metric_latency",
        Signal::MetricErrors => "metric_errors",
    }
}

/// A time as a person says it.
pub fn seconds(value: f64) -> String {
    match value {
        v if v < 0.001 => format!("{:.0} µs", v * 1e6),
        v if v < 0.1 => format!("{:.1} ms", v * 1e3),
        v if v < 1.0 => format!("{:.0} ms", v * 1e3),
        v => format!("{v:.1} s"),
    }
}

pub fn percent(share: f64) -> String {
    match share * 100.0 {
        p if p > 0.0 && p < 1.0 => format!("{p:.1} %"),
        p => format!("{p:.0} %"),
    }
}

/// What a symptom says, in a clause.
fn clause(names: &Names, s: &Symptom) -> String {
    let values = |f: &dyn Fn(f64) -> String| (f(s.before), f(s.after));
    match s.signal {
        Signal::Errors => {
            let (before, after) = values(&percent);
            match s.from {
                Some(from) => format!("{after} of the calls from {} fail ({before} before)", names.node(from).service.name),
                None => format!("fails {after} of its requests by itself ({before} before)"),
            }
        }
        Signal::OwnTime => {
            let (before, after) = values(&seconds);
            format!("takes {after} by itself in {} ({before} before)", s.what)
        }
        Signal::Wait => {
            let (before, after) = values(&seconds);
            let from = s.from.map_or("", |from| &names.node(from).service.name);
            format!("calls from {from} to {} wait {after} ({before} before)", names.node(s.node).service.name)
        }
        Signal::ErrorLogs => format!("logs {:.2} errors a second ({:.2} before)", s.after, s.before),
        Signal::Refusals => {
            let (before, after) = values(&percent);
            match s.from {
                Some(from) => format!("refuses {after} of {}'s {} ({before} before)", names.node(from).service.name, s.what),
                None => format!("refuses {after} of {} ({before} before)", s.what),
            }
        }
        Signal::Shape => {
            let (before, after) = values(&percent);
            format!("{after} of its requests reach {} ({before} before)", s.what)
        }
        Signal::Resource => format!("{} is at {} ({} before)", s.what, rounded(s.after), rounded(s.before)),
        Signal::MetricLatency => {
            let (before, after) = values(&seconds);
            format!("takes {after} by its metrics ({before} before)")
        }
        Signal::MetricErrors => {
            let (before, after) = values(&percent);
            format!("fails {after} of its requests by its metrics ({before} before)")
        }
    }
}

fn reason(names: &Names, s: &Symptom) -> String {
    format!("{}; {:.1} deviations, n = {}, {} before", clause(names, s), s.score.min(9999.0), s.n.1, s.n.0)
}

fn why_not(names: &Names, candidate: &Candidate, best: &Candidate) -> String {
    match candidate.explained_by {
        Some(by) => format!("explained by {}, which it calls and which is about as sick", names.node(by).service.name),
        None if candidate.score <= 0.0 => "a resource is under load, and no request is hurt by it".to_owned(),
        None => format!(
            "harms {} requests a second by itself, {} harms {}",
            rounded(candidate.score),
            names.node(best.node).service.name,
            rounded(best.score)
        ),
    }
}

/// `high` must be right: one candidate that nothing explains, far ahead of the next, on enough requests.
fn confidence(candidates: &[Candidate]) -> &'static str {
    let mut own = candidates.iter().filter(|c| c.explained_by.is_none() && c.score > 0.0);
    let Some(first) = own.next() else { return "not enough evidence" };
    let second = own.next().map_or(0.0, |c| c.score);
    let sure = first.evidence.first().is_some_and(|s| s.score >= 12.0 && s.n.1 >= 10);
    if first.score >= 3.0 * second && sure {
        "high"
    } else if first.score >= 1.5 * second {
        "medium"
    } else {
        "low"
    }
}

fn mean_ns(cell: &Cell) -> f64 {
    cell.sum_ns as f64 / f64::from(cell.count.max(1))
}

/// When calls began to take longer.
pub fn slow_since(series: &Series, before: &Range<WindowNo>, until: WindowNo) -> Option<WindowNo> {
    onset_of(series, before, until, mean_ns, 1e6, None)
}

/// When calls began to fail. Where nothing is known of before, none did.
pub fn failing_since(series: &Series, before: &Range<WindowNo>, until: WindowNo) -> Option<WindowNo> {
    onset_of(series, before, until, |c| f64::from(c.errors) / f64::from(c.count.max(1)), 0.02, Some(0.0))
}

/// When it began to happen, by how often it does.
pub fn happening_since(series: &Series, before: &Range<WindowNo>, until: WindowNo) -> Option<WindowNo> {
    onset_of(series, before, until, |c| f64::from(c.count), 1.0, Some(0.0))
}

/// When a series left its level: a cumulative sum over its windows, walked back to its last zero (Page 1954).
fn onset_of(
    series: &Series,
    before: &Range<WindowNo>,
    until: WindowNo,
    value: impl Fn(&Cell) -> f64,
    floor: f64,
    unknown: Option<f64>,
) -> Option<WindowNo> {
    let mut old: Vec<f64> = series.range(before.start, before.end).map(|(_, cell)| value(cell)).collect();
    let level = if old.len() < 3 { unknown? } else { median(&mut old) };
    let mut deviations: Vec<f64> = old.iter().map(|v| (v - level).abs()).collect();
    let scale = (1.4826 * median(&mut deviations)).max(0.1 * level).max(floor);
    let (mut sum, mut zero, mut alarmed) = (0.0f64, before.end.saturating_sub(6), false);
    for (at, cell) in series.range(before.end.saturating_sub(6), until) {
        sum = (sum + ((value(cell) - level) / scale).clamp(-8.0, 8.0) - 2.0).max(0.0);
        alarmed |= sum > 4.0;
        if alarmed {
            break;
        }
        if sum == 0.0 {
            zero = at + 1;
        }
    }
    alarmed.then_some(zero)
}

/// Who waits for or fails by whom: the calls to a sick node that changed, then the calls to their callers, and so on.
fn hops(observed: &Observed, found: &Diagnosis, before: &Range<WindowNo>, after: &Range<WindowNo>) -> Vec<noun::Hop> {
    let Some(origin) = found.candidates.first() else { return Vec::new() };
    let mut callers: HashMap<NodeId, Vec<(NodeId, &Series)>> = HashMap::new();
    for (subject, series) in &observed.windows.series {
        if let Subject::Call { from, to } = subject {
            callers.entry(*to).or_default().push((*from, series));
        }
    }
    callers.values_mut().for_each(|callers| callers.sort_unstable_by_key(|(from, _)| *from));
    let start = u64::from(after.start) * WINDOW;
    let mut hops = Vec::new();
    // Steps from the origin: a hop leads farther from it, never back in a circle.
    let mut steps: HashMap<NodeId, u32> = HashMap::from([(origin.node, 0)]);
    let mut front = VecDeque::from([origin.node]);
    while let Some(node) = front.pop_front() {
        let step = steps[&node];
        for (from, series) in callers.get(&node).into_iter().flatten() {
            // Who sends a message does not wait for those who take it out of the queue.
            if steps.get(from).is_some_and(|other| *other <= step) || observed.names.node(*from).kind == NodeKind::Queue {
                continue;
            }
            let (was, is) = (series.total(before.start, before.end), series.total(after.start, after.end));
            if is.count == 0 {
                continue;
            }
            let (failing0, failing1) = (f64::from(was.errors) / f64::from(was.count.max(1)), f64::from(is.errors) / f64::from(is.count));
            let slow = slow_since(series, before, after.end);
            let fails = failing_since(series, before, after.end);
            let Some(onset) = [slow, fails].into_iter().flatten().min() else { continue };
            let attempts = attempts_per_call(observed, *from, node, after);
            let mut what = if failing1 > failing0 + 0.02 {
                format!("{} of its calls fail ({} before)", percent(failing1), percent(failing0))
            } else {
                format!("its calls take {} ({} before)", seconds(mean_ns(&is) / 1e9), seconds(mean_ns(&was) / 1e9))
            };
            if let Some(attempts) = attempts.filter(|attempts| *attempts > ATTEMPTS) {
                what.push_str(&format!("; each is made {attempts:.1} times"));
            }
            // Nobody fails by it before it has begun; what was there before has another cause.
            let onset = u64::from(onset.max(after.start)) * WINDOW;
            let name = |node: NodeId| observed.names.node(node).service.name.clone();
            let hop = noun::Hop {
                from: name(node),
                to: name(*from),
                onset,
                lag_s: (onset as f64 - start as f64) / 1e9,
                what,
                errors: rounded(failing1),
                attempts_per_call: attempts.map(rounded),
            };
            hops.push((step, hop));
            if steps.insert(*from, step + 1).is_none() {
                front.push_back(*from);
            }
        }
    }
    // Of those in the same ten seconds the nearer to the origin first.
    hops.sort_by(|(near, a), (far, b)| (a.onset, near, &a.from, &a.to).cmp(&(b.onset, far, &b.from, &b.to)));
    hops.truncate(HOPS_MAX);
    hops.into_iter().map(|(_, hop)| hop).collect()
}

/// Nodes that take requests in and that nobody calls.
pub fn entry_points(observed: &Observed) -> Vec<NodeId> {
    let called: HashSet<NodeId> = observed.edges().into_iter().filter(|(from, to)| from != to).map(|(_, to)| to).collect();
    let mut entries: Vec<NodeId> = observed
        .windows
        .series
        .keys()
        .filter_map(|subject| match subject {
            Subject::Request { node, .. } => Some(*node),
            _ => None,
        })
        .filter(|node| !called.contains(node) && observed.names.node(*node).kind == NodeKind::Service)
        .collect();
    entries.sort_unstable();
    entries.dedup();
    entries
}

fn impact(observed: &Observed, before: &Range<WindowNo>, after: &Range<WindowNo>) -> (noun::Impact, noun::Severity) {
    let mut impact = noun::Impact::default();
    let entries = entry_points(observed);
    let (mut hurt, mut failed) = (0.0, 0.0);
    for (subject, series) in &observed.windows.series {
        let Subject::Request { node, operation } = subject else { continue };
        if entries.binary_search(node).is_err() {
            continue;
        }
        let (was, is) = (series.total(before.start, before.end), series.total(after.start, after.end));
        if is.count == 0 {
            continue;
        }
        let failing = (f64::from(is.errors) / f64::from(is.count) - f64::from(was.errors) / f64::from(was.count.max(1))).max(0.0);
        let slower = if was.count == 0 { 0.0 } else { (1.0 - mean_ns(&was) / mean_ns(&is).max(1.0)).clamp(0.0, 1.0) };
        let slower = if slower > 0.33 { slower } else { 0.0 };
        impact.requests += u64::from(is.count);
        impact.failed += u64::from(is.errors);
        let part = failing.max(slower);
        hurt += part * f64::from(is.count);
        failed += failing * f64::from(is.count);
        if part > HURT_SHARE && part * f64::from(is.count) >= HURT_MIN {
            let (node, operation) = (observed.names.node(*node), observed.names.text_of(*operation));
            impact.entry_points.push(format!("{} {operation}", node.service.name));
        }
    }
    impact.entry_points.sort();
    impact.entry_points.truncate(20);
    impact.share = if impact.requests == 0 { 0.0 } else { rounded(hurt / impact.requests as f64) };
    let of_all = |count: f64| count / impact.requests.max(1) as f64;
    let severity =
        if of_all(failed) >= CRITICAL_FAILED || of_all(hurt) >= CRITICAL_HURT { noun::Severity::Critical } else { noun::Severity::Warning };
    (impact, severity)
}

fn sentence(observed: &Observed, found: &Diagnosis, impact: &noun::Impact, onset: u64, version: Option<&str>) -> String {
    let names = &observed.names;
    let Some(first) = found.candidates.first() else { return "Something changed, and there is not enough evidence to say what".to_owned() };
    // What requests suffer, before what is written of it in logs, unless that is far more.
    let most = first.evidence.iter().map(|s| s.harm).fold(0.0, f64::max);
    let suffered = |s: &&Symptom| s.harm >= SAID_FIRST * most && !matches!(s.signal, Signal::Resource | Signal::ErrorLogs | Signal::Shape);
    let evidence = first
        .evidence
        .iter()
        .find(suffered)
        .or_else(|| first.evidence.iter().find(|s| s.harm > 0.0 && s.signal != Signal::Resource))
        .or(first.evidence.first());
    let what = evidence.map_or(String::new(), |s| clause(names, s));
    let name = &match version {
        Some(version) => format!("{} {version}", names.node(first.node).service.name),
        None => names.node(first.node).service.name.clone(),
    };
    let since = clock(onset);
    let subject = match evidence.map(|s| s.signal) {
        Some(Signal::Wait) if evidence.is_some_and(|s| s.node == first.node) => format!("{name}: {what}"),
        Some(Signal::Wait) => format!("{name} is slow to be answered: {what}"),
        Some(Signal::Errors) if evidence.is_some_and(|s| s.from.is_some()) => format!("{name}: {what}"),
        Some(Signal::Shape) => format!("{name} works otherwise: {what}"),
        _ => format!("{name} {what}"),
    };
    let hurt = match impact.entry_points.as_slice() {
        [] => String::new(),
        [one] => format!("; {} of the requests are hurt, through {one}", percent(impact.share)),
        [one, rest @ ..] => format!("; {} of the requests are hurt, through {one} and {} more", percent(impact.share), rest.len()),
    };
    format!("{subject}, since {since}{hurt}")
}

/// What memory holds of a stretch of the map: nodes that took requests in, and edges that are not kept yet.
pub struct Waiting {
    nodes: HashSet<Node>,
    edges: Vec<(Node, Node, EdgeCell)>,
}

pub fn waiting(observed: &Observed, from: u64, to: u64) -> Waiting {
    let names = &observed.names;
    let node = |id: NodeId| names.node(id).clone();
    let minutes = (from / MINUTE) as u32..to.div_ceil(MINUTE) as u32;
    let of_minutes = observed.windows.edges.iter().filter(|((minute, ..), _)| minutes.contains(minute));
    let mut edges: Vec<(Node, Node, EdgeCell)> = of_minutes.map(|((_, from, to), cell)| (node(*from), node(*to), cell.clone())).collect();
    let windows = (from / WINDOW) as WindowNo..to.div_ceil(WINDOW) as WindowNo;
    let mut nodes = HashSet::new();
    for (subject, series) in &observed.windows.series {
        if let Subject::Request { node: id, .. } = subject
            && series.range(windows.start, windows.end).next().is_some()
        {
            nodes.insert(node(*id));
        }
    }
    // What only a metric tells of has no numbers.
    let told = observed.windows.told_edges.iter().filter(|(_, seen)| **seen >= u64::from(windows.start) * WINDOW);
    edges.extend(told.map(|((from, to), _)| (node(*from), node(*to), EdgeCell::default())));
    Waiting { nodes, edges }
}

/// Who called whom: what is kept, and what waits to be.
pub fn topology(waiting: Waiting, kept: Vec<(Node, Node, EdgeCell)>) -> noun::Topology {
    let Waiting { mut nodes, edges } = waiting;
    let mut sums: HashMap<(Node, Node), EdgeCell> = HashMap::new();
    for (caller, callee, cell) in kept.into_iter().chain(edges) {
        sums.entry((caller, callee)).or_default().merge(&cell);
    }
    nodes.extend(sums.keys().flat_map(|(caller, callee)| [caller.clone(), callee.clone()]));
    let mut edges: Vec<noun::TopologyEdge> = sums
        .into_iter()
        .map(|((caller, callee), cell)| {
            let kind = match (cell.attempts, callee.kind) {
                (0, _) => "other",
                (_, NodeKind::Database | NodeKind::Cache) => "database",
                (_, NodeKind::Queue) => "messaging",
                _ if caller.kind == NodeKind::Queue => "messaging",
                (_, NodeKind::Service | NodeKind::External) => "http",
            };
            let mean = |ns: u64| rounded(ns as f64 / cell.attempts.max(1) as f64 / 1e6);
            let quantile = |q: f64| cell.durations.quantile_ms(q).map(rounded);
            noun::TopologyEdge {
                from: caller.id(),
                to: callee.id(),
                kind: kind.to_owned(),
                calls: cell.calls(),
                errors: cell.failed_calls(),
                attempts: cell.attempts,
                mean_ms: mean(cell.sum_ns),
                gap_ms: mean(cell.unexplained_ns),
                quantiles_ms: [quantile(0.5), quantile(0.95), quantile(0.99)],
                estimated: cell.estimated,
            }
        })
        .collect();
    edges.sort_by(|a, b| (&a.from, &a.to).cmp(&(&b.from, &b.to)));
    let mut nodes: Vec<noun::TopologyNode> = nodes
        .into_iter()
        .map(|node| noun::TopologyNode {
            id: node.id(),
            kind: node.kind.name().to_owned(),
            name: node.service.name,
            namespace: node.service.namespace,
            environment: node.service.environment,
            status: "unknown".to_owned(),
        })
        .collect();
    nodes.sort_by(|a, b| a.id.cmp(&b.id));
    noun::Topology { nodes, edges, seconds: 0.0 }
}
