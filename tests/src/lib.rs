//! What the tests of the whole program share: the frozen corpus, and the real binary on free ports.

pub mod agree;
pub mod corpus;
pub mod grpc;
pub mod hook;
pub mod mixed;
pub mod power;
pub mod recorded;
pub mod samples;
pub mod scenario;
pub mod server;
pub mod shop;
pub mod stored;

pub use rustix::process::Signal;
pub use server::{Server, binary, example, signal, wait_for};
