//! From what clients send to columns. Only this module knows OTLP's wire formats.
//!
//! Both decoders walk the bytes and hand the pieces to an `Intake`; no message objects are built. A request whose outer
//! frame is broken is refused whole, as the bytes after the break mean nothing; an item that is broken inside is refused alone.

pub mod json;
pub mod protobuf;

use crate::validate::Intake;
use firstfall_store::Signal;

/// The encoding of a request's body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    Protobuf,
    Json,
}

/// The request cannot be read at all.
#[derive(Debug, PartialEq, Eq)]
pub struct Unreadable(pub String);

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Decodes an `Export…ServiceRequest` into `intake`. JSON is parsed in place.
pub fn request(format: Format, signal: Signal, body: &mut [u8], intake: &mut Intake) -> Result<(), Unreadable> {
    match format {
        Format::Protobuf => protobuf::request(signal, body, intake),
        Format::Json => json::request(signal, body, intake),
    }
}
