//! Rules as nftables has them.

use std::fmt::Write as _;

use crate::{
    PORT_COUNT,
    linux::{ENDED, MARKER_ADDRESS, MARKER_INTERFACE, interface},
    rules::{Action, Cidr, Direction, Family, Protocol, Rule, Rules, address},
};

/// What a chain looks at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum View {
    /// The packet: it would open a connection.
    Packet,
    /// The packet that opened the connection.
    Original,
}

impl View {
    fn prefix(self) -> &'static str {
        match self {
            Self::Packet => "new",
            Self::Original => "known",
        }
    }

    fn address(self, family: Family, end: &str) -> String {
        let family = if family == Family::V4 { "ip" } else { "ip6" };
        match self {
            Self::Packet => format!("{family} {end}"),
            Self::Original => format!("ct original {family} {end}"),
        }
    }

    fn protocol(self, number: u8) -> String {
        match self {
            Self::Packet => format!("meta l4proto {number}"),
            Self::Original => format!("ct original protocol {number}"),
        }
    }

    fn destination_ports(self, (from, to): (u16, u16)) -> String {
        match self {
            Self::Packet => format!("th dport {from}-{to}"),
            Self::Original => format!("ct original proto-dst {from}-{to}"),
        }
    }

    /// In a connection's tuple, type and code stand where others have the destination port.
    fn icmp_type(self, family: Family, kind: u8, code: Option<u8>) -> String {
        let name = if family == Family::V4 { "icmp" } else { "icmpv6" };
        match (self, code) {
            (Self::Packet, None) => format!("{name} type {kind}"),
            (Self::Packet, Some(code)) => format!("{name} type {kind} {name} code {code}"),
            (Self::Original, None) => format!(
                "ct original proto-dst {}-{}",
                u16::from_be_bytes([kind, 0]),
                u16::from_be_bytes([kind, u8::MAX])
            ),
            (Self::Original, Some(code)) => format!("ct original proto-dst {}", u16::from_be_bytes([kind, code])),
        }
    }
}

/// The whole ruleset, to be loaded in one transaction.
pub(super) fn text(rules: &Rules) -> String {
    let mut text = "add table inet outboard\ndelete table inet outboard\ntable inet outboard {\n".to_owned();
    // A chain is there before others jump to it.
    let refuse = "meta l4proto tcp reject with tcp reset\nreject with icmpx type admin-prohibited\n}\n";
    // A connection that is not allowed any more ends; until it is answered it is new. An error about it does not end it.
    let ends = format!("ct state established,new ct mark set {ENDED}\n");
    text += &format!("chain no {{\n{ends}drop\n}}\nchain refuse {{\n{ends}{refuse}");
    for port in 0..PORT_COUNT {
        for view in [View::Packet, View::Original] {
            for direction in [Direction::Egress, Direction::Ingress] {
                chain(&mut text, rules, port, direction, view);
            }
        }
    }
    entry(&mut text, rules);
    text + "}\n"
}

/// Where all packets begin.
fn entry(text: &mut String, rules: &Rules) {
    let unfiltered = |from: usize, to: usize| from != to && !rules.filtered(from) && !rules.filtered(to);
    let pairs = (0..PORT_COUNT).flat_map(|from| (0..PORT_COUNT).map(move |to| (from, to)));
    let pairs: Vec<_> = pairs.filter(|(from, to)| unfiltered(*from, *to)).collect();
    let mut add = |line: String| {
        let _ = writeln!(text, "{line}");
    };
    add("chain before {\ntype filter hook prerouting priority raw; policy accept;".into());
    add(format!("ip daddr {MARKER_ADDRESS} notrack"));
    for (from, to) in &pairs {
        for family in [Family::V4, Family::V6] {
            let to = View::Packet.address(family, "daddr") + " " + &address(*to, family).to_string();
            add(format!("iifname {} {to} notrack", interface(*from)));
        }
    }
    add("}\nchain known {".into());
    for (end, what) in [("saddr", "jump known_out"), ("daddr", "goto known_in")] {
        for port in 0..PORT_COUNT {
            for family in [Family::V4, Family::V6] {
                let who = View::Original.address(family, end);
                add(format!("{who} {} {what}_{port}", address(port, family)));
            }
        }
    }
    add("}\nchain forward {\ntype filter hook forward priority filter; policy drop;".into());
    add(format!("oifname {MARKER_INTERFACE} accept"));
    for (from, to) in &pairs {
        add(format!(
            "iifname {} oifname {} accept",
            interface(*from),
            interface(*to)
        ));
    }
    add("ct state invalid drop\nct state established,related goto known".into());
    for port in 0..PORT_COUNT {
        add(format!("iifname {} jump new_out_{port}", interface(port)));
    }
    for port in 0..PORT_COUNT {
        add(format!("oifname {} goto new_in_{port}", interface(port)));
    }
    add("}".into());
}

/// What a port lets out, after which the next chain is asked, or in.
fn chain(text: &mut String, rules: &Rules, port: usize, direction: Direction, view: View) {
    let (name, yes) = match direction {
        Direction::Egress => ("out", "return"),
        Direction::Ingress => ("in", "accept"),
    };
    let _ = writeln!(text, "chain {}_{name}_{port} {{", view.prefix());
    for rule in rules.of_port(port, direction) {
        let verdict = match rule.action {
            Action::Allow => yes,
            Action::Deny => "goto no",
            Action::Reject => "goto refuse",
        };
        for matches in matches(rules, &rule, view) {
            let _ = writeln!(text, "{matches} {verdict}");
        }
    }
    let open = !rules.filtered(port) || direction == Direction::Egress && rules.lets_out(port);
    let _ = writeln!(text, "{}\n}}", if open { yes } else { "goto no" });
}

/// A rule as matches, one for each family.
fn matches(rules: &Rules, rule: &Rule, view: View) -> Vec<String> {
    let families = [Family::V4, Family::V6].into_iter();
    let families = families.filter(|family| rule.family.is_none_or(|only| only == *family));
    families
        .filter_map(|family| one_match(rules, rule, view, family))
        .collect()
}

/// A rule for one family; `None` where its peer has no address of that family.
fn one_match(rules: &Rules, rule: &Rule, view: View, family: Family) -> Option<String> {
    let v4 = family == Family::V4;
    let mut words = vec![format!("meta nfproto {}", if v4 { "ipv4" } else { "ipv6" })];
    if let Some(addresses) = rules.addresses(rule.peer, family) {
        let end = if rule.direction == Direction::Ingress {
            "saddr"
        } else {
            "daddr"
        };
        words.push(format!("{} {{ {} }}", view.address(family, end), set(&addresses)?));
    }
    let number = match rule.protocol {
        Protocol::Any => None,
        Protocol::Tcp(_) => Some(6),
        Protocol::Udp(_) => Some(17),
        Protocol::Icmp(_) => Some(if v4 { 1 } else { 58 }),
        Protocol::Number(number) => Some(number),
    };
    words.extend(number.map(|number| view.protocol(number)));
    match rule.protocol {
        Protocol::Tcp(Some(ports)) | Protocol::Udp(Some(ports)) => words.push(view.destination_ports(ports)),
        Protocol::Icmp(Some((kind, code))) => words.push(view.icmp_type(family, kind, code)),
        _ => {}
    }
    Some(words.join(" "))
}

/// An anonymous set's elements: those that lie in others left out, since overlapping intervals are refused.
fn set(cidrs: &[Cidr]) -> Option<String> {
    let inside = |inner: &Cidr, outer: &Cidr| outer.1 < inner.1 && prefix(outer.0, outer.1) == prefix(inner.0, outer.1);
    let mut kept: Vec<Cidr> = Vec::new();
    for cidr in cidrs {
        if !cidrs.iter().any(|outer| inside(cidr, outer)) && !kept.contains(cidr) {
            kept.push(*cidr);
        }
    }
    let words: Vec<String> = kept.iter().map(Cidr::to_string).collect();
    (!words.is_empty()).then(|| words.join(", "))
}

/// The first `len` bits of an address.
fn prefix(address: std::net::IpAddr, len: u8) -> u128 {
    let (bits, width) = match address {
        std::net::IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        std::net::IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    bits.checked_shr(width - u32::from(len).min(width)).unwrap_or(0)
}
