//! What the agent is told in code: one method for each thing that can be told, each with what holds when it is not.

use crate::sampling::Sampling;
use opentelemetry::{KeyValue, Value};
use std::path::PathBuf;
use std::time::Duration;
use tracing_subscriber::filter::LevelFilter;

/// How requests to the collector are made smaller.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Compression {
    /// The specification's default, and the least work for the service.
    #[default]
    None,
    /// At its fastest level.
    Gzip,
}

/// How the agent speaks to the collector.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Protocol {
    /// OTLP over HTTP, usually at port 4318.
    #[default]
    HttpProtobuf,
    /// OTLP over gRPC, usually at port 4317.
    #[cfg(feature = "grpc")]
    Grpc,
}

impl Protocol {
    /// With the port where it is usually found.
    pub(crate) fn told(self) -> &'static str {
        match self {
            Protocol::HttpProtobuf => "OTLP over HTTP (usually port 4318; 4317 is gRPC's)",
            #[cfg(feature = "grpc")]
            Protocol::Grpc => "OTLP over gRPC (usually port 4317; 4318 is HTTP's)",
        }
    }

    /// Where a collector on the same machine listens.
    pub(crate) fn endpoint(self) -> &'static str {
        match self {
            Protocol::HttpProtobuf => Agent::ENDPOINT,
            #[cfg(feature = "grpc")]
            Protocol::Grpc => "http://127.0.0.1:4317",
        }
    }
}

/// What the agent is told in code. `OTEL_*` variables go over it, as the specification asks.
#[derive(Clone, Debug)]
#[must_use = "nothing is set up before init()"]
#[non_exhaustive]
pub struct Agent {
    pub(crate) service: String,
    pub(crate) version: String,
    pub(crate) namespace: String,
    pub(crate) environment: String,
    pub(crate) attributes: Vec<KeyValue>,
    pub(crate) endpoint: Option<String>,
    pub(crate) protocol: Protocol,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) compression: Compression,
    pub(crate) timeout: Duration,
    pub(crate) span_delay: Duration,
    pub(crate) metric_interval: Duration,
    pub(crate) queue_bytes: usize,
    pub(crate) spool: Option<PathBuf>,
    pub(crate) spool_bytes: u64,
    pub(crate) spool_age: Duration,
    pub(crate) sampling: Sampling,
    pub(crate) subscriber: bool,
    #[cfg(feature = "prometheus")]
    pub(crate) exposition: bool,
    pub(crate) level: LevelFilter,
    pub(crate) lean: bool,
    pub(crate) passes_over: bool,
    pub(crate) environment_counts: bool,
    pub(crate) runtime_metrics: bool,
    pub(crate) panics: bool,
}

impl Agent {
    pub(crate) const ENDPOINT: &str = "http://127.0.0.1:4318";

    /// For a service of this name; [`crate::agent!`] takes name and version from Cargo.
    pub fn new(service: &str) -> Agent {
        Agent {
            service: service.to_owned(),
            version: String::new(),
            namespace: String::new(),
            environment: String::new(),
            attributes: Vec::new(),
            endpoint: None,
            protocol: Protocol::HttpProtobuf,
            headers: Vec::new(),
            compression: Compression::None,
            timeout: Duration::from_secs(10),
            span_delay: Duration::from_secs(1),
            metric_interval: Duration::from_secs(15),
            queue_bytes: 8 << 20,
            spool: None,
            spool_bytes: 64 << 20,
            spool_age: Duration::from_secs(24 * 3600),
            sampling: Sampling::default(),
            subscriber: true,
            #[cfg(feature = "prometheus")]
            exposition: false,
            level: LevelFilter::INFO,
            lean: false,
            passes_over: false,
            environment_counts: true,
            runtime_metrics: true,
            panics: true,
        }
    }

    /// `service.version`; pass `env!("CARGO_PKG_VERSION")`.
    pub fn version(mut self, version: &str) -> Agent {
        self.version = version.to_owned();
        self
    }

    /// `service.namespace`.
    pub fn namespace(mut self, namespace: &str) -> Agent {
        self.namespace = namespace.to_owned();
        self
    }

    /// `deployment.environment.name`.
    pub fn environment(mut self, environment: &str) -> Agent {
        self.environment = environment.to_owned();
        self
    }

    /// Another attribute of the resource.
    pub fn attribute(mut self, key: &str, value: impl Into<Value>) -> Agent {
        self.attributes.push(KeyValue::new(key.to_owned(), value));
        self
    }

    /// The collector's address: over HTTP the base, without `/v1/…`. On this machine unless told otherwise.
    pub fn endpoint(mut self, endpoint: &str) -> Agent {
        self.endpoint = Some(endpoint.to_owned());
        self
    }

    /// OTLP over HTTP unless told otherwise; gRPC needs the feature `grpc`.
    pub fn protocol(mut self, protocol: Protocol) -> Agent {
        self.protocol = protocol;
        self
    }

    /// A header of each request to the collector, such as `authorization`.
    pub fn header(mut self, name: &str, value: &str) -> Agent {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// None unless told otherwise.
    pub fn compression(mut self, compression: Compression) -> Agent {
        self.compression = compression;
        self
    }

    /// Longest time of one request to the collector, from a millisecond to a day; ten seconds.
    pub fn timeout(mut self, timeout: Duration) -> Agent {
        self.timeout = timeout;
        self
    }

    /// Longest time that spans and logs wait for others before they are sent, from ten milliseconds to a day; a second.
    pub fn span_delay(mut self, delay: Duration) -> Agent {
        self.span_delay = delay;
        self
    }

    /// Time between two exports of metrics, from a tenth of a second to a day; fifteen seconds.
    pub fn metric_interval(mut self, interval: Duration) -> Agent {
        self.metric_interval = interval;
        self
    }

    /// Bytes of encoded items that wait in memory at most, 8 MiB and never below 64 KiB; what comes beyond is dropped and counted.
    pub fn queue_bytes(mut self, bytes: usize) -> Agent {
        self.queue_bytes = bytes;
        self
    }

    /// A folder in which items wait while the collector is away, and over a restart of the process. Off unless told: a library does not write to disk unasked.
    pub fn spool(mut self, folder: impl Into<PathBuf>) -> Agent {
        self.spool = Some(folder.into());
        self
    }

    /// How much the spool holds, 64 MiB, and for how long, a day; the oldest goes first.
    pub fn spool_limits(mut self, bytes: u64, age: Duration) -> Agent {
        (self.spool_bytes, self.spool_age) = (bytes, age);
        self
    }

    /// Spans and events of `tracing` below this level are not exported; INFO unless told otherwise. What the terminal shows is `RUST_LOG`'s to say.
    pub fn level(mut self, level: LevelFilter) -> Agent {
        self.level = level;
        self
    }

    /// Which traces are taken; all unless told otherwise.
    pub fn sampling(mut self, sampling: Sampling) -> Agent {
        self.sampling = sampling;
        self
    }

    /// Keeps all metrics also for [`Telemetry::exposition`](crate::Telemetry::exposition), in Prometheus' text format.
    #[cfg(feature = "prometheus")]
    pub fn with_exposition(mut self) -> Agent {
        self.exposition = true;
        self
    }

    /// Takes the short way from `tracing` to OTLP, at a third of the cost on the calling thread (half, as a layer in a subscriber of the service's own): no SDK in between, and so no
    /// `tracing_opentelemetry::OpenTelemetrySpanExt`, in whose place [`SpanExt`](crate::SpanExt) stands. Spans of OpenTelemetry's API go the usual way beside it.
    pub fn lean(mut self) -> Agent {
        self.lean = true;
        self
    }

    /// Under [`lean`](Agent::lean), in the subscriber that the agent sets, and where failures are not kept: within a span that is not sampled, no spans are made but
    /// those that have a field `otel.kind`. What they cost is then next to nothing; but a task that is spawned with such a span is in no trace, and one that the code
    /// makes a root of its own (`parent: None`) in there is not made either. No other layer sees them, unless `RUST_LOG` asks for them on stderr.
    pub fn pass_over_unsampled(mut self) -> Agent {
        self.passes_over = true;
        self
    }

    /// What code says counts alone; the `OTEL_*` variables of settings are not looked at.
    pub fn without_environment(mut self) -> Agent {
        self.environment_counts = false;
        self
    }

    /// Installs no `tracing` subscriber: the service builds its own, with [`Telemetry::layer`](crate::Telemetry::layer) in it.
    pub fn without_subscriber(mut self) -> Agent {
        self.subscriber = false;
        self
    }

    /// Leaves out metrics of the process and the tokio runtime.
    pub fn without_runtime_metrics(mut self) -> Agent {
        self.runtime_metrics = false;
        self
    }

    /// Leaves panics alone; else each is an ERROR record with its stack, and then goes on to the hook that was there.
    pub fn without_panics(mut self) -> Agent {
        self.panics = false;
        self
    }
}
