//! The writer thread: one journal commit for all requests that came while the one before ran. What it has committed is answered, and
//! visible in the live generation.

use crate::batch::Batch;
use crate::generation::Generation;
use crate::journal::{self, Journal, Record};
use crate::partition::lock;
use crate::recent::{Answer, RequestHash};
use crate::store::{Durability, Shared, TicketResult};
use crate::{Error, Refusal};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

#[derive(Default)]
pub(crate) struct Queue {
    jobs: Vec<Job>,
    pub seal_now: bool,
    pub closed: bool,
}

struct Job {
    batch: Arc<Batch>,
    record: Vec<u8>,
    hash: RequestHash,
    received: u64,
    answer: Answer,
    done: Box<dyn FnOnce(TicketResult) + Send>,
}

/// The right to submit one batch. Dropping it unused forgets the request.
pub struct Place {
    shared: Arc<Shared>,
    hash: RequestHash,
    used: bool,
}

impl Place {
    pub(crate) fn new(shared: Arc<Shared>, hash: RequestHash) -> Place {
        Place { shared, hash, used: false }
    }

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

impl Shared {
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

    /// Runs until the store closes; `next` is the number of the first generation.
    pub(crate) fn write(&self, mut next: u64) {
        // How often it looks whether a quiet generation has become old.
        const TICK: Duration = Duration::from_millis(250);
        let directory = self.journal_directory();
        // Nothing is kept to be written over when nothing was written for so long.
        const QUIET: Duration = Duration::from_secs(10);
        let mut busy = Instant::now();
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
                busy = Instant::now();
                if open.is_none() {
                    let number = next;
                    next += 1;
                    match Journal::create(&directory, number, self.options.durability, &self.spares) {
                        Ok(journal) => open = Some((journal, self.open_generation(number))),
                        Err(error) => {
                            journal::remove(&directory, number);
                            self.write_failed(jobs, &error);
                            continue;
                        }
                    }
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
            if busy.elapsed() > QUIET {
                self.clear_spares();
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
            if let Some(tap) = &self.options.tap.0 {
                tap(&job.batch);
            }
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
}
