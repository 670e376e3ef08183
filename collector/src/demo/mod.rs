//! `firstfall demo`: a collector and a small shop of real services, each a process of its own, with load and faults that come and go.
//!
//! The shop: gateway → catalog, cart, orders; orders → inventory, payments, and over a queue worker. Every service is this binary again
//! (`shop` has what they do), linked with the agent, so a service that is killed is really dead and its callers really fail.

mod shop;

pub use shop::run_service;

use crate::app::{CannotStart, Server};
use crate::config::Config;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

const VERSION: &str = "2.4.0";
const BAD_VERSION: &str = "2.4.1";
/// Those that are called come first, since callers are told their addresses.
const SERVICES: [&str; 7] = ["inventory", "payments", "worker", "orders", "cart", "catalog", "gateway"];

/// What is slow many times over is known after two minutes (and half a minute to be sure that they are whole); before that only failures are found.
const ACQUAINTANCE: Duration = Duration::from_secs(150);

struct Running {
    name: &'static str,
    port: u16,
    child: Child,
}

struct Shop {
    otlp: String,
    services: Vec<Running>,
    http: reqwest::Client,
}

fn failed(message: String) -> CannotStart {
    CannotStart { message, usage: false }
}

impl Shop {
    async fn open(otlp: String) -> Result<Shop, CannotStart> {
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(10))
            .no_proxy()
            .build()
            .map_err(|error| failed(format!("build the HTTP client: {error}")))?;
        let mut shop = Shop { otlp, services: Vec::new(), http };
        for name in SERVICES {
            let running = shop.start(name, VERSION, 0).await?;
            shop.services.push(running);
        }
        Ok(shop)
    }

    async fn start(&self, name: &'static str, version: &str, port: u16) -> Result<Running, CannotStart> {
        let binary = std::env::current_exe().map_err(|error| failed(format!("find this program: {error}")))?;
        let peers: Vec<String> = self.services.iter().map(|s| format!("{}={}", s.name, s.port)).collect();
        let mut child = Command::new(binary)
            .args(["demo-service", name, "--version", version, "--otlp", &self.otlp])
            .args(["--port", &port.to_string(), "--peers", &peers.join(",")])
            .env("RUST_LOG", "off")
            // Ends with its input: also when this process is killed and cannot end it.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(format!("start the demo's {name}: {error}")))?;
        let output = child.stdout.take().expect("it is piped");
        let line = tokio::time::timeout(Duration::from_secs(20), BufReader::new(output).lines().next_line()).await;
        let port = match line {
            Ok(Ok(Some(line))) => {
                line.trim().parse().map_err(|_| failed(format!("the demo's {name} said {line:?} instead of its port")))?
            }
            _ => return Err(failed(format!("the demo's {name} did not start"))),
        };
        Ok(Running { name, port, child })
    }

    fn place(&self, name: &str) -> usize {
        self.services.iter().position(|s| s.name == name).expect("it is one of the shop's services")
    }

    async fn fault(&self, name: &str, kind: &str) {
        let port = self.services[self.place(name)].port;
        if let Err(error) = self.http.post(format!("http://127.0.0.1:{port}/_fault/{kind}")).send().await {
            println!("  (could not reach {name}: {error})");
        }
    }

    async fn kill(&mut self, name: &str) {
        let at = self.place(name);
        let _ = self.services[at].child.kill().await;
    }

    /// Starts a service again at its old port, with a version.
    async fn restart(&mut self, name: &'static str, version: &str) -> Result<(), CannotStart> {
        let at = self.place(name);
        let _ = self.services[at].child.kill().await;
        let port = self.services[at].port;
        self.services[at] = self.start(name, version, port).await?;
        Ok(())
    }
}

/// Runs until Ctrl-C or SIGTERM.
pub async fn run(config: Config, rate: u32, pause: u64, stop: impl Future<Output = ()>) -> Result<(), CannotStart> {
    let server = Server::start(&config).await?;
    server.announce();
    let web = server.bound.web;
    println!("\nStarting the shop: seven services, each its own process …");
    let mut shop = Shop::open(format!("http://{}", server.bound.otlp_http)).await?;
    let gateway = shop.services[shop.place("gateway")].port;
    println!("  the shop        http://127.0.0.1:{gateway}/products/7");
    println!("  the dashboard   http://{web}/");
    println!("  failed traces   http://{web}/traces?status=error");
    println!("  logs            http://{web}/logs?min_severity=warn");
    println!("\n{rate} requests/s; a fault every {pause} s, each lasts {pause} s. Ctrl-C ends all of it.\n");
    let load = tokio::spawn(shop_load(shop.http.clone(), gateway, rate));
    let cycle = cycle_of_faults(&mut shop, Duration::from_secs(pause));
    let result = tokio::select! {
        result = cycle => result,
        () = stop => Ok(()),
    };
    println!("\nEnding the shop …");
    load.abort();
    drop(shop);
    server.stop().await;
    println!("Ended.");
    result
}

async fn shop_load(http: reqwest::Client, gateway: u16, rate: u32) {
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / f64::from(rate.max(1))));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut number = 0u64;
    loop {
        ticks.tick().await;
        number += 1;
        let http = http.clone();
        tokio::spawn(async move {
            let base = format!("http://127.0.0.1:{gateway}");
            // A visitor looks at three products and then buys.
            let request = match number % 4 {
                0 => http.post(format!("{base}/buy/{}", number % 97)),
                1 => http.get(format!("{base}/cart/{}", number % 97)),
                _ => http.get(format!("{base}/products/{}", number % 500)),
            };
            // The shop's failures are what the demo is about; they are seen on the dashboard.
            let _ = request.send().await;
        });
    }
}

async fn cycle_of_faults(shop: &mut Shop, pause: Duration) -> Result<(), CannotStart> {
    let start = Instant::now();
    let say = |text: &str| println!("[{:>4} s] {text}", start.elapsed().as_secs());
    // The first fault comes early, so that a newcomer sees one within the first minute.
    sleep(pause.min(Duration::from_secs(20))).await;
    loop {
        say("FAULT  inventory answers 500 to every second reservation");
        shop.fault("inventory", "errors").await;
        sleep(pause).await;
        shop.fault("inventory", "none").await;
        say("healed inventory");
        sleep(pause).await;

        say("FAULT  payments is killed");
        shop.kill("payments").await;
        sleep(pause).await;
        shop.restart("payments", VERSION).await?;
        say("healed payments runs again");
        sleep(pause).await;

        say(&format!("FAULT  payments {BAD_VERSION} is deployed, and declines a third of all charges by mistake"));
        shop.restart("payments", BAD_VERSION).await?;
        sleep(pause).await;
        shop.restart("payments", VERSION).await?;
        say(&format!("healed payments is back at {VERSION}"));
        sleep(pause).await;

        sleep(ACQUAINTANCE.saturating_sub(start.elapsed())).await;
        say("FAULT  catalog's database is slow: 800 ms a query");
        shop.fault("catalog", "slow").await;
        sleep(pause).await;
        shop.fault("catalog", "none").await;
        say("healed catalog");
        sleep(pause).await;
    }
}
