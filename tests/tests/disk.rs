//! A full disk refuses new items for as long as it is full, keeps what was acknowledged, and answers questions meanwhile.

use harness::{Server, corpus};
use serde_json::json;
use std::path::Path;
use std::process::Command;

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// A small file system in memory; needs root, as CI has.
struct Small<'a>(&'a Path);

impl Small<'_> {
    fn mount(&self, options: &str) -> bool {
        Command::new("mount").args(["-t", "tmpfs", "-o", options, "none"]).arg(self.0).status().is_ok_and(|s| s.success())
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_loses_nothing_and_writing_resumes_by_itself() {
    let directory = tempfile::tempdir().expect("a directory");
    let small = Small(directory.path());
    if !small.mount("size=6m") {
        eprintln!("not root: a small file system cannot be mounted, so a full disk is not tested here");
        return;
    }
    let server = Server::start(&directory.path().join("data"));
    let template = &corpus::traces(41, 1, 400)[0];
    let (mut body, mut acknowledged, mut salt) = (Vec::new(), 0, 0);
    let mut send = |acknowledged: &mut usize| {
        salt += 1;
        template.patch(salt, now() - 2_000_000_000, &mut body);
        let status = server.send("traces", &body);
        if status == 200 {
            *acknowledged += template.items;
        }
        status
    };
    let refused = (0..2000).map(|_| send(&mut acknowledged)).find(|status| *status != 200);
    assert_eq!(refused, Some(503), "clients come again after 503");
    assert_eq!(server.sql("SELECT count(*) FROM spans"), [[json!(acknowledged)]], "reads go on");
    let (status, ready) = server.page("/readyz");
    assert!(status == 200 && ready.contains("degraded"), "{ready}");
    assert!(server.page("/").1.contains("New data are refused"));
    assert!(Command::new("mount").args(["-o", "remount,size=300m"]).arg(directory.path()).status().expect("mount runs").success());
    harness::wait_for("writing to resume", || (send(&mut acknowledged) == 200).then_some(()));
    assert_eq!(server.sql("SELECT count(*) FROM spans"), [[json!(acknowledged)]]);
    assert_eq!(server.terminate(), Some(0));
    let server = Server::start(&directory.path().join("data"));
    assert_eq!(server.sql("SELECT count(*) FROM spans"), [[json!(acknowledged)]]);
    drop(server);
}
