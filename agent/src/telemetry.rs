//! Set-up and shutdown: builds the three providers, joins them to `tracing`, and ends them within a bounded time.
//!
//! Export runs on the SDK's own threads with a blocking client, so no runtime is needed and none can be starved: it works under
//! `#[tokio::main]`, `current_thread`, and without any runtime.

use opentelemetry::propagation::TextMapCompositePropagator;
use opentelemetry::trace::TracerProvider;
use opentelemetry::{KeyValue, global};
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_http::HttpClient;
use opentelemetry_otlp::{LogExporter, MetricExporter, Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{BatchLogProcessor, SdkLoggerProvider};
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::propagation::{BaggagePropagator, TraceContextPropagator};
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, filter::filter_fn};

/// How long dropping the guard may take: an orchestrator's grace period is usually ten seconds or more.
const SHUTDOWN_TIME_MAX: Duration = Duration::from_secs(3);
const EXPORT_TIME_MAX: Duration = Duration::from_secs(5);

/// Why telemetry could not be set up. The service can go on without.
#[derive(Debug)]
pub struct InitError(String);

impl std::fmt::Display for InitError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "set up telemetry: {}", self.0)
    }
}

impl std::error::Error for InitError {}

/// What the agent is told in code. `OTEL_*` variables go over it, as the specification asks.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Agent {
    service: String,
    version: String,
    namespace: String,
    environment: String,
    endpoint: String,
    span_delay: Duration,
    metric_interval: Duration,
}

/// Sets all up for a service, with defaults: OTLP/HTTP to `http://127.0.0.1:4318`.
pub fn init(service: &str) -> Result<Telemetry, InitError> {
    Agent::new(service).init()
}

impl Agent {
    pub fn new(service: &str) -> Agent {
        Agent {
            service: service.to_owned(),
            version: String::new(),
            namespace: String::new(),
            environment: String::new(),
            endpoint: "http://127.0.0.1:4318".to_owned(),
            span_delay: Duration::from_secs(1),
            metric_interval: Duration::from_secs(15),
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

    /// Base address of OTLP/HTTP, without `/v1/…`.
    pub fn endpoint(mut self, endpoint: &str) -> Agent {
        self.endpoint = endpoint.to_owned();
        self
    }

    /// Longest time that spans and logs wait before they are sent.
    pub fn span_delay(mut self, delay: Duration) -> Agent {
        self.span_delay = delay;
        self
    }

    fn resource(&self) -> Resource {
        let mut attributes = vec![KeyValue::new("service.instance.id", instance_id())];
        for (key, value) in
            [("service.version", &self.version), ("service.namespace", &self.namespace), ("deployment.environment.name", &self.environment)]
        {
            if !value.is_empty() {
                attributes.push(KeyValue::new(key, value.clone()));
            }
        }
        let resource = Resource::builder_empty().with_service_name(self.service.clone()).with_attributes(attributes).build();
        // The SDK's detectors read OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES; what they found goes over what code says. The
        // detectors' placeholder for a missing name does not.
        let found = Resource::builder().build();
        let merged: Vec<KeyValue> = found
            .iter()
            .filter(|(key, value)| key.as_str() != "service.name" || !value.as_str().starts_with("unknown_service"))
            .map(|(key, value)| KeyValue::new(key.clone(), value.clone()))
            .collect();
        Resource::builder_empty()
            .with_attributes(resource.iter().map(|(k, v)| KeyValue::new(k.clone(), v.clone())).collect::<Vec<_>>())
            .with_attributes(merged)
            .build()
    }

    pub fn init(self) -> Result<Telemetry, InitError> {
        let failed = |what: &str, error: &dyn std::fmt::Display| InitError(format!("{what}: {error}"));
        let base = std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok().filter(|e| !e.is_empty()).unwrap_or_else(|| self.endpoint.clone());
        let base: reqwest::Url = base.parse().map_err(|error| {
            InitError(format!("OTEL_EXPORTER_OTLP_ENDPOINT: {base:?} is not an address ({error}); write http://HOST:4318"))
        })?;
        let url = |signal: &str| format!("{}/v1/{signal}", base.as_str().trim_end_matches('/'));
        let client = blocking_client()?;
        let spans = SpanExporter::builder()
            .with_http()
            .with_shared_http_client(client.clone())
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(url("traces"))
            .with_timeout(EXPORT_TIME_MAX)
            .build()
            .map_err(|e| failed("build the span exporter", &e))?;
        let logs = LogExporter::builder()
            .with_http()
            .with_shared_http_client(client.clone())
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(url("logs"))
            .with_timeout(EXPORT_TIME_MAX)
            .build()
            .map_err(|e| failed("build the log exporter", &e))?;
        let metrics = MetricExporter::builder()
            .with_http()
            .with_shared_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(url("metrics"))
            .with_timeout(EXPORT_TIME_MAX)
            .build()
            .map_err(|e| failed("build the metric exporter", &e))?;
        let resource = self.resource();
        let batch = BatchConfigBuilder::default().with_scheduled_delay(self.span_delay).build();
        let tracer = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            .with_span_processor(BatchSpanProcessor::builder(spans).with_batch_config(batch).build())
            .build();
        let logger = SdkLoggerProvider::builder()
            .with_resource(resource.clone())
            .with_log_processor(BatchLogProcessor::builder(logs).build())
            .build();
        let meter = SdkMeterProvider::builder()
            .with_resource(resource)
            .with_reader(PeriodicReader::builder(metrics).with_interval(self.metric_interval).build())
            .build();
        global::set_text_map_propagator(TextMapCompositePropagator::new(vec![
            Box::new(TraceContextPropagator::new()),
            Box::new(BaggagePropagator::new()),
        ]));
        global::set_tracer_provider(tracer.clone());
        global::set_meter_provider(meter.clone());
        let to_terminal = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn")));
        let to_spans = tracing_opentelemetry::layer()
            .with_tracer(tracer.tracer("firstfall-agent"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_target(false)
            // A handler that logs an error may still answer well; the status is the server span's to say.
            .with_error_events_to_status(false)
            .with_filter(filter_fn(|m| of_the_service(m.target())));
        let to_logs = OpenTelemetryTracingBridge::new(&logger).with_filter(filter_fn(|m| of_the_service(m.target())));
        tracing_subscriber::registry()
            .with(to_terminal)
            .with(to_spans)
            .with(to_logs)
            .try_init()
            .map_err(|e| InitError(format!("install the subscriber: {e}; the service has set one already, call init first")))?;
        Ok(Telemetry { tracer, logger, meter, done: false })
    }
}

/// Random enough to tell processes apart: start time and process id.
fn instance_id() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    format!("{:08x}-{now:016x}", std::process::id())
}

/// The client must be built on a thread outside of any runtime.
fn blocking_client() -> Result<Arc<dyn HttpClient>, InitError> {
    let build = || reqwest::blocking::Client::builder().timeout(EXPORT_TIME_MAX).no_proxy().build();
    let client = std::thread::spawn(build).join().map_err(|_| InitError("the HTTP client's thread ended early".to_owned()))?;
    Ok(Arc::new(client.map_err(|e| InitError(format!("build the HTTP client: {e}")))?))
}

/// The exporter's own libraries stay out of what it exports: else each export would cause the next.
fn of_the_service(target: &str) -> bool {
    const OWN: [&str; 8] = ["hyper", "h2", "reqwest", "tonic", "opentelemetry", "tower", "rustls", "mio"];
    !OWN.iter().any(|name| target.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '_', '-'])))
}

/// Keeps telemetry going. Flushes and ends it within three seconds when dropped.
#[must_use = "telemetry ends when this is dropped: bind it to a name that lives as long as the service"]
pub struct Telemetry {
    tracer: SdkTracerProvider,
    logger: SdkLoggerProvider,
    meter: SdkMeterProvider,
    done: bool,
}

impl Telemetry {
    /// Flushes and ends within `limit`. True when everything was sent in time.
    pub fn shutdown(mut self, limit: Duration) -> bool {
        self.end(limit)
    }

    /// All three at once, each on a thread of its own, since the meter provider keeps no limit that it is given.
    fn end(&mut self, limit: Duration) -> bool {
        if std::mem::replace(&mut self.done, true) {
            return true;
        }
        let started = Instant::now();
        let (ended, wait) = mpsc::channel();
        let (tracer, logger, meter) = (self.tracer.clone(), self.logger.clone(), self.meter.clone());
        let jobs: [Box<dyn FnOnce() -> OTelSdkResult + Send>; 3] = [
            Box::new(move || tracer.shutdown_with_timeout(limit)),
            Box::new(move || logger.shutdown_with_timeout(limit)),
            Box::new(move || meter.shutdown_with_timeout(limit)),
        ];
        let count = jobs.len();
        for job in jobs {
            let ended = ended.clone();
            std::thread::spawn(move || ended.send(job().is_ok()));
        }
        (0..count).all(|_| wait.recv_timeout(limit.saturating_sub(started.elapsed())).unwrap_or(false))
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        self.end(SHUTDOWN_TIME_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exporters_own_telemetry_is_told_from_the_services() {
        for own in ["hyper", "hyper_util::client", "opentelemetry-otlp", "reqwest::connect", "h2::codec"] {
            assert!(!of_the_service(own), "{own}");
        }
        for other in ["shop", "hyperspace::drive", "h2o", "towering"] {
            assert!(of_the_service(other), "{other}");
        }
    }

    #[test]
    fn shutdown_is_bounded_when_nobody_listens() {
        // Built together with the collector, reqwest has TLS without a provider of its own.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port"); // accepts, never answers
        let address = listener.local_addr().expect("bound");
        let telemetry = Agent::new("t").endpoint(&format!("http://{address}")).init().expect("set up");
        tracing::info_span!("work").in_scope(|| tracing::warn!("something"));
        let started = Instant::now();
        telemetry.shutdown(Duration::from_millis(300));
        // Far more than the limit, so that a loaded machine passes; a hang would not.
        assert!(started.elapsed() < Duration::from_secs(20));
    }
}
