//! Timelines: a small shop, minute by minute, and what detection says of it; without a server, so a quarter of an hour takes a second.

use collector::decode::{self, Format};
use collector::detect::incidents::Incidents;
use collector::detect::watch::ALLOWANCE;
use collector::detect::{Observed, describe};
use collector::validate::{Intake, Limits};
use firstfall_store::Signal;
use firstfall_store::incident::Incident;
use firstfall_store::rollup::WINDOW;
use harness::shop::{Fault, Shop};

const START: u64 = 1_800_000_000_000_000_000;
const MS: u64 = 1_000_000;

/// Runs `minutes` of the shop. `fault` says what is wrong in a second; `shuffle` changes the order in which services' requests arrive.
fn run(minutes: u64, shuffle: bool, fault: impl Fn(u64) -> Fault) -> Vec<Incident> {
    let mut shop = Shop::new(START, 10);
    let (mut observed, mut incidents) = (Observed::default(), Incidents::default());
    let mut next = (START / WINDOW) as u32;
    let mut told = Vec::new();
    for second in 0..minutes * 60 {
        let mut bodies = shop.second(second, fault(second));
        if shuffle {
            bodies.reverse();
        }
        for mut body in bodies {
            let mut intake = Intake::new(Signal::Traces, Limits::default(), START + second * 1_000_000_000, body.len());
            decode::request(Format::Json, Signal::Traces, &mut body, &mut intake).expect("a valid request");
            observed.add(&intake.finish().0);
        }
        while u64::from(next + 1) * WINDOW + ALLOWANCE <= observed.watermark() {
            observed.settle(u64::from(next + 1) * WINDOW);
            for at in incidents.step(&observed, next) {
                let incident = describe::incident(&observed, &incidents.all[at], next);
                told.retain(|old: &Incident| old.id != incident.id);
                told.push(incident);
            }
            next += 1;
        }
    }
    told
}

fn minute(second: u64) -> u64 {
    second / 60
}

/// `QUIET_MINUTES=6000` for a hundred hours.
#[test]
fn quiet_minutes_raise_nothing() {
    let minutes = std::env::var("QUIET_MINUTES").ok().and_then(|m| m.parse().ok()).unwrap_or(20);
    let incidents = run(minutes, false, |_| Fault::default());
    assert!(incidents.is_empty(), "{incidents:#?}");
}

#[test]
fn a_few_failing_requests_a_minute_are_ordinary_life() {
    assert!(run(15, false, |s| Fault { payments_fails: if s % 30 == 0 { 20 } else { 0 }, ..Fault::default() }).is_empty());
}

#[test]
fn a_deployment_that_changes_nothing_raises_nothing() {
    assert!(run(15, false, |s| Fault { payments_new: minute(s) >= 9, ..Fault::default() }).is_empty());
}

#[test]
fn a_service_that_fails_is_the_origin_and_its_callers_are_its_victims() {
    let incidents =
        run(
            13,
            false,
            |s| if minute(s) == 8 || minute(s) == 9 { Fault { payments_fails: 40, ..Fault::default() } } else { Fault::default() },
        );
    assert_eq!(incidents.len(), 1, "{incidents:#?}");
    let incident = &incidents[0];
    assert_eq!(incident.diagnosis.origins[0].service, "payments", "{}", incident.title);
    assert_eq!(incident.diagnosis.confidence, "high");
    let onset = (incident.onset - START) / 1_000_000_000;
    assert!((470..=490).contains(&onset), "onset at {onset} s, the fault began at 480 s");
    assert!(incident.opened_at - START <= 530 * 1_000_000_000, "opened within 50 s");
    assert!(incident.closed_at.is_some(), "it closes when the fault has gone");
    let hops: Vec<(&str, &str)> = incident.diagnosis.hops.iter().map(|h| (h.from.as_str(), h.to.as_str())).collect();
    assert!(hops.contains(&("payments", "orders")) && hops.contains(&("orders", "gateway")), "{hops:?}");
    assert!(incident.impact.failed > 0 && incident.impact.entry_points == ["gateway POST /buy"], "{:?}", incident.impact);
}

#[test]
fn what_fails_again_in_the_same_way_is_the_same_incident_and_in_another_way_another_one() {
    let again = |then: Fault| {
        let fails = Fault { payments_fails: 60, ..Fault::default() };
        run(14, false, move |s| match s {
            480..540 => fails,
            720.. => then,
            _ => Fault::default(),
        })
    };
    assert_eq!(again(Fault { payments_fails: 40, ..Fault::default() }).len(), 1);
    let two = again(Fault { payments_slow: 300 * MS, ..Fault::default() });
    let origins: Vec<&str> = two.iter().map(|i| i.diagnosis.origins[0].service.as_str()).collect();
    assert_eq!(origins, ["payments", "payments"], "{two:#?}");
}

#[test]
fn what_fails_with_a_new_version_after_it_was_well_is_another_incident_and_one_that_heals_is_not() {
    let after = |new: u64, fails_again: bool| {
        run(14, false, move |s| match s {
            480..540 => Fault { payments_fails: 60, ..Fault::default() },
            _ if s >= new => {
                Fault { payments_new: true, payments_fails: if fails_again && s < new + 55 { 60 } else { 0 }, ..Fault::default() }
            }
            _ => Fault::default(),
        })
    };
    // Whenever it comes there is one incident until half a minute after the failure has gone, and two from then on.
    let ids: Vec<usize> = (541..=611).step_by(7).map(|new| after(new, true).len()).collect();
    let second = ids.iter().position(|incidents| *incidents == 2).expect("another one in the end");
    assert!(ids[..second].iter().all(|n| *n == 1) && ids[second..].iter().all(|n| *n == 2), "{ids:?}");
    let two = after(585, true);
    let told: Vec<(&str, Option<&str>)> = two.iter().map(|i| (i.diagnosis.origins[0].service.as_str(), i.trigger.as_deref())).collect();
    assert!(matches!(told[..], [("payments", None), ("payments", Some(trigger))] if trigger.contains("version")), "{told:?}");
    assert!(two[0].closed_at.is_some_and(|closed| closed <= two[1].opened_at));
    assert_eq!(after(585, false).len(), 1);
    // Fixed by a new version.
    let fixed = run(14, false, |s| Fault {
        payments_fails: if (480..540).contains(&s) { 60 } else { 0 },
        payments_new: s >= 530,
        ..Fault::default()
    });
    assert_eq!(fixed.len(), 1, "{fixed:#?}");
}

#[test]
fn what_fails_less_than_it_did_a_quarter_of_an_hour_ago_is_told_all_the_same() {
    let fails = |s| match s {
        600..660 => 80,
        1500..1560 => 40,
        _ => 0,
    };
    let incidents = run(27, false, |s| Fault { payments_fails: fails(s), ..Fault::default() });
    let origins: Vec<&str> = incidents.iter().map(|i| i.diagnosis.origins[0].service.as_str()).collect();
    assert_eq!(origins, ["payments", "payments"], "{incidents:#?}");
}

#[test]
fn a_slow_database_is_blamed_before_the_services_that_wait_for_it() {
    let incidents = run(11, false, |s| Fault { database_slow: if minute(s) >= 8 { 400 * MS } else { 0 }, ..Fault::default() });
    assert_eq!(incidents.len(), 1, "{incidents:#?}");
    let origin = &incidents[0].diagnosis.origins[0];
    assert_eq!((origin.kind.as_str(), origin.service.as_str()), ("database", "postgresql ledger"), "{}", incidents[0].title);
}

#[test]
fn a_dead_service_is_named_although_only_its_callers_speak_and_makes_no_new_node() {
    let incidents = run(11, false, |s| Fault { inventory_dead: minute(s) >= 8, ..Fault::default() });
    assert_eq!(incidents.len(), 1, "{incidents:#?}");
    let origin = &incidents[0].diagnosis.origins[0];
    assert_eq!((origin.kind.as_str(), origin.service.as_str()), ("service", "inventory"), "{}", incidents[0].title);
}

#[test]
fn a_surge_of_refusals_is_told_as_such_where_it_begins_and_ordinary_refusals_are_not() {
    let fault = |s: u64| Fault { payments_refuses: if minute(s) >= 8 { 60 } else { 2 }, ..Fault::default() };
    let incidents = run(11, false, fault);
    assert_eq!(incidents.len(), 1, "{incidents:#?}");
    let incident = &incidents[0];
    assert_eq!(incident.diagnosis.origins[0].service, "payments", "{}", incident.title);
    assert!(incident.title.starts_with("payments refuses") && incident.title.contains("429 Too Many Requests"), "{}", incident.title);
    let onset = (incident.onset - START) / 1_000_000_000;
    assert!((470..=490).contains(&onset), "onset at {onset} s, the fault began at 480 s");
}

#[test]
fn a_caller_that_does_not_wait_long_enough_is_told_and_so_is_silence() {
    let slow = |s: u64| {
        if minute(s) >= 8 { Fault { database_slow: 600 * MS, orders_waits: 300 * MS, ..Fault::default() } } else { Fault::default() }
    };
    let incidents = run(11, false, slow);
    assert_eq!(incidents.len(), 1, "{incidents:#?}");
    let trigger = incidents[0].trigger.as_deref().unwrap_or_default();
    assert!(trigger.starts_with("orders gives up before payments answers"), "{trigger}");

    let dead = run(11, false, |s| Fault { inventory_dead: minute(s) >= 8, ..Fault::default() });
    let reasons = &dead[0].diagnosis.origins[0].reasons;
    assert!(reasons.iter().any(|r| r.starts_with("nothing has been heard from it since")), "{reasons:?}");
}

#[test]
fn sampling_neither_hides_nor_invents_a_failure() {
    // One request in a hundred fails. From the eighth minute on a sampler keeps all of these and an eighth of the rest, so that every twelfth that arrives has failed.
    let begins = |s: u64| Fault { payments_fails: 1, sampled: minute(s) >= 8, ..Fault::default() };
    assert!(run(16, false, begins).is_empty());
    let fault = |s: u64| Fault { payments_fails: if minute(s) >= 8 { 30 } else { 1 }, sampled: true, ..Fault::default() };
    let incidents = run(11, false, fault);
    assert_eq!(incidents.len(), 1, "{incidents:#?}");
    assert_eq!(incidents[0].diagnosis.origins[0].service, "payments");
}

#[test]
fn failures_in_the_first_minute_are_found_by_the_objective() {
    let incidents = run(3, false, |s| Fault { payments_fails: if s >= 30 { 30 } else { 0 }, ..Fault::default() });
    assert_eq!(incidents.len(), 1);
    assert_eq!(incidents[0].diagnosis.origins[0].service, "payments");
}

#[test]
fn what_is_slow_many_times_over_is_found_in_the_third_minute_and_what_is_a_little_slower_is_not() {
    let slow = |more: u64| run(5, false, move |s| Fault { database_slow: if s >= 150 { more * MS } else { 0 }, ..Fault::default() });
    let incidents = slow(400);
    assert_eq!(incidents.len(), 1, "{incidents:#?}");
    assert_eq!(incidents[0].diagnosis.origins[0].service, "postgresql ledger", "{}", incidents[0].title);
    assert!(slow(5).is_empty());
}

#[test]
fn the_order_of_arrival_changes_nothing() {
    let fault = |s: u64| Fault { payments_fails: if minute(s) == 8 { 40 } else { 0 }, ..Fault::default() };
    assert_eq!(run(10, false, fault), run(10, true, fault));
}

#[test]
fn a_new_version_that_fails_is_told_as_the_trigger() {
    let incidents =
        run(10, false, |s| Fault { payments_fails: if minute(s) >= 8 { 30 } else { 0 }, payments_new: minute(s) >= 8, ..Fault::default() });
    assert_eq!(incidents.len(), 1);
    let incident = &incidents[0];
    assert!(incident.title.starts_with("payments 2 fails"), "{}", incident.title);
    assert!(incident.trigger.as_deref().is_some_and(|t| t.starts_with("version 2 of payments")), "{:?}", incident.trigger);
    assert_eq!(incident.changes.len(), 1, "the version that was there from the start is no change");
}
