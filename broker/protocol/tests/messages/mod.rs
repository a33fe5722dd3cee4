//! Random messages of every kind.

mod inquiry;

use std::net::IpAddr;

use outboard_protocol::{
    binding::State,
    card::{BindingReport, FromBroker, FromCard, Isolation, PortCounters, VolumeCounters},
    desired::{
        AddressSet, Cidr, DesiredState, Direction, Egress, Ethertype, Grant, Group, Matched, Members, Peer, Port,
        PortRange, Rule, RuleAction, Trunk, Volume, VolumeBackend,
    },
    id::{
        BootEpoch, BrokerEpoch, Generation, Incarnation, MacAddr, Name, ObjectKind, ObjectRef, OperationId, Revision,
    },
    link::{FromDpu, NumberedRequest, Reply, Request},
    refusal::{Code, Refusal},
};
use proptest::{collection::vec, option, prelude::*, sample::select};

fn name() -> impl Strategy<Value = Name> {
    "[A-Za-z0-9][A-Za-z0-9._-]{0,62}".prop_map(|text| text.parse().expect("the pattern is a name's"))
}

fn object() -> impl Strategy<Value = ObjectRef> {
    (select(vec![ObjectKind::Port, ObjectKind::Volume]), name()).prop_map(|(kind, name)| ObjectRef { kind, name })
}

fn refusal() -> impl Strategy<Value = Refusal> {
    let codes = [
        Code::NotGranted,
        Code::Stale,
        Code::WrongState,
        Code::OperationConflict,
        Code::OperationExpired,
        Code::Version,
        Code::Malformed,
        Code::Quota,
        Code::BadToken,
        Code::Unavailable,
        Code::Busy,
    ];
    (select(codes.to_vec()), ".{0,80}").prop_map(|(code, text)| Refusal::new(code, text))
}

fn operation() -> impl Strategy<Value = OperationId> {
    any::<u128>().prop_map(|n| OperationId(uuid::Uuid::from_u128(n)))
}

fn generation() -> impl Strategy<Value = Generation> {
    any::<u64>().prop_map(Generation)
}

fn incarnation() -> impl Strategy<Value = Incarnation> {
    any::<u64>().prop_map(Incarnation)
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        any::<(u16, u16, u64)>().prop_map(|(version_min, version_max, epoch)| Request::Hello {
            version_min,
            version_max,
            host_epoch: BootEpoch(epoch)
        }),
        (operation(), object()).prop_map(|(operation, object)| Request::Redeem { operation, object }),
        (object(), generation(), incarnation()).prop_map(|(object, generation, incarnation)| Request::Connect {
            object,
            generation,
            incarnation
        }),
        (operation(), object(), generation()).prop_map(|(operation, object, generation)| Request::Release {
            operation,
            object,
            generation
        }),
        Just(Request::Ping),
    ]
}

pub fn numbered_request() -> impl Strategy<Value = NumberedRequest> {
    (any::<u64>(), request()).prop_map(|(seq, request)| NumberedRequest { seq, request })
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        (any::<u16>(), name(), any::<u64>()).prop_map(|(version, card, epoch)| Reply::Welcome {
            version,
            card,
            dpu_epoch: BootEpoch(epoch)
        }),
        (generation(), incarnation()).prop_map(|(generation, incarnation)| Reply::Redeemed {
            generation,
            incarnation
        }),
        select(vec![Reply::Connected, Reply::Released, Reply::Pong]),
        refusal().prop_map(|refusal| Reply::Refused { refusal }),
    ]
}

pub fn from_dpu() -> impl Strategy<Value = FromDpu> {
    prop_oneof![
        (any::<u64>(), reply()).prop_map(|(seq, reply)| FromDpu::Reply { seq, reply }),
        (object(), generation()).prop_map(|(object, generation)| FromDpu::Revoked { object, generation }),
    ]
}

fn report() -> impl Strategy<Value = BindingReport> {
    (
        object(),
        generation(),
        incarnation(),
        select(State::ALL.to_vec()),
        option::of(refusal()),
    )
        .prop_map(|(object, generation, incarnation, state, error)| BindingReport {
            object,
            generation,
            incarnation,
            state,
            error,
        })
}

fn port_counters() -> impl Strategy<Value = PortCounters> {
    (name(), any::<[u64; 4]>(), vec(("[a-z_]{1,20}", any::<u64>()), 0..4)).prop_map(|(name, n, drops)| PortCounters {
        name,
        tx_frames: n[0],
        tx_bytes: n[1],
        rx_frames: n[2],
        rx_bytes: n[3],
        drops,
    })
}

fn volume_counters() -> impl Strategy<Value = VolumeCounters> {
    (name(), any::<[u64; 6]>()).prop_map(|(name, n)| VolumeCounters {
        name,
        read_requests: n[0],
        read_bytes: n[1],
        write_requests: n[2],
        write_bytes: n[3],
        flush_requests: n[4],
        failed_requests: n[5],
    })
}

pub fn from_card() -> impl Strategy<Value = FromCard> {
    let isolation = select(vec![Isolation::Process, Isolation::Machine]);
    prop_oneof![
        (name(), vec(any::<u8>(), 0..64), vec(any::<u8>(), 0..300)).prop_map(|(card, secret, csr)| FromCard::Enrol {
            card,
            secret,
            csr
        }),
        (any::<[u16; 2]>(), ".{0,30}", any::<[u64; 3]>(), isolation).prop_map(|(v, serial, n, isolation)| {
            FromCard::Hello {
                version_min: v[0],
                version_max: v[1],
                serial,
                dpu_epoch: BootEpoch(n[0]),
                broker_epoch: BrokerEpoch(n[1]),
                revision: Revision(n[2]),
                isolation,
            }
        }),
        (any::<u64>(), vec(report(), 0..5)).prop_map(|(seq, bindings)| FromCard::Inventory { seq, bindings }),
        any::<u64>().prop_map(|n| FromCard::Applied { revision: Revision(n) }),
        (vec(port_counters(), 0..3), vec(volume_counters(), 0..3))
            .prop_map(|(ports, volumes)| FromCard::Telemetry { ports, volumes }),
        (any::<u64>(), inquiry::answer()).prop_map(|(id, answer)| FromCard::Answer { id, answer }),
    ]
}

fn volume() -> impl Strategy<Value = Volume> {
    let backend = prop_oneof![
        ".{0,50}".prop_map(|path| VolumeBackend::File { path }),
        Just(VolumeBackend::Memory),
        Just(VolumeBackend::Null),
    ];
    (name(), any::<u64>(), backend, any::<bool>()).prop_map(|(name, size_bytes, backend, read_only)| Volume {
        name,
        size_bytes,
        backend,
        read_only,
    })
}

fn cidr() -> impl Strategy<Value = Cidr> {
    any::<(IpAddr, u8)>().prop_map(|(address, prefix_len)| Cidr { address, prefix_len })
}

fn rule() -> impl Strategy<Value = Rule> {
    let ports = || option::of(any::<(u16, u16)>().prop_map(|(first, last)| PortRange { first, last }));
    let matched = prop_oneof![
        Just(Matched::Any),
        ports().prop_map(|ports| Matched::Tcp { ports }),
        ports().prop_map(|ports| Matched::Udp { ports }),
        any::<(Option<u8>, Option<u8>)>().prop_map(|(icmp_type, icmp_code)| Matched::Icmp { icmp_type, icmp_code }),
        any::<u8>().prop_map(|protocol| Matched::Number { protocol }),
    ];
    let peer = prop_oneof![
        Just(Peer::Any),
        cidr().prop_map(|cidr| Peer::Cidr { cidr }),
        name().prop_map(|name| Peer::Group { name }),
        name().prop_map(|name| Peer::AddressSet { name }),
    ];
    let words = (
        select(vec![Direction::Ingress, Direction::Egress]),
        select(vec![RuleAction::Allow, RuleAction::Deny, RuleAction::Reject]),
        select(vec![Ethertype::Ipv4, Ethertype::Ipv6, Ethertype::Both]),
    );
    (words, any::<(u16, bool)>(), matched, peer, option::of(name())).prop_map(
        |((direction, action, ethertype), (priority, log), matched, peer, name)| Rule {
            direction,
            action,
            priority,
            log,
            ethertype,
            matched,
            peer,
            name,
        },
    )
}

fn policy() -> impl Strategy<Value = (Vec<Group>, Vec<AddressSet>, Vec<Members>)> {
    let egress = select(vec![Egress::Allow, Egress::Deny]);
    let group = (name(), egress, vec(rule(), 0..4)).prop_map(|(name, egress, rules)| Group { name, egress, rules });
    let set = (name(), vec(cidr(), 0..4)).prop_map(|(name, entries)| AddressSet { name, entries });
    let members = (name(), name(), vec(any::<IpAddr>(), 0..4)).prop_map(|(group, network, addresses)| Members {
        group,
        network,
        addresses,
    });
    (vec(group, 0..3), vec(set, 0..3), vec(members, 0..3))
}

pub fn desired() -> impl Strategy<Value = DesiredState> {
    let groups = option::of(vec(name(), 0..3));
    let trunk = option::of((name(), any::<u16>()).prop_map(|(parent, vlan)| Trunk { parent, vlan }));
    let addresses = vec(any::<IpAddr>(), 0..4);
    let port = (name(), name(), any::<[u8; 6]>(), addresses, groups, trunk).prop_map(
        |(name, network, mac, addresses, groups, trunk)| Port {
            name,
            network,
            mac: MacAddr(mac),
            addresses,
            groups,
            trunk,
        },
    );
    let grant = (object(), name(), generation(), incarnation(), option::of(any::<u64>())).prop_map(
        |(object, host, generation, incarnation, expires_unix_s)| Grant {
            object,
            host,
            generation,
            incarnation,
            expires_unix_s,
        },
    );
    (
        any::<[u64; 2]>(),
        vec(port, 0..3),
        vec(volume(), 0..3),
        vec(grant, 0..3),
        policy(),
    )
        .prop_map(|(n, ports, volumes, grants, policy)| DesiredState {
            broker_epoch: BrokerEpoch(n[0]),
            revision: Revision(n[1]),
            ports,
            volumes,
            grants,
            groups: policy.0,
            address_sets: policy.1,
            members: policy.2,
        })
}

pub fn from_broker() -> impl Strategy<Value = FromBroker> {
    prop_oneof![
        (vec(any::<u8>(), 0..300), vec(any::<u8>(), 0..300))
            .prop_map(|(certificate, ca)| FromBroker::Enrolled { certificate, ca }),
        any::<(u16, u64)>().prop_map(|(version, epoch)| FromBroker::Welcome {
            version,
            broker_epoch: BrokerEpoch(epoch)
        }),
        desired().prop_map(|state| FromBroker::Desired { state }),
        any::<u64>().prop_map(|seq| FromBroker::InventoryAck { seq }),
        refusal().prop_map(|refusal| FromBroker::Refused { refusal }),
        (any::<(u64, u32)>(), inquiry::question()).prop_map(|((id, deadline_ms), question)| FromBroker::Ask {
            id,
            deadline_ms,
            question,
        }),
    ]
}
