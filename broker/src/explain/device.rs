//! What the card told of an object's device: its session, its queues.

use outboard_protocol::{
    id::{Name, ObjectKind, ObjectRef},
    inquiry::{ObjectReport, QueueReport},
};

use super::{chain::Chain, features};

/// Looks at what the card told.
pub(super) fn look(object: &ObjectRef, report: &ObjectReport, chain: &mut Chain) {
    session(object, report, chain);
    device(report, chain);
    queues(object, report, chain);
    for note in &report.notes {
        chain.note("card's note", note.clone());
    }
}

/// Looks at what the card told of a subport: its parent has the session and the queues.
pub(super) fn look_at_subport(parent: &Name, report: &ObjectReport, chain: &mut Chain) {
    device(report, chain);
    chain.note(
        "queues",
        format!("those of port {parent}: `outboard explain port {parent}` looks at them"),
    );
    for note in &report.notes {
        chain.note("card's note", note.clone());
    }
}

fn session(object: &ObjectRef, report: &ObjectReport, chain: &mut Chain) {
    if report.session {
        chain.well("session", "a VMM is connected to its device");
        return;
    }
    let text = "no VMM is connected to its device";
    let remedy = format!(
        "start the VM with the socket that the shim shows for {object}; if it runs, look at the logs of VMM and shim"
    );
    chain.wrong("session", text, remedy);
}

fn device(report: &ObjectReport, chain: &mut Chain) {
    match (report.set_up, report.open) {
        (true, true) => chain.well("device", "set up and open"),
        (true, false) => chain.wrong(
            "device",
            "its device is shut: nothing goes in or out",
            "look at grant and binding above, which say why",
        ),
        (false, _) => chain.wrong(
            "device",
            "its device is not set up at its card",
            "look at the binding's history; it is tried again by itself",
        ),
    }
}

fn queues(object: &ObjectRef, report: &ObjectReport, chain: &mut Chain) {
    for queue in &report.queues {
        let topic = format!("queue {}", queue.index);
        let role = &queue.role;
        match &queue.failed {
            Some(why) => {
                let text = format!(
                    "its {role} queue {} is dead until the guest resets it: {why}",
                    queue.index
                );
                chain.wrong(
                    topic,
                    text,
                    "reset the device in the guest (reload its driver, or reboot), and report this",
                );
            }
            None => chain.well(
                topic,
                format!(
                    "{role}{}; {}",
                    carried(queue),
                    features::names(object.kind, queue.features)
                ),
            ),
        }
    }
    let runs = |role: &str| report.queues.iter().any(|queue| queue.role == role);
    let missing = match object.kind {
        ObjectKind::Port => ["receive", "transmit"].into_iter().find(|role| !runs(role)),
        ObjectKind::Volume if report.queues.is_empty() => Some("request"),
        ObjectKind::Volume => None,
    };
    if let Some(role) = missing {
        let text = format!("its guest's driver has started no {role} queue");
        let remedy = match object.kind {
            ObjectKind::Port => "boot the guest, load virtio_net in it and bring the interface up",
            ObjectKind::Volume => "boot the guest and load virtio_blk in it",
        };
        chain.wrong("queues", text, remedy);
    }
}

fn carried(queue: &QueueReport) -> String {
    match (queue.frames, queue.bytes) {
        (Some(frames), Some(bytes)) => format!(", {frames} frames, {bytes} bytes"),
        _ => String::new(),
    }
}
