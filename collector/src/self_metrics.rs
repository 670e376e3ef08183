//! What Firstfall says of itself: `/metrics`, `/healthz`, `/readyz`, and the counts behind `/api/v1/stats`.

use crate::detect::watch::Watch;
use crate::receive::Receivers;
use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use firstfall_dashboard::{Intake, SignalIntake};
use firstfall_store::Signal;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub struct SelfMetrics {
    receivers: Arc<Receivers>,
    watch: Arc<Watch>,
}

impl SelfMetrics {
    pub fn new(receivers: Arc<Receivers>, watch: Arc<Watch>) -> SelfMetrics {
        SelfMetrics { receivers, watch }
    }

    pub fn routes(self: Arc<Self>) -> Router {
        let (ready, metrics) = (self.clone(), self.clone());
        Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route(
                "/readyz",
                get(move || async move {
                    // Reads go on while writes are refused, so it stays ready and says why it is not whole.
                    match ready.receivers.ingest.reader().trouble() {
                        None => "ready\n".to_owned(),
                        Some(trouble) => format!("ready, degraded: {trouble}\n"),
                    }
                }),
            )
            .route("/metrics", get(move |request: Request| async move { metrics.exposition(&request) }))
    }

    fn exposition(&self, request: &Request) -> Response {
        if self.receivers.token.as_ref().is_some_and(|token| !token.is_in(request.headers())) {
            return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], "the token is missing or wrong\n").into_response();
        }
        let mut out = String::new();
        let counters = &self.receivers.ingest.counters;
        let reader = self.receivers.ingest.reader();
        let storage = reader.storage();
        let mut metric = |name: &str, kind: &str, help: &str, samples: Vec<(String, u64)>| {
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
            for (labels, value) in samples {
                let _ = writeln!(out, "{name}{labels} {value}");
            }
        };
        let by_signal = |value: &dyn Fn(Signal) -> u64| Signal::ALL.map(|s| (format!("{{signal=\"{}\"}}", s.items()), value(s))).to_vec();
        metric(
            "firstfall_items_received_total",
            "counter",
            "Items that arrived in readable requests.",
            by_signal(&|s| counters.received(s)),
        );
        metric("firstfall_items_stored_total", "counter", "Items made durable.", by_signal(&|s| reader.stored(s)));
        let reasons = Signal::ALL
            .iter()
            .flat_map(|s| counters.rejected(*s).map(|(r, n)| (format!("{{signal=\"{}\",reason=\"{}\"}}", s.items(), r.name()), n)))
            .collect();
        metric("firstfall_items_rejected_total", "counter", "Items refused, by reason.", reasons);
        let trims = Signal::ALL
            .iter()
            .flat_map(|s| counters.trimmed(*s).map(|(t, n)| (format!("{{signal=\"{}\",reason=\"{}\"}}", s.items(), t.name()), n)))
            .collect();
        metric("firstfall_parts_cut_total", "counter", "Parts cut from items that were kept, by reason.", trims);
        let refused = counters.refused().map(|(why, n)| (format!("{{reason=\"{why}\"}}"), n)).collect();
        metric("firstfall_requests_refused_total", "counter", "Requests refused whole, by reason.", refused);
        let plain = |value: u64| vec![(String::new(), value)];
        metric("firstfall_requests_total", "counter", "Requests to the receivers.", plain(counters.requests.load(Ordering::Relaxed)));
        metric(
            "firstfall_requests_repeated_total",
            "counter",
            "Requests that came again and were answered without storing.",
            plain(counters.repeated.load(Ordering::Relaxed)),
        );
        metric("firstfall_in_flight_bytes", "gauge", "Bytes of requests under way.", plain(self.receivers.in_flight.used() as u64));
        metric("firstfall_storage_bytes", "gauge", "Bytes of all partitions and the journal.", plain(storage.bytes));
        metric("firstfall_journal_bytes", "gauge", "Bytes of the journal.", plain(storage.journal_bytes));
        metric(
            "firstfall_journal_files_reused_total",
            "counter",
            "Journal files written over, rather than made anew.",
            plain(storage.journal_reused),
        );
        metric("firstfall_partitions", "gauge", "Partition files.", plain(storage.partitions as u64));
        metric("firstfall_disk_free_bytes", "gauge", "Bytes free on the volume.", plain(storage.free_bytes));
        metric("firstfall_writes_refused", "gauge", "1 while new items are refused.", plain(reader.trouble().is_some().into()));
        let overlooked = self.watch.overlooked();
        metric(
            "firstfall_detection_batches_missed_total",
            "counter",
            "Batches that detection did not look at because too many waited.",
            plain(overlooked.batches),
        );
        metric("firstfall_detection_one_trace_in", "gauge", "Detection looks at one trace in so many.", plain(overlooked.one_trace_in));
        metric(
            "firstfall_detection_subjects_left_out_total",
            "counter",
            "Facts left out because there were too many subjects or series.",
            plain(overlooked.subjects),
        );
        metric(
            "firstfall_detection_traces_cut_short_total",
            "counter",
            "Traces counted before all of them can have come, because too many waited.",
            plain(overlooked.traces),
        );
        metric("firstfall_detection_clocks_corrected", "gauge", "Services whose clocks are wrong by seconds.", plain(overlooked.clocks));
        let deliveries = reader.delivery_counts().unwrap_or_default();
        metric(
            "firstfall_deliveries",
            "gauge",
            "Notifications in the outbox, by receiver and state; finished ones are kept for a while.",
            deliveries
                .iter()
                .map(|(receiver, state, count)| (format!("{{receiver=\"{receiver}\",state=\"{}\"}}", state.word()), *count))
                .collect(),
        );
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], out).into_response()
    }
}

impl Intake for SelfMetrics {
    fn signal(&self, signal: Signal) -> SignalIntake {
        let counters = &self.receivers.ingest.counters;
        SignalIntake {
            received: counters.received(signal),
            rejected: counters.rejected(signal).map(|(r, n)| (r.name(), r.sentence(), n)).collect(),
            cut: counters.trimmed(signal).map(|(t, n)| (t.name(), t.sentence(), n)).collect(),
        }
    }

    fn refused_requests(&self) -> Vec<(&'static str, u64)> {
        self.receivers.ingest.counters.refused().collect()
    }

    fn repeated_requests(&self) -> u64 {
        self.receivers.ingest.counters.repeated.load(Ordering::Relaxed)
    }

    fn last_received(&self) -> Option<u64> {
        Some(self.receivers.ingest.counters.last_received.load(Ordering::Relaxed)).filter(|t| *t > 0)
    }
}
