//! Trunks through the whole daemon: subports follow their parent's binding, are revoked alone, and are no host's.

use std::time::Duration;

use outboard_protocol::{
    binding::State,
    card::FromCard,
    desired::{DesiredState, Trunk},
    id::{Generation, ObjectRef},
    link::Reply,
    refusal::Code,
};

use crate::{
    broker::{Broker, CardStream},
    fixture::{CARD, Card, Change, PATIENCE, desired, fails_without, name, port},
    guest::{NetGuest, frame},
};

const SILENCE: Duration = Duration::from_millis(200);
const VLAN: u8 = 100;

/// `vm1` and `vm4` on blue, `vm2` and `vm3` on green; `vm3` is a subport of `vm1`. All are granted, but for `vm3` where
/// `generation` is none.
fn state(revision: u64, generation: Option<u64>) -> DesiredState {
    let mut state = desired(revision, 4);
    for vm in ["vm1", "vm2", "vm4"] {
        state = state.grant(port(vm), 1);
    }
    if let Some(generation) = generation {
        state = state.grant(port("vm3"), generation);
    }
    for green in [1, 2] {
        state.ports[green].network = name("green");
    }
    state.ports[2].trunk = Some(Trunk {
        parent: name("vm1"),
        vlan: VLAN.into(),
    });
    assert_eq!(state.check(), Ok(()));
    state
}

fn tagged(frame: &[u8], vlan: u8) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, vlan], &frame[12..]].concat()
}

/// Waits until the card says that a binding is in this state.
fn hear_state(stream: &mut CardStream, object: &ObjectRef, generation: u64, state: State) {
    stream.hear(&format!("{object}, generation {generation}, is {state:?}"), |m| {
        let FromCard::Inventory { bindings, .. } = m else {
            return None;
        };
        let is_it = |b: &&outboard_protocol::card::BindingReport| {
            b.object == *object && b.generation == Generation(generation) && b.state == state
        };
        bindings.iter().find(is_it).map(|_| ())
    });
}

fn put_in_force(stream: &mut CardStream, state: DesiredState) {
    let revision = state.revision;
    stream.desire(state);
    let applied = |m: &FromCard| matches!(m, FromCard::Applied { revision: told } if *told == revision).then_some(());
    stream.hear("the state is in force", applied);
}

/// Guests of the three ports with a device.
struct Guests {
    vm1: NetGuest,
    vm2: NetGuest,
    vm4: NetGuest,
}

impl Guests {
    /// Does the subport exchange frames with green, both ways? The parent's own traffic passes in any case.
    fn subport_passes(&mut self, text: &str) -> bool {
        self.passes_on(VLAN, text)
    }

    /// Does nothing of the subport pass?
    fn subport_is_silent(&mut self, text: &str) -> bool {
        self.exchange(VLAN, text, SILENCE) == (None, None)
    }

    /// The same on another VLAN.
    fn passes_on(&mut self, vlan: u8, text: &str) -> bool {
        let got = self.exchange(vlan, text, PATIENCE);
        let (there, back) = (frame(3, 2, text.as_bytes()), frame(2, 3, text.as_bytes()));
        got == (Some(there), Some(tagged(&back, vlan)))
    }

    /// What comes out of frames of the subport and to it within some time; its parent's own traffic passes in any case.
    fn exchange(&mut self, vlan: u8, text: &str, patience: Duration) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
        let (there, back) = (frame(3, 2, text.as_bytes()), frame(2, 3, text.as_bytes()));
        let own = frame(1, 4, text.as_bytes());
        assert!(self.vm1.send(&tagged(&there, vlan)) && self.vm1.send(&own) && self.vm2.send(&back));
        assert_eq!(self.vm4.receive(PATIENCE), Some(own), "control: the parent's own");
        (self.vm2.receive(patience), self.vm1.receive(patience))
    }
}

/// A card that has the state in force, its broker's end, and running guests.
struct Scene {
    card: Card,
    daemon: dpu_side::daemon::Daemon,
    // Listens as long as the scene lasts.
    _broker: Broker,
    stream: CardStream,
}

impl Scene {
    fn new() -> Self {
        let card = Card::new();
        let broker = Broker::new(&card.authority);
        card.authority
            .identity(CARD, &broker.address())
            .save(&card.config.state_dir)
            .expect("saved");
        let daemon = card.start();
        let mut stream = broker.welcome_as(3);
        put_in_force(&mut stream, state(1, Some(1)));
        Self {
            card,
            daemon,
            _broker: broker,
            stream,
        }
    }

    fn guests(&self) -> Guests {
        let mut host = self.card.host();
        let mut start = |vm| NetGuest::start(host.open(&port(vm)));
        Guests {
            vm1: start("vm1"),
            vm2: start("vm2"),
            vm4: start("vm4"),
        }
    }
}

#[test]
fn a_subport_follows_its_parent_and_is_revoked_alone() {
    let mut scene = Scene::new();
    let sub = port("vm3");
    hear_state(&mut scene.stream, &sub, 1, State::Prepared);
    let mut guests = scene.guests();
    hear_state(&mut scene.stream, &sub, 1, State::Active);
    assert!(guests.subport_passes("with its parent"));
    // Frames of another VLAN are nobody's, and the subport's address without a tag is not the parent's.
    let other = tagged(&frame(3, 2, b"another VLAN"), VLAN + 1);
    assert!(guests.vm1.send(&other) && guests.vm1.send(&frame(3, 2, b"no tag")));
    assert_eq!(guests.vm2.receive(SILENCE), None);

    put_in_force(&mut scene.stream, state(2, None));
    assert!(guests.subport_is_silent("revoked"));
    hear_state(&mut scene.stream, &sub, 1, State::Released);
    put_in_force(&mut scene.stream, state(3, Some(2)));
    hear_state(&mut scene.stream, &sub, 2, State::Active);
    assert!(guests.subport_passes("granted again"));

    // Another VLAN id is a change of policy.
    let mut moved = state(4, Some(2));
    moved.ports[2].trunk.as_mut().expect("a subport").vlan = 7;
    put_in_force(&mut scene.stream, moved);
    assert!(guests.passes_on(7, "under its new id"));
    let former = tagged(&frame(3, 2, b"under its former id"), VLAN);
    assert!(guests.vm1.send(&former));
    assert_eq!(guests.vm2.receive(SILENCE), None);
    put_in_force(&mut scene.stream, state(5, Some(2)));
    assert!(guests.subport_passes("and back"));

    // When its parent is given back, so is the subport.
    let mut host = scene.card.host();
    assert_eq!(host.release(&port("vm1"), Generation(1)), Some(Reply::Released));
    hear_state(&mut scene.stream, &sub, 2, State::Released);
    assert!(guests.vm2.send(&frame(2, 3, b"after")));
    assert_eq!(guests.vm1.receive(SILENCE), None);
    drop(guests);
    drop(scene.stream);
    scene.daemon.stop();
}

#[test]
fn a_restart_without_the_broker_keeps_trunks() {
    let mut scene = Scene::new();
    let guests = scene.guests();
    hear_state(&mut scene.stream, &port("vm3"), 1, State::Active);
    drop(guests);
    drop(scene.stream);
    scene.daemon.stop();
    let daemon = scene.card.start();
    let mut host = scene.card.host();
    let mut start = |vm| NetGuest::start(host.open(&port(vm)));
    let (vm1, vm2, vm4) = (start("vm1"), start("vm2"), start("vm4"));
    let mut guests = Guests { vm1, vm2, vm4 };
    assert!(guests.subport_passes("after the restart"));
    daemon.stop();
}

#[test]
fn p06_a_host_gets_no_subport_though_it_is_granted() {
    let card = Card::holding(state(1, Some(1)));
    let daemon = card.start();
    let mut host = card.host();
    let binding = host.attach(&port("vm2"));
    let refused = host.redeem(&port("vm3")).err().map(|refusal| refusal.code);
    assert_eq!(refused, Some(Code::NotGranted), "the subport");
    let nothing = host.redeem(&port("nothing")).unwrap_err().text;
    let subport = host.redeem(&port("vm3")).unwrap_err().text;
    assert_eq!(subport.replace("vm3", "nothing"), nothing, "one answer for all");
    for asked in ["vm3", "nothing"] {
        let refusal = host.connect_device(&port(asked), binding).unwrap_err();
        assert_eq!(refusal.code, Code::NotGranted);
        let released = host.release(&port(asked), Generation(1));
        assert!(matches!(released, Some(Reply::Refused { refusal }) if refusal.code == Code::NotGranted));
    }
    host.attach(&port("vm1"));
    daemon.stop();
}

#[test]
fn control_without_the_device_check_a_host_gets_a_subport() {
    let test = "trunk::p06_a_host_gets_no_subport_though_it_is_granted";
    fails_without("subport-device", test, "the subport");
}
