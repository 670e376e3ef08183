//! Set-up that goes wrong, or in another order than the README's. Each test is a process of its own, as nextest runs them: the agent sets what is global.

mod support;

use firstfall_agent::{Agent, Signal};
use std::time::Duration;
use support::{Collector, Mood};

#[test]
fn after_a_set_up_that_failed_another_one_may_be_made() {
    let collector = Collector::start(Mood::Well);
    let agent = || Agent::new("t").without_runtime_metrics();
    let error = agent().endpoint("collector:4318").try_init().expect_err("that is no address");
    assert!(error.problems().iter().any(|problem| problem.contains("collector:4318")), "{error}");
    assert!(!tracing::dispatcher::has_been_set(), "nothing is set up");
    let telemetry = agent().endpoint(&collector.url()).try_init().expect("nothing is wrong");
    drop(tracing::info_span!("one").entered());
    assert!(telemetry.flush(Duration::from_secs(20)));
    assert_eq!(collector.spans(), ["one"]);
}

#[test]
fn who_has_a_subscriber_is_told_what_to_do_and_that_works() {
    use tracing_subscriber::{layer::SubscriberExt, util::SubscriberInitExt};
    let collector = Collector::start(Mood::Well);
    let agent = || Agent::new("t").endpoint(&collector.url()).without_runtime_metrics();
    let telemetry = agent().without_subscriber().init();
    tracing_subscriber::registry().with(tracing_subscriber::fmt::layer()).with(telemetry.layer()).init();
    let error = agent().try_init().expect_err("there is a subscriber");
    assert!(error.to_string().contains("without_subscriber()") && error.to_string().contains("telemetry.layer()"), "{error}");
    drop(tracing::info_span!("one").entered());
    assert!(telemetry.flush(Duration::from_secs(20)));
    assert_eq!(collector.spans(), ["one"]);
}

/// Runs itself once more, as a program whose stderr can be read.
#[test]
fn what_is_said_on_stderr_is_said_to_those_whom_it_concerns() {
    if let Some(part) = std::env::var_os("PART") {
        let agent = Agent::new("t").without_runtime_metrics();
        match part.to_str() {
            Some("forgotten") => drop(agent.init()),
            Some("short") => {
                let telemetry = agent.init();
                tracing::info!("done");
                drop(telemetry);
            }
            Some("panics") => {
                let _telemetry = agent.init();
                let ended = std::thread::spawn(|| panic!("so it is")).join();
                assert!(ended.is_err());
            }
            other => panic!("{other:?} is no part"),
        }
        return;
    }
    let said = |part: &str| {
        let mut itself = std::process::Command::new(std::env::current_exe().expect("it runs"));
        itself.args(["--exact", "what_is_said_on_stderr_is_said_to_those_whom_it_concerns", "--nocapture"]);
        itself.envs([("PART", part), ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9"), ("OTEL_EXPORTER_OTLP_ENDPOIN", "x")]);
        let said = itself.env_remove("RUST_BACKTRACE").env_remove("RUST_LOG").output().expect("it runs once more");
        assert!(said.status.success(), "{said:?}");
        String::from_utf8_lossy(&said.stderr).into_owned()
    };
    let accused = |said: &str| said.contains("let _ = …");
    let (forgotten, short, panics) = (said("forgotten"), said("short"), said("panics"));
    assert!(accused(&forgotten) && !accused(&short), "{forgotten} {short}");
    assert!(short.contains("OTEL_EXPORTER_OTLP_ENDPOIN is not looked at"), "{short}");
    assert_eq!(panics.matches("so it is").count(), 1, "the hook that was there says it, and nobody else: {panics}");
}

/// A callback of the service's that asks its database is the first to use it, while the meter is held.
#[cfg(feature = "prometheus")]
#[test]
fn a_callback_may_use_what_measures() {
    use firstfall_agent::{Database, opentelemetry::global};
    let database = Database::new("sqlite");
    let telemetry = Agent::new("t").endpoint("http://127.0.0.1:9").without_runtime_metrics().with_exposition().init();
    let asked = move || database.query("SELECT", "t").run_blocking(|| Ok::<_, std::fmt::Error>(7));
    let meter = global::meter("shop");
    let gauge = meter.u64_observable_gauge("waiting").with_callback(move |out| out.observe(asked().unwrap_or(0), &[]));
    let _ = gauge.build();
    let shown = std::thread::spawn(move || (telemetry.exposition(), telemetry.exposition()));
    support::wait_for("the exposition", || shown.is_finished());
    let (_, shown) = shown.join().expect("it does not panic");
    assert!(shown.contains("waiting") && shown.contains("db_client_operation_duration_seconds_count"), "{shown}");
}

#[test]
fn what_lies_in_an_address_is_not_told() {
    for endpoint in ["https://ann:s3cret@c.example", "http://ann:s3cret@c.example/v1/traces", "c.example?token=s3cret"] {
        let error = Agent::new("t").endpoint(endpoint).try_init();
        let told = error.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(!told.contains("s3cret"), "{told}");
        let found = Agent::new("t").endpoint(endpoint).doctor().to_string();
        assert!(!found.contains("s3cret"), "{found}");
    }
}

/// What counts and measures is often a static, or made before the guard.
#[cfg(all(feature = "axum", feature = "prometheus"))]
#[tokio::test]
async fn layers_and_databases_that_were_made_before_the_set_up_count() {
    use firstfall_agent::{Database, ServerLayer, resilience::Retry};
    use tower::{Service, ServiceBuilder, ServiceExt};
    let (layer, database, retry) = (ServerLayer::new(), Database::new("sqlite"), Retry::new("t").attempts(2));
    let telemetry = Agent::new("t").endpoint("http://127.0.0.1:9").without_runtime_metrics().with_exposition().init();
    let mut app = axum::Router::<()>::new().route("/x", axum::routing::get(|| async { "x" })).layer(layer);
    let request = http::Request::get("/x").body(axum::body::Body::empty()).expect("valid");
    let answer = app.as_service().ready().await.expect("it serves").call(request).await.expect("an answer");
    assert!(axum::body::to_bytes(answer.into_body(), 10).await.is_ok());
    let _ = database.query("SELECT", "t").run_blocking(|| Ok::<_, std::fmt::Error>(()));
    // A second attempt that is not made again, and has failed all the same.
    let first_only = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let when = move |_: &(), _: &Result<(), &'static str>| first_only.swap(false, std::sync::atomic::Ordering::Relaxed);
    let service = tower::service_fn(|()| async { Err::<(), _>("no") });
    let outcome = ServiceBuilder::new().layer(retry.when(when)).service(service).oneshot(()).await;
    assert_eq!(outcome, Err("no"));
    let shown = telemetry.exposition();
    for name in ["http_server_request_duration_seconds_count", "db_client_operation_duration_seconds_count"] {
        assert!(shown.lines().any(|line| line.starts_with(name) && line.ends_with(" 1")), "{name}: {shown}");
    }
    assert!(!shown.contains("succeeded") && shown.contains(r#"firstfall_retry_attempts_total{attempt="2""#), "{shown}");
    assert!(telemetry.account(Signal::Spans).is_some_and(|account| account.accepted == 2));
}
