//! What cards ask and tell.

use std::{collections::BTreeMap, time::Instant};

use outboard_controls::{Check, on};
use outboard_protocol::{
    card::{BindingReport, CARD_VERSIONS, Isolation, PortCounters, VolumeCounters},
    codec::negotiate,
    id::{BootEpoch, BrokerEpoch, Name, Revision},
    refusal::{Code, Refusal},
};

use super::{
    Core, Failure,
    allocate::settle,
    live::{Connection, ConnectionId, Outbox, Telemetry},
    report::{by_object, take_up},
};
use crate::{
    identity::{Peer, TokenVerdict},
    inventory::{Action, BrokerRecord, CardRecord, CertificateRecord, Record},
};

/// Most drop reasons that a card may report for one port.
const DROP_REASONS_MAX: usize = 64;
/// Longest name of a drop reason, in bytes.
const DROP_REASON_LEN_MAX: usize = 64;

/// What a card says of itself when it connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Lowest and highest protocol version that it speaks.
    pub versions: (u16, u16),
    /// Its serial.
    pub serial: String,
    /// Its boot epoch.
    pub dpu_epoch: BootEpoch,
    /// Broker epoch of the desired state that it holds.
    pub broker_epoch: BrokerEpoch,
    /// Revision of the desired state that it holds.
    pub revision: Revision,
    /// What the host can reach.
    pub isolation: Isolation,
}

/// What a card that may connect is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// The protocol version spoken from here on.
    pub version: u16,
    /// The broker's epoch.
    pub broker_epoch: BrokerEpoch,
    /// Number of the connection.
    pub connection: ConnectionId,
}

impl Core {
    /// Redeems a token: the certificate is the card's only one from then on, and the token is gone.
    ///
    /// # Errors
    /// One refusal alike for an unknown card, a wrong, used or expired token.
    pub fn redeem(
        &mut self,
        card: &Name,
        secret: &[u8],
        certificate: CertificateRecord,
        now_s: u64,
    ) -> Result<(), Refusal> {
        let verdict = self
            .inventory
            .cards
            .get(card)
            .and_then(|c| c.token.as_ref())
            .map(|t| t.verify(secret, now_s));
        let record = match (verdict, self.inventory.cards.get(card)) {
            (Some(TokenVerdict::Good), Some(record)) => record.clone(),
            _ => {
                let why = match verdict {
                    Some(TokenVerdict::Expired) => "its token has expired",
                    Some(_) => "its token is not the one printed last",
                    None => "no token is waiting for it; each can be used once",
                };
                tracing::warn!("refused to enrol card {card}: {why}; fix: run `outboard card enrol {card}` again");
                let text = format!(
                    "the token for card {card} is wrong, used or expired: run `outboard card enrol {card}` for a new one"
                );
                return Err(Refusal::new(Code::BadToken, text));
            }
        };
        // A card that enrols has a new key and may have lost its state: what it told before counts no more.
        let token = if on(Check::TokenOnce) {
            None
        } else {
            record.token.clone()
        };
        let record = CardRecord {
            token,
            certificate: Some(certificate),
            dpu_epoch: None,
            applied: None,
            ..record
        };
        let stored = self.change(now_s, |draft| {
            draft.apply(Action::Put(Record::Card(record)));
            Ok(())
        });
        stored.map_err(|failure| unavailable(&failure))?;
        // Whoever holds the former certificate is not the card any more.
        self.live.connections.remove(card);
        tracing::info!("card {card} enrolled");
        Ok(())
    }

    /// Lets a card in. It replaces an earlier connection of the same card.
    ///
    /// # Errors
    /// A certificate that was replaced, a serial that is not the card's, an epoch from the past, no common version.
    pub fn hello(&mut self, peer: &Peer, hello: &Hello, outbox: Outbox, now_s: u64) -> Result<Accepted, Refusal> {
        let card = &peer.name;
        let version = negotiate(hello.versions, CARD_VERSIONS)?;
        let record = self.admit(peer, hello, now_s)?;
        let ours = (self.inventory.broker.epoch, record.revision);
        let theirs = (hello.broker_epoch, hello.revision);
        let record = CardRecord {
            isolation: Some(hello.isolation),
            version: Some(version),
            dpu_epoch: Some(hello.dpu_epoch),
            revision: record.revision.max(hello.revision),
            last_seen_s: Some(now_s),
            ..record
        };
        let stored = self.change(now_s, |draft| {
            draft.apply(Action::Put(Record::Card(record)));
            if theirs > ours {
                let epoch = ours.0.max(theirs.0).next();
                tracing::warn!("card {card} knows a later state than this store: the broker's epoch is {epoch} now");
                draft.apply(Action::Put(Record::Broker(BrokerRecord {
                    epoch,
                    ..draft.broker.clone()
                })));
            }
            settle(draft, now_s)
        });
        stored.map_err(|failure| unavailable(&failure))?;
        self.after_change();
        let id = self.live.next_id();
        // What it holds of this broker's word is in force already.
        let holds = (theirs.0 == self.inventory.broker.epoch && theirs <= ours).then_some(theirs.1);
        let connection = Connection {
            id,
            outbox,
            applied: holds,
            inventory: None,
        };
        if self.live.connections.insert(card.clone(), connection).is_some() {
            tracing::info!("card {card}: a new connection replaces the former one");
        }
        self.send_desired(card);
        tracing::info!(
            serial = hello.serial,
            dpu_epoch = hello.dpu_epoch.0,
            "card {card} connected"
        );
        Ok(Accepted {
            version,
            broker_epoch: self.inventory.broker.epoch,
            connection: id,
        })
    }

    fn admit(&self, peer: &Peer, hello: &Hello, now_s: u64) -> Result<CardRecord, Refusal> {
        let card = &peer.name;
        let again = format!("run `outboard card enrol {card}` and give the token to the card");
        let refuse = |code, text: String| {
            tracing::warn!("refused card {card}: {text}");
            Err(Refusal::new(code, text))
        };
        let Some(record) = self.inventory.cards.get(card) else {
            return refuse(Code::NotGranted, format!("card {card} is not enrolled here: {again}"));
        };
        match &record.certificate {
            Some(certificate) if certificate.fingerprint == peer.fingerprint => {
                if now_s >= certificate.not_after_s {
                    return refuse(
                        Code::NotGranted,
                        format!("card {card}'s certificate has expired: {again}"),
                    );
                }
            }
            _ => {
                let text = format!("card {card} comes with a certificate that a later enrolment replaced: {again}");
                return refuse(Code::NotGranted, text);
            }
        }
        if record.serial != hello.serial && on(Check::CardSerial) {
            let owner = self.inventory.cards.values().find(|c| c.serial == hello.serial);
            let text = match owner {
                Some(owner) => format!(
                    "card {card} says it has serial {}, which is card {}'s",
                    hello.serial, owner.name
                ),
                None => format!(
                    "card {card} says it has serial {}, but was enrolled with {}",
                    hello.serial, record.serial
                ),
            };
            return refuse(
                Code::NotGranted,
                format!("{text}: correct `serial` in the card's configuration"),
            );
        }
        // A card that was enrolled anew since may: whoever enrolled it wants this broker's word to count.
        let ahead = (hello.broker_epoch, hello.revision) > (self.inventory.broker.epoch, record.revision);
        if ahead && record.dpu_epoch.is_some() {
            let text = format!(
                "card {card} holds revision {} of broker epoch {}, this broker knows {} of {}: its store is an old copy. The \
                 card keeps what it has; apply the topology again, then {again}",
                hello.revision, hello.broker_epoch, record.revision, self.inventory.broker.epoch
            );
            return refuse(Code::Stale, text);
        }
        if record.dpu_epoch.is_some_and(|seen| hello.dpu_epoch < seen) {
            let text = format!(
                "card {card} has boot epoch {}, but had {} before: its state directory is an old copy; {again}",
                hello.dpu_epoch,
                record.dpu_epoch.unwrap_or_default()
            );
            return refuse(Code::Stale, text);
        }
        Ok(record.clone())
    }

    /// Takes up a card's inventory. When it returns, what changed is durable and may be acknowledged.
    ///
    /// # Errors
    /// A connection that was replaced, a number that does not rise, a store that fails.
    pub fn card_inventory(
        &mut self,
        card: &Name,
        id: ConnectionId,
        seq: u64,
        bindings: Vec<BindingReport>,
        now_s: u64,
    ) -> Result<(), Refusal> {
        let connection = self.live.connection(card, id).ok_or_else(|| replaced(card))?;
        if connection.inventory.as_ref().is_some_and(|(last, _)| seq <= *last) {
            return Err(Refusal::new(
                Code::Stale,
                format!("card {card} sent inventory {seq} after a later one"),
            ));
        }
        connection.inventory = Some((seq, by_object(bindings)));
        self.take_up_reports(card, now_s)
    }

    /// A card has a revision in force.
    ///
    /// # Errors
    /// As [`Core::card_inventory`].
    pub fn card_applied(
        &mut self,
        card: &Name,
        id: ConnectionId,
        revision: Revision,
        now_s: u64,
    ) -> Result<(), Refusal> {
        let wanted = self.inventory.cards.get(card).map(|c| c.revision).unwrap_or_default();
        let connection = self.live.connection(card, id).ok_or_else(|| replaced(card))?;
        if revision > wanted {
            let text =
                format!("card {card} applied revision {revision}, which it was never sent (the latest is {wanted})");
            return Err(Refusal::new(Code::Stale, text));
        }
        connection.applied = connection.applied.max(Some(revision));
        self.take_up_reports(card, now_s)
    }

    /// Brings the inventory in line with the card's latest report and applied revision.
    fn take_up_reports(&mut self, card: &Name, now_s: u64) -> Result<(), Refusal> {
        let Some(connection) = self.live.connections.get_mut(card) else {
            return Ok(());
        };
        let (applied, reported) = (connection.applied, connection.inventory.take());
        let changed = self.change(now_s, |draft| {
            if let Some(record) = draft.cards.get(card)
                && applied.is_some()
                && record.applied != applied
            {
                let record = CardRecord {
                    applied,
                    ..record.clone()
                };
                draft.apply(Action::Put(Record::Card(record)));
            }
            if let Some((_, reports)) = &reported {
                take_up(draft, card, reports, applied, now_s);
            }
            settle(draft, now_s)
        });
        if let Some(connection) = self.live.connections.get_mut(card) {
            connection.inventory = reported;
        }
        changed.map_err(|failure| unavailable(&failure))?;
        self.after_change();
        Ok(())
    }

    /// Notes a card's counters. It cannot speak for objects that are not placed on it.
    pub fn card_telemetry(
        &mut self,
        card: &Name,
        id: ConnectionId,
        ports: Vec<PortCounters>,
        volumes: Vec<VolumeCounters>,
        received: Instant,
    ) {
        let Some(_) = self.live.connection(card, id) else {
            return;
        };
        let inventory = &self.inventory;
        let on_card = |placement: Option<&crate::inventory::Placement>| placement.is_some_and(|p| p.card == *card);
        let ports: BTreeMap<Name, PortCounters> = ports
            .into_iter()
            .filter(|p| on_card(inventory.ports.get(&p.name).map(|r| &r.placement)))
            .map(|mut p| {
                p.drops.retain(|(reason, _)| is_reason(reason));
                p.drops.truncate(DROP_REASONS_MAX);
                (p.name.clone(), p)
            })
            .collect();
        let volumes = volumes
            .into_iter()
            .filter(|v| on_card(inventory.volumes.get(&v.name).map(|r| &r.placement)))
            .map(|v| (v.name.clone(), v))
            .collect();
        self.live.telemetry.insert(
            card.clone(),
            Telemetry {
                ports,
                volumes,
                received,
            },
        );
    }

    /// A connection ended.
    pub fn card_gone(&mut self, card: &Name, id: ConnectionId, now_s: u64) {
        if self.live.connection(card, id).is_none() {
            return;
        }
        self.live.connections.remove(card);
        tracing::info!("card {card} disconnected");
        if let Some(record) = self.inventory.cards.get(card) {
            let record = CardRecord {
                last_seen_s: Some(now_s),
                ..record.clone()
            };
            let stored = self.change(now_s, |draft| {
                draft.apply(Action::Put(Record::Card(record)));
                Ok(())
            });
            if let Err(failure) = stored {
                tracing::error!("cannot note that card {card} left: {}", failure.body.error.message);
            }
        }
    }
}

/// Reasons become metric labels: only what a DPU of this protocol would send.
fn is_reason(reason: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    !reason.is_empty() && reason.len() <= DROP_REASON_LEN_MAX && reason.bytes().all(allowed)
}

fn replaced(card: &Name) -> Refusal {
    Refusal::new(
        Code::Stale,
        format!("a later connection of card {card} replaced this one"),
    )
}

fn unavailable(failure: &Failure) -> Refusal {
    Refusal::new(Code::Unavailable, failure.body.error.message.clone())
}
