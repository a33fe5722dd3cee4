//! The running shim: carries out what the agent decides.
//!
//! One thread owns the agent and takes events in order. Doors, sessions, the link and the API have threads of their own
//! and only send events.

use std::{
    collections::BTreeMap,
    io,
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use outboard_protocol::{
    id::{ObjectRef, OperationId},
    link::Reply,
    refusal::{Code, Refusal},
};
use outboard_shim_api::{DeviceSpec, DeviceView, Health, Problem, Release};
use tokio::sync::oneshot;

use crate::{
    agent::{Action, Agent, AttachError, DeviceSettings, Input, Ticket},
    config::{Config, ConfigError, resolve},
    link::direct::DirectLink,
    sockets::door::{Connections, Door, Sink},
    state_file::StateFile,
};

/// How long a detach waits for the DPU before it answers that the release is pending.
pub const RELEASE_WAIT_MAX: Duration = Duration::from_secs(2);

/// Why the shim cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A device of the configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A device of the configuration cannot be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The state file cannot be read or written.
    #[error("the state file {path} cannot be used: {source}")]
    State {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No thread or descriptor left.
    #[error("a thread cannot be started: {0}")]
    Thread(#[from] io::Error),
}

impl StartError {
    /// What to do.
    pub fn remedy(&self) -> String {
        match self {
            Self::Config(error) => error.remedy(),
            Self::Attach(_) => "change the [[device]] sections so that each has a socket of its own".to_owned(),
            Self::State { .. } => "let the shim write to its folder, or name another `state_file`".to_owned(),
            Self::Thread(_) => "raise the limits of processes and open files".to_owned(),
        }
    }
}

/// What the API asks; each is answered once.
enum Ask {
    Attach(DeviceSpec, oneshot::Sender<Result<DeviceView, DeviceError>>),
    Detach(ObjectRef, oneshot::Sender<Result<Release, DeviceError>>),
    Health(oneshot::Sender<Health>),
}

enum Event {
    Input(Input),
    Ask(Ask),
    Stop,
}

/// Why an attach or detach is refused.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The device as described cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It clashes with what is there, or is not there.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The shim is stopping.
    #[error("the shim is stopping")]
    Stopping,
}

/// Handle on the running shim; [`Daemon::stop`] or dropping it ends everything. Bindings stay: a shim that starts
/// again with the same state file takes them up.
#[derive(Debug)]
pub struct Daemon {
    shim: Shim,
    thread: Option<JoinHandle<()>>,
}

/// What the API holds.
#[derive(Debug, Clone)]
pub struct Shim {
    events: Sender<Event>,
}

impl Shim {
    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, DeviceError> {
        let (answer, answered) = oneshot::channel();
        self.events
            .send(Event::Ask(ask(answer)))
            .map_err(|_| DeviceError::Stopping)?;
        answered.await.map_err(|_| DeviceError::Stopping)
    }

    /// Attaches a device.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub async fn attach(&self, spec: DeviceSpec) -> Result<DeviceView, DeviceError> {
        self.ask(|answer| Ask::Attach(spec, answer)).await?
    }

    /// Detaches a device; waits up to [`RELEASE_WAIT_MAX`] for the DPU to take the object back.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub async fn detach(&self, object: ObjectRef) -> Result<Release, DeviceError> {
        self.ask(|answer| Ask::Detach(object, answer)).await?
    }

    /// Everything there is to know.
    ///
    /// # Errors
    /// [`DeviceError::Stopping`].
    pub async fn health(&self) -> Result<Health, DeviceError> {
        self.ask(Ask::Health).await
    }
}

impl Daemon {
    /// Starts the shim; the link and the sockets come up in the background.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(config: &Config) -> Result<Self, StartError> {
        let path = config.state_file();
        let failed = |source| StartError::State {
            path: path.clone(),
            source,
        };
        let (state, leaving) = StateFile::open(&path).map_err(failed)?;
        let now = Instant::now();
        let agent = Agent::new(leaving, || OperationId(uuid::Uuid::new_v4()), now);
        let (events, inbox) = channel();
        let to_loop = events.clone();
        let sink: Sink = Arc::new(move |input| {
            // Only a loop that has stopped takes none.
            let _ = to_loop.send(Event::Input(input));
        });
        let link = DirectLink::start(&config.link_socket, state.boot_epoch(), sink.clone())?;
        let mut running = Running {
            agent,
            link,
            state,
            sink,
            socket_dir: config.socket_dir.clone(),
            doors: BTreeMap::new(),
            streams: BTreeMap::new(),
            numbers: Connections::default(),
            detaching: Vec::new(),
        };
        for spec in &config.devices {
            let (object, settings) = resolve(spec, &config.socket_dir)?;
            running.attach(&object, settings, now)?;
        }
        let thread = thread::Builder::new()
            .name("agent".to_owned())
            .spawn(move || running.run(&inbox))?;
        Ok(Self {
            shim: Shim { events },
            thread: Some(thread),
        })
    }

    /// For the API.
    pub fn shim(&self) -> Shim {
        self.shim.clone()
    }

    /// Ends sessions and sockets and waits for all threads.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.shim.events.send(Event::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A detach that waits for the release.
struct Detaching {
    object: ObjectRef,
    until: Instant,
    answer: oneshot::Sender<Result<Release, DeviceError>>,
}

struct Running {
    agent: Agent,
    link: DirectLink,
    state: StateFile,
    sink: Sink,
    socket_dir: PathBuf,
    doors: BTreeMap<ObjectRef, Door>,
    /// Our ends of the streams that the DPU was asked to serve and has not said yes to yet.
    streams: BTreeMap<Ticket, UnixStream>,
    numbers: Connections,
    detaching: Vec<Detaching>,
}

impl Running {
    fn run(mut self, inbox: &Receiver<Event>) {
        loop {
            let event = match self.next_deadline() {
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => inbox.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            let now = Instant::now();
            match event {
                Ok(Event::Input(input)) => self.handle(input, now),
                Ok(Event::Ask(ask)) => self.answer(ask, now),
                Err(RecvTimeoutError::Timeout) => self.handle(Input::Tick, now),
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
            self.answer_detaching(now);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.agent
            .next_deadline()
            .into_iter()
            .chain(self.detaching.iter().map(|d| d.until))
            .min()
    }

    fn handle(&mut self, input: Input, now: Instant) {
        // Streams that went over the former connection will not be answered.
        if matches!(input, Input::LinkDown { .. }) {
            self.streams.clear();
        }
        let answered = match &input {
            Input::Answer(ticket, _) => Some(*ticket),
            _ => None,
        };
        let actions = self.agent.handle(input, now);
        self.carry_out(actions);
        // Refused, or for a VMM that has left meanwhile: that the stream ends tells the DPU.
        if let Some(ticket) = answered {
            self.streams.remove(&ticket);
        }
    }

    fn answer(&mut self, ask: Ask, now: Instant) {
        // An asker that has gone needs no answer.
        match ask {
            Ask::Attach(spec, answer) => {
                let attached = resolve(&spec, &self.socket_dir)
                    .map_err(DeviceError::from)
                    .and_then(|(object, settings)| Ok(self.attach(&object, settings, now)?));
                let _ = answer.send(attached);
            }
            Ask::Detach(object, answer) => match self.agent.detach(&object, now) {
                Ok(actions) => {
                    self.carry_out(actions);
                    self.detaching.push(Detaching {
                        object,
                        until: now + RELEASE_WAIT_MAX,
                        answer,
                    });
                }
                Err(error) => {
                    let _ = answer.send(Err(error.into()));
                }
            },
            Ask::Health(answer) => {
                let _ = answer.send(self.health());
            }
        }
    }

    fn answer_detaching(&mut self, now: Instant) {
        for detaching in std::mem::take(&mut self.detaching) {
            let release = self.agent.release_of(&detaching.object);
            if release == Release::Done || detaching.until <= now || !self.agent.link_view().connected {
                let _ = detaching.answer.send(Ok(release));
            } else {
                self.detaching.push(detaching);
            }
        }
    }

    fn health(&self) -> Health {
        let (link, devices) = (self.agent.link_view(), self.agent.views(Instant::now()));
        Health {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            healthy: link.connected && devices.iter().all(|device| device.problem.is_none()),
            link,
            devices,
        }
    }

    fn attach(
        &mut self,
        object: &ObjectRef,
        settings: DeviceSettings,
        now: Instant,
    ) -> Result<DeviceView, AttachError> {
        let actions = self.agent.attach(object, settings.clone(), now)?;
        if !self.doors.contains_key(object) {
            match Door::start(object.clone(), settings, self.numbers.clone(), self.sink.clone()) {
                Ok(door) => {
                    self.doors.insert(object.clone(), door);
                }
                Err(error) => {
                    let problem = Problem {
                        error: format!("{object}: no thread for its socket: {error}"),
                        remedy: "raise the limits of processes and open files, then detach and attach it".to_owned(),
                    };
                    let more = self.agent.handle(Input::SocketProblem(object.clone(), problem), now);
                    self.carry_out(more);
                }
            }
        }
        self.carry_out(actions);
        self.agent
            .view(object, now)
            .ok_or_else(|| AttachError::Unknown(object.clone()))
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send(ticket, request) => self.link.send(ticket, request, None),
                Action::Connect(ticket, request, object, _) => match UnixStream::pair() {
                    Ok((ours, theirs)) => {
                        self.streams.insert(ticket, ours);
                        self.link.send(ticket, request, Some(theirs.into()));
                    }
                    Err(error) => self.no_stream(&object, ticket, &error),
                },
                Action::Serve(object, connection, ticket) => {
                    if let (Some(door), Some(stream)) = (self.doors.get(&object), self.streams.remove(&ticket)) {
                        door.serve(connection, ticket, stream);
                    }
                }
                Action::DropDpu(object, connection) => {
                    self.with_door(&object, |door| door.dpu_is_hung(connection));
                }
                Action::OpenSocket(object) => self.with_door(&object, Door::open),
                Action::CloseSocket(object) => self.with_door(&object, Door::close),
                Action::CloseVmm(object, connection) => self.with_door(&object, |door| door.close_vmm(connection)),
                Action::Remove(object) => drop(self.doors.remove(&object)),
                Action::Remember => {
                    if let Err(error) = self.state.save(self.agent.leaving()) {
                        tracing::error!(%error, "the shim's state file cannot be written: should the shim end before the \
                            DPU answers, detached objects have to be revoked and granted again");
                    }
                }
            }
        }
    }

    /// There is no stream for a session: as if the DPU could not give one now.
    fn no_stream(&mut self, object: &ObjectRef, ticket: Ticket, error: &io::Error) {
        let problem = Problem {
            error: format!("{object}: no socket pair for a session: {error}"),
            remedy: "raise the shim's limit of open files".to_owned(),
        };
        tracing::error!(error = problem.error, fix = problem.remedy, "a session has to wait");
        let refusal = Refusal {
            code: Code::Quota,
            text: problem.error,
        };
        self.handle(Input::Answer(ticket, Reply::Refused { refusal }), Instant::now());
    }

    fn with_door(&self, object: &ObjectRef, act: impl FnOnce(&Door)) {
        if let Some(door) = self.doors.get(object) {
            act(door);
        }
    }
}
