//! The certificate authority, kept in the state directory.

use std::{fs, io, net::IpAddr, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use outboard_protocol::id::Name;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKeyData,
    SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};

use super::{BROKER_TLS_NAME, Kind, fingerprint, write_private};
use crate::error::StartError;

/// Lifetime of the authority's certificate, in seconds.
const CA_CERT_TTL_S: u64 = 20 * 365 * 24 * 3600;
/// Lifetime of a card's certificate, in seconds.
pub const CARD_CERT_TTL_S: u64 = 365 * 24 * 3600;
/// Lifetime of an operator's certificate, in seconds.
pub const OPERATOR_CERT_TTL_S: u64 = 90 * 24 * 3600;
/// Lifetime of the broker's own certificate, in seconds; it is renewed at half of it.
pub const SERVER_CERT_TTL_S: u64 = 30 * 24 * 3600;
/// How far a peer's clock may be behind ours, in seconds: certificates are valid from that much earlier.
const CLOCK_SKEW_S: u64 = 300;
/// Length of a certificate's serial number, in bytes (RFC 5280 §4.1.2.2 allows 20).
const SERIAL_LEN: usize = 16;

/// Why a certificate was not issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The signing request does not parse, or its signature is not by the key in it.
    #[error("the card sent a signing request that cannot be used: {0}")]
    Request(rcgen::Error),
    /// A key of a kind that is not accepted.
    #[error("the card sent a signing request for a key that is neither ECDSA P-256, P-384 nor Ed25519")]
    Key,
    /// Signing failed.
    #[error("the broker cannot sign a certificate: {0}")]
    Sign(#[from] rcgen::Error),
    /// No random numbers.
    #[error("the broker has no random numbers")]
    Random,
}

/// A certificate that the authority signed.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// The same as PEM.
    pub pem: String,
    /// SHA-256 of it, in hex.
    pub fingerprint: String,
    /// Seconds since the Unix epoch until which it is valid.
    pub not_after_s: u64,
}

/// The broker's certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

impl Authority {
    /// Reads the authority from `ca.key` and `ca.crt`, or makes it.
    ///
    /// # Errors
    /// A key that others may read, a key and certificate that do not belong together, or a certificate without a key.
    pub fn load_or_create(state_dir: &Path, now_s: u64) -> Result<Self, StartError> {
        let (key_path, cert_path) = (state_dir.join("ca.key"), state_dir.join("ca.crt"));
        let key = match read_if_there(&key_path)? {
            Some(pem) => {
                check_private(&key_path)?;
                KeyPair::from_pem(&pem).map_err(|e| damaged(&key_path, &e))?
            }
            None if cert_path.exists() => {
                let what = format!("{} is there but {} is not", cert_path.display(), key_path.display());
                let fix = "put back both from a backup; or remove the certificate too, and enrol every card again";
                return Err(StartError::new(what, fix));
            }
            None => {
                let key = KeyPair::generate().map_err(|e| damaged(&key_path, &e))?;
                save(&key_path, key.serialize_pem().as_bytes())?;
                key
            }
        };
        let pem = match read_if_there(&cert_path)? {
            Some(pem) => pem,
            // Only the key is there if a crash came between the two files: no certificate was shown to anybody yet.
            None => {
                let certificate = ca_params(now_s).and_then(|p| Ok(p.self_signed(&key)?));
                let certificate = certificate.map_err(|e| damaged(&cert_path, &e))?;
                save(&cert_path, certificate.pem().as_bytes())?;
                certificate.pem()
            }
        };
        let certificate =
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| damaged(&cert_path, &format!("{e:?}")))?;
        if !belongs(&certificate, &key) {
            let what = format!(
                "{} and {} do not belong together",
                key_path.display(),
                cert_path.display()
            );
            return Err(StartError::new(what, "put back both files from the same backup"));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|e| damaged(&cert_path, &e))?;
        Ok(Self {
            issuer,
            certificate,
            pem,
        })
    }

    /// Its own certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256 of its certificate: what an enrolment token pins.
    pub fn sha256(&self) -> [u8; 32] {
        super::peer::sha256(&self.certificate)
    }

    /// Its certificate as PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// Signs the key in a card's signing request (PKCS#10, DER). Nothing else in the request is used.
    ///
    /// # Errors
    /// A request that does not parse or has a key of another kind.
    pub fn issue_card(&self, card: &Name, csr: &[u8], now_s: u64) -> Result<Issued, IssueError> {
        let request = CertificateSigningRequestParams::from_der(&csr.into()).map_err(IssueError::Request)?;
        let accepted = [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519];
        if !accepted.contains(&PublicKeyData::algorithm(&request.public_key)) {
            return Err(IssueError::Key);
        }
        let mut params = params(Kind::Card, card.as_str(), now_s, CARD_CERT_TTL_S)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params, &request.public_key, now_s.saturating_add(CARD_CERT_TTL_S))
    }

    /// A certificate and its private key (PKCS#8, PEM) for an operator.
    ///
    /// # Errors
    /// If there is no randomness.
    pub fn issue_operator(&self, operator: &Name, now_s: u64) -> Result<(Issued, String), IssueError> {
        let key = KeyPair::generate()?;
        let mut params = params(Kind::Operator, operator.as_str(), now_s, OPERATOR_CERT_TTL_S)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let issued = self.sign(&params, &key, now_s.saturating_add(OPERATOR_CERT_TTL_S))?;
        Ok((issued, key.serialize_pem()))
    }

    /// The broker's own certificate, with a fresh key that is kept in memory only.
    ///
    /// # Errors
    /// If there is no randomness.
    pub fn issue_server(&self, hosts: &[String], now_s: u64) -> Result<(Issued, PrivateKeyDer<'static>), IssueError> {
        let key = KeyPair::generate()?;
        let mut params = params(Kind::Broker, "outboard-broker", now_s, SERVER_CERT_TTL_S)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for host in [BROKER_TLS_NAME, "localhost"]
            .into_iter()
            .chain(hosts.iter().map(String::as_str))
        {
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host.try_into()?),
            });
        }
        let issued = self.sign(&params, &key, now_s.saturating_add(SERVER_CERT_TTL_S))?;
        Ok((issued, PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
    }

    fn sign(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
        not_after_s: u64,
    ) -> Result<Issued, IssueError> {
        let signed = params.signed_by(key, &self.issuer)?;
        let (certificate, pem) = (signed.der().clone(), signed.pem());
        Ok(Issued {
            fingerprint: fingerprint(&certificate),
            certificate,
            pem,
            not_after_s,
        })
    }
}

fn params(kind: Kind, name: &str, now_s: u64, ttl_s: u64) -> Result<CertificateParams, IssueError> {
    let mut serial = [0; SERIAL_LEN];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| IssueError::Random)?;
    // A serial number is positive (RFC 5280 §4.1.2.2) and must not begin with a zero byte.
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params
        .distinguished_name
        .push(DnType::OrganizationName, super::peer::ORGANIZATION);
    params
        .distinguished_name
        .push(DnType::OrganizationalUnitName, kind.name());
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(now_s.saturating_sub(CLOCK_SKEW_S));
    params.not_after = epoch + Duration::from_secs(now_s.saturating_add(ttl_s));
    Ok(params)
}

fn ca_params(now_s: u64) -> Result<CertificateParams, IssueError> {
    let mut params = params(Kind::Authority, "outboard-ca", now_s, CA_CERT_TTL_S)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn belongs(certificate: &CertificateDer<'_>, key: &KeyPair) -> bool {
    x509_parser::parse_x509_certificate(certificate)
        .is_ok_and(|(_, c)| c.public_key().subject_public_key.data.as_ref() == key.public_key_raw())
}

fn read_if_there(path: &Path) -> Result<Option<String>, StartError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(StartError::io(
            "read",
            path,
            &e,
            "check its owner and mode, or put it back from a backup",
        )),
    }
}

fn check_private(path: &Path) -> Result<(), StartError> {
    let mode = fs::metadata(path)
        .map_err(|e| StartError::io("look at", path, &e, "check its owner"))?
        .permissions();
    if mode.mode() & 0o077 == 0 {
        return Ok(());
    }
    let what = format!(
        "{} can be read by others (mode {:04o})",
        path.display(),
        mode.mode() & 0o7777
    );
    Err(StartError::new(
        what,
        format!(
            "chmod 600 {}; if others may have copied it, make a new authority",
            path.display()
        ),
    ))
}

fn save(path: &Path, content: &[u8]) -> Result<(), StartError> {
    write_private(path, content)
        .map_err(|e| StartError::io("write", path, &e, "check the directory's owner and free space"))
}

fn damaged(path: &Path, error: &dyn std::fmt::Display) -> StartError {
    StartError::new(
        format!("{} cannot be used: {error}", path.display()),
        "put it back from a backup",
    )
}

#[cfg(test)]
#[path = "authority_tests.rs"]
mod tests;
