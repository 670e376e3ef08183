//! `GET /api/v1/changes`: what changed; `POST` tells of a change, from CI or by hand: `{"service", "kind", "from", "to", "time", "url"}`.

use super::respond;
use crate::App;
use crate::ask::{Query, Range, ask};
use crate::error::ApiError;
use crate::times;
use axum::extract::State;
use axum::response::Response;
use firstfall_store::change::Change;
use serde_json::{Value as Json, json};

/// Bytes of a text that is told.
const TEXT_MAX: usize = 256;
const URL_MAX: usize = 2048;
/// A change may be announced a day before it takes place.
const AHEAD_MAX: u64 = 86_400 * 1_000_000_000;

pub fn change_json(change: &Change) -> Json {
    json!({
        "service": change.service,
        "namespace": change.namespace,
        "environment": change.environment,
        "kind": change.kind,
        "from": change.from,
        "to": change.to,
        "time": times::rfc3339(change.time),
        "url": change.url,
        "told": change.told,
    })
}

/// Kept changes and those that detection sees just now, latest first.
pub async fn changes(app: &App, query: &Query, range: &Range, limit: usize) -> Result<Vec<Change>, ApiError> {
    let service = query.get("service").map(str::to_owned);
    let wanted = |c: &Change| {
        query.get("service").is_none_or(|s| c.service == s)
            && query.get("environment").is_none_or(|e| c.environment == e)
            && query.get("namespace").is_none_or(|n| c.namespace == n)
    };
    // What is told for later today is part of what is asked for now.
    let (from, to) = (range.from, if range.live { range.to.saturating_add(AHEAD_MAX) } else { range.to });
    let insight = app.insight.clone();
    let (mut found, seen) =
        ask(app, move |reader, _| Ok((reader.changes(from, to, service.as_deref(), limit)?, insight.changes(from, to)))).await?;
    for change in seen {
        if !found.contains(&change) {
            found.push(change);
        }
    }
    found.retain(wanted);
    found.sort_by(|a, b| b.time.cmp(&a.time).then_with(|| (&a.service, &a.kind).cmp(&(&b.service, &b.kind))));
    found.truncate(limit);
    Ok(found)
}

pub async fn list(State(app): State<App>, query: Query) -> Result<Response, ApiError> {
    let range = query.range()?;
    let limit = query.limit(100, 1000)?;
    let found = changes(&app, &query, &range, limit).await?;
    Ok(respond(&json!({"changes": found.iter().map(change_json).collect::<Vec<_>>()})))
}

/// A change as it was told. Texts are refused rather than cut: whoever sends them is a program that somebody can correct.
fn read(body: &str, now: u64) -> Result<Change, String> {
    let told: Json = serde_json::from_str(body).map_err(|error| format!("the body is not JSON: {error}"))?;
    let text = |key: &str, max: usize| match &told[key] {
        Json::Null => Ok(String::new()),
        Json::String(text) if text.len() > max => Err(format!("{key}: {} bytes are too many; at most {max}", text.len())),
        Json::String(text) if text.chars().any(char::is_control) => Err(format!("{key}: it has control characters")),
        Json::String(text) => Ok(text.trim().to_owned()),
        other => Err(format!("{key}: {other} is not a text")),
    };
    let service = text("service", TEXT_MAX)?;
    if service.is_empty() {
        return Err("service: say which service has changed, such as {\"service\": \"cart\", \"kind\": \"deployment\", \"to\": \"1.2.3\"}"
            .to_owned());
    }
    let kind = text("kind", TEXT_MAX)?;
    let url = text("url", URL_MAX)?;
    if !(url.is_empty() || url.starts_with("https://") || url.starts_with("http://")) {
        return Err("url: it must begin with https:// or http://".to_owned());
    }
    let time = match &told["time"] {
        Json::Null => now,
        Json::String(text) => times::parse(text, now).map_err(|error| format!("time: {error}"))?,
        Json::Number(number) => times::parse(&number.to_string(), now).map_err(|error| format!("time: {error}"))?,
        other => return Err(format!("time: {other} is not a time")),
    };
    if time > now.saturating_add(AHEAD_MAX) {
        return Err("time: it is more than a day ahead".to_owned());
    }
    Ok(Change {
        service,
        namespace: text("namespace", TEXT_MAX)?,
        environment: text("environment", TEXT_MAX)?,
        kind: if kind.is_empty() { "deployment".to_owned() } else { kind },
        from: text("from", TEXT_MAX)?,
        to: text("to", TEXT_MAX)?,
        time,
        url,
        told: true,
    })
}

pub async fn tell(State(app): State<App>, body: String) -> Result<Response, ApiError> {
    let now = times::now();
    let change = read(&body, now).map_err(ApiError::bad_request)?;
    let answer = change_json(&change);
    ask(&app, move |reader, _| reader.keep_changes(&[change], now)).await?;
    Ok(respond(&answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_told_change_is_read_whole_or_refused_with_the_key() {
        let now = 1_700_000_000_000_000_000;
        let change = read(r#"{"service":"cart","to":"1.2","time":"2023-11-14T22:00:00Z","url":"https://ci/1"}"#, now).expect("good");
        assert_eq!((change.kind.as_str(), change.to.as_str(), change.time), ("deployment", "1.2", 1_699_999_200_000_000_000));
        for (body, key) in [
            ("", "JSON"),
            ("{}", "service:"),
            (r#"{"service":7}"#, "service:"),
            (r#"{"service":"a\u0000"}"#, "control"),
            (r#"{"service":"a","url":"javascript:alert(1)"}"#, "url:"),
            (r#"{"service":"a","time":"yesterday"}"#, "time:"),
            (r#"{"service":"a","time":4000000000}"#, "ahead"),
        ] {
            let mistake = read(body, now).expect_err(body);
            assert!(mistake.contains(key), "{body}: {mistake}");
        }
        assert!(read(&format!(r#"{{"service":"{}"}}"#, "a".repeat(300)), now).is_err());
    }
}
