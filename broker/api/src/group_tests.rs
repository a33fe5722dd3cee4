use outboard_protocol::desired::Cidr;
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn rule(json: serde_json::Value) -> RuleSpec {
    serde_json::from_value(json).expect("a rule")
}

#[test]
fn what_is_left_out_has_the_documented_value() {
    let spec = rule(json!({"direction": "ingress"}));
    assert_eq!(
        spec.desired(),
        desired::Rule {
            direction: Direction::Ingress,
            action: RuleAction::Allow,
            priority: 1000,
            log: false,
            ethertype: Ethertype::Both,
            matched: Matched::Any,
            peer: Peer::Any,
            name: None,
        }
    );
    assert_eq!(
        serde_json::to_value(&spec).expect("JSON"),
        json!({"direction": "ingress"})
    );
    let group: GroupSpec = serde_json::from_value(json!({"name": "web"})).expect("a group");
    assert_eq!((group.egress, group.rules.len()), (Egress::Allow, 0));
}

#[test]
fn a_card_is_told_what_was_written() {
    let spec = rule(
        json!({"direction": "egress", "protocol": "tcp", "ports": "80-81", "to": "fd00::/8",
        "action": "reject", "priority": 7, "log": true, "name": "out"}),
    );
    assert_eq!(spec.check(), Ok(()));
    assert_eq!(
        spec.desired(),
        desired::Rule {
            direction: Direction::Egress,
            action: RuleAction::Reject,
            priority: 7,
            log: true,
            ethertype: Ethertype::Ipv6,
            matched: Matched::Tcp {
                ports: Some(PortRange { first: 80, last: 81 })
            },
            peer: Peer::Cidr {
                cidr: Cidr {
                    address: "fd00::".parse().expect("an address"),
                    prefix_len: 8
                }
            },
            name: Some("out".parse().expect("a name")),
        }
    );
    assert_eq!(
        spec.to_string(),
        "egress tcp 80-81 to fd00::/8 reject priority 7 log name out"
    );
    let matched = |json| rule(json).desired().matched;
    assert_eq!(
        matched(json!({"direction": "ingress", "protocol": "icmp", "icmp": "8/0"})),
        Matched::Icmp {
            icmp_type: Some(8),
            icmp_code: Some(0)
        }
    );
    assert_eq!(
        matched(json!({"direction": "ingress", "protocol": "47"})),
        Matched::Number { protocol: 47 }
    );
    assert_eq!(
        matched(json!({"direction": "ingress", "protocol": "17", "ports": "53"})),
        Matched::Udp {
            ports: Some(PortRange { first: 53, last: 53 })
        }
    );
    let peer = |json| rule(json).desired().peer;
    assert_eq!(
        peer(json!({"direction": "ingress", "group": "db"})),
        Peer::Group {
            name: "db".parse().expect("a name")
        }
    );
    assert_eq!(
        peer(json!({"direction": "ingress", "address_set": "s"})),
        Peer::AddressSet {
            name: "s".parse().expect("a name")
        }
    );
}

#[test]
fn every_contradiction_is_found() {
    let good =
        json!({"direction": "ingress", "protocol": "tcp", "ports": "80", "from": "10.0.0.0/8", "ethertype": "ipv4"});
    assert_eq!(rule(good).check(), Ok(()), "the control is good");
    let cases = [
        (
            json!({"direction": "egress", "from": "10.0.0.0/8"}),
            "an egress rule has no 'from'",
        ),
        (
            json!({"direction": "ingress", "to": "10.0.0.0/8"}),
            "an ingress rule has no 'to'",
        ),
        (
            json!({"direction": "ingress", "from": "10.0.0.0/8", "group": "db"}),
            "a rule has one other side: from or to, group, or address_set",
        ),
        (
            json!({"direction": "ingress", "address_set": "s", "group": "db"}),
            "a rule has one other side: from or to, group, or address_set",
        ),
        (
            json!({"direction": "ingress", "ports": "80"}),
            "protocol any has no 'ports'; only tcp and udp do",
        ),
        (
            json!({"direction": "ingress", "protocol": "47", "ports": "80"}),
            "protocol 47 has no 'ports'; only tcp and udp do",
        ),
        (
            json!({"direction": "ingress", "protocol": "udp", "icmp": "8"}),
            "protocol udp has no 'icmp'; only icmp does",
        ),
        (
            json!({"direction": "ingress", "from": "10.0.0.0/8", "ethertype": "ipv6"}),
            "10.0.0.0/8 is not ipv6",
        ),
        (
            json!({"direction": "ingress", "from": "fd00::1", "ethertype": "both"}),
            "fd00::1 is not both IP versions",
        ),
    ];
    for (json, said) in cases {
        let contradiction = rule(json).check().expect_err(said);
        assert_eq!(contradiction.to_string(), said);
    }
}

#[test]
fn values_that_mean_nothing_are_refused() {
    for text in [
        "", "81-80", "80-", "-80", "80-81-82", "65536", "080", "+80", " 80", "http",
    ] {
        assert!(text.parse::<Ports>().is_err(), "{text}");
    }
    for text in ["", "256", "8/", "/0", "8/256", "8/0/0", "08", "echo"] {
        assert!(text.parse::<Icmp>().is_err(), "{text}");
    }
    for text in ["", "TCP", "256", "-1", "06", "gre"] {
        assert!(text.parse::<Protocol>().is_err(), "{text}");
    }
}

#[test]
fn rules_without_a_name_are_counted_by_direction() {
    let rules = json!([{"direction": "ingress"}, {"direction": "egress"}, {"direction": "ingress", "name": "http"},
        {"direction": "ingress"}]);
    let group: GroupSpec = serde_json::from_value(json!({"name": "web", "rule": rules})).expect("a group");
    assert_eq!(group.rule_ids(), ["ingress/1", "egress/1", "http", "ingress/3"]);
}

proptest! {
    #[test]
    fn values_print_as_they_are_read(first: u16, last: u16, icmp_type: u8, icmp_code: Option<u8>, number: u8) {
        let ports = Ports(PortRange { first: first.min(last), last: first.max(last) });
        prop_assert_eq!(ports.to_string().parse(), Ok(ports));
        let icmp = Icmp { icmp_type, icmp_code };
        prop_assert_eq!(icmp.to_string().parse(), Ok(icmp));
        let protocol: Protocol = number.to_string().parse().expect("a protocol");
        prop_assert_eq!(protocol.to_string().parse(), Ok(protocol));
    }

    #[test]
    fn any_text_is_read_without_panic(text: String) {
        let _ = (text.parse::<Ports>(), text.parse::<Icmp>(), text.parse::<Protocol>());
    }
}
