//! A store: one directory, one owner. This file is the way of a batch from acceptance to a block:
//!
//! ```text
//! admit(hash) → Place → submit(batch) → writer thread: journal, one COMMIT a group → live generation → answer
//!                                                       generation full → sealer thread: blocks + rollups → journal unlinked
//! ```
//!
//! What is answered is durable and visible to the next query. What is not answered has left no trace, or is whole. The live
//! generation and the partitions are seen through one lock, so a reader sees each row exactly once while it moves.

use crate::batch::{Batch, RECORD_VERSION};
use crate::journal::{self, Journal, Record};
use crate::meta::Meta;
use crate::partition::{BlockInfo, Partition, Pinned, Sealed, lock};
use crate::recent::{Answer, Entry, Recent, RequestHash, decode_requests, encode_requests};
use crate::rollup::{Cardinality, Rollups};
use crate::{Error, NANOS_PER_SECOND, Refusal, Signal};
use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

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
    /// Items are dropped, a partition at a time, when all of a partition arrived longer ago than this …
    pub retention_age: Duration,
    /// … or all partitions together are larger than this.
    pub retention_bytes: u64,
    /// Rollups are kept this long.
    pub retention_rollups: Duration,
    /// A new partition begins when the newest is larger than this, or a day has passed.
    pub partition_bytes: u64,
    /// How often small blocks are merged, rollups added up and retention applied.
    pub upkeep_pause: Duration,
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
            retention_age: Duration::from_secs(7 * 86_400),
            retention_bytes: 50_000_000_000,
            retention_rollups: Duration::from_secs(400 * 86_400),
            partition_bytes: 2 << 30,
            upkeep_pause: Duration::from_secs(5),
        }
    }
}

pub type TicketResult = Result<Answer, Refusal>;

/// A generation that is not sealed yet: its batches are durable in the journal and visible to queries from here.
pub(crate) struct Generation {
    pub number: u64,
    pub opened: Instant,
    pub content: RwLock<GenerationContent>,
    /// What of it is in partitions already. It is shown once all of it is: a try that fails in between is taken up where it ended.
    sealed: Mutex<Vec<SealedPart>>,
}

type SealedPart = (Signal, Arc<Partition>, Vec<Arc<BlockInfo>>);

pub(crate) struct GenerationContent {
    /// By signal.
    pub batches: [Vec<Arc<Batch>>; 3],
    pub rollups: [Rollups; 3],
    pub rows: [usize; 3],
    pub bytes: usize,
    pub requests: [Vec<(RequestHash, u64, Answer)>; 3],
}

impl Generation {
    fn new(number: u64, cardinality: Cardinality) -> Generation {
        Generation {
            number,
            opened: Instant::now(),
            sealed: Mutex::default(),
            content: RwLock::new(GenerationContent {
                batches: Default::default(),
                rollups: Signal::ALL.map(|signal| Rollups::new(signal, cardinality)),
                rows: [0; 3],
                bytes: 0,
                requests: Default::default(),
            }),
        }
    }

    /// Returns how many rows were counted under `(other)`.
    fn add(&self, batch: Arc<Batch>, hash: RequestHash, received: u64, answer: Answer) -> u64 {
        let mut content = self.content.write().unwrap_or_else(PoisonError::into_inner);
        let signal = batch.signal as usize;
        let overflowed = content.rollups[signal].add(&batch);
        content.rows[signal] += batch.rows();
        content.bytes += batch.byte_len();
        content.requests[signal].push((hash, received, answer));
        content.batches[signal].push(batch);
        overflowed
    }

    pub fn batches(&self, signal: Signal) -> Vec<Arc<Batch>> {
        self.content.read().unwrap_or_else(PoisonError::into_inner).batches[signal as usize].clone()
    }
}

/// What queries see: generations oldest first, partitions oldest first.
#[derive(Default)]
pub(crate) struct View {
    pub live: Vec<Arc<Generation>>,
    pub partitions: [Vec<Arc<Partition>>; 3],
    /// Rollups of partitions that retention has dropped.
    pub rollups: Option<Arc<Partition>>,
}

pub(crate) struct Shared {
    pub directory: PathBuf,
    pub options: Options,
    pub view: RwLock<View>,
    recent: Mutex<Recent>,
    queue: Mutex<Queue>,
    queued: Condvar,
    sealing: Mutex<VecDeque<Arc<Generation>>>,
    seal_wanted: Condvar,
    backlog_bytes: AtomicUsize,
    closing: AtomicBool,
    pub stored: [AtomicU64; 3],
    /// Rows since start that rollups counted under `(other)`.
    overflowed: AtomicU64,
    /// Why writes are refused at present; empty when they are not.
    trouble: Mutex<String>,
    /// Why the last write failed; empty when it worked. The next one is tried all the same, so that writing resumes by itself.
    last_failure: Mutex<String>,
    free_bytes: AtomicU64,
}

#[derive(Default)]
struct Queue {
    jobs: Vec<Job>,
    seal_now: bool,
    closed: bool,
}

struct Job {
    batch: Arc<Batch>,
    record: Vec<u8>,
    hash: RequestHash,
    received: u64,
    answer: Answer,
    done: Box<dyn FnOnce(TicketResult) + Send>,
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

/// The right to submit one batch. Dropping it unused forgets the request.
pub struct Place {
    shared: Arc<Shared>,
    hash: RequestHash,
    used: bool,
}

impl Place {
    /// Makes a batch durable and visible, then calls `done`, on another thread.
    pub fn submit(mut self, batch: Batch, received: u64, answer: Answer, done: impl FnOnce(TicketResult) + Send + 'static) {
        self.used = true;
        let record = if self.shared.options.durability == Durability::Memory { Vec::new() } else { batch.to_bytes() };
        let bytes = batch.byte_len();
        self.shared.backlog_bytes.fetch_add(bytes, Ordering::Relaxed);
        let job = Job { batch: Arc::new(batch), record, hash: self.hash, received, answer, done: Box::new(done) };
        let mut queue = lock(&self.shared.queue);
        if queue.closed {
            drop(queue);
            self.shared.refuse(vec![job], &Refusal::Closing);
            return;
        }
        queue.jobs.push(job);
        drop(queue);
        self.shared.queued.notify_one();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.used {
            for waiting in lock(&self.shared.recent).failed(&self.hash) {
                waiting(Err(Refusal::Busy));
            }
        }
    }
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
    #[serde(skip)]
    pub free_bytes: u64,
}

pub struct Store {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    _meta: Meta,
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
        // The names of what was just made are durable before anything is promised: a file without its name is gone after a power cut.
        journal::sync_directory(directory)?;
        if let Some(parent) = directory.canonicalize().ok().as_deref().and_then(Path::parent) {
            let _ = journal::sync_directory(parent); // it may not be ours to open
        }
        let view = open_view(directory, Pinned::No)?;
        let shared = Arc::new(Shared {
            directory: directory.to_owned(),
            options,
            view: RwLock::new(view),
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
        let next = shared.recover(true)?;
        shared.measure_disk();
        let mut store = Store { shared: shared.clone(), threads: Vec::new(), _meta: meta, _lock: owner };
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
        Ok(Admission::New(Place { shared: self.shared.clone(), hash, used: false }))
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
        let view = View::default();
        let shared = Arc::new(Shared {
            directory: directory.to_owned(),
            options: Options::default(),
            view: RwLock::new(view),
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
        let journal_directory = directory.join("journal");
        let mut generations = Vec::new();
        for number in journal::list(&journal_directory)? {
            match shared.replay(&journal_directory, number, &|_| Ok(false)) {
                Ok(generation) => generations.push(generation),
                // It was sealed and removed between the listing and now; the partition has it.
                Err(_) if !journal::path_of(&journal_directory, number).exists() => {}
                Err(error) => return Err(error),
            }
        }
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

fn open_view(directory: &Path, pinned: Pinned) -> Result<View, Error> {
    let mut view = View::default();
    for signal in Signal::ALL {
        let path = directory.join(signal.name());
        let mut names: Vec<PathBuf> = match std::fs::read_dir(&path) {
            Ok(entries) => entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "db")).collect(),
            Err(_) => Vec::new(),
        };
        names.sort();
        for name in names {
            match Partition::open(&name, signal, pinned) {
                Ok(partition) => view.partitions[signal as usize].push(Arc::new(partition)),
                Err(error @ Error::Newer { .. }) => return Err(error),
                // Not a guest's to judge: the server may be making the file at this moment.
                Err(error) if pinned == Pinned::Yes => tracing::warn!(path = %name.display(), %error, "a partition is left out"),
                Err(error) => {
                    let aside = name.with_extension("db.damaged");
                    tracing::error!(path = %name.display(), aside = %aside.display(), %error, "a damaged partition is set aside; the rest keeps working");
                    let _ = std::fs::rename(&name, &aside);
                }
            }
        }
    }
    let rollups = directory.join("rollups.db");
    if rollups.exists() {
        let rollups = Arc::new(Partition::open(&rollups, Signal::Traces, pinned)?);
        // A partition whose rollups are in there was being dropped when the process ended: it would be counted twice.
        let mut kept = Vec::new();
        for partition in view.partitions[Signal::Traces as usize].drain(..) {
            if !rollups.has_generation(partition.created)? {
                kept.push(partition);
            } else if pinned == Pinned::No {
                partition.doom();
            }
        }
        view.partitions[Signal::Traces as usize] = kept;
        view.rollups = Some(rollups);
    }
    Ok(view)
}

impl Shared {
    fn view(&self) -> std::sync::RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn journal_directory(&self) -> PathBuf {
        self.directory.join("journal")
    }

    /// Brings back unsealed generations and recent requests. Returns the number of the next generation.
    fn recover(&self, seal: bool) -> Result<u64, Error> {
        let mut last = 0;
        let since = now().saturating_sub(crate::recent::REMEMBERED);
        {
            let view = self.view();
            let mut recent = lock(&self.recent);
            for partition in view.partitions.iter().flatten() {
                last = last.max(partition.last_generation()?);
                for requests in partition.requests_since(since)? {
                    for (hash, received, answer) in decode_requests(&requests).map_err(Error::damaged(&partition.path))? {
                        recent.done(hash, received, &answer);
                    }
                }
            }
        }
        let directory = self.journal_directory();
        for number in journal::list(&directory)? {
            last = last.max(number);
            let is_sealed = |signal: Signal| -> Result<bool, Error> {
                for partition in &self.view().partitions[signal as usize] {
                    if partition.has_generation(number)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            };
            let generation = match self.replay(&directory, number, &is_sealed) {
                Ok(generation) => Arc::new(generation),
                Err(error @ Error::Damaged { .. }) => {
                    let (from, to) = (journal::path_of(&directory, number), directory.join(format!("{number:08}.damaged")));
                    tracing::error!(%error, aside = %to.display(), "a damaged journal file is set aside; what it held is not shown");
                    std::fs::rename(&from, &to).map_err(Error::io("set aside", &from))?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let content = generation.content.read().unwrap_or_else(PoisonError::into_inner);
            let mut recent = lock(&self.recent);
            for (hash, received, answer) in content.requests.iter().flatten() {
                if *received >= since {
                    recent.done(*hash, *received, answer);
                }
            }
            let empty = content.rows.iter().sum::<usize>() == 0;
            drop(content);
            if empty {
                journal::remove(&directory, number);
            } else if seal {
                self.view.write().unwrap_or_else(PoisonError::into_inner).live.push(generation.clone());
                lock(&self.sealing).push_back(generation);
            }
        }
        Ok(last + 1)
    }

    fn replay(&self, directory: &Path, number: u64, is_sealed: &dyn Fn(Signal) -> Result<bool, Error>) -> Result<Generation, Error> {
        let generation = Generation::new(number, self.options.cardinality);
        let sealed = [is_sealed(Signal::Traces)?, is_sealed(Signal::Logs)?, is_sealed(Signal::Metrics)?];
        journal::read(directory, number, |record| {
            if record.version > RECORD_VERSION {
                let path = journal::path_of(directory, number);
                return Err(Error::Newer { path, found: record.version, known: RECORD_VERSION });
            }
            let batch = Batch::from_bytes(record.version, &record.body).map_err(Error::damaged(&journal::path_of(directory, number)))?;
            if !sealed[batch.signal as usize] {
                generation.add(Arc::new(batch), record.hash, record.received, record.answer);
            }
            Ok(())
        })?;
        Ok(generation)
    }

    fn refuse(&self, jobs: Vec<Job>, refusal: &Refusal) {
        for job in jobs {
            self.backlog_bytes.fetch_sub(job.batch.byte_len(), Ordering::Relaxed);
            let waiting = lock(&self.recent).failed(&job.hash);
            (job.done)(Err(refusal.clone()));
            for other in waiting {
                other(Err(refusal.clone()));
            }
        }
    }

    /// The writer thread: one journal commit for all jobs that came while the one before ran.
    fn write(&self, mut next: u64) {
        // How often it looks whether a quiet generation has become old.
        const TICK: Duration = Duration::from_millis(250);
        let directory = self.journal_directory();
        let mut open: Option<(Journal, Arc<Generation>)> = None;
        loop {
            let (jobs, closed, seal_now) = {
                let mut queue = lock(&self.queue);
                if queue.jobs.is_empty() && !queue.closed {
                    queue = self.queued.wait_timeout(queue, TICK).unwrap_or_else(PoisonError::into_inner).0;
                }
                (std::mem::take(&mut queue.jobs), queue.closed, std::mem::take(&mut queue.seal_now))
            };
            if !jobs.is_empty() {
                if open.is_none() && self.options.durability != Durability::Memory {
                    match Journal::create(&directory, next, self.options.durability) {
                        Ok(journal) => open = Some((journal, self.open_generation(next))),
                        Err(error) => {
                            journal::remove(&directory, next);
                            self.write_failed(jobs, &error);
                            next += 1;
                            continue;
                        }
                    }
                    next += 1;
                } else if open.is_none() {
                    match Journal::create(&directory, next, Durability::Memory) {
                        Ok(journal) => open = Some((journal, self.open_generation(next))),
                        Err(error) => {
                            self.write_failed(jobs, &error);
                            continue;
                        }
                    }
                    next += 1;
                }
                let (journal, generation) = open.as_mut().expect("it was opened above");
                let records: Vec<Record<'_>> = jobs
                    .iter()
                    .map(|job| Record {
                        signal: job.batch.signal,
                        hash: job.hash,
                        received: job.received,
                        answer: &job.answer,
                        body: &job.record,
                    })
                    .collect();
                let result = if self.options.durability == Durability::Memory { Ok(()) } else { journal.append(&records) };
                drop(records);
                match result {
                    Ok(()) => self.accept(generation, jobs),
                    Err(error) => {
                        self.write_failed(jobs, &error);
                        // After a failed sync the kernel may have dropped the pages: what comes next goes to a new file.
                        if !error.is_full() {
                            self.send_to_sealer(open.take());
                        }
                    }
                }
            }
            if let Some((journal, generation)) = &open {
                let content = generation.content.read().unwrap_or_else(PoisonError::into_inner);
                let rows = content.rows.iter().copied().max().unwrap_or(0);
                let full = rows >= self.options.generation_rows
                    || content.bytes >= self.options.generation_bytes
                    || journal.bytes >= self.options.generation_bytes as u64
                    || ((generation.opened.elapsed() >= self.options.generation_age || seal_now || closed) && rows > 0);
                drop(content);
                if full || closed {
                    self.send_to_sealer(open.take());
                }
            }
            if closed {
                let late = std::mem::take(&mut lock(&self.queue).jobs);
                self.refuse(late, &Refusal::Closing);
                self.closing.store(true, Ordering::Release);
                self.seal_wanted.notify_all();
                lock(&self.sealing).push_back(Arc::new(Generation::new(0, self.options.cardinality)));
                self.seal_wanted.notify_all();
                return;
            }
        }
    }

    fn open_generation(&self, number: u64) -> Arc<Generation> {
        let generation = Arc::new(Generation::new(number, self.options.cardinality));
        self.view.write().unwrap_or_else(PoisonError::into_inner).live.push(generation.clone());
        generation
    }

    fn accept(&self, generation: &Generation, jobs: Vec<Job>) {
        lock(&self.last_failure).clear();
        for job in jobs {
            self.stored[job.batch.signal as usize].fetch_add(job.batch.rows() as u64, Ordering::Relaxed);
            let overflowed = generation.add(job.batch, job.hash, job.received, job.answer.clone());
            self.overflowed.fetch_add(overflowed, Ordering::Relaxed);
            let waiting = lock(&self.recent).done(job.hash, job.received, &job.answer);
            for other in waiting {
                other(Ok(job.answer.clone()));
            }
            (job.done)(Ok(job.answer));
        }
    }

    fn write_failed(&self, jobs: Vec<Job>, error: &Error) {
        tracing::warn!(%error, requests = jobs.len(), "cannot write to the journal; the requests are refused and may come again");
        let reason = if error.is_full() { format!("the disk is full ({error})") } else { error.to_string() };
        lock(&self.last_failure).clone_from(&reason);
        self.refuse(jobs, &Refusal::Unwritable(reason));
    }

    fn send_to_sealer(&self, open: Option<(Journal, Arc<Generation>)>) {
        if let Some((_journal, generation)) = open {
            lock(&self.sealing).push_back(generation);
            self.seal_wanted.notify_all();
        }
    }

    /// The sealer thread: turns whole generations into blocks, oldest first. A generation stays live until that has worked.
    fn seal(&self) {
        const RETRY: Duration = Duration::from_secs(1);
        loop {
            let generation = {
                let mut sealing = lock(&self.sealing);
                loop {
                    if let Some(generation) = sealing.front() {
                        break generation.clone();
                    }
                    sealing = self.seal_wanted.wait_timeout(sealing, RETRY).unwrap_or_else(PoisonError::into_inner).0;
                }
            };
            if generation.number == 0 {
                return;
            }
            match self.seal_generation(&generation) {
                Ok(()) => {
                    lock(&self.sealing).pop_front();
                }
                Err(error) => {
                    tracing::warn!(%error, generation = generation.number, "cannot seal; it stays in the journal and is tried again");
                    if self.closing.load(Ordering::Acquire) {
                        return; // the journal keeps it for the next start
                    }
                    std::thread::sleep(RETRY);
                }
            }
        }
    }

    fn seal_generation(&self, generation: &Arc<Generation>) -> Result<(), Error> {
        let mut done = lock(&generation.sealed);
        {
            let content = generation.content.read().unwrap_or_else(PoisonError::into_inner);
            for signal in Signal::ALL {
                let batches = &content.batches[signal as usize];
                if content.requests[signal as usize].is_empty() && batches.is_empty() {
                    continue;
                }
                if done.iter().any(|(sealed, ..)| *sealed == signal) {
                    continue; // an earlier try got this far
                }
                let partition = self.partition_for(signal)?;
                if partition.has_generation(generation.number)? {
                    // Its commit said that it failed, and had not.
                    let blocks = partition.unlisted_blocks()?;
                    done.push((signal, partition, blocks));
                    continue;
                }
                let sealed = Sealed {
                    generation: generation.number,
                    now: now(),
                    batches,
                    rollups: &content.rollups[signal as usize],
                    requests: &encode_requests(&content.requests[signal as usize]),
                };
                let blocks = partition.seal(&sealed)?;
                done.push((signal, partition, blocks));
            }
        }
        let bytes: usize = {
            let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
            for (_, partition, blocks) in done.drain(..) {
                partition.publish(blocks);
            }
            view.live.retain(|live| live.number != generation.number);
            let content = generation.content.read().unwrap_or_else(PoisonError::into_inner);
            content.batches.iter().flatten().map(|batch| batch.byte_len()).sum()
        };
        // Batches that came back from the journal were never counted.
        let _ = self.backlog_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| Some(now.saturating_sub(bytes)));
        journal::remove(&self.journal_directory(), generation.number);
        self.measure_disk();
        Ok(())
    }

    /// The partition for what arrives now.
    fn partition_for(&self, signal: Signal) -> Result<Arc<Partition>, Error> {
        const DAY: u64 = 86_400 * NANOS_PER_SECOND;
        let now = now();
        if let Some(newest) = self.view().partitions[signal as usize].last()
            && newest.created / DAY == now / DAY
            && newest.byte_len() < self.options.partition_bytes
        {
            return Ok(newest.clone());
        }
        let directory = self.directory.join(signal.name());
        let stamp = time::OffsetDateTime::from_unix_timestamp((now / NANOS_PER_SECOND) as i64)
            .expect("the clock is within the years of a calendar");
        let mut path = directory.join(format!(
            "{:04}{:02}{:02}T{:02}{:02}{:02}Z.db",
            stamp.year(),
            u8::from(stamp.month()),
            stamp.day(),
            stamp.hour(),
            stamp.minute(),
            stamp.second()
        ));
        if path.exists() {
            path =
                directory.join(format!("{}-{:09}.db", path.file_stem().expect("it has a name").to_string_lossy(), now % NANOS_PER_SECOND));
        }
        let partition = match Partition::create(&path, signal, now) {
            Ok(partition) => Arc::new(partition),
            Err(error) => {
                let _ = std::fs::remove_file(&path);
                return Err(error);
            }
        };
        journal::sync_directory(&directory)?;
        self.view.write().unwrap_or_else(PoisonError::into_inner).partitions[signal as usize].push(partition.clone());
        Ok(partition)
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
        } else {
            trouble.clear();
        }
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }
}

const _: () = assert!(RECORD_VERSION == 1, "a new record version needs a reader for the old one and a golden file");
