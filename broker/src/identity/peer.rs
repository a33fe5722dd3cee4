//! What a peer's certificate says about it.

use aws_lc_rs::digest;
use outboard_protocol::id::Name;
use rustls::pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, x509::AttributeTypeAndValue};

/// `O` of every certificate that the broker signs.
pub(super) const ORGANIZATION: &str = "Outboard";

/// What a certificate is for: its `OU`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The certificate authority itself.
    Authority,
    /// The broker, toward cards and operators.
    Broker,
    /// A card.
    Card,
    /// An operator of the API.
    Operator,
}

impl Kind {
    /// As in the certificate.
    pub fn name(self) -> &'static str {
        match self {
            Self::Authority => "authority",
            Self::Broker => "broker",
            Self::Card => "card",
            Self::Operator => "operator",
        }
    }
}

/// The bearer of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: Name,
    /// SHA-256 of the certificate, in hex.
    pub fingerprint: String,
    /// Seconds since the Unix epoch until which the certificate is valid.
    pub not_after_s: u64,
}

/// Why a certificate tells nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// It does not parse.
    #[error("the certificate does not parse")]
    Malformed,
    /// Its subject is not one that a broker wrote.
    #[error("the certificate's subject does not say what its bearer is")]
    Subject,
}

impl Peer {
    /// Reads a certificate. Says nothing about who signed it: that is the TLS verifier's part.
    ///
    /// # Errors
    /// A certificate that does not parse, or whose subject is not of the form that the broker writes.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, PeerError> {
        let (rest, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|_| PeerError::Malformed)?;
        if !rest.is_empty() {
            return Err(PeerError::Malformed);
        }
        let (kind, name) = subject(&parsed).ok_or(PeerError::Subject)?;
        let not_after_s = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        Ok(Self {
            kind,
            name,
            fingerprint: fingerprint(certificate),
            not_after_s,
        })
    }
}

fn subject(certificate: &X509Certificate<'_>) -> Option<(Kind, Name)> {
    let subject = certificate.subject();
    if only(subject.iter_organization())? != ORGANIZATION {
        return None;
    }
    let unit = only(subject.iter_organizational_unit())?;
    let kinds = [Kind::Authority, Kind::Broker, Kind::Card, Kind::Operator];
    let kind = kinds.into_iter().find(|k| k.name() == unit)?;
    Some((kind, only(subject.iter_common_name())?.parse().ok()?))
}

/// The text of an attribute that must be there exactly once.
fn only<'a>(mut values: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>) -> Option<&'a str> {
    let value = values.next()?;
    if values.next().is_some() {
        None
    } else {
        value.as_str().ok()
    }
}

/// SHA-256, in hex.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    sha256_hex(certificate)
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// SHA-256 of `bytes`, in hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&sha256(bytes))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
