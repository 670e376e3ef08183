//! Ordinary life, which must stay quiet: deploy waves, canaries and rollbacks, autoscaling, hourly jobs, daily ramps, health probes, a few
//! failing requests, a clock that is two minutes fast, callers that come once in two minutes, long polls and streams.

use super::fault::Fault;
use super::world::{Kind, MS, SECOND, Topology, World};
use super::{Judge, START};
use crate::corpus::Random;
use collector::detect::describe;
use firstfall_store::incident::Incident;
use firstfall_store::rollup::WINDOW;

/// A new version on one instance, or on all.
pub fn deploy(world: &mut World, part: usize, instance: Option<usize>) {
    let p = &mut world.parts[part];
    let newest = p.instances.iter().max().copied().unwrap_or(1) + 1;
    p.started += 1;
    match instance {
        Some(one) => p.instances[one] = newest,
        None => p.instances.iter_mut().for_each(|version| *version = newest),
    }
}

/// What happens in a system by itself.
pub struct Life {
    random: Random,
    services: Vec<usize>,
    canary: Option<(usize, u64, Vec<u32>)>,
    start: u64,
}

impl Life {
    /// One service of larger systems gets a clock that is two minutes fast.
    pub fn begin(world: &mut World, seed: u64, start: u64) -> Life {
        let services: Vec<usize> = (0..world.parts.len()).filter(|p| world.parts[*p].kind == Kind::Service).collect();
        if services.len() > 10 {
            world.parts[services[services.len() / 2]].clock = 120 * SECOND;
        }
        Life { random: Random::new(seed ^ 0x11fe), services, canary: None, start }
    }

    fn some(&self, place: usize) -> usize {
        self.services[place % self.services.len()]
    }

    /// How many times the usual load there is: by the hour up and down by a factor of three, and a job at each full hour, half as much
    /// again for three minutes (and, in `pass`, the whole CPU of one service, which then takes a tenth longer for each request).
    pub fn load(&self, second: u64) -> f64 {
        let day = (second as f64 / 86_400.0 * std::f64::consts::TAU).sin();
        (1.0 + 0.5 * day) * if second % 3600 < 180 { 1.5 } else { 1.0 }
    }

    /// What happens in a second.
    pub fn pass(&mut self, world: &mut World, second: u64) {
        let now = self.start + second * SECOND;
        let some = self.services[self.random.below(self.services.len() as u64) as usize];
        // A deploy wave every forty minutes: five services, one after the other.
        if second % 2400 >= 300 && second % 2400 < 450 && second.is_multiple_of(30) {
            deploy(world, some, None);
        }
        // A canary for ten minutes every hour; every second one is rolled back.
        if second % 3600 == 600 {
            self.canary = Some((some, now, world.parts[some].instances.clone()));
            deploy(world, some, Some(0));
        }
        if let Some((part, since, before)) = &self.canary
            && now - since > 600 * SECOND
        {
            if self.random.below(2) == 0 {
                world.parts[*part].instances.clone_from(before);
            } else {
                deploy(world, *part, None);
            }
            self.canary = None;
        }
        if second >= 3600 && matches!(second % 3600, 0 | 180) {
            self.services.iter().for_each(|part| world.parts[*part].busy = false);
            world.parts[some].busy = second.is_multiple_of(3600);
        }
        // Instances come and go with the load.
        if second.is_multiple_of(1800) && second > 0 {
            let wanted = if self.load(second) > 1.3 { 3 } else { 2 };
            for part in &self.services {
                let instances = &mut world.parts[*part].instances;
                while instances.len() < wanted {
                    instances.push(instances[0]);
                }
                instances.truncate(wanted);
            }
        }
        if second.is_multiple_of(5) {
            for part in &self.services {
                world.lone(*part, "GET /healthz", now, MS);
            }
        }
        // A caller that comes once in two minutes, long polls, and streams of minutes.
        if second.is_multiple_of(110) {
            let took = 20 * MS + self.random.below(400) * MS;
            world.lone(self.some(3), "GET /report", now, took);
        }
        if second.is_multiple_of(7) {
            let took = (20 + self.random.below(10)) * SECOND;
            world.lone(self.some(5), "GET /poll", now, took);
        }
        if second.is_multiple_of(61) {
            let took = (30 + self.random.below(270)) * SECOND;
            world.lone(self.some(6), "GET /stream", now, took);
        }
    }
}

/// Hours of a system of forty services without any fault. Returns what was told.
pub fn quiet(hours: f64, load: f64, seed: u64) -> Vec<Incident> {
    let mut world = Topology::Large.build(seed);
    let mut life = Life::begin(&mut world, seed, START);
    let mut random = Random::new(seed ^ 0xca11);
    let none = Fault::none();
    let (mut judge, mut told) = (Judge::default(), Vec::<Incident>::new());
    let mut due = START as f64;
    for second in 0..(hours * 3600.0) as u64 {
        let now = START + second * SECOND;
        life.pass(&mut world, second);
        while due < (now + SECOND) as f64 {
            world.request(due as u64, &none);
            due += random.gap(load * life.load(second));
        }
        let mut bodies = world.arrivals(now + SECOND);
        if second.is_multiple_of(30) {
            bodies.extend(world.cpu(now, &none));
        }
        judge.take(bodies, now + SECOND);
        judge.step(|observed, incidents, changed, window| {
            for at in changed {
                let incident = describe::incident(observed, &incidents.all[*at], window);
                if incident.opened_at == u64::from(window + 1) * WINDOW {
                    told.push(incident);
                }
            }
        });
    }
    told
}
