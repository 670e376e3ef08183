//! A tower layer for servers of HTTP and gRPC (axum, tonic): a SERVER span for each request with its parent from the headers, and the server's metrics.
//!
//! A request lasts until the last byte of its answer. One whose future or body is dropped before, because the client hung up, is recorded as cancelled.

use crate::body::Watched;
use crate::call::{Call, Instruments, Side, is_grpc, method_name, rpc_names};
use crate::lean::SpanExt;
use crate::propagate::Headers;
use axum::extract::{ConnectInfo, MatchedPath};
use http::{HeaderMap, Request, Response, Version, header};
use http_body::Body;
use opentelemetry::trace::FutureExt;
use opentelemetry::{KeyValue, global};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;
use tower::{Layer, Service};
use tracing::Instrument;
use tracing::field::Empty;

/// Instruments every route of a router: `router.layer(ServerLayer::new())`.
#[derive(Clone, Debug)]
pub struct ServerLayer {
    instruments: Instruments,
}

impl ServerLayer {
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

impl<S, In, Out> Service<Request<In>> for Served<S>
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

    fn call(&mut self, request: Request<In>) -> Self::Future {
        let parent = global::get_text_map_propagator(|p| p.extract(&Headers(request.headers())));
        let (method, shown) = method_name(request.method());
        let head_only = method == "HEAD";
        let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
        // The client's to write, and so one of two.
        let scheme = if request.uri().scheme_str() == Some("https") { "https" } else { "http" };
        let version = match request.version() {
            Version::HTTP_10 => "1.0",
            Version::HTTP_2 => "2",
            Version::HTTP_3 => "3",
            _ => "1.1",
        };
        let authority = text(request.headers(), header::HOST).and_then(|host| host.parse::<http::uri::Authority>().ok());
        let authority = authority.or_else(|| request.uri().authority().cloned());
        let grpc = is_grpc(request.headers());
        let (rpc_service, rpc_method) = rpc_names(request.uri().path());
        let name = match &route {
            _ if grpc => format!("{rpc_service}/{rpc_method}"),
            Some(route) => format!("{shown} {route}"),
            None => shown.to_owned(),
        };
        // Known to the span from its first moment, so that it is sampled as its caller was.
        let attached = parent.clone().attach();
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
            "rpc.system" = grpc.then_some("grpc"),
            "rpc.service" = grpc.then_some(rpc_service),
            "rpc.method" = grpc.then_some(rpc_method),
            "rpc.grpc.status_code" = Empty,
            "http.response.status_code" = Empty,
            "error.type" = Empty,
        );
        if let Some(ConnectInfo(peer)) = request.extensions().get::<ConnectInfo<SocketAddr>>() {
            span.record("client.address", peer.ip().to_string());
        }
        drop(attached);
        span.set_otel_parent(parent.clone());
        let active = vec![KeyValue::new("http.request.method", method), KeyValue::new("url.scheme", scheme)];
        if let Some(counter) = &self.layer.instruments.active {
            counter.add(1, &active);
        }
        let mut attributes = vec![KeyValue::new("network.protocol.version", version)];
        attributes.extend(route.map(|route| KeyValue::new("http.route", route)));
        if grpc {
            attributes.push(KeyValue::new("rpc.service", rpc_service.to_owned()));
            attributes.push(KeyValue::new("rpc.method", rpc_method.to_owned()));
        }
        let mut call = Call {
            instruments: self.layer.instruments.clone(),
            grpc,
            started: Instant::now(),
            active,
            attributes,
            span: span.clone(),
            ended: false,
        };
        // Inside the span, so that what a handler logs before its first await belongs to it too.
        let answer = span.in_scope(|| self.inner.call(request));
        let answer = async move {
            match answer.await {
                Ok(response) => {
                    call.answered(response.status().as_u16(), response.headers());
                    Ok(response.map(|body| Watched::new(body, call, head_only)))
                }
                Err(error) => {
                    call.broken("service_error", error.to_string());
                    Err(error)
                }
            }
        };
        // Around it the caller's context, so that trace and baggage go on where nothing of this service is exported.
        Box::pin(answer.instrument(span).with_context(parent))
    }
}
