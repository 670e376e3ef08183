//! Firstfall's storage and query engine.
//!
//! A `Store` owns a directory; its `Writer` side makes batches durable and visible, its `Reader` side answers questions over sealed
//! blocks and the live generation together. Everything here is synchronous: no network, no async, no clock but the wall clock
//! that a caller hands in. All SQL of the project lives in this crate.
//!
//! Start with `store` (what happens to a batch), then `batch` and `block` (what it is made of; `builder` makes a batch), then `query`.

pub mod batch;
pub mod block;
pub mod builder;
mod error;
pub mod filter;
pub mod histogram;
mod id;
mod journal;
mod meta;
pub mod pack;
pub mod partition;
pub mod query;
mod recent;
pub mod rollup;
pub mod segment;
pub mod sql;
mod store;
mod upkeep;
pub mod value;

pub use error::{Damaged, Error, Refusal};
pub use id::{NANOS_PER_SECOND, Nanos, NotAnId, Service, Signal, SpanId, TraceId};
pub use recent::{Answer, RequestHash};
pub use store::{Admission, Durability, Options, Place, Reader, Storage, Store, TicketResult};
