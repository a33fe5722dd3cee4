//! The one-time enrolment token that an operator carries from the broker to a card.
//!
//! `obt1.` followed by base64url (RFC 4648 §5, no padding) of the token's CBOR. The broker keeps its expiry and whether it was
//! used; the token only says where to go, whom to trust there and the secret that proves the errand.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use minicbor::{Decode, Encode};

use crate::{
    codec::{DecodeError, decode, encode},
    id::Name,
};

/// What every token begins with: the format and its version.
pub const TOKEN_PREFIX: &str = "obt1.";

/// Longest token, in bytes of text.
pub const TOKEN_LEN_MAX: usize = 1024;

/// An enrolment token.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct EnrolToken {
    /// Where the broker listens for cards: `host:port`.
    #[n(0)]
    pub broker: String,
    /// The card's name.
    #[n(1)]
    pub card: Name,
    /// SHA-256 of the CA certificate's DER: the broker must present a chain that ends in it.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub ca_sha256: [u8; 32],
    /// Proves that the bearer got the token. Shown to nobody but in the token's own text.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub secret: [u8; 32],
}

/// Why a text is no token. Never repeats the text: it may hold the secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not begin with [`TOKEN_PREFIX`].
    #[error("an enrolment token begins with '{TOKEN_PREFIX}': copy the whole text that `outboard card enrol` printed")]
    Prefix,
    /// Longer than [`TOKEN_LEN_MAX`].
    #[error("the token has {0} characters; none has more than {TOKEN_LEN_MAX}")]
    TooLong(usize),
    /// Not base64url.
    #[error("the token is damaged: copy the whole text that `outboard card enrol` printed, in one piece")]
    Damaged,
    /// The content is not a token's.
    #[error("the token is damaged ({0}): copy the whole text that `outboard card enrol` printed, in one piece")]
    Content(DecodeError),
}

impl EnrolToken {
    /// The text to hand to the card. Holds the secret.
    pub fn print(&self) -> String {
        format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(encode(self)))
    }
}

impl FromStr for EnrolToken {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > TOKEN_LEN_MAX {
            return Err(TokenError::TooLong(text.len()));
        }
        let body = text.strip_prefix(TOKEN_PREFIX).ok_or(TokenError::Prefix)?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Damaged)?;
        decode(&bytes, TOKEN_LEN_MAX).map_err(TokenError::Content)
    }
}

impl fmt::Debug for EnrolToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolToken")
            .field("broker", &self.broker)
            .field("card", &self.card)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> EnrolToken {
        EnrolToken {
            broker: "192.0.2.1:7470".to_owned(),
            card: "local".parse().unwrap(),
            ca_sha256: [1; 32],
            secret: [0xa5; 32],
        }
    }

    #[test]
    fn a_token_survives_being_printed() {
        let text = token().print();
        assert!(text.starts_with(TOKEN_PREFIX));
        assert_eq!(text.parse(), Ok(token()));
        assert_eq!(format!("  {text}\n").parse(), Ok(token()));
    }

    #[test]
    fn debug_output_does_not_show_the_secret() {
        let shown = format!("{:?}", token());
        assert!(
            shown.contains("192.0.2.1") && !shown.contains("165") && !shown.contains("a5"),
            "{shown}"
        );
    }

    #[test]
    fn every_cut_or_changed_token_is_refused_without_repeating_it() {
        let text = token().print();
        for end in 0..text.len() {
            let error = text[..end].parse::<EnrolToken>().unwrap_err();
            assert!(end < 12 || !error.to_string().contains(&text[8..12]), "{error}");
        }
        assert_eq!("x".repeat(2000).parse::<EnrolToken>(), Err(TokenError::TooLong(2000)));
        assert_eq!(
            text.replace("obt1.", "obt2.").parse::<EnrolToken>(),
            Err(TokenError::Prefix)
        );
        assert_eq!(format!("{text}=").parse::<EnrolToken>(), Err(TokenError::Damaged));
    }
}
