//! The first command of the README.

use harness::{Signal, binary, signal, wait_for};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

fn children(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").expect("Linux").flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    processes
        .filter(|pid| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().any(|line| line.strip_prefix("PPid:").is_some_and(|ppid| ppid.trim() == parent.to_string()))
        })
        .collect()
}

#[test]
fn the_demo_shows_its_services_and_leaves_no_process_behind() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut demo = Command::new(binary())
        .args(["demo", "--otlp-grpc", "127.0.0.1:0", "--otlp-http", "127.0.0.1:0", "--web", "127.0.0.1:0", "--data-dir"])
        .arg(directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut web = String::new();
    // Kept to the end: what nobody reads any more cannot be printed to.
    let mut lines = BufReader::new(demo.stdout.take().expect("it is piped")).lines();
    for line in lines.by_ref().map_while(Result::ok) {
        if let Some(address) = line.strip_prefix("listening web=") {
            web = address.to_owned();
        }
        if line.contains("Ctrl-C ends all of it") {
            break;
        }
    }
    let services = ["cart", "catalog", "gateway", "inventory", "orders", "payments"];
    wait_for("the shop's services", || {
        let answer = ureq::get(format!("http://{web}/api/v1/services")).call().ok()?.body_mut().read_to_string().ok()?;
        services.iter().all(|service| answer.contains(&format!("\"{service}\""))).then_some(())
    });
    let shop = children(demo.id());
    assert_eq!(shop.len(), 7, "each service is a process of its own");
    signal(demo.id(), Signal::TERM);
    assert_eq!(demo.wait().expect("it ends").code(), Some(0));
    for process in shop {
        wait_for("the end of each service", || (!std::path::Path::new(&format!("/proc/{process}")).exists()).then_some(()));
    }
}
