//! The client of the local API that the verbs of `outboard-shim` use.

use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, body::Bytes, header};
use hyper_util::rt::TokioIo;
use outboard_shim_api::{Detached, DeviceKind, DeviceList, DeviceSpec, DeviceView, ErrorBody, ErrorDetail, Health};
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

/// Longest answer that is read, in bytes.
const ANSWER_LEN_MAX: usize = 4 << 20;

/// Why a request to the shim failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No shim there.
    #[error("the shim's API at {path} cannot be reached: {source}")]
    Connect {
        /// Its socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The shim said no.
    #[error("{}", .0.message)]
    Refused(ErrorDetail),
    /// What came back was no answer of the shim's.
    #[error("{path} does not answer as the shim's API does: {text}")]
    Answer {
        /// Its socket.
        path: PathBuf,
        /// What is wrong.
        text: String,
    },
}

impl ClientError {
    /// What to do.
    pub fn remedy(&self) -> String {
        match self {
            Self::Connect { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                "run this as root or as the shim's user, or add your uid to the shim's `api_uids`".to_owned()
            }
            Self::Connect { .. } => "start `outboard-shim run`, and name its api_socket with --api".to_owned(),
            Self::Refused(detail) => detail.remedy.clone(),
            Self::Answer { .. } => "name the shim's api_socket with --api".to_owned(),
        }
    }
}

/// A client of one shim.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// A client of the shim whose API listens at `path`.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// How the shim is doing.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn health(&self) -> Result<Health, ClientError> {
        self.request(Method::GET, "/v1/health", None::<&()>).await
    }

    /// The devices.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn list(&self) -> Result<DeviceList, ClientError> {
        self.request(Method::GET, "/v1/devices", None::<&()>).await
    }

    /// Attaches a device.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn attach(&self, spec: &DeviceSpec) -> Result<DeviceView, ClientError> {
        self.request(Method::POST, "/v1/devices", Some(spec)).await
    }

    /// Detaches a device.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn detach(&self, kind: DeviceKind, name: &str) -> Result<Detached, ClientError> {
        self.request(Method::DELETE, &format!("/v1/devices/{kind}/{name}"), None::<&()>)
            .await
    }

    async fn request<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, ClientError> {
        let stream = UnixStream::connect(&self.path).await;
        let stream = stream.map_err(|source| ClientError::Connect {
            path: self.path.clone(),
            source,
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.odd(&e))?;
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(|e| self.odd(&e))?,
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "outboard-shim")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| self.odd(&e))?;
        let exchange = async {
            let answer = sender.send_request(request).await.map_err(|e| self.odd(&e))?;
            let ok = answer.status().is_success();
            let bytes = Limited::new(answer.into_body(), ANSWER_LEN_MAX).collect().await;
            Ok((ok, bytes.map_err(|e| self.odd(&e))?.to_bytes()))
        };
        tokio::pin!(connection);
        // The connection has to be driven while the answer is awaited; it may end first.
        tokio::pin!(exchange);
        let (ok, bytes) = tokio::select! {
            answer = &mut exchange => answer?,
            _ = &mut connection => exchange.await?,
        };
        if ok {
            serde_json::from_slice(&bytes).map_err(|e| self.odd(&e))
        } else {
            let body: ErrorBody = serde_json::from_slice(&bytes).map_err(|e| self.odd(&e))?;
            Err(ClientError::Refused(body.error))
        }
    }

    fn odd(&self, error: &dyn std::fmt::Display) -> ClientError {
        ClientError::Answer {
            path: self.path.clone(),
            text: error.to_string(),
        }
    }
}
