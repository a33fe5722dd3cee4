//! What the broker wants a card to do. Flows broker → DPU only, as one whole snapshot per revision.

use std::net::IpAddr;

use minicbor::{Decode, Encode};

use crate::id::{BrokerEpoch, Generation, Incarnation, MacAddr, Name, ObjectRef, Revision};

/// Everything one card has to hold. Replaces the card's former state in one step.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct DesiredState {
    /// Epoch of the broker that made it.
    #[n(0)]
    pub broker_epoch: BrokerEpoch,
    /// Rises with every change.
    #[n(1)]
    pub revision: Revision,
    /// Ports placed on this card.
    #[n(2)]
    pub ports: Vec<Port>,
    /// Volumes placed on this card.
    #[n(3)]
    pub volumes: Vec<Volume>,
    /// What hosts may redeem. A port or volume without a grant stays shut.
    #[n(4)]
    pub grants: Vec<Grant>,
}

/// A port and its policy.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Port {
    /// The port's name.
    #[n(0)]
    pub name: Name,
    /// The network it belongs to; ports of different networks never exchange a frame.
    #[n(1)]
    pub network: Name,
    /// The only source MAC the guest may use.
    #[n(2)]
    pub mac: MacAddr,
    /// The only source addresses the guest may use (beside the IPv6 link-local address made from its MAC).
    #[n(3)]
    pub addresses: Vec<IpAddr>,
}

/// A volume and where its blocks are.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Volume {
    /// The volume's name.
    #[n(0)]
    pub name: Name,
    /// Size in bytes; a multiple of 512.
    #[n(1)]
    pub size_bytes: u64,
    /// Where the blocks are.
    #[n(2)]
    pub backend: VolumeBackend,
    /// Writes are refused by the device.
    #[n(3)]
    pub read_only: bool,
}

/// Where a volume's blocks are.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum VolumeBackend {
    /// A raw file, by path on the DPU.
    #[n(0)]
    File {
        /// Absolute, or relative to the DPU's volume directory.
        #[n(0)]
        path: String,
    },
    /// The DPU's memory: lost when the DPU process ends.
    #[n(1)]
    Memory,
    /// Reads zeros, forgets writes: for measuring.
    #[n(2)]
    Null,
}

/// The DPU's record that a host may have an object. Not a bearer token: redeeming names the object, and the host is
/// known by the link it comes over.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Grant {
    /// The port or volume.
    #[n(0)]
    pub object: ObjectRef,
    /// The host that may redeem it.
    #[n(1)]
    pub host: Name,
    /// Which binding of the object this is for.
    #[n(2)]
    pub generation: Generation,
    /// Which use of the function this is for.
    #[n(3)]
    pub incarnation: Incarnation,
    /// Seconds since the Unix epoch after which it may no longer be redeemed; none for as long as it is desired.
    #[n(4)]
    pub expires_unix_s: Option<u64>,
}
