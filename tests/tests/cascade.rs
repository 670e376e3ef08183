//! What fell first, through the real binary: its API, its pages, and across a kill.

use harness::Server;
use harness::server::wait_for;
use harness::shop::{Fault, Shop};
use serde_json::Value as Json;

const SECOND: u64 = 1_000_000_000;

/// Nine minutes of the shop, the last two with payments failing, as if they had just passed.
fn send_a_failure(server: &Server) -> (u64, u64) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
    let start = (now - 10 * 60 * SECOND) / (10 * SECOND) * 10 * SECOND;
    let mut shop = Shop::new(start, 5);
    for second in 0..9 * 60 {
        let fault = Fault { payments_fails: if second >= 7 * 60 { 50 } else { 0 }, ..Fault::default() };
        for body in shop.second(second, fault) {
            let (status, ..) = server.post("/v1/traces", &[("content-type", "application/json")], &body).expect("answered");
            assert_eq!(status, 200);
        }
    }
    (start + 7 * 60 * SECOND, start + 9 * 60 * SECOND)
}

fn incidents(server: &Server) -> Vec<Json> {
    server.api("/api/v1/incidents?state=all")["incidents"].as_array().expect("a list").clone()
}

#[test]
fn a_failure_is_one_incident_with_its_origin_on_pages_and_in_the_api_and_a_kill_forgets_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let (from, to) = send_a_failure(&server);
    let incident = wait_for("an incident", || incidents(&server).into_iter().next());
    assert_eq!(incident["origins"][0]["service"], "payments", "{incident}");
    assert_eq!(incident["origins"][0]["rank"], 1);
    assert_eq!(incident["origins"][0]["kind"], "service");
    assert!(incident["origins"][0]["reasons"].as_array().is_some_and(|r| !r.is_empty()));
    assert_eq!(incident["confidence"], "high");
    for field in ["opened_at", "onset"] {
        let text = incident[field].as_str().expect("a time");
        assert!(text.len() == 30 && text.ends_with('Z'), "{field} is RFC 3339 with nanoseconds: {text}");
    }
    let hops = incident["hops"].as_array().expect("hops");
    assert!(hops.iter().any(|h| h["from"] == "payments" && h["to"] == "orders"), "{hops:?}");
    assert!(incident["impact"]["requests"].as_u64().is_some_and(|n| n > 0));

    let id = incident["id"].as_str().expect("an id").to_owned();
    let one = server.api(&format!("/api/v1/incidents/{id}"));
    for field in ["symptoms", "evidence", "rejected", "changes", "timeline"] {
        assert!(one[field].is_array(), "{field}: {one}");
    }
    let (status, page) = server.page(&format!("/incidents/{id}"));
    assert!(status == 200 && page.contains("payments") && page.contains("How it spread"));
    assert!(server.page("/").1.contains("payments"), "the first page says it");
    let (status, map) = server.page("/map?from=now-20m");
    assert!(status == 200 && map.contains("postgresql ledger") && map.contains("only what fails"));
    assert_eq!(server.page("/incidents/none").0, 404);
    let told = server.api(&format!("/api/v1/diagnosis?from={}&to={}", from / SECOND, to / SECOND));
    assert_eq!(told["origins"][0]["service"], "payments", "{told}");
    let rows = server.sql("SELECT id, origin FROM incidents");
    assert_eq!(rows, [[Json::from(id.as_str()), Json::from("payments")]]);
    let metrics = server.page("/metrics").1;
    assert!(
        metrics.contains("\nfirstfall_detection_one_trace_in 1\n") && metrics.contains("\nfirstfall_detection_batches_missed_total 0\n")
    );
    assert_eq!(server.page("/api/v1/diagnosis?from=1&to=18446744073709551615").0, 400, "a stretch of ages is refused");
    // The last traces are counted when it is sure that nothing more of them comes: when input stops, time goes on with the clock.
    let topology = wait_for("all calls on the map", || {
        let topology = server.api("/api/v1/topology?from=now-20m");
        let edge = topology["edges"].as_array()?.iter().find(|e| e["from"] == "service:orders" && e["to"] == "service:payments")?.clone();
        (edge["calls"] == 9 * 60 * 5).then_some(topology)
    });
    let edge = topology["edges"].as_array().and_then(|edges| edges.iter().find(|e| e["to"] == "service:payments")).expect("there");
    assert!(edge["latency_ms"]["p95"].as_f64().is_some_and(|ms| ms > 3.0 && ms < 100.0), "{edge}");
    assert_eq!((&edge["attempts"], &edge["exact"]), (&edge["calls"], &Json::from(true)));
    let status = |id: &str| topology["nodes"].as_array().and_then(|n| n.iter().find(|n| n["id"] == id)).map(|n| n["status"].clone());
    assert_eq!(status("service:payments"), Some("failing".into()), "{topology}");
    assert_eq!(status("database:postgresql ledger"), Some("ok".into()), "{topology}");
    let (status, page) = server.page("/edges/service%3Aorders/service%3Apayments?from=now-20m");
    assert!(status == 200 && page.contains("Neither explains") && page.contains("attempts a call"), "{page}");
    let rate = page.split("<dt>calls/s</dt><dd>").nth(1).and_then(|rest| rest.split('<').next()?.parse::<f64>().ok());
    assert!(
        rate.is_some_and(|rate| (3.5..5.1).contains(&rate)),
        "five a second for nine minutes, of ten in which it can have been seen: {rate:?}"
    );
    let (status, page) = server.page("/nodes/database%3Apostgresql%20ledger?from=now-20m");
    assert!(status == 200 && page.contains("what its callers see"), "{page}");
    assert_eq!(server.page("/edges/orders/payments?from=now-20m").0, 200, "by names");
    assert_eq!(server.page("/edges/service%3Aorders/none").0, 404);
    let orders = server.api("/api/v1/services/orders?from=now-20m");
    assert_eq!(orders["callers"][0]["service"], "gateway", "{orders}");
    assert_eq!(orders["callees"].as_array().map(Vec::len), Some(2), "{orders}");
    assert_eq!(topology["nodes"].as_array().map(Vec::len), Some(5), "an address is no node of its own: {topology}");

    // Half of the last two minutes fail at payments, and go on to the gateway.
    let joined = |server: &Server, service: &str| {
        let operations = server.api(&format!("/api/v1/services/{service}?from=now-20m"))["operations"].clone();
        let own = operations.as_array()?.iter().find(|o| o["joined"]["requests"] == 9 * 60 * 5)?["joined"].clone();
        Some(own)
    };
    let parts: Vec<Json> =
        ["payments", "orders", "gateway"].map(|service| wait_for("its joined requests", || joined(&server, service))).into();
    let failed = parts[0]["errors"].as_u64().expect("a count");
    assert!((200..400).contains(&failed) && parts[0]["own_errors"] == failed, "{}", parts[0]);
    for passed_on in &parts[1..] {
        assert_eq!((&passed_on["errors"], &passed_on["own_errors"]), (&Json::from(failed), &Json::from(0)), "{passed_on}");
        assert_eq!((&passed_on["absorbed_errors"], &passed_on["exact"]), (&Json::from(0), &Json::from(true)), "{passed_on}");
    }
    let [own, mean] = ["own_time_ms", "mean_ms"].map(|time| parts[2][time].as_f64().expect("a time"));
    assert!(0.0 < own && own < mean / 2.0, "the gateway waits most of the time: {}", parts[2]);
    let (status, page) = server.page("/services/payments?from=now-20m");
    assert!(status == 200 && page.contains("Begin here %") && page.contains("100 % of all here"), "{page}");

    let kept = wait_for("edges that are kept", || {
        let rows = server.sql("SELECT sum(calls) FROM edges WHERE caller = 'orders' AND callee = 'payments'");
        rows[0][0].as_u64().filter(|calls| *calls > 1000)
    });

    server.kill();
    let server = Server::start(directory.path());
    let after = wait_for("all calls on the map after a kill", || {
        let topology = server.api("/api/v1/topology?from=now-20m");
        let edge = topology["edges"].as_array()?.iter().find(|e| e["from"] == "service:orders" && e["to"] == "service:payments")?.clone();
        let calls = edge["calls"].as_u64()?;
        assert!(calls <= 9 * 60 * 5, "{calls} calls: some are counted twice");
        (calls == 9 * 60 * 5).then_some(calls)
    });
    assert!(after >= kept);
    let again: Vec<Json> =
        ["payments", "orders", "gateway"].map(|service| wait_for("the same after a kill", || joined(&server, service))).into();
    assert_eq!(again, parts, "kept, and counted once");
    let again = wait_for("the incident after a kill", || incidents(&server).into_iter().next());
    assert_eq!((again["id"].as_str(), &again["onset"]), (Some(id.as_str()), &incident["onset"]));
    assert_eq!(incidents(&server).len(), 1, "and no second one");
}
