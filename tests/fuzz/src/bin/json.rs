//! Any bytes as a JSON request: read as opentelemetry-proto reads them, where it does.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Some((signal, body)) = firstfall_fuzz::signal(data) {
        harness::agree::json(signal, body);
    }
});
