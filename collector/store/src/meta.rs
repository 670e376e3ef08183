//! `meta.db`: what is not telemetry. Its schema is the numbered files of `migrations/`, applied in order, each in a transaction;
//! `PRAGMA user_version` says how many were. `edges.db` is opened the same way, with a step of its own (`edge.rs`).

use crate::Error;
use crate::partition::lock;
use rusqlite::{Connection, OpenFlags};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The files of `migrations/`, in order. A file that was released is never changed.
const MIGRATIONS: &[&str] = &[
    include_str!("../../../migrations/0001_start.sql"),
    include_str!("../../../migrations/0002_incidents.sql"),
    include_str!("../../../migrations/0003_deliveries.sql"),
    include_str!("../../../migrations/0004_changes.sql"),
];

pub(crate) struct Meta {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl Meta {
    pub fn open(path: &Path) -> Result<Meta, Error> {
        Meta::open_with(path, MIGRATIONS)
    }

    /// A database with its own steps.
    pub fn open_with(path: &Path, migrations: &[&str]) -> Result<Meta, Error> {
        let failed = Error::sqlite("open", path);
        let mut connection = Connection::open(path).map_err(&failed)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(&failed)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(&failed)?;
        let version: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(&failed)?;
        if version as usize > migrations.len() {
            return Err(Error::Newer { path: path.to_owned(), found: version, known: migrations.len() as u32 });
        }
        for (number, migration) in migrations.iter().enumerate().skip(version as usize) {
            let transaction = connection.transaction().map_err(&failed)?;
            transaction.execute_batch(migration).map_err(&failed)?;
            transaction.pragma_update(None, "user_version", number as u32 + 1).map_err(&failed)?;
            transaction.commit().map_err(&failed)?;
        }
        Ok(Meta { path: path.to_owned(), connection: Mutex::new(connection) })
    }

    /// For a guest beside a running server, or without one.
    pub fn open_to_read(path: &Path) -> Result<Meta, Error> {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(Error::sqlite("open", path))?;
        Ok(Meta { path: path.to_owned(), connection: Mutex::new(connection) })
    }

    pub fn with<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, Error> {
        work(&lock(&self.connection)).map_err(Error::sqlite("use", &self.path))
    }
}
