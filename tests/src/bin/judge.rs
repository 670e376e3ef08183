//! `judge FOLDER [SET] [case=TEXT]`: how well faults are named, over recorded failures, without a server between: each case is decoded and
//! observed, then the ranking for the fault's window is compared with the truth (`told`). With `case=`, the evidence is printed too;
//! with `trace`, each change of an incident; with `probe`, the best candidate of each window.

use collector::decode::{self, Format};
use collector::detect::Observed;
use collector::detect::incidents::Incidents;
use collector::detect::judge::Stretches;
use collector::detect::watch::ALLOWANCE;
use collector::validate::{Intake, Limits};
use firstfall_store::Signal;
use firstfall_store::rollup::WINDOW;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// When every recording begins.
const BASE: u64 = 1_700_000_000_000_000_000;

fn json(path: PathBuf) -> Value {
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

fn observe(case: &Path) -> (Observed, Incidents) {
    let index = json(case.join("index.json"));
    let mut observed = Observed::default();
    let mut incidents = Incidents::default();
    let mut next = (BASE / WINDOW) as u32;
    for chunk in index["chunks"].as_array().expect("chunks") {
        let signal = match chunk["signal"].as_str().expect("a signal") {
            "traces" => Signal::Traces,
            "logs" => Signal::Logs,
            _ => Signal::Metrics,
        };
        let file = case.join("otlp").join(chunk["file"].as_str().expect("a file"));
        let mut body = std::fs::read(&file).unwrap_or_else(|error| panic!("read {}: {error}", file.display()));
        let at = BASE + (chunk["offset_s"].as_f64().expect("seconds") * 1e9) as u64;
        let mut intake = Intake::new(signal, Limits::default(), at, body.len());
        decode::request(Format::Protobuf, signal, &mut body, &mut intake).expect("a valid request");
        observed.add(&intake.finish().0);
        while u64::from(next + 1) * WINDOW + ALLOWANCE <= observed.watermark() {
            observed.settle(u64::from(next + 1) * WINDOW);
            for changed in incidents.step(&observed, next) {
                let incident = &incidents.all[changed];
                if std::env::args().any(|a| a == "trace") {
                    let top: Vec<String> = incident
                        .candidates
                        .iter()
                        .take(3)
                        .map(|c| {
                            let e = c.evidence.first();
                            format!(
                                "{} {:.2} {:?} z {:.1} {:.3} -> {:.3} n {:?} {}",
                                observed.names.node(c.node).service.name,
                                c.score,
                                e.map(|s| s.signal),
                                e.map_or(0.0, |s| s.score),
                                e.map_or(0.0, |s| s.before),
                                e.map_or(0.0, |s| s.after),
                                e.map_or((0, 0), |s| s.n),
                                e.map_or("", |s| &s.what)
                            )
                        })
                        .collect();
                    println!(
                        "    {:?} at {} onset {} {}",
                        incident.is_open(),
                        (u64::from(next + 1) * WINDOW - BASE) / 1_000_000_000,
                        (incident.onset - BASE) / 1_000_000_000,
                        top.join(" | ")
                    );
                }
            }
            if std::env::args().any(|a| a == "probe") {
                let stretches = Stretches {
                    before: next.saturating_sub(182).max((BASE / WINDOW) as u32)..next - 2,
                    after: next - 2..next + 1,
                    since: u64::from(next - 2) * WINDOW,
                    until: u64::from(next + 1) * WINDOW,
                };
                if let Some(c) = observed.compare(&stretches).candidates.first() {
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
                    let at = (u64::from(next + 1) * WINDOW - BASE) / 1_000_000_000;
                    println!("      {at} {} {:.3} | {}", observed.names.node(c.node).service.name, c.score, evidence.join(" | "));
                }
            }
            next += 1;
        }
    }
    observed.settle(u64::MAX);
    (observed, incidents)
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let folder = PathBuf::from(arguments.first().expect("judge FOLDER [SET] [case=TEXT]"));
    let wanted = arguments.iter().find_map(|a| a.strip_prefix("case="));
    let set = arguments.get(1).filter(|a| !a.contains('='));
    let mut totals: BTreeMap<String, (usize, [f64; 3])> = BTreeMap::new();
    let mut sets: Vec<PathBuf> = std::fs::read_dir(&folder).expect("the folder").flatten().map(|e| e.path()).collect();
    sets.sort();
    for path in sets {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if set.is_some_and(|set| *set != name) {
            continue;
        }
        let mut cases: Vec<PathBuf> = std::fs::read_dir(path.join("dev")).expect("cases").flatten().map(|e| e.path()).collect();
        cases.sort();
        for case in cases {
            let truth = json(case.join("truth.json"));
            let label = truth["case"].as_str().expect("a case").to_owned();
            if wanted.is_some_and(|wanted| !label.contains(wanted)) {
                continue;
            }
            let Some(inject) = truth["inject_offset_s"].as_f64() else {
                let (_, incidents) = observe(&case);
                println!("{name} {label}: {} incidents in {} s", incidents.all.len(), truth["length_s"]);
                continue;
            };
            let end = truth["fault_end_offset_s"].as_f64().expect("an end").min(truth["length_s"].as_f64().expect("a length"));
            let (observed, incidents) = observe(&case);
            let at = |seconds: f64| BASE + (seconds * 1e9) as u64;
            let diagnosis = observed.compare(&Observed::stretches(at(inject), at(end)));
            let ranking: Vec<&str> = diagnosis.candidates.iter().map(|c| observed.names.node(c.node).service.name.as_str()).collect();
            let roots: Vec<&str> = truth["root_causes"].as_array().expect("roots").iter().filter_map(Value::as_str).collect();
            let fault = truth["fault_type"].as_str().unwrap_or("");
            let place = ranking.iter().position(|name| roots.contains(name));
            let hit = |k: usize| f64::from(u8::from(place.is_some_and(|place| place < k)));
            for key in [format!("{name} (all)"), format!("{name} {fault}")] {
                let total = totals.entry(key).or_default();
                total.0 += 1;
                for (sum, k) in total.1.iter_mut().zip([1, 3, 5]) {
                    *sum += hit(k);
                }
            }
            let top: Vec<String> = diagnosis
                .candidates
                .iter()
                .take(4)
                .map(|c| {
                    let evidence = c.evidence.first().map_or(String::new(), |s| format!("{:?}", s.signal));
                    format!(
                        "{} {:.1} {evidence}{}",
                        observed.names.node(c.node).service.name,
                        c.score,
                        if c.explained_by.is_some() { "*" } else { "" }
                    )
                })
                .collect();
            let seen: Vec<String> = incidents
                .all
                .iter()
                .map(|i| {
                    let place = i.candidates.iter().position(|c| roots.contains(&observed.names.node(c.node).service.name.as_str()));
                    format!("{:+.0}s #{}", (i.opened_at - BASE) as f64 / 1e9 - inject, place.map_or("-".into(), |p| (p + 1).to_string()))
                })
                .collect();
            let within = |i: &&collector::detect::incidents::Incident| {
                let offset = (i.opened_at - BASE) as f64 / 1e9;
                offset >= inject - 10.0 && offset <= end + 10.0
            };
            let early = incidents.all.iter().filter(|i| ((i.opened_at - BASE) as f64 / 1e9) < inject - 10.0).count();
            totals.entry(format!("{name} end to end: recall, named")).or_default().1[2] += early as f64;
            let raised = incidents.all.iter().find(within);
            let total = totals.entry(format!("{name} end to end: recall, named")).or_default();
            total.0 += 1;
            total.1[0] += f64::from(u8::from(raised.is_some()));
            let first = raised.and_then(|i| i.candidates.first());
            total.1[1] += f64::from(u8::from(first.is_some_and(|c| roots.contains(&observed.names.node(c.node).service.name.as_str()))));
            let seen = seen.join(", ");
            println!(
                "{name} {label} {fault} [{seen}] {}: {} | {}",
                roots.join(","),
                place.map_or("-".into(), |p| (p + 1).to_string()),
                top.join(", ")
            );
            if wanted.is_some() {
                for candidate in diagnosis.candidates.iter().take(12) {
                    let node = observed.names.node(candidate.node);
                    let explained = candidate.explained_by.map(|n| observed.names.node(n).service.name.clone());
                    println!("  {} {:.2} explained by {explained:?}", node.id(), candidate.score);
                    for s in candidate.evidence.iter().take(6) {
                        let from = s.from.map(|n| observed.names.node(n).service.name.clone()).unwrap_or_default();
                        println!(
                            "      {:?} {} {:.2}: {:.5} -> {:.5} {} n {:?} from {from}",
                            s.signal, s.what, s.score, s.before, s.after, s.unit, s.n
                        );
                    }
                }
            }
        }
    }
    for (key, (cases, sums)) in totals {
        let [one, three, five] = sums.map(|sum| sum / cases as f64);
        if key.contains("end to end") {
            println!(
                "{name} {cases} cases end to end: {} detected, {} named; {} false before the fault",
                sums[0],
                sums[1],
                sums[2],
                name = key.split(' ').next().unwrap_or("")
            );
            continue;
        }
        println!("{key:<36} {cases:3} cases  AC@1 {one:.2} ({}/{cases})  AC@3 {three:.2}  AC@5 {five:.2}", sums[0]);
    }
}
