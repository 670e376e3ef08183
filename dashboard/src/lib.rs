//! The dashboard: a `Reader` of the store in, an axum `Router` out. Pages are drawn by the server and need no script; each page and
//! each address of the API is a file with its question, its answer and its template.
//!
//! What arrives in telemetry is hostile text: templates escape it, addresses are percent-encoded, and the
//! Content-Security-Policy allows no inline script or style.

mod api;
mod ask;
mod draw;
mod error;
pub mod health;
mod pages;
pub mod times;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{get, post};
use firstfall_store::change::Change;
use firstfall_store::edge::EdgeCell;
use firstfall_store::incident::{Diagnosis, Topology};
use firstfall_store::part::PartCell;
use firstfall_store::query::Budget;
use firstfall_store::{Error, Nanos, Reader, Signal};
use health::LiveObjectives;
use std::sync::Arc;

/// What came in since start, as the collector counts it.
pub trait Intake: Send + Sync {
    fn signal(&self, signal: Signal) -> SignalIntake;
    /// Requests refused whole: reason and count.
    fn refused_requests(&self) -> Vec<(&'static str, u64)>;
    fn repeated_requests(&self) -> u64;
    /// Wall clock of the latest request, nanoseconds.
    fn last_received(&self) -> Option<u64>;
}

pub struct SignalIntake {
    pub received: u64,
    /// Reason, sentence, count.
    pub rejected: Vec<(&'static str, &'static str, u64)>,
    pub cut: Vec<(&'static str, &'static str, u64)>,
}

/// What detection knows.
pub trait Insight: Send + Sync {
    /// Who called whom between two times.
    fn topology(&self, from: Nanos, to: Nanos) -> Result<Topology, Error>;
    /// One edge over time, by ids of nodes: begin, width, and what was seen; oldest first.
    fn edge_points(&self, caller: &str, callee: &str, from: Nanos, to: Nanos) -> Result<Vec<(Nanos, Nanos, EdgeCell)>, Error>;
    /// What a node did by itself of its requests, by operation.
    fn parts(&self, node: &str, from: Nanos, to: Nanos) -> Result<Vec<(String, PartCell)>, Error>;
    /// Changes of the last while that were seen and may not be kept yet, oldest first.
    fn changes(&self, from: Nanos, to: Nanos) -> Vec<Change>;
    /// What was wrong between two times, by comparison with what came before.
    fn diagnose(&self, from: Nanos, to: Nanos, budget: &Budget) -> Result<Diagnosis, Error>;
}

/// Who is told of incidents.
pub trait Alerting: Send + Sync {
    fn receivers(&self) -> Vec<ReceiverInfo>;
    /// Sends a finished delivery once more; false when there is none of this id.
    fn resend(&self, id: &str) -> Result<bool, Error>;
}

/// What may be shown of a receiver.
pub struct ReceiverInfo {
    pub name: String,
    /// Scheme and host.
    pub place: String,
    pub signed: bool,
}

#[derive(Clone)]
pub(crate) struct App {
    pub reader: Reader,
    pub intake: Arc<dyn Intake>,
    pub insight: Arc<dyn Insight>,
    pub alerting: Arc<dyn Alerting>,
    pub objectives: LiveObjectives,
}

const STYLE: &str = include_str!("../assets/style.css");
const ICON: &str = include_str!("../assets/icon.svg");

pub fn router(
    reader: Reader,
    intake: Arc<impl Intake + 'static>,
    insight: Arc<impl Insight + 'static>,
    alerting: Arc<impl Alerting + 'static>,
    objectives: LiveObjectives,
) -> Router {
    let app = App { reader, intake, insight, alerting, objectives };
    Router::new()
        .route("/", get(pages::home::show))
        .route("/services", get(pages::services::show))
        .route("/services/{service}", get(pages::service::show))
        .route("/incidents", get(pages::incidents::show))
        .route("/incidents/{id}", get(pages::incident::show))
        .route("/changes", get(pages::changes::show))
        .route("/edges/{caller}/{callee}", get(pages::edge::show))
        .route("/nodes/{node}", get(pages::node::show))
        .route("/map", get(pages::map::show))
        .route("/traces", get(pages::traces::show))
        .route("/traces/{trace_id}", get(pages::trace::show))
        .route("/logs", get(pages::logs::show))
        .route("/alerts/deliveries", get(pages::deliveries::show))
        .route("/alerts/deliveries/{id}/resend", post(pages::deliveries::resend))
        .route("/settings", get(pages::settings::show))
        .route("/assets/style.css", get(|| async { asset("text/css; charset=utf-8", STYLE) }))
        .route("/assets/icon.svg", get(|| async { asset("image/svg+xml", ICON) }))
        .route("/api/v1/stats", get(api::stats::answer))
        .route("/api/v1/services", get(api::services::list))
        .route("/api/v1/services/{service}", get(api::services::one))
        .route("/api/v1/services/{service}/red", get(api::services::red))
        .route("/api/v1/incidents", get(api::incidents::list))
        .route("/api/v1/incidents/{id}", get(api::incidents::one))
        .route("/api/v1/diagnosis", get(api::incidents::diagnosis))
        .route("/api/v1/topology", get(api::incidents::topology))
        .route("/api/v1/traces", get(api::traces::search))
        .route("/api/v1/traces/{trace_id}", get(api::traces::one))
        .route("/api/v1/logs", get(api::logs::search))
        .route("/api/v1/changes", get(api::changes::list).post(api::changes::tell))
        .route("/api/v1/deliveries", get(api::deliveries::list))
        .route("/api/v1/deliveries/{id}/resend", post(api::deliveries::resend))
        .route("/api/v1/sql", post(api::sql::answer))
        .fallback(error::not_found)
        .layer(from_fn(error::same_origin))
        .layer(from_fn(safe_headers))
        .with_state(app)
}

fn asset(content_type: &'static str, body: &'static str) -> ([(header::HeaderName, &'static str); 2], &'static str) {
    ([(header::CONTENT_TYPE, content_type), (header::CACHE_CONTROL, "max-age=300")], body)
}

async fn safe_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        ),
    );
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}
