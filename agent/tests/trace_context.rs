//! W3C Trace Context through a real service: what comes in over HTTP, what goes out, with the service's own span in between.

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::{get, post};
use firstfall_agent::{Agent, Client, ServerLayer};
use std::sync::{Arc, Mutex};

type Seen = Arc<Mutex<Vec<HeaderMap>>>;

async fn serve(app: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{address}")
}

#[tokio::test]
async fn a_trace_goes_through_a_service_as_the_specification_has_it() {
    through_a_service_with(Agent::new("t")).await;
}

#[tokio::test]
async fn and_so_it_does_the_short_way() {
    through_a_service_with(Agent::new("t").lean()).await;
}

async fn through_a_service_with(agent: Agent) {
    // Built beside the collector, reqwest has TLS without a provider of its own.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let _telemetry = agent.endpoint("http://127.0.0.1:9").init();
    let seen: Seen = Arc::default();
    let keep = |State(seen): State<Seen>, headers: HeaderMap| async move { seen.lock().expect("whole").push(headers) };
    let end = serve(Router::new().route("/", post(keep)).with_state(seen.clone())).await;
    let client = Client::new(reqwest::Client::builder().no_proxy().build().expect("a client"));
    let call = {
        let client = client.clone();
        move || {
            let (client, end) = (client.clone(), end.clone());
            async move { client.post(&end).send().await.map(drop).map_err(|error| error.to_string()) }
        }
    };
    let thrice = {
        let call = call.clone();
        move || async move {
            for _ in 0..3 {
                call().await?;
            }
            Ok::<(), String>(())
        }
    };
    let service = serve(Router::new().route("/", get(call)).route("/thrice", get(thrice)).layer(ServerLayer::new())).await;
    let plain = reqwest::Client::builder().no_proxy().build().expect("a client");
    // Header lines in, and what of them goes on: the trace's id, and the state.
    let ask = async |lines: &[(&str, &str)]| {
        let mut request = plain.get(&service);
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        request.send().await.expect("an answer");
        let headers = seen.lock().expect("whole").pop().expect("it was called");
        let get = |name: &str| {
            let all: Vec<String> = headers.get_all(name).iter().map(|v| v.to_str().expect("text").to_owned()).collect();
            assert!(all.len() <= 1, "one header of each: {all:?}");
            all.into_iter().next().unwrap_or_default()
        };
        (get("traceparent"), get("tracestate"))
    };
    const TRACE: &str = "12345678901234567890123456789012";
    let parent = format!("00-{TRACE}-1234567890123456-01");
    let goes_on = |traceparent: &str| traceparent.starts_with(&format!("00-{TRACE}-")) && !traceparent.contains("-1234567890123456-");

    let (out, state) = ask(&[("traceparent", &parent), ("tracestate", "foo=1"), ("tracestate", "bar=2 , baz=3")]).await;
    assert!(goes_on(&out) && out.ends_with("-01") && state == "foo=1,bar=2,baz=3", "{out} {state}");
    let (out, _) = ask(&[("TraceParent", &parent.replace("-01", "-00"))]).await;
    assert!(goes_on(&out) && out.ends_with("-00"), "not sampled stays so: {out}");
    let (out, _) = ask(&[("traceparent", &format!("{}-later", parent.replacen("00", "cc", 1)))]).await;
    assert!(goes_on(&out), "{out}");
    let key = format!("{}@{}=1", "t".repeat(241), "v".repeat(14));
    let (out, state) = ask(&[("traceparent", &parent), ("tracestate", &key)]).await;
    assert!(goes_on(&out) && state == key, "{out} {state}");
    let (out, state) = ask(&[("traceparent", &parent), ("tracestate", "foo=1,,BAD=2")]).await;
    assert!(goes_on(&out) && state.is_empty(), "{out} {state}");

    for broken in [vec![("traceparent", "00-0-0-01")], vec![("traceparent", parent.as_str()), ("traceparent", parent.as_str())], vec![]] {
        let mut lines = broken.clone();
        lines.push(("tracestate", "foo=1"));
        let (out, state) = ask(&lines).await;
        assert!(out.len() == 55 && !out.contains(TRACE) && state.is_empty(), "{broken:?}: {out} {state}");
    }
    // Several calls are one trace, each of them a span of its own.
    for (came, goes_on) in [(parent.as_str(), true), ("", false)] {
        plain.get(format!("{service}/thrice")).header("traceparent", came).send().await.expect("an answer");
        let sent: Vec<String> =
            seen.lock().expect("whole").drain(..).map(|h| h["traceparent"].to_str().expect("text").to_owned()).collect();
        let parts =
            |range: std::ops::Range<usize>| sent.iter().map(|parent| &parent[range.clone()]).collect::<std::collections::HashSet<_>>();
        assert_eq!((sent.len(), parts(3..35).len(), parts(36..52).len()), (3, 1, 3), "{sent:?}");
        assert_eq!(parts(3..35).contains(TRACE), goes_on, "{sent:?}");
    }
    // Two requests without a trace are two traces.
    assert_ne!(ask(&[]).await.0[3..35], ask(&[]).await.0[3..35]);
}
