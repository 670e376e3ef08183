//! `/`: is anything wrong, since when. The verdict is a sentence; services follow, worst first.

use super::changes::{ChangeRow, rows as change_rows};
use super::{Frame, IncidentCard, Page, ServiceRow, TraceRow, draw, incident_cards, service_rows, sort_services, trace_rows};
use crate::App;
use crate::api::services::judged;
use crate::ask::{Query, ask};
use crate::health::State as Health;
use crate::times;
use askama::Template;
use axum::extract::State;
use firstfall_store::Signal;
use firstfall_store::delivery::{DeliveryQuestion, DeliveryState};
use firstfall_store::incident::IncidentState;
use firstfall_store::query::SearchQuestion;

/// The latest changes; the rest has a page of its own.
const CHANGES_SHOWN: usize = 5;

#[derive(Template)]
#[template(path = "home.html")]
struct Home {
    frame: Frame,
    verdict: String,
    verdict_class: &'static str,
    counts: Vec<(&'static str, usize)>,
    rejected: u64,
    /// Notifications of the last day that did not get through, or still wait after an attempt.
    undelivered: usize,
    incidents: Vec<IncidentCard>,
    changes: Vec<ChangeRow>,
    services: Vec<ServiceRow>,
    failed: Vec<TraceRow>,
    otlp: &'static str,
}

pub async fn show(State(app): State<App>, query: Query) -> Page {
    let range = query.range()?;
    let mut frame = Frame::new(&app, "Overview", "home", &query, &range);
    frame.refresh = range.live;
    let mut question = query.services(&range);
    question.step = range.step();
    let step = question.step;
    let judged = judged(&app, question, range).await?;
    let mut filter = query.filter(&range)?;
    filter.error = Some(true);
    let search = SearchQuestion { filter, limit: 8, before: None };
    let failed = ask(&app, move |reader, budget| reader.search_traces(&search, budget)).await?;

    let incidents = ask(&app, move |reader, _| reader.incidents(IncidentState::All, range.from, range.to, 5)).await?;
    let undelivered = ask(&app, move |reader, _| {
        let of = |state| reader.deliveries(&DeliveryQuestion { state: Some(state), limit: 100, ..DeliveryQuestion::default() });
        let yesterday = range.now.saturating_sub(86_400 * 1_000_000_000);
        let failed = of(DeliveryState::Failed)?.iter().filter(|d| d.finished_at.is_some_and(|at| at > yesterday)).count();
        Ok(failed + of(DeliveryState::Pending)?.iter().filter(|d| !d.attempts.is_empty()).count())
    })
    .await?;
    let open: Vec<_> = incidents.iter().filter(|i| i.closed_at.is_none()).collect();

    let with = |state: Health| judged.iter().filter(|j| j.health == state).collect::<Vec<_>>();
    let failing = with(Health::Failing);
    let degraded = with(Health::Degraded);
    let silent = with(Health::Silent);
    let name =
        |list: &[&crate::api::services::Judged]| list.iter().take(3).map(|j| j.summary.service.name.clone()).collect::<Vec<_>>().join(", ");
    let (verdict, verdict_class) = if judged.is_empty() {
        ("Nothing has been received yet".to_owned(), "unknown")
    } else if let Some(incident) = open.first() {
        let count = if open.len() == 1 { "1 incident".to_owned() } else { format!("{} incidents", open.len()) };
        (format!("{count}: {}", incident.title), "failing")
    } else if let Some(worst) = failing.iter().max_by_key(|j| j.summary.requests.errors) {
        let more = failing.len() - 1;
        let others = if more > 0 { format!(", and {more} more") } else { String::new() };
        (format!("{} is failing: {}{others}", worst.summary.service.name, worst.reason), "failing")
    } else if !silent.is_empty() {
        (
            format!(
                "{} silent: {}",
                if silent.len() == 1 { "1 service is".to_owned() } else { format!("{} services are", silent.len()) },
                name(&silent)
            ),
            "silent",
        )
    } else if !degraded.is_empty() {
        (format!("{} of {} services degraded: {}", degraded.len(), judged.len(), name(&degraded)), "degraded")
    } else {
        let freshest = judged.iter().map(|j| j.summary.last_seen).max().unwrap_or(0);
        let healthy = judged.len();
        (
            format!(
                "{healthy} {} healthy; data {} old",
                if healthy == 1 { "service" } else { "services, all" },
                times::ago(range.to.saturating_sub(freshest))
            ),
            "ok",
        )
    };
    let counts = [Health::Failing, Health::Degraded, Health::Silent, Health::Unknown, Health::Ok, Health::Idle]
        .into_iter()
        .map(|state| (state.word(), judged.iter().filter(|j| j.health == state).count()))
        .filter(|(_, n)| *n > 0)
        .collect();
    let mut services = service_rows(&judged, &range, step, &frame.keep);
    sort_services(&mut services, "state");
    // The first screen shows the worst; the list has them all.
    services.truncate(30);
    let rejected = Signal::ALL.iter().map(|s| app.intake.signal(*s).rejected.iter().map(|(.., n)| n).sum::<u64>()).sum();
    let changes = change_rows(&crate::api::changes::changes(&app, &query, &range, CHANGES_SHOWN).await?, &incidents);
    // What is open stands first, whenever it began.
    let mut incidents = incidents;
    incidents.sort_by_key(|incident| incident.closed_at.is_some());
    let incidents = incident_cards(&incidents, range.to);
    draw(&Home {
        frame,
        verdict,
        verdict_class,
        counts,
        rejected,
        undelivered,
        incidents,
        changes,
        services,
        failed: trace_rows(&failed.traces),
        otlp: "127.0.0.1:4318",
    })
}
