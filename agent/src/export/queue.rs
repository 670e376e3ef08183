//! Where items wait, encoded, for the export thread: one bound in bytes for all of them, and a place for each thread, so that threads do not
//! wait for each other.

use super::Signal;
use super::counts::{Counts, Loss};
use opentelemetry::InstrumentationScope;
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// More places than the cores of most machines; threads share them evenly.
const PLACES: usize = 16;
/// Scopes that have a buffer of their own in each place. Libraries are tens; what comes after is under the last one's name.
const SCOPES_MAX: usize = 64;
/// How large a chunk is. Below 128 KiB allocators keep what is given back.
const CHUNK: usize = 64 << 10;
/// Items are encoded into so much memory, again and again the same, which stays in the processor's cache, and then copied away at once. Encoded where they
/// will wait, they cost half as much again in a service that does something in between: each line of memory was last another processor's.
const STAGE: usize = 4 << 10;
/// With less room than this the next item, which is rarely larger, finds an empty stage.
const ROOM: usize = 1 << 10;
/// Bytes that a place takes from the bound at a time: what all places count together is touched once for some thirty items, not for each.
const GRANT: usize = 8 << 10;

/// The items of one scope, side by side, in chunks of whole ones: what comes never moves what is there.
pub(crate) struct Items {
    pub scope: InstrumentationScope,
    pub chunks: Vec<Chunk>,
}

#[derive(Default)]
pub(crate) struct Chunk {
    pub bytes: Vec<u8>,
    pub count: u64,
}

#[cfg(test)]
impl Items {
    fn bytes(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.bytes.len()).sum()
    }

    fn count(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.count).sum()
    }
}

/// What one thread, or those that share its place, has of a scope.
struct Waiting {
    items: Items,
    /// The last ones.
    stage: Chunk,
}

impl Waiting {
    fn new(scope: &InstrumentationScope) -> Waiting {
        Waiting { items: Items { scope: scope.clone(), chunks: Vec::new() }, stage: Chunk::default() }
    }

    /// Returns its length.
    fn put(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> usize {
        let before = self.stage.bytes.len();
        encode(&mut self.stage.bytes);
        let added = self.stage.bytes.len() - before;
        self.stage.count += 1;
        if self.stage.bytes.len() + ROOM > STAGE {
            self.clear_stage();
        }
        added
    }

    fn clear_stage(&mut self) {
        let (chunks, length) = (&mut self.items.chunks, self.stage.bytes.len());
        if length > STAGE {
            // Larger than usual, and so are perhaps not the next ones.
            return chunks.push(std::mem::take(&mut self.stage));
        }
        if chunks.last().is_none_or(|last| last.bytes.len() + length > last.bytes.capacity()) {
            // The first one may be all that ever comes at a time.
            let room = if chunks.is_empty() { length } else { CHUNK };
            chunks.push(Chunk { bytes: Vec::with_capacity(room), count: 0 });
        }
        let last = chunks.last_mut().expect("there is one now");
        last.bytes.extend_from_slice(&self.stage.bytes);
        last.count += std::mem::take(&mut self.stage.count);
        self.stage.bytes.clear();
    }

    /// What there is, unless there is nothing.
    fn take(&mut self) -> Option<Items> {
        self.clear_stage();
        let bytes: usize = self.items.chunks.iter().map(|chunk| chunk.bytes.len()).sum();
        if bytes == 0 {
            return None;
        }
        // As much room again as was needed, so that it does not grow anew each time; nothing like a burst's, which would stay.
        let room = Chunk { bytes: Vec::with_capacity(bytes.min(CHUNK)), count: 0 };
        Some(Items { scope: self.items.scope.clone(), chunks: std::mem::replace(&mut self.items.chunks, vec![room]) })
    }
}

#[derive(Default)]
struct Place {
    /// Spans, log records.
    scopes: [Vec<Waiting>; 2],
    /// How many of them came here since the start.
    accepted: [u64; 2],
    /// Bytes that are counted as waiting already, and not used yet.
    granted: usize,
}

pub(crate) struct Queue {
    // A line of the cache each, as two threads write to neighbours.
    places: Box<[Aligned]>,
    /// Bytes that wait here, and those that the export thread has taken and not got rid of yet; with what is granted, which is 128 KiB at most.
    pub bytes: AtomicUsize,
    /// Those that the thread has not taken yet.
    fresh: AtomicUsize,
    pub bytes_max: usize,
}

#[repr(align(128))]
#[derive(Default)]
struct Aligned(Mutex<Place>);

thread_local! {
    static PLACE: Cell<usize> = const { Cell::new(usize::MAX) };
}

fn own_place() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    PLACE
        .try_with(|place| {
            if place.get() == usize::MAX {
                place.set(NEXT.fetch_add(1, Ordering::Relaxed) % PLACES);
            }
            place.get()
        })
        .unwrap_or(0) // a thread that ends
}

impl Queue {
    pub fn new(bytes_max: usize) -> Queue {
        Queue {
            places: (0..PLACES).map(|_| Aligned::default()).collect(),
            bytes: AtomicUsize::new(0),
            fresh: AtomicUsize::new(0),
            bytes_max,
        }
    }

    /// Encodes an item into the thread's place, unless the queue is full. Returns how many bytes wait for the thread now, where that was looked at.
    pub fn push(&self, signal: Signal, scope: &InstrumentationScope, counts: &Counts, encode: impl FnOnce(&mut Vec<u8>)) -> usize {
        let full = self.bytes.load(Ordering::Relaxed) >= self.bytes_max;
        let mut place = self.places[own_place()].0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = &mut *place;
        place.accepted[signal as usize] += 1;
        if full {
            counts.lose(signal, Loss::QueueFull, 1);
            return 0;
        }
        let scopes = &mut place.scopes[signal as usize];
        let at = match scopes.iter().position(|waiting| same(&waiting.items.scope, scope)) {
            Some(at) => at,
            None if scopes.len() >= SCOPES_MAX => SCOPES_MAX - 1,
            None => {
                scopes.push(Waiting::new(scope));
                scopes.len() - 1
            }
        };
        let added = scopes[at].put(encode);
        if added <= place.granted {
            place.granted -= added;
            return 0;
        }
        // While it cannot be taken yet, so that what is freed was counted before.
        let more = (added - place.granted).max(GRANT.min(self.bytes_max / 64));
        place.granted = place.granted + more - added;
        self.bytes.fetch_add(more, Ordering::Relaxed);
        self.fresh.fetch_add(more, Ordering::Relaxed).wrapping_add(more)
    }

    /// How many items of a signal were offered since the start.
    pub fn accepted(&self, signal: Signal) -> u64 {
        let of = |place: &Aligned| place.0.lock().unwrap_or_else(PoisonError::into_inner).accepted.get(signal as usize).copied();
        self.places.iter().filter_map(of).sum()
    }

    /// Takes out what waits of a signal, by scope.
    pub fn take(&self, signal: Signal) -> Vec<Items> {
        let mut all: Vec<Items> = Vec::new();
        self.fresh.store(0, Ordering::Relaxed);
        for place in &self.places {
            let mut place = place.0.lock().unwrap_or_else(PoisonError::into_inner);
            self.bytes.fetch_sub(std::mem::take(&mut place.granted), Ordering::Relaxed);
            for items in place.scopes[signal as usize].iter_mut().filter_map(Waiting::take) {
                match all.iter_mut().find(|all| same(&all.scope, &items.scope)) {
                    Some(all) => all.chunks.extend(items.chunks),
                    None => all.push(items),
                }
            }
        }
        all
    }

    /// Counts bytes that came to those that wait: heads of requests.
    pub fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn free(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// By name and version; scopes that differ in attributes only are rare, and compared in full.
fn same(a: &InstrumentationScope, b: &InstrumentationScope) -> bool {
    std::ptr::eq(a.name(), b.name()) && a.version() == b.version() && a.attributes().count() == 0 && b.attributes().count() == 0 || a == b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_drops_and_counts_and_never_grows_past_its_bound() {
        let (queue, counts) = (Queue::new(1000), Counts::default());
        let scope = InstrumentationScope::builder("s").build();
        for _ in 0..100 {
            queue.push(Signal::Spans, &scope, &counts, |out| out.extend_from_slice(&[0; 100]));
        }
        assert_eq!((queue.accepted(Signal::Spans), counts.of(Signal::Spans).dropped_in_all()), (100, 90));
        let taken = queue.take(Signal::Spans);
        assert_eq!(taken.iter().map(Items::count).sum::<u64>(), 10);
        queue.free(1000);
        assert_eq!(queue.bytes.load(Ordering::Relaxed), 0);
        queue.push(Signal::Spans, &scope, &counts, |out| out.push(1));
        assert_eq!(counts.of(Signal::Spans).dropped_in_all(), 90, "there is room again");
    }

    #[test]
    fn threads_lose_nothing() {
        let (queue, counts) = (Queue::new(usize::MAX), Counts::default());
        std::thread::scope(|threads| {
            for name in ["a", "b", "c", "d"] {
                let (queue, counts) = (&queue, &counts);
                threads.spawn(move || {
                    let scope = InstrumentationScope::builder(name).build();
                    (0..1000).for_each(|_| {
                        queue.push(Signal::Logs, &scope, counts, |out| out.push(7));
                    });
                });
            }
        });
        let taken = queue.take(Signal::Logs);
        assert_eq!(taken.iter().map(Items::bytes).sum::<usize>(), 4000);
        assert_eq!(queue.bytes.load(Ordering::Relaxed), 4000);
        assert!(taken.iter().all(|items| items.count() == 1000), "each thread has its own scope here");
    }
}
