//! The short way as the whole subscriber, which the agent sets.

#[path = "support/lean.rs"]
mod promises;
mod support;

use firstfall_agent::{Agent, Telemetry};
use std::time::Duration;
use support::Collector;
use tracing::level_filters::LevelFilter;

fn start(collector: &Collector, change: impl FnOnce(Agent) -> Agent) -> Telemetry {
    let agent = Agent::new("t").endpoint(&collector.url()).lean().without_runtime_metrics().metric_interval(Duration::from_secs(60));
    let telemetry = change(agent).init();
    assert_eq!(LevelFilter::current(), LevelFilter::INFO, "what is below is left out where it stands");
    telemetry
}

#[test]
fn a_span_ends_with_its_last_handle_wherever_that_is() {
    let collector = Collector::start(support::Mood::Well);
    let telemetry = start(&collector, |agent| agent);
    let span = tracing::info_span!("shared");
    let current = span.in_scope(tracing::Span::current);
    assert_eq!(current.id(), span.id());
    assert_eq!(current.metadata().map(|metadata| metadata.name()), Some("shared"));
    let (other, elsewhere) = (span.clone(), span.clone());
    drop((span, current));
    std::thread::spawn(move || elsewhere.in_scope(|| tracing::info_span!("within").in_scope(|| ()))).join().expect("it ends");
    assert!(telemetry.flush(Duration::from_secs(20)));
    assert_eq!(collector.whole_spans().iter().map(|span| span.name.as_str()).collect::<Vec<_>>(), ["within"]);
    drop(other);
    assert!(telemetry.flush(Duration::from_secs(20)));
    let spans = collector.whole_spans();
    assert_eq!(spans[1].name, "shared");
    assert_eq!((&spans[0].trace_id, &spans[0].parent_span_id), (&spans[1].trace_id, &spans[1].span_id));
    assert!(tracing::Span::current().is_none());
}

/// Runs itself once more, as a program whose stderr can be read.
#[test]
fn the_terminal_shows_what_it_is_asked_for_within_the_spans_that_are_entered() {
    if std::env::var("SPEAKS").is_ok() {
        let telemetry = firstfall_agent::Agent::new("t").endpoint("http://127.0.0.1:9").lean().init();
        let outer = tracing::info_span!("outer", user = "o'hara\n", n = -3i64, share = 0.5, yes = true, otel.name = "renamed\u{7}");
        outer.in_scope(|| tracing::info_span!("inner").in_scope(|| tracing::info!(target: "shop", left = 2, "sold")));
        tracing::info!(target: "loud", "too much");
        tracing::warn!(target: "loud", "enough");
        tracing::debug!("not asked for");
        log::info!(target: "loud", "too much by the log crate");
        log::info!(target: "shop", "by the log crate");
        let _ = telemetry.shutdown(Duration::ZERO);
        return;
    }
    let name = std::thread::current().name().map(str::to_owned).expect("a test has a name");
    let mut itself = std::process::Command::new(std::env::current_exe().expect("it runs"));
    itself.args(["--exact", &name, "--nocapture"]).env("SPEAKS", "1").env("RUST_LOG", "info,loud=warn").env("NO_COLOR", "1");
    let said = itself.output().expect("it runs once more");
    let said = String::from_utf8_lossy(&said.stderr);
    let lines: Vec<&str> = said.lines().filter_map(|line| line.split_once("Z ").map(|(_, rest)| rest)).collect();
    let within = r#" INFO renamed\u{7}{user="o'hara\n" n=-3 share=0.5 yes=true}:inner: shop: sold left=2"#;
    assert_eq!(lines, [within, " WARN loud: enough", " INFO shop: by the log crate"], "{said}");
}
