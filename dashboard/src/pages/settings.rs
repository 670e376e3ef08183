//! `/settings`: what comes in, what is refused and why, and what it takes on the disk.

use super::{Frame, Page, draw};
use crate::App;
use crate::ask::{Query, ask};
use crate::draw::number;
use askama::Template;
use axum::extract::State;
use firstfall_store::Signal;

#[derive(Template)]
#[template(path = "settings.html")]
struct Settings {
    frame: Frame,
    signals: Vec<SignalRow>,
    refused: Vec<(&'static str, u64)>,
    repeated: u64,
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
        facts,
    })
}
