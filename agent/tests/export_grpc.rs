//! Export over gRPC beside collectors of every mood, at tonic's own server. Each test is a process of its own, as nextest runs them.

mod support;

use firstfall_agent::{Agent, Compression, Loss, Protocol, Signal, Telemetry};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::wait_for;
use tonic::codec::CompressionEncoding;
use tonic::transport::{Server, server::TcpIncoming};
use tonic::{Code, Request, Response, Status};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mood {
    Well,
    Says(Code),
    Rejects(i64),
    Hangs,
}

struct State {
    mood: Mood,
    names: Vec<String>,
    requests: usize,
    /// Of the last request.
    headers: http::HeaderMap,
}

#[derive(Clone)]
struct Collector(Arc<Mutex<State>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mood = {
            let mut state = self.0.lock().expect("whole");
            state.requests += 1;
            state.headers = request.metadata().clone().into_headers();
            state.mood
        };
        let mut answer = ExportTraceServiceResponse::default();
        match mood {
            Mood::Well => {}
            Mood::Says(code) => return Err(Status::new(code, "so it is")),
            Mood::Rejects(rejected_spans) => {
                answer.partial_success = Some(ExportTracePartialSuccess { rejected_spans, error_message: String::new() });
            }
            Mood::Hangs => std::future::pending().await,
        }
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        self.0.lock().expect("whole").names.extend(scopes.flat_map(|scope| scope.spans).map(|span| span.name));
        Ok(Response::new(answer))
    }
}

struct Serving {
    collector: Collector,
    address: SocketAddr,
    runtime: tokio::runtime::Runtime,
}

impl Serving {
    fn start(mood: Mood) -> Serving {
        let state = State { mood, names: Vec::new(), requests: 0, headers: http::HeaderMap::new() };
        Serving::with(Collector(Arc::new(Mutex::new(state))), "127.0.0.1:0".parse().expect("an address"))
    }

    fn with(collector: Collector, address: SocketAddr) -> Serving {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let service = TraceServiceServer::new(collector.clone()).accept_compressed(CompressionEncoding::Gzip);
        let address = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind(address).await.expect("a port that is free, or was this server's before");
            let address = listener.local_addr().expect("bound");
            tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener)));
            address
        });
        Serving { collector, address, runtime }
    }

    /// Ends it and all of its connections; what it got stays.
    fn stop(self) -> (Collector, SocketAddr) {
        self.runtime.shutdown_timeout(Duration::from_secs(10));
        (self.collector, self.address)
    }

    /// Within a runtime another one may not be waited for.
    fn stop_from_elsewhere(self) {
        self.runtime.shutdown_background();
    }

    fn agent(&self) -> Agent {
        Agent::new("t")
            .protocol(Protocol::Grpc)
            .endpoint(&format!("http://{}", self.address))
            .span_delay(Duration::from_millis(50))
            .without_runtime_metrics()
            .metric_interval(Duration::from_secs(60))
    }
}

impl Collector {
    fn set(&self, mood: Mood) {
        self.0.lock().expect("whole").mood = mood;
    }

    fn requests(&self) -> usize {
        self.0.lock().expect("whole").requests
    }

    fn names(&self) -> Vec<String> {
        self.0.lock().expect("whole").names.clone()
    }
}

fn spans(range: std::ops::Range<u32>) {
    for n in range {
        drop(tracing::info_span!("s", "otel.name" = format!("s-{n}")).entered());
    }
}

fn lost(telemetry: &Telemetry, loss: Loss) -> u64 {
    telemetry.account(Signal::Spans).expect("it runs").dropped(loss)
}

#[test]
fn spans_arrive_once_with_the_headers_that_were_asked_for() {
    for compression in [Compression::None, Compression::Gzip] {
        let serving = Serving::start(Mood::Well);
        let agent = serving.agent().header("Authorization", "Bearer abc").compression(compression).without_subscriber();
        let telemetry = agent.lean().init();
        tracing::subscriber::with_default(telemetry.subscriber(), || spans(0..20_000));
        let account = telemetry.shutdown(Duration::from_secs(30)).account(Signal::Spans);
        assert_eq!((account.accepted, account.exported, account.dropped_in_all()), (20_000, 20_000, 0), "{compression:?}");
        let names = serving.collector.names();
        assert_eq!((names.len(), names.iter().collect::<HashSet<_>>().len()), (20_000, 20_000), "{compression:?}");
        let headers = serving.collector.0.lock().expect("whole").headers.clone();
        assert_eq!(headers["authorization"], "Bearer abc");
        assert!(headers["user-agent"].to_str().expect("text").starts_with("firstfall-agent/"));
        assert_eq!(headers.get("grpc-encoding").is_some(), compression == Compression::Gzip);
    }
}

#[test]
fn what_may_be_tried_again_is_and_what_may_not_is_counted() {
    let serving = Serving::start(Mood::Says(Code::Unavailable));
    let telemetry = serving.agent().init();
    spans(0..50);
    wait_for("a request", || serving.collector.requests() > 0);
    serving.collector.set(Mood::Well);
    wait_for("the spans", || serving.collector.names().len() == 50);
    // It does not say when to come again, and so it will never take them.
    serving.collector.set(Mood::Says(Code::ResourceExhausted));
    spans(50..60);
    wait_for("the loss", || lost(&telemetry, Loss::Refused) == 10);
    serving.collector.set(Mood::Rejects(3));
    spans(60..70);
    assert!(telemetry.flush(Duration::from_secs(20)));
    let rejected = lost(&telemetry, Loss::Rejected);
    let account = telemetry.account(Signal::Spans).expect("it runs");
    assert!(rejected >= 3 && account.exported + rejected == 60, "{account:?}");
}

#[test]
fn a_collector_that_was_restarted_costs_nothing() {
    let serving = Serving::start(Mood::Well);
    let telemetry = serving.agent().init();
    spans(0..50);
    assert!(telemetry.flush(Duration::from_secs(20)));
    let (collector, address) = serving.stop();
    let serving = Serving::with(collector, address);
    spans(50..100);
    assert!(telemetry.flush(Duration::from_secs(20)));
    let names = serving.collector.names();
    assert_eq!((names.len(), names.iter().collect::<HashSet<_>>().len()), (100, 100));
    assert_eq!(telemetry.account(Signal::Spans).map(|account| account.dropped_in_all()), Some(0));
}

#[test]
fn a_collector_that_hangs_or_is_not_there_neither_holds_up_the_service_nor_its_end() {
    for hangs in [true, false] {
        let serving = Serving::start(Mood::Hangs);
        let agent = serving.agent().without_subscriber();
        let collector = serving.collector.clone();
        let serving = hangs.then_some(serving);
        let telemetry = agent.init();
        tracing::subscriber::with_default(telemetry.subscriber(), || spans(0..100));
        if hangs {
            wait_for("a request", || collector.requests() > 0);
        }
        let started = Instant::now();
        let account = telemetry.shutdown(Duration::from_millis(500)).account(Signal::Spans);
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
        assert_eq!((account.accepted, account.exported, account.dropped_in_all() + account.under_way()), (100, 0, 100), "hangs: {hangs}");
        drop(serving);
    }
}

/// The place that OTLP over HTTP has; a user who mixes them up is told. Asked within a runtime, as `main` often is.
#[tokio::test]
async fn the_doctor_tells_the_protocols_apart() {
    let collector = support::Collector::start(support::Mood::Well);
    let over_grpc = Agent::new("t").protocol(Protocol::Grpc).endpoint(&collector.url()).without_environment().doctor();
    assert!(!over_grpc.is_well(), "{over_grpc}");
    let serving = tokio::task::spawn_blocking(|| Serving::start(Mood::Well)).await.expect("it starts");
    let well = serving.agent().without_environment().doctor();
    let of = |what: &str| well.checks.iter().find(|check| check.what.starts_with(what)).expect("it was looked at");
    assert_eq!(of("a span").problem, None, "{well}");
    assert!(of("a log record").problem.as_ref().is_some_and(|why| why.contains("Unimplemented")), "{well}");
    serving.collector.set(Mood::Says(Code::Unauthenticated));
    let unknown = serving.agent().without_environment().doctor();
    assert!(unknown.to_string().contains("OTEL_EXPORTER_OTLP_HEADERS"), "{unknown}");
    serving.stop_from_elsewhere();
}
