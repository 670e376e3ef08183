//! The open spans by their id. `tracing`'s registry would keep what belongs to a span too, in a map of boxes behind a lock behind two look-ups: here it is
//! one look-up, and what a closed span leaves is used again.

use super::state::State;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tracing::Metadata;
use tracing::span::Id;

/// Locks; as many that threads rarely meet at one.
const SHARDS: u64 = 64;
/// What a thread keeps of closed spans for its next ones.
const POOL: usize = 32;

// Boxed, so that a state moves between pool and table as a pointer.
type Pool = Vec<Box<State>>;

thread_local! {
    static SHARD: Cell<u64> = const { Cell::new(u64::MAX) };
    static POOLED: RefCell<Pool> = const { RefCell::new(Vec::new()) };
}

/// A state that says nothing yet.
pub(super) fn fresh(code: &'static Metadata<'static>) -> Box<State> {
    let pooled = POOLED.try_with(|pool| pool.borrow_mut().pop()).ok().flatten();
    pooled.map_or_else(
        || Box::new(State::new(code)),
        |mut state| {
            state.code = code;
            state
        },
    )
}

pub(super) fn give_back(mut state: Box<State>) {
    // It may hold values of the service's, which go outside of every borrow.
    state.clear();
    let _ = POOLED.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        if pool.len() < POOL {
            pool.push(state);
        }
    });
}

/// Ids of the registry are places in its memory: their lower bits differ, and a multiplication spreads them over the others; those of the table's own differ in
/// all but the lowest.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("an id is a number");
    }
    fn write_u64(&mut self, id: u64) {
        self.0 = spread(id);
    }
}

fn spread(id: u64) -> u64 {
    let product = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ product >> 32
}

/// A line of the cache each, as two threads may use neighbours.
#[repr(align(128))]
#[derive(Default)]
struct Shard(Mutex<HashMap<u64, Box<State>, BuildHasherDefault<Spread>>>);

pub(super) struct Table {
    shards: Box<[Shard]>,
    /// Ids are given by [`Table::id`].
    own_ids: bool,
}

impl Table {
    /// For ids that are its own, or the registry's.
    pub fn new(own_ids: bool) -> Table {
        Table { shards: (0..SHARDS).map(|_| Shard::default()).collect(), own_ids }
    }

    /// An id for a span that begins on this thread. It says in which shard it is: a thread has one of its own, as long as there are no more threads than
    /// shards, and finds there what it has just used.
    pub fn id(span: u64) -> Id {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let own = SHARD.try_with(|own| {
            if own.get() == u64::MAX {
                own.set(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
            }
            own.get()
        });
        // Not zero: it is made of 58 random bits, and with none of them a shard's number would not do.
        Id::from_u64((span.max(SHARDS) & !(SHARDS - 1)) | own.unwrap_or(0))
    }

    fn shard(&self, id: u64) -> MutexGuard<'_, HashMap<u64, Box<State>, BuildHasherDefault<Spread>>> {
        let number = if self.own_ids { id } else { spread(id) >> 20 };
        self.shards[(number % SHARDS) as usize].0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn insert(&self, id: &Id, state: Box<State>) {
        let before = self.shard(id.into_u64()).insert(id.into_u64(), state);
        // An id that was never closed: the registry gives no such one again.
        drop(before);
    }

    /// Nothing of the service's own may run in `f`, as it holds the lock.
    pub fn with<R>(&self, id: &Id, f: impl FnOnce(&mut State) -> R) -> Option<R> {
        self.shard(id.into_u64()).get_mut(&id.into_u64()).map(|state| f(state))
    }

    /// Gives up a handle; the last one takes the span out.
    pub fn release(&self, id: &Id) -> Option<Box<State>> {
        let mut shard = self.shard(id.into_u64());
        let state = shard.get_mut(&id.into_u64())?;
        state.handles = state.handles.saturating_sub(1);
        if state.handles > 0 { None } else { shard.remove(&id.into_u64()) }
    }

    pub fn remove(&self, id: &Id) -> Option<Box<State>> {
        self.shard(id.into_u64()).remove(&id.into_u64())
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").finish_non_exhaustive()
    }
}
