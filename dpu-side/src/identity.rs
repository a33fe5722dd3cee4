//! Who this card is: its key and certificates, in one file that enrolment replaces in one step.

use std::{
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use outboard_protocol::id::Name;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde::{Deserialize, Serialize};

use crate::{durable, error::Failure};

const FILE_NAME: &str = "identity.toml";

/// What enrolment gave this card.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The card's name, as the certificate says.
    pub card: Name,
    /// `host:port` of the broker.
    pub broker: String,
    /// The authority that the broker's certificate must come from, PEM.
    pub ca: String,
    /// The card's certificate, PEM.
    pub certificate: String,
    /// Its private key (PKCS#8), PEM. Made here and never sent.
    pub key: String,
}

/// A certificate that is not valid now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Validity {
    /// Its time is over.
    #[error("card certificate of '{card}' expired on {on}")]
    Expired {
        /// The card.
        card: Name,
        /// Last moment of its validity.
        on: Timestamp,
    },
    /// Its time has not come, or this machine's clock is wrong.
    #[error("card certificate of '{card}' is valid only from {from} on, and this machine's clock says {now}")]
    NotYet {
        /// The card.
        card: Name,
        /// First moment of its validity.
        from: Timestamp,
        /// This machine's clock.
        now: Timestamp,
    },
}

impl Validity {
    /// What the operator can do.
    pub fn fix(&self) -> String {
        match self {
            Self::Expired { card, .. } => enrol_again(card),
            Self::NotYet { card, .. } => format!("set this machine's clock; if it is right, {}", enrol_again(card)),
        }
    }
}

/// How to get a new certificate.
pub fn enrol_again(card: &Name) -> String {
    format!(
        "on the broker's machine run `outboard card enrol {card}` and here `outboard-dpu enrol --config FILE --token …`"
    )
}

/// Where a state directory keeps the identity.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE_NAME)
}

impl Identity {
    /// Reads the identity that enrolment left in the state directory.
    pub fn load(state_dir: &Path) -> Result<Self, Failure> {
        let path = path(state_dir);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Failure::new(
                    format!("this card is not enrolled: there is no {}", path.display()),
                    "on the broker's machine run `outboard card enrol CARD` and here `outboard-dpu enrol --config FILE \
                     --token …`",
                ));
            }
            Err(e) => return Err(Failure::io("read", &path, &e, "check its owner and mode")),
        };
        let mode = std::fs::metadata(&path)
            .map(|m| m.permissions().mode() & 0o777)
            .unwrap_or(0);
        if mode & 0o077 != 0 {
            return Err(Failure::new(
                format!(
                    "{} holds the card's key and others may read it (mode {mode:03o})",
                    path.display()
                ),
                format!(
                    "chmod 600 {}; if somebody may have read it, enrol again",
                    path.display()
                ),
            ));
        }
        let damaged = || {
            Failure::new(
                format!("{} is damaged", path.display()),
                "put it back from a backup, or enrol again",
            )
        };
        let identity: Self = toml::from_str(&text).map_err(|_| damaged())?;
        identity
            .key_der()
            .and(identity.certificate_der())
            .and(identity.ca_der())
            .ok_or_else(damaged)?;
        Ok(identity)
    }

    /// Writes the identity into the state directory, durably.
    pub fn save(&self, state_dir: &Path) -> Result<(), Failure> {
        let path = path(state_dir);
        let text = toml::to_string(self)
            .map_err(|e| Failure::new(format!("the identity cannot be written: {e}"), "report this"))?;
        durable::replace_file(&path, text.as_bytes())
            .map_err(|e| Failure::io("write", &path, &e, "check the directory's owner and the free space"))
    }

    /// The private key.
    pub fn key_der(&self) -> Option<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).ok()
    }

    /// The card's certificate.
    pub fn certificate_der(&self) -> Option<CertificateDer<'static>> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).ok()
    }

    /// The authority's certificate.
    pub fn ca_der(&self) -> Option<CertificateDer<'static>> {
        CertificateDer::from_pem_slice(self.ca.as_bytes()).ok()
    }

    /// Is the certificate valid at `now`?
    pub fn check_validity(&self, now: Timestamp) -> Result<(), Validity> {
        let der = self.certificate_der();
        let validity = der
            .as_ref()
            .and_then(|der| x509_parser::parse_x509_certificate(der).ok())
            .map(|(_, c)| {
                let second =
                    |t: x509_parser::time::ASN1Time| Timestamp::from_second(t.timestamp()).unwrap_or(Timestamp::MIN);
                (second(c.validity().not_before), second(c.validity().not_after))
            });
        // `load` and enrolment let no certificate through that does not parse; one that tells no time is over.
        let (from, on) = validity.unwrap_or((Timestamp::MIN, Timestamp::MIN));
        if now > on {
            Err(Validity::Expired {
                card: self.card.clone(),
                on,
            })
        } else if now < from {
            Err(Validity::NotYet {
                card: self.card.clone(),
                from,
                now,
            })
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use jiff::ToSpan;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::*;

    /// An identity whose certificate is valid for a day from `from` on, with its authority's key to sign more.
    pub(crate) fn identity(card: &str, from: Timestamp) -> (Identity, Issuer<'static, KeyPair>) {
        let at = |t: Timestamp| {
            rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(t.as_second().unsigned_abs())
        };
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, card);
        params.not_before = at(from);
        params.not_after = at(from + 24.hours());
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let identity = Identity {
            card: card.parse().unwrap(),
            broker: "127.0.0.1:1".into(),
            ca: ca_certificate.pem(),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        };
        (identity, issuer)
    }

    #[test]
    fn it_survives_the_disk_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let (identity, _) = identity("local", Timestamp::now());
        identity.save(dir.path()).unwrap();
        let loaded = Identity::load(dir.path()).unwrap();
        assert_eq!((&loaded.card, &loaded.key), (&identity.card, &identity.key));
        assert_eq!(
            std::fs::metadata(path(dir.path())).unwrap().permissions().mode() & 0o777,
            0o600
        );

        std::fs::set_permissions(path(dir.path()), std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = Identity::load(dir.path()).err().unwrap();
        assert!(
            error.to_string().contains("640") && error.fix().contains("chmod 600"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_or_damaged_file_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = Identity::load(dir.path()).err().unwrap();
        assert!(error.to_string().contains("not enrolled") && error.fix().contains("outboard card enrol"));
        durable::replace_file(&path(dir.path()), b"card = 'x'").unwrap();
        assert!(
            Identity::load(dir.path())
                .err()
                .unwrap()
                .to_string()
                .contains("damaged")
        );
    }

    #[test]
    fn validity_names_the_card_the_day_and_the_remedy() {
        let now: Timestamp = "2030-05-01T12:00:00Z".parse().unwrap();
        let (identity, _) = identity("local", now);
        assert_eq!(identity.check_validity(now + 1.hour()), Ok(()));
        let expired = identity.check_validity(now + 25.hours()).unwrap_err();
        assert_eq!(
            expired.to_string(),
            "card certificate of 'local' expired on 2030-05-02T12:00:00Z"
        );
        assert!(expired.fix().contains("`outboard card enrol local`"));
        let early = identity.check_validity(now - 1.hour()).unwrap_err();
        assert!(
            early.to_string().contains("valid only from 2030-05-01T12:00:00Z"),
            "{early}"
        );
        assert!(early.fix().contains("clock"));
    }
}
