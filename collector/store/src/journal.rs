//! The *journal*: batches that are durable but not yet in a block.
//!
//! One SQLite file is one *generation*: `rec(seq, kind, version, hash, received, answer, body)`. Its WAL is never checkpointed,
//! so what is accepted is written once, in order, and one `COMMIT` with `synchronous=FULL` is one fsync for all requests that
//! came while the one before ran. When its rows are in blocks the file is unlinked, and its WAL may be written over by a later generation
//! (`spare.rs`); a generation number is never used twice.

use crate::batch::RECORD_VERSION;
use crate::spare::Spares;
use crate::{Answer, Durability, Error, RequestHash, Signal};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, MAIN_DB, OpenFlags, params};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

pub(crate) struct Journal {
    path: PathBuf,
    connection: Connection,
    /// Bytes of the bodies that it holds.
    pub bytes: u64,
}

/// A request as the journal keeps it.
pub(crate) struct Record<'a> {
    pub signal: Signal,
    pub hash: RequestHash,
    /// Wall clock at acceptance, nanoseconds.
    pub received: u64,
    pub answer: &'a Answer,
    pub body: &'a [u8],
}

pub(crate) struct StoredRecord {
    pub hash: RequestHash,
    pub received: u64,
    pub answer: Answer,
    pub version: u32,
    pub body: Vec<u8>,
}

pub(crate) fn path_of(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:08}.db"))
}

/// The generations of a directory, oldest first.
pub(crate) fn list(directory: &Path) -> Result<Vec<u64>, Error> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory).map_err(Error::io("list", directory))? {
        let name = entry.map_err(Error::io("list", directory))?.file_name();
        if let Some(number) = name.to_str().and_then(|n| n.strip_suffix(".db")).and_then(|n| n.parse().ok()) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// A generation without records, as a file: every new one begins as a copy, which costs one sync where SQLite's own making of it costs four.
static EMPTY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let make = || -> rusqlite::Result<Vec<u8>> {
        let mut connection = Connection::open_in_memory()?;
        // A record is tens of kilobytes: in pages of 4 KiB it would be twenty writes.
        connection.pragma_update(None, "page_size", 16384)?;
        connection.execute_batch(
            "CREATE TABLE rec(seq INTEGER PRIMARY KEY, kind INTEGER NOT NULL, version INTEGER NOT NULL,
                 hash BLOB NOT NULL, received INTEGER NOT NULL, answer TEXT NOT NULL, body BLOB NOT NULL)",
        )?;
        Ok(connection.serialize(MAIN_DB)?.to_vec())
    };
    let mut file = make().expect("SQLite works in memory");
    // "File format write version" and "read version" (SQLite, "Database File Format", section 1.3.3): 2 is WAL.
    file[18..20].fill(2);
    file
});

impl Journal {
    pub fn create(directory: &Path, number: u64, durability: Durability, spares: &Spares) -> Result<Journal, Error> {
        let path = path_of(directory, number);
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&path)?;
            file.write_all(&EMPTY)?;
            if durability == Durability::Full { file.sync_all() } else { Ok(()) }
        };
        write().map_err(Error::io("create", &path))?;
        spares.give(number);
        if durability == Durability::Full {
            sync_directory(directory)?;
        }
        let connection = Connection::open(&path).map_err(Error::sqlite("open", &path))?;
        let prepare = || -> rusqlite::Result<()> {
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            connection.pragma_update(None, "wal_autocheckpoint", 0)?;
            connection.pragma_update(None, "synchronous", if durability == Durability::Full { "FULL" } else { "OFF" })?;
            connection.pragma_update(None, "cache_size", -4096)
        };
        prepare().map_err(Error::sqlite("create", &path))?;
        Ok(Journal { path, connection, bytes: 0 })
    }

    /// All records are durable when this returns, or none of them is in the journal.
    pub fn append(&mut self, records: &[Record<'_>]) -> Result<(), Error> {
        let write = || -> rusqlite::Result<()> {
            self.connection.execute_batch("BEGIN IMMEDIATE")?;
            let mut insert = self
                .connection
                .prepare_cached("INSERT INTO rec(kind, version, hash, received, answer, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
            for record in records {
                insert.execute(params![
                    record.signal as u8,
                    RECORD_VERSION,
                    record.hash.0.as_slice(),
                    record.received as i64,
                    record.answer.to_text(),
                    record.body
                ])?;
            }
            self.connection.execute_batch("COMMIT")
        };
        let result = write();
        if let Err(error) = result {
            if !self.connection.is_autocommit() {
                let _ = self.connection.execute_batch("ROLLBACK");
            }
            return Err(Error::sqlite("write to", &self.path)(error));
        }
        self.bytes += records.iter().map(|r| r.body.len() as u64).sum::<u64>();
        Ok(())
    }
}

/// Reads what a generation holds. Also used beside a running server, which keeps writing.
pub(crate) fn read(directory: &Path, number: u64, mut each: impl FnMut(StoredRecord) -> Result<(), Error>) -> Result<(), Error> {
    let path = path_of(directory, number);
    let failed = Error::sqlite("read", &path);
    let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(&failed)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(&failed)?;
    let exists: bool =
        connection.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'rec'", [], |row| row.get(0)).map_err(&failed)?;
    if !exists {
        return Ok(());
    }
    let mut select = connection.prepare("SELECT hash, received, answer, version, body FROM rec ORDER BY seq").map_err(&failed)?;
    let mut rows = select.query([]).map_err(&failed)?;
    while let Some(row) = rows.next().map_err(&failed)? {
        let record = (|| -> rusqlite::Result<StoredRecord> {
            Ok(StoredRecord {
                hash: RequestHash::from_slice(row.get_ref(0)?.as_blob()?),
                received: row.get::<_, i64>(1)? as u64,
                answer: Answer::from_text(row.get_ref(2)?.as_str()?),
                version: row.get(3)?,
                body: row.get(4)?,
            })
        })()
        .map_err(&failed)?;
        each(record)?;
    }
    Ok(())
}

/// Removes a generation whose rows are in synced partitions.
pub(crate) fn remove(directory: &Path, number: u64) {
    let path = path_of(directory, number);
    for suffix in ["-shm", "-wal", ""] {
        let name = companion(&path, suffix);
        if let Err(error) = fs::remove_file(&name)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = ?name, %error, "cannot remove a journal file that is no longer needed");
        }
    }
}

/// The file that SQLite keeps beside a database.
pub(crate) fn companion(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(suffix);
    name.into()
}

/// While this is held no generation is written over: for whoever reads the journal beside a running server.
pub(crate) fn hold(directory: &Path) -> Result<File, Error> {
    let held = File::open(directory).map_err(Error::io("open", directory))?;
    held.lock_shared().map_err(Error::io("lock", directory))?;
    Ok(held)
}

pub(crate) fn sync_directory(directory: &Path) -> Result<(), Error> {
    File::open(directory).and_then(|d| d.sync_all()).map_err(Error::io("sync", directory))
}
