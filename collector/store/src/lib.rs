//! Firstfall's storage and query engine.
//!
//! A `Store` owns a directory and makes batches durable and visible; a `Reader` answers questions over sealed blocks and the live
//! generation together. Everything here is synchronous: no network, no async, no clock but the wall clock
//! that a caller hands in. All SQL of the project lives in this crate.
//!
//! Start with `store`, then follow a batch: `writer`, `generation`, `sealer` (and `recovery` after a crash). Then `batch` and `block` (what it is made of; `builder` makes a batch), then `query`.

pub mod batch;
pub mod block;
pub mod bloom;
pub mod builder;
pub mod change;
pub mod delivery;
pub mod edge;
mod error;
mod generation;
pub mod histogram;
mod id;
pub mod incident;
mod journal;
mod meta;
pub mod node;
pub mod pack;
pub mod part;
pub mod partition;
mod past;
pub mod query;
mod rebuild;
mod recent;
mod recovery;
pub mod rollup;
pub mod sampling;
mod sealer;
pub mod segment;
mod spare;
pub mod sql;
mod store;
mod upkeep;
pub mod value;
mod writer;

pub use error::{Damaged, Error, Refusal};
pub use id::{NANOS_PER_SECOND, Nanos, NotAnId, Service, Signal, SpanId, TraceId};
pub use past::Past;
pub use recent::{Answer, RequestHash};
pub use store::{Admission, Durability, Options, Reader, Retention, Storage, Store, Tap, TicketResult};
pub use writer::Place;
