//! `GET /api/v1/logs`.

use super::{respond, scope, span_id_of};
use crate::App;
use crate::ask::{Query, ask};
use crate::error::ApiError;
use crate::times;
use axum::extract::State;
use axum::response::Response;
use firstfall_store::batch::Field;
use firstfall_store::query::{Item, LogQuestion};
use firstfall_store::value::{Value, pairs_to_json};
use serde_json::{Value as Json, json};

pub fn cursor(at: (u64, usize)) -> String {
    format!("{:x}-{}", at.0, at.1)
}

pub fn read_cursor(text: &str) -> Result<(u64, usize), ApiError> {
    let wrong = || ApiError::bad_request(format!("next: {text:?} was not given by an answer before"));
    let (time, skip) = text.split_once('-').ok_or_else(wrong)?;
    Ok((u64::from_str_radix(time, 16).map_err(|_| wrong())?, skip.parse().map_err(|_| wrong())?))
}

/// The text as the client sent it, or the name of the number's range.
pub fn severity(log: &Item) -> &str {
    let text = log.text(Field::SeverityText);
    if !text.is_empty() {
        return text;
    }
    match log.kind {
        1..=4 => "TRACE",
        5..=8 => "DEBUG",
        9..=12 => "INFO",
        13..=16 => "WARN",
        17..=20 => "ERROR",
        21..=24 => "FATAL",
        _ => "",
    }
}

pub async fn search(State(app): State<App>, query: Query) -> Result<Response, ApiError> {
    let range = query.range()?;
    let question = LogQuestion {
        filter: query.filter(&range)?,
        limit: query.limit(100, 5000)?,
        after: query.get("next").map(read_cursor).transpose()?,
    };
    let answer = ask(&app, move |reader, budget| reader.search_logs(&question, budget)).await?;
    let logs: Vec<Json> = answer
        .logs
        .iter()
        .map(|log| {
            json!({
                "time": times::rfc3339(log.time),
                "observed_time": times::rfc3339(log.end()),
                "service": log.service.name,
                "namespace": log.service.namespace,
                "environment": log.service.environment,
                "severity": severity(log),
                "severity_number": log.kind,
                "event_name": log.name,
                "body": log.field(Field::Body).map(Value::to_json),
                "attributes": pairs_to_json(&log.attributes),
                "resource": pairs_to_json(&log.resource.attributes),
                "scope": scope(&log.scope),
                "trace_id": log.trace_id.map(|id| id.to_string()),
                "span_id": span_id_of(log),
                "flags": log.int(Field::Flags),
            })
        })
        .collect();
    Ok(respond(&json!({"logs": logs, "next": answer.next.map(cursor), "scanned": answer.scanned})))
}
