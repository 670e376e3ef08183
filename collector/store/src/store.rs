//! A store: one directory, one owner. This file is the way of a batch from acceptance to a block:
//!
//! ```text
//! admit(hash) → Place → submit(batch) → writer thread: journal, one COMMIT a group → live generation → answer
//!                                                       generation full → sealer thread: blocks + rollups → journal unlinked
//! ```
//!
//! What is answered is durable and visible to the next query. What is not answered has left no trace, or is whole. The live
//! generation and the partitions are seen through one lock, so a reader sees each row exactly once while it moves.

use crate::batch::Batch;
use crate::edge;
use crate::generation::Generation;
use crate::journal;
use crate::meta::Meta;
use crate::partition::{Partition, Pinned, lock};
use crate::recent::{Answer, Entry, Recent, RequestHash};
use crate::recovery::open_view;
use crate::rollup::{Cardinality, Rollups};
use crate::spare::Spares;
use crate::writer::{Place, Queue};
use crate::{Error, Refusal, Signal};
use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

/// What an acknowledgement promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// Survives a power cut: synced before the answer.
    Full,
    /// Survives the end of the process: written before the answer.
    Process,
    /// Survives nothing: lives in memory until its generation is sealed.
    Memory,
}

/// How long things are kept. May change while the store is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    /// Items are dropped, a partition at a time, when all of a partition arrived longer ago than this …
    pub age: Duration,
    /// … or all partitions together are larger than this.
    pub bytes: u64,
    /// Rollups are kept this long.
    pub rollups: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Retention { age: Duration::from_secs(7 * 86_400), bytes: 50_000_000_000, rollups: Duration::from_secs(400 * 86_400) }
    }
}

#[derive(Clone, Debug)]
pub struct Options {
    pub durability: Durability,
    /// A generation is sealed when one signal has this many rows, …
    pub generation_rows: usize,
    /// … or all of them this many bytes in memory, …
    pub generation_bytes: usize,
    /// … or it is this old.
    pub generation_age: Duration,
    /// Bytes of batches that may wait for the writer and the sealer. Past it new ones are refused as `Busy`.
    pub backlog_bytes_max: usize,
    /// New items are refused when the volume has less room than this, so that sealing can still free the journal.
    pub disk_reserve_bytes: u64,
    pub cardinality: Cardinality,
    pub retention: Retention,
    /// A new partition begins when the newest is larger than this, or a day has passed.
    pub partition_bytes: u64,
    /// How often small blocks are merged, rollups added up and retention applied.
    pub upkeep_pause: Duration,
    /// Who else wants to see what was accepted.
    pub tap: Tap,
}

/// Called by the writer thread with each batch that has become durable and visible; it must not wait.
pub type OnAccepted = Arc<dyn Fn(&Arc<Batch>) + Send + Sync>;

#[derive(Clone, Default)]
pub struct Tap(pub Option<OnAccepted>);

impl std::fmt::Debug for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Tap(set)" } else { "Tap(none)" })
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            durability: Durability::Full,
            generation_rows: crate::block::BLOCK_ROWS,
            generation_bytes: 48 << 20,
            generation_age: Duration::from_secs(60),
            backlog_bytes_max: 128 << 20,
            disk_reserve_bytes: 64 << 20,
            cardinality: Cardinality::default(),
            retention: Retention::default(),
            partition_bytes: 2 << 30,
            upkeep_pause: Duration::from_secs(5),
            tap: Tap::default(),
        }
    }
}

pub type TicketResult = Result<Answer, Refusal>;

/// What queries see: generations oldest first, partitions oldest first.
#[derive(Default)]
pub(crate) struct View {
    pub live: Vec<Arc<Generation>>,
    pub partitions: [Vec<Arc<Partition>>; 3],
    /// Rollups of partitions that retention has dropped.
    pub rollups: Option<Arc<Partition>>,
}

pub(crate) struct Shared {
    pub(crate) directory: PathBuf,
    pub(crate) meta: Meta,
    /// `None` for a guest beside a store that has none yet.
    pub(crate) edges: Option<Meta>,
    pub(crate) options: Options,
    pub(crate) view: RwLock<View>,
    pub(crate) spares: Spares,
    pub(crate) retention: Mutex<Retention>,
    /// Held while blocks are merged; not begun while somebody reads the past.
    pub(crate) merging: Mutex<()>,
    pub(crate) pasts: AtomicUsize,
    pub(crate) recent: Mutex<Recent>,
    pub(crate) queue: Mutex<Queue>,
    pub(crate) queued: Condvar,
    pub(crate) sealing: Mutex<VecDeque<Arc<Generation>>>,
    pub(crate) seal_wanted: Condvar,
    pub(crate) backlog_bytes: AtomicUsize,
    pub(crate) closing: AtomicBool,
    pub(crate) stored: [AtomicU64; 3],
    /// Rows since start that rollups counted under `(other)`.
    pub(crate) overflowed: AtomicU64,
    /// Why writes are refused at present; empty when they are not.
    pub(crate) trouble: Mutex<String>,
    /// Why the last write failed; empty when it worked. The next one is tried all the same, so that writing resumes by itself.
    pub(crate) last_failure: Mutex<String>,
    pub(crate) free_bytes: AtomicU64,
}

/// What the store says to a request before any work is done on it.
pub enum Admission {
    /// It is new: decode it and use the place.
    New(Place),
    /// It came before and is answered as it was then.
    Again(Answer),
    /// It is under way on another connection; the callback gets that one's result.
    Waiting,
}

/// What the store holds, for pages and metrics.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Storage {
    pub bytes: u64,
    pub partitions: usize,
    #[serde(skip)]
    pub by_signal: [u64; 3],
    #[serde(skip)]
    pub journal_bytes: u64,
    /// Journal files that were written over since start, rather than made anew.
    #[serde(skip)]
    pub journal_reused: u64,
    #[serde(skip)]
    pub free_bytes: u64,
}

pub struct Store {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    _lock: File,
}

/// Answers questions. Cheap to clone; lives as long as anyone needs it.
#[derive(Clone)]
pub struct Reader {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

impl Store {
    /// Opens or creates the store in `directory` and brings back what the journal holds.
    pub fn open(directory: &Path, options: Options) -> Result<Store, Error> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| Error::Io { doing: "create", path, error }
        };
        std::fs::create_dir_all(directory).map_err(failed(directory))?;
        let owner = own(directory)?;
        for signal in Signal::ALL {
            let path = directory.join(signal.name());
            std::fs::create_dir_all(&path).map_err(failed(&path))?;
        }
        let journal_directory = directory.join("journal");
        std::fs::create_dir_all(&journal_directory).map_err(failed(&journal_directory))?;
        let meta = Meta::open(&directory.join("meta.db"))?;
        let edges = Some(edge::open(&directory.join("edges.db"))?);
        // The names of what was just made are durable before anything is promised: a file without its name is gone after a power cut.
        journal::sync_directory(directory)?;
        if let Some(parent) = directory.canonicalize().ok().as_deref().and_then(Path::parent) {
            let _ = journal::sync_directory(parent); // it may not be ours to open
        }
        let view = open_view(directory, Pinned::No)?;
        let shared = Arc::new(Shared {
            directory: directory.to_owned(),
            meta,
            edges,
            options,
            view: RwLock::new(view),
            spares: Spares::of(&journal_directory),
            retention: Mutex::default(),
            merging: Mutex::default(),
            pasts: AtomicUsize::new(0),
            recent: Mutex::default(),
            queue: Mutex::default(),
            queued: Condvar::new(),
            sealing: Mutex::default(),
            seal_wanted: Condvar::new(),
            backlog_bytes: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            stored: Default::default(),
            overflowed: AtomicU64::new(0),
            trouble: Mutex::default(),
            last_failure: Mutex::default(),
            free_bytes: AtomicU64::new(u64::MAX),
        });
        *lock(&shared.retention) = shared.options.retention;
        shared.spares.clear()?;
        let next = shared.recover(true)?;
        shared.measure_disk();
        let mut store = Store { shared: shared.clone(), threads: Vec::new(), _lock: owner };
        for (name, run) in [
            ("store-writer", Box::new(move |shared: Arc<Shared>| shared.write(next)) as Box<dyn FnOnce(Arc<Shared>) + Send>),
            ("store-sealer", Box::new(|shared: Arc<Shared>| shared.seal())),
            ("store-upkeep", Box::new(|shared: Arc<Shared>| shared.upkeep())),
        ] {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || run(shared)).map_err(|error| Error::Io {
                doing: "start a thread for",
                path: directory.to_owned(),
                error,
            })?;
            store.threads.push(thread);
        }
        Ok(store)
    }

    pub fn reader(&self) -> Reader {
        Reader { shared: self.shared.clone() }
    }

    /// Asks for room for a request. `again` is called when another connection has the same request under way.
    pub fn admit(&self, hash: RequestHash, again: impl FnOnce(TicketResult) + Send + 'static) -> Result<Admission, Refusal> {
        if self.shared.closing.load(Ordering::Relaxed) {
            return Err(Refusal::Closing);
        }
        let mut recent = lock(&self.shared.recent);
        match recent.get_mut(&hash) {
            Some(Entry::Done(answer, accepted)) => {
                return Ok(Admission::Again(
                    answer.as_deref().cloned().unwrap_or(Answer { accepted: u64::from(*accepted), ..Answer::default() }),
                ));
            }
            Some(Entry::Pending(waiting)) => {
                waiting.push(Box::new(again));
                return Ok(Admission::Waiting);
            }
            None => {}
        }
        let trouble = lock(&self.shared.trouble).clone();
        if !trouble.is_empty() {
            return Err(Refusal::Unwritable(trouble));
        }
        if self.shared.backlog_bytes.load(Ordering::Relaxed) > self.shared.options.backlog_bytes_max {
            return Err(Refusal::Busy);
        }
        recent.begin(hash);
        Ok(Admission::New(Place::new(self.shared.clone(), hash)))
    }

    /// From now on things are kept for so long.
    pub fn set_retention(&self, retention: Retention) {
        *lock(&self.shared.retention) = retention;
    }

    /// Refuses what comes from now on.
    pub fn refuse_new(&self) {
        self.shared.closing.store(true, Ordering::Release);
    }

    /// Seals what is live, so that the directory is at rest: partitions only, no journal. Waits for it.
    pub fn close(mut self) {
        self.shutdown();
    }

    fn shutdown(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        lock(&self.shared.queue).closed = true;
        self.shared.queued.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a store thread panicked; what it had accepted is in the journal");
            }
        }
        for partition in self.shared.view.read().unwrap_or_else(PoisonError::into_inner).partitions.iter().flatten() {
            partition.checkpoint();
        }
        self.shared.clear_spares();
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.shutdown();
        }
    }
}

impl Reader {
    /// Opens a directory for reading only, beside a running server or without one. Sees what is sealed and what is in the journal
    /// at this moment, and nothing that comes later.
    pub fn open(directory: &Path) -> Result<Reader, Error> {
        if !directory.join("meta.db").exists() {
            return Err(Error::Io {
                doing: "find a store in",
                path: directory.to_owned(),
                error: std::io::Error::new(std::io::ErrorKind::NotFound, "it has no meta.db; name the server's directory with --data-dir"),
            });
        }
        // The journal first: what is sealed meanwhile is then found in both, and counted once by its generation's number.
        let journal_directory = directory.join("journal");
        let view = View::default();
        let shared = Arc::new(Shared {
            directory: directory.to_owned(),
            meta: Meta::open_to_read(&directory.join("meta.db"))?,
            edges: Some(directory.join("edges.db")).filter(|path| path.exists()).map(|path| Meta::open_to_read(&path)).transpose()?,
            options: Options::default(),
            view: RwLock::new(view),
            spares: Spares::of(&journal_directory),
            retention: Mutex::default(),
            merging: Mutex::default(),
            pasts: AtomicUsize::new(0),
            recent: Mutex::default(),
            queue: Mutex::default(),
            queued: Condvar::new(),
            sealing: Mutex::default(),
            seal_wanted: Condvar::new(),
            backlog_bytes: AtomicUsize::new(0),
            closing: AtomicBool::new(true),
            stored: Default::default(),
            overflowed: AtomicU64::new(0),
            trouble: Mutex::default(),
            last_failure: Mutex::default(),
            free_bytes: AtomicU64::new(u64::MAX),
        });
        let held = journal::hold(&journal_directory)?;
        let mut generations = Vec::new();
        for number in journal::list(&journal_directory)? {
            match shared.replay(&journal_directory, number, &|_| Ok(false)) {
                Ok(generation) => generations.push(generation),
                // It was sealed and removed between the listing and now; the partition has it.
                Err(_) if !journal::path_of(&journal_directory, number).exists() => {}
                Err(error) => return Err(error),
            }
        }
        drop(held);
        let view = open_view(directory, Pinned::Yes)?;
        for generation in &mut generations {
            let content = generation.content.get_mut().unwrap_or_else(PoisonError::into_inner);
            for signal in Signal::ALL {
                for partition in &view.partitions[signal as usize] {
                    if partition.opened_with(generation.number) {
                        content.batches[signal as usize].clear();
                        content.rollups[signal as usize] = Rollups::new(signal, Cardinality::default());
                    }
                }
            }
        }
        *shared.view.write().unwrap_or_else(PoisonError::into_inner) =
            View { live: generations.into_iter().map(Arc::new).collect(), ..view };
        Ok(Reader { shared })
    }

    pub fn storage(&self) -> Storage {
        let view = self.shared.view.read().unwrap_or_else(PoisonError::into_inner);
        let mut storage = Storage { free_bytes: self.shared.free_bytes.load(Ordering::Relaxed), ..Storage::default() };
        for signal in Signal::ALL {
            for partition in &view.partitions[signal as usize] {
                storage.by_signal[signal as usize] += partition.byte_len();
                storage.partitions += 1;
            }
        }
        drop(view);
        storage.journal_reused = self.shared.spares.reused();
        if let Ok(entries) = std::fs::read_dir(self.shared.directory.join("journal")) {
            storage.journal_bytes = entries.flatten().filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum();
        }
        storage.bytes = storage.by_signal.iter().sum::<u64>() + storage.journal_bytes;
        storage
    }

    /// Rows made durable since start, by signal.
    pub fn stored(&self, signal: Signal) -> u64 {
        self.shared.stored[signal as usize].load(Ordering::Relaxed)
    }

    /// Why writes are refused at present.
    pub fn trouble(&self) -> Option<String> {
        let reasons = [lock(&self.shared.trouble).clone(), lock(&self.shared.last_failure).clone()];
        reasons.into_iter().find(|reason| !reason.is_empty())
    }

    /// Rows since start that were counted under `(other)` because of the limits.
    pub fn overflowed(&self) -> u64 {
        self.shared.overflowed.load(Ordering::Relaxed)
    }
}

/// Takes the directory, or says who has it. The lock goes with the process, however it ends.
fn own(directory: &Path) -> Result<File, Error> {
    use std::io::{Read, Seek, Write};
    let path = directory.join("lock");
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(Error::io("open", &path))?;
    if file.try_lock().is_err() {
        let mut owner = String::new();
        let _ = file.read_to_string(&mut owner);
        let owner = if owner.trim().is_empty() { "another process".to_owned() } else { owner.trim().to_owned() };
        return Err(Error::InUse { directory: directory.to_owned(), owner });
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "process {}", std::process::id())
    };
    // A full disk must not keep us from reading what is there.
    let _ = write(&mut file);
    Ok(file)
}

impl Shared {
    pub(crate) fn view(&self) -> std::sync::RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn journal_directory(&self) -> PathBuf {
        self.directory.join("journal")
    }

    /// Looks at the room on the volume, and refuses or takes new items by it.
    pub(crate) fn measure_disk(&self) {
        let Ok(stat) = rustix::fs::statvfs(&self.directory) else {
            return;
        };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let total = stat.f_blocks.saturating_mul(stat.f_frsize);
        self.free_bytes.store(free, Ordering::Relaxed);
        // A small volume keeps a twentieth of itself.
        let reserve = self.options.disk_reserve_bytes.min(total / 20);
        let mut trouble = lock(&self.trouble);
        if free < reserve {
            *trouble = format!("the disk is nearly full: {free} bytes are free, {reserve} are kept in reserve");
            self.clear_spares();
        } else {
            trouble.clear();
        }
    }

    /// Gives the room of files that were kept to be written over back to the disk.
    pub(crate) fn clear_spares(&self) {
        if !self.spares.is_empty()
            && let Err(error) = self.spares.clear()
        {
            tracing::warn!(%error, "files that are no longer needed stay in the journal until the next start");
        }
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }
}
