//! Ranks who failed first. Each node's evidence is its strongest symptom; a node is explained when one that it calls is about as sick.

use super::judge::{Signal, Symptom};
use super::names::NodeId;
use hashbrown::{HashMap, HashSet};

#[derive(Clone, Debug)]
pub struct Candidate {
    pub node: NodeId,
    pub score: f64,
    /// Its symptoms, strongest first.
    pub evidence: Vec<Symptom>,
    /// A callee that is about as sick, so that this one is a victim.
    pub explained_by: Option<NodeId>,
}

/// Below this a symptom is noise.
const ODD: f64 = 3.0;

/// All nodes with symptoms, best candidate first. `edges` are caller and callee.
pub fn rank(symptoms: &[Symptom], edges: &HashSet<(NodeId, NodeId)>) -> Vec<Candidate> {
    let mut nodes: HashMap<NodeId, Vec<Symptom>> = HashMap::new();
    for symptom in symptoms {
        let own = match symptom.signal {
            // Waiting counts by all edges of a node together; see below.
            Signal::Wait => continue,
            Signal::Shape => symptom.score > 4.0,
            _ => true,
        };
        if own {
            nodes.entry(symptom.node).or_default().push(symptom.clone());
        }
    }
    // A delay on a node's network slows every edge it is on.
    let mut touching: HashMap<NodeId, Vec<&Symptom>> = HashMap::new();
    let mut edge_count: HashMap<NodeId, HashSet<(NodeId, NodeId)>> = HashMap::new();
    for (from, to) in edges {
        edge_count.entry(*from).or_default().insert((*from, *to));
        edge_count.entry(*to).or_default().insert((*from, *to));
    }
    for symptom in symptoms.iter().filter(|s| s.signal == Signal::Wait) {
        touching.entry(symptom.node).or_default().push(symptom);
        if let Some(from) = symptom.from {
            touching.entry(from).or_default().push(symptom);
        }
    }
    for (node, waits) in touching {
        let all = edge_count.get(&node).map_or(waits.len(), HashSet::len).max(waits.len());
        let slow = waits.iter().filter(|s| s.score > 5.0).count();
        let share = slow as f64 / all as f64;
        let strongest = waits.iter().find(|s| s.node == node).or(waits.first()).copied();
        let called_slow = waits.iter().any(|s| s.node == node && s.score > 20.0);
        if let Some(strongest) = strongest
            && (share > 0.5 || (share == 0.5 && all == 2 && called_slow))
        {
            let mut top: Vec<f64> = waits.iter().map(|s| s.score).collect();
            top.sort_by(|a, b| b.total_cmp(a));
            top.truncate(2);
            let score = top.iter().sum::<f64>() / top.len() as f64 * share;
            nodes.entry(node).or_default().push(Symptom { score, node, ..strongest.clone() });
        }
    }
    let score_of: HashMap<NodeId, f64> =
        nodes.iter().map(|(node, symptoms)| (*node, symptoms.iter().map(|s| s.score).fold(0.0, f64::max))).collect();
    let mut candidates: Vec<Candidate> = nodes
        .into_iter()
        .map(|(node, mut evidence)| {
            evidence.sort_by(|a, b| b.score.total_cmp(&a.score));
            let score = score_of[&node];
            let explained_by = (score > ODD)
                .then(|| {
                    edges
                        .iter()
                        .filter(|(from, to)| *from == node && *to != node)
                        .map(|(_, to)| *to)
                        .filter(|to| score_of.get(to).is_some_and(|theirs| *theirs > ODD && *theirs >= 0.3 * score))
                        .max_by(|a, b| score_of[a].total_cmp(&score_of[b]))
                })
                .flatten();
            Candidate { node, score, evidence, explained_by }
        })
        .collect();
    let class = |c: &Candidate| match (c.score > ODD, c.explained_by) {
        (true, None) => 0,
        (true, Some(_)) => 1,
        (false, _) => 2,
    };
    candidates.sort_by(|a, b| class(a).cmp(&class(b)).then(b.score.total_cmp(&a.score)).then(a.node.cmp(&b.node)));
    candidates
}
