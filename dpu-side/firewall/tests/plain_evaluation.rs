//! The classifier says what an evaluation of one rule after the other says, also after any sequence of updates.
//!
//! `OUTBOARD_FIREWALL_CASES` sets how many random policies each test takes.

mod plain;

use std::sync::Arc;

use outboard_firewall::{
    Action, AddressSet, Change, Cidr, Direction, EgressDefault, Ethertype, Flow, Group, GroupMembers, Name, Peer,
    Policy, Port, PortSpec, Protocol, Rule, Spec,
};
use proptest::{collection::vec, prelude::*, sample::select};

const GROUPS: [&str; 4] = ["a", "b", "c", "d"];
const SETS: [&str; 2] = ["s", "t"];

fn config() -> ProptestConfig {
    let cases = std::env::var("OUTBOARD_FIREWALL_CASES")
        .ok()
        .and_then(|n| n.parse().ok());
    ProptestConfig {
        cases: cases.unwrap_or(48),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Few different numbers, so that things meet, and all of them, so that ends are met too.
fn port_number() -> impl Strategy<Value = u16> {
    prop_oneof![4 => 0_u16..24, 2 => any::<u16>(), 1 => select(vec![0, 1, 65_534, 65_535])]
}

fn address_bits() -> impl Strategy<Value = u8> {
    prop_oneof![3 => 0_u8..8, 1 => any::<u8>()]
}

fn address_of(v4: bool, (bits, far): (u8, u8)) -> std::net::IpAddr {
    match (v4, far) {
        (true, 0) => [10, 0, 0, bits].into(),
        (true, 1) => [255, 255, 255, bits | 0xf8].into(),
        (true, _) => [0, 0, 0, bits & 7].into(),
        (false, 0) => [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(bits)].into(),
        (false, 1) => [
            0xffff,
            0xffff,
            0xffff,
            0xffff,
            0xffff,
            0xffff,
            0xffff,
            0xfff8 | u16::from(bits),
        ]
        .into(),
        (false, _) => [0, 0, 0, 0, 0, 0, 0, u16::from(bits & 7)].into(),
    }
}

fn any_address() -> impl Strategy<Value = std::net::IpAddr> {
    (
        any::<bool>(),
        address_bits(),
        prop_oneof![4 => Just(0_u8), 1 => 1_u8..3],
    )
        .prop_map(|(v4, bits, far)| address_of(v4, (bits, far)))
}

fn cidr() -> impl Strategy<Value = Cidr> {
    (any_address(), prop_oneof![4 => 0_u8..10, 1 => 10_u8..=128]).prop_map(|(address, less)| {
        let whole = if address.is_ipv4() { 32_u8 } else { 128 };
        Cidr::new(address, whole.saturating_sub(less)).expect("short enough")
    })
}

fn peer() -> impl Strategy<Value = Peer> {
    prop_oneof![
        2 => Just(Peer::Any),
        6 => cidr().prop_map(Peer::Cidr),
        2 => select(&GROUPS[..]).prop_map(|name| Peer::Group(name.into())),
        2 => select(&SETS[..]).prop_map(|name| Peer::AddressSet(name.into())),
    ]
}

/// Protocol and ports that belong together.
fn layer_four() -> impl Strategy<Value = (Protocol, PortSpec)> {
    let range = (port_number(), port_number()).prop_map(|(a, b)| PortSpec::Range(a.min(b), a.max(b)));
    let one = port_number().prop_map(|port| PortSpec::Range(port, port));
    let ports = prop_oneof![Just(PortSpec::Any), range, one];
    let icmp = (0_u8..4, proptest::option::of(0_u8..3)).prop_map(|(kind, code)| PortSpec::Icmp { kind, code });
    prop_oneof![
        1 => Just((Protocol::Any, PortSpec::Any)),
        6 => (select(vec![6, 6, 6, 17, 132]).prop_map(Protocol::Number), ports),
        1 => Just((Protocol::Number(47), PortSpec::Any)),
        2 => (Just(Protocol::Icmp), prop_oneof![Just(PortSpec::Any), icmp]),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    let direction = prop_oneof![3 => Just(Direction::Ingress), 1 => Just(Direction::Egress)];
    let ethertype = select(vec![Ethertype::Both, Ethertype::Both, Ethertype::Ipv4, Ethertype::Ipv6]);
    let action = select(vec![Action::Allow, Action::Allow, Action::Deny, Action::Reject]);
    let priority = prop_oneof![1_u16..5, Just(1000), any::<u16>()];
    (
        direction,
        ethertype,
        layer_four(),
        peer(),
        action,
        priority,
        any::<bool>(),
    )
        .prop_map(
            |(direction, ethertype, (protocol, ports), peer, action, priority, log)| {
                // A range as peer is of one family, and then the rule is of no other.
                let ethertype = if matches!(peer, Peer::Cidr(_)) {
                    Ethertype::Both
                } else {
                    ethertype
                };
                Rule {
                    name: None,
                    direction,
                    ethertype,
                    protocol,
                    ports,
                    peer,
                    action,
                    priority,
                    log,
                }
            },
        )
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    prop_oneof![3 => vec(rule(), 0..12), 1 => vec(rule(), 0..120)]
}

fn group(name: &'static str) -> impl Strategy<Value = Arc<Group>> {
    (any::<bool>(), rules()).prop_map(move |(deny, rules)| {
        Arc::new(Group {
            name: name.into(),
            egress: if deny {
                EgressDefault::Deny
            } else {
                EgressDefault::Allow
            },
            rules,
        })
    })
}

fn set(name: &'static str) -> impl Strategy<Value = Arc<AddressSet>> {
    vec(cidr(), 0..6).prop_map(move |entries| {
        Arc::new(AddressSet {
            name: name.into(),
            entries,
        })
    })
}

fn port(number: usize) -> impl Strategy<Value = Arc<Port>> {
    let groups = proptest::option::weighted(0.9, vec(select(&GROUPS[..]), 0..4));
    (select(vec!["blue", "blue", "red"]), vec(any_address(), 0..3), groups).prop_map(
        move |(network, addresses, groups)| {
            Arc::new(Port {
                name: format!("p{number}").into(),
                network: network.into(),
                addresses,
                groups: groups.map(|groups| groups.into_iter().map(Name::from).collect()),
            })
        },
    )
}

fn members(group: &'static str, network: &'static str) -> impl Strategy<Value = Arc<GroupMembers>> {
    vec(any_address(), 0..4).prop_map(move |addresses| {
        Arc::new(GroupMembers {
            group: group.into(),
            network: network.into(),
            addresses,
        })
    })
}

fn spec() -> impl Strategy<Value = Spec> {
    let groups = (group("a"), group("b"), group("c"), group("d")).prop_map(|(a, b, c, d)| vec![a, b, c, d]);
    let sets = (set("s"), set("t")).prop_map(|(s, t)| vec![s, t]);
    let ports = (port(0), port(1), port(2), port(3)).prop_map(|(p, q, r, s)| vec![p, q, r, s]);
    let members = (members("a", "blue"), members("b", "red")).prop_map(|(a, b)| vec![a, b]);
    (groups, sets, ports, members).prop_map(|(groups, address_sets, ports, members)| Spec {
        groups,
        address_sets,
        ports,
        members,
    })
}

fn flows() -> impl Strategy<Value = Vec<(Direction, Flow)>> {
    let address = || (address_bits(), prop_oneof![4 => Just(0_u8), 1 => 1_u8..3]);
    let addresses = (any::<bool>(), address(), address())
        .prop_map(|(v4, source, destination)| (address_of(v4, source), address_of(v4, destination)));
    let one = (
        any::<bool>(),
        addresses,
        select(vec![1_u8, 6, 6, 6, 17, 47, 58, 132]),
        port_number(),
    );
    let one = one.prop_map(|(to, (source, destination), protocol, port)| {
        let [high, low] = port.to_be_bytes();
        let selector = match protocol {
            1 | 58 => u16::from_be_bytes([low % 5, high % 4]),
            47 => 0,
            _ => port,
        };
        let flow = Flow::between(source, destination, protocol, selector).expect("one family");
        (if to { Direction::Ingress } else { Direction::Egress }, flow)
    });
    vec(one, 100)
}

/// Every port and flow: what the policy says, with the reason in words.
fn said(policy: &Policy, spec: &Spec, flows: &[(Direction, Flow)]) -> Vec<(Action, String)> {
    let mut said = Vec::new();
    for port in &spec.ports {
        let id = policy.port(&port.name).expect("the port is there");
        for (direction, flow) in flows {
            let judgement = policy.judge(id, *direction, flow);
            said.push((judgement.action, policy.reason(&judgement)));
        }
    }
    said
}

fn said_plainly(spec: &Spec, flows: &[(Direction, Flow)]) -> Vec<(Action, String)> {
    let each = |port: &Port| -> Vec<_> {
        let judge = |(direction, flow): &(_, _)| plain::judge(spec, port, *direction, flow);
        flows.iter().map(judge).collect()
    };
    spec.ports.iter().flat_map(|port| each(port)).collect()
}

/// A change of a policy that has every object that may be named.
fn change() -> impl Strategy<Value = Change> {
    let name = 0_usize..6;
    prop_oneof![
        3 => (0..GROUPS.len()).prop_flat_map(|n| group(GROUPS[n])).prop_map(Change::PutGroup),
        2 => (0..SETS.len()).prop_flat_map(|n| set(SETS[n])).prop_map(Change::PutAddressSet),
        4 => name.clone().prop_flat_map(port).prop_map(Change::PutPort),
        2 => name.prop_map(|n| Change::RemovePort(format!("p{n}").into())),
        2 => (select(&GROUPS[..]), select(vec!["blue", "red"]))
            .prop_flat_map(|(group, network)| members(group, network))
            .prop_map(Change::PutMembers),
        1 => (select(&GROUPS[..]), select(vec!["blue", "red"])).prop_map(|(group, network)| Change::RemoveMembers {
            group: group.into(),
            network: network.into(),
        }),
    ]
}

/// The same change made to the specification.
fn applied(spec: &mut Spec, change: &Change) {
    match change {
        Change::PutGroup(group) => match spec.groups.iter_mut().find(|old| old.name == group.name) {
            Some(old) => *old = group.clone(),
            None => spec.groups.push(group.clone()),
        },
        Change::PutAddressSet(set) => match spec.address_sets.iter_mut().find(|old| old.name == set.name) {
            Some(old) => *old = set.clone(),
            None => spec.address_sets.push(set.clone()),
        },
        Change::PutPort(port) => match spec.ports.iter_mut().find(|old| old.name == port.name) {
            Some(old) => *old = port.clone(),
            None => spec.ports.push(port.clone()),
        },
        Change::PutMembers(members) => {
            spec.members
                .retain(|old| (&old.group, &old.network) != (&members.group, &members.network));
            spec.members.push(members.clone());
        }
        Change::RemoveMembers { group, network } => {
            spec.members
                .retain(|old| (&old.group, &old.network) != (group, network));
        }
        Change::RemovePort(name) => spec.ports.retain(|port| port.name != *name),
        Change::RemoveGroup(name) => spec.groups.retain(|group| group.name != *name),
        Change::RemoveAddressSet(name) => spec.address_sets.retain(|set| set.name != *name),
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_compiled_policy_says_what_plain_evaluation_says(spec in spec(), flows in flows()) {
        let policy = Policy::compile(&spec).expect("a policy");
        prop_assert_eq!(said(&policy, &spec, &flows), said_plainly(&spec, &flows));
    }

    #[test]
    fn an_updated_policy_is_as_good_as_a_fresh_one(
        mut spec in spec(),
        batches in vec(vec(change(), 1..4), 1..8),
        flows in flows(),
    ) {
        let mut policy = Policy::compile(&spec).expect("a policy");
        for (step, batch) in batches.iter().enumerate() {
            let former = (policy.clone(), spec.clone());
            for change in batch {
                applied(&mut spec, change);
            }
            // By changes and by whole specifications in turn.
            policy = if step % 3 == 2 { policy.follow(&spec) } else { policy.update(batch) }.expect("a policy");
            prop_assert_eq!(said(&policy, &spec, &flows), said_plainly(&spec, &flows));
            let fresh = Policy::compile(&spec).expect("a policy");
            for port in &spec.ports {
                let id = policy.port(&port.name).expect("the port");
                let explained = policy.explain(id).expect("the port").ingress;
                let freshly = fresh.explain(fresh.port(&port.name).expect("the port")).expect("the port").ingress;
                let texts = |rules: Vec<outboard_firewall::ExplainedRule>| -> Vec<_> {
                    rules.into_iter().map(|rule| (rule.name, rule.text, rule.priority)).collect()
                };
                prop_assert_eq!(texts(explained), texts(freshly));
                check_epoch((&policy, &spec), (&former.0, &former.1), port, &flows)?;
            }
        }
    }
}

/// The epoch stays where nothing changed that the port depends on, and rises where a judgement changed.
fn check_epoch(
    (policy, spec): (&Policy, &Spec),
    (former, former_spec): (&Policy, &Spec),
    port: &Port,
    flows: &[(Direction, Flow)],
) -> Result<(), TestCaseError> {
    let id = policy.port(&port.name).expect("the port");
    let (Some(former_id), Some(former_port)) = (
        former.port(&port.name),
        former_spec.ports.iter().find(|old| old.name == port.name),
    ) else {
        prop_assert_eq!(policy.epoch(id), policy.version());
        return Ok(());
    };
    let now = policy.epoch(id);
    if former_id != id {
        // It went and came again within one batch or more.
        prop_assert_eq!(now, policy.version());
        return Ok(());
    }
    let before = former.epoch(id);
    if plain::basis(spec, port) == plain::basis(former_spec, former_port) {
        prop_assert_eq!(now, before, "port {} changed nothing", &port.name);
    }
    let changed = flows.iter().any(|(direction, flow)| {
        plain::judge(spec, port, *direction, flow).0 != plain::judge(former_spec, former_port, *direction, flow).0
    });
    if changed {
        prop_assert!(
            now > before && now == policy.version(),
            "port {} has other judgements",
            &port.name
        );
    }
    Ok(())
}
