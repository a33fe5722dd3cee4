use std::net::{Ipv4Addr, Ipv6Addr};

use outboard_protocol::id::{MacAddr, Name};
use proptest::prelude::*;

use super::*;
use crate::{
    network::NetworkSpec,
    port::{PortSpec, TrunkSpec},
    size::Size,
    subnet::Subnet,
    volume::{Backend, VolumeSpec},
};

/// The example of the documentation, with lines that tests replace.
const GOOD: &str = r#"[[network]]
name = "blue"
subnets = ["10.0.0.0/24", "fd00:1::/64"]

[[volume]]
name = "disk1"
size = "4GiB"
backend = { file = "disk1.raw" }

[[port]]
name = "vm1"
network = "blue"
mac = "52:54:00:00:00:01"
addresses = ["10.0.0.1"]
card = "local"

[[port]]
name = "vm2"
network = "blue"
mac = "52:54:00:00:00:02"
addresses = ["10.0.0.2", "fd00:1::2"]
card = "local"
"#;

/// The error of [`GOOD`] with one text replaced; the text must be there, and `GOOD` itself must be good.
fn broken(from: &str, to: &str) -> TopologyError {
    assert!(parse(GOOD).is_ok(), "the control is good");
    assert!(GOOD.contains(from), "{from}");
    parse(&GOOD.replacen(from, to, 1)).expect_err("refused")
}

#[test]
fn the_documented_example_is_read() {
    let topology = parse(GOOD).expect("good");
    assert_eq!(
        (topology.networks.len(), topology.volumes.len(), topology.ports.len()),
        (1, 1, 2)
    );
    assert_eq!(topology.volumes[0].size.bytes(), 4 << 30);
    assert_eq!(topology.volumes[0].backend, Backend::File("disk1.raw".to_owned()));
    assert!(!topology.volumes[0].read_only && topology.volumes[0].card.is_none());
}

#[test]
fn an_empty_file_declares_nothing() {
    assert_eq!(parse(""), Ok(Topology::default()));
}

/// Each case: what is replaced by what, then code, object and line of the error.
type Case = (
    &'static str,
    &'static str,
    &'static str,
    Option<&'static str>,
    Option<usize>,
);

#[test]
fn every_problem_names_object_line_and_remedy() {
    let cases: &[Case] = &[
        ("[[network]]", "[[network]", "topology_syntax", None, Some(1)),
        ("[[network]]", "nets = 1\n[[network]]", "unknown_key", None, Some(1)),
        (
            "size = \"4GiB\"",
            "size = \"4GiB\"\nsise = 1",
            "unknown_key",
            Some("volume disk1"),
            Some(8),
        ),
        (
            "size = \"4GiB\"",
            "size = \"4GB\"",
            "bad_value",
            Some("volume disk1"),
            Some(7),
        ),
        (
            "size = \"4GiB\"",
            "size = 0",
            "unusable_size",
            Some("volume disk1"),
            Some(5),
        ),
        (
            "size = \"4GiB\"",
            "size = -512",
            "bad_value",
            Some("volume disk1"),
            Some(7),
        ),
        (
            "size = \"4GiB\"",
            "size = 1000",
            "unusable_size",
            Some("volume disk1"),
            Some(5),
        ),
        (
            "{ file = \"disk1.raw\" }",
            "{ }",
            "bad_value",
            Some("volume disk1"),
            Some(8),
        ),
        (
            "{ file = \"disk1.raw\" }",
            "{ memory = true, null = true }",
            "bad_value",
            Some("volume disk1"),
            Some(8),
        ),
        (
            "{ file = \"disk1.raw\" }",
            "{ memory = false }",
            "bad_value",
            Some("volume disk1"),
            Some(8),
        ),
        (
            "{ file = \"disk1.raw\" }",
            "{ fyle = \"x\" }",
            "bad_value",
            Some("volume disk1"),
            Some(8),
        ),
        (
            "name = \"vm2\"",
            "name = \"vm1\"",
            "duplicate_name",
            Some("port vm1"),
            Some(17),
        ),
        (
            "name = \"vm2\"",
            "name = \"vm 2\"",
            "bad_value",
            Some("port vm 2"),
            Some(18),
        ),
        (
            "name = \"vm2\"",
            "name = \"../x\"",
            "bad_value",
            Some("port ../x"),
            Some(18),
        ),
        ("name = \"vm2\"\n", "", "bad_value", Some("port number 2"), Some(17)),
        (
            "52:54:00:00:00:02",
            "52:54:00:00:00:01",
            "duplicate_mac",
            Some("port vm2"),
            Some(17),
        ),
        (
            "52:54:00:00:00:02",
            "53:54:00:00:00:02",
            "unusable_mac",
            Some("port vm2"),
            Some(17),
        ),
        (
            "52:54:00:00:00:02",
            "00:00:00:00:00:00",
            "unusable_mac",
            Some("port vm2"),
            Some(17),
        ),
        (
            "52:54:00:00:00:02",
            "52:54:00:00:02",
            "bad_value",
            Some("port vm2"),
            Some(20),
        ),
        (
            "\"10.0.0.2\"",
            "\"10.0.0.1\"",
            "duplicate_address",
            Some("port vm2"),
            Some(17),
        ),
        (
            "\"10.0.0.2\"",
            "\"10.0.1.2\"",
            "address_outside_network",
            Some("port vm2"),
            Some(17),
        ),
        (
            "\"10.0.0.2\"",
            "\"10.0.0.255\"",
            "address_outside_network",
            Some("port vm2"),
            Some(17),
        ),
        ("\"10.0.0.2\"", "\"10.0.0\"", "bad_value", Some("port vm2"), Some(21)),
        (
            "network = \"blue\"",
            "network = \"red\"",
            "unknown_network",
            Some("port vm1"),
            Some(10),
        ),
        ("10.0.0.0/24", "10.0.0.1/24", "bad_value", Some("network blue"), Some(3)),
        (
            "\"10.0.0.0/24\"",
            "\"10.0.0.0/24\", \"10.0.0.0/28\"",
            "overlapping_subnets",
            Some("network blue"),
            Some(1),
        ),
    ];
    for (from, to, code, object, line) in cases {
        let error = broken(from, to);
        assert_eq!(
            (error.code(), error.object.as_deref(), error.line),
            (*code, *object, *line),
            "{to}: {error}"
        );
        assert!(
            !error.remedy().is_empty() && !error.to_string().contains('\n'),
            "{error}"
        );
    }
}

#[test]
fn keys_of_later_versions_are_refused_by_name() {
    for (from, to, object, line) in [
        (
            "subnets = [",
            "encryption = \"aes-256-gcm\"\nsubnets = [",
            Some("network blue"),
            3,
        ),
        (
            "size = \"4GiB\"",
            "size = \"4GiB\"\nencryption = \"aes-256-xts\"",
            Some("volume disk1"),
            8,
        ),
        (
            "{ file = \"disk1.raw\" }",
            "{ nvme_tcp = \"x\" }",
            Some("volume disk1"),
            8,
        ),
    ] {
        let error = broken(from, to);
        assert_eq!(
            (error.code(), error.line),
            ("not_in_this_version", Some(line)),
            "{error}"
        );
        assert_eq!(error.object.as_deref(), object);
        let refusal = concat!("not in this version (", env!("CARGO_PKG_VERSION"));
        assert!(error.to_string().contains(refusal), "{error}");
    }
}

/// A file with groups, with lines that tests replace.
const FILTERED: &str = r#"[[network]]
name = "blue"
subnets = ["10.0.0.0/24"]

[[address_set]]
name = "partners"
addresses = ["192.0.2.0/24", "2001:db8::7"]

[[group]]
name = "web"
egress = "deny"
[[group.rule]]
direction = "ingress"
protocol = "tcp"
ports = "80-81"
from = "0.0.0.0/0"
name = "http"
[[group.rule]]
direction = "ingress"
protocol = "icmp"
icmp = "8/0"
address_set = "partners"
action = "reject"
priority = 10
log = true

[[group]]
name = "db"
[[group.rule]]
direction = "ingress"
group = "web"

[[port]]
name = "vm1"
network = "blue"
mac = "52:54:00:00:00:01"
groups = ["web", "db"]
"#;

#[test]
fn groups_and_address_sets_are_read() {
    let topology = parse(FILTERED).expect("good");
    let rules: Vec<String> = topology.groups[0].rules.iter().map(ToString::to_string).collect();
    assert_eq!(
        rules,
        [
            "ingress tcp 80-81 from 0.0.0.0/0 name http",
            "ingress icmp 8/0 from address_set partners reject priority 10 log",
        ]
    );
    let names = |groups: &Option<Vec<Name>>| {
        groups
            .clone()
            .map(|g| g.iter().map(Name::to_string).collect::<Vec<_>>())
    };
    assert_eq!(
        names(&topology.ports[0].groups),
        Some(vec!["web".to_owned(), "db".to_owned()])
    );
    let none = parse(&FILTERED.replace("[\"web\", \"db\"]", "[]")).expect("good");
    assert_eq!(
        names(&none.ports[0].groups),
        Some(vec![]),
        "filtered, and nothing allowed"
    );
    let unfiltered = parse(&FILTERED.replace("groups = [\"web\", \"db\"]\n", "")).expect("good");
    assert_eq!(names(&unfiltered.ports[0].groups), None);
    let again = parse(&topology.to_toml().expect("printable"));
    assert_eq!(again, Ok(topology));
}

#[test]
fn every_problem_of_groups_names_object_line_and_remedy() {
    let many: String = (0..17).map(|n| format!("[[group]]\nname = \"g{n}\"\n")).collect();
    let all = (0..17).map(|n| format!("\"g{n}\"")).collect::<Vec<_>>().join(", ");
    let cases = [
        ("egress = \"deny\"", "egres = \"deny\"", "unknown_key", "group web", 11),
        ("egress = \"deny\"", "egress = \"some\"", "bad_value", "group web", 11),
        ("icmp = \"8/0\"", "icmp_type = \"8/0\"", "unknown_key", "group web", 21),
        ("ports = \"80-81\"", "ports = \"81-80\"", "bad_value", "group web", 15),
        ("\"0.0.0.0/0\"", "\"10.0.0.1/8\"", "bad_value", "group web", 16),
        (
            "\"192.0.2.0/24\"",
            "\"192.0.2.1/24\"",
            "bad_value",
            "address_set partners",
            7,
        ),
        (
            "protocol = \"tcp\"",
            "protocol = \"any\"",
            "contradictory_rule",
            "group web",
            12,
        ),
        ("log = true", "name = \"http\"", "duplicate_rule_name", "group web", 18),
        (
            "\"partners\"\naction",
            "\"other\"\naction",
            "unknown_address_set",
            "group web",
            18,
        ),
        ("group = \"web\"", "group = \"other\"", "unknown_group", "group db", 29),
        ("[\"web\", \"db\"]", "[\"other\"]", "unknown_group", "port vm1", 33),
        (
            "[\"web\", \"db\"]",
            "[\"web\", \"web\"]",
            "repeated_group",
            "port vm1",
            33,
        ),
        ("name = \"db\"", "name = \"web\"", "duplicate_name", "group web", 27),
        (
            "groups = [\"web\", \"db\"]\n",
            &format!("groups = [{all}]\n{many}"),
            "quota",
            "port vm1",
            33,
        ),
        (
            "[[group.rule]]\ndirection = \"ingress\"\ngroup = \"web\"",
            "rule = 1",
            "bad_value",
            "group db",
            29,
        ),
    ];
    assert!(parse(FILTERED).is_ok(), "the control is good");
    for (from, to, code, object, line) in cases {
        assert!(FILTERED.contains(from), "{from}");
        let error = parse(&FILTERED.replacen(from, to, 1)).expect_err(to);
        assert_eq!(
            (error.code(), error.object.as_deref(), error.line),
            (code, Some(object), Some(line)),
            "{to}: {error}"
        );
        assert!(
            !error.remedy().is_empty() && !error.to_string().contains('\n'),
            "{error}"
        );
    }
}

#[test]
fn a_file_is_shared_only_by_readers() {
    let second = "[[volume]]\nname = \"disk2\"\nsize = \"1GiB\"\nbackend = { file = \"disk1.raw\" }\n";
    let error = parse(&format!("{GOOD}{second}")).expect_err("shared");
    assert_eq!((error.code(), error.line), ("shared_file", Some(23)), "{error}");
    let all_read = format!("{GOOD}{second}read_only = true\n").replace("4GiB\"", "4GiB\"\nread_only = true");
    assert!(parse(&all_read).is_ok());
}

#[test]
fn a_file_too_long_is_not_looked_at() {
    let text = format!("{GOOD}{}", "#".repeat(TOPOLOGY_LEN_MAX));
    assert_eq!(parse(&text).expect_err("too long").code(), "topology_too_long");
}

#[test]
fn cards_are_filled_in_where_only_one_is_possible() {
    let card = |name: &str| name.parse::<Name>().expect("name");
    let mut topology = parse(GOOD).expect("good");
    topology
        .place(&[card("local"), card("other")], &[])
        .expect("the ports name one card");
    assert_eq!(topology.volumes[0].card, Some(card("local")));

    let unnamed = parse(&GOOD.replace("card = \"local\"\n", "")).expect("good");
    let mut topology = unnamed.clone();
    topology.place(&[card("only")], &[]).expect("there is one card");
    assert!(topology.ports.iter().all(|p| p.card == Some(card("only"))));

    for (cards, code) in [(vec![], "no_card"), (vec![card("a"), card("b")], "no_card")] {
        let error = unnamed.clone().place(&cards, &[]).expect_err("ambiguous");
        assert_eq!((error.code(), error.object.as_deref()), (code, Some("volume disk1")));
    }
    let error = parse(GOOD)
        .expect("good")
        .place(&[card("other")], &[])
        .expect_err("unknown card");
    assert_eq!(error.code(), "unknown_card");
}

/// [`GOOD`] with a second network and a subport of vm1 on it.
fn with_subport(trunk: &str) -> String {
    let trunk = format!("trunk = {trunk}");
    format!(
        "{GOOD}\n[[network]]\nname = \"green\"\nsubnets = [\"10.0.0.0/24\"]\nvlan = 100\n\n\
         [[port]]\nname = \"sub\"\nnetwork = \"green\"\nmac = \"52:54:00:00:00:01\"\naddresses = [\"10.0.0.1\"]\n{trunk}\n"
    )
}

#[test]
fn a_subport_has_its_own_vlan_id_or_its_networks() {
    // Its MAC and address are those of its parent: they are unique within a network.
    for (trunk, vlan) in [
        ("{ parent = \"vm1\", vlan = 7 }", Some(7)),
        ("{ parent = \"vm1\" }", Some(100)),
    ] {
        let mut topology = parse(&with_subport(trunk)).expect("good");
        let sub = topology.ports.last().expect("three ports");
        assert_eq!(sub.vlan(Some(&topology.networks[1])), vlan);
        assert_eq!(topology.ports[0].vlan(Some(&topology.networks[1])), None, "no subport");
        // Its card follows from its parent, whatever else is there.
        topology.volumes.clear();
        topology.ports[1].card = Some(card("other"));
        topology.place(&[card("local"), card("other")], &[]).expect("placed");
        assert_eq!(topology.ports.last().expect("three ports").card, Some(card("local")));
    }
}

#[test]
fn a_subport_of_a_placed_port_is_placed_with_it() {
    let whole = parse(&with_subport("{ parent = \"vm1\" }")).expect("good");
    let mut alone = Topology {
        ports: vec![whole.ports[2].clone()],
        ..Topology::default()
    };
    let cards = [card("local"), card("other")];
    let mut unknown = alone.clone();
    assert_eq!(unknown.place(&cards, &[]).expect_err("nobody knows").code(), "no_card");
    alone.place(&cards, &whole.ports).expect("vm1 is known");
    assert_eq!(alone.ports[0].card, Some(card("local")));
}

#[test]
fn wrong_trunks_are_refused_with_object_line_and_remedy() {
    let good = "{ parent = \"vm1\" }";
    assert!(parse(&with_subport(good)).is_ok(), "the control is good");
    let second = "[[port]]\nname = \"two\"\nnetwork = \"blue\"\nmac = \"52:54:00:00:00:09\"\n";
    let cases = [
        (
            with_subport("{ parent = \"vm1\", vlan = 0 }"),
            "port sub",
            "unusable_vlan",
        ),
        (
            with_subport("{ parent = \"vm1\", vlan = 4095 }"),
            "port sub",
            "unusable_vlan",
        ),
        (
            with_subport("{ parent = \"vm1\", vlan = 70000 }"),
            "port sub",
            "bad_value",
        ),
        (with_subport("{ parent = \"vm1\", vlan = -1 }"), "port sub", "bad_value"),
        (with_subport("{ parent = \"vm1\", vid = 3 }"), "port sub", "unknown_key"),
        (with_subport("{ vlan = 3 }"), "port sub", "bad_value"),
        (with_subport("3"), "port sub", "bad_value"),
        (with_subport("{ parent = \"vm9\" }"), "port sub", "unknown_parent"),
        (with_subport("{ parent = \"sub\" }"), "port sub", "parent_is_subport"),
        (
            with_subport(&format!("{good}\ncard = \"other\"")),
            "port sub",
            "parent_elsewhere",
        ),
        (
            format!(
                "{}\n{second}trunk = {{ parent = \"vm1\", vlan = 100 }}\n",
                with_subport(good)
            ),
            "port two",
            "duplicate_vlan",
        ),
        (
            format!(
                "{}\n{second}trunk = {{ parent = \"sub\", vlan = 3 }}\n",
                with_subport(good)
            ),
            "port two",
            "parent_is_subport",
        ),
        (
            format!("{}\n{second}trunk = {{ parent = \"vm1\" }}\n", with_subport(good)),
            "port two",
            "no_vlan",
        ),
        (
            with_subport(good).replace("vlan = 100", "vlan = 4095"),
            "network green",
            "unusable_vlan",
        ),
    ];
    for (text, object, code) in cases {
        let error = parse(&text).expect_err("refused");
        assert_eq!((error.code(), error.object.as_deref()), (code, Some(object)), "{error}");
        assert!(error.line.is_some() && !error.remedy().is_empty(), "{error}");
    }
}

fn card(text: &str) -> Name {
    text.parse().expect("a name")
}

fn name() -> impl Strategy<Value = Name> {
    "[a-zA-Z0-9][a-zA-Z0-9._-]{0,20}".prop_map(|text| text.parse().expect("a name"))
}

/// Topologies that pass [`Topology::check`]: unique names, one address per port in either family.
fn topology() -> impl Strategy<Value = Topology> {
    let names = prop::collection::btree_set(name(), 0..12);
    let volume = (1..1u64 << 30, any::<bool>(), 0..3u8, prop::option::of(name()));
    let details = prop::collection::vec((volume, any::<bool>()), 12);
    let vlan = prop::option::of(1..=4094u16);
    (name(), names, details, vlan).prop_map(|(network, names, details, vlan)| {
        let mut parent: Option<(Name, Option<Name>)> = None;
        let subnets: Vec<Subnet> = vec!["10.0.0.0/16".parse().expect("v4"), "fd00::/64".parse().expect("v6")];
        let mut topology = Topology {
            networks: vec![NetworkSpec {
                name: network.clone(),
                subnets,
                vlan,
            }],
            ..Topology::default()
        };
        for (i, (name, ((sectors, read_only, backend, card), v6))) in (1u8..).zip(names.into_iter().zip(details)) {
            let backend = match backend {
                0 => Backend::File(format!("/var/lib/{name} \"quoted\" ü.raw")),
                1 => Backend::Memory,
                _ => Backend::Null,
            };
            let size = Size(sectors * 512);
            topology.volumes.push(VolumeSpec {
                name: name.clone(),
                size,
                backend,
                read_only,
                card: card.clone(),
            });
            let address = match v6 {
                true => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(i)).into(),
                false => Ipv4Addr::new(10, 0, 0, i).into(),
            };
            let mac = MacAddr([0x52, 0x54, 0, 0, 0, i]);
            // The first port is the parent of those that come with IPv6, on its card.
            let trunk = parent.as_ref().filter(|_| v6).map(|(parent, _)| TrunkSpec {
                parent: parent.clone(),
                vlan: Some(u16::from(i)),
            });
            let card = match (&trunk, &parent) {
                (Some(_), Some((_, card))) => card.clone(),
                _ => card,
            };
            parent.get_or_insert_with(|| (name.clone(), card.clone()));
            topology.ports.push(PortSpec {
                name,
                network: network.clone(),
                mac,
                addresses: vec![address],
                groups: None,
                trunk,
                card,
            });
        }
        topology
    })
}

proptest! {
    #[test]
    fn printing_and_parsing_agree(topology in topology()) {
        let text = topology.to_toml().expect("printable");
        prop_assert_eq!(parse(&text), Ok(topology), "{}", text);
    }

    #[test]
    fn json_round_trip(topology in topology()) {
        let text = serde_json::to_string(&topology).expect("printable");
        prop_assert_eq!(serde_json::from_str::<Topology>(&text).expect("readable"), topology);
    }

    #[test]
    fn any_text_is_read_without_panic(text: String) {
        let _ = parse(&text);
    }

    #[test]
    fn any_change_of_a_good_file_is_read_without_panic(at in 0..GOOD.len(), cut in 0..40usize, put in "[\\[\\]{}=\"a-z0-9\\n. ]{0,12}") {
        let end = (at + cut).min(GOOD.len());
        let text = format!("{}{put}{}", &GOOD[..at], &GOOD[end..]);
        if let Err(error) = parse(&text) {
            prop_assert!(error.line.is_none_or(|line| line <= text.lines().count() + 1));
            prop_assert!(!error.remedy().is_empty());
        }
    }
}
