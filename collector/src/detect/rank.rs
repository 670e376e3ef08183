//! Ranks who failed first. A node is blamed for the harm that begins in it: its own time and errors, what its requests no longer reach, and
//! the waiting on its edges, which belongs to the node that most of the slow edges have in common. A node is *explained* when one that
//! it calls is about as sick: errors, logs and shapes travel from callee to caller.

use super::judge::{Signal, Symptom};
use super::names::NodeId;
use super::rules::Rules;
use hashbrown::{HashMap, HashSet};

#[derive(Clone, Debug)]
pub struct Candidate {
    pub node: NodeId,
    /// Requests a second that it harms by itself.
    pub score: f64,
    /// Its symptoms, most harmful first.
    pub evidence: Vec<Symptom>,
    /// A callee that is about as sick, so that this one is a victim.
    pub explained_by: Option<NodeId>,
}

type Edge = (NodeId, NodeId);

impl Candidate {
    /// Whether it fails rather than being slow.
    pub fn fails(&self) -> bool {
        let harm = Harm::of(&self.evidence);
        harm.fails >= harm.slows
    }
}

/// Waiting, handed to nodes. Slow calls may be the callee's doing, the caller's (it is short of CPU, so that answers lie there) or the
/// network's of either. The node of which most edges are slow explains them all at once; what is left is explained by the next.
fn waiting(symptoms: &[Symptom], edges: &HashSet<Edge>, rules: &Rules) -> Vec<(NodeId, Symptom)> {
    let of = |signal: Signal| symptoms.iter().filter(move |s| s.signal == signal).filter_map(|s| s.from.map(|from| ((from, s.node), s)));
    let mut left: HashMap<Edge, &Symptom> = of(Signal::Wait).collect();
    let failing: HashMap<Edge, &Symptom> = of(Signal::Errors).collect();
    let mut around: HashMap<NodeId, Vec<Edge>> = HashMap::new();
    for edge in edges.iter().filter(|(from, to)| from != to) {
        around.entry(edge.0).or_default().push(*edge);
        around.entry(edge.1).or_default().push(*edge);
    }
    let mut blamed = Vec::new();
    // Calls that wait and then fail have timed out: their waiting belongs where their failing is counted, to the callee.
    left.retain(|edge, wait| {
        let timed_out = failing.get(edge).is_some_and(|fails| fails.harm >= rules.explains * wait.harm);
        if timed_out {
            blamed.push((edge.1, (*wait).clone()));
        }
        !timed_out
    });
    while !left.is_empty() {
        let weigh = |node: &NodeId, all: &Vec<Edge>| {
            let slow: Vec<&Symptom> = all.iter().filter_map(|edge| left.get(edge).copied()).collect();
            let harm: f64 = slow.iter().map(|s| s.harm).sum();
            // A callee is the likelier of the two ends of a single slow edge.
            let called = all.iter().any(|edge| edge.1 == *node && left.contains_key(edge));
            (harm * slow.len() as f64 / all.len() as f64, called)
        };
        let best = around
            .iter()
            .map(|(node, all)| (weigh(node, all), *node))
            .max_by(|a, b| a.0.0.total_cmp(&b.0.0).then(a.0.1.cmp(&b.0.1)).then(b.1.cmp(&a.1)));
        let Some(((weight, _), node)) = best else { break };
        if weight <= 0.0 {
            break;
        }
        let taken: Vec<Edge> = around[&node].iter().filter(|edge| left.contains_key(*edge)).copied().collect();
        for edge in taken {
            let symptom = left.remove(&edge).expect("it was just found there");
            blamed.push((node, symptom.clone()));
        }
    }
    blamed
}

/// All nodes with symptoms, best candidate first. `edges` are caller and callee.
pub fn rank(symptoms: &[Symptom], edges: &HashSet<Edge>, rules: &Rules) -> Vec<Candidate> {
    let mut nodes: HashMap<NodeId, Vec<Symptom>> = HashMap::new();
    for symptom in symptoms.iter().filter(|s| s.signal != Signal::Wait) {
        nodes.entry(symptom.node).or_default().push(symptom.clone());
    }
    for (node, symptom) in waiting(symptoms, edges, rules) {
        nodes.entry(node).or_default().push(symptom);
    }
    let harm_of: HashMap<NodeId, Harm> = nodes.iter().map(|(node, evidence)| (*node, Harm::of(evidence))).collect();
    let mut candidates: Vec<Candidate> = nodes
        .into_iter()
        .map(|(node, mut evidence)| {
            evidence.sort_by(|a, b| b.harm.total_cmp(&a.harm));
            let harm = harm_of[&node];
            let explained_by = edges
                .iter()
                .filter(|(from, to)| *from == node && *to != node)
                .map(|(_, to)| *to)
                .filter(|to| harm_of.get(to).is_some_and(|theirs| theirs.explains(&harm, rules.explains)))
                .max_by(|a, b| harm_of[a].total().total_cmp(&harm_of[b].total()).then(b.cmp(a)));
            Candidate { node, score: harm.total(), evidence, explained_by }
        })
        .collect();
    break_circles(&mut candidates);
    candidates.sort_by(|a, b| {
        a.explained_by.is_some().cmp(&b.explained_by.is_some()).then(b.score.total_cmp(&a.score)).then(a.node.cmp(&b.node))
    });
    candidates
}

/// Where services call each other in a circle, each may be explained by the next. Then the one that does most by itself stands.
fn break_circles(candidates: &mut [Candidate]) {
    // In the order of nodes, so that the same circle is broken at the same place.
    candidates.sort_unstable_by_key(|c| c.node);
    let by_itself = |c: &Candidate| {
        // Failures are counted where they begin; what is logged and where requests come by changes with those who fail below.
        let own = c.evidence.iter().filter(|s| matches!(s.signal, Signal::Errors | Signal::OwnTime | Signal::Refusals));
        own.map(|s| s.harm).fold(0.0, f64::max)
    };
    for start in 0..candidates.len() {
        let mut way = vec![start];
        loop {
            let here = *way.last().expect("it has a start");
            let Some(next) = candidates[here].explained_by else { break };
            let Ok(next) = candidates.binary_search_by_key(&next, |c| c.node) else { break };
            if let Some(begin) = way.iter().position(|at| *at == next) {
                let stands = way[begin..]
                    .iter()
                    .copied()
                    .max_by(|a, b| by_itself(&candidates[*a]).total_cmp(&by_itself(&candidates[*b])).then(b.cmp(a)))
                    .expect("a circle has members");
                candidates[stands].explained_by = None;
                break;
            }
            way.push(next);
        }
    }
}

/// What a node does to requests, by kind: failures and slowness have different ways to spread.
#[derive(Clone, Copy, Debug, Default)]
struct Harm {
    fails: f64,
    slows: f64,
}

impl Harm {
    /// Time adds up over operations and edges; the same failure shows in errors, logs and shape at once, so of these the largest counts.
    /// A full CPU alone hurts nobody.
    fn of(evidence: &[Symptom]) -> Harm {
        let mut harm = Harm::default();
        for symptom in evidence {
            match symptom.signal {
                signal if signal.is_of_time() => harm.slows += symptom.harm,
                Signal::Resource => {}
                _ => harm.fails = harm.fails.max(symptom.harm),
            }
        }
        harm
    }

    fn total(&self) -> f64 {
        self.fails.max(self.slows)
    }

    /// A callee explains failures by failures and slowness by slowness; failures by slowness only if it makes as many wait as fail, as
    /// when calls time out.
    fn explains(&self, caller: &Harm, part: f64) -> bool {
        if caller.fails > caller.slows {
            self.fails >= part * caller.fails || self.slows >= caller.fails
        } else {
            self.slows >= part * caller.slows
        }
    }
}
