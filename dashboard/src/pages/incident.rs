//! `/incidents/{id}`: what fell first, how it spread, the evidence, whom it hurt, what was ruled out.

use super::deliveries::{DeliveryRow, rows as delivery_rows};
use super::{Frame, Page, draw};
use crate::App;
use crate::ask::{Query, Range, ask, encode};
use crate::draw::{Lane, cascade, lanes};
use crate::error::ApiError;
use crate::times;
use askama::Template;
use axum::extract::{Path, State};
use firstfall_store::delivery::DeliveryQuestion;
use firstfall_store::incident::Incident;

#[derive(Template)]
#[template(path = "incident.html")]
struct IncidentPage {
    frame: Frame,
    incident: Incident,
    state: &'static str,
    since: String,
    lasted: String,
    share: String,
    lanes: String,
    graph: String,
    hops: Vec<[String; 4]>,
    symptoms: Vec<[String; 5]>,
    timeline: Vec<[String; 3]>,
    changes: Vec<String>,
    window: String,
    told: Vec<DeliveryRow>,
    no_receivers: bool,
}

/// A minute before the onset and after the end is shown too.
const MARGIN: u64 = 60 * 1_000_000_000;

/// Deliveries that are listed on the page of an incident; the rest has a page of its own.
const TOLD_MAX: usize = 20;

pub async fn show(State(app): State<App>, Path(id): Path<String>, query: Query) -> Page {
    let wanted = id.clone();
    let (found, revisions, told) = ask(&app, move |reader, _| {
        let told = DeliveryQuestion { incident: Some(wanted.clone()), limit: TOLD_MAX, ..DeliveryQuestion::default() };
        Ok((reader.incident(&wanted)?, reader.incident_revisions(&wanted)?, reader.deliveries(&told)?))
    })
    .await?;
    let Some(incident) = found else {
        return Err(ApiError::not_found(format!("there is no incident {id:?}")).into());
    };
    let range = query.range()?;
    let end = incident.closed_at.unwrap_or(range.now.max(incident.opened_at));
    let shown = Range { from: incident.onset.saturating_sub(MARGIN), to: end.max(incident.onset + MARGIN), now: range.now, live: false };
    let mut frame = Frame::new(&app, incident.title.clone(), "incidents", &query, &range);
    frame.refresh = incident.closed_at.is_none();
    let origin = incident.diagnosis.origins.first().map(|o| o.service.clone()).unwrap_or_default();
    let mut rows = vec![Lane { name: &origin, onset: incident.onset, words: "origin".to_owned(), origin: true }];
    for hop in &incident.diagnosis.hops {
        if !rows.iter().any(|lane| lane.name == hop.to) {
            rows.push(Lane { name: &hop.to, onset: hop.onset, words: hop.what.clone(), origin: false });
        }
    }
    rows.truncate(40);
    let lanes = lanes(shown.from, shown.to, end, &rows);
    let edges: Vec<(&str, &str)> = incident.diagnosis.hops.iter().map(|h| (h.from.as_str(), h.to.as_str())).collect();
    let graph = cascade(&origin, &edges);
    let hops =
        incident.diagnosis.hops.iter().map(|h| [h.from.clone(), h.to.clone(), format!("{:+.0} s", h.lag_s), h.what.clone()]).collect();
    let symptoms = incident
        .diagnosis
        .symptoms
        .iter()
        .map(|s| [s.service.clone(), s.signal.replace('_', " "), s.what.clone(), crate::draw::number(s.harm), crate::draw::number(s.score)])
        .collect();
    let timeline = revisions
        .iter()
        .map(|(at, i)| {
            let what = if i.closed_at.is_some() {
                "closed".to_owned()
            } else {
                i.diagnosis.origins.first().map_or(String::new(), |o| format!("origin: {}", o.service))
            };
            [times::day_and_clock(*at), what, i.title.clone()]
        })
        .collect();
    draw(&IncidentPage {
        frame,
        state: if incident.closed_at.is_some() { "closed" } else { "open" },
        since: times::day_and_clock(incident.onset),
        lasted: times::ago(end.saturating_sub(incident.onset)),
        share: format!("{:.1} %", incident.impact.share * 100.0),
        lanes,
        graph,
        hops,
        symptoms,
        timeline,
        changes: incident.changes.iter().map(|c| format!("{}: {}, at {}", c.service, c.words(), times::day_and_clock(c.time))).collect(),
        window: format!("?from={}&to={}", encode(&times::rfc3339(shown.from)), encode(&times::rfc3339(shown.to))),
        told: delivery_rows(&told, range.now),
        no_receivers: app.alerting.receivers().is_empty(),
        incident,
    })
}
