//! One connection to the broker: TCP, TLS and frames, without any meaning.

use std::{io, sync::Arc, time::Duration};

use nix::sys::socket::{setsockopt, sockopt};
use outboard_protocol::{
    card::{CARD_MESSAGE_LEN_MAX, FromBroker, FromCard},
    codec::{DecodeError, FrameDecoder, encode_frame},
};
use rustls::ClientConfig;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::tls;

/// Longest time for TCP and TLS to come up, and for the broker to take one message.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Seconds of silence before the kernel asks whether the broker is still there.
const KEEPALIVE_IDLE_S: u32 = 10;
/// Seconds between such questions, and how many may stay unanswered.
const KEEPALIVE_INTERVAL_S: u32 = 5;
const KEEPALIVE_PROBES: u32 = 3;
/// Bytes read at a time.
const READ_LEN: usize = 16 << 10;

/// Why a connection failed or ended.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The network, TLS, or the other side closed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The broker did not answer in time.
    #[error("no answer within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout,
    /// The broker sent what is no message.
    #[error("{0}")]
    Message(#[from] DecodeError),
    /// The broker closed the connection.
    #[error("the broker closed the connection")]
    Closed,
}

/// The receiving half.
pub struct Receiver {
    stream: ReadHalf<TlsStream<TcpStream>>,
    frames: FrameDecoder,
}

/// The sending half.
pub struct Sender {
    stream: WriteHalf<TlsStream<TcpStream>>,
}

/// Connects to `broker` ("host:port").
pub async fn connect(broker: &str, config: Arc<ClientConfig>) -> Result<(Sender, Receiver), StreamError> {
    let connecting = async {
        let tcp = TcpStream::connect(broker).await?;
        prepare(&tcp)?;
        TlsConnector::from(config).connect(tls::broker_name(), tcp).await
    };
    let stream = timeout(CONNECT_TIMEOUT, connecting)
        .await
        .map_err(|_| StreamError::Timeout)??;
    let (read, write) = tokio::io::split(stream);
    Ok((
        Sender { stream: write },
        Receiver {
            stream: read,
            frames: FrameDecoder::new(CARD_MESSAGE_LEN_MAX),
        },
    ))
}

/// A broker whose machine vanished must be noticed, or this side would wait for ever for its next message.
fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    setsockopt(tcp, sockopt::KeepAlive, &true)?;
    setsockopt(tcp, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_S)?;
    setsockopt(tcp, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_S)?;
    setsockopt(tcp, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)?;
    Ok(())
}

impl Sender {
    /// Sends one message.
    pub async fn send(&mut self, message: &FromCard) -> Result<(), StreamError> {
        let frame = encode_frame(message);
        let sending = async {
            self.stream.write_all(&frame).await?;
            self.stream.flush().await
        };
        Ok(timeout(CONNECT_TIMEOUT, sending)
            .await
            .map_err(|_| StreamError::Timeout)??)
    }
}

impl Receiver {
    /// The next message. Dropping the future loses nothing: what has arrived stays in the decoder.
    pub async fn receive(&mut self) -> Result<FromBroker, StreamError> {
        loop {
            if let Some(message) = self.frames.next_message()? {
                return Ok(message);
            }
            let mut bytes = vec![0; READ_LEN];
            let len = self.stream.read(&mut bytes).await?;
            if len == 0 {
                return Err(StreamError::Closed);
            }
            self.frames.push(&bytes[..len]);
        }
    }
}
