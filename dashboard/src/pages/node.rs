//! `/nodes/{node}`: a peer, which sends nothing itself, as those see it that call it. A service has a page of its own.

use super::edge::{href, node_href};
use super::{Frame, IncidentCard, Page, draw, incident_cards};
use crate::App;
use crate::api::incidents::topology_of;
use crate::ask::{Query, ask};
use crate::draw::number;
use crate::error::ApiError;
use crate::health::of_share;
use askama::Template;
use axum::extract::{Path, State};
use firstfall_store::incident::IncidentState;

#[derive(Template)]
#[template(path = "node.html")]
struct NodePage {
    frame: Frame,
    name: String,
    kind: String,
    state: String,
    reason: String,
    callers: Vec<CallerRow>,
    callees: Vec<CallerRow>,
    incidents: Vec<IncidentCard>,
}

struct CallerRow {
    name: String,
    href: String,
    edge: String,
    calls: String,
    errors: String,
    attempts: String,
    p95: String,
}

pub async fn show(State(app): State<App>, Path(wanted): Path<String>, query: Query) -> Page {
    let range = query.range()?;
    let topology = topology_of(&app, &Query::default(), range).await?;
    let Some(node) = topology.nodes.iter().find(|n| n.id == wanted).or_else(|| topology.nodes.iter().find(|n| n.name == wanted)) else {
        return Err(ApiError::not_found(format!("nothing called {wanted:?} was seen in this range; the map lists all nodes")).into());
    };
    let id = node.id.clone();
    let mut frame = Frame::new(&app, node.name.clone(), "map", &query, &range);
    frame.refresh = range.live;
    let row = |other: &str, edge: &firstfall_store::incident::TopologyEdge| {
        let other = topology.nodes.iter().find(|n| n.id == other);
        CallerRow {
            name: other.map_or(String::new(), |n| n.name.clone()),
            href: other.map_or(String::new(), |n| node_href(n, &frame.keep)),
            edge: href(&edge.from, &edge.to, &frame.keep),
            calls: number(edge.calls as f64 / topology.seconds),
            errors: number(100.0 * edge.errors as f64 / edge.calls.max(1) as f64),
            attempts: number(edge.attempts as f64 / edge.calls.max(1) as f64),
            p95: edge.quantiles_ms[1].map_or("–".to_owned(), number),
        }
    };
    let callers = topology.edges.iter().filter(|e| e.to == id).map(|e| row(&e.from, e)).collect();
    let callees = topology.edges.iter().filter(|e| e.from == id).map(|e| row(&e.to, e)).collect();
    let (errors, calls) = topology.edges.iter().filter(|e| e.to == id).fold((0, 0), |sum, e| (sum.0 + e.errors, sum.1 + e.calls));
    let incidents = ask(&app, move |reader, _| reader.incidents(IncidentState::All, range.from, u64::MAX, 200)).await?;
    let own: Vec<_> = incidents.into_iter().filter(|i| i.diagnosis.origins.iter().take(3).any(|o| o.node == id)).collect();
    draw(&NodePage {
        name: node.name.clone(),
        kind: node.kind.clone(),
        state: node.status.clone(),
        reason: of_share(errors, calls, "calls to it", app.objectives.of(&node.name)).1,
        callers,
        callees,
        incidents: incident_cards(&own, range.to),
        frame,
    })
}
