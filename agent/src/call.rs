//! What server and client layers share: names, metrics, and the measurement of one call from its head to its last byte.

use crate::body::{Watch, Watched};
use crate::late::{Late, histogram, late, meter};
use crate::lean::RecordNumber;
use crate::series::Series;
use crate::within::{HasSpan, Within};
use http::{HeaderMap, Response};
use http_body::Body;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{BoundUpDownCounter, UpDownCounter};
use pin_project_lite::pin_project;
use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{self, Poll, ready};
use std::time::Instant;
use tracing::Span;

/// Upper ends of the latency buckets in seconds, as the HTTP conventions advise.
const BUCKETS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

const UNIMPLEMENTED: i64 = 12;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Server,
    Client,
}

/// The instruments of one side.
#[derive(Debug)]
pub(crate) struct Instruments {
    pub side: Side,
    http: Late<Series>,
    rpc: Late<Series>,
    active: Option<Late<Active>>,
}

impl Instruments {
    pub fn new(side: Side) -> Arc<Instruments> {
        let server = side == Side::Server;
        let series = |name| late(move || Series::new(histogram(name, &BUCKETS)));
        Arc::new(Instruments {
            side,
            http: series(if server { "http.server.request.duration" } else { "http.client.request.duration" }),
            rpc: series(if server { "rpc.server.call.duration" } else { "rpc.client.call.duration" }),
            active: server.then(|| late(Active::new)),
        })
    }
}

/// Requests that are under way, by method and scheme.
#[derive(Debug)]
struct Active {
    counter: UpDownCounter<i64>,
    bound: [[OnceLock<BoundUpDownCounter<i64>>; 2]; METHODS.len() + 1],
}

impl Active {
    fn new() -> Active {
        let counter = meter().i64_up_down_counter("http.server.active_requests").with_unit("{request}").build();
        Active { counter, bound: Default::default() }
    }

    fn add(&self, method: Method, scheme: &'static str, value: i64) {
        let bound = self.bound[method.0][usize::from(scheme == "https")].get_or_init(|| {
            self.counter.bind(&[KeyValue::new("http.request.method", method.attribute()), KeyValue::new("url.scheme", scheme)])
        });
        bound.add(value);
    }
}

const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// A method as names and metrics may carry it: one of these, or another one, which may be anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Method(usize);

impl Method {
    pub fn of(method: &http::Method) -> Method {
        Method(METHODS.iter().position(|known| *known == method.as_str()).unwrap_or(METHODS.len()))
    }

    /// In attributes.
    pub fn attribute(self) -> &'static str {
        METHODS.get(self.0).unwrap_or(&"_OTHER")
    }

    /// In the span's name.
    pub fn shown(self) -> &'static str {
        METHODS.get(self.0).unwrap_or(&"HTTP")
    }
}

pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(http::header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Service and method of a gRPC path.
pub(crate) fn rpc_names(path: &str) -> (&str, &str) {
    path.trim_start_matches('/').split_once('/').unwrap_or((path, ""))
}

/// What a call is counted by, but for how it went.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub method: Method,
    /// Of a server.
    pub scheme: Option<&'static str>,
    /// The protocol's, of a server.
    pub version: Option<&'static str>,
    /// A server's route, a client's host.
    pub place: Option<String>,
    pub port: Option<u16>,
    /// Service and method of gRPC.
    pub rpc: Option<Box<(String, String)>>,
}

impl Target {
    fn attributes(&self, side: Side) -> Vec<KeyValue> {
        let mut attributes = vec![KeyValue::new("http.request.method", self.method.attribute())];
        attributes.extend(self.scheme.map(|scheme| KeyValue::new("url.scheme", scheme)));
        attributes.extend(self.version.map(|version| KeyValue::new("network.protocol.version", version)));
        let place = if side == Side::Server { "http.route" } else { "server.address" };
        attributes.extend(self.place.as_ref().map(|at| KeyValue::new(place, at.clone())));
        attributes.extend(self.port.map(|port| KeyValue::new("server.port", i64::from(port))));
        if let Some((service, method)) = self.rpc.as_deref() {
            attributes.push(KeyValue::new("rpc.service", service.clone()));
            attributes.push(KeyValue::new("rpc.method", method.clone()));
        }
        attributes
    }
}

/// One call, from its head to its last byte. Dropped before the end it was cancelled, and is counted so.
#[derive(Debug)]
pub struct Call {
    instruments: Arc<Instruments>,
    target: Target,
    started: Instant,
    pub(crate) span: Span,
    status: Option<u16>,
    rpc_status: Option<i64>,
    error: Option<Cow<'static, str>>,
    /// Among those that are under way.
    counted_active: bool,
    ended: bool,
}

impl Call {
    pub(crate) fn begin(instruments: &Arc<Instruments>, target: Target, span: Span) -> Call {
        let active = instruments.active.as_ref().and_then(Late::get).zip(target.scheme);
        if let Some((active, scheme)) = active {
            active.add(target.method, scheme, 1);
        }
        let counted_active = active.is_some();
        let instruments = instruments.clone();
        Call {
            instruments,
            target,
            started: Instant::now(),
            span,
            status: None,
            rpc_status: None,
            error: None,
            counted_active,
            ended: false,
        }
    }

    /// The head of the answer is there.
    pub(crate) fn answered(&mut self, status: u16, headers: &HeaderMap) {
        self.span.record_number("http.response.status_code", status.into());
        self.status = Some(status);
        // For a client 4xx is a failure too, as the conventions ask.
        if status >= if self.instruments.side == Side::Server { 500 } else { 400 } {
            self.error(status.to_string().into(), None);
        }
        if self.target.rpc.is_some() {
            self.grpc_status(headers);
        }
    }

    /// In the trailers, or in the head of an answer that has nothing else.
    fn grpc_status(&mut self, headers: &HeaderMap) {
        let Some(status) = headers.get("grpc-status").and_then(|status| status.to_str().ok()?.parse::<i64>().ok()) else { return };
        self.span.record_number("rpc.grpc.status_code", status);
        self.rpc_status = Some(status);
        // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE and DATA_LOSS are the server's; the rest the caller's.
        let failed = status != 0 && (self.instruments.side == Side::Client || matches!(status, 2 | 4 | 12..=15));
        if failed {
            let message = headers.get("grpc-message").and_then(|message| message.to_str().ok()).map(str::to_owned);
            self.error(status.to_string().into(), message);
        }
    }

    /// There was no answer.
    pub(crate) fn broken(mut self, kind: &'static str, error: String) {
        self.ended = true;
        self.error(kind.into(), Some(error));
    }

    pub(crate) fn error(&mut self, kind: Cow<'static, str>, description: Option<String>) {
        self.span.record("error.type", &*kind);
        self.span.record("otel.status_code", "ERROR");
        if let Some(description) = description {
            self.span.record("otel.status_description", description.as_str());
        }
        self.error = Some(kind);
    }

    /// All that was to be waited for is there.
    pub(crate) fn end(mut self) {
        self.ended = true;
    }

    fn attributes(&self) -> Vec<KeyValue> {
        let mut attributes = self.target.attributes(self.instruments.side);
        attributes.extend(self.status.map(|status| KeyValue::new("http.response.status_code", i64::from(status))));
        if let Some(status) = self.rpc_status {
            attributes.push(KeyValue::new("rpc.grpc.status_code", status));
            // A method that nobody knows may have any name.
            if status == UNIMPLEMENTED {
                attributes.retain(|pair| !matches!(pair.key.as_str(), "rpc.service" | "rpc.method"));
            }
        }
        attributes.extend(self.error.clone().map(|kind| KeyValue::new("error.type", kind)));
        attributes
    }
}

impl HasSpan for Call {
    fn span(&self) -> &Span {
        &self.span
    }
}

impl Watch for Call {
    fn trailers(&mut self, trailers: &HeaderMap) {
        if self.target.rpc.is_some() {
            self.grpc_status(trailers);
        }
    }

    fn complete(self) {
        self.end();
    }

    fn failed(self, error: String) {
        self.broken("body_error", error);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.ended && std::thread::panicking() {
            self.error("panic".into(), None);
        } else if !self.ended {
            self.span.record("error.type", "cancelled");
            self.error = Some("cancelled".into());
        }
        let active = self.instruments.active.as_ref().and_then(Late::get).zip(self.target.scheme);
        if let Some((active, scheme)) = active.filter(|_| self.counted_active) {
            active.add(self.target.method, scheme, -1);
        }
        let took = self.started.elapsed().as_secs_f64();
        let Instruments { http, rpc, .. } = &*self.instruments;
        let (Some(http), Some(rpc)) = (http.get(), rpc.get()) else { return };
        if self.target.rpc.is_some() {
            return rpc.record_any(took, &self.attributes());
        }
        // What is counted most often has its place; a failure without a status is rare, or should be.
        let target = &self.target;
        let usual = self.status.filter(|_| self.error.as_ref().is_none_or(|error| error.bytes().all(|digit| digit.is_ascii_digit())));
        let Some(status) = usual else { return http.record_any(took, &self.attributes()) };
        let rest = (target.method.attribute(), target.scheme, target.version, target.port, status);
        http.record(took, target.place.as_deref().unwrap_or(""), rest, || self.attributes());
    }
}

pin_project! {
    /// The answer to a call over a tower service, with a body that is watched to its end.
    #[derive(Debug)]
    pub struct Answer<F> {
        #[pin]
        inner: Within<F, Call>,
        // Nothing of the body will be read.
        head_only: bool,
        // What a call that gets no answer is, as `error.type`.
        failure: &'static str,
    }
}

impl<F> Answer<F> {
    pub(crate) fn new(inner: Within<F, Call>, head_only: bool, failure: &'static str) -> Answer<F> {
        Answer { inner, head_only, failure }
    }
}

impl<F, Out, Error> Future for Answer<F>
where
    F: Future<Output = Result<Response<Out>, Error>>,
    Error: std::fmt::Display,
    Out: Body,
    Out::Error: std::fmt::Display,
{
    type Output = Result<Response<Watched<Out, Call>>, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let (answer, mut call) = ready!(this.inner.poll(context));
        Poll::Ready(match answer {
            Ok(response) => {
                call.answered(response.status().as_u16(), response.headers());
                Ok(response.map(|body| Watched::new(body, call, *this.head_only)))
            }
            Err(error) => {
                call.broken(this.failure, error.to_string());
                Err(error)
            }
        })
    }
}
