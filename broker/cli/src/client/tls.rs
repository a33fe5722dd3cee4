//! Mutual TLS to a broker: it proves itself by the CA, we prove ourselves by an operator's certificate.

use std::{error::Error, fmt, io, path::Path, sync::Arc};

use hyper::Uri;
use rustls::{
    AlertDescription, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::error::CliError;

const ISSUE: &str = "get an operator's files with 'outboard operator issue NAME --out DIR' on the broker's machine";

/// A broker on the network, and the files to talk to it.
#[derive(Clone)]
pub struct TlsTarget {
    authority: String,
    address: (String, u16),
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
}

impl fmt::Debug for TlsTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsTarget")
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

impl TlsTarget {
    /// Reads the URL and the PEM files.
    ///
    /// # Errors
    /// The URL is not `https://HOST:PORT`, or a file cannot be used; the text names it.
    pub fn new(url: &str, ca: &Path, certificate: &Path, key: &Path) -> Result<Self, CliError> {
        let (host, port) = host_and_port(url)?;
        let bad_name = |_| bad_url(url);
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(bad_name)?;
        let mut roots = RootCertStore::empty();
        for root in certificates(ca)? {
            roots.add(root).map_err(|e| unusable(ca, &e.to_string()))?;
        }
        let chain = certificates(certificate)?;
        let private = PrivateKeyDer::from_pem_file(key).map_err(|e| unusable(key, &reason(&e)))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| CliError::new(format!("TLS 1.3 is not to be had: {e}"), "report this"))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, private)
            .map_err(|e| unusable(certificate, &format!("does not go with {}: {e}", key.display())))?;
        let address = (host.trim_matches(['[', ']']).to_owned(), port);
        Ok(Self {
            authority: format!("{host}:{port}"),
            address,
            name,
            config: Arc::new(config),
        })
    }

    /// `HOST:PORT`.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Host and port to connect to.
    pub(super) fn address(&self) -> (&str, u16) {
        (&self.address.0, self.address.1)
    }

    pub(super) async fn handshake(&self, tcp: TcpStream) -> Result<TlsStream<TcpStream>, CliError> {
        let connector = TlsConnector::from(Arc::clone(&self.config));
        connector
            .connect(self.name.clone(), tcp)
            .await
            .map_err(|e| match alert(&e) {
                Some(alert) => self.refused(&format!("{alert:?}")),
                None => CliError::coded(
                    "tls",
                    format!("the broker at {} cannot prove that it is that one: {e}", self.authority),
                    format!("check that --ca comes from this broker; {ISSUE}"),
                ),
            })
    }

    /// The broker does not take the operator's certificate.
    pub(super) fn refused(&self, alert: &str) -> CliError {
        CliError::coded(
            "tls",
            format!(
                "the broker at {} refuses the certificate given with --cert: {alert}",
                self.authority
            ),
            format!("check that it comes from this broker and has not expired; {ISSUE}"),
        )
    }
}

/// The alert that a peer sent, if that is what the error is.
pub(super) fn alert(error: &(dyn Error + 'static)) -> Option<AlertDescription> {
    let inner = error.downcast_ref::<io::Error>()?.get_ref()?;
    match inner.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

fn host_and_port(url: &str) -> Result<(String, u16), CliError> {
    let uri: Uri = url.parse().map_err(|_| bad_url(url))?;
    let plain = uri.path_and_query().is_none_or(|p| p.as_str() == "/");
    match (uri.scheme_str(), uri.host(), uri.port_u16()) {
        (Some("https"), Some(host), Some(port)) if plain => Ok((host.to_owned(), port)),
        _ => Err(bad_url(url)),
    }
}

fn bad_url(url: &str) -> CliError {
    CliError::coded(
        "bad_url",
        format!("'{url}' is not the address of a broker"),
        "write it as https://HOST:PORT",
    )
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CliError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(found) if found.is_empty() => Err(unusable(path, "holds no certificate")),
        Ok(found) => Ok(found),
        Err(e) => Err(unusable(path, &reason(&e))),
    }
}

fn reason(e: &pem::Error) -> String {
    match e {
        pem::Error::Io(e) => format!("cannot be read: {e}"),
        pem::Error::NoItemsFound => "holds nothing of the kind, in PEM".to_owned(),
        other => format!("is not PEM: {other}"),
    }
}

fn unusable(path: &Path, why: &str) -> CliError {
    CliError::coded("bad_credentials", format!("{} {why}", path.display()), ISSUE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_with_host_and_port_is_taken() {
        assert_eq!(
            host_and_port("https://broker.example:7471"),
            Ok(("broker.example".to_owned(), 7471))
        );
        assert_eq!(host_and_port("https://[::1]:7471/"), Ok(("[::1]".to_owned(), 7471)));
        for url in [
            "http://broker:1",
            "https://broker",
            "broker:1",
            "",
            "https://broker:1/v1",
            "https://b:99999",
        ] {
            assert_eq!(host_and_port(url).expect_err("refused").code(), "bad_url", "{url}");
        }
    }

    #[test]
    fn a_file_that_is_missing_or_no_pem_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let (missing, empty) = (dir.path().join("missing.pem"), dir.path().join("empty.pem"));
        std::fs::write(&empty, "nothing").expect("written");
        for path in [&missing, &empty] {
            let error = TlsTarget::new("https://localhost:1", path, path, path).expect_err("unusable");
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
            assert_eq!(error.code(), "bad_credentials");
        }
    }
}
