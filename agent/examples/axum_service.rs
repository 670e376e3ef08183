//! A service with everything the agent gives: `PORT=8080 cargo run -p firstfall-agent --example axum_service`, then
//! `curl localhost:8080/hello/ann` and look at the service `rust-app`.

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use firstfall_agent::{Agent, Client, ServerLayer, shutdown_signal};
use opentelemetry::{Array, Value, global};
use std::collections::HashMap;
use tracing_opentelemetry::OpenTelemetrySpanExt;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Built beside the collector, reqwest has TLS without a provider of its own; a service of yours does not need this line.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // This line, and those with Client, ServerLayer and shutdown_signal, are all that the agent asks for.
    let _telemetry = Agent::new("rust-app").version(env!("CARGO_PKG_VERSION")).environment("examples").init();
    let client = Client::new(reqwest::Client::new());
    let routes = Router::new().route("/hello/{name}", get(hello)).route("/ask", get(ask)).route("/fail", get(fail));
    let app = routes.layer(ServerLayer::new()).with_state(client);

    let port = std::env::var("PORT").unwrap_or_else(|_| "8080".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    axum::serve(listener, app).with_graceful_shutdown(shutdown_signal()).await?;
    Ok(())
}

async fn hello(Path(name): Path<String>) -> String {
    global::meter("rust_app").u64_counter("greetings").with_unit("{greeting}").build().add(1, &[]);
    greet(&name)
}

/// Fields of `tracing` are attributes; lists go through OpenTelemetry's own call.
#[tracing::instrument(
    name = "values",
    fields(v.string = "grüße, 世界", v.int = i64::MIN, v.double = 0.1, v.bool = true)
)]
fn greet(name: &str) -> String {
    let span = tracing::Span::current();
    span.set_attribute("v.array.int", Value::Array(Array::I64(vec![1, -2, i64::MAX])));
    span.set_attribute("v.array.string", Value::Array(Array::String(vec!["a".into(), "".into()])));
    tracing::warn!(x.int = i64::MAX, x.float = 2.5, x.bool = true, x.str = "täxt", "hello {name}");
    format!("hello {name}")
}

/// Asks another service, in the same trace.
async fn ask(State(client): State<Client>, Query(query): Query<HashMap<String, String>>) -> Result<String, StatusCode> {
    let url = query.get("url").ok_or(StatusCode::BAD_REQUEST)?;
    let answer = client.get(url).send().await.map_err(|_| StatusCode::BAD_GATEWAY)?;
    answer.text().await.map_err(|_| StatusCode::BAD_GATEWAY)
}

async fn fail() -> StatusCode {
    tracing::error!("cannot do it");
    StatusCode::INTERNAL_SERVER_ERROR
}
