//! The server, put together: opens the store, binds the ports, serves until it is told to stop, and leaves everything at rest.

use crate::alert::Outbox;
use crate::alert::deliver::{self, Alerts};
use crate::config::Config;
use crate::detect::watch::{Inlet, Watch};
use crate::ingest::Ingest;
use crate::receive::{self, InFlight, Receivers, Token, serve::serve};
use crate::self_metrics::SelfMetrics;
use axum::Router;
use firstfall_dashboard::health::LiveObjectives;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Why the server cannot start. `usage` tells a mistake of the operator from a failure.
#[derive(Debug)]
pub struct CannotStart {
    pub message: String,
    pub usage: bool,
}

/// The addresses that were bound.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    pub otlp_grpc: SocketAddr,
    pub otlp_http: SocketAddr,
    pub web: SocketAddr,
}

/// A running server.
pub struct Server {
    pub bound: Bound,
    stop: watch::Sender<bool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    receivers: Arc<Receivers>,
    watch: Arc<Watch>,
    objectives: LiveObjectives,
}

async fn bind(name: &str, address: &str, config: &Config) -> Result<(TcpListener, SocketAddr), CannotStart> {
    let failed = |message: String| CannotStart { message, usage: true };
    let mut resolved = tokio::net::lookup_host(address).await.map_err(|error| {
        failed(format!("start {name}: {address:?} is not an address ({error}); write HOST:PORT, such as 127.0.0.1:4318"))
    })?;
    let address = resolved.next().ok_or_else(|| failed(format!("start {name}: {address:?} names no address")))?;
    if !address.ip().is_loopback() && config.token.is_none() && !config.insecure_no_auth {
        return Err(failed(format!(
            "start {name}: {address} can be reached from outside, and there is no token; set FIRSTFALL_TOKEN (or server.token_file), \
             or give --insecure-no-auth if something in front of it authenticates"
        )));
    }
    let listener = TcpListener::bind(address).await.map_err(|error| CannotStart {
        message: format!("start {name}: bind {address}: {error}; stop what uses it, or give another address (port 0 picks a free one)"),
        usage: false,
    })?;
    let bound = listener.local_addr().map_err(|error| failed(format!("start {name}: {error}")))?;
    Ok((listener, bound))
}

impl Server {
    pub async fn start(config: &Config) -> Result<Server, CannotStart> {
        let (grpc_listener, otlp_grpc) = bind("otlp-grpc", &config.otlp_grpc, config).await?;
        let (http_listener, otlp_http) = bind("otlp-http", &config.otlp_http, config).await?;
        let (web_listener, web) = bind("web", &config.web, config).await?;
        let inlet = Inlet::default();
        let tap = if config.detection { inlet.tap() } else { firstfall_store::Tap::default() };
        let options = firstfall_store::Options { tap, ..config.store.clone() };
        let store = firstfall_store::Store::open(&config.data_dir, options)
            .map_err(|error| CannotStart { message: format!("open the store: {error}"), usage: false })?;
        let receivers = Arc::new(Receivers {
            ingest: Ingest::new(store, config.limits.clone()),
            receiving: config.receiving,
            in_flight: InFlight::new(config.in_flight_bytes_max),
            token: config.token.as_deref().map(Token::new),
            cors_origins: config.cors_origins.clone(),
        });
        let external_url = if config.external_url.is_empty() { format!("http://{web}") } else { config.external_url.clone() };
        let outbox = Arc::new(Outbox::new(&config.receivers, external_url));
        let watch = if config.detection {
            let started = inlet.watch(receivers.ingest.reader(), outbox.clone());
            started.map_err(|error| CannotStart { message: format!("start detection: {error}"), usage: false })?
        } else {
            inlet.idle(receivers.ingest.reader())
        };
        let watch = Arc::new(watch);
        let metrics = Arc::new(SelfMetrics::new(receivers.clone(), watch.clone()));
        let objectives = LiveObjectives::new(config.objectives.clone());
        let (stop, stopped) = watch::channel(false);
        let alerts = Arc::new(Alerts { outbox: outbox.clone(), reader: receivers.ingest.reader() });
        let web_router = receive::http_routes(receivers.clone())
            .merge(receive::behind_token(
                receivers.clone(),
                firstfall_dashboard::router(receivers.ingest.reader(), metrics.clone(), watch.clone(), alerts, objectives.clone()),
            ))
            .merge(metrics.routes());
        let routers: [(TcpListener, Router); 3] = [
            (grpc_listener, receive::grpc_routes(receivers.clone())),
            (http_listener, receive::http_routes(receivers.clone())),
            (web_listener, web_router),
        ];
        let mut tasks = deliver::start(&outbox, &receivers.ingest.reader(), &stopped);
        tasks.extend(routers.into_iter().map(|(listener, router)| tokio::spawn(serve(listener, router, stopped.clone()))));
        Ok(Server { bound: Bound { otlp_grpc, otlp_http, web }, stop, tasks, receivers, watch, objectives })
    }

    /// Prints what is bound; scripts and tests wait for `ready`.
    pub fn announce(&self) {
        println!("listening otlp-grpc={}", self.bound.otlp_grpc);
        println!("listening otlp-http={}", self.bound.otlp_http);
        println!("listening web={}", self.bound.web);
        println!("ready");
    }

    /// Takes over those settings that can change while it runs.
    pub fn change(&self, config: &Config) {
        self.receivers.ingest.change(config.limits.clone(), config.store.retention);
        self.objectives.replace(config.objectives.clone());
    }

    /// Accepts nothing new, answers what is in flight, makes it durable and seals it.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        for task in self.tasks {
            let _ = task.await;
        }
        let watch = self.watch.clone();
        let _ = tokio::task::spawn_blocking(move || watch.stop()).await;
        // Connections that outlived the drain may still hold it; the journal then keeps what is not sealed.
        match Arc::try_unwrap(self.receivers) {
            Ok(receivers) => {
                let _ = tokio::task::spawn_blocking(move || receivers.ingest.close()).await;
            }
            Err(shared) => shared.ingest.finish(),
        }
    }
}
