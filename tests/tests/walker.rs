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

/// Bodies with a few places changed: `agree` panics at the first difference that is not listed.
#[test]
fn mutated_protobuf_is_read_alike() {
    let mut random = Random::new(5);
    let mut outcomes: HashMap<Outcome, u64> = HashMap::new();
    for round in 0..rounds() {
        let signal = Signal::ALL[round as usize % 3];
        let body = mutate(&Sample::draw(signal, &mut random).protobuf(), &mut random);
        *outcomes.entry(agree::protobuf(signal, &body)).or_default() += 1;
    }
    let share = |outcome| outcomes.get(&outcome).copied().unwrap_or(0) * 100 / rounds();
    assert!(share(Outcome::Alike) > 3 && share(Outcome::InPart) > 3 && share(Outcome::Refused) > 3, "{outcomes:?}");
    println!("{outcomes:?}");
}

#[test]
fn mutated_json_is_read_alike() {
    let mut random = Random::new(6);
    let mut outcomes: HashMap<Outcome, u64> = HashMap::new();
    for round in 0..rounds() {
        let signal = Signal::ALL[round as usize % 3];
        let body = mutate(&Sample::draw(signal, &mut random).json(), &mut random);
        *outcomes.entry(agree::json(signal, &body)).or_default() += 1;
    }
    let share = |outcome| outcomes.get(&outcome).copied().unwrap_or(0) * 100 / rounds();
    assert!(share(Outcome::Alike) > 3, "{outcomes:?}");
    println!("{outcomes:?}");
}
