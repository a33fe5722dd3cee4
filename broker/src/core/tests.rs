use outboard_api::{card::TOKEN_TTL_DEFAULT_S, network::NetworkSpec, port::PortSpec};
use outboard_controls::{Check, Off};
use outboard_protocol::{
    binding::State,
    card::{BindingReport, CARD_VERSIONS, Isolation},
    id::{BootEpoch, ObjectKind, ObjectRef, Revision},
};
use tokio::sync::watch;

use super::*;
use crate::{
    identity::{Kind, Peer},
    inventory::CertificateRecord,
    store::crash_disk::Disk,
};

mod simulation;

const NOW_S: u64 = 1_790_000_000;
const SECRET: &[u8] = b"secret";

pub(super) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(super) fn port(text: &str) -> ObjectRef {
    ObjectRef {
        kind: ObjectKind::Port,
        name: name(text),
    }
}

pub(super) fn open(disk: &Disk) -> Core {
    Core::open(Store::open_on(disk.clone()).unwrap()).unwrap()
}

pub(super) fn certificate() -> CertificateRecord {
    CertificateRecord {
        fingerprint: "f".to_owned(),
        not_after_s: NOW_S * 2,
    }
}

pub(super) fn peer(card: &str) -> Peer {
    Peer {
        kind: Kind::Card,
        name: name(card),
        fingerprint: "f".to_owned(),
        not_after_s: NOW_S * 2,
    }
}

pub(super) fn hello() -> Hello {
    Hello {
        versions: CARD_VERSIONS,
        serial: "SN1".to_owned(),
        dpu_epoch: BootEpoch(1),
        broker_epoch: BrokerEpoch(0),
        revision: Revision(0),
        isolation: Isolation::Process,
    }
}

pub(super) fn do_it(core: &mut Core, command: Command) -> Outcome {
    core.mutate(None, command, NOW_S).unwrap()
}

pub(super) fn print_token(core: &mut Core) {
    let (card, serial, ttl_s) = (name("local"), "SN1".to_owned(), TOKEN_TTL_DEFAULT_S);
    do_it(
        core,
        Command::EnrolCard {
            card,
            serial,
            ttl_s,
            secret: SECRET.to_vec(),
        },
    );
}

/// A core with an enrolled card and a network.
pub(super) fn core() -> Core {
    let mut core = open(&Disk::with_store());
    furnish(&mut core);
    core
}

pub(super) fn furnish(core: &mut Core) {
    print_token(core);
    core.redeem(&name("local"), SECRET, certificate(), NOW_S).unwrap();
    let subnets = vec!["10.0.0.0/24".parse().unwrap()];
    do_it(
        core,
        Command::PutNetwork(NetworkSpec {
            name: name("blue"),
            subnets,
            vlan: None,
        }),
    );
}

pub(super) fn port_spec(number: u8) -> PortSpec {
    PortSpec {
        groups: None,
        trunk: None,
        name: name(&format!("vm{number}")),
        network: name("blue"),
        mac: format!("52:54:00:00:00:{number:02x}").parse().unwrap(),
        addresses: vec![[10, 0, 0, number].into()],
        card: Some(name("local")),
    }
}

fn operation(request: &str) -> Operation {
    Operation {
        id: uuid::Uuid::from_u128(7),
        request_sha256: request.to_owned(),
    }
}

#[test]
fn a_change_that_the_store_refuses_leaves_memory_as_it_was() {
    let disk = Disk::with_store();
    let mut core = open(&disk);
    furnish(&mut core);
    let dying = disk.after_crash().dying_at(40, None);
    let mut core = open(&dying);
    let mut acknowledged = core.inventory().clone();
    let failure = loop {
        let number = u8::try_from(core.inventory().ports.len()).unwrap() + 1;
        match core.mutate(None, Command::PutPort(port_spec(number)), NOW_S) {
            Ok(_) => acknowledged = core.inventory().clone(),
            Err(failure) => break failure,
        }
    };
    assert_eq!(
        (failure.status, failure.body.error.code.as_str()),
        (503, "store_failed")
    );
    assert_eq!(*core.inventory(), acknowledged);
    assert_eq!(*open(&dying.after_crash()).inventory(), acknowledged);
}

#[test]
fn what_is_in_memory_is_what_the_store_holds() {
    let disk = Disk::with_store();
    let mut core = open(&disk);
    furnish(&mut core);
    (1..5).for_each(|n| drop(do_it(&mut core, Command::PutPort(port_spec(n)))));
    do_it(&mut core, Command::Revoke(port("vm2")));
    do_it(&mut core, Command::Delete(port("vm3")));
    let outcome = core.mutate(Some(&operation("a")), Command::PutPort(port_spec(9)), NOW_S);
    assert!(outcome.is_ok());
    assert_eq!(open(&disk.after_crash()).inventory(), core.inventory());
}

#[test]
fn an_operation_s_answer_is_kept_seven_days_and_its_id_longer() {
    let mut core = core();
    let day = 24 * 3600;
    let mut ask = |request: &str, after_s| {
        core.mutate(
            Some(&operation(request)),
            Command::PutPort(port_spec(1)),
            NOW_S + after_s,
        )
    };
    let first = ask("a", 0).unwrap();
    assert_eq!(ask("a", 7 * day), Ok(first));
    assert_eq!(ask("b", 0).unwrap_err().body.error.code, "operation_conflict");
    assert_eq!(ask("a", 7 * day + 1).unwrap_err().body.error.code, "operation_expired");
    core.mutate(None, Command::DeleteNetwork(name("red")), NOW_S + 31 * day)
        .unwrap();
    let other = Operation {
        id: uuid::Uuid::from_u128(8),
        ..operation("c")
    };
    core.mutate(Some(&other), Command::DeleteNetwork(name("red")), NOW_S + 31 * day)
        .unwrap();
    assert_eq!(
        core.inventory().operations.len(),
        1,
        "the id itself is forgotten after 30 days"
    );
}

#[test]
fn a_token_works_once() {
    let mut core = core();
    assert!(core.redeem(&name("local"), SECRET, certificate(), NOW_S).is_err());
    print_token(&mut core);
    assert!(
        core.redeem(&name("local"), SECRET, certificate(), NOW_S + TOKEN_TTL_DEFAULT_S)
            .is_err(),
        "expired"
    );
    assert!(core.redeem(&name("local"), SECRET, certificate(), NOW_S).is_ok());
}

#[test]
fn control_a_token_that_is_not_used_up_works_again() {
    let mut core = open(&Disk::with_store());
    print_token(&mut core);
    let _off = Off::here(Check::TokenOnce);
    assert!(core.redeem(&name("local"), SECRET, certificate(), NOW_S).is_ok());
    assert!(core.redeem(&name("local"), SECRET, certificate(), NOW_S).is_ok());
}

#[test]
fn a_card_with_another_s_serial_is_refused() {
    let mut core = core();
    let stolen = Hello {
        serial: "SN2".to_owned(),
        ..hello()
    };
    let mut join = |hello: &Hello| core.hello(&peer("local"), hello, watch::channel(None).0, NOW_S);
    assert!(join(&hello()).is_ok());
    assert!(join(&stolen).unwrap_err().text.contains("SN2"));
    assert!(join(&hello()).is_ok());
    let _off = Off::here(Check::CardSerial);
    assert!(join(&stolen).is_ok(), "control: without the check it gets in");
}

#[test]
fn an_expired_certificate_is_refused_even_if_the_tls_layer_let_it_in() {
    let mut core = core();
    let mut join = |now_s| core.hello(&peer("local"), &hello(), watch::channel(None).0, now_s);
    assert!(join(NOW_S).is_ok());
    let refusal = join(NOW_S * 2).unwrap_err();
    assert!(
        refusal.text.contains("expired") && refusal.text.contains("outboard card enrol local"),
        "{refusal}"
    );
}

#[test]
fn a_store_that_is_older_than_a_card_takes_nothing_from_it_until_it_is_enrolled_anew() {
    let mut core = core();
    let ahead = Hello {
        broker_epoch: BrokerEpoch(1),
        revision: Revision(50),
        ..hello()
    };
    assert!(
        core.hello(&peer("local"), &hello(), watch::channel(None).0, NOW_S)
            .is_ok()
    );
    let refusal = core
        .hello(&peer("local"), &ahead, watch::channel(None).0, NOW_S)
        .unwrap_err();
    assert!(refusal.text.contains("old copy"), "{refusal}");
    print_token(&mut core);
    core.redeem(&name("local"), SECRET, certificate(), NOW_S).unwrap();
    let (outbox, desired) = watch::channel(None);
    let accepted = core.hello(&peer("local"), &ahead, outbox, NOW_S).unwrap();
    assert_eq!(accepted.broker_epoch, BrokerEpoch(2));
    let state = desired.borrow().clone().unwrap();
    assert!((state.broker_epoch, state.revision) > (ahead.broker_epoch, ahead.revision));
}

#[test]
fn generations_that_a_card_has_seen_are_not_handed_out_again() {
    let mut core = core();
    do_it(&mut core, Command::PutPort(port_spec(1)));
    let id = core
        .hello(&peer("local"), &hello(), watch::channel(None).0, NOW_S)
        .unwrap()
        .connection;
    // The card answers the grant of a generation that is over with the highest one it has seen.
    let report = |object: ObjectRef, generation, incarnation| BindingReport {
        object,
        generation: outboard_protocol::id::Generation(generation),
        incarnation: outboard_protocol::id::Incarnation(incarnation),
        state: State::Released,
        error: None,
    };
    let reports = vec![report(port("vm1"), 41, 7), report(port("vm9"), 90, 8)];
    core.card_inventory(&name("local"), id, 1, reports, NOW_S).unwrap();
    let binding = &core.inventory().bindings[&port("vm1")];
    assert_eq!((binding.generation.0, binding.state), (42, State::Reserved));
    assert!(binding.function.incarnation.0 > 8);
    do_it(&mut core, Command::PutPort(port_spec(9)));
    assert!(core.inventory().bindings[&port("vm9")].generation.0 > 90);
}

#[test]
fn a_moved_port_leaves_its_card_before_it_is_bound_elsewhere() {
    let mut core = core();
    let (card, serial) = (name("other"), "SN2".to_owned());
    do_it(
        &mut core,
        Command::EnrolCard {
            card,
            serial,
            ttl_s: 60,
            secret: SECRET.to_vec(),
        },
    );
    core.redeem(&name("other"), SECRET, certificate(), NOW_S).unwrap();
    do_it(&mut core, Command::PutPort(port_spec(1)));
    let id = core
        .hello(&peer("local"), &hello(), watch::channel(None).0, NOW_S)
        .unwrap()
        .connection;
    let bound = core.inventory().bindings[&port("vm1")].clone();
    let report = |state| {
        vec![BindingReport {
            object: port("vm1"),
            generation: bound.generation,
            incarnation: bound.function.incarnation,
            state,
            error: None,
        }]
    };
    core.card_inventory(&name("local"), id, 1, report(State::Active), NOW_S)
        .unwrap();
    do_it(
        &mut core,
        Command::PutPort(PortSpec {
            card: Some(name("other")),
            ..port_spec(1)
        }),
    );
    assert!(desired_state(core.inventory(), &name("local")).grants.is_empty());
    assert!(
        desired_state(core.inventory(), &name("other")).grants.is_empty(),
        "two cards never hold one port"
    );
    core.card_inventory(&name("local"), id, 2, report(State::Released), NOW_S)
        .unwrap();
    let grants = desired_state(core.inventory(), &name("other")).grants;
    assert_eq!((grants[0].host.as_str(), grants[0].generation.0), ("other", 2));
}

#[test]
fn a_card_goes_with_what_it_holds_only_when_it_is_gone_itself() {
    let mut core = core();
    do_it(&mut core, Command::PutPort(port_spec(1)));
    let id = core
        .hello(&peer("local"), &hello(), watch::channel(None).0, NOW_S)
        .unwrap()
        .connection;
    let delete = |core: &mut Core| core.mutate(None, Command::DeleteCard(name("local")), NOW_S);
    assert_eq!(delete(&mut core).unwrap_err().body.error.code, "in_use");
    do_it(&mut core, Command::Delete(port("vm1")));
    let failure = delete(&mut core).unwrap_err();
    assert!(
        failure.body.error.message.contains("has not let go of port vm1"),
        "{failure:?}"
    );
    core.card_gone(&name("local"), id, NOW_S);
    delete(&mut core).unwrap();
    assert!(core.inventory().cards.is_empty() && core.inventory().bindings.is_empty());
    // A card of that name begins above what the former one had.
    furnish(&mut core);
    do_it(&mut core, Command::PutPort(port_spec(1)));
    assert_eq!(core.inventory().bindings[&port("vm1")].generation.0, 2);
}

#[test]
fn a_card_without_room_refuses_the_port_and_keeps_what_it_has() {
    let mut core = core();
    let limit = crate::inventory::FUNCTIONS_PER_CARD_MAX;
    let mut topology = outboard_api::topology::Topology::default();
    for n in 0..=limit {
        let [hi, lo] = u16::try_from(n).unwrap().to_be_bytes();
        topology.ports.push(PortSpec {
            name: name(&format!("p{n}")),
            mac: outboard_protocol::id::MacAddr([0x52, 0x54, 0, 1, hi, lo]),
            addresses: vec![],
            ..port_spec(1)
        });
    }
    topology.networks.push(NetworkSpec {
        name: name("blue"),
        subnets: vec![],
        vlan: None,
    });
    let refused = core
        .mutate(None, Command::ApplyTopology(topology.clone()), NOW_S)
        .unwrap_err();
    assert_eq!((refused.status, refused.body.error.code.as_str()), (409, "quota"));
    assert!(core.inventory().ports.is_empty());
    topology.ports.pop();
    assert!(core.mutate(None, Command::ApplyTopology(topology), NOW_S).is_ok());
    assert_eq!(core.inventory().ports.len(), limit);
}
