//! The short way as a layer in a subscriber of the service's own.

#[path = "support/lean.rs"]
mod promises;
mod support;

use firstfall_agent::{Agent, Telemetry};
use std::time::Duration;
use support::Collector;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

fn start(collector: &Collector, change: impl FnOnce(Agent) -> Agent) -> Telemetry {
    let agent = Agent::new("t").endpoint(&collector.url()).lean().without_runtime_metrics().metric_interval(Duration::from_secs(60));
    let telemetry = change(agent).without_subscriber().init();
    tracing_subscriber::registry().with(telemetry.layer()).init();
    assert_eq!(LevelFilter::current(), LevelFilter::INFO, "what is below is left out where it stands");
    telemetry
}

#[test]
fn the_usual_way_says_what_level_it_wants_too() {
    let collector = Collector::start(support::Mood::Well);
    let telemetry = Agent::new("t").endpoint(&collector.url()).without_subscriber().init();
    tracing_subscriber::registry().with(telemetry.layer()).init();
    assert_eq!(LevelFilter::current(), LevelFilter::INFO);
}
