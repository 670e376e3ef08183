//! The agent and the real collector.

use firstfall_agent::{Agent, Protocol, Signal};
use harness::server::{Server, wait_for};
use std::time::{Duration, Instant};

/// Spans a second, as a busy service makes them.
const RATE: u32 = 400;

/// It is killed and comes back at the same address, without having said goodbye; the service goes on at its pace, and each span is there in the end, once.
#[test]
fn a_collector_that_is_killed_for_a_while_costs_no_span_and_doubles_none() {
    for (lean, protocol) in [(false, Protocol::HttpProtobuf), (true, Protocol::HttpProtobuf), (true, Protocol::Grpc)] {
        let directory = tempfile::tempdir().expect("a directory");
        let server = Server::start(directory.path());
        let (flag, address) = match protocol {
            Protocol::Grpc => ("--otlp-grpc", server.grpc.clone()),
            _ => ("--otlp-http", server.otlp.clone()),
        };
        let agent = Agent::new("probe").protocol(protocol).endpoint(&format!("http://{address}"));
        let agent = agent.without_runtime_metrics().without_subscriber();
        let telemetry = if lean { agent.lean() } else { agent }.span_delay(Duration::from_millis(100)).init();
        let mut server = Some(server);
        tracing::subscriber::with_default(telemetry.subscriber(), || {
            let started = Instant::now();
            for n in 0..3 * RATE {
                if n == RATE {
                    server.take().expect("it runs").kill();
                }
                if n == 2 * RATE {
                    server = Some(Server::start_with(directory.path(), &[flag, &address], &[]));
                }
                std::thread::sleep((started + Duration::from_secs(1) * n / RATE).saturating_duration_since(Instant::now()));
                drop(tracing::info_span!("probe", number = n).entered());
            }
        });
        let account = telemetry.shutdown(Duration::from_secs(30)).account(Signal::Spans);
        let all = u64::from(3 * RATE);
        assert_eq!((account.accepted, account.exported, account.dropped_in_all()), (all, all, 0), "lean: {lean}, {protocol:?}");
        let server = server.expect("it runs again");
        let rows = server.sql("SELECT count(*), count(DISTINCT span_id) FROM spans WHERE name = 'probe'");
        assert_eq!(rows, [[all, all]], "lean: {lean}, {protocol:?}");
    }
}

/// What it is, what it costs and what waits in it, by its own account.
#[test]
fn an_agent_says_how_it_is_and_the_settings_page_shows_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let agent = Agent::new("shown").endpoint(&format!("http://{}", server.otlp)).lean().without_subscriber();
    let telemetry = agent.metric_interval(Duration::from_millis(200)).span_delay(Duration::from_millis(50)).init();
    tracing::subscriber::with_default(telemetry.subscriber(), || drop(tracing::info_span!("work").entered()));
    let row = wait_for("its row with two accounts of its CPU", || {
        // The kernel counts the processor's time in hundredths of a second: use some.
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(10) {}
        let page = server.page("/settings").1;
        let row = page.split("<tr>").find(|row| row.contains(">shown<"))?;
        (row.matches(" %<").count() == 2).then(|| row.to_owned())
    });
    assert!(row.contains("firstfall-agent ") && row.contains(">nothing<") && row.contains(" of 8.4 MB<"), "{row}");
    assert!(telemetry.shutdown(Duration::from_secs(30)).is_complete());
}
