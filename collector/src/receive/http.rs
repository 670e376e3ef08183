//! OTLP/HTTP: `POST /v1/{signal}`, protobuf or JSON.

use super::Receivers;
use super::body::{self, Encoding};
use super::reply::{self, Refusal};
use crate::decode::Format;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use firstfall_store::{Answer, Signal};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bodies above this are inflated and decoded on a thread of their own, so that they do not hold up the small ones.
pub(super) const INLINE_BYTES_MAX: usize = 1 << 20;

pub async fn export(receivers: Arc<Receivers>, signal: Signal, request: Request) -> Response<Body> {
    receivers.ingest.counters.requests.fetch_add(1, Ordering::Relaxed);
    let format = format_of(request.headers());
    let origin = allowed_origin(&receivers, request.headers());
    // An error to a client whose content type we do not know is told as JSON.
    let reply_format = *format.as_ref().unwrap_or(&Format::Json);
    let mut response = match try_export(&receivers, signal, format, request).await {
        Ok(answer) => respond(StatusCode::OK, reply_format, reply::accepted(reply_format, signal, &answer)),
        Err(refusal) => {
            receivers.ingest.counters.refuse(refusal.reason);
            refuse(&refusal, reply_format)
        }
    };
    if let Some(origin) = origin {
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("origin"));
    }
    response
}

async fn try_export(
    receivers: &Arc<Receivers>,
    signal: Signal,
    format: Result<Format, Refusal>,
    request: Request,
) -> Result<Answer, Refusal> {
    if receivers.token.as_ref().is_some_and(|token| !token.is_in(request.headers())) {
        return Err(Refusal::unauthenticated());
    }
    let format = format?;
    let encoding = match request.headers().get(header::CONTENT_ENCODING) {
        None => Encoding::Identity,
        Some(value) => Encoding::parse(value.to_str().unwrap_or("?"))?,
    };
    let hint = request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    let mut reservation = receivers.in_flight.reserve();
    let sent = body::read(request.into_body(), hint, &receivers.receiving, &mut reservation).await?;
    inflate_and_ingest(receivers, signal, format, encoding, sent, reservation).await
}

/// What both protocols do with a body once it is here.
pub(super) async fn inflate_and_ingest(
    receivers: &Arc<Receivers>,
    signal: Signal,
    format: Format,
    encoding: Encoding,
    sent: Vec<u8>,
    mut reservation: body::Reservation,
) -> Result<Answer, Refusal> {
    if sent.len() <= INLINE_BYTES_MAX {
        let mut plain = body::inflate(encoding, sent, &receivers.receiving, &mut reservation)?;
        return Ok(receivers.ingest.request(signal, format, &mut plain).await?);
    }
    let receivers = receivers.clone();
    let work = tokio::task::spawn_blocking(move || {
        let mut plain = body::inflate(encoding, sent, &receivers.receiving, &mut reservation)?;
        let answer = tokio::runtime::Handle::current().block_on(receivers.ingest.request(signal, format, &mut plain))?;
        drop(reservation);
        Ok(answer)
    });
    work.await.unwrap_or_else(|_| Err(crate::ingest::Refused::Unreadable("the request could not be processed".to_owned()).into()))
}

fn format_of(headers: &HeaderMap) -> Result<Format, Refusal> {
    let found = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    match found.split(';').next().unwrap_or("").trim().to_ascii_lowercase().as_str() {
        "application/x-protobuf" => Ok(Format::Protobuf),
        "application/json" => Ok(Format::Json),
        _ => Err(Refusal::content_type(found)),
    }
}

fn respond(status: StatusCode, format: Format, body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let content_type = match format {
        Format::Protobuf => "application/x-protobuf",
        Format::Json => "application/json",
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn refuse(refusal: &Refusal, format: Format) -> Response<Body> {
    let status = StatusCode::from_u16(refusal.http_status).expect("the codes in `reply` are valid");
    let mut response = respond(status, format, refusal.body(format));
    let headers = response.headers_mut();
    if let Some(seconds) = refusal.retry_seconds {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if refusal.reason == "unsupported_encoding" {
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(Encoding::ALL));
    }
    response
}

fn allowed_origin(receivers: &Receivers, headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    receivers.cors_origins.iter().any(|o| o == "*" || o.as_bytes() == origin.as_bytes()).then(|| origin.clone())
}

/// A browser asks first whether it may send. Without configured origins it may not.
pub async fn preflight(receivers: Arc<Receivers>, request: Request) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    if let Some(origin) = allowed_origin(&receivers, request.headers()) {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST"));
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("content-type, content-encoding, authorization"));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("3600"));
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
    }
    response
}
