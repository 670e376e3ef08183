//! `/services/{service}`: health with its reason; rate, errors, latency over time; operations; instances; recent failures.

use super::{Frame, LogRow, Page, TraceRow, draw, log_rows, trace_rows};
use crate::App;
use crate::api::incidents::topology_of;
use crate::api::services::{has_parts, judged, parts_of};
use crate::ask::{Query, ask, encode};
use crate::draw::{Line, lines, number};
use crate::error::ApiError;
use crate::times;
use askama::Template;
use axum::extract::{Path, State};
use firstfall_store::incident::{TopologyEdge, TopologyNode};
use firstfall_store::part::PartCell;
use firstfall_store::query::{LogQuestion, SearchQuestion, ServiceQuestion};
use firstfall_store::sql::span_kind;

#[derive(Template)]
#[template(path = "service.html")]
struct ServicePage {
    frame: Frame,
    name: String,
    place: String,
    state: &'static str,
    reason: String,
    facts: Vec<(&'static str, String)>,
    rate_chart: String,
    error_chart: String,
    latency_chart: String,
    points: Vec<[String; 6]>,
    operations: Vec<OperationRow>,
    operations_total: usize,
    /// How many of the requests were joined.
    joined: String,
    instances: Vec<[String; 3]>,
    failed: Vec<TraceRow>,
    logs: Vec<LogRow>,
    name_encoded: String,
    others: Vec<(String, String)>,
    /// Title, rows, and what is said when there are none.
    around: [(&'static str, Vec<EdgeRow>, &'static str); 2],
}

struct EdgeRow {
    name: String,
    kind: String,
    href: String,
    calls: String,
    errors: String,
    failing: bool,
    mean: String,
}

fn edge_rows(edges: &[(&TopologyNode, &TopologyEdge)], seconds: f64, keep: &str) -> Vec<EdgeRow> {
    edges
        .iter()
        .take(ROWS_MAX)
        .map(|(node, edge)| EdgeRow {
            name: node.name.clone(),
            kind: node.kind.clone(),
            href: super::edge::href(&edge.from, &edge.to, keep),
            calls: number(edge.calls as f64 / seconds),
            errors: number(100.0 * edge.errors as f64 / edge.calls.max(1) as f64),
            failing: edge.errors * 100 > edge.calls && edge.calls >= 20,
            mean: number(edge.mean_ms),
        })
        .collect()
}

struct OperationRow {
    name: String,
    kind: &'static str,
    href: String,
    rate: String,
    errors: String,
    failing: bool,
    p50: String,
    p95: String,
    p99: String,
    /// Of its joined requests: percent that fail by themselves, percent that went well although a call failed, own time. Absent of calls.
    own: Option<[String; 3]>,
    begins: bool,
}

/// Operations and instances shown; the API has all.
const ROWS_MAX: usize = 200;

pub async fn show(State(app): State<App>, Path(name): Path<String>, query: Query) -> Page {
    let range = query.range()?;
    let mut frame = Frame::new(&app, name.clone(), "services", &query, &range);
    frame.refresh = range.live;
    let step = range.step();
    let question = ServiceQuestion { service: Some(name.clone()), step, ..query.services(&range) };
    let mut all = judged(&app, question.clone(), range).await?;
    all.sort_by_key(|s| std::cmp::Reverse(s.summary.items));
    if all.is_empty() {
        return Err(ApiError::not_found(format!("no service {name:?} was heard in {}", frame.range_words)).into());
    }
    let chosen = all.remove(0);
    let identity = chosen.summary.service.clone();
    let topology = topology_of(&app, &Query::default(), range).await?;
    let (callers, callees) = topology.around(&identity);
    let (callers, callees) = (edge_rows(&callers, topology.seconds, &frame.keep), edge_rows(&callees, topology.seconds, &frame.keep));
    let others = all
        .iter()
        .map(|o| {
            let s = &o.summary.service;
            (s.to_string(), query.with(&[("namespace", Some(&s.namespace)), ("environment", Some(&s.environment))]))
        })
        .collect();
    let exact =
        ServiceQuestion { namespace: Some(identity.namespace.clone()), environment: Some(identity.environment.clone()), ..question };
    let mut filter = query.filter(&range)?;
    filter.service = Some(name.clone());
    filter.namespace = Some(identity.namespace.clone());
    filter.environment = Some(identity.environment.clone());
    let mut failures = filter.clone();
    failures.error = Some(true);
    filter.kind_min = 13;
    let (operations, failed, logs) = ask(&app, move |reader, budget| {
        Ok((
            reader.operations(&exact, budget)?,
            reader.search_traces(&SearchQuestion { filter: failures, limit: 10, before: None }, budget)?,
            reader.search_logs(&LogQuestion { filter, limit: 10, after: None }, budget)?,
        ))
    })
    .await?;

    let summary = &chosen.summary;
    let seconds = step as f64 / 1e9;
    let series = |value: &dyn Fn(&firstfall_store::rollup::Cell) -> Option<f64>| {
        summary.points.iter().map(|p| (p.start, value(&p.cell))).collect::<Vec<_>>()
    };
    let quantile = |q: f64| series(&move |c| c.histogram.quantile_ms(q));
    let chart = |title, unit, drawn: &[Line<'_>]| lines(title, unit, range.from, range.to, step, drawn);
    let rate_chart = chart(
        "Requests per second",
        "requests/s",
        &[Line { class: "one", label: "rate", points: series(&|c| Some(c.calls as f64 / seconds)) }],
    );
    let error_chart = chart(
        "Failed requests in percent",
        "%",
        &[Line { class: "bad", label: "errors", points: series(&|c| (c.calls > 0).then(|| 100.0 * c.errors as f64 / c.calls as f64)) }],
    );
    let latency_chart = chart(
        "Latency in milliseconds",
        "ms",
        &[
            Line { class: "three", label: "p99", points: quantile(0.99) },
            Line { class: "two", label: "p95", points: quantile(0.95) },
            Line { class: "one", label: "p50", points: quantile(0.5) },
        ],
    );
    let ms = |value: Option<f64>| value.map_or("–".to_owned(), |ms| times::span_of((ms * 1e6) as u64));
    let points = summary
        .points
        .iter()
        .rev()
        .map(|p| {
            let h = &p.cell.histogram;
            [
                times::clock(p.start)[..8].to_owned(),
                p.cell.calls.to_string(),
                p.cell.errors.to_string(),
                ms(h.quantile_ms(0.5)),
                ms(h.quantile_ms(0.95)),
                ms(h.quantile_ms(0.99)),
            ]
        })
        .collect();
    let requests = &summary.requests;
    let (parts, has_parts) = (parts_of(&app, &identity, range).await?, has_parts(&operations));
    let joined = parts.values().map(|part| part.requests).sum::<u64>() as f64 / requests.calls.max(1) as f64;
    let own = |part: &PartCell| {
        let percent = |n: u64| format!("{:.1}", 100.0 * n as f64 / part.requests.max(1) as f64);
        [percent(part.own_errors), percent(part.absorbed), times::span_of(part.own_ns / part.requests.max(1))]
    };
    let operations_total = operations.len();
    let rows = operations
        .iter()
        .take(ROWS_MAX)
        .map(|o| OperationRow {
            name: o.name.clone(),
            kind: span_kind(o.kind),
            href: format!("/traces?service={}&operation={}{}", encode(&name), encode(&o.name), frame.keep.replacen('?', "&", 1)),
            rate: number(summary.rate(o.cell.calls, range.from, range.to)),
            errors: format!("{:.1}", 100.0 * o.cell.errors as f64 / o.cell.calls.max(1) as f64),
            failing: o.cell.errors > 0,
            p50: ms(o.cell.histogram.quantile_ms(0.5)),
            p95: ms(o.cell.histogram.quantile_ms(0.95)),
            p99: ms(o.cell.histogram.quantile_ms(0.99)),
            own: parts.get(&o.name).filter(|_| has_parts(o)).map(own),
            begins: parts.get(&o.name).is_some_and(|part| part.own_errors > 0),
        })
        .collect();
    let mut instances: Vec<_> = summary.instances.iter().collect();
    instances.sort_by_key(|i| std::cmp::Reverse(i.last_seen));
    let instances = instances
        .into_iter()
        .take(ROWS_MAX)
        .map(|i| {
            [
                if i.id.is_empty() { "–".to_owned() } else { i.id.clone() },
                if i.version.is_empty() { "–".to_owned() } else { i.version.clone() },
                format!("{} ago", times::ago(range.to.saturating_sub(i.last_seen))),
            ]
        })
        .collect();
    let facts = vec![
        ("requests/s", number(summary.rate(requests.calls, range.from, range.to))),
        ("errors", format!("{:.2} %", 100.0 * requests.errors as f64 / requests.calls.max(1) as f64)),
        ("p50", ms(requests.histogram.quantile_ms(0.5))),
        ("p95", ms(requests.histogram.quantile_ms(0.95))),
        ("p99", ms(requests.histogram.quantile_ms(0.99))),
        ("counted", format!("{} {}, exact", number(requests.calls as f64), if summary.by_roots { "root spans" } else { "requests" })),
    ];
    draw(&ServicePage {
        name_encoded: encode(&name),
        name,
        place: [identity.namespace, identity.environment].into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(" · "),
        state: chosen.health.word(),
        reason: chosen.reason.clone(),
        facts,
        rate_chart,
        error_chart,
        latency_chart,
        points,
        operations: rows,
        operations_total,
        joined: format!("{:.0} %", 100.0 * joined.min(1.0)),
        instances,
        failed: trace_rows(&failed.traces),
        logs: log_rows(&logs.logs),
        others,
        around: [("Who calls it", callers, "No call to it was seen."), ("Whom it calls", callees, "It calls nobody that was seen.")],
        frame,
    })
}
