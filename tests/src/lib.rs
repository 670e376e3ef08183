//! What the tests of the whole program share: the frozen corpus, and the real binary on free ports.

pub mod corpus;
pub mod grpc;
pub mod mixed;
pub mod power;
mod server;

pub use server::{Server, binary, wait_for};
