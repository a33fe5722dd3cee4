use outboard_controls::Off;
use outboard_protocol::{card::CARD_VERSIONS, desired::GROUPS_CARD_VERSION, id::Revision};
use tokio::sync::watch;

use super::*;
use crate::core::{
    Command, Core, Hello, desired_state,
    tests::{core, do_it, hello, name, peer, port_spec},
};

/// A card that speaks no later version than `newest` connects.
fn join(core: &mut Core, newest: u16) {
    let hello = Hello {
        versions: (CARD_VERSIONS.0, newest),
        ..hello()
    };
    core.hello(&peer("local"), &hello, watch::Sender::new(None), 1).unwrap();
}

/// A core with one filtered port and one that is not.
fn with_ports() -> Core {
    let mut core = core();
    let filtered = PortSpec {
        groups: Some(vec![]),
        ..port_spec(1)
    };
    do_it(&mut core, Command::PutPort(filtered));
    do_it(&mut core, Command::PutPort(port_spec(2)));
    core
}

fn told(core: &Core) -> (Vec<String>, usize) {
    let state = desired_state(core.inventory(), &name("local"));
    (
        state.ports.iter().map(|p| p.name.to_string()).collect(),
        state.grants.len(),
    )
}

#[test]
fn a_card_that_cannot_filter_is_not_told_of_filtered_ports() {
    let mut core = with_ports();
    join(&mut core, GROUPS_CARD_VERSION - 1);
    assert_eq!(told(&core), (vec!["vm2".to_owned()], 1));
    join(&mut core, GROUPS_CARD_VERSION);
    assert_eq!(
        told(&core),
        (vec!["vm1".to_owned(), "vm2".to_owned()], 2),
        "control: one that can"
    );
}

#[test]
fn control_without_the_check_a_card_that_cannot_filter_gets_a_filtered_port() {
    let _off = Off::here(Check::FilteredPlacement);
    let mut core = with_ports();
    join(&mut core, GROUPS_CARD_VERSION - 1);
    assert_eq!(told(&core), (vec!["vm1".to_owned(), "vm2".to_owned()], 2));
}

#[test]
fn only_cards_whose_ports_a_change_is_about_get_a_new_revision() {
    let mut core = core();
    let group = |text: &str, rules| GroupSpec {
        name: name(text),
        egress: Default::default(),
        rules,
    };
    let from_web: RuleSpec = serde_json::from_str(r#"{"direction":"ingress","group":"web"}"#).unwrap();
    do_it(&mut core, Command::PutGroup(group("web", vec![])));
    do_it(&mut core, Command::PutGroup(group("db", vec![from_web.clone()])));
    let with = |number, groups: &[&str]| PortSpec {
        groups: Some(groups.iter().map(|g| name(g)).collect()),
        ..port_spec(number)
    };
    do_it(&mut core, Command::PutPort(with(1, &["db"])));
    let revision = |core: &Core| core.inventory().cards[&name("local")].revision;
    let mut last = revision(&core);
    let mut raised = |core: &Core| std::mem::replace(&mut last, revision(core)) < revision(core);
    assert_ne!(revision(&core), Revision(0));
    do_it(&mut core, Command::PutGroup(group("web", vec![from_web.clone()])));
    assert!(!raised(&core), "no port here has the group");
    do_it(
        &mut core,
        Command::PutGroup(group("db", vec![from_web.clone(), from_web.clone()])),
    );
    assert!(raised(&core));
    do_it(&mut core, Command::PutPort(with(2, &["web"])));
    assert!(raised(&core), "a member");
    do_it(&mut core, Command::PutPort(with(2, &["web"])));
    assert!(!raised(&core), "nothing changed");
    do_it(&mut core, Command::PutPort(with(2, &[])));
    assert!(raised(&core));
}

#[test]
fn a_change_that_makes_a_policy_too_large_for_a_card_is_refused_whole() {
    let mut core = core();
    let rule: RuleSpec = serde_json::from_str(
        r#"{"direction":"ingress","protocol":"tcp","ports":"1-65535","from":"fd00:1:2:3:4:5:6:7","priority":9999}"#,
    )
    .unwrap();
    let full = |n: usize| GroupSpec {
        name: name(&format!("g{n}")),
        egress: Default::default(),
        rules: vec![rule.clone(); outboard_protocol::desired::RULES_PER_GROUP_MAX],
    };
    let mut fits = 0;
    let refused = (0..16).find_map(|n| {
        do_it(&mut core, Command::PutGroup(full(n)));
        let port = PortSpec {
            groups: Some((0..=n).map(|n| name(&format!("g{n}"))).collect()),
            ..port_spec(1)
        };
        let before = core.inventory().clone();
        let failure = core.mutate(None, Command::PutPort(port), 1).err();
        match &failure {
            Some(_) => assert_eq!(*core.inventory(), before),
            None => fits += 1,
        }
        failure
    });
    let refused = refused.expect("a card takes messages of limited length");
    assert!(fits > 0 && refused.body.error.code == "quota", "{refused:?}");
}
