//! `meta.db`: what is not telemetry. Its schema is the numbered files of `migrations/`, applied in order, each in a transaction;
//! `PRAGMA user_version` says how many were.

use crate::Error;
use rusqlite::Connection;
use std::path::Path;
use std::sync::Mutex;

/// The files of `migrations/`, in order. A file that was released is never changed.
const MIGRATIONS: &[&str] = &[include_str!("../../../migrations/0001_start.sql")];

pub(crate) struct Meta {
    /// Held open while the store is: what joins in later migrations is written through it.
    _connection: Mutex<Connection>,
}

impl Meta {
    pub fn open(path: &Path) -> Result<Meta, Error> {
        let failed = Error::sqlite("open", path);
        let mut connection = Connection::open(path).map_err(&failed)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(&failed)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(&failed)?;
        let version: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(&failed)?;
        if version as usize > MIGRATIONS.len() {
            return Err(Error::Newer { path: path.to_owned(), found: version, known: MIGRATIONS.len() as u32 });
        }
        for (number, migration) in MIGRATIONS.iter().enumerate().skip(version as usize) {
            let transaction = connection.transaction().map_err(&failed)?;
            transaction.execute_batch(migration).map_err(&failed)?;
            transaction.pragma_update(None, "user_version", number as u32 + 1).map_err(&failed)?;
            transaction.commit().map_err(&failed)?;
        }
        Ok(Meta { _connection: Mutex::new(connection) })
    }
}
