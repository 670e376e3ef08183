//! Firstfall's agent: telemetry of a Rust service in one call and one layer.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let _telemetry = firstfall_agent::init("checkout")?;
//! let app: axum::Router = axum::Router::new()
//!     .route("/buy", axum::routing::get(|| async { "thanks" }))
//!     .layer(firstfall_agent::ServerLayer::new());
//! # Ok(()) }
//! ```
//!
//! From then on every request is a span with its parent from `traceparent`, `tracing`'s spans and events are exported, meters of
//! `opentelemetry::global` too, and `Client` carries the trace on to the next service. Settings are the standard `OTEL_*`
//! variables. The agent never blocks the service for longer than the shutdown limit, never exports its own exporter's telemetry, and
//! flushes when its guard is dropped.

mod client;
mod server;
mod telemetry;

pub use client::Client;
pub use server::ServerLayer;
pub use telemetry::{Agent, InitError, Telemetry, init};

/// Upper ends of the latency buckets in seconds, as the HTTP conventions advise.
const BUCKETS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

fn duration_histogram(name: &'static str) -> opentelemetry::metrics::Histogram<f64> {
    opentelemetry::global::meter("firstfall-agent").f64_histogram(name).with_unit("s").with_boundaries(BUCKETS.to_vec()).build()
}
