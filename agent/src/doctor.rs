//! Whether telemetry would arrive: looks at the settings, sends one item of each signal, and says what was answered, in words that name the way out.

use crate::agent::Agent;
use crate::export::Signal;
use crate::export::send::{Outcome, Sender};
use crate::settings::{Settings, shown};
use crate::{resource, wire};
use opentelemetry::logs::{LogRecord, Logger, LoggerProvider};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::{Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, metric, number_data_point};
use opentelemetry_sdk::logs::{LogProcessor, SdkLogRecord, SdkLoggerProvider};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SpanData};
use prost::Message;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Check {
    /// The setting, or the item and its address.
    pub what: String,
    /// What is wrong and what to do; absent when all is well.
    pub problem: Option<String>,
}

/// What the doctor found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Checkup {
    /// In the order in which they were looked at.
    pub checks: Vec<Check>,
    /// Of the span and the log record that were sent, as 32 hexadecimal digits: look for it where they should have arrived.
    pub trace_id: String,
}

impl Checkup {
    /// Nothing was wrong.
    pub fn is_well(&self) -> bool {
        self.checks.iter().all(|check| check.problem.is_none())
    }
}

impl std::fmt::Display for Checkup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for Check { what, problem } in &self.checks {
            match problem {
                None => writeln!(f, "ok      {what}")?,
                Some(problem) => writeln!(f, "wrong   {what}: {problem}")?,
            }
        }
        Ok(())
    }
}

/// Longest time of each request.
const LIMIT: Duration = Duration::from_secs(5);

impl Agent {
    /// Looks at the settings that code and environment give, sends a span, a log record and a data point to the collector, and waits for its answers; some fifteen
    /// seconds at most, for which the thread waits. Nothing else of the agent has to run.
    pub fn doctor(&self) -> Checkup {
        let (settings, problems) = Settings::of(self, &|name| std::env::var(name).ok());
        let mut checks: Vec<Check> =
            problems.into_iter().map(|problem| Check { what: "settings".to_owned(), problem: Some(problem) }).collect();
        if checks.is_empty() {
            checks
                .push(Check { what: format!("settings: {}", shown(settings.addresses[0].trim_end_matches("/v1/traces"))), problem: None });
        }
        if settings.disabled {
            let problem = Some("OTEL_SDK_DISABLED is true, so that services send nothing; here it is sent all the same".to_owned());
            checks.push(Check { what: "telemetry is switched off".to_owned(), problem });
        }
        let ids = RandomIdGenerator::default();
        let (trace, span) = (ids.new_trace_id(), ids.new_span_id());
        let resource = resource::of(self);
        for (signal, what, body) in [
            (Signal::Spans, "a span", spans(&wire::resource(&resource), trace, span)),
            (Signal::Logs, "a log record", logs(&wire::resource(&resource), trace, span)),
            (Signal::Metrics, "a data point", points(&resource)),
        ] {
            let address = shown(&settings.addresses[signal as usize]);
            // On a thread of its own: gRPC runs on a runtime, and whoever calls may be within one.
            let asked = std::thread::scope(|threads| threads.spawn(|| Sender::new(&settings).send(signal, &body, LIMIT, true)).join());
            let outcome = asked.unwrap_or_else(|_| Outcome::Later { after: None, why: "the sender has panicked".to_owned() });
            let protocol = settings.protocols[signal as usize].told();
            let problem = match outcome {
                Outcome::Done { rejected: 0 } => None,
                Outcome::Done { .. } => {
                    Some("the collector took the request and rejected what is in it; its log or /settings page says why".to_owned())
                }
                Outcome::Refused(why) if ["401", "403", "Unauthenticated", "PermissionDenied"].iter().any(|told| why.contains(told)) => {
                    Some(format!("{why}: set OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20TOKEN"))
                }
                Outcome::Refused(why) => Some(format!("{why}: is this the address of {protocol}?")),
                Outcome::Later { why, .. } if why.contains("InvalidContentType") => {
                    Some(format!("{why}: it seems to speak http, not https"))
                }
                Outcome::Later { why, .. } => Some(format!("{why}: does the collector run, and is {address} its address for {protocol}?")),
            };
            checks.push(Check { what: format!("{what} to {address}"), problem });
        }
        Checkup { checks, trace_id: format!("{trace:032x}") }
    }
}

fn spans(resource: &[u8], trace: TraceId, span: SpanId) -> Vec<u8> {
    let now = SystemTime::now();
    let scope = InstrumentationScope::builder("firstfall-agent").build();
    let data = SpanData {
        span_context: SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::NONE),
        parent_span_id: SpanId::INVALID,
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: "doctor".into(),
        start_time: now - Duration::from_millis(1),
        end_time: now,
        attributes: vec![KeyValue::new("firstfall.doctor", true)],
        dropped_attributes_count: 0,
        events: Default::default(),
        links: Default::default(),
        status: Status::Unset,
        instrumentation_scope: scope.clone(),
    };
    let mut items = Vec::new();
    wire::span(&mut items, &data, "");
    wire::request(resource, &[(&wire::scope(&scope)[..], &items[..])])
}

/// Records can be made by a logger only.
#[derive(Debug, Default, Clone)]
struct Keep(Arc<Mutex<Vec<u8>>>);

impl LogProcessor for Keep {
    fn emit(&self, record: &mut SdkLogRecord, _: &InstrumentationScope) {
        if let Ok(mut out) = self.0.lock() {
            wire::log(&mut out, record);
        }
    }

    fn force_flush(&self) -> opentelemetry_sdk::error::OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> opentelemetry_sdk::error::OTelSdkResult {
        Ok(())
    }
}

fn logs(resource: &[u8], trace: TraceId, span: SpanId) -> Vec<u8> {
    let kept = Keep::default();
    let provider = SdkLoggerProvider::builder().with_log_processor(kept.clone()).build();
    let logger = provider.logger("firstfall-agent");
    let mut record = logger.create_log_record();
    record.set_timestamp(SystemTime::now());
    record.set_severity_number(opentelemetry::logs::Severity::Info);
    record.set_severity_text("INFO");
    record.set_body("a checkup by the doctor".into());
    record.set_trace_context(trace, span, Some(TraceFlags::SAMPLED));
    logger.emit(record);
    let items = kept.0.lock().map(|items| items.clone()).unwrap_or_default();
    let scope = InstrumentationScope::builder("firstfall-agent").build();
    wire::request(resource, &[(&wire::scope(&scope)[..], &items[..])])
}

fn points(resource: &opentelemetry_sdk::Resource) -> Vec<u8> {
    let point = NumberDataPoint {
        time_unix_nano: wire::nanos(SystemTime::now()),
        value: Some(number_data_point::Value::AsInt(1)),
        ..NumberDataPoint::default()
    };
    let gauge = metric::Data::Gauge(Gauge { data_points: vec![point] });
    let metrics = vec![Metric { name: "firstfall.doctor".to_owned(), data: Some(gauge), ..Metric::default() }];
    let scope_metrics = vec![ScopeMetrics { metrics, ..ScopeMetrics::default() }];
    // The same bytes as in the other two requests.
    let resource = opentelemetry_proto::tonic::resource::v1::Resource::decode(&wire::resource(resource)[..]).ok();
    ExportMetricsServiceRequest { resource_metrics: vec![ResourceMetrics { resource, scope_metrics, ..ResourceMetrics::default() }] }
        .encode_to_vec()
}
