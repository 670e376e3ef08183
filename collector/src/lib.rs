//! The collector: receives OpenTelemetry over gRPC and HTTP, checks it, and hands it to the store.
//!
//! The way in is one function, `ingest::Ingest::request`. Each step of it is the module of that name.

pub mod alert;
pub mod app;
pub mod cli;
pub mod config;
pub mod decode;
pub mod demo;
pub mod detect;
pub mod doctor;
pub mod ingest;
pub mod receive;
pub mod redact;
pub mod self_metrics;
pub mod semconv;
mod senders;
pub mod validate;
