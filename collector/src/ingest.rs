//! The way in. `Ingest::request` is the whole of it, top to bottom:
//!
//! hash → admit (came before? room?) → decode and validate into columns → journal → answer
//!
//! Sockets, limits on bytes and inflating are before it (`receive`), blocks and rollups behind it (the store).

use crate::decode::{self, Format};
use crate::validate::{Discards, Intake, Limits, Reason, Trim};
use firstfall_store::{Admission, Answer, Refusal, RequestHash, Retention, Signal, Store, TicketResult};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::oneshot;
use xxhash_rust::xxh3::Xxh3;

/// Why a request was not taken, by what the client can do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// It cannot be read and never will be.
    Unreadable(String),
    /// Too much is under way: come again in a second or two.
    Busy,
    /// The disk is full or failing: come again.
    Unwritable(String),
    /// The server is going down: come again, to its successor.
    Closing,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Refused {
        match refusal {
            Refusal::Busy => Refused::Busy,
            Refusal::Unwritable(reason) => Refused::Unwritable(reason),
            Refusal::Closing => Refused::Closing,
        }
    }
}

pub struct Ingest {
    store: Store,
    limits: RwLock<Limits>,
    pub counters: Counters,
}

impl Ingest {
    pub fn new(store: Store, limits: Limits) -> Ingest {
        Ingest { store, limits: RwLock::new(limits), counters: Counters::default() }
    }

    /// Takes an inflated request body. When it returns an answer, the items are durable and visible.
    pub async fn request(&self, signal: Signal, format: Format, body: &mut [u8]) -> Result<Answer, Refused> {
        let now = now();
        self.counters.last_received.store(now, Ordering::Relaxed);
        let (done, answered) = oneshot::channel::<TicketResult>();
        let (again, first) = oneshot::channel::<TicketResult>();
        let admission = self.store.admit(hash(signal, body), move |result| drop(again.send(result)))?;
        let place = match admission {
            Admission::New(place) => place,
            Admission::Again(answer) => {
                self.counters.repeated.fetch_add(1, Ordering::Relaxed);
                return Ok(answer);
            }
            Admission::Waiting => {
                self.counters.repeated.fetch_add(1, Ordering::Relaxed);
                return Ok(first.await.map_err(|_| Refused::Closing)??);
            }
        };
        let mut intake = Intake::new(signal, self.limits(), now, body.len());
        decode::request(format, signal, body, &mut intake).map_err(|error| Refused::Unreadable(error.0))?;
        let (batch, discards) = intake.finish();
        let answer = Answer { accepted: batch.rows() as u64, rejected: discards.rejected_total(), message: discards.sentence(signal) };
        if batch.is_empty() {
            // Nothing to keep; the same request would be answered the same way again.
            self.counters.count(signal, &answer, &discards);
            return Ok(answer);
        }
        place.submit(batch, now, answer, move |result| drop(done.send(result)));
        let answer = answered.await.map_err(|_| Refused::Closing)??;
        self.counters.count(signal, &answer, &discards);
        Ok(answer)
    }

    fn limits(&self) -> Limits {
        self.limits.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What comes from now on is held to these limits, and kept for so long.
    pub fn change(&self, limits: Limits, retention: Retention) {
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
        self.store.set_retention(retention);
    }

    pub fn reader(&self) -> firstfall_store::Reader {
        self.store.reader()
    }

    /// Makes all durable and at rest.
    pub fn close(self) {
        self.store.close();
    }

    /// Refuses what comes from now on. What was accepted is in the journal.
    pub fn finish(&self) {
        self.store.refuse_new();
    }
}

/// Of the signal and the body: the same bytes sent as logs are another request.
fn hash(signal: Signal, body: &[u8]) -> RequestHash {
    let mut hasher = Xxh3::with_seed(signal as u64);
    hasher.update(body);
    RequestHash(hasher.digest128().to_le_bytes())
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// What came in since start. Monotone.
#[derive(Default)]
pub struct Counters {
    received: [AtomicU64; 3],
    rejected: [[AtomicU64; Reason::ALL.len()]; 3],
    trimmed: [[AtomicU64; Trim::ALL.len()]; 3],
    refused: [AtomicU64; REFUSALS.len()],
    pub repeated: AtomicU64,
    pub requests: AtomicU64,
    /// Wall clock of the latest request, nanoseconds.
    pub last_received: AtomicU64,
}

/// Requests that were refused whole, by what was wrong.
pub const REFUSALS: [&str; 9] = [
    "unreadable",
    "too_large",
    "unsupported_encoding",
    "unsupported_content_type",
    "unauthenticated",
    "busy",
    "unwritable",
    "closing",
    "timeout",
];

impl Counters {
    fn count(&self, signal: Signal, answer: &Answer, discards: &Discards) {
        self.received[signal as usize].fetch_add(answer.accepted + answer.rejected, Ordering::Relaxed);
        for (total, count) in self.rejected[signal as usize].iter().zip(discards.rejected) {
            total.fetch_add(count, Ordering::Relaxed);
        }
        for (total, count) in self.trimmed[signal as usize].iter().zip(discards.trimmed) {
            total.fetch_add(count, Ordering::Relaxed);
        }
    }

    pub fn refuse(&self, why: &str) {
        if let Some(at) = REFUSALS.iter().position(|r| *r == why) {
            self.refused[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn received(&self, signal: Signal) -> u64 {
        self.received[signal as usize].load(Ordering::Relaxed)
    }

    /// Refused items by reason; all reasons, also those that never occurred.
    pub fn rejected(&self, signal: Signal) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.iter().map(move |reason| (*reason, self.rejected[signal as usize][*reason as usize].load(Ordering::Relaxed)))
    }

    /// Cut parts of items that were kept, by reason.
    pub fn trimmed(&self, signal: Signal) -> impl Iterator<Item = (Trim, u64)> {
        Trim::ALL.iter().map(move |trim| (*trim, self.trimmed[signal as usize][*trim as usize].load(Ordering::Relaxed)))
    }

    /// Refused requests by reason.
    pub fn refused(&self) -> impl Iterator<Item = (&'static str, u64)> {
        REFUSALS.iter().zip(&self.refused).map(|(why, count)| (*why, count.load(Ordering::Relaxed)))
    }
}
