//! What operators see: traces through the firewall, connections.

use outboard_firewall::{Direction, EgressDefault, PortSpec, Protocol};
use outboard_vswitch::{ConnectionFilter, DropReason, Trace};

use crate::{
    firewall::{Filtered, datagram, group, rule},
    frames::{BROADCAST, udp},
    rig::{got, mac, sent},
};

fn guests() -> Filtered {
    let dns = rule(Direction::Ingress, Protocol::UDP, PortSpec::Range(53, 53));
    let groups = vec![
        group("dns", EgressDefault::Deny, vec![dns]),
        group("out", EgressDefault::Allow, vec![]),
    ];
    Filtered::new(groups, &[Some(&["out"]), Some(&["dns"])])
}

/// Layers asked after L2, each with its rule.
fn firewall(trace: &Trace) -> Vec<(&str, Option<&str>)> {
    let steps = trace.steps.iter().skip_while(|step| step.layer != "L2").skip(1);
    steps.map(|step| (step.layer, step.rule.as_deref())).collect()
}

fn end(trace: &Trace) -> (&str, Option<DropReason>) {
    let [end] = trace.ends.as_slice() else {
        panic!("one end: {trace:?}");
    };
    (&end.port, end.dropped)
}

#[test]
fn a_trace_names_the_rules_and_opens_nothing() {
    let mut guests = guests();
    let (good, bad) = (datagram(1, 2, (5, 53)), datagram(1, 2, (5, 54)));
    let trace = guests.rig.switch.trace("a", &good).expect("declared");
    assert_eq!(end(&trace), ("b", None));
    let rules = firewall(&trace);
    assert_eq!(rules[0], ("connections", None));
    assert!(rules[1].0 == "egress rules" && rules[1].1.is_some(), "{rules:?}");
    assert_eq!(rules[2], ("ingress rules", Some("dns/ingress/1")));
    let trace = guests.rig.switch.trace("a", &bad).expect("declared");
    assert_eq!(end(&trace), ("b", Some(DropReason::IngressNoRule)));
    // Nothing was opened: no reply passes, and none is listed.
    let reply = datagram(2, 1, (53, 5));
    let of_reply = |guests: &Filtered| end(&guests.rig.switch.trace("b", &reply).expect("declared")).1;
    assert_eq!(of_reply(&guests), Some(DropReason::EgressNoRule));
    assert_eq!(
        guests.rig.switch.connections().list(&ConnectionFilter::default(), 9),
        []
    );
    guests.rig.expect(&[sent(0, 0), got(0, 0)]);
    // Control: what a trace says is what traffic gets.
    assert_eq!(guests.send(0, &bad), Err(DropReason::IngressNoRule));
    assert_eq!(guests.send(0, &good), Ok(vec![1]));
    assert_eq!(of_reply(&guests), None);
    let trace = guests.rig.switch.trace("b", &reply).expect("declared");
    assert!(
        trace.steps.iter().any(|step| step.detail.contains("unreplied")),
        "{trace:?}"
    );
}

#[test]
fn a_trace_of_a_groups_frame_asks_each_member() {
    let mut guests = guests();
    let call = |port| udp((mac(1), BROADCAST), ([10, 0, 0, 1], [255; 4]), (5, port), b"x");
    for (port, outcome) in [(53, None), (54, Some(DropReason::IngressNoRule))] {
        let trace = guests.rig.switch.trace("a", &call(port)).expect("declared");
        assert_eq!(end(&trace), ("b", outcome));
        assert_eq!(guests.send(0, &call(port)).err(), outcome);
    }
    let back = udp((mac(2), BROADCAST), ([10, 0, 0, 2], [255; 4]), (5, 5), b"x");
    let trace = guests.rig.switch.trace("b", &back).expect("declared");
    assert_eq!(end(&trace), ("b", Some(DropReason::EgressNoRule)));
}

#[test]
fn connections_are_listed_with_their_ports_and_end_when_flushed() {
    let mut guests = guests();
    assert_eq!(guests.send(0, &datagram(1, 2, (5, 53))), Ok(vec![1]));
    assert_eq!(guests.send(0, &datagram(1, 2, (6, 53))), Ok(vec![1]));
    let connections = guests.rig.switch.connections();
    let all = connections.list(&ConnectionFilter::default(), 9);
    assert_eq!(all.len(), 2);
    for listed in &all {
        let names = (listed.network.as_deref(), listed.from.as_deref(), listed.to.as_deref());
        assert_eq!(names, (Some("blue"), Some("a"), Some("b")));
    }
    assert_eq!(connections.list(&ConnectionFilter::default(), 1).len(), 1);
    let of = |port: Option<&str>, transport_port| ConnectionFilter {
        port: port.map(Into::into),
        transport_port,
        ..ConnectionFilter::default()
    };
    assert_eq!(connections.list(&of(Some("b"), Some(6)), 9).len(), 1);
    assert_eq!(connections.list(&of(Some("nobody"), None), 9), []);
    assert_eq!(guests.send(1, &datagram(2, 1, (53, 5))), Ok(vec![0]), "control");
    assert_eq!(connections.flush(&of(None, Some(5))), 1);
    assert_eq!(guests.send(1, &datagram(2, 1, (53, 5))), Err(DropReason::EgressNoRule));
    assert_eq!(
        guests.send(1, &datagram(2, 1, (53, 6))),
        Ok(vec![0]),
        "the other one lives"
    );
}
