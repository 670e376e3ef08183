//! Attribute values, and the store's own compact encoding of what is nested: maps, arrays, events, links,
//! resources and scopes.
//!
//! The encoding is the store's, not OTLP's: `decode` in the collector translates the wire into it once, and
//! everything behind speaks it. It keeps types, order and duplicates, so that an export loses nothing.
//!
//! ```text
//! value  := 0                      empty
//!         | 1 text                 string
//!         | 2 | 3                  false, true
//!         | 4 zigzag-varint        int
//!         | 5 f64 (8 bytes, LE)    double
//!         | 6 text                 bytes
//!         | 7 count value*         array
//!         | 8 pairs                map
//! text   := length-varint bytes
//! pairs  := count (text value)*
//! ```

use crate::pack::{Cursor, Writer, corrupt};
use crate::{Damaged, Nanos, SpanId, TraceId};
use serde_json::{Map, Number, Value as Json};

/// Values nested deeper than this were turned into text before they came here; the reader enforces it again,
/// because a damaged file must not exhaust the stack.
pub const NESTING_MAX: usize = 80;

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Empty,
    Str(String),
    Bool(bool),
    Int(i64),
    Double(f64),
    Bytes(Vec<u8>),
    Array(Vec<Value>),
    Map(Pairs),
}

/// Attributes in the order in which they came; a key may occur twice if the client sent it twice.
pub type Pairs = Vec<(String, Value)>;

impl Value {
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Value::Empty => out.push(0),
            Value::Str(text) => {
                out.push(1);
                out.text(text.as_bytes());
            }
            Value::Bool(value) => out.push(2 + u8::from(*value)),
            Value::Int(value) => {
                out.push(4);
                out.zigzag(*value);
            }
            Value::Double(value) => {
                out.push(5);
                out.extend_from_slice(&value.to_bits().to_le_bytes());
            }
            Value::Bytes(bytes) => {
                out.push(6);
                out.text(bytes);
            }
            Value::Array(values) => {
                out.push(7);
                out.varint(values.len() as u64);
                for value in values {
                    value.encode(out);
                }
            }
            Value::Map(pairs) => {
                out.push(8);
                encode_pairs(pairs, out);
            }
        }
    }

    pub fn decode(reader: &mut Cursor<'_>, depth: usize) -> Result<Value, Damaged> {
        if depth > NESTING_MAX {
            return Err(corrupt("a value nested too deep"));
        }
        Ok(match reader.byte()? {
            0 => Value::Empty,
            1 => Value::Str(reader.string()?),
            2 => Value::Bool(false),
            3 => Value::Bool(true),
            4 => Value::Int(reader.zigzag()?),
            5 => Value::Double(f64::from_bits(u64::from_le_bytes(reader.array()?))),
            6 => Value::Bytes(reader.text()?.to_vec()),
            7 => {
                let count = reader.count()?;
                let mut values = Vec::new();
                for _ in 0..count {
                    values.push(Value::decode(reader, depth + 1)?);
                }
                Value::Array(values)
            }
            8 => Value::Map(decode_pairs(reader, depth + 1)?),
            _ => return Err(corrupt("an unknown value type")),
        })
    }

    /// The value as a person would type it in a search: strings bare, the rest as JSON.
    pub fn text(&self) -> String {
        match self {
            Value::Empty => String::new(),
            Value::Str(text) => text.clone(),
            other => other.to_json().to_string(),
        }
    }

    /// As JSON for people and programs: 64-bit integers as numbers, bytes as base16, doubles that JSON cannot
    /// express as strings. The lossless form is OTLP/JSON, which the dashboard draws from the value itself.
    pub fn to_json(&self) -> Json {
        match self {
            Value::Empty => Json::Null,
            Value::Str(text) => Json::String(text.clone()),
            Value::Bool(value) => Json::Bool(*value),
            Value::Int(value) => Json::Number((*value).into()),
            Value::Double(value) => Number::from_f64(*value).map_or_else(|| Json::String(value.to_string()), Json::Number),
            Value::Bytes(bytes) => Json::String(bytes.iter().map(|b| format!("{b:02x}")).collect()),
            Value::Array(values) => Json::Array(values.iter().map(Value::to_json).collect()),
            Value::Map(pairs) => pairs_to_json(pairs),
        }
    }
}

pub fn pairs_to_json(pairs: &Pairs) -> Json {
    Json::Object(pairs.iter().map(|(key, value)| (key.clone(), value.to_json())).collect::<Map<_, _>>())
}

pub fn encode_pairs(pairs: &Pairs, out: &mut Vec<u8>) {
    out.varint(pairs.len() as u64);
    for (key, value) in pairs {
        out.text(key.as_bytes());
        value.encode(out);
    }
}

pub fn decode_pairs(reader: &mut Cursor<'_>, depth: usize) -> Result<Pairs, Damaged> {
    let count = reader.count()?;
    let mut pairs = Vec::new();
    for _ in 0..count {
        let key = reader.string()?;
        pairs.push((key, Value::decode(reader, depth)?));
    }
    Ok(pairs)
}

/// The first value of a key, if it is a non-empty string.
pub fn text_of<'a>(pairs: &'a Pairs, key: &str) -> Option<&'a str> {
    pairs.iter().find(|(k, _)| k == key).and_then(|(_, value)| match value {
        Value::Str(text) if !text.is_empty() => Some(text.as_str()),
        _ => None,
    })
}

/// What describes the sender of items (OTLP `Resource` with its `schema_url`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resource {
    pub attributes: Pairs,
    pub dropped_attributes: u32,
    pub schema_url: String,
}

/// What describes the library that made items (OTLP `InstrumentationScope` with its `schema_url`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scope {
    pub name: String,
    pub version: String,
    pub attributes: Pairs,
    pub dropped_attributes: u32,
    pub schema_url: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Event {
    pub time: Nanos,
    pub name: String,
    pub attributes: Pairs,
    pub dropped_attributes: u32,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Link {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    pub trace_state: String,
    pub attributes: Pairs,
    pub dropped_attributes: u32,
    pub flags: u32,
}

/// A noun that is kept as one encoded BLOB.
pub trait Stored: Sized {
    fn encode(&self, out: &mut Vec<u8>);
    fn decode(reader: &mut Cursor<'_>) -> Result<Self, Damaged>;

    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Damaged> {
        Self::decode(&mut Cursor::new(bytes))
    }
}

impl Stored for Resource {
    fn encode(&self, out: &mut Vec<u8>) {
        encode_pairs(&self.attributes, out);
        out.varint(self.dropped_attributes.into());
        out.text(self.schema_url.as_bytes());
    }
    fn decode(reader: &mut Cursor<'_>) -> Result<Self, Damaged> {
        Ok(Resource { attributes: decode_pairs(reader, 0)?, dropped_attributes: reader.u32()?, schema_url: reader.string()? })
    }
}

impl Stored for Scope {
    fn encode(&self, out: &mut Vec<u8>) {
        out.text(self.name.as_bytes());
        out.text(self.version.as_bytes());
        encode_pairs(&self.attributes, out);
        out.varint(self.dropped_attributes.into());
        out.text(self.schema_url.as_bytes());
    }
    fn decode(reader: &mut Cursor<'_>) -> Result<Self, Damaged> {
        Ok(Scope {
            name: reader.string()?,
            version: reader.string()?,
            attributes: decode_pairs(reader, 0)?,
            dropped_attributes: reader.u32()?,
            schema_url: reader.string()?,
        })
    }
}

impl Stored for Event {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.time.to_le_bytes());
        out.text(self.name.as_bytes());
        encode_pairs(&self.attributes, out);
        out.varint(self.dropped_attributes.into());
    }
    fn decode(reader: &mut Cursor<'_>) -> Result<Self, Damaged> {
        Ok(Event {
            time: u64::from_le_bytes(reader.array()?),
            name: reader.string()?,
            attributes: decode_pairs(reader, 0)?,
            dropped_attributes: reader.u32()?,
        })
    }
}

impl Stored for Link {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.trace_id.0);
        out.extend_from_slice(&self.span_id.0.to_be_bytes());
        out.text(self.trace_state.as_bytes());
        encode_pairs(&self.attributes, out);
        out.varint(self.dropped_attributes.into());
        out.varint(self.flags.into());
    }
    fn decode(reader: &mut Cursor<'_>) -> Result<Self, Damaged> {
        Ok(Link {
            trace_id: TraceId(reader.array()?),
            span_id: SpanId(u64::from_be_bytes(reader.array()?)),
            trace_state: reader.string()?,
            attributes: decode_pairs(reader, 0)?,
            dropped_attributes: reader.u32()?,
            flags: reader.u32()?,
        })
    }
}

impl<T: Stored> Stored for Vec<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        out.varint(self.len() as u64);
        for item in self {
            item.encode(out);
        }
    }
    fn decode(reader: &mut Cursor<'_>) -> Result<Self, Damaged> {
        let count = reader.count()?;
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(T::decode(reader)?);
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Empty),
            ".{0,20}".prop_map(Value::Str),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            (-1e300..1e300f64).prop_map(Value::Double),
            prop::collection::vec(any::<u8>(), 0..20).prop_map(Value::Bytes),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
                prop::collection::vec((".{0,8}", inner), 0..6).prop_map(Value::Map),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_value_is_read_as_it_was_written(value in any_value()) {
            let mut bytes = Vec::new();
            value.encode(&mut bytes);
            prop_assert_eq!(Value::decode(&mut Cursor::new(&bytes), 0).expect("own encoding"), value);
        }

        #[test]
        fn damaged_bytes_are_an_error_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Value::decode(&mut Cursor::new(&bytes), 0);
            let _ = Vec::<Event>::from_bytes(&bytes);
            let _ = Vec::<Link>::from_bytes(&bytes);
            let _ = Resource::from_bytes(&bytes);
        }
    }
}
