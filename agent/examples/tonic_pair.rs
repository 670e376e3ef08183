//! A server and a client of gRPC, each call one trace: `cargo run -p firstfall-agent --example tonic_pair`, then look at the service `tonic-pair`.

use firstfall_agent::{Agent, ClientLayer, ServerLayer};
use tonic::transport::{Channel, Server};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let _telemetry = Agent::new("tonic-pair").version(env!("CARGO_PKG_VERSION")).environment("examples").init();

    // The server: one line more than without the agent.
    let (_, health) = tonic_health::server::health_reporter();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    tokio::spawn(Server::builder().layer(ServerLayer::new()).add_service(health).serve_with_incoming(incoming));

    // And the client.
    let channel = Channel::from_shared(format!("http://{address}"))?.connect().await?;
    let channel = tower::ServiceBuilder::new().layer(ClientLayer::new()).service(channel);
    let mut client = HealthClient::new(channel);
    for service in ["", "nobody"] {
        let span = tracing::info_span!("ask", service);
        let asked = tracing::Instrument::instrument(client.check(HealthCheckRequest { service: service.to_owned() }), span).await;
        match asked {
            Ok(answer) => println!("{service:?} is {:?}", answer.into_inner().status()),
            Err(status) => println!("{service:?}: {status}"),
        }
    }
    Ok(())
}
