//! The outer ring of detection: a thread that takes accepted batches, follows event time, judges each window once all of it can have arrived,
//! and keeps what it finds in the store. Also answers what was asked of it: the map, and what was wrong in a window.

use super::changes::SETTLED_AFTER;
use super::facts::Thinning;
use super::incidents::Incidents;
use super::names::NodeId;
use super::windows::WindowNo;
use super::{BASELINE, Observed, describe};
use crate::alert::Outbox;
use crate::ingest::now;
use firstfall_store::batch::Batch;
use firstfall_store::change::Change;
use firstfall_store::edge::{EdgeCell, MINUTE};
use firstfall_store::incident::{self as noun, Diagnosis, IncidentState, Topology};
use firstfall_store::part::PartCell;
use firstfall_store::query::{Budget, Filter, Keep, SearchQuestion};
use firstfall_store::rollup::WINDOW;
use firstfall_store::{Error, Past, Reader, Signal, Tap};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SECOND: u64 = 1_000_000_000;
/// How late an item may come and still be judged in its window: SDKs send spans every five seconds.
pub const ALLOWANCE: u64 = 10 * SECOND;
/// Without input for so long event time goes on with the wall clock: silence is information.
const SILENCE: Duration = Duration::from_secs(15);
/// Batches that wait to be looked at. Past it they are not looked at, and counted: detection may be late, ingest may not. Long before that
/// only some traces are looked at; see `Thinning`.
const WAITING_BYTES_MAX: usize = 32 << 20;
/// With more than this waiting, half as many traces are looked at.
const WAITING_BYTES_MUCH: usize = 8 << 20;
/// Looking at batches may take this part of a core; past it half as many traces are looked at. Detection is a guest of ingest.
const BUSY_MAX: f64 = 0.25;
/// Batches are gathered until there are so many bytes of them, or for so long: to be woken for each costs more than to look at it.
const GATHERED_BYTES: usize = 1 << 20;
const GATHERED_FOR: Duration = Duration::from_millis(200);
/// As many as before are looked at again after so long a time without that.
const THINNED_FOR: Duration = Duration::from_secs(60);
/// Traces that are counted at once: pages that show what is observed wait no longer than that takes (some milliseconds).
const SETTLED_AT_ONCE: usize = 500;
/// Rows of the past that are looked at after a restart, of each signal: past it one trace in two, four, …, so that it takes seconds.
const PAST_ROWS_MAX: usize = 300_000;
/// Windows that are kept: a baseline, an incident of an hour, and some.
const KEPT: u32 = 720;
/// A jump of event time over more windows than this (four hours) is not walked through.
const JUMP_MAX: u32 = 1440;
/// After a restart an incident of the same origin is the same when its onset is reckoned this close to what it was (five minutes).
const SAME_ONSET: u64 = 300 * SECOND;
/// After a restart windows are judged again from so long before the earliest incident that may still matter, or before the newest item.
const FOUND_AGAIN: u64 = 300 * SECOND;
/// An incident that ended so long ago is not looked for again after a restart: it opens again within half of this, and what follows belongs to it
/// for less.
const MAY_OPEN_AGAIN: u64 = 600 * SECOND;
/// Ended incidents that wait for a disk with room.
const UNKEPT_MAX: usize = 1000;
/// Edges of a minute are kept so long after it has ended: most of what comes late has come.
const EDGES_WAIT: u64 = 60 * SECOND;
/// Told changes of the last half hour that are looked at.
const TOLD_MAX: usize = 1000;
/// Failing traces that an incident names …
const TRACES_MAX: usize = 3;
/// … if they are found in so long.
const TRACES_TIME: Duration = Duration::from_millis(500);
/// Metrics are read so far back for a question about the past: their points may be minutes apart.
const METRIC_HISTORY: u64 = 13 * 3600 * SECOND;

#[derive(Default)]
struct Waiting {
    batches: Vec<Arc<Batch>>,
    /// Of these, and of those that were taken out and not looked at yet.
    bytes: usize,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    observed: Mutex<Observed>,
    stop: AtomicBool,
    /// Batches that were not looked at because too many waited.
    missed: AtomicU64,
    /// Odd while edges are on their way from memory to the store, when they are in neither.
    moving: AtomicU64,
}

/// Where batches go in.
#[derive(Clone, Default)]
pub struct Inlet {
    shared: Arc<Shared>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets somebody have what was just unlocked: a mutex goes to whoever asks next, and that would be this thread again.
fn give_way() {
    std::thread::sleep(Duration::from_micros(200));
}

impl Inlet {
    pub fn tap(&self) -> Tap {
        let shared = self.shared.clone();
        Tap(Some(Arc::new(move |batch| {
            let mut waiting = lock(&shared.waiting);
            if waiting.bytes > WAITING_BYTES_MAX {
                shared.missed.fetch_add(1, Ordering::Relaxed);
                return;
            }
            let before = waiting.bytes;
            waiting.bytes += batch.byte_len();
            let enough = before < GATHERED_BYTES && waiting.bytes >= GATHERED_BYTES;
            waiting.batches.push(batch.clone());
            drop(waiting);
            if enough {
                shared.arrived.notify_one();
            }
        })))
    }

    /// Does not watch, and only answers what is asked about the past.
    pub fn idle(self, reader: Reader) -> Watch {
        Watch { shared: self.shared, reader, thread: Mutex::new(None) }
    }

    /// Begins to watch; what the store holds of the last while is looked at first. To be called before anything is accepted.
    pub fn watch(self, reader: Reader, outbox: Arc<Outbox>) -> std::io::Result<Watch> {
        let shared = self.shared.clone();
        let own = reader.clone();
        // What comes from now on comes through the tap: it must not be in the past too, or it counts twice.
        let past = reader.past();
        let thread = std::thread::Builder::new().name("detect".to_owned()).spawn(move || Watcher::new(shared, own, outbox).run(past))?;
        Ok(Watch { shared: self.shared, reader, thread: Mutex::new(Some(thread)) })
    }
}

/// What detection did not look at, since start, and what it had to correct.
pub struct Overlooked {
    /// Batches that came while too many waited.
    pub batches: u64,
    /// At present it looks at one trace in so many.
    pub one_trace_in: u64,
    /// Facts about subjects beyond the limit.
    pub subjects: u64,
    /// Traces that were counted before all of them can have come.
    pub traces: u64,
    /// Services whose clocks are wrong by seconds, and corrected.
    pub clocks: u64,
}

/// A running detection.
pub struct Watch {
    shared: Arc<Shared>,
    reader: Reader,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl firstfall_dashboard::Insight for Watch {
    fn topology(&self, from: u64, to: u64) -> Result<Topology, Error> {
        let (waiting, kept) = self.both(|observed| describe::waiting(observed, from, to), || self.reader.edges(from, to))?;
        Ok(describe::topology(waiting, kept))
    }

    fn edge_points(&self, caller: &str, callee: &str, from: u64, to: u64) -> Result<Vec<(u64, u64, EdgeCell)>, Error> {
        let waiting = |observed: &Observed| {
            let names = &observed.names;
            let wanted = |minute: u32| u64::from(minute) * MINUTE < to && u64::from(minute + 1) * MINUTE > from;
            let of_edge = observed.windows.edges.iter().filter(|((minute, one, other), _)| {
                wanted(*minute) && names.node(*one).id() == caller && names.node(*other).id() == callee
            });
            of_edge.map(|((minute, ..), cell)| (u64::from(*minute) * MINUTE, cell.clone())).collect::<Vec<_>>()
        };
        let (waiting, kept) = self.both(waiting, || self.reader.edge_points(caller, callee, from, to))?;
        let mut points: BTreeMap<u64, (u64, EdgeCell)> = kept.into_iter().map(|(at, width, cell)| (at, (width, cell))).collect();
        for (at, cell) in waiting {
            points.entry(at).or_insert_with(|| (MINUTE, EdgeCell::default())).1.merge(&cell);
        }
        Ok(points.into_iter().map(|(at, (width, cell))| (at, width, cell)).collect())
    }

    fn parts(&self, node: &str, from: u64, to: u64) -> Result<Vec<(String, PartCell)>, Error> {
        let waiting = |observed: &Observed| {
            let names = &observed.names;
            let wanted = |minute: u32| u64::from(minute) * MINUTE < to && u64::from(minute + 1) * MINUTE > from;
            let mut is_it: HashMap<NodeId, bool> = HashMap::new();
            let mut is_it = |of: NodeId| *is_it.entry(of).or_insert_with(|| names.node(of).id() == node);
            let of_node = observed.windows.parts.iter().filter(|((minute, of, _), _)| wanted(*minute) && is_it(*of));
            of_node.map(|((.., operation), cell)| (names.text_of(*operation).to_owned(), *cell)).collect::<Vec<_>>()
        };
        let (waiting, kept) = self.both(waiting, || self.reader.parts(node, from, to))?;
        let mut parts: BTreeMap<String, PartCell> = BTreeMap::new();
        for (operation, cell) in kept.into_iter().chain(waiting) {
            parts.entry(operation).or_default().add(&cell);
        }
        Ok(parts.into_iter().collect())
    }

    fn changes(&self, from: u64, to: u64) -> Vec<Change> {
        let observed = lock(&self.shared.observed);
        let mut changes = observed.changes.between(from, to, observed.watermark(), &observed.names);
        changes.retain(|change| !change.told);
        changes
    }

    /// What was wrong between two times. Reads the past from the store, so it can be asked about any time that is kept.
    fn diagnose(&self, from: u64, to: u64, budget: &Budget) -> Result<Diagnosis, Error> {
        let mut observed = Observed::default();
        let margin = 60 * SECOND;
        let past = self.reader.past();
        for signal in [Signal::Metrics, Signal::Logs, Signal::Traces] {
            let back = if signal == Signal::Metrics { METRIC_HISTORY } else { BASELINE };
            past.read(signal, from.saturating_sub(back), to.saturating_add(margin), budget, None, |earliest, batch| {
                // Traces of which nothing has come for two minutes are whole; logs wait for theirs.
                if signal == Signal::Traces {
                    observed.settle(earliest.saturating_sub(2 * margin));
                }
                observed.add(batch);
            })?;
        }
        observed.settle(u64::MAX);
        let stretches = Observed::stretches(from, to);
        let found = observed.compare(&stretches);
        Ok(describe::diagnosis(&observed, &found, &stretches.before, &stretches.after))
    }
}

impl Watch {
    /// What is in memory and what is in the store, so that a minute of edges is in one of them and never in both; detection is not held up by
    /// the reading. Edges move once a minute, so the second try is the last in practice.
    fn both<A, B>(&self, memory: impl Fn(&Observed) -> A, store: impl Fn() -> Result<B, Error>) -> Result<(A, B), Error> {
        const TRIES: u32 = 200;
        let mut tries = 0;
        loop {
            let before = self.shared.moving.load(Ordering::Acquire);
            let found = (memory(&lock(&self.shared.observed)), store()?);
            tries += 1;
            if (before.is_multiple_of(2) && self.shared.moving.load(Ordering::Acquire) == before) || tries > TRIES {
                return Ok(found);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.arrived.notify_all();
        if let Some(thread) = lock(&self.thread).take()
            && thread.join().is_err()
        {
            tracing::error!("the detection thread panicked");
        }
    }

    /// What detection did not look at.
    pub fn overlooked(&self) -> Overlooked {
        let observed = lock(&self.shared.observed);
        let (subjects, traces) = observed.left_out();
        Overlooked {
            batches: self.shared.missed.load(Ordering::Relaxed),
            one_trace_in: 1 << observed.thinning.0,
            subjects,
            traces,
            clocks: observed.clocks_corrected() as u64,
        }
    }
}

struct Watcher {
    shared: Arc<Shared>,
    reader: Reader,
    outbox: Arc<Outbox>,
    incidents: Incidents,
    /// Failing traces of open incidents, found once.
    traces: HashMap<String, Vec<String>>,
    /// Changes up to this time are kept.
    changes_until: u64,
    /// Incidents that have ended and could not be kept.
    unkept: Vec<(noun::Incident, u64)>,
    /// Edges up to this time are kept.
    edges_until: u64,
    /// While history is walked through nothing is kept or told: it was, at its time.
    remembering: bool,
    /// The next window to judge.
    next: Option<WindowNo>,
    watermark: u64,
    /// When the watermark last moved by input.
    moved: Instant,
    /// When the thinning last changed.
    thinned: Instant,
    /// Time spent on looking at batches since `measured`, and the part of a core that it was before.
    busy: Duration,
    measured: Instant,
    busy_share: f64,
}

impl Watcher {
    fn new(shared: Arc<Shared>, reader: Reader, outbox: Arc<Outbox>) -> Watcher {
        Watcher {
            shared,
            reader,
            outbox,
            incidents: Incidents::default(),
            traces: HashMap::new(),
            changes_until: 0,
            edges_until: 0,
            unkept: Vec::new(),
            remembering: false,
            next: None,
            watermark: 0,
            moved: Instant::now(),
            thinned: Instant::now(),
            busy: Duration::ZERO,
            measured: Instant::now(),
            busy_share: 0.0,
        }
    }

    fn run(mut self, past: Past) {
        self.remember(&past);
        drop(past);
        while !self.shared.stop.load(Ordering::Acquire) {
            let batches = {
                let mut waiting = lock(&self.shared.waiting);
                if waiting.bytes < GATHERED_BYTES {
                    waiting = self.shared.arrived.wait_timeout(waiting, GATHERED_FOR).unwrap_or_else(PoisonError::into_inner).0;
                }
                std::mem::take(&mut waiting.batches)
            };
            for batch in batches {
                let left = {
                    let mut waiting = lock(&self.shared.waiting);
                    waiting.bytes -= batch.byte_len();
                    waiting.bytes
                };
                self.thin(left);
                let start = Instant::now();
                lock(&self.shared.observed).add(&batch);
                self.busy += start.elapsed();
            }
            let passed = self.measured.elapsed();
            if passed > Duration::from_secs(1) {
                self.busy_share = self.busy.as_secs_f64() / passed.as_secs_f64();
                (self.busy, self.measured) = (Duration::ZERO, Instant::now());
            }
            self.advance();
        }
    }

    /// Looks at fewer traces when too many wait, and at more again when that has passed.
    fn thin(&mut self, waiting: usize) {
        let mut observed = lock(&self.shared.observed);
        let now = observed.thinning.0;
        let much = waiting > WAITING_BYTES_MUCH || observed.fill() > 0.8 || self.busy_share > BUSY_MAX;
        // A change needs a moment to show.
        if much && now < Thinning::MAX && self.thinned.elapsed() > Duration::from_millis(1500) {
            observed.thinning = Thinning(now + 1);
            self.thinned = Instant::now();
            tracing::info!(one_in = 1u32 << (now + 1), "more traces arrive than detection can look at; it looks at some of them");
        } else if !much
            && now > 0
            && waiting < WAITING_BYTES_MUCH / 8
            && self.busy_share < BUSY_MAX / 3.0
            && self.thinned.elapsed() > THINNED_FOR
        {
            observed.thinning = Thinning(now - 1);
            self.thinned = Instant::now();
        }
    }

    /// What the store holds of the last while, so that a restart forgets nothing: as far back as a baseline and a half reaches, and the
    /// baseline of the oldest open incident. Incidents that are found again keep the id and onset under which people know them.
    fn remember(&mut self, past: &Past) {
        // A sender's clock may be hours ahead.
        let newest = past.newest().min(now());
        if newest == 0 {
            return;
        }
        self.edges_until = self.reader.edges_kept_until().unwrap_or(0);
        lock(&self.shared.observed).windows.edges_from = (self.edges_until / MINUTE) as u32;
        let mut from = newest.saturating_sub(BASELINE + BASELINE / 2);
        let known = self.reader.incidents(IncidentState::All, from, u64::MAX, 1000).unwrap_or_default();
        // An incident closes as the new normal before it is older than this.
        let oldest = newest.saturating_sub(u64::from(super::incidents::LASTING) * WINDOW);
        for incident in known.iter().filter(|i| i.closed_at.is_none() && i.onset > oldest) {
            from = from.min(incident.onset.saturating_sub(BASELINE));
        }
        let mut whole = true;
        // By itself, so that nobody waits for it who looks at a page.
        let mut observed = std::mem::take(&mut *lock(&self.shared.observed));
        for signal in [Signal::Metrics, Signal::Logs, Signal::Traces] {
            let thinning = Thinning::of(past.rows(signal, from, newest), PAST_ROWS_MAX);
            let keep = |kind, trace, time| thinning.keeps_past(signal, kind, trace, time);
            let keep: Option<&Keep<'_>> = if thinning == Thinning::default() { None } else { Some(&keep) };
            let result = past.read(signal, from, newest, &Budget::new(Duration::from_secs(60)), keep, |earliest, batch| {
                if signal == Signal::Traces {
                    observed.settle(earliest.saturating_sub(120 * SECOND));
                }
                observed.add_past(batch, thinning);
            });
            if let Err(error) = result {
                tracing::warn!(%error, "detection begins without all of its history");
                whole = false;
            }
        }
        // What was told of is found again from before it began, and what nobody could tell of any more in the last minutes. All that came before
        // is only there to compare with.
        let first = observed.first_window(from);
        let matters = |incident: &&noun::Incident| incident.closed_at.is_none_or(|closed| closed > newest.saturating_sub(MAY_OPEN_AGAIN));
        let since = known.iter().filter(matters).map(|incident| incident.onset).fold(newest, u64::min).saturating_sub(FOUND_AGAIN);
        self.incidents.known_since(first);
        self.next = Some(first.max((since / WINDOW) as WindowNo));
        *lock(&self.shared.observed) = observed;
        self.remembering = true;
        self.advance();
        self.remembering = false;
        // What history tells of was kept in its time.
        self.changes_until = newest.saturating_sub(SETTLED_AFTER);
        // Stopped on the way, it knows nothing; the next start does.
        if !self.shared.stop.load(Ordering::Acquire) {
            self.take_over(&known, newest, whole);
        }
    }

    /// Matches what was found in the history with what was known before the restart: by id, and what is left by its origin and onset. With a part of
    /// the history only, what is not found again may still be open, and stays so.
    fn take_over(&mut self, known: &[noun::Incident], newest: u64, whole: bool) {
        let mut describe = Vec::new();
        let observed = lock(&self.shared.observed);
        let mut again: Vec<&str> =
            known.iter().map(|k| k.id.as_str()).filter(|id| self.incidents.all.iter().any(|i| i.id == **id)).collect();
        for incident in &mut self.incidents.all {
            let origin = incident.candidates.first().map(|c| observed.names.node(c.node).id()).unwrap_or_default();
            let alike = |k: &&noun::Incident| {
                k.origin_node() == origin && k.onset.abs_diff(incident.onset) < SAME_ONSET && !again.contains(&k.id.as_str())
            };
            let same = known.iter().find(|k| k.id == incident.id);
            if let Some(found) = same.or_else(|| known.iter().filter(alike).min_by_key(|k| k.onset.abs_diff(incident.onset))) {
                incident.id.clone_from(&found.id);
                incident.onset = found.onset;
                if same.is_none() {
                    again.push(&found.id);
                }
                if found.closed_at.is_some() && !incident.is_open() {
                    continue;
                }
            }
            let at = incident.closed_at.unwrap_or(newest);
            describe.push((describe::incident(&observed, incident, (at / WINDOW) as WindowNo), at));
        }
        drop(observed);
        // What was open, and is not found again, has ended while nobody looked.
        for incident in known.iter().filter(|i| whole && i.closed_at.is_none() && !again.contains(&i.id.as_str())) {
            let ended = noun::Incident { closed_at: Some(newest.max(incident.onset)), ..incident.clone() };
            describe.push((ended, newest));
        }
        for (incident, at) in describe {
            self.keep(incident, at);
        }
    }

    /// Keeps an incident as it stands, and tells those who are to be told.
    fn keep(&mut self, mut incident: noun::Incident, at: u64) {
        if incident.traces.is_empty() {
            if !self.traces.contains_key(&incident.id) {
                self.traces.insert(incident.id.clone(), self.failing_traces(&incident));
            }
            incident.traces.clone_from(&self.traces[&incident.id]);
        }
        if incident.closed_at.is_some() {
            self.traces.remove(&incident.id);
        }
        let now = now();
        match self.reader.keep_incident(&mut incident, at, now, |incident, told| self.outbox.tell(incident, told, at, now)) {
            Err(error) => {
                tracing::warn!(%error, incident = incident.id, "cannot keep an incident; it is tried again");
                // An open one is described anew with the next window; one that has ended is not.
                if incident.closed_at.is_some() && self.unkept.len() < UNKEPT_MAX {
                    self.unkept.push((incident, at));
                }
            }
            Ok(notices) => {
                for notice in &notices {
                    tracing::info!(
                        incident = incident.id,
                        revision = incident.revision,
                        event = notice.event,
                        receiver = notice.told.receiver,
                        "{}",
                        incident.title
                    );
                }
                if !notices.is_empty() {
                    self.outbox.wake();
                }
            }
        }
    }

    /// Some traces that failed at the origin or, where that sends nothing, in the services that call it.
    fn failing_traces(&self, incident: &noun::Incident) -> Vec<String> {
        let Some(origin) = incident.diagnosis.origins.first() else { return Vec::new() };
        let caller = incident.diagnosis.hops.iter().find(|hop| hop.from == origin.service).map(|hop| hop.to.clone());
        let service = if origin.kind == "service" { Some(origin.service.clone()) } else { caller };
        let question = |service: Option<String>| SearchQuestion {
            filter: Filter {
                from: incident.onset.saturating_sub(WINDOW),
                to: incident.closed_at.unwrap_or(u64::MAX),
                service,
                error: Some(true),
                ..Filter::default()
            },
            limit: TRACES_MAX,
            before: None,
        };
        let find = |service| self.reader.search_traces(&question(service), &Budget::new(TRACES_TIME)).map(|found| found.traces);
        let mut traces = find(service).unwrap_or_default();
        if traces.is_empty() {
            traces = find(None).unwrap_or_default();
        }
        traces.iter().map(|trace| trace.trace_id.to_string()).collect()
    }

    /// Judges every window that is complete by now.
    fn advance(&mut self) {
        while let Some((incidents, window)) = self.judge_next() {
            for (incident, at) in std::mem::take(&mut self.unkept) {
                self.keep(incident, at);
            }
            for incident in incidents {
                self.keep(incident, u64::from(window + 1) * WINDOW);
            }
            self.keep_changes(u64::from(window + 1) * WINDOW);
            self.keep_edges(u64::from(window + 1) * WINDOW);
            give_way();
        }
    }

    /// Keeps the edges of minutes that are over.
    fn keep_edges(&mut self, now: u64) {
        let until = now.saturating_sub(EDGES_WAIT) / MINUTE * MINUTE;
        if self.remembering || until <= self.edges_until {
            return;
        }
        self.edges_until = until;
        self.shared.moving.fetch_add(1, Ordering::AcqRel);
        let (minutes, parts) = {
            let mut observed = lock(&self.shared.observed);
            (observed.take_edges(until), observed.take_parts(until))
        };
        if let Err(error) = self.reader.keep_joined(&minutes, &parts, until) {
            tracing::warn!(%error, "edges cannot be kept; the map has a gap");
        }
        self.shared.moving.fetch_add(1, Ordering::AcqRel);
    }

    /// Keeps what has changed, once it is settled what it was, and learns what somebody told.
    fn keep_changes(&mut self, now: u64) {
        if self.remembering {
            return;
        }
        let until = now.saturating_sub(SETTLED_AFTER);
        let from = if self.changes_until == 0 { until.saturating_sub(BASELINE) } else { self.changes_until };
        if until <= from {
            return;
        }
        self.changes_until = until;
        let told = self.reader.changes(now.saturating_sub(BASELINE), u64::MAX, None, TOLD_MAX).unwrap_or_default();
        let mut observed = lock(&self.shared.observed);
        observed.changes.told = told.into_iter().filter(|change| change.told).collect();
        let mut settled = observed.changes.between(from + 1, until, now, &observed.names);
        drop(observed);
        settled.retain(|change| !change.told);
        if let Err(error) = self.reader.keep_changes(&settled, crate::ingest::now()) {
            tracing::warn!(%error, "changes cannot be kept");
        }
    }

    /// Judges the next window if it is complete: the incidents that are open or have just closed, and the window. What is observed is held
    /// only here, not while they are kept.
    fn judge_next(&mut self) -> Option<(Vec<noun::Incident>, WindowNo)> {
        let shared = self.shared.clone();
        let mut observed = lock(&shared.observed);
        let newest = observed.watermark().min(now() + ALLOWANCE);
        if newest > self.watermark {
            self.watermark = newest;
            self.moved = Instant::now();
        }
        if self.watermark == 0 || shared.stop.load(Ordering::Acquire) {
            return None;
        }
        let silent = self.moved.elapsed();
        let time = if silent > SILENCE { self.watermark + silent.as_nanos() as u64 } else { self.watermark };
        let complete = (time.saturating_sub(ALLOWANCE) / WINDOW) as WindowNo;
        let next = self.next.get_or_insert_with(|| observed.first_window(newest.saturating_sub(BASELINE)));
        if complete.saturating_sub(*next) > JUMP_MAX {
            *next = complete - JUMP_MAX;
        }
        if *next >= complete {
            return None;
        }
        let window = *next;
        *next += 1;
        let settled_until = u64::from(window + 1) * WINDOW;
        let settled = observed.take_settled(settled_until);
        drop(observed);
        for some in settled.chunks(SETTLED_AT_ONCE) {
            lock(&shared.observed).count(some);
            give_way();
        }
        let mut observed = lock(&shared.observed);
        observed.settle(settled_until);
        let changed = self.incidents.step(&observed, window);
        let mut described = Vec::new();
        if !self.remembering {
            for (at, incident) in self.incidents.all.iter().enumerate() {
                // An open one is told anew with each window, since its victims and numbers grow.
                if incident.is_open() || changed.contains(&at) {
                    described.push(describe::incident(&observed, incident, window));
                }
            }
        }
        if window.is_multiple_of(30) {
            observed.forget_before(window.saturating_sub(KEPT));
            self.incidents.forget_before(window.saturating_sub(KEPT));
        }
        Some((described, window))
    }
}
