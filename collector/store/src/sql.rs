//! SQL for people: `spans`, `logs` and `points` as read-only virtual tables over blocks and the live generation, beside the small
//! tables `services`, `operations`, `rollups`, `edges`, `incidents` and `changes`, in a private in-memory database that can do nothing but SELECT.
//!
//! Conditions on time, service, name and trace id are pushed down into the filter that pages use; the rest SQLite checks itself. A
//! cursor holds the rows of one segment at a time.

use crate::batch::Field;
use crate::edge::EdgeRow;
use crate::incident::IncidentState;
use crate::partition::{BlockInfo, Partition};
use crate::query::{Budget, Filter, Item, ServiceQuestion, Source};
use crate::value::{Value, pairs_to_json};
use crate::{Error, Reader, Signal, SpanId};
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::vtab::{Context, Filters, IndexConstraintOp, IndexInfo, Module, VTab, VTabConnection, VTabCursor};
use rusqlite::{Connection, ToSql, ffi};
use serde_json::Value as Json;
use std::ffi::{CStr, c_int};
use std::marker::PhantomData;
use std::sync::Arc;

#[derive(Debug, Default)]
pub struct SqlAnswer {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Json>>,
    /// There were more rows than asked for.
    pub truncated: bool,
}

/// Longest text or BLOB that a query may build, so that no `printf('%.*c')` fills the memory.
const LENGTH_MAX: i32 = 16 << 20;

/// Rows of a small table that are put before a query.
const ROWS_MAX: usize = 10_000;

impl Reader {
    /// Runs one SELECT and returns at most `limit` rows.
    pub fn sql(&self, query: &str, limit: usize, budget: &Budget) -> Result<SqlAnswer, Error> {
        let wrong = |error: rusqlite::Error| match error {
            rusqlite::Error::SqliteFailure(code, _) if code.code == rusqlite::ErrorCode::OperationInterrupted => Error::Deadline,
            rusqlite::Error::SqliteFailure(code, _) if code.code == rusqlite::ErrorCode::AuthorizationForStatementDenied => {
                Error::Sql("only SELECT is allowed here; the store is written by the server alone".to_owned())
            }
            rusqlite::Error::SqliteFailure(_, Some(message)) => Error::Sql(message),
            other => Error::Sql(other.to_string()),
        };
        let mut connection = Connection::open_in_memory().map_err(wrong)?;
        for (name, signal) in [(c"spans", Signal::Traces), (c"logs", Signal::Logs), (c"points", Signal::Metrics)] {
            connection.create_module(name, &MODULE, Some((self.clone(), signal, budget.clone()))).map_err(wrong)?;
        }
        let mentioned = query.to_ascii_lowercase();
        self.small_tables(&connection, &mentioned, budget)?;
        connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0).map_err(wrong)?;
        connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, LENGTH_MAX).map_err(wrong)?;
        connection.authorizer(Some(only_select)).map_err(wrong)?;
        let in_time = budget.clone();
        connection.progress_handler(1000, Some(move || in_time.check().is_err())).map_err(wrong)?;

        let mut statement = connection.prepare(query).map_err(wrong)?;
        let mut answer = SqlAnswer { columns: statement.column_names().map(str::to_owned).collect(), ..SqlAnswer::default() };
        let columns = answer.columns.len();
        let mut rows = statement.query([]).map_err(wrong)?;
        while let Some(row) = rows.next().map_err(wrong)? {
            if answer.rows.len() == limit {
                answer.truncated = true;
                break;
            }
            let mut cells = Vec::with_capacity(columns);
            for column in 0..columns {
                cells.push(match row.get_ref(column).map_err(wrong)? {
                    ValueRef::Null => Json::Null,
                    ValueRef::Integer(value) => Json::from(value),
                    ValueRef::Real(value) => Json::from(value),
                    ValueRef::Text(text) => Json::String(String::from_utf8_lossy(text).into_owned()),
                    ValueRef::Blob(bytes) => Json::String(bytes.iter().map(|b| format!("{b:02x}")).collect()),
                });
            }
            answer.rows.push(cells);
        }
        Ok(answer)
    }

    /// The latest incidents.
    fn incidents_table(&self, connection: &Connection) -> Result<(), Error> {
        for incident in self.incidents(IncidentState::All, 0, u64::MAX, ROWS_MAX)? {
            let nanos = |time: u64| i64::try_from(time).unwrap_or(i64::MAX);
            connection
                .execute(
                    "INSERT INTO incidents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    rusqlite::params![
                        incident.id,
                        if incident.closed_at.is_some() { "closed" } else { "open" },
                        nanos(incident.opened_at),
                        nanos(incident.onset),
                        incident.closed_at.map(nanos),
                        incident.title,
                        incident.diagnosis.origins.first().map(|o| o.service.as_str()),
                        incident.diagnosis.confidence,
                        incident.impact.requests as i64,
                        incident.impact.failed as i64,
                        serde_json::to_string(&incident).expect("an incident is plain data")
                    ],
                )
                .map_err(Error::sqlite("build a table in", std::path::Path::new("memory")))?;
        }
        Ok(())
    }

    /// The latest minutes of edges; those that are not over yet are missing.
    fn edges_table(&self, connection: &Connection) -> Result<(), Error> {
        for EdgeRow { start, width, caller, callee, cell } in self.latest_edges(ROWS_MAX)? {
            let quantile = |q: f64| cell.durations.quantile_ms(q);
            connection
                .execute(
                    "INSERT INTO edges VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    rusqlite::params![
                        start as i64,
                        width as i64,
                        caller.service.name,
                        caller.kind.name(),
                        callee.service.name,
                        callee.kind.name(),
                        callee.service.environment,
                        cell.calls() as i64,
                        cell.failed_calls() as i64,
                        cell.attempts as i64,
                        quantile(0.5),
                        quantile(0.95),
                        !cell.estimated
                    ],
                )
                .map_err(Error::sqlite("build a table in", std::path::Path::new("memory")))?;
        }
        Ok(())
    }

    /// The latest changes.
    fn changes_table(&self, connection: &Connection) -> Result<(), Error> {
        for change in self.changes(0, u64::MAX, None, ROWS_MAX)? {
            let time = i64::try_from(change.time).unwrap_or(i64::MAX);
            connection
                .execute(
                    "INSERT INTO changes VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    rusqlite::params![
                        change.service,
                        change.namespace,
                        change.environment,
                        change.kind,
                        change.from,
                        change.to,
                        time,
                        change.url
                    ],
                )
                .map_err(Error::sqlite("build a table in", std::path::Path::new("memory")))?;
        }
        Ok(())
    }

    fn small_tables(&self, connection: &Connection, mentioned: &str, budget: &Budget) -> Result<(), Error> {
        let failed = Error::sqlite("build a table in", std::path::Path::new("memory"));
        connection
            .execute_batch(
                "CREATE TABLE services(environment TEXT, namespace TEXT, service TEXT, requests INTEGER, errors INTEGER, p50_ms REAL,
                     p95_ms REAL, p99_ms REAL, versions TEXT, instances INTEGER, last_seen_ns INTEGER);
                 CREATE TABLE operations(service TEXT, kind TEXT, name TEXT, calls INTEGER, errors INTEGER, p50_ms REAL, p95_ms REAL, p99_ms REAL);
                 CREATE TABLE incidents(id TEXT, state TEXT, opened_at_ns INTEGER, onset_ns INTEGER, closed_at_ns INTEGER, title TEXT, origin TEXT,
                     confidence TEXT, requests INTEGER, failed INTEGER, body TEXT);
                 CREATE TABLE edges(start_ns INTEGER, width_ns INTEGER, caller TEXT, caller_kind TEXT, callee TEXT, callee_kind TEXT, environment TEXT,
                     calls INTEGER, errors INTEGER, attempts INTEGER, p50_ms REAL, p95_ms REAL, exact INTEGER);
                 CREATE TABLE changes(service TEXT, namespace TEXT, environment TEXT, kind TEXT, \"from\" TEXT, \"to\" TEXT, time_ns INTEGER, url TEXT);
                 CREATE TABLE rollups(service TEXT, start_ns INTEGER, requests INTEGER, errors INTEGER, p50_ms REAL, p95_ms REAL, p99_ms REAL);",
            )
            .map_err(&failed)?;
        if mentioned.contains("incidents") {
            self.incidents_table(connection)?;
        }
        if mentioned.contains("edges") {
            self.edges_table(connection)?;
        }
        if mentioned.contains("changes") {
            self.changes_table(connection)?;
        }
        let all = ServiceQuestion { to: i64::MAX as u64, step: crate::rollup::WINDOW, ..ServiceQuestion::default() };
        if !["services", "operations", "rollups"].iter().any(|table| mentioned.contains(table)) {
            return Ok(());
        }
        for service in self.services(&all, budget)? {
            let identity = &service.service;
            let quantiles = |h: &crate::histogram::Histogram| [0.5, 0.95, 0.99].map(|q| h.quantile_ms(q));
            let [p50, p95, p99] = quantiles(&service.requests.histogram);
            connection
                .execute(
                    "INSERT INTO services VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    rusqlite::params![
                        identity.environment,
                        identity.namespace,
                        identity.name,
                        service.requests.calls as i64,
                        service.requests.errors as i64,
                        p50,
                        p95,
                        p99,
                        service.versions().join(","),
                        service.instances.len() as i64,
                        service.last_seen as i64
                    ],
                )
                .map_err(&failed)?;
            for point in &service.points {
                let [p50, p95, p99] = quantiles(&point.cell.histogram);
                connection
                    .execute(
                        "INSERT INTO rollups VALUES (?, ?, ?, ?, ?, ?, ?)",
                        rusqlite::params![
                            identity.name,
                            point.start as i64,
                            point.cell.calls as i64,
                            point.cell.errors as i64,
                            p50,
                            p95,
                            p99
                        ],
                    )
                    .map_err(&failed)?;
            }
            if !mentioned.contains("operations") {
                continue;
            }
            let one = ServiceQuestion {
                service: Some(identity.name.clone()),
                namespace: Some(identity.namespace.clone()),
                environment: Some(identity.environment.clone()),
                ..all.clone()
            };
            for operation in self.operations(&one, budget)? {
                let [p50, p95, p99] = quantiles(&operation.cell.histogram);
                connection
                    .execute(
                        "INSERT INTO operations VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                        rusqlite::params![
                            identity.name,
                            span_kind(operation.kind),
                            operation.name,
                            operation.cell.calls as i64,
                            operation.cell.errors as i64,
                            p50,
                            p95,
                            p99
                        ],
                    )
                    .map_err(&failed)?;
            }
        }
        Ok(())
    }
}

fn only_select(context: AuthContext<'_>) -> Authorization {
    match context.action {
        AuthAction::Select | AuthAction::Read { .. } | AuthAction::Recursive => Authorization::Allow,
        AuthAction::Function { function_name } if function_name != "load_extension" => Authorization::Allow,
        // How SQLite makes a virtual table known on first use.
        AuthAction::CreateVtable { .. } => Authorization::Allow,
        _ => Authorization::Deny,
    }
}

pub fn span_kind(kind: u8) -> &'static str {
    match kind {
        1 => "internal",
        2 => "server",
        3 => "client",
        4 => "producer",
        5 => "consumer",
        _ => "unspecified",
    }
}

pub fn status_name(status: u8) -> &'static str {
    match status {
        1 => "ok",
        2 => "error",
        _ => "unset",
    }
}

/// The metric type of a point's kind.
pub fn metric_type(kind: u8) -> &'static str {
    match kind {
        1 => "gauge",
        2 => "sum",
        3 => "histogram",
        4 => "exponential_histogram",
        5 => "summary",
        _ => "unspecified",
    }
}

const MODULE: Module<'static, ItemTable> = Module::eponymous_only_module();

const SPANS: &CStr = c"CREATE TABLE x(trace_id TEXT, span_id TEXT, parent_span_id TEXT, service TEXT, name TEXT, kind TEXT,
    start_ns INTEGER, end_ns INTEGER, duration_ns INTEGER, status TEXT, status_message TEXT, scope TEXT, attributes TEXT, resource TEXT,
    events TEXT, links TEXT, namespace TEXT, environment TEXT)";
const LOGS: &CStr = c"CREATE TABLE x(time_ns INTEGER, observed_ns INTEGER, service TEXT, severity TEXT, severity_number INTEGER,
    event_name TEXT, body TEXT, trace_id TEXT, span_id TEXT, scope TEXT, attributes TEXT, resource TEXT, namespace TEXT, environment TEXT)";
const POINTS: &CStr =
    c"CREATE TABLE x(metric TEXT, type TEXT, temporality TEXT, unit TEXT, service TEXT, time_ns INTEGER, start_ns INTEGER,
    value REAL, count INTEGER, sum REAL, buckets TEXT, attributes TEXT, resource TEXT, namespace TEXT, environment TEXT)";

/// The columns whose conditions are pushed down: time, service, name, trace id.
fn pushed(signal: Signal) -> [c_int; 4] {
    match signal {
        Signal::Traces => [6, 3, 4, 0],
        Signal::Logs => [0, 2, 5, 7],
        Signal::Metrics => [5, 4, 0, -1],
    }
}

#[repr(C)]
struct ItemTable {
    /// SQLite's part; must be first.
    base: ffi::sqlite3_vtab,
    reader: Reader,
    signal: Signal,
    budget: Budget,
}

// SAFETY: `VTab` asks that the struct is `repr(C)` and begins with `sqlite3_vtab`, which it does; SQLite owns it from then on and
// frees it through rusqlite.
#[allow(unsafe_code, reason = "rusqlite's traits for virtual tables are unsafe to implement")]
unsafe impl<'vtab> VTab<'vtab> for ItemTable {
    type Aux = (Reader, Signal, Budget);
    type Cursor = ItemCursor<'vtab>;

    fn connect(
        _: &mut VTabConnection,
        aux: Option<&Self::Aux>,
        _module: &[u8],
        _database: &[u8],
        _table: &[u8],
        _arguments: &[&[u8]],
    ) -> rusqlite::Result<(std::borrow::Cow<'static, CStr>, Self)> {
        let (reader, signal, budget) = aux.expect("every module is created with its signal").clone();
        let schema = match signal {
            Signal::Traces => SPANS,
            Signal::Logs => LOGS,
            Signal::Metrics => POINTS,
        };
        Ok((schema.into(), ItemTable { base: ffi::sqlite3_vtab::default(), reader, signal, budget }))
    }

    fn best_index(&self, info: &mut IndexInfo) -> rusqlite::Result<bool> {
        use IndexConstraintOp::*;
        let [time, service, name, trace] = pushed(self.signal);
        // One letter for each condition, in the order of the arguments.
        let mut plan = String::new();
        let mut cost = 1e9;
        for (constraint, mut usage) in info.constraints_and_usages() {
            if !constraint.is_usable() {
                continue;
            }
            let column = constraint.column();
            let letter = match constraint.operator() {
                SQLITE_INDEX_CONSTRAINT_GE | SQLITE_INDEX_CONSTRAINT_GT if column == time => 'f',
                SQLITE_INDEX_CONSTRAINT_LE | SQLITE_INDEX_CONSTRAINT_LT if column == time => 't',
                SQLITE_INDEX_CONSTRAINT_EQ if column == time => 'e',
                SQLITE_INDEX_CONSTRAINT_EQ if column == service => 's',
                SQLITE_INDEX_CONSTRAINT_EQ if column == name => 'n',
                SQLITE_INDEX_CONSTRAINT_EQ if column == trace => 'i',
                _ => continue,
            };
            plan.push(letter);
            usage.set_argv_index(plan.len() as c_int);
            cost /= if letter == 'i' { 1e6 } else { 20.0 };
        }
        info.set_idx_str(&plan);
        info.set_estimated_cost(cost);
        Ok(true)
    }

    fn open(&'vtab mut self) -> rusqlite::Result<ItemCursor<'vtab>> {
        Ok(ItemCursor {
            base: ffi::sqlite3_vtab_cursor::default(),
            reader: self.reader.clone(),
            signal: self.signal,
            budget: self.budget.clone(),
            filter: Filter::default(),
            sources: Vec::new().into_iter(),
            open: None,
            items: Vec::new().into_iter(),
            current: None,
            rowid: 0,
            table: PhantomData,
        })
    }
}

#[repr(C)]
struct ItemCursor<'vtab> {
    /// SQLite's part; must be first.
    base: ffi::sqlite3_vtab_cursor,
    reader: Reader,
    signal: Signal,
    budget: Budget,
    filter: Filter,
    sources: std::vec::IntoIter<Source>,
    /// A block under way, and its next segment.
    open: Option<(Arc<Partition>, Arc<BlockInfo>, usize)>,
    items: std::vec::IntoIter<Item>,
    current: Option<Item>,
    rowid: i64,
    table: PhantomData<&'vtab ItemTable>,
}

impl ItemCursor<'_> {
    fn advance(&mut self) -> Result<(), Error> {
        loop {
            self.current = self.items.next();
            if self.current.is_some() {
                self.rowid += 1;
                return Ok(());
            }
            self.budget.check()?;
            if let Some((partition, block, number)) = self.open.take() {
                if number < block.directory.segments.len() {
                    self.items = self.reader.filtered_segment(&partition, &block, number, &self.filter)?.into_iter();
                    self.open = Some((partition, block, number + 1));
                }
                continue;
            }
            match self.sources.next() {
                None => return Ok(()),
                Some(Source::Live(batch)) => self.items = self.reader.filtered_batch(&batch, &self.filter)?.into_iter(),
                Some(Source::Block { partition, block }) => {
                    let may = block.time_max >= self.filter.from
                        && block.time_min < self.filter.to
                        && self.filter.trace_id.is_none_or(|id| block.filter.may_contain(&id.0));
                    self.open = may.then_some((partition, block, 0));
                }
            }
        }
    }
}

// SAFETY: `VTabCursor` asks that the struct is `repr(C)` and begins with `sqlite3_vtab_cursor`, which it does.
#[allow(unsafe_code, reason = "rusqlite's traits for virtual tables are unsafe to implement")]
unsafe impl VTabCursor for ItemCursor<'_> {
    fn filter(&mut self, _: c_int, plan: Option<&str>, arguments: &Filters<'_>) -> rusqlite::Result<()> {
        let mut filter = Filter::default();
        let mut nothing = false;
        for (at, letter) in plan.unwrap_or("").chars().enumerate() {
            let time =
                || arguments.get::<f64>(at).map(|t| t.max(0.0) as u64).or_else(|_| arguments.get::<i64>(at).map(|t| t.max(0) as u64));
            // A text in the place of a number, or a NULL: SQLite checks the condition itself.
            match letter {
                'f' => filter.from = filter.from.max(arguments.get::<i64>(at).map(|t| t.max(0) as u64).or_else(|_| time()).unwrap_or(0)),
                't' => {
                    let to = arguments.get::<i64>(at).map(|t| t.max(0) as u64).or_else(|_| time());
                    filter.to = filter.to.min(to.map_or(u64::MAX, |t| t.saturating_add(1)));
                }
                'e' => {
                    if let Ok(at) = arguments.get::<i64>(at) {
                        (filter.from, filter.to) = (at.max(0) as u64, (at.max(0) as u64).saturating_add(1));
                    }
                }
                's' => filter.service = arguments.get(at).ok(),
                'n' => filter.name = arguments.get(at).ok(),
                _ => match arguments.get::<String>(at).ok().and_then(|t| t.parse().ok()) {
                    Some(id) => filter.trace_id = Some(id),
                    None => nothing = true,
                },
            }
        }
        self.filter = filter;
        self.sources = if nothing { Vec::new() } else { self.reader.sources(self.signal) }.into_iter();
        self.open = None;
        self.items = Vec::new().into_iter();
        self.rowid = 0;
        self.advance().map_err(to_rusqlite)
    }

    fn next(&mut self) -> rusqlite::Result<()> {
        self.advance().map_err(to_rusqlite)
    }

    fn eof(&self) -> bool {
        self.current.is_none()
    }

    fn column(&self, context: &mut Context, column: c_int) -> rusqlite::Result<()> {
        let item = self.current.as_ref().expect("SQLite asks for columns of rows only");
        let value = match self.signal {
            Signal::Traces => span_column(item, column),
            Signal::Logs => log_column(item, column),
            Signal::Metrics => point_column(item, column),
        };
        context.set_result(value)
    }

    fn rowid(&self) -> rusqlite::Result<i64> {
        Ok(self.rowid)
    }
}

fn to_rusqlite(error: Error) -> rusqlite::Error {
    rusqlite::Error::ModuleError(error.to_string())
}

enum Out {
    Null,
    Int(i64),
    Real(f64),
    Text(String),
}

impl ToSql for Out {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Out::Null => ToSqlOutput::Borrowed(ValueRef::Null),
            Out::Int(value) => ToSqlOutput::Borrowed(ValueRef::Integer(*value)),
            Out::Real(value) => ToSqlOutput::Borrowed(ValueRef::Real(*value)),
            Out::Text(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
        })
    }
}

fn text(text: &str) -> Out {
    Out::Text(text.to_owned())
}

fn trace_id(item: &Item) -> Out {
    item.trace_id.map_or(Out::Null, |id| Out::Text(id.to_string()))
}

fn span_id(id: SpanId) -> Out {
    if id == SpanId(0) { Out::Null } else { Out::Text(id.to_string()) }
}

fn span_column(item: &Item, column: c_int) -> Out {
    match column {
        0 => trace_id(item),
        1 => span_id(item.span_id),
        2 => span_id(item.parent_span_id),
        3 => text(&item.service.name),
        4 => text(&item.name),
        5 => text(span_kind(item.kind)),
        6 => Out::Int(item.time as i64),
        7 => Out::Int(item.end() as i64),
        8 => Out::Int(item.duration),
        9 => text(status_name(item.status())),
        10 => text(item.text(Field::StatusMessage)),
        11 => text(&item.scope.name),
        12 => Out::Text(pairs_to_json(&item.attributes).to_string()),
        13 => Out::Text(pairs_to_json(&item.resource.attributes).to_string()),
        14 => Out::Text(item.events_json().to_string()),
        15 => Out::Text(item.links_json().to_string()),
        16 => text(&item.service.namespace),
        _ => text(&item.service.environment),
    }
}

fn log_column(item: &Item, column: c_int) -> Out {
    match column {
        0 => Out::Int(item.time as i64),
        1 => Out::Int(item.end() as i64),
        2 => text(&item.service.name),
        3 => text(item.text(Field::SeverityText)),
        4 => Out::Int(item.kind.into()),
        5 => text(&item.name),
        6 => item.field(Field::Body).map_or(Out::Null, |body| Out::Text(body.text())),
        7 => trace_id(item),
        8 => span_id(item.span_id),
        9 => text(&item.scope.name),
        10 => Out::Text(pairs_to_json(&item.attributes).to_string()),
        11 => Out::Text(pairs_to_json(&item.resource.attributes).to_string()),
        12 => text(&item.service.namespace),
        _ => text(&item.service.environment),
    }
}

fn point_column(item: &Item, column: c_int) -> Out {
    let number = |field| match item.field(field) {
        Some(Value::Int(value)) => Out::Int(*value),
        Some(Value::Double(value)) => Out::Real(*value),
        _ => Out::Null,
    };
    match column {
        0 => text(&item.name),
        1 => text(metric_type(item.kind)),
        2 => text(match item.int(Field::Temporality) {
            1 => "delta",
            2 => "cumulative",
            _ => "unspecified",
        }),
        3 => text(item.text(Field::Unit)),
        4 => text(&item.service.name),
        5 => Out::Int(item.time as i64),
        6 => Out::Int(item.time.wrapping_sub(item.duration as u64) as i64),
        7 => number(Field::Value),
        8 => number(Field::Count),
        9 => number(Field::Sum),
        10 => item.field(Field::Buckets).map_or(Out::Null, |b| Out::Text(b.to_json().to_string())),
        11 => Out::Text(pairs_to_json(&item.attributes).to_string()),
        12 => Out::Text(pairs_to_json(&item.resource.attributes).to_string()),
        13 => text(&item.service.namespace),
        _ => text(&item.service.environment),
    }
}
