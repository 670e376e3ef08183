//! Settings: each a typed field with a sentence. They come from a TOML file, from `FIRSTFALL_<SECTION>_<KEY>`, and from flags, in
//! that order; mistakes are told all together, by path, before anything starts.

use crate::alert::receiver::{self, RECEIVERS_MAX, Receiver};
use crate::receive::Receiving;
use crate::redact::Redaction;
use crate::validate::Limits;
use firstfall_dashboard::health::{Objective, Objectives};
use firstfall_store::{Durability, Options};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Config {
    pub data_dir: PathBuf,
    pub otlp_grpc: String,
    pub otlp_http: String,
    pub web: String,
    pub token: Option<String>,
    pub insecure_no_auth: bool,
    pub log_level: String,
    pub cors_origins: Vec<String>,
    pub in_flight_bytes_max: usize,
    pub receiving: Receiving,
    pub limits: Limits,
    pub store: Options,
    /// Where people reach the pages, for links in notifications; empty: the web address.
    pub external_url: String,
    pub detection: bool,
    /// What is asked of services.
    pub objectives: Objectives,
    /// Sorted by name.
    pub receivers: Vec<Receiver>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            data_dir: "./firstfall-data".into(),
            otlp_grpc: "127.0.0.1:4317".into(),
            otlp_http: "127.0.0.1:4318".into(),
            web: "127.0.0.1:4380".into(),
            token: None,
            insecure_no_auth: false,
            log_level: "info".into(),
            cors_origins: Vec::new(),
            in_flight_bytes_max: 128 << 20,
            receiving: Receiving { request_bytes_max: 64 << 20, body_time_max: Duration::from_secs(30) },
            limits: Limits::default(),
            store: Options::default(),
            external_url: String::new(),
            detection: true,
            objectives: Objectives::default(),
            receivers: Vec::new(),
        }
    }
}

type Set = fn(&mut Config, &str) -> Result<(), String>;

/// A setting: its path, what it does and why one would change it, and how it is read from text.
pub struct Setting {
    pub path: &'static str,
    pub about: &'static str,
    set: Set,
    /// Its value, as it would be written.
    get: fn(&Config) -> String,
}

fn secret(config: &Config) -> String {
    config.token.as_ref().map_or(String::new(), |_| "(set)".to_owned())
}

fn bytes(count: u64) -> String {
    let units = [("GB", 1_000_000_000), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, size)| count >= *size && count.is_multiple_of(*size)) {
        Some((unit, size)) => format!("{}{unit}", count / size),
        None => count.to_string(),
    }
}

fn time(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if duration.subsec_millis() > 0 {
        return format!("{}ms", duration.as_millis());
    }
    let units = [("d", 86_400), ("h", 3600), ("m", 60)];
    match units.into_iter().find(|(_, size)| seconds >= *size && seconds.is_multiple_of(*size)) {
        Some((unit, size)) => format!("{}{unit}", seconds / size),
        None => format!("{seconds}s"),
    }
}

fn number(text: &str) -> Result<u64, String> {
    let digits: String = text.chars().filter(|c| *c != '_').collect();
    digits.parse().map_err(|_| format!("{text:?} is not a whole number"))
}

fn size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(at);
    let factor = match unit {
        "" | "B" => 1,
        "kB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(format!("{unit:?} is not a unit of size; use B, kB, MB, GB, KiB, MiB or GiB")),
    };
    number(digits.trim())?.checked_mul(factor).ok_or_else(|| format!("{text:?} is too large"))
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let at = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(|| format!("{text:?} has no unit; write 30s, 5m, 12h or 7d"))?;
    let (digits, unit) = text.split_at(at);
    let factor = match unit {
        "ms" => return Ok(Duration::from_millis(number(digits)?)),
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(format!("{unit:?} is not a unit of time; write 30s, 5m, 12h or 7d")),
    };
    Ok(Duration::from_secs(number(digits.trim())?.checked_mul(factor).ok_or_else(|| format!("{text:?} is too long"))?))
}

fn at_least(least: u64, value: u64) -> Result<usize, String> {
    if value < least { Err(format!("{value} is too small; the least is {least}")) } else { Ok(value as usize) }
}

/// `0.5%`, as a part of one.
fn percent(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.trim().strip_suffix('%').and_then(|number| number.trim().parse().ok());
    match number {
        Some(percent) if percent > 0.0 && percent < 100.0 => Ok(percent / 100.0),
        _ => Err(format!("{text:?} is no part in percent between 0% and 100%; write 0.5%")),
    }
}

pub(crate) fn flag(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" | "" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

macro_rules! settings {
    ($($path:literal: $about:literal, |$config:ident, $text:ident| $set:expr, |$of:ident| $get:expr;)*) => {
        pub const SETTINGS: &[Setting] =
            &[$(Setting { path: $path, about: $about, set: |$config, $text| { $set; Ok(()) }, get: |$of| $get }),*];
    };
}

settings! {
    "server.data_dir": "Directory of the store; default ./firstfall-data. Put it on a disk with room for the retention.",
        |c, t| c.data_dir = t.into(),
        |c| c.data_dir.display().to_string();
    "server.otlp_grpc": "Address of OTLP/gRPC; default 127.0.0.1:4317. Port 0 picks a free one.", |c, t| c.otlp_grpc = t.to_owned(),
        |c| c.otlp_grpc.clone();
    "server.otlp_http": "Address of OTLP/HTTP; default 127.0.0.1:4318.", |c, t| c.otlp_http = t.to_owned(),
        |c| c.otlp_http.clone();
    "server.web": "Address of the pages and APIs; default 127.0.0.1:4380.", |c, t| c.web = t.to_owned(),
        |c| c.web.clone();
    "server.token": "One token for every port: Bearer for programs, Basic password for browsers. Required beyond loopback.",
        |c, t| c.token = Some(t.trim().to_owned()).filter(|t| !t.is_empty()),
        |c| secret(c);
    "server.token_file": "A file that holds the token, so that it stands in no environment.",
        |c, t| c.token = Some(std::fs::read_to_string(t).map_err(|e| format!("cannot read {t}: {e}"))?.trim().to_owned()).filter(|t| !t.is_empty()),
        |_config| String::new();
    "server.insecure_no_auth": "Listen beyond loopback without a token; default false. Only behind something that authenticates.",
        |c, t| c.insecure_no_auth = flag(t)?,
        |c| c.insecure_no_auth.to_string();
    "server.log_level": "error, warn, info, debug or trace; default info.", |c, t| c.log_level = t.to_owned(),
        |c| c.log_level.clone();
    "server.cors_origins": "Origins, by comma, whose pages may send telemetry; default none.",
        |c, t| c.cors_origins = t.split(',').map(|o| o.trim().to_owned()).filter(|o| !o.is_empty()).collect(),
        |c| c.cors_origins.join(",");
    "server.external_url": "Address at which people reach the pages, for links in notifications; default http:// and server.web.",
        |c, t| c.external_url = t.trim().trim_end_matches('/').to_owned(),
        |c| c.external_url.clone();
    "limits.request_bytes_max": "Largest request, before and after inflating; default 64MiB, as OTLP recommends.",
        |c, t| c.receiving.request_bytes_max = at_least(1024, size(t)?)?,
        |c| bytes(c.receiving.request_bytes_max as u64);
    "limits.in_flight_bytes_max": "Bytes of all requests under way; default 128MiB. Past it clients are told to come again.",
        |c, t| c.in_flight_bytes_max = at_least(1024, size(t)?)?,
        |c| bytes(c.in_flight_bytes_max as u64);
    "limits.body_time_max": "How long a body may take to arrive; default 30s.", |c, t| c.receiving.body_time_max = duration(t)?,
        |c| time(c.receiving.body_time_max);
    "limits.attributes_max": "Attributes of one item; default 128.", |c, t| c.limits.attributes_max = at_least(1, number(t)?)?,
        |c| c.limits.attributes_max.to_string();
    "limits.key_bytes_max": "Bytes of an attribute key; default 256B.", |c, t| c.limits.key_bytes_max = at_least(16, size(t)?)?,
        |c| bytes(c.limits.key_bytes_max as u64);
    "limits.value_bytes_max": "Bytes of an attribute value; default 64KiB: a stack trace fits.", |c, t| c.limits.value_bytes_max = at_least(64, size(t)?)?,
        |c| bytes(c.limits.value_bytes_max as u64);
    "limits.body_bytes_max": "Bytes of a log body; default 256KiB.", |c, t| c.limits.body_bytes_max = at_least(64, size(t)?)?,
        |c| bytes(c.limits.body_bytes_max as u64);
    "limits.name_bytes_max": "Bytes of the name of a span, metric or event; default 1024B.",
        |c, t| c.limits.name_bytes_max = at_least(16, size(t)?)?,
        |c| bytes(c.limits.name_bytes_max as u64);
    "limits.events_max": "Events, and links, of one span; default 1024.",
        |c, t| c.limits.events_max = at_least(1, number(t)?)?,
        |c| c.limits.events_max.to_string();
    "limits.nesting_max": "Levels to which a value may be nested, at most 64; what is deeper becomes text. Default 64.",
        |c, t| c.limits.nesting_max = at_least(1, number(t)?.min(64))?,
        |c| c.limits.nesting_max.to_string();
    "limits.redact": "Keys of secrets, by comma, known by their last part; their values are not kept. Default: the usual ones; empty: none.",
        |c, t| c.limits.redact = Redaction::new(t.split(',')),
        |c| c.limits.redact.list();
    "limits.services_max": "Services with rollups of their own; default 5000, further ones are counted as (other).",
        |c, t| c.store.cardinality.services_max = at_least(1, number(t)?)?,
        |c| c.store.cardinality.services_max.to_string();
    "limits.operations_per_service_max": "Operations of a service with rollups of their own; default 2000.",
        |c, t| c.store.cardinality.operations_per_service_max = at_least(1, number(t)?)?,
        |c| c.store.cardinality.operations_per_service_max.to_string();
    "store.durability": "What an acknowledgement survives: full (a power cut; default), process (kill -9), memory (nothing).",
        |c, t| c.store.durability = match t {
            "full" => Durability::Full,
            "process" => Durability::Process,
            "memory" => Durability::Memory,
            _ => return Err(format!("{t:?} is none of full, process, memory")),
        },
        |c| format!("{:?}", c.store.durability).to_lowercase();
    "store.block_rows": "Rows after which a generation is sealed; default 65536.", |c, t| c.store.generation_rows = at_least(1, number(t)?)?,
        |c| c.store.generation_rows.to_string();
    "store.block_age": "Age after which a generation is sealed; default 60s.", |c, t| c.store.generation_age = duration(t)?,
        |c| time(c.store.generation_age);
    "store.backlog_bytes_max": "Bytes that may wait for the writer; default 128MiB.", |c, t| c.store.backlog_bytes_max = at_least(1 << 20, size(t)?)?,
        |c| bytes(c.store.backlog_bytes_max as u64);
    "store.disk_reserve_bytes": "Room that is kept free on the volume, at most a twentieth of it; default 64MiB.",
        |c, t| c.store.disk_reserve_bytes = size(t)?,
        |c| bytes(c.store.disk_reserve_bytes);
    "store.partition_bytes": "Size after which a new partition begins; default 2GiB. Retention drops whole partitions.",
        |c, t| c.store.partition_bytes = at_least(1 << 20, size(t)?)? as u64,
        |c| bytes(c.store.partition_bytes);
    "detection.enabled": "Look for failures, and count the map; default true. Off, ingest costs a fifth less and nobody is told of anything.",
        |c, t| c.detection = flag(t)?,
        |c| c.detection.to_string();
    "health.errors": "The part of requests that may fail before a service is degraded (five times as many: failing); default 1%. Per service: [objectives.NAME].",
        |c, t| c.objectives.default.errors = percent(t)?,
        |c| format!("{}%", c.objectives.default.errors * 100.0);
    "health.latency": "How long 19 of 20 requests may take before a service is degraded; default none.",
        |c, t| c.objectives.default.latency_ns = if t.is_empty() { None } else { Some(duration(t)?.as_nanos() as u64) },
        |c| c.objectives.default.latency_ns.map_or(String::new(), |ns| time(Duration::from_nanos(ns)));
    "retention.age": "How long spans, logs and points are kept; default 7d.", |c, t| c.store.retention.age = duration(t)?,
        |c| time(c.store.retention.age);
    "retention.bytes": "How much they may take; default 50GB. The oldest partitions go first.", |c, t| c.store.retention.bytes = size(t)?,
        |c| bytes(c.store.retention.bytes);
    "retention.rollups": "How long rates, errors and latencies are kept; default 400d.", |c, t| c.store.retention.rollups = duration(t)?,
        |c| time(c.store.retention.rollups);
}

/// Settings that can change while the server runs.
const LIVE: &[&str] = &[
    "server.log_level",
    "limits.attributes_max",
    "limits.key_bytes_max",
    "limits.value_bytes_max",
    "limits.body_bytes_max",
    "limits.name_bytes_max",
    "limits.events_max",
    "limits.nesting_max",
    "limits.redact",
    "health.errors",
    "health.latency",
    "objectives",
    "retention.age",
    "retention.bytes",
    "retention.rollups",
];

/// What differs between two readings of the settings, by path.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Can be taken over while the server runs.
    pub live: Vec<&'static str>,
    /// Waits for a restart.
    pub at_restart: Vec<&'static str>,
}

impl Config {
    pub fn changed(&self, newer: &Config) -> Changed {
        let plain = SETTINGS.iter().filter(|setting| (setting.get)(self) != (setting.get)(newer)).map(|setting| setting.path);
        let mut paths: Vec<&'static str> = plain.collect();
        // These do not print all that they are.
        for (path, differs) in [
            ("server.token", self.token != newer.token),
            ("objectives", self.objectives.by_service != newer.objectives.by_service),
            ("receivers", self.receivers != newer.receivers),
        ] {
            if differs && !paths.contains(&path) {
                paths.push(path);
            }
        }
        let (live, at_restart) = paths.into_iter().partition(|path| LIVE.contains(path));
        Changed { live, at_restart }
    }

    /// Reads a file's text and the environment. All mistakes at once, a line each.
    pub fn read(file: Option<(&str, &str)>, environment: impl Iterator<Item = (String, String)>) -> Result<Config, String> {
        let mut config = Config::default();
        let mut mistakes = Vec::new();
        // By name, with what is only known when file and environment have been read.
        let mut receivers: Receivers = BTreeMap::new();
        if let Some((name, text)) = file {
            match text.parse::<toml::Table>() {
                Ok(mut table) => {
                    if let Some(section) = table.remove("receivers") {
                        read_receivers(name, &section, &mut receivers, &mut mistakes);
                    }
                    let objectives = table.remove("objectives");
                    config.read_table(name, "", &table, &mut mistakes);
                    if let Some(section) = objectives {
                        config.read_objectives(name, &section, &mut mistakes);
                    }
                }
                // Without the line itself: it may hold a secret.
                Err(error) => {
                    let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
                    mistakes.push(format!("{name}: line {line}: {}", error.message()));
                }
            }
        }
        let mut variables: Vec<(String, String)> = environment.filter(|(key, _)| key.starts_with("FIRSTFALL_")).collect();
        variables.sort();
        for (key, value) in variables {
            if key == "FIRSTFALL_TOKEN" {
                config.token = Some(value.trim().to_owned()).filter(|t| !t.is_empty());
                continue;
            }
            let name = key.trim_start_matches("FIRSTFALL_").to_ascii_lowercase();
            if let Some(rest) = name.strip_prefix("receivers_") {
                match receiver::KEYS.iter().find_map(|(known, _)| Some((rest.strip_suffix(known)?.strip_suffix('_')?, *known))) {
                    Some((receiver, known)) => {
                        let same = receivers.keys().find(|r| r.replace('-', "_").eq_ignore_ascii_case(receiver)).cloned();
                        receivers.entry(same.unwrap_or_else(|| receiver.to_owned())).or_default().insert(known.to_owned(), value);
                    }
                    None => {
                        mistakes.push(format!("{key}: write FIRSTFALL_RECEIVERS_<NAME>_URL, or another key of a receiver in place of URL"))
                    }
                }
                continue;
            }
            match SETTINGS.iter().find(|s| s.path.replace('.', "_") == name) {
                Some(setting) => {
                    if let Err(mistake) = (setting.set)(&mut config, &value) {
                        mistakes.push(format!("{key}: {mistake}"));
                    }
                }
                // A variable of another section is not ours to judge: wrappers and test harnesses use the prefix too.
                None if !SETTINGS.iter().any(|s| name.starts_with(&s.path[..=s.path.find('.').unwrap_or(0)].replace('.', "_"))) => {}
                None => {
                    let nearest = nearest(&name, SETTINGS.iter().map(|s| s.path.replace('.', "_")));
                    mistakes.push(format!("{key}: there is no such setting; did you mean FIRSTFALL_{}?", nearest.to_ascii_uppercase()));
                }
            }
        }
        if receivers.len() > RECEIVERS_MAX {
            mistakes.push(format!("receivers: {} are too many; at most {RECEIVERS_MAX}", receivers.len()));
        }
        for (name, given) in &receivers {
            match Receiver::new(name, given) {
                Ok(receiver) => config.receivers.push(receiver),
                Err(found) => mistakes.extend(found.iter().map(|(key, mistake)| format!("receivers.{name}.{key}: {mistake}"))),
            }
        }
        config.check(&mut mistakes);
        if mistakes.is_empty() { Ok(config) } else { Err(mistakes.join("\n")) }
    }

    fn read_table(&mut self, file: &str, prefix: &str, table: &toml::Table, mistakes: &mut Vec<String>) {
        for (key, value) in table {
            let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            let text = match value {
                toml::Value::Table(inner) if prefix.is_empty() => {
                    self.read_table(file, &path, inner, mistakes);
                    continue;
                }
                toml::Value::Table(_) => {
                    mistakes.push(format!("{file}: {path}: a section within a section; no setting is that deep"));
                    continue;
                }
                other => text_of(other),
            };
            match SETTINGS.iter().find(|s| s.path == path) {
                Some(setting) => {
                    if let Err(mistake) = (setting.set)(self, &text) {
                        mistakes.push(format!("{file}: {path}: {mistake}"));
                    }
                }
                None => {
                    let nearest = nearest(&path, SETTINGS.iter().map(|s| s.path.to_owned()));
                    mistakes.push(format!("{file}: {path}: there is no such setting; did you mean {nearest}?"));
                }
            }
        }
    }

    /// `[objectives.SERVICE]` with `errors` and `latency`; what is not given is the default of `[health]`.
    fn read_objectives(&mut self, file: &str, section: &toml::Value, mistakes: &mut Vec<String>) {
        for (service, keys) in section.as_table().into_iter().flatten() {
            let mut objective: Objective = self.objectives.default;
            let Some(keys) = keys.as_table() else {
                mistakes.push(format!("{file}: objectives.{service}: write [objectives.{service}] and its keys below it"));
                continue;
            };
            for (key, value) in keys {
                let text = text_of(value);
                let read = match key.as_str() {
                    "errors" => percent(&text).map(|errors| objective.errors = errors),
                    "latency" => duration(&text).map(|latency| objective.latency_ns = Some(latency.as_nanos() as u64)),
                    _ => Err("an objective has no such key; it has errors and latency".to_owned()),
                };
                if let Err(mistake) = read {
                    mistakes.push(format!("{file}: objectives.{service}.{key}: {mistake}"));
                }
            }
            self.objectives.by_service.insert(service.clone(), objective);
        }
    }

    fn check(&self, mistakes: &mut Vec<String>) {
        if self.in_flight_bytes_max < self.receiving.request_bytes_max {
            mistakes.push(format!(
                "limits.in_flight_bytes_max: {} is less than one largest request of {} (limits.request_bytes_max)",
                self.in_flight_bytes_max, self.receiving.request_bytes_max
            ));
        }
    }
}

/// A value as it would stand in the environment: lists by comma, tables by line, as a header's value may hold commas.
fn text_of(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Array(values) => values.iter().map(text_of).collect::<Vec<_>>().join(","),
        toml::Value::Table(pairs) => pairs.iter().map(|(key, value)| format!("{key}={}\n", text_of(value))).collect(),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        toml::Value::Boolean(flag) => flag.to_string(),
        toml::Value::Datetime(time) => time.to_string(),
    }
}

type Receivers = BTreeMap<String, HashMap<String, String>>;

/// `[receivers.NAME]`: a section within a section, since there may be many.
fn read_receivers(file: &str, section: &toml::Value, receivers: &mut Receivers, mistakes: &mut Vec<String>) {
    let Some(section) = section.as_table() else {
        mistakes.push(format!("{file}: receivers: write [receivers.NAME] and its keys below it"));
        return;
    };
    for (name, keys) in section {
        let Some(keys) = keys.as_table() else {
            mistakes.push(format!("{file}: receivers.{name}: write [receivers.NAME] and its keys below it"));
            continue;
        };
        let given = receivers.entry(name.clone()).or_default();
        for (key, value) in keys {
            given.insert(key.clone(), text_of(value));
        }
    }
}

pub(crate) fn nearest(given: &str, known: impl Iterator<Item = String>) -> String {
    known.min_by_key(|k| strsim::damerau_levenshtein(k, given)).expect("there are settings")
}

/// All settings with their values, as a commented TOML file that can be used as it is.
pub fn reference(config: &Config) -> String {
    let mut out = String::from("# Every setting of Firstfall, with its value here and now. Each is also FIRSTFALL_<SECTION>_<KEY>.\n");
    let mut section = "";
    for setting in SETTINGS {
        let (of, key) = setting.path.split_once('.').expect("a path has a section");
        if of != section {
            out.push_str(&format!("\n[{of}]\n"));
            section = of;
        }
        let value = (setting.get)(config);
        // A token is not printed, and its file is not remembered.
        let comment = if setting.path.starts_with("server.token") { "# " } else { "" };
        out.push_str(&format!("# {}\n{comment}{key} = {}\n", setting.about, serde_json::Value::String(value)));
    }
    let mut services: Vec<_> = config.objectives.by_service.iter().collect();
    services.sort_by_key(|(name, _)| *name);
    for (name, objective) in services {
        out.push_str(&format!("\n[objectives.{}]\nerrors = \"{}%\"\n", serde_json::Value::from(name.as_str()), objective.errors * 100.0));
        if let Some(latency) = objective.latency_ns {
            out.push_str(&format!("latency = \"{}\"\n", time(Duration::from_nanos(latency))));
        }
    }
    out.push_str("\n# Receivers of notifications, each a section [receivers.NAME] with these keys:\n");
    for (key, about) in receiver::KEYS {
        out.push_str(&format!("#   {key}: {about}\n"));
    }
    for receiver in &config.receivers {
        let signed = if receiver.secrets.is_empty() { "unsigned" } else { "signed" };
        out.push_str(&format!("# Here: {}, at {}, {signed}, {}\n", receiver.name, receiver.place(), time(receiver.timeout)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(file: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        Config::read(Some(("ff.toml", file)), environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    #[test]
    fn the_environment_goes_over_the_file() {
        let config = check(
            "[server]\nweb = '127.0.0.1:1'\n[limits]\nvalue_bytes_max = '1KiB'\n",
            &[("FIRSTFALL_SERVER_WEB", "127.0.0.1:2"), ("FIRSTFALL_TOKEN", "t")],
        );
        let config = config.expect("valid");
        assert_eq!((config.web.as_str(), config.limits.value_bytes_max, config.token.as_deref()), ("127.0.0.1:2", 1024, Some("t")));
    }

    #[test]
    fn what_check_config_prints_can_be_read_again_and_means_the_same() {
        let config = check("[retention]\nage = '36h'\n[limits]\nrequest_bytes_max = '1500kB'\nredact = 'iban, pin'\n", &[]).expect("valid");
        let none = check("[limits]\nredact = ''\n", &[]).expect("valid");
        assert_eq!(format!("{:?}", check(&reference(&none), &[]).expect("valid")), format!("{none:?}"));
        let printed = reference(&config);
        assert!(printed.contains("age = \"36h\"") && printed.contains("request_bytes_max = \"1500000\""), "{printed}");
        let again = check(&printed, &[]).expect("valid");
        assert_eq!(reference(&again), printed);
        assert!(again.limits.redact.is_secret(b"user.pin") && !again.limits.redact.is_secret(b"password"));
        assert_eq!(format!("{again:?}"), format!("{config:?}"));
    }

    #[test]
    fn what_differs_is_told_apart_by_when_it_can_change() {
        let before = check("[server]\ntoken = 'a'\n[retention]\nage = '1d'\n", &[]).expect("valid");
        let after = check("[server]\ntoken = 'b'\nweb = '127.0.0.1:1'\n[objectives.cart]\nerrors = '2%'\n[limits]\nredact = 'pin'\n", &[]);
        let changed = before.changed(&after.expect("valid"));
        assert_eq!(changed.live, ["limits.redact", "retention.age", "objectives"]);
        assert_eq!(changed.at_restart, ["server.web", "server.token"]);
        assert_eq!(before.changed(&before), Changed::default());
        assert!(LIVE.iter().all(|path| *path == "objectives" || SETTINGS.iter().any(|setting| setting.path == *path)));
    }

    #[test]
    fn objectives_are_read_by_service_over_the_default() {
        let config = check("[health]\nerrors = '2%'\n[objectives.payments]\nlatency = '300ms'\n[objectives.cart]\nerrors = '0.1%'\n", &[])
            .expect("valid");
        assert_eq!(config.objectives.of("payments"), Objective { errors: 0.02, latency_ns: Some(300_000_000) });
        assert_eq!((config.objectives.of("cart").errors, config.objectives.of("other").errors), (0.001, 0.02));
        let mistakes =
            check("[health]\nerrors = '2'\n[objectives.cart]\nerror = '1%'\nlatency = 'long'\n", &[]).expect_err("three mistakes");
        for part in
            ["health.errors: \"2\" is no part", "objectives.cart.error: an objective has no such key", "objectives.cart.latency: \"long\""]
        {
            assert!(mistakes.contains(part), "{part} in {mistakes}");
        }
    }

    #[test]
    fn receivers_come_from_the_file_and_the_environment_and_print_no_secret() {
        let file = "[receivers.on-call]\nurl = 'https://h.example/services/hush'\nsecrets = ['whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw']
                    headers = { Authorization = 'Bearer hush' }\n";
        let config =
            check(file, &[("FIRSTFALL_RECEIVERS_ON_CALL_TIMEOUT", "3s"), ("FIRSTFALL_RECEIVERS_OTHER_URL", "http://127.0.0.1:1/hush")]);
        let config = config.expect("valid");
        let names: Vec<(&str, u64)> = config.receivers.iter().map(|r| (r.name.as_str(), r.timeout.as_secs())).collect();
        assert_eq!(names, [("on-call", 3), ("other", 10)]);
        let printed = reference(&config);
        assert!(!printed.contains("hush") && !printed.contains("MfKQ") && printed.contains("https://h.example"), "{printed}");
        let mistakes = check("[receivers.x]\nurls = 'y'\n", &[("FIRSTFALL_RECEIVERS_X", "1")]).expect_err("three mistakes");
        for part in ["receivers.x.url: a receiver needs a url", "did you mean url?", "FIRSTFALL_RECEIVERS_<NAME>_URL"] {
            assert!(mistakes.contains(part), "{part} in {mistakes}");
        }
    }

    #[test]
    fn mistakes_are_told_together_with_the_nearest_known_key() {
        let mistakes =
            check("[retention]\nages = '7d'\nbytes = '5 parsecs'\n", &[("FIRSTFALL_STORE_DURABLE", "full")]).expect_err("three mistakes");
        assert!(mistakes.contains("retention.ages: there is no such setting; did you mean retention.age?"), "{mistakes}");
        assert!(mistakes.contains("\"parsecs\" is not a unit of size"), "{mistakes}");
        assert!(mistakes.contains("did you mean FIRSTFALL_STORE_DURABILITY?"), "{mistakes}");
    }
}
