//! Messages through queues: a PRODUCER span that goes with the message, and a CONSUMER span for its processing, by the semantic conventions.

use crate::late::{Late, seconds};
use crate::lean::SpanExt;
use crate::operation::Operation;
use crate::within::OWN_TARGET;
use opentelemetry::metrics::Histogram;
use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::{SpanContext, TraceContextExt};
use opentelemetry::{Context, KeyValue, global};
use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tracing::field::Empty;

/// As the conventions advise, in seconds; the last ones for messages that wait long.
const BUCKETS: [f64; 17] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 60.0, 600.0, 3600.0];

/// A queue or topic that the service sends to or takes from. Made once, and cheap to clone.
///
/// ```no_run
/// # use std::collections::HashMap;
/// # async fn publish(_: &HashMap<String, String>) -> Result<(), std::io::Error> { Ok(()) }
/// # async fn handle() -> Result<(), std::io::Error> { Ok(()) }
/// # async fn f() -> Result<(), std::io::Error> {
/// let orders = firstfall_agent::Queue::new("rabbitmq", "orders");
/// let mut headers = HashMap::new();
/// orders.sending(&mut headers).run(publish(&headers)).await?;
/// // Elsewhere, with the headers that came with the message:
/// orders.message(&headers).attempt(1).run(handle()).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Queue {
    what: Arc<What>,
}

#[derive(Debug)]
struct What {
    system: String,
    destination: String,
    sent: Late<Histogram<f64>>,
    processed: Late<Histogram<f64>>,
    waited: Late<Histogram<f64>>,
}

impl What {
    fn attributes(&self, operation: &'static str) -> Vec<KeyValue> {
        vec![
            KeyValue::new("messaging.system", self.system.clone()),
            KeyValue::new("messaging.destination.name", self.destination.clone()),
            KeyValue::new("messaging.operation.name", operation),
        ]
    }
}

impl Queue {
    /// `system` as `messaging.system` has it (`rabbitmq`, `kafka`, `aws_sqs`, …), and the name of the queue or topic.
    pub fn new(system: &str, destination: &str) -> Queue {
        Queue {
            what: Arc::new(What {
                system: system.to_owned(),
                destination: destination.to_owned(),
                sent: seconds("messaging.client.operation.duration", &BUCKETS),
                processed: seconds("messaging.process.duration", &BUCKETS),
                waited: seconds("firstfall.messaging.queue_wait", &BUCKETS),
            }),
        }
    }

    /// A message that is about to be sent. `headers` get what carries the trace on, and go with it.
    pub fn sending(&self, headers: &mut dyn Injector) -> Sending {
        let what = &self.what;
        let span = tracing::info_span!(
            target: OWN_TARGET,
            "messaging.send",
            "otel.kind" = "producer",
            "otel.name" = format!("send {}", what.destination),
            "otel.status_code" = Empty,
            "otel.status_description" = Empty,
            "messaging.system" = what.system,
            "messaging.destination.name" = what.destination,
            "messaging.operation.type" = "send",
            "messaging.operation.name" = "send",
            "error.type" = Empty,
        );
        global::get_text_map_propagator(|propagator| propagator.inject_context(&span.otel_context(), headers));
        Sending { operation: Operation::begin(span, &what.sent, what.attributes("send")) }
    }

    /// A message that has come, with its headers. Its processing is a child of its sending, unless it is to be [`linked`](Message::linked).
    pub fn message(&self, headers: &dyn Extractor) -> Message<'_> {
        // Of the sender alone: what is current here is another message's, or none's.
        let from = global::get_text_map_propagator(|propagator| propagator.extract_with_context(&Context::new(), headers));
        self.received(vec![from], None)
    }

    /// Messages that are processed together: linked to the sending of each, in a trace of their own. Of more than 128 the first are linked.
    pub fn batch<'h>(&self, headers: impl IntoIterator<Item = &'h dyn Extractor>) -> Message<'_> {
        let (mut from, mut count) = (Vec::new(), 0);
        for headers in headers {
            count += 1;
            if from.len() < LINKS_MAX {
                from.push(global::get_text_map_propagator(|propagator| propagator.extract_with_context(&Context::new(), headers)));
            }
        }
        Message { linked: true, ..self.received(from, Some(count)) }
    }

    fn received(&self, from: Vec<Context>, count: Option<i64>) -> Message<'_> {
        Message { what: &self.what, from, count, linked: false, attempt: None, waited: None, id: None }
    }
}

/// As many links as OpenTelemetry's SDKs keep of a span.
const LINKS_MAX: usize = 128;

/// See [`Queue::sending`]. It is measured from there on; dropped without being run it is recorded as cancelled.
#[derive(Debug)]
#[must_use = "a message that is not sent is recorded as cancelled"]
pub struct Sending {
    operation: Operation,
}

impl Sending {
    /// Sends it.
    pub async fn run<T, E: Display>(self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        self.operation.run(work).await
    }

    /// The same for a client that blocks.
    pub fn run_blocking<T, E: Display>(self, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        self.operation.run_blocking(work)
    }
}

/// See [`Queue::message`] and [`Queue::batch`].
#[derive(Debug)]
#[must_use = "it is measured when it is run"]
pub struct Message<'a> {
    what: &'a What,
    from: Vec<Context>,
    count: Option<i64>,
    linked: bool,
    attempt: Option<i64>,
    waited: Option<Duration>,
    id: Option<&'a str>,
}

impl<'a> Message<'a> {
    /// It begins a trace of its own, linked to that of its sending: for messages that are sent far more than awaited.
    pub fn linked(mut self) -> Message<'a> {
        self.linked = true;
        self
    }

    /// The how manieth delivery of it this is, from 1 on.
    pub fn attempt(mut self, attempt: u32) -> Message<'a> {
        self.attempt = Some(attempt.into());
        self
    }

    /// When it was sent, from which follows how long it has waited.
    pub fn sent_at(mut self, time: SystemTime) -> Message<'a> {
        // Clocks of two machines: less than nothing is nothing.
        self.waited = Some(SystemTime::now().duration_since(time).unwrap_or_default());
        self
    }

    /// As the queue knows it.
    pub fn id(mut self, id: &'a str) -> Message<'a> {
        self.id = Some(id);
        self
    }

    fn begin(self) -> (Operation, Option<Context>) {
        let What { system, destination, processed, waited, .. } = self.what;
        let parent = self.from.first().filter(|_| !self.linked).cloned();
        // Known to the span from its first moment, so that it is sampled as its sender was.
        let around = parent.unwrap_or_default().attach();
        let span = tracing::info_span!(
            target: OWN_TARGET,
            parent: None::<tracing::Id>,
            "messaging.process",
            "otel.kind" = "consumer",
            "otel.name" = format!("process {destination}"),
            "otel.status_code" = Empty,
            "otel.status_description" = Empty,
            "messaging.system" = system,
            "messaging.destination.name" = destination,
            "messaging.operation.type" = "process",
            "messaging.operation.name" = "process",
            "messaging.message.id" = self.id,
            "messaging.batch.message_count" = self.count,
            "firstfall.messaging.delivery_attempt" = self.attempt,
            "firstfall.messaging.queue_wait" = self.waited.map(|waited| waited.as_secs_f64()),
            "error.type" = Empty,
        );
        drop(around);
        let around = match self.linked {
            false => self.from.into_iter().next(),
            true => {
                let links = self.from.iter().map(|from| from.span().span_context().clone()).filter(SpanContext::is_valid);
                links.for_each(|link| span.add_otel_link(link));
                None
            }
        };
        if let Some(parent) = &around {
            span.set_otel_parent(parent.clone());
        }
        let attributes = self.what.attributes("process");
        if let (Some(time), Some(waited)) = (self.waited, waited.get()) {
            waited.record(time.as_secs_f64(), &attributes);
        }
        (Operation::begin(span, processed, attributes), around)
    }

    /// Processes it. What fails is told with the type of its error; a future that is dropped before its end is recorded as cancelled.
    pub async fn run<T, E: Display>(self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let (operation, around) = self.begin();
        operation.run_in(work, around).await
    }

    /// The same for work that blocks.
    pub fn run_blocking<T, E: Display>(self, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let (operation, around) = self.begin();
        let _around = around.map(Context::attach);
        operation.run_blocking(work)
    }
}
