//! From batches to *facts*: the little that detection needs to know of a span, a log record or a point. Everything that depends on the
//! semantic conventions, old and new, is decided here; what follows knows nodes, texts and numbers only.

use super::breakers;
use super::callee::{Callee, Says, Words};
use super::names::{Names, Node, NodeId, NodeKind, TextId};
use super::pattern::pattern;
use firstfall_store::batch::{Batch, Field, Kind, ValueRef, marks};
use firstfall_store::sampling::Weights;
use firstfall_store::value::{Resource, Stored, text_of};
use firstfall_store::{Service, Signal, TraceId};
use hashbrown::HashMap;
use std::sync::Arc;

/// Severity number of a warning.
const WARN: u8 = 13;

pub const INTERNAL: u8 = 1;
pub const SERVER: u8 = 2;
pub const CLIENT: u8 = 3;
pub const PRODUCER: u8 = 4;
pub const CONSUMER: u8 = 5;

#[derive(Clone, Copy, Debug)]
pub struct SpanFact {
    pub trace: [u8; 16],
    pub span: u64,
    pub parent: u64,
    pub node: NodeId,
    pub operation: TextId,
    pub kind: u8,
    pub start: u64,
    pub end: u64,
    /// What was taken off both, because its service's clock is ahead by so much.
    pub ahead: i64,
    pub failed: bool,
    pub request: bool,
    /// It was refused, which is no failure of who refuses.
    pub refusal: Option<Refusal>,
    /// Whom it calls, by its attributes.
    pub peer: Option<NodeId>,
    /// How many spans it stands for, where they are sampled or only some are looked at.
    pub weight: u32,
    /// It says itself that this call is made again.
    pub again: bool,
    /// The library that tells of it, where it is a call to a database; else 0.
    pub layer: TextId,
}

/// Answers that say no. Each alone is ordinary; a surge of one is a symptom: a certificate or token that ran out, rights that somebody took away,
/// load that is shed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Refusal {
    /// HTTP 401, gRPC UNAUTHENTICATED.
    Unauthenticated,
    /// HTTP 403, gRPC PERMISSION_DENIED.
    Forbidden,
    /// HTTP 429, gRPC RESOURCE_EXHAUSTED.
    TooMany,
}

impl Refusal {
    fn of(http_status: i64, grpc_status: i64) -> Option<Refusal> {
        match (http_status, grpc_status) {
            (401, _) | (_, 16) => Some(Refusal::Unauthenticated),
            (403, _) | (_, 7) => Some(Refusal::Forbidden),
            (429, _) | (_, 8) => Some(Refusal::TooMany),
            _ => None,
        }
    }

    pub fn words(self) -> &'static str {
        match self {
            Refusal::Unauthenticated => "401 Unauthorized",
            Refusal::Forbidden => "403 Forbidden",
            Refusal::TooMany => "429 Too Many Requests",
        }
    }
}

impl SpanFact {
    /// Takes off both times by how much its service's clock is ahead.
    pub fn set_clock(&mut self, ahead: i64) {
        self.start = self.start.saturating_add_signed(-ahead);
        self.end = self.end.saturating_add_signed(-ahead);
        self.ahead = ahead;
    }

    /// Start and end as they were sent.
    pub fn by_own_clock(&self) -> (u64, u64) {
        (self.start.saturating_add_signed(self.ahead), self.end.saturating_add_signed(self.ahead))
    }
}

#[derive(Clone, Copy, Debug)]
pub struct LogFact {
    pub node: NodeId,
    pub time: u64,
    pub severity: u8,
    pub pattern: TextId,
    pub trace: [u8; 16],
    pub span: u64,
    /// How many records it stands for.
    pub weight: u32,
}

/// What a number of a metric says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Measure {
    /// A level: CPU, memory, a queue's length.
    Level,
    /// Requests since the point before.
    Requests,
    /// Failed requests since the point before.
    Errors,
    /// A mean or a percentile of how long something takes, in seconds.
    Latency,
    /// Something else that is counted, since the point before.
    Count,
}

#[derive(Clone, Copy, Debug)]
pub struct PointFact {
    pub node: NodeId,
    /// Name and attributes together.
    pub metric: TextId,
    pub measure: Measure,
    pub time: u64,
    pub value: f64,
    /// A cumulative count: what came since the point before is the difference.
    pub cumulative: bool,
    /// How many observations a latency is the mean of; 0 where that is not said.
    pub weight: f64,
    /// Since when a sum counts; 0 where that is not said.
    pub since: u64,
}

#[derive(Default)]
pub struct Facts {
    pub spans: Vec<SpanFact>,
    pub logs: Vec<LogFact>,
    pub points: Vec<PointFact>,
    /// Caller and callee that only a metric tells of, and when.
    pub edges: Vec<(NodeId, NodeId, u64)>,
    /// Versions of nodes that speak, and when.
    pub versions: Vec<(NodeId, TextId, u64)>,
    /// Instances of nodes that speak, and when.
    pub instances: Vec<(NodeId, Arc<str>, u64)>,
    /// Node, breaker, its state, and when.
    pub breakers: Vec<(NodeId, TextId, TextId, u64)>,
    pub breaker_counts: Vec<breakers::Count>,
    /// Processes that send metrics, and when their points of this batch begin.
    pub measured: Vec<(u64, u64)>,
}

/// Which traces are looked at, when there are more than there is time for: whole traces, one in two, four, eight, …, so that what is
/// joined of them stays true.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thinning(pub u32);

/// How a batch is looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    pub thinning: Thinning,
    /// Log records that are not kept are not counted either, so that those that are stand for them too.
    pub sampled: bool,
}

impl Thinning {
    /// One trace in 256 at least.
    pub const MAX: u32 = 8;

    /// So that of so many rows no more than `wanted` are looked at.
    pub fn of(rows: usize, wanted: usize) -> Thinning {
        Thinning(rows.div_ceil(wanted.max(1)).next_power_of_two().trailing_zeros().min(Thinning::MAX))
    }

    /// How many each one that is kept stands for.
    fn weight(self) -> u32 {
        1 << self.0
    }

    /// Whether a row of the past is kept: a trace or none of it; of records without one a part by their times; warnings and errors always.
    pub fn keeps_past(self, signal: Signal, kind: u8, trace: Option<TraceId>, time: u64) -> bool {
        let by_time = || time.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & u64::from(self.weight() - 1) == 0;
        match signal {
            Signal::Metrics => true,
            Signal::Logs if kind >= WARN => true,
            _ => trace.map_or_else(by_time, |trace| self.keeps(&trace.0)),
        }
    }

    fn keeps(self, trace: &[u8; 16]) -> bool {
        // Trace ids are random in their last bytes (W3C Trace Context, level 2).
        let tail = u64::from_be_bytes([trace[8], trace[9], trace[10], trace[11], trace[12], trace[13], trace[14], trace[15]]);
        tail & u64::from(self.weight() - 1) == 0
    }
}

/// Takes from a batch what detection needs.
pub fn of(batch: &Batch, names: &mut Names, look: Look) -> Facts {
    let nodes: Vec<NodeId> = (0..batch.resources.len() as u32)
        .map(|resource| names.node_id(Node { kind: NodeKind::Service, service: batch.service(resource) }))
        .collect();
    let mut texts = Texts::of(batch);
    let lanes: Vec<(NodeId, TextId, u8)> = batch
        .lanes
        .iter()
        .map(|lane| {
            let name = texts.get(lane.name, |_| names.text(batch.strings.str(lane.name)));
            (nodes[batch.contexts[lane.context as usize].0 as usize], name, lane.kind)
        })
        .collect();
    let mut facts = Facts::default();
    // A batch may be a whole block, hours after its rows came.
    let mut heard: Vec<(u64, u64)> = vec![(u64::MAX, 0); batch.resources.len()];
    for row in 0..batch.rows() {
        let resource = batch.contexts[batch.lanes[batch.lane[row] as usize].context as usize].0;
        let (first, last) = &mut heard[resource as usize];
        (*first, *last) = ((*first).min(batch.time[row]), (*last).max(batch.time[row]));
    }
    for ((resource, node), (first, last)) in batch.resources.iter().zip(&nodes).zip(heard) {
        if first > last {
            continue;
        }
        if batch.signal == Signal::Metrics {
            facts.measured.push((breakers::process_of(batch.blobs.get(resource.body)), first));
        }
        let Sender { version, instance } = names.sender(batch.blobs.get(resource.body));
        if let Some(version) = version {
            facts.versions.extend([(*node, version, first), (*node, version, last)]);
        }
        if let Some(instance) = instance {
            facts.instances.extend([(*node, instance.clone(), first), (*node, instance, last)]);
        }
    }
    match batch.signal {
        Signal::Traces => spans(batch, &lanes, names, look.thinning, &mut facts),
        Signal::Logs => logs(batch, &lanes, names, look, &mut facts),
        Signal::Metrics => points(batch, &lanes, names, &mut facts),
    }
    facts
}

/// What the texts of a batch are called here, each asked once.
struct Texts<'a> {
    batch: &'a Batch,
    known: Vec<TextId>,
}

impl<'a> Texts<'a> {
    const UNASKED: TextId = TextId::MAX;

    fn of(batch: &'a Batch) -> Texts<'a> {
        Texts { batch, known: vec![Texts::UNASKED; batch.strings.len()] }
    }

    fn get(&mut self, id: u32, ask: impl FnOnce(&'a [u8]) -> TextId) -> TextId {
        let known = &mut self.known[id as usize];
        if *known == Texts::UNASKED {
            *known = ask(self.batch.strings.get(id));
        }
        *known
    }
}

/// Who sends, apart from the service: what its resource says of its version and instance.
#[derive(Clone, Default)]
pub struct Sender {
    version: Option<TextId>,
    instance: Option<Arc<str>>,
}

impl Sender {
    /// `resource` as the store keeps it.
    pub fn of(resource: &[u8], names: &mut Names) -> Sender {
        let Ok(resource) = Resource::from_bytes(resource) else { return Sender::default() };
        let version = text_of(&resource.attributes, "service.version").filter(|version| !version.is_empty());
        Sender { version: version.map(|version| names.text(version)), instance: instance_of(&resource).map(Arc::from) }
    }
}

/// What tells one instance of a service from another, by the first of these that there is.
fn instance_of(resource: &Resource) -> Option<String> {
    let text = |key| text_of(&resource.attributes, key).filter(|text| !text.is_empty());
    let whole = ["service.instance.id", "k8s.pod.uid", "k8s.pod.name", "container.id"].into_iter().find_map(text);
    // A process id alone is the same in every container.
    whole.map(str::to_owned).or_else(|| {
        let (_, pid) = resource.attributes.iter().find(|(key, _)| key == "process.pid")?;
        Some(format!("{} {}", text("host.name")?, pid.text()))
    })
}

fn spans(batch: &Batch, lanes: &[(NodeId, TextId, u8)], names: &mut Names, thinning: Thinning, facts: &mut Facts) {
    let mut words = Words::of(batch);
    let weights = Weights::of(batch);
    let with_databases = words.tell(Says::DbSystem);
    // The libraries that tell of calls, where it matters.
    let layers: Vec<TextId> = batch
        .contexts
        .iter()
        .map(|(_, scope)| if with_databases { names.scope(batch.blobs.get(batch.scopes[*scope as usize])) } else { 0 })
        .collect();
    let with_status = words.tell(Says::HttpStatus) || words.tell(Says::GrpcStatus);
    let mut callees: HashMap<(NodeId, Callee), Option<NodeId>> = HashMap::new();
    facts.spans.reserve(batch.rows() >> thinning.0);
    for row in 0..batch.rows() {
        let (node, operation, kind) = lanes[batch.lane[row] as usize];
        let Some(trace) = batch.trace_id(row).filter(|trace| thinning.keeps(&trace.0)) else { continue };
        let mut peer = None;
        let mut failed = batch.marks[row] & marks::ERROR != 0;
        let calls = matches!(kind, CLIENT | PRODUCER | CONSUMER);
        let (callee, numbers) = if calls || (kind == SERVER && with_status) { words.read(row) } else { Default::default() };
        let layer = if callee.db_system == 0 { 0 } else { layers[batch.lanes[batch.lane[row] as usize].context as usize] };
        let refusal = Refusal::of(numbers.http_status, numbers.grpc_status);
        if calls {
            // Clients mark 4xx as errors; it is no failure of the callee, and the caller says by itself whether it failed by it.
            failed &= !(400..500).contains(&numbers.http_status) && refusal.is_none();
            peer = *callees.entry((node, callee)).or_insert_with(|| {
                let environment = names.node(node).service.environment.clone();
                words.node(&callee, &environment, names)
            });
        }
        facts.spans.push(SpanFact {
            trace: trace.0,
            span: batch.span[row],
            parent: batch.parent[row],
            node,
            operation,
            kind,
            start: batch.time[row],
            end: batch.end(row),
            ahead: 0,
            failed,
            request: batch.marks[row] & marks::REQUEST != 0,
            refusal,
            peer: peer.filter(|peer| *peer != node),
            weight: weights.at(row).saturating_mul(thinning.weight()),
            again: numbers.resend_count > 0,
            layer,
        });
    }
}

fn logs(batch: &Batch, lanes: &[(NodeId, TextId, u8)], names: &mut Names, look: Look, facts: &mut Facts) {
    let mut text = String::new();
    let mut patterns = Texts::of(batch);
    for row in 0..batch.rows() {
        let (node, _, severity) = lanes[batch.lane[row] as usize];
        let trace = batch.trace_id(row).unwrap_or_default().0;
        // Those below INFO come and go with the level that somebody has set.
        if severity != 0 && severity < 9 {
            continue;
        }
        let time = batch.time[row];
        let kept = if look.sampled {
            look.thinning.keeps_past(Signal::Logs, severity, batch.trace_id(row), time)
        } else {
            look.thinning.keeps(&trace)
        };
        if !kept {
            // Every record counts, as a rate is judged by all of them; only what a request says is left out with its trace.
            if !look.sampled {
                facts.logs.push(LogFact { node, time, severity, pattern: 0, trace: [0; 16], span: 0, weight: 1 });
            }
            continue;
        }
        let weight = if look.sampled && severity < WARN { look.thinning.weight() } else { 1 };
        let span = batch.span[row];
        // What a record says is asked of errors, and of those that belong to a request.
        let asked = severity >= 17 || (trace != [0; 16] && span != 0);
        let words = &batch.values[batch.values_start[row] as usize..];
        let body = batch.shape_of(row).iter().zip(words).find(|(column, _)| {
            let column = batch.columns[**column as usize];
            column.field == Field::Body && column.kind == Kind::Str
        });
        let pattern = match body.filter(|_| asked) {
            Some((_, word)) => patterns.get(*word, |body| {
                pattern(body, &mut text);
                names.text(&text)
            }),
            None => 0,
        };
        facts.logs.push(LogFact { node, time, severity, pattern, trace, span, weight });
    }
}

fn points(batch: &Batch, lanes: &[(NodeId, TextId, u8)], names: &mut Names, facts: &mut Facts) {
    for row in 0..batch.rows() {
        let (node, name, kind) = lanes[batch.lane[row] as usize];
        let mut unit = "";
        let (mut cumulative, mut value, mut count, mut sum) = (false, None, None, None);
        let (mut client, mut server) = ("", "");
        let (mut state, mut label, mut event) = ("", "", "");
        let mut attributes = String::new();
        for (column, found) in batch.values_of(row) {
            let number = match found {
                ValueRef::Int(number) => Some(number as f64),
                ValueRef::Double(number) => Some(number),
                _ => None,
            };
            match (column.field, found) {
                (Field::Unit, ValueRef::Str(text)) => unit = text,
                (Field::Temporality, ValueRef::Int(2)) => cumulative = true,
                (Field::Value, _) => value = number,
                (Field::Count, _) => count = number,
                (Field::Sum, _) => sum = number,
                (Field::Attribute, ValueRef::Int(number)) => attributes.push_str(&format!(" {}={number}", batch.strings.str(column.key))),
                (Field::Attribute, ValueRef::Bool(value)) => attributes.push_str(&format!(" {}={value}", batch.strings.str(column.key))),
                (Field::Attribute, ValueRef::Str(text)) => {
                    match batch.strings.str(column.key) {
                        "client" => client = text,
                        "server" => server = text,
                        "state" => state = text,
                        "name" | "circuit_breaker.name" | "envoy.cluster_name" | "envoy_cluster_name" | "pipeline.name" => label = text,
                        "event.name" => event = text,
                        _ => {}
                    }
                    attributes.push(' ');
                    attributes.push_str(batch.strings.str(column.key));
                    attributes.push('=');
                    attributes.push_str(text);
                }
                _ => {}
            }
        }
        let time = batch.time[row];
        let since = (time as i64).wrapping_sub(batch.duration[row]) as u64;
        if !client.is_empty() && !server.is_empty() {
            // A map that somebody else has drawn: one series an edge, as the service graph of collectors names them.
            let service = names.node(node).service.clone();
            let mut end =
                |name: &str| names.node_id(Node { kind: NodeKind::Service, service: Service { name: name.to_owned(), ..service.clone() } });
            facts.edges.push((end(client), end(server), time));
            continue;
        }
        let metric_name = names.text_of(name).to_owned();
        if let Some(state) = breakers::gauge_state(&metric_name, state, value) {
            if !state.is_empty() {
                facts.breakers.push((node, names.text(label), names.text(state), time));
            }
            continue;
        }
        if metric_name == "resilience.polly.strategy.events"
            && let (Some((state, other)), Some(count)) = (breakers::polly_event(event), value)
        {
            let (breaker, series, opens) = (names.text(label), names.text(&attributes), state == "open");
            let (state, other) = (names.text(state), names.text(other));
            let process = breakers::process_of(batch.blobs.get(batch.resources[batch.resource_of(row) as usize].body));
            facts.breaker_counts.push(breakers::Count {
                node,
                breaker,
                process,
                series,
                state,
                other,
                opens,
                count,
                cumulative,
                since,
                time,
            });
            continue;
        }
        let mut push = |suffix: &str, measure: Measure, value: f64, cumulative: bool, weight: f64| {
            let metric = names.text(&format!("{metric_name}{suffix}{attributes}"));
            facts.points.push(PointFact { node, metric, measure, time, value, cumulative, weight, since });
        };
        let seconds = match unit {
            "ns" => 1e-9,
            "us" => 1e-6,
            "ms" => 1e-3,
            _ => 1.0,
        };
        let is_time = matches!(unit, "s" | "ms" | "us" | "ns");
        // Metric types as OTLP numbers them: 1 gauge, 2 sum, 3 histogram, 4 exponential histogram, 5 summary.
        match (kind, value, count, sum) {
            (1, Some(value), ..) if is_time => push("", Measure::Latency, value * seconds, false, 0.0),
            (1, Some(value), ..) => push("", Measure::Level, value, false, 0.0),
            (2, Some(value), ..) => {
                let lower = metric_name.to_ascii_lowercase();
                let measure = if ["error", "fail", "exception"].iter().any(|word| lower.contains(word)) {
                    Measure::Errors
                } else if lower.contains("request") || lower.contains("calls") {
                    Measure::Requests
                } else {
                    Measure::Count
                };
                push("", measure, value, cumulative, 0.0);
            }
            (3..=5, _, Some(count), Some(sum)) if is_time => {
                push(" mean", Measure::Latency, if count > 0.0 { sum * seconds / count } else { 0.0 }, cumulative, count);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An internal span.
    pub fn span(id: u64, parent: u64, node: NodeId, start: u64, end: u64) -> SpanFact {
        SpanFact {
            trace: [1; 16],
            span: id,
            parent,
            node,
            operation: 0,
            kind: INTERNAL,
            start,
            end,
            ahead: 0,
            failed: false,
            request: false,
            refusal: None,
            peer: None,
            weight: 1,
            again: false,
            layer: 0,
        }
    }

    #[test]
    fn of_many_rows_a_part_is_looked_at_and_stands_for_all() {
        for (rows, in_so_many) in [(0, 1), (100, 1), (101, 2), (200, 2), (201, 4), (800, 8), (1_000_000, 256)] {
            assert_eq!(Thinning::of(rows, 100).weight(), in_so_many, "{rows} rows");
        }
        let thinning = Thinning::of(400, 100);
        let kept = |signal, kind, with_trace: bool| {
            let trace = |n: u64| with_trace.then(|| TraceId((u128::from(n) << 64 | u128::from(n)).to_be_bytes()));
            (1..=4000u64).filter(|n| thinning.keeps_past(signal, kind, trace(*n), n * 1_000_000)).count()
        };
        assert_eq!(kept(Signal::Traces, SERVER, true), 1000);
        assert_eq!(kept(Signal::Logs, 9, true), 1000);
        assert!((900..1100).contains(&kept(Signal::Logs, 9, false)), "by the time, where there is no trace");
        assert_eq!(kept(Signal::Logs, WARN, false), 4000);
    }
}
