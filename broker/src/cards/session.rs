//! One enrolled card's connection, from `Hello` on; and the one exchange of a card that enrols.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use outboard_protocol::{
    card::{FromBroker, FromCard},
    desired::DesiredState,
    id::Name,
    inquiry::INQUIRY_VERSION,
    refusal::{Code, Refusal},
};
use tokio::sync::{mpsc, watch};

use super::{
    CardServer,
    channel::{Channel, ChannelError, Receiver, Sender},
    inquiries::{Asked, Open},
};
use crate::{
    clock::unix_now_s,
    core::{Accepted, CoreHandle, Hello},
    identity::Peer,
    inventory::CertificateRecord,
};

/// Messages that wait to be sent at most; beyond that the card is not read from.
const MESSAGES_WAITING_MAX: usize = 16;

/// The peer sent something that is not its turn to send.
pub fn unexpected(wanted: &str) -> Refusal {
    Refusal::new(Code::Malformed, format!("the broker expects {wanted} here"))
}

/// Signs a card's key if its token is good; the answer is the certificate, DER.
pub async fn enrol(server: &CardServer, card: Name, secret: Vec<u8>, csr: Vec<u8>) -> Result<Vec<u8>, Refusal> {
    let now_s = unix_now_s();
    let issued = server.authority.issue_card(&card, &csr, now_s).map_err(|error| {
        tracing::warn!(%card, %error, "refused to enrol a card");
        Refusal::new(Code::Malformed, format!("card {card}: {error}"))
    })?;
    let record = CertificateRecord {
        fingerprint: issued.fingerprint,
        not_after_s: issued.not_after_s,
    };
    let redeemed = server
        .core
        .call(move |core| core.redeem(&card, &secret, record, now_s))
        .await;
    redeemed.map_err(|gone| Refusal::new(Code::Unavailable, gone.to_string()))??;
    Ok(issued.certificate.to_vec())
}

/// Serves a card until it leaves, breaks the protocol or is replaced.
pub async fn serve(server: &CardServer, mut channel: Channel, peer: Peer, first: FromCard) -> Result<(), ChannelError> {
    let FromCard::Hello {
        version_min,
        version_max,
        serial,
        dpu_epoch,
        broker_epoch,
        revision,
        isolation,
    } = first
    else {
        return channel.refuse(unexpected("Hello")).await;
    };
    let hello = Hello {
        versions: (version_min, version_max),
        serial,
        dpu_epoch,
        broker_epoch,
        revision,
        isolation,
    };
    let (outbox, desired) = watch::channel(None);
    let card = peer.name.clone();
    let admitted = server
        .core
        .call(move |core| core.hello(&peer, &hello, outbox, unix_now_s()))
        .await?;
    let accepted = match admitted {
        Ok(accepted) => accepted,
        Err(refusal) => return channel.refuse(refusal).await,
    };
    let Accepted {
        version,
        broker_epoch,
        connection,
    } = accepted;
    // Before it is told: a card that knows that it is welcome can be asked.
    let (joined, asked) = server.inquiries.join(&card, connection, version);
    let ended = match channel.send(&FromBroker::Welcome { version, broker_epoch }).await {
        Ok(()) => {
            let card = Card {
                name: card.clone(),
                connection,
                version,
                open: Mutex::default(),
            };
            exchange(&server.core, channel, &card, desired, asked).await
        }
        Err(error) => Err(error),
    };
    drop(joined);
    let name = card.clone();
    server
        .core
        .call(move |core| core.card_gone(&name, connection, unix_now_s()))
        .await?;
    ended
}

/// A card that was let in.
struct Card {
    name: Name,
    connection: u64,
    /// Of the protocol.
    version: u16,
    /// What it was asked.
    open: Mutex<Open>,
}

impl Card {
    fn open(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads and writes until either ends.
async fn exchange(
    core: &CoreHandle,
    channel: Channel,
    card: &Card,
    desired: watch::Receiver<Option<Arc<DesiredState>>>,
    asked: mpsc::Receiver<Asked>,
) -> Result<(), ChannelError> {
    let Channel { receiver, sender } = channel;
    let (outgoing, waiting) = mpsc::channel(MESSAGES_WAITING_MAX);
    let listening = listen(core, receiver, card, outgoing);
    let telling = tell(sender, desired, waiting, asked, card);
    tokio::pin!(listening, telling);
    tokio::select! {
        told = &mut telling => told,
        ended = &mut listening => {
            // Whatever is to be sent still goes out; each message has its time limit.
            telling.await?;
            match ended? {
                Some(refusal) => Err(ChannelError::Refused(refusal)),
                None => Ok(()),
            }
        }
    }
}

/// Takes up what the card says; ends with a refusal if it may not say that.
async fn listen(
    core: &CoreHandle,
    mut receiver: Receiver,
    peer: &Card,
    outgoing: mpsc::Sender<FromBroker>,
) -> Result<Option<Refusal>, ChannelError> {
    while let Some(message) = receiver.receive().await? {
        let (card, connection) = (peer.name.clone(), peer.connection);
        let taken = match message {
            FromCard::Inventory { seq, bindings } => {
                let taken = core
                    .call(move |core| core.card_inventory(&card, connection, seq, bindings, unix_now_s()))
                    .await?;
                if taken.is_ok() && outgoing.send(FromBroker::InventoryAck { seq }).await.is_err() {
                    return Ok(None);
                }
                taken
            }
            FromCard::Applied { revision } => {
                core.call(move |core| core.card_applied(&card, connection, revision, unix_now_s()))
                    .await?
            }
            FromCard::Telemetry { ports, volumes } => {
                core.call(move |core| core.card_telemetry(&card, connection, ports, volumes, Instant::now()))
                    .await?;
                Ok(())
            }
            FromCard::Answer { id, answer } if peer.version >= INQUIRY_VERSION => {
                peer.open().answered(id, answer);
                Ok(())
            }
            FromCard::Hello { .. } | FromCard::Enrol { .. } | FromCard::Answer { .. } => {
                Err(unexpected("Inventory, Applied or Telemetry"))
            }
        };
        if let Err(refusal) = taken {
            // If the sender is gone already, so is the card.
            let _ = outgoing
                .send(FromBroker::Refused {
                    refusal: refusal.clone(),
                })
                .await;
            return Ok(Some(refusal));
        }
    }
    Ok(None)
}

/// Sends desired states, questions and other messages until the core drops the connection or `outgoing` is closed.
async fn tell(
    mut sender: Sender,
    mut desired: watch::Receiver<Option<Arc<DesiredState>>>,
    mut outgoing: mpsc::Receiver<FromBroker>,
    mut asked: mpsc::Receiver<Asked>,
    card: &Card,
) -> Result<(), ChannelError> {
    // What was there before this task looked counts as a change too.
    desired.mark_changed();
    loop {
        tokio::select! {
            biased;
            message = outgoing.recv() => match message {
                Some(message) => sender.send(&message).await?,
                None => return sender.close().await,
            },
            changed = desired.changed() => {
                changed.map_err(|_| ChannelError::Superseded)?;
                let state = desired.borrow_and_update().clone();
                if let Some(state) = state {
                    sender.send(&FromBroker::Desired { state: DesiredState::clone(&state) }).await?;
                }
            }
            Some(asked) = asked.recv() => {
                let message = card.open().ask(asked);
                if let Some(message) = message {
                    sender.send(&message).await?;
                }
            }
        }
    }
}
