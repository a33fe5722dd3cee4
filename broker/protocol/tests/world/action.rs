//! What can happen to the world, and how a random script of it is made.

use outboard_protocol::{
    card_side::{Input, SessionId},
    id::{BrokerEpoch, Generation},
};
use proptest::prelude::*;

use super::{Outcome, World, epoch_of_host, grant, host, object, operation};

/// Ports in the world; the last one is a subport of the first.
pub const OBJECTS: u8 = 3;
pub const PARENT: u8 = 0;
pub const SUBPORT: u8 = 2;

#[derive(Debug, Clone)]
pub enum Action {
    /// The operator grants, and the broker binds the next generation; sent at once.
    Grant {
        object: u8,
        host: u8,
        expires_in_s: Option<u64>,
    },
    /// The operator revokes; sent at once.
    Revoke { object: u8 },
    /// The broker repeats an earlier desired state.
    ReplayDesired { back: usize },
    /// The broker is set back to a backup without any generation, and raises its epoch.
    RestoreBroker,
    /// A host redeems under a new operation id.
    Redeem { object: u8, host: u8 },
    /// A host releases under a new operation id; `back` generations before the latest.
    Release { object: u8, host: u8, back: u64 },
    /// A message that was answered well arrives again.
    ReplayMutation { back: usize },
    /// A host opens a session, naming the generation `back` before the latest.
    Connect { object: u8, host: u8, back: u64 },
    /// A session's rings start or stop.
    Rings { which: usize, live: bool },
    /// A session ends, with nothing in flight.
    Close { which: usize },
    /// A host says hello with this boot epoch.
    Hello { host: u8, epoch: u64 },
    /// The broker acknowledges the last inventory.
    Ack,
    /// The broker's channel comes up.
    BrokerConnected,
    /// Devices can be set up, or not.
    SetupFails { fails: bool },
    /// Time passes.
    Tick { seconds: u64 },
    /// The process dies after that many effects of the next input.
    CrashAfter { effects: usize },
}

fn action() -> impl Strategy<Value = Action> {
    let (object, host) = (0..OBJECTS, 0..2_u8);
    let back = prop_oneof![3 => Just(0_u64), 1 => 1..3_u64];
    prop_oneof![
        6 => (object.clone(), host.clone(), prop_oneof![4 => Just(None), 1 => (1..90_u64).prop_map(Some)])
            .prop_map(|(object, host, expires_in_s)| Action::Grant { object, host, expires_in_s }),
        2 => object.clone().prop_map(|object| Action::Revoke { object }),
        1 => (0..4_usize).prop_map(|back| Action::ReplayDesired { back }),
        1 => Just(Action::RestoreBroker),
        6 => (object.clone(), host.clone()).prop_map(|(object, host)| Action::Redeem { object, host }),
        3 => (object.clone(), host.clone(), back.clone())
            .prop_map(|(object, host, back)| Action::Release { object, host, back }),
        2 => (0..4_usize).prop_map(|back| Action::ReplayMutation { back }),
        6 => (object, host.clone(), back).prop_map(|(object, host, back)| Action::Connect { object, host, back }),
        3 => (0..3_usize, any::<bool>()).prop_map(|(which, live)| Action::Rings { which, live }),
        3 => (0..3_usize).prop_map(|which| Action::Close { which }),
        1 => (host, 0..4_u64).prop_map(|(host, epoch)| Action::Hello { host, epoch }),
        2 => Just(Action::Ack),
        1 => Just(Action::BrokerConnected),
        1 => any::<bool>().prop_map(|fails| Action::SetupFails { fails }),
        2 => (0..60_u64).prop_map(|seconds| Action::Tick { seconds }),
        3 => (0..8_usize).prop_map(|effects| Action::CrashAfter { effects }),
    ]
}

pub fn actions() -> impl Strategy<Value = Vec<Action>> {
    proptest::collection::vec(action(), 1..60)
}

impl World {
    pub fn act(&mut self, action: &Action) -> Outcome {
        match *action {
            Action::Grant {
                object: n,
                host: h,
                expires_in_s,
            } => {
                let next = self.generations.get(&object(n)).copied().unwrap_or_default().next();
                self.generations.insert(object(n), next);
                let expires = expires_in_s.map(|s| self.now.unix_s + s);
                self.grants.insert(object(n), grant(object(n), host(h), next, expires));
                self.send_desired()
            }
            Action::Revoke { object: n } => {
                self.grants.remove(&object(n));
                self.send_desired()
            }
            Action::ReplayDesired { back } => match self.sent.iter().rev().nth(back).cloned() {
                Some(state) => self.input(Input::Desired(state)).map(drop),
                None => Ok(()),
            },
            Action::RestoreBroker => {
                self.epoch = BrokerEpoch(self.epoch.0 + 1);
                self.generations.clear();
                self.grants.clear();
                self.send_desired()
            }
            Action::Redeem { object: n, host: h } => {
                self.operations += 1;
                let operation = operation(self.operations);
                self.mutate(Input::Redeem {
                    host: host(h),
                    operation,
                    object: object(n),
                })
            }
            Action::Release {
                object: n,
                host: h,
                back,
            } => {
                self.operations += 1;
                let operation = operation(self.operations);
                let generation = self.generation(n, back);
                self.mutate(Input::Release {
                    host: host(h),
                    operation,
                    object: object(n),
                    generation,
                })
            }
            Action::ReplayMutation { back } => match self.told.iter().rev().nth(back).map(|t| t.input.clone()) {
                Some(input) => self.mutate(input),
                None => Ok(()),
            },
            Action::Connect {
                object: n,
                host: h,
                back,
            } => {
                let generation = self.generation(n, back);
                self.connect(host(h), object(n), generation)
            }
            Action::Rings { which, live } => match self.session(which) {
                Some(session) if live => self.input(Input::RingsLive { session }).map(drop),
                Some(session) => self.input(Input::RingsStopped { session }).map(drop),
                None => Ok(()),
            },
            Action::Close { which } => match self.session(which) {
                Some(session) => {
                    self.sessions.remove(&session);
                    self.input(Input::SessionClosed { session }).map(drop)
                }
                None => Ok(()),
            },
            Action::Hello { host: h, epoch } => {
                let host_epoch = epoch_of_host(epoch);
                self.input(Input::HostHello {
                    host: host(h),
                    host_epoch,
                    version: 1,
                })
                .map(drop)
            }
            Action::Ack => self
                .input(Input::InventoryAcked {
                    seq: self.last_inventory,
                })
                .map(drop),
            Action::BrokerConnected => self.input(Input::BrokerConnected).map(drop),
            Action::SetupFails { fails } => {
                self.setup_fails = fails;
                Ok(())
            }
            Action::Tick { seconds } => {
                self.now.monotonic_ms += seconds * 1000;
                self.now.unix_s += seconds;
                self.input(Input::Tick).map(drop)
            }
            Action::CrashAfter { effects } => {
                self.crash_after = Some(effects);
                Ok(())
            }
        }
    }

    fn generation(&self, n: u8, back: u64) -> Generation {
        Generation(
            self.generations
                .get(&object(n))
                .copied()
                .unwrap_or_default()
                .0
                .saturating_sub(back),
        )
    }

    fn session(&self, which: usize) -> Option<SessionId> {
        self.sessions.keys().nth(which).copied()
    }
}
