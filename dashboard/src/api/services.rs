//! `GET /api/v1/services`, `…/{service}`, `…/{service}/red`: rates, errors and latency from rollups.

use super::incidents::topology_of;
use super::{latency, respond};
use crate::App;
use crate::ask::{Query, Range, ask};
use crate::error::ApiError;
use crate::health::{Absence, SILENT_AFTER, State as Health, is_quiet, judge};
use crate::{Insight, times};
use axum::extract::{Path, State};
use axum::response::Response;
use firstfall_store::incident::{TopologyEdge, TopologyNode};
use firstfall_store::node::{Node, NodeKind};
use firstfall_store::part::PartCell;
use firstfall_store::query::{Operation, ServiceQuestion, ServiceSummary};
use firstfall_store::sql::span_kind;
use firstfall_store::{Error, Reader, Service};
use serde_json::{Value as Json, json};
use std::collections::{HashMap, HashSet};

/// A service's health rests on the last five minutes of the range.
const RECENT: u64 = 300 * 1_000_000_000;
const MINUTE: u64 = 60 * 1_000_000_000;

pub struct Judged {
    pub summary: ServiceSummary,
    pub health: Health,
    pub reason: String,
}

/// All services of the range with their states, in the order of their names.
pub async fn judged(app: &App, question: ServiceQuestion, range: Range) -> Result<Vec<Judged>, ApiError> {
    let question = ServiceQuestion { recent_from: (range.to.saturating_sub(RECENT) / MINUTE * MINUTE).max(range.from), ..question };
    let (objectives, insight) = (app.objectives.clone(), app.insight.clone());
    ask(app, move |reader, budget| {
        let services = reader.services(&question, budget)?;
        let quiet = services.iter().filter(|summary| is_quiet(summary, range.to));
        let absences = absences(reader, &*insight, quiet, range.to)?;
        Ok(services
            .into_iter()
            .map(|summary| {
                let absence = absences.get(&summary.service).unwrap_or(&UNSAID);
                let (health, reason) = judge(&summary, range.to, objectives.of(&summary.service.name), absence);
                Judged { summary, health, reason }
            })
            .collect())
    })
    .await
}

const UNSAID: Absence = Absence { calls: 0, failed: 0, scaled_down: None };
/// Changes that are looked through for one that says why a service is quiet.
const CHANGES_MAX: usize = 500;

/// What callers, and whoever scales, say of services that are not heard.
fn absences<'a>(
    reader: &Reader,
    insight: &dyn Insight,
    quiet: impl Iterator<Item = &'a ServiceSummary>,
    end: u64,
) -> Result<HashMap<Service, Absence>, Error> {
    let mut absences: HashMap<Service, Absence> = HashMap::new();
    let mut ids: HashMap<String, Service> = HashMap::new();
    let mut last_seen: HashMap<Service, u64> = HashMap::new();
    let mut oldest = end;
    for summary in quiet {
        let service = summary.service.clone();
        oldest = oldest.min(summary.last_seen);
        ids.insert(Node { kind: NodeKind::Service, service: service.clone() }.id(), service.clone());
        last_seen.insert(service.clone(), summary.last_seen);
        absences.insert(service, Absence::default());
    }
    if absences.is_empty() {
        return Ok(absences);
    }
    // Whole minutes in which none of them was heard.
    let topology = insight.topology(end.saturating_sub(SILENT_AFTER).div_ceil(MINUTE) * MINUTE, end)?;
    for edge in &topology.edges {
        if let Some(absence) = ids.get(&edge.to).and_then(|service| absences.get_mut(service)) {
            absence.calls += edge.calls;
            absence.failed += edge.errors;
        }
    }
    for change in reader.changes(oldest.saturating_sub(RECENT), end, None, CHANGES_MAX)? {
        let service =
            Service { name: change.service.clone(), namespace: change.namespace.clone(), environment: change.environment.clone() };
        // What is only seen never tells that the last instance was meant to go.
        if let Some(absence) = absences.get_mut(&service).filter(|_| {
            let to_nothing = matches!(change.to.trim(), "" | "0");
            change.told && change.kind == "scale_down" && to_nothing && change.time + RECENT >= last_seen[&service]
        }) {
            absence.scaled_down = absence.scaled_down.max(Some(change.time));
        }
    }
    Ok(absences)
}

fn service_json(judged: &Judged, range: &Range) -> Json {
    let Judged { summary, health, reason } = judged;
    let requests = &summary.requests;
    json!({
        "name": summary.service.name,
        "service": summary.service.name,
        "namespace": summary.service.namespace,
        "environment": summary.service.environment,
        "status": health.word(),
        "reason": reason,
        "request_rate": summary.rate(requests.calls, range.from, range.to),
        "error_ratio": if requests.calls == 0 { 0.0 } else { requests.errors as f64 / requests.calls as f64 },
        "latency_ms": latency(&requests.histogram),
        "requests": requests.calls,
        "errors": requests.errors,
        "versions": summary.versions(),
        "instances": summary.instances.iter().filter(|i| !i.id.is_empty()).count().max(usize::from(!summary.instances.is_empty())),
        "last_seen": times::rfc3339(summary.last_seen),
        "by_roots": summary.by_roots,
        "exact": !requests.estimated,
    })
}

/// What a service did by itself of its requests, by operation. Traces are joined some seconds after their spans are counted, and not all of them when there is
/// much to do: how many were is said beside it.
pub async fn parts_of(app: &App, service: &Service, range: Range) -> Result<HashMap<String, PartCell>, ApiError> {
    let insight = app.insight.clone();
    let node = Node { kind: NodeKind::Service, service: service.clone() }.id();
    let to = if range.live { range.to.saturating_add(60_000_000_000) } else { range.to };
    Ok(ask(app, move |_, _| insight.parts(&node, range.from, to)).await?.into_iter().collect())
}

/// Whose requests these are, by name and kind: of the spans that take requests in, and of others only where none of their name does.
pub fn has_parts(operations: &[Operation]) -> impl Fn(&Operation) -> bool + use<> {
    let takes_in = |operation: &Operation| matches!(span_kind(operation.kind), "server" | "consumer");
    let taken_in: HashSet<String> = operations.iter().filter(|o| takes_in(o)).map(|o| o.name.clone()).collect();
    move |operation| {
        takes_in(operation) || (matches!(span_kind(operation.kind), "internal" | "unspecified") && !taken_in.contains(&operation.name))
    }
}

fn part_json(part: &PartCell) -> Json {
    let mean_ms = |ns: u64| ns as f64 / 1e6 / part.requests.max(1) as f64;
    json!({"requests": part.requests, "errors": part.failed, "own_errors": part.own_errors, "absorbed_errors": part.absorbed,
        "mean_ms": mean_ms(part.sum_ns), "own_time_ms": mean_ms(part.own_ns), "exact": !part.estimated})
}

pub async fn list(State(app): State<App>, query: Query) -> Result<Response, ApiError> {
    let range = query.range()?;
    let services = judged(&app, query.services(&range), range).await?;
    Ok(respond(&json!({"services": services.iter().map(|s| service_json(s, &range)).collect::<Vec<_>>()})))
}

pub async fn one(State(app): State<App>, Path(name): Path<String>, query: Query) -> Result<Response, ApiError> {
    let range = query.range()?;
    let question = ServiceQuestion { service: Some(name.clone()), ..query.services(&range) };
    let mut services = judged(&app, question.clone(), range).await?;
    // One name in several environments: the busiest, the others are named beside it.
    services.sort_by_key(|s| std::cmp::Reverse(s.summary.items));
    let Some(service) = services.first() else {
        return Err(ApiError::not_found(format!("no service {name:?} was heard in this range")));
    };
    let identity = service.summary.service.clone();
    let exact =
        ServiceQuestion { namespace: Some(identity.namespace.clone()), environment: Some(identity.environment.clone()), ..question };
    let topology = topology_of(&app, &Query::default(), range).await?;
    let (callers, callees) = topology.around(&identity);
    let side = |edges: &[(&TopologyNode, &TopologyEdge)]| -> Json {
        edges
            .iter()
            .map(|(node, edge)| {
                json!({"node": node.id, "service": node.name, "namespace": node.namespace, "environment": node.environment, "kind": node.kind,
                    "status": node.status, "calls": edge.calls, "errors": edge.errors, "attempts": edge.attempts, "exact": !edge.estimated,
                    "latency_ms": {"p50": edge.quantiles_ms[0], "p95": edge.quantiles_ms[1], "p99": edge.quantiles_ms[2],
                        "mean": edge.mean_ms, "unexplained": edge.gap_ms}})
            })
            .collect()
    };
    let operations = ask(&app, move |reader, budget| reader.operations(&exact, budget)).await?;
    let (parts, has_parts) = (parts_of(&app, &identity, range).await?, has_parts(&operations));
    let operations: Vec<Json> = operations
        .iter()
        .map(|operation| {
            json!({
                "name": operation.name,
                "kind": span_kind(operation.kind),
                "requests": operation.cell.calls,
                "errors": operation.cell.errors,
                "latency_ms": latency(&operation.cell.histogram),
                "joined": parts.get(&operation.name).filter(|_| has_parts(operation)).map(part_json),
            })
        })
        .collect();
    let mut answer = service_json(service, &range);
    answer["operations"] = Json::Array(operations);
    answer["callers"] = side(&callers);
    answer["callees"] = side(&callees);
    answer["instance_list"] = service
        .summary
        .instances
        .iter()
        .map(|i| json!({"id": i.id, "version": i.version, "last_seen": times::rfc3339(i.last_seen)}))
        .collect();
    Ok(respond(&answer))
}

pub async fn red(State(app): State<App>, Path(name): Path<String>, query: Query) -> Result<Response, ApiError> {
    let range = query.range()?;
    let step = match query.get("step") {
        Some(text) => times::duration(text).map_err(|e| ApiError::bad_request(format!("step: {e}")))?,
        None => range.step(),
    };
    // A page of points has an end: a day at ten seconds.
    const POINTS_MAX: u64 = 10_000;
    let step = step.max(10_000_000_000);
    if (range.to - range.from) / step > POINTS_MAX {
        return Err(ApiError::bad_request(format!("step: the range would have more than {POINTS_MAX} points; ask for a wider step")));
    }
    let question = ServiceQuestion { service: Some(name.clone()), step, ..query.services(&range) };
    let services = ask(&app, move |reader, budget| reader.services(&question, budget)).await?;
    let Some(service) = services.into_iter().max_by_key(|s| s.items) else {
        return Err(ApiError::not_found(format!("no service {name:?} was heard in this range")));
    };
    let points: Vec<Json> = service
        .points
        .iter()
        .map(|point| {
            json!({
                "time": times::rfc3339(point.start),
                "requests": point.cell.calls,
                "errors": point.cell.errors,
                "latency_ms": latency(&point.cell.histogram),
            })
        })
        .collect();
    let exact = !service.points.iter().any(|point| point.cell.estimated);
    Ok(respond(
        &json!({"service": service.service.name, "namespace": service.service.namespace, "environment": service.service.environment,
        "step_ns": step, "exact": exact, "points": points}),
    ))
}
