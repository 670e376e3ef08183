//! `judge FOLDER [SET] [case=TEXT]`: how well faults are named, over recorded failures (`harness::recorded`). With `case=` the evidence is
//! printed too; with `trace`, each change of an incident; with `probe`, the best candidate of each window.
//! `judge FOLDER shifts`: the figures over each recording five times, its times moved by two seconds each.
//! `judge FOLDER sweep [knobs=A,B] [settings=N] [moments=0,3,7]`: the same for each number of the rules set lower and higher, and for N settings drawn at random; then each case
//! is scored by the setting that does best on all *other* cases, and each set of cases by the one that does best on the other sets.

use collector::detect::incidents::{Incident, Incidents};
use collector::detect::judge::Stretches;
use collector::detect::rules::Rules;
use collector::detect::{Diagnosis, Observed};
use firstfall_store::rollup::WINDOW;
use harness::corpus::Random;
use harness::recorded::{Case, Outcome};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let folder = PathBuf::from(arguments.first().expect("judge FOLDER [SET] [case=TEXT] | judge FOLDER sweep"));
    let value = |key: &str| arguments.iter().find_map(|a| a.strip_prefix(key)?.strip_prefix('='));
    let says = |word: &str| arguments.iter().any(|a| a == word);
    let cases = Case::all(&folder);
    if says("sweep") {
        let moments: Vec<u64> = value("moments").unwrap_or("0,3,7").split(',').map(|n| n.parse().expect("a number")).collect();
        let cases = shifted(&cases, &moments);
        return sweep(&cases, value("knobs").unwrap_or(""), value("settings").map_or(0, |n| n.parse().expect("a number")));
    }
    if says("shifts") {
        let cases = shifted(&cases, &[0, 2, 4, 6, 8]);
        let outcomes = outcomes(&cases, Rules::default());
        return print_sets(&sets_of(&cases), &cases, |at| &outcomes[at]);
    }
    let set = arguments.get(1).filter(|a| !a.contains('=') && !["trace", "probe"].contains(&a.as_str()));
    let mut totals: BTreeMap<String, Total> = BTreeMap::new();
    for case in &cases {
        if set.is_some_and(|set| *set != case.set) || value("case").is_some_and(|wanted| !case.label.contains(wanted)) {
            continue;
        }
        let (observed, incidents) = case.play(Rules::default(), |observed, incidents, changed, window| {
            if says("trace") {
                changed.iter().for_each(|at| print_change(case, observed, &incidents.all[*at], window));
            }
            if says("probe") {
                probe(case, observed, window);
            }
        });
        let outcome = case.outcome(&observed, &incidents);
        for key in [format!("{} (all)", case.set), format!("{} {}", case.set, case.fault)] {
            totals.entry(key).or_default().add(case, &outcome);
        }
        print_case(case, &observed, &incidents, &outcome, value("case").is_some());
    }
    for (key, total) in totals {
        println!("{key:<36} {total}");
    }
}

/// Sums of outcomes.
#[derive(Clone, Default)]
struct Total {
    faults: usize,
    told: [usize; 3],
    detected: usize,
    named: usize,
    /// Alarms in recordings without a fault, and before the faults.
    quiet: usize,
    before: usize,
}

impl Total {
    fn add(&mut self, case: &Case, outcome: &Outcome) {
        if case.failing.is_none() {
            self.quiet += outcome.quiet_alarms;
            return;
        }
        self.faults += 1;
        for (sum, k) in self.told.iter_mut().zip([1, 3, 5]) {
            *sum += usize::from(outcome.told.is_some_and(|place| place <= k));
        }
        self.detected += usize::from(outcome.detected);
        self.named += usize::from(outcome.named);
        self.before += outcome.quiet_alarms;
    }
}

impl std::fmt::Display for Total {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Total { faults, told: [one, three, five], detected, named, quiet, before } = self;
        write!(
            f,
            "{faults:3} faults: told {one} first, {three} in three, {five} in five; detected {detected}, named {named}; {quiet} alarms in quiet \
             recordings, {before} before faults"
        )
    }
}

fn name(observed: &Observed, candidate: &collector::detect::rank::Candidate) -> String {
    observed.names.node(candidate.node).service.name.clone()
}

fn print_change(case: &Case, observed: &Observed, incident: &Incident, window: u32) {
    let top: Vec<String> = incident
        .candidates
        .iter()
        .take(3)
        .map(|c| {
            let evidence = c.evidence.first().map_or(String::new(), |s| {
                format!("{:?} z {:.1} {:.3} -> {:.3} n {:?} {}", s.signal, s.score, s.before, s.after, s.n, s.what)
            });
            format!("{} {:.2} {evidence}", name(observed, c), c.score)
        })
        .collect();
    println!(
        "    {} at {} onset {} {}",
        if incident.is_open() { "open" } else { "over" },
        case.second(u64::from(window + 1) * WINDOW),
        case.second(incident.onset),
        top.join(" | ")
    );
}

/// The best candidate of the last half minute.
fn probe(case: &Case, observed: &Observed, window: u32) {
    let since = u64::from(window - 2) * WINDOW;
    let until = u64::from(window + 1) * WINDOW;
    let stretches = Stretches { before: window.saturating_sub(182)..window - 2, after: window - 2..window + 1, since, until };
    let Some(c) = observed.compare(&stretches).candidates.into_iter().next() else { return };
    let evidence: Vec<String> = c
        .evidence
        .iter()
        .take(2)
        .map(|s| {
            format!(
                "{:?} z {:.1} harm {:.3} new {} {:.4} -> {:.4} n {:?} {}",
                s.signal, s.score, s.harm, s.unprecedented, s.before, s.after, s.n, s.what
            )
        })
        .collect();
    println!("      {} {} {:.3} | {}", case.second(until), name(observed, &c), c.score, evidence.join(" | "));
}

fn print_case(case: &Case, observed: &Observed, incidents: &Incidents, outcome: &Outcome, in_full: bool) {
    let Case { set, label, fault, roots, failing, length_s, .. } = case;
    let Some(diagnosis) = case.told(observed) else {
        println!("{set} {label}: {} incidents in {length_s} s", incidents.all.len());
        return;
    };
    let top: Vec<String> = diagnosis
        .candidates
        .iter()
        .take(4)
        .map(|c| {
            let evidence = c.evidence.first().map_or(String::new(), |s| format!("{:?}", s.signal));
            format!("{} {:.1} {evidence}{}", name(observed, c), c.score, if c.explained_by.is_some() { "*" } else { "" })
        })
        .collect();
    let seen: Vec<String> = incidents
        .all
        .iter()
        .map(|i| {
            let place = i.candidates.iter().position(|c| roots.contains(&name(observed, c)));
            let after = case.second(i.opened_at) - failing.map_or(0.0, |(from, _)| from);
            format!("{after:+.0}s #{}", place.map_or("-".into(), |p| (p + 1).to_string()))
        })
        .collect();
    println!(
        "{set} {label} {fault} [{}] {}: {} | {}",
        seen.join(", "),
        roots.join(","),
        outcome.told.map_or("-".into(), |place| place.to_string()),
        top.join(", ")
    );
    if in_full {
        print_evidence(observed, &diagnosis);
    }
}

fn print_evidence(observed: &Observed, diagnosis: &Diagnosis) {
    for candidate in diagnosis.candidates.iter().take(12) {
        let explained = candidate.explained_by.map(|n| observed.names.node(n).service.name.clone());
        println!("  {} {:.2} explained by {explained:?}", observed.names.node(candidate.node).id(), candidate.score);
        for s in candidate.evidence.iter().take(6) {
            let from = s.from.map(|n| observed.names.node(n).service.name.clone()).unwrap_or_default();
            println!(
                "      {:?} {} {:.2}: {:.5} -> {:.5} {} n {:?} from {from}",
                s.signal, s.what, s.score, s.before, s.after, s.unit, s.n
            );
        }
    }
}

/// One number of the rules.
struct Knob {
    name: &'static str,
    set: fn(&mut Rules, f64),
    usual: f64,
    others: [f64; 2],
}

fn knobs() -> Vec<Knob> {
    let knob = |name, set, usual, others| Knob { name, set, usual, others };
    vec![
        knob("sure", |r, v| r.sure = v, 3.0, [2.0, 4.5]),
        knob("level_share", |r, v| r.level_share = v, 0.1, [0.07, 0.15]),
        knob("explains", |r, v| r.explains = v, 0.3, [0.2, 0.45]),
        knob("open_score", |r, v| r.open_score = v, 12.0, [8.0, 18.0]),
        knob("open_share", |r, v| r.open_share = v, 0.1, [0.05, 0.2]),
        knob("open_share_busy", |r, v| r.open_share_busy = v, 0.02, [0.01, 0.05]),
        knob("harmed_min", |r, v| r.harmed_min = v, 3.0, [2.0, 6.0]),
        knob("steps_to_open", |r, v| r.steps_to_open = v as u32, 2.0, [1.0, 3.0]),
        knob("stand_score", |r, v| r.stand_score = v, 8.0, [6.0, 12.0]),
        knob("shape_steps", |r, v| r.shape_steps = v as u32, 3.0, [2.0, 4.0]),
        knob("early_score", |r, v| r.early_score = v, 24.0, [16.0, 1000.0]),
        knob("sick_score", |r, v| r.sick_score = v, 6.0, [4.0, 9.0]),
        knob("shape_change", |r, v| r.shape_change = v, 0.5, [0.33, 0.75]),
        knob("shape_baseline_min", |r, v| r.shape_baseline_min = v as usize, 50.0, [35.0, 75.0]),
        knob("apart", |r, v| r.apart = v as u32, 12.0, [8.0, 18.0]),
        knob("quiet_to_close", |r, v| r.quiet_to_close = v as u32, 9.0, [6.0, 13.0]),
        knob("reopens", |r, v| r.reopens = v as u32, 30.0, [18.0, 45.0]),
        knob("baseline_min", |r, v| r.baseline_min = v as usize, 30.0, [20.0, 45.0]),
        knob("points_baseline_min", |r, v| r.points_baseline_min = v as u64, 12.0, [6.0, 24.0]),
        knob("grows", |r, v| r.grows = v as u32, 18.0, [12.0, 27.0]),
    ]
}

/// What a setting is worth on a case: the origin named when told the window, and named when it was found, less half an alarm that was none.
fn worth(case: &Case, outcome: &Outcome) -> f64 {
    let alarms = if case.failing.is_none() { 0.5 * outcome.quiet_alarms as f64 } else { 0.0 };
    f64::from(u8::from(outcome.told == Some(1))) + f64::from(u8::from(outcome.named)) - alarms
}

fn sweep(cases: &[Case], only: &str, random: usize) {
    let mut knobs = knobs();
    knobs.retain(|knob| only.is_empty() || only.split(',').any(|name| name == knob.name));
    let mut settings = vec![("as it is".to_owned(), Rules::default())];
    for knob in &knobs {
        for value in knob.others {
            let mut rules = Rules::default();
            (knob.set)(&mut rules, value);
            settings.push((format!("{} {} for {}", knob.name, value, knob.usual), rules));
        }
    }
    let mut draw = Random::new(1);
    for n in 1..=random {
        let mut rules = Rules::default();
        for knob in &knobs {
            // Half of the numbers stay.
            match draw.below(4) {
                0 => (knob.set)(&mut rules, knob.others[0]),
                1 => (knob.set)(&mut rules, knob.others[1]),
                _ => {}
            }
        }
        settings.push((format!("random {n}"), rules));
    }
    let sets = sets_of(cases);
    let results: Vec<Vec<Outcome>> = settings
        .iter()
        .map(|(name, rules)| {
            let outcomes = outcomes(cases, *rules);
            println!("{name}");
            print_sets(&sets, cases, |at| &outcomes[at]);
            outcomes
        })
        .collect();
    let best_without = |left_out: &dyn Fn(&Case) -> bool| {
        let total = |outcomes: &Vec<Outcome>| -> f64 {
            cases.iter().zip(outcomes).filter(|(case, _)| !left_out(case)).map(|(case, outcome)| worth(case, outcome)).sum()
        };
        // The first of the best: the setting as it is, where it is one of them.
        (0..results.len()).rev().max_by(|a, b| total(&results[*a]).total_cmp(&total(&results[*b]))).expect("there are settings")
    };
    let chosen: Vec<usize> = cases.iter().map(|case| best_without(&|c: &Case| c.label == case.label && c.set == case.set)).collect();
    println!("\neach case by the setting that is best on the others:");
    print_sets(&sets, cases, |at| &results[chosen[at]][at]);
    println!("\neach set by the setting that is best on the other sets:");
    for set in &sets {
        let best = best_without(&|c: &Case| c.set == *set);
        println!("  {set}: {} {:?}", settings[best].0, settings[best].1);
        print_sets(&[set], cases, |at| &results[best][at]);
    }
}

/// Each case at several moments of the windows.
fn shifted(cases: &[Case], seconds: &[u64]) -> Vec<Case> {
    let at = |second: &u64| cases.iter().map(|case| case.shifted(second * 1_000_000_000)).collect::<Vec<_>>();
    seconds.iter().flat_map(at).collect()
}

fn sets_of(cases: &[Case]) -> Vec<&str> {
    let mut sets: Vec<&str> = cases.iter().map(|case| case.set.as_str()).collect();
    sets.sort_unstable();
    sets.dedup();
    sets
}

fn print_sets<'a>(sets: &[&str], cases: &[Case], outcome: impl Fn(usize) -> &'a Outcome) {
    for set in sets {
        let mut total = Total::default();
        cases.iter().enumerate().filter(|(_, case)| case.set == *set).for_each(|(at, case)| total.add(case, outcome(at)));
        println!("    {set:<10} {total}");
    }
}

/// All cases, on both cores.
fn outcomes(cases: &[Case], rules: Rules) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(case) = cases.get(at) else { return done };
            let (observed, incidents) = case.play(rules, |_, _, _, _| {});
            done.push((at, case.outcome(&observed, &incidents)));
        }
    };
    let mut all: Vec<(usize, Outcome)> = std::thread::scope(|scope| {
        let workers = [scope.spawn(work), scope.spawn(work)];
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker ends well")).collect()
    });
    all.sort_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, outcome)| outcome).collect()
}
