//! Changes of services, told and seen, through the real binary.

use harness::Server;
use harness::server::wait_for;
use harness::shop::{Fault, Shop};

const SECOND: u64 = 1_000_000_000;

#[test]
fn a_change_is_told_or_seen_and_stands_on_pages_in_sql_and_beside_what_followed() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
    let start = (now - 12 * 60 * SECOND) / (10 * SECOND) * 10 * SECOND;
    let told_at = (start + 475 * SECOND) / SECOND;
    let body =
        format!(r#"{{"service":"payments","kind":"flag <b>on</b>","to":"new checkout","time":{told_at},"url":"https://ci.example/42"}}"#);
    let (status, _, answer) = server.post("/api/v1/changes", &[], body.as_bytes()).expect("answered");
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
    assert_eq!(server.post("/api/v1/changes", &[], body.as_bytes()).expect("answered").0, 200, "told twice");
    assert_eq!(server.post("/api/v1/changes", &[("sec-fetch-site", "cross-site")], body.as_bytes()).expect("answered").0, 403);
    let (status, _, answer) = server.post("/api/v1/changes", &[], br#"{"service":"a","url":"javascript:x"}"#).expect("answered");
    assert!(status == 400 && String::from_utf8_lossy(&answer).contains("url: it must begin with https://"));

    let mut shop = Shop::new(start, 5);
    for second in 0..560 {
        let fault = Fault { payments_fails: if second >= 480 { 60 } else { 0 }, payments_new: second >= 400, ..Fault::default() };
        for body in shop.second(second, fault) {
            assert_eq!(server.post("/v1/traces", &[("content-type", "application/json")], &body).expect("answered").0, 200);
        }
    }
    let changes = wait_for("the version that was seen", || {
        let changes = server.api("/api/v1/changes?service=payments")["changes"].as_array()?.clone();
        (changes.len() == 2).then_some(changes)
    });
    assert_eq!((&changes[0]["kind"], &changes[0]["told"]), (&"flag <b>on</b>".into(), &true.into()), "{changes:?}");
    assert_eq!((&changes[1]["kind"], &changes[1]["from"], &changes[1]["to"]), (&"version".into(), &"1".into(), &"2".into()));
    let incident = wait_for("an incident", || server.api("/api/v1/incidents")["incidents"].as_array()?.first().cloned());
    let id = incident["id"].as_str().expect("an id");
    let whole = wait_for("its changes", || {
        let whole = server.api(&format!("/api/v1/incidents/{id}"));
        (whole["changes"].as_array()?.len() == 2).then_some(whole)
    });
    assert!(whole["trigger"].as_str().is_some_and(|t| t.starts_with("version 2 of payments")), "{whole}");
    let (_, page) = server.page("/changes");
    assert!(page.contains("https://ci.example/42") && page.contains(id) && !page.contains("<b>on</b>"), "{page}");
    assert!(server.page("/").1.contains("version 2 after 1"));
    assert_eq!(server.sql("SELECT service, \"to\" FROM changes WHERE kind LIKE 'flag%'"), [["payments", "new checkout"]]);
}

/// Polly counts how often a breaker has opened; no gauge tells its state.
#[test]
fn a_breaker_of_polly_opens_beside_the_calls_of_its_service() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
    let start = (now - 6 * 60 * SECOND) / (10 * SECOND) * 10 * SECOND;
    let mut shop = Shop::new(start, 5);
    let points = |second: u64, opened: u64| {
        let attribute = |key: &str, value: &str| serde_json::json!({"key": key, "value": {"stringValue": value}});
        let of = |event: &str, count: u64| {
            serde_json::json!({
                "startTimeUnixNano": start.to_string(), "timeUnixNano": (start + second * SECOND).to_string(), "asInt": count.to_string(),
                "attributes": [attribute("event.name", event), attribute("pipeline.name", "payments")],
            })
        };
        let sum = serde_json::json!({"aggregationTemporality": 2, "isMonotonic": true, "dataPoints": [of("OnCircuitOpened", opened), of("OnRetry", 9)]});
        let metrics = [serde_json::json!({"name": "resilience.polly.strategy.events", "sum": sum})];
        serde_json::json!({"resourceMetrics": [{"resource": {"attributes": [attribute("service.name", "orders")]}, "scopeMetrics": [{"metrics": metrics}]}]})
    };
    let json = [("content-type", "application/json")];
    for second in 0..240 {
        for body in shop.second(second, Fault::default()) {
            assert_eq!(server.post("/v1/traces", &json, &body).expect("answered").0, 200);
        }
        if second % 60 == 30 {
            // It had opened twice before we came, and opens once more in the third minute.
            let body = points(second, if second < 150 { 2 } else { 3 }).to_string();
            assert_eq!(server.post("/v1/metrics", &json, body.as_bytes()).expect("answered").0, 200);
        }
    }
    let changes = wait_for("the breaker", || {
        let changes = server.api("/api/v1/changes?service=orders")["changes"].as_array()?.clone();
        (!changes.is_empty()).then_some(changes)
    });
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert_eq!(
        (&changes[0]["kind"], &changes[0]["from"], &changes[0]["to"]),
        (&"breaker".into(), &"closed".into(), &"open (payments)".into())
    );
    let page = wait_for("the edge", || Some(server.page("/edges/orders/payments")).filter(|(status, _)| *status == 200)).1;
    assert!(page.contains("Breakers of orders") && page.contains("breaker open (payments) after closed"), "{page}");
}
