//! What the agent tells people.

use std::time::Duration;

use outboard_protocol::{
    id::ObjectRef,
    refusal::{Code, Refusal},
};
use outboard_shim_api::Problem;

/// The DPU said that the grant was taken back.
pub(super) fn revoked(object: &ObjectRef) -> Problem {
    Problem {
        error: format!("the grant of {object} was revoked"),
        remedy: format!("grant it again (`outboard grant create {object}`) or detach it here"),
    }
}

/// The DPU says that what this host held is not granted, and not why.
pub(super) fn not_granted_any_more(object: &ObjectRef) -> Problem {
    Problem {
        error: format!(
            "the DPU has no grant of {object} for this host any more: it was revoked while the link was down, or the DPU \
             has lost its state and not yet heard from the broker"
        ),
        remedy: format!(
            "see `outboard grant list`: if the grant is there, wait for the broker to tell the DPU; else create it \
             (`outboard grant create {object}`) or detach it here; the shim keeps asking"
        ),
    }
}

/// A session without a DPU.
pub(super) fn away(object: &ObjectRef, since: Duration, in_flight: Option<u32>) -> Problem {
    let requests = match in_flight {
        None => String::new(),
        Some(1) => "1 request is in flight; ".to_owned(),
        Some(count) => format!("{count} requests are in flight; "),
    };
    Problem {
        error: format!(
            "{object}: the DPU has been away for {} s; {requests}the VM waits",
            since.as_secs()
        ),
        remedy: "start outboard-dpu; what the guest has asked for is done then".to_owned(),
    }
}

/// A VMM that waits for requests in flight.
pub(super) fn held(object: &ObjectRef, since: Duration, in_flight: Option<u32>) -> Problem {
    let count = in_flight.map_or("requests".to_owned(), |count| format!("{count} requests"));
    Problem {
        error: format!(
            "{object}: the VMM wants to stop the device (GET_VRING_BASE) while {count} may be in flight; the DPU has been \
             away for {} s, and the VMM waits",
            since.as_secs()
        ),
        remedy: "start outboard-dpu, which ends them; or kill the VMM, if what it wrote last may be lost".to_owned(),
    }
}

/// A refusal of the DPU's, for people.
pub(super) fn refused(object: &ObjectRef, refusal: &Refusal) -> Problem {
    let remedy = match refusal.code {
        Code::NotGranted => format!("grant it to this host: `outboard grant create {object}`; the shim keeps asking"),
        Code::WrongState => {
            format!(
                "see `outboard {} show {}`; if another shim of this host holds it, detach it there",
                object.kind, object.name
            )
        }
        Code::Version => "run the same version of shim and DPU".to_owned(),
        Code::Quota => "detach what is not used, or raise the DPU's [limits]".to_owned(),
        Code::Busy => "close the VMM that holds it; a device serves one VMM at a time".to_owned(),
        Code::Unavailable => "see the DPU's log for what its backing lacks; the shim keeps asking".to_owned(),
        _ => "see the DPU's log; the shim keeps asking".to_owned(),
    };
    Problem {
        error: format!("the DPU refused {object}: {refusal}"),
        remedy,
    }
}
