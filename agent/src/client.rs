//! A reqwest client whose requests are CLIENT spans and carry the trace to the next service.

use crate::duration_histogram;
use opentelemetry::metrics::Histogram;
use opentelemetry::{KeyValue, global};
use opentelemetry_http::HeaderInjector;
use std::time::Instant;
use tracing::Instrument;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Wraps a `reqwest::Client`; the request itself is built as ever.
#[derive(Clone)]
pub struct Client {
    inner: reqwest::Client,
    duration: Histogram<f64>,
}

impl Client {
    pub fn new(inner: reqwest::Client) -> Client {
        Client { inner, duration: duration_histogram("http.client.request.duration") }
    }

    pub fn get(&self, url: &str) -> reqwest::RequestBuilder {
        self.inner.get(url)
    }

    pub fn post(&self, url: &str) -> reqwest::RequestBuilder {
        self.inner.post(url)
    }

    /// Sends a request. The span lasts until the head of the answer is there.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> reqwest::Result<reqwest::Response> {
        let mut request = request.build()?;
        let mut url = request.url().clone();
        if !url.username().is_empty() || url.password().is_some() {
            let _ = url.set_username("REDACTED");
            let _ = url.set_password(Some("REDACTED"));
        }
        let method = request.method().to_string();
        let host = url.host_str().unwrap_or("").to_owned();
        let port = url.port_or_known_default().map(i64::from);
        let span = tracing::info_span!(
            target: "firstfall_agent",
            "http.client",
            "otel.kind" = "client",
            "otel.name" = method,
            "otel.status_code" = Empty,
            "otel.status_description" = Empty,
            "http.request.method" = method,
            "url.full" = url.as_str(),
            "server.address" = host,
            "server.port" = port,
            "http.response.status_code" = Empty,
            "error.type" = Empty,
        );
        let context = span.context();
        global::get_text_map_propagator(|p| p.inject_context(&context, &mut HeaderInjector(request.headers_mut())));
        let mut attributes = vec![KeyValue::new("http.request.method", method), KeyValue::new("server.address", host)];
        attributes.extend(port.map(|port| KeyValue::new("server.port", port)));
        let started = Instant::now();
        let result = self.inner.execute(request).instrument(span.clone()).await;
        let failure = match &result {
            Ok(response) => {
                let code = i64::from(response.status().as_u16());
                span.record("http.response.status_code", code);
                attributes.push(KeyValue::new("http.response.status_code", code));
                // For a client 4xx is a failure too, as the conventions ask.
                (code >= 400).then(|| code.to_string())
            }
            Err(error) => {
                span.record("otel.status_description", error.to_string());
                let kind = match error {
                    e if e.is_timeout() => "timeout",
                    e if e.is_connect() => "connection_error",
                    _ => "request_error",
                };
                Some(kind.to_owned())
            }
        };
        if let Some(failure) = failure {
            span.record("error.type", failure.as_str());
            span.record("otel.status_code", "ERROR");
            attributes.push(KeyValue::new("error.type", failure));
        }
        self.duration.record(started.elapsed().as_secs_f64(), &attributes);
        result
    }
}
