//! `GET /api/v1/deliveries`: who was told of what, and what they answered; `POST …/{id}/resend` sends one again.

use super::respond;
use crate::App;
use crate::ask::{Query, ask};
use crate::error::ApiError;
use crate::times;
use axum::extract::{Path, State};
use axum::response::Response;
use firstfall_store::delivery::{Attempt, Delivery, DeliveryQuestion, DeliveryState};
use serde_json::{Value as Json, json};

/// What an address asks about deliveries.
pub fn question(query: &Query, limit: usize) -> Result<DeliveryQuestion, ApiError> {
    let own = |key| query.get(key).map(str::to_owned);
    let state = match query.get("state") {
        None | Some("all") => None,
        Some(word) => Some(
            DeliveryState::of(word)
                .ok_or_else(|| ApiError::bad_request(format!("state: {word:?} is none of pending, delivered, failed, all")))?,
        ),
    };
    let before = match query.get("next") {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| ApiError::bad_request(format!("next: {text:?} is not what an answer gave")))?),
    };
    Ok(DeliveryQuestion { receiver: own("receiver"), incident: own("incident"), state, id: own("id"), before, limit })
}

/// The cursor to what follows a full page.
pub fn next(deliveries: &[Delivery], limit: usize) -> Option<String> {
    deliveries.last().filter(|_| deliveries.len() == limit).map(|last| last.number.to_string())
}

fn attempt_json(attempt: &Attempt) -> Json {
    json!({"time": times::rfc3339(attempt.at), "took_ns": attempt.took_ns, "status": attempt.status, "answer": attempt.answer})
}

fn delivery_json(delivery: &Delivery) -> Json {
    let waits = delivery.state == DeliveryState::Pending;
    json!({
        "id": delivery.id,
        "receiver": delivery.receiver,
        "incident": delivery.incident,
        "event": delivery.event,
        "revision": delivery.revision,
        "state": delivery.state.word(),
        "reason": delivery.reason,
        "created_at": times::rfc3339(delivery.created_at),
        "next_attempt_at": waits.then(|| times::rfc3339(delivery.next_attempt_at)),
        "finished_at": delivery.finished_at.map(times::rfc3339),
        "attempts": delivery.attempts.iter().map(attempt_json).collect::<Vec<_>>(),
        "body": serde_json::from_str::<Json>(&delivery.body).unwrap_or(Json::Null),
    })
}

pub async fn list(State(app): State<App>, query: Query) -> Result<Response, ApiError> {
    let limit = query.limit(100, 1000)?;
    let question = question(&query, limit)?;
    let deliveries = ask(&app, move |reader, _| reader.deliveries(&question)).await?;
    Ok(respond(&json!({
        "deliveries": deliveries.iter().map(delivery_json).collect::<Vec<_>>(),
        "next": next(&deliveries, limit),
    })))
}

/// Puts a delivery back into the outbox; 404 when there is none that is finished.
pub async fn send_again(app: &App, id: String) -> Result<(), ApiError> {
    let alerting = app.alerting.clone();
    let wanted = id.clone();
    if ask(app, move |_, _| alerting.resend(&wanted)).await? {
        Ok(())
    } else {
        Err(ApiError::not_found(format!("there is no finished delivery {id:?}; one that waits is sent by itself")))
    }
}

pub async fn resend(State(app): State<App>, Path(id): Path<String>) -> Result<Response, ApiError> {
    send_again(&app, id.clone()).await?;
    Ok(respond(&json!({"id": id, "state": "pending"})))
}
