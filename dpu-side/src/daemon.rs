//! The daemon: everything put together, started in order and stopped in reverse.

use std::{
    io,
    path::Path,
    sync::{Arc, mpsc::SyncSender},
    thread::JoinHandle,
    time::Instant,
};

use jiff::Timestamp;
use outboard_engine::WorkerConfig;
use outboard_protocol::card_side::{CardCore, CardRecord};
use tokio::{runtime::Runtime, sync::watch};

use crate::{
    balance,
    broker_channel::{Channel, Outbox},
    clock,
    config::Config,
    datapath::Datapath,
    enforcement::{Enforcement, Parts},
    error::Failure,
    gate::Gate,
    identity::Identity,
    inquiry::Inquiry,
    link::{Host, LinkServer, Links, Settings},
    message::{self, Message},
    opener::Opener,
    policy::Tracking,
    sessions::Sessions,
    state_file::{Damage, Loaded, StateFile},
    state_lock::{IfHeld, StateLock},
    telemetry,
    workers::Workers,
};

/// A running daemon.
pub struct Daemon {
    runtime: Runtime,
    link: LinkServer,
    workers: Workers,
    enforcement: SyncSender<Message>,
    thread: JoinHandle<()>,
    ended: watch::Receiver<Option<String>>,
    _lock: StateLock,
}

impl Daemon {
    /// Starts with what the last process left, whether the broker is there or not. `if_held` says what to do about a
    /// daemon that still runs.
    pub fn start(config: &Config, if_held: IfHeld) -> Result<Self, Failure> {
        let lock = StateLock::take(&config.state_dir, if_held)?;
        let begin = Instant::now();
        let identity = Identity::load(&config.state_dir)?;
        check_identity(config, &identity)?;
        let (state_file, record) = load_state(&config.state_dir)?;
        // Without a record the boot epoch begins at the clock in milliseconds, and with one it rises by one: as no
        // process starts a thousand times a second, it rises even when the record of all former starts was lost.
        let record = record.unwrap_or_else(|| CardRecord {
            dpu_epoch: clock::boot_epoch(),
            ..CardRecord::default()
        });
        let (core, effects) = CardCore::start(identity.card.clone(), Some(record), clock::now());
        let (messages, inbox) = message::channel();
        let (end, ended) = watch::channel(None);
        let workers = start_workers(config, &messages, &end)?;
        let gate = Gate::new(core.desired(), workers.clone());
        let outbox = Outbox::new(core.desired().version());
        let dpu_epoch = core.dpu_epoch();
        let links = Arc::new(Links::default());
        let parts = Parts {
            workers: workers.clone(),
            gate: gate.clone(),
            disk: Box::new(state_file),
            opener: start_opener(config, &messages),
            sessions: Sessions::new(config.limits.sessions, workers.clone(), messages.clone()),
            links: Arc::clone(&links),
            outbox: outbox.clone(),
            tracking: Tracking {
                connections: config.limits.tracked_connections,
                tcp: config.firewall.laxness(),
                timeouts: config.firewall.timeouts(),
            },
        };
        let enforcement = Enforcement::start(core, effects, parts).map_err(|e| {
            Failure::io(
                "write the state in",
                &config.state_dir,
                &e,
                "check the directory's owner and the free space",
            )
        })?;
        let link = LinkServer::start(link_settings(config, &identity), links, messages.clone())?;
        let no_thread =
            |e: io::Error| Failure::new(format!("no thread: {e}"), "raise the limit on processes (ulimit -u)");
        let thread = std::thread::Builder::new()
            .name("enforcement".into())
            .spawn(move || {
                let _told = Ended(end);
                enforcement.run(&inbox);
            })
            .map_err(no_thread)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(no_thread)?;
        let channel = Channel {
            state_dir: config.state_dir.clone(),
            broker: config.broker.clone(),
            serial: config.serial.clone(),
            dpu_epoch,
            outbox: outbox.clone(),
            gate,
            enforcement: messages.clone(),
            inquiry: Inquiry::new(workers.clone(), messages.clone()),
        };
        runtime.spawn(channel.run());
        runtime.spawn(telemetry::run(workers.clone(), outbox));
        tracing::info!(
            "card '{}' serves its host at {}, {} ms after its start",
            identity.card,
            config.link_socket.display(),
            begin.elapsed().as_millis()
        );
        Ok(Self {
            runtime,
            link,
            workers,
            enforcement: messages,
            thread,
            ended,
            _lock: lock,
        })
    }

    /// Waits for SIGTERM or SIGINT, or until the datapath or the enforcement fails, which is an error.
    pub fn wait(&self) -> Result<(), Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut ended = self.ended.clone();
        self.runtime.block_on(async {
            let no_signal = |e: io::Error| Failure::new(format!("signals cannot be received: {e}"), "report this");
            let mut terminate = signal(SignalKind::terminate()).map_err(no_signal)?;
            let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signal)?;
            tokio::select! {
                _ = terminate.recv() => Ok(()),
                _ = interrupt.recv() => Ok(()),
                why = ended.wait_for(Option::is_some) => {
                    let why = why.ok().and_then(|w| w.clone()).unwrap_or_else(|| "the datapath ended without saying why".into());
                    Err(Failure::new(why, "restart outboard-dpu, and report this"))
                }
            }
        })
    }

    /// Closes the link, ends all sessions, waits for what is in flight and ends.
    pub fn stop(self) {
        let begin = Instant::now();
        self.link.stop();
        // If the enforcement has ended, there is nothing to stop.
        let _ = self.enforcement.send(Message::Stop);
        let _ = self.thread.join();
        self.workers.stop();
        self.runtime.shutdown_background();
        tracing::info!("stopped within {} ms", begin.elapsed().as_millis());
    }
}

fn check_identity(config: &Config, identity: &Identity) -> Result<(), Failure> {
    if let Some(card) = config.card.as_ref().filter(|c| **c != identity.card) {
        return Err(Failure::new(
            format!(
                "this card is enrolled as '{}' but the configuration says card = '{card}'",
                identity.card
            ),
            format!("correct the configuration, or enrol again with a token from `outboard card enrol {card}`"),
        ));
    }
    if let Err(invalid) = identity.check_validity(Timestamp::now()) {
        // What was granted is served all the same: a broker that cannot be reached stops no guest.
        tracing::error!("{invalid}; the broker will not accept it; fix: {}", invalid.fix());
    }
    Ok(())
}

/// The state that the last process left. One that cannot be used is set aside, and nothing is granted until the broker
/// has sent its desired state.
fn load_state(state_dir: &Path) -> Result<(StateFile, Option<CardRecord>), Failure> {
    let unreadable = |e: io::Error| {
        Failure::io(
            "read the state in",
            state_dir,
            &e,
            "check the directory's owner and disk",
        )
    };
    let (file, loaded) = StateFile::open(state_dir).map_err(unreadable)?;
    let damage = match loaded {
        Loaded::Fresh => return Ok((file, None)),
        Loaded::State(bytes) => match CardRecord::decode(&bytes) {
            Ok(record) => return Ok((file, Some(record))),
            Err(e) => Damage::Content(e.to_string()),
        },
        Loaded::Damaged(damage) => damage,
    };
    let aside = file.set_aside(clock::now().unix_s).map_err(unreadable)?;
    tracing::error!(
        "the state file {} is not used: {damage}; it is kept as {}; nothing is granted until the broker is connected; fix: \
         nothing to do if the broker can be reached, but find out why (a crash alone does not do this)",
        file.path().display(),
        aside.display()
    );
    Ok((file, None))
}

/// Tells that the enforcement has ended, even if it failed: nothing could be granted or drained any more.
struct Ended(watch::Sender<Option<String>>);

impl Drop for Ended {
    fn drop(&mut self) {
        let why = "the enforcement ended".to_owned();
        self.0.send_if_modified(|told| {
            let first = told.is_none();
            told.get_or_insert(why);
            first
        });
    }
}

fn start_workers(
    config: &Config,
    messages: &SyncSender<Message>,
    ended: &watch::Sender<Option<String>>,
) -> Result<Workers, Failure> {
    let no_descriptor = |e: io::Error| {
        Failure::new(
            format!("the workers cannot start: {e}"),
            "raise the limit on open files (ulimit -n)",
        )
    };
    let datapaths = Datapath::fleet(config.workers, messages).map_err(no_descriptor)?;
    let alone = datapaths.len() == 1;
    let mut handles = Vec::new();
    for (number, datapath) in datapaths.into_iter().enumerate() {
        let settings = WorkerConfig {
            name: if alone {
                "datapath".into()
            } else {
                format!("datapath-{number}")
            },
            core: config.core_of(number),
            spin: config.limits.spin(),
        };
        let (worker, thread) =
            outboard_engine::spawn(settings, datapath).map_err(|e| Failure::new(e.to_string(), e.fix()))?;
        let ended = ended.clone();
        let watching = std::thread::Builder::new().name("watchdog".into()).spawn(move || {
            let why = match thread.join() {
                Ok(Ok(())) => "the datapath was stopped".to_owned(),
                Ok(Err(e)) => format!("the datapath ended: {e}"),
                Err(_) => "the datapath failed an assertion, see above".to_owned(),
            };
            ended.send_replace(Some(why));
        });
        watching.map_err(|e| Failure::new(format!("no thread: {e}"), "raise the limit on processes (ulimit -u)"))?;
        let watched = worker.call(|datapath, io| datapath.watch_bell(io));
        watched
            .map_err(|e| Failure::new(e.to_string(), "restart outboard-dpu, and report this"))?
            .map_err(no_descriptor)?;
        handles.push(worker);
    }
    let workers = Workers::new(handles);
    if workers.count() > 1 {
        let balanced = workers.clone();
        std::thread::Builder::new()
            .name("balance".into())
            .spawn(move || balance::run(&balanced))
            .map_err(|e| Failure::new(format!("no thread: {e}"), "raise the limit on processes (ulimit -u)"))?;
    }
    Ok(workers)
}

fn start_opener(config: &Config, messages: &SyncSender<Message>) -> Opener {
    let messages = messages.clone();
    Opener::new(
        config.volume_dir.clone(),
        config.limits.memory_volume_bytes,
        // The enforcement ends only with the process.
        move |done| drop(messages.send(Message::Volume(Box::new(done)))),
    )
}

fn link_settings(config: &Config, identity: &Identity) -> Settings {
    Settings {
        path: config.link_socket.clone(),
        uids: config.host_uids.clone(),
        connections_max: config.limits.connections,
        // The host of a link has its card's name.
        host: Host {
            name: identity.card.clone(),
            requests_per_s: config.limits.requests_per_s,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_enforcement_that_fails_ends_the_daemon() {
        let (end, ended) = watch::channel(None);
        let first = end.clone();
        let failing = std::thread::spawn(move || {
            let _told = Ended(end);
            panic!("for the test");
        });
        assert!(failing.join().is_err());
        assert_eq!(ended.borrow().as_deref(), Some("the enforcement ended"));
        // What ended first is what is told.
        first.send_replace(Some("the datapath ended".into()));
        drop(Ended(first));
        assert_eq!(ended.borrow().as_deref(), Some("the datapath ended"));
    }
}
