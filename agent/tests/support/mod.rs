//! A collector that behaves as it is told: well, slowly, not at all, or badly.

#![allow(dead_code, reason = "each test uses a part of it")]

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mood {
    Well,
    /// Takes the request and never answers.
    Hangs,
    /// A byte of the answer each tenth of a second.
    Drips,
    /// Ends the connection in the middle of the request.
    Resets,
    Status(u16, Option<u32>),
    /// Takes all but so many.
    Rejects(u8),
}

#[derive(Default)]
struct State {
    mood: Option<Mood>,
    spans: Vec<Span>,
    logs: Vec<(String, Vec<u8>)>,
    requests: usize,
}

#[derive(Clone)]
pub struct Collector {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Collector {
    pub fn start(mood: Mood) -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let collector = Collector { address: listener.local_addr().expect("bound"), state: Arc::default() };
        collector.set(mood);
        let served = collector.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = served.clone();
                std::thread::spawn(move || served.serve(stream));
            }
        });
        collector
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set(&self, mood: Mood) {
        self.state.lock().expect("whole").mood = Some(mood);
    }

    pub fn spans(&self) -> Vec<String> {
        self.state.lock().expect("whole").spans.iter().map(|span| span.name.clone()).collect()
    }

    pub fn whole_spans(&self) -> Vec<Span> {
        self.state.lock().expect("whole").spans.clone()
    }

    /// Bodies of log records with their span ids.
    pub fn logs(&self) -> Vec<(String, Vec<u8>)> {
        self.state.lock().expect("whole").logs.clone()
    }

    pub fn requests(&self) -> usize {
        self.state.lock().expect("whole").requests
    }

    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut writer = stream.try_clone().ok()?;
        let mut reader = BufReader::new(stream);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
            let path = line.split_whitespace().nth(1)?.to_owned();
            let mut length = 0;
            loop {
                let mut header = String::new();
                reader.read_line(&mut header).ok().filter(|read| *read > 0)?;
                let header = header.trim().to_ascii_lowercase();
                if header.is_empty() {
                    break;
                }
                if let Some(value) = header.strip_prefix("content-length:") {
                    length = value.trim().parse().ok()?;
                }
            }
            let mood = {
                let mut state = self.state.lock().expect("whole");
                state.requests += 1;
                state.mood.expect("it is set at the start")
            };
            if mood == Mood::Resets {
                return None;
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).ok()?;
            match mood {
                Mood::Hangs => {
                    std::thread::sleep(Duration::from_secs(60));
                    return None;
                }
                Mood::Drips => {
                    for byte in b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n".iter().chain(std::iter::repeat_n(&b' ', 1000)) {
                        writer.write_all(&[*byte]).ok()?;
                        std::thread::sleep(Duration::from_millis(100));
                    }
                    return None;
                }
                Mood::Status(status, after) => {
                    let after = after.map(|s| format!("retry-after: {s}\r\n")).unwrap_or_default();
                    writer.write_all(format!("HTTP/1.1 {status} X\r\n{after}content-length: 0\r\n\r\n").as_bytes()).ok()?;
                }
                Mood::Rejects(items) => {
                    self.keep(&path, &body);
                    writer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n").ok()?;
                    // partial_success { rejected_…: items }
                    writer.write_all(&[0x0a, 2, 0x08, items]).ok()?;
                }
                Mood::Well | Mood::Resets => {
                    self.keep(&path, &body);
                    writer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()?;
                }
            }
        }
    }

    fn keep(&self, path: &str, body: &[u8]) {
        let mut state = self.state.lock().expect("whole");
        match path {
            "/v1/traces" => {
                let request = ExportTraceServiceRequest::decode(body).expect("valid OTLP");
                let spans = request.resource_spans.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans);
                state.spans.extend(spans);
            }
            "/v1/logs" => {
                let request = ExportLogsServiceRequest::decode(body).expect("valid OTLP");
                let records = request.resource_logs.into_iter().flat_map(|r| r.scope_logs).flat_map(|s| s.log_records);
                state.logs.extend(records.map(|record| (format!("{:?}", record.body.and_then(|b| b.value)), record.span_id)));
            }
            _ => {}
        }
    }
}

/// Waits until something is so, and fails after a minute.
pub fn wait_for(what: &str, mut so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < Duration::from_secs(60), "waited a minute for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A folder that is this test's alone.
pub fn folder(name: &str) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("firstfall-agent-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    path
}
