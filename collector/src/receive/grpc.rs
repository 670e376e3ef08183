//! OTLP/gRPC: a unary call is one message, `flag(1) length(4, big-endian) bytes`, and an answer of the same shape with trailers.

use super::Receivers;
use super::body::{self, Encoding, Problem};
use super::http::inflate_and_ingest;
use super::reply::{self, Refusal};
use crate::decode::Format;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use base64::Engine;
use bytes::Bytes;
use firstfall_store::{Answer, Signal};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use std::sync::Arc;
use std::sync::atomic::Ordering;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

pub async fn export(receivers: Arc<Receivers>, signal: Signal, request: Request) -> Response<Body> {
    receivers.ingest.counters.requests.fetch_add(1, Ordering::Relaxed);
    match try_export(&receivers, signal, request).await {
        Ok(answer) => accepted(&reply::accepted(Format::Protobuf, signal, &answer)),
        Err(refusal) => {
            receivers.ingest.counters.refuse(refusal.reason);
            refused(&refusal)
        }
    }
}

async fn try_export(receivers: &Arc<Receivers>, signal: Signal, request: Request) -> Result<Answer, Refusal> {
    if receivers.token.as_ref().is_some_and(|token| !token.is_in(request.headers())) {
        return Err(Refusal::unauthenticated());
    }
    let encoding = match request.headers().get(GRPC_ENCODING) {
        None => Encoding::Identity,
        Some(value) => Encoding::parse(value.to_str().unwrap_or("?"))?,
    };
    let mut reservation = receivers.in_flight.reserve();
    let mut receiving = receivers.receiving;
    receiving.request_bytes_max += 5;
    let too_large = |problem| match problem {
        Problem::TooLarge(_) => Problem::TooLarge(receivers.receiving.request_bytes_max),
        other => other,
    };
    let mut sent = body::read(request.into_body(), None, &receiving, &mut reservation).await.map_err(too_large)?;
    let Some((prefix, message)) = sent.split_first_chunk::<5>() else {
        return Err(Problem::Broken("the call has no message".to_owned()).into());
    };
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    if length > receivers.receiving.request_bytes_max {
        return Err(Problem::TooLarge(receivers.receiving.request_bytes_max).into());
    }
    if message.len() != length {
        return Err(Problem::Broken(format!("the message should have {length} bytes and has {}", message.len())).into());
    }
    let encoding = match prefix[0] {
        0 => Encoding::Identity,
        1 if encoding == Encoding::Identity => {
            return Err(Problem::Broken("the message is compressed, but no grpc-encoding says how".to_owned()).into());
        }
        1 => encoding,
        flag => return Err(Problem::Broken(format!("the message has the unknown flag {flag}")).into()),
    };
    sent.drain(..5);
    inflate_and_ingest(receivers, signal, Format::Protobuf, encoding, sent, reservation).await
}

fn headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(GRPC_ACCEPT_ENCODING, HeaderValue::from_static("identity,gzip,deflate,zstd"));
    headers
}

fn accepted(message: &[u8]) -> Response<Body> {
    let mut frame = Vec::with_capacity(5 + message.len());
    frame.push(0);
    frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
    frame.extend_from_slice(message);
    let mut trailers = HeaderMap::new();
    trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    let frames = [Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from(frame))), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(Body::new(StreamBody::new(Frames(frames.into_iter())).boxed()));
    *response.headers_mut() = headers();
    response
}

/// Frames that are all here already, as a stream.
struct Frames<I>(I);

impl<I: Iterator + Unpin> futures_core::Stream for Frames<I> {
    type Item = I::Item;
    fn poll_next(mut self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<Option<I::Item>> {
        std::task::Poll::Ready(self.0.next())
    }
}

/// An answer without a message: status and trailers in its headers.
fn refused(refusal: &Refusal) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    *headers = self::headers();
    headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(refusal.grpc_code)));
    headers.insert(GRPC_MESSAGE, percent_encoded(&refusal.message));
    if refusal.retry_seconds.is_some() {
        let details = base64::engine::general_purpose::STANDARD_NO_PAD.encode(refusal.status());
        headers.insert(GRPC_DETAILS, HeaderValue::from_str(&details).expect("base64 is ASCII"));
    }
    response
}

/// As gRPC asks: bytes outside of printable ASCII, and the percent sign, become %XX.
fn percent_encoded(message: &str) -> HeaderValue {
    let mut out = String::new();
    // Long enough for every message of ours; HTTP/2 peers limit headers.
    for byte in message.bytes().take(1024) {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::from_str(&out).expect("it is printable ASCII")
}

/// A request to no method of ours. One that is not gRPC at all (OTLP/HTTP at the wrong port, a browser) must not be answered with gRPC's 200: its client would
/// take that for success.
pub async fn unimplemented(request: Request) -> Response<Body> {
    let is_grpc = request.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if !is_grpc {
        let said = "this port speaks OTLP/gRPC; OTLP/HTTP has a port of its own (4318 by default)\n";
        let mut response = Response::new(Body::from(said));
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        return response;
    }
    let path: String = request.uri().path().chars().take(120).collect();
    refused(&Refusal {
        http_status: 404,
        grpc_code: 12,
        retry_seconds: None,
        message: format!("there is no method {path:?}; this port speaks OTLP/gRPC, OTLP/HTTP has a port of its own (4318 by default)"),
        reason: "unreadable",
    })
}
