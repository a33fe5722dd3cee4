//! Security groups in force: what the broker desires of them changes what passes, at once, for running guests.

use std::time::Duration;

use outboard_protocol::{
    card::FromCard,
    desired::{DesiredState, Direction, Egress, Ethertype, Group, Matched, Members, Peer, PortRange, Rule, RuleAction},
    id::Revision,
};

use crate::{
    broker::{Broker, CardStream},
    fixture::{CARD, Card, Change, PATIENCE, desired, name, port},
    guest::{NetGuest, frame},
};

const SILENCE: Duration = Duration::from_millis(200);
/// Destination port of [`frame`].
const UDP_PORT: u16 = 12_345;

/// Incoming datagrams from this peer are allowed.
fn from(peer: Peer) -> Rule {
    let ports = Some(PortRange {
        first: UDP_PORT,
        last: UDP_PORT,
    });
    Rule {
        direction: Direction::Ingress,
        action: RuleAction::Allow,
        priority: 1000,
        log: false,
        ethertype: Ethertype::Both,
        matched: Matched::Udp { ports },
        peer,
        name: None,
    }
}

/// `vm2` is in a group with these rules; `vm1` and `vm3` are not filtered.
fn state(revision: u64, rules: Vec<Rule>) -> DesiredState {
    let mut state = desired(revision, 3);
    for vm in ["vm1", "vm2", "vm3"] {
        state = state.grant(port(vm), 1);
    }
    state.ports[1].groups = Some(vec![name("web")]);
    state.groups = vec![Group {
        name: name("web"),
        egress: Egress::Allow,
        rules,
    }];
    assert_eq!(state.check(), Ok(()));
    state
}

/// Has the card take up a state, and waits until it is in force.
fn put_in_force(stream: &mut CardStream, state: DesiredState) {
    let revision = state.revision;
    stream.desire(state);
    let applied = |m: &FromCard| matches!(m, FromCard::Applied { revision: told } if *told == revision).then_some(());
    stream.hear("the state is in force", applied);
}

/// The running guests of the three ports.
struct Guests([NetGuest; 3]);

impl Guests {
    fn start(card: &Card) -> Self {
        let mut host = card.host();
        Self(["vm1", "vm2", "vm3"].map(|vm| NetGuest::start(host.open(&port(vm)))))
    }

    /// `vm1` sends `vm2` a datagram: whether it arrives. One to `vm3`, which is not filtered, always does, and only then
    /// has the other one had its turn.
    fn passes(&mut self, text: &str) -> bool {
        let [vm1, vm2, vm3] = &mut self.0;
        let (asked, control) = (frame(1, 2, text.as_bytes()), frame(1, 3, text.as_bytes()));
        assert!(vm1.send(&asked) && vm1.send(&control));
        assert_eq!(
            vm3.receive(PATIENCE),
            Some(control),
            "control: unfiltered traffic passes"
        );
        match vm2.receive(SILENCE) {
            None => false,
            Some(received) => received == asked,
        }
    }
}

#[test]
fn a_change_of_a_group_changes_what_passes_and_a_restart_keeps_it() {
    let card = Card::new();
    let broker = Broker::new(&card.authority);
    card.authority
        .identity(CARD, &broker.address())
        .save(&card.config.state_dir)
        .expect("saved");
    let daemon = card.start();
    let mut stream = broker.welcome();
    put_in_force(&mut stream, state(1, vec![]));
    let mut guests = Guests::start(&card);
    assert!(!guests.passes("no rule allows it"));
    put_in_force(&mut stream, state(2, vec![from(Peer::Any)]));
    assert!(guests.passes("a rule allows it"));
    assert!(guests.passes("and goes on allowing it"));
    // The connection is known by now; it lives only as long as the policy allows it.
    put_in_force(&mut stream, state(3, vec![]));
    assert!(!guests.passes("the rule is gone"));

    // A group as the peer: its members are where the broker says, and only on the port's network.
    let web = || from(Peer::Group { name: name("members") });
    put_in_force(&mut stream, state(4, vec![web()]));
    assert!(!guests.passes("nobody has the group"));
    let with = |revision, network| DesiredState {
        members: vec![Members {
            group: name("members"),
            network: name(network),
            addresses: vec![[10, 0, 0, 1].into()],
        }],
        ..state(revision, vec![web()])
    };
    put_in_force(&mut stream, with(5, "red"));
    assert!(!guests.passes("a member of another network"));
    put_in_force(&mut stream, with(6, "blue"));
    assert!(guests.passes("a member"));
    put_in_force(&mut stream, state(7, vec![web()]));
    assert!(!guests.passes("no member any more"));
    // Not filtered at all, and then by no group.
    let mut bare = state(8, vec![]);
    bare.ports[1].groups = None;
    put_in_force(&mut stream, bare);
    assert!(guests.passes("not filtered"));
    let mut silent = state(9, vec![]);
    silent.ports[1].groups = Some(vec![]);
    put_in_force(&mut stream, silent);
    assert!(!guests.passes("filtered, and nothing allowed"));
    drop(stream);
    drop(guests);
    daemon.stop();
}

#[test]
fn a_restart_without_the_broker_keeps_the_groups() {
    for (rules, passes) in [(vec![], false), (vec![from(Peer::Any)], true)] {
        let card = Card::holding(state(1, rules));
        let daemon = card.start();
        assert_eq!(Guests::start(&card).passes("before"), passes);
        daemon.stop();
        let daemon = card.start();
        assert_eq!(Guests::start(&card).passes("after"), passes);
        daemon.stop();
    }
}

#[test]
fn the_card_says_that_it_knows_groups() {
    let card = Card::new();
    let broker = Broker::new(&card.authority);
    card.authority
        .identity(CARD, &broker.address())
        .save(&card.config.state_dir)
        .expect("saved");
    let daemon = card.start();
    let mut stream = broker.accept();
    let newest = stream.hear("a hello", |m| match m {
        FromCard::Hello {
            version_max, revision, ..
        } => Some((*version_max, *revision)),
        _ => None,
    });
    assert!(newest.0 >= outboard_protocol::desired::GROUPS_CARD_VERSION && newest.1 == Revision(0));
    drop(stream);
    daemon.stop();
}
