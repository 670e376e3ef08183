//! The nouns of failure: an incident, who is at its origin, how it spread and whom it hurts; and the graph of who calls whom. The collector
//! finds them, `meta.db` keeps incidents, pages and the API draw them. Times are event times in nanoseconds.

use crate::change::Change;
use crate::delivery::{self, Notice, Told};
use crate::{Error, Nanos, Reader, Service};
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    pub id: String,
    pub opened_at: Nanos,
    pub onset: Nanos,
    pub closed_at: Option<Nanos>,
    pub revision: u32,
    /// One sentence: what is wrong, since when, whom it hurts.
    pub title: String,
    #[serde(flatten)]
    pub diagnosis: Diagnosis,
    pub impact: Impact,
    pub trigger: Option<String>,
    #[serde(default)]
    pub changes: Vec<Change>,
    /// `critical` or `warning`, as bad as it ever was.
    #[serde(default)]
    pub severity: Severity,
    /// The incident that it turned out to be a part of.
    #[serde(default)]
    pub absorbed_by: Option<String>,
    /// Some of the failing traces, as hexadecimal ids.
    #[serde(default)]
    pub traces: Vec<String>,
}

/// How bad an incident is for those who send requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something is wrong, and those at the entry points hardly notice.
    #[default]
    Warning,
    /// At least one request in twenty at the entry points fails, or half of them wait.
    Critical,
}

impl Severity {
    pub fn word(self) -> &'static str {
        match self {
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

impl Incident {
    /// The node at the origin, by its id in the topology; empty while there is none.
    pub fn origin_node(&self) -> &str {
        self.diagnosis.origins.first().map_or("", |origin| origin.node.as_str())
    }

    /// Whether somebody who knows `earlier` would want to hear of this.
    fn says_more_than(&self, earlier: &Incident) -> bool {
        self.origin_node() != earlier.origin_node()
            || self.closed_at.is_some() != earlier.closed_at.is_some()
            || self.severity > earlier.severity
            || self.absorbed_by != earlier.absorbed_by
            || self.impact.entry_points.iter().any(|entry| !earlier.impact.entry_points.contains(entry))
    }
}

/// A ranking with its evidence.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// Best first.
    pub origins: Vec<Origin>,
    /// From the origin to its victims, by lag.
    pub hops: Vec<Hop>,
    pub symptoms: Vec<Symptom>,
    pub rejected: Vec<Rejected>,
    /// `high`, `medium`, `low` or `not enough evidence`.
    pub confidence: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    pub rank: u32,
    /// The id of the node in the topology.
    pub node: String,
    /// The node's name.
    pub service: String,
    pub namespace: String,
    pub environment: String,
    pub operation: Option<String>,
    pub instance: Option<String>,
    pub version: Option<String>,
    /// `service`, `database`, `cache`, `queue` or `external`.
    pub kind: String,
    /// Requests a second that it harms by itself, as far as that is certain.
    pub score: f64,
    pub reasons: Vec<String>,
}

/// A step of the cascade: `from` makes `to`, which calls it, fail or wait.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Hop {
    pub from: String,
    pub to: String,
    pub onset: Nanos,
    /// After the origin's onset.
    pub lag_s: f64,
    /// What the caller sees, in words.
    pub what: String,
    /// The part of its calls that fail.
    #[serde(default)]
    pub errors: f64,
    /// How often it makes a call before it succeeds or gives up; `None` where that is not known.
    #[serde(default)]
    pub attempts_per_call: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Symptom {
    pub node: String,
    pub service: String,
    pub signal: String,
    pub what: String,
    /// In deviations of the baseline.
    pub score: f64,
    pub harm: f64,
    pub before: f64,
    pub after: f64,
    pub unit: String,
    pub n_before: u64,
    pub n_after: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rejected {
    pub service: String,
    pub reason: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Impact {
    pub entry_points: Vec<String>,
    /// Requests that came in at these since the onset, and how many of them failed.
    pub requests: u64,
    pub failed: u64,
    /// The part of them that failed or waits.
    pub share: f64,
}

/// Who calls whom in a stretch of time.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Topology {
    pub nodes: Vec<TopologyNode>,
    pub edges: Vec<TopologyEdge>,
    /// How long a part of the range calls can have been seen in, in seconds.
    #[serde(skip)]
    pub seconds: f64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct TopologyNode {
    pub id: String,
    pub name: String,
    pub namespace: String,
    pub environment: String,
    pub kind: String,
    pub status: String,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct TopologyEdge {
    pub from: String,
    pub to: String,
    /// `http`, `rpc`, `database`, `messaging` or `other`.
    pub kind: String,
    pub calls: u64,
    pub errors: u64,
    pub attempts: u64,
    /// Mean time that the caller waited, and how much of it no span of the callee explains.
    pub mean_ms: f64,
    pub gap_ms: f64,
    /// p50, p95 and p99 of what the caller waited, of each attempt.
    pub quantiles_ms: [Option<f64>; 3],
    /// Counted from a part of the traces.
    pub estimated: bool,
}

/// Nodes beside another one, each with the edge between.
pub type Neighbours<'a> = Vec<(&'a TopologyNode, &'a TopologyEdge)>;

impl Topology {
    /// The calls to a service and from it, busiest first: the node at the other end, and the edge.
    pub fn around(&self, service: &Service) -> (Neighbours<'_>, Neighbours<'_>) {
        let this = |n: &&TopologyNode| {
            n.kind == "service" && n.name == service.name && n.namespace == service.namespace && n.environment == service.environment
        };
        let Some(this) = self.nodes.iter().find(this) else { return Default::default() };
        let node = |id: &str| self.nodes.iter().find(|n| n.id == id);
        let mut callers: Vec<_> = self.edges.iter().filter(|e| e.to == this.id).filter_map(|e| Some((node(&e.from)?, e))).collect();
        let mut callees: Vec<_> = self.edges.iter().filter(|e| e.from == this.id).filter_map(|e| Some((node(&e.to)?, e))).collect();
        for side in [&mut callers, &mut callees] {
            side.sort_by(|a, b| b.1.calls.cmp(&a.1.calls).then_with(|| a.0.id.cmp(&b.0.id)));
        }
        (callers, callees)
    }
}

/// Which incidents a question is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncidentState {
    Open,
    Closed,
    #[default]
    All,
}

impl Reader {
    /// Incidents that were under way between two times, latest first.
    pub fn incidents(&self, state: IncidentState, from: Nanos, to: Nanos, limit: usize) -> Result<Vec<Incident>, Error> {
        let condition = match state {
            IncidentState::Open => "closed_at IS NULL",
            IncidentState::Closed => "closed_at IS NOT NULL",
            IncidentState::All => "TRUE",
        };
        let query = format!(
            "SELECT body FROM incidents WHERE {condition} AND onset <= ?2 AND coalesce(closed_at, 9223372036854775807) >= ?1
             ORDER BY onset DESC, id LIMIT ?3"
        );
        self.shared
            .meta
            .with(|connection| {
                let mut statement = connection.prepare_cached(&query)?;
                let bodies = statement.query_map(params![clamp(from), clamp(to), limit as i64], |row| row.get::<_, String>(0))?;
                bodies.collect::<Result<Vec<_>, _>>()
            })
            .map(|bodies| bodies.iter().filter_map(|body| parse(body)).collect())
    }

    pub fn incident(&self, id: &str) -> Result<Option<Incident>, Error> {
        let body = self.shared.meta.with(|connection| {
            connection.query_row("SELECT body FROM incidents WHERE id = ?1", [id], |row| row.get::<_, String>(0)).optional()
        })?;
        Ok(body.as_deref().and_then(parse))
    }

    /// Every revision of an incident, oldest first, with the event time at which it was made.
    pub fn incident_revisions(&self, id: &str) -> Result<Vec<(Nanos, Incident)>, Error> {
        let rows = self.shared.meta.with(|connection| {
            let mut statement =
                connection.prepare_cached("SELECT at, body FROM incident_revisions WHERE id = ?1 ORDER BY revision LIMIT 1000")?;
            let rows = statement.query_map([id], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?;
            rows.collect::<Result<Vec<_>, _>>()
        })?;
        Ok(rows.iter().filter_map(|(at, body)| Some((*at as u64, parse(body)?))).collect())
    }

    /// Keeps an incident as it stands at event time `at`, and in the same transaction puts into the outbox what `tell` makes of it and of
    /// what each receiver was told before. A new revision when it says more than the one before, else that one is replaced; revisions and
    /// the severity only grow. Returns the notices that went into the outbox.
    pub fn keep_incident(
        &self,
        incident: &mut Incident,
        at: Nanos,
        now: Nanos,
        tell: impl FnOnce(&Incident, &[Told]) -> Vec<Notice>,
    ) -> Result<Vec<Notice>, Error> {
        self.shared.meta.with(|connection| {
            let transaction = connection.unchecked_transaction()?;
            let earlier = transaction
                .query_row("SELECT body FROM incidents WHERE id = ?1", [&incident.id], |row| row.get::<_, String>(0))
                .optional()?
                .as_deref()
                .and_then(parse);
            match &earlier {
                None => incident.revision = 1,
                Some(earlier) => {
                    incident.severity = incident.severity.max(earlier.severity);
                    incident.opened_at = earlier.opened_at;
                    incident.revision = earlier.revision + u32::from(incident.says_more_than(earlier));
                }
            }
            let body = serde_json::to_string(incident).expect("an incident is plain data");
            transaction.execute(
                "INSERT INTO incidents(id, opened_at, onset, closed_at, revision, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT(id) DO UPDATE SET opened_at = ?2, onset = ?3, closed_at = ?4, revision = ?5, body = ?6",
                params![
                    incident.id,
                    clamp(incident.opened_at),
                    clamp(incident.onset),
                    incident.closed_at.map(clamp),
                    incident.revision,
                    body
                ],
            )?;
            transaction.execute(
                "INSERT INTO incident_revisions(id, revision, at, body) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT(id, revision) DO UPDATE SET body = ?4",
                params![incident.id, incident.revision, clamp(at), body],
            )?;
            let notices = tell(incident, &delivery::told_of(&transaction, &incident.id)?);
            delivery::put(&transaction, incident, &notices, now)?;
            transaction.commit()?;
            Ok(notices)
        })
    }
}

/// SQLite's integers are signed.
pub(crate) fn clamp(time: Nanos) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

/// A body that a later version wrote, and this one cannot read, is left out.
fn parse(body: &str) -> Option<Incident> {
    serde_json::from_str(body).ok()
}
