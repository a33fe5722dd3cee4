use jiff::Timestamp;
use outboard_api::explain::{Finding, Health};
use outboard_protocol::{
    id::{Generation, Incarnation},
    inquiry::{BindingState, QueueReport, Reason},
    refusal::{Code, Refusal},
};
use serde_json::{Value, json};

use super::*;

fn vm1() -> ObjectRef {
    ObjectRef {
        kind: ObjectKind::Port,
        name: "vm1".parse().unwrap(),
    }
}

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// A port that is in order, as the broker sees it.
fn broker() -> Facts {
    let card = json!({
        "name": "local", "serial": "SN1", "state": "connected", "attestation": "none",
        "revision_wanted": 7, "revision_applied": 7, "last_seen": Timestamp::UNIX_EPOCH,
    });
    let spec = json!({"name": "vm1", "network": "blue", "mac": "52:54:00:00:00:01", "addresses": ["10.0.0.1"]});
    let binding = json!({
        "kind": "port", "name": "vm1", "host": "local", "generation": 3, "state": "active",
        "function": {"card": "local", "controller": 0, "pf": 0, "function": 2, "kind": "vhost-user", "incarnation": 5},
    });
    Facts {
        object: vm1(),
        spec: Spec::Port(of(spec), None),
        rules: vec![],
        card: of(card),
        grant: Some(of(
            json!({"kind": "port", "name": "vm1", "host": "local", "card": "local"}),
        )),
        binding: Some(of(binding)),
        trunk: Trunk::default(),
    }
}

fn queue(index: u16, role: &str) -> QueueReport {
    QueueReport {
        index,
        role: role.into(),
        features: 1 << 32,
        failed: None,
        frames: Some(5),
        bytes: Some(300),
    }
}

/// The same, as its card sees it.
fn card() -> ObjectReport {
    ObjectReport {
        described: true,
        granted: true,
        binding: Some(BindingState {
            generation: Generation(3),
            incarnation: Incarnation(5),
            state: State::Active,
            host: "local".parse().unwrap(),
            error: None,
        }),
        session: true,
        set_up: true,
        open: true,
        queues: vec![queue(0, "receive"), queue(1, "transmit")],
        ..ObjectReport::default()
    }
}

#[test]
fn what_is_in_order_is_said_to_be() {
    let explained = broker().explain(Ok(card()));
    assert!(explained.well, "{explained:?}");
    assert_eq!(explained.conclusion, "vm1 is up, and nothing stands in its way");
    assert_eq!(explained.remedy, None);
    let topics: Vec<_> = explained.findings.iter().map(|f| f.topic.as_str()).collect();
    let order = [
        "record", "groups", "grant", "card", "binding", "session", "device", "queue 0", "queue 1",
    ];
    assert_eq!(topics, order, "from the record to the ring");
}

/// What is spoilt, a part of the conclusion, a part of the remedy.
type Case = (fn(&mut Facts, &mut ObjectReport), &'static str, &'static str);

#[test]
fn the_first_thing_that_is_wrong_is_the_reason() {
    let cases: [Case; 12] = [
        (
            |facts, _| facts.grant = None,
            "not reachable because it is granted to nobody",
            "grant create port vm1",
        ),
        (
            |facts, _| facts.grant.as_mut().unwrap().revocation = Some(Revocation::Done),
            "because its grant was revoked",
            "grant create port vm1",
        ),
        (
            |facts, _| facts.card.state = CardState::Pending,
            "card local has never enrolled",
            "card enrol local",
        ),
        (|facts, _| facts.binding = None, "bound to no function", "broker's log"),
        (
            |facts, _| {
                let refusal = Refusal::new(Code::Unavailable, "volume gone: make it");
                facts.binding.as_mut().unwrap().error = Some((&refusal).into());
            },
            "because volume gone: make it",
            "do as this says",
        ),
        (
            |_, report| report.binding.as_mut().unwrap().state = State::Prepared,
            "host local has not asked for it",
            "start outboard-shim on host local with a device for port vm1",
        ),
        (
            |_, report| report.binding.as_mut().unwrap().state = State::Quarantined,
            "did not end in time",
            "restarting outboard-dpu",
        ),
        (
            |_, report| {
                report.session = false;
                report.queues.clear();
            },
            "because no VMM is connected",
            "start the VM",
        ),
        (
            |_, report| report.open = false,
            "its device is shut",
            "grant and binding",
        ),
        (|_, report| report.set_up = false, "not set up at its card", "history"),
        (|_, report| report.queues.truncate(1), "no transmit queue", "virtio_net"),
        (
            |_, report| report.queues[0].failed = Some("a loop".into()),
            "its receive queue 0 is dead until the guest resets it: a loop",
            "reset the device",
        ),
    ];
    for (spoil, why, remedy) in cases {
        let (mut facts, mut report) = (broker(), card());
        spoil(&mut facts, &mut report);
        let explained = facts.explain(Ok(report));
        assert!(
            !explained.well && explained.conclusion.contains(why),
            "{why}: {explained:?}"
        );
        assert!(
            explained.remedy.as_ref().is_some_and(|r| r.contains(remedy)),
            "{remedy}: {explained:?}"
        );
        let wrong: Vec<_> = explained
            .findings
            .iter()
            .filter(|f| f.health == Health::Wrong)
            .collect();
        assert!(explained.conclusion.ends_with(&wrong[0].text), "{explained:?}");
    }
}

#[test]
fn with_the_card_away_or_older_nobody_claims_to_know() {
    let mut facts = broker();
    facts.card.state = CardState::Disconnected;
    let away = AskError::Away {
        card: facts.card.name.clone(),
    };
    let explained = facts.explain(Err(away));
    assert!(
        !explained.well
            && explained
                .conclusion
                .starts_with("nobody can say whether vm1 is reachable")
    );
    assert!(
        explained.conclusion.contains("since 1970-01-01T00:00:00Z"),
        "{explained:?}"
    );
    let facts = broker();
    let card = facts.card.name.clone();
    let explained = facts.explain(Err(AskError::TooOld { card, version: 1 }));
    assert!(
        explained
            .conclusion
            .contains("that card's version does not support this"),
        "{explained:?}"
    );
    assert_eq!(explained.remedy.as_deref(), Some("upgrade outboard-dpu on that card"));
}

#[test]
fn drops_are_told_where_nothing_else_is_wrong() {
    let drop = |name: &str, frames| Dropped {
        reason: Reason {
            name: name.into(),
            sentence: format!("It was {name}."),
            at_receiver: false,
        },
        frames,
    };
    let report = ObjectReport {
        drops: vec![drop("runt", 1), drop("spoofed_ipv4", 7)],
        ..card()
    };
    let explained = broker().explain(Ok(report));
    assert!(explained.well);
    assert_eq!(
        explained.conclusion,
        "vm1 is up, but 7 frames were dropped: It was spoofed_ipv4."
    );
    assert_eq!(
        explained.drops[0].reason.name, "spoofed_ipv4",
        "the most frequent first"
    );
}

#[test]
fn a_volume_is_usable_or_not() {
    let spec = json!({"name": "disk1", "size": "1MiB", "backend": {"file": "disk1.raw"}});
    let facts = Facts {
        object: ObjectRef {
            kind: ObjectKind::Volume,
            name: "disk1".parse().unwrap(),
        },
        spec: Spec::Volume(of(spec), None),
        ..broker()
    };
    let report = ObjectReport {
        queues: vec![],
        ..card()
    };
    let explained = facts.clone().explain(Ok(report));
    assert!(
        explained
            .conclusion
            .contains("disk1 is not usable because its guest's driver has started no request queue")
    );
    let report = ObjectReport {
        queues: vec![queue(0, "requests")],
        ..card()
    };
    assert!(facts.explain(Ok(report)).well, "control");
}

#[test]
fn a_ports_groups_are_told_with_their_rules() {
    let said = |groups: Value, rules: usize| {
        let mut facts = broker();
        if let Spec::Port(spec, _) = &mut facts.spec {
            spec.groups = of(groups);
        }
        facts.rules = (0..rules)
            .map(|n| (format!("web/ingress/{n}"), "ingress tcp".to_owned()))
            .collect();
        let explained = facts.explain(Ok(card()));
        assert!(explained.well, "{explained:?}");
        explained.findings
    };
    let text = |findings: &[Finding], topic: &str| {
        findings
            .iter()
            .find(|f| f.topic == topic)
            .map(|f| f.text.clone())
            .unwrap_or_default()
    };
    assert!(text(&said(json!(null), 0), "groups").starts_with("unfiltered"));
    assert!(text(&said(json!([]), 0), "groups").contains("nothing may pass"));
    let findings = said(json!(["web"]), RULES_TOLD_MAX + 3);
    assert!(text(&findings, "groups").starts_with("web: what none"));
    assert_eq!(text(&findings, "rule web/ingress/0"), "ingress tcp");
    assert!(text(&findings, "rules").starts_with("3 more"));
}

/// The port as a subport of vm0, whose binding has this state.
fn subport(parent: State) -> Facts {
    Facts {
        trunk: Trunk {
            parent: Some(("vm0".parse().unwrap(), Some(100), Some(parent))),
            subports: vec![],
        },
        ..broker()
    }
}

#[test]
fn a_subport_has_its_parents_session_and_queues() {
    let report = ObjectReport {
        session: false,
        queues: vec![],
        ..card()
    };
    let explained = subport(State::Active).explain(Ok(report.clone()));
    assert!(explained.well, "{explained:?}");
    let trunk = explained.findings.iter().find(|f| f.topic == "trunk").unwrap();
    assert!(
        trunk.text.contains("port vm0") && trunk.text.contains("VLAN id 100"),
        "{trunk:?}"
    );
    assert!(!broker().explain(Ok(report)).well, "control: a port needs its own");
}

#[test]
fn a_subport_that_waits_names_its_parent() {
    for (own, parent, said) in [
        (State::Prepared, State::Prepared, "its parent, port vm0, is prepared"),
        (State::Attached, State::Attached, "its parent, port vm0, is attached"),
        (State::Prepared, State::Active, "follows its parent in a moment"),
    ] {
        let mut facts = subport(parent);
        facts.binding.as_mut().unwrap().state = own;
        let mut report = card();
        report.binding.as_mut().unwrap().state = own;
        let explained = facts.explain(Ok(report));
        assert!(explained.conclusion.contains(said), "{explained:?}");
        assert!(explained.remedy.is_some());
    }
}

#[test]
fn a_parent_names_its_subports() {
    let mut facts = broker();
    facts.trunk.subports = vec!["vm1-red".parse().unwrap()];
    let explained = facts.explain(Ok(card()));
    assert!(
        explained
            .findings
            .iter()
            .any(|f| f.topic == "trunk" && f.text.contains("vm1-red"))
    );
}
