//! `seeds DIR`: real inputs for each target, from which fuzzing begins.

use firstfall_store::batch::Batch;
use firstfall_store::{Signal, block};
use harness::agree;
use harness::corpus::Random;
use harness::samples::Sample;
use harness::stored::Ids;
use std::path::{Path, PathBuf};

fn write(directory: &Path, target: &str, number: usize, bytes: &[u8]) {
    let directory = directory.join(target);
    std::fs::create_dir_all(&directory).expect("writable");
    std::fs::write(directory.join(format!("seed-{number}")), bytes).expect("writable");
}

/// The inside of a frame.
fn inflated(frame: &[u8]) -> Vec<u8> {
    zstd::bulk::decompress(frame, 1 << 20).expect("our own frame")
}

fn main() {
    let directory: PathBuf = std::env::args_os().nth(1).expect("a directory").into();
    let mut random = Random::new(1);
    for number in 0..60 {
        let code = number % 3;
        let signal = Signal::ALL[code];
        let sample = Sample::draw(signal, &mut random);
        let body = sample.protobuf();
        write(&directory, "protobuf", number, &[&[code as u8], &body[..]].concat());
        write(&directory, "json", number, &[&[code as u8], &sample.json()[..]].concat());
        let batch: Batch = agree::batch(signal, &body);
        write(&directory, "journal", number, &batch.to_bytes());
        // Blocks this small keep their chunks in the header, so that the fuzzer reaches all of them.
        let encoded = block::encode(&[&batch], &mut Ids::default());
        if let Some(segment) = encoded.segments.first() {
            let length = u32::from_le_bytes(*segment.first_chunk().expect("a length")) as usize;
            let header = inflated(&segment[4..4 + length]);
            let bytes = [&[0][..], &(header.len() as u16).to_le_bytes(), &header, &segment[4 + length..]].concat();
            write(&directory, "block", 4 * number, &bytes);
        }
        write(&directory, "block", 4 * number + 1, &[&[1], &inflated(&encoded.directory)[..]].concat());
        write(&directory, "block", 4 * number + 2, &[2, 0, 1, 0, 0, 2, 4]);
        let mut rollups = firstfall_store::rollup::Rollups::new(signal, Default::default());
        rollups.add(&batch);
        if let Some((_, _, rollup)) = rollups.encode(|_| 1).first() {
            write(&directory, "block", 4 * number + 3, &[&[3], &inflated(rollup)[..]].concat());
        }
    }
}
