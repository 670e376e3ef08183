//! `/logs`: search by words, severity, service and trace.

use super::{Frame, LogRow, Page, draw, log_rows};
use crate::App;
use crate::api::logs::{cursor, read_cursor};
use crate::ask::{Query, ask};
use crate::draw::bars;
use askama::Template;
use axum::extract::State;
use firstfall_store::query::{LogQuestion, ServiceQuestion};

#[derive(Template)]
#[template(path = "logs.html")]
struct Logs {
    frame: Frame,
    hidden: Vec<(&'static str, String)>,
    services: Vec<String>,
    q: String,
    service: String,
    min_severity: String,
    trace_id: String,
    attr: String,
    chart: String,
    logs: Vec<LogRow>,
    next: Option<String>,
}

pub async fn show(State(app): State<App>, query: Query) -> Page {
    let range = query.range()?;
    let frame = Frame::new(&app, "Logs", "logs", &query, &range);
    let question = LogQuestion {
        filter: query.filter(&range)?,
        limit: query.limit(100, 500)?,
        after: query.get("next").map(read_cursor).transpose()?,
    };
    let step = range.step();
    let counts = ServiceQuestion { step, ..query.services(&range) };
    let names = ServiceQuestion { service: None, step: 0, ..counts.clone() };
    let (services, buckets, answer) = ask(&app, move |reader, budget| {
        Ok((reader.services(&names, budget)?, reader.log_buckets(&counts, budget)?, reader.search_logs(&question, budget)?))
    })
    .await?;
    let drawn: Vec<_> = buckets.iter().map(|b| (b.start, [b.fine, b.warnings, b.errors])).collect();
    let own = |key| query.get(key).unwrap_or("").to_owned();
    let mut services: Vec<String> = services.into_iter().map(|s| s.service.name).collect();
    services.dedup();
    draw(&Logs {
        chart: bars("Log records by severity", range.from, range.to, step, &drawn),
        hidden: ["from", "to", "namespace", "environment"].into_iter().filter_map(|k| query.get(k).map(|v| (k, v.to_owned()))).collect(),
        services,
        q: own("q"),
        service: own("service"),
        min_severity: own("min_severity"),
        trace_id: own("trace_id"),
        attr: own("attr"),
        logs: log_rows(&answer.logs),
        next: answer.next.map(|at| query.with(&[("next", Some(&cursor(at)))])),
        frame,
    })
}
