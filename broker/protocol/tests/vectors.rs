//! The test vectors in `vectors/`, both ways: the bytes decode to the message, and the message encodes to the bytes.

mod vectors_inquiry;

use std::{collections::BTreeMap, fmt::Debug, fs, path::Path};

use minicbor::{Decode, Encode};
use outboard_protocol::{
    binding::State,
    card::{BindingReport, CARD_MESSAGE_LEN_MAX, FromBroker, FromCard, Isolation, PortCounters, VolumeCounters},
    codec::{decode, encode},
    desired::{
        AddressSet, Cidr, DesiredState, Direction, Egress, Ethertype, Grant, Group, Matched, Members, Peer, Port,
        PortRange, Rule, RuleAction, Trunk, Volume, VolumeBackend,
    },
    id::{
        BootEpoch, BrokerEpoch, Generation, Incarnation, MacAddr, Name, ObjectKind, ObjectRef, OperationId, Revision,
    },
    link::{FromDpu, NumberedRequest, Reply, Request},
    refusal::{Code, Refusal},
    token::EnrolToken,
};

/// The vectors of a file: name to bytes. `#` begins a comment, `==` a vector, all else is hex.
fn vectors(file: &str) -> BTreeMap<String, Vec<u8>> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join(file)).unwrap();
    let mut vectors = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("== ") {
            current = Some(vectors.entry(name.to_owned()).or_insert_with(Vec::new));
            continue;
        }
        let hex = line.split('#').next().unwrap_or_default();
        for byte in hex.split_whitespace() {
            current
                .as_mut()
                .expect("a vector's name comes first")
                .push(u8::from_str_radix(byte, 16).unwrap());
        }
    }
    vectors
}

/// The file holds exactly these messages.
fn check<T>(file: &str, messages: &[(&str, T)])
where
    T: Encode<()> + for<'b> Decode<'b, ()> + Debug + PartialEq,
{
    let vectors = vectors(file);
    assert_eq!(vectors.len(), messages.len(), "{file}: {:?}", vectors.keys());
    for (name, message) in messages {
        let bytes = &vectors[*name];
        assert_eq!(&encode(message), bytes, "{file}: {name}");
        assert_eq!(
            decode::<T>(bytes, CARD_MESSAGE_LEN_MAX).as_ref(),
            Ok(message),
            "{file}: {name}"
        );
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn vm1() -> ObjectRef {
    ObjectRef {
        kind: ObjectKind::Port,
        name: name("vm1"),
    }
}

fn disk1() -> ObjectRef {
    ObjectRef {
        kind: ObjectKind::Volume,
        name: name("disk1"),
    }
}

fn operation() -> OperationId {
    OperationId("0f1e2d3c-4b5a-4978-8796-a5b4c3d2e1f0".parse().unwrap())
}

#[test]
fn link_requests() {
    let (operation, object) = (operation(), vm1());
    let (generation, incarnation) = (Generation(300), Incarnation(70_000));
    let requests = [
        (
            "hello",
            Request::Hello {
                version_min: 1,
                version_max: 1,
                host_epoch: BootEpoch(1_700_000_000),
            },
        ),
        (
            "redeem",
            Request::Redeem {
                operation,
                object: object.clone(),
            },
        ),
        (
            "connect",
            Request::Connect {
                object,
                generation,
                incarnation,
            },
        ),
        (
            "release",
            Request::Release {
                operation,
                object: disk1(),
                generation: Generation(u64::MAX),
            },
        ),
        ("ping", Request::Ping),
    ];
    let numbered = (1..)
        .zip(requests)
        .map(|(seq, (name, request))| (name, NumberedRequest { seq, request }));
    check("link_requests.txt", &numbered.collect::<Vec<_>>());
}

#[test]
fn link_answers() {
    let (generation, incarnation) = (Generation(300), Incarnation(70_000));
    let refusal = Refusal::new(Code::NotGranted, "port vm1 is not granted to this host");
    let replies = [
        (
            "welcome",
            Reply::Welcome {
                version: 1,
                card: name("local"),
                dpu_epoch: BootEpoch(1_700_000_001),
            },
        ),
        (
            "redeemed",
            Reply::Redeemed {
                generation,
                incarnation,
            },
        ),
        ("connected", Reply::Connected),
        ("released", Reply::Released),
        ("pong", Reply::Pong),
        ("refused", Reply::Refused { refusal }),
    ];
    let numbered = (1..)
        .zip(replies)
        .map(|(seq, (name, reply))| (name, FromDpu::Reply { seq, reply }));
    let revoked = (
        "revoked",
        FromDpu::Revoked {
            object: vm1(),
            generation,
        },
    );
    check("link_answers.txt", &numbered.chain([revoked]).collect::<Vec<_>>());
}

#[test]
fn from_card() {
    let report = |object, generation, incarnation, state, error| BindingReport {
        object,
        generation: Generation(generation),
        incarnation: Incarnation(incarnation),
        state,
        error,
    };
    let missing = Refusal::new(Code::Unavailable, "disk1.raw is not there");
    let port = PortCounters {
        name: name("vm1"),
        tx_frames: 1000,
        tx_bytes: 64_000,
        rx_frames: 998,
        rx_bytes: 63_872,
        drops: vec![("spoofed_mac".to_owned(), 2)],
    };
    let volume = VolumeCounters {
        name: name("disk1"),
        read_requests: 10,
        read_bytes: 40_960,
        write_requests: 5,
        write_bytes: 20_480,
        flush_requests: 1,
        failed_requests: 0,
    };
    let hello = FromCard::Hello {
        version_min: 1,
        version_max: 1,
        serial: "SN-0001".to_owned(),
        dpu_epoch: BootEpoch(1_700_000_001),
        broker_epoch: BrokerEpoch(1),
        revision: Revision(42),
        isolation: Isolation::Machine,
    };
    let bindings = vec![
        report(vm1(), 3, 12, State::Active, None),
        report(disk1(), 1, 13, State::Reserved, Some(missing)),
    ];
    let csr = vec![0x30, 3, 2, 1, 0];
    let messages = [
        (
            "enrol",
            FromCard::Enrol {
                card: name("local"),
                secret: (0..32).collect(),
                csr,
            },
        ),
        ("hello", hello),
        ("inventory", FromCard::Inventory { seq: 9, bindings }),
        ("applied", FromCard::Applied { revision: Revision(42) }),
        (
            "telemetry",
            FromCard::Telemetry {
                ports: vec![port],
                volumes: vec![volume],
            },
        ),
    ];
    let messages: Vec<_> = messages.into_iter().chain(vectors_inquiry::answers()).collect();
    check("from_card.txt", &messages);
}

fn desired() -> DesiredState {
    let volume = |text, size_bytes, backend, read_only| Volume {
        name: name(text),
        size_bytes,
        backend,
        read_only,
    };
    let grant = |object, generation, incarnation, expires_unix_s| Grant {
        object,
        host: name("local"),
        generation: Generation(generation),
        incarnation: Incarnation(incarnation),
        expires_unix_s,
    };
    let port = Port {
        name: name("vm1"),
        network: name("blue"),
        mac: MacAddr([0x52, 0x54, 0, 0, 0, 1]),
        addresses: vec!["10.0.0.1".parse().unwrap(), "fd00:1::1".parse().unwrap()],
        groups: None,
        trunk: None,
    };
    DesiredState {
        broker_epoch: BrokerEpoch(1),
        revision: Revision(43),
        ports: vec![port],
        volumes: vec![
            volume(
                "disk1",
                4 << 30,
                VolumeBackend::File {
                    path: "disk1.raw".to_owned(),
                },
                false,
            ),
            volume("ram", 1 << 20, VolumeBackend::Memory, false),
            volume("zero", 512, VolumeBackend::Null, true),
        ],
        grants: vec![grant(vm1(), 3, 12, None), grant(disk1(), 1, 13, Some(1_800_000_000))],
        ..DesiredState::default()
    }
}

/// A desired state of version 2: groups, sets and members.
fn filtered() -> DesiredState {
    let rule = |direction, ethertype, matched, peer| Rule {
        direction,
        action: RuleAction::Allow,
        priority: 1000,
        log: false,
        ethertype,
        matched,
        peer,
        name: None,
    };
    let cidr = |address: &str, prefix_len| Cidr {
        address: address.parse().unwrap(),
        prefix_len,
    };
    let web = PortRange { first: 80, last: 81 };
    let rules = vec![
        rule(
            Direction::Ingress,
            Ethertype::Ipv4,
            Matched::Tcp { ports: Some(web) },
            Peer::Cidr {
                cidr: cidr("0.0.0.0", 0),
            },
        ),
        rule(
            Direction::Ingress,
            Ethertype::Both,
            Matched::Udp { ports: None },
            Peer::Group { name: name("db") },
        ),
        Rule {
            action: RuleAction::Reject,
            priority: 10,
            log: true,
            name: Some(name("no-ping")),
            ..rule(
                Direction::Ingress,
                Ethertype::Both,
                Matched::Icmp {
                    icmp_type: Some(8),
                    icmp_code: None,
                },
                Peer::AddressSet { name: name("partners") },
            )
        },
        Rule {
            action: RuleAction::Deny,
            ..rule(
                Direction::Egress,
                Ethertype::Both,
                Matched::Number { protocol: 47 },
                Peer::Any,
            )
        },
        rule(Direction::Egress, Ethertype::Both, Matched::Any, Peer::Any),
    ];
    let port = |text, last, groups| Port {
        name: name(text),
        network: name("blue"),
        mac: MacAddr([0x52, 0x54, 0, 0, 0, last]),
        addresses: vec![],
        groups,
        trunk: None,
    };
    DesiredState {
        broker_epoch: BrokerEpoch(1),
        revision: Revision(44),
        ports: vec![
            port("vm1", 1, Some(vec![name("web")])),
            port("vm2", 2, Some(vec![])),
            port("vm3", 3, None),
        ],
        groups: vec![Group {
            name: name("web"),
            egress: Egress::Deny,
            rules,
        }],
        address_sets: vec![AddressSet {
            name: name("partners"),
            entries: vec![cidr("192.0.2.0", 24), cidr("2001:db8::1", 128)],
        }],
        members: vec![Members {
            group: name("db"),
            network: name("blue"),
            addresses: vec!["10.0.0.9".parse().unwrap()],
        }],
        ..DesiredState::default()
    }
}

/// A desired state of version 3: a port and two subports of it.
fn trunk() -> DesiredState {
    let port = |text, network, last, trunk: Option<u16>| Port {
        name: name(text),
        network: name(network),
        mac: MacAddr([0x52, 0x54, 0, 0, 0, last]),
        addresses: vec![],
        groups: None,
        trunk: trunk.map(|vlan| Trunk {
            parent: name("vm1"),
            vlan,
        }),
    };
    let filtered = Port {
        groups: Some(vec![]),
        ..port("vm1-red", "red", 2, Some(4094))
    };
    DesiredState {
        broker_epoch: BrokerEpoch(1),
        revision: Revision(45),
        ports: vec![
            port("vm1", "blue", 1, None),
            port("vm1-green", "green", 1, Some(7)),
            filtered,
        ],
        ..DesiredState::default()
    }
}

#[test]
fn from_broker() {
    let certificate = vec![0x30, 0x82, 1, 0];
    let ca = vec![0x30, 0x82, 2, 0];
    let refusal = outboard_protocol::codec::negotiate((2, 3), (1, 1)).unwrap_err();
    assert_eq!(desired().check(), Ok(()));
    assert_eq!(filtered().check(), Ok(()));
    assert_eq!(trunk().check(), Ok(()));
    let messages = [
        ("enrolled", FromBroker::Enrolled { certificate, ca }),
        (
            "welcome",
            FromBroker::Welcome {
                version: 1,
                broker_epoch: BrokerEpoch(1),
            },
        ),
        ("desired", FromBroker::Desired { state: desired() }),
        ("desired_filtered", FromBroker::Desired { state: filtered() }),
        ("desired_trunk", FromBroker::Desired { state: trunk() }),
        ("inventory_ack", FromBroker::InventoryAck { seq: 9 }),
        ("refused", FromBroker::Refused { refusal }),
    ];
    let messages: Vec<_> = messages.into_iter().chain(vectors_inquiry::questions()).collect();
    check("from_broker.txt", &messages);
}

#[test]
fn token() {
    let mut secret = [0; 32];
    (0..).zip(&mut secret).for_each(|(n, byte)| *byte = n);
    let token = EnrolToken {
        broker: "192.0.2.1:7470".to_owned(),
        card: name("local"),
        ca_sha256: [1; 32],
        secret,
    };
    check("token.txt", &[("token", token.clone())]);
    let text = "obt1.hG4xOTIuMC4yLjE6NzQ3MGVsb2NhbFggAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQFYIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";
    assert_eq!(token.print(), text);
}
