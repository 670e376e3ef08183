//! A few of the scenarios; `cargo run --release -p firstfall-tests --bin scenarios` runs them all, and hours of ordinary life.

use collector::detect::watch::ALLOWANCE;
use harness::Server;
use harness::scenario::fault::What;
use harness::scenario::world::{Body, SECOND, Topology};
use harness::scenario::{Play, Scenario, just_passed, life, post, run, run_with, send};
use harness::server::wait_for;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

#[test]
fn each_fault_is_one_incident_with_its_origin_first_and_its_hops_away_from_it() {
    let mut named = 0;
    for (place, what) in What::ALL.into_iter().enumerate() {
        // Each in the next topology that has a place for it.
        let mut topologies = (0..Topology::ALL.len()).map(|n| Topology::ALL[(place + n) % Topology::ALL.len()]);
        let outcome = topologies
            .find_map(|topology| run(&Scenario { topology, what, load: 4.0, seed: 3 + place as u64 }))
            .expect("one of the topologies has a place for it");
        let told: Vec<&str> = outcome.incidents.iter().map(|i| i.title.as_str()).collect();
        assert_eq!(outcome.before, 0, "{what:?}: {told:?}");
        assert_eq!(outcome.incidents.len(), 1, "{what:?} at {}: {told:?}", outcome.truth.origin);
        assert!(outcome.rank().is_some_and(|rank| rank <= 3), "{what:?} at {}: {told:?}", outcome.truth.origin);
        named += usize::from(outcome.rank() == Some(1));
        let (hops, right) = outcome.hops();
        assert_eq!(hops, right, "{what:?}: {:?}", outcome.incidents[0].diagnosis.hops);
        let said = match what {
            // A few failures, each tried again, are no storm.
            What::RetryStorm if outcome.incidents[0].diagnosis.hops.iter().any(|h| h.attempts_per_call > Some(1.6)) => "a retry storm",
            What::TimeoutInversion => "gives up before",
            What::Surge => "requests from outside rose",
            _ => "",
        };
        let trigger = outcome.incidents[0].trigger.clone().unwrap_or_default();
        assert!(trigger.contains(said), "{what:?}: {trigger}");
    }
    assert!(named >= What::ALL.len() - 1, "{named} of {} are named first", What::ALL.len());
}

#[test]
fn through_the_real_binary_forty_services_and_a_failure_are_one_incident() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let scenario = Scenario { topology: Topology::Large, what: What::Fails, load: 2.0, seed: 11 };
    let truth = send(&scenario, &server.otlp).expect("it has a place for it");
    let incidents = wait_for("an incident", || {
        let incidents = server.api("/api/v1/incidents")["incidents"].as_array()?.clone();
        (!incidents.is_empty()).then_some(incidents)
    });
    assert_eq!(incidents.len(), 1, "{incidents:?}");
    assert_eq!(incidents[0]["origins"][0]["service"], truth.origin.as_str(), "{}", incidents[0]["title"]);
    let topology = server.api("/api/v1/topology");
    let nodes: Vec<&str> = topology["nodes"].as_array().expect("a list").iter().filter_map(|n| n["id"].as_str()).collect();
    assert_eq!(nodes.iter().filter(|id| id.starts_with("service:")).count(), 40, "{nodes:?}");
    assert!(!nodes.iter().any(|id| id.starts_with("external:")), "an address is no node beside the service that it means: {nodes:?}");
    for path in ["/", "/services", "/map", "/incidents"] {
        let (status, page) = server.page(path);
        assert!(status == 200 && page.len() < 600_000, "{path}: {} bytes", page.len());
    }
}

/// What is told of the incidents: when and how they began, where, how they spread, and the evidence with its counts.
fn told(server: &Server) -> Vec<serde_json::Value> {
    let all = server.api("/api/v1/incidents")["incidents"].as_array().cloned().unwrap_or_default();
    let of = |incident: &serde_json::Value| {
        let hops = incident["hops"].as_array().into_iter().flatten().map(|hop| serde_json::json!([hop["from"], hop["to"], hop["onset"]]));
        serde_json::json!({
            "opened_at": incident["opened_at"],
            "onset": incident["onset"],
            "origin": incident["origins"][0]["service"],
            "trigger": incident["trigger"],
            "hops": hops.collect::<Vec<_>>(),
            "evidence": server.api(&format!("/api/v1/incidents/{}", incident["id"].as_str().unwrap_or("")))["evidence"],
        })
    };
    all.iter().map(of).collect()
}

/// Once as fast as it goes; once with pauses, in another order within the allowance for lateness, and with a kill -9 in the middle of the failure.
#[test]
fn speed_order_and_a_kill_change_nothing_of_what_is_told() {
    let directories = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let scenario = Scenario { topology: Topology::Diamond, what: What::Fails, load: 6.0, seed: 5 };
    let start = just_passed(&scenario).expect("it has a place for it");
    let play = || Play::new(&scenario, start).expect("it has a place for it");
    let at_once = Server::start(directories[0].path());
    play().run(|bodies, _| bodies.iter().for_each(|body| post(&at_once.otlp, body)));

    let mut other = Some(Server::start(directories[1].path()));
    let (truth, kill_at) = (play().truth, play().begin + 60_000_000_000);
    let (mut waiting, mut killed) = (Vec::new(), false);
    play().run(|bodies, second| {
        waiting.extend(bodies);
        if second > kill_at && !killed {
            killed = true;
            other.take().expect("it runs").kill();
            other = Some(Server::start(directories[1].path()));
        }
        if second.is_multiple_of(3_000_000_000) {
            let server = other.as_ref().expect("it runs");
            waiting.drain(..).rev().for_each(|body| post(&server.otlp, &body));
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    });
    let other = other.expect("it runs");
    waiting.drain(..).rev().for_each(|body| post(&other.otlp, &body));
    wait_for("the failure to be told, and told alike", || {
        let (one, two) = (told(&at_once), told(&other));
        let told = one.first().is_some_and(|incident| incident["origin"] == truth.origin.as_str());
        (told && one == two).then_some(())
    });
}

/// In real time: the past at once, then second by second by the wall clock. The incident is on the page when the data have come as far past the
/// end of its window as is stated, and before another window has passed.
#[test]
fn by_the_wall_clock_a_failure_is_seen_when_it_is_said_to_have_opened_and_the_allowance_has_passed() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let scenario = Scenario { topology: Topology::Chain, what: What::DeadService, load: 8.0, seed: 4 };
    let before = Play::new(&scenario, 0).expect("it has a place for it").begin;
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    // It begins to fail in two seconds.
    let start = (now().as_secs() + 2) * SECOND - before;
    let play = Play::new(&scenario, start).expect("it has a place for it");
    let (truth, until) = (play.truth.clone(), play.begin + 90 * SECOND);
    let mut seen: Option<(u64, serde_json::Value)> = None;
    play.run(|bodies, second| {
        if seen.is_some() || second > until {
            return;
        }
        // What happens in a second arrives when it is over.
        let due = Duration::from_nanos(second + SECOND);
        std::thread::sleep(due.saturating_sub(now()));
        bodies.iter().for_each(|body| post(&server.otlp, body));
        if second > start + before {
            let incidents = server.api("/api/v1/incidents")["incidents"].take();
            seen = incidents.get(0).map(|incident| (second, incident.clone()));
        }
    });
    let (second, incident) = seen.expect("it is seen within a minute and a half");
    assert_eq!(incident["origins"][0]["service"], truth.origin.as_str(), "{incident}");
    let opened_at = OffsetDateTime::parse(incident["opened_at"].as_str().expect("a time"), &Rfc3339).expect("RFC 3339");
    let opened_at = opened_at.unix_timestamp_nanos() as u64;
    // By what had been sent when it was seen: a page is asked once a second, and may have been a second behind.
    let late = (second - opened_at) / SECOND;
    let allowance = ALLOWANCE / SECOND;
    assert!((allowance - 1..=allowance + 10).contains(&late), "seen {late} s after {}", incident["opened_at"]);
}

#[test]
fn a_small_slowness_is_told_when_the_machine_is_busy_and_not_without_this_second_witness() {
    // Its own few milliseconds are three times as long, in requests of a hundred.
    let scenario = Scenario { topology: Topology::FanOut, what: What::Hog, load: 10.0, seed: 117_009 };
    let outcome = run(&scenario).expect("it has a place for it");
    let titles: Vec<&str> = outcome.incidents.iter().map(|i| i.title.as_str()).collect();
    assert_eq!((outcome.rank(), titles.len()), (Some(1), 1), "{} is busy: {titles:?}", outcome.truth.origin);
    let alone = run_with(&scenario, |body| !matches!(body, Body::Metrics(_))).expect("it has a place for it");
    assert!(alone.incidents.is_empty(), "{:?}", alone.incidents);
}

#[test]
fn half_an_hour_of_ordinary_life_with_forty_services_raises_nothing() {
    let told = life::quiet(0.5, 2.0, 3);
    assert!(told.is_empty(), "{told:#?}");
}

#[test]
fn retries_that_multiply_the_load_are_told_as_a_storm() {
    let told =
        (1..6).filter_map(|seed| run(&Scenario { topology: Topology::Chain, what: What::RetryStorm, load: 4.0, seed })).any(|outcome| {
            let storm = |i: &firstfall_store::incident::Incident| i.trigger.as_deref().is_some_and(|t| t.contains("a retry storm"));
            outcome.incidents.iter().any(storm)
        });
    assert!(told, "one of five fails often enough");
}
