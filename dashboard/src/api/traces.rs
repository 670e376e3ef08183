//! `GET /api/v1/traces` and `/api/v1/traces/{trace_id}`.

use super::{otlp, respond, scope, span_id_of};
use crate::App;
use crate::ask::{Query, ask};
use crate::error::ApiError;
use crate::times;
use axum::extract::{Path, State};
use axum::response::Response;
use firstfall_store::TraceId;
use firstfall_store::batch::Field;
use firstfall_store::query::{Item, SearchQuestion};
use firstfall_store::sql::{span_kind, status_name};
use firstfall_store::value::pairs_to_json;
use serde_json::{Value as Json, json};

/// Where the next page begins, as an opaque word: time and trace id.
pub fn cursor(at: (u64, TraceId)) -> String {
    format!("{:x}-{}", at.0, at.1)
}

pub fn read_cursor(text: &str) -> Result<(u64, TraceId), ApiError> {
    let wrong = || ApiError::bad_request(format!("next: {text:?} was not given by an answer before"));
    let (time, id) = text.split_once('-').ok_or_else(wrong)?;
    Ok((u64::from_str_radix(time, 16).map_err(|_| wrong())?, id.parse().map_err(|_| wrong())?))
}

pub async fn search(State(app): State<App>, query: Query) -> Result<Response, ApiError> {
    let range = query.range()?;
    let question = SearchQuestion {
        filter: query.filter(&range)?,
        limit: query.limit(20, 1000)?,
        before: query.get("next").map(read_cursor).transpose()?,
    };
    let answer = ask(&app, move |reader, budget| reader.search_traces(&question, budget)).await?;
    let traces: Vec<Json> = answer
        .traces
        .iter()
        .map(|trace| {
            json!({
                "trace_id": trace.trace_id.to_string(),
                "root_service": trace.root_service.name,
                "root_operation": trace.root_operation,
                "namespace": trace.root_service.namespace,
                "environment": trace.root_service.environment,
                "start": times::rfc3339(trace.start),
                "duration_ns": trace.duration,
                "spans": trace.spans,
                "errors": trace.errors,
                "services": trace.services.iter().map(|s| &s.name).collect::<Vec<_>>(),
            })
        })
        .collect();
    Ok(respond(&json!({"traces": traces, "next": answer.next.map(cursor), "scanned": answer.scanned})))
}

pub fn span_json(span: &Item) -> Json {
    json!({
        "span_id": span.span_id.to_string(),
        "parent_span_id": (span.parent_span_id.0 != 0).then(|| span.parent_span_id.to_string()),
        "service": span.service.name,
        "namespace": span.service.namespace,
        "environment": span.service.environment,
        "name": span.name,
        "kind": span_kind(span.kind),
        "start": times::rfc3339(span.time),
        "end": times::rfc3339(span.end()),
        "duration_ns": span.duration,
        "status": {"code": status_name(span.status()), "message": span.text(Field::StatusMessage)},
        "error": span.is_error(),
        "attributes": pairs_to_json(&span.attributes),
        "resource": pairs_to_json(&span.resource.attributes),
        "scope": scope(&span.scope),
        "events": span.events().iter().map(|e| json!({"time": times::rfc3339(e.time), "name": e.name, "attributes": pairs_to_json(&e.attributes)})).collect::<Vec<_>>(),
        "links": span.links().iter().map(|l| json!({"trace_id": l.trace_id.to_string(), "span_id": l.span_id.to_string(), "trace_state": l.trace_state, "attributes": pairs_to_json(&l.attributes)})).collect::<Vec<_>>(),
        "trace_state": span.text(Field::TraceState),
        "flags": span.int(Field::Flags),
        "dropped": {"attributes": span.int(Field::DroppedAttributes), "events": span.int(Field::DroppedEvents), "links": span.int(Field::DroppedLinks)},
    })
}

pub async fn one(State(app): State<App>, Path(text): Path<String>, query: Query) -> Result<Response, ApiError> {
    let id: TraceId = text.parse().map_err(|_| ApiError::bad_request(format!("{text:?} is not a trace id: 32 hexadecimal digits")))?;
    // A span in an answer under way takes about ten kilobytes; longer traces come in parts.
    let limit = query.limit(10_000, 50_000)?;
    let offset = match query.get("next") {
        Some(text) => text.parse().map_err(|_| ApiError::bad_request(format!("next: {text:?} was not given by an answer before")))?,
        None => 0,
    };
    let answer = ask(&app, move |reader, budget| reader.trace(id, offset, limit, budget)).await?;
    if answer.total == 0 {
        return Err(ApiError::not_found(format!(
            "no span of trace {id} is kept; it may be older than the retention, or not have arrived yet"
        )));
    }
    if query.get("format") == Some("otlp") {
        return Ok(respond(&otlp::traces(&answer.spans)));
    }
    let next = (offset + answer.spans.len() < answer.total).then(|| (offset + answer.spans.len()).to_string());
    let spans: Vec<Json> = answer.spans.iter().map(span_json).collect();
    debug_assert!(answer.spans.iter().all(|s| span_id_of(s).is_some()));
    Ok(respond(&json!({"trace_id": id.to_string(), "spans": spans, "total": answer.total, "next": next})))
}
