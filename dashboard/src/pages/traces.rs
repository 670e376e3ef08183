//! `/traces`: search by service, operation, status, duration and attributes.

use super::{Frame, Page, TraceRow, draw, trace_rows};
use crate::App;
use crate::api::traces::{cursor, read_cursor};
use crate::ask::{Query, ask};
use crate::draw::scatter;
use askama::Template;
use axum::extract::State;
use firstfall_store::query::{SearchQuestion, ServiceQuestion};

#[derive(Template)]
#[template(path = "traces.html")]
struct Traces {
    frame: Frame,
    hidden: Vec<(&'static str, String)>,
    services: Vec<String>,
    service: String,
    operation: String,
    status: String,
    min_duration: String,
    max_duration: String,
    attr: String,
    chart: String,
    traces: Vec<TraceRow>,
    next: Option<String>,
}

pub async fn show(State(app): State<App>, query: Query) -> Page {
    let range = query.range()?;
    let frame = Frame::new(&app, "Traces", "traces", &query, &range);
    let question = SearchQuestion {
        filter: query.filter(&range)?,
        limit: query.limit(50, 200)?,
        before: query.get("next").map(read_cursor).transpose()?,
    };
    let names = ServiceQuestion { service: None, namespace: None, environment: None, ..query.services(&range) };
    let (services, answer) =
        ask(&app, move |reader, budget| Ok((reader.services(&names, budget)?, reader.search_traces(&question, budget)?))).await?;
    let dots: Vec<_> = answer.traces.iter().map(|t| (t.start, t.duration, t.errors > 0, t.trace_id.to_string())).collect();
    let first = dots.iter().map(|d| d.0).min().unwrap_or(range.from).max(range.from);
    let last = dots.iter().map(|d| d.0).max().unwrap_or(range.to);
    let own = |key| query.get(key).unwrap_or("").to_owned();
    let mut services: Vec<String> = services.into_iter().map(|s| s.service.name).collect();
    services.dedup();
    draw(&Traces {
        chart: if dots.is_empty() { String::new() } else { scatter(first, last.max(first + 1_000_000_000), &dots) },
        hidden: ["from", "to", "namespace", "environment"].into_iter().filter_map(|k| query.get(k).map(|v| (k, v.to_owned()))).collect(),
        services,
        service: own("service"),
        operation: own("operation"),
        status: own("status"),
        min_duration: own("min_duration"),
        max_duration: own("max_duration"),
        attr: own("attr"),
        traces: trace_rows(&answer.traces),
        next: answer.next.map(|at| query.with(&[("next", Some(&cursor(at)))])),
        frame,
    })
}
