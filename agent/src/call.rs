//! What server and client layers share: names, metrics, and the measurement of one call from its head to its last byte.

use crate::body::Watch;
use http::{HeaderMap, Method};
use opentelemetry::metrics::{Histogram, UpDownCounter};
use opentelemetry::{KeyValue, global};
use std::time::Instant;
use tracing::Span;

/// Upper ends of the latency buckets in seconds, as the HTTP conventions advise.
const BUCKETS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

pub(crate) fn duration_histogram(name: &'static str) -> Histogram<f64> {
    global::meter("firstfall-agent").f64_histogram(name).with_unit("s").with_boundaries(BUCKETS.to_vec()).build()
}

const UNIMPLEMENTED: i64 = 12;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Server,
    Client,
}

/// The instruments of one side.
#[derive(Clone, Debug)]
pub(crate) struct Instruments {
    pub side: Side,
    pub http: Histogram<f64>,
    pub rpc: Histogram<f64>,
    pub active: Option<UpDownCounter<i64>>,
}

impl Instruments {
    pub fn new(side: Side) -> Instruments {
        let server = side == Side::Server;
        let active = || global::meter("firstfall-agent").i64_up_down_counter("http.server.active_requests").with_unit("{request}").build();
        Instruments {
            side,
            http: duration_histogram(if server { "http.server.request.duration" } else { "http.client.request.duration" }),
            rpc: duration_histogram(if server { "rpc.server.call.duration" } else { "rpc.client.call.duration" }),
            active: server.then(active),
        }
    }
}

/// A method as names and metrics may carry it: an unknown one may be anything.
pub(crate) fn method_name(method: &Method) -> (&'static str, &'static str) {
    const KNOWN: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    match KNOWN.into_iter().find(|known| *known == method.as_str()) {
        Some(known) => (known, known),
        // In the attribute; in the span's name.
        None => ("_OTHER", "HTTP"),
    }
}

pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(http::header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Service and method of a gRPC path.
pub(crate) fn rpc_names(path: &str) -> (&str, &str) {
    path.trim_start_matches('/').split_once('/').unwrap_or((path, ""))
}

/// One call, from its head to its last byte. Dropped before the end it was cancelled, and is counted so.
#[derive(Debug)]
pub struct Call {
    pub(crate) instruments: Instruments,
    pub(crate) grpc: bool,
    pub(crate) started: Instant,
    /// Attributes of the requests that are under way.
    pub(crate) active: Vec<KeyValue>,
    pub(crate) attributes: Vec<KeyValue>,
    pub(crate) span: Span,
    pub(crate) ended: bool,
}

impl Call {
    /// The head of the answer is there.
    pub(crate) fn answered(&mut self, status: u16, headers: &HeaderMap) {
        let code = i64::from(status);
        self.span.record("http.response.status_code", code);
        self.attributes.push(KeyValue::new("http.response.status_code", code));
        // For a client 4xx is a failure too, as the conventions ask.
        if code >= if self.instruments.side == Side::Server { 500 } else { 400 } {
            self.error(code.to_string(), None);
        }
        if self.grpc {
            self.grpc_status(headers);
        }
    }

    /// In the trailers, or in the head of an answer that has nothing else.
    fn grpc_status(&mut self, headers: &HeaderMap) {
        let Some(status) = headers.get("grpc-status").and_then(|status| status.to_str().ok()?.parse::<i64>().ok()) else { return };
        self.span.record("rpc.grpc.status_code", status);
        self.attributes.push(KeyValue::new("rpc.grpc.status_code", status));
        // A method that nobody knows may have any name.
        if status == UNIMPLEMENTED {
            self.attributes.retain(|pair| !pair.key.as_str().starts_with("rpc.service") && !pair.key.as_str().starts_with("rpc.method"));
        }
        // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE and DATA_LOSS are the server's; the rest the caller's.
        let failed = status != 0 && (self.instruments.side == Side::Client || matches!(status, 2 | 4 | 12..=15));
        if failed {
            let message = headers.get("grpc-message").and_then(|message| message.to_str().ok()).map(str::to_owned);
            self.error(status.to_string(), message);
        }
    }

    /// There was no answer.
    pub(crate) fn broken(mut self, kind: &str, error: String) {
        self.ended = true;
        self.error(kind.to_owned(), Some(error));
    }

    pub(crate) fn error(&mut self, kind: String, description: Option<String>) {
        self.span.record("error.type", kind.as_str());
        self.span.record("otel.status_code", "ERROR");
        if let Some(description) = description {
            self.span.record("otel.status_description", description.as_str());
        }
        self.attributes.push(KeyValue::new("error.type", kind));
    }
}

impl Watch for Call {
    fn trailers(&mut self, trailers: &HeaderMap) {
        if self.grpc {
            self.grpc_status(trailers);
        }
    }

    fn complete(mut self) {
        self.ended = true;
    }

    fn failed(self, error: String) {
        self.broken("body_error", error);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.ended {
            self.span.record("error.type", "cancelled");
            self.attributes.push(KeyValue::new("error.type", "cancelled"));
        }
        if let Some(active) = &self.instruments.active {
            active.add(-1, &self.active);
        }
        self.attributes.append(&mut self.active);
        let duration = if self.grpc { &self.instruments.rpc } else { &self.instruments.http };
        duration.record(self.started.elapsed().as_secs_f64(), &self.attributes);
    }
}
