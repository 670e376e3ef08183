//! Scenarios: simulated systems with a fault whose truth is written down first, and ordinary life that must stay quiet; in event time, through
//! the decoder and detection, without a server. Everything comes from a seed.

pub mod fault;
pub mod life;
pub mod world;

use crate::corpus::Random;
use collector::decode::{self, Format};
use collector::detect::incidents::Incidents;
use collector::detect::watch::ALLOWANCE;
use collector::detect::{Observed, describe};
use collector::validate::{Intake, Limits};
use fault::{Fault, Truth, What, reach};
use firstfall_store::Signal;
use firstfall_store::incident::Incident;
use firstfall_store::rollup::WINDOW;
use life::Life;
use world::{Body, SECOND, Topology, World};

pub const START: u64 = 1_800_000_000 * SECOND;

/// Detection, fed with what a world sends.
pub struct Judge {
    pub observed: Observed,
    pub incidents: Incidents,
    next: u32,
}

impl Default for Judge {
    fn default() -> Judge {
        Judge { observed: Observed::default(), incidents: Incidents::default(), next: (START / WINDOW) as u32 }
    }
}

impl Judge {
    pub fn take(&mut self, bodies: Vec<Body>, now: u64) {
        for body in bodies {
            let (signal, mut body) = match body {
                Body::Traces(body) => (Signal::Traces, body),
                Body::Logs(body) => (Signal::Logs, body),
                Body::Metrics(body) => (Signal::Metrics, body),
            };
            let mut intake = Intake::new(signal, Limits::default(), now, body.len());
            decode::request(Format::Protobuf, signal, &mut body, &mut intake).expect("a valid request");
            self.observed.add(&intake.finish().0);
        }
    }

    /// Judges what is complete, and calls `each` with what has changed.
    pub fn step(&mut self, mut each: impl FnMut(&Observed, &Incidents, &[usize], u32)) {
        while u64::from(self.next + 1) * WINDOW + ALLOWANCE <= self.observed.watermark() {
            self.observed.settle(u64::from(self.next + 1) * WINDOW);
            let changed = self.incidents.step(&self.observed, self.next);
            each(&self.observed, &self.incidents, &changed, self.next);
            if self.next.is_multiple_of(30) {
                self.observed.forget_before(self.next.saturating_sub(720));
                self.incidents.forget_before(self.next.saturating_sub(720));
            }
            self.next += 1;
        }
    }
}

/// A fault in a system under load.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub topology: Topology,
    pub what: What,
    /// Requests a second from outside.
    pub load: f64,
    pub seed: u64,
}

/// What was said of it.
#[derive(Debug)]
pub struct Outcome {
    pub truth: Truth,
    /// The fault's part, by how many requests a second reach it.
    pub reached: f64,
    /// Incidents that opened during the fault or right after, as they stood at its end.
    pub incidents: Vec<Incident>,
    /// Incidents that opened before it began.
    pub before: usize,
    pub begin: u64,
}

impl Outcome {
    pub fn rank(&self) -> Option<usize> {
        self.incidents.first()?.diagnosis.origins.iter().position(|o| o.service == self.truth.origin).map(|at| at + 1)
    }

    /// Hops of the first incident, and how many of them run from nearer to farther among the true victims.
    pub fn hops(&self) -> (usize, usize) {
        let distance = |name: &str| {
            if name == self.truth.origin { Some(0) } else { self.truth.victims.iter().find(|(n, _)| n == name).map(|(_, d)| *d) }
        };
        let hops = self.incidents.first().map_or(&[][..], |i| i.diagnosis.hops.as_slice());
        let right = hops.iter().filter(|h| matches!((distance(&h.from), distance(&h.to)), (Some(a), Some(b)) if a < b)).count();
        (hops.len(), right)
    }
}

/// A scenario that has found its place, ready to be played.
pub struct Play {
    world: World,
    life: Life,
    fault: Fault,
    load: f64,
    random: Random,
    start: u64,
    pub truth: Truth,
    pub reached: f64,
    /// When the fault begins, and when the play ends.
    pub begin: u64,
    pub until: u64,
}

impl Play {
    /// `None` where the system has no place for such a fault.
    pub fn new(scenario: &Scenario, start: u64) -> Option<Play> {
        let mut random = Random::new(scenario.seed ^ 0x1234);
        let mut world = scenario.topology.build(scenario.seed);
        let begin = start + (9 * 60 + random.below(240)) * SECOND;
        let end = begin + (150 + random.below(120)) * SECOND;
        let fault = Fault::choose(scenario.what, &world, begin, end, scenario.seed)?;
        let truth = fault.truth(&world);
        let reached = reach(&world)[fault.at] * scenario.load;
        if fault.what == Some(What::RetryStorm) {
            // Those who call it would have been set so from the start.
            world.parts.iter_mut().flat_map(|p| p.links.iter_mut()).filter(|l| l.to == fault.at).for_each(|l| l.retries = 3);
        }
        let life = Life::begin(&mut world, scenario.seed, start);
        Some(Play { world, life, fault, load: scenario.load, random, start, truth, reached, begin, until: end + 20 * SECOND })
    }

    /// Second by second what arrives by then.
    pub fn run(mut self, mut arrive: impl FnMut(Vec<Body>, u64)) {
        let mut due = self.start as f64;
        let mut second = self.start;
        while second < self.until {
            self.life.pass(&mut self.world, (second - self.start) / SECOND);
            if self.fault.what == Some(What::BadInstance) && second / SECOND == self.begin / SECOND {
                life::deploy(&mut self.world, self.fault.at, Some(0));
            }
            while due < (second + SECOND) as f64 {
                self.world.request(due as u64, &self.fault);
                due += self.random.gap(self.load * self.fault.load(second));
            }
            second += SECOND;
            let mut bodies = self.world.arrivals(second);
            if (second - self.start).is_multiple_of(30 * SECOND) {
                bodies.extend(self.world.cpu(second, &self.fault));
            }
            arrive(bodies, second);
        }
    }
}

/// Plays a scenario to detection, without a server between.
pub fn run(scenario: &Scenario) -> Option<Outcome> {
    run_with(scenario, |_| true)
}

/// The same with only some of what is sent.
pub fn run_with(scenario: &Scenario, arrives: impl Fn(&Body) -> bool) -> Option<Outcome> {
    let play = Play::new(scenario, START)?;
    let (truth, reached, begin) = (play.truth.clone(), play.reached, play.begin);
    let (mut judge, mut told, mut before) = (Judge::default(), Vec::<Incident>::new(), 0);
    play.run(|mut bodies, second| {
        bodies.retain(&arrives);
        judge.take(bodies, second);
        judge.step(|observed, incidents, changed, window| {
            let at = u64::from(window + 1) * WINDOW;
            for (place, incident) in incidents.all.iter().enumerate() {
                if incident.is_open() || changed.contains(&place) {
                    let described = describe::incident(observed, incident, window);
                    if at <= begin {
                        before += usize::from(changed.contains(&place) && incident.is_open());
                        continue;
                    }
                    match told.iter_mut().find(|t| t.id == described.id) {
                        Some(known) => *known = described,
                        None if described.opened_at > begin => told.push(described),
                        None => {}
                    }
                }
            }
        });
    });
    told.sort_by_key(|i| i.opened_at);
    Some(Outcome { truth, reached, incidents: told, before, begin })
}

/// Where a scenario begins that has just passed.
pub fn just_passed(scenario: &Scenario) -> Option<u64> {
    let length = Play::new(scenario, 0)?.until;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
    Some((now - length) / WINDOW * WINDOW)
}

/// Sends a body to a server's OTLP/HTTP.
pub fn post(otlp: &str, body: &Body) {
    let (signal, body) = match body {
        Body::Traces(body) => ("traces", body),
        Body::Logs(body) => ("logs", body),
        Body::Metrics(body) => ("metrics", body),
    };
    let answer = ureq::post(format!("http://{otlp}/v1/{signal}")).header("content-type", "application/x-protobuf").send(&body[..]);
    answer.expect("the server takes it");
}

/// Plays a scenario to a server, as if it had just passed. Returns what is true of it.
pub fn send(scenario: &Scenario, otlp: &str) -> Option<Truth> {
    let play = Play::new(scenario, just_passed(scenario)?)?;
    let truth = play.truth.clone();
    play.run(|bodies, _| bodies.iter().for_each(|body| post(otlp, body)));
    Some(truth)
}
