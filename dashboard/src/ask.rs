//! What an address asks for: time range, filters and paging, read once for pages and API alike; and the way a question is put to the
//! store without holding up the runtime.

use crate::App;
use crate::error::ApiError;
use crate::times;
use firstfall_store::query::{Budget, Filter, ServiceQuestion, words};
use firstfall_store::{Error, Reader};
use std::sync::atomic::Ordering;

/// The pairs of a query string, in order; a key may repeat.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Query {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut axum::http::request::Parts, state: &S) -> Result<Query, ApiError> {
        let pairs = axum::extract::Query::<Vec<(String, String)>>::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::bad_request(format!("the address cannot be read: {error}")))?;
        Ok(Query(pairs.0))
    }
}

impl Query {
    /// What an address with these pairs asks for.
    pub fn of(pairs: &[(&str, &str)]) -> Query {
        Query(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    /// The last value of a key, unless it is empty, as forms send what was not filled in.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, v)| k == key && !v.is_empty()).map(|(_, v)| v.as_str())
    }

    /// The address with some keys replaced (`None` removes), for links that keep the rest.
    pub fn with(&self, changes: &[(&str, Option<&str>)]) -> String {
        let kept =
            self.0.iter().filter(|(k, v)| !v.is_empty() && !changes.iter().any(|(c, _)| c == k)).map(|(k, v)| (k.as_str(), v.as_str()));
        let new = changes.iter().filter_map(|(k, v)| v.map(|v| (*k, v)));
        let pairs: Vec<String> = kept.chain(new).map(|(k, v)| format!("{}={}", encode(k), encode(v))).collect();
        if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
    }

    pub fn range(&self) -> Result<Range, ApiError> {
        let now = times::now();
        let time = |key, default: &str| {
            times::parse(self.get(key).unwrap_or(default), now).map_err(|e| ApiError::bad_request(format!("{key}: {e}")))
        };
        let to = time("to", "now")?;
        let from = match self.get("from") {
            Some(text) => times::parse(text, now).map_err(|e| ApiError::bad_request(format!("from: {e}")))?,
            None => to.saturating_sub(3600 * 1_000_000_000),
        };
        if from >= to {
            return Err(ApiError::bad_request("from must be before to".to_owned()));
        }
        Ok(Range { from, to, now, live: self.get("to").is_none_or(|t| t == "now") })
    }

    pub fn limit(&self, default: usize, max: usize) -> Result<usize, ApiError> {
        match self.get("limit") {
            None => Ok(default),
            Some(text) => match text.parse::<usize>() {
                Ok(limit) if limit > 0 => Ok(limit.min(max)),
                _ => Err(ApiError::bad_request(format!("limit: {text:?} is not a number from 1 to {max}"))),
            },
        }
    }

    /// The conditions that spans and logs share.
    pub fn filter(&self, range: &Range) -> Result<Filter, ApiError> {
        let own = |key| self.get(key).map(str::to_owned);
        let mut filter = Filter {
            from: range.from,
            // What arrives while "now" is being asked is part of the answer, also from a clock slightly ahead.
            to: if range.live { range.to.saturating_add(60_000_000_000) } else { range.to },
            service: own("service"),
            namespace: own("namespace"),
            environment: own("environment"),
            name: own("operation"),
            ..Filter::default()
        };
        filter.error = match self.get("status") {
            None | Some("any") => None,
            Some("error") => Some(true),
            Some("ok") => Some(false),
            Some(other) => return Err(ApiError::bad_request(format!("status: {other:?} is neither error nor ok"))),
        };
        for (key, target) in [("min_duration", &mut filter.duration_min), ("max_duration", &mut filter.duration_max)] {
            if let Some(text) = self.get(key) {
                *target = Some(times::duration(text).map_err(|e| ApiError::bad_request(format!("{key}: {e}")))?);
            }
        }
        for attribute in self.all("attr") {
            // Several may stand in one field, by space, as a person types them.
            let pair = attribute.split_once('=').ok_or_else(|| ApiError::bad_request(format!("attr: {attribute:?} is not key=value")))?;
            filter.attributes.push((pair.0.to_owned(), pair.1.to_owned()));
        }
        if let Some(id) = self.get("trace_id") {
            filter.trace_id =
                Some(id.parse().map_err(|_| ApiError::bad_request(format!("trace_id: {id:?} is not 32 hexadecimal digits")))?);
        }
        if let Some(id) = self.get("span_id") {
            filter.span_id = Some(id.parse().map_err(|_| ApiError::bad_request(format!("span_id: {id:?} is not 16 hexadecimal digits")))?);
        }
        if let Some(severity) = self.get("min_severity") {
            filter.kind_min = severity_number(severity)?;
        }
        if let Some(q) = self.get("q") {
            filter.words = words(q);
        }
        Ok(filter)
    }

    pub fn services(&self, range: &Range) -> ServiceQuestion {
        let own = |key| self.get(key).map(str::to_owned);
        ServiceQuestion {
            from: range.from,
            to: if range.live { range.to.saturating_add(60_000_000_000) } else { range.to },
            service: own("service"),
            namespace: own("namespace"),
            environment: own("environment"),
            ..ServiceQuestion::default()
        }
    }
}

pub fn severity_number(text: &str) -> Result<u8, ApiError> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    Ok(match text.to_ascii_lowercase().as_str() {
        "trace" => 1,
        "debug" => 5,
        "info" => 9,
        "warn" | "warning" => 13,
        "error" => 17,
        "fatal" | "critical" => 21,
        _ => {
            return Err(ApiError::bad_request(format!(
                "min_severity: {text:?} is none of trace, debug, info, warn, error, fatal, nor a number"
            )));
        }
    })
}

#[derive(Clone, Copy, Debug)]
pub struct Range {
    pub from: u64,
    pub to: u64,
    pub now: u64,
    /// It ends now, so a page of it shows what is.
    pub live: bool,
}

impl Range {
    pub fn seconds(&self) -> f64 {
        (self.to - self.from) as f64 / 1e9
    }

    /// A step that gives a chart about a hundred points, in whole windows of ten seconds.
    pub fn step(&self) -> u64 {
        const STEPS: [u64; 12] = [10, 20, 60, 120, 300, 600, 1800, 3600, 7200, 21_600, 86_400, 604_800];
        let wanted = self.seconds() as u64 / 90;
        STEPS.into_iter().find(|s| *s >= wanted).unwrap_or(86_400) * 1_000_000_000
    }
}

/// Percent-encodes a part of an address.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Puts a question to the store on a thread where it may block. The question ends early when the caller hangs up.
pub async fn ask<T: Send + 'static>(
    app: &App,
    question: impl FnOnce(&Reader, &Budget) -> Result<T, Error> + Send + 'static,
) -> Result<T, ApiError> {
    struct StopOnDrop(std::sync::Arc<std::sync::atomic::AtomicBool>);
    impl Drop for StopOnDrop {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let budget = Budget::default();
    let _stop = StopOnDrop(budget.stop_flag());
    let reader = app.reader.clone();
    let answer = tokio::task::spawn_blocking(move || question(&reader, &budget)).await;
    match answer {
        Ok(answer) => Ok(answer?),
        Err(panicked) => {
            tracing::error!(%panicked, "a question panicked");
            Err(Error::TooMuch("something that went wrong inside; the log has more").into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_keeps_what_it_does_not_change() {
        let query = Query(vec![("q".into(), "a b".into()), ("sort".into(), "name".into()), ("x".into(), String::new())]);
        assert_eq!(query.with(&[("sort", Some("p95"))]), "?q=a%20b&sort=p95");
        assert_eq!(query.with(&[("sort", None), ("q", None)]), "");
    }
}
