//! `scenarios [seeds=A..B | seed=N] [load=N] [what=NAME] [topology=NAME] [trace]`: faults in simulated systems, and how well they are named;
//! `scenarios life=HOURS [seeds=A..B]`: hours of ordinary life, and what was raised; `send=http://127.0.0.1:4318` plays to a server instead.

use harness::scenario::fault::What;
use harness::scenario::world::{SECOND, Topology};
use harness::scenario::{Outcome, Scenario, life, run, send};
use std::collections::BTreeMap;

#[derive(Default)]
struct Score {
    cases: usize,
    detected: usize,
    first: usize,
    third: usize,
    incidents: usize,
    hops: usize,
    hops_right: usize,
    onset_errors: Vec<f64>,
    delays: Vec<f64>,
    high: usize,
    high_right: usize,
    false_before: usize,
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Score {
    fn add(&mut self, outcome: &Outcome) {
        self.cases += 1;
        self.false_before += outcome.before;
        let Some(incident) = outcome.incidents.first() else { return };
        self.detected += 1;
        self.incidents += outcome.incidents.len();
        let rank = outcome.rank();
        self.first += usize::from(rank == Some(1));
        self.third += usize::from(rank.is_some_and(|r| r <= 3));
        let (hops, right) = outcome.hops();
        self.hops += hops;
        self.hops_right += right;
        self.onset_errors.push((incident.onset as f64 - outcome.begin as f64).abs() / 1e9);
        if outcome.reached >= 5.0 {
            self.delays.push((incident.opened_at - outcome.begin) as f64 / 1e9);
        }
        if incident.diagnosis.confidence == "high" {
            self.high += 1;
            self.high_right += usize::from(rank == Some(1));
        }
    }

    fn print(&mut self, name: &str) {
        let share = |a: usize, b: usize| if b == 0 { f64::NAN } else { a as f64 / b as f64 };
        println!(
            "{name:18} {:4} {:5.2} {:5.2} {:5.2} {:5.2} {:6.2} {:6.0} {:6.0} {:5.2} {:5.2} {:4}",
            self.cases,
            share(self.detected, self.cases),
            share(self.first, self.detected),
            share(self.third, self.detected),
            share(self.incidents, self.detected),
            share(self.hops_right, self.hops),
            median(&mut self.onset_errors),
            median(&mut self.delays),
            share(self.high, self.detected),
            share(self.high_right, self.high),
            self.false_before
        );
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |key: &str| arguments.iter().find_map(|a| a.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned);
    let trace = arguments.iter().any(|a| a == "trace");
    let seeds = value("seeds").unwrap_or("1..4".to_owned());
    let (first, last) = seeds.split_once("..").expect("seeds=A..B");
    let seeds: u64 = first.parse().expect("a number");
    let seeds = seeds..last.parse().expect("a number");
    if let Some(hours) = value("life") {
        let hours: f64 = hours.parse().expect("hours");
        for seed in seeds {
            let told = life::quiet(hours, value("load").map_or(10.0, |l| l.parse().expect("a number")), seed);
            println!("seed {seed}: {hours} hours of ordinary life, {} incidents", told.len());
            for incident in told {
                println!("  at {} s: {}", (incident.onset - harness::scenario::START) / SECOND, incident.title);
            }
        }
        return;
    }
    let loads: Vec<f64> = value("load").map_or(vec![2.0, 10.0, 60.0], |l| vec![l.parse().expect("a number")]);
    let mut by_fault: BTreeMap<String, Score> = BTreeMap::new();
    let mut by_topology: BTreeMap<String, Score> = BTreeMap::new();
    let mut by_load: BTreeMap<String, Score> = BTreeMap::new();
    let mut all = Score::default();
    for what in What::ALL {
        if value("what").is_some_and(|w| w != format!("{what:?}")) {
            continue;
        }
        for topology in Topology::ALL {
            if value("topology").is_some_and(|t| t != format!("{topology:?}")) {
                continue;
            }
            for load in &loads {
                for seed in seeds.clone() {
                    let seed_of_it = value("seed").map_or(seed * 1000 + what as u64, |s| s.parse().expect("a number"));
                    let scenario = Scenario { topology, what, load: *load, seed: seed_of_it };
                    if let Some(otlp) = value("send") {
                        println!("{what:?} {topology:?}: {:?}", send(&scenario, &otlp).map(|truth| truth.origin));
                        continue;
                    }
                    let Some(outcome) = run(&scenario) else { continue };
                    // What less than one request in three seconds reaches is not asked of anybody.
                    if outcome.reached < 0.3 {
                        continue;
                    }
                    if trace
                        && (outcome.hops().0 != outcome.hops().1
                            || outcome.rank() != Some(1)
                            || outcome.incidents.len() != 1
                            || outcome.before > 0)
                    {
                        println!(
                            "{what:?} {topology:?} load {load} seed {seed}: true {}, rank {:?}, {} incidents, {} before, reached {:.1}",
                            outcome.truth.origin,
                            outcome.rank(),
                            outcome.incidents.len(),
                            outcome.before,
                            outcome.reached
                        );
                        for incident in &outcome.incidents {
                            let hops: Vec<String> =
                                incident.diagnosis.hops.iter().map(|h| format!("{} > {} {:+.0}", h.from, h.to, h.lag_s)).collect();
                            let after = |time: u64| (time as i64 - outcome.begin as i64) / 1_000_000_000;
                            println!(
                                "    onset {:+} s, opened {:+} s, {}: {}",
                                after(incident.onset),
                                after(incident.opened_at),
                                incident.diagnosis.confidence,
                                incident.title
                            );
                            println!("      hops {}", hops.join(", "));
                            for origin in incident.diagnosis.origins.iter().take(3) {
                                println!(
                                    "      {} {:.2} {}",
                                    origin.service,
                                    origin.score,
                                    origin.reasons.first().map_or("", String::as_str)
                                );
                            }
                        }
                    }
                    all.add(&outcome);
                    by_fault.entry(format!("{what:?}")).or_default().add(&outcome);
                    by_topology.entry(format!("{topology:?}")).or_default().add(&outcome);
                    by_load.entry(format!("{load} requests/s")).or_default().add(&outcome);
                }
            }
        }
    }
    println!("                   cases found  AC@1  AC@3   inc   hops  onset  delay  high right false");
    for (name, score) in by_fault.iter_mut().chain(&mut by_topology).chain(&mut by_load) {
        score.print(name);
    }
    all.print("all");
}
