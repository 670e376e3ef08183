//! What clients are told: the only place of the receivers that knows status codes.
//!
//! SDKs drop a batch on 400, 401, 404, 408, 413, 500 and 501 and send it again on 429, 502, 503 and 504 (gRPC: UNAVAILABLE, and
//! RESOURCE_EXHAUSTED with a retry hint). So nothing that may pass is ever answered with the former. Their whole budget for
//! retries is about ten seconds: a hint of more makes them drop at once.

use super::body::{Encoding, Problem};
use crate::decode::Format;
use crate::ingest::Refused;
use firstfall_store::{Answer, Signal};

/// Seconds after which a refused client is asked to come again.
const RETRY_SECONDS: u64 = 1;

/// A refusal in both protocols' terms.
pub struct Refusal {
    pub http_status: u16,
    pub grpc_code: u8,
    pub retry_seconds: Option<u64>,
    pub message: String,
    /// Under which it is counted.
    pub reason: &'static str,
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Refusal {
        let refusal = |http_status, grpc_code, retry: bool, reason, message| Refusal {
            http_status,
            grpc_code,
            retry_seconds: retry.then_some(RETRY_SECONDS),
            message,
            reason,
        };
        match problem {
            // No retry hint: the same request would be as large again. Never OUT_OF_RANGE, which clients repeat for ever.
            Problem::TooLarge(max) => refusal(
                413,
                8,
                false,
                "too_large",
                format!(
                    "the request is larger than {max} bytes, as sent or inflated; send smaller batches, or raise limits.request_bytes_max"
                ),
            ),
            Problem::Busy => refusal(429, 8, true, "busy", "too many bytes are under way; come again in a second".to_owned()),
            Problem::Slow => refusal(408, 4, false, "timeout", "the body did not arrive in time".to_owned()),
            Problem::Cut(error) => refusal(400, 1, false, "unreadable", format!("the body was cut off: {error}")),
            Problem::Broken(error) => refusal(400, 3, false, "unreadable", format!("the body is not what its encoding says: {error}")),
            Problem::Unsupported(encoding) => refusal(
                415,
                12,
                false,
                "unsupported_encoding",
                format!("the encoding {encoding:?} is not supported; send one of {}", Encoding::ALL),
            ),
        }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Refusal {
        match refused {
            Refused::Unreadable(message) => Refusal { http_status: 400, grpc_code: 3, retry_seconds: None, message, reason: "unreadable" },
            Refused::Busy => Problem::Busy.into(),
            Refused::Unwritable(message) => Refusal {
                http_status: 503,
                grpc_code: 14,
                retry_seconds: Some(RETRY_SECONDS),
                message: format!("nothing can be written at present: {message}"),
                reason: "unwritable",
            },
            Refused::Closing => Refusal {
                http_status: 503,
                grpc_code: 14,
                retry_seconds: Some(RETRY_SECONDS),
                message: "the server is going down".to_owned(),
                reason: "closing",
            },
        }
    }
}

impl Refusal {
    pub fn unauthenticated() -> Refusal {
        Refusal {
            http_status: 401,
            grpc_code: 16,
            retry_seconds: None,
            message: "the token is missing or wrong; send it as `authorization: Bearer TOKEN`".to_owned(),
            reason: "unauthenticated",
        }
    }

    pub fn content_type(found: &str) -> Refusal {
        let found: String = found.chars().take(60).collect();
        Refusal {
            http_status: 415,
            grpc_code: 3,
            retry_seconds: None,
            message: format!("the content type {found:?} is not supported; send application/x-protobuf or application/json"),
            reason: "unsupported_content_type",
        }
    }

    /// `google.rpc.Status` in the request's encoding.
    pub fn body(&self, format: Format) -> Vec<u8> {
        match format {
            Format::Json => serde_json::json!({"code": self.grpc_code, "message": self.message}).to_string().into_bytes(),
            Format::Protobuf => self.status(),
        }
    }

    /// `google.rpc.Status`: 1 code, 2 message, 3 details; a retry hint is a `google.rpc.RetryInfo` in the details.
    pub fn status(&self) -> Vec<u8> {
        let mut out = vec![0x08, self.grpc_code];
        field(&mut out, 2, self.message.as_bytes());
        if let Some(seconds) = self.retry_seconds {
            let duration = [0x08, seconds as u8];
            let mut info = Vec::new();
            field(&mut info, 1, &duration);
            let mut any = Vec::new();
            field(&mut any, 1, b"type.googleapis.com/google.rpc.RetryInfo");
            field(&mut any, 2, &info);
            field(&mut out, 3, &any);
        }
        out
    }
}

/// `Export…ServiceResponse`: empty, or 1 partial_success {1 rejected, 2 error_message}.
pub fn accepted(format: Format, signal: Signal, answer: &Answer) -> Vec<u8> {
    let nothing_to_say = answer.rejected == 0 && answer.message.is_empty();
    match format {
        Format::Json if nothing_to_say => b"{}".to_vec(),
        Format::Json => {
            let rejected = match signal {
                Signal::Traces => "rejectedSpans",
                Signal::Logs => "rejectedLogRecords",
                Signal::Metrics => "rejectedDataPoints",
            };
            serde_json::json!({"partialSuccess": {rejected: answer.rejected.to_string(), "errorMessage": answer.message}})
                .to_string()
                .into_bytes()
        }
        Format::Protobuf if nothing_to_say => Vec::new(),
        Format::Protobuf => {
            let mut partial = vec![0x08];
            varint(&mut partial, answer.rejected);
            field(&mut partial, 2, answer.message.as_bytes());
            let mut out = Vec::new();
            field(&mut out, 1, &partial);
            out
        }
    }
}

fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
