//! The walkers and opentelemetry-proto read the same bytes alike.
//!
//! Intended differences, each tested below or in `receive`: an item that is broken inside is refused alone (prost refuses the request); a
//! kind outside of 0..=255 and a status code outside of 0..=2 become 0; a value or list that stands twice where one is allowed counts once, the
//! last (prost merges); groups are refused; what exceeds our limits is cut.

use collector::decode::{self, Format};
use collector::validate::{Intake, Limits};
use firstfall_store::Signal;
use firstfall_store::batch::{Batch, Cell, Field, marks};
use firstfall_store::value::{Pairs, Value};
use harness::corpus::{self, Random};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use prost::Message;

const NOW: u64 = 1_800_000_000_000_000_000;

fn ours(format: Format, body: &[u8]) -> Option<(Batch, u64)> {
    let mut intake = Intake::new(Signal::Traces, Limits::default(), NOW, body.len());
    let mut body = body.to_vec();
    decode::request(format, Signal::Traces, &mut body, &mut intake).ok()?;
    let (batch, discards) = intake.finish();
    Some((batch, discards.rejected_total()))
}

fn value(any: Option<&AnyValue>) -> Value {
    match any.and_then(|a| a.value.as_ref()) {
        None => Value::Empty,
        Some(any_value::Value::StringValue(text)) => Value::Str(text.clone()),
        Some(any_value::Value::BoolValue(v)) => Value::Bool(*v),
        Some(any_value::Value::IntValue(v)) => Value::Int(*v),
        Some(any_value::Value::DoubleValue(v)) => Value::Double(*v),
        Some(any_value::Value::BytesValue(v)) => Value::Bytes(v.clone()),
        Some(any_value::Value::ArrayValue(list)) => Value::Array(list.values.iter().map(|v| value(Some(v))).collect()),
        Some(any_value::Value::KvlistValue(list)) => Value::Map(pairs(&list.values)),
        Some(_) => Value::Empty,
    }
}

fn pairs(list: &[KeyValue]) -> Pairs {
    list.iter().map(|kv| (kv.key.clone(), value(kv.value.as_ref()))).collect()
}

/// What a span says, in a form that can be compared (doubles by their bits, since NaN is not NaN).
fn told(parts: impl std::fmt::Debug) -> String {
    format!("{parts:?}")
}

fn from_batch(batch: &Batch) -> Vec<String> {
    (0..batch.rows())
        .map(|row| {
            let lane = batch.lanes[batch.lane[row] as usize];
            let mut attributes: Pairs = Vec::new();
            for (column, cell) in batch.cells(row) {
                if column.field == Field::Attribute {
                    let value = match cell {
                        Cell::Str(text) => Value::Str(text.to_owned()),
                        Cell::Int(v) => Value::Int(v),
                        Cell::Double(v) => Value::Double(v),
                        Cell::Bool(v) => Value::Bool(v),
                        Cell::Bytes(v) => Value::Bytes(v.to_vec()),
                        Cell::Nested(v) => Value::decode(&mut firstfall_store::pack::Reader::new(v), 0).expect("own encoding"),
                        Cell::Empty => Value::Empty,
                    };
                    attributes.push((batch.strings.str(column.key).to_owned(), value));
                }
            }
            told((
                batch.trace_id(row).map(|id| id.0),
                batch.span[row],
                batch.parent[row],
                batch.strings.str(lane.name),
                lane.kind,
                batch.time[row],
                batch.end(row),
                batch.marks[row] & marks::STATUS,
                attributes,
            ))
        })
        .collect()
}

/// What prost reads, less the spans that our rules refuse.
fn from_prost(body: &[u8]) -> Option<Vec<String>> {
    let request = ExportTraceServiceRequest::decode(body).ok()?;
    let id = |bytes: &[u8]| <[u8; 8]>::try_from(bytes).map_or(0, u64::from_be_bytes);
    let dated = |t: u64| (946_684_800_000_000_000..=NOW + 86_400_000_000_000).contains(&t);
    let spans = request.resource_spans.iter().flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans);
    Some(
        spans
            .filter(|s| {
                s.trace_id.len() == 16
                    && s.trace_id.iter().any(|b| *b != 0)
                    && s.span_id.len() == 8
                    && id(&s.span_id) != 0
                    && dated(s.start_time_unix_nano)
                    && (s.end_time_unix_nano == 0 || dated(s.end_time_unix_nano))
            })
            .map(|s| {
                let code = s.status.as_ref().map_or(0, |st| st.code);
                told((
                    Some(<[u8; 16]>::try_from(&s.trace_id[..]).expect("sixteen")),
                    id(&s.span_id),
                    id(&s.parent_span_id),
                    s.name.as_str(),
                    u8::try_from(s.kind).unwrap_or(0),
                    s.start_time_unix_nano,
                    s.end_time_unix_nano,
                    if (0..=2).contains(&code) { code as u8 } else { 0 },
                    pairs(&s.attributes),
                ))
            })
            .collect(),
    )
}

#[test]
fn valid_bodies_are_read_alike_from_protobuf_and_from_json() {
    for (n, template) in corpus::traces(21, 30, 40).iter().enumerate() {
        let mut body = Vec::new();
        template.patch(n as u64, 1_750_000_000_000_000_000, &mut body);
        let (batch, rejected) = ours(Format::Protobuf, &body).expect("valid");
        assert_eq!(rejected, 0);
        let expected = from_prost(&body).expect("valid");
        assert_eq!(from_batch(&batch), expected);
        let request = ExportTraceServiceRequest::decode(&body[..]).expect("valid");
        let json = serde_json::to_vec(&request).expect("it has a JSON form");
        assert_eq!(from_batch(&ours(Format::Json, &json).expect("valid").0), expected, "JSON");
        // A record of the journal is read as it was written.
        let again = Batch::from_bytes(firstfall_store::batch::RECORD_VERSION, &batch.to_bytes()).expect("own record");
        assert_eq!(from_batch(&again), expected, "journal");
    }
}

/// Bodies with a few bytes changed. Where prost reads one, so do we, and the same; where we read one that prost refuses, a part was refused.
#[test]
fn mutated_bodies_are_read_alike_or_refused_in_part() {
    let bodies: Vec<Vec<u8>> = corpus::traces(22, 6, 3)
        .iter()
        .map(|t| {
            let mut body = Vec::new();
            t.patch(1, 1_750_000_000_000_000_000, &mut body);
            body
        })
        .collect();
    let mut random = Random::new(5);
    let (mut both, mut only_ours, mut neither, mut differing) = (0u64, 0u64, 0u64, 0u64);
    for round in 0..30_000usize {
        let mut body = bodies[round % bodies.len()].clone();
        for _ in 0..1 + random.below(3) {
            let at = random.below(body.len() as u64) as usize;
            match random.below(4) {
                0 => body[at] = random.draw() as u8,
                1 => body[at] ^= 1 << random.below(8),
                2 => {
                    body.remove(at);
                }
                _ => body.insert(at, random.draw() as u8),
            }
        }
        match (ours(Format::Protobuf, &body), from_prost(&body)) {
            (Some((batch, rejected)), Some(expected)) => {
                both += 1;
                let got = from_batch(&batch);
                // The listed differences make a few spans differ or be refused; their neighbours must be the same.
                if got != expected {
                    differing += 1;
                    let missing = expected.iter().filter(|e| !got.contains(e)).count() as u64;
                    assert!(missing <= rejected + 1, "{missing} spans are missing or differ, {rejected} were refused");
                }
            }
            (Some((_, _)), None) => only_ours += 1,
            (None, None) => neither += 1,
            (None, Some(_)) => panic!("prost reads a body that we refuse whole: {body:02x?}"),
        }
    }
    assert!(both > 1000 && neither > 1000 && only_ours > 100, "both {both}, only ours {only_ours}, neither {neither}");
    assert!(differing * 20 < both, "{differing} of {both} differ");
}
