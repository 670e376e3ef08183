//! A tower layer for servers of HTTP and gRPC (axum, tonic): a SERVER span for each request with its parent from the headers, and the server's metrics.
//!
//! A request lasts until the last byte of its answer. One whose future or body is dropped before, because the client hung up, is recorded as cancelled.

use crate::body::Watched;
use crate::call::{Answer, Call, Instruments, Method, Side, Target, is_grpc, rpc_names};
use crate::propagate::Headers;
use crate::within::{OWN_TARGET, Within};
#[cfg(feature = "axum")]
use axum::extract::{ConnectInfo, MatchedPath};
use http::{HeaderMap, Request, Response, Version, header};
use http_body::Body;
use opentelemetry::baggage::BaggageExt;
use opentelemetry::{Context, global};
use std::future::Future;
#[cfg(feature = "axum")]
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{self, Poll};
use tower::{Layer, Service};
use tracing::field::Empty;

/// Instruments every route of a router that is there already: `router.layer(ServerLayer::new())`, after the last route, and outside of other layers (the last `layer` of
/// a router, the first of a `ServiceBuilder`), whose answers then count too. Two of them count twice.
///
/// Any tower service of `http::Request` and `http::Response` can be within, whose error can be shown (`Display`); with the feature `axum` routes are known as axum
/// has matched them.
#[derive(Clone, Debug)]
pub struct ServerLayer {
    instruments: Arc<Instruments>,
}

impl ServerLayer {
    /// For one server or many: clones are cheap, and count together.
    pub fn new() -> ServerLayer {
        ServerLayer { instruments: Instruments::new(Side::Server) }
    }
}

impl Default for ServerLayer {
    fn default() -> Self {
        ServerLayer::new()
    }
}

impl<S> Layer<S> for ServerLayer {
    type Service = Served<S>;
    fn layer(&self, inner: S) -> Served<S> {
        Served { inner, layer: self.clone() }
    }
}

/// A service that is instrumented by [`ServerLayer`].
#[derive(Clone, Debug)]
pub struct Served<S> {
    inner: S,
    layer: ServerLayer,
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Host and port as a client names them.
fn host_and_port(authority: &str) -> (&str, Option<u16>) {
    // What stands before the host may be a password.
    let authority = authority.rsplit_once('@').map_or(authority, |(_, bare)| bare);
    // The colons of an address of IPv6 stand in brackets.
    match authority.rsplit_once(':').filter(|(_, port)| !port.contains(']')) {
        Some((host, port)) => (host, port.parse().ok()),
        None => (authority, None),
    }
}

impl<S, In, Out> Service<Request<In>> for Served<S>
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

    fn poll_ready(&mut self, context: &mut task::Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<In>) -> Self::Future {
        let parent = global::get_text_map_propagator(|p| p.extract(&Headers::of(request.headers())));
        let method = Method::of(request.method());
        #[cfg(feature = "axum")]
        let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
        #[cfg(not(feature = "axum"))]
        let route: Option<String> = None;
        // The client's to write, and so one of two.
        let scheme = if request.uri().scheme_str() == Some("https") { "https" } else { "http" };
        let version = match request.version() {
            Version::HTTP_10 => "1.0",
            Version::HTTP_2 => "2",
            Version::HTTP_3 => "3",
            _ => "1.1",
        };
        let authority = text(request.headers(), header::HOST).or_else(|| Some(request.uri().authority()?.as_str()));
        let (host, port) = authority.map(host_and_port).unzip();
        let rpc = is_grpc(request.headers()).then(|| rpc_names(request.uri().path()));
        let mut name = String::with_capacity(64);
        match (&rpc, &route) {
            (Some((service, method)), _) => [*service, "/", *method].iter().for_each(|part| name.push_str(part)),
            (None, Some(route)) => [method.shown(), " ", route].iter().for_each(|part| name.push_str(part)),
            (None, None) => name.push_str(method.shown()),
        }
        let has_baggage = !parent.baggage().is_empty();
        // Known to the span from its first moment, so that it is sampled as its caller was.
        let attached = parent.attach();
        let span = tracing::info_span!(
            target: OWN_TARGET,
            "http.server",
            "otel.kind" = "server",
            "otel.name" = name,
            "otel.status_code" = Empty,
            "otel.status_description" = Empty,
            "http.request.method" = method.attribute(),
            "http.route" = route,
            "url.path" = request.uri().path(),
            "url.scheme" = scheme,
            "server.address" = host,
            // Signed: an unsigned number would become a string attribute.
            "server.port" = port.flatten().map(i64::from),
            "client.address" = Empty,
            "user_agent.original" = text(request.headers(), header::USER_AGENT),
            "network.protocol.version" = version,
            "rpc.system" = rpc.map(|_| "grpc"),
            "rpc.service" = rpc.map(|(service, _)| service),
            "rpc.method" = rpc.map(|(_, method)| method),
            "rpc.grpc.status_code" = Empty,
            "http.response.status_code" = Empty,
            "error.type" = Empty,
        );
        #[cfg(feature = "axum")]
        if let Some(ConnectInfo(peer)) = request.extensions().get::<ConnectInfo<SocketAddr>>() {
            span.record("client.address", peer.ip().to_string());
        }
        // Around it the caller's context, so that trace and baggage go on where nothing of this service is exported.
        let around = (span.is_disabled() || has_baggage).then(Context::current);
        drop(attached);
        let rpc = rpc.map(|(service, method)| Box::new((service.to_owned(), method.to_owned())));
        let target = Target { method, scheme: Some(scheme), version: Some(version), place: route, port: None, rpc };
        let call = Call::begin(&self.layer.instruments, target, span);
        let head_only = request.method() == http::Method::HEAD;
        // Inside the span, so that what a handler logs before its first await belongs to it too.
        let attached = around.clone().map(Context::attach);
        let answer = call.span.in_scope(|| self.inner.call(request));
        drop(attached);
        Answer::new(Within::new(answer, call, around), head_only, "service_error")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_with_and_without_a_port() {
        assert_eq!(host_and_port("shop"), ("shop", None));
        assert_eq!(host_and_port("shop:80"), ("shop", Some(80)));
        assert_eq!(host_and_port("[::1]"), ("[::1]", None));
        assert_eq!(host_and_port("[::1]:8080"), ("[::1]", Some(8080)));
        assert_eq!(host_and_port("shop:http"), ("shop", None));
        assert_eq!(host_and_port("ann:pw@shop:80"), ("shop", Some(80)));
    }
}
