//! What services did by themselves of the requests that they took in, operation by operation, as the joined traces tell it: in `edges.db`, beside the
//! edges and kept like these.

use crate::edge::{HOUR, MINUTE, node_id};
use crate::incident::clamp;
use crate::node::Node;
use crate::{Error, Nanos, Reader};
use rusqlite::{Connection, params};

/// The second step of `edges.db`.
pub(crate) const SCHEMA: &str = "
CREATE TABLE parts(start INTEGER NOT NULL, width INTEGER NOT NULL, node INTEGER NOT NULL REFERENCES nodes, operation TEXT NOT NULL,
    requests INTEGER NOT NULL, failed INTEGER NOT NULL, own_errors INTEGER NOT NULL, absorbed INTEGER NOT NULL, sum_ns INTEGER NOT NULL,
    own_ns INTEGER NOT NULL, estimated INTEGER NOT NULL) STRICT;
CREATE INDEX parts_by_start ON parts(start);
CREATE INDEX parts_by_node ON parts(node, start);
CREATE INDEX parts_minutes ON parts(start) WHERE width = 60000000000;
CREATE INDEX edges_minutes ON edges(start) WHERE width = 60000000000;
";

/// Requests of an operation whose traces were joined. Their number beside that of all requests says how far the rest can be trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartCell {
    pub requests: u64,
    pub failed: u64,
    /// Of those that failed, the ones in which no call of the service failed: they begin here.
    pub own_errors: u64,
    /// Those that went well although a call of the service failed: it was made again, or done without.
    pub absorbed: u64,
    /// Their durations together.
    pub sum_ns: u64,
    /// How much of that no call was under way: the service's own time on their critical paths.
    pub own_ns: u64,
    /// Counted from a part of the traces.
    pub estimated: bool,
}

impl PartCell {
    pub fn add(&mut self, other: &PartCell) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.own_errors += other.own_errors;
        self.absorbed += other.absorbed;
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
        self.own_ns = self.own_ns.saturating_add(other.own_ns);
        self.estimated |= other.estimated;
    }
}

/// A row: what was seen from `start` for a minute.
#[derive(Clone, Debug)]
pub struct PartRow {
    pub start: Nanos,
    pub node: Node,
    pub operation: String,
    pub cell: PartCell,
}

pub(crate) fn insert(connection: &Connection, row: &PartRow) -> rusqlite::Result<()> {
    let PartCell { requests, failed, own_errors, absorbed, sum_ns, own_ns, estimated } = row.cell;
    let node = node_id(connection, &row.node)?;
    let counts = [requests, failed, own_errors, absorbed, sum_ns, own_ns].map(clamp);
    let [requests, failed, own_errors, absorbed, sum_ns, own_ns] = counts;
    connection.prepare_cached("INSERT INTO parts VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)")?.execute(params![
        clamp(row.start),
        clamp(MINUTE),
        node,
        row.operation,
        requests,
        failed,
        own_errors,
        absorbed,
        sum_ns,
        own_ns,
        estimated
    ])?;
    Ok(())
}

/// As floating point, since SQLite's `sum` of whole numbers fails where they would not fit.
const SUMS: &str = "CAST(total(requests) AS INTEGER), CAST(total(failed) AS INTEGER), CAST(total(own_errors) AS INTEGER), CAST(total(absorbed) AS INTEGER),
    CAST(total(sum_ns) AS INTEGER), CAST(total(own_ns) AS INTEGER), max(estimated)";

impl Reader {
    /// What a node did of its requests in the minutes (or hours, where the minutes are gone) that begin between two times, by operation.
    pub fn parts(&self, node: &str, from: Nanos, to: Nanos) -> Result<Vec<(String, PartCell)>, Error> {
        let Some(edges) = &self.shared.edges else { return Ok(Vec::new()) };
        edges.with(|connection| {
            let mut statement = connection.prepare_cached(&format!(
                "SELECT operation, {SUMS} FROM parts WHERE node IN (SELECT id FROM nodes WHERE node = ?1) AND start >= ?2 AND start < ?3 GROUP BY operation"
            ))?;
            let found = statement.query_map(params![node, clamp(from / MINUTE * MINUTE), clamp(to)], |row| {
                let number = |column: usize| row.get::<_, i64>(column).map(|n| n as u64);
                let cell = PartCell {
                    requests: number(1)?,
                    failed: number(2)?,
                    own_errors: number(3)?,
                    absorbed: number(4)?,
                    sum_ns: number(5)?,
                    own_ns: number(6)?,
                    estimated: row.get(7)?,
                };
                Ok((row.get(0)?, cell))
            })?;
            found.collect()
        })
    }
}

/// Puts the minutes of an hour together. Part of the transaction that does so with its edges.
pub(crate) fn coarsen(connection: &Connection, hour: Nanos) -> rusqlite::Result<usize> {
    let (from, to, width) = (clamp(hour), clamp(hour + HOUR), clamp(HOUR));
    let last: i64 = connection.query_row("SELECT coalesce(max(rowid), 0) FROM parts", [], |row| row.get(0))?;
    connection.execute(
        &format!(
            "INSERT INTO parts SELECT ?1, ?3, node, operation, {SUMS} FROM parts WHERE start >= ?1 AND start < ?2 GROUP BY node, operation"
        ),
        params![from, to, width],
    )?;
    connection.execute("DELETE FROM parts WHERE start >= ?1 AND start < ?2 AND rowid <= ?3", params![from, to, last])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::NodeKind;
    use crate::{Options, Service, Store};

    #[test]
    fn parts_add_up_the_same_by_minutes_and_by_hours_and_go_with_the_rollups() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path(), Options::default()).expect("a store");
        let reader = store.reader();
        let start = 1_700_000_000 * 1_000_000_000 / HOUR * HOUR;
        let node = Node { kind: NodeKind::Service, service: Service::named("a") };
        let cell = PartCell { requests: 5, failed: 2, own_errors: 1, absorbed: 3, sum_ns: 70, own_ns: 20, estimated: false };
        let row =
            |n: u64, operation: &str| PartRow { start: start + n * MINUTE, node: node.clone(), operation: operation.to_owned(), cell };
        let rows: Vec<PartRow> = (0..120).map(|n| row(n, if n % 2 == 0 { "GET /" } else { "PUT /" })).collect();
        reader.keep_joined(&[], &rows, start + 2 * HOUR).expect("kept");
        let parts = |from, to| {
            let mut parts = reader.parts("service:a", from, to).expect("parts");
            parts.sort_by(|a, b| a.0.cmp(&b.0));
            parts
        };
        let sixty = PartCell { requests: 300, failed: 120, own_errors: 60, absorbed: 180, sum_ns: 4200, own_ns: 1200, estimated: false };
        let expected = [("GET /".to_owned(), sixty), ("PUT /".to_owned(), sixty)];
        assert_eq!(parts(start, start + 2 * HOUR), expected);
        assert_eq!(parts(start, start + MINUTE), [("GET /".to_owned(), cell)]);
        let gone = reader.tidy_edges(start + 51 * HOUR).expect("tidied");
        assert_eq!((gone, parts(start, start + 2 * HOUR)), (120, expected.to_vec()));
        assert_eq!(parts(start, start + MINUTE)[0].1.requests, 150, "an hour is one row");
        reader.tidy_edges(start + 500 * 24 * HOUR).expect("tidied");
        assert!(parts(0, u64::MAX).is_empty());
    }
}
