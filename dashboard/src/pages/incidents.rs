//! `/incidents`: what fell, when, and whom it hurt.

use super::{Frame, IncidentCard, Page, draw, incident_cards};
use crate::App;
use crate::api::incidents::state_of;
use crate::ask::{Query, ask};
use askama::Template;
use axum::extract::State;

#[derive(Template)]
#[template(path = "incidents.html")]
struct Incidents {
    frame: Frame,
    incidents: Vec<IncidentCard>,
    states: Vec<(&'static str, String, bool)>,
}

pub async fn show(State(app): State<App>, query: Query) -> Page {
    let range = query.range()?;
    let frame = Frame::new(&app, "Incidents", "incidents", &query, &range);
    let state = state_of(&query)?;
    let incidents = ask(&app, move |reader, _| reader.incidents(state, range.from, range.to, 200)).await?;
    let chosen = query.get("state").unwrap_or("all");
    let states = ["all", "open", "closed"]
        .into_iter()
        .map(|word| (word, format!("/incidents{}", query.with(&[("state", Some(word))])), word == chosen))
        .collect();
    draw(&Incidents { frame, incidents: incident_cards(&incidents, range.to), states })
}
