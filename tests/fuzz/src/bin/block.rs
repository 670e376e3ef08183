//! Any bytes as the parts of a block and as a rollup: an error, or an answer; never a panic, and never much memory.
#![no_main]

use firstfall_fuzz::Part;
use firstfall_store::segment::{Directory, TraceTable};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    match firstfall_fuzz::part(data) {
        None => {}
        Some(Part::Segment(bytes)) => drop(harness::stored::read_segment(bytes)),
        Some(Part::Directory(bytes)) => drop(Directory::parse(&bytes)),
        Some(Part::Traces(bytes)) => drop(TraceTable::parse(&bytes, 64).and_then(|table| table.of_row().map(<[u32]>::len))),
        Some(Part::Rollup(bytes)) => drop(firstfall_store::rollup::decode_cells(0, &bytes, |_| true, |_, _, _, _, _| {})),
    }
});
