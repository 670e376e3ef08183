//! A *partition*: one SQLite file with the blocks of one signal that arrived in a stretch of time, self-contained.
//!
//! ```text
//! about(version, signal, created)                         one row
//! service(id, environment, namespace, name)               dictionaries of this file
//! resource(id, body)   scope(id, body)                    encoded as in `value`
//! generation(id, sealed, requests)                        which journal generations are in; hashes of their requests
//! block(id, version, rows, time_min, time_max, directory, traces, filter)
//! segment(block, number, body)                            see `block`
//! rollup(id, minute, level, version, body)                see `rollup`
//! seen(resource, service, latest)                         when each sender was last heard
//! ```
//!
//! There is one writer at a time (the sealer or the upkeep, under a lock) and any number of readers, each with a connection of
//! its own from a small pool. Old partitions are read by their version, never migrated.

use crate::batch::Batch;
use crate::block::{self, BLOCK_VERSION, Dictionary};
use crate::bloom::Bloom;
use crate::rollup::{self, Level, ROLLUP_VERSION, Rollups};
use crate::segment::{Directory, Segment, TraceTable};
use crate::value::{Resource, Scope, Stored};
use crate::{Damaged, Error, Service, Signal};
use hashbrown::HashMap;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

pub const PARTITION_VERSION: u32 = 1;

/// Idle connections kept for readers: more than two cores can use at once is waste.
const IDLE_CONNECTIONS_MAX: usize = 4;

/// Rollups of one minute and level that are left beside each other: each is a BLOB to be read by a question.
const ROLLUPS_PER_MINUTE_MAX: i64 = 6;

pub struct Partition {
    pub path: PathBuf,
    pub signal: Signal,
    /// When it was created, nanoseconds.
    pub created: u64,
    writer: Mutex<PartitionWriter>,
    idle: Mutex<Vec<Connection>>,
    blocks: RwLock<Arc<Vec<Arc<BlockInfo>>>>,
    dictionary: RwLock<ReadDictionary>,
    /// Set when retention has dropped it: the file goes when the last reader is done.
    doomed: std::sync::atomic::AtomicBool,
    rollups_end: std::sync::atomic::AtomicI64,
    /// `rollups_end` when they were last compacted.
    rollups_compacted: std::sync::atomic::AtomicI64,
    rollups_hold: RwLock<()>,
    /// The generations that were in it when it was opened, in the same snapshot as the first list of blocks.
    opened_with: Vec<u64>,
}

/// Whether a reader stays at the moment of opening. One beside a running server does: the lists it took would else go stale as blocks
/// are merged. Its one connection keeps its transaction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pinned {
    No,
    Yes,
}

pub struct BlockInfo {
    pub id: i64,
    pub rows: usize,
    pub time_min: u64,
    pub time_max: u64,
    pub directory: Directory,
    pub filter: Bloom,
}

#[derive(Default)]
struct ReadDictionary {
    services: HashMap<u32, Service>,
    resources: HashMap<u32, Arc<Resource>>,
    scopes: HashMap<u32, Arc<Scope>>,
}

struct PartitionWriter {
    connection: Connection,
    services: HashMap<Service, u32>,
    resources: HashMap<Vec<u8>, u32>,
    scopes: HashMap<Vec<u8>, u32>,
}

/// New dictionary entries of a transaction; they enter the maps when it is committed.
struct NewEntries<'a> {
    known: &'a PartitionWriter,
    services: Vec<(Service, u32)>,
    resources: Vec<(Vec<u8>, u32)>,
    scopes: Vec<(Vec<u8>, u32)>,
}

fn entry<K: std::hash::Hash + Eq + Clone + std::borrow::Borrow<Q>, Q: std::hash::Hash + Eq + ?Sized>(
    known: &HashMap<K, u32>,
    new: &mut Vec<(K, u32)>,
    key: &Q,
    owned: impl FnOnce() -> K,
) -> u32 {
    if let Some(id) = known.get(key) {
        return *id;
    }
    if let Some((_, id)) = new.iter().find(|(k, _)| k.borrow() == key) {
        return *id;
    }
    let id = (known.len() + new.len()) as u32 + 1;
    new.push((owned(), id));
    id
}

impl Dictionary for NewEntries<'_> {
    fn service(&mut self, service: &Service) -> u32 {
        entry(&self.known.services, &mut self.services, service, || service.clone())
    }
    fn resource(&mut self, body: &[u8]) -> u32 {
        entry(&self.known.resources, &mut self.resources, body, || body.to_vec())
    }
    fn scope(&mut self, body: &[u8]) -> u32 {
        entry(&self.known.scopes, &mut self.scopes, body, || body.to_vec())
    }
}

/// What a sealed generation adds to a partition.
pub(crate) struct Sealed<'a> {
    pub generation: u64,
    pub now: u64,
    pub batches: &'a [Arc<Batch>],
    pub rollups: &'a Rollups,
    pub requests: &'a [u8],
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A reader that panicked leaves data that are only ever replaced whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Partition {
    pub fn create(path: &Path, signal: Signal, now: u64) -> Result<Partition, Error> {
        let connection = Connection::open(path).map_err(Error::sqlite("create", path))?;
        let prepare = || -> rusqlite::Result<()> {
            connection.pragma_update(None, "page_size", 16384)?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.execute_batch(&format!(
                "BEGIN;
                 CREATE TABLE about(version INTEGER NOT NULL, signal TEXT NOT NULL, created INTEGER NOT NULL);
                 CREATE TABLE service(id INTEGER PRIMARY KEY, environment TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL);
                 CREATE TABLE resource(id INTEGER PRIMARY KEY, body BLOB NOT NULL);
                 CREATE TABLE scope(id INTEGER PRIMARY KEY, body BLOB NOT NULL);
                 CREATE TABLE generation(id INTEGER PRIMARY KEY, sealed INTEGER NOT NULL, requests BLOB NOT NULL);
                 CREATE TABLE block(id INTEGER PRIMARY KEY, version INTEGER NOT NULL, rows INTEGER NOT NULL, time_min INTEGER NOT NULL,
                     time_max INTEGER NOT NULL, directory BLOB NOT NULL, filter BLOB NOT NULL, traces BLOB NOT NULL);
                 CREATE TABLE segment(block INTEGER NOT NULL, number INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (block, number));
                 CREATE TABLE rollup(id INTEGER PRIMARY KEY, minute INTEGER NOT NULL, level INTEGER NOT NULL, version INTEGER NOT NULL,
                     body BLOB NOT NULL);
                 CREATE INDEX rollup_minute ON rollup(level, minute);
                 CREATE TABLE seen(resource INTEGER PRIMARY KEY, service INTEGER NOT NULL, latest INTEGER NOT NULL);
                 INSERT INTO about VALUES ({PARTITION_VERSION}, '{}', {now});
                 COMMIT;",
                signal.name()
            ))
        };
        prepare().map_err(Error::sqlite("create", path))?;
        drop(connection);
        Partition::open(path, signal, Pinned::No)
    }

    pub fn open(path: &Path, signal: Signal, pinned: Pinned) -> Result<Partition, Error> {
        let failed = Error::sqlite("open", path);
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(&failed)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(&failed)?;
        connection.busy_timeout(std::time::Duration::from_secs(10)).map_err(&failed)?;
        let (version, created): (u32, i64) =
            connection.query_row("SELECT version, created FROM about", [], |row| Ok((row.get(0)?, row.get(1)?))).map_err(&failed)?;
        if version > PARTITION_VERSION {
            return Err(Error::Newer { path: path.to_owned(), found: version, known: PARTITION_VERSION });
        }
        let mut writer = PartitionWriter { connection, services: HashMap::new(), resources: HashMap::new(), scopes: HashMap::new() };
        writer.load().map_err(&failed)?;
        let mut partition = Partition {
            path: path.to_owned(),
            signal,
            created: created as u64,
            writer: Mutex::new(writer),
            idle: Mutex::default(),
            blocks: RwLock::default(),
            dictionary: RwLock::default(),
            doomed: false.into(),
            rollups_end: 0.into(),
            rollups_compacted: 0.into(),
            rollups_hold: RwLock::default(),
            opened_with: Vec::new(),
        };
        // Blocks, rollups and generations as of one moment: a generation that is sealed meanwhile is in all of them or in none.
        let (blocks, rollups_end, generations, services) = partition.with_reader(|connection| {
            connection.execute_batch("BEGIN").map_err(&failed)?;
            let services = read_services(connection).map_err(&failed)?;
            let blocks = read_blocks(connection, path)?;
            let rollups_end: i64 =
                connection.query_row("SELECT coalesce(max(id), 0) FROM rollup", [], |row| row.get(0)).map_err(&failed)?;
            let mut select = connection.prepare("SELECT id FROM generation").map_err(&failed)?;
            let rows = select.query_map([], |row| row.get::<_, i64>(0)).map_err(&failed)?;
            let generations = rows.collect::<rusqlite::Result<Vec<i64>>>().map_err(&failed)?;
            if pinned == Pinned::No {
                connection.execute_batch("COMMIT").map_err(&failed)?;
            }
            Ok((blocks, rollups_end, generations, services))
        })?;
        partition.dictionary.get_mut().unwrap_or_else(PoisonError::into_inner).services = services.into_iter().collect();
        partition.opened_with = generations.into_iter().map(|id| id as u64).collect();
        partition.rollups_end = rollups_end.into();
        *partition.blocks.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(blocks);
        Ok(partition)
    }

    /// The blocks as they are now; a later write does not change the list.
    pub fn blocks(&self) -> Arc<Vec<Arc<BlockInfo>>> {
        self.blocks.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Blocks in the file that `publish` has not made visible.
    pub(crate) fn unlisted_blocks(&self) -> Result<Vec<Arc<BlockInfo>>, Error> {
        let listed = self.blocks();
        let mut all = self.with_reader(|connection| read_blocks(connection, &self.path))?;
        all.retain(|block| listed.iter().all(|known| known.id != block.id));
        Ok(all)
    }

    pub fn byte_len(&self) -> u64 {
        ["", "-wal"]
            .iter()
            .filter_map(|suffix| {
                let mut path = self.path.clone().into_os_string();
                path.push(suffix);
                std::fs::metadata(path).ok()
            })
            .map(|m| m.len())
            .sum()
    }

    pub(crate) fn opened_with(&self, generation: u64) -> bool {
        self.opened_with.contains(&generation)
    }

    pub fn has_generation(&self, generation: u64) -> Result<bool, Error> {
        self.with_reader(|connection| {
            connection
                .query_row("SELECT 1 FROM generation WHERE id = ?1", [generation as i64], |_| Ok(()))
                .optional()
                .map(|found| found.is_some())
                .map_err(Error::sqlite("read", &self.path))
        })
    }

    pub fn last_generation(&self) -> Result<u64, Error> {
        self.with_reader(|connection| {
            connection
                .query_row("SELECT coalesce(max(id), 0) FROM generation", [], |row| row.get::<_, i64>(0))
                .map(|id| id as u64)
                .map_err(Error::sqlite("read", &self.path))
        })
    }

    /// The remembered requests of generations sealed since then.
    pub fn requests_since(&self, since: u64) -> Result<Vec<Vec<u8>>, Error> {
        self.select(|connection| {
            let mut select = connection.prepare("SELECT requests FROM generation WHERE sealed >= ?1")?;
            let rows = select.query_map([since as i64], |row| row.get(0))?;
            rows.collect()
        })
    }

    /// Writes a generation's blocks and rollups in one transaction, durable when it returns. Returns the new blocks, which
    /// `publish` makes visible.
    pub(crate) fn seal(&self, sealed: &Sealed<'_>) -> Result<Vec<Arc<BlockInfo>>, Error> {
        let failed = Error::sqlite("write to", &self.path);
        let mut writer = lock(&self.writer);
        let batches: Vec<&Batch> = sealed.batches.iter().map(Arc::as_ref).collect();
        let mut entries = NewEntries { known: &writer, services: Vec::new(), resources: Vec::new(), scopes: Vec::new() };
        let encoded: Vec<block::EncodedBlock> =
            split_by_rows(&batches).into_iter().map(|group| block::encode(group, &mut entries)).collect();
        let rollups = sealed.rollups.encode(|service| entries.service(service));
        let seen: Vec<(u32, u32, u64)> = sealed
            .rollups
            .seen
            .iter()
            .map(|(body, (service, latest))| {
                (entries.resource(body), entries.service(&sealed.rollups.services[*service as usize]), *latest)
            })
            .collect();
        let NewEntries { services, resources, scopes, .. } = entries;

        let write = |transaction: &rusqlite::Transaction<'_>| -> rusqlite::Result<Vec<i64>> {
            for (service, id) in &services {
                transaction.execute(
                    "INSERT INTO service VALUES (?1, ?2, ?3, ?4)",
                    params![id, service.environment, service.namespace, service.name],
                )?;
            }
            for (body, id) in &resources {
                transaction.execute("INSERT INTO resource VALUES (?1, ?2)", params![id, body])?;
            }
            for (body, id) in &scopes {
                transaction.execute("INSERT INTO scope VALUES (?1, ?2)", params![id, body])?;
            }
            transaction.execute(
                "INSERT INTO generation VALUES (?1, ?2, ?3)",
                params![sealed.generation as i64, sealed.now as i64, sealed.requests],
            )?;
            for (minute, level, body) in &rollups {
                transaction.execute(
                    "INSERT INTO rollup(minute, level, version, body) VALUES (?1, ?2, ?3, ?4)",
                    params![*minute as i64, *level as u8, ROLLUP_VERSION, body],
                )?;
            }
            for (resource, service, latest) in &seen {
                transaction.execute(
                    "INSERT INTO seen VALUES (?1, ?2, ?3) ON CONFLICT (resource) DO UPDATE SET latest = max(latest, excluded.latest)",
                    params![resource, service, *latest as i64],
                )?;
            }
            encoded.iter().map(|block| insert_block(transaction, block)).collect()
        };
        let transaction = writer.connection.transaction().map_err(&failed)?;
        let ids = write(&transaction).map_err(&failed)?;
        transaction.commit().map_err(&failed)?;

        {
            let mut dictionary = self.dictionary.write().unwrap_or_else(PoisonError::into_inner);
            for (service, id) in &services {
                dictionary.services.insert(*id, service.clone());
            }
        }
        writer.services.extend(services);
        writer.resources.extend(resources);
        writer.scopes.extend(scopes);
        ids.into_iter()
            .zip(encoded)
            .map(|(id, block)| block_info(id, block).map(Arc::new))
            .collect::<Result<_, _>>()
            .map_err(Error::damaged(&self.path))
    }

    pub(crate) fn publish(&self, new: Vec<Arc<BlockInfo>>) {
        if let Err(error) = self.show_rollups() {
            tracing::error!(path = %self.path.display(), %error, "cannot read back the rollups that were just written");
        }
        let mut blocks = self.blocks.write().unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<_> = blocks.iter().cloned().collect();
        list.extend(new);
        *blocks = Arc::new(list);
    }

    /// Replaces small blocks by one that holds their rows, in one transaction.
    pub(crate) fn merge(&self, old: &[Arc<BlockInfo>], batch: &Batch) -> Result<(), Error> {
        let failed = Error::sqlite("merge blocks in", &self.path);
        let mut writer = lock(&self.writer);
        let mut entries = NewEntries { known: &writer, services: Vec::new(), resources: Vec::new(), scopes: Vec::new() };
        let encoded = block::encode(&[batch], &mut entries);
        debug_assert!(entries.services.is_empty() && entries.resources.is_empty() && entries.scopes.is_empty());
        let transaction = writer.connection.transaction().map_err(&failed)?;
        let write = || -> rusqlite::Result<i64> {
            for block in old {
                transaction.execute("DELETE FROM segment WHERE block = ?1", [block.id])?;
                transaction.execute("DELETE FROM block WHERE id = ?1", [block.id])?;
            }
            insert_block(&transaction, &encoded)
        };
        let id = write().map_err(&failed)?;
        transaction.commit().map_err(&failed)?;
        let info = Arc::new(block_info(id, encoded).map_err(Error::damaged(&self.path))?);
        let mut blocks = self.blocks.write().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<i64> = old.iter().map(|b| b.id).collect();
        let mut list: Vec<_> = blocks.iter().filter(|b| !gone.contains(&b.id)).cloned().collect();
        list.push(info);
        *blocks = Arc::new(list);
        Ok(())
    }

    /// As `with_reader`, for plain SQL.
    fn select<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, Error> {
        self.with_reader(|connection| read(connection).map_err(Error::sqlite("read", &self.path)))
    }

    /// Runs `read` with a connection of its own.
    pub(crate) fn with_reader<T>(&self, read: impl FnOnce(&Connection) -> Result<T, Error>) -> Result<T, Error> {
        let connection = lock(&self.idle).pop();
        let connection = match connection {
            Some(connection) => connection,
            None => {
                let failed = Error::sqlite("open", &self.path);
                let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
                let connection = Connection::open_with_flags(&self.path, flags).map_err(&failed)?;
                let prepare = || -> rusqlite::Result<()> {
                    connection.pragma_update(None, "query_only", true)?;
                    connection.pragma_update(None, "cache_size", -1024)?;
                    connection.busy_timeout(std::time::Duration::from_secs(5))
                };
                prepare().map_err(&failed)?;
                connection
            }
        };
        let result = read(&connection);
        let mut idle = lock(&self.idle);
        if idle.len() < IDLE_CONNECTIONS_MAX {
            idle.push(connection);
        }
        result
    }

    /// A segment of a block. `Moved` when a merge has replaced the block since the list was taken.
    pub fn segment(&self, block: &BlockInfo, number: usize) -> Result<Segment, Error> {
        let body: Option<Vec<u8>> = self.select(|connection| {
            let mut select = connection.prepare_cached("SELECT body FROM segment WHERE block = ?1 AND number = ?2")?;
            select.query_row(params![block.id, number as i64], |row| row.get(0)).optional()
        })?;
        let body = body.ok_or(Error::Moved)?;
        let segment = Segment::parse(body).map_err(Error::damaged(&self.path))?;
        if segment.rows != block.directory.segments[number].rows.len() {
            return Err(Error::damaged(&self.path)(Damaged("a segment of other length than its directory says")));
        }
        Ok(segment)
    }

    pub fn traces(&self, block: &BlockInfo) -> Result<TraceTable, Error> {
        let bytes: Option<Vec<u8>> = self.select(|connection| {
            let mut select = connection.prepare_cached("SELECT traces FROM block WHERE id = ?1")?;
            select.query_row([block.id], |row| row.get(0)).optional()
        })?;
        TraceTable::parse(&bytes.ok_or(Error::Moved)?, block.rows).map_err(Error::damaged(&self.path))
    }

    /// The last rollup that `publish` has made visible: those after it are still counted from the live generation.
    pub fn rollups_end(&self) -> i64 {
        self.rollups_end.load(std::sync::atomic::Ordering::Acquire)
    }

    pub fn services_by_id(&self) -> HashMap<u32, Service> {
        self.dictionary.read().unwrap_or_else(PoisonError::into_inner).services.clone()
    }

    pub(crate) fn service_ids(&self) -> HashMap<Service, u32> {
        lock(&self.writer).services.clone()
    }

    /// Takes over the rollups of a partition that is about to be dropped; `show_rollups` makes them visible. `once` names that partition: a
    /// second call for it does nothing.
    pub(crate) fn add_rollups(
        &self,
        once: i64,
        services: &[(Service, u32)],
        rollups: &[(u64, Level, Vec<u8>)],
        oldest: u64,
    ) -> Result<(), Error> {
        let failed = Error::sqlite("write to", &self.path);
        let mut writer = lock(&self.writer);
        let transaction = writer.connection.transaction().map_err(&failed)?;
        let write = || -> rusqlite::Result<bool> {
            if transaction.execute("INSERT OR IGNORE INTO generation VALUES (?1, 0, x'')", [once])? == 0 {
                return Ok(false);
            }
            for (service, id) in services {
                transaction.execute(
                    "INSERT INTO service VALUES (?1, ?2, ?3, ?4)",
                    params![id, service.environment, service.namespace, service.name],
                )?;
            }
            for (minute, level, body) in rollups {
                transaction.execute(
                    "INSERT INTO rollup(minute, level, version, body) VALUES (?1, ?2, ?3, ?4)",
                    params![*minute as i64, *level as u8, ROLLUP_VERSION, body],
                )?;
            }
            transaction.execute("DELETE FROM rollup WHERE minute < ?1", [oldest as i64])?;
            Ok(true)
        };
        let written = write().map_err(&failed)?;
        transaction.commit().map_err(&failed)?;
        if written {
            let mut dictionary = self.dictionary.write().unwrap_or_else(PoisonError::into_inner);
            for (service, id) in services {
                dictionary.services.insert(*id, service.clone());
                writer.services.insert(service.clone(), *id);
            }
        }
        Ok(())
    }

    /// Makes what was written last visible to questions.
    pub(crate) fn show_rollups(&self) -> Result<(), Error> {
        let end =
            self.select(|connection| connection.query_row("SELECT coalesce(max(id), 0) FROM rollup", [], |row| row.get::<_, i64>(0)))?;
        self.rollups_end.store(end, std::sync::atomic::Ordering::Release);
        Ok(())
    }

    /// (minute, body) of all rollups of a level in a range of minutes, up to one that was seen.
    pub fn rollups(&self, level: Level, from: u64, to: u64, up_to: i64) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        self.select(|connection| {
            let mut select = connection.prepare_cached(
                "SELECT minute, body, version FROM rollup WHERE level = ?1 AND minute >= ?2 AND minute < ?3 AND id <= ?4 ORDER BY minute",
            )?;
            let to = i64::try_from(to).unwrap_or(i64::MAX);
            let rows = select.query_map(params![level as u8, from as i64, to, up_to], |row| {
                Ok((row.get::<_, i64>(0)? as u64, row.get(1)?, row.get::<_, u32>(2)?))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?
        .into_iter()
        .map(|(minute, body, version)| self.known_rollup(version).map(|()| (minute, body)))
        .collect()
    }

    fn known_rollup(&self, version: u32) -> Result<(), Error> {
        if version > ROLLUP_VERSION {
            return Err(Error::Newer { path: self.path.clone(), found: version, known: ROLLUP_VERSION });
        }
        Ok(())
    }

    /// Holds the rollups as they are while they are read up to some id: merging them meanwhile would hide or double some.
    pub fn hold_rollups(&self) -> RwLockReadGuard<'_, ()> {
        self.rollups_hold.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds up the rollups that many generations left for the same minute, so that a question about an hour costs the same at any rate
    /// of spans.
    pub(crate) fn compact_rollups(&self) -> Result<(), Error> {
        let end = self.rollups_end();
        if self.rollups_compacted.swap(end, std::sync::atomic::Ordering::Relaxed) == end {
            return Ok(());
        }
        let crowded: Vec<(u8, i64)> = self.select(|connection| {
            let mut select = connection
                .prepare_cached("SELECT level, minute FROM rollup WHERE id <= ?1 GROUP BY level, minute HAVING count(*) >= ?2")?;
            select.query_map(params![end, ROLLUPS_PER_MINUTE_MAX], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        })?;
        let failed = Error::sqlite("compact the rollups of", &self.path);
        for (level, minute) in crowded {
            let rows: Vec<(i64, Vec<u8>)> = self.select(|connection| {
                let mut select = connection.prepare_cached(
                    "SELECT id, body FROM rollup WHERE level = ?1 AND minute = ?2 AND id <= ?3 AND version <= ?4 ORDER BY id",
                )?;
                select.query_map(params![level, minute, end, ROLLUP_VERSION], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
            })?;
            if rows.len() < 2 {
                continue;
            }
            let bodies = rows.iter().map(|(_, body)| body.as_slice());
            let merged = rollup::merge_bodies(minute as u64, bodies, Some).map_err(Error::damaged(&self.path))?;
            let mut writer = lock(&self.writer);
            // A question that holds them may take seconds; waiting for it here would hold up the sealer. The next round tries again.
            let Ok(_alone) = self.rollups_hold.try_write() else {
                self.rollups_compacted.store(0, std::sync::atomic::Ordering::Relaxed);
                return Ok(());
            };
            let transaction = writer.connection.transaction().map_err(&failed)?;
            let write = || -> rusqlite::Result<()> {
                // The last one stays: were the highest id free again, the next rollup would pass for one that is visible already.
                let (kept, others) = rows.split_last().expect("a crowd has a last");
                transaction.prepare_cached("UPDATE rollup SET body = ?2, version = ?3 WHERE id = ?1")?.execute(params![
                    kept.0,
                    merged,
                    ROLLUP_VERSION
                ])?;
                let mut delete = transaction.prepare_cached("DELETE FROM rollup WHERE id = ?1")?;
                others.iter().try_for_each(|(id, _)| delete.execute([id]).map(|_| ()))
            };
            write().map_err(&failed)?;
            transaction.commit().map_err(&failed)?;
        }
        Ok(())
    }

    /// (resource, service, latest item) of every sender heard since then.
    pub fn seen(&self, since: u64) -> Result<Vec<(u32, u32, u64)>, Error> {
        self.select(|connection| {
            let mut select = connection.prepare_cached("SELECT resource, service, latest FROM seen WHERE latest >= ?1")?;
            let rows = select.query_map([since as i64], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, i64>(2)? as u64)))?;
            rows.collect()
        })
    }

    pub fn service(&self, id: u32) -> Result<Service, Error> {
        let dictionary = self.dictionary.read().unwrap_or_else(PoisonError::into_inner);
        dictionary.services.get(&id).cloned().ok_or_else(|| Error::damaged(&self.path)(Damaged("a service that is not in its dictionary")))
    }

    /// The ids of all services that `wanted` lets through.
    pub fn services_where(&self, wanted: impl Fn(&Service) -> bool) -> Vec<u32> {
        let dictionary = self.dictionary.read().unwrap_or_else(PoisonError::into_inner);
        dictionary.services.iter().filter(|(_, service)| wanted(service)).map(|(id, _)| *id).collect()
    }

    pub fn resource(&self, id: u32) -> Result<Arc<Resource>, Error> {
        if let Some(resource) = self.dictionary.read().unwrap_or_else(PoisonError::into_inner).resources.get(&id) {
            return Ok(resource.clone());
        }
        let resource: Arc<Resource> = Arc::new(self.dictionary_entry("SELECT body FROM resource WHERE id = ?1", id)?);
        self.dictionary.write().unwrap_or_else(PoisonError::into_inner).resources.insert(id, resource.clone());
        Ok(resource)
    }

    pub fn scope(&self, id: u32) -> Result<Arc<Scope>, Error> {
        if let Some(scope) = self.dictionary.read().unwrap_or_else(PoisonError::into_inner).scopes.get(&id) {
            return Ok(scope.clone());
        }
        let scope: Arc<Scope> = Arc::new(self.dictionary_entry("SELECT body FROM scope WHERE id = ?1", id)?);
        self.dictionary.write().unwrap_or_else(PoisonError::into_inner).scopes.insert(id, scope.clone());
        Ok(scope)
    }

    fn dictionary_entry<T: Stored>(&self, sql: &str, id: u32) -> Result<T, Error> {
        let body: Vec<u8> = self.select(|connection| connection.prepare_cached(sql)?.query_row([id], |row| row.get(0)))?;
        T::from_bytes(&body).map_err(Error::damaged(&self.path))
    }

    /// Forgets request hashes that are too old to matter.
    pub(crate) fn forget_requests(&self, before: u64) -> Result<(), Error> {
        let writer = lock(&self.writer);
        writer
            .connection
            .execute("UPDATE generation SET requests = x'' WHERE sealed < ?1 AND length(requests) > 0", [before as i64])
            .map(|_| ())
            .map_err(Error::sqlite("write to", &self.path))
    }

    /// Copies the WAL into the file and empties it, so that a partition that rests is one file.
    pub(crate) fn checkpoint(&self) {
        let writer = lock(&self.writer);
        if let Err(error) = writer.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
            tracing::debug!(path = %self.path.display(), %error, "checkpoint postponed");
        }
    }

    pub(crate) fn doom(&self) {
        self.doomed.store(true, std::sync::atomic::Ordering::Release);
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        if !self.doomed.load(std::sync::atomic::Ordering::Acquire) {
            return;
        }
        lock(&self.idle).clear();
        for suffix in ["-shm", "-wal", ""] {
            let mut path = self.path.clone().into_os_string();
            path.push(suffix);
            let _ = std::fs::remove_file(path);
        }
    }
}

impl PartitionWriter {
    fn load(&mut self) -> rusqlite::Result<()> {
        self.services = read_services(&self.connection)?.into_iter().map(|(id, service)| (service, id)).collect();
        for (sql, map) in [("SELECT id, body FROM resource", &mut self.resources), ("SELECT id, body FROM scope", &mut self.scopes)] {
            let mut select = self.connection.prepare(sql)?;
            let rows = select.query_map([], |row| Ok((row.get::<_, Vec<u8>>(1)?, row.get::<_, u32>(0)?)))?;
            for row in rows {
                let (body, id) = row?;
                map.insert(body, id);
            }
        }
        Ok(())
    }
}

fn read_services(connection: &Connection) -> rusqlite::Result<Vec<(u32, Service)>> {
    let mut select = connection.prepare("SELECT id, environment, namespace, name FROM service")?;
    let rows =
        select.query_map([], |row| Ok((row.get(0)?, Service { environment: row.get(1)?, namespace: row.get(2)?, name: row.get(3)? })))?;
    rows.collect()
}

fn insert_block(connection: &Connection, block: &block::EncodedBlock) -> rusqlite::Result<i64> {
    connection
        .prepare_cached(
            "INSERT INTO block(version, rows, time_min, time_max, directory, filter, traces) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![
            BLOCK_VERSION,
            block.rows as i64,
            block.time_min as i64,
            block.time_max as i64,
            block.directory,
            block.filter,
            block.traces
        ])?;
    let id = connection.last_insert_rowid();
    let mut insert = connection.prepare_cached("INSERT INTO segment VALUES (?1, ?2, ?3)")?;
    for (number, body) in block.segments.iter().enumerate() {
        insert.execute(params![id, number as i64, body])?;
    }
    Ok(id)
}

fn block_info(id: i64, block: block::EncodedBlock) -> Result<BlockInfo, Damaged> {
    Ok(BlockInfo {
        id,
        rows: block.rows,
        time_min: block.time_min,
        time_max: block.time_max,
        directory: Directory::parse(&block.directory)?,
        filter: Bloom::from_bytes(block.filter),
    })
}

fn read_blocks(connection: &Connection, path: &Path) -> Result<Vec<Arc<BlockInfo>>, Error> {
    let failed = Error::sqlite("read", path);
    let mut select =
        connection.prepare("SELECT id, version, rows, time_min, time_max, directory, filter FROM block ORDER BY id").map_err(&failed)?;
    let mut rows = select.query([]).map_err(&failed)?;
    let mut blocks = Vec::new();
    while let Some(row) = rows.next().map_err(&failed)? {
        let read = || -> rusqlite::Result<(u32, BlockInfo, Vec<u8>)> {
            Ok((
                row.get(1)?,
                BlockInfo {
                    id: row.get(0)?,
                    rows: row.get::<_, i64>(2)? as usize,
                    time_min: row.get::<_, i64>(3)? as u64,
                    time_max: row.get::<_, i64>(4)? as u64,
                    directory: Directory::default(),
                    filter: Bloom::from_bytes(row.get(6)?),
                },
                row.get(5)?,
            ))
        };
        let (version, mut block, directory) = read().map_err(&failed)?;
        if version > BLOCK_VERSION {
            return Err(Error::Newer { path: path.to_owned(), found: version, known: BLOCK_VERSION });
        }
        block.directory = Directory::parse(&directory).map_err(Error::damaged(path))?;
        if block.directory.rows() != block.rows {
            return Err(Error::damaged(path)(Damaged("a block of other length than its directory says")));
        }
        blocks.push(Arc::new(block));
    }
    Ok(blocks)
}

/// Groups of batches of about a block each. A single batch that is larger stays whole.
fn split_by_rows<'a, 'b>(batches: &'b [&'a Batch]) -> Vec<&'b [&'a Batch]> {
    let mut groups = Vec::new();
    let (mut start, mut rows) = (0, 0);
    for (at, batch) in batches.iter().enumerate() {
        if rows > 0 && rows + batch.rows() > block::BLOCK_ROWS * 5 / 4 {
            groups.push(&batches[start..at]);
            (start, rows) = (at, 0);
        }
        rows += batch.rows();
    }
    if rows > 0 {
        groups.push(&batches[start..]);
    }
    groups
}
