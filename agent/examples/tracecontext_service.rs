//! The service that suites for W3C Trace Context drive: `cargo run -p firstfall-agent --example tracecontext_service 127.0.0.1:5000`.
//! `POST /test` takes `[{"url": U, "arguments": […]}, …]` and posts each `arguments` as JSON to its `url`, in order, in the trace of the request.

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use firstfall_agent::{Agent, Client, ServerLayer, shutdown_signal};
use serde_json::Value;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:5000".to_owned());
    let _telemetry = Agent::new("tracecontext-service").init();
    // Built beside the collector, reqwest has TLS without a provider of its own; a service of yours does not need this line.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::new(reqwest::Client::builder().no_proxy().build()?);
    let app = Router::new().route("/test", post(test)).layer(ServerLayer::new()).with_state(client);
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("listening {}", listener.local_addr()?);
    axum::serve(listener, app).with_graceful_shutdown(shutdown_signal()).await?;
    Ok(())
}

async fn test(State(client): State<Client>, body: Bytes) -> Result<&'static str, (StatusCode, String)> {
    let wrong = |what: String| (StatusCode::BAD_REQUEST, what);
    let calls: Vec<Value> = serde_json::from_slice(&body).map_err(|error| wrong(format!("the body is no list in JSON: {error}")))?;
    for call in &calls {
        let url = call["url"].as_str().ok_or_else(|| wrong(format!("{call} has no url")))?;
        let request = client.post(url).header("content-type", "application/json").body(call["arguments"].to_string());
        // Whoever drives this looks at what arrives; it may well not answer.
        if let Err(error) = request.send().await {
            eprintln!("{url}: {error}");
        }
    }
    Ok("done")
}
