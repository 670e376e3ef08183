//! Delivery: a task for each receiver takes what is due from the outbox, sends it, and writes down what was answered. Receivers wait for
//! nobody else: one that hangs holds up its own notifications only.
//!
//! Tried again: time-outs, broken connections, 5xx and 429, with growing pauses, or after the time that `Retry-After` names. Not tried again:
//! every other answer, since it would be the same tomorrow. Redirects are not followed: a receiver that moves says where to, and a person
//! changes the settings.

use super::receiver::Receiver;
use super::{DELIVERY_AGE_MAX, Outbox, sign};
use crate::ingest::now;
use firstfall_dashboard::{Alerting, ReceiverInfo};
use firstfall_store::delivery::{Attempt, Delivery, DeliveryQuestion, Due, Outcome};
use firstfall_store::{Error, Nanos, Reader};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

const SECOND: Nanos = 1_000_000_000;
/// The first pause; it doubles with each attempt …
const PAUSE_FIRST: Nanos = SECOND;
/// … up to this, so that a receiver that was down for minutes is told within minutes of its return.
const PAUSE_MAX: Nanos = 300 * SECOND;
/// `Retry-After` is obeyed up to an hour: past it a mistake is likelier than a wish.
const RETRY_AFTER_MAX: Nanos = 3600 * SECOND;
/// Bytes of an answer that are read …
const ANSWER_BYTES_READ: usize = 16 << 10;
/// … and characters of it that are kept.
const ANSWER_CHARS_KEPT: usize = 300;
/// Even without news the outbox is looked at so often: the wall clock may have been set.
const LOOK: Duration = Duration::from_secs(60);
/// More than what is waited for anyway, as a last resort.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// After the outbox could not be read or written (a full disk).
const REST: Duration = Duration::from_secs(5);

/// Starts the tasks; they end when `stopped` says so, an attempt under way is made again after the next start.
pub fn start(outbox: &Arc<Outbox>, reader: &Reader, stopped: &watch::Receiver<bool>) -> Vec<tokio::task::JoinHandle<()>> {
    let known: Vec<String> = outbox.receivers.iter().map(|r| r.name.clone()).collect();
    if let Err(error) = reader.give_up_unknown_receivers(&known, now()) {
        tracing::warn!(%error, "the outbox cannot be written");
    }
    (0..outbox.receivers.len())
        .map(|at| {
            let (outbox, reader, mut stopped) = (outbox.clone(), reader.clone(), stopped.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = deliver_all(&outbox, at, reader) => {}
                    _ = stopped.wait_for(|stop| *stop) => {}
                }
            })
        })
        .collect()
}

async fn deliver_all(outbox: &Outbox, at: usize, reader: Reader) {
    let receiver = outbox.receivers[at].clone();
    let client = match client(&receiver) {
        Ok(client) => client,
        Err(error) => {
            tracing::error!(receiver = receiver.name, error, "nothing can be delivered");
            return;
        }
    };
    loop {
        match next(&reader, &receiver.name).await {
            Ok(Due::Now(delivery)) => {
                let (sent, outcome) = if now() > delivery.give_up_at {
                    let answer = "not sent: it had waited for too long".to_owned();
                    let attempt = Attempt { at: now(), took_ns: 0, status: None, answer: answer.clone() };
                    (attempt, Outcome::Failed { reason: answer })
                } else {
                    let sent = send(&client, &receiver, &delivery.id, &delivery.body).await;
                    let outcome = outcome(&sent, &delivery);
                    (sent.attempt, outcome)
                };
                if let Outcome::Failed { reason } = &outcome {
                    tracing::warn!(receiver = receiver.name, id = delivery.id, reason, "a notification cannot be delivered");
                }
                write_down(&reader, delivery.number, sent, outcome).await;
            }
            Ok(Due::At(time)) => sleep_until(time, outbox, at).await,
            Ok(Due::Nothing) => sleep_until(Nanos::MAX, outbox, at).await,
            Err(error) => {
                tracing::warn!(%error, "the outbox cannot be read");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

/// Writes an attempt down, and does not go on before that is done: what is not known to be delivered would be sent again and again.
async fn write_down(reader: &Reader, number: i64, attempt: Attempt, outcome: Outcome) {
    let mut rest = REST;
    loop {
        let (reader, attempt, outcome) = (reader.clone(), attempt.clone(), outcome.clone());
        let kept = tokio::task::spawn_blocking(move || {
            reader.keep_attempt(number, &attempt, &outcome)?;
            reader.forget_deliveries()
        });
        match kept.await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => tracing::warn!(%error, "an attempt cannot be written down"),
            Err(panicked) => tracing::error!(%panicked, "an attempt cannot be written down"),
        }
        tokio::time::sleep(rest).await;
        rest = (rest * 2).min(LOOK);
    }
}

async fn next(reader: &Reader, receiver: &str) -> Result<Due, Error> {
    let (reader, receiver) = (reader.clone(), receiver.to_owned());
    let found = tokio::task::spawn_blocking(move || reader.next_delivery(&receiver, now())).await;
    found.unwrap_or(Err(Error::TooMuch("something that went wrong inside; the log has more")))
}

async fn sleep_until(time: Nanos, outbox: &Outbox, at: usize) {
    let pause = Duration::from_nanos(time.saturating_sub(now())).min(LOOK);
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        () = outbox.wake[at].notified() => {}
    }
}

/// What came of sending once.
pub struct Sent {
    pub attempt: Attempt,
    /// Whether the same may succeed later.
    transient: bool,
    retry_after: Option<Nanos>,
}

impl Sent {
    pub fn is_delivered(&self) -> bool {
        self.attempt.status.is_some_and(|status| (200..300).contains(&status))
    }
}

/// Sends a body once.
pub async fn send(client: &reqwest::Client, receiver: &Receiver, id: &str, body: &str) -> Sent {
    let at = now();
    let start = Instant::now();
    // The status has to come in time; what follows it is cut off then.
    let deadline = tokio::time::Instant::now() + receiver.timeout;
    let answer = tokio::time::timeout(receiver.timeout + LAST_WORDS, post(client, receiver, id, at / SECOND, body, deadline)).await;
    let took_ns = start.elapsed().as_nanos() as Nanos;
    let attempt = |status, answer: &str| Attempt { at, took_ns, status, answer: readable(&receiver.without_secrets(answer)) };
    match answer {
        Err(_) => {
            Sent { attempt: attempt(None, &format!("no whole answer within {:?}", receiver.timeout)), transient: true, retry_after: None }
        }
        Ok(Err(Failure { transient, message })) => Sent { attempt: attempt(None, &message), transient, retry_after: None },
        Ok(Ok(Answer { status, retry_after, text })) => {
            Sent { attempt: attempt(Some(status), &text), transient: status == 429 || status >= 500, retry_after }
        }
    }
}

struct Answer {
    status: u16,
    retry_after: Option<Nanos>,
    text: String,
}

struct Failure {
    transient: bool,
    message: String,
}

async fn post(
    client: &reqwest::Client,
    receiver: &Receiver,
    id: &str,
    timestamp: u64,
    body: &str,
    deadline: tokio::time::Instant,
) -> Result<Answer, Failure> {
    if let Some(address) = literal_address(&receiver.url)
        && !receiver.allow_private_addresses
        && is_private(address)
    {
        return Err(Failure { transient: false, message: private(&address.to_string()) });
    }
    let mut request = client
        .post(receiver.url.clone())
        .header("content-type", "application/json")
        .header("webhook-id", id)
        .header("webhook-timestamp", timestamp.to_string());
    if !receiver.secrets.is_empty() {
        request = request.header("webhook-signature", sign::signatures(&receiver.secrets, id, timestamp, body));
    }
    for (name, value) in &receiver.headers {
        request = request.header(name, value);
    }
    let sent = tokio::time::timeout_at(deadline, request.body(body.to_owned()).send()).await;
    let late = |_| Failure { transient: true, message: format!("no answer within {:?}", receiver.timeout) };
    let mut response = sent.map_err(late)?.map_err(|error| failure(&error))?;
    let status = response.status().as_u16();
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let retry_after = header("retry-after").and_then(|text| retry_after(&text, now()));
    if (300..400).contains(&status) {
        let to = header("location").unwrap_or_default();
        return Ok(Answer {
            status,
            retry_after,
            text: format!("it redirects to {to}, which is not followed; put the final address into the settings"),
        });
    }
    let mut text = Vec::new();
    // An answer that breaks off or stalls after its status is still an answer.
    let read = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            text.extend_from_slice(&chunk);
            if text.len() > ANSWER_BYTES_READ {
                break;
            }
        }
    };
    let _ = tokio::time::timeout_at(deadline, read).await;
    text.truncate(ANSWER_BYTES_READ);
    Ok(Answer { status, retry_after, text: String::from_utf8_lossy(&text).into_owned() })
}

/// The error without the address, which may be a secret, but with its causes, which say what is wrong.
fn failure(error: &reqwest::Error) -> Failure {
    let mut message = String::new();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(error) = cause {
        if error.downcast_ref::<PrivateAddress>().is_some() {
            return Failure { transient: false, message: error.to_string() };
        }
        message.push_str(if message.is_empty() { "" } else { ": " });
        message.push_str(&error.to_string());
        cause = error.source();
    }
    Failure { transient: !error.is_builder(), message: if message.is_empty() { "the request failed".to_owned() } else { message } }
}

/// The first characters of a text, on one line.
fn readable(text: &str) -> String {
    text.trim().chars().take(ANSWER_CHARS_KEPT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn outcome(sent: &Sent, delivery: &Delivery) -> Outcome {
    if sent.is_delivered() {
        return Outcome::Delivered;
    }
    let what = match sent.attempt.status {
        Some(status) => format!("answered {status}"),
        None => sent.attempt.answer.clone(),
    };
    if !sent.transient {
        return Outcome::Failed { reason: format!("{what}; such an answer is not tried again") };
    }
    let end = sent.attempt.at + sent.attempt.took_ns;
    let made = delivery.attempts.len() as u32 + 1;
    // A wish for no pause at all would be a hot loop.
    let at = end.saturating_add(sent.retry_after.unwrap_or(0).max(pause(made, &delivery.id)));
    if at > delivery.give_up_at {
        return Outcome::Failed { reason: format!("{what}; tried {made} times, for a day") };
    }
    Outcome::Again { at, reason: what }
}

/// The pause after so many attempts: doubled each time, and between half and the whole of that, by the id, so that what failed together does
/// not come again together.
fn pause(made: u32, id: &str) -> Nanos {
    let whole = PAUSE_FIRST.saturating_mul(1 << made.saturating_sub(1).min(20)).min(PAUSE_MAX);
    let jitter = xxhash_rust::xxh3::xxh3_64_with_seed(id.as_bytes(), made.into()) % 1000;
    whole / 2 + whole / 2 * jitter / 1000
}

/// Seconds, or a date.
fn retry_after(text: &str, now: Nanos) -> Option<Nanos> {
    let pause = match text.trim().parse::<u64>() {
        Ok(seconds) => seconds.saturating_mul(SECOND),
        Err(_) => {
            let date = httpdate::parse_http_date(text.trim()).ok()?;
            let at = date.duration_since(std::time::UNIX_EPOCH).ok()?.as_nanos() as Nanos;
            at.saturating_sub(now)
        }
    };
    Some(pause.min(RETRY_AFTER_MAX))
}

/// The client of a receiver.
pub fn client(receiver: &Receiver) -> Result<reqwest::Client, String> {
    // Another part of the program may have chosen a provider already; any will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        // A proxy would resolve the name, and the address that is checked would not be the one that is reached.
        .no_proxy()
        .user_agent(concat!("firstfall/", env!("CARGO_PKG_VERSION")))
        .dns_resolver(Arc::new(Public { allow_private: receiver.allow_private_addresses }))
        .pool_max_idle_per_host(1)
        .build()
        .map_err(|error| error.without_url().to_string())
}

/// Resolves names, and refuses private addresses at the only place where it helps: the address that is then connected to.
struct Public {
    allow_private: bool,
}

#[derive(Debug)]
struct PrivateAddress(String);

impl std::fmt::Display for PrivateAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&private(&self.0))
    }
}

impl std::error::Error for PrivateAddress {}

fn private(address: &str) -> String {
    format!("{address} is a loopback or private address; set allow_private_addresses = true for this receiver if it is meant")
}

impl Resolve for Public {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let refused = found.iter().find(|address| !allow_private && is_private(address.ip())).map(|address| address.ip());
            let allowed: Vec<SocketAddr> = found.into_iter().filter(|address| allow_private || !is_private(address.ip())).collect();
            match refused {
                Some(address) if allowed.is_empty() => Err(PrivateAddress(format!("{} is at {address}, which", name.as_str())).into()),
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

fn literal_address(url: &reqwest::Url) -> Option<IpAddr> {
    url.host_str()?.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// Loopback, private (RFC 1918, 4193), link-local, shared (RFC 6598), unspecified, multicast and broadcast.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || a == 0
                || (a == 100 && (64..128).contains(&b))
        }
        IpAddr::V6(v6) => {
            let first = v6.segments()[0];
            v6.to_ipv4_mapped().is_some_and(|v4| is_private(v4.into()))
                || v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || first & 0xfe00 == 0xfc00
                || first & 0xffc0 == 0xfe80
        }
    }
}

/// What pages may do and see.
pub struct Alerts {
    pub outbox: Arc<Outbox>,
    pub reader: Reader,
}

impl Alerting for Alerts {
    fn receivers(&self) -> Vec<ReceiverInfo> {
        let info = |r: &Arc<Receiver>| ReceiverInfo { name: r.name.clone(), place: r.place(), signed: !r.secrets.is_empty() };
        self.outbox.receivers.iter().map(info).collect()
    }

    fn resend(&self, id: &str) -> Result<bool, Error> {
        let question = DeliveryQuestion { id: Some(id.to_owned()), limit: 1, ..DeliveryQuestion::default() };
        let found = self.reader.deliveries(&question)?;
        // Nobody would send it.
        if !found.iter().any(|d| self.outbox.receivers.iter().any(|r| r.name == d.receiver)) {
            return Ok(false);
        }
        let again = self.reader.resend(id, now(), now() + DELIVERY_AGE_MAX)?;
        self.outbox.wake();
        Ok(again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firstfall_store::delivery::DeliveryState;

    #[test]
    fn pauses_grow_to_five_minutes_and_differ_between_deliveries() {
        for made in 1..40 {
            let whole = (SECOND << (made - 1).min(20)).min(PAUSE_MAX);
            for id in ["msg_a", "msg_b", "msg_c"] {
                assert!((whole / 2..=whole).contains(&pause(made, id)), "after {made} attempts");
            }
        }
        assert_ne!(pause(9, "msg_a"), pause(9, "msg_b"));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_never_more_than_an_hour() {
        let now = 1_700_000_000 * SECOND;
        let check = |text: &str, seconds: Option<u64>| assert_eq!(retry_after(text, now), seconds.map(|s| s * SECOND), "{text:?}");
        check("7", Some(7));
        check("99999999999999", Some(3600));
        check("Tue, 14 Nov 2023 22:13:30 GMT", Some(10));
        check("Tue, 14 Nov 2000 22:13:30 GMT", Some(0));
        check("soon", None);
        check("-1", None);
    }

    #[test]
    fn what_may_pass_later_is_tried_again_and_nothing_else() {
        let delivery = Delivery {
            number: 1,
            id: "msg_1".into(),
            receiver: "r".into(),
            incident: "i".into(),
            event: "opened".into(),
            revision: 1,
            body: "{}".into(),
            created_at: 0,
            state: DeliveryState::Pending,
            next_attempt_at: 0,
            give_up_at: DELIVERY_AGE_MAX,
            finished_at: None,
            reason: String::new(),
            attempts: Vec::new(),
        };
        let check = |status: Option<u16>, at: Nanos, expected: &str| {
            let transient = status.is_none_or(|s| s == 429 || s >= 500);
            let sent = Sent { attempt: Attempt { at, status, ..Attempt::default() }, transient, retry_after: None };
            let found = match outcome(&sent, &delivery) {
                Outcome::Delivered => "delivered",
                Outcome::Again { at: again, .. } => {
                    assert!(again > at);
                    "again"
                }
                Outcome::Failed { .. } => "failed",
            };
            assert_eq!(found, expected, "{status:?}");
        };
        for status in [200, 202, 204] {
            check(Some(status), 0, "delivered");
        }
        for status in [301, 307, 400, 401, 404, 408, 410, 413] {
            check(Some(status), 0, "failed");
        }
        for status in [429, 500, 501, 503] {
            check(Some(status), 0, "again");
        }
        check(None, 0, "again");
        check(None, DELIVERY_AGE_MAX, "failed");
        // "Retry-After: 0" is no invitation to a hot loop.
        let eager = Sent { attempt: Attempt { status: Some(503), ..Attempt::default() }, transient: true, retry_after: Some(0) };
        assert!(matches!(outcome(&eager, &delivery), Outcome::Again { at, .. } if at >= PAUSE_FIRST / 2));
    }

    #[test]
    fn addresses_within_are_known() {
        for within in [
            "127.0.0.1",
            "10.1.2.3",
            "192.168.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "::1",
            "fd00::1",
            "fe80::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(is_private(within.parse().expect("an address")), "{within}");
        }
        for outside in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111"] {
            assert!(!is_private(outside.parse().expect("an address")), "{outside}");
        }
    }
}
