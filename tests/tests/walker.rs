//! The walkers and opentelemetry-proto read the same bytes alike. What may differ is listed in `harness::agree`.

use firstfall_store::Signal;
use firstfall_store::batch::{Batch, RECORD_VERSION};
use harness::agree::{self, Outcome};
use harness::corpus::{self, Random};
use harness::samples::{Sample, mutate};
use std::collections::HashMap;

/// `MUTATIONS=5000000` for a long run; then with `--release`.
fn rounds() -> u64 {
    std::env::var("MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000)
}

#[test]
fn requests_with_every_field_are_read_alike_from_protobuf_and_from_json() {
    let mut random = Random::new(21);
    for _ in 0..rounds() / 10 {
        for signal in Signal::ALL {
            let sample = Sample::draw(signal, &mut random);
            let (protobuf, json) = (sample.protobuf(), sample.json());
            let outcome = agree::protobuf(signal, &protobuf);
            assert!(matches!(outcome, Outcome::Alike | Outcome::InPart), "{outcome:?}");
            let outcome = agree::json(signal, &json);
            assert!(matches!(outcome, Outcome::Alike | Outcome::InPart), "{outcome:?}: {}", String::from_utf8_lossy(&json));
        }
    }
}

#[test]
fn the_corpus_is_read_alike_and_so_is_its_journal_record() {
    for (signal, templates) in [(Signal::Traces, corpus::traces(21, 10, 40)), (Signal::Logs, corpus::logs(21, 10, 40))] {
        for (n, template) in templates.iter().enumerate() {
            let mut body = Vec::new();
            template.patch(n as u64, agree::NOW - 60_000_000_000, &mut body);
            assert_eq!(agree::protobuf(signal, &body), Outcome::Alike);
            let batch = agree::batch(signal, &body);
            let again = Batch::from_bytes(RECORD_VERSION, &batch.to_bytes()).expect("own record");
            assert_eq!(agree::read_batch(&again), agree::read_batch(&batch), "journal");
        }
    }
}

/// Reads bodies with a few places changed, of each signal in turn, and counts how that came out.
fn outcomes(seed: u64, body: fn(&Sample) -> Vec<u8>, read: fn(Signal, &[u8]) -> Outcome) -> HashMap<Outcome, u64> {
    let mut random = Random::new(seed);
    let mut outcomes = HashMap::new();
    for round in 0..rounds() {
        let signal = Signal::ALL[round as usize % 3];
        let mutated = mutate(&body(&Sample::draw(signal, &mut random)), &mut random);
        *outcomes.entry(read(signal, &mutated)).or_default() += 1;
    }
    println!("{outcomes:?}");
    outcomes
}

/// `agree` panics at the first difference that is not listed; here it only remains that each outcome is common enough to mean something.
#[test]
fn mutated_protobuf_is_read_alike() {
    let outcomes = outcomes(5, Sample::protobuf, agree::protobuf);
    for outcome in [Outcome::Alike, Outcome::InPart, Outcome::Refused] {
        assert!(outcomes.get(&outcome).is_some_and(|count| count * 100 / rounds() > 3), "{outcomes:?}");
    }
}

#[test]
fn mutated_json_is_read_alike() {
    let outcomes = outcomes(6, Sample::json, agree::json);
    assert!(outcomes.get(&Outcome::Alike).is_some_and(|count| count * 100 / rounds() > 3), "{outcomes:?}");
}
