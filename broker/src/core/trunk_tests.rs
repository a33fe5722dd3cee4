use outboard_api::{
    network::NetworkSpec,
    port::TrunkSpec,
    topology::{Current, Topology},
};
use outboard_controls::Off;
use outboard_protocol::{
    binding::State,
    card::{BindingReport, CARD_VERSIONS},
    desired::TRUNKS_CARD_VERSION,
    id::Generation,
};
use tokio::sync::watch;

use super::*;
use crate::{
    core::{
        Command, Core, Hello, desired_state,
        select::current,
        tests::{core, do_it, hello, name, peer, port_spec},
    },
    views,
};

fn object(text: &str) -> ObjectRef {
    ObjectRef {
        kind: ObjectKind::Port,
        name: name(text),
    }
}

fn network(text: &str, vlan: Option<u16>) -> Command {
    Command::PutNetwork(NetworkSpec {
        name: name(text),
        subnets: vec!["10.1.0.0/24".parse().unwrap()],
        vlan,
    })
}

/// Port vm2 as a subport of `parent`, on network green.
fn subport(parent: &str, vlan: Option<u16>) -> PortSpec {
    PortSpec {
        network: name("green"),
        addresses: vec![[10, 1, 0, 2].into()],
        trunk: Some(TrunkSpec {
            parent: name(parent),
            vlan,
        }),
        card: None,
        ..port_spec(2)
    }
}

/// vm1 and its subport vm2, which inherits VLAN id 100, and vm3.
fn with_subport() -> Core {
    let mut core = core();
    do_it(&mut core, network("green", Some(100)));
    do_it(&mut core, Command::PutPort(port_spec(1)));
    do_it(&mut core, Command::PutPort(port_spec(3)));
    do_it(&mut core, Command::PutPort(subport("vm1", None)));
    core
}

fn told(core: &Core) -> Option<Trunk> {
    let state = desired_state(core.inventory(), &name("local"));
    assert_eq!(state.check(), Ok(()));
    state.port(&name("vm2")).and_then(|port| port.trunk.clone())
}

fn refused(core: &mut Core, command: Command) -> (u16, String) {
    let before = core.inventory().clone();
    let failure = core.mutate(None, command, 1).unwrap_err();
    assert_eq!(*core.inventory(), before);
    (failure.status, failure.body.error.code)
}

#[test]
fn a_card_is_told_the_parent_and_the_vlan_id_which_follows_the_network() {
    let mut core = with_subport();
    let trunk = |vlan| Trunk {
        parent: name("vm1"),
        vlan,
    };
    assert_eq!(told(&core), Some(trunk(100)));
    let revision = |core: &Core| core.inventory().cards[&name("local")].revision;
    let before = revision(&core);
    do_it(&mut core, network("green", Some(200)));
    assert_eq!((told(&core), revision(&core) > before), (Some(trunk(200)), true));
    do_it(&mut core, Command::PutPort(subport("vm1", Some(7))));
    assert_eq!(told(&core), Some(trunk(7)));
    let before = revision(&core);
    do_it(&mut core, network("green", None));
    assert_eq!(revision(&core), before, "no subport inherits it any more");
    let binding = &core.inventory().bindings[&object("vm2")];
    assert_eq!(
        (binding.function.kind, binding.generation),
        (FunctionKind::Subport, Generation(1)),
        "another VLAN id is no new binding"
    );
    let port =
        |core: &Core, text: &str| views::port(core.inventory(), core.live(), &core.inventory().ports[&name(text)]);
    assert_eq!(port(&core, "vm1").subports, [name("vm2")]);
    assert_eq!((port(&core, "vm1").vlan, port(&core, "vm2").vlan), (None, Some(7)));
}

#[test]
fn a_network_keeps_the_vlan_id_that_a_subport_inherits() {
    let mut core = with_subport();
    assert_eq!(refused(&mut core, network("green", None)), (422, "no_vlan".to_owned()));
}

#[test]
fn a_parent_stays_while_it_has_subports() {
    let mut core = with_subport();
    assert_eq!(
        refused(&mut core, Command::Delete(object("vm1"))),
        (409, "in_use".to_owned())
    );
    do_it(&mut core, Command::Delete(object("vm2")));
    do_it(&mut core, Command::Delete(object("vm1")));
    assert_eq!(core.inventory().ports.len(), 1);
}

#[test]
fn an_apply_takes_parent_and_subport_away_together_but_not_the_parent_alone() {
    let mut core = core();
    do_it(&mut core, network("green", Some(100)));
    let parent = Topology {
        ports: vec![port_spec(1)],
        networks: vec![core.inventory().networks[&name("blue")].spec.clone()],
        ..Topology::default()
    };
    let both = Topology {
        ports: vec![port_spec(1), subport("vm1", Some(5))],
        ..parent.clone()
    };
    do_it(&mut core, Command::ApplyTopology(both));
    let Current { topology, applied } = current(core.inventory());
    assert_eq!((topology.ports.len(), applied.len()), (2, 3));
    do_it(&mut core, Command::ApplyTopology(Topology::default()));
    assert!(core.inventory().ports.is_empty());
    // One that was made by hand holds its parent.
    do_it(&mut core, Command::ApplyTopology(parent));
    do_it(&mut core, Command::PutPort(subport("vm1", None)));
    assert_eq!(
        refused(&mut core, Command::ApplyTopology(Topology::default())),
        (422, "unknown_parent".to_owned())
    );
}

#[test]
fn subports_go_where_their_parents_go_and_to_no_other_host() {
    let mut core = with_subport();
    let grant = |object, host: Option<&str>| Command::Grant {
        object,
        host: host.map(name),
    };
    do_it(&mut core, grant(object("vm1"), Some("h7")));
    assert_eq!(core.inventory().ports[&name("vm2")].placement.host, name("h7"));
    assert_eq!(
        refused(&mut core, grant(object("vm2"), Some("local"))),
        (409, "parent_elsewhere".to_owned())
    );
    do_it(&mut core, Command::Revoke(object("vm2")));
    assert!(core.inventory().ports[&name("vm1")].placement.granted, "it alone");
    do_it(&mut core, grant(object("vm2"), None));
    let placement = &core.inventory().ports[&name("vm2")].placement;
    assert_eq!((&placement.host, placement.granted), (&name("h7"), true));
}

#[test]
fn another_parent_is_another_binding() {
    let mut core = with_subport();
    let id = core
        .hello(&peer("local"), &hello(), watch::channel(None).0, 1)
        .unwrap()
        .connection;
    let bound = core.inventory().bindings[&object("vm2")].clone();
    let report = |state| {
        vec![BindingReport {
            object: object("vm2"),
            generation: bound.generation,
            incarnation: bound.function.incarnation,
            state,
            error: None,
        }]
    };
    core.card_inventory(&name("local"), id, 1, report(State::Active), 1)
        .unwrap();
    do_it(&mut core, Command::PutPort(subport("vm3", None)));
    let state = |core: &Core| core.inventory().bindings[&object("vm2")].state;
    assert_eq!(state(&core), State::Draining);
    let revision = core.inventory().cards[&name("local")].revision;
    core.card_inventory(&name("local"), id, 2, report(State::Released), 1)
        .unwrap();
    core.card_applied(&name("local"), id, revision, 1).unwrap();
    let binding = &core.inventory().bindings[&object("vm2")];
    assert_eq!((binding.state, binding.generation), (State::Reserved, Generation(2)));
    // With a device of its own it is one more.
    do_it(
        &mut core,
        Command::PutPort(PortSpec {
            trunk: None,
            ..subport("vm3", None)
        }),
    );
    assert!(core.inventory().bindings[&object("vm2")].ends_at.is_some());
}

/// A card that speaks no later version than `newest` connects.
fn join(core: &mut Core, newest: u16) {
    let hello = Hello {
        versions: (CARD_VERSIONS.0, newest),
        ..hello()
    };
    core.hello(&peer("local"), &hello, watch::Sender::new(None), 1).unwrap();
}

fn ports_told(core: &Core) -> usize {
    desired_state(core.inventory(), &name("local")).ports.len()
}

#[test]
fn a_card_that_knows_no_trunks_is_not_told_of_subports() {
    let mut core = with_subport();
    join(&mut core, TRUNKS_CARD_VERSION - 1);
    assert_eq!((ports_told(&core), told(&core)), (2, None));
    let view = views::port(core.inventory(), core.live(), &core.inventory().ports[&name("vm2")]);
    let error = view.binding.and_then(|binding| binding.error).expect("it says so");
    assert!(error.message.contains("knows no trunks"), "{error:?}");
    let another = PortSpec {
        trunk: Some(TrunkSpec {
            parent: name("vm1"),
            vlan: Some(9),
        }),
        ..port_spec(4)
    };
    assert_eq!(
        refused(&mut core, Command::PutPort(another)),
        (409, "card_too_old".to_owned())
    );
    join(&mut core, TRUNKS_CARD_VERSION);
    assert_eq!(ports_told(&core), 3, "control: one that does");
}

#[test]
fn control_without_the_check_a_card_that_knows_no_trunks_gets_a_subport() {
    let _off = Off::here(Check::FilteredPlacement);
    let mut core = with_subport();
    join(&mut core, TRUNKS_CARD_VERSION - 1);
    assert_eq!(ports_told(&core), 3);
}
