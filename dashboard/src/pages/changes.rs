//! `/changes`: versions, restarts, growth, breakers and whatever somebody told, each beside the incidents that began soon after.

use super::{Frame, Page, draw};
use crate::App;
use crate::api::changes::changes;
use crate::ask::{Query, ask, encode};
use crate::times;
use askama::Template;
use axum::extract::State;
use firstfall_store::change::Change;
use firstfall_store::incident::{Incident, IncidentState};

const ROWS: usize = 200;
/// An incident that begins within a quarter of an hour after a change may have to do with it.
const AFTER: u64 = 900 * 1_000_000_000;

#[derive(Template)]
#[template(path = "changes.html")]
struct Changes {
    frame: Frame,
    rows: Vec<ChangeRow>,
    service: String,
    web: String,
}

/// A change in a list.
pub struct ChangeRow {
    pub time: String,
    pub service: String,
    pub href: String,
    pub words: String,
    pub url: String,
    pub told: bool,
    /// Id and sentence of an incident of the same service that began soon after.
    pub incident: Option<(String, String)>,
}

pub fn rows(changes: &[Change], incidents: &[Incident]) -> Vec<ChangeRow> {
    changes
        .iter()
        .map(|change| {
            let after = incidents.iter().find(|i| {
                let origin = i.diagnosis.origins.first();
                origin.is_some_and(|o| o.service == change.service)
                    && (change.time.saturating_sub(30_000_000_000)..change.time + AFTER).contains(&i.onset)
            });
            ChangeRow {
                time: times::day_and_clock(change.time),
                service: change.service.clone(),
                href: format!("/services/{}", encode(&change.service)),
                words: change.words(),
                url: change.url.clone(),
                told: change.told,
                incident: after.map(|i| (i.id.clone(), i.title.clone())),
            }
        })
        .collect()
}

pub async fn show(State(app): State<App>, query: Query) -> Page {
    let range = query.range()?;
    let frame = Frame::new(&app, "Changes", "changes", &query, &range);
    let found = changes(&app, &query, &range, ROWS).await?;
    let incidents = ask(&app, move |reader, _| reader.incidents(IncidentState::All, range.from, u64::MAX, 1000)).await?;
    draw(&Changes {
        frame,
        rows: rows(&found, &incidents),
        service: query.get("service").unwrap_or_default().to_owned(),
        web: "127.0.0.1:4380".to_owned(),
    })
}
