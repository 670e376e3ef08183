//! Where OpenTelemetry's SDK hands its items over: each is encoded at once, on the thread that ends it, and nothing of it is kept.

use crate::export::{Exporter, Signal};
use crate::sampling::{Sampling, with_threshold};
use opentelemetry::trace::Status;
use opentelemetry::{Context, InstrumentationScope};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::logs::{LogProcessor, SdkLogRecord};
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use prost::Message;
use std::time::Duration;

fn flushed(done: bool, limit: Duration) -> OTelSdkResult {
    if done { Ok(()) } else { Err(OTelSdkError::Timeout(limit)) }
}

/// How long a flush that names no limit may take.
const FLUSH_TIME: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Spans {
    pub exporter: Exporter,
    pub sampling: Sampling,
}

impl SpanProcessor for Spans {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        let failed = matches!(span.status, Status::Error { .. });
        let took = span.end_time.duration_since(span.start_time).unwrap_or_default();
        let state = span.span_context.trace_state();
        let state = if self.sampling.keeps(failed, took) && (!span.span_context.is_sampled() || state.get("ot").is_some()) {
            // All of them are kept, whatever became of their traces: each stands for itself.
            with_threshold(state, Some(0)).header()
        } else if span.span_context.is_sampled() {
            state.header()
        } else {
            return;
        };
        self.exporter.push(Signal::Spans, &span.instrumentation_scope, |out| crate::wire::span(out, &span, &state));
    }

    fn force_flush(&self) -> OTelSdkResult {
        flushed(self.exporter.flush(FLUSH_TIME), FLUSH_TIME)
    }

    /// The thread ends with the agent, not with one of its three providers; these are dropped after it has, and must not wait again.
    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

#[derive(Debug)]
pub(crate) struct Logs {
    pub exporter: Exporter,
}

impl LogProcessor for Logs {
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        self.exporter.push(Signal::Logs, scope, |out| crate::wire::log(out, record));
    }

    fn force_flush(&self) -> OTelSdkResult {
        flushed(self.exporter.flush(FLUSH_TIME), FLUSH_TIME)
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

pub(crate) struct Metrics {
    pub exporter: Exporter,
    #[cfg(feature = "prometheus")]
    pub registries: crate::registry::Registries,
    #[cfg(feature = "prometheus")]
    pub started: std::time::SystemTime,
}

impl PushMetricExporter for Metrics {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        #[cfg_attr(not(feature = "prometheus"), expect(unused_mut, reason = "registries are added to it"))]
        let mut request = ExportMetricsServiceRequest::from(metrics);
        #[cfg(feature = "prometheus")]
        if let (Some(scope), Some(resource)) = (self.registries.metrics(self.started), request.resource_metrics.first_mut()) {
            resource.scope_metrics.push(scope);
        }
        let points =
            request.resource_metrics.iter().flat_map(|r| &r.scope_metrics).flat_map(|s| &s.metrics).map(|metric| match &metric.data {
                Some(Data::Gauge(data)) => data.data_points.len(),
                Some(Data::Sum(data)) => data.data_points.len(),
                Some(Data::Histogram(data)) => data.data_points.len(),
                Some(Data::ExponentialHistogram(data)) => data.data_points.len(),
                Some(Data::Summary(data)) => data.data_points.len(),
                None => 0,
            });
        let points: usize = points.sum();
        if points > 0 {
            self.exporter.push_whole(Signal::Metrics, points as u64, request.encode_to_vec());
        }
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        flushed(self.exporter.flush(FLUSH_TIME), FLUSH_TIME)
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn temporality(&self) -> Temporality {
        Temporality::Cumulative
    }
}
