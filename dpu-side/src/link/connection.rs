//! One connection of the host: hello first, then one request after the other.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
    time::Duration,
};

use outboard_controls::{Check, on};
use outboard_protocol::{
    card_side::Input,
    codec::{decode, negotiate},
    id::Name,
    link::{FromDpu, LINK_MESSAGE_LEN_MAX, LINK_VERSIONS, NumberedRequest, Reply, Request},
    refusal::{Code, Refusal},
};
use rustix::net::{AddressFamily, SocketType, sockopt};

use super::{
    Links,
    packet::{self, Packet},
};
use crate::{message::Message, pace::SharedPace};

/// Longest time until the first message, and for the host to take one.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Who is at the other end, and what it may take.
#[derive(Debug, Clone)]
pub struct Host {
    /// The host's name: the link is what it is known by.
    pub name: Name,
    /// Requests per second, over all its connections; more are taken later.
    pub requests_per_s: u32,
}

/// A connection and its thread's state.
pub(super) struct Connection {
    pub(super) socket: Arc<OwnedFd>,
    pub(super) id: u64,
    pub(super) host: Host,
    /// Of all connections of the host: it gains nothing by opening more.
    pub(super) pace: Arc<SharedPace>,
    pub(super) links: Arc<Links>,
    pub(super) enforcement: SyncSender<Message>,
}

/// Whether to go on after a request.
enum Next {
    Go,
    Close,
}

impl Connection {
    /// Serves until the host hangs up or breaks the protocol.
    pub(super) fn serve(&self) -> io::Result<()> {
        let mut greeted = false;
        sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Send, Some(PATIENCE))?;
        sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
        while let Some(packet) = packet::receive(&self.socket)? {
            self.pace.wait();
            let (seq, reply, next) = self.answer(packet, &mut greeted);
            if greeted {
                sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Recv, None)?;
            }
            packet::send_patiently(&self.socket, &FromDpu::Reply { seq, reply })?;
            if matches!(next, Next::Close) {
                break;
            }
        }
        Ok(())
    }

    fn answer(&self, packet: Packet, greeted: &mut bool) -> (u64, Reply, Next) {
        let refused = |seq, refusal, next| (seq, Reply::Refused { refusal }, next);
        let malformed = |text: &str| Refusal::new(Code::Malformed, text);
        if packet.cut {
            let text =
                format!("host sent a packet of more than {LINK_MESSAGE_LEN_MAX} bytes or with too many descriptors");
            return refused(0, malformed(&text), Next::Close);
        }
        let NumberedRequest { seq, request } = match decode(&packet.bytes, LINK_MESSAGE_LEN_MAX) {
            Ok(request) => request,
            Err(e) => return refused(0, e.into(), Next::Close),
        };
        let stream = match take_stream(&request, packet.descriptors) {
            Ok(stream) => stream,
            Err(refusal) => return refused(seq, refusal, Next::Go),
        };
        let hello = matches!(request, Request::Hello { .. });
        if hello == *greeted {
            let text = if hello {
                "host said hello twice"
            } else {
                "host has to say hello first"
            };
            return refused(seq, Refusal::new(Code::WrongState, text), Next::Close);
        }
        let input = match self.input(request) {
            Ok(Some(input)) => input,
            Ok(None) => return (seq, Reply::Pong, Next::Go),
            Err(refusal) => return refused(seq, refusal, Next::Close),
        };
        let reply = self.ask(input, stream);
        if hello {
            *greeted = matches!(reply, Reply::Welcome { .. });
            if !*greeted {
                return (seq, reply, Next::Close);
            }
            self.links.greeted(self.id);
        }
        (seq, reply, Next::Go)
    }

    /// What the core is asked; none for a ping.
    fn input(&self, request: Request) -> Result<Option<Input>, Refusal> {
        let host = self.host.name.clone();
        Ok(Some(match request {
            Request::Hello {
                version_min,
                version_max,
                host_epoch,
            } => {
                let version = negotiate((version_min, version_max), LINK_VERSIONS)?;
                Input::HostHello {
                    host,
                    host_epoch,
                    version,
                }
            }
            Request::Redeem { operation, object } => Input::Redeem {
                host,
                operation,
                object,
            },
            Request::Connect {
                object,
                generation,
                incarnation,
            } => Input::Connect {
                host,
                object,
                generation,
                incarnation,
            },
            Request::Release {
                operation,
                object,
                generation,
            } => Input::Release {
                host,
                operation,
                object,
                generation,
            },
            Request::Ping => return Ok(None),
        }))
    }

    fn ask(&self, input: Input, stream: Option<UnixStream>) -> Reply {
        let (reply, answer) = sync_channel(1);
        let stopping = || {
            let text = "the DPU is stopping: try again when it is back";
            Reply::Refused {
                refusal: Refusal::new(Code::Unavailable, text),
            }
        };
        match self.enforcement.send(Message::Host { input, stream, reply }) {
            Ok(()) => answer.recv().unwrap_or_else(|_| stopping()),
            Err(_) => stopping(),
        }
    }
}

/// The stream of a `Connect`; nothing else comes with descriptors.
fn take_stream(request: &Request, mut descriptors: Vec<OwnedFd>) -> Result<Option<UnixStream>, Refusal> {
    let wanted = usize::from(matches!(request, Request::Connect { .. }));
    if descriptors.len() != wanted && on(Check::MessageDescriptors) {
        let text = format!(
            "host sent {} descriptors with a message that takes {wanted}",
            descriptors.len()
        );
        return Err(Refusal::new(Code::Malformed, text));
    }
    let Some(descriptor) = descriptors.pop().filter(|_| wanted == 1) else {
        return Ok(None);
    };
    let of_stream = || -> rustix::io::Result<bool> {
        let (domain, kind) = (
            sockopt::socket_domain(descriptor.as_fd())?,
            sockopt::socket_type(descriptor.as_fd())?,
        );
        Ok(domain == AddressFamily::UNIX && kind == SocketType::STREAM)
    };
    if of_stream().unwrap_or(false) {
        Ok(Some(UnixStream::from(descriptor)))
    } else {
        Err(Refusal::new(
            Code::Malformed,
            "host sent a descriptor that is no unix stream socket",
        ))
    }
}

impl Drop for Connection {
    /// However its thread ends, its place is free again.
    fn drop(&mut self) {
        self.links.remove(self.id);
    }
}
