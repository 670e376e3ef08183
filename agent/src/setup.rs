//! Set-up and end: settings, resource, the export thread, OpenTelemetry's three providers, `tracing`'s subscriber; and the guard that ends all of it within
//! a bounded time.

use crate::agent::Agent;
use crate::export::{Account, Exporter, Signal};
use crate::lean::{Alone, Lean, may_be_passed_over};
use crate::processors::{Logs, Metrics, Spans};
use crate::propagate::Propagation;
use crate::sampling::{Sampler, Sampling};
use crate::settings::{LONGEST, Settings};
use crate::within::OWN_TARGET;
use crate::{late, panics, resource, runtime, wire};
use opentelemetry::global;
use opentelemetry::trace::TracerProvider;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::SdkTracerProvider;
use std::time::{Duration, Instant};
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{self, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer, Registry};

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

impl Agent {
    /// Sets all up. What is wrong is told on stderr and by [`Telemetry::problems`]; the service goes on with what can be had.
    pub fn init(self) -> Telemetry {
        let (settings, problems) = self.settings();
        self.set_up(&settings, problems, false)
    }

    /// The same for those who would rather not start than start without telemetry. After an error nothing goes on, and another agent may be set up instead.
    ///
    /// # Errors
    /// A setting is wrong, the service has set a subscriber of `tracing` already, or a thread cannot be started.
    pub fn try_init(self) -> Result<Telemetry, InitError> {
        let (settings, problems) = self.settings();
        // Looked at before anything is set that cannot be taken back.
        if !problems.is_empty() {
            return Err(InitError(problems));
        }
        let mut telemetry = self.set_up(&settings, Vec::new(), true);
        match std::mem::take(&mut telemetry.problems) {
            problems if problems.is_empty() => Ok(telemetry),
            problems => {
                telemetry.end(Duration::ZERO);
                Err(InitError(problems))
            }
        }
    }

    fn settings(&self) -> (Settings, Vec<String>) {
        Settings::of(self, &|name| std::env::var(name).ok())
    }

    /// Goes on with what can be had, unless all must be well: then nothing that others see is set before it is known that it is.
    fn set_up(self, settings: &Settings, problems: Vec<String>, all_must_be_well: bool) -> Telemetry {
        let mut telemetry = Telemetry { providers: None, problems, done: false, since: Instant::now() };
        if !settings.disabled {
            telemetry.start(&self, settings);
        }
        let well_so_far = telemetry.problems.is_empty() || !all_must_be_well;
        if well_so_far && self.subscriber && tracing::subscriber::set_global_default(telemetry.subscriber()).is_err() {
            telemetry.problems.push(HAS_A_SUBSCRIBER.to_owned());
        }
        if all_must_be_well && !telemetry.problems.is_empty() {
            return telemetry;
        }
        // Also where nothing is exported: whoever calls and whoever is called have a trace all the same.
        global::set_text_map_propagator(Propagation::new(&settings.propagators));
        let mut notes = Vec::new();
        if self.subscriber && take_records_of_log().is_err() {
            notes.push("records of the `log` crate do not come: the service has set a logger of its own".to_owned());
        }
        if self.environment_counts {
            let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
            notes.extend(crate::settings::not_looked_at(names));
        }
        telemetry.problems.iter().for_each(|problem| crate::complain::complain(problem));
        if !notes.is_empty() {
            // One complaint, since there may not be many.
            crate::complain::complain(&notes.join("; "));
        }
        telemetry.become_global(&self, settings);
        telemetry.since = Instant::now();
        telemetry
    }
}

/// As `tracing_subscriber` does for its own.
fn take_records_of_log() -> Result<(), tracing_log::log_tracer::SetLoggerError> {
    use tracing_log::AsLog;
    tracing_log::LogTracer::builder().with_max_level(tracing::level_filters::LevelFilter::current().as_log()).init()
}

const HAS_A_SUBSCRIBER: &str = "the service has set a subscriber of tracing already, and its spans and events do not come to the agent: call \
    Agent::without_subscriber() before init(), and put Telemetry::layer() into the subscriber: tracing_subscriber::registry().with(telemetry.layer()).with(…).init()";

struct Providers {
    exporter: Exporter,
    tracer: SdkTracerProvider,
    logger: SdkLoggerProvider,
    meter: SdkMeterProvider,
    wanted: [bool; 3],
    level: LevelFilter,
    lean: bool,
    passes_over: bool,
    sampling: Sampling,
    #[cfg(feature = "prometheus")]
    registries: crate::registry::Registries,
    #[cfg(feature = "prometheus")]
    exposed: Option<prometheus::Registry>,
}

/// A guard that lives no longer than this was not bound to a name.
const HARDLY_ALIVE: Duration = Duration::from_millis(5);

/// Keeps telemetry going. Flushes and ends it within three seconds when dropped, for which the thread waits.
#[must_use = "write `let _telemetry = …`: telemetry ends when this is dropped, and `let _ = …` drops it at once"]
pub struct Telemetry {
    /// Absent when telemetry is disabled or could not start.
    providers: Option<Providers>,
    problems: Vec<String>,
    done: bool,
    since: Instant,
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry").field("problems", &self.problems).finish_non_exhaustive()
    }
}

impl Telemetry {
    fn start(&mut self, agent: &Agent, settings: &Settings) {
        let resource = resource::of(agent);
        if let Some(Err(error)) = settings.spool.as_deref().map(crate::export::create_folder) {
            let folder = settings.spool.as_deref().unwrap_or(std::path::Path::new("")).display();
            self.problems.push(format!("the spool {folder}: {error}; items wait in memory only"));
        }
        let exporter = match Exporter::start(settings, wire::resource(&resource)) {
            Ok(exporter) => exporter,
            Err(error) => {
                self.problems.push(format!("start the export thread: {error}"));
                return;
            }
        };
        let [spans, logs, metrics] = settings.wanted;
        let mut tracer = SdkTracerProvider::builder().with_resource(resource.clone()).with_sampler(Sampler(settings.sampling.clone()));
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
        self.providers = Some(Providers {
            exporter,
            tracer,
            logger,
            meter,
            wanted: settings.wanted,
            level: settings.level,
            lean: agent.lean,
            passes_over: agent.passes_over,
            sampling: settings.sampling.clone(),
            #[cfg(feature = "prometheus")]
            registries,
            #[cfg(feature = "prometheus")]
            exposed,
        });
    }

    /// From here on the rest of the process sees it.
    fn become_global(&self, agent: &Agent, settings: &Settings) {
        let Some(providers) = &self.providers else { return };
        // OpenTelemetry says that it is set up, which nobody has asked for.
        let _quiet = crate::export::silence();
        global::set_tracer_provider(providers.tracer.clone());
        global::set_meter_provider(providers.meter.clone());
        late::meters_are_there();
        runtime::export_metrics(&providers.exporter);
        if agent.runtime_metrics {
            runtime::process_metrics();
            runtime::tokio_metrics();
        }
        if agent.panics && settings.wanted[Signal::Logs as usize] {
            panics::report();
        }
    }

    /// What was wrong with the settings, in sentences that name them. Empty when all is well.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// The whole subscriber that [`Agent::init`] sets: the layer, and one that writes what `RUST_LOG` asks for to stderr (warnings, unless told otherwise). Under
    /// [`lean`](Agent::lean) the spans around a line on stderr are those that are exported, with their fields as they are exported.
    pub fn subscriber(&self) -> impl Subscriber + Send + Sync + use<> {
        let asked = std::env::var(EnvFilter::DEFAULT_ENV).ok();
        let mut shown = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
        // The panic hook that was there says it already, without pages of stack in one line.
        if let Ok(said_already) = format!("{}=off", panics::TARGET).parse() {
            shown = shown.add_directive(said_already);
        }
        let others = Layer::<Registry>::max_level_hint(&shown).unwrap_or(LevelFilter::TRACE);
        // Spans that only the terminal wants, or by which it decides, need the registry.
        let only_events = |lean: &Providers| others <= lean.level && !asked.as_ref().is_some_and(|asked| asked.contains('['));
        match self.lean(others) {
            Some((lean, of_interest)) if self.providers.as_ref().is_some_and(only_events) => {
                Box::new(Alone::new(lean, of_interest, shown)) as Box<dyn Subscriber + Send + Sync>
            }
            _ => {
                let to_terminal = tracing_subscriber::fmt::layer().with_ansi(has_colours()).with_writer(std::io::stderr).with_filter(shown);
                Box::new(tracing_subscriber::registry().with(to_terminal).with(self.layer_beside(others)))
            }
        }
    }

    /// The layer that makes `tracing`'s spans and events OpenTelemetry's, for a subscriber of the service's own.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        self.layer_beside(LevelFilter::TRACE)
    }

    /// The short way, where it is wanted, and what goes there. `others` is the most verbose level at which another layer may want to see a span.
    fn lean(&self, others: LevelFilter) -> Option<(Lean, OfInterest)> {
        let providers = self.providers.as_ref().filter(|providers| providers.lean)?;
        // All is recorded where some of it may be kept.
        let others = if providers.passes_over && !providers.sampling.records_the_rest() { others } else { LevelFilter::TRACE };
        let lean = Lean::new(providers.exporter.clone(), providers.sampling.clone(), providers.wanted, others);
        Some((lean, OfInterest { level: providers.level, others }))
    }

    fn layer_beside<S>(&self, others: LevelFilter) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let providers = self.providers.as_ref();
        let level = providers.map_or(LevelFilter::OFF, |providers| providers.level);
        let of_interest = OfInterest { level, others: LevelFilter::TRACE };
        let lean = self.lean(others).map(|(lean, of_interest)| lean.with_filter(of_interest).boxed());
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
                .boxed()
        });
        let to_logs = providers
            .filter(|providers| providers.wanted[Signal::Logs as usize])
            .map(|providers| OpenTelemetryTracingBridge::new(&providers.logger).with_filter(of_interest).boxed());
        // A list: of layers put on each other directly above the registry, only the topmost is asked what level it wants.
        let layers: Vec<_> = [lean, to_spans, to_logs].into_iter().flatten().collect();
        // An empty list would say for all that nothing is wanted.
        (!layers.is_empty()).then_some(layers)
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

#[cfg(feature = "prometheus")]
impl Telemetry {
    /// From now on the metrics of a registry go out with those of OpenTelemetry's meters. For the default one pass `prometheus::default_registry().clone()`.
    pub fn export_registry(&self, registry: prometheus::Registry) {
        if let Some(providers) = &self.providers {
            providers.registries.add(registry);
        }
    }

    /// All metrics in Prometheus' text format, for a `/metrics` of the service's own: OpenTelemetry's when the agent was made
    /// [`with_exposition`](crate::Agent::with_exposition), and those of the registries that are exported.
    pub fn exposition(&self) -> String {
        let Some(providers) = &self.providers else { return String::new() };
        let mut families = providers.exposed.as_ref().map(prometheus::Registry::gather).unwrap_or_default();
        families.extend(providers.registries.gather());
        prometheus::TextEncoder::new().encode_to_string(&families).unwrap_or_default()
    }
}

/// Whether stderr is a terminal that wants them (<https://no-color.org>).
pub(crate) fn has_colours() -> bool {
    use std::io::IsTerminal;
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|told| told.is_empty())
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
        let offered = |exporter: &Exporter| [Signal::Spans, Signal::Logs].iter().any(|signal| exporter.account(*signal).accepted > 0);
        let unused = self.providers.as_ref().is_some_and(|providers| !offered(&providers.exporter));
        if !self.done && unused && self.since.elapsed() < HARDLY_ALIVE {
            crate::complain::complain(
                "telemetry has ended as soon as it began: bind what init() gives to a name that lives as long as the service (`let _telemetry = …`, not `let _ = …`)",
            );
        }
        self.end(SHUTDOWN_TIME_MAX);
    }
}

/// What is exported: the service's own, from a level on. It is asked once for each place in the code, so that what is below costs what it costs without the agent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OfInterest {
    level: LevelFilter,
    /// See [`may_be_passed_over`].
    others: LevelFilter,
}

impl OfInterest {
    pub fn has(self, metadata: &Metadata<'_>) -> bool {
        // The spans of the layers carry the trace on, whatever else is wanted.
        metadata.target() == OWN_TARGET && self.level > LevelFilter::OFF
            || *metadata.level() <= self.level && of_the_service(metadata.target())
    }

    /// Of one place in the code, for good.
    pub fn interest(self, metadata: &Metadata<'_>) -> Interest {
        match self.has(metadata) {
            false => Interest::never(),
            // The layer is asked each time.
            true if may_be_passed_over(metadata, self.others) => Interest::sometimes(),
            true => Interest::always(),
        }
    }

    /// The most verbose level at which anything is of interest.
    pub fn most(self) -> LevelFilter {
        self.level.max(LevelFilter::INFO)
    }
}

impl<S> layer::Filter<S> for OfInterest {
    fn enabled(&self, metadata: &Metadata<'_>, _: &layer::Context<'_, S>) -> bool {
        self.has(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        self.interest(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.most())
    }
}

/// The libraries that carry the service's own requests log and trace at will; their words stay out of its telemetry, since what they do is a span already.
fn of_the_service(target: &str) -> bool {
    const OWN: [&str; 10] = ["hyper", "h2", "reqwest", "tonic", "opentelemetry", "tower", "rustls", "mio", "ureq", "want"];
    // Asked for each span where some layer wants to be: most names are told apart by how they begin.
    let may_be = matches!(target.as_bytes().first(), Some(b'h' | b'r' | b't' | b'o' | b'm' | b'u' | b'w'));
    !may_be || !OWN.iter().any(|name| target.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '_', '-'])))
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
