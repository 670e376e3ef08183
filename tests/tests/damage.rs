//! Damaged bytes are an error, never a panic, and never a silent wrong answer where a checksum can tell: blocks, journal records, rollups, JSON.
//!
//! Seeded mutations of real bytes; `MUTATIONS` sets how many (the default keeps the suite short).

use collector::decode::{self, Format};
use collector::validate::{Intake, Limits};
use firstfall_store::batch::{Batch, RECORD_VERSION};
use firstfall_store::rollup::{self, Rollups};
use firstfall_store::segment::{Directory, TraceTable};
use firstfall_store::{Signal, block};
use harness::corpus::{self, Random};
use harness::samples::mutate;
use harness::stored::{Ids, read_segment};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;

const NOW: u64 = 1_750_000_000_000_000_000;

fn rounds() -> u64 {
    std::env::var("MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(4_000)
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

#[test]
fn damaged_blocks_are_errors() {
    for signal in [Signal::Traces, Signal::Logs] {
        let batches = batches(signal);
        let encoded = block::encode(&batches.iter().collect::<Vec<_>>(), &mut Ids::default());
        for segment in &encoded.segments {
            assert!(read_segment(segment.clone()).expect("own bytes") > 0);
        }
        let mut random = Random::new(77);
        let mut refused = 0;
        for round in 0..rounds() {
            let segment = &encoded.segments[round as usize % encoded.segments.len()];
            refused += u64::from(read_segment(mutate(segment, &mut random)).is_err());
            let _ = Directory::parse(&mutate(&encoded.directory, &mut random));
            let _ = TraceTable::parse(&mutate(&encoded.traces, &mut random), encoded.rows).and_then(|t| t.of_row().map(<[u32]>::len));
        }
        // Span ids are kept as they are, without a checksum; nearly all else is noticed.
        assert!(refused * 10 > rounds() * 5, "{refused} of {} were noticed", rounds());
    }
}

#[test]
fn damaged_rollups_are_errors() {
    let mut rollups = Rollups::new(Signal::Traces, Default::default());
    for batch in &batches(Signal::Traces) {
        rollups.add(batch);
    }
    let bodies = rollups.encode(|_| 1);
    let mut random = Random::new(80);
    let mut refused = 0;
    for round in 0..rounds() {
        let (minute, _, body) = &bodies[round as usize % bodies.len()];
        let damaged = mutate(body, &mut random);
        refused += u64::from(rollup::merge_bodies(*minute, [&damaged[..], &body[..]], Some).is_err());
    }
    // A checksum stands at the end of each; what is left are changes that changed nothing.
    assert!(refused * 100 > rounds() * 95, "{refused} of {} were noticed", rounds());
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
                assert!(batch.values_of(row).count() < 10_000);
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
