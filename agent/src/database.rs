//! Calls to databases as CLIENT spans and `db.client.operation.duration`, by the semantic conventions.

use crate::late::{Late, seconds};
use crate::operation::Operation;
use crate::within::OWN_TARGET;
use opentelemetry::KeyValue;
use opentelemetry::metrics::Histogram;
use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use tracing::field::Empty;

/// As the conventions advise, in seconds.
const BUCKETS: [f64; 9] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];

/// A database that the service calls. Made once, and cheap to clone.
///
/// ```no_run
/// # async fn rows() -> Result<Vec<u8>, std::io::Error> { Ok(Vec::new()) }
/// # async fn f() -> Result<(), std::io::Error> {
/// let database = firstfall_agent::Database::new("postgresql").namespace("shop").server("db.example", 5432);
/// let rows = database.query("SELECT", "orders").text("SELECT * FROM orders WHERE id = $1").run(rows()).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Database {
    what: Arc<What>,
}

#[derive(Clone, Debug)]
struct What {
    system: String,
    namespace: Option<String>,
    server: Option<(String, u16)>,
    duration: Late<Histogram<f64>>,
}

impl Database {
    /// `system` as `db.system.name` has it: `postgresql`, `mysql`, `sqlite`, `redis`, …
    pub fn new(system: &str) -> Database {
        let duration = seconds("db.client.operation.duration", &BUCKETS);
        Database { what: Arc::new(What { system: system.to_owned(), namespace: None, server: None, duration }) }
    }

    /// The name of the database within its system (`db.namespace`).
    pub fn namespace(mut self, name: &str) -> Database {
        Arc::make_mut(&mut self.what).namespace = Some(name.to_owned());
        self
    }

    /// Where it is (`server.address`, `server.port`).
    pub fn server(mut self, address: &str, port: u16) -> Database {
        Arc::make_mut(&mut self.what).server = Some((address.to_owned(), port));
        self
    }

    /// A call: its operation (`SELECT`, `HGET`), and the table, collection or key space that it is for; nothing if that cannot be told.
    pub fn query<'a>(&'a self, operation: &'a str, collection: &'a str) -> Query<'a> {
        Query { database: &self.what, operation, collection, text: None }
    }
}

/// A call that is about to be made.
#[derive(Debug)]
#[must_use = "it is measured when it is run"]
pub struct Query<'a> {
    database: &'a What,
    operation: &'a str,
    collection: &'a str,
    text: Option<&'a str>,
}

impl<'a> Query<'a> {
    /// The text of the query (`db.query.text`) with placeholders in it: what it is called with is nobody else's to see.
    pub fn text(mut self, text: &'a str) -> Query<'a> {
        self.text = Some(text);
        self
    }

    fn begin(self) -> Operation {
        let What { system, namespace, server, duration } = self.database;
        let collection = Some(self.collection).filter(|name| !name.is_empty());
        let name = match collection.or(namespace.as_deref()) {
            Some(of) => format!("{} {of}", self.operation),
            None => self.operation.to_owned(),
        };
        let span = tracing::info_span!(
            target: OWN_TARGET,
            "db.client",
            "otel.kind" = "client",
            "otel.name" = name,
            "otel.status_code" = Empty,
            "otel.status_description" = Empty,
            "db.system.name" = system,
            "db.namespace" = namespace.as_deref(),
            "db.operation.name" = self.operation,
            "db.collection.name" = collection,
            "db.query.text" = self.text,
            "server.address" = server.as_ref().map(|(address, _)| address.as_str()),
            "server.port" = server.as_ref().map(|(_, port)| i64::from(*port)),
            "error.type" = Empty,
        );
        let mut attributes =
            vec![KeyValue::new("db.system.name", system.clone()), KeyValue::new("db.operation.name", self.operation.to_owned())];
        attributes.extend(namespace.as_ref().map(|name| KeyValue::new("db.namespace", name.clone())));
        attributes.extend(collection.map(|name| KeyValue::new("db.collection.name", name.to_owned())));
        if let Some((address, port)) = server {
            attributes.push(KeyValue::new("server.address", address.clone()));
            attributes.push(KeyValue::new("server.port", i64::from(*port)));
        }
        Operation::begin(span, duration, attributes)
    }

    /// Makes the call. One that is dropped before its end is recorded as cancelled.
    pub async fn run<T, E: Display>(self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        self.begin().run(work).await
    }

    /// The same for a driver that blocks.
    pub fn run_blocking<T, E: Display>(self, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        self.begin().run_blocking(work)
    }
}
