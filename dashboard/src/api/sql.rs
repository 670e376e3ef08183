//! `POST /api/v1/sql`: `{"query"}` → `{"columns", "rows", "truncated"}`, read-only.

use super::respond;
use crate::App;
use crate::ask::ask;
use crate::error::ApiError;
use axum::extract::State;
use axum::response::Response;
use serde_json::json;

/// Rows of one answer: what a page can show and a script can hold. `limit` in the body asks for fewer.
const ROWS_MAX: usize = 10_000;

pub async fn answer(State(app): State<App>, body: String) -> Result<Response, ApiError> {
    let question: serde_json::Value = serde_json::from_str(&body)
        .map_err(|error| ApiError::bad_request(format!("the body is not JSON: {error}; send {{\"query\": \"SELECT …\"}}")))?;
    let Some(query) = question["query"].as_str().map(str::to_owned) else {
        return Err(ApiError::bad_request("the body has no \"query\"; send {\"query\": \"SELECT …\"}".to_owned()));
    };
    let limit = question["limit"].as_u64().map_or(ROWS_MAX, |l| (l as usize).min(ROWS_MAX));
    let answer = ask(&app, move |reader, budget| reader.sql(&query, limit, budget)).await?;
    Ok(respond(&json!({"columns": answer.columns, "rows": answer.rows, "truncated": answer.truncated})))
}
