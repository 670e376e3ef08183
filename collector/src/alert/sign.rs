//! Signatures by the Standard Webhooks scheme (specification 1.0.0): HMAC-SHA256 over `id.timestamp.body`, in Base64, with version `v1`.
//! With several secrets there is a signature of each, so that a secret can be changed without a gap.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use std::fmt;

/// A signing secret. It never prints.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("••••")
    }
}

impl Secret {
    /// `whsec_` and Base64 of 24 to 64 bytes, as the scheme asks; the error says nothing of the secret.
    pub fn new(text: &str) -> Result<Secret, String> {
        let encoded = text.trim();
        let encoded = encoded.strip_prefix("whsec_").ok_or("a secret begins with whsec_ and goes on in Base64")?;
        let bytes = STANDARD.decode(encoded).map_err(|_| "after whsec_ a secret goes on in Base64, and this is none".to_owned())?;
        if (24..=64).contains(&bytes.len()) {
            Ok(Secret(bytes))
        } else {
            Err(format!(
                "a secret holds 24 to 64 bytes, and this one {}; make one with: echo whsec_$(openssl rand -base64 32)",
                bytes.len()
            ))
        }
    }
}

/// The value of `webhook-signature`; `timestamp` in seconds.
pub fn signatures(secrets: &[Secret], id: &str, timestamp: u64, body: &str) -> String {
    let signed = format!("{id}.{timestamp}.{body}");
    let signatures: Vec<String> = secrets
        .iter()
        .map(|secret| {
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret.0), signed.as_bytes());
            format!("v1,{}", STANDARD.encode(tag.as_ref()))
        })
        .collect();
    signatures.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_checked_and_never_printed() {
        let text = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let secret = Secret::new(text).expect("a good one");
        assert_eq!(format!("{secret:?}"), "••••");
        for wrong in ["", "hunter2hunter2hunter2hunter2hunter2", "whsec_!!", "whsec_c2hvcnQ="] {
            let mistake = Secret::new(wrong).expect_err("no secret");
            assert!(wrong.is_empty() || !mistake.contains(wrong), "{mistake}");
        }
    }

    // Whether others accept them is tested with an independent library in tests/tests/webhooks.rs.
    #[test]
    fn each_secret_signs() {
        let secrets =
            ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX"].map(|s| Secret::new(s).expect("good"));
        let both = signatures(&secrets, "msg_1", 1_700_000_000, "{}");
        let parts: Vec<&str> = both.split(' ').collect();
        assert_eq!(parts.len(), 2);
        assert_eq!(parts[0], signatures(&secrets[..1], "msg_1", 1_700_000_000, "{}"));
        assert_ne!(signatures(&secrets, "msg_1", 1_700_000_001, "{}"), both);
    }
}
