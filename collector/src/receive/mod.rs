//! OTLP receivers: from a socket to `Ingest::request`, and its result back in the client's own terms.
//!
//! gRPC and HTTP share everything but the frame around the body and the words of the answer: `body` reads and inflates within
//! limits, `http` and `grpc` are the two frames, `reply` holds every status code. gRPC is read from the HTTP/2 stream directly, since
//! a unary call is one length-prefixed message, and a general gRPC server decides about sizes before we can.

mod auth;
mod body;
mod grpc;
mod http;
mod reply;
pub mod serve;

pub use auth::Token;
pub use body::{InFlight, Receiving};

use crate::ingest::Ingest;
use axum::Router;
use axum::extract::Request;
use axum::routing::post;
use firstfall_store::Signal;
use std::sync::Arc;

/// What every receiver needs.
pub struct Receivers {
    pub ingest: Ingest,
    pub receiving: Receiving,
    pub in_flight: InFlight,
    pub token: Option<Token>,
    /// Browsers of these origins may send; none by default.
    pub cors_origins: Vec<String>,
}

/// OTLP/HTTP at `/v1/traces`, `/v1/logs`, `/v1/metrics`.
pub fn http_routes(receivers: Arc<Receivers>) -> Router {
    let mut router = Router::new();
    for signal in Signal::ALL {
        let (export, preflight) = (receivers.clone(), receivers.clone());
        router = router.route(
            &format!("/v1/{}", signal.name()),
            post(move |request: Request| http::export(export, signal, request))
                .options(move |request: Request| http::preflight(preflight, request)),
        );
    }
    router
}

/// OTLP/gRPC: the three `Export` calls; any other is UNIMPLEMENTED.
pub fn grpc_routes(receivers: Arc<Receivers>) -> Router {
    let mut router = Router::new();
    for (signal, service) in
        [(Signal::Traces, "trace.v1.TraceService"), (Signal::Logs, "logs.v1.LogsService"), (Signal::Metrics, "metrics.v1.MetricsService")]
    {
        let receivers = receivers.clone();
        router = router.route(
            &format!("/opentelemetry.proto.collector.{service}/Export"),
            post(move |request: Request| grpc::export(receivers, signal, request)),
        );
    }
    router.fallback(grpc::unimplemented)
}

/// Puts the token before pages and APIs. A browser is asked for it as a password.
pub fn behind_token(receivers: Arc<Receivers>, router: Router) -> Router {
    use axum::http::{StatusCode, header};
    use axum::middleware::{Next, from_fn};
    use axum::response::IntoResponse;
    if receivers.token.is_none() {
        return router;
    }
    router.layer(from_fn(move |request: Request, next: Next| {
        let receivers = receivers.clone();
        async move {
            if receivers.token.as_ref().is_none_or(|token| token.is_in(request.headers())) {
                return next.run(request).await;
            }
            receivers.ingest.counters.refuse("unauthenticated");
            let body = serde_json::json!({"error": {"code": "unauthenticated", "message": "the token is missing or wrong"}}).to_string();
            let headers =
                [(header::WWW_AUTHENTICATE, "Basic realm=\"Firstfall\", charset=\"UTF-8\""), (header::CONTENT_TYPE, "application/json")];
            (StatusCode::UNAUTHORIZED, headers, body).into_response()
        }
    }))
}
