//! One request over OTLP/gRPC. tonic runs on a runtime of the thread that sends, which turns only while a request is under way: nothing of it can be starved by the
//! service, nor take the service's time.
//!
//! What a status means is the OTLP specification's: CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE and DATA_LOSS may be tried again,
//! RESOURCE_EXHAUSTED too if it says when (`RetryInfo`); all else will never be taken.

use super::Signal;
use super::send::{ANSWER_MAX, Outcome, RETRY_AFTER_MAX, rejected};
use crate::agent::Compression;
use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use prost::Message;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tonic::client::Grpc;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// Addresses of one collector; the channel to it is made at the first request, and again after one that failed.
pub(super) struct Connection {
    runtime: Runtime,
    endpoint: Endpoint,
    channel: Option<Channel>,
    headers: MetadataMap,
    compression: Compression,
}

/// Messages are encoded already, and answers are read by whoever wants to.
#[derive(Default)]
struct AsTheyAre;

impl Codec for AsTheyAre {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = AsTheyAre;
    type Decoder = AsTheyAre;

    fn encoder(&mut self) -> AsTheyAre {
        AsTheyAre
    }
    fn decoder(&mut self) -> AsTheyAre {
        AsTheyAre
    }
}

impl Encoder for AsTheyAre {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for AsTheyAre {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

fn method(signal: Signal) -> PathAndQuery {
    PathAndQuery::from_static(match signal {
        Signal::Spans => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
        Signal::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        Signal::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    })
}

impl Connection {
    /// What becomes of requests where it cannot be had: an address or a header that is none will never do, all else may be better later.
    pub fn new(address: &str, headers: &[(String, String)], compression: Compression) -> Result<Connection, Outcome> {
        let later = |why: String| Outcome::Later { after: None, why };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| later(with_causes(&error)))?;
        let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|error| Outcome::Refused(with_causes(&error)))?;
        let endpoint =
            endpoint.user_agent(concat!("firstfall-agent/", env!("CARGO_PKG_VERSION"))).map_err(|error| later(with_causes(&error)))?;
        #[cfg(feature = "_tls")]
        let endpoint = match endpoint.uri().scheme_str() {
            Some("https") => {
                let tls = tonic::transport::ClientTlsConfig::new().with_native_roots();
                endpoint.tls_config(tls).map_err(|error| later(with_causes(&error)))?
            }
            _ => endpoint,
        };
        let mut metadata = MetadataMap::new();
        for (name, value) in headers {
            // Names of gRPC are in small letters; those that end in -bin hold bytes, which no variable can.
            let key = AsciiMetadataKey::from_bytes(name.to_ascii_lowercase().as_bytes());
            let (Ok(key), Ok(value)) = (key, AsciiMetadataValue::try_from(value.as_str())) else {
                return Err(Outcome::Refused(format!("the header {name:?} and its value are none of gRPC")));
            };
            metadata.insert(key, value);
        }
        Ok(Connection { runtime, endpoint, channel: None, headers: metadata, compression })
    }

    pub fn send(&mut self, signal: Signal, body: &[u8], limit: Duration) -> Outcome {
        let until = Instant::now() + limit;
        let body = Bytes::copy_from_slice(body);
        let known = self.channel.take();
        let was_known = known.is_some();
        let mut answer = self.try_once(known, signal, body.clone(), until);
        // A connection that nobody has looked after since the last request may have been closed by the other side.
        if was_known && matches!(answer, Err(Failure::Connection(_))) {
            answer = self.try_once(None, signal, body, until);
        }
        match answer {
            Ok(said) => Outcome::Done { rejected: rejected(&said) },
            Err(Failure::TooMuchSaid) => Outcome::Done { rejected: 0 },
            Err(Failure::Connection(why)) => Outcome::Later { after: None, why },
            Err(Failure::NoAnswer) => Outcome::Later { after: None, why: "no answer in time".to_owned() },
            Err(Failure::Status(status)) => outcome(&status),
        }
    }

    fn try_once(&mut self, channel: Option<Channel>, signal: Signal, body: Bytes, until: Instant) -> Result<Bytes, Failure> {
        let limit = until.saturating_duration_since(Instant::now());
        if limit.is_zero() {
            return Err(Failure::NoAnswer);
        }
        let Connection { runtime, endpoint, headers, compression, .. } = self;
        let (channel, answer) = runtime.block_on(async {
            let channel = channel.unwrap_or_else(|| endpoint.connect_lazy());
            let mut client = Grpc::new(channel.clone()).max_decoding_message_size(ANSWER_MAX as usize);
            if *compression == Compression::Gzip {
                client = client.send_compressed(CompressionEncoding::Gzip);
            }
            let mut request = tonic::Request::new(body);
            *request.metadata_mut() = headers.clone();
            request.set_timeout(limit);
            let called = async {
                client.ready().await.map_err(|error| Failure::Connection(with_causes(&error)))?;
                client.unary(request, method(signal), AsTheyAre).await.map_err(Failure::of)
            };
            let answer = tokio::time::timeout(limit, called).await;
            (channel, answer.unwrap_or(Err(Failure::NoAnswer)))
        });
        if matches!(answer, Ok(_) | Err(Failure::Status(_))) {
            self.channel = Some(channel);
        }
        answer.map(tonic::Response::into_inner)
    }
}

/// Why there is no answer that says the items are taken.
enum Failure {
    Connection(String),
    NoAnswer,
    TooMuchSaid,
    /// The collector's.
    Status(Status),
}

impl Failure {
    /// tonic makes a status of everything, of any code; what it has not got from the other side has a cause.
    fn of(status: Status) -> Failure {
        match std::error::Error::source(&status) {
            Some(cause) if causes(cause).any(|cause| cause.is::<tonic::TimeoutExpired>()) => Failure::NoAnswer,
            Some(cause) => Failure::Connection(with_causes(cause)),
            // It has come, and is longer than anything that is of interest.
            None if status.code() == Code::OutOfRange && status.message().contains("message length too large") => Failure::TooMuchSaid,
            None => Failure::Status(status),
        }
    }
}

fn outcome(status: &Status) -> Outcome {
    let mut why = format!("gRPC status {:?}", status.code());
    if !status.message().is_empty() {
        why = format!("{why}: {}", status.message());
    }
    let after = retry_after(status.details()).map(|after| after.min(RETRY_AFTER_MAX));
    match status.code() {
        Code::Cancelled | Code::DeadlineExceeded | Code::Aborted | Code::OutOfRange | Code::Unavailable | Code::DataLoss => {
            Outcome::Later { after, why }
        }
        Code::ResourceExhausted if after.is_some() => Outcome::Later { after, why },
        _ => Outcome::Refused(why),
    }
}

fn causes<'a>(error: &'a (dyn std::error::Error + 'static)) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    causes(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// `google.rpc.Status`, as far as it is of interest.
#[derive(Clone, PartialEq, Message)]
struct Details {
    #[prost(message, repeated, tag = "3")]
    all: Vec<Detail>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct Detail {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    delay: Option<Delay>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, Copy, PartialEq, Message)]
struct Delay {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// How long the collector wants to be left alone.
fn retry_after(details: &[u8]) -> Option<Duration> {
    let details = Details::decode(details).ok()?;
    let info = details.all.iter().find(|detail| detail.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(&info.value[..]).ok()?.delay.unwrap_or_default();
    Some(Duration::new(u64::try_from(delay.seconds).ok()?, u32::try_from(delay.nanos).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn details(delay: Delay) -> Vec<u8> {
        let info = RetryInfo { delay: Some(delay) }.encode_to_vec();
        let other = Detail { type_url: "type.googleapis.com/google.rpc.Help".to_owned(), value: vec![255] };
        let info = Detail { type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(), value: info };
        Details { all: vec![other, info] }.encode_to_vec()
    }

    fn told(code: Code, details: Vec<u8>) -> Outcome {
        outcome(&Status::with_details(code, "full", details.into()))
    }

    #[test]
    fn statuses_mean_what_the_specification_says() {
        for code in 1..=16 {
            let code = Code::from(code);
            let again = matches!(told(code, Vec::new()), Outcome::Later { after: None, .. });
            assert_eq!(again, [1, 4, 10, 11, 14, 15].contains(&(code as i32)), "{code:?}");
        }
        let soon = details(Delay { seconds: 2, nanos: 500_000_000 });
        for code in [Code::ResourceExhausted, Code::Unavailable] {
            let Outcome::Later { after, why } = told(code, soon.clone()) else { panic!("{code:?} says when to come again") };
            assert_eq!(after, Some(Duration::from_millis(2500)));
            assert!(why.contains("full"), "{why}");
        }
        let Outcome::Later { after, .. } = told(Code::Unavailable, details(Delay { seconds: i64::MAX, nanos: 0 })) else { panic!("later") };
        assert_eq!(after, Some(RETRY_AFTER_MAX), "nobody is waited for longer");
    }

    #[test]
    fn what_is_no_delay_is_none() {
        for wrong in [Delay { seconds: -1, nanos: 0 }, Delay { seconds: 0, nanos: -1 }] {
            assert_eq!(retry_after(&details(wrong)), None);
        }
        for wrong in [&[][..], &[255, 255], b"no message"] {
            assert_eq!(retry_after(wrong), None);
        }
    }
}
