//! Real OpenTelemetry clients, unchanged: Python (Flask and FastAPI under `opentelemetry-instrument`) over gRPC, HTTP/protobuf and the JSON
//! exporter; Node (Express) over HTTP/JSON; a Rust service with our agent. Each value that a client recorded is found again through the API.
//!
//! `tests/run` installs the packages into `tests/.clients`.

use harness::{Server, Signal, example, signal, wait_for};
use serde_json::{Value as Json, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

fn installed() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".clients");
    assert!(path.join("venv").exists(), "the clients are not installed; run tests/run once");
    path
}

/// A client process, ended by its id.
struct Client {
    child: Child,
    port: u16,
}

impl Client {
    fn start(mut command: Command, service: &str, environment: &[(&str, &str)]) -> Client {
        // A port that was free a moment ago; the services cannot say which they took.
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let child = command
            .env("PORT", port.to_string())
            .env("OTEL_SERVICE_NAME", service)
            .env("OTEL_RESOURCE_ATTRIBUTES", "service.version=1.0.0,service.namespace=tests,deployment.environment.name=ci")
            .env("NO_PROXY", "127.0.0.1,localhost")
            .envs([("OTEL_TRACES_EXPORTER", "otlp"), ("OTEL_METRICS_EXPORTER", "otlp"), ("OTEL_LOGS_EXPORTER", "otlp")])
            .envs([("OTEL_BSP_SCHEDULE_DELAY", "100"), ("OTEL_BLRP_SCHEDULE_DELAY", "100"), ("OTEL_METRIC_EXPORT_INTERVAL", "500")])
            .env("OTEL_METRIC_EXPORT_TIMEOUT", "400")
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .spawn()
            .expect("the client starts");
        let client = Client { child, port };
        wait_for(service, || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        client
    }

    fn python(file: &str, service: &str, protocol: &str, server: &Server, more: &[(&str, &str)]) -> Client {
        let bin = installed().join("venv/bin");
        // SIGINT ends it in order, with everything flushed; it must not be ignored, as it is for children of a background shell.
        let mut command = Command::new("env");
        command.arg("--default-signal=INT").arg(bin.join("opentelemetry-instrument")).arg(bin.join("python")).arg(clients().join(file));
        let (grpc, http) = (format!("http://{}", server.grpc), format!("http://{}", server.otlp));
        let mut environment = vec![("OTEL_EXPORTER_OTLP_ENDPOINT", if protocol == "grpc" { grpc.as_str() } else { http.as_str() })];
        if protocol == "json" {
            environment.extend(["OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER"].map(|k| (k, "otlp_json_http")));
        } else {
            environment.push(("OTEL_EXPORTER_OTLP_PROTOCOL", if protocol == "grpc" { "grpc" } else { "http/protobuf" }));
        }
        environment.extend(more);
        Client::start(command, service, &environment)
    }

    fn get(&self, path: &str) -> u16 {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        agent.get(format!("http://127.0.0.1:{}{path}", self.port)).call().expect("the client's service answers").status().as_u16()
    }

    /// Ends it and waits until it has flushed.
    fn end(mut self) {
        signal(self.child.id(), Signal::INT);
        wait_for("the client to end", || self.child.try_wait().ok().flatten());
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The span of a name, from the API, with everything.
fn span(server: &Server, service: &str, name: &str) -> Json {
    let encoded = name.replace(' ', "%20").replace('<', "%3C").replace('>', "%3E").replace('/', "%2F");
    let found = wait_for(name, || {
        let found = server.api(&format!("/api/v1/traces?service={service}&operation={encoded}&limit=1"));
        found["traces"][0]["trace_id"].as_str().map(str::to_owned)
    });
    let trace = server.api(&format!("/api/v1/traces/{found}"));
    let spans = trace["spans"].as_array().expect("a list");
    let mut span =
        spans.iter().find(|s| s["service"] == json!(service) && s["name"] == json!(name)).expect("the span is in its trace").clone();
    span["trace_id"] = json!(found);
    span
}

fn python_values() -> Json {
    json!({
        "v.string": "grüße, 世界 \"quoted\"\n", "v.empty": "", "v.int": 42, "v.int.zero": 0, "v.int.negative": -7,
        "v.int.beyond53": 9_007_199_254_740_993i64, "v.int.max": i64::MAX, "v.int.min": i64::MIN,
        "v.double": 0.1, "v.double.whole": 3.0, "v.double.tiny": 5e-324, "v.double.huge": 1.797_693_134_862_315_7e308,
        "v.bool.true": true, "v.bool.false": false,
        "v.array.string": ["a", "b", ""], "v.array.int": [1, -2, 9_007_199_254_740_993i64], "v.array.double": [0.5, 1.0],
        "v.array.bool": [true, false], "v.array.empty": [],
    })
}

fn python_clients_are_found_value_for_value(protocol: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let flask = Client::python("flask_app.py", "flask-app", protocol, &server, &[]);
    let url = format!("http://127.0.0.1:{}", flask.port);
    let fastapi = Client::python("fastapi_app.py", "fastapi-app", protocol, &server, &[("FLASK_URL", &url)]);
    assert_eq!(fastapi.get("/hello/ann"), 200);
    assert_eq!(flask.get("/fail"), 500);
    assert_eq!(flask.get("/link/ann"), 200);
    assert_eq!(fastapi.get("/upstream-fail"), 502);
    fastapi.end();
    flask.end();

    let values = span(&server, "flask-app", "values");
    assert_eq!(values["attributes"], python_values());
    assert_eq!(values["status"]["code"], json!("ok"));
    assert_eq!(values["scope"]["name"], json!("flask_app.manual"));
    assert_eq!(values["resource"]["service.version"], json!("1.0.0"));
    assert_eq!(values["events"][0]["attributes"], json!({"event.int": 9_007_199_254_740_993i64, "event.text": "ann"}));
    // One trace through both services.
    let outer = span(&server, "fastapi-app", "ask flask");
    assert_eq!(outer["attributes"], json!({"name": "ann", "n": 1, "f": 1.5, "b": true}));
    assert_eq!(outer["trace_id"], values["trace_id"]);
    let linked = span(&server, "flask-app", "linked");
    assert_eq!(linked["links"][0]["attributes"], json!({"link.int": 1}));
    assert_eq!(linked["links"][0]["trace_id"], linked["trace_id"]);
    let failed = span(&server, "flask-app", "GET /fail");
    assert_eq!((failed["status"]["code"].as_str(), failed["kind"].as_str()), (Some("error"), Some("server")));
    assert_eq!(failed["events"][0]["attributes"]["exception.message"], json!("price missing: flask"));

    let logs = server.api(&format!(
        "/api/v1/logs?service=flask-app&q=%22hello%20ann%22&min_severity=warn&trace_id={}",
        values["trace_id"].as_str().expect("an id")
    ));
    let log = &logs["logs"][0];
    assert_eq!(log["body"], json!("hello ann"));
    let expected = json!({"x.int": 9_007_199_254_740_993i64, "x.float": 2.5, "x.bool": true, "x.str": "täxt"});
    for (key, value) in expected.as_object().expect("pairs") {
        assert_eq!(&log["attributes"][key], value, "{key}");
    }
    assert!(log["span_id"].is_string());

    let services = server.api("/api/v1/services");
    let service =
        |name: &str| services["services"].as_array().and_then(|l| l.iter().find(|s| s["name"] == json!(name)).cloned()).expect(name);
    assert_eq!((service("flask-app")["requests"].as_u64(), service("flask-app")["errors"].as_u64()), (Some(4), Some(2)));
    assert_eq!((service("fastapi-app")["requests"].as_u64(), service("fastapi-app")["environment"].as_str()), (Some(2), Some("ci")));
    let operations = server.api("/api/v1/services/flask-app")["operations"].clone();
    assert!(operations.as_array().expect("a list").iter().any(|o| o["name"] == json!("GET /hello/<name>") && o["kind"] == json!("server")));
    let points = server.sql("SELECT type, unit, value, attributes FROM points WHERE metric = 'greetings' AND service = 'flask-app' ORDER BY time_ns DESC LIMIT 1");
    assert_eq!((&points[0][0], &points[0][1], points[0][2].as_f64()), (&json!("sum"), &json!("{greeting}"), Some(1.0)));
    let stats = server.api("/api/v1/stats");
    assert_eq!(stats["rejected"], json!({"spans": {}, "logs": {}, "points": {}, "requests": {}}), "nothing of a real client is refused");
}

#[test]
fn python_over_grpc() {
    python_clients_are_found_value_for_value("grpc");
}

#[test]
fn python_over_http_protobuf() {
    python_clients_are_found_value_for_value("protobuf");
}

#[test]
fn python_over_the_json_exporter() {
    python_clients_are_found_value_for_value("json");
}

#[test]
fn node_over_http_json() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let installed = installed().join("node");
    // Node looks for packages beside the file.
    std::fs::copy(clients().join("app.js"), installed.join("app.js")).expect("the service's file");
    let mut command = Command::new("env");
    command
        .args(["--default-signal=INT", "node", "--require", "@opentelemetry/auto-instrumentations-node/register", "app.js"])
        .current_dir(&installed);
    let endpoint = format!("http://{}", server.otlp);
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_NODE_RESOURCE_DETECTORS", "env,host,os,process,serviceinstance"),
    ];
    let node = Client::start(command, "node-app", &environment);
    assert_eq!(node.get("/hello/ann"), 200);
    assert_eq!(node.get("/odd"), 200);
    assert_eq!(node.get("/toobig"), 200);
    assert_eq!(node.get("/fail"), 500);
    node.end();
    let values = span(&server, "node-app", "values");
    let attributes = &values["attributes"];
    // JavaScript has one kind of number: 3.0 is sent as the integer 3, and its JSON loses digits beyond 2^53.
    let expected = json!({
        "v.string": "grüße, 世界 \"quoted\"\n", "v.empty": "", "v.int": 42, "v.int.zero": 0, "v.int.negative": -7,
        "v.int.safe": 9_007_199_254_740_991i64, "v.double": 0.1, "v.double.whole": 3, "v.bool.true": true, "v.bool.false": false,
        "v.array.string": ["a", "b", ""], "v.array.double": [0.5, 1.25], "v.array.bool": [true, false], "v.array.null": ["a", null], "v.array.empty": [],
    });
    for (key, value) in expected.as_object().expect("pairs") {
        assert_eq!(&attributes[key], value, "{key}");
    }
    assert!((attributes["v.int.beyond53"].as_i64().expect("an integer") - (1 << 60)).abs() < 2000);
    assert_eq!(span(&server, "node-app", "toobig")["attributes"], json!({"v.two63": 9_223_372_036_854_775_808.0f64, "v.1e300": 1e300}));
    assert_eq!(span(&server, "node-app", "odd")["attributes"]["v.nan"], json!("NaN"));
    let logs = server.api("/api/v1/logs?service=node-app&q=hello");
    assert_eq!(logs["logs"][0]["trace_id"], values["trace_id"]);
    assert_eq!(logs["logs"][0]["attributes"]["x.map"], json!({"a": 1, "b": [true, null, "c"]}));
    assert_eq!(server.api("/api/v1/stats")["rejected"]["spans"], json!({}));
}

#[test]
fn a_rust_service_with_the_agent() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let endpoint = format!("http://{}", server.otlp);
    let start = |service: &str| {
        let mut command = Command::new("env");
        command.arg("--default-signal=INT").arg(example("axum_service"));
        Client::start(command, service, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)])
    };
    let (front, back) = (start("rust-front"), start("rust-back"));
    assert_eq!(front.get(&format!("/ask?url=http://127.0.0.1:{}/hello/ann", back.port)), 200);
    assert_eq!(front.get("/ask?url=http://127.0.0.1:1/nobody"), 502);
    assert_eq!(back.get("/fail"), 500);
    front.end();
    back.end();

    let values = span(&server, "rust-back", "values");
    let expected = json!({
        "v.string": "grüße, 世界", "v.int": i64::MIN, "v.double": 0.1, "v.bool": true, "name": "ann",
        "v.array.int": [1, -2, i64::MAX], "v.array.string": ["a", ""],
    });
    for (key, value) in expected.as_object().expect("pairs") {
        assert_eq!(&values["attributes"][key], value, "{key}");
    }
    assert_eq!(values["resource"]["service.version"], json!("1.0.0"), "OTEL_RESOURCE_ATTRIBUTES go over what code says");
    // One trace through both services: server, client, server, and what is in it.
    let trace = server.api(&format!("/api/v1/traces/{}", values["trace_id"].as_str().expect("an id")));
    let spans = trace["spans"].as_array().expect("a list").clone();
    let find =
        |service: &str, name: &str| spans.iter().find(|s| s["service"] == json!(service) && s["name"] == json!(name)).expect(name).clone();
    let (asked, call, answered) = (find("rust-front", "GET /ask"), find("rust-front", "GET"), find("rust-back", "GET /hello/{name}"));
    assert_eq!((&call["parent_span_id"], &answered["parent_span_id"]), (&asked["span_id"], &call["span_id"]));
    assert_eq!(values["parent_span_id"], answered["span_id"]);
    assert_eq!((call["kind"].as_str(), answered["kind"].as_str()), (Some("client"), Some("server")));
    assert_eq!(answered["attributes"]["http.route"], json!("/hello/{name}"));
    assert_eq!(answered["attributes"]["http.response.status_code"], json!(200));
    let failed = span(&server, "rust-back", "GET /fail");
    assert_eq!((failed["status"]["code"].as_str(), failed["attributes"]["http.response.status_code"].as_i64()), (Some("error"), Some(500)));

    let logs = server.api("/api/v1/logs?service=rust-back&q=%22hello%20ann%22&min_severity=warn");
    let log = &logs["logs"][0];
    assert_eq!((&log["body"], &log["trace_id"], &log["span_id"]), (&json!("hello ann"), &values["trace_id"], &values["span_id"]));
    for (key, value) in json!({"x.int": i64::MAX, "x.float": 2.5, "x.bool": true, "x.str": "täxt"}).as_object().expect("pairs") {
        assert_eq!(&log["attributes"][key], value, "{key}");
    }
    let services = server.api("/api/v1/services");
    let service =
        |name: &str| services["services"].as_array().and_then(|l| l.iter().find(|s| s["name"] == json!(name)).cloned()).expect(name);
    assert_eq!((service("rust-front")["requests"].as_u64(), service("rust-front")["errors"].as_u64()), (Some(2), Some(1)));
    assert_eq!((service("rust-back")["requests"].as_u64(), service("rust-back")["errors"].as_u64()), (Some(2), Some(1)));
    let points = server.sql("SELECT value FROM points WHERE metric = 'greetings' AND service = 'rust-back' ORDER BY time_ns DESC LIMIT 1");
    assert_eq!(points[0][0].as_f64(), Some(1.0));
    let durations = server.sql("SELECT max(count) FROM points WHERE metric = 'http.server.request.duration' AND service = 'rust-back'");
    assert_eq!(durations[0][0].as_f64(), Some(1.0), "one request of each route");
    assert_eq!(server.api("/api/v1/stats")["rejected"], json!({"spans": {}, "logs": {}, "points": {}, "requests": {}}));
}
