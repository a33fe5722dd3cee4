//! The core: one thread owns inventory, store and card registry; everybody else sends it messages.
//!
//! A change goes select → apply → settle → invariants → store → answer. [`select`] decides and changes nothing; the
//! actions are applied to a [`Draft`] that is taken back if anything later fails; [`allocate::settle`] brings bindings and
//! card revisions in line; the draft is kept only once the store has made it durable, and only then is anybody answered.

mod allocate;
mod cards;
mod command;
mod desired;
mod draft;
mod failure;
mod handle;
mod invariants;
mod live;
mod operations;
mod policy;
mod report;
mod select;
mod trunk;

use std::sync::Arc;

use outboard_protocol::id::{BrokerEpoch, Name};

pub use cards::{Accepted, Hello};
pub use command::{Answer, Command, Operation};
pub use desired::desired_state;
use draft::Draft;
pub use failure::Failure;
pub use handle::{CoreHandle, Gone, spawn};
pub use live::{Connection, ConnectionId, Live, Outbox, Telemetry};
pub use operations::Outcome;
pub use policy::withheld;
pub use select::{current, placed};
pub use trunk::{subports, vlan};

use crate::{
    inventory::{Action, BrokerRecord, Inventory, LoadError, Record},
    store::{Store, StoreError},
    views,
};

/// The state that the core's thread owns.
pub struct Core {
    inventory: Inventory,
    store: Store,
    live: Live,
}

/// Why the store's content cannot be taken up.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record does not parse.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The records contradict each other.
    #[error("{0}")]
    Inconsistent(String),
}

impl Core {
    /// Takes up what the store holds; a fresh store gets the first broker epoch.
    ///
    /// # Errors
    /// If the store fails, or what it holds does not fit together.
    pub fn open(store: Store) -> Result<Self, OpenError> {
        let inventory = Inventory::load(&store.load()?)?;
        if let Some(broken) = invariants::broken(&inventory) {
            return Err(OpenError::Inconsistent(broken));
        }
        let mut core = Self {
            inventory,
            store,
            live: Live::default(),
        };
        if core.inventory.broker.epoch == BrokerEpoch::default() {
            let first = BrokerRecord {
                epoch: BrokerEpoch(1),
                ..core.inventory.broker.clone()
            };
            let stored = core.change(0, |draft| {
                draft.apply(Action::Put(Record::Broker(first)));
                Ok(())
            });
            stored.map_err(|failure| OpenError::Inconsistent(failure.body.error.message))?;
        }
        Ok(core)
    }

    /// What is stored, for reading.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// What is known of cards now, for reading.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// Carries out an operator's command.
    ///
    /// # Errors
    /// If it is refused, or cannot be made durable. Nothing has changed then.
    pub fn mutate(&mut self, operation: Option<&Operation>, command: Command, now_s: u64) -> Result<Outcome, Failure> {
        if let Some(operation) = operation
            && let Some(record) = self.inventory.operations.get(&operation.id)
        {
            return operations::repeated(record, operation, now_s);
        }
        let outcome = self.carry_out(operation, command, now_s);
        match (&outcome, operation) {
            // A refusal is an answer too: repeating the operation later must not do what was refused now.
            (Err(failure), Some(operation)) if failure.status < 500 => {
                let record = operations::refused(operation, failure, now_s);
                self.change(now_s, |draft| {
                    operations::keep(draft, record, now_s);
                    Ok(())
                })?;
            }
            _ => {}
        }
        outcome
    }

    fn carry_out(&mut self, operation: Option<&Operation>, command: Command, now_s: u64) -> Result<Outcome, Failure> {
        let (actions, answer) = select::select(&self.inventory, &self.live, command, now_s)?;
        let live = std::mem::take(&mut self.live);
        let changed = self.change(now_s, |draft| {
            actions.into_iter().for_each(|action| draft.apply(action));
            allocate::settle(draft, now_s)?;
            let outcome = views::render(draft, &live, &answer)?;
            if let Some(operation) = operation {
                operations::keep(draft, operations::done(operation, &outcome, now_s), now_s);
            }
            Ok(outcome)
        });
        self.live = live;
        let outcome = changed?;
        self.after_change();
        Ok(outcome)
    }

    /// Makes a change durable, or takes it back.
    fn change<R>(&mut self, now_s: u64, make: impl FnOnce(&mut Draft<'_>) -> Result<R, Failure>) -> Result<R, Failure> {
        let mut draft = Draft::new(&mut self.inventory);
        let result = make(&mut draft)?;
        if draft.is_empty() {
            return Ok(result);
        }
        if let Some(broken) = invariants::broken(&draft) {
            tracing::error!(%broken, now_s, "a change was taken back: it would break an invariant");
            return Err(Failure::general(
                500,
                "internal",
                format!("the change was taken back: {broken}"),
                "report this",
            ));
        }
        let writes = draft.writes()?;
        self.store.commit(&writes).map_err(|error| {
            tracing::error!(%error, "the store failed");
            let message = format!("the store failed: {error}");
            Failure::general(
                503,
                "store_failed",
                message,
                "check the disk that holds state_dir, then restart the broker",
            )
        })?;
        draft.keep();
        Ok(result)
    }

    /// Sends what changed to the cards, and drops connections of cards that are not let in any more.
    fn after_change(&mut self) {
        let inventory = &self.inventory;
        self.live
            .connections
            .retain(|name, _| inventory.cards.contains_key(name));
        self.live.telemetry.retain(|name, _| inventory.cards.contains_key(name));
        let names: Vec<Name> = self.live.connections.keys().cloned().collect();
        for name in names {
            self.send_desired(&name);
        }
    }

    /// Puts the card's desired state into its outbox, unless that revision is there already.
    fn send_desired(&mut self, card: &Name) {
        let (Some(connection), Some(record)) = (self.live.connections.get(card), self.inventory.cards.get(card)) else {
            return;
        };
        let sent = connection.outbox.borrow().as_ref().map(|state| state.revision);
        if sent != Some(record.revision) {
            connection
                .outbox
                .send_replace(Some(Arc::new(desired_state(&self.inventory, card))));
        }
    }
}

#[cfg(test)]
mod tests;
