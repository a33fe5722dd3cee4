//! The broker's core against the card's core, with a network and disks that fail at any step.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use outboard_protocol::{
    binding::{Now, State},
    card::{FromCard, Isolation},
    card_side::{CardCore, CardRecord, Effect, Input},
    desired::DesiredState,
    id::{Generation, Name, ObjectRef, OperationId},
};
use proptest::prelude::*;
use tokio::sync::watch;

use super::{NOW_S, do_it, furnish, hello, name, open, peer, port, port_spec};
use crate::{
    core::{Command, ConnectionId, Core, Hello},
    store::crash_disk::Disk,
};

const PORTS: u8 = 3;

#[derive(Debug, Clone)]
enum Step {
    Put(u8),
    Delete(u8),
    Grant(u8),
    Revoke(u8),
    /// The broker's outbox goes onto the wire.
    Send,
    /// The card takes what is on the wire.
    ToCard,
    /// The broker takes what is on the wire.
    ToBroker,
    Redeem(u8),
    Release(u8),
    Disconnect,
    Connect,
    CardDies,
    BrokerDies,
}

fn step() -> impl Strategy<Value = Step> {
    let n = 1..=PORTS;
    prop_oneof![
        2 => n.clone().prop_map(Step::Put),
        1 => n.clone().prop_map(Step::Delete),
        1 => n.clone().prop_map(Step::Grant),
        2 => n.clone().prop_map(Step::Revoke),
        4 => Just(Step::Send),
        6 => Just(Step::ToCard),
        6 => Just(Step::ToBroker),
        3 => n.clone().prop_map(Step::Redeem),
        1 => n.prop_map(Step::Release),
        1 => Just(Step::Disconnect),
        2 => Just(Step::Connect),
        1 => Just(Step::CardDies),
        1 => Just(Step::BrokerDies),
    ]
}

enum ToCard {
    Desired(Arc<DesiredState>),
    Ack(u64),
}

struct Link {
    id: ConnectionId,
    desired: watch::Receiver<Option<Arc<DesiredState>>>,
    to_card: VecDeque<ToCard>,
    to_broker: VecDeque<FromCard>,
}

struct World {
    disk: Disk,
    core: Core,
    card: CardCore,
    card_disk: Option<Vec<u8>>,
    link: Option<Link>,
    now_s: u64,
    operations: u128,
    /// The highest generation that each object was ever bound with on the card.
    seen: BTreeMap<ObjectRef, Generation>,
}

impl World {
    fn new() -> Self {
        let disk = Disk::with_store();
        let mut core = open(&disk);
        furnish(&mut core);
        let card_disk = None;
        let (card, effects) = CardCore::start(name("local"), None, now(NOW_S));
        let (seen, link) = (BTreeMap::new(), None);
        let mut world = Self {
            disk,
            core,
            card,
            card_disk,
            link,
            now_s: NOW_S,
            operations: 0,
            seen,
        };
        world.perform(effects);
        world
    }

    fn run(&mut self, step: &Step) {
        self.now_s += 1;
        match step {
            Step::Put(n) => drop(do_it(&mut self.core, Command::PutPort(port_spec(*n)))),
            Step::Delete(n) => drop(do_it(&mut self.core, Command::Delete(vm(*n)))),
            // An object that is not there is refused, which is as good.
            Step::Grant(n) => drop(self.core.mutate(
                None,
                Command::Grant {
                    object: vm(*n),
                    host: None,
                },
                self.now_s,
            )),
            Step::Revoke(n) => drop(self.core.mutate(None, Command::Revoke(vm(*n)), self.now_s)),
            Step::Send => self.send(),
            Step::ToCard => self.card_takes(),
            Step::ToBroker => self.broker_takes(),
            Step::Redeem(n) => {
                let (object, operation) = (vm(*n), self.operation());
                self.tell_card(Input::Redeem {
                    host: name("local"),
                    operation,
                    object,
                });
            }
            Step::Release(n) => {
                let (object, operation) = (vm(*n), self.operation());
                if let Some(generation) = self.card.binding(&object).map(|b| b.generation) {
                    self.tell_card(Input::Release {
                        host: name("local"),
                        operation,
                        object,
                        generation,
                    });
                }
            }
            Step::Disconnect => self.disconnect(),
            Step::Connect => self.connect(),
            Step::CardDies => {
                self.disconnect();
                let record = self
                    .card_disk
                    .as_deref()
                    .map(|bytes| CardRecord::decode(bytes).unwrap());
                let (card, effects) = CardCore::start(name("local"), record, now(self.now_s));
                self.card = card;
                self.perform(effects);
            }
            Step::BrokerDies => {
                self.link = None;
                self.disk = self.disk.after_crash();
                self.core = open(&self.disk);
            }
        }
        self.check();
    }

    fn operation(&mut self) -> OperationId {
        self.operations += 1;
        OperationId(uuid::Uuid::from_u128(self.operations))
    }

    fn tell_card(&mut self, input: Input) {
        let effects = self.card.handle(input, now(self.now_s));
        self.perform(effects);
    }

    /// Performs the effects; what the card answers itself with comes after all of them.
    fn perform(&mut self, effects: Vec<Effect>) {
        let mut answers = Vec::new();
        for effect in effects {
            match effect {
                Effect::Persist(bytes) => self.card_disk = Some(bytes),
                Effect::Prepare { object, generation } => answers.push(Input::Prepared { object, generation }),
                Effect::SendApplied { revision } => self.put_on_wire(FromCard::Applied { revision }),
                Effect::SendInventory { seq, bindings } => self.put_on_wire(FromCard::Inventory { seq, bindings }),
                Effect::RefuseDesired(refusal) => panic!("the card refused what the broker desires: {refusal}"),
                _ => {}
            }
        }
        answers.into_iter().for_each(|input| self.tell_card(input));
    }

    fn put_on_wire(&mut self, message: FromCard) {
        if let Some(link) = &mut self.link {
            link.to_broker.push_back(message);
        }
    }

    fn connect(&mut self) {
        let desired = self.card.desired();
        let hello = Hello {
            dpu_epoch: self.card.dpu_epoch(),
            broker_epoch: desired.broker_epoch,
            revision: desired.revision,
            isolation: Isolation::Process,
            ..hello()
        };
        let (outbox, desired) = watch::channel(None);
        let accepted = self.core.hello(&peer("local"), &hello, outbox, self.now_s).unwrap();
        let (to_card, to_broker) = (VecDeque::new(), VecDeque::new());
        self.link = Some(Link {
            id: accepted.connection,
            desired,
            to_card,
            to_broker,
        });
        self.link.as_mut().unwrap().desired.mark_changed();
        self.tell_card(Input::BrokerConnected);
    }

    fn disconnect(&mut self) {
        if let Some(link) = self.link.take() {
            self.core.card_gone(&name("local"), link.id, self.now_s);
        }
    }

    fn send(&mut self) {
        let Some(link) = &mut self.link else { return };
        if link.desired.has_changed().unwrap_or(false) {
            let state = link.desired.borrow_and_update().clone();
            link.to_card.extend(state.map(ToCard::Desired));
        }
    }

    fn card_takes(&mut self) {
        match self.link.as_mut().and_then(|link| link.to_card.pop_front()) {
            Some(ToCard::Desired(state)) => self.tell_card(Input::Desired(DesiredState::clone(&state))),
            Some(ToCard::Ack(seq)) => self.tell_card(Input::InventoryAcked { seq }),
            None => {}
        }
    }

    fn broker_takes(&mut self) {
        let Some(link) = &mut self.link else { return };
        let id = link.id;
        match link.to_broker.pop_front() {
            Some(FromCard::Inventory { seq, bindings }) => {
                self.core
                    .card_inventory(&name("local"), id, seq, bindings, self.now_s)
                    .unwrap();
                link.to_card.push_back(ToCard::Ack(seq));
            }
            Some(FromCard::Applied { revision }) => {
                self.core
                    .card_applied(&name("local"), id, revision, self.now_s)
                    .unwrap();
            }
            _ => {}
        }
    }

    /// What must hold at every moment.
    fn check(&mut self) {
        for n in 1..=PORTS {
            let object = vm(n);
            let ended = self
                .core
                .inventory()
                .bindings
                .get(&object)
                .is_none_or(|b| b.state == State::Released);
            let held = self.card.binding(&object);
            let live = held.filter(|b| b.state.is_live());
            assert!(
                !ended || live.is_none(),
                "the API says that {object} is revoked, and the card has {live:?}"
            );
            if let Some(held) = held {
                let seen = self.seen.entry(object.clone()).or_default();
                assert!(
                    held.generation >= *seen,
                    "{object} went back to generation {}",
                    held.generation
                );
                *seen = held.generation;
            }
        }
    }

    /// Lets everything arrive; then both sides must agree with what is declared.
    fn settle(&mut self) {
        self.connect();
        for _ in 0..200 {
            [Step::Send, Step::ToCard, Step::ToBroker]
                .iter()
                .for_each(|step| self.run(step));
        }
        let inventory = self.core.inventory();
        for n in 1..=PORTS {
            let object = vm(n);
            let granted = inventory.placement(&object).is_some_and(|p| p.granted);
            let (bound, held) = (inventory.bindings.get(&object), self.card.binding(&object));
            if granted {
                let (bound, held) = (bound.unwrap(), held.unwrap());
                assert_eq!(
                    (bound.state, bound.generation),
                    (held.state, held.generation),
                    "{object}"
                );
                assert!(
                    matches!(held.state, State::Prepared | State::Attached),
                    "{object}: {held:?}"
                );
            } else {
                assert!(bound.is_none_or(|b| b.state == State::Released), "{object}: {bound:?}");
                assert!(held.is_none_or(|b| b.state == State::Released), "{object}: {held:?}");
            }
        }
        let card = &inventory.cards[&name("local")];
        assert_eq!(card.applied, Some(card.revision));
        assert_eq!(open(&self.disk.after_crash()).inventory(), inventory);
    }
}

fn vm(n: u8) -> ObjectRef {
    port(&format!("vm{n}"))
}

fn now(now_s: u64) -> Now {
    Now {
        monotonic_ms: now_s * 1000,
        unix_s: now_s,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn broker_and_card_agree_in_the_end_and_nothing_revoked_is_held_on_the_way(
        steps in prop::collection::vec(step(), 1..80)
    ) {
        let mut world = World::new();
        world.run(&Step::Connect);
        steps.iter().for_each(|step| world.run(step));
        world.settle();
    }
}

#[test]
fn a_name_that_comes_and_goes_never_sees_a_generation_twice() {
    let mut world = World::new();
    world.run(&Step::Connect);
    let mut generations: Vec<(Name, u64)> = Vec::new();
    for _ in 0..5 {
        world.run(&Step::Put(1));
        world.settle();
        let held = world.card.binding(&vm(1)).unwrap();
        generations.push((held.object.name.clone(), held.generation.0));
        world.run(&Step::Delete(1));
        world.settle();
        assert!(world.core.inventory().bindings.is_empty());
    }
    let mut unique = generations.clone();
    unique.dedup();
    assert_eq!(unique, generations);
}
