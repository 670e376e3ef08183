//! The real binary, in a directory of its own, on free ports. Ended by its id when dropped.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value as Json;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Builds something of the workspace in the profile under test, when it is not there yet, and says where that profile's files are.
pub(crate) fn build(what: &[&str]) -> PathBuf {
    let own = std::env::current_exe().expect("a test knows its own path");
    let profile = own
        .ancestors()
        .find(|p| p.file_name().is_some_and(|n| n == "debug" || n == "release"))
        .expect("tests run from the target directory");
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--quiet"]).args(what);
    if profile.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().expect("cargo runs").success(), "{what:?} must build");
    profile.to_owned()
}

/// The `firstfall` binary of the profile under test.
pub fn binary() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY
        .get_or_init(|| match std::env::var_os("HARNESS_BINARY") {
            Some(path) => path.into(),
            None => build(&["-p", "firstfall-collector", "--bin", "firstfall"]).join("firstfall"),
        })
        .clone()
}

/// An example of the agent, which is a service.
pub fn example(name: &str) -> PathBuf {
    build(&["-p", "firstfall-agent", "--example", name]).join("examples").join(name)
}

/// Sends a signal to a process that a test has started.
pub fn signal(process: u32, signal: Signal) {
    let process = Pid::from_raw(process as i32).expect("a process has a number");
    // It may have ended by itself; whoever waits for it sees how.
    let _ = kill_process(process, signal);
}

/// Waits until `ready` gives something, up to a minute: long enough for a loaded machine, never a verdict on speed.
pub fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < until, "waited a minute for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub struct Server {
    child: Child,
    pub grpc: String,
    pub otlp: String,
    pub web: String,
    pub directory: PathBuf,
    token: Option<String>,
}

impl Server {
    pub fn start(directory: &Path) -> Server {
        Server::start_with(directory, &[], &[])
    }

    pub fn start_with(directory: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Server {
        // Free ports, unless a test has one in mind.
        let usual = [["--otlp-grpc", "127.0.0.1:0"], ["--otlp-http", "127.0.0.1:0"], ["--web", "127.0.0.1:0"], ["--log-level", "warn"]];
        let mut child = Command::new(binary())
            .arg("serve")
            .args(usual.iter().filter(|[name, _]| !arguments.contains(name)).flatten())
            .arg("--data-dir")
            .arg(directory)
            .args(arguments)
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the binary starts");
        let mut addresses = Vec::new();
        for line in BufReader::new(child.stdout.as_mut().expect("it is piped")).lines() {
            let line = line.expect("the binary prints text");
            if line == "ready" {
                break;
            }
            addresses.push(line.rsplit_once('=').map(|(_, a)| a.to_owned()).expect("an address line"));
        }
        let [grpc, otlp, web] = <[String; 3]>::try_from(addresses).expect("three addresses, then ready");
        let token = environment.iter().find(|(k, _)| *k == "FIRSTFALL_TOKEN").map(|(_, v)| (*v).to_owned());
        Server { child, grpc, otlp, web, directory: directory.to_owned(), token }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn agent() -> ureq::Agent {
        ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_secs(120))).build().into()
    }

    /// Sends a body to OTLP/HTTP; status, headers as text, and the answer's bytes. `Err` when the connection broke.
    pub fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<(u16, String, Vec<u8>), ureq::Error> {
        let base = if path.starts_with("/api") { &self.web } else { &self.otlp };
        let mut request = Server::agent().post(format!("http://{base}{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token
            && !headers.iter().any(|(name, _)| *name == "authorization")
        {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let mut response = request.send(body)?;
        let headers = format!("{:?}", response.headers());
        let mut answer = Vec::new();
        response.body_mut().as_reader().read_to_end(&mut answer)?;
        Ok((response.status().as_u16(), headers, answer))
    }

    pub fn send(&self, signal: &str, body: &[u8]) -> u16 {
        self.post(&format!("/v1/{signal}"), &[("content-type", "application/x-protobuf")], body).expect("the server answers").0
    }

    pub fn send_json(&self, signal: &str, body: &Json) -> (u16, Json) {
        let (status, _, answer) = self
            .post(&format!("/v1/{signal}"), &[("content-type", "application/json")], body.to_string().as_bytes())
            .expect("the server answers");
        (status, serde_json::from_slice(&answer).unwrap_or(Json::Null))
    }

    pub fn page(&self, path: &str) -> (u16, String) {
        let mut request = Server::agent().get(format!("http://{}{path}", self.web));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let mut response = request.call().expect("the server answers");
        let status = response.status().as_u16();
        let text = response.body_mut().with_config().limit(1 << 30).read_to_string().expect("a page is text");
        (status, text)
    }

    pub fn api(&self, path: &str) -> Json {
        let (status, text) = self.page(path);
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).expect("the API answers JSON")
    }

    pub fn sql(&self, query: &str) -> Vec<Vec<Json>> {
        let body = serde_json::json!({"query": query}).to_string();
        let (status, _, answer) = self.post("/api/v1/sql", &[], body.as_bytes()).expect("the server answers");
        let answer: Json = serde_json::from_slice(&answer).expect("JSON");
        assert_eq!(status, 200, "{query}: {answer}");
        serde_json::from_value(answer["rows"].clone()).expect("rows of values")
    }

    /// A line of the kernel's account of its memory, such as `VmRSS` or `VmHWM` (the peak).
    pub fn memory_kib(&self, what: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("it runs, on Linux");
        let line = status.lines().find(|line| line.starts_with(what)).expect("the kernel tells");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
    }

    /// As `kill -9`.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// As a service manager stops it; the exit code.
    pub fn terminate(mut self) -> Option<i32> {
        signal(self.child.id(), Signal::TERM);
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
