//! Getting a connection to a server.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

use super::tls::TlsTarget;
use crate::{error::CliError, paths};

/// How long a TCP connection and its TLS handshake may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A server to talk to.
#[derive(Debug, Clone)]
pub enum Target {
    /// A service of this machine.
    Socket {
        /// The service's unix socket.
        path: PathBuf,
        /// Which service it is.
        service: Service,
    },
    /// A broker that listens on the network.
    Tls(Box<TlsTarget>),
}

/// What listens on a unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// `outboard-broker`.
    Broker,
    /// `outboard-shim`.
    Shim,
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Shim => "shim",
        }
    }

    fn start(self) -> &'static str {
        match self {
            Self::Broker => {
                "start it with 'outboard up FILE.toml' or 'outboard-broker run --config FILE', or name its socket \
                 with --socket PATH or OUTBOARD_SOCKET"
            }
            Self::Shim => "start it with 'outboard up FILE.toml' or 'outboard-shim run --config FILE'",
        }
    }
}

impl Target {
    /// A service's unix socket.
    pub fn socket(path: impl Into<PathBuf>, service: Service) -> Self {
        Self::Socket {
            path: path.into(),
            service,
        }
    }

    /// The `Host` header.
    pub fn host(&self) -> &str {
        match self {
            Self::Socket { .. } => "outboard",
            Self::Tls(tls) => tls.authority(),
        }
    }

    /// Connects.
    ///
    /// # Errors
    /// Nothing listens there, or it does not let us in; the text names the socket or address and how to start it.
    pub async fn connect(&self) -> Result<Box<dyn Stream>, CliError> {
        match self {
            Self::Socket { path, service } => {
                paths::check_socket_path(path)?;
                let stream = UnixStream::connect(path).await.map_err(|e| away(path, *service, &e))?;
                Ok(Box::new(stream))
            }
            Self::Tls(tls) => match tokio::time::timeout(CONNECT_TIMEOUT, connect_tls(tls)).await {
                Ok(connected) => connected,
                Err(_) => Err(CliError::coded(
                    "broker_away",
                    format!(
                        "the broker at {} did not answer within {} s",
                        tls.authority(),
                        CONNECT_TIMEOUT.as_secs()
                    ),
                    "check the address and the way there",
                )),
            },
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket { path, service } => write!(f, "the {} at {}", service.name(), path.display()),
            Self::Tls(tls) => write!(f, "the broker at {}", tls.authority()),
        }
    }
}

fn away(path: &Path, service: Service, error: &io::Error) -> CliError {
    let (name, path) = (service.name(), path.display());
    let code = format!("{name}_away");
    match error.kind() {
        io::ErrorKind::NotFound => CliError::coded(
            &code,
            format!("no {name} is running: there is no socket {path}"),
            service.start(),
        ),
        io::ErrorKind::ConnectionRefused => {
            let what = format!("no {name} is running: nothing listens on {path} any more");
            CliError::coded(&code, what, service.start())
        }
        io::ErrorKind::PermissionDenied => CliError::coded(
            "permission_denied",
            format!("the {name}'s socket {path} is not open to this user"),
            format!("run this as the {name}'s own user or as root, or use --api URL with an operator's certificate"),
        ),
        _ => CliError::coded(
            &code,
            format!("cannot connect to the {name} at {path}: {error}"),
            service.start(),
        ),
    }
}

async fn connect_tls(tls: &TlsTarget) -> Result<Box<dyn Stream>, CliError> {
    let away = |e: io::Error| {
        let what = format!("cannot connect to the broker at {}: {e}", tls.authority());
        CliError::coded(
            "broker_away",
            what,
            "check the address, and that the broker has api_listen set",
        )
    };
    let tcp = TcpStream::connect(tls.address()).await.map_err(away)?;
    Ok(Box::new(tls.handshake(tcp).await?))
}
