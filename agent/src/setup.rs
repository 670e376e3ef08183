//! Set-up and end: settings, resource, the export thread, OpenTelemetry's three providers, `tracing`'s subscriber; and the guard that ends all of it within
//! a bounded time.

use crate::export::{Account, Exporter, Signal};
use crate::lean::Lean;
use crate::processors::{Logs, Metrics, Spans};
use crate::propagate::Propagation;
use crate::sampling::Sampling;
use crate::settings::{Compression, LONGEST, Settings};
use crate::{panics, resource, runtime, wire};
use opentelemetry::trace::TracerProvider;
use opentelemetry::{KeyValue, Value, global};
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::SdkTracerProvider;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{self, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// How long dropping the guard may take: an orchestrator's grace period is usually ten seconds or more.
const SHUTDOWN_TIME_MAX: Duration = Duration::from_secs(3);

/// Why telemetry could not be set up as asked.
#[derive(Debug)]
pub struct InitError(Vec<String>);

impl InitError {
    /// Each problem, in a sentence that names the setting.
    pub fn problems(&self) -> &[String] {
        &self.0
    }
}

impl std::fmt::Display for InitError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "set up telemetry: {}", self.0.join("; "))
    }
}

impl std::error::Error for InitError {}

/// What the agent is told in code. `OTEL_*` variables go over it, as the specification asks.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Agent {
    pub(crate) service: String,
    pub(crate) version: String,
    pub(crate) namespace: String,
    pub(crate) environment: String,
    pub(crate) attributes: Vec<KeyValue>,
    pub(crate) endpoint: String,
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
    subscriber: bool,
    #[cfg(feature = "prometheus")]
    exposition: bool,
    pub(crate) level: LevelFilter,
    lean: bool,
    pub(crate) environment_counts: bool,
    runtime_metrics: bool,
    panics: bool,
}

/// Sets all up for a service, with defaults: OTLP/HTTP to `http://127.0.0.1:4318`. What is wrong is told on stderr, and never stops the service.
pub fn init(service: &str) -> Telemetry {
    Agent::new(service).init()
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
            endpoint: Agent::ENDPOINT.to_owned(),
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

    /// Base address of OTLP/HTTP, without `/v1/…`.
    pub fn endpoint(mut self, endpoint: &str) -> Agent {
        self.endpoint = endpoint.to_owned();
        self
    }

    /// A header of each request to the collector, such as `authorization`.
    pub fn header(mut self, name: &str, value: &str) -> Agent {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn compression(mut self, compression: Compression) -> Agent {
        self.compression = compression;
        self
    }

    /// Longest time of one request to the collector; ten seconds.
    pub fn timeout(mut self, timeout: Duration) -> Agent {
        self.timeout = timeout;
        self
    }

    /// Longest time that spans and logs wait for others before they are sent; a second.
    pub fn span_delay(mut self, delay: Duration) -> Agent {
        self.span_delay = delay;
        self
    }

    /// Time between two exports of metrics; fifteen seconds.
    pub fn metric_interval(mut self, interval: Duration) -> Agent {
        self.metric_interval = interval;
        self
    }

    /// Bytes of encoded items that wait in memory at most, 8 MiB; what comes beyond is dropped and counted.
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

    /// Keeps all metrics also for [`Telemetry::exposition`], in Prometheus' text format.
    #[cfg(feature = "prometheus")]
    pub fn with_exposition(mut self) -> Agent {
        self.exposition = true;
        self
    }

    /// Takes the short way from `tracing` to OTLP, at a third of the cost on the calling thread: no SDK in between, and so no
    /// `tracing_opentelemetry::OpenTelemetrySpanExt`, in whose place [`SpanExt`](crate::SpanExt) stands. Spans of OpenTelemetry's API go the usual way beside it.
    pub fn lean(mut self) -> Agent {
        self.lean = true;
        self
    }

    /// What code says counts alone; the `OTEL_*` variables of settings are not looked at.
    pub fn without_environment(mut self) -> Agent {
        self.environment_counts = false;
        self
    }

    /// Installs no `tracing` subscriber: the service builds its own, with [`Telemetry::layer`] in it.
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

    /// Sets all up. What is wrong is told on stderr and by [`Telemetry::problems`]; the service goes on with what can be had.
    pub fn init(self) -> Telemetry {
        let telemetry = self.set_up();
        telemetry.problems.iter().for_each(|problem| crate::complain(problem));
        telemetry
    }

    /// The same for those who would rather not start than start without telemetry.
    pub fn try_init(self) -> Result<Telemetry, InitError> {
        let mut telemetry = self.set_up();
        match std::mem::take(&mut telemetry.problems) {
            problems if problems.is_empty() => Ok(telemetry),
            problems => Err(InitError(problems)),
        }
    }

    fn set_up(self) -> Telemetry {
        let (settings, problems) = Settings::of(&self, &|name| std::env::var(name).ok());
        let mut telemetry = Telemetry { providers: None, problems, done: false };
        // Also where nothing is exported: whoever calls and whoever is called have a trace all the same.
        global::set_text_map_propagator(Propagation::new(&settings.propagators));
        if !settings.disabled {
            telemetry.start(&self, &settings);
        }
        if self.subscriber {
            let to_terminal = tracing_subscriber::fmt::layer()
                .with_writer(std::io::stderr)
                .with_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn")));
            if let Err(error) = tracing_subscriber::registry().with(to_terminal).with(telemetry.layer()).try_init() {
                telemetry.problems.push(format!(
                    "the tracing subscriber: {error}; the service has set one already: set the agent up first, or add Telemetry::layer() to it"
                ));
            }
        }
        telemetry
    }
}

struct Providers {
    exporter: Exporter,
    tracer: SdkTracerProvider,
    logger: SdkLoggerProvider,
    meter: SdkMeterProvider,
    wanted: [bool; 3],
    level: LevelFilter,
    lean: bool,
    sampling: Sampling,
    #[cfg(feature = "prometheus")]
    registries: crate::registry::Registries,
    #[cfg(feature = "prometheus")]
    exposed: Option<prometheus::Registry>,
}

/// Keeps telemetry going. Flushes and ends it within three seconds when dropped.
#[must_use = "telemetry ends when this is dropped: bind it to a name that lives as long as the service"]
pub struct Telemetry {
    /// Absent when telemetry is disabled or could not start.
    providers: Option<Providers>,
    problems: Vec<String>,
    done: bool,
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry").field("problems", &self.problems).finish_non_exhaustive()
    }
}

impl Telemetry {
    fn start(&mut self, agent: &Agent, settings: &Settings) {
        let resource = resource::of(agent);
        let exporter = match Exporter::start(settings, wire::resource(&resource)) {
            Ok(exporter) => exporter,
            Err(error) => {
                self.problems.push(format!("start the export thread: {error}"));
                return;
            }
        };
        let [spans, logs, metrics] = settings.wanted;
        let mut tracer = SdkTracerProvider::builder().with_resource(resource.clone()).with_sampler(settings.sampling.clone());
        if spans {
            tracer = tracer.with_span_processor(Spans { exporter: exporter.clone(), sampling: settings.sampling.clone() });
        }
        let mut logger = SdkLoggerProvider::builder().with_resource(resource.clone());
        if logs {
            logger = logger.with_log_processor(Logs { exporter: exporter.clone() });
        }
        let mut meter = SdkMeterProvider::builder().with_resource(resource);
        #[cfg(feature = "prometheus")]
        let registries = crate::registry::Registries::default();
        if metrics {
            let to_collector = Metrics {
                exporter: exporter.clone(),
                #[cfg(feature = "prometheus")]
                registries: registries.clone(),
                #[cfg(feature = "prometheus")]
                started: std::time::SystemTime::now(),
            };
            meter = meter.with_reader(PeriodicReader::builder(to_collector).with_interval(settings.metric_interval).build());
        }
        #[cfg(feature = "prometheus")]
        let exposed = agent.exposition.then(prometheus::Registry::new);
        #[cfg(feature = "prometheus")]
        if let Some(registry) = &exposed {
            match opentelemetry_prometheus::exporter().with_registry(registry.clone()).build() {
                Ok(reader) => meter = meter.with_reader(reader),
                Err(error) => self.problems.push(format!("the exposition of metrics: {error}")),
            }
        }
        let (tracer, logger, meter) = (tracer.build(), logger.build(), meter.build());
        global::set_tracer_provider(tracer.clone());
        global::set_meter_provider(meter.clone());
        runtime::export_metrics(&exporter);
        if agent.runtime_metrics {
            runtime::process_metrics();
            runtime::tokio_metrics();
        }
        if agent.panics && logs {
            panics::report();
        }
        self.providers = Some(Providers {
            exporter,
            tracer,
            logger,
            meter,
            wanted: settings.wanted,
            level: settings.level,
            lean: agent.lean,
            sampling: settings.sampling.clone(),
            #[cfg(feature = "prometheus")]
            registries,
            #[cfg(feature = "prometheus")]
            exposed,
        });
    }

    #[cfg(feature = "prometheus")]
    pub(crate) fn registries(&self) -> Option<&crate::registry::Registries> {
        Some(&self.providers.as_ref()?.registries)
    }

    #[cfg(feature = "prometheus")]
    pub(crate) fn exposed(&self) -> Option<&prometheus::Registry> {
        self.providers.as_ref()?.exposed.as_ref()
    }

    /// What was wrong with the settings, in sentences that name them. Empty when all is well.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// The layer that makes `tracing`'s spans and events OpenTelemetry's, for a subscriber of the service's own.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let providers = self.providers.as_ref();
        let level = providers.map_or(LevelFilter::OFF, |providers| providers.level);
        let of_interest = OfInterest(level);
        let lean = providers
            .filter(|providers| providers.lean)
            .map(|providers| Lean::new(providers.exporter.clone(), providers.sampling.clone(), providers.wanted).with_filter(of_interest));
        let providers = providers.filter(|providers| !providers.lean);
        let to_spans = providers.filter(|providers| providers.wanted[Signal::Spans as usize]).map(|providers| {
            tracing_opentelemetry::layer()
                .with_tracer(providers.tracer.tracer("firstfall-agent"))
                .with_location(false)
                .with_threads(false)
                .with_tracked_inactivity(false)
                .with_target(false)
                .with_level(false)
                // A handler that logs an error may still answer well; the status is the server span's to say.
                .with_error_events_to_status(false)
                .with_filter(of_interest)
        });
        let to_logs = providers
            .filter(|providers| providers.wanted[Signal::Logs as usize])
            .map(|providers| OpenTelemetryTracingBridge::new(&providers.logger).with_filter(of_interest));
        Layer::and_then(lean, Layer::and_then(to_spans, to_logs))
    }

    /// What became of the items of a signal since the start.
    pub fn account(&self, signal: Signal) -> Option<Account> {
        Some(self.providers.as_ref()?.exporter.account(signal))
    }

    /// Sends what waits, metrics too. True when all of it was taken within the limit.
    pub fn flush(&self, limit: Duration) -> bool {
        let Some(providers) = &self.providers else { return true };
        let limit = limit.min(LONGEST);
        let until = Instant::now() + limit;
        let meter = providers.meter.clone();
        collected(limit / 2, move || drop(meter.force_flush()));
        providers.exporter.flush(until.saturating_duration_since(Instant::now()))
    }

    /// Flushes and ends within `limit`, and says what became of everything.
    pub fn shutdown(mut self, limit: Duration) -> Ended {
        let complete = self.end(limit);
        let account = |signal| self.account(signal).unwrap_or_default();
        Ended { complete, accounts: Signal::ALL.map(account) }
    }

    fn end(&mut self, limit: Duration) -> bool {
        if std::mem::replace(&mut self.done, true) {
            return true;
        }
        let Some(providers) = &self.providers else { return true };
        let limit = limit.min(LONGEST);
        let until = Instant::now() + limit;
        let meter = providers.meter.clone();
        collected(limit / 2, move || drop(meter.shutdown_with_timeout(limit)));
        providers.exporter.shutdown(until.saturating_duration_since(Instant::now()))
    }
}

/// Has metrics collected once more, for so long at most: the callbacks are the service's, and may hang. It hands them over, and does not wait for the collector.
fn collected(limit: Duration, collect: impl FnOnce() + Send + 'static) {
    let (done, wait) = std::sync::mpsc::channel();
    let collecting = std::thread::Builder::new().spawn(move || {
        collect();
        let _ = done.send(());
    });
    if collecting.is_ok() {
        let _ = wait.recv_timeout(limit);
    }
}

/// How telemetry has ended.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Ended {
    complete: bool,
    accounts: [Account; 3],
}

impl Ended {
    /// All that was accepted was exported, or is in the spool, or is counted as dropped; nothing was still under way when the time was over.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// What became of the items of a signal.
    pub fn account(&self, signal: Signal) -> Account {
        self.accounts[signal as usize]
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        self.end(SHUTDOWN_TIME_MAX);
    }
}

/// What is exported: the service's own, from a level on. It is asked once for each place in the code, so that what is below costs what it costs without the agent.
#[derive(Clone, Copy, Debug)]
struct OfInterest(LevelFilter);

impl OfInterest {
    fn has(self, metadata: &Metadata<'_>) -> bool {
        // The spans of the layers carry the trace on, whatever else is wanted.
        metadata.target() == "firstfall_agent" && self.0 > LevelFilter::OFF
            || *metadata.level() <= self.0 && of_the_service(metadata.target())
    }
}

impl<S> layer::Filter<S> for OfInterest {
    fn enabled(&self, metadata: &Metadata<'_>, _: &layer::Context<'_, S>) -> bool {
        self.has(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.has(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.0.max(LevelFilter::INFO))
    }
}

/// The libraries that carry the service's own requests log and trace at will; their words stay out of its telemetry, since what they do is a span already.
fn of_the_service(target: &str) -> bool {
    const OWN: [&str; 10] = ["hyper", "h2", "reqwest", "tonic", "opentelemetry", "tower", "rustls", "mio", "ureq", "want"];
    !OWN.iter().any(|name| target.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '_', '-'])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_own_telemetry_is_told_from_the_services() {
        for own in ["hyper", "hyper_util::client", "opentelemetry-otlp", "reqwest::connect", "h2::codec"] {
            assert!(!of_the_service(own), "{own}");
        }
        for other in ["shop", "hyperspace::drive", "h2o", "towering"] {
            assert!(of_the_service(other), "{other}");
        }
    }
}
