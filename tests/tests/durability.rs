//! Acknowledged is durable, and counted once.

use harness::mixed::{Mixed, kill_after};
use harness::power::Disk;
use harness::{Server, binary, corpus};
use serde_json::json;
use std::process::Command;
use std::time::Duration;

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

fn journal_files_reused(server: &Server) -> u64 {
    let metrics = server.page("/metrics").1;
    let line = metrics.lines().find_map(|line| line.strip_prefix("firstfall_journal_files_reused_total "));
    line.and_then(|count| count.parse().ok()).expect("a count")
}

/// Kills in a row; each at another moment of the work.
const KILLS: u64 = 50;

#[test]
fn what_was_acknowledged_is_found_after_kill_9_exactly_once_and_requests_are_whole() {
    let directory = tempfile::tempdir().expect("a directory");
    let mixed = Mixed::new(11);
    let mut reused = 0;
    for round in 0..KILLS {
        // Small generations, so that kills meet sealing and merging too.
        let server = Server::start_with(directory.path(), &[], &[("FIRSTFALL_STORE_BLOCK_ROWS", "700")]);
        mixed
            .run(&server, || kill_after(&server, Duration::from_millis(40 + 67 * round % 300), || reused += journal_files_reused(&server)));
    }
    assert!(reused > 10, "{reused} journal files were written over");
    let server = Server::start(directory.path());
    let requests = mixed.check(&server);
    assert!(requests > 500, "{requests} requests were acknowledged");
    assert_eq!(server.terminate(), Some(0));
    // And the same once all of it is in blocks.
    mixed.check(&Server::start(directory.path()));
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_that_takes_all_that_was_not_synced() {
    const CUTS: u64 = 12;
    let disk = Disk::new();
    let mixed = Mixed::new(13);
    let mut reused = 0;
    for round in 0..CUTS {
        let server = disk.start(&[("FIRSTFALL_STORE_BLOCK_ROWS", "700")]);
        mixed
            .run(&server, || kill_after(&server, Duration::from_millis(60 + 97 * round % 500), || reused += journal_files_reused(&server)));
        drop(server);
        disk.fail_power();
    }
    assert!(reused > 2, "{reused} journal files were written over");
    let server = Server::start(&disk.data());
    let requests = mixed.check(&server);
    assert!(requests > 100, "{requests} requests were acknowledged");
}

#[test]
fn the_double_for_power_loss_does_forget() {
    let disk = Disk::new();
    let mixed = Mixed::new(14);
    // Promises only to survive the end of the process, and so does not sync before it answers.
    let server = disk.start(&[("FIRSTFALL_STORE_DURABILITY", "process")]);
    mixed.run(&server, || kill_after(&server, Duration::from_millis(300), || ()));
    drop(server);
    disk.fail_power();
    let server = Server::start(&disk.data());
    let count = |table: &str| server.sql(&format!("SELECT count(*) FROM {table}"))[0][0].as_u64().expect("a count");
    let found = (count("spans") + count("logs") + count("points")) as usize;
    assert!(found < mixed.acknowledged_items(), "{found} items are there, {} were acknowledged", mixed.acknowledged_items());
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
