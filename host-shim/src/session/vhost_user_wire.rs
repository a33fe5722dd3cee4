//! The vhost-user messages that the shim passes on: numbers, sizes, descriptors, answers, in one table.
//!
//! Numbers and layouts are those of the vhost-user protocol text in QEMU's `docs/interop/vhost-user.rst`. A message
//! that is not in [`RULES`] ends the session: passing on what is not understood would make the shim's picture of
//! the session wrong.

use std::fmt;

/// Length of a message's header: request, flags, size; each a little-endian `u32` on every machine Outboard runs on.
pub const HEADER_LEN: usize = 12;
/// Longest payload, in bytes.
pub const PAYLOAD_LEN_MAX: usize = 4096;
/// Most descriptors with one message.
pub const DESCRIPTORS_MAX: usize = 32;

/// The protocol version, in the lowest two bits of the flags.
pub const FLAG_VERSION: u32 = 0x1;
/// Mask of the version bits.
pub const FLAG_VERSION_MASK: u32 = 0x3;
/// The message is an answer.
pub const FLAG_REPLY: u32 = 0x4;
/// The sender waits for an answer even where the message has none of its own (with `REPLY_ACK`).
pub const FLAG_NEED_REPLY: u32 = 0x8;
/// All flags that mean anything.
pub const FLAGS_KNOWN: u32 = FLAG_VERSION_MASK | FLAG_REPLY | FLAG_NEED_REPLY;

/// In `SET_VRING_KICK`, `CALL` and `ERR`: the ring's index.
pub const VRING_INDEX_MASK: u64 = 0xff;
/// In `SET_VRING_KICK`, `CALL` and `ERR`: no descriptor comes along.
pub const VRING_NO_DESCRIPTOR: u64 = 0x100;

/// Virtio feature bit: all writes to guest memory are logged (`VHOST_F_LOG_ALL`).
pub const VIRTIO_F_LOG_ALL: u64 = 1 << 26;
/// Virtio feature bit: the backend speaks protocol features.
pub const VIRTIO_F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// Virtio feature bit `VIRTIO_F_RING_PACKED` (virtio 1.3 §6).
pub const VIRTIO_F_RING_PACKED: u64 = 1 << 34;
/// Virtio feature bit `VIRTIO_F_VERSION_1` (virtio 1.3 §6): only a driver acks it.
pub const VIRTIO_F_VERSION_1: u64 = 1 << 32;

/// Protocol features, by bit.
pub mod protocol_feature {
    // `RARP` and `STATUS` are left out: what they carry is a moment's, and could not be said again to a DPU that was
    // away at that moment.

    /// Several queues; `GET_QUEUE_NUM`.
    pub const MQ: u64 = 1 << 0;
    /// The dirty log comes as a descriptor, and `SET_LOG_BASE` is answered.
    pub const LOG_SHMFD: u64 = 1 << 1;
    /// Any message may ask for an acknowledgement.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// `NET_SET_MTU`.
    pub const MTU: u64 = 1 << 4;
    /// `SET_BACKEND_REQ_FD`.
    pub const BACKEND_REQ: u64 = 1 << 5;
    /// `GET_CONFIG`, `SET_CONFIG`.
    pub const CONFIG: u64 = 1 << 9;
    /// `GET_INFLIGHT_FD`, `SET_INFLIGHT_FD`.
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    /// `RESET_DEVICE`.
    pub const RESET_DEVICE: u64 = 1 << 13;
    /// `GET_MAX_MEM_SLOTS`, `ADD_MEM_REG`, `REM_MEM_REG`.
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;

    /// All those whose messages the shim knows; others are taken out of what the DPU offers.
    pub const KNOWN: u64 =
        MQ | LOG_SHMFD | REPLY_ACK | MTU | BACKEND_REQ | CONFIG | INFLIGHT_SHMFD | RESET_DEVICE | CONFIGURE_MEM_SLOTS;
}

/// On the back-end's own channel: the device's configuration has changed (`VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`).
pub const BACKEND_CONFIG_CHANGE: u32 = 2;
/// Most bytes of configuration space that vhost-user carries (`VHOST_USER_MAX_CONFIG_SIZE`).
pub const CONFIG_LEN_MAX: usize = 256;
/// Most entries of a ring (virtio 1.3 §2.7).
pub const QUEUE_SIZE_MAX: u32 = 32_768;

/// What a payload holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Nothing.
    Empty,
    /// One `u64`.
    U64,
    /// Ring index and descriptor flag in one `u64`.
    VringDescriptor,
    /// Ring index and a number, two `u32`.
    VringState,
    /// Index, flags, and four `u64` addresses.
    VringAddress,
    /// Count, padding, then 32 bytes per region.
    Regions,
    /// Padding, then one region.
    Region,
    /// Offset, size and flags, `u32` each, then that many bytes of configuration space.
    Config,
    /// Size, offset, then queue count and size as `u16`, perhaps padded to 24 bytes.
    Inflight,
    /// Size and offset of the dirty log, or the size alone.
    Log,
}

/// How many descriptors come along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Descriptors {
    /// None.
    None,
    /// Exactly one.
    One,
    /// One, unless [`VRING_NO_DESCRIPTOR`] is set.
    UnlessFlagged,
    /// Guest memory: one per region.
    PerRegion,
    /// One or none, closed unused ("the back-end MUST close it without using it otherwise", `REM_MEM_REG`).
    Ignored,
    /// One if the payload is the long form of [`Layout::Log`].
    WithLongForm,
}

/// What the DPU sends back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// An acknowledgement if asked for.
    Ack,
    /// A payload of this many bytes, lowest and highest, and at most so many descriptors.
    Payload {
        /// Least length in bytes.
        len_min: usize,
        /// Greatest length in bytes.
        len_max: usize,
        /// Most descriptors.
        descriptors_max: usize,
    },
    /// Up to 16 bytes with [`protocol_feature::LOG_SHMFD`], else an acknowledgement if asked for.
    LogBase,
}

const U64_ANSWER: Answer = Answer::Payload {
    len_min: 8,
    len_max: 8,
    descriptors_max: 0,
};
const CONFIG_ANSWER: Answer = Answer::Payload {
    len_min: 0,
    len_max: PAYLOAD_LEN_MAX,
    descriptors_max: 0,
};
const INFLIGHT_ANSWER: Answer = Answer::Payload {
    len_min: 20,
    len_max: 24,
    descriptors_max: 1,
};

macro_rules! requests {
    ($($name:ident = $number:literal, $text:literal, $layout:ident, $descriptors:ident, $answer:expr;)*) => {
        /// A request of the VMM's that the shim knows.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum Code {
            $(#[doc = concat!("`", $text, "`")] $name = $number,)*
        }

        /// All requests, with what they carry and what answers them.
        pub const RULES: &[Rule] = &[
            $(Rule {
                code: Code::$name,
                name: $text,
                layout: Layout::$layout,
                descriptors: Descriptors::$descriptors,
                answer: $answer,
            },)*
        ];
    };
}

requests! {
    GetFeatures = 1, "GET_FEATURES", Empty, None, U64_ANSWER;
    SetFeatures = 2, "SET_FEATURES", U64, None, Answer::Ack;
    SetOwner = 3, "SET_OWNER", Empty, None, Answer::Ack;
    ResetOwner = 4, "RESET_OWNER", Empty, None, Answer::Ack;
    SetMemTable = 5, "SET_MEM_TABLE", Regions, PerRegion, Answer::Ack;
    SetLogBase = 6, "SET_LOG_BASE", Log, WithLongForm, Answer::LogBase;
    SetVringNum = 8, "SET_VRING_NUM", VringState, None, Answer::Ack;
    SetVringAddr = 9, "SET_VRING_ADDR", VringAddress, None, Answer::Ack;
    SetVringBase = 10, "SET_VRING_BASE", VringState, None, Answer::Ack;
    GetVringBase = 11, "GET_VRING_BASE", VringState, None, U64_ANSWER;
    SetVringKick = 12, "SET_VRING_KICK", VringDescriptor, UnlessFlagged, Answer::Ack;
    SetVringCall = 13, "SET_VRING_CALL", VringDescriptor, UnlessFlagged, Answer::Ack;
    SetVringErr = 14, "SET_VRING_ERR", VringDescriptor, UnlessFlagged, Answer::Ack;
    GetProtocolFeatures = 15, "GET_PROTOCOL_FEATURES", Empty, None, U64_ANSWER;
    SetProtocolFeatures = 16, "SET_PROTOCOL_FEATURES", U64, None, Answer::Ack;
    GetQueueNum = 17, "GET_QUEUE_NUM", Empty, None, U64_ANSWER;
    SetVringEnable = 18, "SET_VRING_ENABLE", VringState, None, Answer::Ack;
    NetSetMtu = 20, "NET_SET_MTU", U64, None, Answer::Ack;
    SetBackendReqFd = 21, "SET_BACKEND_REQ_FD", Empty, One, Answer::Ack;
    GetConfig = 24, "GET_CONFIG", Config, None, CONFIG_ANSWER;
    SetConfig = 25, "SET_CONFIG", Config, None, Answer::Ack;
    GetInflightFd = 31, "GET_INFLIGHT_FD", Inflight, None, INFLIGHT_ANSWER;
    SetInflightFd = 32, "SET_INFLIGHT_FD", Inflight, One, Answer::Ack;
    ResetDevice = 34, "RESET_DEVICE", Empty, None, Answer::Ack;
    GetMaxMemSlots = 36, "GET_MAX_MEM_SLOTS", Empty, None, U64_ANSWER;
    AddMemReg = 37, "ADD_MEM_REG", Region, PerRegion, Answer::Ack;
    RemMemReg = 38, "REM_MEM_REG", Region, Ignored, Answer::Ack;
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// The request.
    pub code: Code,
    /// Its name in the protocol text, without `VHOST_USER_`.
    pub name: &'static str,
    /// What its payload holds.
    pub layout: Layout,
    /// How many descriptors come along.
    pub descriptors: Descriptors,
    /// What answers it.
    pub answer: Answer,
}

/// The row of a request number, if the shim knows it.
pub fn rule(number: u32) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.code as u32 == number)
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(rule(*self as u32).map_or("?", |rule| rule.name))
    }
}
