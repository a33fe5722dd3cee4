//! What the broker wants a card to do. Flows broker → DPU only, as one whole snapshot per revision.

mod policy;
mod trunk;

use std::{collections::BTreeSet, net::IpAddr};

use minicbor::{Decode, Encode};

pub use policy::*;
pub use trunk::*;

use crate::{
    id::{BrokerEpoch, Generation, Incarnation, MacAddr, Name, ObjectKind, ObjectRef, Revision},
    refusal::{Code, Refusal},
};

/// Bytes in a sector; sizes of volumes are multiples of it (virtio 1.3 §5.2.4).
pub const SECTOR_LEN: u64 = 512;

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
    /// The groups that its ports have. From version 2 of the card protocol on, as what follows.
    #[cbor(n(5), skip_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
    /// The address sets that those groups' rules name.
    #[cbor(n(6), skip_if = "Vec::is_empty")]
    pub address_sets: Vec<AddressSet>,
    /// The members, on this card's networks, of the groups that those groups' rules name.
    #[cbor(n(7), skip_if = "Vec::is_empty")]
    pub members: Vec<Members>,
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
    /// Its security groups. None: it is not filtered. An empty list: it is, and no rule allows anything.
    #[n(4)]
    pub groups: Option<Vec<Name>>,
    /// Whose device it is reached through, if it has none of its own. From version 3 of the card protocol on.
    #[n(5)]
    pub trunk: Option<Trunk>,
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

impl Volume {
    /// Whether the volume is this one with more room and nothing else changed: what a guest may go on using meanwhile.
    pub fn grows_from(&self, former: &Self) -> bool {
        let with_its_size = Self {
            size_bytes: former.size_bytes,
            ..self.clone()
        };
        self.size_bytes > former.size_bytes && with_its_size == *former
    }
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

impl DesiredState {
    /// Epoch and revision: of two desired states for one card, the one with the higher pair is in force.
    pub fn version(&self) -> (BrokerEpoch, Revision) {
        (self.broker_epoch, self.revision)
    }

    /// The grant of an object.
    pub fn grant(&self, object: &ObjectRef) -> Option<&Grant> {
        self.grants.iter().find(|g| g.object == *object)
    }

    /// Whether it has an object at all, granted or not.
    pub fn describes(&self, object: &ObjectRef) -> bool {
        match object.kind {
            ObjectKind::Port => self.ports.iter().any(|port| port.name == object.name),
            ObjectKind::Volume => self.volume(&object.name).is_some(),
        }
    }

    /// The volume of that name.
    pub fn volume(&self, name: &Name) -> Option<&Volume> {
        self.volumes.iter().find(|v| v.name == *name)
    }

    /// The port of that name.
    pub fn port(&self, name: &Name) -> Option<&Port> {
        self.ports.iter().find(|p| p.name == *name)
    }

    /// Whether it makes sense as a whole.
    ///
    /// # Errors
    /// [`Code::Malformed`], naming the first object that is named twice, granted but not described, or out of bounds.
    pub fn check(&self) -> Result<(), Refusal> {
        let malformed = |text: String| Err(Refusal::new(Code::Malformed, format!("the broker sent {text}")));
        let mut described = BTreeSet::new();
        for port in &self.ports {
            if port.mac.is_multicast() {
                return malformed(format!("port {} with the group address {}", port.name, port.mac));
            }
            if !described.insert((ObjectKind::Port, &port.name)) {
                return malformed(format!("port {} twice", port.name));
            }
        }
        for volume in &self.volumes {
            if volume.size_bytes == 0 || !volume.size_bytes.is_multiple_of(SECTOR_LEN) {
                return malformed(format!(
                    "volume {} with a size of {} bytes",
                    volume.name, volume.size_bytes
                ));
            }
            if !described.insert((ObjectKind::Volume, &volume.name)) {
                return malformed(format!("volume {} twice", volume.name));
            }
        }
        // What is left over after each grant took its object away is granted once at most.
        for Grant { object, .. } in &self.grants {
            if !described.remove(&(object.kind, &object.name)) {
                return malformed(format!(
                    "a grant of {object}, which it does not describe or granted already"
                ));
            }
        }
        self.check_trunks()
            .and_then(|()| self.check_policy())
            .or_else(malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> DesiredState {
        let port = Port {
            name: "p".parse().unwrap(),
            network: "n".parse().unwrap(),
            mac: MacAddr([0x52, 0x54, 0, 0, 0, 1]),
            addresses: vec![],
            groups: None,
            trunk: None,
        };
        let volume = Volume {
            name: "p".parse().unwrap(),
            size_bytes: 512,
            backend: VolumeBackend::Null,
            read_only: false,
        };
        let grant = |kind| Grant {
            object: ObjectRef {
                kind,
                name: "p".parse().unwrap(),
            },
            host: "h".parse().unwrap(),
            generation: Generation(1),
            incarnation: Incarnation(1),
            expires_unix_s: None,
        };
        DesiredState {
            broker_epoch: BrokerEpoch(1),
            revision: Revision(1),
            ports: vec![port],
            volumes: vec![volume],
            grants: vec![grant(ObjectKind::Port), grant(ObjectKind::Volume)],
            ..DesiredState::default()
        }
    }

    #[test]
    fn a_state_that_contradicts_itself_is_refused() {
        assert_eq!(state().check(), Ok(()));
        type Spoil = fn(&mut DesiredState);
        let spoilt: [(Spoil, &str); 7] = [
            (|s| s.ports.push(s.ports[0].clone()), "port p twice"),
            (|s| s.volumes.push(s.volumes[0].clone()), "volume p twice"),
            (|s| s.grants.push(s.grants[0].clone()), "grant of port p"),
            (|s| s.volumes.clear(), "grant of volume p"),
            (|s| s.ports[0].mac.0[0] |= 1, "group address"),
            (|s| s.volumes[0].size_bytes = 0, "size of 0"),
            (|s| s.volumes[0].size_bytes = 513, "size of 513"),
        ];
        for (spoil, said) in spoilt {
            let mut state = state();
            spoil(&mut state);
            let refusal = state.check().unwrap_err();
            assert!(
                refusal.code == Code::Malformed && refusal.text.contains(said),
                "{refusal}"
            );
        }
    }
}
