//! `firstfall doctor` beside a server that is well, one that asks for a token, and none.

use harness::{Server, binary};
use std::process::{Command, Output};

fn doctor(arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = Command::new(binary()).arg("doctor").args(arguments).output().expect("it runs");
    (status.code(), format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)))
}

#[test]
fn it_finds_what_it_sent_and_says_what_is_wrong_when_it_cannot() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let (endpoint, web) = (format!("http://{}", server.otlp), format!("http://{}", server.web));
    let (code, said) = doctor(&["--endpoint", &endpoint, "--web", &web]);
    assert!(code == Some(0) && said.contains("ok      the data point can be read back") && said.contains("all is well"), "{said}");
    // gRPC's port, which is what people mix up.
    let (code, said) = doctor(&["--endpoint", &format!("http://{}", server.grpc), "--web", &web]);
    assert!(code == Some(1) && said.contains("wrong   a span to"), "{said}");
    let (code, said) = doctor(&["--endpoint", "http://127.0.0.1:9", "--web", &web]);
    assert!(code == Some(1) && said.contains("does the collector run"), "{said}");
    drop(server);

    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start_with(directory.path(), &[], &[("FIRSTFALL_TOKEN", "s3cret-of-the-test")]);
    let (endpoint, web) = (format!("http://{}", server.otlp), format!("http://{}", server.web));
    let (code, said) = doctor(&["--endpoint", &endpoint, "--web", &web]);
    assert!(code == Some(1) && said.contains("OTEL_EXPORTER_OTLP_HEADERS"), "{said}");
    let (code, said) = doctor(&["--endpoint", &endpoint, "--web", &web, "--token", "s3cret-of-the-test"]);
    assert!(code == Some(0) && !said.contains("s3cret"), "{said}");
}
