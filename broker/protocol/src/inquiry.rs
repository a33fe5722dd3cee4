//! Questions that the broker asks a card on an operator's behalf, and the card's answers.
//!
//! They go over the card channel beside everything else, from [`INQUIRY_VERSION`] of the card protocol on. A question has
//! a number, chosen by the broker and never used again on that connection, and a deadline; it is answered once, in any
//! order, or not at all if the card is overtaxed. Both sides bound how many are open. No question changes what the card
//! holds durably, and nothing of this can be reached from a host.

mod filter;

pub use filter::{FILTER_TERMS_MAX, Facts, Filter, FilterError, Side, Term, Way};

use std::net::IpAddr;

use minicbor::{Decode, Encode, bytes::ByteVec};

use crate::{
    binding::State,
    id::{Generation, Incarnation, Name, ObjectRef},
    refusal::Refusal,
};

/// The version of the card protocol that brought questions.
pub const INQUIRY_VERSION: u16 = 2;
/// Questions that may be open on one connection; the card refuses more (`Busy`).
pub const QUESTIONS_OPEN_MAX: usize = 16;
/// The longest that a card works on a question, whatever deadline it came with, in milliseconds.
pub const DEADLINE_MAX_MS: u32 = 10_000;
/// Longest encoded answer, in bytes; a card leaves out what does not fit and says so.
pub const ANSWER_LEN_MAX: usize = 1 << 20;
/// Captures that may run at a card at a time.
pub const CAPTURES_MAX: usize = 4;
/// Most bytes of a frame that are captured.
pub const SNAPLEN_MAX: u32 = 16_384;
/// Bytes of frames that a card keeps of a capture until they are read; what comes while they are full is counted as lost.
pub const CAPTURE_LEN_MAX: usize = 1 << 20;
/// A capture that is not read for so long ends, in seconds.
pub const CAPTURE_UNREAD_S: u32 = 10;
/// The longest that a capture runs, in seconds.
pub const CAPTURE_MAX_S: u32 = 3600;
/// Most flows in one answer.
pub const FLOWS_MAX: u32 = 4096;
/// Changes of an object that a card remembers.
pub const INCIDENTS_MAX: usize = 16;

/// What the broker wants to know.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Question {
    /// Why may this card drop a frame?
    #[n(0)]
    Reasons,
    /// What is the state of an object, and how did it come to it?
    #[n(1)]
    Object {
        /// The port or volume.
        #[n(0)]
        object: ObjectRef,
    },
    /// What would become of a frame that this port's guest sent now? Nothing is sent, opened or counted.
    #[n(2)]
    Trace {
        /// The port.
        #[n(0)]
        port: Name,
        /// The frame from its Ethernet header on, without a virtio header.
        #[n(1)]
        frame: ByteVec,
    },
    /// Keep frames that pass a port from now on, to be read. It ends by itself: see the limits here and above.
    #[n(3)]
    OpenCapture {
        /// The port.
        #[n(0)]
        port: Name,
        /// Which frames.
        #[n(1)]
        filter: Filter,
        /// The first bytes of each that are kept; at most [`SNAPLEN_MAX`].
        #[n(2)]
        snaplen: u32,
        /// After how many frames it ends; none for no such limit.
        #[n(3)]
        frames_max: Option<u64>,
        /// After how many seconds it ends; at most [`CAPTURE_MAX_S`].
        #[n(4)]
        seconds_max: u32,
    },
    /// What was captured meanwhile?
    #[n(4)]
    ReadCapture {
        /// Which capture.
        #[n(0)]
        capture: u64,
        /// Number of the last frame that was read: it and those before are forgotten.
        #[n(1)]
        after: u64,
    },
    /// End a capture and forget it.
    #[n(5)]
    CloseCapture {
        /// Which.
        #[n(0)]
        capture: u64,
    },
    /// Which connections are there?
    #[n(6)]
    Flows {
        /// Of this port, at either end; of all if none is given.
        #[n(0)]
        port: Option<Name>,
        /// Which ones.
        #[n(1)]
        filter: Filter,
        /// How many at most; at most [`FLOWS_MAX`].
        #[n(2)]
        limit: u32,
    },
    /// End connections: the next packet of each is judged as the first of a new one.
    #[n(7)]
    FlushFlows {
        /// Of this port, at either end; of all if none is given.
        #[n(0)]
        port: Option<Name>,
        /// Which ones.
        #[n(1)]
        filter: Filter,
    },
}

/// What the card says.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Answer {
    /// It cannot or will not answer.
    #[n(0)]
    Refused {
        /// Why.
        #[n(0)]
        refusal: Refusal,
    },
    /// To [`Question::Reasons`].
    #[n(1)]
    Reasons {
        /// All of them, in the order of their counters.
        #[n(0)]
        reasons: Vec<Reason>,
    },
    /// To [`Question::Object`].
    #[n(2)]
    Object {
        /// What is known of it.
        #[n(0)]
        report: ObjectReport,
    },
    /// To [`Question::Trace`].
    #[n(3)]
    Traced {
        /// The frame's way.
        #[n(0)]
        trace: TraceReport,
    },
    /// To [`Question::OpenCapture`].
    #[n(4)]
    CaptureOpened {
        /// Its number, by which it is read.
        #[n(0)]
        capture: u64,
    },
    /// To [`Question::ReadCapture`] and [`Question::CloseCapture`].
    #[n(5)]
    Captured {
        /// The oldest frames that were not read yet, as many as fit an answer.
        #[n(0)]
        frames: Vec<CapturedFrame>,
        /// Frames that there was no room for, since the capture was opened.
        #[n(1)]
        lost: u64,
        /// Why nothing more comes, if nothing does.
        #[n(2)]
        ended: Option<String>,
    },
    /// To [`Question::Flows`].
    #[n(6)]
    Flows {
        /// The connections.
        #[n(0)]
        flows: Vec<Flow>,
        /// There are more than these.
        #[n(1)]
        more: bool,
    },
    /// To [`Question::FlushFlows`].
    #[n(7)]
    Flushed {
        /// How many connections ended.
        #[n(0)]
        count: u64,
    },
}

/// A frame that passed a port.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct CapturedFrame {
    /// Its number in the capture, from 1 on.
    #[n(0)]
    pub number: u64,
    /// When, in nanoseconds since the Unix epoch.
    #[n(1)]
    pub unix_ns: u64,
    /// Which way it passed.
    #[n(2)]
    pub way: Way,
    /// Its whole length in bytes.
    #[n(3)]
    pub len: u32,
    /// Its first bytes.
    #[n(4)]
    pub bytes: ByteVec,
    /// Why it was dropped, if it was: at this port, or by the rules of the one it was for.
    #[n(5)]
    pub dropped: Option<Reason>,
}

/// A connection.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Flow {
    /// The network it is in.
    #[n(0)]
    pub network: Name,
    /// The IP protocol.
    #[n(1)]
    pub protocol: u8,
    /// Source of its first packet.
    #[n(2)]
    pub source: IpAddr,
    /// Its port. Of ICMP: the identifier.
    #[n(3)]
    pub source_port: u16,
    /// Destination of its first packet.
    #[n(4)]
    pub destination: IpAddr,
    /// Its port. Of ICMP: type times 256 and code.
    #[n(5)]
    pub destination_port: u16,
    /// Where it stands, such as "established".
    #[n(6)]
    pub state: String,
    /// It was answered.
    #[n(7)]
    pub replied: bool,
    /// Seconds since its first packet.
    #[n(8)]
    pub age_s: u64,
    /// Seconds that it lives without another packet.
    #[n(9)]
    pub left_s: u64,
    /// The port that opened it, if it is still there.
    #[n(10)]
    pub from: Option<Name>,
    /// The port on the other side, if it is still there.
    #[n(11)]
    pub to: Option<Name>,
}

/// Why frames are dropped.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Reason {
    /// The stable name, `snake_case`, as in counters.
    #[n(0)]
    pub name: String,
    /// One sentence: what happened, and what to do about it where that is not plain.
    #[n(1)]
    pub sentence: String,
    /// Counted at the port that should have received the frame, and not at its sender's.
    #[n(2)]
    pub at_receiver: bool,
}

/// What a card knows of an object, from its binding down to its rings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct ObjectReport {
    /// The desired state that the card holds describes it.
    #[n(0)]
    pub described: bool,
    /// The desired state that the card holds grants it.
    #[n(1)]
    pub granted: bool,
    /// Its binding, if it has one.
    #[n(2)]
    pub binding: Option<BindingState>,
    /// What happened to the binding since the card started, oldest first; at most [`INCIDENTS_MAX`].
    #[n(3)]
    pub incidents: Vec<Incident>,
    /// A VMM is connected to its device.
    #[n(4)]
    pub session: bool,
    /// Its device is set up in the datapath.
    #[n(5)]
    pub set_up: bool,
    /// Its device may exchange data.
    #[n(6)]
    pub open: bool,
    /// Its queues that run.
    #[n(7)]
    pub queues: Vec<QueueReport>,
    /// Frames dropped at the port; reasons that never occurred are left out.
    #[n(8)]
    pub drops: Vec<Dropped>,
    /// More that this version of the card has to say, a line each, such as the policy in force.
    #[n(9)]
    pub notes: Vec<String>,
}

/// A binding, as the card has it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct BindingState {
    /// Which binding of the object.
    #[n(0)]
    pub generation: Generation,
    /// Which use of the function.
    #[n(1)]
    pub incarnation: Incarnation,
    /// Its state.
    #[n(2)]
    pub state: State,
    /// The host it is for.
    #[n(3)]
    pub host: Name,
    /// What stands in the way now.
    #[n(4)]
    pub error: Option<Refusal>,
}

/// Something that happened to a binding.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Incident {
    /// Seconds since the Unix epoch.
    #[n(0)]
    pub unix_s: u64,
    /// Which binding of the object.
    #[n(1)]
    pub generation: Generation,
    /// The state that it came to, or was in.
    #[n(2)]
    pub state: State,
    /// What stood in its way from then on; none if nothing did any more.
    #[n(3)]
    pub error: Option<Refusal>,
}

/// A queue that runs.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct QueueReport {
    /// Its index in the device (virtio 1.3 §5.1.2, §5.2.2).
    #[n(0)]
    pub index: u16,
    /// What it is for, such as "receive".
    #[n(1)]
    pub role: String,
    /// The virtio features that its driver accepted.
    #[n(2)]
    pub features: u64,
    /// Why it is dead until the guest resets it, if it is.
    #[n(3)]
    pub failed: Option<String>,
    /// Frames that it has carried since it was started; none where that is not counted by queue.
    #[n(4)]
    pub frames: Option<u64>,
    /// Bytes of those.
    #[n(5)]
    pub bytes: Option<u64>,
}

/// How often a port dropped for a reason.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Dropped {
    /// Why.
    #[n(0)]
    pub reason: Reason,
    /// Frames since the card started.
    #[n(1)]
    pub frames: u64,
}

/// What would become of a frame.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct TraceReport {
    /// Who was asked, in order, and what they said.
    #[n(0)]
    pub steps: Vec<Step>,
    /// Where it would end: one for each receiver, or one drop.
    #[n(1)]
    pub ends: Vec<End>,
}

/// One station of a frame's way.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Step {
    /// Who decided, such as "source guard".
    #[n(0)]
    pub layer: String,
    /// What it said.
    #[n(1)]
    pub verdict: Verdict,
    /// Why, in words.
    #[n(2)]
    pub detail: String,
    /// The rule that decided, if a rule did.
    #[n(3)]
    pub rule: Option<String>,
}

/// What a layer said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, Encode, Decode)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
pub enum Verdict {
    /// The next one is asked.
    #[n(0)]
    Pass,
    /// The frame goes out.
    #[n(1)]
    Output,
    /// The frame is dropped.
    #[n(2)]
    Drop,
    /// Nothing moves there now: the frame would wait. The next ones are asked as if it went on.
    #[n(3)]
    Hold,
}

/// Where a frame ends.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct End {
    /// The port whose guest gets it, or that counts the drop.
    #[n(0)]
    pub port: Name,
    /// Why it is dropped, if it is.
    #[n(1)]
    pub dropped: Option<Reason>,
}
