//! TLS toward the broker: 1.3 only, under one authority only.

use std::{io, sync::Arc};

use aws_lc_rs::digest;
use outboard_protocol::card::BROKER_TLS_NAME;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs as provider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use crate::{error::Failure, identity::Identity};

/// The name that the broker's certificate must carry, whatever address it is reached at. Without it any card, whose
/// certificate comes from the same authority, could pose as the broker.
pub fn broker_name() -> ServerName<'static> {
    ServerName::try_from(BROKER_TLS_NAME).unwrap_or(ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()))
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

fn broken(e: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        format!("TLS cannot be set up: {e}"),
        "enrol this card again; if that does not help, report this",
    )
}

/// For an enrolled card: mutual TLS under the authority of its identity.
pub fn enrolled(identity: &Identity) -> Result<Arc<ClientConfig>, Failure> {
    let (Some(key), Some(certificate), Some(ca)) = (identity.key_der(), identity.certificate_der(), identity.ca_der())
    else {
        return Err(broken(&"the identity holds no usable key and certificates"));
    };
    let mut roots = RootCertStore::empty();
    roots.add(ca).map_err(|e| broken(&e))?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| broken(&e))?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], key)
        .map_err(|e| broken(&e))?;
    // A resumed session would skip the check of the broker's certificate.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// For a card that enrols: no certificate of its own yet, and of the authority it knows only the hash.
pub fn pinned(ca_sha256: [u8; 32]) -> Result<Arc<ClientConfig>, Failure> {
    let provider = Arc::new(provider::default_provider());
    let verifier = PinnedAuthority {
        ca_sha256,
        algorithms: provider.signature_verification_algorithms,
        provider: provider.clone(),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| broken(&e))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The chain that the broker presents holds no certificate with the token's hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the broker's authority is not the one that the token names")]
pub struct OtherAuthority;

/// Accepts a chain that holds the authority with the given hash, and verifies under it.
#[derive(Debug)]
struct PinnedAuthority {
    ca_sha256: [u8; 32],
    algorithms: WebPkiSupportedAlgorithms,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = intermediates.iter().find(|c| sha256(c) == self.ca_sha256);
        let pinned = pinned.ok_or_else(|| CertificateError::Other(OtherError(Arc::new(OtherAuthority))))?;
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|e| Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// What a failed handshake (or the first read after it: in TLS 1.3 the broker judges our certificate only then) means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// The broker does not accept this card's certificate any more.
    OurCertificate,
    /// The broker's certificate is not of the authority that we know.
    TheirAuthority,
    /// The broker's certificate is not valid now; or our clock is wrong.
    TheirTime,
}

/// Is this error a verdict about certificates, which trying again will not change?
pub fn rejection(error: &io::Error) -> Option<Rejection> {
    use AlertDescription as Alert;
    match error.get_ref()?.downcast_ref::<Error>()? {
        Error::AlertReceived(
            Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::UnknownCA
            | Alert::AccessDenied
            // A signature that does not fit: the broker has another authority of the same name.
            | Alert::DecryptError,
        ) => Some(Rejection::OurCertificate),
        Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => Some(Rejection::TheirTime),
        Error::InvalidCertificate(_) => Some(Rejection::TheirAuthority),
        _ => None,
    }
}
