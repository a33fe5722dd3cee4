//! TLS settings of both listeners: TLS 1.3 only, our own authority only.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, UnixTime},
    server::{
        ClientHello, ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};

use super::{Authority, IssueError, Kind, Peer, SERVER_CERT_TTL_S};
use crate::{clock::unix_now_s, error::StartError};

/// Makes the TLS settings of the broker's listeners.
pub struct ServerTls {
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    certificate: Arc<RenewedCertificate>,
}

impl ServerTls {
    /// Settings with certificates of `authority`, valid for the broker's TLS name and for `hosts` (names or addresses).
    ///
    /// # Errors
    /// If a host is no DNS name or address.
    pub fn new(authority: Arc<Authority>, hosts: Vec<String>) -> Result<Self, StartError> {
        let unusable = |e: &dyn std::fmt::Display| {
            StartError::new(
                format!("cannot make the broker's TLS certificate: {e}"),
                "check card_address",
            )
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate().clone()).map_err(|e| unusable(&e))?;
        let certificate = RenewedCertificate {
            authority,
            hosts,
            provider: provider.clone(),
            current: Mutex::new(None),
        };
        certificate.at(unix_now_s()).map_err(|e| unusable(&e))?;
        Ok(Self {
            provider,
            roots: Arc::new(roots),
            certificate: Arc::new(certificate),
        })
    }

    /// For cards: a peer may come without a certificate (to enrol), but a certificate that is shown must be a card's.
    ///
    /// # Errors
    /// If the provider lacks TLS 1.3, which is an error of this program.
    pub fn for_cards(&self) -> Result<Arc<ServerConfig>, StartError> {
        self.settings(Kind::Card, true)
    }

    /// For operators: a peer without an operator's certificate is turned away in the handshake.
    ///
    /// # Errors
    /// As [`ServerTls::for_cards`].
    pub fn for_operators(&self) -> Result<Arc<ServerConfig>, StartError> {
        self.settings(Kind::Operator, false)
    }

    fn settings(&self, kind: Kind, anonymous: bool) -> Result<Arc<ServerConfig>, StartError> {
        let broken = |e: &dyn std::fmt::Display| StartError::new(format!("cannot set up TLS: {e}"), "report this");
        let builder = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), self.provider.clone());
        let builder = if anonymous {
            builder.allow_unauthenticated()
        } else {
            builder
        };
        let inner = builder.build().map_err(|e| broken(&e))?;
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| broken(&e))?
            .with_client_cert_verifier(Arc::new(KindVerifier { inner, kind }))
            .with_cert_resolver(self.certificate.clone());
        // A resumed session would skip the check of the certificate's validity.
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

/// The broker's certificate, issued anew at half of its life.
struct RenewedCertificate {
    authority: Arc<Authority>,
    hosts: Vec<String>,
    provider: Arc<CryptoProvider>,
    current: Mutex<Option<(Arc<CertifiedKey>, u64)>>,
}

impl std::fmt::Debug for RenewedCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RenewedCertificate")
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}

impl RenewedCertificate {
    fn at(&self, now_s: u64) -> Result<Arc<CertifiedKey>, IssueError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((key, renew_s)) = &*current
            && now_s < *renew_s
        {
            return Ok(key.clone());
        }
        let (issued, key) = self.authority.issue_server(&self.hosts, now_s)?;
        // The authority's certificate goes along: a card that enrols knows only its hash.
        let chain = vec![issued.certificate, self.authority.certificate().clone()];
        let key = CertifiedKey::from_der(chain, key, &self.provider).map_err(|_| IssueError::Key)?;
        let (key, _) = current.insert((Arc::new(key), now_s.saturating_add(SERVER_CERT_TTL_S / 2)));
        Ok(key.clone())
    }
}

impl ResolvesServerCert for RenewedCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.at(unix_now_s())
            .inspect_err(|error| tracing::error!(%error, "the broker has no TLS certificate"))
            .ok()
    }
}

/// Checks the chain, and that the certificate is of the kind that this listener serves.
#[derive(Debug)]
struct KindVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    kind: Kind,
}

impl ClientCertVerifier for KindVerifier {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let peer = Peer::of(end_entity);
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now);
        let verified = verified.inspect_err(|error| log_refused(self.kind, peer.as_ref().ok(), error))?;
        match peer {
            Ok(peer) if peer.kind == self.kind => Ok(verified),
            Ok(peer) => {
                tracing::warn!(
                    kind = peer.kind.name(),
                    name = %peer.name,
                    "refused: this listener takes certificates of kind {} only",
                    self.kind.name()
                );
                Err(Error::InvalidCertificate(
                    CertificateError::ApplicationVerificationFailure,
                ))
            }
            Err(_) => Err(Error::InvalidCertificate(CertificateError::BadEncoding)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// One line that says who was refused and what to do. The name is what the peer claims: it is not verified.
fn log_refused(kind: Kind, peer: Option<&Peer>, error: &Error) {
    let Some(peer) = peer else {
        tracing::warn!(%error, "refused a {} certificate whose subject this broker did not write", kind.name());
        return;
    };
    tracing::warn!("{}", refusal_line(peer, error));
}

/// What the log says about a certificate that did not verify.
fn refusal_line(peer: &Peer, error: &Error) -> String {
    let remedy = match peer.kind {
        Kind::Card => format!("run `outboard card enrol {}` and give the token to the card", peer.name),
        _ => format!(
            "make a new one: POST /v1/operators/{} on the broker's unix socket",
            peer.name
        ),
    };
    let why = match error {
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "has expired".to_owned()
        }
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => "was not signed by this broker".to_owned(),
        other => format!("is not accepted ({other})"),
    };
    format!(
        "{} {}: its certificate {why}; fix: {remedy}",
        peer.kind.name(),
        peer.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_names_the_card_and_the_remedy() {
        let peer = Peer {
            kind: Kind::Card,
            name: "local".parse().unwrap(),
            fingerprint: String::new(),
            not_after_s: 0,
        };
        let line = refusal_line(&peer, &Error::InvalidCertificate(CertificateError::Expired));
        assert!(line.contains("card local") && line.contains("expired"), "{line}");
        assert!(line.contains("`outboard card enrol local`"), "{line}");
    }

    #[test]
    fn the_certificate_is_kept_until_half_of_its_life() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::load_or_create(directory.path(), 1_000_000).unwrap());
        let provider = Arc::new(aws_lc_rs::default_provider());
        let certificate = RenewedCertificate {
            authority,
            hosts: vec![],
            provider,
            current: Mutex::new(None),
        };
        let first = certificate.at(1_000_000).unwrap();
        let same = certificate.at(1_000_000 + SERVER_CERT_TTL_S / 2 - 1).unwrap();
        assert_eq!(first.cert, same.cert);
        let next = certificate.at(1_000_000 + SERVER_CERT_TTL_S / 2).unwrap();
        assert_ne!(first.cert[0], next.cert[0]);
        assert_eq!(first.cert[1], next.cert[1]);
    }
}
