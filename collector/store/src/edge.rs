//! `edges.db`: who called whom, minute by minute, as the joined traces tell it. Rows are additive: what comes late is a further row of the same
//! minute. After two days the minutes of an hour become one row; after the retention of rollups they go.
//!
//! It is derived from what partitions hold: losing it costs the map of the past, nothing else. Detection writes it, and says up to which minute
//! it has, so that nothing is counted twice after a restart.

use crate::histogram::{Histogram, Sum};
use crate::incident::clamp;
use crate::meta::Meta;
use crate::node::{Node, NodeKind};
use crate::pack::Cursor;
use crate::part::{self, PartRow};
use crate::partition::lock;
use crate::{Error, Nanos, Reader, Service};
use rusqlite::{Connection, OptionalExtension, Row, params};
use std::collections::HashMap;
use std::path::Path;

/// The first version; a later one is a further step, as in `migrations/`.
const SCHEMA: &str = "
CREATE TABLE nodes(id INTEGER PRIMARY KEY, kind TEXT NOT NULL, environment TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    node TEXT NOT NULL, UNIQUE(kind, environment, namespace, name)) STRICT;
CREATE INDEX nodes_by_node ON nodes(node);
CREATE TABLE edges(start INTEGER NOT NULL, width INTEGER NOT NULL, caller INTEGER NOT NULL REFERENCES nodes, callee INTEGER NOT NULL REFERENCES nodes,
    attempts INTEGER NOT NULL, errors INTEGER NOT NULL, retries INTEGER NOT NULL, sum_ns INTEGER NOT NULL, unexplained_ns INTEGER NOT NULL,
    estimated INTEGER NOT NULL, durations BLOB NOT NULL) STRICT;
CREATE INDEX edges_by_start ON edges(start);
CREATE TABLE kept(until INTEGER NOT NULL) STRICT;
INSERT INTO kept VALUES (0);
";

pub const MINUTE: Nanos = 60 * 1_000_000_000;
pub(crate) const HOUR: Nanos = 60 * MINUTE;
/// Minutes are kept apart for so long (two days).
const FINE_FOR: Nanos = 48 * HOUR;
/// Hours that are put together at one time, so that the writer of new minutes does not wait long.
const HOURS_AT_ONCE: usize = 24;

/// What was seen of the calls from one node to another in a stretch of time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EdgeCell {
    /// Every attempt of every call.
    pub attempts: u64,
    /// Attempts that failed.
    pub errors: u64,
    /// Attempts that were made again after a failure.
    pub retries: u64,
    /// How long the caller waited, of all attempts together.
    pub sum_ns: u64,
    /// How much of that no span of the callee explains.
    pub unexplained_ns: u64,
    /// Counted from a part of the traces.
    pub estimated: bool,
    pub durations: Histogram,
}

impl EdgeCell {
    pub fn merge(&mut self, other: &EdgeCell) {
        let mut sum = CellSum::default();
        sum.add(self);
        sum.add(other);
        *self = sum.finish();
    }

    /// Calls: a call and its retries are one.
    pub fn calls(&self) -> u64 {
        self.attempts.saturating_sub(self.retries)
    }

    /// Calls that failed in the end: each retry follows a failed attempt.
    pub fn failed_calls(&self) -> u64 {
        self.errors.saturating_sub(self.retries)
    }
}

/// A row: what was seen from `start` for `width`.
#[derive(Clone, Debug)]
pub struct EdgeRow {
    pub start: Nanos,
    pub width: Nanos,
    pub caller: Node,
    pub callee: Node,
    pub cell: EdgeCell,
}

/// Adds cells up.
#[derive(Default)]
struct CellSum {
    cell: EdgeCell,
    durations: Sum,
}

impl CellSum {
    fn add(&mut self, other: &EdgeCell) {
        let cell = &mut self.cell;
        cell.attempts += other.attempts;
        cell.errors += other.errors;
        cell.retries += other.retries;
        cell.sum_ns = cell.sum_ns.saturating_add(other.sum_ns);
        cell.unexplained_ns = cell.unexplained_ns.saturating_add(other.unexplained_ns);
        cell.estimated |= other.estimated;
        self.durations.add(&other.durations);
    }

    fn finish(self) -> EdgeCell {
        EdgeCell { durations: self.durations.finish(), ..self.cell }
    }
}

pub(crate) fn open(path: &Path) -> Result<Meta, Error> {
    Meta::open_with(path, &[SCHEMA, part::SCHEMA])
}

pub(crate) fn node_id(connection: &Connection, node: &Node) -> rusqlite::Result<i64> {
    let Service { name, namespace, environment } = &node.service;
    let key = params![node.kind.name(), environment, namespace, name];
    let known = connection
        .prepare_cached("SELECT id FROM nodes WHERE kind = ?1 AND environment = ?2 AND namespace = ?3 AND name = ?4")?
        .query_row(key, |row| row.get(0))
        .optional()?;
    match known {
        Some(id) => Ok(id),
        None => {
            connection
                .prepare_cached("INSERT INTO nodes(kind, environment, namespace, name, node) VALUES (?1, ?2, ?3, ?4, ?5)")?
                .execute(params![node.kind.name(), environment, namespace, name, node.id()])?;
            Ok(connection.last_insert_rowid())
        }
    }
}

fn insert(connection: &Connection, start: Nanos, width: Nanos, caller: i64, callee: i64, cell: &EdgeCell) -> rusqlite::Result<()> {
    let mut durations = Vec::new();
    cell.durations.write(&mut durations);
    connection
        .prepare_cached(
            "INSERT INTO edges(start, width, caller, callee, attempts, errors, retries, sum_ns, unexplained_ns, estimated, durations)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        )?
        .execute(params![
            clamp(start),
            clamp(width),
            caller,
            callee,
            clamp(cell.attempts),
            clamp(cell.errors),
            clamp(cell.retries),
            clamp(cell.sum_ns),
            clamp(cell.unexplained_ns),
            cell.estimated,
            durations
        ])?;
    Ok(())
}

/// The columns from `attempts` on.
fn cell(row: &Row<'_>, first: usize) -> rusqlite::Result<EdgeCell> {
    let number = |column: usize| row.get::<_, i64>(first + column).map(|n| n as u64);
    let bytes: Vec<u8> = row.get(first + 6)?;
    let mut durations = Histogram::default();
    // A damaged row loses its latencies, not its calls.
    let _ = durations.read(&mut Cursor::new(&bytes));
    Ok(EdgeCell {
        attempts: number(0)?,
        errors: number(1)?,
        retries: number(2)?,
        sum_ns: number(3)?,
        unexplained_ns: number(4)?,
        estimated: row.get(first + 5)?,
        durations,
    })
}

const CELL: &str = "attempts, errors, retries, sum_ns, unexplained_ns, estimated, durations";

impl Reader {
    /// Keeps minutes of edges and parts; what was complete by `until` (event time) will not be kept again after a restart.
    pub fn keep_joined(&self, minutes: &[EdgeRow], parts: &[PartRow], until: Nanos) -> Result<(), Error> {
        let Some(edges) = &self.shared.edges else { return Ok(()) };
        edges.with(|connection| {
            let transaction = connection.unchecked_transaction()?;
            let mut ids: HashMap<&Node, i64> = HashMap::new();
            for minute in minutes {
                for node in [&minute.caller, &minute.callee] {
                    if !ids.contains_key(node) {
                        ids.insert(node, node_id(&transaction, node)?);
                    }
                }
                insert(&transaction, minute.start, minute.width, ids[&minute.caller], ids[&minute.callee], &minute.cell)?;
            }
            for row in parts {
                part::insert(&transaction, row)?;
            }
            transaction.execute("UPDATE kept SET until = max(until, ?1)", [clamp(until)])?;
            transaction.commit()
        })
    }

    /// Up to when edges are kept.
    pub fn edges_kept_until(&self) -> Result<Nanos, Error> {
        let Some(edges) = &self.shared.edges else { return Ok(0) };
        edges.with(|connection| connection.query_row("SELECT until FROM kept", [], |row| row.get::<_, i64>(0)).map(|until| until as u64))
    }

    /// Edges of the minutes (or hours, where the minutes are gone) that begin between two times, each added up.
    pub fn edges(&self, from: Nanos, to: Nanos) -> Result<Vec<(Node, Node, EdgeCell)>, Error> {
        let Some(edges) = &self.shared.edges else { return Ok(Vec::new()) };
        edges.with(|connection| {
            let mut sums: HashMap<(i64, i64), CellSum> = HashMap::new();
            let mut statement =
                connection.prepare_cached(&format!("SELECT caller, callee, {CELL} FROM edges WHERE start >= ?1 AND start < ?2"))?;
            let mut rows = statement.query(params![clamp(from / MINUTE * MINUTE), clamp(to)])?;
            while let Some(row) = rows.next()? {
                sums.entry((row.get(0)?, row.get(1)?)).or_default().add(&cell(row, 2)?);
            }
            let mut nodes: HashMap<i64, Node> = HashMap::new();
            for id in sums.keys().flat_map(|(caller, callee)| [*caller, *callee]) {
                if let std::collections::hash_map::Entry::Vacant(place) = nodes.entry(id) {
                    place.insert(node(connection, id)?);
                }
            }
            Ok(sums.into_iter().map(|((caller, callee), sum)| (nodes[&caller].clone(), nodes[&callee].clone(), sum.finish())).collect())
        })
    }

    /// The latest kept rows, oldest first.
    pub(crate) fn latest_edges(&self, limit: usize) -> Result<Vec<EdgeRow>, Error> {
        let Some(edges) = &self.shared.edges else { return Ok(Vec::new()) };
        edges.with(|connection| {
            let mut statement = connection.prepare_cached(&format!(
                "SELECT start, width, caller, callee, {CELL} FROM edges ORDER BY start DESC, rowid DESC LIMIT ?1"
            ))?;
            let mut rows = statement.query([limit as i64])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                found.push(EdgeRow {
                    start: row.get::<_, i64>(0)? as u64,
                    width: row.get::<_, i64>(1)? as u64,
                    caller: node(connection, row.get(2)?)?,
                    callee: node(connection, row.get(3)?)?,
                    cell: cell(row, 4)?,
                });
            }
            found.reverse();
            Ok(found)
        })
    }

    /// One edge over time, by ids of nodes: begin, width, and what was seen; oldest first.
    pub fn edge_points(&self, caller: &str, callee: &str, from: Nanos, to: Nanos) -> Result<Vec<(Nanos, Nanos, EdgeCell)>, Error> {
        let Some(edges) = &self.shared.edges else { return Ok(Vec::new()) };
        edges.with(|connection| {
            let mut statement = connection.prepare_cached(&format!(
                "SELECT start, width, {CELL} FROM edges WHERE start >= ?1 AND start < ?2
                 AND caller IN (SELECT id FROM nodes WHERE node = ?3) AND callee IN (SELECT id FROM nodes WHERE node = ?4) ORDER BY start"
            ))?;
            let rows = statement.query_map(params![clamp(from / MINUTE * MINUTE), clamp(to), caller, callee], |row| {
                Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64, cell(row, 2)?))
            })?;
            let mut points: Vec<(Nanos, Nanos, EdgeCell)> = Vec::new();
            for row in rows {
                let (start, width, cell) = row?;
                match points.last_mut() {
                    Some((at, _, known)) if *at == start => known.merge(&cell),
                    _ => points.push((start, width, cell)),
                }
            }
            Ok(points)
        })
    }

    /// Puts the minutes of hours long past together, and forgets what is older than rollups are kept. Returns how many rows went.
    pub fn tidy_edges(&self, now: Nanos) -> Result<usize, Error> {
        let Some(edges) = &self.shared.edges else { return Ok(0) };
        let oldest = now.saturating_sub(lock(&self.shared.retention).rollups.as_nanos() as Nanos);
        let mut gone = edges.with(|connection| {
            let edges = connection.execute("DELETE FROM edges WHERE start < ?1", [clamp(oldest)])?;
            Ok(edges + connection.execute("DELETE FROM parts WHERE start < ?1", [clamp(oldest)])?)
        })?;
        let fine = now.saturating_sub(FINE_FOR) / HOUR * HOUR;
        // The writer of new minutes, and pages, come in between.
        for _ in 0..HOURS_AT_ONCE {
            match edges.with(|connection| coarsen_an_hour(connection, fine))? {
                Some(rows) => gone += rows,
                None => break,
            }
        }
        Ok(gone)
    }
}

/// Puts the minutes of the oldest hour before `fine` together; how many rows went, or `None` when there is no such hour.
fn coarsen_an_hour(connection: &Connection, fine: Nanos) -> rusqlite::Result<Option<usize>> {
    // By the index of minutes, which are few: hours are kept for a year.
    let first = |table: &str| -> rusqlite::Result<Option<i64>> {
        let query = format!("SELECT min(start) FROM {table} WHERE width = {MINUTE} AND start < ?1");
        connection.prepare_cached(&query)?.query_row([clamp(fine)], |row| row.get(0))
    };
    let first = [first("edges")?, first("parts")?].into_iter().flatten().min();
    let Some(first) = first else { return Ok(None) };
    let hour = first as u64 / HOUR * HOUR;
    let range = params![clamp(hour), clamp(hour + HOUR)];
    let transaction = connection.unchecked_transaction()?;
    let mut sums: HashMap<(i64, i64), CellSum> = HashMap::new();
    {
        let mut statement =
            transaction.prepare_cached(&format!("SELECT caller, callee, {CELL} FROM edges WHERE start >= ?1 AND start < ?2"))?;
        let mut rows = statement.query(range)?;
        while let Some(row) = rows.next()? {
            sums.entry((row.get(0)?, row.get(1)?)).or_default().add(&cell(row, 2)?);
        }
    }
    let gone = transaction.execute("DELETE FROM edges WHERE start >= ?1 AND start < ?2", range)? + part::coarsen(&transaction, hour)?;
    for ((caller, callee), sum) in sums {
        insert(&transaction, hour, HOUR, caller, callee, &sum.finish())?;
    }
    transaction.commit()?;
    Ok(Some(gone))
}

fn node(connection: &Connection, id: i64) -> rusqlite::Result<Node> {
    connection.prepare_cached("SELECT kind, environment, namespace, name FROM nodes WHERE id = ?1")?.query_row([id], |row| {
        let kind = NodeKind::of(&row.get::<_, String>(0)?).unwrap_or(NodeKind::External);
        Ok(Node { kind, service: Service { environment: row.get(1)?, namespace: row.get(2)?, name: row.get(3)? } })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Options, Store};

    fn named(name: &str) -> Node {
        Node { kind: NodeKind::Service, service: Service::named(name) }
    }

    fn minute(start: Nanos, ns: u64, failed: bool) -> EdgeRow {
        let mut cell =
            EdgeCell { attempts: 2, errors: failed.into(), retries: 0, sum_ns: 2 * ns, unexplained_ns: ns, ..EdgeCell::default() };
        cell.durations.record(ns);
        cell.durations.record(ns);
        EdgeRow { start, width: MINUTE, caller: named("a"), callee: named("b"), cell }
    }

    #[test]
    fn edges_add_up_the_same_by_minutes_and_by_hours_and_go_with_the_rollups() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path(), Options::default()).expect("a store");
        let reader = store.reader();
        let start = 1_700_000_000 * 1_000_000_000 / HOUR * HOUR;
        let minutes: Vec<EdgeRow> = (0..180).map(|n| minute(start + n * MINUTE, 1_000_000 + n * 1000, n % 7 == 0)).collect();
        reader.keep_joined(&minutes, &[], start + 180 * MINUTE).expect("kept");
        // One minute again: what came late.
        reader.keep_joined(&minutes[5..6], &[], start).expect("kept");
        assert_eq!(reader.edges_kept_until().expect("known"), start + 180 * MINUTE, "it never goes back");
        let before = reader.edges(start, start + 3 * HOUR).expect("edges");
        assert_eq!(before.len(), 1);
        assert_eq!((before[0].2.attempts, before[0].2.durations.count()), (362, 362));
        assert_eq!(reader.edge_points("service:a", "service:b", start, start + HOUR).expect("points").len(), 60);
        assert!(reader.edge_points("service:b", "service:a", start, start + HOUR).expect("points").is_empty());

        let gone = reader.tidy_edges(start + 3 * HOUR + FINE_FOR).expect("tidied");
        assert_eq!(gone, 181);
        assert_eq!(reader.edges(start, start + 3 * HOUR).expect("edges"), before);
        assert_eq!(reader.edge_points("service:a", "service:b", start, start + 3 * HOUR).expect("points").len(), 3);
        assert_eq!(reader.tidy_edges(start + 3 * HOUR + FINE_FOR).expect("tidied"), 0, "once");
        reader.tidy_edges(start + 500 * 24 * HOUR).expect("tidied");
        assert!(reader.edges(0, u64::MAX).expect("edges").is_empty());
    }
}
