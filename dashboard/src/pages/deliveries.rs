//! `/alerts/deliveries`: who was told of what, what they answered, and once more if need be.

use super::{Frame, Page, draw};
use crate::App;
use crate::api::deliveries::{next, question, send_again};
use crate::ask::{Query, ask, encode};
use crate::error::PageError;
use crate::times;
use askama::Template;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Redirect, Response};
use firstfall_store::delivery::{Delivery, DeliveryState};

const ROWS: usize = 50;

#[derive(Template)]
#[template(path = "deliveries.html")]
struct Deliveries {
    frame: Frame,
    receivers: Vec<ReceiverRow>,
    rows: Vec<DeliveryRow>,
    states: Vec<(&'static str, String, bool)>,
    older: Option<String>,
    filtered: bool,
}

struct ReceiverRow {
    name: String,
    place: String,
    signed: bool,
    waiting: u64,
    delivered: u64,
    failed: u64,
    only: String,
}

/// A delivery in a list.
pub struct DeliveryRow {
    pub id: String,
    pub receiver: String,
    pub incident: String,
    pub event: String,
    pub state: &'static str,
    pub class: &'static str,
    pub created: String,
    pub words: String,
    pub attempts: Vec<[String; 4]>,
    pub body: String,
    pub resend: Option<String>,
}

pub fn rows(deliveries: &[Delivery], now: u64) -> Vec<DeliveryRow> {
    deliveries
        .iter()
        .map(|d| {
            let tries = match d.attempts.len() {
                0 => "not tried yet".to_owned(),
                1 => "1 attempt".to_owned(),
                n => format!("{n} attempts"),
            };
            let words = match d.state {
                DeliveryState::Delivered => tries,
                DeliveryState::Failed => format!("{}; {tries}", d.reason),
                DeliveryState::Pending if d.reason.is_empty() => tries,
                DeliveryState::Pending => {
                    format!("{}; {tries}; again in {}", d.reason, times::ago(d.next_attempt_at.saturating_sub(now)))
                }
            };
            DeliveryRow {
                id: d.id.clone(),
                receiver: d.receiver.clone(),
                incident: d.incident.clone(),
                event: d.event.replace('_', " "),
                state: d.state.word(),
                class: match d.state {
                    DeliveryState::Pending => "degraded",
                    DeliveryState::Delivered => "ok",
                    DeliveryState::Failed => "failing",
                },
                created: times::day_and_clock(d.created_at),
                words,
                attempts: d
                    .attempts
                    .iter()
                    .map(|a| {
                        let status = a.status.map_or("no answer".to_owned(), |status| status.to_string());
                        [times::day_and_clock(a.at), times::span_of(a.took_ns), status, a.answer.clone()]
                    })
                    .collect(),
                body: serde_json::from_str::<serde_json::Value>(&d.body)
                    .and_then(|body| serde_json::to_string_pretty(&body))
                    .unwrap_or_default(),
                resend: (d.state != DeliveryState::Pending).then(|| format!("/alerts/deliveries/{}/resend", encode(&d.id))),
            }
        })
        .collect()
}

pub async fn show(State(app): State<App>, query: Query) -> Page {
    let range = query.range()?;
    let mut frame = Frame::new(&app, "Deliveries", "alerts", &query, &range);
    frame.ranges.clear();
    let question = question(&query, ROWS)?;
    let (deliveries, counts) = ask(&app, move |reader, _| Ok((reader.deliveries(&question)?, reader.delivery_counts()?))).await?;
    frame.refresh = deliveries.iter().any(|d| d.state == DeliveryState::Pending);
    let count = |name: &str, state| counts.iter().find(|(n, s, _)| n == name && *s == state).map_or(0, |(.., count)| *count);
    let receivers = app
        .alerting
        .receivers()
        .into_iter()
        .map(|r| ReceiverRow {
            waiting: count(&r.name, DeliveryState::Pending),
            delivered: count(&r.name, DeliveryState::Delivered),
            failed: count(&r.name, DeliveryState::Failed),
            only: query.with(&[("receiver", Some(&r.name)), ("next", None)]),
            name: r.name,
            place: r.place,
            signed: r.signed,
        })
        .collect();
    let chosen = query.get("state").unwrap_or("all");
    let states = ["all", "pending", "failed", "delivered"]
        .into_iter()
        .map(|word| (word, format!("/alerts/deliveries{}", query.with(&[("state", Some(word)), ("next", None)])), word == chosen))
        .collect();
    let older = next(&deliveries, ROWS).map(|cursor| format!("/alerts/deliveries{}", query.with(&[("next", Some(&cursor))])));
    let filtered = ["receiver", "incident", "state", "id", "next"].into_iter().any(|key| query.get(key).is_some());
    draw(&Deliveries { frame, receivers, rows: rows(&deliveries, range.now), states, older, filtered })
}

pub async fn resend(State(app): State<App>, Path(id): Path<String>) -> Result<Response, PageError> {
    send_again(&app, id).await?;
    Ok(Redirect::to("/alerts/deliveries").into_response())
}
