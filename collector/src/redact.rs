//! Secrets that clients put into attributes: known by their keys, and not kept.

use std::sync::{Arc, LazyLock};

/// Names of attributes whose values are secrets. A key is one of them when its last words are, whatever their case and whatever stands
/// between them: `http.request.header.set-cookie`, `db.password`, `X-Api-Key`, `clientSecret`.
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

/// What stands between the words of a name, for those who do not write them in one.
fn between(byte: u8) -> bool {
    !byte.is_ascii_alphanumeric() && byte.is_ascii()
}

impl Redaction {
    pub fn new<'a>(names: impl Iterator<Item = &'a str>) -> Redaction {
        let plain = |name: &str| name.bytes().filter(|b| !between(*b)).map(|b| b.to_ascii_lowercase() as char).collect::<String>();
        Redaction { names: names.map(plain).filter(|name| !name.is_empty()).collect() }
    }

    /// The names, by comma.
    pub fn list(&self) -> String {
        self.names.join(",")
    }

    /// Whether the value under a key is a secret.
    pub fn is_secret(&self, key: &[u8]) -> bool {
        self.names.iter().any(|name| ends_with_words(key, name.as_bytes()))
    }
}

/// Whether a key ends with a name, which begins where a word begins: after a sign, or with a capital after a small letter.
fn ends_with_words(key: &[u8], name: &[u8]) -> bool {
    let mut left = name.len();
    let mut start = key.len();
    while left > 0 {
        let Some(at) = start.checked_sub(1) else { return false };
        start = at;
        if key[at].eq_ignore_ascii_case(&name[left - 1]) {
            left -= 1;
        } else if !between(key[at]) || left == name.len() {
            return false;
        }
    }
    start == 0 || between(key[start - 1]) || (key[start].is_ascii_uppercase() && key[start - 1].is_ascii_lowercase())
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
        for key in ["", "http.route", "tokenizer", "gen_ai.usage.input_tokens", "password.length", "cookies", "monkey", "token.", "broken"]
        {
            assert!(!redaction.is_secret(key.as_bytes()), "{key}");
        }
        assert!(!Redaction::new(std::iter::empty()).is_secret(b"password"));
    }
}
