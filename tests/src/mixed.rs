//! Load over every transport with every signal at once, and the check that what was acknowledged is there, once, and whole.
//!
//! A sender behaves as an SDK does: a request that got no answer is sent again to the next server, byte for byte.

use crate::corpus::{self, Template};
use crate::grpc::Grpc;
use crate::{Server, Signal, binary, signal};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use std::collections::{HashMap, HashSet};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const SIGNALS: [&str; 3] = ["traces", "logs", "metrics"];
const POINTS: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Protobuf,
    Json,
    Grpc,
}

/// One request: everything about it follows from its number.
#[derive(Clone, Debug)]
struct Sent {
    number: u64,
    signal: &'static str,
    transport: Transport,
    /// Nanoseconds: the time of its first item.
    at: u64,
}

pub struct Mixed {
    spans: Vec<Template>,
    logs: Vec<Template>,
    next: AtomicU64,
    acknowledged: Mutex<Vec<Sent>>,
    /// Sent, and the connection broke before the answer.
    unanswered: Mutex<Vec<Sent>>,
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

fn text(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(any_value::Value::StringValue(value.into())) }), ..KeyValue::default() }
}

fn metrics(number: u64, at: u64) -> Vec<u8> {
    let point = |n: usize| NumberDataPoint {
        attributes: vec![text("n", &n.to_string())],
        start_time_unix_nano: at - 1_000_000_000,
        time_unix_nano: at,
        value: Some(number_data_point::Value::AsInt(n as i64)),
        ..NumberDataPoint::default()
    };
    let sum = Sum {
        data_points: (0..POINTS).map(point).collect(),
        aggregation_temporality: AggregationTemporality::Cumulative as i32,
        is_monotonic: true,
    };
    let metric = Metric { name: format!("mixed.{number}"), data: Some(metric::Data::Sum(sum)), ..Metric::default() };
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(Resource { attributes: vec![text("service.name", "mixed")], ..Resource::default() }),
            scope_metrics: vec![ScopeMetrics { metrics: vec![metric], ..ScopeMetrics::default() }],
            ..ResourceMetrics::default()
        }],
    }
    .encode_to_vec()
}

impl Mixed {
    pub fn new(seed: u64) -> Mixed {
        Mixed {
            spans: corpus::traces(seed, 8, 60),
            logs: corpus::logs(seed, 8, 50),
            next: AtomicU64::new(1),
            acknowledged: Mutex::default(),
            unanswered: Mutex::default(),
        }
    }

    fn template(&self, sent: &Sent) -> Option<&Template> {
        let from = match sent.signal {
            "traces" => &self.spans,
            "logs" => &self.logs,
            _ => return None,
        };
        Some(&from[sent.number as usize % from.len()])
    }

    fn body(&self, sent: &Sent) -> Vec<u8> {
        match self.template(sent) {
            None => metrics(sent.number, sent.at),
            Some(template) => {
                let mut body = Vec::new();
                template.patch(sent.number, sent.at, &mut body);
                body
            }
        }
    }

    fn draw(&self) -> Sent {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let transport = [Transport::Protobuf, Transport::Json, Transport::Grpc][number as usize / 3 % 3];
        Sent { number, signal: SIGNALS[number as usize % 3], transport, at: now() - 5_000_000_000 }
    }

    /// Whether it was acknowledged.
    fn send(&self, server: &Server, grpc: &mut Option<Grpc>, sent: &Sent) -> bool {
        let body = self.body(sent);
        let path = format!("/v1/{}", sent.signal);
        let ok = match sent.transport {
            Transport::Protobuf => {
                matches!(server.post(&path, &[("content-type", "application/x-protobuf")], &body), Ok((200, ..)))
            }
            Transport::Json => {
                let json = match sent.signal {
                    "traces" => serde_json::to_vec(&ExportTraceServiceRequest::decode(&body[..]).expect("own body")),
                    "logs" => serde_json::to_vec(&ExportLogsServiceRequest::decode(&body[..]).expect("own body")),
                    _ => serde_json::to_vec(&ExportMetricsServiceRequest::decode(&body[..]).expect("own body")),
                };
                matches!(server.post(&path, &[("content-type", "application/json")], &json.expect("it has a JSON form")), Ok((200, ..)))
            }
            Transport::Grpc => {
                if grpc.is_none() {
                    *grpc = Grpc::connect(&server.grpc).ok();
                }
                grpc.as_mut().is_some_and(|grpc| matches!(grpc.export(sent.signal, &body), Ok(answer) if answer.status == 0))
            }
        };
        let list = if ok { &self.acknowledged } else { &self.unanswered };
        list.lock().expect("no sender panicked").push(sent.clone());
        ok
    }

    /// Sends from four connections until `stop` ends the server: first what the server before did not answer.
    pub fn run(&self, server: &Server, stop: impl FnOnce()) {
        let ended = AtomicBool::new(false);
        let again = Mutex::new(std::mem::take(&mut *self.unanswered.lock().expect("no sender panicked")));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut grpc = None;
                    while !ended.load(Ordering::Relaxed) {
                        let waiting = again.lock().expect("no sender panicked").pop();
                        if !self.send(server, &mut grpc, &waiting.unwrap_or_else(|| self.draw())) {
                            return;
                        }
                    }
                });
            }
            stop();
            ended.store(true, Ordering::Relaxed);
        });
        self.unanswered.lock().expect("no sender panicked").extend(again.into_inner().expect("no sender panicked"));
    }

    /// How many items were acknowledged so far.
    pub fn acknowledged_items(&self) -> usize {
        let acknowledged = self.acknowledged.lock().expect("no sender panicked");
        acknowledged.iter().map(|sent| self.template(sent).map_or(POINTS, |template| template.items)).sum()
    }

    /// Sends what is still unanswered, then compares the store with what was acknowledged. Returns how many requests that are.
    pub fn check(&self, server: &Server) -> usize {
        for sent in std::mem::take(&mut *self.unanswered.lock().expect("no sender panicked")) {
            assert!(self.send(server, &mut None, &sent), "{sent:?} is taken by a server that is not ended");
        }
        let acknowledged = self.acknowledged.lock().expect("no sender panicked");
        for (signal, query) in [
            ("traces", "SELECT trace_id, count(*), count(DISTINCT span_id) FROM spans GROUP BY trace_id"),
            ("logs", "SELECT trace_id, count(*), count(DISTINCT span_id) FROM logs GROUP BY trace_id"),
            ("metrics", "SELECT metric, count(*), count(DISTINCT attributes) FROM points WHERE metric LIKE 'mixed.%' GROUP BY metric"),
        ] {
            let found = groups(server, query);
            assert!(found.values().all(|(rows, distinct)| rows == distinct), "a row of {signal} is stored twice");
            let mut expected = 0;
            for sent in acknowledged.iter().filter(|sent| sent.signal == signal) {
                let (keys, items) = match self.template(sent) {
                    None => ([format!("mixed.{}", sent.number)].into(), POINTS),
                    Some(template) => (trace_ids(&self.body(sent), signal), template.items),
                };
                let total: u64 = keys.iter().map(|key| found.get(key).map_or(0, |(rows, _)| *rows)).sum();
                assert_eq!(total, items as u64, "{sent:?} is not whole");
                expected += items as u64;
            }
            // Every request was answered in the end, so nothing else may be there.
            assert_eq!(found.values().map(|(rows, _)| rows).sum::<u64>(), expected, "{signal}");
        }
        acknowledged.len()
    }
}

/// By the command beside the running server: the API ends an answer at ten thousand rows.
fn groups(server: &Server, query: &str) -> HashMap<String, (u64, u64)> {
    let mut command = Command::new(binary());
    let output = command.args(["sql", query, "--limit", "10000000", "--data-dir"]).arg(&server.directory).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let count = |cell: &str| cell.parse().expect("a count");
    text.lines()
        .skip(1)
        .map(|line| {
            let cells: Vec<&str> = line.split('\t').collect();
            (cells[0].to_owned(), (count(cells[1]), count(cells[2])))
        })
        .collect()
}

fn trace_ids(body: &[u8], signal: &str) -> HashSet<String> {
    let hex = |id: &[u8]| id.iter().map(|b| format!("{b:02x}")).collect::<String>();
    if signal == "logs" {
        let request = ExportLogsServiceRequest::decode(body).expect("own body");
        request.resource_logs.iter().flat_map(|r| &r.scope_logs).flat_map(|s| &s.log_records).map(|l| hex(&l.trace_id)).collect()
    } else {
        let request = ExportTraceServiceRequest::decode(body).expect("own body");
        request.resource_spans.iter().flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans).map(|s| hex(&s.trace_id)).collect()
    }
}

/// Ends a server without warning, from outside; `before` looks at it once more.
pub fn kill_after(server: &Server, time: Duration, before: impl FnOnce()) {
    std::thread::sleep(time);
    before();
    signal(server.id(), Signal::KILL);
}
