//! The stages of the way in, each alone on one thread.

use crate::{now, row, thread_cpu};
use collector::decode::{self, Format};
use collector::detect::Observed;
use collector::validate::{Intake, Limits};
use firstfall_store::batch::Batch;
use firstfall_store::rollup::Rollups;
use firstfall_store::{Signal, block};
use harness::corpus::{self, Template};
use harness::stored::Ids;

fn ns(seconds: f64, items: usize) -> String {
    format!("{:.0} ns", seconds / items as f64 * 1e9)
}

fn decode(signal: Signal, body: &[u8]) -> Batch {
    let mut body = body.to_vec();
    let mut intake = Intake::new(signal, Limits::default(), now(), body.len());
    decode::request(Format::Protobuf, signal, &mut body, &mut intake).expect("valid");
    intake.finish().0
}

fn patched(templates: &[Template], salt: u64) -> Vec<Vec<u8>> {
    let patch = |(n, template): (usize, &Template)| {
        let mut body = Vec::new();
        template.patch(n as u64 + salt, now(), &mut body);
        body
    };
    templates.iter().enumerate().map(patch).collect()
}

pub fn spans(bodies: &[Vec<u8>], items: usize) {
    stages("span", Signal::Traces, bodies, items, &patched(&corpus::traces(2, 128, 512), 99));
}

pub fn logs() {
    let templates = corpus::logs(1, 192, 512);
    let items = templates.iter().map(|t| t.items).sum();
    stages("log", Signal::Logs, &patched(&templates, 1), items, &patched(&corpus::logs(2, 128, 512), 99));
}

/// What each stage of the way in costs by itself. `whole_block` are bodies with other ids, so that nothing repeats but what repeats in
/// life.
fn stages(item: &str, signal: Signal, bodies: &[Vec<u8>], items: usize, whole_block: &[Vec<u8>]) {
    const ROUNDS: usize = 10;
    let mut batches = Vec::new();
    let start = thread_cpu();
    for _ in 0..ROUNDS {
        batches = bodies.iter().map(|body| decode(signal, body)).collect::<Vec<_>>();
    }
    row(&format!("stage decode + validate + columns, per {item}"), ns(thread_cpu() - start, items * ROUNDS));
    let start = thread_cpu();
    for _ in 0..ROUNDS {
        for batch in &batches {
            std::hint::black_box(batch.to_bytes());
        }
    }
    let record: usize = batches.iter().map(|b| b.to_bytes().len()).sum();
    row(
        &format!("stage journal record, per {item}"),
        format!("{} {:.0} B", ns(thread_cpu() - start, items * ROUNDS), record as f64 / items as f64),
    );
    let start = thread_cpu();
    for _ in 0..ROUNDS {
        let mut rollups = Rollups::new(signal, Default::default());
        for batch in &batches {
            rollups.add(batch);
        }
        std::hint::black_box(&rollups);
    }
    row(&format!("stage rollups, per {item}"), ns(thread_cpu() - start, items * ROUNDS));
    let start = thread_cpu();
    for _ in 0..ROUNDS {
        let mut observed = Observed::default();
        for batch in &batches {
            observed.add(batch);
        }
        observed.settle(u64::MAX);
        std::hint::black_box(&observed.windows.left_out);
    }
    row(&format!("stage detection (facts, join, windows), per {item}"), ns(thread_cpu() - start, items * ROUNDS));
    let batches: Vec<Batch> = whole_block.iter().map(|body| decode(signal, body)).collect();
    let rows: usize = batches.iter().map(|b| b.rows()).sum();
    let start = thread_cpu();
    let mut size = 0;
    for _ in 0..ROUNDS {
        let encoded = block::encode(&batches.iter().collect::<Vec<_>>(), &mut Ids::default());
        size = encoded.segments.iter().map(Vec::len).sum::<usize>() + encoded.traces.len() + encoded.directory.len() + encoded.filter.len();
    }
    let spent = ns(thread_cpu() - start, rows * ROUNDS);
    row(&format!("stage block encode, per {item}"), format!("{spent} {:.1} B", size as f64 / rows as f64));
}
