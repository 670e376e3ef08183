//! Any bytes as a JSON request: never a panic; and what opentelemetry-proto makes of them is read alike once it has written it.
#![no_main]

use collector::decode::Format;
use harness::agree;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Some((signal, body)) = firstfall_fuzz::signal(data) {
        agree::ours(Format::Json, signal, body);
        if let Some(canonical) = agree::canonical(signal, body) {
            agree::json(signal, &canonical);
        }
    }
});
