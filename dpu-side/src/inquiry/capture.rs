//! Captures: what the broker asks for, in the switch's terms and back.

use std::{net::IpAddr, time::Duration};

use outboard_protocol::{
    inquiry::{
        CAPTURE_LEN_MAX, CAPTURE_MAX_S, CAPTURE_UNREAD_S, CAPTURES_MAX, CapturedFrame, Facts, Filter, SNAPLEN_MAX, Way,
    },
    refusal::{Code, Refusal},
};
use outboard_vswitch::{CaptureRead, CaptureRefused, CaptureSpec, CaptureWay, Captured, Seen};
use vhost_net_dpu::{
    packet::{Fragment, IP_PROTOCOL_TCP, IP_PROTOCOL_UDP, IpAddresses},
    record::{Class, Record},
};

/// Bytes of frames in one answer: with all that goes with them it stays below what an answer may have.
pub const READ_LEN_MAX: usize = 256 << 10;
/// Frames in one answer, likewise.
pub const READ_FRAMES_MAX: usize = 2048;

const _: () = assert!(
    outboard_vswitch::CAPTURES_MAX == CAPTURES_MAX,
    "the switch and the protocol say the same"
);

/// What the switch is to capture.
///
/// # Errors
/// The filter is no expression, or a limit would be passed.
pub fn spec(
    port: String,
    filter: Filter,
    snaplen: u32,
    frames_max: Option<u64>,
    seconds_max: u32,
) -> Result<CaptureSpec, Refusal> {
    let malformed = |text: String| Refusal::new(Code::Malformed, text);
    filter.check().map_err(|e| malformed(e.to_string()))?;
    if snaplen > SNAPLEN_MAX || seconds_max > CAPTURE_MAX_S {
        let text = format!("a capture has at most {SNAPLEN_MAX} bytes of a frame, and runs {CAPTURE_MAX_S} s at most");
        return Err(malformed(text));
    }
    Ok(CaptureSpec {
        port,
        filter: Box::new(move |seen| filter.matches(&facts(seen))),
        snaplen: usize::try_from(snaplen).unwrap_or(0),
        frames_max: frames_max.unwrap_or(u64::MAX),
        time_max: Duration::from_secs(seconds_max.into()),
        unread_max: Duration::from_secs(CAPTURE_UNREAD_S.into()),
        len_max: CAPTURE_LEN_MAX,
    })
}

/// What filters ask about.
fn facts<'a>(seen: &Seen<'_>) -> Facts<'a> {
    let record = seen.record;
    let mut facts = Facts {
        way: Some(way(seen.way)),
        dropped: seen.dropped.map(|reason| reason.name()),
        ..Facts::default()
    };
    // Of what is no frame, nothing else means anything.
    if record.class != Class::Refused {
        facts.ethertype = record.ethertype;
        facts.macs = Some((record.source_mac(), record.destination_mac()));
        facts.addresses = addresses(record, seen.head);
        facts.protocol = facts.addresses.map(|_| record.protocol);
        let with_ports = matches!(record.protocol, IP_PROTOCOL_TCP | IP_PROTOCOL_UDP);
        facts.ports = (facts.addresses.is_some() && with_ports && record.fragment != Fragment::Later)
            .then_some((record.source_port, record.destination_port));
    }
    facts
}

fn addresses(record: &Record, head: &[u8]) -> Option<(IpAddr, IpAddr)> {
    Some(match record.addresses(head)? {
        IpAddresses::V4(source, destination) => (source.into(), destination.into()),
        IpAddresses::V6(source, destination) => (source.into(), destination.into()),
    })
}

fn way(way: CaptureWay) -> Way {
    match way {
        CaptureWay::FromGuest => Way::FromGuest,
        CaptureWay::ToGuest => Way::ToGuest,
    }
}

/// Why none was begun.
pub fn refused(port: &str, why: CaptureRefused) -> Refusal {
    match why {
        CaptureRefused::NoPort => super::no_port(port),
        CaptureRefused::TooMany => Refusal::new(
            Code::Quota,
            "as many captures run at this card as may: end one of them, or wait until it does",
        ),
    }
}

/// What was read, for the broker.
pub fn told(read: CaptureRead) -> (Vec<CapturedFrame>, u64, Option<String>) {
    let CaptureRead { frames, lost, ended } = read;
    let cut = frames.len() > READ_FRAMES_MAX;
    let frames = frames.into_iter().take(READ_FRAMES_MAX).map(frame).collect();
    // What was cut comes when it is read again.
    (frames, lost, ended.filter(|_| !cut).map(str::to_owned))
}

fn frame(captured: Captured) -> CapturedFrame {
    CapturedFrame {
        number: captured.number,
        unix_ns: captured.unix_ns,
        way: way(captured.way),
        len: captured.len,
        bytes: captured.bytes.into(),
        dropped: captured.dropped.map(super::reason),
    }
}
