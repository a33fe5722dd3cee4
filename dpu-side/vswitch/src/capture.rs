//! Copies of frames for an operator to look at, with what was decided about them.
//!
//! A capture is of one port: what its guest sends, and what others send that is for it. Frames are noted between the
//! decision and the delivery, so that those that are dropped are seen with the reason. While there is no capture, that is
//! one question for a burst. Memory is taken when a capture begins; what finds no room in it is counted and lost.

use std::{
    net::IpAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use vhost_net_dpu::{HEAD_LEN_MAX, packet::IpAddresses, record::Record};

use crate::reason::DropReason;

/// Most frames that wait to be fetched.
pub const CAPTURED_MAX: usize = 4096;

/// What is captured; what is `None` doesn't matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaptureFilter {
    /// The port.
    pub port: String,
    /// Packets of this IP protocol.
    pub protocol: Option<u8>,
    /// Packets from or to this address.
    pub address: Option<IpAddr>,
    /// TCP segments and UDP datagrams from or to this port.
    pub transport_port: Option<u16>,
    /// Only what is dropped.
    pub dropped_only: bool,
}

/// A frame that was captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// When its burst was served, in nanoseconds since 1970.
    pub unix_ns: u64,
    /// The port's guest sent it; else it is for that guest.
    pub sent: bool,
    /// Its length in bytes.
    pub len: u32,
    /// Its first bytes: all of it, or [`HEAD_LEN_MAX`].
    pub head: Vec<u8>,
    /// Why it is dropped, if that was decided; a receiver that has no room is not known here yet.
    pub dropped: Option<DropReason>,
}

/// What was captured since the last time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CapturedFrames {
    /// The frames, in order.
    pub frames: Vec<Captured>,
    /// How many there was no room for.
    pub lost: u64,
}

/// A frame's copy, in memory that was taken beforehand.
#[derive(Debug, Clone, Copy)]
struct Slot {
    unix_ns: u64,
    sent: bool,
    len: u32,
    dropped: Option<DropReason>,
    head: [u8; HEAD_LEN_MAX],
    head_len: usize,
}

/// A capture that runs.
#[derive(Debug)]
pub(crate) struct Capture {
    filter: CaptureFilter,
    /// The port's index; none while it is not declared.
    port: Option<usize>,
    slots: Vec<Slot>,
    lost: u64,
}

impl Capture {
    pub(crate) fn new(filter: CaptureFilter) -> Self {
        Self {
            filter,
            port: None,
            slots: Vec::with_capacity(CAPTURED_MAX),
            lost: 0,
        }
    }

    /// The port's name.
    pub(crate) fn name(&self) -> &str {
        &self.filter.port
    }

    /// The port has this index now.
    pub(crate) fn set_port(&mut self, index: Option<usize>) {
        self.port = index;
    }

    /// Is it this port's?
    pub(crate) fn is_of(&self, port: usize) -> bool {
        self.port == Some(port)
    }

    /// Notes a frame, if the filter takes it in.
    pub(crate) fn note(&mut self, record: &Record, head: &[u8], sent: bool, dropped: Option<DropReason>, unix_ns: u64) {
        if !self.takes(record, head, dropped) {
            return;
        }
        if self.slots.len() == CAPTURED_MAX {
            self.lost += 1;
            return;
        }
        let mut slot = Slot {
            unix_ns,
            sent,
            len: record.len,
            dropped,
            head: [0; HEAD_LEN_MAX],
            head_len: head.len().min(HEAD_LEN_MAX),
        };
        for (to, from) in slot.head.iter_mut().zip(head) {
            *to = *from;
        }
        self.slots.push(slot);
    }

    fn takes(&self, record: &Record, head: &[u8], dropped: Option<DropReason>) -> bool {
        let Self { filter, .. } = self;
        let ports = [record.source_port, record.destination_port];
        let addresses = || match record.addresses(head) {
            Some(IpAddresses::V4(source, destination)) => [source.into(), destination.into()].map(Some),
            Some(IpAddresses::V6(source, destination)) => [source.into(), destination.into()].map(Some),
            None => [None; 2],
        };
        let with_ports = matches!(record.protocol, 6 | 17);
        filter
            .protocol
            .is_none_or(|protocol| record.protocol == protocol && record.transport_offset != 0)
            && filter
                .transport_port
                .is_none_or(|port| with_ports && ports.contains(&port))
            && filter
                .address
                .is_none_or(|address| addresses().contains(&Some(address)))
            && (dropped.is_some() || !filter.dropped_only)
    }

    /// What was noted since the last time.
    pub(crate) fn take(&mut self) -> CapturedFrames {
        let frames = self.slots.drain(..).map(|slot| Captured {
            unix_ns: slot.unix_ns,
            sent: slot.sent,
            len: slot.len,
            head: slot.head.get(..slot.head_len).unwrap_or_default().to_vec(),
            dropped: slot.dropped,
        });
        CapturedFrames {
            frames: frames.collect(),
            lost: std::mem::take(&mut self.lost),
        }
    }
}

/// What time it is, in nanoseconds since 1970.
pub(crate) fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
