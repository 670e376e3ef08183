//! `/services`: all services, sorted and filtered by the address.

use super::{Frame, Page, ServiceRow, draw, service_rows, sort_services};
use crate::App;
use crate::api::services::judged;
use crate::ask::Query;
use askama::Template;
use axum::extract::State;

#[derive(Template)]
#[template(path = "services.html")]
struct Services {
    frame: Frame,
    q: String,
    hidden: Vec<(&'static str, String)>,
    sorts: Vec<Sort>,
    services: Vec<ServiceRow>,
    total: usize,
    truncated: bool,
}

/// The head of a column by which the list can be ordered.
struct Sort {
    label: &'static str,
    address: String,
    chosen: bool,
    number: bool,
}

/// Rows of one page; the filter finds the rest.
const ROWS_MAX: usize = 500;

pub async fn show(State(app): State<App>, query: Query) -> Page {
    let range = query.range()?;
    let mut frame = Frame::new(&app, "Services", "services", &query, &range);
    frame.refresh = range.live;
    let mut question = query.services(&range);
    question.step = range.step();
    let step = question.step;
    let judged = judged(&app, question, range).await?;
    let mut services = service_rows(&judged, &range, step, &frame.keep);
    let total = services.len();
    let q = query.get("q").unwrap_or("").to_lowercase();
    services.retain(|s| s.name.to_lowercase().contains(&q) || s.place.to_lowercase().contains(&q) || s.state == q);
    let sort = query.get("sort").unwrap_or("state").to_owned();
    sort_services(&mut services, &sort);
    let truncated = services.len() > ROWS_MAX;
    services.truncate(ROWS_MAX);
    let sorts = [("state", "State"), ("name", "Service"), ("rate", "Requests/s"), ("errors", "Errors %"), ("p95", "p95")]
        .into_iter()
        .map(|(key, label)| Sort {
            label,
            address: query.with(&[("sort", Some(key))]),
            chosen: sort == key,
            number: matches!(key, "rate" | "errors" | "p95"),
        })
        .collect();
    let hidden = ["from", "to", "sort"].into_iter().filter_map(|k| query.get(k).map(|v| (k, v.to_owned()))).collect();
    draw(&Services { frame, q, hidden, sorts, services, total, truncated })
}
