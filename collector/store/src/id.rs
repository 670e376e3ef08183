//! The small nouns: ids, timestamps, signals and the identity of a service.
//!
//! They exist so that a signature says `TraceId` where sixteen bytes would do. Nothing here reads a clock.

use std::fmt;
use std::str::FromStr;

/// Nanoseconds since the Unix epoch, as OTLP's `fixed64` fields carry them.
pub type Nanos = u64;

pub const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Sixteen bytes, never all zero in a stored row.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct TraceId(pub [u8; 16]);

/// Eight bytes; zero means "none".
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct SpanId(pub u64);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What a reader typed is not an id of the right length in hexadecimal.
#[derive(Debug, PartialEq, Eq)]
pub struct NotAnId;

impl FromStr for TraceId {
    type Err = NotAnId;
    fn from_str(text: &str) -> Result<Self, NotAnId> {
        // Some clients cut leading zeros; padding them back is what Jaeger does.
        if text.is_empty() || text.len() > 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NotAnId);
        }
        let id = u128::from_str_radix(text, 16).map_err(|_| NotAnId)?;
        Ok(TraceId(id.to_be_bytes()))
    }
}

impl FromStr for SpanId {
    type Err = NotAnId;
    fn from_str(text: &str) -> Result<Self, NotAnId> {
        if text.is_empty() || text.len() > 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NotAnId);
        }
        u64::from_str_radix(text, 16).map(SpanId).map_err(|_| NotAnId)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Signal {
    Traces = 0,
    Logs = 1,
    Metrics = 2,
}

impl Signal {
    pub const ALL: [Signal; 3] = [Signal::Traces, Signal::Logs, Signal::Metrics];

    /// The directory of its partitions, and its name in addresses.
    pub fn name(self) -> &'static str {
        match self {
            Signal::Traces => "traces",
            Signal::Logs => "logs",
            Signal::Metrics => "metrics",
        }
    }

    /// What one of its items is called in counts.
    pub fn items(self) -> &'static str {
        match self {
            Signal::Traces => "spans",
            Signal::Logs => "logs",
            Signal::Metrics => "points",
        }
    }

    pub fn from_code(code: u8) -> Option<Signal> {
        Signal::ALL.into_iter().find(|s| *s as u8 == code)
    }
}

/// Who sent an item: `deployment.environment.name`, `service.namespace`, `service.name`.
/// All three are part of every key, so that staging never mixes with production.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, serde::Serialize)]
pub struct Service {
    #[serde(rename = "service")]
    pub name: String,
    pub namespace: String,
    pub environment: String,
}

impl Service {
    pub fn named(name: &str) -> Service {
        Service { name: name.to_owned(), ..Service::default() }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match (self.namespace.as_str(), self.environment.as_str()) {
            ("", "") => Ok(()),
            (namespace, "") => write!(f, " ({namespace})"),
            ("", environment) => write!(f, " ({environment})"),
            (namespace, environment) => write!(f, " ({namespace}, {environment})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_as_they_parse() {
        let trace: TraceId = "0af7651916cd43dd8448eb211c80319c".parse().expect("valid");
        assert_eq!(trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
        let span: SpanId = "B7AD6B7169203331".parse().expect("valid");
        assert_eq!(span.to_string(), "b7ad6b7169203331");
        assert_eq!("xyz".parse::<TraceId>(), Err(NotAnId));
        assert_eq!("+1".parse::<SpanId>(), Err(NotAnId));
    }
}
