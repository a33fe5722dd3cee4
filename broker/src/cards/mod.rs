//! The cards' side: a TLS listener on which DPUs enrol, say hello and are told what to hold.
//!
//! Who a card is follows from its certificate alone. A peer without one may do a single thing: redeem a token.

mod channel;
mod inquiries;
mod session;

use std::sync::Arc;

use outboard_protocol::card::{FromBroker, FromCard};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

pub use self::inquiries::{AskError, Inquiries};

use self::channel::{Channel, ChannelError};
use crate::{
    core::CoreHandle,
    identity::{Authority, Kind, Peer},
    limits::{
        ACCEPT_PAUSE, CARD_CONNECTIONS_MAX, CARD_STRANGERS_MAX, HANDSHAKE_TIMEOUT, KEEPALIVE_IDLE_S,
        KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES,
    },
};

/// What the listener needs.
#[derive(Clone)]
pub struct CardServer {
    /// The core.
    pub core: CoreHandle,
    /// Signs the certificates of cards that enrol.
    pub authority: Arc<Authority>,
    /// TLS settings.
    pub tls: Arc<ServerConfig>,
    /// Where cards that can be asked are found.
    pub inquiries: Inquiries,
}

impl CardServer {
    /// Serves connections until the task is dropped.
    pub async fn serve(self, listener: TcpListener) {
        let connections = Arc::new(Semaphore::new(CARD_CONNECTIONS_MAX));
        let strangers = Arc::new(Semaphore::new(CARD_STRANGERS_MAX));
        loop {
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a card's connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Beyond a bound the newest goes: strangers must not push out cards that are served.
            let (Ok(connection), Ok(stranger)) = (
                connections.clone().try_acquire_owned(),
                strangers.clone().try_acquire_owned(),
            ) else {
                tracing::warn!(%from, "too many connections on the cards' port: refused one");
                continue;
            };
            let server = self.clone();
            tokio::spawn(async move {
                if let Err(error) = server.serve_one(stream, stranger).await {
                    tracing::info!(%from, "a connection on the cards' port ended: {error}");
                }
                drop(connection);
            });
        }
    }

    async fn serve_one(
        &self,
        stream: TcpStream,
        stranger: tokio::sync::OwnedSemaphorePermit,
    ) -> Result<(), ChannelError> {
        keep_alive(&stream)?;
        let handshake = TlsAcceptor::from(self.tls.clone()).accept(stream);
        let stream = timeout(HANDSHAKE_TIMEOUT, handshake)
            .await
            .map_err(|_| ChannelError::Slow)??;
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
        let peer = match certificate.as_ref().map(Peer::of) {
            Some(Ok(peer)) if peer.kind == Kind::Card => Some(peer),
            Some(_) => return Err(ChannelError::NotACard),
            None => None,
        };
        let mut channel = Channel::new(stream);
        let first = timeout(HANDSHAKE_TIMEOUT, channel.receive())
            .await
            .map_err(|_| ChannelError::Slow)??;
        match (first, peer) {
            (None, _) => Ok(()),
            (Some(FromCard::Enrol { card, secret, csr }), _) => self.enrol(channel, card, secret, csr).await,
            (Some(hello @ FromCard::Hello { .. }), Some(peer)) => {
                // A peer that proved to be a card does not count against the strangers.
                drop(stranger);
                session::serve(self, channel, peer, hello).await
            }
            (Some(_), Some(_)) => channel.refuse(session::unexpected("Hello or Enrol")).await,
            (Some(_), None) => {
                channel
                    .refuse(session::unexpected("Enrol, without a certificate"))
                    .await
            }
        }
    }

    async fn enrol(
        &self,
        mut channel: Channel,
        card: outboard_protocol::id::Name,
        secret: Vec<u8>,
        csr: Vec<u8>,
    ) -> Result<(), ChannelError> {
        let answer = session::enrol(self, card, secret, csr).await;
        match answer {
            Ok(certificate) => {
                let ca = self.authority.certificate().to_vec();
                channel.send(&FromBroker::Enrolled { certificate, ca }).await?;
                channel.close().await
            }
            Err(refusal) => channel.refuse(refusal).await,
        }
    }
}

/// Lets the kernel find out that a card is gone without a word.
fn keep_alive(stream: &TcpStream) -> Result<(), ChannelError> {
    use nix::sys::socket::{setsockopt, sockopt};
    let set = || {
        setsockopt(stream, sockopt::KeepAlive, &true)?;
        setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_S)?;
        setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_S)?;
        setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)
    };
    set().map_err(|errno| ChannelError::Io(errno.into()))?;
    Ok(stream.set_nodelay(true)?)
}
