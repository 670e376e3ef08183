//! Export: a thread of its own takes what waits, makes requests of it and sends them, one after the other. While the collector does not take them they
//! wait in memory up to the queue's bound, and past half of it in the spool, where one is set. No runtime is needed, and none can be starved.
//!
//! ```text
//! span, log → queue (encoded, bounded in bytes) ┐
//! metrics, every so often ──────────────────────┴→ requests waiting → sent │ spooled │ dropped, and counted with the reason
//! ```
//!
//! What is sent is carried by a second thread, so that a collector that hangs does not keep the first one from its work: at the end it leaves that one hanging, and
//! puts what was not answered into the spool.
//!
//! Both threads have no `tracing` subscriber and suppress telemetry in their OpenTelemetry context, so that whatever their libraries log or trace at any level goes
//! nowhere: they cannot trace themselves.

mod counts;
#[cfg(feature = "grpc")]
mod grpc;
mod queue;
mod quiet;
pub(crate) mod send;
mod spool;

pub(crate) use counts::Counts;
pub use counts::{Account, Loss};
pub(crate) use quiet::silence;
pub(crate) use spool::create_folder;

use crate::settings::Settings;
use crate::wire;
use opentelemetry::InstrumentationScope;
use queue::Queue;
use send::{Outcome, Sender};
use spool::{Spool, Spooled};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A kind of telemetry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Signal {
    /// Of traces.
    Spans = 0,
    /// Its items are records.
    Logs = 1,
    /// Its items are data points.
    Metrics = 2,
}

impl Signal {
    pub(crate) const ALL: [Signal; 3] = [Signal::Spans, Signal::Logs, Signal::Metrics];

    /// What its items are called.
    pub fn name(self) -> &'static str {
        ["span", "log", "metric_data_point"][self as usize]
    }

    /// In sentences.
    fn told(self) -> &'static str {
        ["spans", "log records", "data points of metrics"][self as usize]
    }
}

/// A request is cut near this size: collectors have limits of 4 MiB and more, and a smaller one costs less when it must be sent again.
const REQUEST_BYTES: usize = 1 << 20;
/// With so much waiting it is sent at once.
const WAKE_BYTES: usize = 512 << 10;
/// Between attempts while the collector does not answer: doubled from the first to the last, less up to half of it by chance, so that a thousand
/// services do not come back in step.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(20));
/// A collector that says “now” when it has no room is not asked more often than this.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The way out of most complaints.
const ASK: &str = "`firstfall doctor`, or Agent::doctor(), finds out why";

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Request {
    signal: Signal,
    items: u64,
    body: Body,
}

enum Body {
    Memory(Arc<Vec<u8>>),
    Disk(Spooled),
}

#[derive(Default)]
struct Control {
    flushes: Vec<(Instant, SyncSender<bool>)>,
    /// Until when what waits may be sent before the thread ends.
    end: Option<Instant>,
    /// From then on a request that is under way is not waited for.
    leave_at: Option<Instant>,
    ended: bool,
}

pub(crate) struct Shared {
    queue: Queue,
    pub counts: Counts,
    /// Whole requests: metrics.
    whole: Mutex<Vec<(Signal, u64, Vec<u8>)>>,
    control: Mutex<Control>,
    changed: Condvar,
    woken: AtomicBool,
    /// The thread has ended: what comes now goes nowhere.
    over: AtomicBool,
}

impl Shared {
    fn note_cpu(&self, thread: usize) {
        if let Some(used) = thread_cpu() {
            self.counts.cpu_ns[thread].store(used, Ordering::Relaxed);
        }
    }
}

/// The way in, cheap to clone.
#[derive(Clone)]
pub(crate) struct Exporter {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exporter").finish_non_exhaustive()
    }
}

impl Exporter {
    /// Starts the thread. `resource` is the message's content.
    pub fn start(settings: &Settings, resource: Vec<u8>) -> std::io::Result<Exporter> {
        let shared = Arc::new(Shared {
            queue: Queue::new(settings.queue_bytes),
            counts: Counts::default(),
            whole: Mutex::default(),
            control: Mutex::default(),
            changed: Condvar::new(),
            woken: AtomicBool::new(false),
            over: AtomicBool::new(false),
        });
        let worker = Worker::new(shared.clone(), settings.clone(), resource)?;
        std::thread::Builder::new().name("firstfall-export".to_owned()).spawn(move || worker.run())?;
        Ok(Exporter { shared })
    }

    pub fn push(&self, signal: Signal, scope: &InstrumentationScope, encode: impl FnOnce(&mut Vec<u8>)) {
        if self.shared.over.load(Ordering::Relaxed) {
            self.shared.counts.accept(signal, 1);
            return self.shared.counts.lose(signal, Loss::Shutdown, 1);
        }
        let waiting = self.shared.queue.push(signal, scope, &self.shared.counts, encode);
        if waiting > WAKE_BYTES.min(self.shared.queue.bytes_max / 4) && !self.shared.woken.swap(true, Ordering::Relaxed) {
            self.wake();
        }
    }

    /// A request that is encoded already.
    pub fn push_whole(&self, signal: Signal, items: u64, body: Vec<u8>) {
        let shared = &self.shared;
        shared.counts.accept(signal, items);
        if shared.over.load(Ordering::Relaxed) {
            return shared.counts.lose(signal, Loss::Shutdown, items);
        }
        if shared.queue.bytes.load(Ordering::Relaxed) >= shared.queue.bytes_max {
            return shared.counts.lose(signal, Loss::QueueFull, items);
        }
        shared.queue.bytes.fetch_add(body.len(), Ordering::Relaxed);
        lock(&shared.whole).push((signal, items, body));
    }

    fn wake(&self) {
        // Under the lock, so that a thread that is about to wait does not miss it.
        let _control = lock(&self.shared.control);
        self.shared.changed.notify_all();
    }

    /// Sends what waits. True when all of it was taken (or refused for good) within the limit.
    pub fn flush(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let (done, wait) = sync_channel(1);
        {
            let mut control = lock(&self.shared.control);
            if control.ended {
                return false;
            }
            control.flushes.push((until, done));
            self.shared.changed.notify_all();
        }
        // The thread keeps the limit itself; a little more, in case it is late.
        wait.recv_timeout(limit + Duration::from_millis(100)).unwrap_or(false)
    }

    /// Sends what waits, and ends the thread. What could not be sent is spooled, or dropped and counted.
    pub fn shutdown(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut control = lock(&self.shared.control);
        control.end.get_or_insert(until);
        control.leave_at.get_or_insert(until - limit.mul_f64(FOR_THE_SPOOL));
        self.shared.changed.notify_all();
        let late = until + Duration::from_millis(100);
        while !control.ended {
            let left = late.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            control = self.shared.changed.wait_timeout(control, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Signal::ALL.iter().all(|signal| self.account(*signal).under_way() == 0)
    }

    pub fn account(&self, signal: Signal) -> Account {
        // First what has become of them: an item is accepted before it is anything else, and never fewer than these.
        let account = self.shared.counts.of(signal);
        Account { accepted: account.accepted + self.shared.queue.accepted(signal), ..account }
    }

    /// Bytes that wait in memory, and their bound.
    pub fn waiting(&self) -> (usize, usize) {
        (self.shared.queue.bytes.load(Ordering::Relaxed), self.shared.queue.bytes_max)
    }

    /// Processor time of the export threads.
    pub fn cpu(&self) -> Duration {
        Duration::from_nanos(self.shared.counts.cpu_ns.iter().map(|thread| thread.load(Ordering::Relaxed)).sum())
    }
}

struct Job {
    signal: Signal,
    body: Arc<Vec<u8>>,
    limit: Duration,
    /// Somebody waits for it, or much else does.
    hurry: bool,
}

/// Carries one request at a time to the collector, on a thread of its own.
struct Courier {
    give: SyncSender<Job>,
    take: Receiver<Outcome>,
}

/// How often it is looked whether the end has come while a request is under way.
const LOOK: Duration = Duration::from_millis(20);
/// Before the end this part of the time that was given is left for putting things away.
const FOR_THE_SPOOL: f64 = 0.2;

impl Courier {
    fn start(settings: &Settings, shared: Arc<Shared>) -> std::io::Result<Courier> {
        let mut sender = Sender::new(settings);
        let settings = settings.clone();
        let (give, jobs) = sync_channel::<Job>(1);
        let (done, take) = sync_channel(1);
        std::thread::Builder::new().name("firstfall-send".to_owned()).spawn(move || {
            step_back();
            let _no_spans_of_our_own = quiet::silence();
            let _no_telemetry = opentelemetry::Context::enter_telemetry_suppressed_scope();
            while let Ok(Job { signal, body, limit, hurry }) = jobs.recv() {
                let sent = catch_unwind(AssertUnwindSafe(|| sender.send(signal, &body, limit, hurry)));
                // A library has panicked over an answer. Whatever it was in the middle of is not used again.
                let outcome = sent.unwrap_or_else(|_| {
                    sender = Sender::new(&settings);
                    Outcome::Later { after: None, why: "the sender has panicked".to_owned() }
                });
                // Not kept until the next one comes.
                drop(body);
                shared.note_cpu(1);
                if done.send(outcome).is_err() {
                    return;
                }
            }
        })?;
        Ok(Courier { give, take })
    }
}

/// What waits of one signal, and how its address has answered: one that is dead holds up no other.
struct Lane {
    /// Oldest first.
    waiting: VecDeque<Request>,
    /// Attempts in a row that have failed.
    failures: u32,
    next_try: Instant,
    /// The collector has said when to come again; else only our own patience keeps us.
    told: bool,
}

struct Worker {
    shared: Arc<Shared>,
    settings: Settings,
    resource: Vec<u8>,
    courier: Courier,
    /// The courier hangs, and the end has come.
    given_up: bool,
    spool: Option<Spool>,
    spooled_bytes: u64,
    lanes: [Lane; 3],
    /// Bytes in memory of all lanes.
    memory: usize,
    random: u64,
}

impl Worker {
    fn new(shared: Arc<Shared>, settings: Settings, resource: Vec<u8>) -> std::io::Result<Worker> {
        let courier = Courier::start(&settings, shared.clone())?;
        let random = u64::from(std::process::id()) << 32 | u64::from(Instant::now().elapsed().subsec_nanos() | 1);
        let lane = |_| Lane { waiting: VecDeque::new(), failures: 0, next_try: Instant::now(), told: false };
        let lanes = Signal::ALL.map(lane);
        Ok(Worker { shared, settings, resource, courier, given_up: false, spool: None, spooled_bytes: 0, lanes, memory: 0, random })
    }

    fn run(mut self) {
        step_back();
        let _no_spans_of_our_own = quiet::silence();
        let _no_telemetry = opentelemetry::Context::enter_telemetry_suppressed_scope();
        self.open_spool();
        loop {
            let (flushes, end) = self.wait();
            self.shared.woken.store(false, Ordering::Relaxed);
            self.collect();
            self.send(flushes.iter().map(|(until, _)| *until).chain(end).max());
            self.make_room();
            self.shared.note_cpu(0);
            for (_, done) in flushes {
                let _ = done.send(self.lanes.iter().all(|lane| lane.waiting.is_empty()));
            }
            if end.is_some() {
                self.end();
                return;
            }
        }
    }

    /// Until there is something to do.
    fn wait(&self) -> (Vec<(Instant, SyncSender<bool>)>, Option<Instant>) {
        let next = Instant::now() + self.settings.delay;
        let mut control = lock(&self.shared.control);
        loop {
            let left = next.saturating_duration_since(Instant::now());
            let much = self.shared.woken.load(Ordering::Relaxed);
            if left.is_zero() || much || !control.flushes.is_empty() || control.end.is_some() {
                return (std::mem::take(&mut control.flushes), control.end);
            }
            control = self.shared.changed.wait_timeout(control, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Somebody waits for a flush or the end.
    fn is_asked(&self) -> bool {
        let control = lock(&self.shared.control);
        !control.flushes.is_empty() || control.end.is_some()
    }

    fn open_spool(&mut self) {
        let Some(folder) = &self.settings.spool else { return };
        match Spool::open(folder) {
            Ok((spool, left)) => {
                self.spool = Some(spool);
                for file in left {
                    self.shared.counts.accept(file.signal, file.items);
                    self.spooled_bytes += file.bytes;
                    let request = Request { signal: file.signal, items: file.items, body: Body::Disk(file) };
                    self.lanes[request.signal as usize].waiting.push_back(request);
                }
            }
            Err(error) => crate::complain::complain(&format!("the spool {}: {error}; items wait in memory only", folder.display())),
        }
    }

    /// Makes requests of what waits in the queue: as few as their size allows, each with all scopes that fit.
    fn collect(&mut self) {
        for signal in [Signal::Spans, Signal::Logs] {
            let all = self.shared.queue.take(signal);
            let heads: Vec<Vec<u8>> = all.iter().map(|items| wire::scope(&items.scope)).collect();
            let mut parts: Vec<(&[u8], &[u8])> = Vec::new();
            let (mut bytes, mut count) = (0, 0);
            let chunks = all
                .iter()
                .zip(&heads)
                .flat_map(|(items, head)| items.chunks.iter().map(move |chunk| (chunk, head)))
                .filter(|(chunk, _)| chunk.count > 0);
            for (chunk, head) in chunks {
                // Most fit as they are, and are not looked into.
                if chunk.bytes.len() <= REQUEST_BYTES.saturating_sub(bytes) {
                    parts.push((head, &chunk.bytes));
                    (bytes, count) = (bytes + chunk.bytes.len(), count + chunk.count);
                    continue;
                }
                let mut rest = &chunk.bytes[..];
                while !rest.is_empty() {
                    let room = REQUEST_BYTES.saturating_sub(bytes);
                    if !parts.is_empty() && wire::whole_items(rest, 0).0 > room {
                        self.take_parts(signal, &mut parts, &mut bytes, &mut count);
                        continue;
                    }
                    let (length, items) = wire::whole_items(rest, room);
                    parts.push((head, &rest[..length]));
                    (bytes, count) = (bytes + length, count + items);
                    rest = &rest[length..];
                }
            }
            if !parts.is_empty() {
                self.take_parts(signal, &mut parts, &mut bytes, &mut count);
            }
        }
        let whole = std::mem::take(&mut *lock(&self.shared.whole));
        for (signal, items, body) in whole {
            self.take(signal, items, body);
        }
    }

    fn take_parts(&mut self, signal: Signal, parts: &mut Vec<(&[u8], &[u8])>, bytes: &mut usize, count: &mut u64) {
        let body = wire::request(&self.resource, parts);
        parts.clear();
        // Its heads wait with it.
        self.shared.queue.add(body.len().saturating_sub(*bytes));
        self.take(signal, std::mem::take(count), body);
        *bytes = 0;
    }

    fn take(&mut self, signal: Signal, items: u64, body: Vec<u8>) {
        self.memory += body.len();
        self.lanes[signal as usize].waiting.push_back(Request { signal, items, body: Body::Memory(Arc::new(body)) });
    }

    /// Sends what waits. With a limit it goes on until all is sent or the limit is over; without, until somebody does not answer, or asks for a flush.
    fn send(&mut self, until: Option<Instant>) {
        let mut first = true;
        loop {
            for signal in Signal::ALL {
                let lane = &self.lanes[signal as usize];
                // A flush is worth an attempt before our own patience is over, but not one that we were told not to make.
                if Instant::now() >= lane.next_try || (first && until.is_some() && !lane.told) {
                    self.send_lane(signal, until);
                }
            }
            first = false;
            let Some(until) = until.filter(|_| !self.given_up) else { return };
            let waiting = self.lanes.iter().filter(|lane| !lane.waiting.is_empty());
            let Some(next) = waiting.map(|lane| lane.next_try).min().filter(|next| *next < until) else { return };
            std::thread::sleep(next.saturating_duration_since(Instant::now()).min(Duration::from_millis(50)));
        }
    }

    fn send_lane(&mut self, signal: Signal, until: Option<Instant>) {
        while let Some(request) = self.lanes[signal as usize].waiting.front() {
            let now = Instant::now();
            if until.is_some_and(|until| now >= until) || (until.is_none() && self.is_asked()) {
                return;
            }
            let limit = until.map_or(self.settings.timeout, |until| self.settings.timeout.min(until - now));
            let items = request.items;
            let body = match &request.body {
                Body::Memory(body) => body.clone(),
                Body::Disk(file) if file.age() > self.settings.spool_age => {
                    self.done(signal, Some(Loss::SpoolExpired));
                    continue;
                }
                Body::Disk(file) => match file.body() {
                    Ok(body) => Arc::new(body),
                    Err(error) => {
                        crate::complain::complain(&format!("a file of the spool cannot be read: {error}"));
                        self.done(signal, Some(Loss::SpoolFailed));
                        continue;
                    }
                },
            };
            let hurry = until.is_some() || self.memory > self.shared.queue.bytes_max / 4;
            let Some(outcome) = self.carry(Job { signal, body, limit, hurry }) else { return };
            match outcome {
                Outcome::Done { rejected } => {
                    let rejected = rejected.min(items);
                    self.shared.counts.export(signal, items - rejected);
                    self.shared.counts.lose(signal, Loss::Rejected, rejected);
                    self.done(signal, None);
                }
                Outcome::Refused(why) => {
                    crate::complain::complain(&format!(
                        "{items} {} are refused for good by {}: {why}; {ASK}",
                        signal.told(),
                        self.address(signal)
                    ));
                    self.done(signal, Some(Loss::Refused));
                }
                Outcome::Later { after, why } => {
                    let failures = self.lanes[signal as usize].failures;
                    if failures == 0 {
                        crate::complain::complain(&format!(
                            "{} does not take {}: {why}; it is tried again. {ASK}",
                            self.address(signal),
                            signal.told()
                        ));
                    }
                    let pause = after.map_or_else(|| self.backoff(failures), |after| after.max(PAUSE_MIN));
                    let lane = &mut self.lanes[signal as usize];
                    (lane.failures, lane.next_try, lane.told) = (failures.saturating_add(1), Instant::now() + pause, after.is_some());
                    return;
                }
            }
        }
    }

    /// As it may be told: without what stands before the host.
    fn address(&self, signal: Signal) -> String {
        crate::settings::shown(&self.settings.addresses[signal as usize])
    }

    /// Has a request carried to the collector. Nothing comes back when the end has come first.
    fn carry(&mut self, job: Job) -> Option<Outcome> {
        if self.given_up || self.courier.give.send(job).is_err() {
            self.given_up = true;
            return None;
        }
        loop {
            match self.courier.take.recv_timeout(LOOK) {
                Ok(outcome) => return Some(outcome),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    let end = lock(&self.shared.control).leave_at;
                    if end.is_some_and(|end| Instant::now() >= end) {
                        break;
                    }
                }
            }
        }
        self.given_up = true;
        None
    }

    fn backoff(&mut self, failures: u32) -> Duration {
        let (first, last) = BACKOFF;
        let full = last.min(first.saturating_mul(1 << failures.min(10)));
        // Xorshift: it only has to differ between processes.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        full / 2 + full.mul_f64((self.random >> 11) as f64 / (1u64 << 53) as f64) / 2
    }

    /// The first request of a lane is done with: answered, or lost.
    fn done(&mut self, signal: Signal, loss: Option<Loss>) {
        let lane = &mut self.lanes[signal as usize];
        (lane.failures, lane.told) = (0, false);
        if let Some(request) = lane.waiting.pop_front() {
            self.forget(&request, loss);
        }
    }

    fn forget(&mut self, request: &Request, loss: Option<Loss>) {
        match &request.body {
            Body::Memory(body) => {
                self.memory -= body.len();
                self.shared.queue.free(body.len());
            }
            Body::Disk(file) => {
                self.spooled_bytes -= file.bytes;
                file.remove();
            }
        }
        if let Some(loss) = loss {
            self.shared.counts.lose(request.signal, loss, request.items);
        }
    }

    /// When half of the queue's bytes wait for the collector, the oldest of them go to the spool.
    fn make_room(&mut self) {
        if self.spool.is_some() && self.memory > self.shared.queue.bytes_max / 2 {
            self.spill(self.shared.queue.bytes_max / 4);
        }
    }

    /// Writes the oldest requests to the spool, until no more than `leave` bytes are in memory.
    fn spill(&mut self, leave: usize) {
        let Some(mut spool) = self.spool.take() else { return };
        let requests = self.lanes.iter_mut().flat_map(|lane| lane.waiting.iter_mut());
        for request in requests {
            let Body::Memory(body) = &request.body else { continue };
            if self.memory <= leave {
                break;
            }
            match spool.write(request.signal, request.items, body) {
                Ok(file) => {
                    self.memory -= body.len();
                    self.shared.queue.free(body.len());
                    self.spooled_bytes += file.bytes;
                    request.body = Body::Disk(file);
                }
                Err(error) => {
                    crate::complain::complain(&format!("the spool cannot be written: {error}"));
                    break;
                }
            }
        }
        self.spool = Some(spool);
        while self.spooled_bytes > self.settings.spool_bytes {
            let oldest = self.lanes.iter().enumerate().filter_map(|(lane, all)| {
                let at = all.waiting.iter().position(|request| matches!(request.body, Body::Disk(_)))?;
                let Body::Disk(file) = &all.waiting[at].body else { return None };
                Some((file.written, lane, at))
            });
            let Some((_, lane, at)) = oldest.min() else { break };
            if let Some(request) = self.lanes[lane].waiting.remove(at) {
                self.forget(&request, Some(Loss::SpoolFull));
            }
        }
    }

    fn end(mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        // What came while the last requests were sent.
        self.collect();
        self.spill(0);
        for signal in Signal::ALL {
            while let Some(request) = self.lanes[signal as usize].waiting.pop_front() {
                match request.body {
                    Body::Disk(_) => self.shared.counts.keep(signal, request.items),
                    Body::Memory(..) => self.forget(&request, Some(Loss::Shutdown)),
                }
            }
        }
        drop(self.spool.take());
        let mut control = lock(&self.shared.control);
        control.ended = true;
        for (_, done) in control.flushes.drain(..) {
            let _ = done.send(false);
        }
        self.shared.changed.notify_all();
    }
}

/// How much later than the service's own threads those of export get a processor that both want, on the usual scale to 19: what goes out can wait, a request
/// cannot.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

fn step_back() {
    // For this thread alone, as Linux has it; where it cannot be had, nothing is lost.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::nice(NICENESS);
}

/// Processor time of this thread, where the system tells it.
fn thread_cpu() -> Option<u64> {
    std::fs::read_to_string("/proc/thread-self/schedstat").ok()?.split_whitespace().next()?.parse().ok()
}
