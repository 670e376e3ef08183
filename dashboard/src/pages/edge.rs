//! `/edges/{caller}/{callee}`: the calls from one node to another, as the caller sees them and as the callee does.

use super::changes::ChangeRow;
use super::{Frame, Page, TraceRow, changes, draw, trace_rows};
use crate::App;
use crate::api::changes::changes as changes_of;
use crate::api::incidents::topology_of;
use crate::ask::{Query, ask, encode};
use crate::draw::{Line, lines, number};
use crate::error::ApiError;
use crate::health::of_share;
use crate::times;
use askama::Template;
use axum::extract::{Path, State};
use firstfall_store::incident::TopologyNode;
use firstfall_store::query::SearchQuestion;

#[derive(Template)]
#[template(path = "edge.html")]
struct EdgePage {
    frame: Frame,
    caller: String,
    callee: String,
    caller_href: String,
    callee_href: String,
    state: &'static str,
    reason: String,
    estimated: bool,
    facts: Vec<(&'static str, String)>,
    views: Vec<[String; 3]>,
    charts: [(&'static str, String); 3],
    points: Vec<[String; 6]>,
    failed: Vec<TraceRow>,
    /// When breakers of the caller opened and closed.
    breakers: Vec<ChangeRow>,
}

/// The latest that are listed, among so many changes of the caller.
const BREAKERS_MAX: usize = 20;
const CHANGES_MAX: usize = 1000;

pub fn href(caller: &str, callee: &str, keep: &str) -> String {
    format!("/edges/{}/{}{keep}", encode(caller), encode(callee))
}

/// The page of a node: of a service its own, of a peer that of the peer.
pub fn node_href(node: &TopologyNode, keep: &str) -> String {
    if node.kind == "service" { format!("/services/{}{keep}", encode(&node.name)) } else { format!("/nodes/{}{keep}", encode(&node.id)) }
}

pub async fn show(State(app): State<App>, Path((caller, callee)): Path<(String, String)>, query: Query) -> Page {
    let range = query.range()?;
    let topology = topology_of(&app, &Query::default(), range).await?;
    let node = |id: &str| topology.nodes.iter().find(|n| n.id == id);
    // By id, or by a name that people type.
    let is = |id: &str, wanted: &str| id == wanted || node(id).is_some_and(|n| n.name == wanted);
    let found = topology.edges.iter().filter(|e| is(&e.from, &caller) && is(&e.to, &callee)).max_by_key(|e| e.calls);
    let ends = found.map(|edge| (edge, node(&edge.from), node(&edge.to)));
    let Some((edge, Some(from), Some(to))) = ends else {
        return Err(
            ApiError::not_found(format!("no call from {caller:?} to {callee:?} was seen in this range; the map lists all edges")).into()
        );
    };
    let mut frame = Frame::new(&app, format!("{} → {}", from.name, to.name), "map", &query, &range);
    frame.refresh = range.live;
    let insight = app.insight.clone();
    let (one, other) = (edge.from.clone(), edge.to.clone());
    let points = ask(&app, move |_, _| insight.edge_points(&one, &other, range.from, range.to)).await?;
    let mut filter = query.filter(&range)?;
    filter.service = Some(from.name.clone());
    filter.error = Some(true);
    let failed = match from.kind.as_str() {
        "service" => {
            let search = SearchQuestion { filter, limit: 8, before: None };
            trace_rows(&ask(&app, move |reader, budget| reader.search_traces(&search, budget)).await?.traces)
        }
        _ => Vec::new(),
    };
    // A breaker has the name that its service gave it; whose calls it guards, telemetry does not say.
    let mut breakers = changes_of(&app, &Query::of(&[("service", &from.name)]), &range, CHANGES_MAX).await?;
    breakers.retain(|c| c.kind == "breaker" && c.namespace == from.namespace && c.environment == from.environment);
    breakers.truncate(BREAKERS_MAX);
    let (state, reason) = of_share(edge.errors, edge.calls, "calls", app.objectives.of(&to.name));
    let ms = |value: Option<f64>| value.map_or("–".to_owned(), |ms| times::span_of((ms * 1e6) as u64));
    let [p50, p95, p99] = edge.quantiles_ms;
    let attempts = edge.attempts as f64 / edge.calls.max(1) as f64;
    let facts = vec![
        ("calls/s", number(edge.calls as f64 / topology.seconds)),
        ("failed", format!("{:.2} %", 100.0 * edge.errors as f64 / edge.calls.max(1) as f64)),
        ("attempts a call", number(attempts)),
        ("p50", ms(p50)),
        ("p95", ms(p95)),
        ("p99", ms(p99)),
    ];
    let explained = (edge.mean_ms - edge.gap_ms).max(0.0);
    let speaks = to.kind == "service";
    let callee_view = if speaks { "Its span took, on average" } else { "It sends nothing itself" };
    let views = vec![
        ["The caller waits, on average".to_owned(), ms(Some(edge.mean_ms)), "from its own span".to_owned()],
        [callee_view.to_owned(), if speaks { ms(Some(explained)) } else { "–".to_owned() }, "what the callee explains of that".to_owned()],
        [
            "Neither explains".to_owned(),
            ms(Some(if speaks { edge.gap_ms } else { edge.mean_ms })),
            if speaks {
                "network, queueing, or requests that never arrived".to_owned()
            } else {
                "network and the peer together".to_owned()
            },
        ],
    ];
    let step = points.first().map_or(60_000_000_000, |(_, width, _)| *width);
    let series = |value: &dyn Fn(&firstfall_store::edge::EdgeCell, f64) -> Option<f64>| -> Vec<(u64, Option<f64>)> {
        points.iter().map(|(at, width, cell)| (*at, value(cell, *width as f64 / 1e9))).collect()
    };
    let quantile = |q: f64| series(&move |cell, _| cell.durations.quantile_ms(q));
    let chart = |title, unit, drawn: &[Line<'_>]| lines(title, unit, range.from, range.to, step, drawn);
    let charts = [
        (
            "Calls per second",
            chart(
                "Calls per second, and attempts",
                "calls/s",
                &[
                    Line { class: "two", label: "attempts", points: series(&|c, seconds| Some(c.attempts as f64 / seconds)) },
                    Line { class: "one", label: "calls", points: series(&|c, seconds| Some(c.calls() as f64 / seconds)) },
                ],
            ),
        ),
        (
            "Failed, %",
            chart(
                "Failed calls in percent",
                "%",
                &[Line {
                    class: "bad",
                    label: "failed",
                    points: series(&|c, _| (c.calls() > 0).then(|| 100.0 * c.failed_calls() as f64 / c.calls() as f64)),
                }],
            ),
        ),
        (
            "What the caller waits, ms",
            chart(
                "What the caller waits in milliseconds",
                "ms",
                &[
                    Line { class: "three", label: "p99", points: quantile(0.99) },
                    Line { class: "two", label: "p95", points: quantile(0.95) },
                    Line { class: "one", label: "p50", points: quantile(0.5) },
                ],
            ),
        ),
    ];
    let rows = points
        .iter()
        .rev()
        .take(120)
        .map(|(at, _, cell)| {
            [
                times::clock(*at)[..8].to_owned(),
                cell.calls().to_string(),
                cell.attempts.to_string(),
                cell.failed_calls().to_string(),
                ms(cell.durations.quantile_ms(0.5)),
                ms(cell.durations.quantile_ms(0.95)),
            ]
        })
        .collect();
    draw(&EdgePage {
        caller: from.name.clone(),
        callee: to.name.clone(),
        caller_href: node_href(from, &frame.keep),
        callee_href: node_href(to, &frame.keep),
        state: state.word(),
        reason,
        estimated: edge.estimated,
        facts,
        views,
        charts,
        points: rows,
        failed,
        breakers: changes::rows(&breakers, &[]),
        frame,
    })
}
