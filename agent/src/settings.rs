//! What the agent is told by the environment: the `OTEL_*` variables of the OpenTelemetry specification, which go over what code says, and three of
//! our own (`FIRSTFALL_AGENT_SPOOL`, `FIRSTFALL_AGENT_QUEUE_BYTES`, `FIRSTFALL_AGENT_LEVEL`). A wrong value is named, left out, and never stops the service.

use crate::agent::{Agent, Compression, Protocol};
use crate::sampling::Sampling;
use std::path::PathBuf;
use std::time::Duration;
use tracing_subscriber::filter::LevelFilter;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Propagator {
    TraceContext,
    Baggage,
    B3,
}

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub disabled: bool,
    /// Where spans, logs and metrics go.
    pub addresses: [String; 3],
    pub protocols: [Protocol; 3],
    /// Which of them go out at all.
    pub wanted: [bool; 3],
    pub headers: Vec<(String, String)>,
    pub compression: Compression,
    /// Of one request.
    pub timeout: Duration,
    /// How long items wait for others.
    pub delay: Duration,
    pub metric_interval: Duration,
    pub queue_bytes: usize,
    pub spool: Option<PathBuf>,
    pub spool_bytes: u64,
    pub spool_age: Duration,
    pub sampling: Sampling,
    pub propagators: Vec<Propagator>,
    pub level: LevelFilter,
}

/// With less than a batch's room hardly anything would go out.
const QUEUE_BYTES_MIN: usize = 64 << 10;

/// Nobody means more than a day, and sums of times must not overflow.
pub(crate) const LONGEST: Duration = Duration::from_secs(86_400);

/// Between attempts at reading variables: what was wrong, in sentences that name the variable.
struct Reader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    problems: Vec<String>,
}

impl Reader<'_> {
    fn text(&self, name: &str) -> Option<String> {
        // An empty variable is as if it was not set, says the specification.
        (self.lookup)(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// The first variable that is set, read; when it cannot be, it is named, and nothing is changed.
    fn read<T>(&mut self, names: &[&str], expected: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (name, text) = names.iter().find_map(|name| Some((*name, self.text(name)?)))?;
        let value = parse(&text);
        if value.is_none() {
            // A header may hold a secret, and so may an address.
            let shown = if name.ends_with("_HEADERS") { "its value".to_owned() } else { format!("{:?}", shown(&text)) };
            self.problems.push(format!("{name}: {shown} is not {expected}; it is left out"));
        }
        value
    }

    fn millis(&mut self, name: &str) -> Option<Duration> {
        self.read(&[name], "a number of milliseconds", |text| Some(Duration::from_millis(text.parse().ok()?)))
    }
}

/// An address without what may be secret in it.
pub(crate) fn shown(address: &str) -> String {
    let bare = address.split('?').next().unwrap_or(address);
    let Some((before, rest)) = bare.rsplit_once('@') else { return bare.to_owned() };
    before.split_once("://").map_or_else(|| rest.to_owned(), |(scheme, _)| format!("{scheme}://{rest}"))
}

#[cfg(feature = "_tls")]
const ADDRESS: &str = "an address such as http://127.0.0.1:4318";
#[cfg(not(feature = "_tls"))]
const ADDRESS: &str =
    "an address such as http://127.0.0.1:4318 (https:// needs the Cargo feature `tls-ring` or `tls-aws-lc` of firstfall-agent)";

/// An `http://` or, with a feature for it, `https://` address with a host.
fn is_address(text: &str) -> bool {
    let uri: Option<http::Uri> = text.parse().ok();
    let known = |uri: &http::Uri| matches!(uri.scheme_str(), Some("http")) || cfg!(feature = "_tls") && uri.scheme_str() == Some("https");
    uri.is_some_and(|uri| known(&uri) && uri.host().is_some_and(|host| !host.is_empty()))
}

/// Standard variables that this agent does not look at, and what stands in their place.
const NOT_KNOWN: [(&str, &str); 12] = [
    ("OTEL_BSP_MAX_QUEUE_SIZE", "the queue is bounded in bytes, FIRSTFALL_AGENT_QUEUE_BYTES"),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "requests are cut by their bytes"),
    ("OTEL_BSP_EXPORT_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT is for all signals"),
    ("OTEL_BLRP_SCHEDULE_DELAY", "OTEL_BSP_SCHEDULE_DELAY is for logs too"),
    ("OTEL_BLRP_MAX_QUEUE_SIZE", "the queue is bounded in bytes, FIRSTFALL_AGENT_QUEUE_BYTES"),
    ("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "requests are cut by their bytes"),
    ("OTEL_BLRP_EXPORT_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT is for all signals"),
    ("OTEL_METRIC_EXPORT_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT is for all signals"),
    ("OTEL_EXPORTER_OTLP_CERTIFICATE", "the system's certificates count (SSL_CERT_FILE)"),
    ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "there are no certificates of clients; a token goes into OTEL_EXPORTER_OTLP_HEADERS"),
    ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "there are no certificates of clients; a token goes into OTEL_EXPORTER_OTLP_HEADERS"),
    ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "all metrics are cumulative"),
];

/// What follows `OTEL_EXPORTER_OTLP_`, with or without a signal before it, and `FIRSTFALL_AGENT_`: other names with these beginnings are mistakes.
const OTLP_SETTINGS: [&str; 5] = ["ENDPOINT", "PROTOCOL", "HEADERS", "COMPRESSION", "TIMEOUT"];
const OWN_SETTINGS: [&str; 3] = ["SPOOL", "QUEUE_BYTES", "LEVEL"];

/// Variables that are set and not looked at, each in a sentence: nothing is wrong with the others for that.
pub(crate) fn not_looked_at(names: impl Iterator<Item = String>) -> Vec<String> {
    let known = |name: &str| {
        let otlp = name.strip_prefix("OTEL_EXPORTER_OTLP_").is_none_or(|rest| {
            let of_signal = ["TRACES_", "LOGS_", "METRICS_"].iter().find_map(|signal| rest.strip_prefix(signal));
            match of_signal {
                Some(rest) => matches!(rest, "ENDPOINT" | "PROTOCOL"),
                None => OTLP_SETTINGS.contains(&rest),
            }
        });
        otlp && name.strip_prefix("FIRSTFALL_AGENT_").is_none_or(|rest| OWN_SETTINGS.contains(&rest))
    };
    let told = |name: String| match NOT_KNOWN.iter().find(|(known, _)| *known == name) {
        Some((_, instead)) => Some(format!("{name} is not looked at: {instead}")),
        None if !known(&name) => {
            Some(format!("{name} is not looked at: this agent knows no such setting; those that it knows are in its README"))
        }
        None => None,
    };
    names.filter_map(told).collect()
}

/// `key=value` pairs with commas between them, values percent-encoded (W3C Baggage).
fn headers(text: &str) -> Option<Vec<(String, String)>> {
    text.split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=')?;
            let (name, value) = (name.trim(), percent_decoded(value.trim())?);
            http::HeaderName::from_bytes(name.as_bytes()).ok()?;
            http::HeaderValue::from_str(&value).ok()?;
            Some((name.to_owned(), value))
        })
        .collect()
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(feature = "grpc")]
const PROTOCOLS: &str = "http/protobuf (port 4318) or grpc (port 4317)";
#[cfg(not(feature = "grpc"))]
const PROTOCOLS: &str = "http/protobuf (port 4318), which is all that this agent speaks without its Cargo feature `grpc`";

fn protocol(name: &str) -> Option<Protocol> {
    match name {
        "http/protobuf" => Some(Protocol::HttpProtobuf),
        #[cfg(feature = "grpc")]
        "grpc" => Some(Protocol::Grpc),
        _ => None,
    }
}

fn sampling(name: &str, ratio: f64, told: &Sampling) -> Option<Sampling> {
    Some(match name {
        "always_on" => told.as_named(1.0, false, true),
        // Off is off: failures are not kept either.
        "always_off" => told.as_named(0.0, false, false),
        "traceidratio" => told.as_named(ratio, false, true),
        "parentbased_always_on" => told.as_named(1.0, true, true),
        "parentbased_always_off" => told.as_named(0.0, true, false),
        "parentbased_traceidratio" => told.as_named(ratio, true, true),
        _ => return None,
    })
}

impl Settings {
    /// What code says, and over it what the environment says; with what was wrong.
    pub fn of(agent: &Agent, lookup: &dyn Fn(&str) -> Option<String>) -> (Settings, Vec<String>) {
        let nothing = |_: &str| None;
        let mut reader = Reader { lookup: if agent.environment_counts { lookup } else { &nothing }, problems: Vec::new() };
        for (name, value) in &agent.headers {
            if http::HeaderName::from_bytes(name.as_bytes()).is_err() || http::HeaderValue::from_str(value).is_err() {
                reader.problems.push(format!("header: {name:?} and its value are no header of HTTP; requests to the collector will fail"));
            }
        }
        let yes = |text: &str| match text.to_ascii_lowercase().as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        };
        let disabled = reader.read(&["OTEL_SDK_DISABLED"], "true or false", yes).unwrap_or(false);
        let address = |text: &str| is_address(text).then(|| text.trim_end_matches('/').to_owned());
        let mut base = agent.endpoint.as_ref().map(|base| base.trim_end_matches('/').to_owned());
        if let Some(wrong) = base.take_if(|base| !is_address(base)) {
            reader.problems.push(format!("endpoint: {:?} is not {ADDRESS}; {} is used", shown(&wrong), agent.protocol.endpoint()));
        }
        let mut base = reader.read(&["OTEL_EXPORTER_OTLP_ENDPOINT"], ADDRESS, address).or(base);
        let of_one_signal =
            |base: &str| ["/v1/traces", "/v1/logs", "/v1/metrics"].iter().find_map(|path| base.strip_suffix(path).map(str::to_owned));
        if let Some(bare) = base.as_deref().and_then(of_one_signal) {
            let told = base.as_deref().map(shown).unwrap_or_default();
            reader
                .problems
                .push(format!("endpoint: {told:?} is the address of one signal, where the base is meant; {} is used", shown(&bare)));
            base = Some(bare);
        }
        let protocol = reader.read(&["OTEL_EXPORTER_OTLP_PROTOCOL"], PROTOCOLS, protocol).unwrap_or(agent.protocol);
        let mut protocols = [protocol; 3];
        let mut addresses = [const { String::new() }; 3];
        let mut wanted = [true; 3];
        for (at, signal) in ["TRACES", "LOGS", "METRICS"].into_iter().enumerate() {
            protocols[at] = reader.read(&[&format!("OTEL_EXPORTER_OTLP_{signal}_PROTOCOL")], PROTOCOLS, self::protocol).unwrap_or(protocol);
            // One signal's own address is taken as it is, without /v1/… after it.
            let own = |text: &str| is_address(text).then(|| text.to_owned());
            let own = reader.read(&[&format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")], ADDRESS, own);
            addresses[at] = own.unwrap_or_else(|| {
                let base = base.as_deref().unwrap_or(protocols[at].endpoint());
                match protocols[at] {
                    Protocol::HttpProtobuf => format!("{base}/v1/{}", signal.to_ascii_lowercase()),
                    #[cfg(feature = "grpc")]
                    Protocol::Grpc => base.to_owned(),
                }
            });
            let exporter = |text: &str| match text {
                "none" => Some(false),
                "otlp" => Some(true),
                _ => None,
            };
            if let Some(export) = reader.read(&[&format!("OTEL_{signal}_EXPORTER")], "otlp or none, the exporters of this agent", exporter)
            {
                wanted[at] = export;
            }
        }
        let pairs = "a list such as key=value,key2=value2, percent-encoded";
        let headers = reader.read(&["OTEL_EXPORTER_OTLP_HEADERS"], pairs, headers).unwrap_or_else(|| agent.headers.clone());
        let compression = reader
            .read(&["OTEL_EXPORTER_OTLP_COMPRESSION"], "gzip or none", |text| match text {
                "gzip" => Some(Compression::Gzip),
                "none" => Some(Compression::None),
                _ => None,
            })
            .unwrap_or(agent.compression);
        let timeout = reader.millis("OTEL_EXPORTER_OTLP_TIMEOUT").unwrap_or(agent.timeout);
        let delay = reader.millis("OTEL_BSP_SCHEDULE_DELAY").unwrap_or(agent.span_delay);
        let metric_interval = reader.millis("OTEL_METRIC_EXPORT_INTERVAL").unwrap_or(agent.metric_interval);
        let ratio = |text: &str| text.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        let ratio = reader.read(&["OTEL_TRACES_SAMPLER_ARG"], "a ratio from 0 to 1", ratio).unwrap_or(1.0);
        let sampler = "a sampler that this agent has: parentbased_traceidratio and the others of the specification";
        let sampling = reader
            .read(&["OTEL_TRACES_SAMPLER"], sampler, |name| sampling(name, ratio, &agent.sampling))
            .unwrap_or_else(|| agent.sampling.clone());
        let propagators = reader
            .read(&["OTEL_PROPAGATORS"], "a list of tracecontext, baggage, b3, b3multi, none", |text| {
                text.split(',')
                    .map(str::trim)
                    .filter(|name| *name != "none")
                    .map(|name| match name {
                        "tracecontext" => Some(Propagator::TraceContext),
                        "baggage" => Some(Propagator::Baggage),
                        "b3" | "b3multi" => Some(Propagator::B3),
                        _ => None,
                    })
                    .collect()
            })
            .unwrap_or_else(|| vec![Propagator::TraceContext, Propagator::Baggage, Propagator::B3]);
        let levels = "a level: off, error, warn, info, debug, trace";
        let level = reader.read(&["FIRSTFALL_AGENT_LEVEL"], levels, |text| text.parse().ok()).unwrap_or(agent.level);
        let spool = reader.text("FIRSTFALL_AGENT_SPOOL").map(PathBuf::from).or_else(|| agent.spool.clone());
        let bytes = |text: &str| text.parse().ok().filter(|bytes| *bytes >= QUEUE_BYTES_MIN);
        let queue_bytes =
            reader.read(&["FIRSTFALL_AGENT_QUEUE_BYTES"], "a number of bytes, 65536 or more", bytes).unwrap_or(agent.queue_bytes);
        let settings = Settings {
            disabled,
            addresses,
            protocols,
            wanted,
            headers,
            compression,
            timeout: timeout.clamp(Duration::from_millis(1), LONGEST),
            delay: delay.clamp(Duration::from_millis(10), LONGEST),
            metric_interval: metric_interval.clamp(Duration::from_millis(100), LONGEST),
            queue_bytes: queue_bytes.max(QUEUE_BYTES_MIN),
            spool,
            spool_bytes: agent.spool_bytes,
            spool_age: agent.spool_age,
            sampling,
            propagators,
            level,
        };
        (settings, reader.problems)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn read(variables: &[(&str, &str)]) -> (Settings, Vec<String>) {
        let variables: HashMap<String, String> = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Settings::of(&Agent::new("t"), &|name| variables.get(name).cloned())
    }

    #[test]
    fn the_standard_variables_are_read() {
        let (settings, problems) = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector.example:4318/"),
            ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://logs.example/in"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc, x-team = shop"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
            ("OTEL_METRICS_EXPORTER", "none"),
            ("OTEL_SDK_DISABLED", "TRUE"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ("OTEL_PROPAGATORS", "b3, tracecontext"),
            ("OTEL_BSP_SCHEDULE_DELAY", ""),
        ]);
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(settings.addresses[0], "http://collector.example:4318/v1/traces");
        assert_eq!(settings.addresses[1], "http://logs.example/in");
        assert_eq!(settings.headers, [("authorization".to_owned(), "Bearer abc".to_owned()), ("x-team".to_owned(), "shop".to_owned())]);
        assert_eq!((settings.compression, settings.timeout), (Compression::Gzip, Duration::from_millis(2500)));
        assert_eq!((settings.wanted, settings.disabled), ([true, true, false], true));
        assert_eq!(settings.propagators, [Propagator::B3, Propagator::TraceContext]);
    }

    #[test]
    fn a_wrong_value_is_named_and_the_rest_holds() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "no pair"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_TRACES_SAMPLER", "sometimes"),
            ("OTEL_TRACES_SAMPLER_ARG", "10%"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
            ("OTEL_SDK_DISABLED", "yes"),
            ("OTEL_PROPAGATORS", "jaeger"),
            ("FIRSTFALL_AGENT_QUEUE_BYTES", "12"),
        ] {
            let (settings, problems) = read(&[(name, value)]);
            assert_eq!(problems.len(), 1, "{name}");
            let told = if name.ends_with("_HEADERS") { "its value" } else { value };
            assert!(problems[0].starts_with(name) && problems[0].contains(told), "{problems:?}");
            assert_eq!(settings.addresses[0], "http://127.0.0.1:4318/v1/traces");
        }
    }

    #[test]
    fn the_address_of_one_signal_is_no_base_and_https_needs_a_feature() {
        let (settings, problems) = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c.example:4318/v1/traces")]);
        assert_eq!((problems.len(), settings.addresses[1].as_str()), (1, "http://c.example:4318/v1/logs"), "{problems:?}");
        let (_, problems) = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "https://c.example:4318")]);
        assert_eq!(problems.is_empty(), cfg!(feature = "_tls"), "{problems:?}");
        assert!(problems.iter().all(|problem| problem.contains("`tls-ring`")), "{problems:?}");
    }

    #[test]
    fn what_is_not_looked_at_is_said() {
        let set = ["OTEL_EXPORTER_OTLP_ENDPOIN", "OTEL_EXPORTER_OTLP_TRACES_HEADERS", "FIRSTFALL_AGENT_SPOL", "OTEL_BSP_MAX_QUEUE_SIZE"];
        let known =
            ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS", "FIRSTFALL_AGENT_SPOOL", "OTEL_SERVICE_NAME", "PATH"];
        let told = not_looked_at(set.iter().chain(&known).map(|name| (*name).to_owned()));
        assert_eq!(told.len(), set.len(), "{told:?}");
        assert!(set.iter().zip(&told).all(|(name, told)| told.starts_with(&format!("{name} "))), "{told:?}");
    }

    #[test]
    fn a_secret_in_a_wrong_header_is_not_told() {
        // The value is named so that it can be found; a header's may be a secret.
        let (_, problems) = read(&[("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer s3cret%zz")]);
        assert!(problems.len() == 1 && !problems[0].contains("s3cret"), "{problems:?}");
    }
}
