//! Mutual TLS: who is let in, and what is said when somebody is not.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

use super::{code, stderr, stdout};

/// A certificate authority with an operator's files in a directory.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    dir: PathBuf,
}

impl Authority {
    fn new(dir: PathBuf) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        let authority = Self {
            issuer: Issuer::new(params, key),
            pem,
            dir,
        };
        let (certificate, key) = authority.issue("alice", false);
        fs::create_dir(&authority.dir).expect("made");
        for (file, text) in [
            ("ca.pem", &authority.pem),
            ("cert.pem", &certificate),
            ("key.pem", &key),
        ] {
            fs::write(authority.dir.join(file), text).expect("written");
        }
        authority
    }

    /// A certificate and its key, PEM.
    fn issue(&self, name: &str, expired: bool) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        if expired {
            params.not_before = rcgen::date_time_ymd(2001, 1, 1);
            params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        }
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    /// Answers every request of an operator that this authority knows with an empty list, until the test ends.
    fn serve(&self) -> SocketAddr {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.pem)).expect("a root");
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let (own, key) = self.issue("localhost", false);
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_client_cert_verifier(verifier.build().expect("a verifier"))
            .with_single_cert(vec![certificate(&own)], key)
            .expect("a configuration");
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            for tcp in listener.incoming() {
                let session = ServerConnection::new(Arc::clone(&config)).expect("a session");
                let mut stream = StreamOwned::new(session, tcp.expect("a connection"));
                // Reading completes the handshake; it fails for a client that is not let in, which is then told.
                if stream.read(&mut [0; 4096]).is_ok_and(|len| len > 0) {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]");
                }
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        });
        address
    }
}

fn certificate(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate")
}

/// `outboard card list` over the network, with the CA of one directory and the operator's files of another.
fn card_list(address: SocketAddr, ca: &Path, operator: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outboard"));
    command
        .env_clear()
        .args(["--api", &format!("https://localhost:{}", address.port())]);
    command.arg("--ca").arg(ca.join("ca.pem"));
    command
        .arg("--cert")
        .arg(operator.join("cert.pem"))
        .arg("--key")
        .arg(operator.join("key.pem"));
    command.args(["card", "list"]).output().expect("it runs")
}

#[test]
fn both_sides_must_prove_who_they_are() {
    let dir = tempfile::tempdir().expect("a directory");
    let ours = Authority::new(dir.path().join("ours"));
    let theirs = Authority::new(dir.path().join("theirs"));
    let address = ours.serve();

    let output = card_list(address, &ours.dir, &ours.dir);
    assert_eq!(code(&output), 0, "control: {}", stderr(&output));
    assert!(stdout(&output).starts_with("There are no cards."));

    let output = card_list(address, &ours.dir, &theirs.dir);
    assert_eq!(code(&output), 1);
    assert!(
        stderr(&output).contains("refuses the certificate given with --cert"),
        "{}",
        stderr(&output)
    );

    let output = card_list(address, &theirs.dir, &ours.dir);
    assert!(
        stderr(&output).contains("cannot prove that it is that one"),
        "{}",
        stderr(&output)
    );

    let (certificate, key) = ours.issue("alice", true);
    let expired = dir.path().join("expired");
    fs::create_dir(&expired).expect("made");
    fs::write(expired.join("cert.pem"), certificate).expect("written");
    fs::write(expired.join("key.pem"), key).expect("written");
    let text = stderr(&card_list(address, &ours.dir, &expired));
    assert!(
        text.contains("CertificateExpired") && text.contains("fix: check that"),
        "{text}"
    );

    let output = card_list(address, &ours.dir, &ours.dir);
    assert_eq!(code(&output), 0, "control: {}", stderr(&output));
}
