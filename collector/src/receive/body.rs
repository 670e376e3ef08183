//! Reads and inflates a request body within limits: of one request, and of all that are under way together.
//!
//! Memory is reserved before it is used, as the bytes come and as they inflate, so a thousand small senders and one decompression
//! bomb meet the same wall. Nothing beyond the limit of a request is ever inflated.

use axum::body::Body;
use http_body_util::BodyExt;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub struct Receiving {
    /// Largest body, before and after inflating.
    pub request_bytes_max: usize,
    /// A body that takes longer than this to arrive is given up.
    pub body_time_max: Duration,
}

/// Bytes of all requests under way.
#[derive(Clone)]
pub struct InFlight {
    used: Arc<AtomicUsize>,
    max: usize,
}

impl InFlight {
    pub fn new(max: usize) -> InFlight {
        InFlight { used: Arc::default(), max }
    }

    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub fn reserve(&self) -> Reservation {
        Reservation { of: self.clone(), bytes: 0 }
    }
}

/// A part of the budget, given back when dropped.
pub struct Reservation {
    of: InFlight,
    bytes: usize,
}

impl Reservation {
    fn grow_to(&mut self, bytes: usize) -> Result<(), Problem> {
        let more = bytes.saturating_sub(self.bytes);
        if more == 0 {
            return Ok(());
        }
        let before = self.of.used.fetch_add(more, Ordering::Relaxed);
        if before + more > self.of.max {
            self.of.used.fetch_sub(more, Ordering::Relaxed);
            return Err(Problem::Busy);
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Reservation {
    fn give_back(&mut self) {
        self.of.used.fetch_sub(std::mem::take(&mut self.bytes), Ordering::Relaxed);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Why a body could not be had.
#[derive(Debug, PartialEq, Eq)]
pub enum Problem {
    /// Larger than a request may be, as sent or inflated: the largest allowed.
    TooLarge(usize),
    /// More is under way than may be.
    Busy,
    /// It did not come in time.
    Slow,
    /// The client went away or broke the transfer.
    Cut(String),
    /// It is not what its encoding says.
    Broken(String),
    /// The encoding is not one of ours.
    Unsupported(String),
}

/// How a body is compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encoding {
    Identity,
    Gzip,
    Deflate,
    Zstd,
}

impl Encoding {
    pub const ALL: &'static str = "identity, gzip, deflate, zstd";

    pub fn parse(name: &str) -> Result<Encoding, Problem> {
        match name.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Ok(Encoding::Identity),
            "gzip" | "x-gzip" => Ok(Encoding::Gzip),
            "deflate" => Ok(Encoding::Deflate),
            "zstd" => Ok(Encoding::Zstd),
            other => Err(Problem::Unsupported(other.chars().take(40).collect())),
        }
    }
}

/// Reads a body whole. `hint` is its length where the client says it.
pub async fn read(body: Body, hint: Option<usize>, receiving: &Receiving, reservation: &mut Reservation) -> Result<Vec<u8>, Problem> {
    let max = receiving.request_bytes_max;
    let mut body = body;
    let read = async {
        if hint.is_some_and(|hint| hint > max) {
            drain(&mut body, max).await;
            return Err(Problem::TooLarge(max));
        }
        // A length is a promise, not yet bytes: no more than a megabyte is set aside for it at once.
        let mut whole = Vec::with_capacity(hint.unwrap_or(0).min(1 << 20));
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Problem::Cut(error.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            if whole.len() + data.len() > max {
                drop(whole);
                drain(&mut body, max).await;
                return Err(Problem::TooLarge(max));
            }
            if let Err(busy) = reservation.grow_to(whole.len() + data.len()) {
                // What it holds is given back first: others are waiting for room.
                drop(whole);
                reservation.give_back();
                drain(&mut body, max).await;
                return Err(busy);
            }
            whole.extend_from_slice(&data);
        }
        Ok(whole)
    };
    tokio::time::timeout(receiving.body_time_max, read).await.unwrap_or(Err(Problem::Slow))
}

/// Takes in and forgets what is left of a body that is refused. A client that is cut off while it sends sees a broken connection instead
/// of the answer, and sends it all again. Four times the limit is as far as that courtesy goes.
async fn drain(body: &mut Body, max: usize) {
    let mut left = max.saturating_mul(4);
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, bytes::Bytes::len);
        if length > left {
            return;
        }
        left -= length;
    }
}

/// How much is inflated before the budget is asked again.
const STEP: usize = 256 << 10;

/// Undoes a compression, up to the limit of a request.
pub fn inflate(encoding: Encoding, body: Vec<u8>, receiving: &Receiving, reservation: &mut Reservation) -> Result<Vec<u8>, Problem> {
    let max = receiving.request_bytes_max;
    let broken = |error: std::io::Error| Problem::Broken(error.to_string());
    match encoding {
        Encoding::Identity => Ok(body),
        Encoding::Gzip => match gzip_at_once(&body, max, reservation)? {
            Some(inflated) => Ok(inflated),
            None => stream(flate2::read::MultiGzDecoder::new(&body[..]), body.len(), max, reservation),
        },
        Encoding::Deflate => {
            // HTTP's deflate is zlib's format; some clients send the bare stream.
            if body.first().is_some_and(|b| b & 0x0f == 8) && body.len() > 1 && (u16::from(body[0]) << 8 | u16::from(body[1])) % 31 == 0 {
                stream(flate2::read::ZlibDecoder::new(&body[..]), body.len(), max, reservation)
            } else {
                stream(flate2::read::DeflateDecoder::new(&body[..]), body.len(), max, reservation)
            }
        }
        Encoding::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(&body[..]).map_err(broken)?;
            // 8 MiB is the window that RFC 9659 lets a sender use over HTTP.
            decoder.window_log_max(23).map_err(broken)?;
            stream(decoder, body.len(), max, reservation)
        }
    }
}

/// The fast way for the usual gzip body: one member, whose trailer says the size. `None` where that does not hold.
fn gzip_at_once(body: &[u8], max: usize, reservation: &mut Reservation) -> Result<Option<Vec<u8>>, Problem> {
    let Some(trailer) = body.last_chunk::<4>() else { return Err(Problem::Broken("the gzip body ends early".to_owned())) };
    if !body.starts_with(&[0x1f, 0x8b]) {
        return Err(Problem::Broken("the body is not gzip".to_owned()));
    }
    let size = u32::from_le_bytes(*trailer) as usize;
    if size > max {
        // It says so itself. (A trailer that lies is refused by the limit below.)
        return Err(Problem::TooLarge(max));
    }
    // Deflate makes at most 1,032 bytes of one; a trailer that says more is not to be trusted with memory.
    if size == 0 || size / 1032 > body.len() {
        return Ok(None);
    }
    // A second member would be passed over in silence. Where its magic number stands, by chance or not, the slow way looks.
    if memchr::memmem::find(&body[2..], &[0x1f, 0x8b, 0x08]).is_some() {
        return Ok(None);
    }
    reservation.grow_to(body.len() + size)?;
    let mut inflated = vec![0; size];
    match libdeflater::Decompressor::new().gzip_decompress(body, &mut inflated) {
        Ok(length) if length == size => Ok(Some(inflated)),
        _ => Ok(None),
    }
}

fn stream(mut decoder: impl Read, compressed: usize, max: usize, reservation: &mut Reservation) -> Result<Vec<u8>, Problem> {
    let mut inflated = Vec::new();
    loop {
        let before = inflated.len();
        reservation.grow_to(compressed + before + STEP)?;
        let read = (&mut decoder).take(STEP as u64).read_to_end(&mut inflated).map_err(|error| Problem::Broken(error.to_string()))?;
        if inflated.len() > max {
            return Err(Problem::TooLarge(max));
        }
        if read < STEP {
            return Ok(inflated);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const RECEIVING: Receiving = Receiving { request_bytes_max: 1 << 20, body_time_max: Duration::from_secs(1) };

    fn compressed(encoding: Encoding, plain: &[u8]) -> Vec<u8> {
        let level = flate2::Compression::default();
        match encoding {
            Encoding::Identity => plain.to_vec(),
            Encoding::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
                encoder.write_all(plain).expect("into memory");
                encoder.finish().expect("into memory")
            }
            Encoding::Deflate => {
                let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
                encoder.write_all(plain).expect("into memory");
                encoder.finish().expect("into memory")
            }
            Encoding::Zstd => zstd::encode_all(plain, 3).expect("into memory"),
        }
    }

    fn check(encoding: Encoding, body: Vec<u8>) -> Result<Vec<u8>, Problem> {
        inflate(encoding, body, &RECEIVING, &mut InFlight::new(16 << 20).reserve())
    }

    #[test]
    fn every_encoding_gives_back_what_was_compressed() {
        let plain: Vec<u8> = (0..600_000u32).flat_map(|n| (n / 7).to_le_bytes()).take(900_000).collect();
        for encoding in [Encoding::Identity, Encoding::Gzip, Encoding::Deflate, Encoding::Zstd] {
            assert!(check(encoding, compressed(encoding, &plain)) == Ok(plain.clone()), "{encoding:?}");
        }
        let mut two_members = compressed(Encoding::Gzip, b"first, ");
        two_members.extend(compressed(Encoding::Gzip, b"second"));
        assert_eq!(check(Encoding::Gzip, two_members), Ok(b"first, second".to_vec()));
        // The last member's size is that of the first.
        let mut equal_members = compressed(Encoding::Gzip, b"one");
        equal_members.extend(compressed(Encoding::Gzip, b"two"));
        assert_eq!(check(Encoding::Gzip, equal_members), Ok(b"onetwo".to_vec()));
    }

    #[test]
    fn a_bomb_is_refused_at_the_limit() {
        let zeros = vec![0; 20 << 20];
        for encoding in [Encoding::Gzip, Encoding::Deflate, Encoding::Zstd] {
            assert_eq!(check(encoding, compressed(encoding, &zeros)), Err(Problem::TooLarge(1 << 20)), "{encoding:?}");
        }
    }

    #[test]
    fn a_broken_body_is_told_from_a_large_one() {
        for encoding in [Encoding::Gzip, Encoding::Deflate, Encoding::Zstd] {
            let mut body = compressed(encoding, &[7; 5000]);
            body.truncate(body.len() / 2);
            assert!(matches!(check(encoding, body), Err(Problem::Broken(_) | Problem::TooLarge(_))), "{encoding:?}");
        }
    }

    #[test]
    fn the_budget_is_shared_and_given_back() {
        let budget = InFlight::new(1000);
        let mut first = budget.reserve();
        first.grow_to(800).expect("there is room");
        let mut second = budget.reserve();
        assert_eq!(second.grow_to(300), Err(Problem::Busy));
        drop(first);
        second.grow_to(300).expect("there is room again");
        drop(second);
        assert_eq!(budget.used(), 0);
    }
}
