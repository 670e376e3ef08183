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

/// The items of one scope, side by side.
pub(crate) struct Items {
    pub scope: InstrumentationScope,
    pub bytes: Vec<u8>,
    pub count: u64,
}

#[derive(Default)]
struct Place {
    /// Spans, log records.
    scopes: [Vec<Items>; 2],
}

pub(crate) struct Queue {
    // A line of the cache each, as two threads write to neighbours.
    places: Box<[Aligned]>,
    /// Bytes that wait here, and those that the export thread has taken and not got rid of yet.
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

    /// Encodes an item into the thread's place, unless the queue is full. Returns how many bytes wait for the thread now.
    pub fn push(&self, signal: Signal, scope: &InstrumentationScope, counts: &Counts, encode: impl FnOnce(&mut Vec<u8>)) -> usize {
        counts.accept(signal, 1);
        let waiting = self.bytes.load(Ordering::Relaxed);
        if waiting >= self.bytes_max {
            counts.lose(signal, Loss::QueueFull, 1);
            return 0;
        }
        let mut place = self.places[own_place()].0.lock().unwrap_or_else(PoisonError::into_inner);
        let scopes = &mut place.scopes[signal as usize];
        let at = match scopes.iter().position(|items| same(&items.scope, scope)) {
            Some(at) => at,
            None if scopes.len() >= SCOPES_MAX => SCOPES_MAX - 1,
            None => {
                scopes.push(Items { scope: scope.clone(), bytes: Vec::new(), count: 0 });
                scopes.len() - 1
            }
        };
        let items = &mut scopes[at];
        let before = items.bytes.len();
        encode(&mut items.bytes);
        items.count += 1;
        let added = items.bytes.len() - before;
        // While it cannot be taken yet, so that what is freed was counted before.
        self.bytes.fetch_add(added, Ordering::Relaxed);
        let fresh = self.fresh.fetch_add(added, Ordering::Relaxed).wrapping_add(added);
        drop(place);
        fresh
    }

    /// Takes out what waits of a signal, by scope.
    pub fn take(&self, signal: Signal) -> Vec<Items> {
        let mut all: Vec<Items> = Vec::new();
        self.fresh.store(0, Ordering::Relaxed);
        for place in &self.places {
            let mut place = place.0.lock().unwrap_or_else(PoisonError::into_inner);
            for items in place.scopes[signal as usize].iter_mut().filter(|items| items.count > 0) {
                // As much room again as was needed, so that it does not grow anew each time; nothing like a burst's, which would stay.
                let room = Vec::with_capacity(items.bytes.len().min(64 << 10));
                let bytes = std::mem::replace(&mut items.bytes, room);
                let count = std::mem::take(&mut items.count);
                match all.iter_mut().find(|all| same(&all.scope, &items.scope)) {
                    Some(all) => {
                        all.bytes.extend_from_slice(&bytes);
                        all.count += count;
                    }
                    None => all.push(Items { scope: items.scope.clone(), bytes, count }),
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
        let account = counts.of(Signal::Spans);
        assert_eq!((account.accepted, account.dropped_in_all()), (100, 90));
        let taken = queue.take(Signal::Spans);
        assert_eq!(taken.iter().map(|items| items.count).sum::<u64>(), 10);
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
        assert_eq!(taken.iter().map(|items| items.bytes.len()).sum::<usize>(), 4000);
        assert_eq!(queue.bytes.load(Ordering::Relaxed), 4000);
        assert!(taken.iter().all(|items| items.count == 1000), "each thread has its own scope here");
    }
}
