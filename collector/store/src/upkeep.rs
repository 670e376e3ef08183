//! What happens in the background: small blocks are merged, old partitions dropped, the room on the disk is watched.

use crate::block::BLOCK_ROWS;
use crate::partition::{BlockInfo, Partition, Pinned, lock};
use crate::rebuild::batch_of;
use crate::recent::REMEMBERED;
use crate::rollup::{self, Level, MINUTE};
use crate::store::{Shared, now};
use crate::{Error, Reader, Signal};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Blocks below this share of a full one are merged …
const SMALL_ROWS: usize = BLOCK_ROWS / 4;
/// … when there are this many of them side by side: merging by fours rewrites a row at most a few times in its life.
const MERGE_COUNT: usize = 4;

impl Shared {
    pub(crate) fn upkeep(self: Arc<Shared>) {
        let reader = Reader { shared: self.clone() };
        while !self.is_closing() {
            let until = std::time::Instant::now() + self.options.upkeep_pause;
            while !self.is_closing() && std::time::Instant::now() < until {
                std::thread::sleep(self.options.upkeep_pause.min(Duration::from_millis(100)));
            }
            if self.is_closing() {
                return;
            }
            self.measure_disk();
            self.tidy(&reader);
            if let Err(error) = reader.tidy_edges(now()) {
                tracing::warn!(%error, "edges.db cannot be tidied up; it is tried again");
            }
            if let Err(error) = self.retain() {
                tracing::warn!(%error, "cannot drop old partitions; it is tried again");
            }
        }
    }

    fn partitions(&self, signal: Signal) -> Vec<Arc<Partition>> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).partitions[signal as usize].clone()
    }

    /// Partition by partition: what is damaged in one is no reason to leave the others alone.
    fn tidy(&self, reader: &Reader) {
        for partition in Signal::ALL.into_iter().flat_map(|signal| self.partitions(signal)) {
            if self.is_closing() {
                return;
            }
            if let Err(error) = self.tidy_partition(reader, &partition) {
                tracing::warn!(path = %partition.path.display(), %error, "cannot tidy a partition up; it stays as it is");
            }
        }
    }

    fn tidy_partition(&self, reader: &Reader, partition: &Arc<Partition>) -> Result<(), Error> {
        partition.compact_rollups()?;
        partition.forget_requests(now().saturating_sub(REMEMBERED))?;
        loop {
            let _merging = lock(&self.merging);
            if self.is_closing() || self.pasts.load(Ordering::Acquire) > 0 {
                return Ok(());
            }
            let Some(blocks) = mergeable(&partition.blocks()) else { return Ok(()) };
            partition.merge(&blocks, &batch_of(reader, partition, &blocks, None)?)?;
        }
    }

    /// Drops partitions by age and by bytes, oldest first, after their rollups are folded into `rollups.db`.
    fn retain(&self) -> Result<(), Error> {
        let retention = *lock(&self.retention);
        let oldest_allowed = now().saturating_sub(retention.age.as_nanos() as u64);
        let mut bytes: u64 = Signal::ALL.iter().flat_map(|s| self.partitions(*s)).map(|p| p.byte_len()).sum();
        loop {
            // A partition ends where the next of its signal begins; the newest is still open and stays.
            let oldest = Signal::ALL
                .iter()
                .filter_map(|signal| {
                    let partitions = self.partitions(*signal);
                    (partitions.len() > 1).then(|| (partitions[1].created, partitions[0].clone()))
                })
                .min_by_key(|(ended, _)| *ended);
            let Some((ended, partition)) = oldest else {
                return Ok(());
            };
            if ended >= oldest_allowed && bytes <= retention.bytes {
                return Ok(());
            }
            let size = partition.byte_len();
            self.drop_partition(&partition)?;
            bytes = bytes.saturating_sub(size);
            tracing::info!(path = %partition.path.display(), bytes = size, "retention dropped a partition");
        }
    }

    fn drop_partition(&self, partition: &Arc<Partition>) -> Result<(), Error> {
        let folded = if partition.signal == Signal::Traces { Some(self.fold_rollups(partition)?) } else { None };
        // Both in one step, so that no question counts the partition and what was folded of it.
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(target) = folded {
            target.show_rollups()?;
        }
        view.partitions[partition.signal as usize].retain(|p| !Arc::ptr_eq(p, partition));
        drop(view);
        partition.doom();
        Ok(())
    }

    /// Keeps a partition's rollups, at a minute's width, in `rollups.db`: once, since it remembers which file it has folded.
    fn fold_rollups(&self, partition: &Partition) -> Result<Arc<Partition>, Error> {
        let path = self.directory.join("rollups.db");
        let known = self.view.read().unwrap_or_else(PoisonError::into_inner).rollups.clone();
        let target = match known {
            Some(target) => target,
            None => {
                let target = Arc::new(if Path::exists(&path) {
                    Partition::open(&path, Signal::Traces, Pinned::No)?
                } else {
                    Partition::create(&path, Signal::Traces, now())?
                });
                self.view.write().unwrap_or_else(PoisonError::into_inner).rollups = Some(target.clone());
                target
            }
        };
        let services = partition.services_by_id();
        let mut folded: Vec<(u64, Level, Vec<u8>)> = Vec::new();
        let mut ids = target.service_ids();
        let mut new_services = Vec::new();
        for (level, finer) in [(Level::ServiceMinute, Level::Service), (Level::OperationMinute, Level::Operation)] {
            let rollups = partition.rollups(level, 0, i64::MAX as u64, i64::MAX)?;
            for group in rollups.chunk_by(|(a, _), (b, _)| a == b) {
                let target_id = |service: u32| {
                    let service = services.get(&service)?;
                    let next = ids.len() as u32 + 1;
                    Some(*ids.entry(service.clone()).or_insert_with(|| {
                        new_services.push((service.clone(), next));
                        next
                    }))
                };
                let minute = group[0].0;
                let bodies = group.iter().map(|(_, body)| body.as_slice());
                match rollup::merge_bodies(minute, bodies, target_id) {
                    // Under both levels, so that a question by ten seconds finds at least the minute.
                    Ok(body) => folded.extend([(minute, level, body.clone()), (minute, finer, body)]),
                    // Keeping the partition for it would stop retention, and with it all writing in the end.
                    Err(error) => tracing::error!(path = %partition.path.display(), minute, %error, "a damaged rollup is lost"),
                }
            }
        }
        let oldest = now().saturating_sub(lock(&self.retention).rollups.as_nanos() as u64) / MINUTE * MINUTE;
        target.add_rollups(partition.created as i64, &new_services, &folded, oldest)?;
        Ok(target)
    }
}

/// Neighbours that are small enough to become one block.
fn mergeable(blocks: &[Arc<BlockInfo>]) -> Option<Vec<Arc<BlockInfo>>> {
    let mut run: Vec<Arc<BlockInfo>> = Vec::new();
    for block in blocks {
        let rows: usize = run.iter().map(|b| b.rows).sum();
        if block.rows < SMALL_ROWS && rows + block.rows <= BLOCK_ROWS {
            run.push(block.clone());
            // Blocks of like size only: else the big one would be rewritten for every small one.
            if run.len() >= MERGE_COUNT && run.iter().map(|b| b.rows).max()? <= run.iter().map(|b| b.rows).sum::<usize>() / 2 {
                return Some(run);
            }
        } else {
            run.clear();
        }
    }
    None
}
