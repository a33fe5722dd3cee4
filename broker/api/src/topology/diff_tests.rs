use proptest::prelude::*;

use super::*;
use crate::topology::parse;

const BASE: &str = r#"
[[network]]
name = "blue"
subnets = ["10.0.0.0/24"]
[[volume]]
name = "disk1"
size = "1GiB"
backend = { memory = true }
card = "local"
[[port]]
name = "vm1"
network = "blue"
mac = "52:54:00:00:00:01"
addresses = ["10.0.0.1"]
card = "local"
"#;

fn topology(text: &str) -> Topology {
    parse(text).expect("good")
}

/// Everything there is came from an earlier apply.
fn applied(text: &str) -> Current {
    Current::default().after(&topology(text))
}

fn lines(changes: &[Change]) -> Vec<String> {
    changes
        .iter()
        .map(|c| format!("{} {}: {}", c.action.name(), c.object, c.detail))
        .collect()
}

#[test]
fn nothing_changes_when_nothing_changed() {
    assert_eq!(diff(&applied(BASE), &topology(BASE)), []);
}

#[test]
fn all_is_created_networks_first() {
    assert_eq!(
        lines(&diff(&Current::default(), &topology(BASE))),
        [
            "create network blue: subnets 10.0.0.0/24",
            "create volume disk1: size 1GiB, backend memory, read_only false, card local",
            "create port vm1: network blue, mac 52:54:00:00:00:01, addresses 10.0.0.1, groups unfiltered, card local",
        ]
    );
}

#[test]
fn an_update_tells_what_changes() {
    let wanted = BASE.replace("00:00:01\"", "00:00:09\"").replace("[\"10.0.0.1\"]", "[]");
    assert_eq!(
        lines(&diff(&applied(BASE), &topology(&wanted))),
        ["update port vm1: mac 52:54:00:00:00:01 -> 52:54:00:00:00:09, addresses 10.0.0.1 -> none"]
    );
}

#[test]
fn a_change_of_a_trunk_or_vlan_id_is_told() {
    let with = |vlan: &str, trunk: &str| {
        let network = BASE.replace("[[volume]]", &format!("{vlan}\n[[volume]]"));
        format!("{network}[[port]]\nname = \"sub\"\nnetwork = \"blue\"\nmac = \"52:54:00:00:00:02\"\n{trunk}\n")
    };
    let subport = |vlan: &str| format!("trunk = {{ parent = \"vm1\"{vlan} }}");
    let plain = with("vlan = 5", "");
    assert_eq!(
        lines(&diff(&applied(BASE), &topology(&with("vlan = 5", &subport(""))))),
        [
            "update network blue: vlan none -> 5",
            "create port sub: network blue, mac 52:54:00:00:00:02, addresses none, groups unfiltered, trunk its network's VLAN, of \
             vm1, card none",
        ]
    );
    assert_eq!(
        lines(&diff(
            &applied(&plain),
            &topology(&with("vlan = 5", &subport(", vlan = 9")))
        )),
        ["update port sub: trunk none -> VLAN 9 of vm1"]
    );
    assert_eq!(
        lines(&diff(
            &applied(&with("vlan = 5", &subport(", vlan = 9"))),
            &topology(&with("", ""))
        )),
        [
            "update network blue: vlan 5 -> none",
            "update port sub: trunk VLAN 9 of vm1 -> none"
        ]
    );
}

#[test]
fn what_an_apply_made_goes_ports_first_and_networks_last() {
    assert_eq!(
        lines(&diff(&applied(BASE), &Topology::default())),
        ["delete port vm1: ", "delete volume disk1: ", "delete network blue: "]
    );
}

#[test]
fn groups_come_before_ports_and_go_after_them_and_a_change_tells_the_rules() {
    let filtered = |rules: &str| {
        let port = BASE.replace("card = \"local\"\n[[port]]", "[[port]]").replace(
            "addresses = [\"10.0.0.1\"]",
            "addresses = [\"10.0.0.1\"]\ngroups = [\"web\"]",
        );
        format!(
            "{port}\n[[address_set]]\nname = \"s\"\naddresses = [\"192.0.2.1\"]\n[[group]]\nname = \"web\"\n{rules}"
        )
    };
    let base = BASE.replace("card = \"local\"\n[[port]]", "[[port]]");
    let ssh = "[[group.rule]]\ndirection = \"ingress\"\nprotocol = \"tcp\"\nports = \"22\"\naddress_set = \"s\"\n";
    let http = "[[group.rule]]\ndirection = \"ingress\"\nprotocol = \"tcp\"\nports = \"80\"\n";
    assert_eq!(
        lines(&diff(&applied(&base), &topology(&filtered(ssh)))),
        [
            "create address_set s: addresses 192.0.2.1",
            "create group web: egress allow, rules ingress tcp 22 from address_set s",
            "update port vm1: groups unfiltered -> web",
        ]
    );
    assert_eq!(
        lines(&diff(&applied(&filtered(ssh)), &topology(&filtered(http)))),
        ["update group web: - ingress tcp 22 from address_set s, + ingress tcp 80 from any"]
    );
    let (one, other) = (format!("{ssh}{http}"), format!("{http}{ssh}"));
    assert_eq!(
        lines(&diff(&applied(&filtered(&one)), &topology(&filtered(&other)))),
        ["update group web: another order of rules"]
    );
    assert_eq!(
        lines(&diff(&applied(&filtered(ssh)), &topology(&base))),
        [
            "update port vm1: groups web -> unfiltered",
            "delete group web: ",
            "delete address_set s: ",
        ]
    );
    let nineteen = ssh.repeat(19);
    assert_eq!(
        lines(&diff(&applied(&filtered("")), &topology(&filtered(&nineteen)))),
        [format!(
            "update group web: {}… and 15 more",
            "+ ingress tcp 22 from address_set s, ".repeat(4)
        )]
    );
    assert_eq!(diff(&applied(&filtered(&one)), &topology(&filtered(&one))), []);
}

#[test]
fn what_was_made_by_hand_stays() {
    let by_hand = Current {
        topology: topology(BASE),
        applied: BTreeSet::new(),
    };
    assert_eq!(diff(&by_hand, &Topology::default()), []);
    assert_eq!(by_hand.after(&Topology::default()).topology, by_hand.topology);
}

#[test]
fn a_replacement_frees_the_mac_before_it_is_taken() {
    let renamed = BASE.replace("\"vm1\"", "\"vm9\"");
    let actions: Vec<_> = diff(&applied(BASE), &topology(&renamed))
        .iter()
        .map(|c| c.action)
        .collect();
    assert_eq!(actions, [Action::Delete, Action::Create]);
}

#[test]
fn a_clash_with_what_was_made_by_hand_shows_in_the_outcome() {
    let by_hand = Current {
        topology: topology(BASE),
        applied: BTreeSet::new(),
    };
    let clash = BASE.replace("\"vm1\"", "\"vm9\"");
    let outcome = by_hand.after(&topology(&clash)).topology;
    assert_eq!(
        outcome.check().expect_err("two ports with one MAC").code(),
        "duplicate_mac"
    );
    assert!(
        applied(BASE).after(&topology(&clash)).topology.check().is_ok(),
        "control: the first was applied, so it goes"
    );
}

/// Networks only: names from a small set, so that two of them meet.
fn networks() -> impl Strategy<Value = Topology> {
    prop::collection::btree_map("[a-f]", 0u8..3, 0..6).prop_map(|networks| {
        let spec = |(name, third): (String, u8)| NetworkSpec {
            name: name.parse().expect("name"),
            subnets: vec![format!("10.0.{third}.0/24").parse().expect("subnet")],
            vlan: (third == 2).then_some(200),
        };
        Topology {
            networks: networks.into_iter().map(spec).collect(),
            ..Topology::default()
        }
    })
}

proptest! {
    #[test]
    fn applying_twice_changes_nothing_more(was in networks(), wanted in networks()) {
        let current = Current::default().after(&was);
        let after = current.after(&wanted);
        prop_assert_eq!(diff(&after, &wanted), []);
        prop_assert_eq!(&after.topology, &wanted);
        prop_assert_eq!(diff(&current, &wanted).is_empty(), was == wanted);
    }
}
