//! One request to the collector, over OTLP/HTTP or gRPC, and what its answer means.
//!
//! Over HTTP 2xx is done, but for what partial success says was rejected. 429, 502, 503, 504 and everything that kept an answer from coming may be tried again,
//! not before `Retry-After`; all else will never be taken (OTLP specification, "Failures").

use super::Signal;
#[cfg(feature = "grpc")]
use super::grpc;
use crate::agent::{Compression, Protocol};
use crate::settings::Settings;
use flate2::write::GzEncoder;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use prost::Message;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

/// Answers are a few bytes; a hostile or broken one must not fill the memory.
pub(super) const ANSWER_MAX: u64 = 64 << 10;
/// The head of an answer.
const HEAD_MAX: usize = 16 << 10;
/// A collector that says "in an hour" is asked again after this long: items wait in a bounded place.
pub(super) const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// A request goes out in pieces of this size, with a pause after each unless somebody waits for it. Half a megabyte at once keeps a processor, and the kernel's
/// part of another one, for half a millisecond, for which every request of the service that is under way then waits; so it is some 250 MB a second at
/// most, and a piece is over before anybody notices.
const PIECE: usize = 64 << 10;
const PAUSE: Duration = Duration::from_micros(200);

/// A body that takes its time. See [`PIECE`].
struct Paced<'a> {
    rest: &'a [u8],
    begun: bool,
}

impl Read for Paced<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if std::mem::replace(&mut self.begun, true) && !self.rest.is_empty() {
            std::thread::sleep(PAUSE);
        }
        let length = out.len().min(PIECE);
        self.rest.read(&mut out[..length])
    }
}

pub(crate) enum Outcome {
    /// Taken, but for so many items.
    Done { rejected: u64 },
    /// It will never be taken.
    Refused(String),
    /// Not now; not before so long, where that was said.
    Later { after: Option<Duration>, why: String },
}

pub(crate) struct Sender {
    client: ureq::Agent,
    addresses: [String; 3],
    headers: Vec<(String, String)>,
    compression: Compression,
    protocols: [Protocol; 3],
    #[cfg(feature = "grpc")]
    connections: [Option<grpc::Connection>; 3],
}

impl Sender {
    pub fn new(settings: &Settings) -> Sender {
        let config = ureq::Agent::config_builder();
        #[cfg(feature = "_tls")]
        let config = config.tls_config(by_the_systems_certificates());
        let config = config
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("firstfall-agent/", env!("CARGO_PKG_VERSION")))
            .max_idle_connections(2)
            .output_buffer_size(PIECE)
            .input_buffer_size(HEAD_MAX)
            // A proxy that the environment names is meant for the service's own calls; the collector's address is given to us.
            .proxy(None)
            .build();
        let client = ureq::Agent::with_parts(config, DefaultConnector::default(), NumbersAreThere::default());
        Sender {
            client,
            addresses: settings.addresses.clone(),
            headers: settings.headers.clone(),
            compression: settings.compression,
            protocols: settings.protocols,
            #[cfg(feature = "grpc")]
            connections: [None, None, None],
        }
    }

    /// With nobody who waits for it, a request over HTTP goes out a piece at a time.
    pub fn send(&mut self, signal: Signal, body: &[u8], limit: Duration, hurry: bool) -> Outcome {
        match self.protocols[signal as usize] {
            Protocol::HttpProtobuf => self.over_http(signal, body, limit, hurry),
            #[cfg(feature = "grpc")]
            Protocol::Grpc => self.over_grpc(signal, body, limit),
        }
    }

    #[cfg(feature = "grpc")]
    fn over_grpc(&mut self, signal: Signal, body: &[u8], limit: Duration) -> Outcome {
        // Signals that go to one address share its connection.
        let at = self.addresses.iter().position(|address| *address == self.addresses[signal as usize]).unwrap_or(signal as usize);
        let connection = match &mut self.connections[at] {
            Some(connection) => connection,
            none => match grpc::Connection::new(&self.addresses[at], &self.headers, self.compression) {
                Ok(connection) => none.insert(connection),
                Err(outcome) => return outcome,
            },
        };
        connection.send(signal, body, limit)
    }

    fn over_http(&self, signal: Signal, body: &[u8], limit: Duration, hurry: bool) -> Outcome {
        let address = &self.addresses[signal as usize];
        let config = self.client.post(address).config().timeout_global(Some(limit)).build();
        let mut request = config.header("content-type", "application/x-protobuf");
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let small;
        let body = match self.compression {
            Compression::None => body,
            Compression::Gzip => {
                let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), flate2::Compression::fast());
                match encoder.write_all(body).and_then(|()| encoder.finish()) {
                    Ok(compressed) => small = compressed,
                    Err(error) => return Outcome::Refused(format!("cannot be compressed: {error}")),
                }
                request = request.header("content-encoding", "gzip");
                &small[..]
            }
        };
        let sent = match hurry || body.len() <= PIECE {
            true => request.send(body),
            false => {
                let mut paced = Paced { rest: body, begun: false };
                request.header("content-length", body.len()).send(ureq::SendBody::from_reader(&mut paced))
            }
        };
        let mut answer = match sent {
            Ok(answer) => answer,
            // These will not change by waiting.
            Err(error @ (ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::TlsRequired)) => {
                return Outcome::Refused(error.to_string());
            }
            Err(error) => return Outcome::Later { after: None, why: error.to_string() },
        };
        let status = answer.status().as_u16();
        let after = answer
            .headers()
            .get("retry-after")
            .and_then(|value| retry_after(value.to_str().ok()?.trim()))
            .map(|after| after.min(RETRY_AFTER_MAX));
        // A gRPC server answers 200 to whatever it does not know, and says in another header that it has not taken it.
        let grpc = answer.headers().get("content-type").is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        if grpc {
            return Outcome::Refused("the address speaks gRPC".to_owned());
        }
        let said = answer.body_mut().with_config().limit(ANSWER_MAX).read_to_vec();
        match status {
            200..=299 => Outcome::Done { rejected: said.map_or(0, |said| rejected(&said)) },
            429 | 502 | 503 | 504 => Outcome::Later { after, why: format!("HTTP {status}") },
            _ => Outcome::Refused(format!("HTTP {status}")),
        }
    }
}

/// With the provider of cryptography that the process has chosen; else with the one of our feature.
#[cfg(feature = "_tls")]
fn by_the_systems_certificates() -> ureq::tls::TlsConfig {
    use rustls::crypto::{self, CryptoProvider};
    #[cfg(feature = "tls-ring")]
    let ours = crypto::ring::default_provider;
    #[cfg(not(feature = "tls-ring"))]
    let ours = crypto::aws_lc_rs::default_provider;
    let provider = CryptoProvider::get_default().cloned().unwrap_or_else(|| std::sync::Arc::new(ours()));
    let config = ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::PlatformVerifier);
    config.unversioned_rustls_crypto_provider(provider).build()
}

/// Looks up names as ureq does: for each request, on a thread of its own, so that it can be given up. Numbers need no thread, which is most of what a request would
/// cost.
#[derive(Debug, Default)]
struct NumbersAreThere(DefaultResolver);

impl Resolver for NumbersAreThere {
    fn resolve(&self, uri: &http::Uri, config: &ureq::config::Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().map(|host| host.trim_matches(['[', ']']));
        let Some(number) = host.and_then(|host| host.parse::<IpAddr>().ok()) else { return self.0.resolve(uri, config, timeout) };
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let mut all = self.empty();
        all.push(SocketAddr::new(number, port));
        Ok(all)
    }
}

/// Seconds, or a date (RFC 9110).
fn retry_after(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(std::time::SystemTime::now()).unwrap_or_default())
}

/// `partial_success.rejected_…`, which has the same numbers in the answers to all signals.
pub(super) fn rejected(answer: &[u8]) -> u64 {
    let read = ExportMetricsServiceResponse::decode(answer).ok();
    read.and_then(|answer| answer.partial_success).map_or(0, |partial| partial.rejected_data_points.max(0) as u64)
}
