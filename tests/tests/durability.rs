//! Acknowledged is durable, and counted once.

use harness::{Server, binary, corpus};
use serde_json::json;
use std::collections::HashMap;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// Kills in a row; each at another moment of the work.
const KILLS: u64 = 12;

#[test]
fn what_was_acknowledged_is_found_after_kill_9_exactly_once_and_requests_are_whole() {
    let directory = tempfile::tempdir().expect("a directory");
    let spans = corpus::traces(11, 8, 60);
    let logs = corpus::logs(11, 8, 50);
    // One service a request would be lost in the corpus, so the requests are told apart by their trace ids: salt → acknowledged.
    let acknowledged: Mutex<Vec<(u64, usize, bool)>> = Mutex::default();
    let salt = AtomicU64::new(1);
    for round in 0..KILLS {
        // Small generations, so that kills meet sealing and merging too.
        let server = Server::start_with(directory.path(), &[], &[("FIRSTFALL_STORE_BLOCK_ROWS", "700")]);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for sender in 0..3usize {
                let (spans, logs, acknowledged, salt, stop, server) = (&spans, &logs, &acknowledged, &salt, &stop, &server);
                scope.spawn(move || {
                    let mut body = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let own = salt.fetch_add(1, Ordering::Relaxed);
                        let is_log = sender == 2;
                        let template = if is_log { &logs[own as usize % logs.len()] } else { &spans[own as usize % spans.len()] };
                        template.patch(own, now() - 5_000_000_000, &mut body);
                        let path = if is_log { "/v1/logs" } else { "/v1/traces" };
                        match server.post(path, &[("content-type", "application/x-protobuf")], &body) {
                            Ok((200, ..)) => acknowledged.lock().expect("no panic").push((own, template.items, is_log)),
                            _ => return,
                        }
                    }
                });
            }
            std::thread::sleep(std::time::Duration::from_millis(150 + 37 * round));
            Command::new("kill").args(["-9", &server.id().to_string()]).status().expect("kill runs");
            stop.store(true, Ordering::Relaxed);
        });
        server.kill();
    }
    let server = Server::start(directory.path());
    let acknowledged = acknowledged.into_inner().expect("no panic");
    assert!(acknowledged.len() > 50, "{} requests were acknowledged", acknowledged.len());
    for (table, is_log) in [("spans", false), ("logs", true)] {
        // The command beside the running server: the API ends an answer at ten thousand rows.
        let query = format!("SELECT trace_id, count(*), count(DISTINCT span_id) FROM {table} GROUP BY trace_id");
        let output = Command::new(binary())
            .args(["sql", &query, "--limit", "10000000", "--data-dir"])
            .arg(directory.path())
            .output()
            .expect("it runs");
        let found: HashMap<String, (u64, u64)> = String::from_utf8_lossy(&output.stdout)
            .lines()
            .skip(1)
            .map(|line| {
                let cells: Vec<&str> = line.split('\t').collect();
                (cells[0].to_owned(), (cells[1].parse().expect("a count"), cells[2].parse().expect("a count")))
            })
            .collect();
        assert!(found.values().all(|(rows, distinct)| rows == distinct), "a {table} row is stored twice");
        let mut expected = 0;
        for (own, items, _) in acknowledged.iter().filter(|(.., l)| *l == is_log) {
            let template = if is_log { &logs[*own as usize % logs.len()] } else { &spans[*own as usize % spans.len()] };
            let mut body = Vec::new();
            template.patch(*own, now(), &mut body);
            let ids = trace_ids(&body, is_log);
            let total: u64 = ids.iter().map(|id| found.get(id).map_or(0, |(rows, _)| *rows)).sum();
            assert_eq!(total, *items as u64, "request {own} of {table} is not whole");
            expected += items;
        }
        let total: u64 = found.values().map(|(rows, _)| rows).sum();
        assert!(total >= expected as u64);
    }
    assert_eq!(server.terminate(), Some(0));
}

fn trace_ids(body: &[u8], is_log: bool) -> std::collections::HashSet<String> {
    use opentelemetry_proto::tonic::collector::{logs::v1::ExportLogsServiceRequest, trace::v1::ExportTraceServiceRequest};
    use prost::Message;
    let hex = |id: &[u8]| id.iter().map(|b| format!("{b:02x}")).collect::<String>();
    if is_log {
        let request = ExportLogsServiceRequest::decode(body).expect("valid");
        request.resource_logs.iter().flat_map(|r| &r.scope_logs).flat_map(|s| &s.log_records).map(|l| hex(&l.trace_id)).collect()
    } else {
        let request = ExportTraceServiceRequest::decode(body).expect("valid");
        request.resource_spans.iter().flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans).map(|s| hex(&s.trace_id)).collect()
    }
}

#[test]
fn sigterm_loses_nothing_and_leaves_the_directory_at_rest() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let mut expected = 0;
    for (n, template) in corpus::traces(12, 6, 50).iter().enumerate() {
        let mut body = Vec::new();
        template.patch(n as u64 + 1, now() - 2_000_000_000, &mut body);
        assert_eq!(server.send("traces", &body), 200);
        expected += template.items;
    }
    let before = server.api("/api/v1/services");
    assert_eq!(server.terminate(), Some(0));
    assert_eq!(std::fs::read_dir(directory.path().join("journal")).expect("it is there").count(), 0, "the journal is empty");
    let server = Server::start(directory.path());
    assert_eq!(server.sql("SELECT count(*) FROM spans"), [[json!(expected)]]);
    let counts = |answer: &serde_json::Value| -> Vec<(String, u64, u64)> {
        let services = answer["services"].as_array().expect("a list");
        services.iter().map(|s| (s["name"].to_string(), s["requests"].as_u64().unwrap_or(0), s["errors"].as_u64().unwrap_or(0))).collect()
    };
    assert_eq!(counts(&before), counts(&server.api("/api/v1/services")), "rollups are the same from memory and from disk");
    // And the same as counting the spans themselves.
    let requests: u64 = counts(&before).iter().map(|(_, requests, _)| requests).sum();
    assert_eq!(server.sql("SELECT count(*) FROM spans WHERE kind = 'server'"), [[json!(requests)]]);
    let whole: u64 = counts(&server.api("/api/v1/services?from=now-40m")).iter().map(|(_, requests, _)| requests).sum();
    assert_eq!(whole, requests, "by the minute as by the window");
    // SQL beside the running server sees the same.
    let output =
        Command::new(binary()).args(["sql", "SELECT count(*) FROM spans", "--data-dir"]).arg(directory.path()).output().expect("it runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().nth(1), Some(expected.to_string().as_str()));
}

#[test]
fn mistakes_of_the_operator_are_refused_with_the_way_out() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let run = |arguments: &[&str], environment: &[(&str, &str)]| {
        let output = Command::new(binary()).args(arguments).envs(environment.iter().copied()).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let free = ["--otlp-grpc", "127.0.0.1:0", "--otlp-http", "127.0.0.1:0", "--web", "127.0.0.1:0"];
    let path = directory.path().display().to_string();
    let with = |more: &[&'static str]| [&["serve"], &free[..], more].concat();
    let (code, text) = run(&[&with(&["--data-dir"])[..], &[path.as_str()]].concat(), &[]);
    assert!(code == Some(1) && text.contains("in use by process") && text.contains("--data-dir"), "{text}");
    let other = tempfile::tempdir().expect("a directory");
    let other = other.path().display().to_string();
    let (code, text) = run(
        &["serve", "--web", server.web.as_str(), "--otlp-grpc", "127.0.0.1:0", "--otlp-http", "127.0.0.1:0", "--data-dir", &other],
        &[],
    );
    assert!(code == Some(1) && text.contains("port 0 picks a free one"), "{text}");
    let (code, text) = run(&["serve"], &[("FIRSTFALL_LIMITS_ATTRIBUTE_MAX", "3")]);
    assert!(code == Some(2) && text.contains("did you mean FIRSTFALL_LIMITS_ATTRIBUTES_MAX"), "{text}");
    let (code, text) =
        run(&["serve", "--web", "0.0.0.0:0", "--otlp-grpc", "127.0.0.1:0", "--otlp-http", "127.0.0.1:0", "--data-dir", &other], &[]);
    assert!(code == Some(2) && text.contains("FIRSTFALL_TOKEN"), "{text}");
    assert_eq!(run(&["serve", "--no-such-flag"], &[]).0, Some(2));
}

#[test]
fn a_damaged_partition_is_set_aside_and_the_rest_keeps_working() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let mut body = Vec::new();
    corpus::traces(12, 1, 50)[0].patch(1, now() - 2_000_000_000, &mut body);
    assert_eq!(server.send("traces", &body), 200);
    let mut log = Vec::new();
    corpus::logs(12, 1, 50)[0].patch(1, now() - 2_000_000_000, &mut log);
    assert_eq!(server.send("logs", &log), 200);
    assert_eq!(server.terminate(), Some(0));
    let partition =
        std::fs::read_dir(directory.path().join("traces")).expect("it is there").flatten().next().expect("one partition").path();
    std::fs::write(&partition, b"this is not a database at all, not even nearly").expect("writable");
    let server = Server::start(directory.path());
    assert_eq!(server.sql("SELECT count(*) FROM spans"), [[json!(0)]]);
    assert_eq!(server.sql("SELECT count(*) FROM logs"), [[json!(50)]]);
    assert!(partition.with_extension("db.damaged").exists());
}
