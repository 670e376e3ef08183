//! Any bytes as a protobuf request: read as opentelemetry-proto reads them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Some((signal, body)) = firstfall_fuzz::signal(data) {
        harness::agree::protobuf(signal, body);
    }
});
