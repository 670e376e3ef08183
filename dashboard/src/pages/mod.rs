//! The pages. Each is a file: its address, its question, its template.

pub mod changes;
pub mod deliveries;
pub mod edge;
pub mod home;
pub mod incident;
pub mod incidents;
pub mod logs;
pub mod map;
pub mod node;
pub mod service;
pub mod services;
pub mod settings;
pub mod trace;
pub mod traces;

use crate::App;
use crate::ask::{Query, Range};
use crate::error::PageError;
use crate::times;
use axum::response::Html;

/// What the frame of every page needs.
pub struct Frame {
    pub title: String,
    /// The section of the navigation that is open.
    pub section: &'static str,
    /// Links for other ranges: (label, address, chosen).
    pub ranges: Vec<(&'static str, String, bool)>,
    /// The range, kept in links to other pages.
    pub keep: String,
    pub range_words: String,
    pub freshness: String,
    pub trouble: String,
    pub refresh: bool,
}

impl Frame {
    pub fn new(app: &App, title: impl Into<String>, section: &'static str, query: &Query, range: &Range) -> Frame {
        const RANGES: [(&str, &str); 6] =
            [("15 m", "now-15m"), ("1 h", "now-1h"), ("3 h", "now-3h"), ("12 h", "now-12h"), ("1 d", "now-1d"), ("7 d", "now-7d")];
        let chosen = query.get("from").unwrap_or("now-1h");
        let ranges = RANGES
            .iter()
            .map(|(label, from)| {
                let address = query.with(&[("from", Some(from)), ("to", None), ("next", None)]);
                (*label, address, range.live && *from == chosen)
            })
            .collect();
        let mut keep = String::new();
        for key in ["from", "to"] {
            if let Some(value) = query.get(key) {
                keep.push(if keep.is_empty() { '?' } else { '&' });
                keep.push_str(&format!("{key}={}", crate::ask::encode(value)));
            }
        }
        let freshness = match app.intake.last_received() {
            None => "nothing received since start".to_owned(),
            Some(at) => format!("last data {} ago", times::ago(range.now.saturating_sub(at))),
        };
        Frame {
            title: title.into(),
            section,
            ranges,
            keep,
            range_words: if range.live {
                format!("the last {}", times::ago(range.to - range.from))
            } else {
                format!("{} to {}", times::day_and_clock(range.from), times::day_and_clock(range.to))
            },
            freshness,
            trouble: app.reader.trouble().unwrap_or_default(),
            refresh: false,
        }
    }
}

pub type Page = Result<Html<String>, PageError>;

pub fn draw(template: &impl askama::Template) -> Page {
    match template.render() {
        Ok(page) => Ok(Html(page)),
        Err(error) => {
            tracing::error!(%error, "a template failed");
            Err(crate::error::ApiError::from(firstfall_store::Error::TooMuch("a page that cannot be drawn; the log has more")).into())
        }
    }
}

/// A row of a list of services.
pub struct ServiceRow {
    pub name: String,
    pub place: String,
    pub href: String,
    pub state: &'static str,
    pub reason: String,
    pub rate: String,
    pub errors: String,
    pub p95: String,
    pub spark: String,
    pub versions: String,
    pub seen: String,
    // For sorting.
    rank: crate::health::State,
    rate_number: f64,
    error_share: f64,
    p95_number: f64,
}

pub fn service_rows(judged: &[crate::api::services::Judged], range: &Range, step: u64, keep: &str) -> Vec<ServiceRow> {
    judged
        .iter()
        .map(|j| {
            let (service, requests) = (&j.summary.service, &j.summary.requests);
            let share = if requests.calls == 0 { 0.0 } else { requests.errors as f64 / requests.calls as f64 };
            let p95 = requests.histogram.quantile_ms(0.95);
            let first = range.from / step * step;
            let values: Vec<Option<f64>> = (0..=(range.to - first) / step)
                .map(|n| {
                    let at = first + n * step;
                    j.summary
                        .points
                        .binary_search_by_key(&at, |p| p.start)
                        .ok()
                        .and_then(|i| j.summary.points[i].cell.histogram.quantile_ms(0.95))
                })
                .collect();
            let mut href = format!("/services/{}{keep}", crate::ask::encode(&service.name));
            for (key, value) in [("namespace", &service.namespace), ("environment", &service.environment)] {
                if !value.is_empty() {
                    href.push(if href.contains('?') { '&' } else { '?' });
                    href.push_str(&format!("{key}={}", crate::ask::encode(value)));
                }
            }
            let versions = j.summary.versions();
            ServiceRow {
                name: service.name.clone(),
                place: [service.namespace.as_str(), service.environment.as_str()]
                    .iter()
                    .filter(|p| !p.is_empty())
                    .copied()
                    .collect::<Vec<_>>()
                    .join(" · "),
                href,
                state: j.health.word(),
                reason: j.reason.clone(),
                rate: crate::draw::number(j.summary.rate(requests.calls, range.from, range.to)),
                errors: if requests.calls == 0 { "–".to_owned() } else { format!("{:.1}", share * 100.0) },
                p95: p95.map_or("–".to_owned(), |ms| times::span_of((ms * 1e6) as u64)),
                spark: crate::draw::sparkline(&values),
                versions: if versions.len() > 3 { format!("{} versions", versions.len()) } else { versions.join(", ") },
                seen: format!("{} ago", times::ago(range.to.saturating_sub(j.summary.last_seen))),
                rank: j.health,
                rate_number: j.summary.rate(requests.calls, range.from, range.to),
                error_share: share,
                p95_number: p95.unwrap_or(0.0),
            }
        })
        .collect()
}

/// Orders rows by a column of the address: worst first unless it says otherwise.
pub fn sort_services(rows: &mut [ServiceRow], by: &str) {
    let descending = |a: f64, b: f64| b.total_cmp(&a);
    match by {
        "name" => rows.sort_by(|a, b| a.name.cmp(&b.name)),
        "rate" => rows.sort_by(|a, b| descending(a.rate_number, b.rate_number)),
        "errors" => rows.sort_by(|a, b| descending(a.error_share, b.error_share)),
        "p95" => rows.sort_by(|a, b| descending(a.p95_number, b.p95_number)),
        _ => rows.sort_by(|a, b| {
            a.rank
                .cmp(&b.rank)
                .then_with(|| descending(a.error_share, b.error_share))
                .then_with(|| descending(a.rate_number, b.rate_number))
                .then_with(|| a.name.cmp(&b.name))
        }),
    }
}

/// A trace in a list.
pub struct TraceRow {
    pub id: String,
    pub service: String,
    pub operation: String,
    pub start: String,
    pub duration: String,
    pub bar: u32,
    pub spans: usize,
    pub errors: usize,
    pub services: usize,
}

pub fn trace_rows(traces: &[firstfall_store::query::TraceSummary]) -> Vec<TraceRow> {
    let longest = traces.iter().map(|t| t.duration).max().unwrap_or(1).max(1);
    traces
        .iter()
        .map(|t| TraceRow {
            id: t.trace_id.to_string(),
            service: t.root_service.name.clone(),
            operation: t.root_operation.clone(),
            start: times::clock(t.start),
            duration: times::span_of(t.duration),
            bar: (t.duration as f64 / longest as f64 * 100.0).max(1.0) as u32,
            spans: t.spans,
            errors: t.errors,
            services: t.services.len(),
        })
        .collect()
}

/// A log record in a list.
pub struct LogRow {
    pub time: String,
    pub class: &'static str,
    pub severity: String,
    pub service: String,
    pub body: String,
    pub trace_id: String,
    pub attributes: Vec<(String, String)>,
    pub scope: String,
}

pub fn log_rows(logs: &[firstfall_store::query::Item]) -> Vec<LogRow> {
    use firstfall_store::batch::Field;
    logs.iter()
        .map(|log| LogRow {
            time: times::clock(log.time),
            class: match log.kind {
                17.. => "bad",
                13..=16 => "warn",
                _ => "fine",
            },
            severity: crate::api::logs::severity(log).to_owned(),
            service: log.service.name.clone(),
            body: log.field(Field::Body).map(|b| b.text()).unwrap_or_default(),
            trace_id: log.trace_id.map(|id| id.to_string()).unwrap_or_default(),
            attributes: log.attributes.iter().map(|(k, v)| (k.clone(), v.text())).collect(),
            scope: log.scope.name.clone(),
        })
        .collect()
}

/// An incident in a list.
pub struct IncidentCard {
    pub id: String,
    pub title: String,
    pub open: bool,
    pub when: String,
    pub lasted: String,
    pub confidence: String,
    /// Origin first, then its victims as they fell.
    pub fell: Vec<String>,
}

/// So many names fit into a card's line.
const FELL_MAX: usize = 8;

/// The origin and its victims, each after one that it fell by: of onsets within the same ten seconds a clock says nothing.
fn as_they_fell<'a>(origin: &'a str, hops: &[(&'a str, &'a str)]) -> Vec<&'a str> {
    let mut fell = vec![origin];
    let mut at = 0;
    while let Some(from) = fell.get(at).copied() {
        for (_, to) in hops.iter().filter(|(by, _)| *by == from) {
            if !fell.contains(to) {
                fell.push(to);
            }
        }
        at += 1;
    }
    fell.retain(|name| !name.is_empty());
    fell
}

pub fn incident_cards(incidents: &[firstfall_store::incident::Incident], now: u64) -> Vec<IncidentCard> {
    incidents
        .iter()
        .map(|i| {
            let origin = i.diagnosis.origins.first().map_or("", |o| o.service.as_str());
            let hops: Vec<(&str, &str)> = i.diagnosis.hops.iter().map(|hop| (hop.from.as_str(), hop.to.as_str())).collect();
            IncidentCard {
                id: i.id.clone(),
                title: i.title.clone(),
                open: i.closed_at.is_none(),
                when: times::day_and_clock(i.onset),
                lasted: times::ago(i.closed_at.unwrap_or(now).saturating_sub(i.onset)),
                confidence: i.diagnosis.confidence.clone(),
                fell: as_they_fell(origin, &hops).into_iter().take(FELL_MAX).map(str::to_owned).collect(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::as_they_fell;

    #[test]
    fn a_victim_stands_after_one_that_it_fell_by_however_close_their_onsets_are() {
        let hops = [("catalog", "gateway"), ("sqlite", "catalog"), ("orders", "gateway"), ("sqlite", "orders"), ("gateway", "catalog")];
        assert_eq!(as_they_fell("sqlite", &hops), ["sqlite", "catalog", "orders", "gateway"]);
        assert_eq!(as_they_fell("", &[]), [""; 0]);
    }
}
