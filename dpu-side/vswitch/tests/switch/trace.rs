//! A trace says what traffic gets, and changes nothing.

use crate::FEATURES;
use outboard_vswitch::{Trace, TraceEnd, TraceVerdict};

use crate::{
    frames::{BROADCAST, ping, udp},
    rig::{Rig, TX_QUEUE, got, mac, sent},
};

fn ends(trace: &Trace) -> Vec<(&str, Option<&str>)> {
    let end = |end: &TraceEnd| end.dropped.map(|reason| reason.name());
    trace.ends.iter().map(|e| (e.port.as_str(), end(e))).collect()
}

fn verdicts(trace: &Trace) -> Vec<(&str, TraceVerdict)> {
    trace.steps.iter().map(|step| (step.layer, step.verdict)).collect()
}

#[test]
fn a_frame_that_passes_is_traced_to_its_receiver_and_not_sent() {
    let mut rig = Rig::new(&[FEATURES; 2]);
    let frame = ping(mac(1), mac(2));
    let trace = rig.switch.trace("a", &frame).expect("a is declared");
    assert_eq!(ends(&trace), [("b", None)]);
    use TraceVerdict::{Output, Pass};
    let said = [("port", Pass), ("parser", Pass), ("source guard", Pass), ("L2", Output)];
    assert_eq!(verdicts(&trace), said);
    assert!(trace.steps[1].detail.contains("10.0.0.1 > 10.0.0.2"), "{trace:?}");
    rig.breathe();
    rig.expect(&[sent(0, 0), got(0, 0)]);
    assert!(rig.guests[1].received().is_empty());
    // Control: the same frame, sent.
    rig.send_plain(0, &frame);
    rig.expect(&[sent(1, frame.len()), got(1, frame.len())]);
}

#[test]
fn a_spoofed_frame_is_traced_to_the_layer_that_drops_it() {
    let rig = Rig::pair();
    let frame = udp((mac(1), mac(2)), ([10, 0, 0, 9], [10, 0, 0, 2]), (1, 2), b"x");
    let trace = rig.switch.trace("a", &frame).expect("a is declared");
    assert_eq!(ends(&trace), [("a", Some("spoofed_ipv4"))]);
    assert_eq!(
        verdicts(&trace).last(),
        Some(&("source guard", TraceVerdict::Drop)),
        "and nobody is asked after it"
    );
}

#[test]
fn a_broadcast_ends_at_each_receiver_whatever_becomes_of_it_there() {
    let mut rig = Rig::new(&[FEATURES; 3]);
    rig.switch.shut("c");
    let trace = rig.switch.trace("a", &ping(mac(1), BROADCAST)).expect("a is declared");
    assert_eq!(ends(&trace), [("b", None), ("c", Some("port_shut"))]);
}

#[test]
fn a_port_that_cannot_send_now_is_traced_all_the_same() {
    let mut rig = Rig::pair();
    let frame = ping(mac(1), mac(2));
    let first = |rig: &Rig| rig.switch.trace("a", &frame).expect("declared").steps[0].verdict;
    assert_eq!(first(&rig), TraceVerdict::Pass, "control");
    rig.switch.stop_queue("a", TX_QUEUE);
    assert_eq!(first(&rig), TraceVerdict::Hold);
    rig.switch.shut("a");
    assert_eq!(first(&rig), TraceVerdict::Hold);
    assert_eq!(ends(&rig.switch.trace("a", &frame).expect("declared")), [("b", None)]);
    assert_eq!(rig.switch.trace("x", &frame), None, "no such port");
}
