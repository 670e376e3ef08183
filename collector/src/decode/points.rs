//! Metrics and their points, from protobuf.

use super::protobuf::{attribute, push_pair};
use super::wire::{Walk, Wire};
use super::{count_field, exemplar_id, set};
use crate::validate::{Any, Intake, PointHead, Reason};
use firstfall_store::batch::Field;
use firstfall_store::value::{Pairs, Value};

/// `Metric`: 1 name, 2 description, 3 unit, 5 gauge, 7 sum, 9 histogram, 10 exponential histogram, 11 summary, 12 metadata.
pub(super) fn metric(bytes: &[u8], intake: &mut Intake) {
    if let Err(reason) = try_metric(bytes, intake) {
        // What could be read of it is kept; the rest counts as one.
        intake.reject(reason);
    }
}

struct Metric<'a> {
    name: &'a [u8],
    description: &'a [u8],
    unit: &'a [u8],
    metadata: Vec<u8>,
    temporality: i32,
    monotonic: bool,
}

fn try_metric(bytes: &[u8], intake: &mut Intake) -> Result<(), Reason> {
    let mut metric = Metric { name: &[], description: &[], unit: &[], metadata: Vec::new(), temporality: 0, monotonic: false };
    let mut data = None;
    let mut metadata: Pairs = Vec::new();
    let mut walk = Walk::new(bytes);
    while let Some((number, wire)) = walk.next()? {
        match number {
            1 => metric.name = wire.bytes()?,
            2 => metric.description = wire.bytes()?,
            3 => metric.unit = wire.bytes()?,
            5 => data = Some((1, wire.bytes()?)),
            7 => data = Some((2, wire.bytes()?)),
            9 => data = Some((3, wire.bytes()?)),
            10 => data = Some((4, wire.bytes()?)),
            11 => data = Some((5, wire.bytes()?)),
            12 => push_pair(wire.bytes()?, &mut metadata, &mut 0, intake)?,
            _ => {}
        }
    }
    if !metadata.is_empty() {
        Value::Map(metadata).encode(&mut metric.metadata);
    }
    let Some((kind, data)) = data else { return Ok(()) };
    let mut walk = Walk::new(data);
    while let Some((number, wire)) = walk.next()? {
        match number {
            2 if kind != 1 && kind != 5 => metric.temporality = wire.int32()?,
            3 if kind == 2 => metric.monotonic = wire.varint()? != 0,
            _ => {}
        }
    }
    let mut walk = Walk::new(data);
    while let Some((number, wire)) = walk.next()? {
        if number == 1
            && let Err(reason) = point(wire.bytes()?, kind, &metric, intake)
        {
            intake.abandon(reason);
        }
    }
    Ok(())
}

/// A data point of any type. The numbers of the fields differ from type to type.
fn point(bytes: &[u8], kind: u8, metric: &Metric<'_>, intake: &mut Intake) -> Result<(), Reason> {
    let attributes_field = match kind {
        3 => 9,
        4 => 1,
        _ => 7,
    };
    let mut head = PointHead { metric: metric.name, kind, ..PointHead::default() };
    let mut walk = Walk::new(bytes);
    while let Some((number, wire)) = walk.next()? {
        match number {
            2 => head.start = wire.fixed64()?,
            3 => head.time = wire.fixed64()?,
            _ => {}
        }
    }
    intake.begin_point(&head)?;
    let mut walk = Walk::new(bytes);
    while let Some((number, wire)) = walk.next()? {
        if number == attributes_field {
            attribute(wire.bytes()?, intake)?;
        }
    }
    for (field, value) in [(Field::Unit, metric.unit), (Field::Description, metric.description)] {
        if !value.is_empty() {
            intake.field(field, Any::Str(value))?;
        }
    }
    if !metric.metadata.is_empty() {
        intake.field(Field::Metadata, Any::Nested(&metric.metadata))?;
    }
    if metric.temporality != 0 {
        intake.field(Field::Temporality, Any::Int(metric.temporality.into()))?;
    }
    if metric.monotonic {
        intake.field(Field::Monotonic, Any::Bool(true))?;
    }
    let (mut flags, mut exemplars) = (0u32, Vec::new());
    let (mut counts, mut bounds, mut quantiles) = (Vec::new(), Vec::new(), Vec::new());
    let mut numbers: [Option<(Field, Any<'_>)>; 5] = [None; 5];
    let mut buckets: Pairs = Vec::new();
    let mut walk = Walk::new(bytes);
    while let Some((number, wire)) = walk.next()? {
        match (kind, number) {
            (1 | 2, 4) => numbers[0] = Some((Field::Value, Any::Double(wire.double()?))),
            (1 | 2, 6) => numbers[0] = Some((Field::Value, Any::Int(wire.fixed64()? as i64))),
            (3..=5, 4) => numbers[1] = Some((Field::Count, Any::Int(wire.fixed64()? as i64))),
            (3..=5, 5) => numbers[2] = Some((Field::Sum, Any::Double(wire.double()?))),
            (3, 11) | (4, 12) => numbers[3] = Some((Field::Min, Any::Double(wire.double()?))),
            (3, 12) | (4, 13) => numbers[4] = Some((Field::Max, Any::Double(wire.double()?))),
            (3, 6) => packed64(wire, &mut counts, |bits| Value::Int(bits as i64))?,
            (3, 7) => packed64(wire, &mut bounds, |bits| Value::Double(f64::from_bits(bits)))?,
            (4, 6) => {
                let scale = wire.varint()? as u32;
                set(&mut buckets, "scale", Value::Int(((scale >> 1) as i32 ^ -((scale & 1) as i32)).into()));
            }
            (4, 7) => set(&mut buckets, "zero_count", Value::Int(wire.fixed64()? as i64)),
            (4, 14) => set(&mut buckets, "zero_threshold", Value::Double(wire.double()?)),
            (4, 8) => set(&mut buckets, "positive", exponential_buckets(wire.bytes()?)?),
            (4, 9) => set(&mut buckets, "negative", exponential_buckets(wire.bytes()?)?),
            (5, 6) => quantiles.push(quantile(wire.bytes()?)?),
            (1 | 2, 5) | (3, 8) | (4, 11) if exemplars.len() < intake.limits.events_max => {
                let exemplar = exemplar(wire.bytes()?, intake)?;
                exemplars.push(exemplar);
            }
            (1 | 2 | 5, 8) | (3 | 4, 10) => flags = wire.varint()? as u32,
            _ => {}
        }
    }
    for (field, value) in numbers.into_iter().flatten() {
        intake.field(field, value)?;
    }
    for (name, list) in [("counts", counts), ("bounds", bounds), ("quantiles", quantiles)] {
        if !list.is_empty() {
            buckets.push((name.into(), Value::Array(list)));
        }
    }
    if !buckets.is_empty() {
        let mut encoded = Vec::new();
        Value::Map(buckets).encode(&mut encoded);
        intake.list(Field::Buckets, &encoded)?;
    }
    if !exemplars.is_empty() {
        let mut encoded = Vec::new();
        Value::Array(exemplars).encode(&mut encoded);
        intake.list(Field::Exemplars, &encoded)?;
    }
    count_field(Field::Flags, flags.into(), intake)?;
    count_field(Field::DroppedAttributes, intake.attributes_left_out(), intake)?;
    intake.finish_point(&head);
    Ok(())
}

/// A repeated fixed64 or double, packed or one by one.
fn packed64(wire: Wire<'_>, out: &mut Vec<Value>, value: fn(u64) -> Value) -> Result<(), Reason> {
    match wire {
        Wire::Fixed64(bits) => out.push(value(bits)),
        Wire::Len(bytes) => {
            let (numbers, rest) = bytes.as_chunks::<8>();
            if !rest.is_empty() {
                return Err(Reason::Malformed);
            }
            out.extend(numbers.iter().map(|bits| value(u64::from_le_bytes(*bits))));
        }
        _ => return Err(Reason::Malformed),
    }
    Ok(())
}

/// `Buckets`: 1 offset (sint32), 2 counts (uint64).
fn exponential_buckets(bytes: &[u8]) -> Result<Value, Reason> {
    let (mut offset, mut counts) = (0i32, Vec::new());
    let mut walk = Walk::new(bytes);
    while let Some((number, wire)) = walk.next()? {
        match (number, wire) {
            (1, wire) => {
                let raw = wire.varint()? as u32;
                offset = (raw >> 1) as i32 ^ -((raw & 1) as i32);
            }
            (2, Wire::Varint(count)) => counts.push(Value::Int(count as i64)),
            (2, wire) => {
                let mut packed = Walk::new(wire.bytes()?);
                while !packed.rest.is_empty() {
                    counts.push(Value::Int(packed.varint()? as i64));
                }
            }
            _ => {}
        }
    }
    Ok(Value::Map(vec![("offset".into(), Value::Int(offset.into())), ("counts".into(), Value::Array(counts))]))
}

/// `ValueAtQuantile`: 1 quantile, 2 value.
fn quantile(bytes: &[u8]) -> Result<Value, Reason> {
    let (mut quantile, mut value) = (0.0, 0.0);
    let mut walk = Walk::new(bytes);
    while let Some((number, wire)) = walk.next()? {
        match number {
            1 => quantile = wire.double()?,
            2 => value = wire.double()?,
            _ => {}
        }
    }
    Ok(Value::Array(vec![Value::Double(quantile), Value::Double(value)]))
}

/// `Exemplar`: 2 time, 3 double, 4 span_id, 5 trace_id, 6 int, 7 filtered attributes.
fn exemplar(bytes: &[u8], intake: &mut Intake) -> Result<Value, Reason> {
    let mut pairs: Pairs = Vec::new();
    let mut attributes: Pairs = Vec::new();
    let mut walk = Walk::new(bytes);
    while let Some((number, wire)) = walk.next()? {
        match number {
            2 => set(&mut pairs, "time", Value::Int(wire.fixed64()? as i64)),
            3 => set(&mut pairs, "value", Value::Double(wire.double()?)),
            4 => exemplar_id("span_id", wire.bytes()?, 8, &mut pairs, intake),
            5 => exemplar_id("trace_id", wire.bytes()?, 16, &mut pairs, intake),
            6 => set(&mut pairs, "value", Value::Int(wire.fixed64()? as i64)),
            7 => push_pair(wire.bytes()?, &mut attributes, &mut 0, intake)?,
            _ => {}
        }
    }
    if !attributes.is_empty() {
        pairs.push(("attributes".into(), Value::Map(attributes)));
    }
    Ok(Value::Map(pairs))
}
