//! What clients are answered, by the OTLP specification.

use harness::{Server, Signal, corpus, signal, wait_for};
use serde_json::{Value as Json, json};

const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");
const JSON: (&str, &str) = ("content-type", "application/json");

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

fn body(salt: u64) -> (Vec<u8>, usize) {
    let template = &corpus::traces(3, 1, 40)[0];
    let mut body = Vec::new();
    template.patch(salt, now() - 3_000_000_000, &mut body);
    (body, template.items)
}

fn span(trace: &str, span: &str, name: &str, start: u64) -> Json {
    json!({"traceId": trace, "spanId": span, "name": name, "kind": 2, "startTimeUnixNano": start.to_string(), "endTimeUnixNano": (start + 5_000_000).to_string()})
}

fn request(service: &str, spans: &[Json]) -> Json {
    json!({"resourceSpans": [{"resource": {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}, "scopeSpans": [{"scope": {"name": "t"}, "spans": spans}]}]})
}

#[test]
fn every_encoding_is_taken_and_a_repeated_body_is_stored_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let mut expected = 0;
    for (salt, encoding) in ["identity", "gzip", "deflate", "zstd"].into_iter().enumerate() {
        let (plain, items) = body(salt as u64 + 1);
        let sent = match encoding {
            "gzip" => {
                let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
                let mut out = vec![0; compressor.gzip_compress_bound(plain.len())];
                let length = compressor.gzip_compress(&plain, &mut out).expect("it fits");
                out.truncate(length);
                out
            }
            "deflate" => {
                let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
                let mut out = vec![0; compressor.zlib_compress_bound(plain.len())];
                let length = compressor.zlib_compress(&plain, &mut out).expect("it fits");
                out.truncate(length);
                out
            }
            "zstd" => zstd::bulk::compress(&plain, 3).expect("into memory"),
            _ => plain,
        };
        expected += items;
        for _ in 0..3 {
            let (status, _, answer) = server.post("/v1/traces", &[PROTOBUF, ("content-encoding", encoding)], &sent).expect("answered");
            assert_eq!((status, answer.len()), (200, 0), "{encoding}");
        }
    }
    let stats = server.api("/api/v1/stats");
    assert_eq!(stats["stored"]["spans"], json!(expected));
    assert_eq!(stats["repeated_requests"], json!(8));
    assert_eq!(server.sql("SELECT count(*) FROM spans"), [[json!(expected)]]);
}

#[test]
fn a_repeated_body_is_known_across_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let (sent, items) = body(1);
    let server = Server::start(directory.path());
    assert_eq!(server.send("traces", &sent), 200);
    server.kill();
    let server = Server::start(directory.path());
    assert_eq!(server.send("traces", &sent), 200);
    assert_eq!(server.terminate(), Some(0));
    let server = Server::start(directory.path());
    assert_eq!(server.send("traces", &sent), 200);
    assert_eq!(server.sql("SELECT count(*) FROM spans"), [[json!(items)]]);
}

#[test]
fn a_bad_span_costs_its_neighbours_nothing_and_is_counted_with_its_reason() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let start = now();
    let good = "5b8efff798038103d269b633813fc60c";
    let spans = [
        span(good, "eee19b7ec3c1b174", "good", start),
        span("00000000000000000000000000000000", "eee19b7ec3c1b175", "no trace", start),
        span(good, "eee1", "short span id", start),
        span(good, "eee19b7ec3c1b176", "no time", 0),
        span(good, "eee19b7ec3c1b177", "far ahead", start * 2),
        span(good, "eee19b7ec3c1b178", "milliseconds", start / 1_000_000),
    ];
    let (status, answer) = server.send_json("traces", &request("shop", &spans));
    assert_eq!(status, 200);
    assert_eq!(answer["partialSuccess"]["rejectedSpans"], json!("5"), "{answer}");
    assert_eq!(server.api(&format!("/api/v1/traces/{good}"))["spans"].as_array().map(Vec::len), Some(1));
    let rejected = &server.api("/api/v1/stats")["rejected"]["spans"];
    assert_eq!(
        *rejected,
        json!({"trace_id_invalid": 1, "span_id_invalid": 1, "time_missing": 1, "time_too_far_ahead": 1, "time_too_old": 1})
    );
    assert!(server.page("/metrics").1.contains("firstfall_items_rejected_total{signal=\"spans\",reason=\"time_missing\"} 1"));
    assert!(server.page("/settings").1.contains("time_too_far_ahead"));
}

#[test]
fn settings_that_can_change_do_so_at_sighup_and_mistakes_change_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("ff.toml");
    let path = file.display().to_string();
    std::fs::write(&file, "[limits]\nname_bytes_max = '100B'\n").expect("writable");
    let server = Server::start_with(directory.path(), &["--config", &path], &[]);
    let mut sent = 0u64;
    // The length that a name of 80 bytes is kept at.
    let mut kept = || {
        sent += 1;
        let (start, id) = (now() - 1_000_000_000, format!("{sent:016x}"));
        let (status, _) = server.send_json("traces", &request("shop", &[span(&"5b".repeat(16), &id, &"n".repeat(80), start)]));
        assert_eq!(status, 200);
        server.sql(&format!("SELECT length(name) FROM spans WHERE span_id = '{id}'"))[0][0].as_u64().expect("a length")
    };
    let hang_up = || signal(server.id(), Signal::HUP);
    assert_eq!(kept(), 80);
    std::fs::write(&file, "[limits]\nname_bytes_max = '50B'\n[server]\nweb = '127.0.0.1:1'\n").expect("writable");
    hang_up();
    wait_for("the new limit", || (kept() == 50).then_some(()));
    // One good line beside a bad one is not taken over.
    std::fs::write(&file, "[limits]\nname_bytes_max = '30B'\n[retention]\nages = '1d'\n").expect("writable");
    hang_up();
    assert_eq!((kept(), kept()), (50, 50));
    std::fs::write(&file, "[limits]\nname_bytes_max = '40B'\n").expect("writable");
    hang_up();
    wait_for("a good file again", || {
        let kept = kept();
        assert_ne!(kept, 30);
        (kept == 40).then_some(())
    });
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn refusals_have_the_status_that_clients_understand() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start_with(directory.path(), &[], &[("FIRSTFALL_LIMITS_REQUEST_BYTES_MAX", "1MiB")]);
    let check = |headers: &[(&str, &str)], body: &[u8], expected: u16| -> String {
        let (status, headers, answer) = server.post("/v1/traces", headers, body).expect("answered");
        assert_eq!(status, expected, "{}", String::from_utf8_lossy(&answer));
        format!("{headers} {}", String::from_utf8_lossy(&answer))
    };
    check(&[PROTOBUF], &[0x0a, 0xff], 400);
    assert!(check(&[JSON], b"{", 400).contains("\"message\""));
    check(&[JSON], br#"{"resourceSpans": 7}"#, 400);
    check(&[("content-type", "text/plain")], b"", 415);
    check(&[PROTOBUF, ("content-encoding", "br")], b"x", 415);
    check(&[PROTOBUF, ("content-encoding", "gzip")], b"not gzip at all", 400);
    check(&[PROTOBUF], &vec![0; 2 << 20], 413);
    check(&[PROTOBUF], b"", 200);
    assert!(check(&[JSON], b"{}", 200).contains("application/json"));
    // No page of another origin may send unless it is configured.
    assert!(!check(&[JSON, ("origin", "https://elsewhere.example")], b"{}", 200).contains("access-control"));
    assert_eq!(server.page("/v1/nothing").0, 404);
}

#[test]
fn hostile_values_are_cut_or_refused_and_never_fatal() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let start = now();
    // Nested 100 deep: the inner part becomes text. Nested 100,000 deep: so, or refused, but answered.
    for (depth, may_refuse) in [(100, false), (100_000, true)] {
        let deep = format!("{}{}{}", r#"{"arrayValue":{"values":["#.repeat(depth), r#"{"stringValue":"x"}"#, "]}}".repeat(depth));
        let text = format!(
            r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174","name":"deep","startTimeUnixNano":"{start}","endTimeUnixNano":"{start}","attributes":[{{"key":"k","value":{deep}}}]}}]}}]}}]}}"#
        );
        let (status, _, _) = server.post("/v1/traces", &[JSON], text.as_bytes()).expect("answered");
        assert!(status == 200 || (may_refuse && status == 400), "{status}");
    }
    let mut attributes: Vec<Json> = (0..20_000).map(|n| json!({"key": format!("k{n}"), "value": {"intValue": n}})).collect();
    attributes.insert(0, json!({"key": "long", "value": {"stringValue": "é".repeat(4 << 20)}}));
    attributes
        .insert(1, json!({"key": "<script>alert(1)</script>", "value": {"stringValue": "<img src=x onerror=alert(2)>\u{0}\u{1b}[31m"}}));
    let mut wide = span("5b8efff798038103d269b633813fc60d", "eee19b7ec3c1b174", "<b>wide</b>", start);
    wide["attributes"] = Json::Array(attributes);
    // Parents in a circle.
    let mut a = span("5b8efff798038103d269b633813fc60e", "eee19b7ec3c1b174", "a", start);
    a["parentSpanId"] = json!("eee19b7ec3c1b175");
    let mut b = span("5b8efff798038103d269b633813fc60e", "eee19b7ec3c1b175", "b", start);
    b["parentSpanId"] = json!("eee19b7ec3c1b174");
    let (status, answer) = server.send_json("traces", &request("<svc>", &[wide, a, b]));
    assert_eq!((status, &answer), (200, &json!({})));
    let cut = &server.api("/api/v1/stats")["cut"]["spans"];
    assert!(
        cut["nesting_cut"].as_u64() >= Some(1) && cut["value_cut"].as_u64() >= Some(1) && cut["attributes_over_limit"].as_u64() >= Some(1),
        "{cut}"
    );
    let stored = server.api("/api/v1/traces/5b8efff798038103d269b633813fc60d");
    assert_eq!(stored["spans"][0]["attributes"].as_object().map(serde_json::Map::len), Some(128));
    assert_eq!(stored["spans"][0]["dropped"]["attributes"], json!(20_002 - 128));
    for id in ["c", "d", "e"] {
        let (status, page) = server.page(&format!("/traces/5b8efff798038103d269b633813fc60{id}"));
        assert_eq!(status, 200);
        assert!(!page.contains("<script>alert") && !page.contains("<img src=x") && !page.contains("<b>wide"), "markup came through");
    }
    // Names without end.
    for part in 0..10u64 {
        let spans: Vec<Json> = (0..1000u64)
            .map(|n| span(&format!("{:032x}", part * 1000 + n + 1), &format!("{:016x}", n + 1), &format!("op {part} {n}"), start))
            .collect();
        assert_eq!(server.send_json("traces", &request("many", &spans)).0, 200);
    }
    let operations = server.api("/api/v1/services/many")["operations"].as_array().map_or(0, Vec::len);
    assert!(operations <= 2001, "{operations} operations");
    assert_eq!(server.api("/api/v1/stats")["other"], json!(8000), "what is beyond the limit is counted");
    assert_eq!(server.page("/").0, 200);
}

/// By default, and wherever an attribute may stand.
#[test]
fn secrets_are_not_kept_and_are_counted() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let secret = |key: &str| json!({"key": key, "value": {"stringValue": "hunter2"}});
    let start = now();
    let mut one = span("5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174", "login", start);
    one["attributes"] = json!([
        secret("http.request.header.authorization"), secret("db.password"), {"key": "pin.token", "value": {"intValue": "471100471100"}},
        {"key": "headers", "value": {"kvlistValue": {"values": [secret("Set-Cookie"), {"key": "accept", "value": {"stringValue": "*"}}]}}},
        {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "12"}},
    ]);
    one["events"] = json!([{"timeUnixNano": start.to_string(), "name": "e", "attributes": [secret("api_key")]}]);
    let mut sent = request("shop", &[one]);
    sent["resourceSpans"][0]["resource"]["attributes"].as_array_mut().expect("a list").push(secret("client.secret"));
    assert_eq!(server.send_json("traces", &sent), (200, json!({})));
    let log = json!({"timeUnixNano": start.to_string(), "body": {"stringValue": "in"}, "attributes": [secret("cookie")]});
    let logs = json!({"resourceLogs": [{"scopeLogs": [{"logRecords": [log]}]}]});
    assert_eq!(server.send_json("logs", &logs), (200, json!({})));
    let trace = server.api("/api/v1/traces/5b8efff798038103d269b633813fc60c");
    let attributes = &trace["spans"][0]["attributes"];
    assert_eq!(attributes["http.request.header.authorization"], json!("[redacted]"));
    assert_eq!(attributes["pin.token"], json!("[redacted]"));
    assert_eq!(attributes["headers"], json!({"Set-Cookie": "[redacted]", "accept": "*"}));
    assert_eq!(attributes["gen_ai.usage.input_tokens"], json!(12));
    let all = format!("{trace}{}", server.api("/api/v1/logs"));
    assert!(!all.contains("hunter2") && !all.contains("471100471100"), "{all}");
    let cut = &server.api("/api/v1/stats")["cut"];
    assert_eq!((&cut["spans"]["redacted"], &cut["logs"]["redacted"]), (&json!(6), &json!(1)), "{cut}");
    assert_eq!(server.terminate(), Some(0));
    let mut bytes = Vec::new();
    let mut open = vec![directory.path().to_owned()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(path).expect("it is there").flatten().map(|e| e.path()));
        } else {
            bytes.extend(std::fs::read(path).expect("readable"));
        }
    }
    assert!(!bytes.windows(7).any(|w| w == b"hunter2"), "it is in a file");
}

#[test]
fn one_token_guards_every_port() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start_with(directory.path(), &[], &[("FIRSTFALL_TOKEN", "s3cret")]);
    let (sent, _) = body(1);
    assert_eq!(server.send("traces", &sent), 200);
    let (status, ..) = server.post("/v1/traces", &[PROTOBUF, ("authorization", "Bearer wrong")], &sent).expect("answered");
    assert_eq!(status, 401);
    assert_eq!(server.page("/").0, 200);
    for path in ["/", "/api/v1/stats", "/metrics"] {
        let config = harness_free_get(&server.web, path);
        assert_eq!(config, 401, "{path}");
    }
    assert_eq!(harness_free_get(&server.web, "/healthz"), 200);
}

/// A GET without the token.
fn harness_free_get(address: &str, path: &str) -> u16 {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    agent.get(format!("http://{address}{path}")).call().expect("answered").status().as_u16()
}

#[test]
fn a_sampled_span_counts_for_those_that_it_stands_for_and_the_answer_says_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let now = now();
    let span = |n: u64, service: &str, state: &str, failed: bool| {
        let (kind, status) = if service == "front" { (3, 0) } else { (2, if failed { 2 } else { 0 }) };
        json!({"traceId": format!("{:032x}", n + 1), "spanId": format!("{:016x}", n * 2 + u64::from(kind == 2) + 1),
            "parentSpanId": if kind == 2 { format!("{:016x}", n * 2 + 1) } else { String::new() }, "name": "GET /x", "kind": kind,
            "traceState": state, "status": {"code": status},
            "startTimeUnixNano": (now - 60_000_000_000).to_string(), "endTimeUnixNano": (now - 59_990_000_000).to_string()})
    };
    for service in ["front", "back"] {
        // 200 of 800 were taken; all ten that failed were kept.
        let well = (0..200).map(|n| span(n, service, "other=1,ot=th:c", false));
        let spans: Vec<_> = well.chain((200..210).map(|n| span(n, service, "ot=th:0", true))).collect();
        let body = json!({"resourceSpans": [{"resource": {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]},
            "scopeSpans": [{"spans": spans}]}]});
        assert_eq!(server.send_json("traces", &body).0, 200);
    }
    let back = server.api("/api/v1/services/back");
    assert_eq!((back["requests"].as_u64(), back["errors"].as_u64(), back["exact"].as_bool()), (Some(810), Some(10), Some(false)), "{back}");
    let edge = wait_for("the edge", || {
        let topology = server.api("/api/v1/topology");
        topology["edges"].as_array()?.iter().find(|e| e["from"] == "service:front" && e["to"] == "service:back").cloned()
    });
    assert_eq!((edge["calls"].as_u64(), edge["exact"].as_bool()), (Some(810), Some(false)), "{edge}");
}
