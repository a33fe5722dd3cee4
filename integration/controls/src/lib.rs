//! Switches that turn one check off, so that a test can show that the check is what stops an attack.
//!
//! Every negative test has a control: with that one check off, the attack succeeds. A check asks [`on`]; in a
//! normal build that is the constant `true` and the compiler removes the question. Only with the feature
//! `switchable`, which nothing but test builds asks for, can a check be turned off: for a whole process by naming it
//! in the environment variable `OUTBOARD_CHECKS_OFF` (a comma-separated list), or for the current thread by [`Off`].
#![forbid(unsafe_code)]

/// A check that a test can turn off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Check {
    /// Memory regions must lie inside their file.
    RegionInsideFile,
    /// A SIGBUS in guest memory fails the device, not the process.
    SigbusGuard,
    /// Calls are signalled without ever blocking a worker.
    NonBlockingCall,
    /// Kick, call and error descriptors must be eventfds.
    EventfdOnly,
    /// Queue indices must be below the device's number of queues.
    QueueIndex,
    /// A queue needs a memory table before it starts.
    MemoryBeforeStart,
    /// Message sizes are bounded and a stalled peer holds only its own session.
    MessageSize,
    /// A malformed descriptor chain is rejected whole.
    WholeChain,
    /// A descriptor's address range must be mapped and must not wrap.
    DescriptorRange,
    /// A head that is in flight may not be made available again.
    HeadInFlight,
    /// Frames must carry the port's own source addresses.
    SourceGuard,
    /// Offloads a guest asks for must be those of its frame, as parsed here.
    OffloadFromParse,
    /// Flush waits for the backend to make writes durable.
    DurableFlush,
    /// The host gets only what a grant in force names.
    GrantRequired,
    /// Buffers and the parts of a ring may not overlap the ring.
    RingOverlap,
    /// avail.idx may be ahead by no more than the queue's size.
    AvailIndex,
    /// A head must be a descriptor of the queue.
    HeadInRange,
    /// Guest memory must be a memory file, whose pages are there at once.
    MemoryFileOnly,
    /// An enrolment token works once.
    TokenOnce,
    /// A card comes with the serial it was enrolled with.
    CardSerial,
    /// What is said about another generation or incarnation than the one in force is refused.
    GenerationFence,
    /// A generation or desired state older than one seen before is never taken up again.
    HighWater,
    /// An object is bound anew only after its former binding has ended.
    OneBinding,
    /// A mutation that was done is answered again, not done again.
    OperationReplay,
    /// What is acknowledged is durable already.
    PersistFirst,
    /// A socket or API serves only the uids it is for.
    PeerUid,
    /// A message comes with exactly the descriptors that belong to it.
    MessageDescriptors,
    /// A vhost-user request or feature that is not known, or was not offered, is not passed on.
    KnownRequestsOnly,
    /// A VM whose memory is not shared is told so instead of being silently dead.
    SharedMemory,
    /// A message is accepted in its one canonical spelling only, unknown fields refused.
    CanonicalOnly,
    /// Requests must lie inside the volume.
    VolumeRange,
    /// A read-only volume is not written.
    VolumeReadOnly,
    /// What is no longer granted is shut before anything that may wait.
    SilenceFirst,
    /// A dirty log must cover the memory that it logs.
    LogCoversMemory,
    /// An in-flight region must hold its queues, and what it says must fit the ring.
    InflightRegion,
    /// A driver of IN_ORDER gets its chains back in the order in which it gave them.
    InOrder,
    /// A chain of a packed ring goes on only at descriptors that are available.
    WrapBits,
    /// No more bytes are told to be written than there is room for.
    UsedLen,
    /// A queue that runs is not changed.
    QueueAtRest,
    /// Memory regions may not overlap.
    RegionsApart,
    /// No more memory regions than slots.
    RegionCount,
    /// A queue's size is a power of two, and no more than was offered.
    QueueSize,
    /// A message is as long as its fields say.
    MessageLength,
    /// A request has whole sectors, and as many bytes as its sectors have.
    RequestLength,
    /// Frames must fit the MTU, or the largest frame there is.
    FrameLength,
    /// IP headers must agree with themselves and with the frame.
    WellFormedIp,
    /// Receive buffers must be for the device to write, and hold the virtio header.
    ReceiveBuffer,
    /// Queues of a port that is gone are not served for another of its name.
    StaleQueue,
    /// A queue has stopped only once nothing of it is in flight.
    StopDrains,
    /// A filtered port sends and gets only what a rule of its security groups allows.
    SecurityGroups,
    /// A later fragment passes the firewall only with the first one of its datagram.
    FragmentsOfAllowed,
    /// An ICMP error passes the firewall only if it comes from the port that the packet it is about went to.
    ErrorFromPeer,
    /// What a session remembers stays within what its DPU offered: rings, memory slots, regions for what is in flight.
    SessionBounds,
    /// A port has no more connections than its budget.
    ConnectionBudget,
    /// A TCP segment of a connection, a RST above all, must lie in its window.
    ConnectionWindow,
    /// An ICMP error is let through only for a packet that its receiver may have sent.
    RelatedError,
    /// The connection table's hash has keys that no guest knows.
    KeyedHash,
    /// A port with security groups is kept from a card that cannot filter.
    FilteredPlacement,
    /// A transmit buffer is for the device to read, and holds the virtio header.
    TransmitBuffer,
    /// A driver without VERSION_1, whose headers have another length, is not served.
    ModernDriver,
    /// What a port has the worker do beyond passing frames on is charged to its share.
    WorkCharged,
    /// A network's number in the connection table is never used again.
    ZoneOnce,
    /// No host has a subport: its parent's device carries it.
    SubportDevice,
    /// A subport's binding ends with its parent's.
    SubportFollows,
    /// A tagged frame belongs to a subport of the port that it came from.
    TrunkTag,
}

const ALL: &[(Check, &str)] = &[
    (Check::RegionInsideFile, "region-inside-file"),
    (Check::SigbusGuard, "sigbus-guard"),
    (Check::NonBlockingCall, "non-blocking-call"),
    (Check::EventfdOnly, "eventfd-only"),
    (Check::QueueIndex, "queue-index"),
    (Check::MemoryBeforeStart, "memory-before-start"),
    (Check::MessageSize, "message-size"),
    (Check::WholeChain, "whole-chain"),
    (Check::DescriptorRange, "descriptor-range"),
    (Check::HeadInFlight, "head-in-flight"),
    (Check::SourceGuard, "source-guard"),
    (Check::OffloadFromParse, "offload-from-parse"),
    (Check::DurableFlush, "durable-flush"),
    (Check::GrantRequired, "grant-required"),
    (Check::RingOverlap, "ring-overlap"),
    (Check::AvailIndex, "avail-index"),
    (Check::HeadInRange, "head-in-range"),
    (Check::MemoryFileOnly, "memory-file-only"),
    (Check::TokenOnce, "token-once"),
    (Check::CardSerial, "card-serial"),
    (Check::GenerationFence, "generation-fence"),
    (Check::HighWater, "high-water"),
    (Check::OneBinding, "one-binding"),
    (Check::OperationReplay, "operation-replay"),
    (Check::PersistFirst, "persist-first"),
    (Check::PeerUid, "peer-uid"),
    (Check::MessageDescriptors, "message-descriptors"),
    (Check::KnownRequestsOnly, "known-requests-only"),
    (Check::SharedMemory, "shared-memory"),
    (Check::CanonicalOnly, "canonical-only"),
    (Check::VolumeRange, "volume-range"),
    (Check::VolumeReadOnly, "volume-read-only"),
    (Check::SilenceFirst, "silence-first"),
    (Check::LogCoversMemory, "log-covers-memory"),
    (Check::InflightRegion, "inflight-region"),
    (Check::InOrder, "in-order"),
    (Check::WrapBits, "wrap-bits"),
    (Check::UsedLen, "used-len"),
    (Check::QueueAtRest, "queue-at-rest"),
    (Check::RegionsApart, "regions-apart"),
    (Check::RegionCount, "region-count"),
    (Check::QueueSize, "queue-size"),
    (Check::MessageLength, "message-length"),
    (Check::RequestLength, "request-length"),
    (Check::FrameLength, "frame-length"),
    (Check::WellFormedIp, "well-formed-ip"),
    (Check::ReceiveBuffer, "receive-buffer"),
    (Check::StaleQueue, "stale-queue"),
    (Check::StopDrains, "stop-drains"),
    (Check::SecurityGroups, "security-groups"),
    (Check::FragmentsOfAllowed, "fragments-of-allowed"),
    (Check::ErrorFromPeer, "error-from-peer"),
    (Check::SessionBounds, "session-bounds"),
    (Check::ConnectionBudget, "connection-budget"),
    (Check::ConnectionWindow, "connection-window"),
    (Check::RelatedError, "related-error"),
    (Check::KeyedHash, "keyed-hash"),
    (Check::FilteredPlacement, "filtered-placement"),
    (Check::TransmitBuffer, "transmit-buffer"),
    (Check::ModernDriver, "modern-driver"),
    (Check::WorkCharged, "work-charged"),
    (Check::ZoneOnce, "zone-once"),
    (Check::SubportDevice, "subport-device"),
    (Check::SubportFollows, "subport-follows"),
    (Check::TrunkTag, "trunk-tag"),
];

/// Is the check on? Always, unless this is a switchable build and a test turned it off.
#[cfg(not(feature = "switchable"))]
#[inline(always)]
pub const fn on(_check: Check) -> bool {
    true
}

#[cfg(feature = "switchable")]
pub use switchable::{Off, on};

/// True in test builds, where checks can be turned off. Daemons say so when they start.
pub const SWITCHABLE: bool = cfg!(feature = "switchable");

/// All checks, with the names that `OUTBOARD_CHECKS_OFF` takes.
pub fn all() -> &'static [(Check, &'static str)] {
    ALL
}

#[cfg(feature = "switchable")]
mod switchable {
    use std::{cell::Cell, sync::OnceLock};

    use super::{ALL, Check};

    // One bit for each check.
    const _: () = assert!(ALL.len() <= u128::BITS as usize);

    thread_local!(static OFF_HERE: Cell<u128> = const { Cell::new(0) });

    fn off_in_process() -> u128 {
        static OFF: OnceLock<u128> = OnceLock::new();
        *OFF.get_or_init(|| {
            let named = std::env::var("OUTBOARD_CHECKS_OFF").unwrap_or_default();
            let bit = |name: &str| match ALL.iter().find(|(_, n)| *n == name) {
                Some((check, _)) => 1u128 << *check as u8,
                None => panic!("OUTBOARD_CHECKS_OFF names '{name}', which is no check"),
            };
            named
                .split(',')
                .filter(|n| !n.is_empty())
                .map(bit)
                .fold(0, |a, b| a | b)
        })
    }

    /// Is the check on?
    pub fn on(check: Check) -> bool {
        (off_in_process() | OFF_HERE.get()) & (1u128 << check as u8) == 0
    }

    /// While it lives, one check is off in the thread that made it.
    pub struct Off(u128);

    impl Off {
        /// Turn `check` off in this thread.
        pub fn here(check: Check) -> Self {
            let before = OFF_HERE.get();
            OFF_HERE.set(before | 1u128 << check as u8);
            Self(before)
        }
    }

    impl Drop for Off {
        fn drop(&mut self) {
            OFF_HERE.set(self.0);
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_check_is_off_only_while_the_guard_lives() {
            assert!(on(Check::SourceGuard));
            {
                let _off = Off::here(Check::SourceGuard);
                assert!(!on(Check::SourceGuard));
                assert!(on(Check::DurableFlush));
            }
            assert!(on(Check::SourceGuard));
        }
    }
}
