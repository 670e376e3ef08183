//! `/settings`: what comes in, what is refused and why, and what it takes on the disk.

use super::{Frame, Page, draw};
use crate::App;
use crate::ask::{Query, ask};
use crate::draw::number;
use crate::times;
use askama::Template;
use axum::extract::State;
use firstfall_store::query::{Budget, ServiceQuestion, ServiceSummary};
use firstfall_store::{Reader, Signal};
use serde_json::Value as Json;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

#[derive(Template)]
#[template(path = "settings.html")]
struct Settings {
    frame: Frame,
    signals: Vec<SignalRow>,
    refused: Vec<(&'static str, u64)>,
    repeated: u64,
    agents: Vec<AgentRow>,
    agents_more: usize,
    facts: Vec<(&'static str, String)>,
}

struct SignalRow {
    name: &'static str,
    received: u64,
    stored: u64,
    bytes: String,
    per_item: String,
    rejected: Vec<(&'static str, &'static str, u64)>,
    cut: Vec<(&'static str, &'static str, u64)>,
}

/// A process that sends, and what it says of its own queue, losses and cost.
struct AgentRow {
    service: String,
    instance: String,
    agent: String,
    heard: String,
    silent: bool,
    exported: Option<u64>,
    lost: Vec<(String, u64)>,
    waiting: String,
    /// Of a core, of what the process uses.
    cpu: [String; 2],
}

/// Rows of the table; the rest is counted below it.
const AGENTS_MAX: usize = 200;
/// How far back agents are looked for (an hour), and what they say of themselves (five minutes).
const AGENTS_BACK: u64 = 3600 * 1_000_000_000;
const ACCOUNTS_BACK: u64 = 300 * 1_000_000_000;
/// An agent that was not heard for so long (two minutes) is silent.
const SILENT_AFTER: u64 = 120 * 1_000_000_000;
/// The page does not wait longer for what agents say of themselves.
const ACCOUNTS_TIME: Duration = Duration::from_secs(2);

/// What an agent says of itself. OpenTelemetry's conventions for the metrics of SDKs say what is counted where: items that left, and with `error.type` those
/// that did not; the rest is told by our own.
#[derive(Default)]
struct Account {
    exported: Option<u64>,
    lost: BTreeMap<String, u64>,
    /// The most bytes that waited lately, and how many may.
    queue: [f64; 2],
    /// Processor seconds of the agent's own threads and of the whole process, lately.
    cpu: [f64; 2],
    /// How long lately is, in seconds.
    span: f64,
}

impl Account {
    fn waiting(&self) -> String {
        match self.queue {
            [_, 0.0] => String::new(),
            [waiting, limit] => format!("{} of {}", bytes(waiting as u64), bytes(limit as u64)),
        }
    }

    /// Its own part of a processor, and of what the process uses.
    fn cpu(&self) -> [String; 2] {
        let [own, process] = self.cpu;
        let percent = |whole: f64| if whole > 0.0 && self.span > 0.0 { format!("{:.2} %", own / whole * 100.0) } else { String::new() };
        [percent(self.span), percent(process)]
    }
}

/// By service and instance.
type Accounts = HashMap<(String, String), Account>;

fn accounts(reader: &Reader, now: u64) -> Accounts {
    let query = format!(
        "SELECT service, json_extract(resource, '$.\"service.instance.id\"'), metric, json_extract(attributes, '$.\"error.type\"'), max(value),
         min(value), max(time_ns) - min(time_ns), json_extract(attributes, '$.\"cpu.mode\"')
         FROM points WHERE time_ns > {} AND (metric LIKE 'otel.sdk.exporter.%.exported' OR metric LIKE 'otel.sdk.processor.%.processed'
         OR metric LIKE 'firstfall.agent.%' OR metric = 'process.cpu.time') GROUP BY 1, 2, 3, 4, 8",
        now.saturating_sub(ACCOUNTS_BACK)
    );
    let mut accounts = Accounts::new();
    // An agent of which this cannot be said in time is listed without it.
    let rows = reader.sql(&query, 10_000, &Budget::new(ACCOUNTS_TIME)).map(|answer| answer.rows).unwrap_or_default();
    for row in rows {
        let text = |at: usize| row.get(at).and_then(Json::as_str).unwrap_or("").to_owned();
        let value = |at: usize| row.get(at).and_then(Json::as_f64).unwrap_or(0.0);
        let (most, metric) = (value(4), text(2));
        let account = accounts.entry((text(0), text(1))).or_default();
        match metric.as_str() {
            "firstfall.agent.queue.usage" => account.queue[0] = most,
            "firstfall.agent.queue.limit" => account.queue[1] = most,
            "firstfall.agent.cpu.time" => (account.cpu[0], account.span) = (most - value(5), value(6) / 1e9),
            "process.cpu.time" => account.cpu[1] += most - value(5),
            _ => match text(3) {
                // What was processed is exported after.
                reason if reason.is_empty() => {
                    *account.exported.get_or_insert(0) += if metric.contains(".exporter.") { most as u64 } else { 0 };
                }
                reason => *account.lost.entry(reason).or_default() += most as u64,
            },
        }
    }
    accounts
}

fn agents(services: Vec<ServiceSummary>, accounts: &Accounts, now: u64) -> Vec<AgentRow> {
    let mut rows: Vec<(u64, AgentRow)> = services
        .into_iter()
        .flat_map(|summary| summary.instances.into_iter().map(move |instance| (summary.service.clone(), instance)))
        .filter(|(_, instance)| !instance.agent.is_empty())
        .map(|(service, instance)| {
            let account = accounts.get(&(service.name.clone(), instance.id.clone()));
            let quiet = now.saturating_sub(instance.last_seen);
            let row = AgentRow {
                service: service.name,
                agent: instance.agent,
                heard: times::ago(quiet),
                silent: quiet > SILENT_AFTER,
                exported: account.and_then(|account| account.exported),
                lost: account.map(|account| account.lost.iter().map(|(reason, n)| (reason.clone(), *n)).collect()).unwrap_or_default(),
                waiting: account.map(Account::waiting).unwrap_or_default(),
                cpu: account.map(Account::cpu).unwrap_or_default(),
                instance: instance.id,
            };
            (row.lost.iter().map(|(_, n)| n).sum(), row)
        })
        .collect();
    // Those that lose something first.
    rows.sort_by(|(lost_a, a), (lost_b, b)| lost_b.cmp(lost_a).then_with(|| (&a.service, &a.instance).cmp(&(&b.service, &b.instance))));
    rows.into_iter().map(|(_, row)| row).collect()
}

fn bytes(count: u64) -> String {
    match count {
        0..=9_999 => format!("{count} B"),
        10_000..=999_999 => format!("{:.0} kB", count as f64 / 1e3),
        1_000_000..=999_999_999 => format!("{:.1} MB", count as f64 / 1e6),
        _ => format!("{:.2} GB", count as f64 / 1e9),
    }
}

pub async fn show(State(app): State<App>, query: Query) -> Page {
    let range = query.range()?;
    let mut frame = Frame::new(&app, "Ingest and storage", "settings", &query, &range);
    frame.ranges.clear();
    let storage = ask(&app, |reader, _| Ok(reader.storage())).await?;
    let signals = Signal::ALL
        .iter()
        .map(|signal| {
            let intake = app.intake.signal(*signal);
            let (stored, on_disk) = (app.reader.stored(*signal), storage.by_signal[*signal as usize]);
            SignalRow {
                name: signal.items(),
                received: intake.received,
                stored,
                bytes: bytes(on_disk),
                per_item: if stored == 0 { "–".to_owned() } else { number(on_disk as f64 / stored as f64) },
                rejected: intake.rejected.into_iter().filter(|(.., n)| *n > 0).collect(),
                cut: intake.cut.into_iter().filter(|(.., n)| *n > 0).collect(),
            }
        })
        .collect();
    let now = range.now;
    let question =
        ServiceQuestion { from: now.saturating_sub(AGENTS_BACK), to: now.saturating_add(60_000_000_000), ..ServiceQuestion::default() };
    let services = ask(&app, move |reader, budget| reader.services(&question, budget)).await?;
    let accounts = ask(&app, move |reader, _| Ok(accounts(reader, now))).await?;
    let mut agents = agents(services, &accounts, now);
    let agents_more = agents.len().saturating_sub(AGENTS_MAX);
    agents.truncate(AGENTS_MAX);
    let facts = vec![
        ("on disk", bytes(storage.bytes)),
        ("of it journal", bytes(storage.journal_bytes)),
        ("partitions", storage.partitions.to_string()),
        ("free on the volume", if storage.free_bytes == u64::MAX { "unknown".to_owned() } else { bytes(storage.free_bytes) }),
        ("counted as (other)", app.reader.overflowed().to_string()),
    ];
    draw(&Settings {
        frame,
        signals,
        refused: app.intake.refused_requests().into_iter().filter(|(_, n)| *n > 0).collect(),
        repeated: app.intake.repeated_requests(),
        agents,
        agents_more,
        facts,
    })
}
