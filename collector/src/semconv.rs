//! What the semantic conventions, old and new, say about an item: who sent it, whether it failed, whether it is a request.

use firstfall_store::Service;
use firstfall_store::builder::{BatchBuilder, Fact};
use firstfall_store::value::{Pairs, text_of};

const HTTP_STATUS: u8 = 1;
const GRPC_STATUS: u8 = 2;
const MESSAGING_OPERATION: u8 = 3;

/// Log records that came without a time, or without an observed time; so that an export says what the client said.
pub const TIME_UNSET: u8 = 1 << 5;
pub const OBSERVED_UNSET: u8 = 1 << 6;

const SPAN_KIND_SERVER: i32 = 2;
const SPAN_KIND_CONSUMER: i32 = 5;

/// The attributes that decide about a span.
pub fn role(key: &[u8]) -> u8 {
    match key {
        b"http.response.status_code" | b"http.status_code" => HTTP_STATUS,
        b"rpc.grpc.status_code" => GRPC_STATUS,
        b"messaging.operation.type" => MESSAGING_OPERATION,
        _ => 0,
    }
}

pub fn service(resource: &Pairs) -> Service {
    let text = |key| text_of(resource, key).unwrap_or("");
    let environment =
        text_of(resource, "deployment.environment.name").or_else(|| text_of(resource, "deployment.environment")).unwrap_or("");
    Service {
        name: text_of(resource, "service.name").unwrap_or("unknown_service").to_owned(),
        namespace: text("service.namespace").to_owned(),
        environment: environment.to_owned(),
    }
}

/// Failed: by its status, or by a server-side code where the status is unset. 4xx is the caller's fault.
#[inline]
pub fn is_error(status: u8, span: &BatchBuilder) -> bool {
    if status != 0 {
        return status == 2;
    }
    let number = |role| match span.fact(role) {
        Fact::Int(code) => code,
        Fact::Str(text) => std::str::from_utf8(span.string(text)).ok().and_then(|t| t.parse().ok()).unwrap_or(0),
        Fact::Absent => 0,
    };
    // gRPC: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS are the server's.
    (500..600).contains(&number(HTTP_STATUS)) || matches!(number(GRPC_STATUS), 2 | 4 | 12 | 13 | 14 | 15)
}

/// A request of its service: a SERVER span, or a CONSUMER span that processes a message. Fetching and settling are not; the old
/// `messaging.operation = receive` is, since Python's pika and aio-pika name the span of the callback so.
#[inline]
pub fn is_request(kind: i32, span: &BatchBuilder) -> bool {
    match kind {
        SPAN_KIND_SERVER => true,
        SPAN_KIND_CONSUMER => match span.fact(MESSAGING_OPERATION) {
            Fact::Str(operation) => !matches!(span.string(operation), b"receive" | b"settle" | b"create" | b"send" | b"publish"),
            _ => true,
        },
        _ => false,
    }
}
