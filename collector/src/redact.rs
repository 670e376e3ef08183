//! Secrets that clients put into attributes: known by their keys, and not kept.

use std::sync::{Arc, LazyLock};

/// Names of attributes whose values are secrets. A key is one of them when its last part is, whatever its case and whether it is written with
/// `-`, `_` or `.`: `http.request.header.set-cookie`, `db.password`, `X-Api-Key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redaction {
    names: Arc<[String]>,
}

/// What HTTP headers and forms call them, and what people do.
const NAMES: [&str; 18] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "password",
    "passwd",
    "pwd",
    "secret",
    "client-secret",
    "token",
    "access-token",
    "refresh-token",
    "id-token",
    "api-key",
    "apikey",
    "private-key",
    "session-id",
    "credentials",
];

static DEFAULT: LazyLock<Redaction> = LazyLock::new(|| Redaction::new(NAMES.into_iter()));

impl Default for Redaction {
    fn default() -> Self {
        DEFAULT.clone()
    }
}

fn plain(byte: u8) -> u8 {
    match byte.to_ascii_lowercase() {
        b'_' | b'.' => b'-',
        other => other,
    }
}

impl Redaction {
    pub fn new<'a>(names: impl Iterator<Item = &'a str>) -> Redaction {
        let plain = |name: &str| name.trim().bytes().map(plain).map(char::from).collect::<String>();
        Redaction { names: names.map(plain).filter(|name| !name.is_empty()).collect() }
    }

    /// The names, by comma.
    pub fn list(&self) -> String {
        self.names.join(",")
    }

    /// Whether the value under a key is a secret.
    pub fn is_secret(&self, key: &[u8]) -> bool {
        self.names.iter().any(|name| {
            let Some(start) = key.len().checked_sub(name.len()) else { return false };
            let whole_part = start == 0 || plain(key[start - 1]) == b'-';
            whole_part && key[start..].iter().zip(name.bytes()).all(|(a, b)| plain(*a) == b)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_known_by_the_last_part_of_its_key() {
        let redaction = Redaction::default();
        for key in [
            "authorization",
            "http.request.header.authorization",
            "http.request.header.set_cookie",
            "X-Api-Key",
            "db.password",
            "user.access_token",
        ] {
            assert!(redaction.is_secret(key.as_bytes()), "{key}");
        }
        for key in ["", "http.route", "tokenizer", "gen_ai.usage.input_tokens", "password.length", "cookies", "monkey"] {
            assert!(!redaction.is_secret(key.as_bytes()), "{key}");
        }
        assert!(!Redaction::new(std::iter::empty()).is_secret(b"password"));
    }
}
