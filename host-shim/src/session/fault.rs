//! What ends a session against the VMM's will.

use std::io;

use outboard_protocol::id::ObjectRef;
use outboard_shim_api::Problem;

use super::{
    framing::{FrameError, ReceiveError},
    inflight::InflightError,
    offer::Unfit,
    vhost_user_wire::{Code, DESCRIPTORS_MAX},
};

/// Who broke a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// The VMM.
    Vmm,
    /// The DPU.
    Dpu,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Vmm => "the VMM",
            Self::Dpu => "the DPU",
        })
    }
}

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Broken framing.
    #[error("{0} sent {1}")]
    Frame(Peer, FrameError),
    /// A socket failed.
    #[error("the socket to {0} failed: {1}")]
    Io(Peer, io::Error),
    /// A request that is not in the table.
    #[error("the VMM sent vhost-user request {0}, which this version does not pass on")]
    UnknownRequest(u32),
    /// A request with the flag of an answer.
    #[error("the VMM sent {0} as an answer; nothing was asked")]
    UnaskedReply(Code),
    /// A payload whose length does not fit the request.
    #[error("the VMM sent {0} with {1} bytes, which is not a length that it has")]
    PayloadLength(Code, usize),
    /// Too few or too many descriptors.
    #[error("the VMM sent {code} with {got} descriptors instead of {want}")]
    Descriptors {
        /// The request.
        code: Code,
        /// How many it needs.
        want: usize,
        /// How many there were.
        got: usize,
    },
    /// Memory regions and no file to map them from.
    #[error("{code} names {regions} regions and brings {got} descriptors")]
    MemoryWithoutDescriptors {
        /// The request.
        code: Code,
        /// Regions in the payload.
        regions: usize,
        /// Descriptors with it.
        got: usize,
    },
    /// A descriptor that cannot be mapped as shared memory.
    #[error("descriptor {index} of {code} is {what}, not memory that can be shared")]
    MemoryNotShareable {
        /// The request.
        code: Code,
        /// Which of its descriptors.
        index: usize,
        /// What it is instead.
        what: &'static str,
    },
    /// Rings before memory.
    #[error("{0} came before any guest memory")]
    RingBeforeMemory(Code),
    /// Features that were never offered.
    #[error("the VMM accepted {0} {1:#x}, which it was not offered")]
    NotOffered(&'static str, u64),
    /// A request that belongs to a protocol feature which the VMM has not accepted.
    #[error("the VMM sent {0} without the protocol feature that it belongs to")]
    NotNegotiated(Code),
    /// A number that the request cannot carry.
    #[error("the VMM sent {code} with {value}, which it cannot be")]
    Value {
        /// The request.
        code: Code,
        /// The number.
        value: u64,
    },
    /// A ring that the device has not.
    #[error("the VMM sent {code} for ring {index}, of {queues}")]
    NoSuchRing {
        /// The request.
        code: Code,
        /// The ring.
        index: u32,
        /// How many there are.
        queues: u16,
    },
    /// More memory regions than there are slots.
    #[error("the VMM added a memory region beyond the {0} that it was offered")]
    TooManyRegions(u64),
    /// A region that is not in the table.
    #[error("the VMM removed memory at guest address {0:#x}, which it had not added")]
    NoSuchRegion(u64),
    /// A region for what is in flight that is none.
    #[error("the VMM sent {0} with a region that cannot be: {1}")]
    Inflight(Code, InflightError),
    /// A DPU that cannot take the place of the one before.
    #[error("the DPU cannot serve the session: {0}")]
    Unfit(Unfit),
    /// A DPU that does not take what the one before took.
    #[error("the DPU refused {0} of a session that was going on already")]
    ReplayRefused(Code),
    /// The DPU said no where the VMM cannot be told.
    #[error("the DPU refused {0}")]
    RefusedByDpu(Code),
    /// One DPU after the other ends its stream when it is told this.
    #[error("{1} DPUs, one after the other, ended the session when they were told {0}")]
    EndsEveryDpu(Code, u32),
    /// An answer that does not fit the request.
    #[error("the DPU answered {code} with message {request}, flags {flags:#x}, {len} bytes, {descriptors} descriptors")]
    WrongAnswer {
        /// The request.
        code: Code,
        /// Message number of the answer.
        request: u32,
        /// Its flags.
        flags: u32,
        /// Its length in bytes.
        len: usize,
        /// Descriptors with it.
        descriptors: usize,
    },
    /// A message from the DPU while nothing was asked.
    #[error("the DPU sent message {0} that nobody asked for")]
    UnaskedAnswer(u32),
    /// No answer for too long.
    #[error("the DPU did not answer {0} within {1} s")]
    DpuSilent(Code, u64),
}

/// What to tell a user whose VM's memory is private to its process.
pub const SHARED_MEMORY_REMEDY: &str = "start QEMU with -object memory-backend-memfd,id=mem,size=SIZE,share=on and \
    -machine memory-backend=mem (-numa node,memdev=mem before 5.0), cloud-hypervisor with --memory size=SIZE,shared=on, \
    or give the libvirt domain <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>";

impl Fault {
    /// A failed read.
    pub fn receive(peer: Peer, error: ReceiveError) -> Self {
        match error {
            ReceiveError::Frame(error) => Self::Frame(peer, error),
            ReceiveError::Io(error) => Self::Io(peer, error),
        }
    }

    /// True if the VM's memory is not shared: the commonest mistake, and silent in most set-ups.
    pub fn is_no_shared_memory(&self) -> bool {
        matches!(
            self,
            Self::MemoryWithoutDescriptors { .. } | Self::MemoryNotShareable { .. } | Self::RingBeforeMemory(_)
        )
    }

    /// For people, about the object whose session it ended.
    pub fn problem(&self, object: &ObjectRef) -> Problem {
        if self.is_no_shared_memory() {
            return no_shared_memory(object, &self.to_string());
        }
        let remedy = match self {
            Self::Frame(Peer::Vmm, FrameError::TooManyDescriptors) => format!(
                "use a VMM that sends at most {DESCRIPTORS_MAX} descriptors, and raise the shim's limit of open files"
            ),
            Self::Frame(Peer::Vmm, _)
            | Self::UnknownRequest(_)
            | Self::UnaskedReply(_)
            | Self::PayloadLength(..)
            | Self::Descriptors { .. }
            | Self::NotOffered(..)
            | Self::NotNegotiated(_)
            | Self::Value { .. }
            | Self::NoSuchRing { .. }
            | Self::TooManyRegions(_)
            | Self::NoSuchRegion(_)
            | Self::Inflight(..) => {
                "let a VMM that speaks vhost-user (QEMU, cloud-hypervisor) open the socket; its session was closed"
                    .to_owned()
            }
            Self::Unfit(Unfit::NoAcks) => "run the same version of shim and DPU; the VM waits".to_owned(),
            Self::Unfit(_) => {
                "start the DPU with the version and settings that it had, or restart the VM; the VM waits \
                and the shim keeps asking"
                    .to_owned()
            }
            Self::ReplayRefused(_) => "see the DPU's log for the reason, and start the version that it was before, or \
                restart the VM; the VM waits and the shim keeps asking"
                .to_owned(),
            Self::DpuSilent(..) => "see the DPU's log, and restart it if it hangs; the VM waits".to_owned(),
            Self::Frame(Peer::Dpu, _) | Self::Io(Peer::Dpu, _) | Self::WrongAnswer { .. } | Self::UnaskedAnswer(_) => {
                "see the DPU's log, and run the same version of shim and DPU; the VM waits".to_owned()
            }
            Self::Io(..) => "the session was closed; let the VMM connect again".to_owned(),
            _ => "see the DPU's log for the reason; the session was closed".to_owned(),
        };
        Problem {
            error: format!("{object}: {self}"),
            remedy,
        }
    }
}

/// "VM of port vm1 has no shared memory", with what showed it.
pub fn no_shared_memory(object: &ObjectRef, detail: &str) -> Problem {
    Problem {
        error: format!("VM of {object} has no shared memory: {detail}"),
        remedy: SHARED_MEMORY_REMEDY.to_owned(),
    }
}
