//! What a lookup costs at most, counted in steps, under rules that were made to be costly.

use std::{collections::BTreeSet, net::IpAddr, ops::RangeInclusive, sync::Arc};

use crate::{
    Action, AddressSet, Cidr, Direction, EgressDefault, Flow, Group, Name, Peer, Policy, Port, PortSpec, Protocol,
    Rule, Spec, limits, search::Meter,
};

/// As many as an operator may have in one group, and then some.
const RULE_COUNT: u16 = 10_000;

struct Steps(u64);

impl Meter for Steps {
    fn step(&mut self) {
        self.0 += 1;
    }
}

/// Numbers that look random, the same in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn u16(&mut self) -> u16 {
        self.next().to_be_bytes()[3..5]
            .try_into()
            .map(u16::from_be_bytes)
            .expect("two bytes")
    }

    fn u32(&mut self) -> u32 {
        u32::from(self.u16()) << 16 | u32::from(self.u16())
    }

    fn u128(&mut self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }

    fn ports(&mut self) -> RangeInclusive<u16> {
        let (one, other) = (self.u16(), self.u16());
        one.min(other)..=one.max(other)
    }
}

fn tcp(ports: RangeInclusive<u16>, peer: Peer) -> Rule {
    Rule {
        protocol: Protocol::TCP,
        ports: PortSpec::Range(*ports.start(), *ports.end()),
        peer,
        ..Rule::allow(Direction::Ingress)
    }
}

fn cidr(address: impl Into<IpAddr>, len: u8) -> Peer {
    Peer::Cidr(Cidr::new(address.into(), len).expect("a range"))
}

fn v4(bits: u32, len: u16) -> Peer {
    cidr(
        std::net::Ipv4Addr::from_bits(bits),
        u8::try_from(len).expect("a length"),
    )
}

fn v6(bits: u128, len: u16) -> Peer {
    cidr(
        std::net::Ipv6Addr::from_bits(bits),
        u8::try_from(len).expect("a length"),
    )
}

fn group(name: &str, rules: Vec<Rule>) -> Arc<Group> {
    Arc::new(Group {
        name: name.into(),
        egress: EgressDefault::Deny,
        rules,
    })
}

fn port(name: &str, groups: &[Arc<Group>]) -> Arc<Port> {
    Arc::new(Port {
        name: name.into(),
        network: "blue".into(),
        addresses: vec![],
        groups: Some(groups.iter().map(|group| group.name.clone()).collect()),
    })
}

/// A port with one group of these rules, and one whose groups have nothing to do with them.
fn policy(rules: Vec<Rule>) -> Policy {
    let (attacker, victim) = (group("attacker", rules), group("victim", vec![tcp(80..=80, Peer::Any)]));
    let groups = vec![attacker, victim];
    let ports = groups
        .iter()
        .map(|group| port(&group.name, std::slice::from_ref(group)))
        .collect();
    Policy::compile(&Spec {
        groups,
        ports,
        ..Spec::default()
    })
    .expect("a policy")
}

/// The costliest of many lookups: random ones, and such as just match rules.
fn steps(policy: &Policy, port: &str, aimed_at: &[Rule]) -> u64 {
    let id = policy.port(port).expect("the port");
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut most = 0;
    let mut judge = |flow: Flow| {
        let mut steps = Steps(0);
        let counted = policy.judge_counted(id, Direction::Ingress, &flow, &mut steps);
        assert_eq!(counted, policy.judge(id, Direction::Ingress, &flow));
        most = most.max(steps.0);
    };
    for _ in 0..2000 {
        judge(Flow::v4(random.u32(), 1, 6, random.u16()));
        judge(Flow::v6(random.u128(), 1, 6, random.u16()));
    }
    for rule in aimed_at {
        let (PortSpec::Range(first, last), Peer::Cidr(range)) = (rule.ports, &rule.peer) else {
            continue;
        };
        for selector in [first, last, last.wrapping_add(1)] {
            match range.network() {
                IpAddr::V4(address) => judge(Flow::v4(address.to_bits(), 1, 6, selector)),
                IpAddr::V6(address) => judge(Flow::v6(address.to_bits(), 1, 6, selector)),
            }
        }
    }
    most
}

fn hostile_rule_sets() -> Vec<(&'static str, Vec<Rule>)> {
    let mut random = Random(88_172_645_463_325_252);
    let mut made = |name, rule: fn(u16, &mut Random) -> Rule| {
        (name, (0..RULE_COUNT).map(|n| rule(n, &mut random)).collect::<Vec<_>>())
    };
    vec![
        made("random ports and prefixes", |n, random| {
            tcp(random.ports(), v4(random.u32(), 8 + n % 25))
        }),
        made("nested ports and prefixes", |n, _| {
            tcp(n..=u16::MAX - n, v4(u32::MAX, n % 33))
        }),
        made("staircase", |n, random| {
            tcp(n..=n + 20_000, v4(random.u32(), 16 + n % 17))
        }),
        made("one port", |n, random| tcp(80..=80, v4(random.u32(), 8 + n % 25))),
        made("ports apart", |n, random| tcp(n * 6..=n * 6, v4(random.u32(), 32))),
        made("random ports and prefixes of IPv6", |n, random| {
            tcp(random.ports(), v6(random.u128(), 1 + n % 128))
        }),
        made("worse ones first", |n, random| Rule {
            // The best rules hang deepest, so that nothing is decided above.
            priority: u16::MAX - n,
            action: if n % 2 == 0 { Action::Deny } else { Action::Allow },
            ..tcp(random.ports(), v4(random.u32(), n % 33))
        }),
    ]
}

#[test]
fn the_bounds_are_the_documented_ones() {
    assert_eq!((limits::GROUP_STEPS_MAX, limits::LOOKUP_STEPS_MAX), (170, 7361));
}

#[test]
fn h47_no_rules_make_a_lookup_cost_more_than_the_bound_of_a_group() {
    for (name, rules) in hostile_rule_sets() {
        let policy = policy(rules.clone());
        let most = steps(&policy, "attacker", &rules);
        assert!(most <= 1 + limits::GROUP_STEPS_MAX, "{name}: {most} steps");
        // Whoever has other groups does not notice.
        assert!(steps(&policy, "victim", &[]) <= 16, "{name}");
    }
}

/// A classifier that keeps a hash table for each shape of rules (how many bits of the address and of the port they look at) asks
/// as many tables as there are shapes, which who may write rules decides: tuple-space explosion.
#[test]
fn h47_rules_of_as_many_shapes_as_possible_cost_no_more_than_others() {
    let mut rules = Vec::new();
    let mut shapes = BTreeSet::new();
    for (port_bits, address_bits) in (0_u16..=16).flat_map(|ports| (0_u16..=32).map(move |address| (ports, address))) {
        shapes.insert((port_bits, address_bits));
        let first = 0x5555 & u16::MAX.checked_shl(u32::from(16 - port_bits)).unwrap_or(0);
        let last = first | u16::MAX.checked_shr(u32::from(port_bits)).unwrap_or(0);
        rules.push(Rule {
            // No shape may be left out because of what another one said.
            priority: port_bits * 33 + address_bits,
            ..tcp(first..=last, v4(0xaaaa_aaaa, 32 - address_bits))
        });
    }
    let before = steps(&policy(vec![tcp(80..=80, v4(0x0a00_0000, 8))]), "attacker", &[]);
    let policy = policy(rules.clone());
    let most = steps(&policy, "attacker", &rules);
    // The control: a hash table for each shape would be asked, each of them a step at least.
    assert!(
        shapes.len() > 500 && u64::try_from(shapes.len()).expect("small") > 4 * most,
        "{most} steps"
    );
    assert!(
        most <= 1 + limits::GROUP_STEPS_MAX && before < most,
        "{before} and {most} steps"
    );
    assert!(steps(&policy, "victim", &[]) <= 16);
}

#[test]
fn h47_a_port_with_as_many_groups_and_named_peers_as_possible_stays_within_its_bound() {
    let mut random = Random(4_101_842_887_655_102_017);
    let set = |n: usize| -> Name { format!("set{n}").into() };
    let address_sets = (0..limits::PEERS_PER_PORT_MAX).map(|n| {
        let entries = (0..1000).map(|_| IpAddr::from(std::net::Ipv4Addr::from_bits(random.u32())).into());
        Arc::new(AddressSet {
            name: set(n),
            entries: entries.collect(),
        })
    });
    let address_sets: Vec<_> = address_sets.collect();
    let groups = (0..limits::GROUPS_PER_PORT_MAX).map(|n| {
        let named = (0..300).map(|m| tcp(random.ports(), Peer::AddressSet(set(2 * n + m % 2))));
        let mut rules: Vec<Rule> = named.collect();
        rules.extend((0..300).map(|m| tcp(random.ports(), v4(random.u32(), 8 + m % 25))));
        group(&format!("g{n}"), rules)
    });
    let groups: Vec<_> = groups.collect();
    let ports = vec![port("p", &groups)];
    let spec = Spec {
        groups,
        address_sets,
        ports,
        ..Spec::default()
    };
    let policy = Policy::compile(&spec).expect("a policy");
    let all: Vec<Rule> = spec
        .groups
        .iter()
        .flat_map(|group| group.rules.iter().cloned())
        .collect();
    let most = steps(&policy, "p", &all);
    assert!(most <= limits::LOOKUP_STEPS_MAX, "{most} steps");
    // It is a cost at all, so that the bound is not held by something else.
    assert!(most > limits::GROUP_STEPS_MAX, "{most} steps");
}
