//! What a store finds when it opens: partitions, and generations that were never sealed.

use crate::batch::{Batch, RECORD_VERSION};
use crate::generation::Generation;
use crate::partition::{Partition, Pinned, lock};
use crate::recent::decode_requests;
use crate::store::{Shared, View, now};
use crate::{Error, Signal, journal};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

pub(crate) fn open_view(directory: &Path, pinned: Pinned) -> Result<View, Error> {
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
    /// Brings back unsealed generations and recent requests. Returns the number of the next generation.
    pub(crate) fn recover(&self, seal: bool) -> Result<u64, Error> {
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

    pub(crate) fn replay(
        &self,
        directory: &Path,
        number: u64,
        is_sealed: &dyn Fn(Signal) -> Result<bool, Error>,
    ) -> Result<Generation, Error> {
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
}

const _: () = assert!(RECORD_VERSION == 1, "a new record version needs a reader for the old one and a golden file");
