//! What the services of the demo's shop do: axum routes, calls to each other over HTTP, a database and a cache in memory with client
//! spans, and a queue.

use crate::app::CannotStart;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use firstfall_agent::{Agent, Client, Database, ServerLayer};
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::Instrument;

const NONE: u8 = 0;
const ERRORS: u8 = 1;
const SLOW: u8 = 2;

struct Service {
    name: String,
    /// The version that declines by mistake.
    bad: bool,
    peers: HashMap<String, u16>,
    client: Client,
    database: Database,
    cache: Database,
    fault: AtomicU8,
    requests: AtomicU64,
    queue: Option<mpsc::Sender<Job>>,
}

/// A message on the queue, with the trace that sent it.
struct Job {
    order: u64,
    parent: tracing::Span,
}

type Shared = Arc<Service>;
type Answer = Result<String, (StatusCode, String)>;

fn failed(status: StatusCode, message: impl Into<String>) -> (StatusCode, String) {
    (status, message.into())
}

impl Service {
    /// A number that scatters as requests do, without a generator to seed.
    fn draw(&self, below: u64) -> u64 {
        let n = self.requests.fetch_add(1, Ordering::Relaxed).wrapping_add(0x9e37_79b9).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((n ^ (n >> 31)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 33) % below
    }

    async fn call(&self, method: &str, peer: &str, path: &str) -> Answer {
        let port = self.peers.get(peer).ok_or_else(|| failed(StatusCode::INTERNAL_SERVER_ERROR, format!("{peer} has no address")))?;
        let url = format!("http://127.0.0.1:{port}{path}");
        let request = if method == "GET" { self.client.get(&url) } else { self.client.post(&url) };
        match request.timeout(Duration::from_secs(2)).send().await {
            Ok(response) if response.status().is_success() => Ok(response.text().await.unwrap_or_default()),
            Ok(response) => {
                let status = response.status();
                tracing::error!(peer, status = i64::from(status.as_u16()), "{peer} answered {status} to {method} {path}");
                Err(failed(StatusCode::BAD_GATEWAY, format!("{peer} answered {status}")))
            }
            Err(error) => {
                tracing::error!(peer, "cannot reach {peer}: {error}");
                let status = if error.is_timeout() { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::SERVICE_UNAVAILABLE };
                Err(failed(status, format!("cannot reach {peer}")))
            }
        }
    }

    async fn database(&self, operation: &str, table: &str) {
        let slow = self.fault.load(Ordering::Relaxed) == SLOW;
        let time = if slow { 800_000 } else { 700 + self.draw(2500) };
        let query = self.database.query(operation, table);
        let answer = async {
            tokio::time::sleep(Duration::from_micros(time)).await;
            if slow {
                tracing::warn!(table, "slow query: {operation} on {table} took {} ms", time / 1000);
            }
            Ok::<(), Infallible>(())
        };
        let Ok(()) = query.text(&format!("{operation} … {table} WHERE id = ?")).run(answer).await;
    }
}

async fn product(State(service): State<Shared>, Path(id): Path<u64>) -> Answer {
    match service.name.as_str() {
        "gateway" => service.call("GET", "catalog", &format!("/products/{id}")).await,
        _ => {
            service.database("SELECT", "products").await;
            Ok(format!("product {id}"))
        }
    }
}

async fn cart(State(service): State<Shared>, Path(user): Path<u64>) -> Answer {
    if service.name == "gateway" {
        return service.call("GET", "cart", &format!("/cart/{user}")).await;
    }
    let time = Duration::from_micros(150 + service.draw(300));
    let answer = async {
        tokio::time::sleep(time).await;
        Ok::<(), Infallible>(())
    };
    let Ok(()) = service.cache.query("HGETALL", "").run(answer).await;
    Ok(format!("cart of {user}"))
}

async fn buy(State(service): State<Shared>, Path(user): Path<u64>) -> Answer {
    service.call("GET", "cart", &format!("/cart/{user}")).await?;
    let order = service.call("POST", "orders", &format!("/orders/{user}")).await?;
    tracing::info!(user, "user {user} bought: {order}");
    Ok(order)
}

async fn order(State(service): State<Shared>, Path(user): Path<u64>) -> Answer {
    let number = 100_000 + service.draw(900_000);
    service.call("POST", "inventory", &format!("/reserve/{number}")).await?;
    service.call("POST", "payments", &format!("/charge/{number}")).await?;
    service.database("INSERT", "orders").await;
    let publish = tracing::info_span!(
        "publish",
        "otel.kind" = "producer",
        "otel.name" = "send orders",
        "messaging.system" = "demo_queue",
        "messaging.destination.name" = "orders",
        "messaging.operation.type" = "send",
    );
    // The confirmation is a side matter: the order stands when the queue is down.
    if let Err((_, error)) = service.call("POST", "worker", &format!("/queue/{number}")).instrument(publish).await {
        tracing::warn!(order = number, "order {number} of user {user} is kept, its confirmation is not sent: {error}");
    }
    Ok(format!("order {number}"))
}

async fn reserve(State(service): State<Shared>, Path(order): Path<u64>) -> Answer {
    service.database("UPDATE", "stock").await;
    if service.fault.load(Ordering::Relaxed) == ERRORS && service.draw(2) == 0 {
        tracing::error!(order, "stock of order {order} is negative: reservation table is inconsistent");
        return Err(failed(StatusCode::INTERNAL_SERVER_ERROR, "stock is inconsistent"));
    }
    Ok("reserved".to_owned())
}

async fn charge(State(service): State<Shared>, Path(order): Path<u64>) -> Answer {
    tokio::time::sleep(Duration::from_millis(3 + service.draw(9))).await;
    if service.bad && service.draw(3) == 0 {
        tracing::error!(order, "charge of order {order} declined: currency minor units missing in provider answer");
        return Err(failed(StatusCode::INTERNAL_SERVER_ERROR, "provider answer has no minor units"));
    }
    service.database("INSERT", "charges").await;
    tracing::info!(order, "charged order {order}");
    Ok("charged".to_owned())
}

async fn enqueue(State(service): State<Shared>, Path(order): Path<u64>) -> Answer {
    let queue = service.queue.as_ref().ok_or_else(|| failed(StatusCode::NOT_FOUND, "this service has no queue"))?;
    queue
        .try_send(Job { order, parent: tracing::Span::current() })
        .map_err(|_| failed(StatusCode::SERVICE_UNAVAILABLE, "the queue is full"))?;
    Ok("queued".to_owned())
}

async fn work(service: Shared, mut jobs: mpsc::Receiver<Job>) {
    while let Some(job) = jobs.recv().await {
        let span = tracing::info_span!(
            parent: &job.parent,
            "process",
            "otel.kind" = "consumer",
            "otel.name" = "process orders",
            "messaging.system" = "demo_queue",
            "messaging.destination.name" = "orders",
            "messaging.operation.type" = "process",
        );
        drop(job.parent);
        async {
            service.database("INSERT", "confirmations").await;
            tracing::info!(order = job.order, "confirmation of order {} sent", job.order);
        }
        .instrument(span)
        .await;
    }
}

async fn set_fault(State(service): State<Shared>, Path(kind): Path<String>) -> String {
    let fault = match kind.as_str() {
        "errors" => ERRORS,
        "slow" => SLOW,
        _ => NONE,
    };
    service.fault.store(fault, Ordering::Relaxed);
    kind
}

/// Runs one service until its input ends or it is told to stop. Prints its port.
pub async fn run_service(name: String, version: String, port: u16, peers: &str, otlp: &str) -> Result<(), CannotStart> {
    let cannot = |message: String| CannotStart { message, usage: false };
    let telemetry = Agent::new(&name)
        .version(&version)
        .namespace("shop")
        .environment("demo")
        .endpoint(otlp)
        .span_delay(Duration::from_millis(500))
        .try_init()
        .map_err(|error| cannot(error.to_string()))?;
    let http = reqwest::Client::builder().no_proxy().build().map_err(|error| cannot(format!("build the HTTP client: {error}")))?;
    let (queue, jobs) = mpsc::channel(1000);
    let service = Arc::new(Service {
        bad: version == super::BAD_VERSION,
        peers: peers
            .split(',')
            .filter_map(|pair| pair.split_once('='))
            .filter_map(|(n, p)| Some((n.to_owned(), p.parse().ok()?)))
            .collect(),
        client: Client::new(http),
        database: Database::new("sqlite").namespace(&format!("{name}.db")),
        cache: Database::new("redis").server("carts.cache", 6379),
        fault: AtomicU8::new(NONE),
        requests: AtomicU64::new(0),
        queue: (name == "worker").then_some(queue),
        name,
    });
    tokio::spawn(work(service.clone(), jobs));
    let instrumented = Router::new()
        .route("/products/{id}", get(product))
        .route("/cart/{user}", get(cart))
        .route("/buy/{user}", post(buy))
        .route("/orders/{user}", post(order))
        .route("/reserve/{order}", post(reserve))
        .route("/charge/{order}", post(charge))
        .route("/queue/{order}", post(enqueue))
        .layer(ServerLayer::new());
    let router = instrumented.route("/_fault/{kind}", post(set_fault)).with_state(service);
    let listener =
        tokio::net::TcpListener::bind(("127.0.0.1", port)).await.map_err(|error| cannot(format!("bind 127.0.0.1:{port}: {error}")))?;
    println!("{}", listener.local_addr().map_err(|error| cannot(error.to_string()))?.port());
    tracing::info!("version {version} is ready");
    let input_ended = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    let serve = axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>());
    tokio::select! {
        result = serve => result.map_err(|error| cannot(error.to_string()))?,
        _ = input_ended => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    tokio::task::spawn_blocking(move || telemetry.shutdown(Duration::from_secs(2))).await.ok();
    Ok(())
}
