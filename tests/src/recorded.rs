//! Recorded, labelled failures, played to detection without a server between: each case is decoded, observed and judged window by window,
//! and the ranking for the fault's window is compared with the truth.

use collector::decode::{self, Format};
use collector::detect::incidents::{Incident, Incidents};
use collector::detect::rules::Rules;
use collector::detect::watch::ALLOWANCE;
use collector::detect::{Diagnosis, Observed};
use collector::validate::{Intake, Limits};
use firstfall_store::Signal;
use firstfall_store::rollup::WINDOW;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// When every recording begins.
const BASE: u64 = 1_700_000_000_000_000_000;
/// An incident counts for a fault from so long before it to so long after it, as the recordings' own scoring has it.
const SLACK_S: f64 = 10.0;

/// A recording: its folder, and what is true of it.
#[derive(Clone)]
pub struct Case {
    folder: PathBuf,
    /// Nanoseconds by which its times are moved, so that windows begin at other moments of it: what is said must not hang on that.
    shift: u64,
    pub set: String,
    pub label: String,
    pub fault: String,
    pub roots: Vec<String>,
    /// Seconds of the recording in which it fails; none where it does not.
    pub failing: Option<(f64, f64)>,
    pub length_s: f64,
}

fn json(path: PathBuf) -> Value {
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    found.sort();
    found
}

impl Case {
    /// The cases below a folder, in order: `SET/dev/CASE`.
    pub fn all(folder: &Path) -> Vec<Case> {
        folders(folder).iter().flat_map(|set| folders(&set.join("dev"))).map(Case::read).collect()
    }

    fn read(folder: PathBuf) -> Case {
        let truth = json(folder.join("truth.json"));
        let text = |key: &str| truth[key].as_str().unwrap_or_default().to_owned();
        let length_s = truth["length_s"].as_f64().expect("a length");
        let failing = truth["inject_offset_s"].as_f64().map(|inject| {
            let end = truth["fault_end_offset_s"].as_f64().expect("an end");
            (inject, end.min(length_s))
        });
        let roots = truth["root_causes"].as_array().expect("roots").iter().filter_map(Value::as_str).map(str::to_owned).collect();
        Case { set: text("dataset"), label: text("case"), fault: text("fault_type"), roots, failing, length_s, folder, shift: 0 }
    }

    /// The same with its times moved.
    pub fn shifted(&self, nanoseconds: u64) -> Case {
        Case { shift: nanoseconds, ..self.clone() }
    }

    /// The second of the recording.
    pub fn second(&self, time: u64) -> f64 {
        (time as f64 - (BASE + self.shift) as f64) / 1e9
    }

    /// Plays it; `each` sees what every window has changed.
    pub fn play(&self, rules: Rules, mut each: impl FnMut(&Observed, &Incidents, &[usize], u32)) -> (Observed, Incidents) {
        let mut observed = Observed::default();
        observed.rules = rules;
        let mut incidents = Incidents::default();
        let mut next = (BASE / WINDOW) as u32;
        for chunk in json(self.folder.join("index.json"))["chunks"].as_array().expect("chunks") {
            let signal = match chunk["signal"].as_str().expect("a signal") {
                "traces" => Signal::Traces,
                "logs" => Signal::Logs,
                _ => Signal::Metrics,
            };
            let file = self.folder.join("otlp").join(chunk["file"].as_str().expect("a file"));
            let mut body = std::fs::read(&file).unwrap_or_else(|error| panic!("read {}: {error}", file.display()));
            let at = BASE + (chunk["offset_s"].as_f64().expect("seconds") * 1e9) as u64;
            let mut intake = Intake::new(signal, Limits::default(), at, body.len());
            decode::request(Format::Protobuf, signal, &mut body, &mut intake).expect("a valid request");
            let mut batch = intake.finish().0;
            batch.time.iter_mut().for_each(|time| *time += self.shift);
            observed.add(&batch);
            while u64::from(next + 1) * WINDOW + ALLOWANCE <= observed.watermark() {
                observed.settle(u64::from(next + 1) * WINDOW);
                let changed = incidents.step(&observed, next);
                each(&observed, &incidents, &changed, next);
                next += 1;
            }
        }
        observed.settle(u64::MAX);
        (observed, incidents)
    }

    /// The ranking for the fault's window.
    pub fn told(&self, observed: &Observed) -> Option<Diagnosis> {
        let at = |seconds: f64| BASE + self.shift + (seconds * 1e9) as u64;
        self.failing.map(|(from, to)| observed.compare(&Observed::stretches(at(from), at(to))))
    }

    fn place(&self, observed: &Observed, candidates: &[collector::detect::rank::Candidate]) -> Option<usize> {
        candidates.iter().position(|c| self.roots.contains(&observed.names.node(c.node).service.name)).map(|at| at + 1)
    }

    pub fn outcome(&self, observed: &Observed, incidents: &Incidents) -> Outcome {
        let opened = |incident: &Incident| self.second(incident.opened_at);
        let (begin, end) = self.failing.map_or((self.length_s, 0.0), |(from, to)| (from - SLACK_S, to + SLACK_S));
        let raised = incidents.all.iter().find(|i| opened(i) >= begin && opened(i) <= end);
        Outcome {
            told: self.told(observed).and_then(|diagnosis| self.place(observed, &diagnosis.candidates)),
            detected: raised.is_some(),
            named: raised.is_some_and(|i| self.place(observed, &i.candidates) == Some(1)),
            delay_s: raised.map(|i| opened(i) - self.failing.map_or(0.0, |(from, _)| from)),
            quiet_alarms: incidents.all.iter().filter(|i| opened(i) < begin).count(),
        }
    }
}

/// What was said of a case.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The place of the first true origin in the ranking for the fault's window, from 1.
    pub told: Option<usize>,
    /// An incident opened while it failed.
    pub detected: bool,
    /// … whose first candidate was true.
    pub named: bool,
    pub delay_s: Option<f64>,
    /// Incidents that opened while nothing failed.
    pub quiet_alarms: usize,
}
