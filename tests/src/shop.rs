//! A small shop, second by second, for timelines of failure: OTLP/JSON bodies as its services would send them, the same each time.

use crate::corpus::Random;
use serde_json::{Value as Json, json};

const MS: u64 = 1_000_000;

/// gateway → orders → payments → database, and orders → inventory. What is wrong at a second is said by `fault`.
pub struct Shop {
    random: Random,
    /// Requests a second.
    rate: u64,
    /// When its first second begins.
    start: u64,
}

#[derive(Clone, Copy, Default)]
pub struct Fault {
    /// payments fails by itself this often, in percent.
    pub payments_fails: u64,
    /// payments itself takes so much longer.
    pub payments_slow: u64,
    /// Each database query takes so much longer.
    pub database_slow: u64,
    /// inventory does not answer at all.
    pub inventory_dead: bool,
    /// payments refuses so many of its calls with 429, in percent.
    pub payments_refuses: u64,
    /// orders gives up on payments after so long; 0: it waits.
    pub orders_waits: u64,
    /// Of the requests that go well only one in eight is kept, and says so; all of those that fail are.
    pub sampled: bool,
    /// payments says that it is version 2 instead of 1.
    pub payments_new: bool,
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
    pub fn new(start: u64, rate: u64) -> Shop {
        Shop { random: Random::new(7), rate, start }
    }

    /// A duration around `typical`, in nanoseconds.
    fn around(&mut self, typical: u64) -> u64 {
        typical * (70 + self.random.below(60)) / 100
    }

    fn request(&mut self, at: u64, fault: Fault) -> Vec<(String, Json)> {
        let trace = u128::from(self.random.draw()) << 64 | u128::from(self.random.draw());
        let first = self.random.draw() | 1;
        let ids: Vec<u64> = (0..8).map(|n| first.wrapping_add(n * 2)).collect();
        let query = self.around(3 * MS) + fault.database_slow;
        let pay = query + self.around(2 * MS) + fault.payments_slow;
        let pay_call = pay + self.around(MS);
        let stock = self.around(4 * MS);
        let stock_call = stock + self.around(MS);
        let order = pay_call + stock_call + self.around(3 * MS);
        let order_call = order + self.around(MS);
        let whole = order_call + self.around(2 * MS);
        let draw = self.random.draw() % 100;
        let pay_failed = draw < fault.payments_fails;
        let refused = draw < fault.payments_refuses;
        let given_up = fault.orders_waits > 0 && pay_call > fault.orders_waits;
        let (waited, unpaid) = (if given_up { fault.orders_waits } else { pay_call }, pay_failed || given_up);
        let failed = unpaid || refused || fault.inventory_dead;
        let mut to_payments = address("payments.shop", 8082);
        let mut at_payments = json!([]);
        if refused {
            let status = json!({"key": "http.response.status_code", "value": {"intValue": "429"}});
            [&mut to_payments, &mut at_payments].into_iter().for_each(|list| list.as_array_mut().expect("a list").push(status.clone()));
        }
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
                (at + 3 * MS + stock_call, at + 3 * MS + stock_call + waited),
                // Clients mark a refusal as an error.
                unpaid || refused,
                to_payments,
            ),
            span(
                "payments",
                "POST /charge",
                2,
                (trace, ids[6], ids[5]),
                (at + 3 * MS + stock_call, at + 3 * MS + stock_call + pay),
                pay_failed,
                at_payments,
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
    pub fn second(&mut self, second: u64, fault: Fault) -> Vec<Vec<u8>> {
        let mut by_service: std::collections::BTreeMap<String, Vec<Json>> = Default::default();
        for n in 0..self.rate {
            let at = self.start + second * 1_000_000_000 + n * (1_000_000_000 / self.rate);
            let mut spans = self.request(at, fault);
            if fault.sampled {
                let failed = spans[0].1.get("status").is_some();
                if !failed && self.random.below(8) > 0 {
                    continue;
                }
                let state = if failed { "ot=th:0" } else { "ot=th:e" };
                spans.iter_mut().for_each(|(_, span)| span["traceState"] = json!(state));
            }
            for (service, span) in spans {
                by_service.entry(service).or_default().push(span);
            }
        }
        by_service
            .into_iter()
            .map(|(service, spans)| {
                let version = if fault.payments_new && service == "payments" { "2" } else { "1" };
                json!({"resourceSpans": [{"resource": {"attributes": [{"key": "service.name", "value": {"stringValue": service}},
                    {"key": "service.version", "value": {"stringValue": version}}]}, "scopeSpans": [{"spans": spans}]}]})
                .to_string()
                .into_bytes()
            })
            .collect()
    }
}
