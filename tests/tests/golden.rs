//! Stored data of every version that was ever released are read as they were written.
//!
//! `tests/golden/vN` is a data directory of format N, as a killed server left it (a partition of each signal, and a journal that was not sealed),
//! with `expected.tsv`, what it holds. A new format gets a new directory and leaves the old ones alone:
//! `WRITE_GOLDEN=v2 cargo test -p firstfall-tests --test golden`.

use harness::{Server, binary, corpus, samples, wait_for};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The clock of what is in the files, nanoseconds: 2026-11-01.
const AT: u64 = 1_793_491_200_000_000_000;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("writable");
    for entry in std::fs::read_dir(from).expect("it is there").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("readable");
        }
    }
}

/// All that a directory holds, as text.
fn content(directory: &Path) -> String {
    let queries = [
        "SELECT * FROM spans ORDER BY trace_id, span_id",
        "SELECT * FROM logs ORDER BY trace_id, span_id, time_ns, body",
        "SELECT * FROM points ORDER BY metric, type, time_ns, attributes, value",
    ];
    queries
        .iter()
        .map(|query| {
            let mut command = Command::new(binary());
            let output = command.args(["sql", query, "--limit", "100000", "--data-dir"]).arg(directory).output().expect("it runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            format!("{query}\n{}", String::from_utf8_lossy(&output.stdout))
        })
        .collect()
}

fn bodies(part: u64) -> Vec<(&'static str, Vec<u8>)> {
    let mut random = corpus::Random::new(90 + part);
    let mut bodies = Vec::new();
    for (signal, template) in [("traces", &corpus::traces(91, 1, 12)[0]), ("logs", &corpus::logs(91, 1, 12)[0])] {
        let mut body = Vec::new();
        template.patch(part + 1, AT + part * 1_000_000_000, &mut body);
        bodies.push((signal, body));
    }
    // Every kind of value, list and point.
    for signal in firstfall_store::Signal::ALL {
        let sample = (0..40).map(|_| samples::Sample::draw(signal, &mut random).protobuf()).max_by_key(|body| body.len().min(4000));
        let name = ["traces", "logs", "metrics"][signal as usize];
        bodies.push((name, samples::shifted(signal, &sample.expect("forty were drawn"), AT)));
    }
    bodies
}

fn write(target: &Path) {
    let work = tempfile::tempdir().expect("a directory");
    let server = Server::start_with(work.path(), &[], &[("FIRSTFALL_STORE_BLOCK_ROWS", "1")]);
    for (signal, body) in bodies(0) {
        assert_eq!(server.send(signal, &body), 200);
    }
    assert_eq!(server.terminate(), Some(0));
    let server = Server::start(work.path());
    for (signal, body) in bodies(1) {
        assert_eq!(server.send(signal, &body), 200);
    }
    wait_for("the journal", || std::fs::read_dir(work.path().join("journal")).ok()?.next().map(drop));
    server.kill();
    copy(work.path(), target);
    // What SQLite makes anew by itself.
    for directory in [target.to_owned(), target.join("traces"), target.join("logs"), target.join("metrics"), target.join("journal")] {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|x| x == "db-shm" || x == "lock") || entry.file_name() == "lock" {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
    std::fs::write(target.join("expected.tsv"), content(work.path())).expect("writable");
}

#[test]
fn what_every_version_wrote_is_read_as_it_was() {
    if let Some(version) = std::env::var_os("WRITE_GOLDEN") {
        write(&golden().join(version));
    }
    let mut versions = 0;
    for version in std::fs::read_dir(golden()).expect("it is there").flatten() {
        versions += 1;
        let directory = tempfile::tempdir().expect("a directory");
        copy(&version.path(), directory.path());
        let expected = std::fs::read_to_string(version.path().join("expected.tsv")).expect("it says what it holds");
        let rows = |start: &str| {
            expected.lines().skip_while(|line| !line.contains(start)).skip(2).take_while(|line| !line.starts_with("SELECT")).count()
        };
        assert!(rows("FROM spans") > 20 && rows("FROM logs") > 20 && rows("FROM points") > 5, "there is something in it");
        // By a reader beside nobody, by a server that recovers it, and after that server has sealed it.
        assert_eq!(content(directory.path()), expected, "{version:?}");
        let server = Server::start(directory.path());
        assert_eq!(content(directory.path()), expected, "{version:?}, recovered");
        let services = server.api("/api/v1/services?from=2026-10-01T00:00:00Z&to=2026-12-01T00:00:00Z");
        assert!(services["services"].as_array().is_some_and(|list| !list.is_empty()), "its rollups are read: {services}");
        assert_eq!(server.terminate(), Some(0));
        assert_eq!(content(directory.path()), expected, "{version:?}, sealed");
    }
    assert!(versions > 0, "there are golden files");
}
