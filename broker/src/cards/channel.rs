//! Messages over one TLS connection.

use outboard_protocol::{
    card::{CARD_MESSAGE_LEN_MAX, FromBroker, FromCard},
    codec::{DecodeError, FrameDecoder, encode_frame},
    refusal::Refusal,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::server::TlsStream;

use crate::limits::WRITE_TIMEOUT;

/// Bytes read at a time.
const READ_LEN: usize = 16 << 10;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The connection broke, or the TLS handshake failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The peer sent what is no message.
    #[error("{0}")]
    Decode(#[from] DecodeError),
    /// The peer took too long.
    #[error("the peer took too long")]
    Slow,
    /// The stream ended inside a message.
    #[error("the peer closed the connection inside a message")]
    CutOff,
    /// A certificate of another kind.
    #[error("the peer's certificate is not a card's")]
    NotACard,
    /// The peer was refused.
    #[error("{0}")]
    Refused(Refusal),
    /// The broker is stopping.
    #[error("{0}")]
    Stopping(#[from] crate::core::Gone),
    /// A later connection of the card, or an operator, ended this one.
    #[error("the connection was replaced, or its card deleted or enrolled anew")]
    Superseded,
}

/// One peer's connection.
pub struct Channel {
    /// What comes from it.
    pub receiver: Receiver,
    /// What goes to it.
    pub sender: Sender,
}

/// The receiving half.
pub struct Receiver {
    stream: ReadHalf<TlsStream<TcpStream>>,
    decoder: FrameDecoder,
    buffer: Vec<u8>,
}

/// The sending half.
pub struct Sender {
    stream: WriteHalf<TlsStream<TcpStream>>,
}

impl Channel {
    /// A channel over an open connection.
    pub fn new(stream: TlsStream<TcpStream>) -> Self {
        let (read, write) = tokio::io::split(stream);
        let receiver = Receiver {
            stream: read,
            decoder: FrameDecoder::new(CARD_MESSAGE_LEN_MAX),
            buffer: vec![0; READ_LEN],
        };
        Self {
            receiver,
            sender: Sender { stream: write },
        }
    }

    /// The next message; none when the peer closed the connection.
    pub async fn receive(&mut self) -> Result<Option<FromCard>, ChannelError> {
        self.receiver.receive().await
    }

    /// Sends a message.
    pub async fn send(&mut self, message: &FromBroker) -> Result<(), ChannelError> {
        self.sender.send(message).await
    }

    /// Says why, and closes the connection.
    pub async fn refuse(mut self, refusal: Refusal) -> Result<(), ChannelError> {
        self.send(&FromBroker::Refused {
            refusal: refusal.clone(),
        })
        .await?;
        self.close().await?;
        Err(ChannelError::Refused(refusal))
    }

    /// Closes the connection, so that the peer gets everything sent before.
    pub async fn close(self) -> Result<(), ChannelError> {
        self.sender.close().await
    }
}

impl Receiver {
    /// The next message; none when the peer closed the connection. Safe to drop while it waits.
    pub async fn receive(&mut self) -> Result<Option<FromCard>, ChannelError> {
        loop {
            if let Some(message) = self.decoder.next_message()? {
                return Ok(Some(message));
            }
            let len = self.stream.read(&mut self.buffer).await?;
            if len == 0 {
                return if self.decoder.is_mid_frame() {
                    Err(ChannelError::CutOff)
                } else {
                    Ok(None)
                };
            }
            self.decoder.push(&self.buffer[..len]);
        }
    }
}

impl Sender {
    /// Sends a message; a peer that does not take it in time is given up.
    pub async fn send(&mut self, message: &FromBroker) -> Result<(), ChannelError> {
        let frame = encode_frame(message);
        let write = async {
            self.stream.write_all(&frame).await?;
            self.stream.flush().await
        };
        Ok(timeout(WRITE_TIMEOUT, write).await.map_err(|_| ChannelError::Slow)??)
    }

    /// Closes the connection, so that the peer gets everything sent before.
    pub async fn close(mut self) -> Result<(), ChannelError> {
        timeout(WRITE_TIMEOUT, self.stream.shutdown())
            .await
            .map_err(|_| ChannelError::Slow)??;
        Ok(())
    }
}
