//! Calls to other services as CLIENT spans that carry the trace on: a wrapper of `reqwest::Client`, and a tower layer for everything that sends
//! `http::Request` (tonic's channels, hyper's clients).

use crate::body::Watched;
use crate::call::{Call, Instruments, Side, is_grpc, method_name, rpc_names};
use crate::lean::SpanExt;
use crate::propagate::HeadersMut;
use http::{Method, Request, Response, Uri};
use http_body::Body;
use opentelemetry::trace::TraceContextExt;
use opentelemetry::{Context as OtelContext, KeyValue, global};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;
use tower::{Layer, Service};
use tracing::field::Empty;
use tracing::{Instrument, Span};

/// Values of a query that are credentials, as the HTTP conventions name them.
const SECRET_PARAMETERS: [&str; 8] = [
    "AWSAccessKeyId",
    "Signature",
    "sig",
    "X-Goog-Signature",
    "X-Amz-Signature",
    "X-Amz-Credential",
    "X-Amz-Security-Token",
    "access_token",
];

/// An address whose query tells no secret.
fn without_secrets(url: &str) -> String {
    let Some((path, query)) = url.split_once('?') else { return url.to_owned() };
    let shown: Vec<String> = query
        .split('&')
        .map(|pair| match pair.split_once('=') {
            Some((key, _)) if SECRET_PARAMETERS.iter().any(|secret| secret.eq_ignore_ascii_case(key)) => format!("{key}=REDACTED"),
            _ => pair.to_owned(),
        })
        .collect();
    format!("{path}?{}", shown.join("&"))
}

struct Target<'a> {
    method: &'a Method,
    /// Without a password.
    url: &'a str,
    host: &'a str,
    port: Option<u16>,
    grpc_path: Option<&'a str>,
}

fn begin(instruments: &Instruments, target: &Target<'_>, headers: &mut http::HeaderMap) -> Call {
    let (method, shown) = method_name(target.method);
    let port = target.port.map(i64::from);
    let rpc = target.grpc_path.map(rpc_names);
    let name = rpc.map_or_else(|| shown.to_owned(), |(service, method)| format!("{service}/{method}"));
    let span = tracing::info_span!(
        target: "firstfall_agent",
        "http.client",
        "otel.kind" = "client",
        "otel.name" = name,
        "otel.status_code" = Empty,
        "otel.status_description" = Empty,
        "http.request.method" = method,
        "http.request.resend_count" = Empty,
        "url.full" = target.url,
        "server.address" = target.host,
        "server.port" = port,
        "rpc.system" = rpc.map(|_| "grpc"),
        "rpc.service" = rpc.map(|(service, _)| service),
        "rpc.method" = rpc.map(|(_, method)| method),
        "rpc.grpc.status_code" = Empty,
        "http.response.status_code" = Empty,
        "error.type" = Empty,
    );
    if let Some(attempt) = crate::resilience::attempt().filter(|attempt| *attempt > 0) {
        span.record("http.request.resend_count", i64::from(attempt));
    }
    let mut context = span.otel_context();
    // Where no span is kept, the trace goes on as it came.
    if !context.span().span_context().is_valid() {
        context = OtelContext::current();
    }
    global::get_text_map_propagator(|p| p.inject_context(&context, &mut HeadersMut(headers)));
    let mut attributes = vec![KeyValue::new("http.request.method", method), KeyValue::new("server.address", target.host.to_owned())];
    attributes.extend(port.map(|port| KeyValue::new("server.port", port)));
    if let Some((service, method)) = rpc {
        attributes.push(KeyValue::new("rpc.service", service.to_owned()));
        attributes.push(KeyValue::new("rpc.method", method.to_owned()));
    }
    Call {
        instruments: instruments.clone(),
        grpc: rpc.is_some(),
        started: Instant::now(),
        active: Vec::new(),
        attributes,
        span,
        ended: false,
    }
}

/// Wraps a `reqwest::Client`; the request itself is built as ever.
#[cfg(feature = "reqwest")]
#[derive(Clone, Debug)]
pub struct Client {
    inner: reqwest::Client,
    instruments: Instruments,
}

#[cfg(feature = "reqwest")]
impl Client {
    pub fn new(inner: reqwest::Client) -> Client {
        Client { inner, instruments: Instruments::new(Side::Client) }
    }

    pub fn get(&self, url: &str) -> reqwest::RequestBuilder {
        self.inner.get(url)
    }

    pub fn post(&self, url: &str) -> reqwest::RequestBuilder {
        self.inner.post(url)
    }

    pub fn request(&self, method: Method, url: &str) -> reqwest::RequestBuilder {
        self.inner.request(method, url)
    }

    /// Sends a request. The span lasts until the head of the answer is there: the body is the caller's to read, or not.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> reqwest::Result<reqwest::Response> {
        let mut request = request.build()?;
        let mut url = request.url().clone();
        if !url.username().is_empty() || url.password().is_some() {
            let _ = url.set_username("REDACTED");
            let _ = url.set_password(Some("REDACTED"));
        }
        let method = request.method().clone();
        let target = Target {
            method: &method,
            url: &without_secrets(url.as_str()),
            host: url.host_str().unwrap_or(""),
            port: url.port_or_known_default(),
            grpc_path: None,
        };
        let mut call = begin(&self.instruments, &target, request.headers_mut());
        let result = self.inner.execute(request).instrument(call.span.clone()).await;
        call.ended = true;
        match &result {
            Ok(response) => call.answered(response.status().as_u16(), response.headers()),
            Err(error) => {
                let kind = match error {
                    e if e.is_timeout() => "timeout",
                    e if e.is_connect() => "connection_error",
                    _ => "request_error",
                };
                // Its text holds the address, with whatever secret that has.
                let mut causes = Vec::new();
                let mut cause = std::error::Error::source(error);
                while let Some(error) = cause {
                    causes.push(error.to_string());
                    cause = error.source();
                }
                call.error(kind.to_owned(), Some(causes.join(": ")));
            }
        }
        result
    }
}

/// Makes each request that goes through it a CLIENT span. For gRPC put it around a tonic `Channel`:
/// `ServiceBuilder::new().layer(ClientLayer::new()).service(channel)`.
#[derive(Clone, Debug)]
pub struct ClientLayer {
    instruments: Instruments,
}

impl ClientLayer {
    pub fn new() -> ClientLayer {
        ClientLayer { instruments: Instruments::new(Side::Client) }
    }
}

impl Default for ClientLayer {
    fn default() -> Self {
        ClientLayer::new()
    }
}

impl<S> Layer<S> for ClientLayer {
    type Service = Calling<S>;
    fn layer(&self, inner: S) -> Calling<S> {
        Calling { inner, instruments: self.instruments.clone() }
    }
}

/// A client that is instrumented by [`ClientLayer`].
#[derive(Clone, Debug)]
pub struct Calling<S> {
    inner: S,
    instruments: Instruments,
}

fn address(uri: &Uri) -> (String, String, Option<u16>) {
    let host = uri.host().unwrap_or("").to_owned();
    let known = match uri.scheme_str() {
        Some("https") => Some(443),
        Some("http") => Some(80),
        _ => None,
    };
    // What stands before the host may be a password.
    let url = match (uri.scheme_str(), uri.authority()) {
        (Some(scheme), Some(authority)) => {
            let bare = authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_, bare)| bare);
            without_secrets(&format!("{scheme}://{bare}{}", uri.path_and_query().map_or("", |p| p.as_str())))
        }
        _ => uri.path().to_owned(),
    };
    (url, host, uri.port_u16().or(known))
}

impl<S, In, Out> Service<Request<In>> for Calling<S>
where
    S: Service<Request<In>, Response = Response<Out>>,
    S::Future: Send + 'static,
    S::Error: std::fmt::Display,
    Out: Body + 'static,
    Out::Error: std::fmt::Display,
{
    type Response = Response<Watched<Out, Call>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<In>) -> Self::Future {
        let (url, host, port) = address(request.uri());
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let grpc = is_grpc(request.headers());
        let target = Target { method: &method, url: &url, host: &host, port, grpc_path: grpc.then_some(path.as_str()) };
        let mut call = begin(&self.instruments, &target, request.headers_mut());
        let head_only = method == Method::HEAD;
        let span: Span = call.span.clone();
        let answer = span.in_scope(|| self.inner.call(request));
        let answer = async move {
            match answer.await {
                Ok(response) => {
                    call.answered(response.status().as_u16(), response.headers());
                    Ok(response.map(|body| Watched::new(body, call, head_only)))
                }
                Err(error) => {
                    call.broken("request_error", error.to_string());
                    Err(error)
                }
            }
        };
        Box::pin(answer.instrument(span))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_tells_no_secret() {
        let signed = "https://bucket.example/x?a=1&X-Amz-Signature=abc&sig=def&b";
        assert_eq!(without_secrets(signed), "https://bucket.example/x?a=1&X-Amz-Signature=REDACTED&sig=REDACTED&b");
        let uri: Uri = "http://ann:pw@shop.example:81/x?sig=1".parse().expect("valid");
        assert_eq!(address(&uri), ("http://shop.example:81/x?sig=REDACTED".to_owned(), "shop.example".to_owned(), Some(81)));
    }
}
