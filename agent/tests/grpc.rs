//! A call over gRPC, through tonic's own server and client, is one trace with what the conventions ask of it.

mod support;

use firstfall_agent::{Agent, ClientLayer, ServerLayer};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use std::time::Duration;
use support::{Collector, Mood};
use tonic::transport::{Channel, Server, server::TcpIncoming};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tracing::Instrument;

fn value(span: &Span, key: &str) -> Option<Any> {
    span.attributes.iter().find(|pair| pair.key == key)?.value.as_ref()?.value.clone()
}

#[tokio::test]
async fn a_call_is_one_trace_and_says_its_method_and_status_on_both_sides() {
    let collector = Collector::start(Mood::Well);
    let telemetry = Agent::new("t").endpoint(&collector.url()).without_runtime_metrics().lean().init();
    let (_, health) = tonic_health::server::health_reporter();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let server = Server::builder().layer(ServerLayer::new()).add_service(health);
    let server = tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    let channel = Channel::from_shared(format!("http://{address}")).expect("an address").connect().await.expect("it listens");
    let mut client = HealthClient::new(tower::ServiceBuilder::new().layer(ClientLayer::new()).service(channel));
    for service in ["", "nobody"] {
        let asked = client.check(HealthCheckRequest { service: service.to_owned() }).instrument(tracing::info_span!("ask", service)).await;
        assert_eq!(asked.is_ok(), service.is_empty());
    }
    drop(client);
    server.abort();
    let _ = server.await;
    assert!(telemetry.flush(Duration::from_secs(20)));
    let spans = collector.whole_spans();
    // tonic tells a failure of this kind in the head of the answer, a success in its trailers.
    for (status, failed_for_client) in [(0, false), (5, true)] {
        let of = |kind| {
            let found = spans.iter().find(|s| s.kind == kind && value(s, "rpc.grpc.status_code") == Some(Any::IntValue(status)));
            found.unwrap_or_else(|| panic!("no span of kind {kind} with status {status}: {spans:#?}"))
        };
        let (server, client) = (of(2), of(3));
        assert_eq!((&server.parent_span_id, &server.trace_id), (&client.span_id, &client.trace_id));
        for span in [server, client] {
            assert_eq!(span.name, "grpc.health.v1.Health/Check");
            assert_eq!(value(span, "rpc.service"), Some(Any::StringValue("grpc.health.v1.Health".to_owned())));
            assert_eq!(value(span, "rpc.method"), Some(Any::StringValue("Check".to_owned())));
        }
        // NOT_FOUND is the caller's mistake.
        let code = |span: &Span| span.status.as_ref().map_or(0, |status| status.code);
        assert_eq!((code(server), code(client) == 2), (0, failed_for_client));
    }
}
