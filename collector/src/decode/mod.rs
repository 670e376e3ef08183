//! From what clients send to columns. Only this module knows OTLP's wire formats.
//!
//! Both decoders walk the bytes and hand the pieces to an `Intake`; no message objects are built. A request whose outer
//! frame is broken is refused whole, as the bytes after the break mean nothing; an item that is broken inside is refused alone.

pub mod json;
mod points;
pub mod protobuf;
mod wire;

use crate::validate::{Any, Intake, Reason, Trim};
use firstfall_store::Signal;
use firstfall_store::batch::Field;
use firstfall_store::value::{Pairs, Value};

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

/// Keeps a counter that is worth a column only when it counted something.
fn count_field(field: Field, count: u64, intake: &mut Intake) -> Result<(), Reason> {
    if count == 0 { Ok(()) } else { intake.field(field, Any::Int(count as i64)) }
}

/// A field that may stand once: the last one counts.
fn set(pairs: &mut Pairs, name: &str, value: Value) {
    match pairs.iter_mut().find(|(key, _)| key == name) {
        Some((_, old)) => *old = value,
        None => pairs.push((name.to_owned(), value)),
    }
}

/// The id in an exemplar, when it is one; an empty or zero one says that there is none.
fn exemplar_id(name: &str, id: &[u8], length: usize, pairs: &mut Pairs, intake: &mut Intake) {
    pairs.retain(|(key, _)| key != name);
    if id.iter().all(|byte| *byte == 0) {
        return;
    }
    if id.len() == length {
        pairs.push((name.to_owned(), Value::Bytes(id.to_vec())));
    } else {
        intake.trim(Trim::Id);
    }
}
