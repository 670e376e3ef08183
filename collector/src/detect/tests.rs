//! Timelines: a small shop, minute by minute, and what detection says of it.

use super::incidents::Incidents;
use super::{Observed, describe};
use crate::decode::{self, Format};
use crate::validate::{Intake, Limits};
use firstfall_store::Signal;
use firstfall_store::incident::Incident;
use firstfall_store::rollup::WINDOW;
use serde_json::{Value as Json, json};

const START: u64 = 1_800_000_000_000_000_000;
const MS: u64 = 1_000_000;

/// A seeded sequence (SplitMix64), so that a timeline is the same each time.
struct Random(u64);

impl Random {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A duration around `typical`, in nanoseconds.
    fn around(&mut self, typical: u64) -> u64 {
        typical * (70 + self.draw() % 60) / 100
    }
}

/// gateway → orders → payments → database, and orders → inventory. What is wrong at a second is said by `fault`.
struct Shop {
    random: Random,
    rate: u64,
}

#[derive(Clone, Copy, Default)]
struct Fault {
    /// payments fails by itself this often, in percent.
    payments_fails: u64,
    /// Each database query takes so much longer.
    database_slow: u64,
    /// inventory does not answer at all.
    inventory_dead: bool,
}

fn span(service: &str, name: &str, kind: u8, ids: (u128, u64, u64), times: (u64, u64), failed: bool, attributes: Json) -> (String, Json) {
    let (trace, id, parent) = ids;
    let mut span = json!({
        "traceId": format!("{trace:032x}"), "spanId": format!("{id:016x}"), "name": name, "kind": kind,
        "startTimeUnixNano": times.0.to_string(), "endTimeUnixNano": times.1.to_string(), "attributes": attributes,
    });
    if parent != 0 {
        span["parentSpanId"] = json!(format!("{parent:016x}"));
    }
    if failed {
        span["status"] = json!({"code": 2});
    }
    (service.to_owned(), span)
}

fn address(host: &str, port: u64) -> Json {
    json!([{"key": "server.address", "value": {"stringValue": host}}, {"key": "server.port", "value": {"intValue": port.to_string()}}])
}

impl Shop {
    fn request(&mut self, at: u64, fault: Fault) -> Vec<(String, Json)> {
        let trace = u128::from(self.random.draw()) << 64 | u128::from(self.random.draw());
        let id = || self.random.0.wrapping_mul(31) | 1;
        let first = id();
        let ids: Vec<u64> = (0..8).map(|n| first.wrapping_add(n * 2)).collect();
        let query = self.random.around(3 * MS) + fault.database_slow;
        let pay = query + self.random.around(2 * MS);
        let pay_call = pay + self.random.around(MS);
        let stock = self.random.around(4 * MS);
        let stock_call = stock + self.random.around(MS);
        let order = pay_call + stock_call + self.random.around(3 * MS);
        let order_call = order + self.random.around(MS);
        let whole = order_call + self.random.around(2 * MS);
        let pay_failed = self.random.draw() % 100 < fault.payments_fails;
        let failed = pay_failed || fault.inventory_dead;
        let mut spans = vec![
            span("gateway", "POST /buy", 2, (trace, ids[0], 0), (at, at + whole), failed, json!([])),
            span("gateway", "POST", 3, (trace, ids[1], ids[0]), (at + MS, at + MS + order_call), failed, address("orders.shop", 8080)),
            span("orders", "POST /orders", 2, (trace, ids[2], ids[1]), (at + MS, at + MS + order), failed, json!([])),
            span(
                "orders",
                "POST",
                3,
                (trace, ids[3], ids[2]),
                (at + 2 * MS, at + 2 * MS + stock_call),
                fault.inventory_dead,
                address("inventory.shop", 8081),
            ),
            span(
                "orders",
                "POST",
                3,
                (trace, ids[5], ids[2]),
                (at + 3 * MS + stock_call, at + 3 * MS + stock_call + pay_call),
                pay_failed,
                address("payments.shop", 8082),
            ),
            span(
                "payments",
                "POST /charge",
                2,
                (trace, ids[6], ids[5]),
                (at + 3 * MS + stock_call, at + 3 * MS + stock_call + pay),
                pay_failed,
                json!([]),
            ),
            span(
                "payments",
                "SELECT ledger",
                3,
                (trace, ids[7], ids[6]),
                (at + 3 * MS + stock_call, at + 3 * MS + stock_call + query),
                false,
                json!([{"key": "db.system.name", "value": {"stringValue": "postgresql"}}, {"key": "db.namespace", "value": {"stringValue": "ledger"}}]),
            ),
        ];
        if !fault.inventory_dead {
            spans.push(span(
                "inventory",
                "POST /reserve",
                2,
                (trace, ids[4], ids[3]),
                (at + 2 * MS, at + 2 * MS + stock),
                false,
                json!([]),
            ));
        }
        spans
    }

    /// The spans of one second, as each service sends them.
    fn second(&mut self, second: u64, fault: Fault) -> Vec<Vec<u8>> {
        let mut by_service: std::collections::BTreeMap<String, Vec<Json>> = Default::default();
        for n in 0..self.rate {
            let at = START + second * 1_000_000_000 + n * (1_000_000_000 / self.rate);
            for (service, span) in self.request(at, fault) {
                by_service.entry(service).or_default().push(span);
            }
        }
        by_service
            .into_iter()
            .map(|(service, spans)| {
                json!({"resourceSpans": [{"resource": {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}, "scopeSpans": [{"spans": spans}]}]})
                    .to_string()
                    .into_bytes()
            })
            .collect()
    }
}

/// Runs `minutes` of the shop. `fault` says what is wrong in a second; `shuffle` changes the order in which services' requests arrive.
fn run(minutes: u64, shuffle: bool, fault: impl Fn(u64) -> Fault) -> Vec<Incident> {
    let mut shop = Shop { random: Random(7), rate: 10 };
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
        while u64::from(next + 1) * WINDOW + super::watch::ALLOWANCE <= observed.watermark() {
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

#[test]
fn twenty_quiet_minutes_raise_nothing() {
    assert!(run(20, false, |_| Fault::default()).is_empty());
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
fn failures_in_the_first_minute_are_found_by_the_objective() {
    let incidents = run(3, false, |s| Fault { payments_fails: if s >= 30 { 30 } else { 0 }, ..Fault::default() });
    assert_eq!(incidents.len(), 1);
    assert_eq!(incidents[0].diagnosis.origins[0].service, "payments");
}

#[test]
fn the_order_of_arrival_changes_nothing() {
    let fault = |s: u64| Fault { payments_fails: if minute(s) == 8 { 40 } else { 0 }, ..Fault::default() };
    assert_eq!(run(10, false, fault), run(10, true, fault));
}
