//! Messages between a DPU (a *card*) and the broker: length-prefixed CBOR over mutual TLS, the DPU connecting out.

use std::fmt;

use minicbor::{Decode, Encode};

use crate::{
    desired::DesiredState,
    id::{BootEpoch, BrokerEpoch, Generation, Incarnation, Name, ObjectRef, Revision},
    inquiry::{Answer, Question},
    refusal::Refusal,
};

/// Largest message on the card channel, in bytes, without its 4-byte big-endian length.
pub const CARD_MESSAGE_LEN_MAX: usize = 4 << 20;

/// Versions of the card protocol that this code speaks: lowest and highest. Version 2 brought security groups (see
/// [`crate::desired::GROUPS_CARD_VERSION`]) and questions ([`crate::inquiry`]), version 3 trunks (see
/// [`crate::desired::TRUNKS_CARD_VERSION`]).
pub const CARD_VERSIONS: (u16, u16) = (1, 3);

/// DNS name in the broker's certificate: a card checks for it, whatever address it reaches the broker at.
pub const BROKER_TLS_NAME: &str = "outboard-broker";

/// From the DPU.
#[derive(Clone, PartialEq, Encode, Decode)]
pub enum FromCard {
    /// The only message accepted from a peer without a certificate: redeem a one-time token for one.
    #[n(0)]
    Enrol {
        /// The card the token was printed for.
        #[n(0)]
        card: Name,
        /// The token's secret.
        #[cbor(n(1), with = "minicbor::bytes")]
        secret: Vec<u8>,
        /// A PKCS#10 signing request, DER.
        #[cbor(n(2), with = "minicbor::bytes")]
        csr: Vec<u8>,
    },
    /// First message of an enrolled card.
    #[n(1)]
    Hello {
        /// Lowest version spoken.
        #[n(0)]
        version_min: u16,
        /// Highest version spoken.
        #[n(1)]
        version_max: u16,
        /// The card's serial, as in its PCI VPD.
        #[n(2)]
        serial: String,
        /// The DPU's boot epoch.
        #[n(3)]
        dpu_epoch: BootEpoch,
        /// Broker epoch of the desired state that it holds.
        #[n(4)]
        broker_epoch: BrokerEpoch,
        /// Revision of the desired state that it holds.
        #[n(5)]
        revision: Revision,
        /// What the host can reach: see [`Isolation`].
        #[n(6)]
        isolation: Isolation,
    },
    /// The whole of what the DPU has bound, sent after `Hello` and whenever a binding changes.
    #[n(2)]
    Inventory {
        /// Rises with each inventory.
        #[n(0)]
        seq: u64,
        /// All bindings that are not released, and those released since the broker last acknowledged.
        #[n(1)]
        bindings: Vec<BindingReport>,
    },
    /// A desired state was made durable and is in force (or what of it could not be is in the inventory).
    #[n(3)]
    Applied {
        /// Its revision.
        #[n(0)]
        revision: Revision,
    },
    /// Counters, absolute since the DPU's boot epoch.
    #[n(4)]
    Telemetry {
        /// One per port that is bound.
        #[n(0)]
        ports: Vec<PortCounters>,
        /// One per volume that is bound.
        #[n(1)]
        volumes: Vec<VolumeCounters>,
    },
    /// To `Ask`. Since version 2.
    #[n(5)]
    Answer {
        /// The question's number.
        #[n(0)]
        id: u64,
        /// What the card says.
        #[n(1)]
        answer: Answer,
    },
}

/// Shows everything but the secret of an enrolment, so that no log holds one.
impl fmt::Debug for FromCard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enrol { card, .. } => f.debug_struct("Enrol").field("card", card).finish_non_exhaustive(),
            Self::Hello {
                version_min,
                version_max,
                serial,
                dpu_epoch,
                broker_epoch,
                revision,
                isolation,
            } => f
                .debug_struct("Hello")
                .field("versions", &(version_min, version_max))
                .field("serial", serial)
                .field("dpu_epoch", dpu_epoch)
                .field("broker_epoch", broker_epoch)
                .field("revision", revision)
                .field("isolation", isolation)
                .finish(),
            Self::Inventory { seq, bindings } => f
                .debug_struct("Inventory")
                .field("seq", seq)
                .field("bindings", bindings)
                .finish(),
            Self::Applied { revision } => f.debug_struct("Applied").field("revision", revision).finish(),
            Self::Telemetry { ports, volumes } => f
                .debug_struct("Telemetry")
                .field("ports", ports)
                .field("volumes", volumes)
                .finish(),
            Self::Answer { id, answer } => f
                .debug_struct("Answer")
                .field("id", id)
                .field("answer", answer)
                .finish(),
        }
    }
}

/// From the broker.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum FromBroker {
    /// To `Enrol`.
    #[n(0)]
    Enrolled {
        /// The card's certificate, DER.
        #[cbor(n(0), with = "minicbor::bytes")]
        certificate: Vec<u8>,
        /// The CA's certificate, DER.
        #[cbor(n(1), with = "minicbor::bytes")]
        ca: Vec<u8>,
    },
    /// To `Hello`.
    #[n(1)]
    Welcome {
        /// The version spoken from here on.
        #[n(0)]
        version: u16,
        /// The broker's epoch.
        #[n(1)]
        broker_epoch: BrokerEpoch,
    },
    /// What the card has to hold.
    #[n(2)]
    Desired {
        /// All of it.
        #[n(0)]
        state: DesiredState,
    },
    /// An inventory was made durable.
    #[n(3)]
    InventoryAck {
        /// Its number.
        #[n(0)]
        seq: u64,
    },
    /// The request was refused; the broker closes the connection.
    #[n(4)]
    Refused {
        /// Why.
        #[n(0)]
        refusal: Refusal,
    },
    /// A question, to be answered by one `Answer` of this number. Since version 2.
    #[n(5)]
    Ask {
        /// Rises with each question of a connection.
        #[n(0)]
        id: u64,
        /// After how many milliseconds nobody waits for the answer any more.
        #[n(1)]
        deadline_ms: u32,
        /// What the broker wants to know.
        #[n(2)]
        question: Question,
    },
}

/// Whether the host's root user is held off by the machine's boundary or only by process separation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, Encode, Decode)]
#[serde(rename_all = "lowercase")]
#[cbor(index_only)]
pub enum Isolation {
    /// The DPU is on the same kernel: root on the host is trusted.
    #[n(0)]
    Process,
    /// The DPU is on another kernel.
    #[n(1)]
    Machine,
}

/// State of a binding, as the DPU has it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct BindingReport {
    /// The object.
    #[n(0)]
    pub object: ObjectRef,
    /// Which binding of it.
    #[n(1)]
    pub generation: Generation,
    /// Which use of the function.
    #[n(2)]
    pub incarnation: Incarnation,
    /// Its state.
    #[n(3)]
    pub state: crate::binding::State,
    /// What went wrong last, if anything stands in the way now.
    #[n(4)]
    pub error: Option<Refusal>,
}

/// Counters of a port. A frame from the guest is counted once in `tx_frames`, and again either in `drops` or, per
/// receiver, in the receiver's `rx_frames`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PortCounters {
    /// The port.
    #[n(0)]
    pub name: Name,
    /// Frames taken from the guest.
    #[n(1)]
    pub tx_frames: u64,
    /// Bytes of those, without the virtio header.
    #[n(2)]
    pub tx_bytes: u64,
    /// Frames given to the guest.
    #[n(3)]
    pub rx_frames: u64,
    /// Bytes of those, without the virtio header.
    #[n(4)]
    pub rx_bytes: u64,
    /// Frames dropped, by reason; reasons that never occurred are left out. The reason is the stable `snake_case` name.
    #[n(5)]
    pub drops: Vec<(String, u64)>,
}

/// Counters of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct VolumeCounters {
    /// The volume.
    #[n(0)]
    pub name: Name,
    /// Read requests completed well.
    #[n(1)]
    pub read_requests: u64,
    /// Bytes of those.
    #[n(2)]
    pub read_bytes: u64,
    /// Write requests completed well.
    #[n(3)]
    pub write_requests: u64,
    /// Bytes of those.
    #[n(4)]
    pub write_bytes: u64,
    /// Flush requests completed well.
    #[n(5)]
    pub flush_requests: u64,
    /// Requests that ended in an error status.
    #[n(6)]
    pub failed_requests: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_does_not_show_an_enrolments_secret() {
        let enrol = FromCard::Enrol {
            card: "c1".parse().unwrap(),
            secret: vec![0xa5; 32],
            csr: vec![],
        };
        let shown = format!("{enrol:?}");
        assert!(
            shown.contains("c1") && !shown.contains("165") && !shown.to_lowercase().contains("a5"),
            "{shown}"
        );
    }
}
