//! A scripted broker, with an authority of its own.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
    time::Duration,
};

use dpu_side::{identity::Identity, tls::sha256};
use outboard_protocol::{
    card::{BROKER_TLS_NAME, CARD_MESSAGE_LEN_MAX, FromBroker, FromCard},
    codec::{FrameDecoder, encode_frame},
    desired::DesiredState,
    id::BrokerEpoch,
    token::EnrolToken,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd,
};
use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};

use crate::fixture::{CARD, eventually, name};

/// A certificate authority.
#[derive(Clone)]
pub struct Authority {
    issuer: Arc<Issuer<'static, KeyPair>>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority");
        let certificate = params.self_signed(&key).expect("signed").der().clone();
        Self {
            issuer: Arc::new(Issuer::new(params, key)),
            certificate,
        }
    }

    pub fn sha256(&self) -> [u8; 32] {
        sha256(&self.certificate)
    }

    fn sign(&self, dns_name: &str, key: &KeyPair) -> CertificateDer<'static> {
        let params = CertificateParams::new(vec![dns_name.to_owned()]).expect("a name");
        params.signed_by(key, &*self.issuer).expect("signed").der().clone()
    }

    /// An enrolled card's identity.
    pub fn identity(&self, card: &str, broker: &str) -> Identity {
        self.identity_until(card, broker, 2100)
    }

    /// One whose certificate ends with a year.
    pub fn identity_until(&self, card: &str, broker: &str, year: i32) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, card);
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(year, 12, 31);
        let certificate = params.signed_by(&key, &*self.issuer).expect("signed");
        Identity {
            card: name(card),
            broker: broker.to_owned(),
            ca: pem::encode(&pem::Pem::new("CERTIFICATE", self.certificate.to_vec())),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }
}

/// A listening broker.
pub struct Broker {
    listener: TcpListener,
    config: Arc<ServerConfig>,
    authority: Authority,
}

/// A connection that a card made.
pub struct CardStream {
    stream: StreamOwned<ServerConnection, TcpStream>,
    frames: FrameDecoder,
    /// Everything that came so far.
    pub heard: Vec<FromCard>,
}

impl Broker {
    pub fn new(authority: &Authority) -> Self {
        Self::named(authority, BROKER_TLS_NAME)
    }

    /// One whose certificate carries another name.
    pub fn named(authority: &Authority, dns_name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate.clone()).expect("a root");
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .expect("a verifier");
        let key = KeyPair::generate().expect("a key");
        let chain = vec![authority.sign(dns_name, &key), authority.certificate.clone()];
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .expect("a certificate");
        Self {
            listener,
            config: Arc::new(config),
            authority: authority.clone(),
        }
    }

    pub fn address(&self) -> String {
        self.listener.local_addr().expect("an address").to_string()
    }

    pub fn token(&self) -> EnrolToken {
        EnrolToken {
            broker: self.address(),
            card: name(CARD),
            ca_sha256: self.authority.sha256(),
            secret: [7; 32],
        }
    }

    /// The next connection.
    pub fn accept(&self) -> CardStream {
        let (tcp, _) = self.listener.accept().expect("a connection");
        tcp.set_read_timeout(Some(Duration::from_millis(20)))
            .expect("a timeout");
        let connection = ServerConnection::new(self.config.clone()).expect("a connection");
        let stream = StreamOwned::new(connection, tcp);
        CardStream {
            stream,
            frames: FrameDecoder::new(CARD_MESSAGE_LEN_MAX),
            heard: vec![],
        }
    }

    /// The next connection, its hello answered.
    pub fn welcome(&self) -> CardStream {
        self.welcome_as(1)
    }

    /// The same, in a version of the protocol.
    pub fn welcome_as(&self, version: u16) -> CardStream {
        let mut card = self.accept();
        let hello = card.hear("a hello", |m| matches!(m, FromCard::Hello { .. }).then(|| m.clone()));
        assert!(
            matches!(&hello, FromCard::Hello { serial, .. } if serial == "SN1"),
            "{hello:?}"
        );
        card.say(&FromBroker::Welcome {
            version,
            broker_epoch: BrokerEpoch(1),
        });
        card
    }

    /// Signs the key of a card's request.
    pub fn enrolled(&self, csr: &[u8]) -> FromBroker {
        let request = CertificateSigningRequestParams::from_der(&csr.into()).expect("a request");
        let params = CertificateParams::default();
        let certificate = params
            .signed_by(&request.public_key, &*self.authority.issuer)
            .expect("signed");
        FromBroker::Enrolled {
            certificate: certificate.der().to_vec(),
            ca: self.authority.certificate.to_vec(),
        }
    }
}

impl CardStream {
    pub fn say(&mut self, message: &FromBroker) {
        self.stream.write_all(&encode_frame(message)).expect("the card listens");
        self.stream.flush().expect("the card listens");
    }

    pub fn desire(&mut self, state: DesiredState) {
        self.say(&FromBroker::Desired { state });
    }

    /// What has arrived meanwhile. False at the end of the connection.
    pub fn listen(&mut self) -> bool {
        let mut bytes = [0; 16 << 10];
        match self.stream.read(&mut bytes) {
            Ok(0) => return false,
            Ok(len) => self.frames.push(&bytes[..len]),
            Err(e) => return matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
        }
        while let Some(message) = self.frames.next_message().expect("the card speaks the protocol") {
            self.heard.push(message);
        }
        true
    }

    /// Waits until the card has said something; looks from the newest backwards.
    pub fn hear<T>(&mut self, what: &str, find: impl Fn(&FromCard) -> Option<T>) -> T {
        eventually(what, || {
            if let Some(found) = self.heard.iter().rev().find_map(&find) {
                return Some(found);
            }
            assert!(self.listen(), "the card hung up before: {what}");
            None
        })
    }
}
