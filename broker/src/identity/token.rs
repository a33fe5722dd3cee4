//! Enrolment tokens, as the broker keeps them: a hash and an expiry, gone once used.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use serde::{Deserialize, Serialize};

use super::peer::{hex, sha256};

/// Length of a token's secret, in bytes.
pub const SECRET_LEN: usize = 32;

/// What the store keeps of a token. The secret has 256 random bits, so a plain hash hides it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRecord {
    /// SHA-256 of the secret, in hex.
    pub secret_sha256: String,
    /// Seconds since the Unix epoch from which it is refused.
    pub expires_s: u64,
}

/// What a presented secret is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenVerdict {
    /// The token's secret, in time.
    Good,
    /// The token's secret, too late.
    Expired,
    /// Something else.
    Wrong,
}

impl TokenRecord {
    /// The record of a secret.
    pub fn new(secret: &[u8], expires_s: u64) -> Self {
        Self {
            secret_sha256: hex(&sha256(secret)),
            expires_s,
        }
    }

    /// Judges a presented secret, in time that does not depend on how much of it is right.
    pub fn verify(&self, secret: &[u8], now_s: u64) -> TokenVerdict {
        let presented = hex(&sha256(secret));
        match verify_slices_are_equal(presented.as_bytes(), self.secret_sha256.as_bytes()) {
            Err(_) => TokenVerdict::Wrong,
            Ok(()) if now_s >= self.expires_s => TokenVerdict::Expired,
            Ok(()) => TokenVerdict::Good,
        }
    }
}

/// A fresh secret; none if there is no randomness.
pub fn new_secret() -> Option<[u8; SECRET_LEN]> {
    let mut secret = [0; SECRET_LEN];
    aws_lc_rs::rand::fill(&mut secret).ok()?;
    Some(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_secret_itself_passes_and_only_in_time() {
        let secret = new_secret().unwrap();
        let record = TokenRecord::new(&secret, 100);
        assert_eq!(record.verify(&secret, 99), TokenVerdict::Good);
        assert_eq!(record.verify(&secret, 100), TokenVerdict::Expired);
        for wrong in [&secret[..31], b"", &new_secret().unwrap()[..]] {
            assert_eq!(record.verify(wrong, 99), TokenVerdict::Wrong);
        }
    }

    #[test]
    fn the_record_does_not_hold_the_secret() {
        let secret = new_secret().unwrap();
        let stored = serde_json::to_string(&TokenRecord::new(&secret, 1)).unwrap();
        assert!(!stored.contains(&hex(&secret)), "{stored}");
    }
}
