//! The channel to the broker: always trying, and never in the way of what is being served.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, mpsc::SyncSender},
    time::Duration,
};

use jiff::Timestamp;
use outboard_protocol::{
    card::{CARD_VERSIONS, FromBroker, FromCard, Isolation},
    card_side::Input,
    codec::negotiate,
    id::{BootEpoch, BrokerEpoch, Revision},
    inquiry::INQUIRY_VERSION,
    refusal::Refusal,
};
use tokio::{
    sync::{Notify, watch},
    task::block_in_place,
    time::{Instant, sleep, timeout},
};

use crate::{
    broker_stream::{self, CONNECT_TIMEOUT, Receiver, Sender, StreamError},
    error::Failure,
    gate::Gate,
    identity::{Identity, enrol_again},
    inquiry::{Desk, Inquiry},
    message::Message,
    tls::{self, Rejection},
};

/// First and longest wait between attempts.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A connection that held this long was a good one: waiting begins with the shortest time again.
const GOOD_CONNECTION: Duration = Duration::from_secs(2);

/// What the broker is to hear: of each kind the newest only, so it is bounded however long the broker is away.
#[derive(Clone)]
pub struct Outbox {
    inventory: Arc<watch::Sender<Option<FromCard>>>,
    applied: Arc<watch::Sender<Option<FromCard>>>,
    telemetry: Arc<watch::Sender<Option<FromCard>>>,
    held: Arc<Mutex<(BrokerEpoch, Revision)>>,
    reconnect: Arc<Notify>,
}

impl Outbox {
    /// Nothing to tell yet; `held` is the version of the desired state in force.
    pub fn new(held: (BrokerEpoch, Revision)) -> Self {
        let channel = || Arc::new(watch::Sender::new(None));
        Self {
            inventory: channel(),
            applied: channel(),
            telemetry: channel(),
            held: Arc::new(Mutex::new(held)),
            reconnect: Arc::new(Notify::new()),
        }
    }

    /// All bindings.
    pub fn inventory(&self, message: FromCard) {
        self.inventory.send_replace(Some(message));
    }

    /// A desired state is in force.
    pub fn applied(&self, revision: Revision) {
        self.applied.send_replace(Some(FromCard::Applied { revision }));
    }

    /// Counters; sent if they differ from those sent before.
    pub fn telemetry(&self, message: FromCard) {
        self.telemetry.send_if_modified(|last| {
            let changed = last.as_ref() != Some(&message);
            *last = Some(message);
            changed
        });
    }

    /// The version of the desired state in force, for the next hello.
    pub fn held(&self, version: (BrokerEpoch, Revision)) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = version;
    }

    /// Drop the connection: what came over it could not be made durable, and has to be sent again.
    pub fn reconnect(&self) {
        self.reconnect.notify_one();
    }

    fn version(&self) -> (BrokerEpoch, Revision) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The channel.
pub struct Channel {
    /// Where the identity is, which a new enrolment may replace at any time.
    pub state_dir: PathBuf,
    /// The broker's address, if the configuration overrides the identity's.
    pub broker: Option<String>,
    /// The card's serial.
    pub serial: String,
    /// This process's boot epoch.
    pub dpu_epoch: BootEpoch,
    /// What the broker is to hear.
    pub outbox: Outbox,
    /// Looks at desired states first.
    pub gate: Gate,
    /// Where they go then.
    pub enforcement: SyncSender<Message>,
    /// Answers the broker's questions.
    pub inquiry: Inquiry,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("{0}")]
    Stream(#[from] StreamError),
    #[error("{0}")]
    Identity(Failure),
    #[error("broker refused this card: {0}")]
    Refused(Refusal),
    #[error("broker sent something else than a welcome first")]
    NoWelcome,
    #[error("broker asked a question in version {0} of the protocol, which has none")]
    NoQuestions(u16),
    #[error("what it sent could not be made durable")]
    NotDurable,
    #[error("the datapath has ended")]
    WorkerGone,
}

impl Channel {
    /// Connects, and connects again, for ever.
    pub async fn run(self) {
        let mut backoff = BACKOFF_MIN;
        let mut told = String::new();
        loop {
            let start = Instant::now();
            let end = self.connect_once(&mut told).await;
            if matches!(end, End::WorkerGone) {
                return;
            }
            let line = self.explain(&end);
            // The same trouble is told once, not with every attempt.
            if line != told {
                tracing::warn!("{line}");
                told = line;
            }
            if start.elapsed() >= GOOD_CONNECTION {
                backoff = BACKOFF_MIN;
            }
            sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn connect_once(&self, told: &mut String) -> End {
        match self.greet().await {
            Ok((sender, receiver, version)) => {
                told.clear();
                self.talk(sender, receiver, version).await
            }
            Err(end) => end,
        }
    }

    fn identity(&self) -> Result<(Identity, String), End> {
        let identity = Identity::load(&self.state_dir).map_err(End::Identity)?;
        let broker = self.broker.clone().unwrap_or_else(|| identity.broker.clone());
        Ok((identity, broker))
    }

    async fn greet(&self) -> Result<(Sender, Receiver, u16), End> {
        let (identity, broker) = self.identity()?;
        identity
            .check_validity(Timestamp::now())
            .map_err(|e| End::Identity(Failure::new(e.to_string(), e.fix())))?;
        let config = tls::enrolled(&identity).map_err(End::Identity)?;
        let (mut sender, mut receiver) = broker_stream::connect(&broker, config).await?;
        let (broker_epoch, revision) = self.outbox.version();
        let hello = FromCard::Hello {
            version_min: CARD_VERSIONS.0,
            version_max: CARD_VERSIONS.1,
            serial: self.serial.clone(),
            dpu_epoch: self.dpu_epoch,
            broker_epoch,
            revision,
            // The link is a unix socket, so the host is on this kernel.
            isolation: Isolation::Process,
        };
        sender.send(&hello).await?;
        match timeout(CONNECT_TIMEOUT, receiver.receive())
            .await
            .map_err(|_| StreamError::Timeout)??
        {
            FromBroker::Welcome { version, .. } => {
                negotiate((version, version), CARD_VERSIONS).map_err(End::Refused)?;
                tracing::info!("connected to broker {broker}");
                Ok((sender, receiver, version))
            }
            FromBroker::Refused { refusal } => Err(End::Refused(refusal)),
            _ => Err(End::NoWelcome),
        }
    }

    async fn talk(&self, mut sender: Sender, mut receiver: Receiver, version: u16) -> End {
        let mut news = News::of(&self.outbox);
        let (desk, mut answers) = Desk::new(self.inquiry.clone());
        if self.forward(Input::BrokerConnected).is_err() {
            return End::WorkerGone;
        }
        let receiving = async {
            loop {
                match receiver.receive().await {
                    Ok(message) => {
                        if let Err(end) = self.receive(message, &desk, version) {
                            return end;
                        }
                    }
                    Err(e) => return e.into(),
                }
            }
        };
        let sending = async {
            loop {
                let message = tokio::select! {
                    biased;
                    message = news.next() => message,
                    // The desk lives as long as this does.
                    Some(answer) = answers.recv() => answer,
                };
                if let Err(e) = sender.send(&message).await {
                    return End::from(e);
                }
            }
        };
        tokio::select! {
            end = receiving => end,
            end = sending => end,
            () = self.outbox.reconnect.notified() => End::NotDurable,
        }
    }

    fn receive(&self, message: FromBroker, desk: &Desk, version: u16) -> Result<(), End> {
        match message {
            FromBroker::Desired { state } => block_in_place(|| {
                // First of all, and before anything waits for a disk.
                self.gate.arrived(&state).map_err(|_| End::WorkerGone)?;
                self.forward(Input::Desired(state))
            }),
            FromBroker::InventoryAck { seq } => self.forward(Input::InventoryAcked { seq }),
            FromBroker::Refused { refusal } => Err(End::Refused(refusal)),
            FromBroker::Ask {
                id,
                deadline_ms,
                question,
            } => {
                if version < INQUIRY_VERSION {
                    return Err(End::NoQuestions(version));
                }
                desk.take(id, deadline_ms, question);
                Ok(())
            }
            FromBroker::Welcome { .. } | FromBroker::Enrolled { .. } => Err(End::NoWelcome),
        }
    }

    fn forward(&self, input: Input) -> Result<(), End> {
        block_in_place(|| {
            self.enforcement
                .send(Message::Broker(input))
                .map_err(|_| End::WorkerGone)
        })
    }

    /// One line for the log: what happened and what to do.
    fn explain(&self, end: &End) -> String {
        let Ok((identity, broker)) = self.identity() else {
            return match end {
                End::Identity(failure) => format!("{failure}; fix: {}", failure.fix()),
                other => other.to_string(),
            };
        };
        let card = &identity.card;
        let rejection = match end {
            End::Stream(StreamError::Io(e)) => tls::rejection(e),
            _ => None,
        };
        match (end, rejection) {
            (End::Identity(failure), _) => format!("{failure}; fix: {}", failure.fix()),
            (_, Some(Rejection::OurCertificate)) => {
                format!(
                    "broker {broker} does not accept the certificate of card '{card}' ({end}); fix: {}",
                    enrol_again(card)
                )
            }
            (_, Some(Rejection::TheirAuthority)) => format!(
                "whoever answers at {broker} is not the broker that card '{card}' enrolled with ({end}); fix: check the \
                 address, or {}",
                enrol_again(card)
            ),
            (_, Some(Rejection::TheirTime)) => {
                format!("the certificate of broker {broker} is not valid now ({end}); fix: set this machine's clock")
            }
            (End::Refused(_), _) => format!(
                "broker {broker}: {end}; fix: see the broker's log, or {}",
                enrol_again(card)
            ),
            _ => format!(
                "broker {broker} is away: {end}; what was granted is served as before, and connecting is tried again"
            ),
        }
    }
}

/// What is new since the connection came up.
struct News {
    inventory: watch::Receiver<Option<FromCard>>,
    applied: watch::Receiver<Option<FromCard>>,
    telemetry: watch::Receiver<Option<FromCard>>,
}

impl News {
    /// Bindings and revisions from before are old: the core tells them anew. Counters are not.
    fn of(outbox: &Outbox) -> Self {
        let mut telemetry = outbox.telemetry.subscribe();
        telemetry.mark_changed();
        Self {
            inventory: outbox.inventory.subscribe(),
            applied: outbox.applied.subscribe(),
            telemetry,
        }
    }

    async fn next(&mut self) -> FromCard {
        loop {
            // In this order: what a revision changed is in the inventory, and both come before counters.
            let receiver = tokio::select! {
                biased;
                Ok(()) = self.applied.changed() => &mut self.applied,
                Ok(()) = self.inventory.changed() => &mut self.inventory,
                Ok(()) = self.telemetry.changed() => &mut self.telemetry,
                else => std::future::pending().await,
            };
            if let Some(message) = receiver.borrow_and_update().clone() {
                return message;
            }
        }
    }
}
