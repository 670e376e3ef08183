//! Firstfall's agent: telemetry of a Rust service in one call and one layer.
//!
//! ```no_run
//! # async fn run() {
//! let _telemetry = firstfall_agent::agent!().init();
//! let app: axum::Router = axum::Router::new()
//!     .route("/buy", axum::routing::get(|| async { "thanks" }))
//!     .layer(firstfall_agent::ServerLayer::new());
//! # }
//! ```
//!
//! From then on every request is a span with its parent from `traceparent`, `tracing`'s spans and events are exported, meters of
//! `opentelemetry::global` too, `Client` and [`ClientLayer`] carry the trace on to the next service, [`spawn`] and its siblings into other tasks and
//! threads; panics, the process and the tokio runtime report themselves. Settings are the standard `OTEL_*` variables, over what code says.
//!
//! The agent never stops the service and never waits for the collector: items are encoded where they end and wait in a queue that is bounded in bytes, a thread
//! of its own sends them, what cannot be kept is dropped and counted with its reason ([`Telemetry::account`], and as metrics). It cannot trace itself, and it
//! flushes within a bounded time when its guard is dropped, under any runtime or none.

//!
//! Cargo features: `axum`, `reqwest` and `signal` (on) for matched routes, for `Client` and for `shutdown_signal`; `grpc`, `tls-ring`, `tls-aws-lc` (off) for other ways to the collector; `prometheus`
//! (off) for registries and the exposition of metrics.

#![warn(missing_docs)]

mod agent;
mod body;
mod call;
mod client;
mod complain;
mod database;
mod doctor;
mod export;
mod late;
mod lean;
mod messaging;
#[cfg(not(feature = "prometheus"))]
mod missing;
mod operation;
mod panics;
mod processors;
mod propagate;
#[cfg(feature = "prometheus")]
mod registry;
pub mod resilience;
mod resource;
mod runtime;
mod sampling;
mod series;
mod server;
mod settings;
mod setup;
mod wire;
mod within;
mod work;

pub use agent::{Agent, Compression, Protocol};
pub use body::Watched;
pub use call::{Answer, Call};
pub use client::{Calling, ClientLayer};
#[cfg(feature = "reqwest")]
pub use client::{Client, RequestBuilder};
pub use database::{Database, Query};
pub use doctor::{Check, Checkup};
pub use export::{Account, Loss, Signal};
pub use lean::SpanExt;
pub use messaging::{Message, Queue, Sending};
/// In the version whose meters, tracers and contexts this crate exports: with another one in the tree, what it makes goes nowhere.
pub use opentelemetry;
pub use runtime::watch_runtime;
pub use sampling::Sampling;
pub use server::{Served, ServerLayer};
pub use setup::{Ended, InitError, Telemetry};
pub use tracing;
/// For [`Agent::level`].
pub use tracing_subscriber::filter::LevelFilter;
#[cfg(feature = "signal")]
pub use work::shutdown_signal;
pub use work::{Carried, carried, spawn, spawn_blocking, spawn_thread};

/// An [`Agent`] with the name and version of the Cargo package that calls it.
#[macro_export]
macro_rules! agent {
    () => {
        $crate::Agent::new(env!("CARGO_PKG_NAME")).version(env!("CARGO_PKG_VERSION"))
    };
}
