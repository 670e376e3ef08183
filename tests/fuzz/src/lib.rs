//! What the targets share: how a fuzzer's bytes become the bytes of a decoder.
//!
//! Blocks are compressed, with checksums: a fuzzer that changes the file itself never gets past them. So it writes what is inside, and
//! the frame is put around it here.

use firstfall_store::Signal;

/// The first byte chooses the signal.
pub fn signal(data: &[u8]) -> Option<(Signal, &[u8])> {
    let (first, rest) = data.split_first()?;
    Some((Signal::ALL[*first as usize % 3], rest))
}

/// A part of a block in its compressed form: the first byte chooses which.
#[derive(Debug)]
pub enum Part {
    Segment(Vec<u8>),
    Directory(Vec<u8>),
    Traces(Vec<u8>),
    Rollup(Vec<u8>),
}

fn compressed(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 1).expect("zstd compresses into memory")
}

/// `kind(1)`; for a segment `header_len(u16) header body`, else the plain bytes.
pub fn part(data: &[u8]) -> Option<Part> {
    let (kind, rest) = data.split_first()?;
    Some(match kind % 4 {
        0 => {
            let (length, rest) = rest.split_first_chunk::<2>()?;
            let (header, body) = rest.split_at_checked(u16::from_le_bytes(*length).into())?;
            let header = compressed(header);
            Part::Segment([&(header.len() as u32).to_le_bytes()[..], &header, body].concat())
        }
        1 => Part::Directory(compressed(rest)),
        2 => {
            // Ids as they are, then the column of the rows.
            let (count, rest) = rest.split_first()?;
            let (ids, column) = rest.split_at_checked(usize::from(count % 16) * 16)?;
            Part::Traces([&[count % 16], ids, &[column.len().min(127) as u8], &compressed(&column[..column.len().min(127)])].concat())
        }
        _ => Part::Rollup(compressed(rest)),
    })
}
