//! Changes of services: a new version, a restart, another number of instances, a breaker that opened; seen in telemetry, or told by somebody
//! or their CI. Kept in `meta.db`.

use crate::incident::clamp;
use crate::{Error, Nanos, Reader};
use rusqlite::params;
use serde::{Deserialize, Serialize};

/// Changes that are kept: ten a minute for a week.
const KEPT_MAX: i64 = 100_000;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub service: String,
    #[serde(default)]
    pub namespace: String,
    #[serde(default)]
    pub environment: String,
    /// Seen: `version`, `restart`, `scale_up`, `scale_down`, `instance`, `breaker`. Told: whatever was said, such as `deployment`.
    pub kind: String,
    /// What it was before; empty where that is not known.
    #[serde(default)]
    pub from: String,
    pub to: String,
    pub time: Nanos,
    /// Where to read more of it; empty, or http:// or https://.
    #[serde(default)]
    pub url: String,
    /// Told rather than seen.
    #[serde(default)]
    pub told: bool,
}

impl Change {
    /// What happened, in a clause after the service's name.
    pub fn words(&self) -> String {
        let (from, to) = (self.from.as_str(), self.to.as_str());
        match self.kind.as_str() {
            "version" if from.is_empty() => format!("version {to}"),
            "version" => format!("version {to} after {from}"),
            "restart" => format!("restarted: {to} in place of {from}"),
            "scale_up" | "scale_down" => format!("scaled from {from} to {to} instances"),
            "instance" => format!("a new instance {to}"),
            "breaker" => format!("breaker {to} after {from}"),
            kind => match (from.is_empty(), to.is_empty()) {
                (true, true) => kind.to_owned(),
                (true, false) => format!("{kind}: {to}"),
                (false, _) => format!("{kind}: {to} after {from}"),
            },
        }
    }
}

impl Reader {
    /// Changes between two times, latest first.
    pub fn changes(&self, from: Nanos, to: Nanos, service: Option<&str>, limit: usize) -> Result<Vec<Change>, Error> {
        self.shared.meta.with(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT service, namespace, environment, kind, \"from\", \"to\", time, url, told FROM changes
                 WHERE time BETWEEN ?1 AND ?2 AND (?3 IS NULL OR service = ?3) ORDER BY time DESC, number DESC LIMIT ?4",
            )?;
            let rows = statement.query_map(params![clamp(from), clamp(to), service, limit as i64], |row| {
                Ok(Change {
                    service: row.get(0)?,
                    namespace: row.get(1)?,
                    environment: row.get(2)?,
                    kind: row.get(3)?,
                    from: row.get(4)?,
                    to: row.get(5)?,
                    time: row.get::<_, i64>(6)? as u64,
                    url: row.get(7)?,
                    told: row.get(8)?,
                })
            })?;
            rows.collect()
        })
    }

    /// Keeps changes; one that is known already is kept once.
    pub fn keep_changes(&self, changes: &[Change], now: Nanos) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        self.shared.meta.with(|connection| {
            let transaction = connection.unchecked_transaction()?;
            for c in changes {
                transaction.execute(
                    "INSERT OR IGNORE INTO changes(service, namespace, environment, kind, \"from\", \"to\", time, url, told, kept_at)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
                    params![c.service, c.namespace, c.environment, c.kind, c.from, c.to, clamp(c.time), c.url, c.told, clamp(now)],
                )?;
            }
            transaction.execute("DELETE FROM changes WHERE number <= (SELECT max(number) FROM changes) - ?1", [KEPT_MAX])?;
            transaction.commit()
        })
    }
}
