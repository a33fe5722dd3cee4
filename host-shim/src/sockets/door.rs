//! One device's door: a thread that lets a VMM in, one at a time, and keeps its session.
//!
//! The thread sleeps in `poll` on its listener and its command queue. Each session runs in a thread
//! of its own, so a VMM that stalls holds nothing but itself.

use std::{
    io,
    net::Shutdown,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use outboard_protocol::id::ObjectRef;
use outboard_shim_api::{Problem, Role};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    fs::Mode,
};

use super::{Listener, ROOT_UID, SocketError, check_peer, connect_to};
use crate::{
    agent::{Connection, DeviceSettings, Input, Ticket, VmmEnd, backoff::Backoff},
    session::{
        MEMORY_WAIT_MAX, Note, fault,
        offer::Offer,
        proxy::{Control, Proxy, Said, SessionEnd, timespec_until},
    },
};

/// First delay before a socket is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// Longest delay before a socket is tried again.
const RETRY_LONGEST: Duration = Duration::from_secs(1);
/// How long a second VMM may wait for the first one's session to end.
const NEXT_VMM_WAIT_MAX: Duration = Duration::from_secs(2);

/// What the door is told.
enum Command {
    Open,
    Close,
    /// The DPU serves this connection on the stream, which the request has brought along.
    Serve(Connection, Ticket, UnixStream),
    DpuIsHung(Connection),
    CloseVmm(Connection),
    /// From the session's thread: what the DPU offers.
    Offered(Connection, Offer),
    /// From the session's thread.
    Ended(Connection, SessionEnd),
    Quit,
}

/// Where a door reports to.
pub type Sink = Arc<dyn Fn(Input) + Send + Sync>;

/// Makes connection numbers, each new within the process.
#[derive(Debug, Clone, Default)]
pub struct Connections(Arc<AtomicU64>);

impl Connections {
    fn next(&self) -> Connection {
        Connection(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

/// Handle on a door; dropping it ends the thread, the session and the socket.
#[derive(Debug)]
pub struct Door {
    mailbox: Mailbox,
    thread: Option<JoinHandle<()>>,
}

/// Sends commands and wakes the thread.
#[derive(Debug, Clone)]
struct Mailbox {
    commands: Sender<Command>,
    wake: Arc<OwnedFd>,
}

impl Mailbox {
    fn send(&self, command: Command) {
        // A door that has quit needs no commands.
        let _ = self.commands.send(command);
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }
}

impl Door {
    /// Starts the thread. The socket stays shut until [`Door::open`].
    ///
    /// # Errors
    /// The process has no descriptor or thread left.
    pub fn start(object: ObjectRef, settings: DeviceSettings, numbers: Connections, sink: Sink) -> io::Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (commands, inbox) = channel();
        let mailbox = Mailbox { commands, wake };
        let name = format!("door {}", object.name);
        let own = mailbox.clone();
        let thread = thread::Builder::new().name(name).spawn(move || {
            let allowed = settings.uid.map(|uid| vec![uid, ROOT_UID]);
            let retry = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
            let mut keeper = Keeper {
                object,
                settings,
                allowed,
                numbers,
                sink,
                mailbox: own,
                gate: Gate::Shut,
                guest: None,
                offer: None,
                next: None,
                retry,
                told: None,
            };
            while keeper.turn(&inbox) {}
            keeper.leave();
        })?;
        Ok(Self {
            mailbox,
            thread: Some(thread),
        })
    }

    /// Lets VMMs come.
    pub fn open(&self) {
        self.mailbox.send(Command::Open);
    }

    /// Lets no more VMMs come.
    pub fn close(&self) {
        self.mailbox.send(Command::Close);
    }

    /// Gives a connection's session a stream to the DPU.
    pub fn serve(&self, connection: Connection, ticket: Ticket, dpu: UnixStream) {
        self.mailbox.send(Command::Serve(connection, ticket, dpu));
    }

    /// The DPU that serves a connection's session is hung.
    pub fn dpu_is_hung(&self, connection: Connection) {
        self.mailbox.send(Command::DpuIsHung(connection));
    }

    /// Ends a connection.
    pub fn close_vmm(&self, connection: Connection) {
        self.mailbox.send(Command::CloseVmm(connection));
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.mailbox.send(Command::Quit);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

enum Gate {
    Shut,
    /// Listening, or trying to from this instant on.
    Listen(Result<Listener, Instant>),
    /// Connecting to the VMM's socket at this instant.
    Connect(Instant),
}

/// A VMM that was let in.
struct Guest {
    connection: Connection,
    control: Control,
    /// Its stream, kept to shut it down.
    vmm: UnixStream,
    thread: JoinHandle<()>,
}

impl Guest {
    fn shut_down(&self) {
        // An error says that it is closed already.
        let _ = self.vmm.shutdown(Shutdown::Both);
    }
}

struct Keeper {
    object: ObjectRef,
    settings: DeviceSettings,
    allowed: Option<Vec<u32>>,
    numbers: Connections,
    sink: Sink,
    mailbox: Mailbox,
    gate: Gate,
    guest: Option<Guest>,
    /// What the device's DPU offered last: with it a VMM is answered while the DPU is away.
    offer: Option<Offer>,
    /// A VMM that came while another one is in, and until when it may wait.
    next: Option<(UnixStream, Instant)>,
    retry: Backoff,
    /// The problem reported last.
    told: Option<Problem>,
}

impl Keeper {
    /// Sleeps until something happens and does what it asks for; false when told to quit.
    fn turn(&mut self, inbox: &Receiver<Command>) -> bool {
        let Some(happened) = self.sleep() else { return true };
        if happened.wake {
            let mut count = [0; 8];
            let _ = rustix::io::read(&*self.mailbox.wake, &mut count);
        }
        while let Ok(command) = inbox.try_recv() {
            if matches!(command, Command::Quit) {
                return false;
            }
            self.obey(command);
        }
        if happened.listener {
            self.accept();
        }
        self.do_what_is_due(Instant::now());
        true
    }

    fn deadline(&self) -> Option<Instant> {
        let gate_at = match self.gate {
            Gate::Listen(Err(at)) => Some(at),
            Gate::Connect(at) if self.guest.is_none() => Some(at),
            _ => None,
        };
        gate_at
            .into_iter()
            .chain(self.next.as_ref().map(|(_, until)| *until))
            .min()
    }

    fn sleep(&self) -> Option<Happened> {
        let mut fds = vec![PollFd::new(&*self.mailbox.wake, PollFlags::IN)];
        let listener = match &self.gate {
            // While a second VMM waits, a third one stays in the backlog.
            Gate::Listen(Ok(listener)) if self.next.is_none() => Some(listener),
            _ => None,
        };
        if let Some(listener) = listener {
            fds.push(PollFd::new(listener, PollFlags::IN));
        }
        let timeout = self.deadline().map(timespec_until);
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {
                let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
                let wake = ready.next().unwrap_or(false);
                let on_listener = listener.is_some() && ready.next().unwrap_or(false);
                Some(Happened {
                    wake,
                    listener: on_listener,
                })
            }
            Err(error) => {
                if error != rustix::io::Errno::INTR {
                    tracing::error!(object = %self.object, %error, "poll failed");
                    thread::sleep(RETRY_LONGEST);
                }
                None
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Open => {
                let now = Instant::now();
                self.retry.reset();
                self.gate = match self.settings.role {
                    Role::Listen => Gate::Listen(Err(now)),
                    Role::Connect => Gate::Connect(now),
                };
                if self.settings.role == Role::Connect {
                    (self.sink)(Input::SocketOpen(self.object.clone()));
                }
            }
            Command::Close => {
                self.gate = Gate::Shut;
                self.next = None;
                self.told = None;
                // The binding is over, or there was none: the next one may be to something else.
                self.offer = None;
            }
            Command::Serve(connection, ticket, dpu) => {
                // If it has left meanwhile, dropping the stream tells the DPU.
                if let Some(guest) = self.guest_of(connection) {
                    guest.control.serve(ticket.0, dpu);
                }
                self.retry.reset();
            }
            Command::DpuIsHung(connection) => {
                if let Some(guest) = self.guest_of(connection) {
                    guest.control.dpu_is_hung();
                }
            }
            Command::Offered(connection, offer) => {
                if self.guest_of(connection).is_some() && !matches!(self.gate, Gate::Shut) {
                    self.offer = Some(offer);
                    (self.sink)(Input::Offered(self.object.clone(), connection));
                }
            }
            Command::CloseVmm(connection) => {
                if let Some(guest) = self.guest_of(connection) {
                    guest.shut_down();
                }
            }
            Command::Ended(connection, end) => self.ended(connection, end),
            Command::Quit => {}
        }
    }

    fn do_what_is_due(&mut self, now: Instant) {
        if self.next.as_ref().is_some_and(|(_, until)| *until <= now) {
            tracing::warn!(object = %self.object, "a second VMM was sent away: another one is in session");
            self.next = None;
        }
        match self.gate {
            Gate::Listen(Err(at)) if at <= now => self.bind(now),
            Gate::Connect(at) if at <= now && self.guest.is_none() => self.connect(now),
            _ => {}
        }
    }

    fn bind(&mut self, now: Instant) {
        let mode = Mode::RUSR | Mode::WUSR;
        match Listener::bind(&self.settings.socket, mode, self.settings.uid) {
            Ok(listener) => {
                tracing::info!(object = %self.object, socket = %self.settings.socket.display(), "listening for a VMM");
                self.gate = Gate::Listen(Ok(listener));
                self.retry.reset();
                self.told = None;
                (self.sink)(Input::SocketOpen(self.object.clone()));
            }
            Err(error) => {
                self.gate = Gate::Listen(Err(self.retry.failed(now)));
                self.tell(&error);
            }
        }
    }

    /// Each failed try is quiet: that the VMM is not there yet is the usual case.
    fn connect(&mut self, now: Instant) {
        let path = self.settings.socket.clone();
        // Also after success: the next try comes only when this VMM has gone.
        self.gate = Gate::Connect(self.retry.failed(now));
        match connect_to(&path) {
            Ok(stream) => self.admit(stream),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
                ) => {}
            Err(source) => self.tell(&SocketError::Io { path, source }),
        }
    }

    fn accept(&mut self) {
        let Gate::Listen(Ok(listener)) = &self.gate else { return };
        match listener.accept() {
            Ok(None) => {}
            Ok(Some(stream)) if self.guest.is_none() => self.admit(stream),
            Ok(Some(stream)) => self.next = Some((stream, Instant::now() + NEXT_VMM_WAIT_MAX)),
            Err(source) => {
                let path = self.settings.socket.clone();
                self.tell(&SocketError::Io { path, source });
                // Out of descriptors: accepting at once again would only spin.
                thread::sleep(RETRY_FIRST);
            }
        }
    }

    fn admit(&mut self, stream: UnixStream) {
        if let Some(allowed) = &self.allowed
            && let Err(error) = check_peer(&stream, allowed, &self.settings.socket)
        {
            self.tell(&error);
            return;
        }
        if self.told.take().is_some() {
            (self.sink)(Input::SocketOpen(self.object.clone()));
        }
        let connection = self.numbers.next();
        tracing::info!(object = %self.object, connection = connection.0, "a VMM has connected");
        match self.start_session(connection, stream) {
            Ok(guest) => {
                self.guest = Some(guest);
                (self.sink)(Input::VmmConnected(self.object.clone(), connection));
            }
            Err(source) => {
                let path = self.settings.socket.clone();
                self.tell(&SocketError::Io { path, source });
            }
        }
    }

    fn admit_next(&mut self) {
        if self.guest.is_none()
            && let Some((stream, _)) = self.next.take()
        {
            self.admit(stream);
        }
    }

    fn guest_of(&self, connection: Connection) -> Option<&Guest> {
        self.guest.as_ref().filter(|guest| guest.connection == connection)
    }

    fn start_session(&self, connection: Connection, stream: UnixStream) -> io::Result<Guest> {
        let vmm = stream.try_clone()?;
        let reporter = Reporter {
            object: self.object.clone(),
            connection,
            sink: self.sink.clone(),
            mailbox: self.mailbox.clone(),
        };
        let say = Box::new(move |said| reporter.report(said));
        let (proxy, control) = Proxy::new(self.object.kind, stream, self.offer.clone(), say)?;
        let (name, mailbox) = (format!("vmm {}", self.object.name), self.mailbox.clone());
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || mailbox.send(Command::Ended(connection, proxy.run())))?;
        Ok(Guest {
            connection,
            control,
            vmm,
            thread,
        })
    }

    fn ended(&mut self, connection: Connection, end: SessionEnd) {
        if let Some(guest) = self.guest.take_if(|guest| guest.connection == connection) {
            // The clone would keep the connection open.
            guest.shut_down();
            let _ = guest.thread.join();
        }
        let end = match end {
            SessionEnd::VmmClosed => VmmEnd::Closed,
            SessionEnd::Fault(fault) => {
                let problem = fault.problem(&self.object);
                tracing::warn!(object = %self.object, error = problem.error, fix = problem.remedy, "session closed");
                VmmEnd::Fault(problem)
            }
        };
        tracing::info!(object = %self.object, connection = connection.0, ?end, "the VMM's session is over");
        if let Gate::Connect(at) = &mut self.gate {
            // Not at once: a session that fails each time would spin.
            *at = self.retry.failed(Instant::now());
        }
        (self.sink)(Input::VmmGone(self.object.clone(), connection, end));
        self.admit_next();
    }

    /// Reports a problem, but not the same one over and over.
    fn tell(&mut self, error: &SocketError) {
        let problem = error.problem();
        if self.told.as_ref() != Some(&problem) {
            tracing::warn!(object = %self.object, error = problem.error, fix = problem.remedy, "VMM socket");
            self.told = Some(problem.clone());
            (self.sink)(Input::SocketProblem(self.object.clone(), problem));
        }
    }

    fn leave(mut self) {
        if let Some(guest) = self.guest.take() {
            guest.shut_down();
            let _ = guest.thread.join();
        }
    }
}

/// Turns what a session says into what the agent takes in.
struct Reporter {
    object: ObjectRef,
    connection: Connection,
    sink: Sink,
    mailbox: Mailbox,
}

impl Reporter {
    fn report(&self, said: Said) {
        let (object, connection) = (self.object.clone(), self.connection);
        (self.sink)(match said {
            Said::StreamEnded(number, fault) => {
                let problem = fault.map(|fault| {
                    let problem = fault.problem(&object);
                    tracing::warn!(%object, error = problem.error, fix = problem.remedy, "stream to the DPU closed");
                    problem
                });
                Input::StreamEnded(object, connection, Ticket(number), problem)
            }
            // Through the door, which keeps it for the next VMM.
            Said::Note(Note::Offered(offer)) => return self.mailbox.send(Command::Offered(connection, offer)),
            Said::Note(Note::Ready { replay }) => {
                if replay {
                    tracing::info!(%object, connection = connection.0, "another DPU has taken the session over");
                }
                Input::Ready(object, connection, replay)
            }
            Said::Note(Note::DpuLost(in_flight)) => {
                tracing::warn!(%object, connection = connection.0, in_flight, "the session has no DPU; the VM waits");
                Input::DpuLost(object, connection, in_flight)
            }
            Said::Note(Note::Held) => {
                tracing::warn!(%object, connection = connection.0, "GET_VRING_BASE waits for requests in flight");
                Input::Held(object, connection, true)
            }
            Said::Note(Note::HeldOver) => Input::Held(object, connection, false),
            Said::Note(Note::MemoryAccepted) => Input::MemoryAccepted(object, connection),
            Said::Note(Note::MemoryMissing) => {
                let detail = format!(
                    "its driver is ready and {} s later the VMM has passed no memory",
                    MEMORY_WAIT_MAX.as_secs()
                );
                let problem = fault::no_shared_memory(&object, &detail);
                Input::SessionProblem(object, connection, problem)
            }
        });
    }
}

struct Happened {
    wake: bool,
    listener: bool,
}
