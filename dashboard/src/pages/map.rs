//! `/map`: who calls whom, as a drawing and as a list; all of it, what fails, or the neighbours of one node.

use super::{Frame, Page, draw};
use crate::App;
use crate::api::incidents::topology_of;
use crate::ask::{Query, encode};
use crate::draw::{MapEdge, map, number};
use askama::Template;
use axum::extract::State;
use firstfall_store::incident::TopologyEdge;
use std::collections::HashMap;

#[derive(Template)]
#[template(path = "map.html")]
struct Map {
    frame: Frame,
    drawing: String,
    rows: Vec<Row>,
    nodes: usize,
    edges: usize,
    focus: String,
    failing: bool,
    failing_address: String,
    whole_address: String,
}

struct Row {
    from: String,
    to: String,
    from_href: String,
    to_href: String,
    edge_href: String,
    p95: String,
    attempts: String,
    kind: String,
    calls: u64,
    errors: String,
    bad: bool,
    mean: String,
    gap: String,
}

/// More nodes than this are a list, not a picture.
const DRAWN_MAX: usize = 300;
const ROWS_MAX: usize = 1000;
/// An edge fails when more of its calls do than an objective lets (1 %).
const FAILING: f64 = 0.01;

fn name_of(names: &HashMap<String, String>, id: &str) -> String {
    names.get(id).cloned().unwrap_or_else(|| id.to_owned())
}

fn fails(edge: &TopologyEdge) -> bool {
    edge.calls >= 20 && edge.errors as f64 > FAILING * edge.calls as f64
}

pub async fn show(State(app): State<App>, query: Query) -> Page {
    let range = query.range()?;
    let frame = Frame::new(&app, "Map", "map", &query, &range);
    let mut topology = topology_of(&app, &query, range).await?;
    let focus = query.get("focus").unwrap_or("").to_owned();
    let failing = query.get("show") == Some("failing");
    if !focus.is_empty() {
        topology.edges.retain(|e| e.from == focus || e.to == focus);
    }
    if failing {
        topology.edges.retain(fails);
    }
    if failing || !focus.is_empty() {
        let edges = &topology.edges;
        topology.nodes.retain(|n| n.id == focus || edges.iter().any(|e| e.from == n.id || e.to == n.id));
    }
    let names: HashMap<String, String> = topology.nodes.iter().map(|n| (n.id.clone(), n.name.clone())).collect();
    let drawing = if topology.nodes.len() <= DRAWN_MAX {
        let nodes: Vec<(String, String, String)> =
            topology.nodes.iter().map(|n| (n.id.clone(), n.name.clone(), format!("{} {}", n.kind, n.status))).collect();
        let edges: Vec<MapEdge> = topology
            .edges
            .iter()
            .map(|e| MapEdge {
                from: e.from.clone(),
                to: e.to.clone(),
                bad: fails(e),
                title: format!("{} calls, {} failed, p95 {} ms", e.calls, e.errors, e.quantiles_ms[1].map_or("–".to_owned(), number)),
            })
            .collect();
        let keep = query.with(&[("focus", None), ("show", None)]);
        map(&nodes, &edges, &|id| format!("/map{}{}focus={}", keep, if keep.is_empty() { "?" } else { "&" }, encode(id)))
    } else {
        String::new()
    };
    let focus_on = |id: &str| format!("/map{}", query.with(&[("focus", Some(id)), ("show", None)]));
    let mut rows: Vec<Row> = topology
        .edges
        .iter()
        .map(|e| Row {
            from: name_of(&names, &e.from),
            to: name_of(&names, &e.to),
            from_href: focus_on(&e.from),
            to_href: focus_on(&e.to),
            edge_href: super::edge::href(&e.from, &e.to, &frame.keep),
            p95: e.quantiles_ms[1].map_or("–".to_owned(), number),
            attempts: number(e.attempts as f64 / e.calls.max(1) as f64),
            kind: e.kind.clone(),
            calls: e.calls,
            errors: number(100.0 * e.errors as f64 / e.calls.max(1) as f64),
            bad: fails(e),
            mean: number(e.mean_ms),
            gap: number(e.gap_ms),
        })
        .collect();
    rows.sort_by(|a, b| b.bad.cmp(&a.bad).then(b.calls.cmp(&a.calls)).then_with(|| (&a.from, &a.to).cmp(&(&b.from, &b.to))));
    rows.truncate(ROWS_MAX);
    draw(&Map {
        frame,
        drawing,
        nodes: topology.nodes.len(),
        edges: topology.edges.len(),
        rows,
        focus: if focus.is_empty() { String::new() } else { name_of(&names, &focus) },
        failing,
        failing_address: format!("/map{}", query.with(&[("show", Some("failing"))])),
        whole_address: format!("/map{}", query.with(&[("show", None), ("focus", None)])),
    })
}
