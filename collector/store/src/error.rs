//! What can go wrong, by what the caller can do about it.

use std::path::{Path, PathBuf};

/// Bytes that are not what was written. Says what was found instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damaged(pub &'static str);

impl std::fmt::Display for Damaged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "found {}", self.0)
    }
}

impl std::error::Error for Damaged {}

#[derive(Debug)]
pub enum Error {
    /// The operating system refused.
    Io { doing: &'static str, path: PathBuf, error: std::io::Error },
    /// SQLite refused.
    Sqlite { doing: &'static str, path: PathBuf, error: rusqlite::Error },
    /// A file holds what this program did not write.
    Damaged { path: PathBuf, found: Damaged },
    /// A file was written by a later version.
    Newer { path: PathBuf, found: u32, known: u32 },
    /// Another process owns the directory.
    InUse { directory: PathBuf, owner: String },
    /// A merge replaced the block while it was read: ask again.
    Moved,
    /// The question took longer than it may.
    Deadline,
    /// The question would need more than it may; says what.
    TooMuch(&'static str),
    /// The SQL is wrong; says how.
    Sql(String),
}

impl Error {
    pub(crate) fn io<'a>(doing: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> Error + 'a {
        move |error| Error::Io { doing, path: path.to_owned(), error }
    }

    pub(crate) fn sqlite<'a>(doing: &'static str, path: &'a Path) -> impl Fn(rusqlite::Error) -> Error + 'a {
        move |error| Error::Sqlite { doing, path: path.to_owned(), error }
    }

    pub(crate) fn damaged<'a>(path: &'a Path) -> impl Fn(Damaged) -> Error + 'a {
        move |found| Error::Damaged { path: path.to_owned(), found }
    }

    /// The disk has no room: it passes, and nothing is broken.
    pub fn is_full(&self) -> bool {
        match self {
            Error::Sqlite { error: rusqlite::Error::SqliteFailure(code, _), .. } => code.code == rusqlite::ErrorCode::DiskFull,
            Error::Io { error, .. } => matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded),
            _ => false,
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Io { doing, path, error } => write!(f, "{doing} {}: {error}", path.display()),
            Error::Sqlite { doing, path, error } if path.as_os_str().is_empty() => write!(f, "{doing}: {error}"),
            Error::Sqlite { doing, path, error } => write!(f, "{doing} {}: {error}", path.display()),
            Error::Damaged { path, found } => write!(
                f,
                "{} is damaged ({found}); move it out of the data directory and start again: the rest keeps working, what it held is lost",
                path.display()
            ),
            Error::Newer { path, found, known } => write!(
                f,
                "{} has version {found}, this program knows up to {known}; start the newer version, or restore the copy made before the upgrade",
                path.display()
            ),
            Error::InUse { directory, owner } => write!(
                f,
                "the data directory {} is in use by {owner}; stop that server, or give this one a directory of its own with --data-dir",
                directory.display()
            ),
            Error::Moved => f.write_str("the data moved while they were read; ask again"),
            Error::Deadline => f.write_str("the question took too long and was stopped; narrow the time range or add a service"),
            Error::TooMuch(what) => write!(f, "the question needs {what}; narrow it"),
            Error::Sql(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Error {}

/// Why a batch was not taken. Nothing of it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// More is waiting to be written than may wait: come again shortly.
    Busy,
    /// The disk is full or failing: come again later.
    Unwritable(String),
    /// The store is closing.
    Closing,
}
