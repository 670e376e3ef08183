//! A tower layer for axum: a SERVER span for each request with its parent from the headers, and the HTTP server metrics.
//!
//! The time runs until the answer's head is there. A request whose future is dropped, because the client hung up, is recorded as cancelled.

use crate::duration_histogram;
use axum::extract::{ConnectInfo, MatchedPath};
use http::{HeaderMap, Request, Response, Version, header};
use opentelemetry::metrics::{Histogram, UpDownCounter};
use opentelemetry::{KeyValue, global};
use opentelemetry_http::HeaderExtractor;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;
use tower::{Layer, Service};
use tracing::field::Empty;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Instruments every route of a router: `router.layer(ServerLayer::new())`.
#[derive(Clone)]
pub struct ServerLayer {
    duration: Histogram<f64>,
    active: UpDownCounter<i64>,
}

impl ServerLayer {
    pub fn new() -> ServerLayer {
        let meter = global::meter("firstfall-agent");
        ServerLayer {
            duration: duration_histogram("http.server.request.duration"),
            active: meter.i64_up_down_counter("http.server.active_requests").with_unit("{request}").build(),
        }
    }
}

impl Default for ServerLayer {
    fn default() -> Self {
        ServerLayer::new()
    }
}

impl<S> Layer<S> for ServerLayer {
    type Service = Instrumented<S>;
    fn layer(&self, inner: S) -> Instrumented<S> {
        Instrumented { inner, layer: self.clone() }
    }
}

#[derive(Clone)]
pub struct Instrumented<S> {
    inner: S,
    layer: ServerLayer,
}

/// Ends the measurement when it is dropped, however the request ended.
struct Measured {
    layer: ServerLayer,
    started: Instant,
    active: Vec<KeyValue>,
    attributes: Vec<KeyValue>,
    span: Span,
    answered: bool,
}

impl Drop for Measured {
    fn drop(&mut self) {
        if !self.answered {
            self.span.record("error.type", "cancelled");
            self.attributes.push(KeyValue::new("error.type", "cancelled"));
        }
        self.layer.active.add(-1, &self.active);
        self.attributes.append(&mut self.active);
        self.layer.duration.record(self.started.elapsed().as_secs_f64(), &self.attributes);
    }
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

impl<S, In, Out> Service<Request<In>> for Instrumented<S>
where
    S: Service<Request<In>, Response = Response<Out>>,
    S::Future: Send + 'static,
    S::Error: std::fmt::Display,
    Out: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<In>) -> Self::Future {
        let parent = global::get_text_map_propagator(|p| p.extract(&HeaderExtractor(request.headers())));
        let known =
            matches!(request.method().as_str(), "GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "CONNECT" | "OPTIONS" | "TRACE" | "PATCH");
        // An unknown method may be anything: its text stays out of names and metrics.
        let method = if known { request.method().as_str() } else { "_OTHER" }.to_owned();
        let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
        let scheme = request.uri().scheme_str().unwrap_or("http").to_owned();
        let version = match request.version() {
            Version::HTTP_10 => "1.0",
            Version::HTTP_2 => "2",
            Version::HTTP_3 => "3",
            _ => "1.1",
        };
        let authority = text(request.headers(), header::HOST).and_then(|host| host.parse::<http::uri::Authority>().ok());
        let shown = if known { method.as_str() } else { "HTTP" };
        let name = route.as_ref().map_or_else(|| shown.to_owned(), |route| format!("{shown} {route}"));
        let span = tracing::info_span!(
            target: "firstfall_agent",
            "http.server",
            "otel.kind" = "server",
            "otel.name" = name,
            "otel.status_code" = Empty,
            "otel.status_description" = Empty,
            "http.request.method" = method,
            "http.route" = route,
            "url.path" = request.uri().path(),
            "url.scheme" = scheme,
            "server.address" = authority.as_ref().map(http::uri::Authority::host),
            // Signed: an unsigned number would become a string attribute.
            "server.port" = authority.as_ref().and_then(http::uri::Authority::port_u16).map(i64::from),
            "client.address" = Empty,
            "user_agent.original" = text(request.headers(), header::USER_AGENT),
            "network.protocol.version" = version,
            "http.response.status_code" = Empty,
            "error.type" = Empty,
        );
        if let Some(ConnectInfo(peer)) = request.extensions().get::<ConnectInfo<SocketAddr>>() {
            span.record("client.address", peer.ip().to_string());
        }
        // Without a subscriber there is no span to give a parent to.
        let _ = span.set_parent(parent);
        let active = vec![KeyValue::new("http.request.method", method), KeyValue::new("url.scheme", scheme)];
        self.layer.active.add(1, &active);
        let mut attributes = vec![KeyValue::new("network.protocol.version", version)];
        attributes.extend(route.map(|route| KeyValue::new("http.route", route)));
        let mut measured =
            Measured { layer: self.layer.clone(), started: Instant::now(), active, attributes, span: span.clone(), answered: false };
        // Inside the span, so that what a handler logs before its first await belongs to it too.
        let answer = span.in_scope(|| self.inner.call(request));
        let answer = async move {
            let result = answer.await;
            measured.answered = true;
            let failure = match &result {
                Ok(response) => {
                    let code = i64::from(response.status().as_u16());
                    measured.span.record("http.response.status_code", code);
                    measured.attributes.push(KeyValue::new("http.response.status_code", code));
                    (code >= 500).then(|| code.to_string())
                }
                Err(error) => {
                    measured.span.record("otel.status_description", error.to_string());
                    Some("service_error".to_owned())
                }
            };
            if let Some(failure) = failure {
                measured.span.record("error.type", failure.as_str());
                measured.span.record("otel.status_code", "ERROR");
                measured.attributes.push(KeyValue::new("error.type", failure));
            }
            result
        };
        Box::pin(answer.instrument(span))
    }
}
