//! A receiver of notifications, as it stands in the settings: `[receivers.NAME]` of the file, or `FIRSTFALL_RECEIVERS_NAME_URL` and its like.

use super::sign::Secret;
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

/// Receivers of one server: each has a task of its own.
pub const RECEIVERS_MAX: usize = 100;
const HEADERS_MAX: usize = 32;

#[derive(Clone, PartialEq, Eq)]
pub struct Receiver {
    /// Letters, digits, `-` and `_`; part of every body and page.
    pub name: String,
    /// May hold a secret, as those of chat systems do; pages show only its scheme and host.
    pub url: reqwest::Url,
    pub secrets: Vec<Secret>,
    pub headers: Vec<(String, String)>,
    /// For connecting, sending and the whole answer together.
    pub timeout: Duration,
    pub allow_private_addresses: bool,
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Receiver")
            .field("name", &self.name)
            .field("place", &self.place())
            .field("secrets", &self.secrets)
            .field("headers", &headers)
            .field("timeout", &self.timeout)
            .field("allow_private_addresses", &self.allow_private_addresses)
            .finish()
    }
}

/// The keys of a receiver and what they mean.
pub const KEYS: &[(&str, &str)] = &[
    ("url", "Where notifications are POSTed: http:// or https://. Required. It is shown as scheme and host only."),
    ("url_file", "A file that holds the URL, for one that is a secret by itself."),
    ("secrets", "Standard Webhooks secrets (whsec_…), by comma; each signs. Default none: unsigned."),
    ("secrets_file", "A file that holds them, a line each."),
    ("headers", "Further headers, such as Authorization: a table, or name=value by comma or by line. Values are secrets."),
    ("timeout", "Time for one attempt, the answer included; default 10s."),
    ("allow_private_addresses", "Also loopback and private addresses; default false, so that a name cannot lead into the network."),
];

impl Receiver {
    /// From the keys that were given. All mistakes at once, each with the key.
    pub fn new(name: &str, given: &HashMap<String, String>) -> Result<Receiver, Vec<(String, String)>> {
        let mut mistakes: Vec<(String, String)> = Vec::new();
        let mut mistake = |key: &str, message: String| mistakes.push((key.to_owned(), message));
        if name.is_empty() || name.len() > 64 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            mistake("", format!("{name:?} is no name for a receiver; use up to 64 letters, digits, - and _"));
        }
        let read = |key: &str| -> Result<Option<String>, String> {
            match given.get(&format!("{key}_file")) {
                Some(path) => std::fs::read_to_string(path).map(Some).map_err(|error| format!("cannot read {path}: {error}")),
                None => Ok(given.get(key).cloned()),
            }
        };
        let url = match read("url") {
            Ok(Some(text)) => match reqwest::Url::parse(text.trim()) {
                Ok(url) if matches!(url.scheme(), "http" | "https") && url.host().is_some() => Some(url),
                // The text is not repeated: it may be a secret.
                _ => {
                    mistake("url", "this is not an http:// or https:// address".to_owned());
                    None
                }
            },
            Ok(None) => {
                mistake("url", "a receiver needs a url (or url_file)".to_owned());
                None
            }
            Err(error) => {
                mistake("url_file", error);
                None
            }
        };
        let mut secrets = Vec::new();
        match read("secrets") {
            Ok(text) => {
                for part in text.unwrap_or_default().split([',', '\n']).map(str::trim).filter(|part| !part.is_empty()) {
                    match Secret::new(part) {
                        Ok(secret) => secrets.push(secret),
                        Err(error) => mistake("secrets", error),
                    }
                }
            }
            Err(error) => mistake("secrets_file", error),
        }
        let mut headers = Vec::new();
        let given_headers = given.get("headers").map_or("", String::as_str);
        let separator = if given_headers.contains('\n') { '\n' } else { ',' };
        for (place, pair) in given_headers.split(separator).map(str::trim).filter(|pair| !pair.is_empty()).enumerate() {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (name.trim().to_owned(), value.trim().to_owned());
            let good = http::HeaderName::try_from(name.as_str()).is_ok() && http::HeaderValue::try_from(value.as_str()).is_ok();
            if good && !value.is_empty() {
                headers.push((name, value))
            } else {
                mistake("headers", format!("number {} is not name=value", place + 1))
            }
        }
        if headers.len() > HEADERS_MAX {
            mistake("headers", format!("{} are too many; at most {HEADERS_MAX}", headers.len()));
        }
        let timeout = match given.get("timeout").map(|text| crate::config::duration(text)) {
            None => Duration::from_secs(10),
            Some(Ok(timeout)) if (Duration::from_millis(100)..=Duration::from_secs(120)).contains(&timeout) => timeout,
            Some(Ok(_)) => {
                mistake("timeout", "give a time from 100ms to 2m".to_owned());
                Duration::ZERO
            }
            Some(Err(error)) => {
                mistake("timeout", error);
                Duration::ZERO
            }
        };
        let allow_private_addresses = match given.get("allow_private_addresses").map(|text| crate::config::flag(text)) {
            None => false,
            Some(Ok(allow)) => allow,
            Some(Err(error)) => {
                mistake("allow_private_addresses", error);
                false
            }
        };
        for key in given.keys() {
            if !KEYS.iter().any(|(known, _)| known == key) {
                let nearest = crate::config::nearest(key, KEYS.iter().map(|(known, _)| (*known).to_owned()));
                mistake(key, format!("a receiver has no such key; did you mean {nearest}?"));
            }
        }
        match url {
            Some(url) if mistakes.is_empty() => {
                Ok(Receiver { name: name.to_owned(), url, secrets, headers, timeout, allow_private_addresses })
            }
            _ => Err(mistakes),
        }
    }

    /// Scheme, host and port: what may be shown.
    pub fn place(&self) -> String {
        let port = self.url.port().map_or(String::new(), |port| format!(":{port}"));
        format!("{}://{}{port}", self.url.scheme(), self.url.host_str().unwrap_or(""))
    }

    /// A text without whatever of it is a secret: receivers repeat what they were sent.
    pub fn without_secrets(&self, text: &str) -> String {
        let own = |text: &str| text.to_owned();
        let credentials = self.url.password().map(own).into_iter().chain(Some(self.url.username().to_owned()));
        // The path of a chat system's address is its password: whole, and each part that is long enough to be one.
        let path = Some(self.url.path().to_owned()).into_iter().chain(self.url.path_segments().into_iter().flatten().map(own));
        let path = path.filter(|part| part.len() >= 8);
        let query = self.url.query().map(own).into_iter().chain(self.url.query_pairs().map(|(_, value)| value.into_owned()));
        let secrets = self.headers.iter().map(|(_, value)| value.clone()).chain(credentials).chain(path).chain(query);
        let mut text = text.to_owned();
        for secret in secrets.filter(|secret| !secret.is_empty()) {
            // `Bearer abc` is repeated as `abc` too.
            for part in [secret.as_str(), secret.rsplit(' ').next().unwrap_or(&secret)] {
                text = text.replace(part, "••••");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(pairs: &[(&str, &str)]) -> Result<Receiver, Vec<(String, String)>> {
        Receiver::new("oncall", &pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn mistakes_are_told_together_and_repeat_no_secret() {
        let mistakes = new(&[("url", "ftp://u:hush@h"), ("secrets", "hush"), ("timeout", "1h"), ("headres", "a=hush")]).expect_err("four");
        let keys: Vec<&str> = mistakes.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["url", "secrets", "timeout", "headres"]);
        assert!(!format!("{mistakes:?}").contains("hush"), "{mistakes:?}");
        assert!(mistakes[3].1.contains("headers"));
    }

    #[test]
    fn what_is_shown_of_a_receiver_holds_no_secret() {
        let receiver = new(&[
            ("url", "https://user:hush@chat.example:8443/services/T000/hush?key=hush"),
            ("headers", "Authorization=Bearer hush"),
            ("secrets", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        ])
        .expect("good");
        assert!(!format!("{receiver:?}").contains("hush"), "{receiver:?}");
        assert_eq!(receiver.place(), "https://chat.example:8443");
        let echo = receiver.without_secrets("you sent Authorization: Bearer hush to /services/T000/hush?key=hush");
        assert!(!echo.contains("hush"), "{echo}");
        for part in ["invalid key hush", "no user user here"] {
            let shown = receiver.without_secrets(part);
            assert!(!shown.contains("hush") && !shown.contains("user user"), "{shown}");
        }
        let mistakes = new(&[("url", "http://h"), ("headers", "Authorization: Bearer hush")]).expect_err("no pair");
        assert!(!format!("{mistakes:?}").contains("hush"), "{mistakes:?}");
    }
}
