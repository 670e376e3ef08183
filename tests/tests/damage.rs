//! Damaged bytes are an error, never a panic, and never a silent wrong answer where a checksum can tell: blocks, journal records, rollups, JSON.
//!
//! Seeded mutations of real bytes; `MUTATIONS` sets how many (the default keeps the suite short).

use collector::decode::{self, Format};
use collector::validate::{Intake, Limits};
use firstfall_store::batch::{Batch, RECORD_VERSION};
use firstfall_store::block::{self, Dictionary};
use firstfall_store::segment::{Directory, Segment, TraceTable};
use firstfall_store::{Service, Signal};
use harness::corpus::{self, Random};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;

const NOW: u64 = 1_750_000_000_000_000_000;

fn rounds() -> u64 {
    std::env::var("MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(4_000)
}

#[derive(Default)]
struct Ids(Vec<Vec<u8>>);

impl Ids {
    fn id(&mut self, key: &[u8]) -> u32 {
        let at = self.0.iter().position(|k| k == key).unwrap_or_else(|| {
            self.0.push(key.to_vec());
            self.0.len() - 1
        });
        at as u32 + 1
    }
}

impl Dictionary for Ids {
    fn service(&mut self, service: &Service) -> u32 {
        self.id(service.name.as_bytes())
    }
    fn resource(&mut self, body: &[u8]) -> u32 {
        self.id(body)
    }
    fn scope(&mut self, body: &[u8]) -> u32 {
        self.id(body)
    }
}

fn batches(signal: Signal) -> Vec<Batch> {
    let templates = if signal == Signal::Traces { corpus::traces(31, 4, 60) } else { corpus::logs(31, 4, 60) };
    templates
        .iter()
        .enumerate()
        .map(|(n, template)| {
            let mut body = Vec::new();
            template.patch(n as u64 + 1, NOW, &mut body);
            let mut intake = Intake::new(signal, Limits::default(), NOW * 2, body.len());
            decode::request(Format::Protobuf, signal, &mut body, &mut intake).expect("valid");
            intake.finish().0
        })
        .collect()
}

fn mutate(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len().max(1) as u64) as usize;
        match random.below(5) {
            0 => bytes[at] = random.draw() as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes.truncate(at + 1),
            3 => bytes.insert(at, random.draw() as u8),
            _ => {
                let end = (at + 8).min(bytes.len());
                bytes[at..end].fill(0xff);
            }
        }
    }
    bytes
}

/// Reads everything that a segment offers.
fn read_all(bytes: &[u8]) -> Result<usize, firstfall_store::Damaged> {
    let segment = Segment::parse(bytes.into())?;
    let mut values = segment.times()?.len() + segment.row_shapes()?.len() + segment.contexts()?.to_vec().len();
    for row in 0..segment.rows {
        segment.facts(row)?;
        segment.span(row)?;
        segment.parent(row)?;
    }
    for column in 0..segment.columns.len() {
        // One by one before they are read whole: where the whole column is sound, the two ways must see the same.
        let single: Vec<Option<String>> = (0..9).map(|at| segment.value(column, at).ok().map(|v| format!("{v:?}"))).collect();
        segment.values(column)?;
        let whole: Vec<Option<String>> = (0..9).map(|at| segment.value(column, at).ok().map(|v| format!("{v:?}"))).collect();
        assert_eq!(single, whole);
        values += segment.rows_of(column)?.len();
    }
    Ok(values)
}

#[test]
fn damaged_blocks_are_errors() {
    for signal in [Signal::Traces, Signal::Logs] {
        let batches = batches(signal);
        let encoded = block::encode(&batches.iter().collect::<Vec<_>>(), &mut Ids::default());
        for segment in &encoded.segments {
            assert!(read_all(segment).expect("own bytes") > 0);
        }
        let mut random = Random::new(77);
        let mut refused = 0;
        for round in 0..rounds() {
            let segment = &encoded.segments[round as usize % encoded.segments.len()];
            refused += u64::from(read_all(&mutate(segment, &mut random)).is_err());
            let _ = Directory::parse(&mutate(&encoded.directory, &mut random));
            let _ = TraceTable::parse(&mutate(&encoded.traces, &mut random), encoded.rows);
        }
        // Span ids are kept as they are, without a checksum; nearly all else is noticed.
        assert!(refused * 10 > rounds() * 5, "{refused} of {} were noticed", rounds());
    }
}

#[test]
fn damaged_journal_records_are_errors_or_sound() {
    let records: Vec<Vec<u8>> = [batches(Signal::Traces), batches(Signal::Logs)].concat().iter().map(Batch::to_bytes).collect();
    let mut random = Random::new(78);
    for round in 0..rounds() {
        let record = mutate(&records[round as usize % records.len()], &mut random);
        // What is read must be sound: every reference in it is followed.
        if let Ok(batch) = Batch::from_bytes(RECORD_VERSION, &record) {
            for row in 0..batch.rows() {
                assert!(batch.cells(row).count() < 10_000);
                let _ = (batch.trace_id(row), batch.service(batch.resource_of(row)));
            }
        }
    }
}

#[test]
fn damaged_json_is_refused_or_read_in_part() {
    let mut body = Vec::new();
    corpus::traces(33, 1, 5)[0].patch(1, NOW, &mut body);
    let json = serde_json::to_vec(&ExportTraceServiceRequest::decode(&body[..]).expect("valid")).expect("it has a JSON form");
    let mut random = Random::new(79);
    let mut read = 0;
    for _ in 0..rounds() {
        let mut mutated = mutate(&json, &mut random);
        let mut intake = Intake::new(Signal::Traces, Limits::default(), NOW * 2, mutated.len());
        read += u64::from(decode::request(Format::Json, Signal::Traces, &mut mutated, &mut intake).is_ok());
        let (batch, _) = intake.finish();
        // The builder is sound whatever came in between.
        assert_eq!(Batch::from_bytes(RECORD_VERSION, &batch.to_bytes()).expect("own record").rows(), batch.rows());
    }
    assert!(read > 0 && read < rounds());
}
