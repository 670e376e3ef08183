//! Calls to other services as CLIENT spans that carry the trace on: a wrapper of `reqwest::Client`, and a tower layer for everything that sends
//! `http::Request` (tonic's channels, hyper's clients).

use crate::body::Watched;
use crate::call::{self, Answer, Call, Instruments, Side, Target, is_grpc, rpc_names};
use crate::lean::SpanExt;
use crate::propagate::HeadersMut;
use crate::within::{OWN_TARGET, Within};
use http::{Method, Request, Response, Uri};
use http_body::Body;
use opentelemetry::global;
use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};
use tower::{Layer, Service};
use tracing::field::Empty;

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
fn without_secrets(url: &str) -> Cow<'_, str> {
    let Some((path, query)) = url.split_once('?') else { return Cow::Borrowed(url) };
    let shown: Vec<String> = query
        .split('&')
        .map(|pair| match pair.split_once('=') {
            Some((key, _)) if SECRET_PARAMETERS.iter().any(|secret| secret.eq_ignore_ascii_case(key)) => format!("{key}=REDACTED"),
            _ => pair.to_owned(),
        })
        .collect();
    Cow::Owned(format!("{path}?{}", shown.join("&")))
}

struct Called<'a> {
    method: &'a Method,
    /// Without a password.
    url: &'a str,
    /// Empty where it is not known: a channel of tonic's puts it into a request further on.
    host: &'a str,
    port: Option<u16>,
    grpc_path: Option<&'a str>,
}

/// The trace is not in the request's headers yet: see [`carry_on`].
fn begin(instruments: &Arc<Instruments>, called: &Called<'_>) -> Call {
    let method = call::Method::of(called.method);
    let rpc = called.grpc_path.map(rpc_names);
    let name = rpc.map_or_else(|| Cow::Borrowed(method.shown()), |(service, method)| Cow::Owned(format!("{service}/{method}")));
    let span = tracing::info_span!(
        target: OWN_TARGET,
        "http.client",
        "otel.kind" = "client",
        "otel.name" = &*name,
        "otel.status_code" = Empty,
        "otel.status_description" = Empty,
        "http.request.method" = method.attribute(),
        "http.request.resend_count" = Empty,
        "url.full" = Some(called.url).filter(|_| !called.host.is_empty()),
        "server.address" = Some(called.host).filter(|host| !host.is_empty()),
        "server.port" = called.port.map(i64::from),
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
    let target = Target {
        method,
        scheme: None,
        version: None,
        place: Some(called.host).filter(|host| !host.is_empty()).map(str::to_owned),
        port: called.port,
        rpc: rpc.map(|(service, method)| Box::new((service.to_owned(), method.to_owned()))),
    };
    Call::begin(instruments, target, span)
}

fn carry_on(call: &Call, headers: &mut http::HeaderMap) {
    global::get_text_map_propagator(|p| p.inject_context(&call.span.otel_context(), &mut HeadersMut(headers)));
}

/// Wraps a `reqwest::Client`: `client.get(url).send().await` is a CLIENT span that carries the trace on.
#[cfg(feature = "reqwest")]
#[derive(Clone, Debug)]
pub struct Client {
    inner: reqwest::Client,
    instruments: Arc<Instruments>,
}

#[cfg(feature = "reqwest")]
impl Client {
    /// Around a client with whatever it is set to: time limits, proxies, certificates.
    pub fn new(inner: reqwest::Client) -> Client {
        Client { inner, instruments: Instruments::new(Side::Client) }
    }

    /// A GET request. An address that cannot be read is an error when it is sent.
    pub fn get(&self, url: impl reqwest::IntoUrl) -> RequestBuilder {
        self.request(Method::GET, url)
    }

    /// A POST request.
    pub fn post(&self, url: impl reqwest::IntoUrl) -> RequestBuilder {
        self.request(Method::POST, url)
    }

    /// A PUT request.
    pub fn put(&self, url: impl reqwest::IntoUrl) -> RequestBuilder {
        self.request(Method::PUT, url)
    }

    /// A PATCH request.
    pub fn patch(&self, url: impl reqwest::IntoUrl) -> RequestBuilder {
        self.request(Method::PATCH, url)
    }

    /// A DELETE request.
    pub fn delete(&self, url: impl reqwest::IntoUrl) -> RequestBuilder {
        self.request(Method::DELETE, url)
    }

    /// A HEAD request.
    pub fn head(&self, url: impl reqwest::IntoUrl) -> RequestBuilder {
        self.request(Method::HEAD, url)
    }

    /// A request of any method.
    pub fn request(&self, method: Method, url: impl reqwest::IntoUrl) -> RequestBuilder {
        RequestBuilder { client: self.clone(), inner: self.inner.request(method, url) }
    }

    /// Sends a request that `reqwest::Client` has made. The span lasts until the head of the answer is there: the body is the caller's to read, or not.
    ///
    /// # Errors
    /// reqwest's own, unchanged.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> reqwest::Result<reqwest::Response> {
        let mut request = request.build()?;
        let url = request.url();
        let mut shown = Cow::Borrowed(url.as_str());
        if !url.username().is_empty() || url.password().is_some() {
            let mut url = url.clone();
            let _ = url.set_username("REDACTED");
            let _ = url.set_password(Some("REDACTED"));
            shown = Cow::Owned(url.into());
        }
        let called = Called {
            method: request.method(),
            url: &without_secrets(&shown),
            host: url.host_str().unwrap_or(""),
            port: url.port_or_known_default(),
            grpc_path: None,
        };
        let call = begin(&self.instruments, &called);
        carry_on(&call, request.headers_mut());
        let (result, mut call) = Within::new(self.inner.execute(request), call, None).await;
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
                call.error(kind.into(), Some(causes.join(": ")));
            }
        }
        call.end();
        result
    }
}

/// A request of [`Client`], built as one of reqwest's.
#[cfg(feature = "reqwest")]
#[derive(Debug)]
#[must_use = "a request is not made before it is sent"]
pub struct RequestBuilder {
    client: Client,
    inner: reqwest::RequestBuilder,
}

#[cfg(feature = "reqwest")]
impl RequestBuilder {
    /// Everything that `reqwest::RequestBuilder` can: `.with(|request| request.json(&order))`, with reqwest's feature `json`.
    pub fn with(mut self, change: impl FnOnce(reqwest::RequestBuilder) -> reqwest::RequestBuilder) -> RequestBuilder {
        self.inner = change(self.inner);
        self
    }

    /// Another header.
    pub fn header(self, name: &str, value: &str) -> RequestBuilder {
        self.with(|request| request.header(name, value))
    }

    /// `authorization: Bearer …`.
    pub fn bearer_auth(self, token: impl std::fmt::Display) -> RequestBuilder {
        self.with(|request| request.bearer_auth(token))
    }

    /// What is sent.
    pub fn body(self, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.with(|request| request.body(body))
    }

    /// The longest time until the answer's last byte.
    pub fn timeout(self, limit: std::time::Duration) -> RequestBuilder {
        self.with(|request| request.timeout(limit))
    }

    /// See [`Client::send`].
    pub async fn send(self) -> reqwest::Result<reqwest::Response> {
        self.client.send(self.inner).await
    }
}

/// Makes each request that goes through it a CLIENT span. For gRPC put it around a tonic `Channel`:
/// `ServiceBuilder::new().layer(ClientLayer::new()).service(channel)`.
#[derive(Clone, Debug)]
pub struct ClientLayer {
    instruments: Arc<Instruments>,
}

impl ClientLayer {
    /// For one client or many: clones are cheap, and count together.
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
    instruments: Arc<Instruments>,
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
            without_secrets(&format!("{scheme}://{bare}{}", uri.path_and_query().map_or("", |p| p.as_str()))).into_owned()
        }
        _ => uri.path().to_owned(),
    };
    (url, host, uri.port_u16().or(known))
}

impl<S, In, Out> Service<Request<In>> for Calling<S>
where
    S: Service<Request<In>, Response = Response<Out>>,
    S::Future: Future<Output = Result<Response<Out>, S::Error>>,
    S::Error: std::fmt::Display,
    Out: Body,
    Out::Error: std::fmt::Display,
{
    type Response = Response<Watched<Out, Call>>;
    type Error = S::Error;
    type Future = Answer<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<In>) -> Self::Future {
        let (url, host, port) = address(request.uri());
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let grpc = is_grpc(request.headers());
        let called = Called { method: &method, url: &url, host: &host, port, grpc_path: grpc.then_some(path.as_str()) };
        let call = begin(&self.instruments, &called);
        carry_on(&call, request.headers_mut());
        let answer = call.span.in_scope(|| self.inner.call(request));
        Answer::new(Within::new(answer, call, None), method == Method::HEAD, "request_error")
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
