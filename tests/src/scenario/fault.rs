//! Faults and what is true of them: written down before anything is judged.

use super::world::{Kind, MS, World};
use crate::corpus::Random;

#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum What {
    /// A service answers a part of its requests with 500.
    Fails,
    /// One of its operations throws.
    OneOperation,
    Slow,
    SlowDatabase,
    DeadService,
    DeadDatabase,
    DeadBroker,
    /// Packets between two services are lost.
    NetworkLoss,
    /// A new version, on one instance, fails.
    BadInstance,
    /// Its machine is busy with something else.
    Hog,
    /// Far more requests come; the slowest service cannot bear it.
    Surge,
    /// It fails, and is asked three more times each time.
    RetryStorm,
    /// A caller's breaker stays open although the callee is well.
    StuckBreaker,
    /// The callee has become slower than its caller waits.
    TimeoutInversion,
    /// A service waits for its own pool of connections.
    PoolExhaustion,
    /// A consumer has become slower than what comes in.
    Backlog,
}

impl What {
    pub const ALL: [What; 16] = [
        What::Fails,
        What::OneOperation,
        What::Slow,
        What::SlowDatabase,
        What::DeadService,
        What::DeadDatabase,
        What::DeadBroker,
        What::NetworkLoss,
        What::BadInstance,
        What::Hog,
        What::Surge,
        What::RetryStorm,
        What::StuckBreaker,
        What::TimeoutInversion,
        What::PoolExhaustion,
        What::Backlog,
    ];
}

/// A fault in its time, or none.
#[derive(Clone, Debug)]
pub struct Fault {
    pub what: Option<What>,
    /// The part that is at fault, and the caller where it is about a call.
    pub at: usize,
    pub from: usize,
    pub begin: u64,
    pub end: u64,
    pub share: f64,
    pub factor: f64,
    pub extra: u64,
}

/// What is true of a fault.
#[derive(Clone, Debug)]
pub struct Truth {
    /// The name of the node at the origin.
    pub origin: String,
    /// Those that wait for it or fail by it, nearest first: name and distance.
    pub victims: Vec<(String, u32)>,
}

impl Fault {
    pub fn none() -> Fault {
        Fault { what: None, at: 0, from: 0, begin: 0, end: 0, share: 0.0, factor: 1.0, extra: 0 }
    }

    /// A fault somewhere in a system, if it has a place for it.
    pub fn choose(what: What, world: &World, begin: u64, end: u64, seed: u64) -> Option<Fault> {
        let mut random = Random::new(seed ^ 0x5eed);
        let parts = &world.parts;
        let reach = reach(world);
        // What a tenth of the requests never reaches cannot be seen to fail.
        let services: Vec<usize> = (0..parts.len()).filter(|p| parts[*p].kind == Kind::Service && reach[*p] > 0.15).collect();
        let called = |to: usize| (0..parts.len()).filter(move |from| parts[*from].links.iter().any(|l| l.to == to));
        let of_kind = |kind: Kind| (0..parts.len()).filter(|p| parts[*p].kind == kind && reach[*p] > 0.15).collect::<Vec<_>>();
        let inner: Vec<usize> =
            services.iter().copied().filter(|s| *s != 0 && called(*s).any(|c| parts[c].kind == Kind::Service)).collect();
        let candidates = match what {
            What::Fails | What::OneOperation | What::Slow | What::BadInstance | What::Hog => services.clone(),
            What::SlowDatabase | What::DeadDatabase => of_kind(Kind::Database),
            What::DeadBroker => of_kind(Kind::Queue),
            What::DeadService | What::NetworkLoss | What::RetryStorm | What::StuckBreaker | What::TimeoutInversion | What::Surge => inner,
            What::PoolExhaustion => {
                services.iter().copied().filter(|s| parts[*s].links.iter().any(|l| parts[l.to].kind == Kind::Database)).collect()
            }
            What::Backlog => of_kind(Kind::Queue).iter().filter_map(|q| Some(parts[*q].links.first()?.to)).collect(),
        };
        let mut pick = |list: &[usize]| (!list.is_empty()).then(|| list[random.below(list.len() as u64) as usize]);
        let at = pick(&candidates)?;
        let callers: Vec<usize> = called(at).filter(|c| parts[*c].kind == Kind::Service && reach[*c] > 0.15).collect();
        let from = pick(&callers).unwrap_or(at);
        // From what an engineer would just want to know of to what everybody notices.
        let share = 0.15 + random.below(70) as f64 / 100.0;
        let factor = 3.0 + random.below(7) as f64;
        let extra = (60 + random.below(600)) * MS;
        Some(Fault { what: Some(what), at, from, begin, end, share, factor, extra })
    }

    fn on(&self, time: u64) -> Option<What> {
        self.what.filter(|_| (self.begin..self.end).contains(&time))
    }

    /// The part of the requests that fail by themselves.
    pub fn failing(&self, part: usize, operation: usize, instance: usize, time: u64) -> f64 {
        if part != self.at {
            return 0.0;
        }
        match self.on(time) {
            Some(What::Fails | What::RetryStorm) => self.share,
            Some(What::OneOperation) if operation == 0 => 0.9,
            Some(What::BadInstance) if instance == 0 => 0.8,
            Some(What::Surge) => 0.25,
            _ => 0.0,
        }
    }

    pub fn slower(&self, part: usize, time: u64) -> f64 {
        match self.on(time) {
            Some(What::Hog | What::Surge) if part == self.at => self.factor,
            Some(What::RetryStorm) if part == self.at => 2.0,
            _ => 1.0,
        }
    }

    pub fn added(&self, part: usize, time: u64) -> u64 {
        match self.on(time) {
            Some(What::Slow | What::SlowDatabase) if part == self.at => self.extra,
            Some(What::Backlog) if part == self.at => self.extra,
            // Longer than its callers wait.
            Some(What::TimeoutInversion) if part == self.at => 300 * MS,
            _ => 0,
        }
    }

    pub fn dead(&self, part: usize, time: u64) -> bool {
        part == self.at && matches!(self.on(time), Some(What::DeadService | What::DeadDatabase | What::DeadBroker))
    }

    pub fn lost(&self, from: usize, to: usize, time: u64) -> f64 {
        if (from, to) == (self.from, self.at) && self.on(time) == Some(What::NetworkLoss) { self.share } else { 0.0 }
    }

    pub fn timeout(&self, to: usize, time: u64) -> Option<u64> {
        (to == self.at && self.on(time) == Some(What::TimeoutInversion)).then_some(250 * MS)
    }

    pub fn retries(&self, to: usize) -> u32 {
        if to == self.at && self.what == Some(What::RetryStorm) { 3 } else { 0 }
    }

    pub fn breaker_open(&self, from: usize, to: usize, time: u64) -> bool {
        (from, to) == (self.from, self.at) && self.on(time) == Some(What::StuckBreaker)
    }

    pub fn pool_wait(&self, from: usize, time: u64) -> u64 {
        if from == self.at && self.on(time) == Some(What::PoolExhaustion) { self.extra } else { 0 }
    }

    /// How long a message waits longer; it grows.
    pub fn backlog(&self, consumer: usize, time: u64) -> u64 {
        if consumer == self.at && self.on(time) == Some(What::Backlog) { (time - self.begin) / 2 } else { 0 }
    }

    pub fn hogs(&self, part: usize, time: u64) -> bool {
        part == self.at && self.on(time) == Some(What::Hog)
    }

    /// Times as many requests.
    pub fn load(&self, time: u64) -> f64 {
        if self.on(time) == Some(What::Surge) { 5.0 } else { 1.0 }
    }

    pub fn truth(&self, world: &World) -> Truth {
        // A breaker that is open on a healthy callee is its owner's fault.
        let origin = if self.what == Some(What::StuckBreaker) { self.from } else { self.at };
        let mut distance = vec![u32::MAX; world.parts.len()];
        distance[origin] = 0;
        let mut front = vec![origin];
        let mut victims = Vec::new();
        while !front.is_empty() {
            let mut next = Vec::new();
            for to in front {
                for (from, part) in world.parts.iter().enumerate() {
                    // Nobody waits for a consumer.
                    if part.kind != Kind::Queue && distance[from] == u32::MAX && part.links.iter().any(|l| l.to == to) {
                        distance[from] = distance[to] + 1;
                        victims.push((node_name(world, from), distance[from]));
                        next.push(from);
                    }
                }
            }
            front = next;
        }
        Truth { origin: node_name(world, origin), victims }
    }
}

/// The name that a part has as a node.
pub fn node_name(world: &World, part: usize) -> String {
    let part = &world.parts[part];
    match part.kind {
        Kind::Service | Kind::Queue => part.name.clone(),
        Kind::Database => format!("postgresql {}", part.name),
        Kind::Cache => format!("redis {}", part.name),
    }
}

/// How often each part is asked for a request from outside.
pub fn reach(world: &World) -> Vec<f64> {
    let mut reach = vec![0.0; world.parts.len()];
    let whole: f64 = world.entries.iter().map(|(_, share)| share).sum();
    let mut front: Vec<(usize, f64, u32)> = world.entries.iter().map(|(part, share)| (*part, share / whole, 0)).collect();
    while let Some((part, share, depth)) = front.pop() {
        reach[part] += share;
        if depth < 8 && share > 0.001 {
            front.extend(world.parts[part].links.iter().map(|l| (l.to, share * l.share, depth + 1)));
        }
    }
    reach
}
