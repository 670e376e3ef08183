//! A receiver of webhooks for tests: a real HTTP server on loopback that keeps what it was sent, and answers as it is told, also badly.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Call {
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Call {
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).expect("a body is JSON")
    }

    pub fn event(&self) -> String {
        self.json()["cascade"]["event"].as_str().expect("each has an event").to_owned()
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A status, further header lines, and a body.
    Status(u16, &'static str, &'static str),
    /// The request is read and never answered.
    Silence,
    /// A body without an end.
    Endless,
}

pub struct Hook {
    pub url: String,
    calls: Arc<Mutex<Vec<Call>>>,
    stop: Arc<AtomicBool>,
}

/// An address on loopback that was free a moment ago.
pub fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").to_string()
}

impl Hook {
    /// Answers the n-th call (from 0) by what `answer` says.
    pub fn start(answer: impl Fn(usize) -> Answer + Send + Sync + 'static) -> Hook {
        Hook::start_at("127.0.0.1:0", answer)
    }

    pub fn start_at(address: &str, answer: impl Fn(usize) -> Answer + Send + Sync + 'static) -> Hook {
        let listener = TcpListener::bind(address).expect("the port is free");
        let url = format!("http://{}/hook", listener.local_addr().expect("it is bound"));
        let calls: Arc<Mutex<Vec<Call>>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (kept, stopped, answer) = (calls.clone(), stop.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (kept, stopped, answer) = (kept.clone(), stopped.clone(), answer.clone());
                std::thread::spawn(move || serve(&stream, &kept, &stopped, &*answer));
            }
        });
        Hook { url, calls, stop }
    }

    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().expect("no test panics within").clone()
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the listener, which then closes its port.
        let address = self.url.trim_start_matches("http://").trim_end_matches("/hook");
        let _ = TcpStream::connect(address);
    }
}

/// One request a connection; it is closed afterwards.
fn serve(stream: &TcpStream, calls: &Mutex<Vec<Call>>, stop: &AtomicBool, answer: &dyn Fn(usize) -> Answer) {
    let mut reader = BufReader::new(stream);
    let mut headers = Vec::new();
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
        if let Some((name, value)) = line.trim().split_once(':') {
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        line.clear();
    }
    let mut call = Call { headers, body: String::new() };
    let length: u64 = call.header("content-length").parse().unwrap_or(0);
    if length == 0 || (&mut reader).take(length).read_to_string(&mut call.body).is_err() {
        return;
    }
    let number = {
        let mut calls = calls.lock().expect("no test panics within");
        calls.push(call);
        calls.len() - 1
    };
    let mut stream = stream;
    match answer(number) {
        Answer::Status(status, headers, body) => {
            let length = body.len();
            let _ = write!(stream, "HTTP/1.1 {status} Status\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n{body}");
        }
        Answer::Silence => {
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Answer::Endless => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while !stop.load(Ordering::Relaxed) && stream.write_all(&[b'x'; 4096]).is_ok() {}
        }
    }
}
