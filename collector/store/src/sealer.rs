//! The sealer thread: a whole generation becomes blocks and rollups in the partitions of now, in one transaction for each signal. Then its
//! journal is removed.

use crate::generation::Generation;
use crate::partition::{Partition, Sealed, lock};
use crate::recent::encode_requests;
use crate::store::{Shared, now};
use crate::{Error, NANOS_PER_SECOND, Signal, journal};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

impl Shared {
    /// Turns whole generations into blocks, oldest first, until the store closes. A generation stays live until that has worked.
    pub(crate) fn seal(&self) {
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
        self.spares.retire(generation.number, self.options.durability);
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
}
