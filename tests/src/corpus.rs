//! The frozen corpus of the benchmark: spans and logs of twenty services, as a protobuf encoder would send them.
//!
//! A trace is about 33 spans: a gateway's request, calls through services (SERVER and CLIENT spans in pairs), database and cache calls
//! at the leaves. A span has 12 attributes by the semantic conventions and 500 to 600 bytes. Values are as scattered as in real traffic:
//! constants (method, host, protocol), small sets (routes, status, pods), and things that never repeat (paths with ids, client
//! addresses, user ids). Two in a hundred requests fail, with an exception event. Logs have bodies of 80 to 200 bytes with numbers and ids in
//! them, three attributes and the ids of a span.
//!
//! Bodies are encoded once. `Template::patch` gives ids and times of its own to each sending, so no two requests are alike and the
//! generator costs next to nothing. Everything is drawn from one seeded generator: the same seed, the same bytes. FROZEN: a change here makes
//! earlier figures incomparable; add a second corpus instead.

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound
    }

    /// The time to the next of events that come as they like, so many a second; nanoseconds.
    pub fn gap(&mut self, rate: f64) -> f64 {
        let uniform = (self.below(1_000_000) + 1) as f64 / 1e6;
        -uniform.ln() * 1e9 / rate
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len() as u64) as usize]
    }

    /// Spread over orders of magnitude, as durations are.
    fn long_tailed(&mut self, typical: u64) -> u64 {
        let u = (self.draw() >> 11) as f64 / (1u64 << 53) as f64;
        (typical as f64 * 0.3 * (-(1.0 - u).ln()).exp().min(40.0)) as u64 + 1
    }
}

/// An encoded request, and where its ids and times stand.
#[derive(Clone)]
pub struct Template {
    pub body: Vec<u8>,
    pub items: usize,
    trace_ids: Vec<usize>,
    span_ids: Vec<usize>,
    times: Vec<usize>,
}

impl Template {
    /// Writes the body with other ids and with times moved to `at` (nanoseconds). The same `salt` gives the same ids.
    pub fn patch(&self, salt: u64, at: u64, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.body);
        let mut random = Random::new(salt);
        let (trace_salt, trace_salt2, span_salt) = (random.draw(), random.draw(), random.draw() | 1 << 63);
        let change = |out: &mut Vec<u8>, at: usize, f: &dyn Fn(u64) -> u64| {
            let bytes: [u8; 8] = out[at..at + 8].try_into().expect("eight bytes");
            out[at..at + 8].copy_from_slice(&f(u64::from_le_bytes(bytes)).to_le_bytes());
        };
        for position in &self.trace_ids {
            change(out, *position, &|v| v ^ trace_salt);
            change(out, *position + 8, &|v| v ^ trace_salt2);
        }
        for position in &self.span_ids {
            change(out, *position, &|v| v ^ span_salt);
        }
        for position in &self.times {
            change(out, *position, &|v| v.wrapping_sub(BASE).wrapping_add(at));
        }
    }
}

/// The time at which the templates begin.
const BASE: u64 = 1_700_000_000_000_000_000;

const SERVICES: [&str; 20] = [
    "gateway",
    "catalog",
    "cart",
    "orders",
    "payments",
    "inventory",
    "users",
    "sessions",
    "search",
    "recommendations",
    "pricing",
    "shipping",
    "email",
    "reviews",
    "fraud",
    "ledger",
    "images",
    "coupons",
    "audit",
    "reports",
];
const RESOURCES: [&str; 8] = ["products", "orders", "users", "carts", "payments", "items", "sessions", "quotes"];
const METHODS: [&str; 4] = ["GET", "GET", "POST", "PUT"];
const AGENTS: [&str; 6] = [
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148",
    "okhttp/4.12.0",
    "python-requests/2.32.3",
    "Go-http-client/2.0",
    "curl/8.5.0",
];

/// A protobuf writer that notes where patchable fields stand.
#[derive(Default)]
struct Message {
    bytes: Vec<u8>,
    trace_ids: Vec<usize>,
    span_ids: Vec<usize>,
    times: Vec<usize>,
}

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    fn tag(&mut self, number: u64, wire: u64) {
        self.varint(number << 3 | wire);
    }

    fn text(&mut self, number: u64, text: &str) {
        self.tag(number, 2);
        self.varint(text.len() as u64);
        self.bytes.extend_from_slice(text.as_bytes());
    }

    fn number(&mut self, number: u64, value: u64) {
        self.tag(number, 0);
        self.varint(value);
    }

    fn time(&mut self, number: u64, value: u64) {
        self.tag(number, 1);
        self.times.push(self.bytes.len());
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn trace_id(&mut self, number: u64, id: [u64; 2]) {
        self.tag(number, 2);
        self.varint(16);
        self.trace_ids.push(self.bytes.len());
        self.bytes.extend(id.iter().flat_map(|part| part.to_le_bytes()));
    }

    fn span_id(&mut self, number: u64, id: u64) {
        self.tag(number, 2);
        self.varint(8);
        self.span_ids.push(self.bytes.len());
        self.bytes.extend_from_slice(&id.to_le_bytes());
    }

    fn message(&mut self, number: u64, inner: Message) {
        self.tag(number, 2);
        self.varint(inner.bytes.len() as u64);
        let offset = self.bytes.len();
        self.bytes.extend_from_slice(&inner.bytes);
        for (to, from) in [(&mut self.trace_ids, inner.trace_ids), (&mut self.span_ids, inner.span_ids), (&mut self.times, inner.times)] {
            to.extend(from.into_iter().map(|at| at + offset));
        }
    }

    fn attribute(&mut self, number: u64, key: &str, value: &str) {
        let mut any = Message::default();
        any.text(1, value);
        self.pair(number, key, any);
    }

    fn attribute_int(&mut self, number: u64, key: &str, value: u64) {
        let mut any = Message::default();
        any.number(3, value);
        self.pair(number, key, any);
    }

    fn pair(&mut self, number: u64, key: &str, any: Message) {
        let mut pair = Message::default();
        pair.text(1, key);
        pair.message(2, any);
        self.message(number, pair);
    }

    fn template(self, items: usize) -> Template {
        Template { body: self.bytes, items, trace_ids: self.trace_ids, span_ids: self.span_ids, times: self.times }
    }
}

fn resource(service: usize, random: &mut Random) -> Message {
    let mut resource = Message::default();
    resource.attribute(1, "service.name", SERVICES[service]);
    resource.attribute(1, "service.namespace", "shop");
    resource.attribute(1, "service.version", ["2.4.0", "2.4.1"][(service == 4 && random.below(2) == 1) as usize]);
    resource.attribute(1, "service.instance.id", &format!("{}-7d9f8b6c4-{:05}", SERVICES[service], service * 7 + random.below(3) as usize));
    resource.attribute(1, "deployment.environment.name", "production");
    resource.attribute(1, "telemetry.sdk.language", "rust");
    resource.attribute(1, "telemetry.sdk.name", "opentelemetry");
    resource.attribute(1, "telemetry.sdk.version", "0.33.1");
    resource
}

struct Span {
    service: usize,
    message: Message,
}

struct Trace<'a> {
    random: &'a mut Random,
    id: [u64; 2],
    spans: Vec<Span>,
}

impl Trace<'_> {
    fn span(&mut self, service: usize, parent: u64, name: &str, kind: u64, start: u64, duration: u64) -> (Message, u64) {
        let mut span = Message::default();
        let id = self.random.draw() | 1;
        span.trace_id(1, self.id);
        span.span_id(2, id);
        if parent != 0 {
            span.span_id(4, parent);
        }
        span.text(5, name);
        span.number(6, kind);
        span.time(7, start);
        span.time(8, start + duration);
        let _ = service;
        (span, id)
    }

    fn finish(&mut self, service: usize, mut span: Message, failed: bool, at: u64) {
        if failed {
            let mut event = Message::default();
            event.time(1, at);
            event.text(2, "exception");
            event.attribute(3, "exception.type", "TimeoutError");
            event.attribute(3, "exception.message", &format!("no answer from upstream after {} ms", self.random.below(5000)));
            event.attribute(
                3,
                "exception.stacktrace",
                "at shop::call (src/call.rs:118)\nat shop::handle (src/handle.rs:42)\nat tokio::task (task.rs:331)",
            );
            span.message(11, event);
            let mut status = Message::default();
            status.text(2, "upstream timed out");
            status.number(3, 2);
            span.message(15, status);
        }
        span.bytes.extend([0x85, 0x01, 0x01, 0x01, 0x00, 0x00]); // flags: sampled, context known
        self.spans.push(Span { service, message: span });
    }

    /// A request handled by a service, with what it calls.
    fn request(&mut self, service: usize, parent: u64, start: u64, depth: u32) -> u64 {
        let resource = self.random.pick(&RESOURCES);
        let method = self.random.pick(&METHODS);
        let route = format!("/api/v1/{resource}/{{id}}");
        let path = format!("/api/v1/{resource}/{}", self.random.below(2_000_000));
        let failed = self.random.below(100) < 2;
        let own = self.random.long_tailed(4_000_000);
        let (id, mut now) = (self.random.draw() | 1, start + own / 3);
        let calls = if depth == 0 { 3 } else { self.random.below(if depth == 1 { 3 } else { 2 }) };
        let mut children = Vec::new();
        for _ in 0..calls {
            let callee = (service + 1 + self.random.below(18) as usize) % 20;
            let client_start = now + self.random.below(200_000);
            let client_id = self.random.draw() | 1;
            let (there, back) = (150_000 + self.random.below(400_000), 120_000 + self.random.below(300_000));
            let end = self.request(callee, client_id, client_start + there, depth + 1) + back;
            children.push((callee, client_id, client_start, end));
            now = end;
        }
        for _ in 0..1 + self.random.below(3) {
            let took = self.random.long_tailed(900_000);
            let begun = now + self.random.below(100_000);
            self.database(service, id, begun, took);
            now += took + 50_000;
        }
        let end = now + own / 2;
        for (callee, client_id, client_start, client_end) in children {
            self.client(service, id, callee, client_id, client_start, client_end - client_start);
        }
        let (mut span, _) = self.span(service, parent, &format!("{method} {route}"), 2, start, end - start);
        overwrite_id(&mut span, id);
        span.attribute(9, "http.request.method", method);
        span.attribute(9, "url.scheme", "https");
        span.attribute(9, "url.path", &path);
        span.attribute(9, "http.route", &route);
        span.attribute_int(
            9,
            "http.response.status_code",
            if failed { 503 } else { [200, 200, 200, 201, 404][self.random.below(5) as usize] },
        );
        span.attribute(9, "server.address", &format!("{}.shop.svc.cluster.local", SERVICES[service]));
        span.attribute_int(9, "server.port", 8080);
        let client = format!("10.{}.{}.{}", self.random.below(4), self.random.below(256), self.random.below(256));
        span.attribute(9, "client.address", &client);
        span.attribute(9, "network.protocol.version", "1.1");
        let agent = self.random.pick(&AGENTS);
        span.attribute(9, "user_agent.original", agent);
        span.attribute(9, "user.id", &format!("user-{}", self.random.below(400_000)));
        span.attribute_int(9, "http.response.body.size", self.random.long_tailed(4000));
        self.finish(service, span, failed, end - 1000);
        end
    }

    fn client(&mut self, service: usize, parent: u64, callee: usize, id: u64, start: u64, duration: u64) {
        let resource = self.random.pick(&RESOURCES);
        let method = self.random.pick(&METHODS);
        let (mut span, _) = self.span(service, parent, method, 3, start, duration);
        overwrite_id(&mut span, id);
        let host = format!("{}.shop.svc.cluster.local", SERVICES[callee]);
        span.attribute(9, "http.request.method", method);
        span.attribute(9, "url.full", &format!("http://{host}:8080/api/v1/{resource}/{}?expand=items", self.random.below(2_000_000)));
        span.attribute(9, "server.address", &host);
        span.attribute_int(9, "server.port", 8080);
        span.attribute_int(9, "http.response.status_code", [200, 200, 200, 201, 404][self.random.below(5) as usize]);
        span.attribute(9, "network.protocol.name", "http");
        span.attribute(9, "network.protocol.version", "1.1");
        span.attribute(9, "network.peer.address", &format!("10.42.{}.{}", callee, 10 + self.random.below(3)));
        span.attribute_int(9, "network.peer.port", 8080);
        span.attribute_int(9, "http.request.resend_count", 0);
        span.attribute(9, "thread.name", "tokio-runtime-worker");
        span.attribute_int(9, "thread.id", 2 + self.random.below(8));
        self.finish(service, span, false, start);
    }

    fn database(&mut self, service: usize, parent: u64, start: u64, duration: u64) {
        let table = self.random.pick(&RESOURCES);
        let (mut span, _) = self.span(service, parent, &format!("SELECT {table}"), 3, start, duration);
        span.attribute(9, "db.system.name", "postgresql");
        span.attribute(9, "db.namespace", &format!("{}_production", SERVICES[service]));
        span.attribute(9, "db.collection.name", table);
        span.attribute(9, "db.operation.name", "SELECT");
        span.attribute(
            9,
            "db.query.text",
            &format!("SELECT id, name, state, updated_at FROM {table} WHERE id = $1 AND tenant = $2 LIMIT 1"),
        );
        span.attribute(9, "server.address", &format!("pg-{}.db.svc.cluster.local", service % 4));
        span.attribute_int(9, "server.port", 5432);
        span.attribute(9, "db.user", SERVICES[service]);
        span.attribute_int(9, "db.response.returned_rows", self.random.below(20));
        span.attribute(9, "db.client.connection.pool.name", "main");
        span.attribute(9, "thread.name", "tokio-runtime-worker");
        span.attribute_int(9, "thread.id", 2 + self.random.below(8));
        self.finish(service, span, false, start);
    }
}

fn overwrite_id(span: &mut Message, id: u64) {
    let at = span.span_ids[0];
    span.bytes[at..at + 8].copy_from_slice(&id.to_le_bytes());
}

fn group(spans: Vec<Span>, random: &mut Random, schema: &str, scope_name: &str) -> Message {
    let mut request = Message::default();
    let mut by_service: Vec<Vec<Message>> = (0..SERVICES.len()).map(|_| Vec::new()).collect();
    for span in spans {
        by_service[span.service].push(span.message);
    }
    for (service, spans) in by_service.into_iter().enumerate().filter(|(_, spans)| !spans.is_empty()) {
        let mut scope = Message::default();
        scope.text(1, scope_name);
        scope.text(2, "0.34.0");
        let mut scope_group = Message::default();
        scope_group.message(1, scope);
        for span in spans {
            scope_group.message(2, span);
        }
        scope_group.text(3, schema);
        let mut resource_group = Message::default();
        resource_group.message(1, resource(service, random));
        resource_group.message(2, scope_group);
        request.message(1, resource_group);
    }
    request
}

/// `count` trace requests of about `spans` spans each, whole traces.
pub fn traces(seed: u64, count: usize, spans: usize) -> Vec<Template> {
    let mut random = Random::new(seed);
    (0..count)
        .map(|_| {
            let mut all = Vec::new();
            let mut at = BASE;
            while all.len() < spans {
                at += random.below(40_000_000);
                let id = [random.draw() | 1, random.draw()];
                let mut trace = Trace { random: &mut random, id, spans: Vec::new() };
                trace.request(0, 0, at, 0);
                all.append(&mut trace.spans);
            }
            let items = all.len();
            group(all, &mut random, "https://opentelemetry.io/schemas/1.36.0", "shop").template(items)
        })
        .collect()
}

/// `count` log requests of `records` records each.
pub fn logs(seed: u64, count: usize, records: usize) -> Vec<Template> {
    let mut random = Random::new(seed);
    (0..count)
        .map(|_| {
            let mut all = Vec::new();
            let mut at = BASE;
            for _ in 0..records {
                at += random.below(3_000_000);
                let service = random.below(20) as usize;
                let resource = random.pick(&RESOURCES);
                let (severity, text, body) = match random.below(20) {
                    0 => (17, "ERROR", format!("request to {resource} failed: no answer from 10.42.{}.{}:8080 after {} ms, giving up after {} attempts (order {})", random.below(20), random.below(250), random.below(5000), 1 + random.below(4), random.below(9_000_000))),
                    1 | 2 => (13, "WARN", format!("slow query on {resource}: took {} ms for {} rows, tenant {} on replica pg-{}, statement cached", random.below(3000), random.below(900), random.below(4000), random.below(4))),
                    3..=8 => (9, "INFO", format!("handled {} /api/v1/{resource}/{} for user-{} in {} us with status 200 and {} bytes", random.pick(&METHODS), random.below(2_000_000), random.below(400_000), random.below(90_000), random.long_tailed(4000))),
                    9..=14 => (9, "INFO", format!("published event {resource}.updated id={} partition={} offset={} to topic shop-events, acknowledged by all replicas", random.below(9_000_000), random.below(32), random.below(900_000_000))),
                    _ => (5, "DEBUG", format!("cache lookup for {resource}:{} was a {} in {} us; the entry lives {} s more", random.below(2_000_000), random.pick(&["hit", "miss"]), random.below(900), random.below(3600))),
                };
                let mut log = Message::default();
                log.time(1, at);
                log.number(2, severity);
                log.text(3, text);
                let mut any = Message::default();
                any.text(1, &body);
                log.message(5, any);
                log.attribute(6, "code.file.path", &format!("src/{resource}.rs"));
                log.attribute_int(6, "code.line.number", 10 + random.below(40) * 7);
                log.attribute(6, "thread.name", "tokio-runtime-worker");
                log.bytes.extend([0x45, 0x01, 0x00, 0x00, 0x00]); // flags: sampled
                log.trace_id(9, [random.draw() | 1, random.draw()]);
                log.span_id(10, random.draw() | 1);
                log.time(11, at + random.below(60_000));
                all.push(Span { service, message: log });
            }
            group(all, &mut random, "https://opentelemetry.io/schemas/1.36.0", "shop::handlers").template(records)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::collector::{logs::v1::ExportLogsServiceRequest, trace::v1::ExportTraceServiceRequest};
    use prost::Message as _;

    #[test]
    fn the_corpus_is_what_it_says() {
        let template = &traces(1, 1, 512)[0];
        let mut body = Vec::new();
        template.patch(7, BASE, &mut body);
        let request = ExportTraceServiceRequest::decode(&body[..]).expect("valid protobuf");
        let spans: Vec<_> = request.resource_spans.iter().flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans).collect();
        assert_eq!(spans.len(), template.items);
        let size = body.len() / spans.len();
        assert!((500..=620).contains(&size), "{size} bytes a span");
        assert!(spans.iter().all(|s| s.attributes.len() == 12), "12 attributes");
        let traces: std::collections::HashSet<_> = spans.iter().map(|s| &s.trace_id).collect();
        let per_trace = spans.len() / traces.len();
        assert!((15..=50).contains(&per_trace), "{per_trace} spans a trace");
        let ids: std::collections::HashSet<_> = spans.iter().map(|s| &s.span_id).collect();
        assert_eq!(ids.len(), spans.len());
        assert!(spans.iter().all(|s| s.parent_span_id.is_empty() || ids.contains(&s.parent_span_id)), "whole traces");
        let mut log_body = Vec::new();
        logs(1, 1, 512)[0].patch(7, BASE, &mut log_body);
        ExportLogsServiceRequest::decode(&log_body[..]).expect("valid protobuf");
        assert!((250..=350).contains(&(log_body.len() / 512)), "{} bytes a log", log_body.len() / 512);
    }
}
