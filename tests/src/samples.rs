//! Requests drawn at random that use every field of OTLP, and the damage that may be done to them.

use crate::agree::NOW;
use crate::corpus::Random;
use firstfall_store::Signal;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue as Values, InstrumentationScope, KeyValue, KeyValueList, any_value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{
    Exemplar, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
    ResourceMetrics, ScopeMetrics, Sum, Summary, SummaryDataPoint, exemplar, exponential_histogram_data_point, metric, number_data_point,
    summary_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span};
use prost::Message;

/// A request with a few items. Most are valid, some break a rule of ours (an id, a time).
pub enum Sample {
    Traces(ExportTraceServiceRequest),
    Logs(ExportLogsServiceRequest),
    Metrics(ExportMetricsServiceRequest),
}

impl Sample {
    pub fn draw(signal: Signal, r: &mut Random) -> Sample {
        match signal {
            Signal::Traces => Sample::Traces(ExportTraceServiceRequest {
                resource_spans: list(r, 3, |r| ResourceSpans {
                    resource: maybe(r, resource),
                    scope_spans: list(r, 3, |r| ScopeSpans { scope: maybe(r, scope), spans: list(r, 4, a_span), schema_url: text(r) }),
                    schema_url: text(r),
                }),
            }),
            Signal::Logs => Sample::Logs(ExportLogsServiceRequest {
                resource_logs: list(r, 3, |r| ResourceLogs {
                    resource: maybe(r, resource),
                    scope_logs: list(r, 3, |r| ScopeLogs { scope: maybe(r, scope), log_records: list(r, 4, a_log), schema_url: text(r) }),
                    schema_url: text(r),
                }),
            }),
            Signal::Metrics => Sample::Metrics(ExportMetricsServiceRequest {
                resource_metrics: list(r, 3, |r| ResourceMetrics {
                    resource: maybe(r, resource),
                    scope_metrics: list(r, 3, |r| ScopeMetrics {
                        scope: maybe(r, scope),
                        metrics: list(r, 4, a_metric),
                        schema_url: text(r),
                    }),
                    schema_url: text(r),
                }),
            }),
        }
    }

    pub fn protobuf(&self) -> Vec<u8> {
        match self {
            Sample::Traces(request) => request.encode_to_vec(),
            Sample::Logs(request) => request.encode_to_vec(),
            Sample::Metrics(request) => request.encode_to_vec(),
        }
    }

    pub fn json(&self) -> Vec<u8> {
        let written = match self {
            Sample::Traces(request) => serde_json::to_vec(request),
            Sample::Logs(request) => serde_json::to_vec(request),
            Sample::Metrics(request) => serde_json::to_vec(request),
        };
        written.expect("it has a JSON form")
    }
}

/// A request with two items in one scope and one in another, in which every text that a client may choose is `mark`.
pub fn marked(signal: Signal, mark: &str) -> Vec<u8> {
    let text = || mark.to_owned();
    let value = |value| Some(AnyValue { value: Some(value) });
    let nested = Values { values: vec![AnyValue { value: Some(any_value::Value::StringValue(text())) }] };
    let map =
        KeyValueList { values: vec![KeyValue { key: text(), value: value(any_value::Value::BoolValue(true)), ..KeyValue::default() }] };
    let attributes = || {
        vec![
            KeyValue { key: text(), value: value(any_value::Value::StringValue(text())), ..KeyValue::default() },
            KeyValue { key: "list".into(), value: value(any_value::Value::ArrayValue(nested.clone())), ..KeyValue::default() },
            KeyValue { key: "map".into(), value: value(any_value::Value::KvlistValue(map.clone())), ..KeyValue::default() },
        ]
    };
    let scope = || InstrumentationScope { name: text(), version: text(), attributes: attributes(), ..InstrumentationScope::default() };
    let resource = || Some(Resource { attributes: attributes(), ..Resource::default() });
    let (trace_id, span_id, time) = (vec![1; 16], vec![2; 8], NOW - 1_000_000_000);
    let plain = Span {
        trace_id: trace_id.clone(),
        span_id: span_id.clone(),
        name: "plain".into(),
        start_time_unix_nano: time,
        end_time_unix_nano: time,
        ..Span::default()
    };
    let sample = match signal {
        Signal::Traces => {
            let full = Span {
                name: text(),
                trace_state: text(),
                attributes: attributes(),
                events: vec![span::Event { name: text(), attributes: attributes(), ..span::Event::default() }],
                links: vec![span::Link { trace_state: text(), attributes: attributes(), ..span::Link::default() }],
                status: Some(Status { message: text(), code: 2 }),
                ..plain.clone()
            };
            let spans = |spans| ScopeSpans { scope: Some(scope()), spans, schema_url: text() };
            let scope_spans = vec![spans(vec![full, plain.clone()]), spans(vec![plain])];
            Sample::Traces(ExportTraceServiceRequest {
                resource_spans: vec![ResourceSpans { resource: resource(), scope_spans, schema_url: text() }],
            })
        }
        Signal::Logs => {
            let plain = LogRecord { time_unix_nano: time, ..LogRecord::default() };
            let full = LogRecord {
                severity_text: text(),
                body: value(any_value::Value::StringValue(text())),
                attributes: attributes(),
                event_name: text(),
                ..plain.clone()
            };
            let logs = |log_records| ScopeLogs { scope: Some(scope()), log_records, schema_url: text() };
            let scope_logs = vec![logs(vec![full, plain.clone()]), logs(vec![plain])];
            Sample::Logs(ExportLogsServiceRequest {
                resource_logs: vec![ResourceLogs { resource: resource(), scope_logs, schema_url: text() }],
            })
        }
        Signal::Metrics => {
            let point =
                NumberDataPoint { time_unix_nano: time, value: Some(number_data_point::Value::AsInt(1)), ..NumberDataPoint::default() };
            let full = NumberDataPoint {
                attributes: attributes(),
                exemplars: vec![Exemplar { filtered_attributes: attributes(), ..Exemplar::default() }],
                ..point.clone()
            };
            let metric = |name: String, point| Metric {
                name,
                data: Some(metric::Data::Gauge(Gauge { data_points: vec![point] })),
                ..Metric::default()
            };
            let named = Metric { description: text(), unit: text(), metadata: attributes(), ..metric(text(), full) };
            let metrics = |metrics| ScopeMetrics { scope: Some(scope()), metrics, schema_url: text() };
            let scope_metrics =
                vec![metrics(vec![named, metric("plain".into(), point.clone())]), metrics(vec![metric("plain".into(), point)])];
            Sample::Metrics(ExportMetricsServiceRequest {
                resource_metrics: vec![ResourceMetrics { resource: resource(), scope_metrics, schema_url: text() }],
            })
        }
    };
    sample.protobuf()
}

/// The same request at another time: what was around `NOW` is around `at`.
pub fn shifted(signal: Signal, body: &[u8], at: u64) -> Vec<u8> {
    let mut body = body.to_vec();
    let moved = |time: u64| if time.abs_diff(NOW) < 7_200_000_000_000 { at.wrapping_add(time.wrapping_sub(NOW)) } else { time };
    match signal {
        Signal::Traces => {
            let mut request = ExportTraceServiceRequest::decode(&body[..]).expect("own body");
            let spans = request.resource_spans.iter_mut().flat_map(|r| &mut r.scope_spans).flat_map(|s| &mut s.spans);
            spans.for_each(|s| {
                (s.start_time_unix_nano, s.end_time_unix_nano) = (moved(s.start_time_unix_nano), moved(s.end_time_unix_nano))
            });
            body = request.encode_to_vec();
        }
        Signal::Logs => {
            let mut request = ExportLogsServiceRequest::decode(&body[..]).expect("own body");
            let logs = request.resource_logs.iter_mut().flat_map(|r| &mut r.scope_logs).flat_map(|s| &mut s.log_records);
            // An item that nobody dated gets the time of its arrival, which is another one each time.
            logs.for_each(|l| (l.time_unix_nano, l.observed_time_unix_nano) = (at, at + 1));
            body = request.encode_to_vec();
        }
        Signal::Metrics => {
            let mut request = ExportMetricsServiceRequest::decode(&body[..]).expect("own body");
            let metrics = request.resource_metrics.iter_mut().flat_map(|r| &mut r.scope_metrics).flat_map(|s| &mut s.metrics);
            for data in metrics.filter_map(|m| m.data.as_mut()) {
                match data {
                    metric::Data::Gauge(g) => g.data_points.iter_mut().for_each(|p| p.time_unix_nano = moved(p.time_unix_nano)),
                    metric::Data::Sum(s) => s.data_points.iter_mut().for_each(|p| p.time_unix_nano = moved(p.time_unix_nano)),
                    metric::Data::Histogram(h) => h.data_points.iter_mut().for_each(|p| p.time_unix_nano = moved(p.time_unix_nano)),
                    metric::Data::ExponentialHistogram(h) => {
                        h.data_points.iter_mut().for_each(|p| p.time_unix_nano = moved(p.time_unix_nano))
                    }
                    metric::Data::Summary(s) => s.data_points.iter_mut().for_each(|p| p.time_unix_nano = moved(p.time_unix_nano)),
                }
            }
            body = request.encode_to_vec();
        }
    }
    body
}

/// Changes one to three places: a byte, a bit, one less, one more, the end cut off, a run of 0xff, a piece moved elsewhere.
pub fn mutate(bytes: &[u8], r: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..1 + r.below(3) {
        if bytes.is_empty() {
            return bytes;
        }
        let at = r.below(bytes.len() as u64) as usize;
        match r.below(16) {
            0..=3 => bytes[at] = r.draw() as u8,
            4..=7 => bytes[at] ^= 1 << r.below(8),
            8..=10 => {
                bytes.remove(at);
            }
            11..=13 => bytes.insert(at, r.draw() as u8),
            14 => {
                let end = (at + 8).min(bytes.len());
                match r.below(3) {
                    0 => bytes.truncate(at + 1),
                    _ => bytes[at..end].fill(0xff),
                }
            }
            _ => {
                let piece = bytes[at..(at + 1 + r.below(40) as usize).min(bytes.len())].to_vec();
                let to = r.below(bytes.len() as u64) as usize;
                bytes.splice(to..to, piece);
            }
        }
    }
    bytes
}

fn list<T>(r: &mut Random, most: u64, mut make: impl FnMut(&mut Random) -> T) -> Vec<T> {
    (0..r.below(most + 1)).map(|_| make(r)).collect()
}

fn maybe<T>(r: &mut Random, make: impl FnOnce(&mut Random) -> T) -> Option<T> {
    (r.below(4) > 0).then(|| make(r))
}

fn text(r: &mut Random) -> String {
    const TEXTS: [&str; 10] =
        ["", "GET /orders/{id}", "ärger", "a\"b\\c\u{1}", "🦀", "10.0.0.1:8080", "<b>x</b>", "service.name", "0", "null"];
    TEXTS[r.below(TEXTS.len() as u64) as usize].to_owned()
}

fn number(r: &mut Random) -> u64 {
    match r.below(4) {
        0 => r.below(3),
        1 => r.below(70_000),
        2 => u64::MAX - r.below(2),
        _ => r.draw(),
    }
}

/// No NaN: JSON's numbers have none, and the reference writes none.
fn double(r: &mut Random) -> f64 {
    match r.below(4) {
        0 => 0.0,
        1 => -1.5,
        2 => r.below(1_000_000) as f64 / 1000.0,
        _ => r.draw() as i64 as f64 * 1e-3,
    }
}

fn time(r: &mut Random) -> u64 {
    if r.below(30) == 0 { number(r) } else { NOW - r.below(3_600_000_000_000) }
}

fn id(r: &mut Random, length: usize) -> Vec<u8> {
    match r.below(30) {
        0 => vec![0; length],
        1 => vec![7; r.below(20) as usize],
        2 => Vec::new(),
        _ => (0..length).map(|_| r.draw() as u8).collect(),
    }
}

fn any(r: &mut Random, depth: u64) -> AnyValue {
    use any_value::Value::*;
    let value = match r.below(if depth > 3 { 6 } else { 8 }) {
        0 => return AnyValue { value: None },
        1 => StringValue(text(r)),
        2 => BoolValue(r.below(2) == 0),
        3 => IntValue(number(r) as i64),
        4 => DoubleValue(double(r)),
        5 => BytesValue(id(r, 5)),
        6 => ArrayValue(Values { values: list(r, 3, |r| any(r, depth + 1)) }),
        _ => KvlistValue(KeyValueList { values: list(r, 3, |r| pair_at(r, depth + 1)) }),
    };
    AnyValue { value: Some(value) }
}

fn pair_at(r: &mut Random, depth: u64) -> KeyValue {
    KeyValue { key: text(r), value: Some(any(r, depth)), ..KeyValue::default() }
}

fn pair(r: &mut Random) -> KeyValue {
    pair_at(r, 0)
}

fn resource(r: &mut Random) -> Resource {
    Resource { attributes: list(r, 4, pair), dropped_attributes_count: r.below(3) as u32, ..Resource::default() }
}

fn scope(r: &mut Random) -> InstrumentationScope {
    InstrumentationScope { name: text(r), version: text(r), attributes: list(r, 2, pair), dropped_attributes_count: r.below(3) as u32 }
}

fn a_span(r: &mut Random) -> Span {
    let start = time(r);
    Span {
        trace_id: id(r, 16),
        span_id: id(r, 8),
        trace_state: text(r),
        parent_span_id: id(r, 8),
        flags: r.below(600) as u32,
        name: text(r),
        kind: r.below(7) as i32,
        start_time_unix_nano: start,
        end_time_unix_nano: start.saturating_add(r.below(1_000_000)),
        attributes: list(r, 5, pair),
        dropped_attributes_count: r.below(3) as u32,
        events: list(r, 3, |r| span::Event {
            time_unix_nano: number(r),
            name: text(r),
            attributes: list(r, 3, pair),
            dropped_attributes_count: r.below(3) as u32,
        }),
        dropped_events_count: r.below(3) as u32,
        links: list(r, 3, |r| span::Link {
            trace_id: id(r, 16),
            span_id: id(r, 8),
            trace_state: text(r),
            attributes: list(r, 3, pair),
            dropped_attributes_count: r.below(3) as u32,
            flags: r.below(300) as u32,
        }),
        dropped_links_count: r.below(3) as u32,
        status: maybe(r, |r| Status { message: text(r), code: r.below(4) as i32 }),
    }
}

fn a_log(r: &mut Random) -> LogRecord {
    LogRecord {
        time_unix_nano: if r.below(5) == 0 { 0 } else { time(r) },
        observed_time_unix_nano: if r.below(5) == 0 { 0 } else { time(r) },
        severity_number: r.below(25) as i32,
        severity_text: text(r),
        body: maybe(r, |r| any(r, 0)),
        attributes: list(r, 5, pair),
        dropped_attributes_count: r.below(3) as u32,
        flags: r.below(300) as u32,
        trace_id: id(r, 16),
        span_id: id(r, 8),
        event_name: text(r),
    }
}

fn an_exemplar(r: &mut Random) -> Exemplar {
    Exemplar {
        filtered_attributes: list(r, 2, pair),
        time_unix_nano: number(r),
        span_id: id(r, 8),
        trace_id: id(r, 16),
        value: Some(match r.below(2) {
            0 => exemplar::Value::AsDouble(double(r)),
            _ => exemplar::Value::AsInt(number(r) as i64),
        }),
    }
}

fn a_number(r: &mut Random) -> NumberDataPoint {
    NumberDataPoint {
        attributes: list(r, 3, pair),
        start_time_unix_nano: time(r),
        time_unix_nano: time(r),
        exemplars: list(r, 2, an_exemplar),
        flags: r.below(2) as u32,
        value: Some(match r.below(2) {
            0 => number_data_point::Value::AsDouble(double(r)),
            _ => number_data_point::Value::AsInt(number(r) as i64),
        }),
    }
}

fn a_metric(r: &mut Random) -> Metric {
    let temporality = r.below(3) as i32;
    let side =
        |r: &mut Random| exponential_histogram_data_point::Buckets { offset: r.below(9) as i32 - 4, bucket_counts: list(r, 5, number) };
    let data = match r.below(5) {
        0 => metric::Data::Gauge(Gauge { data_points: list(r, 3, a_number) }),
        1 => metric::Data::Sum(Sum {
            data_points: list(r, 3, a_number),
            aggregation_temporality: temporality,
            is_monotonic: r.below(2) == 0,
        }),
        2 => metric::Data::Histogram(Histogram {
            data_points: list(r, 3, |r| HistogramDataPoint {
                attributes: list(r, 3, pair),
                start_time_unix_nano: time(r),
                time_unix_nano: time(r),
                count: number(r),
                sum: maybe(r, double),
                bucket_counts: list(r, 5, number),
                explicit_bounds: list(r, 5, double),
                exemplars: list(r, 2, an_exemplar),
                flags: r.below(2) as u32,
                min: maybe(r, double),
                max: maybe(r, double),
            }),
            aggregation_temporality: temporality,
        }),
        3 => metric::Data::ExponentialHistogram(ExponentialHistogram {
            data_points: list(r, 3, |r| ExponentialHistogramDataPoint {
                attributes: list(r, 3, pair),
                start_time_unix_nano: time(r),
                time_unix_nano: time(r),
                count: number(r),
                sum: maybe(r, double),
                scale: r.below(9) as i32 - 4,
                zero_count: number(r),
                positive: maybe(r, side),
                negative: maybe(r, side),
                flags: r.below(2) as u32,
                exemplars: list(r, 2, an_exemplar),
                min: maybe(r, double),
                max: maybe(r, double),
                zero_threshold: double(r),
            }),
            aggregation_temporality: temporality,
        }),
        _ => metric::Data::Summary(Summary {
            data_points: list(r, 3, |r| SummaryDataPoint {
                attributes: list(r, 3, pair),
                start_time_unix_nano: time(r),
                time_unix_nano: time(r),
                count: number(r),
                sum: 1.0 + double(r).abs(),
                quantile_values: list(r, 3, |r| summary_data_point::ValueAtQuantile { quantile: double(r), value: double(r) }),
                flags: r.below(2) as u32,
            }),
        }),
    };
    Metric { name: text(r), description: text(r), unit: text(r), metadata: list(r, 2, pair), data: Some(data) }
}
