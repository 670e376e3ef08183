//! Hostile input over both transports: a clear answer, the process alive, the next client served, every loss counted with its reason.

use collector::decode::{self, Format};
use collector::validate::{Intake, Limits, Reason};
use firstfall_store::Signal;
use harness::grpc::{Grpc, frame, method};
use harness::{Server, agree, corpus};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use serde_json::json;
use std::io::Write;

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// Ten gigabytes of zeros in about ten megabytes: many gzip members, each within the limit of a request.
fn gzip_bomb() -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let zeros = vec![0u8; 1 << 20];
    for _ in 0..32 {
        encoder.write_all(&zeros).expect("into memory");
    }
    encoder.finish().expect("into memory").repeat(320)
}

/// The same in zstd: frames that name no size.
fn zstd_bomb() -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("into memory");
    let zeros = vec![0u8; 1 << 20];
    for _ in 0..1024 {
        encoder.write_all(&zeros).expect("into memory");
    }
    encoder.finish().expect("into memory").repeat(10)
}

#[test]
fn thirty_two_bombs_on_both_transports_are_refused_within_the_budget_of_memory() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let before = server.memory_kib("VmRSS");
    let (gzip, zstd) = (gzip_bomb(), zstd_bomb());
    std::thread::scope(|scope| {
        for n in 0..32 {
            let (server, gzip, zstd) = (&server, &gzip, &zstd);
            scope.spawn(move || {
                let (encoding, bomb) = if n % 4 < 2 { ("gzip", gzip) } else { ("zstd", zstd) };
                if n % 2 == 0 {
                    let headers = [("content-type", "application/x-protobuf"), ("content-encoding", encoding)];
                    let (status, ..) = server.post("/v1/traces", &headers, bomb).expect("answered");
                    assert!(status == 413 || status == 429, "{status}");
                } else {
                    let mut grpc = Grpc::connect(&server.grpc).expect("connected");
                    let answer =
                        grpc.call(method("traces"), &[("grpc-encoding", encoding)], frame(true, bomb)).expect("answered, not cut off");
                    // RESOURCE_EXHAUSTED either way; with a retry hint only where the budget of all was what stood in the way.
                    assert_eq!(answer.status, 8, "{answer:?}");
                    assert!(answer.details.is_none() || !answer.message.contains("limit of a request"), "{answer:?}");
                }
            });
        }
    });
    let grown = server.memory_kib("VmHWM") - before;
    assert!(grown < 384 << 10, "{grown} KiB more than before");
    // Alone, each is told that it is too large and will always be.
    let headers = [("content-type", "application/x-protobuf"), ("content-encoding", "gzip")];
    assert_eq!(server.post("/v1/traces", &headers, &gzip).expect("answered").0, 413);
    let mut grpc = Grpc::connect(&server.grpc).expect("connected");
    let answer = grpc.call(method("traces"), &[("grpc-encoding", "zstd")], frame(true, &zstd)).expect("answered");
    assert!(answer.status == 8 && answer.details.is_none(), "{answer:?}");
    let mut body = Vec::new();
    corpus::traces(51, 1, 40)[0].patch(1, now() - 3_000_000_000, &mut body);
    assert_eq!(server.send("traces", &body), 200);
    assert_eq!(grpc.export("traces", &body).expect("answered").status, 0);
    let refused = &server.api("/api/v1/stats")["rejected"]["requests"];
    assert!(refused["too_large"].as_u64() >= Some(2), "{refused}");
}

#[test]
fn a_call_that_is_no_call_is_refused_by_grpc_s_rules() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start_with(directory.path(), &[], &[("FIRSTFALL_LIMITS_REQUEST_BYTES_MAX", "1MiB")]);
    let mut grpc = Grpc::connect(&server.grpc).expect("connected");
    let mut status = |path: &str, headers: &[(&str, &str)], body: Vec<u8>| grpc.call(path, headers, body).expect("answered").status;
    let traces = method("traces");
    assert_eq!(status("/nothing/Here", &[], frame(false, b"")), 12, "UNIMPLEMENTED");
    assert_eq!(status(traces, &[], Vec::new()), 3, "no message");
    assert_eq!(status(traces, &[], frame(false, b"abc")[..6].to_vec()), 3, "a message that is shorter than it says");
    assert_eq!(status(traces, &[], frame(true, b"abc")), 3, "compressed, nobody says how");
    assert_eq!(status(traces, &[("grpc-encoding", "snappy")], frame(true, b"abc")), 12, "an encoding that we do not have");
    assert_eq!(status(traces, &[("grpc-encoding", "gzip")], frame(true, b"not gzip")), 3);
    assert_eq!(status(traces, &[], frame(false, &[0x0a, 0xff])), 3);
    // Larger than a request may be: RESOURCE_EXHAUSTED without a retry hint, so that no client sends it again for ever.
    let answer = grpc.call(traces, &[], frame(false, &vec![0; 2 << 20])).expect("answered");
    assert!(answer.status == 8 && answer.details.is_none(), "{answer:?}");
    assert_eq!(grpc.export("traces", b"").expect("answered").status, 0, "and the connection still works");
}

fn text(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(any_value::Value::StringValue(value.into())) }), ..KeyValue::default() }
}

fn a_span(number: u64, name: String) -> Span {
    let start = now() - 3_000_000_000;
    Span {
        trace_id: u128::from(number + 1).to_be_bytes().to_vec(),
        span_id: (number + 1).to_be_bytes().to_vec(),
        name,
        kind: 2,
        start_time_unix_nano: start,
        end_time_unix_nano: start + 1_000_000,
        ..Span::default()
    }
}

fn group(service: String, spans: Vec<Span>) -> ResourceSpans {
    ResourceSpans {
        resource: Some(Resource { attributes: vec![text("service.name", &service)], ..Resource::default() }),
        scope_spans: vec![ScopeSpans { spans, ..ScopeSpans::default() }],
        ..ResourceSpans::default()
    }
}

#[test]
fn services_and_operations_without_end_are_counted_under_other_and_pages_open() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    for part in 0..20u64 {
        let groups = (0..1000).map(|n| group(format!("service-{part}-{n}"), vec![a_span(part * 1000 + n, "GET /".into())])).collect();
        assert_eq!(server.send("traces", &ExportTraceServiceRequest { resource_spans: groups }.encode_to_vec()), 200);
    }
    for part in 0..20u64 {
        let spans = (0..5000).map(|n| a_span(100_000 + part * 5000 + n, format!("operation {part} {n}"))).collect();
        let groups = vec![group("service-0-0".into(), spans)];
        assert_eq!(server.send("traces", &ExportTraceServiceRequest { resource_spans: groups }.encode_to_vec()), 200);
    }
    let stats = server.api("/api/v1/stats");
    assert_eq!(stats["stored"]["spans"], json!(120_000));
    assert!(stats["other"].as_u64().is_some_and(|other| other > 90_000), "{}", stats["other"]);
    let services = server.api("/api/v1/services")["services"].as_array().map_or(0, Vec::len);
    assert!((1000..=5001).contains(&services), "{services} services");
    for page in ["/", "/services", "/services/service-0-0", "/traces", "/logs", "/settings"] {
        assert_eq!(server.page(page).0, 200, "{page}");
    }
    assert_eq!(server.sql("SELECT count(DISTINCT service) FROM spans"), [[json!(20_000)]], "the spans themselves keep their names");
}

#[test]
fn a_huge_trace_opens_in_parts() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let trace = 7u128.to_be_bytes().to_vec();
    for part in 0..12u64 {
        let span = |n: u64| {
            let number = part * 5000 + n;
            let parent = if number == 0 { Vec::new() } else { (number / 2 + 1).to_be_bytes().to_vec() };
            Span { trace_id: trace.clone(), parent_span_id: parent, ..a_span(number, format!("step {}", n % 7)) }
        };
        let groups = vec![group("batch".into(), (0..5000).map(span).collect())];
        assert_eq!(server.send("traces", &ExportTraceServiceRequest { resource_spans: groups }.encode_to_vec()), 200);
    }
    let id = "00000000000000000000000000000007";
    let (status, page) = server.page(&format!("/traces/{id}"));
    assert!(status == 200 && page.contains("of 60000, by start"), "the page says how many spans there are");
    let (status, last) = server.page(&format!("/traces/{id}?next=59500"));
    assert!(status == 200 && last.contains("step "), "its last part opens");
    let part = server.api(&format!("/api/v1/traces/{id}?limit=1000"));
    assert_eq!(part["spans"].as_array().map(Vec::len), Some(1000), "{}", part["total"]);
}

/// A span, log record or point with text that is not UTF-8, wherever in it, is refused alone; so are the items of a sender or a scope that
/// has such text.
#[test]
fn text_that_is_not_utf_8_is_refused_wherever_it_stands() {
    const MARK: &[u8] = b"@@@@";
    for signal in Signal::ALL {
        let marked = harness::samples::marked(signal, "@@@@");
        let places: Vec<usize> = marked.windows(4).enumerate().filter(|(_, w)| *w == MARK).map(|(at, _)| at).collect();
        assert!(places.len() >= 8, "{signal:?} has {} texts", places.len());
        let read = |body: &[u8]| {
            let mut intake = Intake::new(signal, Limits::default(), agree::NOW, body.len());
            decode::request(Format::Protobuf, signal, &mut body.to_vec(), &mut intake).expect("the frame is sound");
            let (batch, discards) = intake.finish();
            (batch.rows() as u64, discards)
        };
        let (all, _) = read(&marked);
        for place in places {
            let mut body = marked.clone();
            body[place..place + 4].copy_from_slice(&[b'a', 0xff, 0xfe, 0x80]);
            let (kept, discards) = read(&body);
            let refused = discards.rejected[Reason::NotUtf8 as usize];
            assert_eq!(kept + refused, all, "{signal:?}, the text at {place}");
            assert_eq!(refused, discards.rejected_total(), "{signal:?}, the text at {place}: for another reason");
            assert!(refused > 0, "{signal:?}, the text at {place} of {} passes for text", body.len());
        }
    }
}
