//! `GET /api/v1/stats`: what came in, what was kept, what was refused and why.

use super::respond;
use crate::App;
use crate::ask::ask;
use crate::error::ApiError;
use crate::times;
use axum::extract::State;
use axum::response::Response;
use firstfall_store::Signal;
use serde_json::{Map, Value as Json, json};

pub async fn answer(State(app): State<App>) -> Result<Response, ApiError> {
    let storage = ask(&app, |reader, _| Ok(reader.storage())).await?;
    let (mut received, mut stored, mut rejected, mut cut) = (Map::new(), Map::new(), Map::new(), Map::new());
    for signal in Signal::ALL {
        let intake = app.intake.signal(signal);
        let counts = |list: &[(&'static str, &'static str, u64)]| -> Map<String, Json> {
            list.iter().filter(|(.., n)| *n > 0).map(|(name, _, n)| ((*name).to_owned(), json!(n))).collect()
        };
        received.insert(signal.items().into(), json!(intake.received));
        stored.insert(signal.items().into(), json!(app.reader.stored(signal)));
        rejected.insert(signal.items().into(), Json::Object(counts(&intake.rejected)));
        cut.insert(signal.items().into(), Json::Object(counts(&intake.cut)));
    }
    let requests: Map<String, Json> =
        app.intake.refused_requests().into_iter().filter(|(_, n)| *n > 0).map(|(why, n)| (why.to_owned(), json!(n))).collect();
    rejected.insert("requests".into(), Json::Object(requests));
    Ok(respond(&json!({
        "received": received,
        "stored": stored,
        "rejected": rejected,
        "cut": cut,
        "repeated_requests": app.intake.repeated_requests(),
        "storage": {"bytes": storage.bytes, "partitions": storage.partitions, "journal_bytes": storage.journal_bytes, "free_bytes": storage.free_bytes},
        "other": app.reader.overflowed(),
        "writes_refused": app.reader.trouble(),
        "last_received": app.intake.last_received().map(times::rfc3339),
    })))
}
