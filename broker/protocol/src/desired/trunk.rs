//! Trunks: ports that have no device of their own. Such a *subport* reaches its guest through the device of another
//! port, its *parent*, in frames that carry one IEEE 802.1Q tag with the subport's VLAN id.

use std::{collections::BTreeSet, ops::RangeInclusive};

use minicbor::{Decode, Encode};

use super::{DesiredState, Port};
use crate::id::{Name, ObjectKind, ObjectRef};

/// VLAN ids that a network or subport may have. 0 says that a frame is of no VLAN, and 4095 is reserved (IEEE
/// 802.1Q-2022 table 9-2).
pub const VLAN_IDS: RangeInclusive<u16> = 1..=4094;
/// First version of the card protocol that knows trunks.
pub const TRUNKS_CARD_VERSION: u16 = 3;

/// How a subport reaches its guest.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Trunk {
    /// The port whose device carries its frames. It is on the same card, and no subport itself.
    #[n(0)]
    pub parent: Name,
    /// The VLAN id that its frames have there: one of [`VLAN_IDS`], and of no other subport of that parent.
    #[n(1)]
    pub vlan: u16,
}

impl DesiredState {
    /// The parent of an object, if that is a subport.
    pub fn parent_of(&self, object: &ObjectRef) -> Option<ObjectRef> {
        let port = self.port(&object.name).filter(|_| object.kind == ObjectKind::Port)?;
        Some(ObjectRef {
            kind: ObjectKind::Port,
            name: port.trunk.as_ref()?.parent.clone(),
        })
    }

    /// Whether each subport has a parent, and a VLAN id of its own there. The text names the culprit.
    pub(super) fn check_trunks(&self) -> Result<(), String> {
        let subports = || self.ports.iter().filter_map(|port| Some((port, port.trunk.as_ref()?)));
        if subports().next().is_none() {
            return Ok(());
        }
        let devices: BTreeSet<&Name> = self
            .ports
            .iter()
            .filter(|port| port.trunk.is_none())
            .map(|port| &port.name)
            .collect();
        let mut taken = BTreeSet::new();
        for (Port { name, .. }, Trunk { parent, vlan }) in subports() {
            if !VLAN_IDS.contains(vlan) {
                return Err(format!("port {name} with VLAN id {vlan}"));
            }
            if !devices.contains(parent) {
                return Err(format!(
                    "port {name} as a subport of {parent}, which it does not describe as a port with a device"
                ));
            }
            if !taken.insert((parent, vlan)) {
                return Err(format!(
                    "port {name} with VLAN id {vlan}, which another subport of {parent} has"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        codec::{decode, encode},
        id::MacAddr,
        refusal::Code,
    };

    fn port(name: &str, trunk: Option<(&str, u16)>) -> Port {
        Port {
            name: name.parse().unwrap(),
            network: "n".parse().unwrap(),
            mac: MacAddr([0x52, 0x54, 0, 0, 0, 1]),
            addresses: vec![],
            groups: None,
            trunk: trunk.map(|(parent, vlan)| Trunk {
                parent: parent.parse().unwrap(),
                vlan,
            }),
        }
    }

    fn state(ports: &[Port]) -> DesiredState {
        DesiredState {
            ports: ports.to_vec(),
            ..DesiredState::default()
        }
    }

    #[test]
    fn trunks_that_contradict_themselves_are_refused_and_named() {
        let parent = port("vm1", None);
        // A subport may come before its parent, and two parents may use one id.
        let good = [
            port("blue", Some(("vm1", 1))),
            parent.clone(),
            port("red", Some(("vm1", 4094))),
            port("vm2", None),
            port("green", Some(("vm2", 1))),
        ];
        assert_eq!(state(&good).check(), Ok(()));
        let spoilt = [
            (port("x", Some(("vm1", 0))), "port x with VLAN id 0"),
            (port("x", Some(("vm1", 4095))), "port x with VLAN id 4095"),
            (port("x", Some(("vm1", 1))), "which another subport of vm1 has"),
            (port("x", Some(("vm3", 2))), "port x as a subport of vm3"),
            (port("x", Some(("blue", 2))), "port x as a subport of blue"),
            (port("x", Some(("x", 2))), "port x as a subport of x"),
        ];
        for (port, said) in spoilt {
            let refusal = state(&[good.as_slice(), &[port]].concat()).check().unwrap_err();
            assert!(
                refusal.code == Code::Malformed && refusal.text.contains(said),
                "{refusal}"
            );
        }
    }

    #[test]
    fn a_state_without_subports_is_one_of_version_2() {
        // A port of version 2 ends with its groups, or before them.
        let bytes = encode(&state(&[port("p", None)]));
        let short = decode::<DesiredState>(&bytes, 1 << 20).unwrap();
        assert_eq!(short.ports[0].trunk, None);
        let port_bytes = encode(&short.ports[0]);
        assert_eq!(port_bytes[0], 0x84, "four fields");
        let with_trunk = encode(&port("p", Some(("q", 7))));
        assert_eq!((with_trunk[0], with_trunk.last()), (0x86, Some(&7)));
    }

    #[test]
    fn only_a_subport_has_a_parent() {
        let state = state(&[port("vm1", None), port("blue", Some(("vm1", 1)))]);
        let object = |kind, name: &str| ObjectRef {
            kind,
            name: name.parse().unwrap(),
        };
        assert_eq!(
            state.parent_of(&object(ObjectKind::Port, "blue")),
            Some(object(ObjectKind::Port, "vm1"))
        );
        for (kind, name) in [
            (ObjectKind::Volume, "blue"),
            (ObjectKind::Port, "vm1"),
            (ObjectKind::Port, "none"),
        ] {
            assert_eq!(state.parent_of(&object(kind, name)), None);
        }
    }
}
