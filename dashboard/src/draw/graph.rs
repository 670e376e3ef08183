//! Graphs and swim lanes: who calls whom, and how a failure spread.

use super::{BOTTOM, NARROW, TOP, WIDE, escape, time_axis};
use crate::times;
use std::collections::HashMap;
use std::fmt::Write;

/// One edge of a map, by ids of nodes.
pub struct MapEdge {
    pub from: String,
    pub to: String,
    pub bad: bool,
    /// What a pointer that rests on it reads.
    pub title: String,
}

const BOX_WIDTH: f64 = 164.0;
const BOX_HEIGHT: f64 = 26.0;
const COLUMN: f64 = 236.0;
const ROW: f64 = 38.0;
/// A column is at most so tall; what is more goes to a second one beside it, so that a wide layer does not make a picture of one column.
const ROWS_MAX: usize = 24;

/// Columns from the callers to the callees. An edge that closes a cycle is ignored here and drawn backwards.
fn layers(count: usize, edges: &[(usize, usize)]) -> Vec<usize> {
    let mut outgoing = vec![Vec::new(); count];
    let mut incoming = vec![0usize; count];
    for (from, to) in edges.iter().filter(|(from, to)| from != to) {
        outgoing[*from].push(*to);
        incoming[*to] += 1;
    }
    let mut layer = vec![0usize; count];
    let mut done = vec![false; count];
    let mut ready: Vec<usize> = (0..count).filter(|node| incoming[*node] == 0).collect();
    for _ in 0..count {
        // What stands in a cycle waits for itself: the one with the fewest callers left begins.
        let node = match ready.pop().or_else(|| (0..count).filter(|n| !done[*n]).min_by_key(|n| (incoming[*n], *n))) {
            Some(node) => node,
            None => break,
        };
        if std::mem::replace(&mut done[node], true) {
            continue;
        }
        for to in &outgoing[node] {
            if !done[*to] {
                layer[*to] = layer[*to].max(layer[node] + 1);
                incoming[*to] -= 1;
                if incoming[*to] == 0 {
                    ready.push(*to);
                }
            }
        }
    }
    layer
}

/// Where each node stands: its column and its row.
fn places(count: usize, edges: &[(usize, usize)]) -> (Vec<(f64, f64)>, f64, f64) {
    let layer = layers(count, edges);
    let depth = layer.iter().max().map_or(0, |l| l + 1);
    let mut columns: Vec<Vec<usize>> = vec![Vec::new(); depth];
    for node in 0..count {
        columns[layer[node]].push(node);
    }
    // A node stands beside the middle of its callers: two sweeps untangle most of it.
    let mut height = vec![0.0f64; count];
    for _ in 0..2 {
        for column in &mut columns {
            let middle = |node: &usize| {
                let callers: Vec<f64> = edges.iter().filter(|(_, to)| to == node).map(|(from, _)| height[*from]).collect();
                if callers.is_empty() { height[*node] } else { callers.iter().sum::<f64>() / callers.len() as f64 }
            };
            let mut keyed: Vec<(f64, usize)> = column.iter().map(|node| (middle(node), *node)).collect();
            keyed.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            *column = keyed.into_iter().map(|(_, node)| node).collect();
            for (row, node) in column.iter().enumerate() {
                height[*node] = row as f64;
            }
        }
    }
    let mut places = vec![(0.0, 0.0); count];
    let (mut x, mut tallest) = (0.0, 0usize);
    for column in &columns {
        for part in column.chunks(ROWS_MAX) {
            for (row, node) in part.iter().enumerate() {
                places[*node] = (x, row as f64 * ROW + 4.0);
            }
            tallest = tallest.max(part.len());
            x += COLUMN;
        }
    }
    (places, (x - COLUMN + BOX_WIDTH + 8.0).max(BOX_WIDTH + 8.0), tallest as f64 * ROW)
}

fn short(name: &str) -> String {
    const CHARS: usize = 23;
    if name.chars().count() <= CHARS { name.to_owned() } else { name.chars().take(CHARS - 1).chain(['…']).collect() }
}

/// A drawing of nodes (id, name, kind) and edges; each node is a link.
pub fn map(nodes: &[(String, String, String)], edges: &[MapEdge], href: &dyn Fn(&str) -> String) -> String {
    let at: HashMap<&str, usize> = nodes.iter().enumerate().map(|(n, (id, ..))| (id.as_str(), n)).collect();
    let known: Vec<(&MapEdge, usize, usize)> =
        edges.iter().filter_map(|e| Some((e, *at.get(e.from.as_str())?, *at.get(e.to.as_str())?))).collect();
    let pairs: Vec<(usize, usize)> = known.iter().map(|(_, from, to)| (*from, *to)).collect();
    let (places, width, height) = places(nodes.len(), &pairs);
    let mut svg = format!(
        r#"<svg class="graph" width="{width:.0}" height="{height:.0}" viewBox="0 0 {width:.0} {height:.0}" role="img" aria-label="{} nodes and {} edges; the list below says the same">"#,
        nodes.len(),
        known.len()
    );
    svg.push_str(r#"<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path class="tip" d="M0 0L8 4L0 8z"/></marker><marker id="tip-bad" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path class="tip bad" d="M0 0L8 4L0 8z"/></marker></defs>"#);
    // What fails is drawn last, above the rest.
    let mut ordered = known;
    ordered.sort_by_key(|(edge, ..)| edge.bad);
    for (edge, from, to) in ordered {
        let (class, tip) = if edge.bad { ("edge bad", "tip-bad") } else { ("edge", "tip") };
        let (x1, y1) = (places[from].0 + BOX_WIDTH, places[from].1 + BOX_HEIGHT / 2.0);
        let (x2, y2) = (places[to].0, places[to].1 + BOX_HEIGHT / 2.0);
        let bend = ((x2 - x1).abs() / 2.0).clamp(24.0, 90.0);
        let _ = write!(
            svg,
            r#"<path class="{class}" marker-end="url(#{tip})" d="M{x1:.0} {y1:.0}C{:.0} {y1:.0} {:.0} {y2:.0} {x2:.0} {y2:.0}"><title>{}</title></path>"#,
            x1 + bend,
            x2 - bend,
            escape(&edge.title)
        );
    }
    for (node, (id, name, kind)) in nodes.iter().enumerate() {
        let (x, y) = places[node];
        let round = if kind.starts_with("service") { 6.0 } else { 13.0 };
        let _ = write!(
            svg,
            r#"<a href="{}"><title>{} ({})</title><rect class="node {}" x="{x:.0}" y="{y:.0}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="{round}"/><text class="label" x="{:.0}" y="{:.0}">{}</text></a>"#,
            escape(&href(id)),
            escape(name),
            escape(kind),
            escape(kind),
            x + 10.0,
            y + 17.0,
            escape(&short(name))
        );
    }
    svg.push_str("</svg>");
    svg
}

/// How a failure spread: arrows from the origin to its victims.
pub fn cascade(origin: &str, edges: &[(&str, &str)]) -> String {
    let mut names = vec![origin];
    for name in edges.iter().flat_map(|(from, to)| [*from, *to]) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let nodes: Vec<(String, String, String)> = names
        .iter()
        .map(|name| {
            ((*name).to_owned(), (*name).to_owned(), if *name == origin { "service origin".to_owned() } else { "service".to_owned() })
        })
        .collect();
    let edges: Vec<MapEdge> = edges
        .iter()
        .map(|(from, to)| MapEdge {
            from: (*from).to_owned(),
            to: (*to).to_owned(),
            bad: true,
            title: format!("{from} makes {to} fail or wait"),
        })
        .collect();
    format!(r#"<div class="scroll">{}</div>"#, map(&nodes, &edges, &|id| format!("/services/{}", crate::ask::encode(id))))
}

/// One lane: who, since when, in what words.
pub struct Lane<'a> {
    pub name: &'a str,
    pub onset: u64,
    pub words: String,
    pub origin: bool,
}

/// Swim lanes, ordered by onset: each is quiet up to its onset and sick from there to the end.
pub fn lanes(from: u64, to: u64, end: u64, lanes: &[Lane<'_>]) -> String {
    super::for_both(|across| lanes_across(across, from, to, end, lanes))
}

fn lanes_across(across: f64, from: u64, to: u64, end: u64, lanes: &[Lane<'_>]) -> String {
    const TALL: f64 = 26.0;
    let left = if across >= WIDE { 210.0 } else { 112.0 };
    let x = |time: u64| left + (across - left) * time.clamp(from, to).saturating_sub(from) as f64 / (to - from).max(1) as f64;
    let height = TOP + lanes.len() as f64 * TALL + BOTTOM;
    let mut svg = format!(
        r#"<svg class="chart" viewBox="0 0 {across} {height}" role="img" aria-label="{} services in the order in which they fell">"#,
        lanes.len()
    );
    time_axis(&mut svg, from, to, if across >= WIDE { 4 } else { 2 }, height, |time| x(time).max(left));
    for (row, lane) in lanes.iter().enumerate() {
        let y = TOP + row as f64 * TALL;
        let (start, stop) = (x(lane.onset), x(end));
        let class = if lane.origin { "bad" } else { "warn" };
        let name: String = if across <= NARROW { lane.name.chars().take(15).collect() } else { short(lane.name) };
        let _ = write!(
            svg,
            r#"<text class="lane-name" x="0" y="{:.1}">{}</text><line class="grid" x1="{left}" x2="{across}" y1="{:.1}" y2="{:.1}"/><rect class="{class}" x="{start:.1}" y="{:.1}" width="{:.1}" height="{:.1}" rx="3"><title>{}: since {}, {}</title></rect>"#,
            y + 16.0,
            escape(&name),
            y + TALL / 2.0,
            y + TALL / 2.0,
            y + 5.0,
            (stop - start).max(3.0),
            TALL - 10.0,
            escape(lane.name),
            times::clock(lane.onset),
            escape(&lane.words)
        );
    }
    svg.push_str("</svg>");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_stand_left_of_callees_and_cycles_end() {
        assert_eq!(layers(3, &[(0, 1), (1, 2), (0, 2)]), vec![0, 1, 2]);
        let cycle = layers(3, &[(0, 1), (1, 2), (2, 1)]);
        assert_eq!(cycle[0], 0);
        assert!(cycle[1] >= 1 && cycle[2] >= 1);
    }

    #[test]
    fn a_map_escapes_names() {
        let nodes = [("a".to_owned(), "<script>".to_owned(), "service".to_owned())];
        assert!(!map(&nodes, &[], &|id| id.to_owned()).contains("<script>"));
    }
}
