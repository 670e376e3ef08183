//! Changes of services, as far as telemetry tells of them: which versions and instances speak and since when; what breakers did stands beside them.
//! Nobody has to announce a deployment: its `service.version` does.

use super::breakers::{Breakers, Count};
use super::names::{Names, NodeId, TextId};
use firstfall_store::change::Change;
use hashbrown::{HashMap, HashSet};

const SECOND: u64 = 1_000_000_000;
/// Versions, and instances, that are remembered: a service that makes up a new one with each start must not fill the memory.
const REMEMBERED_MAX: usize = 20_000;
/// Characters of an instance's name that are kept.
const INSTANCE_CHARS_MAX: usize = 200;
/// Comings and goings of one of them.
const STRETCHES_MAX: usize = 50;
/// What is heard in the first minute of all was there before.
const KNOWN_AFTER: u64 = 60 * SECOND;
/// An instance that was not heard for so long is gone, as long as others of its service speak: SDKs send metrics once a minute.
const GONE_AFTER: u64 = 150 * SECOND;
/// Instances that come and go within this time are one change.
const TOGETHER: u64 = 120 * SECOND;
/// After so long nothing more can change what a change was: a restart or a growth.
pub const SETTLED_AFTER: u64 = GONE_AFTER + TOGETHER;

/// From when to when something was heard, and the longest silence between.
#[derive(Clone, Copy, Debug)]
struct Heard {
    first: u64,
    last: u64,
    silence: u64,
}

impl Heard {
    /// From when on it is gone: an instance that speaks every three minutes is not gone after two.
    fn gone_at(&self) -> u64 {
        self.last.saturating_add(GONE_AFTER.max(self.silence.saturating_mul(4)))
    }
}

/// Instances of a node that came and went together, each with its time, and how many there were with those.
struct Turn {
    node: NodeId,
    births: Vec<(TextId, u64)>,
    deaths: Vec<(TextId, u64)>,
    count: usize,
}

/// What there is to know of changes.
#[derive(Default)]
pub struct Changes {
    versions: HashMap<(NodeId, TextId), Vec<Heard>>,
    instances: HashMap<(NodeId, TextId), Vec<Heard>>,
    instance_names: HashMap<TextId, String>,
    pub breakers: Breakers,
    /// When anything was first heard.
    first: Option<u64>,
    /// What somebody has told.
    pub told: Vec<Change>,
}

/// Says whether it is new. What `returns` may go and come back, which is a change; an instance that speaks again is the same process.
fn hear(heard: &mut HashMap<(NodeId, TextId), Vec<Heard>>, node: NodeId, text: TextId, time: u64, returns: bool) -> bool {
    let new = !heard.contains_key(&(node, text));
    if new && heard.len() >= REMEMBERED_MAX {
        return false;
    }
    let stretches = heard.entry((node, text)).or_default();
    let full = stretches.len() >= STRETCHES_MAX;
    match stretches.last_mut() {
        // A version that was gone and is back is a change once more, as after a rollback.
        Some(last) if returns && time > last.gone_at() && !full => stretches.push(Heard { first: time, last: time, silence: 0 }),
        Some(last) => {
            last.silence = last.silence.max(time.saturating_sub(last.last));
            last.first = last.first.min(time);
            last.last = last.last.max(time);
        }
        None => stretches.push(Heard { first: time, last: time, silence: 0 }),
    }
    new
}

/// What was heard of each node, in the order in which it was first heard.
fn by_node(heard: &HashMap<(NodeId, TextId), Vec<Heard>>) -> HashMap<NodeId, Vec<(TextId, Heard)>> {
    let mut by_node: HashMap<NodeId, Vec<(TextId, Heard)>> = HashMap::new();
    for ((node, text), stretches) in heard {
        by_node.entry(*node).or_default().extend(stretches.iter().map(|heard| (*text, *heard)));
    }
    by_node.values_mut().for_each(|list| in_order(list));
    by_node
}

fn in_order(heard: &mut [(TextId, Heard)]) {
    heard.sort_unstable_by_key(|(text, heard)| (heard.first, *text));
}

/// Each version of a node that follows another one, with that, and when it was first heard.
fn deployments(versions: &[(TextId, Heard)], known: u64) -> impl Iterator<Item = (TextId, TextId, u64)> {
    // A service that was not there before is new, and its first version no change.
    versions.windows(2).filter_map(move |pair| {
        let [(older, earlier), (version, heard)] = pair else { return None };
        // A service that was quiet for a while and speaks again has not changed.
        let changed = older != version && heard.first > known && heard.first > earlier.first;
        changed.then_some((*older, *version, heard.first))
    })
}

impl Changes {
    pub fn hear_version(&mut self, node: NodeId, version: TextId, time: u64) {
        self.first = Some(self.first.map_or(time, |first| first.min(time)));
        hear(&mut self.versions, node, version, time, true);
    }

    /// Instances have names of their own, which are forgotten with them: there is a new one with each start.
    pub fn hear_instance(&mut self, node: NodeId, instance: &str, time: u64) {
        self.first = Some(self.first.map_or(time, |first| first.min(time)));
        let id = xxhash_rust::xxh3::xxh3_64(instance.as_bytes()) as TextId;
        if hear(&mut self.instances, node, id, time, false) {
            self.instance_names.insert(id, instance.chars().take(INSTANCE_CHARS_MAX).collect());
        }
    }

    pub fn hear_breaker_counts(&mut self, counts: &[Count]) {
        self.breakers.hear_counts(counts, self.first);
    }

    /// Whether a node has begun to speak with another version between two times.
    pub fn deployed(&self, node: NodeId, from: u64, to: u64) -> bool {
        let of_node = self.versions.iter().filter(|((of, _), _)| *of == node);
        let mut versions: Vec<(TextId, Heard)> =
            of_node.flat_map(|((_, version), stretches)| stretches.iter().map(|heard| (*version, *heard))).collect();
        in_order(&mut versions);
        deployments(&versions, self.known_after()).any(|(.., time)| (from..to).contains(&time))
    }

    /// What is heard before is no change.
    fn known_after(&self) -> u64 {
        self.first.unwrap_or(0).saturating_add(KNOWN_AFTER)
    }

    /// Forgets what ended before a time.
    pub fn forget_before(&mut self, time: u64) {
        for heard in [&mut self.versions, &mut self.instances] {
            heard.retain(|_, stretches| stretches.last().is_some_and(|heard| heard.last >= time));
        }
        let instances = &self.instances;
        let kept: HashSet<TextId> = instances.keys().map(|(_, id)| *id).collect();
        self.instance_names.retain(|id, _| kept.contains(id));
        self.breakers.forget_before(time);
        self.told.retain(|change| change.time >= time);
    }

    /// All changes between two times as they look at `now` (event time), oldest first, with the node where it is known.
    pub fn between(&self, from: u64, to: u64, now: u64, names: &Names) -> Vec<Change> {
        let mut changes = Vec::new();
        let make = |node: NodeId, kind: &str, before: String, after: String, time: u64| {
            let service = &names.node(node).service;
            Change {
                service: service.name.clone(),
                namespace: service.namespace.clone(),
                environment: service.environment.clone(),
                kind: kind.to_owned(),
                from: before,
                to: after,
                time,
                ..Change::default()
            }
        };
        let text = |id: TextId| names.text_of(id).to_owned();
        let instance = |id: TextId| self.instance_names.get(&id).cloned().unwrap_or_default();
        let known = self.known_after();
        let mut deployed: HashMap<NodeId, Vec<u64>> = HashMap::new();
        for (node, versions) in by_node(&self.versions) {
            for (older, version, time) in deployments(&versions, known) {
                deployed.entry(node).or_default().push(time);
                changes.push(make(node, "version", text(older), text(version), time));
            }
        }
        for Turn { node, births, deaths, count } in self.turns(known, now) {
            let Some(time) = births.iter().chain(&deaths).map(|(_, time)| *time).min() else { continue };
            if deployed.get(&node).is_some_and(|times| times.iter().any(|at| at.abs_diff(time) < TOGETHER)) {
                continue;
            }
            let some = |list: &[(TextId, u64)]| match list {
                [] => String::new(),
                [(one, _)] => instance(*one),
                [(one, _), rest @ ..] => format!("{} and {} more", instance(*one), rest.len()),
            };
            let (born, dead) = (births.len(), deaths.len());
            let settled = now >= time.saturating_add(SETTLED_AFTER);
            changes.push(match (born, dead) {
                (0, _) => make(node, "scale_down", count.to_string(), (count - dead).to_string(), time),
                (_, 0) if settled => make(node, "scale_up", (count - born).to_string(), count.to_string(), time),
                (_, 0) => make(node, "instance", String::new(), some(&births), time),
                _ => make(node, "restart", some(&deaths), some(&births), time),
            });
        }
        for (node, breaker, old, new, time) in &self.breakers.transitions {
            changes.push(make(*node, "breaker", text(*old), format!("{} ({})", text(*new), text(*breaker)), *time));
        }
        changes.extend(self.told.iter().cloned());
        changes.retain(|change| (from..=to).contains(&change.time));
        changes.sort_by(|a, b| (a.time, &a.service, &a.kind, &a.to).cmp(&(b.time, &b.service, &b.kind, &b.to)));
        changes
    }

    /// The turns of all nodes, in their order.
    fn turns(&self, known: u64, now: u64) -> Vec<Turn> {
        let mut turns = Vec::new();
        for (node, instances) in by_node(&self.instances) {
            let newest = instances.iter().map(|(_, h)| h.last).max().unwrap_or(0);
            let oldest = instances.first().map_or(0, |(_, h)| h.first);
            // (time, is a birth, instance)
            let mut events: Vec<(u64, bool, TextId)> = Vec::new();
            for (instance, heard) in &instances {
                if heard.first > known && heard.first > oldest {
                    events.push((heard.first, true, *instance));
                }
                // Of a service that speaks no more nobody knows how many instances there are.
                if now >= heard.gone_at() && newest >= heard.gone_at() {
                    events.push((heard.last, false, *instance));
                }
            }
            events.sort_unstable();
            let mut rest = events.as_slice();
            while let Some((start, ..)) = rest.first() {
                let end = rest.iter().position(|(time, ..)| time.saturating_sub(*start) > TOGETHER).unwrap_or(rest.len());
                let (turn, later) = rest.split_at(end);
                rest = later;
                let side = |birth: bool| turn.iter().filter(|(_, b, _)| *b == birth).map(|(time, _, id)| (*id, *time)).collect::<Vec<_>>();
                let last = turn.last().map_or(*start, |(time, ..)| *time);
                let count = instances.iter().filter(|(_, h)| h.first <= last && h.last >= *start).count();
                turns.push(Turn { node, births: side(true), deaths: side(false), count });
            }
        }
        turns.sort_by_key(|turn| turn.node);
        turns
    }
}

#[cfg(test)]
mod tests {
    use super::super::names::{Node, NodeKind};
    use super::*;
    use firstfall_store::Service;

    /// `heard`: instance, version, from second to second; what is told of it at the end.
    fn check(heard: &[(&str, &str, u64, u64)], now: u64, expected: &[(&str, &str, &str, u64)]) {
        let (mut names, mut changes) = (Names::default(), Changes::default());
        let service = Service { name: "cart".into(), namespace: String::new(), environment: String::new() };
        let node = names.node_id(Node { kind: NodeKind::Service, service });
        for (instance, version, from, to) in heard {
            let version = names.text(version);
            for second in (*from..=*to).step_by(10) {
                changes.hear_instance(node, instance, second * SECOND);
                changes.hear_version(node, version, second * SECOND);
            }
        }
        let found = changes.between(0, u64::MAX, now * SECOND, &names);
        for change in found.iter().filter(|c| c.kind == "version") {
            assert!(changes.deployed(node, change.time, change.time + 1) && !changes.deployed(node, change.time + 1, change.time + SECOND));
        }
        assert_eq!(changes.deployed(node, 0, u64::MAX), found.iter().any(|c| c.kind == "version"));
        let found: Vec<(&str, &str, &str, u64)> =
            found.iter().map(|c| (c.kind.as_str(), c.from.as_str(), c.to.as_str(), c.time / SECOND)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_was_there_from_the_start_is_no_change() {
        check(&[("a", "1", 0, 600), ("b", "1", 30, 600)], 600, &[]);
    }

    #[test]
    fn a_new_version_is_one_change_also_when_its_instances_are_new() {
        check(&[("a", "1", 0, 400), ("b", "2", 410, 900)], 900, &[("version", "1", "2", 410)]);
    }

    #[test]
    fn a_service_that_was_quiet_and_speaks_again_has_not_changed() {
        check(&[("a", "1", 0, 300), ("a", "1", 900, 1200)], 1200, &[]);
    }

    #[test]
    fn a_version_that_comes_back_is_a_change_once_more() {
        check(
            &[("a", "1", 0, 400), ("b", "2", 410, 600), ("c", "1", 610, 900)],
            900,
            &[("version", "1", "2", 410), ("version", "2", "1", 610)],
        );
    }

    #[test]
    fn instances_that_speak_seldom_are_neither_gone_nor_new() {
        let heard: Vec<(&str, &str, u64, u64)> =
            (0..20).flat_map(|n| [("a", "1", n * 140, n * 140), ("b", "1", n * 140 + 5, n * 140 + 5)]).collect();
        check(&heard, 2700, &[]);
    }

    #[test]
    fn an_instance_in_place_of_another_is_a_restart() {
        check(&[("a", "1", 0, 400), ("b", "1", 420, 900)], 900, &[("restart", "a", "b", 400)]);
    }

    #[test]
    fn a_further_instance_is_new_and_later_a_growth() {
        let heard = [("a", "1", 0, 1000), ("b", "1", 420, 1000)];
        check(&heard, 500, &[("instance", "", "b", 420)]);
        check(&heard, 1000, &[("scale_up", "1", "2", 420)]);
    }

    #[test]
    fn an_instance_that_falls_silent_beside_others_is_fewer_and_a_dead_service_is_not() {
        check(&[("a", "1", 0, 1000), ("b", "1", 0, 400)], 1000, &[("scale_down", "2", "1", 400)]);
        check(&[("a", "1", 0, 400), ("b", "1", 0, 400)], 1000, &[]);
    }

    #[test]
    fn a_breaker_tells_when_its_state_changes() {
        let (mut names, mut changes) = (Names::default(), Changes::default());
        let service = Service { name: "cart".into(), namespace: String::new(), environment: String::new() };
        let node = names.node_id(Node { kind: NodeKind::Service, service });
        let (breaker, closed, open) = (names.text("stock"), names.text("closed"), names.text("open"));
        for (second, state) in [(10, closed), (20, closed), (30, open), (25, closed), (40, open)] {
            changes.breakers.hear_state(node, breaker, state, second * SECOND);
        }
        let found = changes.between(0, u64::MAX, u64::MAX, &names);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].words(), "breaker open (stock) after closed");
    }
}
