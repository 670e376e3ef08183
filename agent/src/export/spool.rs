//! Requests that wait on disk while the collector is away or the process restarts.
//!
//! Each process has a folder of its own within the spool's, and holds the lock in it for as long as it lives. At its start a process takes over the
//! folders whose lock nobody holds. A file is a request:
//!
//! ```text
//! "FFSPOOL1"  signal (1 byte: 0 spans, 1 logs, 2 metrics)  items (u64, little-endian)  length of the body (u64)  body (OTLP protobuf)
//! ```
//!
//! It is written under another name and renamed when it is whole. What survives is the end of the process, not of the machine's power: nothing is synced.

use super::Signal;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const MAGIC: &[u8; 8] = b"FFSPOOL1";
const HEAD: usize = 8 + 1 + 8 + 8;
/// A file that claims more was not written by us.
const BODY_MAX: u64 = 64 << 20;

#[derive(Debug)]
pub(crate) struct Spool {
    own: PathBuf,
    /// Held until the process ends.
    _lock: File,
    number: u64,
}

/// What a file holds, without its body.
#[derive(Debug, Clone)]
pub(crate) struct Spooled {
    pub path: PathBuf,
    pub signal: Signal,
    pub items: u64,
    pub bytes: u64,
    pub written: SystemTime,
}

/// Only for the user that the service runs as: telemetry may hold what others must not see.
pub(crate) fn create_folder(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// A folder that a process of this agent made: by its name, twenty digits and a number, and no link to elsewhere.
fn is_ours(entry: &fs::DirEntry) -> bool {
    let name = entry.file_name();
    let named = name.to_str().and_then(|name| name.split_once('-')).is_some_and(|(since, pid)| {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        since.len() == 20 && digits(since) && digits(pid)
    });
    let plain = |path: &Path, file: bool| fs::symlink_metadata(path).is_ok_and(|about| if file { about.is_file() } else { about.is_dir() });
    named && plain(&entry.path(), false) && plain(&entry.path().join("lock"), true)
}

impl Spool {
    /// Opens the spool in a folder, and says what processes that have ended left there, oldest first.
    pub fn open(folder: &Path) -> io::Result<(Spool, Vec<Spooled>)> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let own = folder.join(format!("{since:020}-{}", std::process::id()));
        create_folder(&own)?;
        // It has its name once it is locked: a process that starts at the same moment must not take this one for dead.
        let draft = own.join("lock.draft");
        let lock = File::create(&draft)?;
        lock.try_lock().map_err(io::Error::from)?;
        fs::rename(&draft, own.join("lock"))?;
        let mut spool = Spool { own, _lock: lock, number: 0 };
        let mut left = Vec::new();
        for entry in fs::read_dir(folder)?.flatten() {
            let other = entry.path();
            if other != spool.own
                && is_ours(&entry)
                && let Ok(lock) = File::open(other.join("lock"))
                && lock.try_lock().is_ok()
            {
                left.extend(spool.take_over(&other));
                // Only what a spool has in it; a folder with anything else stays.
                for name in ["lock", "lock.draft"] {
                    let _ = fs::remove_file(other.join(name));
                }
                let _ = fs::remove_dir(&other);
            }
        }
        left.sort_by(|a, b| a.written.cmp(&b.written).then_with(|| a.path.cmp(&b.path)));
        Ok((spool, left))
    }

    /// Moves the files of a process that has ended to our own.
    fn take_over(&mut self, other: &Path) -> Vec<Spooled> {
        let mut files: Vec<PathBuf> = fs::read_dir(other)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.extension() == Some("otlp".as_ref()))
            .collect();
        files.sort();
        let mut taken = Vec::new();
        for file in files {
            let path = self.next_path();
            if fs::rename(&file, &path).is_ok() {
                match read_head(&path) {
                    Ok(head) => taken.push(head),
                    Err(_) => drop(fs::remove_file(&path)),
                }
            }
        }
        taken
    }

    fn next_path(&mut self) -> PathBuf {
        self.number += 1;
        self.own.join(format!("{:010}.otlp", self.number))
    }

    pub fn write(&mut self, signal: Signal, items: u64, body: &[u8]) -> io::Result<Spooled> {
        let path = self.next_path();
        let draft = path.with_extension("draft");
        let mut head = Vec::with_capacity(HEAD);
        head.extend_from_slice(MAGIC);
        head.push(signal as u8);
        head.extend_from_slice(&items.to_le_bytes());
        head.extend_from_slice(&(body.len() as u64).to_le_bytes());
        let written = (|| {
            let mut file = File::create(&draft)?;
            file.write_all(&head)?;
            file.write_all(body)?;
            drop(file);
            fs::rename(&draft, &path)
        })();
        if let Err(error) = written {
            let _ = fs::remove_file(&draft);
            return Err(error);
        }
        Ok(Spooled { path, signal, items, bytes: (HEAD + body.len()) as u64, written: SystemTime::now() })
    }
}

impl Drop for Spool {
    /// An empty folder says nothing; one that holds something is for the next process.
    fn drop(&mut self) {
        let empty = fs::read_dir(&self.own).is_ok_and(|mut all| all.all(|e| e.is_ok_and(|e| e.file_name() == "lock")));
        if empty {
            let _ = fs::remove_dir_all(&self.own);
        }
    }
}

fn read_head(path: &Path) -> io::Result<Spooled> {
    let mut file = File::open(path)?;
    let mut head = [0; HEAD];
    file.read_exact(&mut head)?;
    let about = file.metadata()?;
    let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
    let signal = Signal::ALL.get(usize::from(head[8])).copied();
    match signal {
        Some(signal) if head.starts_with(MAGIC) && number(17) <= BODY_MAX && about.len() == HEAD as u64 + number(17) => {
            Ok(Spooled { path: path.to_owned(), signal, items: number(9), bytes: about.len(), written: about.modified()? })
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not a file of the spool, or a part of one")),
    }
}

impl Spooled {
    pub fn body(&self) -> io::Result<Vec<u8>> {
        read_head(&self.path)?;
        let mut all = fs::read(&self.path)?;
        all.drain(..HEAD);
        Ok(all)
    }

    pub fn age(&self) -> Duration {
        self.written.elapsed().unwrap_or_default()
    }

    pub fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("firstfall-spool-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    #[test]
    fn what_a_process_left_is_taken_over_once_and_damaged_files_are_not() {
        let folder = folder("take");
        let (mut spool, left) = Spool::open(&folder).expect("a folder");
        assert!(left.is_empty());
        spool.write(Signal::Logs, 3, b"body").expect("written");
        let damaged = spool.write(Signal::Spans, 1, b"longer body").expect("written");
        File::options().write(true).open(&damaged.path).and_then(|f| f.set_len(30)).expect("cut short");

        let (_second, none) = Spool::open(&folder).expect("a folder");
        assert!(none.is_empty(), "the first one lives and holds its lock");
        drop(spool);
        // What others keep beside it is theirs, whatever they call their locks.
        fs::create_dir_all(folder.join("dpkg")).expect("writable");
        fs::write(folder.join("dpkg/lock"), "").expect("writable");
        fs::write(folder.join("dpkg/status"), "installed").expect("writable");
        let (third, left) = Spool::open(&folder).expect("a folder");
        assert!(folder.join("dpkg/status").exists() && folder.join("dpkg/lock").exists());
        assert_eq!(left.len(), 1);
        assert_eq!((left[0].signal, left[0].items, left[0].body().expect("whole")), (Signal::Logs, 3, b"body".to_vec()));
        drop(third);
        fs::remove_dir_all(&folder).expect("it is there");
    }
}
