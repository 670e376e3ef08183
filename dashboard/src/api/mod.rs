//! The JSON API under `/api/v1`. Fields may be added, never renamed.

pub mod changes;
pub mod deliveries;
pub mod incidents;
pub mod logs;
mod otlp;
pub mod services;
pub mod sql;
pub mod stats;
pub mod traces;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use firstfall_store::histogram::Histogram;
use firstfall_store::query::Item;
use firstfall_store::value::{Scope, pairs_to_json};
use serde_json::{Value as Json, json};

pub fn respond(body: &Json) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// p50, p95, p99 in milliseconds; null where nothing was measured.
pub fn latency(histogram: &Histogram) -> Json {
    let round = |q| histogram.quantile_ms(q).map(|ms| (ms * 1e4).round() / 1e4);
    json!({"p50": round(0.5), "p95": round(0.95), "p99": round(0.99)})
}

fn scope(scope: &Scope) -> Json {
    json!({"name": scope.name, "version": scope.version, "attributes": pairs_to_json(&scope.attributes)})
}

fn id(text: &str) -> Option<&str> {
    Some(text).filter(|t| !t.bytes().all(|b| b == b'0'))
}

fn span_id_of(item: &Item) -> Option<String> {
    id(&item.span_id.to_string()).map(str::to_owned)
}
