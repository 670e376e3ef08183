//! Something that takes time and goes well or not: a query, a message. It is a span and a measurement of a histogram, both with how it went.

use crate::late::Late;
use crate::within::{HasSpan, Within};
use opentelemetry::metrics::Histogram;
use opentelemetry::{Context, KeyValue};
use std::fmt::Display;
use std::future::Future;
use std::time::Instant;
use tracing::Span;

/// Dropped before its end it was given up, and is counted so.
#[derive(Debug)]
pub(crate) struct Operation {
    span: Span,
    started: Instant,
    histogram: Late<Histogram<f64>>,
    attributes: Vec<KeyValue>,
    error: Option<&'static str>,
    ended: bool,
}

impl HasSpan for Operation {
    fn span(&self) -> &Span {
        &self.span
    }
}

impl Operation {
    /// The span has empty fields `error.type`, `otel.status_code` and `otel.status_description`.
    pub fn begin(span: Span, histogram: &Late<Histogram<f64>>, attributes: Vec<KeyValue>) -> Operation {
        Operation { span, started: Instant::now(), histogram: histogram.clone(), attributes, error: None, ended: false }
    }

    fn end<T, E: Display>(mut self, result: &Result<T, E>) {
        self.ended = true;
        if let Err(error) = result {
            self.span.record("otel.status_description", error.to_string());
            self.fail(kind::<E>());
        }
    }

    fn fail(&mut self, kind: &'static str) {
        self.span.record("otel.status_code", "ERROR").record("error.type", kind);
        self.error = Some(kind);
    }

    pub async fn run<T, E: Display>(self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        self.run_in(work, None).await
    }

    /// With what is current around the span.
    pub async fn run_in<T, E: Display>(self, work: impl Future<Output = Result<T, E>>, around: Option<Context>) -> Result<T, E> {
        let (result, operation) = Within::new(work, self, around).await;
        operation.end(&result);
        result
    }

    pub fn run_blocking<T, E: Display>(self, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let result = self.span.in_scope(work);
        self.end(&result);
        result
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if !self.ended {
            if std::thread::panicking() {
                self.fail("panic");
            } else {
                self.span.record("error.type", "cancelled");
                self.error = Some("cancelled");
            }
        }
        self.attributes.extend(self.error.map(|kind| KeyValue::new("error.type", kind)));
        if let Some(histogram) = self.histogram.get() {
            histogram.record(self.started.elapsed().as_secs_f64(), &self.attributes);
        }
    }
}

/// The name of a type of errors, as `error.type`: few values, whatever the errors say.
fn kind<E>() -> &'static str {
    let name = std::any::type_name::<E>();
    name.split('<').next().filter(|name| !name.is_empty() && !name.starts_with(['&', '('])).unwrap_or("_OTHER")
}
