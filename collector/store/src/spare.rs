//! *Spares*: the WALs of generations that are in blocks, kept to be written over by later generations.
//!
//! A file that is written over needs no new blocks and no new size from the file system, so that a commit's sync carries its data and nothing
//! else; one that grows costs the system's journal a commit of its own, and as much CPU again for making and dropping its pages. A million
//! logs cost a tenth less for it.
//!
//! SQLite tells the frames of a WAL by salts, which it draws anew when it begins one: what an earlier generation left behind the last frame
//! is no part of it. Before a WAL is put away its header is made zeros, durably, so that it is an empty one to whoever finds it.

use crate::journal::{self, companion, path_of};
use crate::partition::lock;
use crate::{Durability, Error};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// So many are kept: those of the generations that wait to be sealed while one is being written.
const SPARES_MAX: usize = 4;
/// A smaller one is not worth it: little is being written.
const SPARE_BYTES_MIN: u64 = 64 << 10;
/// A larger one held something unusual.
const SPARE_BYTES_MAX: u64 = 64 << 20;
/// A WAL's header (SQLite, "File Format For A WAL", section 4.1).
const HEADER_BYTES: usize = 32;

#[derive(Debug)]
pub(crate) struct Spares {
    directory: PathBuf,
    files: Mutex<Vec<PathBuf>>,
    /// How many were written over since start.
    reused: AtomicU64,
}

impl Spares {
    pub fn of(directory: &Path) -> Spares {
        Spares { directory: directory.to_owned(), files: Mutex::default(), reused: AtomicU64::new(0) }
    }

    /// Puts away the WAL of a generation whose rows are in synced partitions, and removes the rest of its journal.
    pub fn retire(&self, number: u64, durability: Durability) {
        if let Err(error) = self.keep(number, durability) {
            tracing::debug!(generation = number, %error, "a journal file is not kept to be written over");
        }
        journal::remove(&self.directory, number);
    }

    fn keep(&self, number: u64, durability: Durability) -> io::Result<()> {
        let mut files = lock(&self.files);
        let wal = companion(&path_of(&self.directory, number), "-wal");
        let bytes = fs::metadata(&wal)?.len();
        if files.len() >= SPARES_MAX || !(SPARE_BYTES_MIN..=SPARE_BYTES_MAX).contains(&bytes) {
            return Ok(());
        }
        // Somebody beside us who reads the journal would see it change.
        let directory = File::open(&self.directory)?;
        if directory.try_lock().is_err() {
            return Ok(());
        }
        let file = File::options().write(true).open(&wal)?;
        file.write_all_at(&[0; HEADER_BYTES], 0)?;
        if durability == Durability::Full {
            file.sync_data()?;
        }
        let spare = self.directory.join(format!("{number:08}.spare"));
        fs::rename(&wal, &spare)?;
        files.push(spare);
        Ok(())
    }

    /// Makes a spare the WAL of a new generation, if there is one. The directory is to be synced after it, before anything is written.
    pub fn give(&self, number: u64) {
        let Some(spare) = lock(&self.files).pop() else { return };
        match fs::rename(&spare, companion(&path_of(&self.directory, number), "-wal")) {
            Ok(()) => drop(self.reused.fetch_add(1, Ordering::Relaxed)),
            Err(error) => tracing::debug!(path = %spare.display(), %error, "a journal file that was kept cannot be used"),
        }
    }

    pub fn reused(&self) -> u64 {
        self.reused.load(Ordering::Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        lock(&self.files).is_empty()
    }

    /// Removes all of them, also those that an earlier run has left, and WALs whose generation is gone.
    pub fn clear(&self) -> Result<(), Error> {
        let mut files = lock(&self.files);
        files.clear();
        for entry in fs::read_dir(&self.directory).map_err(Error::io("list", &self.directory))?.flatten() {
            let path = entry.path();
            let text = path.to_string_lossy();
            let generation = text.strip_suffix("-wal").or_else(|| text.strip_suffix("-shm"));
            if text.ends_with(".spare") || generation.is_some_and(|generation| !Path::new(generation).exists()) {
                fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Journal, Record};
    use crate::{Answer, RequestHash, Signal};

    fn append(journal: &mut Journal, body: &[u8]) {
        let answer = Answer::default();
        let record = Record { signal: Signal::Logs, hash: RequestHash([7; 16]), received: 1, answer: &answer, body };
        journal.append(&[record]).expect("there is room");
    }

    fn bodies(directory: &Path, number: u64) -> Vec<Vec<u8>> {
        let mut bodies = Vec::new();
        journal::read(directory, number, |record| {
            bodies.push(record.body);
            Ok(())
        })
        .expect("it is whole");
        bodies
    }

    #[test]
    fn a_generation_in_a_file_of_another_holds_only_its_own() {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        let spares = Spares::of(directory);
        let large = vec![b'x'; 3 << 20];
        let mut first = Journal::create(directory, 1, Durability::Full, &spares).expect("it can be made");
        append(&mut first, &large);
        append(&mut first, b"of the first");
        drop(first);
        spares.retire(1, Durability::Full);
        assert!(!spares.is_empty() && journal::list(directory).expect("it is there").is_empty());

        let mut second = Journal::create(directory, 2, Durability::Full, &spares).expect("it can be made");
        assert!(spares.is_empty() && spares.reused() == 1);
        let wal = companion(&path_of(directory, 2), "-wal");
        assert!(fs::metadata(&wal).expect("it was renamed").len() > 3 << 20, "it is the file of the first");
        assert_eq!(bodies(directory, 2), Vec::<Vec<u8>>::new(), "nothing of the first");
        append(&mut second, b"of the second");
        // As a killed process leaves it, and with the rest of the first one behind the last frame.
        assert_eq!(bodies(directory, 2), [b"of the second"]);
        assert!(fs::metadata(&wal).expect("it is there").len() > 3 << 20);
    }

    #[test]
    fn what_somebody_reads_is_not_written_over() {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        let spares = Spares::of(directory);
        let mut journal = Journal::create(directory, 1, Durability::Full, &spares).expect("it can be made");
        append(&mut journal, &vec![b'x'; 3 << 20]);
        drop(journal);
        let reading = journal::hold(directory).expect("a lock");
        spares.retire(1, Durability::Full);
        assert!(spares.is_empty() && journal::list(directory).expect("it is there").is_empty());
        drop(reading);
    }

    #[test]
    fn what_an_earlier_run_has_left_is_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["00000007.spare", "00000008.db-wal", "00000009.db", "00000009.db-wal"] {
            fs::write(directory.path().join(name), b"").expect("there is room");
        }
        Spares::of(directory.path()).clear().expect("they can be removed");
        let mut left: Vec<_> = fs::read_dir(directory.path()).expect("it is there").flatten().map(|e| e.file_name()).collect();
        left.sort();
        assert_eq!(left, ["00000009.db", "00000009.db-wal"]);
    }
}
