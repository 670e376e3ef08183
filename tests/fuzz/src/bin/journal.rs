//! Any bytes as a journal record: refused, or a batch so sound that it can be written again and made a block of.
#![no_main]

use firstfall_store::batch::{Batch, RECORD_VERSION};
use firstfall_store::block;
use harness::stored::Ids;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(batch) = Batch::from_bytes(RECORD_VERSION, data) {
        let again = Batch::from_bytes(RECORD_VERSION, &batch.to_bytes()).expect("a sound batch is written soundly");
        assert_eq!(again.rows(), batch.rows());
        let encoded = block::encode(&[&batch], &mut Ids::default());
        assert_eq!(encoded.rows, batch.rows());
    }
});
