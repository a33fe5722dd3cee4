//! The direct link's control channel: a unix `SOCK_SEQPACKET`, one message per packet.
//!
//! One thread owns the socket and connects again for as long as it takes. What is sent while the link is down is
//! dropped: the agent asks anew when the link is up.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use outboard_protocol::{
    codec,
    id::BootEpoch,
    link::{FromDpu, LINK_MESSAGE_LEN_MAX, LINK_VERSIONS, NumberedRequest, Reply, Request},
};
use outboard_shim_api::Problem;
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg, socket_with,
    },
};

use crate::{
    agent::{Input, Ticket},
    session::proxy::timespec_until,
    sockets::door::Sink,
};

/// Shortest delay before the DPU is tried again.
pub const RECONNECT_SHORTEST: Duration = Duration::from_millis(5);
/// Longest delay before the DPU is tried again.
pub const RECONNECT_LONGEST: Duration = Duration::from_millis(250);
/// A link that lasted this long begins with the shortest delay again.
pub const STEADY_AFTER: Duration = Duration::from_secs(1);
/// Longest wait for an answer before the link is taken for dead.
pub const ANSWER_WAIT_MAX: Duration = Duration::from_secs(5);
/// After this long without a word the DPU is asked whether it is there.
pub const PING_AFTER: Duration = Duration::from_secs(2);
/// Sequence numbers of the link's own requests count down from here; tickets count up from zero.
const OWN_SEQ_FIRST: u64 = u64::MAX;

/// Why the link is down.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Nobody listens.
    #[error("the DPU cannot be reached at {path}: {source}")]
    Connect {
        /// The link's socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The DPU closed the connection.
    #[error("the DPU closed the link")]
    Closed,
    /// The socket failed.
    #[error("the link's socket failed: {0}")]
    Io(#[from] io::Error),
    /// No answer.
    #[error("the DPU did not answer for {} s", ANSWER_WAIT_MAX.as_secs())]
    Silent,
    /// A message that is not understood.
    #[error("the DPU's message was not understood: {0}")]
    Decode(#[from] codec::DecodeError),
    /// The DPU does not take this shim.
    #[error("the DPU refused the link: {0}")]
    Refused(outboard_protocol::refusal::Refusal),
    /// An answer that fits nothing that was asked.
    #[error("the DPU answered what was not asked")]
    Unasked,
}

impl LinkError {
    /// For people.
    pub fn problem(&self) -> Problem {
        let remedy = match self {
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run the shim as root or under a uid in the DPU's `host_uids`, and check the socket's group; the shim \
                 keeps trying"
            }
            Self::Connect { .. } => {
                "start outboard-dpu, and check that `link_socket` is the same on both sides; the \
                 shim keeps trying"
            }
            Self::Refused(_) | Self::Decode(_) | Self::Unasked => {
                "run the same version of shim and DPU, and see the DPU's log; the shim keeps trying"
            }
            Self::Closed | Self::Io(_) | Self::Silent => "see the DPU's log; the shim connects again",
        };
        Problem {
            error: self.to_string(),
            remedy: remedy.to_owned(),
        }
    }
}

enum Command {
    Send {
        ticket: Ticket,
        request: Request,
        stream: Option<OwnedFd>,
    },
    Quit,
}

/// How long to wait before the DPU is tried again: an eighth of the time that it has been away, so that the shim adds
/// little to any absence, and spends little on a long one.
fn retry_delay(away: Duration) -> Duration {
    (away / 8).clamp(RECONNECT_SHORTEST, RECONNECT_LONGEST)
}

/// Handle on the link; dropping it ends the thread.
#[derive(Debug)]
pub struct DirectLink {
    commands: Sender<Command>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl DirectLink {
    /// Starts the thread. `sink` is told when the link is up or down, and of whatever the DPU says.
    ///
    /// # Errors
    /// The process has no descriptor or thread left.
    pub fn start(path: &Path, host_epoch: BootEpoch, sink: Sink) -> io::Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (commands, inbox) = channel();
        let mut keeper = Keeper {
            path: path.to_owned(),
            host_epoch,
            sink,
            inbox,
            wake: wake.clone(),
            away_since: Instant::now(),
            up_since: None,
            told_agent: None,
        };
        let thread = thread::Builder::new()
            .name("link".to_owned())
            .spawn(move || keeper.run())?;
        Ok(Self {
            commands,
            wake,
            thread: Some(thread),
        })
    }

    /// Sends a request; `stream` goes along with [`Request::Connect`].
    pub fn send(&self, ticket: Ticket, request: Request, stream: Option<OwnedFd>) {
        self.command(Command::Send {
            ticket,
            request,
            stream,
        });
    }

    fn command(&self, command: Command) {
        // Only a link that has quit takes none.
        let _ = self.commands.send(command);
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for DirectLink {
    fn drop(&mut self) {
        self.command(Command::Quit);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Keeper {
    path: PathBuf,
    host_epoch: BootEpoch,
    sink: Sink,
    inbox: Receiver<Command>,
    wake: Arc<OwnedFd>,
    /// Since when there is no link that lasts.
    away_since: Instant,
    /// Since when the link is up.
    up_since: Option<Instant>,
    /// What the agent was told of the link being down.
    told_agent: Option<String>,
}

/// Told to quit.
struct Quit;

/// A connection on which the DPU has said welcome, or is to.
struct Connected {
    socket: OwnedFd,
    /// Deadlines of the answers awaited, oldest first: the DPU answers in order.
    awaited: std::collections::VecDeque<(u64, Instant)>,
    own_seq: u64,
    welcome: bool,
    ping_at: Instant,
}

impl Keeper {
    fn run(&mut self) {
        let mut told: Option<String> = None;
        loop {
            let error = match self.connect() {
                Ok(connected) => match self.serve(connected) {
                    Ok(Quit) => return,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            let text = error.to_string();
            if told.as_ref() != Some(&text) {
                let problem = error.problem();
                tracing::warn!(error = problem.error, fix = problem.remedy, "no link to the DPU");
                told = Some(text.clone());
            }
            let now = Instant::now();
            if self.up_since.take().is_some_and(|since| since + STEADY_AFTER <= now) {
                self.away_since = now;
            }
            // That nobody listens yet is no news; any other end is.
            if !matches!(error, LinkError::Connect { .. }) || self.told_agent.as_ref() != Some(&text) {
                let hung = matches!(error, LinkError::Silent);
                let problem = error.problem();
                (self.sink)(Input::LinkDown { problem, hung });
                self.told_agent = Some(text);
            }
            let again = now + retry_delay(now.saturating_duration_since(self.away_since));
            if self.pause(again).is_err() {
                return;
            }
        }
    }

    fn connect(&self) -> Result<Connected, LinkError> {
        let failed = |source: io::Error| LinkError::Connect {
            path: self.path.clone(),
            source,
        };
        let address = SocketAddrUnix::new(&self.path).map_err(|e| failed(e.into()))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(io::Error::from)?;
        connect(&socket, &address).map_err(|e| failed(e.into()))?;
        let ping_at = Instant::now() + PING_AFTER;
        let mut connected = Connected {
            socket,
            awaited: Default::default(),
            own_seq: OWN_SEQ_FIRST,
            welcome: false,
            ping_at,
        };
        let (version_min, version_max) = LINK_VERSIONS;
        connected.send_own(Request::Hello {
            version_min,
            version_max,
            host_epoch: self.host_epoch,
        })?;
        Ok(connected)
    }

    /// Waits until `until`, dropping requests meanwhile.
    fn pause(&self, until: Instant) -> Result<(), Quit> {
        while Instant::now() < until {
            self.wait(None, Some(until));
            while let Ok(command) = self.inbox.try_recv() {
                if matches!(command, Command::Quit) {
                    return Err(Quit);
                }
            }
        }
        Ok(())
    }

    /// Sleeps until a command or packet is there, or the deadline has passed; true if the socket is ready.
    fn wait(&self, socket: Option<&OwnedFd>, deadline: Option<Instant>) -> bool {
        let mut fds = vec![PollFd::new(&*self.wake, PollFlags::IN)];
        fds.extend(socket.map(|socket| PollFd::new(socket, PollFlags::IN)));
        let timeout = deadline.map(timespec_until);
        if let Err(error) = poll(&mut fds, timeout.as_ref())
            && error != Errno::INTR
        {
            tracing::error!(%error, "poll failed");
            thread::sleep(RECONNECT_SHORTEST);
        }
        if !fds[0].revents().is_empty() {
            let mut count = [0; 8];
            let _ = rustix::io::read(&*self.wake, &mut count);
        }
        fds.get(1).is_some_and(|fd| !fd.revents().is_empty())
    }

    fn serve(&mut self, mut connected: Connected) -> Result<Quit, LinkError> {
        loop {
            let ready = self.wait(Some(&connected.socket), Some(connected.deadline()));
            while let Ok(command) = self.inbox.try_recv() {
                match command {
                    Command::Quit => return Ok(Quit),
                    Command::Send {
                        ticket,
                        request,
                        stream,
                    } if connected.welcome => {
                        connected.send(ticket.0, request, stream)?;
                    }
                    // Asked of a connection that is gone.
                    Command::Send { .. } => {}
                }
            }
            if ready {
                while let Some(message) = connected.receive()? {
                    self.take(&mut connected, message)?;
                }
            }
            connected.do_what_is_due(Instant::now())?;
        }
    }

    fn take(&mut self, connected: &mut Connected, message: FromDpu) -> Result<(), LinkError> {
        connected.ping_at = Instant::now() + PING_AFTER;
        let (seq, reply) = match message {
            FromDpu::Revoked { object, generation } => {
                (self.sink)(Input::Revoked(object, generation));
                return Ok(());
            }
            FromDpu::Reply { seq, reply } => (seq, reply),
        };
        match connected.awaited.pop_front() {
            Some((asked, _)) if asked == seq => {}
            _ => return Err(LinkError::Unasked),
        }
        match reply {
            Reply::Welcome {
                version,
                card,
                dpu_epoch,
            } if seq == OWN_SEQ_FIRST && (LINK_VERSIONS.0..=LINK_VERSIONS.1).contains(&version) => {
                connected.welcome = true;
                self.up_since = Some(Instant::now());
                self.told_agent = None;
                tracing::info!(%card, %dpu_epoch, "linked to the DPU");
                (self.sink)(Input::LinkUp { card, dpu_epoch });
            }
            Reply::Refused { refusal } if seq == OWN_SEQ_FIRST => return Err(LinkError::Refused(refusal)),
            _ if seq == OWN_SEQ_FIRST => return Err(LinkError::Unasked),
            // A ping's answer, of whatever kind: it is there.
            _ if seq > connected.own_seq => {}
            reply => (self.sink)(Input::Answer(Ticket(seq), reply)),
        }
        Ok(())
    }
}

impl Connected {
    fn deadline(&self) -> Instant {
        self.awaited.front().map_or(self.ping_at, |(_, at)| *at)
    }

    fn do_what_is_due(&mut self, now: Instant) -> Result<(), LinkError> {
        match self.awaited.front() {
            Some((_, at)) if *at <= now => Err(LinkError::Silent),
            None if self.ping_at <= now => self.send_own(Request::Ping),
            _ => Ok(()),
        }
    }

    fn send_own(&mut self, request: Request) -> Result<(), LinkError> {
        let seq = self.own_seq;
        self.own_seq -= 1;
        self.send(seq, request, None)
    }

    fn send(&mut self, seq: u64, request: Request, stream: Option<OwnedFd>) -> Result<(), LinkError> {
        let packet = codec::encode(&NumberedRequest { seq, request });
        let deadline = Instant::now() + ANSWER_WAIT_MAX;
        loop {
            let borrowed: Vec<_> = stream.iter().map(AsFd::as_fd).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
                return Err(LinkError::Io(io::ErrorKind::InvalidInput.into()));
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(&self.socket, &[IoSlice::new(&packet)], &mut control, flags) {
                Ok(_) => {
                    self.awaited.push_back((seq, deadline));
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                // The DPU does not read: wait, but not for ever.
                Err(Errno::AGAIN) if Instant::now() < deadline => {
                    let timeout = timespec_until(deadline);
                    match poll(&mut [PollFd::new(&self.socket, PollFlags::OUT)], Some(&timeout)) {
                        Ok(_) | Err(Errno::INTR) => {}
                        Err(error) => return Err(LinkError::Io(error.into())),
                    }
                }
                Err(Errno::AGAIN) => return Err(LinkError::Silent),
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(LinkError::Closed),
                Err(error) => return Err(LinkError::Io(error.into())),
            }
        }
    }

    /// The next packet, if one is there.
    fn receive(&self) -> Result<Option<FromDpu>, LinkError> {
        let mut packet = [0; LINK_MESSAGE_LEN_MAX];
        let mut control = RecvAncillaryBuffer::default();
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        loop {
            let received = match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut packet)], &mut control, flags) {
                Ok(received) => received,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(Errno::CONNRESET) => return Err(LinkError::Closed),
                Err(error) => return Err(LinkError::Io(error.into())),
            };
            if received.flags.contains(ReturnFlags::TRUNC) {
                let (len, max) = (received.bytes.max(LINK_MESSAGE_LEN_MAX + 1), LINK_MESSAGE_LEN_MAX);
                return Err(codec::DecodeError::TooLong { len, max }.into());
            }
            if received.bytes == 0 {
                return Err(LinkError::Closed);
            }
            return Ok(Some(codec::decode(&packet[..received.bytes], LINK_MESSAGE_LEN_MAX)?));
        }
    }
}

#[cfg(test)]
#[path = "direct_tests.rs"]
mod tests;
