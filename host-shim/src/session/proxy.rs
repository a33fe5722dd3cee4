//! Carries one session between its sockets. One thread; an idle session sleeps in `poll`.

use std::{
    collections::VecDeque,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

use outboard_protocol::id::ObjectKind;
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
};

use super::{
    Note, Output, Session,
    fault::{Fault, Peer},
    framing::{Channel, Message, Outgoing, Received},
    offer::Offer,
    vhost_user_wire::{BACKEND_CONFIG_CHANGE, FLAG_VERSION},
};
use crate::sockets::peer_process;

/// Why a session is over.
#[derive(Debug)]
pub enum SessionEnd {
    /// The VMM closed its socket, or the shim shut it down.
    VmmClosed,
    /// The VMM broke the protocol, or asked what the DPU refused.
    Fault(Fault),
}

impl From<Fault> for SessionEnd {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// What a session says beside messages.
#[derive(Debug)]
pub enum Said {
    /// Something of note.
    Note(Note),
    /// The stream with this number has ended, for this reason if it was the session that ended it.
    StreamEnded(u64, Option<Fault>),
}

enum Command {
    Stream(u64, UnixStream),
    Hung,
}

/// Tells a session's thread of streams to DPUs.
#[derive(Debug, Clone)]
pub struct Control {
    commands: Sender<Command>,
    wake: Arc<OwnedFd>,
}

impl Control {
    /// A DPU serves this stream, which replaces any before. `number` names it.
    pub fn serve(&self, number: u64, stream: UnixStream) {
        self.send(Command::Stream(number, stream));
    }

    /// The DPU is hung: its stream is to be closed.
    pub fn dpu_is_hung(&self) {
        self.send(Command::Hung);
    }

    fn send(&self, command: Command) {
        // A session that is over needs no commands.
        let _ = self.commands.send(command);
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }
}

/// Where a session says what it says beside messages.
pub type Say = Box<dyn FnMut(Said) + Send>;

/// A session that is to run.
pub struct Proxy {
    session: Session,
    inbox: Receiver<Command>,
    wake: Arc<OwnedFd>,
    vmm: Channel,
    to_vmm: VecDeque<Outgoing>,
    dpu: Option<DpuStream>,
    announcement: Option<Announcement>,
    say: Say,
}

/// A stream to a DPU, and the shim's end of the channel that the DPU has.
struct DpuStream {
    number: u64,
    stream: Channel,
    to_dpu: VecDeque<Outgoing>,
    changes: Option<Channel>,
}

/// "The configuration has changed", on its way to the VMM.
struct Announcement {
    channel: Channel,
    outgoing: Outgoing,
}

impl Proxy {
    /// A session of the VMM on this stream. With the offer of an earlier DPU it is answered before one has come.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new(kind: ObjectKind, vmm: UnixStream, offer: Option<Offer>, say: Say) -> std::io::Result<(Self, Control)> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (commands, inbox) = channel();
        let process = peer_process(&vmm).ok().and_then(|peer| peer.pid);
        let proxy = Self {
            session: Session::new(kind, process, offer),
            inbox,
            wake: wake.clone(),
            vmm: Channel::new(vmm),
            to_vmm: VecDeque::new(),
            dpu: None,
            announcement: None,
            say,
        };
        Ok((proxy, Control { commands, wake }))
    }

    /// Runs the session until the VMM closes its stream (or it is shut down from another thread) or breaks the
    /// protocol.
    pub fn run(mut self) -> SessionEnd {
        loop {
            if let Err(end) = self.turn() {
                return end;
            }
        }
    }

    fn turn(&mut self) -> Result<(), SessionEnd> {
        self.carry_out()?;
        let ready = self.wait().map_err(|e| Fault::Io(Peer::Vmm, e.into()))?;
        if ready.wake {
            let mut count = [0; 8];
            let _ = rustix::io::read(&*self.wake, &mut count);
            while let Ok(command) = self.inbox.try_recv() {
                self.obey(command)?;
            }
        }
        // A command may have brought another stream than the one that was looked at.
        if !ready.dpu.is_empty() && !ready.wake {
            self.serve_dpu(ready.dpu)?;
        }
        if ready.changes && !ready.wake {
            self.take_changes();
        }
        if !ready.announcement.is_empty() {
            self.send_announcement();
        }
        if !ready.vmm.is_empty() {
            self.serve_vmm(ready.vmm)?;
        }
        self.session.tick(Instant::now())?;
        Ok(())
    }

    fn obey(&mut self, command: Command) -> Result<(), Fault> {
        match command {
            Command::Stream(number, stream) => {
                self.end_stream(None);
                self.session.dpu_lost(Instant::now())?;
                let (changes, theirs) = match UnixStream::pair() {
                    Ok(pair) => pair,
                    Err(error) => {
                        (self.say)(Said::StreamEnded(number, Some(Fault::Io(Peer::Dpu, error))));
                        return Ok(());
                    }
                };
                self.dpu = Some(DpuStream {
                    number,
                    stream: Channel::new(stream),
                    to_dpu: VecDeque::new(),
                    changes: Some(Channel::new(changes)),
                });
                self.session
                    .dpu_connected(Arc::new(OwnedFd::from(theirs)), Instant::now());
            }
            Command::Hung => {
                self.session.dpu_hung(Instant::now())?;
                self.end_stream(None);
            }
        }
        Ok(())
    }

    /// Does all that the session wants done, as far as that goes without waiting.
    fn carry_out(&mut self) -> Result<(), SessionEnd> {
        while let Some(output) = self.session.take() {
            match output {
                Output::ToVmm(message) => {
                    self.to_vmm.push_back(message.into());
                    self.send_to_vmm()?;
                }
                Output::ToDpu(message) => {
                    if let Some(dpu) = &mut self.dpu {
                        dpu.to_dpu.push_back(message.into());
                    }
                    self.send_to_dpu()?;
                }
                Output::Announce(descriptor) => self.announce(&descriptor),
                Output::DropDpu(fault) => self.end_stream(Some(fault)),
                Output::Note(note) => (self.say)(Said::Note(note)),
            }
        }
        Ok(())
    }

    /// Closes the stream to the DPU: whatever it may still say is not heard.
    fn end_stream(&mut self, fault: Option<Fault>) {
        if let Some(dpu) = self.dpu.take() {
            dpu.stream.shut_down();
            (self.say)(Said::StreamEnded(dpu.number, fault));
        }
    }

    fn lose_dpu(&mut self) -> Result<(), Fault> {
        self.end_stream(None);
        self.session.dpu_lost(Instant::now())
    }

    fn serve_dpu(&mut self, ready: PollFlags) -> Result<(), SessionEnd> {
        if ready.contains(PollFlags::OUT) {
            self.send_to_dpu()?;
        }
        let Some(dpu) = &mut self.dpu else { return Ok(()) };
        if !ready.intersects(PollFlags::IN.union(GONE)) {
            return Ok(());
        }
        match dpu.stream.receive() {
            Ok(Received::Nothing) => {}
            Ok(Received::Closed) => self.lose_dpu()?,
            Ok(Received::Message(answer)) => self.session.dpu_answered(answer, Instant::now())?,
            Err(error) => {
                let fault = Fault::receive(Peer::Dpu, error);
                self.end_stream(Some(fault));
                self.session.dpu_lost(Instant::now())?;
            }
        }
        Ok(())
    }

    fn send_to_dpu(&mut self) -> Result<(), SessionEnd> {
        let Some(dpu) = &mut self.dpu else { return Ok(()) };
        match send_all(&mut dpu.stream, &mut dpu.to_dpu) {
            Ok(()) => {}
            // What it said before it went is still to be read; its end of stream tells the rest.
            Err(error) if is_gone(&error) => dpu.to_dpu.clear(),
            Err(error) => {
                self.end_stream(Some(Fault::Io(Peer::Dpu, error)));
                self.session.dpu_lost(Instant::now())?;
            }
        }
        Ok(())
    }

    fn take_changes(&mut self) {
        let Some(dpu) = &mut self.dpu else { return };
        let Some(changes) = &mut dpu.changes else { return };
        match changes.receive() {
            Ok(Received::Nothing) => {}
            Ok(Received::Message(message)) if message.request == BACKEND_CONFIG_CHANGE => self.session.config_changed(),
            Ok(Received::Message(message)) => {
                tracing::warn!(
                    request = message.request,
                    "the DPU said something unknown on its channel"
                );
            }
            // It makes no use of it, or no more.
            Ok(Received::Closed) | Err(_) => dpu.changes = None,
        }
    }

    fn serve_vmm(&mut self, ready: PollFlags) -> Result<(), SessionEnd> {
        if ready.contains(PollFlags::OUT) {
            self.send_to_vmm()?;
        }
        if self.reads_vmm() {
            match self.vmm.receive().map_err(|e| Fault::receive(Peer::Vmm, e))? {
                Received::Nothing => {}
                Received::Closed => return Err(SessionEnd::VmmClosed),
                Received::Message(message) => self.session.request(message, Instant::now())?,
            }
        } else if ready.intersects(GONE) {
            return Err(SessionEnd::VmmClosed);
        }
        Ok(())
    }

    fn reads_vmm(&self) -> bool {
        self.to_vmm.is_empty() && self.session.wants_request()
    }

    fn send_to_vmm(&mut self) -> Result<(), SessionEnd> {
        match send_all(&mut self.vmm, &mut self.to_vmm) {
            Ok(()) => Ok(()),
            Err(error) if is_gone(&error) => Err(SessionEnd::VmmClosed),
            Err(error) => Err(Fault::Io(Peer::Vmm, error).into()),
        }
    }

    /// Tells the VMM, without ever waiting for it. One announcement says as much as many.
    fn announce(&mut self, descriptor: &OwnedFd) {
        if self.announcement.is_some() {
            return;
        }
        let Ok(descriptor) = descriptor.try_clone() else { return };
        let message = Message {
            request: BACKEND_CONFIG_CHANGE,
            flags: FLAG_VERSION,
            payload: Vec::new(),
            descriptors: Vec::new(),
        };
        self.announcement = Some(Announcement {
            channel: Channel::new(UnixStream::from(descriptor)),
            outgoing: message.into(),
        });
        self.send_announcement();
    }

    fn send_announcement(&mut self) {
        let Some(Announcement { channel, outgoing }) = &mut self.announcement else {
            return;
        };
        match channel.send(outgoing) {
            Ok(false) => {}
            Ok(true) => self.announcement = None,
            Err(error) => {
                tracing::warn!(%error, "the VMM cannot be told that a configuration has changed");
                self.announcement = None;
            }
        }
    }

    /// Sleeps until something is ready or due.
    fn wait(&self) -> Result<Ready, Errno> {
        let mut vmm = PollFlags::RDHUP;
        if !self.to_vmm.is_empty() {
            vmm |= PollFlags::OUT;
        } else if self.session.wants_request() {
            vmm |= PollFlags::IN;
        }
        let mut fds = vec![
            PollFd::new(&*self.wake, PollFlags::IN),
            PollFd::from_borrowed_fd(self.vmm.as_fd(), vmm),
        ];
        let (mut dpu, mut changes, mut announcement) = (None, None, None);
        if let Some(stream) = &self.dpu {
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, !stream.to_dpu.is_empty());
            dpu = Some(fds.len());
            fds.push(PollFd::from_borrowed_fd(stream.stream.as_fd(), flags));
            if let Some(channel) = &stream.changes {
                changes = Some(fds.len());
                fds.push(PollFd::from_borrowed_fd(channel.as_fd(), PollFlags::IN));
            }
        }
        if let Some(waiting) = &self.announcement {
            announcement = Some(fds.len());
            fds.push(PollFd::from_borrowed_fd(waiting.channel.as_fd(), PollFlags::OUT));
        }
        let timeout = self.session.deadline().map(timespec_until);
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let of = |index: Option<usize>| index.map_or(PollFlags::empty(), |index| fds[index].revents());
        Ok(Ready {
            wake: !fds[0].revents().is_empty(),
            vmm: fds[1].revents(),
            dpu: of(dpu),
            changes: !of(changes).is_empty(),
            announcement: of(announcement),
        })
    }
}

/// The peer has closed its end.
const GONE: PollFlags = PollFlags::RDHUP.union(PollFlags::HUP).union(PollFlags::ERR);

struct Ready {
    wake: bool,
    vmm: PollFlags,
    dpu: PollFlags,
    changes: bool,
    announcement: PollFlags,
}

/// Sends what goes without waiting.
fn send_all(channel: &mut Channel, queue: &mut VecDeque<Outgoing>) -> std::io::Result<()> {
    while let Some(outgoing) = queue.front_mut() {
        if !channel.send(outgoing)? {
            break;
        }
        queue.pop_front();
    }
    Ok(())
}

fn is_gone(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset
    )
}

/// What is left until `deadline`, rounded up so that a wait does not end just before it.
pub(crate) fn timespec_until(deadline: Instant) -> Timespec {
    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_micros(100);
    Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    }
}
