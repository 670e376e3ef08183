//! A simulated system: services, databases, caches and queues that call each other. A request walks through it and leaves the spans that an
//! OpenTelemetry SDK would send. What is wrong at a moment is asked of a `Fault`.

use super::fault::Fault;
use crate::corpus::Random;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, metric, number_data_point};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message;
use std::collections::{BTreeMap, HashMap};

pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1_000 * MS;
/// SDKs send what has ended every five seconds.
const BATCH: u64 = 5 * SECOND;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Service,
    Database,
    Cache,
    Queue,
}

#[derive(Clone, Debug)]
pub struct Link {
    pub to: usize,
    /// How many requests make this call.
    pub share: f64,
    pub timeout: u64,
    pub retries: u32,
}

#[derive(Clone, Debug)]
pub struct Part {
    pub name: String,
    pub kind: Kind,
    /// Its own time of a request, typically.
    pub own: u64,
    /// A queue's one link leads to its consumer.
    pub links: Vec<Link>,
    /// Version of each instance.
    pub instances: Vec<u32>,
    /// Instances that were started since the beginning, so that each has an id of its own.
    pub started: u32,
    /// Its clock is this much ahead.
    pub clock: u64,
    /// A job takes all of its CPU; its own work then takes a tenth longer.
    pub busy: bool,
}

pub struct World {
    pub parts: Vec<Part>,
    /// Services that are called from outside, with their part of the load.
    pub entries: Vec<(usize, f64)>,
    pub random: Random,
    /// By second of arrival and by instance: what is sent.
    spans: BTreeMap<u64, HashMap<(usize, usize), Vec<Span>>>,
    logs: BTreeMap<u64, HashMap<(usize, usize), Vec<LogRecord>>>,
}

pub enum Body {
    Traces(Vec<u8>),
    Logs(Vec<u8>),
    Metrics(Vec<u8>),
}

fn text(key: &str, value: impl Into<String>) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(any_value::Value::StringValue(value.into())) }),
        ..KeyValue::default()
    }
}

fn number(key: &str, value: i64) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(any_value::Value::IntValue(value)) }), ..KeyValue::default() }
}

/// What a request carries through the system.
struct Walk<'a> {
    trace: [u8; 16],
    fault: &'a Fault,
}

/// Where in the system a request is: in a span of an instance, so many calls deep.
#[derive(Clone, Copy)]
struct Here {
    part: usize,
    instance: usize,
    span: u64,
    depth: u32,
}

struct Ended {
    at: u64,
    failed: bool,
}

impl World {
    pub fn new(parts: Vec<Part>, entries: Vec<(usize, f64)>, seed: u64) -> World {
        World { parts, entries, random: Random::new(seed), spans: BTreeMap::new(), logs: BTreeMap::new() }
    }

    pub fn chance(&mut self, share: f64) -> bool {
        ((self.random.draw() >> 11) as f64 / (1u64 << 53) as f64) < share
    }

    /// A duration as services have them: most near the typical one, some far above.
    pub fn around(&mut self, typical: u64) -> u64 {
        // The sum of twelve is nearly normal.
        let normal = (0..12).map(|_| self.random.below(1_000_000) as f64 / 1e6).sum::<f64>() - 6.0;
        let tail = if self.chance(0.01) { 3.0 } else { 1.0 };
        (typical as f64 * (0.35 * normal).exp() * tail) as u64
    }

    fn id(&mut self) -> u64 {
        self.random.draw() | 1
    }

    fn emit(&mut self, part: usize, instance: usize, mut span: Span) {
        let clock = self.parts[part].clock;
        let slot = span.end_time_unix_nano / BATCH;
        span.start_time_unix_nano += clock;
        span.end_time_unix_nano += clock;
        self.spans.entry(slot).or_default().entry((part, instance)).or_default().push(span);
    }

    fn log(&mut self, walk: &Walk<'_>, here: Here, at: u64, severity: i32, body: &str) {
        let at = at + self.parts[here.part].clock;
        let record = LogRecord {
            time_unix_nano: at,
            observed_time_unix_nano: at,
            severity_number: severity,
            body: Some(AnyValue { value: Some(any_value::Value::StringValue(body.to_owned())) }),
            trace_id: walk.trace.to_vec(),
            span_id: here.span.to_be_bytes().to_vec(),
            ..LogRecord::default()
        };
        self.logs.entry(at / BATCH).or_default().entry((here.part, here.instance)).or_default().push(record);
    }

    /// A request from outside that begins at a time.
    pub fn request(&mut self, at: u64, fault: &Fault) {
        let mut pick = self.random.below(1_000_000) as f64 / 1e6 * self.entries.iter().map(|(_, share)| share).sum::<f64>();
        let mut entry = self.entries[0].0;
        for (part, share) in &self.entries {
            entry = *part;
            pick -= share;
            if pick < 0.0 {
                break;
            }
        }
        let mut trace = [0; 16];
        trace[..8].copy_from_slice(&self.id().to_be_bytes());
        trace[8..].copy_from_slice(&self.id().to_be_bytes());
        self.serve(&Walk { trace, fault }, entry, at, 0, 2, 0);
    }

    /// A span by itself, as health probes, long polls and streams leave them.
    pub fn lone(&mut self, part: usize, name: &str, at: u64, duration: u64) {
        let (trace, span) = ([self.id().to_be_bytes(), self.id().to_be_bytes()].concat(), self.id());
        let span = Span {
            trace_id: trace,
            span_id: span.to_be_bytes().to_vec(),
            name: name.to_owned(),
            kind: 2,
            start_time_unix_nano: at,
            end_time_unix_nano: at + duration,
            ..Span::default()
        };
        let instance = self.random.below(self.parts[part].instances.len() as u64) as usize;
        self.emit(part, instance, span);
    }

    /// A service takes a request in: its span, its calls, and how it ended.
    fn serve(&mut self, walk: &Walk<'_>, part: usize, start: u64, parent: u64, kind: i32, depth: u32) -> Ended {
        let instance = self.random.below(self.parts[part].instances.len() as u64) as usize;
        let operation = self.random.below(3) as usize;
        let here = Here { part, instance, span: self.id(), depth };
        let span = here.span;
        let own = self.parts[part].own;
        let busy = if self.parts[part].busy { 1.1 } else { 1.0 };
        let own = (self.around(own) as f64 * busy * walk.fault.slower(part, start)) as u64 + walk.fault.added(part, start);
        let mut at = start + own / 2;
        let mut failed = false;
        let fails_by_itself = {
            let share = walk.fault.failing(part, operation, instance, start) + 0.001;
            self.chance(share)
        };
        if depth < 8 && !(fails_by_itself && self.chance(0.5)) {
            for link in self.parts[part].links.clone() {
                if !self.chance(link.share) {
                    continue;
                }
                let ended = self.call(walk, here, &link, at);
                at = ended.at;
                if ended.failed && self.parts[link.to].kind != Kind::Cache {
                    failed = true;
                    break;
                }
            }
        }
        let end = at + own / 2;
        let whose = if fails_by_itself { "unexpected state in handler" } else { "call failed" };
        if fails_by_itself || failed {
            self.log(walk, here, end, 17, &format!("{whose} of operation {operation}"));
        } else if self.chance(0.1) {
            self.log(walk, here, end, 9, &format!("handled operation {operation} in {} us", own / 1000));
        }
        failed |= fails_by_itself;
        let name = if kind == 5 {
            "process events".to_owned()
        } else {
            format!("{} /{}/{operation}", ["GET", "POST", "PUT"][operation], self.parts[part].name)
        };
        self.emit(
            part,
            instance,
            Span {
                trace_id: walk.trace.to_vec(),
                span_id: span.to_be_bytes().to_vec(),
                parent_span_id: if parent == 0 { Vec::new() } else { parent.to_be_bytes().to_vec() },
                name,
                kind,
                start_time_unix_nano: start,
                end_time_unix_nano: end,
                attributes: vec![number("http.response.status_code", if failed { 500 } else { 200 })],
                status: failed.then(|| Status { code: 2, ..Status::default() }),
                ..Span::default()
            },
        );
        Ended { at: end, failed }
    }

    fn call(&mut self, walk: &Walk<'_>, here: Here, link: &Link, start: u64) -> Ended {
        let mut at = start;
        if walk.fault.breaker_open(here.part, link.to, at) {
            self.log(walk, here, at, 17, "circuit breaker is open");
            return Ended { at: at + MS / 10, failed: true };
        }
        let retries = link.retries.max(walk.fault.retries(link.to));
        for attempt in 0..=retries {
            at += walk.fault.pool_wait(here.part, at) + u64::from(attempt) * 5 * MS;
            let ended = self.attempt(walk, here, link, at);
            at = ended.at;
            if !ended.failed || attempt == retries {
                return ended;
            }
        }
        unreachable!("the last attempt returns")
    }

    fn attempt(&mut self, walk: &Walk<'_>, here: Here, link: &Link, at: u64) -> Ended {
        let Here { part: from, instance, span: parent, depth } = here;
        let span = self.id();
        let to = self.parts[link.to].clone();
        let timeout = walk.fault.timeout(link.to, at).unwrap_or(link.timeout);
        let refused = walk.fault.dead(link.to, at);
        let lost = {
            let share = walk.fault.lost(from, link.to, at);
            share > 0.0 && self.chance(share)
        };
        let (kind, name) = match to.kind {
            Kind::Service => (3, "POST"),
            Kind::Database => (3, "SELECT"),
            Kind::Cache => (3, "GET"),
            Kind::Queue => (4, "send"),
        };
        let mut ended = if refused {
            Ended { at: at + self.around(MS / 2), failed: true }
        } else if lost {
            Ended { at: at + timeout, failed: true }
        } else {
            match to.kind {
                Kind::Service => {
                    let inner = self.serve(walk, link.to, at + 300_000, span, 2, depth + 1);
                    Ended { at: inner.at + 300_000, failed: inner.failed }
                }
                Kind::Database | Kind::Cache => {
                    let took = (self.around(to.own) as f64 * walk.fault.slower(link.to, at)) as u64 + walk.fault.added(link.to, at);
                    let failing = walk.fault.failing(link.to, 0, 0, at);
                    Ended { at: at + took, failed: self.chance(failing) }
                }
                Kind::Queue => {
                    let sent = at + self.around(to.own);
                    if let Some(consumer) = to.links.first() {
                        let wait = self.around(20 * MS) + walk.fault.backlog(consumer.to, at);
                        self.serve(walk, consumer.to, sent + wait, span, 5, depth + 1);
                    }
                    Ended { at: sent, failed: false }
                }
            }
        };
        if ended.at > at + timeout {
            ended = Ended { at: at + timeout, failed: true };
        }
        let attributes = match to.kind {
            Kind::Service => vec![text("server.address", format!("{}.internal", to.name)), number("server.port", 8080)],
            Kind::Database => vec![text("db.system.name", "postgresql"), text("db.namespace", to.name.as_str())],
            Kind::Cache => vec![text("db.system.name", "redis"), text("server.address", to.name.as_str())],
            Kind::Queue => vec![text("messaging.system", "kafka"), text("messaging.destination.name", to.name.as_str())],
        };
        self.emit(
            from,
            instance,
            Span {
                trace_id: walk.trace.to_vec(),
                span_id: span.to_be_bytes().to_vec(),
                parent_span_id: parent.to_be_bytes().to_vec(),
                name: name.to_owned(),
                kind,
                start_time_unix_nano: at,
                end_time_unix_nano: ended.at,
                attributes,
                status: ended.failed.then(|| Status { code: 2, ..Status::default() }),
                ..Span::default()
            },
        );
        ended
    }

    fn resource(&self, part: usize, instance: usize) -> Resource {
        let p = &self.parts[part];
        // An instance that is gone by now sends its last under the version that is there.
        let version = p.instances.get(instance).or(p.instances.last()).copied().unwrap_or(1);
        let attributes = vec![
            text("service.name", p.name.as_str()),
            text("service.version", format!("1.{version}")),
            text("service.instance.id", format!("{}-{version}-{}-{instance}", p.name, p.started)),
        ];
        Resource { attributes, ..Resource::default() }
    }

    /// What arrives by a time, in order.
    pub fn arrivals(&mut self, until: u64) -> Vec<Body> {
        let slot = until / BATCH;
        let mut bodies = Vec::new();
        let later = self.spans.split_off(&slot);
        for (_, senders) in std::mem::replace(&mut self.spans, later) {
            let mut senders: Vec<_> = senders.into_iter().collect();
            senders.sort_unstable_by_key(|(key, _)| *key);
            for ((part, instance), spans) in senders {
                let scope = ScopeSpans { spans, ..ScopeSpans::default() };
                let resource = Some(self.resource(part, instance));
                let request = ExportTraceServiceRequest {
                    resource_spans: vec![ResourceSpans { resource, scope_spans: vec![scope], ..ResourceSpans::default() }],
                };
                bodies.push(Body::Traces(request.encode_to_vec()));
            }
        }
        let later = self.logs.split_off(&slot);
        for (_, senders) in std::mem::replace(&mut self.logs, later) {
            let mut senders: Vec<_> = senders.into_iter().collect();
            senders.sort_unstable_by_key(|(key, _)| *key);
            for ((part, instance), log_records) in senders {
                let scope = ScopeLogs { log_records, ..ScopeLogs::default() };
                let resource = Some(self.resource(part, instance));
                let request = ExportLogsServiceRequest {
                    resource_logs: vec![ResourceLogs { resource, scope_logs: vec![scope], ..ResourceLogs::default() }],
                };
                bodies.push(Body::Logs(request.encode_to_vec()));
            }
        }
        bodies
    }

    /// The use of CPU by each service, as it is sent twice a minute.
    pub fn cpu(&mut self, at: u64, fault: &Fault) -> Vec<Body> {
        let mut bodies = Vec::new();
        for part in 0..self.parts.len() {
            if self.parts[part].kind != Kind::Service {
                continue;
            }
            let used = if fault.hogs(part, at) || self.parts[part].busy { 0.97 } else { self.around(200) as f64 / 1000.0 };
            let point = NumberDataPoint {
                time_unix_nano: at + self.parts[part].clock,
                value: Some(number_data_point::Value::AsDouble(used)),
                ..NumberDataPoint::default()
            };
            let metric = Metric {
                name: "process.cpu.utilization".to_owned(),
                unit: "1".to_owned(),
                data: Some(metric::Data::Gauge(Gauge { data_points: vec![point] })),
                ..Metric::default()
            };
            let scope = ScopeMetrics { metrics: vec![metric], ..ScopeMetrics::default() };
            let resource = Some(self.resource(part, 0));
            let request = ExportMetricsServiceRequest {
                resource_metrics: vec![ResourceMetrics { resource, scope_metrics: vec![scope], ..ResourceMetrics::default() }],
            };
            bodies.push(Body::Metrics(request.encode_to_vec()));
        }
        bodies
    }
}

fn part(name: &str, kind: Kind, own_ms: u64) -> Part {
    Part { name: name.to_owned(), kind, own: own_ms * MS, links: Vec::new(), instances: vec![1, 1], started: 0, clock: 0, busy: false }
}

fn link(to: usize, share: f64) -> Link {
    Link { to, share, timeout: 2 * SECOND, retries: 0 }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Topology {
    Chain,
    FanOut,
    Diamond,
    Cycle,
    Queue,
    SharedDatabase,
    Large,
}

impl Topology {
    pub const ALL: [Topology; 7] =
        [Topology::Chain, Topology::FanOut, Topology::Diamond, Topology::Cycle, Topology::Queue, Topology::SharedDatabase, Topology::Large];

    pub fn build(self, seed: u64) -> World {
        let mut random = Random::new(seed ^ 0xabcd);
        let mut own = |low: u64, high: u64| low + random.below(high - low);
        let mut parts = vec![part("gateway", Kind::Service, own(1, 4))];
        let mut entries = vec![(0, 1.0)];
        let add = |parts: &mut Vec<Part>, name: &str, kind, own| {
            parts.push(part(name, kind, own));
            parts.len() - 1
        };
        match self {
            Topology::Chain => {
                let names = ["orders", "billing", "payments", "ledger", "accounts"];
                for name in names {
                    let at = add(&mut parts, name, Kind::Service, own(2, 15));
                    parts[at - 1].links.push(link(at, 1.0));
                }
                let db = add(&mut parts, "accountsdb", Kind::Database, own(2, 8));
                parts[5].links.push(link(db, 1.0));
            }
            Topology::FanOut => {
                for name in ["ads", "cart", "currency", "products", "recommendations", "reviews", "shipping"] {
                    let at = add(&mut parts, name, Kind::Service, own(2, 20));
                    parts[0].links.push(link(at, 0.7));
                    let (kind, store) = if at % 2 == 0 { (Kind::Cache, "cache") } else { (Kind::Database, "db") };
                    let store = add(&mut parts, &format!("{name}-{store}"), kind, own(1, 6));
                    parts[at].links.push(link(store, 1.0));
                }
            }
            Topology::Diamond => {
                for name in ["left", "right", "bottom"] {
                    add(&mut parts, name, Kind::Service, own(3, 15));
                }
                let db = add(&mut parts, "bottomdb", Kind::Database, own(2, 8));
                parts[0].links.extend([link(1, 1.0), link(2, 0.6)]);
                parts[1].links.push(link(3, 1.0));
                parts[2].links.push(link(3, 1.0));
                parts[3].links.push(link(db, 1.0));
            }
            Topology::Cycle => {
                for name in ["users", "groups", "rights"] {
                    add(&mut parts, name, Kind::Service, own(3, 12));
                }
                parts[0].links.push(link(1, 1.0));
                parts[1].links.push(link(2, 0.8));
                parts[2].links.push(link(3, 0.8));
                // Rights sometimes ask for the user again.
                parts[3].links.push(link(1, 0.2));
            }
            Topology::Queue => {
                let orders = add(&mut parts, "orders", Kind::Service, own(3, 10));
                let queue = add(&mut parts, "order-events", Kind::Queue, 2);
                let mailer = add(&mut parts, "mailer", Kind::Service, own(5, 20));
                let db = add(&mut parts, "maildb", Kind::Database, own(2, 8));
                let stock = add(&mut parts, "stock", Kind::Service, own(3, 10));
                parts[0].links.push(link(orders, 1.0));
                parts[orders].links.extend([link(stock, 1.0), link(queue, 1.0)]);
                parts[queue].links.push(link(mailer, 1.0));
                parts[mailer].links.push(link(db, 1.0));
            }
            Topology::SharedDatabase => {
                let db = add(&mut parts, "shareddb", Kind::Database, own(2, 8));
                for name in ["search", "checkout", "profile", "history"] {
                    let at = add(&mut parts, name, Kind::Service, own(3, 12));
                    parts[0].links.push(link(at, 0.6));
                    parts[at].links.push(link(db, 1.0));
                }
            }
            Topology::Large => {
                // Forty services in five layers, each calling one to three of the next; databases and caches at the ends.
                let mut layers: Vec<Vec<usize>> = vec![vec![0]];
                for (layer, size) in [4usize, 10, 14, 11].into_iter().enumerate() {
                    let next: Vec<usize> =
                        (0..size).map(|n| add(&mut parts, &format!("svc-{}-{n:02}", layer + 1), Kind::Service, own(2, 12))).collect();
                    layers.push(next);
                }
                let mut random = Random::new(seed ^ 0x77);
                for layer in 0..layers.len() {
                    for (place, from) in layers[layer].clone().into_iter().enumerate() {
                        match layers.get(layer + 1) {
                            Some(next) => {
                                let width = next.len() / layers[layer].len().max(1);
                                let calls = 1 + random.below(2) as usize;
                                for n in 0..calls.max(width.min(3)) {
                                    let to = next[(place * width.max(1) + n) % next.len()];
                                    if !parts[from].links.iter().any(|l| l.to == to) {
                                        parts[from].links.push(link(to, if layer == 0 { 0.6 } else { 0.8 }));
                                    }
                                }
                            }
                            None => {
                                let store = add(&mut parts, &format!("db-{place:02}"), Kind::Database, own(1, 6));
                                parts[from].links.push(link(store, 1.0));
                            }
                        }
                    }
                }
                entries.push((layers[1][0], 0.1));
            }
        }
        World::new(parts, entries, seed)
    }
}
