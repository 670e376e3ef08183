//! `/traces/{trace_id}`: the waterfall, with the attributes, events and logs of each span folded in. A long trace comes in parts.

use super::{Frame, LogRow, Page, draw, log_rows};
use crate::App;
use crate::ask::{Query, Range, ask};
use crate::draw::waterfall_bar;
use crate::error::ApiError;
use crate::times;
use askama::Template;
use axum::extract::{Path, State};
use firstfall_store::batch::Field;
use firstfall_store::query::{Filter, Item, LogQuestion};
use firstfall_store::sql::{span_kind, status_name};
use firstfall_store::{SpanId, TraceId};
use std::collections::{HashMap, HashSet};

#[derive(Template)]
#[template(path = "trace.html")]
struct TracePage {
    frame: Frame,
    id: String,
    root: String,
    facts: Vec<(&'static str, String)>,
    ticks: Vec<String>,
    rows: Vec<Row>,
    loose_logs: Vec<LogRow>,
    logs_total: usize,
    shown: String,
    next: Option<String>,
    before: Option<String>,
}

/// Keys and values as they are shown.
type Texts = Vec<(String, String)>;

struct Row {
    depth: usize,
    service: String,
    hue: usize,
    name: String,
    kind: &'static str,
    duration: String,
    self_time: String,
    offset: String,
    bar: String,
    error: bool,
    status: &'static str,
    status_message: String,
    span_id: String,
    attributes: Texts,
    resource: Texts,
    scope: String,
    /// After what time, name, attributes.
    events: Vec<(String, String, Texts)>,
    links: Vec<String>,
    logs: Vec<LogRow>,
}

/// Spans of one page: it stays below a few megabytes, and a trace of a million spans opens as fast as one of a thousand.
const SPANS_MAX: usize = 500;
const LOGS_MAX: usize = 500;
/// Deeper rows are not indented further: the page has an edge.
const INDENT_MAX: usize = 24;

pub async fn show(State(app): State<App>, Path(text): Path<String>, query: Query) -> Page {
    let id: TraceId = text.parse().map_err(|_| ApiError::bad_request(format!("{text:?} is not a trace id: 32 hexadecimal digits")))?;
    let offset = match query.get("next") {
        Some(text) => text.parse().map_err(|_| ApiError::bad_request(format!("next: {text:?} was not given by a page before")))?,
        None => 0,
    };
    let (trace, logs) = ask(&app, move |reader, budget| {
        let trace = reader.trace(id, offset, SPANS_MAX, budget)?;
        // Logs may come a little before the first span and after the last.
        const AROUND: u64 = 3600 * 1_000_000_000;
        let filter = Filter {
            trace_id: Some(id),
            from: trace.start.saturating_sub(AROUND),
            to: trace.end.saturating_add(AROUND),
            ..Filter::default()
        };
        let logs = reader.search_logs(&LogQuestion { filter, limit: LOGS_MAX, after: None }, budget)?;
        Ok((trace, logs))
    })
    .await?;
    if trace.total == 0 {
        return Err(ApiError::not_found(format!(
            "no span of trace {id} is kept; it may be older than the retention, or not have arrived yet"
        ))
        .into());
    }
    let now = times::now();
    let range = Range { from: trace.start.saturating_sub(1), to: trace.end.max(trace.start + 1), now, live: false };
    let mut frame = Frame::new(&app, format!("Trace {id}"), "traces", &query, &range);
    frame.ranges.clear();
    let total = (trace.end - trace.start).max(1);
    let order = in_tree_order(&trace.spans);
    let mut services: Vec<&str> = Vec::new();
    let mut logs_of: HashMap<SpanId, Vec<&Item>> = HashMap::new();
    let shown: HashSet<SpanId> = trace.spans.iter().map(|s| s.span_id).collect();
    let mut loose = Vec::new();
    for log in logs.logs.iter().rev() {
        if shown.contains(&log.span_id) {
            logs_of.entry(log.span_id).or_default().push(log);
        } else {
            loose.push(log.clone());
        }
    }
    let self_times = self_times(&trace.spans);
    let rows: Vec<Row> = order
        .iter()
        .map(|(at, depth)| {
            let span = &trace.spans[*at];
            let hue = services.iter().position(|s| *s == span.service.name).unwrap_or_else(|| {
                services.push(&span.service.name);
                services.len() - 1
            });
            let start = span.time.saturating_sub(trace.start);
            let duration = span.duration.max(0) as u64;
            let pairs = |pairs: &firstfall_store::value::Pairs| pairs.iter().map(|(k, v)| (k.clone(), v.text())).collect::<Vec<_>>();
            let class = if span.is_error() { "wf-bad".to_owned() } else { format!("hue{}", hue % 8) };
            Row {
                depth: (*depth).min(INDENT_MAX),
                service: span.service.name.clone(),
                hue: hue % 8,
                name: span.name.clone(),
                kind: span_kind(span.kind),
                duration: times::span_of(duration),
                self_time: times::span_of(self_times[*at]),
                offset: times::span_of(start),
                bar: waterfall_bar(1000.0 * start as f64 / total as f64, 1000.0 * duration as f64 / total as f64, &class),
                error: span.is_error(),
                status: status_name(span.status()),
                status_message: span.text(Field::StatusMessage).to_owned(),
                span_id: span.span_id.to_string(),
                attributes: pairs(&span.attributes),
                resource: pairs(&span.resource.attributes),
                scope: format!("{} {}", span.scope.name, span.scope.version),
                events: span
                    .events()
                    .iter()
                    .map(|e| (times::span_of(e.time.saturating_sub(span.time)), e.name.clone(), pairs(&e.attributes)))
                    .collect(),
                links: span.links().iter().map(|l| l.trace_id.to_string()).collect(),
                logs: logs_of.get(&span.span_id).map(|l| log_rows(&l.iter().map(|i| (*i).clone()).collect::<Vec<_>>())).unwrap_or_default(),
            }
        })
        .collect();
    let root = order.first().map(|(at, _)| &trace.spans[*at]);
    let page = |at: usize| query.with(&[("next", (at > 0).then(|| at.to_string()).as_deref())]);
    let end = offset + trace.spans.len();
    let facts = vec![
        ("started", times::day_and_clock(trace.start)),
        ("took", times::span_of(total)),
        ("spans", trace.total.to_string()),
        ("errors", trace.errors.to_string()),
        ("services", services.len().to_string()),
        ("logs", logs.logs.len().to_string()),
    ];
    draw(&TracePage {
        id: id.to_string(),
        root: root.map(|s| format!("{}: {}", s.service.name, s.name)).unwrap_or_default(),
        facts,
        ticks: (0..=4).map(|n| times::span_of(total * n / 4)).collect(),
        rows,
        loose_logs: log_rows(&loose),
        logs_total: logs.logs.len(),
        shown: if trace.total > trace.spans.len() {
            format!("spans {} to {end} of {}, by start", offset + 1, trace.total)
        } else {
            String::new()
        },
        next: (end < trace.total).then(|| page(end)),
        before: (offset > 0).then(|| page(offset.saturating_sub(SPANS_MAX))),
        frame,
    })
}

/// Parents before their children, children by start. A span whose parent is not here is a root, and so is one of a circle of parents.
fn in_tree_order(spans: &[Item]) -> Vec<(usize, usize)> {
    let by_id: HashMap<SpanId, usize> = spans.iter().enumerate().map(|(at, s)| (s.span_id, at)).collect();
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); spans.len()];
    let mut roots = Vec::new();
    for (at, span) in spans.iter().enumerate() {
        match by_id.get(&span.parent_span_id) {
            Some(parent) if *parent != at && span.parent_span_id != SpanId(0) => children[*parent].push(at),
            _ => roots.push(at),
        }
    }
    let mut order = Vec::with_capacity(spans.len());
    let mut seen = vec![false; spans.len()];
    for start in roots.into_iter().chain(0..spans.len()) {
        let mut stack = vec![(start, 0)];
        while let Some((at, depth)) = stack.pop() {
            if std::mem::replace(&mut seen[at], true) {
                continue;
            }
            order.push((at, depth));
            stack.extend(children[at].iter().rev().map(|child| (*child, depth + 1)));
        }
    }
    order
}

/// The time in which a span ran and none of its children did, nanoseconds.
fn self_times(spans: &[Item]) -> Vec<u64> {
    let by_id: HashMap<SpanId, usize> = spans.iter().enumerate().map(|(at, s)| (s.span_id, at)).collect();
    let mut covered: Vec<Vec<(u64, u64)>> = vec![Vec::new(); spans.len()];
    for span in spans {
        if let Some(parent) = by_id.get(&span.parent_span_id) {
            let (start, end) = (spans[*parent].time, spans[*parent].end());
            covered[*parent].push((span.time.clamp(start, end.max(start)), span.end().clamp(start, end.max(start))));
        }
    }
    spans
        .iter()
        .zip(covered)
        .map(|(span, mut parts)| {
            parts.sort_unstable();
            let (mut busy, mut until) = (0, 0);
            for (start, end) in parts {
                busy += end.saturating_sub(start.max(until));
                until = until.max(end);
            }
            (span.duration.max(0) as u64).saturating_sub(busy)
        })
        .collect()
}
