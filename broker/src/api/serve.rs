//! HTTP/1.1 over the two listeners.

use std::sync::Arc;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    Access, ApiSocket,
    strangers::{Known, Strangers},
};
use crate::{
    identity::{Kind, Peer},
    limits::{ACCEPT_PAUSE, API_CONNECTIONS_MAX, API_TLS_CONNECTIONS_MAX, API_TLS_STRANGERS_MAX, HANDSHAKE_TIMEOUT},
};

/// Serves the unix socket until the task is dropped.
pub async fn serve_unix(socket: ApiSocket, router: Router) {
    let connections = Arc::new(Semaphore::new(API_CONNECTIONS_MAX));
    loop {
        // Whoever may open the socket is trusted: beyond the bound clients wait.
        let Ok(permit) = connections.clone().acquire_owned().await else {
            return;
        };
        match socket.listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    http(stream, router, Access::Local).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection on the API socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves operators over mutual TLS until the task is dropped.
pub async fn serve_tls(listener: TcpListener, tls: Arc<ServerConfig>, router: Router) {
    let connections = Arc::new(Semaphore::new(API_TLS_CONNECTIONS_MAX));
    let mut strangers = Strangers::default();
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept an operator's connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = connections.clone().try_acquire_owned() else {
            tracing::warn!(%from, "too many connections on the operators' port: refused one");
            continue;
        };
        let (router, tls, known) = (router.clone(), tls.clone(), Known::default());
        let shown = known.clone();
        let task = tokio::spawn(async move {
            match handshake(stream, tls).await {
                Ok((stream, peer)) => {
                    shown.note();
                    http(stream, router, Access::Operator(peer)).await;
                }
                Err(error) => tracing::info!(%from, "a connection on the operators' port ended: {error}"),
            }
            drop(permit);
        });
        if strangers.add(task.abort_handle(), known, API_TLS_STRANGERS_MAX) {
            tracing::warn!(%from, "too many strangers on the operators' port: closed the oldest connection");
        }
    }
}

async fn handshake(
    stream: TcpStream,
    tls: Arc<ServerConfig>,
) -> Result<(tokio_rustls::server::TlsStream<TcpStream>, Peer), String> {
    let accepted = timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(tls).accept(stream)).await;
    let stream = accepted
        .map_err(|_| "the peer took too long".to_owned())?
        .map_err(|e| e.to_string())?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    match certificate.map(Peer::of) {
        Some(Ok(peer)) if peer.kind == Kind::Operator => Ok((stream, peer)),
        _ => Err("the peer's certificate is not an operator's".to_owned()),
    }
}

/// Serves one connection.
async fn http(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router, access: Access) {
    let service = TowerToHyperService::new(router.layer(Extension(access)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "an API connection ended");
    }
}
