//! One token for every port: Bearer for programs, Basic (any user, the token as password) for browsers.

use axum::http::{HeaderMap, header};
use base64::Engine;

pub struct Token(String);

impl Token {
    pub fn new(token: &str) -> Token {
        Token(token.to_owned())
    }

    /// Whether the request carries it.
    pub fn is_in(&self, headers: &HeaderMap) -> bool {
        let Some(value) = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()) else { return false };
        let Some((scheme, credentials)) = value.split_once(' ') else { return false };
        if scheme.eq_ignore_ascii_case("bearer") {
            return self.equals(credentials.trim().as_bytes());
        }
        if scheme.eq_ignore_ascii_case("basic")
            && let Ok(pair) = base64::engine::general_purpose::STANDARD.decode(credentials.trim())
            && let Some(colon) = pair.iter().position(|b| *b == b':')
        {
            return self.equals(&pair[colon + 1..]);
        }
        false
    }

    /// Takes the same time wherever the difference is, so that it cannot be guessed byte by byte.
    fn equals(&self, given: &[u8]) -> bool {
        let own = self.0.as_bytes();
        let difference = own.iter().zip(given).fold(own.len() ^ given.len(), |all, (a, b)| all | usize::from(a ^ b));
        difference == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_as_bearer_and_as_basic_password() {
        let token = Token::new("s3cret");
        let check = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().expect("a header value"));
            token.is_in(&headers)
        };
        assert!(check("Bearer s3cret") && check("bearer  s3cret"));
        assert!(check(&format!("Basic {}", base64::engine::general_purpose::STANDARD.encode("anyone:s3cret"))));
        assert!(!check("Bearer s3cre") && !check("Bearer s3cretx") && !check("s3cret") && !check("Basic ???"));
        assert!(!token.is_in(&HeaderMap::new()));
    }
}
