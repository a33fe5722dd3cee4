//! Carries one session between its two sockets. One blocking thread; an idle session sleeps in `poll`.

use std::{
    os::{fd::AsFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{
    Note, Session,
    fault::{Fault, Peer},
    framing::{Channel, Message, Outgoing, Received},
};
use crate::sockets::peer_process;

/// Longest wait for an answer of the DPU's. `GET_VRING_BASE` waits for requests in flight, hence so long.
pub const ANSWER_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long a ready driver may be without memory before that is reported.
pub const MEMORY_WAIT_MAX: Duration = Duration::from_secs(5);

/// Why a session is over.
#[derive(Debug)]
pub enum SessionEnd {
    /// The VMM closed its socket, or the shim shut it down.
    VmmClosed,
    /// The DPU closed its stream.
    DpuClosed,
    /// Somebody broke the protocol.
    Fault(Fault),
}

impl From<Fault> for SessionEnd {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Runs a session until one side closes its stream (or it is shut down from another thread) or breaks the protocol.
/// Both streams are closed when it returns.
pub fn run(vmm: UnixStream, dpu: UnixStream, notify: &mut dyn FnMut(Note)) -> SessionEnd {
    let process = peer_process(&vmm).ok().and_then(|peer| peer.pid);
    let mut proxy = Proxy {
        vmm: Channel::new(vmm),
        dpu: Channel::new(dpu),
        session: Session::new(process),
    };
    loop {
        if let Err(end) = proxy.exchange(notify) {
            return end;
        }
    }
}

struct Proxy {
    vmm: Channel,
    dpu: Channel,
    session: Session,
}

impl Proxy {
    /// One request and what follows from it.
    fn exchange(&mut self, notify: &mut dyn FnMut(Note)) -> Result<(), SessionEnd> {
        let request = self.next_request(notify)?;
        let forward = self.session.request(request)?;
        self.send(Peer::Dpu, forward.message)?;
        let (back, note) = if forward.answered {
            let answer = self.next_answer()?;
            self.session.answer(answer)?
        } else {
            self.session.unanswered()?
        };
        if let Some(note) = note {
            notify(note);
        }
        match back {
            Some(message) => self.send(Peer::Vmm, message),
            None => Ok(()),
        }
    }

    fn next_request(&mut self, notify: &mut dyn FnMut(Note)) -> Result<Message, SessionEnd> {
        let mut missing_at = self.session.lacks_memory().then(|| Instant::now() + MEMORY_WAIT_MAX);
        loop {
            let ready = self.wait(PollFlags::IN, PollFlags::IN, missing_at)?;
            if !ready.dpu.is_empty() {
                // Nothing was asked: the DPU can only have closed, or broken the protocol.
                match self.dpu.receive().map_err(|e| Fault::receive(Peer::Dpu, e))? {
                    Received::Closed => return Err(SessionEnd::DpuClosed),
                    Received::Message(message) => return Err(Fault::UnaskedAnswer(message.request).into()),
                    Received::Nothing => {}
                }
            }
            if !ready.vmm.is_empty() {
                match self.vmm.receive().map_err(|e| Fault::receive(Peer::Vmm, e))? {
                    Received::Closed => return Err(SessionEnd::VmmClosed),
                    Received::Message(message) => return Ok(message),
                    Received::Nothing => {}
                }
            }
            if missing_at.is_some_and(|at| Instant::now() >= at) {
                missing_at = None;
                notify(Note::MemoryMissing);
            }
        }
    }

    fn next_answer(&mut self) -> Result<Message, SessionEnd> {
        let deadline = Instant::now() + ANSWER_WAIT_MAX;
        loop {
            // RDHUP alone: what else the VMM sends has to wait, but when it leaves, the DPU is told at once.
            let ready = self.wait(PollFlags::RDHUP, PollFlags::IN, Some(deadline))?;
            if !ready.dpu.is_empty() {
                match self.dpu.receive().map_err(|e| Fault::receive(Peer::Dpu, e))? {
                    Received::Closed => return Err(SessionEnd::DpuClosed),
                    Received::Message(message) => return Ok(message),
                    Received::Nothing => {}
                }
            } else if !ready.vmm.is_empty() {
                return Err(SessionEnd::VmmClosed);
            }
            self.check_deadline(deadline)?;
        }
    }

    fn send(&mut self, to: Peer, message: Message) -> Result<(), SessionEnd> {
        let mut outgoing = Outgoing::from(message);
        let deadline = Instant::now() + ANSWER_WAIT_MAX;
        loop {
            let (channel, closed) = match to {
                Peer::Vmm => (&mut self.vmm, SessionEnd::VmmClosed),
                Peer::Dpu => (&mut self.dpu, SessionEnd::DpuClosed),
            };
            match channel.send(&mut outgoing) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) if is_gone(&error) => return Err(closed),
                Err(error) => return Err(Fault::Io(to, error).into()),
            }
            // A peer that does not read is waited for; the other one may leave meanwhile.
            match to {
                Peer::Vmm => {
                    if self.wait(PollFlags::OUT, PollFlags::RDHUP, None)?.dpu.intersects(GONE) {
                        return Err(SessionEnd::DpuClosed);
                    }
                }
                Peer::Dpu => {
                    if self
                        .wait(PollFlags::RDHUP, PollFlags::OUT, Some(deadline))?
                        .vmm
                        .intersects(GONE)
                    {
                        return Err(SessionEnd::VmmClosed);
                    }
                    self.check_deadline(deadline)?;
                }
            }
        }
    }

    fn check_deadline(&self, deadline: Instant) -> Result<(), Fault> {
        match self.session.outstanding() {
            Some(code) if Instant::now() >= deadline => Err(Fault::DpuSilent(code, ANSWER_WAIT_MAX.as_secs())),
            _ => Ok(()),
        }
    }

    /// Sleeps until one of the sockets has what is asked for, or the deadline has passed.
    fn wait(&self, vmm: PollFlags, dpu: PollFlags, deadline: Option<Instant>) -> Result<Ready, Fault> {
        loop {
            let timeout = deadline.map(timespec_until);
            let mut fds = [
                PollFd::from_borrowed_fd(self.vmm.as_fd(), vmm),
                PollFd::from_borrowed_fd(self.dpu.as_fd(), dpu),
            ];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) => {
                    return Ok(Ready {
                        vmm: fds[0].revents(),
                        dpu: fds[1].revents(),
                    });
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(Fault::Io(Peer::Vmm, error.into())),
            }
        }
    }
}

/// The peer has closed its end.
const GONE: PollFlags = PollFlags::RDHUP.union(PollFlags::HUP).union(PollFlags::ERR);

struct Ready {
    vmm: PollFlags,
    dpu: PollFlags,
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
