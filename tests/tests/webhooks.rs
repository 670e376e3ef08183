//! Told once: notifications through the real binary, to receivers that are well, ill, away and hostile.

use harness::Server;
use harness::hook::{Answer, Call, Hook, free_address};
use harness::server::{binary, wait_for};
use harness::shop::{Fault, Shop};
use std::process::{Command, Stdio};

const SECOND: u64 = 1_000_000_000;
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const FINE: Answer = Answer::Status(204, "", "");

/// The shop's last quarter of an hour: payments begins to fail in the ninth minute.
struct Story {
    shop: Shop,
    second: u64,
}

const FAILS_FROM: u64 = 8 * 60;

impl Story {
    fn new() -> Story {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
        Story { shop: Shop::new((now - 15 * 60 * SECOND) / (10 * SECOND) * 10 * SECOND, 5), second: 0 }
    }

    fn tell(&mut self, server: &Server, seconds: u64, payments_fails: u64) {
        for _ in 0..seconds {
            for body in self.shop.second(self.second, Fault { payments_fails, ..Fault::default() }) {
                let (status, ..) = server.post("/v1/traces", &[("content-type", "application/json")], &body).expect("answered");
                assert_eq!(status, 200);
            }
            self.second += 1;
        }
    }

    fn fails(&mut self, server: &Server) {
        self.tell(server, FAILS_FROM, 0);
        self.tell(server, 90, 60);
    }

    fn recovers(&mut self, server: &Server) {
        self.tell(server, 200, 0);
    }
}

fn settings(directory: &std::path::Path, receivers: &[(&str, &str, &str)]) -> String {
    let path = directory.join("firstfall.toml");
    let sections: Vec<String> = receivers
        .iter()
        .map(|(name, url, more)| format!("[receivers.{name}]\nurl = '{url}'\nallow_private_addresses = true\n{more}\n"))
        .collect();
    std::fs::write(&path, sections.join("\n")).expect("written");
    path.display().to_string()
}

fn events(hook: &Hook) -> Vec<String> {
    hook.calls().iter().map(Call::event).collect()
}

fn wait_for_events(hook: &Hook, expected: &[&str]) {
    wait_for(&format!("{expected:?}"), || {
        let events = events(hook);
        assert!(events.len() <= expected.len(), "{events:?}");
        (events == expected).then_some(())
    });
}

/// Whether an independent library accepts the signature.
fn verify(call: &Call, secret: &str) -> bool {
    let script = "import sys, json\nfrom standardwebhooks.webhooks import Webhook\n\
                  given = json.load(sys.stdin)\nWebhook(given['secret']).verify(given['body'].encode(), given['headers'])\n";
    let python = concat!(env!("CARGO_MANIFEST_DIR"), "/.clients/venv/bin/python");
    let mut child = Command::new(python)
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("Python with standardwebhooks; tests/run installs it");
    let headers: serde_json::Map<String, serde_json::Value> =
        call.headers.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
    let given = serde_json::json!({"secret": secret, "body": call.body, "headers": headers});
    serde_json::to_writer(child.stdin.take().expect("it is piped"), &given).expect("written");
    child.wait().expect("it ends").success()
}

#[test]
fn a_failure_is_told_once_at_its_beginning_and_once_at_its_end_and_both_are_signed() {
    let directory = tempfile::tempdir().expect("a directory");
    let hook = Hook::start(|_| FINE);
    let more = format!("secrets = ['{SECRET}']\nheaders = {{ Authorization = 'Bearer hush-hush' }}");
    let config = settings(directory.path(), &[("oncall", &hook.url, &more)]);
    let server = Server::start_with(directory.path(), &["--config", &config], &[]);
    let mut story = Story::new();
    story.fails(&server);
    wait_for_events(&hook, &["opened"]);
    story.recovers(&server);
    wait_for_events(&hook, &["opened", "resolved"]);

    let calls = hook.calls();
    let (opened, resolved) = (calls[0].json(), calls[1].json());
    assert_eq!((&opened["version"], &opened["status"], &resolved["status"]), (&"4".into(), &"firing".into(), &"resolved".into()));
    assert_eq!(opened["groupKey"], resolved["groupKey"]);
    assert_eq!(opened["alerts"][0]["fingerprint"], resolved["alerts"][0]["fingerprint"]);
    assert_eq!(opened["alerts"][0]["labels"], resolved["alerts"][0]["labels"]);
    assert_eq!(opened["receiver"], "oncall");
    let cascade = &opened["cascade"];
    assert_eq!(cascade["origin"]["service"], "payments", "{cascade}");
    assert!(
        cascade["hops"].as_array().is_some_and(|hops| hops.iter().any(|h| h["from"] == "payments" && h["to"] == "orders")),
        "{cascade}"
    );
    assert!(cascade["sentence"].as_str().is_some_and(|s| s.contains("payments")));
    let trace = cascade["traces"][0].as_str().expect("a failing trace").to_owned();
    assert_eq!(server.page(&format!("/traces/{trace}")).0, 200);
    let id = cascade["id"].as_str().expect("an id").to_owned();
    for call in &calls {
        assert!(verify(call, SECRET) && !verify(call, "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX"), "{call:?}");
        assert!(call.body.len() <= 20_000);
        assert_eq!(call.header("authorization"), "Bearer hush-hush");
    }
    assert_ne!(calls[0].header("webhook-id"), calls[1].header("webhook-id"));

    // Who was told stands on pages and in the API, and no secret does.
    let told = wait_for("both delivered", || {
        let told = server.api("/api/v1/deliveries");
        told["deliveries"].as_array()?.iter().all(|d| d["state"] == "delivered").then_some(told)
    });
    assert_eq!(told["deliveries"].as_array().map(Vec::len), Some(2));
    assert_eq!(told["deliveries"][1]["event"], "opened");
    assert_eq!(told["deliveries"][1]["attempts"][0]["status"], 204);
    for path in ["/alerts/deliveries", &format!("/incidents/{id}"), "/settings", "/metrics", "/api/v1/deliveries"] {
        let (status, page) = server.page(path);
        assert_eq!(status, 200, "{path}");
        assert!(!page.contains("hush-hush") && !page.contains("MfKQ9r8"), "{path} shows a secret");
    }
    assert!(server.page(&format!("/incidents/{id}")).1.contains("oncall"));

    // Once more by hand: the same id and body. A page of another origin cannot make a browser do it.
    let first = told["deliveries"][1]["id"].as_str().expect("an id").to_owned();
    let again = format!("/api/v1/deliveries/{first}/resend");
    assert_eq!(server.post(&again, &[("origin", "http://evil.example")], b"").expect("answered").0, 403);
    assert_eq!(server.post(&again, &[("sec-fetch-site", "cross-site")], b"").expect("answered").0, 403);
    assert_eq!(server.post(&again, &[], b"").expect("answered").0, 200);
    wait_for_events(&hook, &["opened", "resolved", "opened"]);
    let calls = hook.calls();
    assert_eq!((calls[2].header("webhook-id"), &calls[2].body), (first.as_str(), &calls[0].body));
    assert_eq!(server.post("/api/v1/deliveries/msg_none/resend", &[], b"").expect("answered").0, 404);
}

#[test]
fn what_a_receiver_missed_while_it_was_away_and_the_server_was_killed_comes_later_and_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let address = free_address();
    let config = settings(directory.path(), &[("oncall", &format!("http://{address}/hook"), "")]);
    let arguments = ["--config", config.as_str()];
    let server = Server::start_with(directory.path(), &arguments, &[]);
    let mut story = Story::new();
    story.fails(&server);
    wait_for("an attempt that failed", || {
        let told = server.api("/api/v1/deliveries?state=pending");
        (told["deliveries"][0]["attempts"].as_array()?.len() >= 2).then_some(())
    });
    server.kill();

    // It is back, and asks for patience once.
    let hook = Hook::start_at(&address, |n| if n == 0 { Answer::Status(429, "retry-after: 1\r\n", "slowly") } else { FINE });
    let server = Server::start_with(directory.path(), &arguments, &[]);
    wait_for_events(&hook, &["opened", "opened"]);
    let calls = hook.calls();
    assert_eq!(calls[0].header("webhook-id"), calls[1].header("webhook-id"), "it is the same one");
    // Killed before the answer is written down, it would come once more under the same id.
    wait_for("its being written down", || (server.api("/api/v1/deliveries")["deliveries"][0]["state"] == "delivered").then_some(()));
    server.kill();

    let server = Server::start_with(directory.path(), &arguments, &[]);
    story.recovers(&server);
    wait_for_events(&hook, &["opened", "opened", "resolved"]);
    let incidents = server.api("/api/v1/incidents");
    assert_eq!(incidents["incidents"].as_array().map(Vec::len), Some(1), "{incidents}");
}

#[test]
fn an_ill_receiver_harms_nobody_and_what_it_answers_decides_whether_it_is_asked_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let fine = Hook::start(|_| FINE);
    let silent = Hook::start(|_| Answer::Silence);
    let endless = Hook::start(|_| Answer::Endless);
    let elsewhere = Hook::start(|_| FINE);
    let moved = Hook::start({
        let location: &'static str = format!("location: {}\r\n", elsewhere.url).leak();
        move |_| Answer::Status(307, location, "")
    });
    let refusing = Hook::start(|_| Answer::Status(400, "", "<script>alert(1)</script> I do not know you, Bearer hush-hush"));
    let failing = Hook::start(|_| Answer::Status(500, "", "no"));
    let config = settings(
        directory.path(),
        &[
            ("a-silent", &silent.url, "timeout = '500ms'"),
            ("b-endless", &endless.url, "timeout = '2s'"),
            ("c-moved", &moved.url, ""),
            ("d-refusing", &refusing.url, "headers = { Authorization = 'Bearer hush-hush' }"),
            ("e-failing", &failing.url, ""),
            ("f-fine", &fine.url, ""),
        ],
    );
    // Private addresses are refused unless they are meant.
    let text = std::fs::read_to_string(&config).expect("written");
    std::fs::write(
        &config,
        format!("{text}[receivers.g-private]\nurl = '{}'\n[receivers.h-named]\nurl = 'http://localhost:1/'\n", fine.url),
    )
    .expect("written");
    let server = Server::start_with(directory.path(), &["--config", &config], &[]);
    let mut story = Story::new();
    story.fails(&server);
    wait_for_events(&fine, &["opened"]);
    let delivery = |receiver: &str| server.api(&format!("/api/v1/deliveries?receiver={receiver}"))["deliveries"][0].clone();
    let wait_for_state =
        |receiver: &str, state: &str| wait_for(&format!("{receiver} {state}"), || Some(delivery(receiver)).filter(|d| d["state"] == state));
    for (receiver, reason) in [
        ("c-moved", "answered 307"),
        ("d-refusing", "answered 400"),
        ("g-private", "allow_private_addresses"),
        ("h-named", "allow_private_addresses"),
    ] {
        let failed = wait_for_state(receiver, "failed");
        assert_eq!(failed["attempts"].as_array().map(Vec::len), Some(1), "{failed}");
        assert!(failed["reason"].as_str().is_some_and(|r| r.contains(reason)), "{failed}");
    }
    for receiver in ["a-silent", "e-failing"] {
        wait_for(&format!("a second attempt to {receiver}"), || {
            let waiting = delivery(receiver);
            assert_eq!(waiting["state"], "pending", "{waiting}");
            (waiting["attempts"].as_array()?.len() >= 2).then_some(())
        });
    }
    // It said 200; what follows that is not our concern.
    wait_for_state("b-endless", "delivered");
    assert_eq!(elsewhere.calls().len(), 0, "a redirect is not followed");
    assert_eq!(fine.calls().len(), 1);
    let (_, page) = server.page("/alerts/deliveries");
    assert!(page.contains("I do not know you") && !page.contains("hush-hush") && !page.contains("<script>"), "{page}");
    assert!(server.memory_kib("VmHWM") < 512 << 10, "an endless answer is not kept");
    let metrics = server.page("/metrics").1;
    assert!(metrics.contains("firstfall_deliveries{receiver=\"d-refusing\",state=\"failed\"} 1"), "{metrics}");
}

#[test]
fn a_receiver_can_be_tried_before_it_is_needed() {
    let directory = tempfile::tempdir().expect("a directory");
    let fine = Hook::start(|_| FINE);
    let refusing = Hook::start(|_| Answer::Status(401, "", "who are you"));
    let more = format!("secrets = ['{SECRET}']");
    let config = settings(directory.path(), &[("fine", &fine.url, &more), ("refusing", &refusing.url, "")]);
    let run = |arguments: &[&str]| {
        let output = Command::new(binary()).args(["webhook", "test", "--config", &config]).args(arguments).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, out, _) = run(&["fine"]);
    assert!(code == Some(0) && out.contains("fine opened 204") && out.contains("fine resolved 204"), "{out}");
    assert!(fine.calls().iter().all(|call| verify(call, SECRET)));
    let (code, out, error) = run(&[]);
    assert!(code == Some(1) && out.contains("refusing opened 401") && error.contains("1 of 2 receivers"), "{out} {error}");
    let (code, _, error) = run(&["nobody"]);
    assert!(code == Some(2) && error.contains("fine, refusing"), "{error}");
}
