//! A card as the protocol sees it: enrols, says hello, keeps what it is told.

use std::{sync::Arc, time::Duration};

use outboard_broker::identity::BROKER_TLS_NAME;
use outboard_protocol::{
    binding::State,
    card::{BindingReport, CARD_MESSAGE_LEN_MAX, CARD_VERSIONS, FromBroker, FromCard, Isolation},
    codec::{FrameDecoder, encode_frame},
    desired::{DesiredState, Grant},
    id::{BootEpoch, BrokerEpoch, Name, Revision},
    token::EnrolToken,
};
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// What a card keeps from its enrolment.
pub struct Identity {
    pub card: Name,
    pub serial: String,
    pub address: String,
    pub key: KeyPair,
    pub certificate: CertificateDer<'static>,
    pub ca: CertificateDer<'static>,
}

pub fn csr(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default()
        .serialize_request(key)
        .unwrap()
        .der()
        .to_vec()
}

/// Trusts a chain only if its last certificate has the hash that the token holds.
#[derive(Debug)]
struct PinnedCa([u8; 32]);

impl PinnedCa {
    fn inner(&self, ca: &CertificateDer<'_>) -> Result<Arc<WebPkiServerVerifier>, Error> {
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider()))
            .build()
            .map_err(|e| Error::General(e.to_string()))
    }
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ca = intermediates
            .last()
            .ok_or(Error::General("no CA in the chain".into()))?;
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, ca);
        if hash.as_ref() != self.0 {
            return Err(Error::General("the CA is not the token's".into()));
        }
        self.inner(ca)?.verify_server_cert(end_entity, &[], name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

async fn connect(address: &str, config: ClientConfig) -> std::io::Result<Link> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(BROKER_TLS_NAME).unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    Ok(Link {
        stream,
        decoder: FrameDecoder::new(CARD_MESSAGE_LEN_MAX),
        passed: None,
    })
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
}

/// Connects without a certificate, trusting what the token pins.
pub async fn connect_anonymous(token: &EnrolToken) -> std::io::Result<Link> {
    let config = builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedCa(token.ca_sha256)));
    connect(&token.broker, config.with_no_client_auth()).await
}

/// Redeems a token.
pub async fn enrol(token: &str, serial: &str) -> Result<Identity, String> {
    let token: EnrolToken = token.parse().unwrap();
    let key = KeyPair::generate().unwrap();
    let mut link = connect_anonymous(&token).await.map_err(|e| e.to_string())?;
    link.send(&FromCard::Enrol {
        card: token.card.clone(),
        secret: token.secret.to_vec(),
        csr: csr(&key),
    })
    .await;
    match link.receive().await {
        Some(FromBroker::Enrolled { certificate, ca }) => Ok(Identity {
            card: token.card,
            serial: serial.to_owned(),
            address: token.broker,
            key,
            certificate: certificate.into(),
            ca: ca.into(),
        }),
        Some(FromBroker::Refused { refusal }) => Err(refusal.text),
        other => panic!("{other:?}"),
    }
}

impl Identity {
    /// Connects with the certificate.
    pub async fn connect(&self) -> std::io::Result<Link> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone()).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let config = builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![self.certificate.clone()], key);
        connect(&self.address, config.unwrap()).await
    }

    pub fn hello(&self, dpu_epoch: u64) -> FromCard {
        FromCard::Hello {
            version_min: CARD_VERSIONS.0,
            version_max: CARD_VERSIONS.1,
            serial: self.serial.clone(),
            dpu_epoch: BootEpoch(dpu_epoch),
            broker_epoch: BrokerEpoch(0),
            revision: Revision(0),
            isolation: Isolation::Process,
        }
    }

    /// Connects and says hello; the link is served from then on.
    pub async fn join(&self, dpu_epoch: u64) -> Link {
        self.join_with(self.hello(dpu_epoch)).await
    }

    /// Connects and says this; the link is served from then on.
    pub async fn join_with(&self, hello: FromCard) -> Link {
        let mut link = self.connect().await.unwrap();
        link.send(&hello).await;
        match link.receive().await {
            Some(FromBroker::Welcome { .. }) => link,
            other => panic!("{other:?}"),
        }
    }

    /// Connects and says hello, which must be refused.
    pub async fn join_refused(&self, hello: FromCard) -> String {
        let mut link = self.connect().await.unwrap();
        link.send(&hello).await;
        match link.receive().await {
            Some(FromBroker::Refused { refusal }) => refusal.text,
            other => panic!("{other:?}"),
        }
    }
}

/// An open connection to the broker.
pub struct Link {
    stream: TlsStream<TcpStream>,
    decoder: FrameDecoder,
    /// The latest desired state that came while something else was waited for.
    passed: Option<DesiredState>,
}

impl Link {
    pub async fn send(&mut self, message: &FromCard) {
        self.send_bytes(&encode_frame(message)).await;
    }

    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The next message; none if the broker closed the connection.
    pub async fn try_receive(&mut self) -> std::io::Result<Option<FromBroker>> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(message) = self.decoder.next_message().unwrap() {
                return Ok(Some(message));
            }
            let len = timeout(Duration::from_secs(60), self.stream.read(&mut buffer))
                .await
                .expect("an answer in time")?;
            if len == 0 {
                return Ok(None);
            }
            self.decoder.push(&buffer[..len]);
        }
    }

    pub async fn receive(&mut self) -> Option<FromBroker> {
        self.try_receive().await.unwrap()
    }

    pub async fn desired(&mut self) -> DesiredState {
        match self.receive().await {
            Some(FromBroker::Desired { state }) => state,
            other => panic!("{other:?}"),
        }
    }

    /// The first desired state that satisfies `wanted`, beginning with one that came already; the broker may skip some.
    pub async fn desired_until(&mut self, wanted: impl Fn(&DesiredState) -> bool) -> DesiredState {
        if let Some(state) = self.passed.take().filter(&wanted) {
            return state;
        }
        loop {
            let state = self.desired().await;
            if wanted(&state) {
                return state;
            }
        }
    }

    /// Reports an inventory and waits until it is acknowledged.
    pub async fn report(&mut self, seq: u64, bindings: Vec<BindingReport>) {
        self.send(&FromCard::Inventory { seq, bindings }).await;
        loop {
            match self.receive().await {
                Some(FromBroker::InventoryAck { seq: acked }) if acked == seq => return,
                Some(FromBroker::Desired { state }) => self.passed = Some(state),
                other => panic!("{other:?}"),
            }
        }
    }
}

/// The report that a grant is in `state`.
pub fn report_of(grant: &Grant, state: State) -> BindingReport {
    BindingReport {
        object: grant.object.clone(),
        generation: grant.generation,
        incarnation: grant.incarnation,
        state,
        error: None,
    }
}
