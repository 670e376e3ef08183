//! `GET /api/v1/incidents`, `…/{id}`, `GET /api/v1/diagnosis`, `GET /api/v1/topology`: what fell first, and who calls whom.

use super::respond;
use super::services::{Judged, judged};
use crate::App;
use crate::ask::{Query, Range, ask};
use crate::error::ApiError;
use crate::health::{State as Health, of_share};
use crate::times;
use axum::extract::{Path, State};
use axum::response::Response;
use firstfall_store::incident::{Diagnosis, Hop, Incident, IncidentState, Topology, TopologyNode};
use serde_json::{Value as Json, json};
use std::collections::{HashMap, HashSet};

pub fn state_of(query: &Query) -> Result<IncidentState, ApiError> {
    match query.get("state") {
        None | Some("all") => Ok(IncidentState::All),
        Some("open") => Ok(IncidentState::Open),
        Some("closed") => Ok(IncidentState::Closed),
        Some(other) => Err(ApiError::bad_request(format!("state: {other:?} is none of open, closed, all"))),
    }
}

fn hop_json(hop: &Hop) -> Json {
    json!({"from": hop.from, "to": hop.to, "onset": times::rfc3339(hop.onset), "lag_s": hop.lag_s, "what": hop.what, "errors": hop.errors,
        "attempts_per_call": hop.attempts_per_call})
}

fn incident_json(incident: &Incident) -> Json {
    json!({
        "id": incident.id,
        "state": if incident.closed_at.is_some() { "closed" } else { "open" },
        "opened_at": times::rfc3339(incident.opened_at),
        "onset": times::rfc3339(incident.onset),
        "closed_at": incident.closed_at.map(times::rfc3339),
        "revision": incident.revision,
        "title": incident.title,
        "confidence": incident.diagnosis.confidence,
        "origins": incident.diagnosis.origins,
        "hops": incident.diagnosis.hops.iter().map(hop_json).collect::<Vec<_>>(),
        "impact": incident.impact,
        "trigger": incident.trigger,
        "severity": incident.severity.word(),
        "absorbed_by": incident.absorbed_by,
        "traces": incident.traces,
    })
}

pub async fn list(State(app): State<App>, query: Query) -> Result<Response, ApiError> {
    let range = query.range()?;
    let (state, limit) = (state_of(&query)?, query.limit(100, 1000)?);
    let incidents = ask(&app, move |reader, _| reader.incidents(state, range.from, range.to, limit)).await?;
    Ok(respond(&json!({"incidents": incidents.iter().map(incident_json).collect::<Vec<_>>()})))
}

pub async fn one(State(app): State<App>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let wanted = id.clone();
    let found = ask(&app, move |reader, _| Ok((reader.incident(&wanted)?, reader.incident_revisions(&wanted)?))).await?;
    let (Some(incident), revisions) = found else {
        return Err(ApiError::not_found(format!("there is no incident {id:?}")));
    };
    let mut answer = incident_json(&incident);
    answer["symptoms"] = json!(incident.diagnosis.symptoms);
    answer["evidence"] = json!(incident.diagnosis.origins.first().map(|o| &o.reasons));
    answer["rejected"] = json!(incident.diagnosis.rejected);
    answer["changes"] = incident.changes.iter().map(super::changes::change_json).collect();
    answer["timeline"] = revisions
        .iter()
        .map(|(at, i)| json!({"time": times::rfc3339(*at), "revision": i.revision, "title": i.title, "origin": i.diagnosis.origins.first().map(|o| &o.service)}))
        .collect();
    Ok(respond(&answer))
}

fn diagnosis_json(diagnosis: &Diagnosis) -> Json {
    json!({
        "origins": diagnosis.origins,
        "hops": diagnosis.hops.iter().map(hop_json).collect::<Vec<_>>(),
        "symptoms": diagnosis.symptoms,
        "rejected": diagnosis.rejected,
        "confidence": diagnosis.confidence,
    })
}

/// A diagnosis compares one stretch with what came before it; one of a day would compare habits.
const DIAGNOSIS_MAX: u64 = 6 * 3600 * 1_000_000_000;

pub async fn diagnosis(State(app): State<App>, query: Query) -> Result<Response, ApiError> {
    let range = query.range()?;
    if range.to - range.from > DIAGNOSIS_MAX {
        return Err(ApiError::bad_request(
            "from and to are more than six hours apart; ask about the time in which something was wrong".to_owned(),
        ));
    }
    let insight = app.insight.clone();
    let diagnosis = ask(&app, move |_, budget| insight.diagnose(range.from, range.to, budget)).await?;
    Ok(respond(&diagnosis_json(&diagnosis)))
}

/// Who calls whom, with the state of each node: of a service by its own requests, of a peer by the calls to it.
pub async fn topology_of(app: &App, query: &Query, range: Range) -> Result<Topology, ApiError> {
    let insight = app.insight.clone();
    let to = if range.live { range.to.saturating_add(60_000_000_000) } else { range.to };
    let mut topology = ask(app, move |_, _| insight.topology(range.from, to)).await?;
    let services = judged(app, query.services(&range), range).await?;
    let heard = services.iter().map(|judged| judged.summary.heard(range.from, range.to)).max();
    topology.seconds = heard.map_or(range.seconds(), |ns| (ns as f64 / 1e9).max(1.0));
    let open = ask(app, move |reader, _| reader.incidents(IncidentState::Open, range.from, u64::MAX, 100)).await?;
    let mut called: HashMap<&str, (u64, u64)> = HashMap::new();
    for edge in &topology.edges {
        let sum = called.entry(edge.to.as_str()).or_default();
        *sum = (sum.0 + edge.errors, sum.1 + edge.calls);
    }
    let own: HashMap<(&str, &str, &str), &Judged> = services
        .iter()
        .map(|judged| {
            let service = &judged.summary.service;
            ((service.name.as_str(), service.namespace.as_str(), service.environment.as_str()), judged)
        })
        .collect();
    for node in &mut topology.nodes {
        let state = match own.get(&(node.name.as_str(), node.namespace.as_str(), node.environment.as_str())) {
            Some(judged) if node.kind == "service" => judged.health,
            _ => called
                .get(node.id.as_str())
                .map_or(Health::Unknown, |(errors, calls)| of_share(*errors, *calls, "calls", app.objectives.of(&node.name)).0),
        };
        // What an open incident names is not well, whatever the average says.
        let state = if open.iter().any(|incident| incident.origin_node() == node.id) { Health::Failing } else { state };
        node.status = state.word().to_owned();
    }
    let wanted = |node: &TopologyNode| {
        query.get("environment").is_none_or(|e| node.environment == e) && query.get("namespace").is_none_or(|n| node.namespace == n)
    };
    if query.get("environment").is_some() || query.get("namespace").is_some() {
        let kept: HashSet<String> = topology.nodes.iter().filter(|n| wanted(n)).map(|n| n.id.clone()).collect();
        topology.edges.retain(|e| kept.contains(&e.from) || kept.contains(&e.to));
        let ends: HashSet<&str> = topology.edges.iter().flat_map(|e| [e.from.as_str(), e.to.as_str()]).collect();
        topology.nodes.retain(|n| kept.contains(&n.id) || ends.contains(n.id.as_str()));
    }
    Ok(topology)
}

pub async fn topology(State(app): State<App>, query: Query) -> Result<Response, ApiError> {
    let range = query.range()?;
    let topology = topology_of(&app, &query, range).await?;
    let edges: Vec<Json> = topology
        .edges
        .iter()
        .map(|e| {
            let [p50, p95, p99] = e.quantiles_ms;
            json!({"from": e.from, "to": e.to, "kind": e.kind, "calls": e.calls, "errors": e.errors, "attempts": e.attempts, "exact": !e.estimated,
                "latency_ms": {"p50": p50, "p95": p95, "p99": p99, "mean": e.mean_ms, "unexplained": e.gap_ms}})
        })
        .collect();
    Ok(respond(&json!({"nodes": topology.nodes, "edges": edges})))
}
