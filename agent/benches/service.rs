//! What telemetry adds to a real service: `cargo bench -p firstfall-agent --bench service`. The same axum service, without the agent, with it the usual way, and lean: each request
//! is a server span, a client span (a call over HTTP that is made in every variant), a log record and four metrics. The service is a process of its own; its
//! processor time is the kernel's account. The generator, the called service and the collector are this process, and not counted.
//!
//! All variants are asked at one rate, half of what the usual one can take: at full load a slower service lets its peers fall asleep, and waking them is
//! then charged to it. Where there are two processors the service has one to itself, with the agent's threads, as in a container, and the rest the other one:
//! how the system moves the load's threads about is not the agent's doing, and was most of what one run differed from the next.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use firstfall_agent::{Agent, Client, ServerLayer};
use opentelemetry::metrics::Counter;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const REQUESTS: u32 = 20_000;
const WARM: u32 = 4_000;
const CONNECTIONS: u32 = 4;
const ROUNDS: usize = 9;

#[derive(Clone)]
struct Shop {
    plain: reqwest::Client,
    client: Client,
    counted: Counter<u64>,
    peer: String,
    telemetry: bool,
}

async fn sell(State(shop): State<Shop>) -> String {
    let answer = match shop.telemetry {
        true => shop.client.get(&shop.peer).send().await,
        false => shop.plain.get(&shop.peer).send().await,
    };
    let said = match answer {
        Ok(answer) => answer.text().await.unwrap_or_default(),
        Err(error) => error.to_string(),
    };
    shop.counted.add(1, &[]);
    tracing::info!(price = 12.5, currency = "EUR", "sold {said}");
    said
}

/// Keeps this thread, and those that it starts, on a processor, counted from the last one.
fn stay_on(processor: usize) {
    #[cfg(target_os = "linux")]
    if let Some(at) = std::thread::available_parallelism().ok().and_then(|all| all.get().checked_sub(processor + 1)) {
        let mut own = rustix::thread::CpuSet::new();
        own.set(at);
        let _ = rustix::thread::sched_setaffinity(None, &own);
    }
}

/// Runs until its input ends, and says its port.
fn serve(variant: &str, peer: String, collector: &str) {
    let agent = Agent::new("bench").endpoint(collector);
    let telemetry = match variant {
        "usual" => Some(agent.init()),
        "lean" => Some(agent.lean().init()),
        _ => None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let plain = reqwest::Client::builder().no_proxy().build().expect("a client");
        let counted = opentelemetry::global::meter("bench").u64_counter("sold").build();
        let shop = Shop { client: Client::new(plain.clone()), plain, counted, peer, telemetry: telemetry.is_some() };
        let mut app = Router::new().route("/sell/{what}", get(sell)).with_state(shop);
        if telemetry.is_some() {
            app = app.layer(ServerLayer::new());
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        println!("{}", listener.local_addr().expect("bound"));
        tokio::select! {
            _ = axum::serve(listener, app).into_future() => {}
            () = async { drop(tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await) } => {}
        }
    });
}

/// The service that is called.
fn peer() -> String {
    let (say, hear) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            say.send(format!("http://{}", listener.local_addr().expect("bound"))).expect("somebody waits");
            axum::serve(listener, Router::new().route("/stock", get(|| async { "a book" }))).await
        })
    });
    hear.recv().expect("it starts")
}

/// Takes requests and throws them away, behind everybody else on its processor: in life it has one of its own, and a service's request does not wait for what it does with
/// half a megabyte of spans.
fn collector() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || take_requests(stream));
        }
    });
    format!("http://{address}")
}

fn take_requests(mut stream: TcpStream) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::nice(19);
    let mut reader = BufReader::with_capacity(64 << 10, stream.try_clone()?);
    loop {
        let length = read_head(&mut reader)?;
        std::io::copy(&mut (&mut reader).take(length), &mut std::io::sink())?;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
    }
}

/// The head of a request or an answer; how long its body is.
fn read_head(reader: &mut impl BufRead) -> std::io::Result<u64> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if line.trim().is_empty() {
            return Ok(length);
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
}

/// Processor seconds of the service's threads, and of those that export.
fn cpu(child: &Child) -> [f64; 2] {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).into_iter().flatten().flatten();
    let of = |task: std::fs::DirEntry| {
        let used = std::fs::read_to_string(task.path().join("schedstat")).ok()?.split_whitespace().next()?.parse::<f64>().ok()?;
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        Some((usize::from(name.starts_with("firstfall-")), used / 1e9))
    };
    let mut sums = [0.0; 2];
    tasks.filter_map(of).for_each(|(at, used)| sums[at] += used);
    sums
}

fn resident_mib(child: &Child) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// Asks so often over kept connections, at a rate a second (without one as fast as it goes). Returns each request's time: from when it was due, if it was late
/// because the answer before it was.
fn ask(address: &str, requests: u32, rate: Option<f64>) -> Vec<Duration> {
    let pause = rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(f64::from(CONNECTIONS) / rate));
    let one = |at: u32| -> std::io::Result<Vec<Duration>> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut times = Vec::new();
        let mut due = Instant::now() + pause * at / CONNECTIONS;
        for _ in 0..requests / CONNECTIONS {
            let now = Instant::now();
            if now < due {
                std::thread::sleep(due - now);
            }
            let started = if now < due || pause.is_zero() { Instant::now() } else { due };
            due += pause;
            stream.write_all(b"GET /sell/books HTTP/1.1\r\nhost: shop\r\n\r\n")?;
            let length = read_head(&mut reader)?;
            reader.read_exact(&mut vec![0; length as usize])?;
            times.push(started.elapsed());
        }
        Ok(times)
    };
    std::thread::scope(|threads| {
        let all: Vec<_> = (0..CONNECTIONS).map(|at| threads.spawn(move || one(at))).collect();
        all.into_iter().flat_map(|thread| thread.join().expect("it does not panic").expect("the service answers")).collect()
    })
}

struct Service {
    child: Child,
    address: String,
}

impl Service {
    fn start(variant: &str, peer: &str, collector: &str) -> Service {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["serve", variant, peer, collector]).env("RUST_LOG", "off").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let mut address = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut address).expect("it says its port");
        Service { child, address: address.trim().to_owned() }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn main() {
    // Built beside the collector, reqwest has TLS without a provider of its own.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, variant, peer, collector] = &arguments[..]
        && mode == "serve"
    {
        let (variant, stock, collector) = (variant.clone(), format!("{peer}/stock"), collector.clone());
        stay_on(0);
        // A thread with a name of its own, so that a profiler can tell it from the generator's.
        let name = format!("serve-{variant}");
        let thread = std::thread::Builder::new().name(name).spawn(move || serve(&variant, stock, &collector)).expect("a thread");
        return thread.join().expect("it does not panic");
    }
    stay_on(1);
    let (peer, collector) = (peer(), collector());
    let half = {
        let usual = Service::start("usual", &peer, &collector);
        ask(&usual.address, WARM, None);
        let started = Instant::now();
        ask(&usual.address, REQUESTS, None);
        f64::from(REQUESTS) / started.elapsed().as_secs_f64() / 2.0
    };
    println!("{half:.0} requests a second\n");
    const VARIANTS: [&str; 3] = ["plain", "usual", "lean"];
    let mut measured = [const { Vec::new() }; VARIANTS.len()];
    for _ in 0..ROUNDS {
        for (variant, measured) in VARIANTS.iter().zip(&mut measured) {
            let service = Service::start(variant, &peer, &collector);
            ask(&service.address, WARM, Some(half));
            let before = cpu(&service.child);
            let mut times = ask(&service.address, REQUESTS, Some(half));
            // What is exported after the last request belongs to them.
            std::thread::sleep(Duration::from_millis(1500));
            let after = cpu(&service.child);
            let [own, export] = [0, 1].map(|at| (after[at] - before[at]) / f64::from(REQUESTS) * 1e6);
            times.sort_unstable();
            let [p50, p99] = [50, 99].map(|percent| times[times.len() * percent / 100].as_secs_f64() * 1e6);
            measured.push([own + export, export, p50, p99, resident_mib(&service.child)]);
        }
    }
    println!("| agent    | CPU µs a request |   more | of it export |   p50, µs |   more |   p99, µs |   more | memory MiB |   more |");
    println!("|----------|-----------------:|-------:|-------------:|----------:|-------:|----------:|-------:|-----------:|-------:|");
    // The middle of all rounds, of each column by itself.
    let middle = |rounds: &[[f64; 5]], column: usize| {
        let mut values: Vec<f64> = rounds.iter().map(|round| round[column]).collect();
        values.sort_unstable_by(f64::total_cmp);
        values[values.len() / 2]
    };
    for (variant, rounds) in VARIANTS.iter().zip(&measured) {
        let [cpu, export, p50, p99, memory] = [0, 1, 2, 3, 4].map(|column| (middle(rounds, column), middle(&measured[0], column)));
        print!("| {variant:<8} | {:>16.1} | {:>6.1} | {:>12.1} | ", cpu.0, cpu.0 - cpu.1, export.0);
        print!("{:>9.0} | {:>6.0} | {:>9.0} | {:>6.0} | ", p50.0, p50.0 - p50.1, p99.0, p99.0 - p99.1);
        println!("{:>10.1} | {:>6.1} |", memory.0, memory.0 - memory.1);
    }
}
