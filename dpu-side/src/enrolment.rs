//! Enrolment: a one-time token becomes a certificate.

use outboard_protocol::{
    card::{FromBroker, FromCard},
    token::EnrolToken,
};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use tokio::time::timeout;

use crate::{
    broker_stream::{self, CONNECT_TIMEOUT, StreamError},
    config::Config,
    error::Failure,
    identity::Identity,
    tls::{self, Rejection},
};

/// Redeems `token` and saves the identity it gives into the state directory. The private key is made here and does
/// not leave this machine.
pub async fn enrol(config: &Config, token: &str) -> Result<Identity, Failure> {
    let token: EnrolToken = token
        .parse()
        .map_err(|e| Failure::new(format!("{e}"), "print a new one with `outboard card enrol CARD`"))?;
    if let Some(card) = config.card.as_ref().filter(|&c| *c != token.card) {
        return Err(Failure::new(
            format!(
                "the token is for card '{}' but the configuration says card = '{card}'",
                token.card
            ),
            format!("use a token from `outboard card enrol {card}`, or correct the configuration"),
        ));
    }
    std::fs::create_dir_all(&config.state_dir).map_err(|e| {
        Failure::io(
            "make the directory",
            &config.state_dir,
            &e,
            "check its parent's owner, or state_dir",
        )
    })?;
    let broker = config.broker.clone().unwrap_or_else(|| token.broker.clone());
    let identity = ask(&broker, &token).await?;
    identity.save(&config.state_dir)?;
    Ok(identity)
}

async fn ask(broker: &str, token: &EnrolToken) -> Result<Identity, Failure> {
    let unusable = |e: rcgen::Error| Failure::new(format!("a key cannot be made: {e}"), "report this");
    let key = KeyPair::generate().map_err(unusable)?;
    // The broker writes the subject itself; it takes only the public key from the request.
    let request = CertificateParams::default().serialize_request(&key).map_err(unusable)?;
    let unreachable = |e| failure(broker, token, &e);
    let (mut sender, mut receiver) = broker_stream::connect(broker, tls::pinned(token.ca_sha256)?)
        .await
        .map_err(unreachable)?;
    let card = token.card.clone();
    let message = FromCard::Enrol {
        card,
        secret: token.secret.to_vec(),
        csr: request.der().to_vec(),
    };
    sender.send(&message).await.map_err(unreachable)?;
    let answer = timeout(CONNECT_TIMEOUT, receiver.receive())
        .await
        .unwrap_or(Err(StreamError::Timeout));
    match answer.map_err(unreachable)? {
        FromBroker::Enrolled { certificate, ca } => accept(broker, token, &key, certificate, ca),
        FromBroker::Refused { refusal } => Err(Failure::new(
            format!("broker {broker} refused to enrol card '{}': {refusal}", token.card),
            format!("print a new token with `outboard card enrol {}`", token.card),
        )),
        _ => Err(Failure::new(
            format!("broker {broker} answered the enrolment with something else"),
            "use a broker of the same version as this outboard-dpu",
        )),
    }
}

/// Checks what the broker gave before it replaces an identity that may still work.
fn accept(
    broker: &str,
    token: &EnrolToken,
    key: &KeyPair,
    certificate: Vec<u8>,
    ca: Vec<u8>,
) -> Result<Identity, Failure> {
    let wrong = |what: &str| {
        Failure::new(
            format!("broker {broker} sent {what}"),
            "check that the token comes from the broker at this address",
        )
    };
    if tls::sha256(&ca) != token.ca_sha256 {
        return Err(wrong("an authority that is not the one that the token names"));
    }
    let certificate = CertificateDer::from(certificate);
    let (_, parsed) =
        x509_parser::parse_x509_certificate(&certificate).map_err(|_| wrong("a certificate that does not parse"))?;
    if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return Err(wrong("a certificate for another key"));
    }
    let identity = Identity {
        card: token.card.clone(),
        broker: token.broker.clone(),
        ca: pem(&ca),
        certificate: pem(&certificate),
        key: key.serialize_pem(),
    };
    tls::enrolled(&identity)?;
    Ok(identity)
}

fn pem(der: &[u8]) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", der))
}

fn failure(broker: &str, token: &EnrolToken, error: &StreamError) -> Failure {
    let rejection = match error {
        StreamError::Io(e) => tls::rejection(e),
        _ => None,
    };
    match rejection {
        Some(Rejection::TheirAuthority) => Failure::new(
            format!("whoever answers at {broker} is not the broker that printed the token ({error})"),
            format!(
                "check the address; print a new token with `outboard card enrol {}` on the right broker",
                token.card
            ),
        ),
        Some(Rejection::TheirTime) => Failure::new(
            format!("the certificate of broker {broker} is not valid now ({error})"),
            "set this machine's clock",
        ),
        Some(Rejection::OurCertificate) | None => Failure::new(
            format!("broker {broker} cannot be reached: {error}"),
            "check that it runs, that the address is right and that no firewall is in between; the token stays valid",
        ),
    }
}
