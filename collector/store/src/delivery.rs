//! The outbox: what is to be told to whom, what was answered, and what each receiver knows of an incident. It lives in `meta.db`, so a
//! delivery that was due before a crash is due after it. Times are the wall clock that a caller hands in, in nanoseconds.

use crate::incident::{Incident, clamp};
use crate::{Error, Nanos, Reader};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

/// Deliveries that may wait for one receiver. A failure makes about five; past this the oldest give way, and say so.
pub const PENDING_MAX: usize = 1000;
/// Finished deliveries that are kept for the page.
pub const KEPT_MAX: usize = 10_000;
/// Attempts of one delivery that are kept; with the longest wait between them it gives up long before.
const ATTEMPTS_MAX: usize = 1000;

/// What a receiver was last told of an incident.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Told {
    pub receiver: String,
    /// The id of the node at the origin.
    pub origin: String,
    pub severity: String,
    /// All entry points that it was told of, ever.
    pub entry_points: Vec<String>,
    pub resolved: bool,
    /// Event time of the telling.
    pub at: Nanos,
    /// As they were at the first telling: labels never change.
    pub labels: Vec<(String, String)>,
}

/// Something to tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// What the receiver knows once it has it.
    pub told: Told,
    /// The receiver knows it by this when it comes twice.
    pub id: String,
    pub event: &'static str,
    pub body: String,
    /// Not tried any more after this time.
    pub give_up_at: Nanos,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryState {
    Pending,
    Delivered,
    Failed,
}

impl DeliveryState {
    pub const ALL: [DeliveryState; 3] = [DeliveryState::Pending, DeliveryState::Delivered, DeliveryState::Failed];

    pub fn word(self) -> &'static str {
        match self {
            DeliveryState::Pending => "pending",
            DeliveryState::Delivered => "delivered",
            DeliveryState::Failed => "failed",
        }
    }

    pub fn of(word: &str) -> Option<DeliveryState> {
        DeliveryState::ALL.into_iter().find(|state| state.word() == word)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    /// Its place in the outbox.
    pub number: i64,
    pub id: String,
    pub receiver: String,
    pub incident: String,
    pub event: String,
    pub revision: u32,
    pub body: String,
    pub created_at: Nanos,
    pub state: DeliveryState,
    pub next_attempt_at: Nanos,
    pub give_up_at: Nanos,
    pub finished_at: Option<Nanos>,
    /// Why it failed, or waits.
    pub reason: String,
    /// Oldest first.
    pub attempts: Vec<Attempt>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attempt {
    pub at: Nanos,
    pub took_ns: Nanos,
    /// The status that was answered, if any was.
    pub status: Option<u16>,
    /// The beginning of the answer, or what went wrong.
    pub answer: String,
}

/// What comes of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Delivered,
    /// To be tried again.
    Again {
        at: Nanos,
        reason: String,
    },
    Failed {
        reason: String,
    },
}

/// What there is to do for a receiver.
#[derive(Debug)]
pub enum Due {
    Now(Box<Delivery>),
    At(Nanos),
    Nothing,
}

pub(crate) fn told_of(connection: &Connection, incident: &str) -> rusqlite::Result<Vec<Told>> {
    let mut statement = connection.prepare_cached("SELECT body FROM told WHERE incident = ?1 ORDER BY receiver")?;
    let bodies = statement.query_map([incident], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
    Ok(bodies.iter().filter_map(|body| serde_json::from_str(body).ok()).collect())
}

/// Puts notices into the outbox, inside the caller's transaction.
pub(crate) fn put(connection: &Connection, incident: &Incident, notices: &[Notice], now: Nanos) -> rusqlite::Result<()> {
    for notice in notices {
        let told = serde_json::to_string(&notice.told).expect("it is plain data");
        let receiver = &notice.told.receiver;
        connection
            .execute("INSERT OR REPLACE INTO told(incident, receiver, body) VALUES (?1, ?2, ?3)", params![incident.id, receiver, told])?;
        connection.execute(
            "INSERT INTO deliveries(id, receiver, incident, event, revision, body, created_at, state, next_attempt_at, give_up_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 'pending', ?7, ?8)",
            params![notice.id, receiver, incident.id, notice.event, incident.revision, notice.body, clamp(now), clamp(notice.give_up_at)],
        )?;
        connection.execute(
            "UPDATE deliveries SET state = 'failed', finished_at = ?2, reason = 'too many newer ones wait for this receiver'
             WHERE receiver = ?1 AND state = 'pending' AND number <= (
                 SELECT number FROM deliveries WHERE receiver = ?1 AND state = 'pending' ORDER BY number DESC LIMIT 1 OFFSET ?3)",
            params![receiver, clamp(now), PENDING_MAX as i64],
        )?;
    }
    Ok(())
}

const COLUMNS: &str =
    "number, id, receiver, incident, event, revision, body, created_at, state, next_attempt_at, give_up_at, finished_at, reason";

fn delivery(row: &Row<'_>) -> rusqlite::Result<Delivery> {
    let time = |column: usize| row.get::<_, i64>(column).map(|t| t as u64);
    Ok(Delivery {
        number: row.get(0)?,
        id: row.get(1)?,
        receiver: row.get(2)?,
        incident: row.get(3)?,
        event: row.get(4)?,
        revision: row.get(5)?,
        body: row.get(6)?,
        created_at: time(7)?,
        state: DeliveryState::of(&row.get::<_, String>(8)?).unwrap_or(DeliveryState::Failed),
        next_attempt_at: time(9)?,
        give_up_at: time(10)?,
        finished_at: row.get::<_, Option<i64>>(11)?.map(|t| t as u64),
        reason: row.get(12)?,
        attempts: Vec::new(),
    })
}

fn with_attempts(connection: &Connection, mut delivery: Delivery) -> rusqlite::Result<Delivery> {
    let mut statement =
        connection.prepare_cached("SELECT at, took_ns, status, answer FROM attempts WHERE delivery = ?1 ORDER BY attempt LIMIT ?2")?;
    let attempts = statement.query_map(params![delivery.number, ATTEMPTS_MAX as i64], |row| {
        Ok(Attempt { at: row.get::<_, i64>(0)? as u64, took_ns: row.get::<_, i64>(1)? as u64, status: row.get(2)?, answer: row.get(3)? })
    })?;
    delivery.attempts = attempts.collect::<Result<Vec<_>, _>>()?;
    Ok(delivery)
}

/// Which deliveries a question is about; what is `None` may be anything.
#[derive(Clone, Debug, Default)]
pub struct DeliveryQuestion {
    pub receiver: Option<String>,
    pub incident: Option<String>,
    pub state: Option<DeliveryState>,
    pub id: Option<String>,
    /// Those put into the outbox before this one.
    pub before: Option<i64>,
    pub limit: usize,
}

impl Reader {
    /// Deliveries with their attempts, latest first.
    pub fn deliveries(&self, question: &DeliveryQuestion) -> Result<Vec<Delivery>, Error> {
        let query = format!(
            "SELECT {COLUMNS} FROM deliveries WHERE (?1 IS NULL OR receiver = ?1) AND (?2 IS NULL OR incident = ?2)
             AND (?3 IS NULL OR state = ?3) AND (?4 IS NULL OR id = ?4) AND number < ?5 ORDER BY number DESC LIMIT ?6"
        );
        self.shared.meta.with(|connection| {
            let mut statement = connection.prepare_cached(&query)?;
            let state = question.state.map(DeliveryState::word);
            let before = question.before.unwrap_or(i64::MAX);
            let limit = question.limit.min(1000) as i64;
            let found = statement.query_map(params![question.receiver, question.incident, state, question.id, before, limit], delivery)?;
            found.map(|delivery| with_attempts(connection, delivery?)).collect()
        })
    }

    /// How many deliveries of each receiver are in each state.
    pub fn delivery_counts(&self) -> Result<Vec<(String, DeliveryState, u64)>, Error> {
        self.shared.meta.with(|connection| {
            let mut statement =
                connection.prepare_cached("SELECT receiver, state, count(*) FROM deliveries GROUP BY 1, 2 ORDER BY 1, 2")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)? as u64)))?;
            let rows = rows.collect::<Result<Vec<_>, _>>()?;
            Ok(rows.into_iter().filter_map(|(receiver, state, n)| Some((receiver, DeliveryState::of(&state)?, n))).collect())
        })
    }

    /// The next delivery to a receiver. What was put in first about an incident goes first: `resolved` never overtakes `opened`.
    pub fn next_delivery(&self, receiver: &str, now: Nanos) -> Result<Due, Error> {
        let query = format!(
            "SELECT {COLUMNS} FROM deliveries AS d WHERE receiver = ?1 AND state = 'pending' AND NOT EXISTS (
                 SELECT 1 FROM deliveries AS e
                 WHERE e.receiver = ?1 AND e.state = 'pending' AND e.incident = d.incident AND e.number < d.number)
             ORDER BY next_attempt_at, number LIMIT 1"
        );
        self.shared.meta.with(|connection| {
            let found = connection.prepare_cached(&query)?.query_row([receiver], delivery).optional()?;
            Ok(match found {
                None => Due::Nothing,
                Some(delivery) if delivery.next_attempt_at > now => Due::At(delivery.next_attempt_at),
                Some(delivery) => Due::Now(Box::new(with_attempts(connection, delivery)?)),
            })
        })
    }

    /// Writes down an attempt and what comes of it.
    pub fn keep_attempt(&self, number: i64, attempt: &Attempt, outcome: &Outcome) -> Result<(), Error> {
        let end = attempt.at.saturating_add(attempt.took_ns);
        self.shared.meta.with(|connection| {
            let transaction = connection.unchecked_transaction()?;
            transaction.execute(
                "INSERT INTO attempts(delivery, attempt, at, took_ns, status, answer)
                 SELECT ?1, coalesce(max(attempt), 0) + 1, ?2, ?3, ?4, ?5 FROM attempts WHERE delivery = ?1",
                params![number, clamp(attempt.at), clamp(attempt.took_ns), attempt.status, attempt.answer],
            )?;
            let (state, next, finished, reason) = match outcome {
                Outcome::Delivered => (DeliveryState::Delivered, end, Some(clamp(end)), ""),
                Outcome::Again { at, reason } => (DeliveryState::Pending, *at, None, reason.as_str()),
                Outcome::Failed { reason } => (DeliveryState::Failed, end, Some(clamp(end)), reason.as_str()),
            };
            transaction.execute(
                "UPDATE deliveries SET state = ?2, next_attempt_at = ?3, finished_at = ?4, reason = ?5 WHERE number = ?1",
                params![number, state.word(), clamp(next), finished, reason],
            )?;
            transaction.commit()
        })
    }

    /// Puts a finished delivery back: the same body under the same id. Says whether there was one.
    pub fn resend(&self, id: &str, now: Nanos, give_up_at: Nanos) -> Result<bool, Error> {
        self.shared.meta.with(|connection| {
            let changed = connection.execute(
                "UPDATE deliveries SET state = 'pending', next_attempt_at = ?2, give_up_at = ?3, finished_at = NULL, reason = 'sent again by hand'
                 WHERE id = ?1 AND state <> 'pending'",
                params![id, clamp(now), clamp(give_up_at)],
            )?;
            Ok(changed > 0)
        })
    }

    /// Gives up what waits for receivers that are not in the settings any more.
    pub fn give_up_unknown_receivers(&self, known: &[String], now: Nanos) -> Result<usize, Error> {
        let known = serde_json::to_string(known).expect("names are plain data");
        self.shared.meta.with(|connection| {
            connection.execute(
                "UPDATE deliveries SET state = 'failed', finished_at = ?2, reason = 'the receiver is not in the settings any more'
                 WHERE state = 'pending' AND receiver NOT IN (SELECT value FROM json_each(?1))",
                params![known, clamp(now)],
            )
        })
    }

    /// Forgets finished deliveries beyond the number that is kept.
    pub fn forget_deliveries(&self) -> Result<usize, Error> {
        self.shared.meta.with(|connection| {
            let transaction = connection.unchecked_transaction()?;
            let old = "SELECT number FROM deliveries WHERE state <> 'pending' ORDER BY number DESC LIMIT -1 OFFSET ?1";
            transaction.execute(&format!("DELETE FROM attempts WHERE delivery IN ({old})"), [KEPT_MAX as i64])?;
            let forgotten = transaction.execute(&format!("DELETE FROM deliveries WHERE number IN ({old})"), [KEPT_MAX as i64])?;
            transaction.commit()?;
            Ok(forgotten)
        })
    }
}
