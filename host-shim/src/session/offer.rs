//! What a DPU offers for a device, and whether another DPU can take its place.

use outboard_protocol::id::ObjectKind;

use super::vhost_user_wire::{VIRTIO_F_PROTOCOL_FEATURES, protocol_feature};

/// Most rings of a device that the shim keeps account of.
pub const QUEUES_MAX: u16 = 256;

/// What a DPU offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Virtio features.
    pub features: u64,
    /// Protocol features, those that the shim does not know taken out.
    pub protocol: u64,
    /// Rings.
    pub queues: u16,
    /// Memory regions that can be added one by one.
    pub mem_slots: u64,
    /// Configuration space, as it was last read; empty if the device serves none.
    pub config: Vec<u8>,
}

/// Why a DPU cannot serve a session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Without acknowledgements nobody knows what it has done.
    #[error("it does not offer acknowledgements (REPLY_ACK)")]
    NoAcks,
    /// Features that the guest's driver or the VMM uses.
    #[error("it does not offer the virtio features {0:#x}, which the guest uses")]
    Features(u64),
    /// Protocol features that the VMM uses.
    #[error("it does not offer the protocol features {0:#x}, which the VMM uses")]
    Protocol(u64),
    /// Fewer rings.
    #[error("it offers {0} rings, and the VMM was offered {1}")]
    Queues(u16, u16),
    /// Fewer slots for memory.
    #[error("it offers {0} memory slots, and the VMM was offered {1}")]
    Slots(u64, u64),
    /// Another configuration space.
    #[error("its configuration space has {0} bytes, and the guest's has {1}")]
    Config(usize, usize),
}

/// What of an offer the VMM holds fast to.
#[derive(Debug, Clone, Copy)]
pub struct Relied {
    /// Virtio features.
    pub features: u64,
    /// Protocol features.
    pub protocol: u64,
}

impl Offer {
    /// What a device of this kind offers before anything is known.
    pub fn unknown(kind: ObjectKind) -> Self {
        Self {
            features: 0,
            protocol: 0,
            // Without MQ a port has one pair and a volume one ring.
            queues: match kind {
                ObjectKind::Port => 2,
                ObjectKind::Volume => 1,
            },
            mem_slots: 0,
            config: Vec::new(),
        }
    }

    /// True if the DPU offers a protocol feature.
    pub fn has(&self, feature: u64) -> bool {
        self.protocol & feature != 0
    }

    /// What the VMM is told: acknowledgements are the shim's own.
    pub fn protocol_told(&self) -> u64 {
        self.protocol | protocol_feature::REPLY_ACK
    }

    /// Whether a DPU that offers this can serve a session at all.
    ///
    /// # Errors
    /// [`Unfit::NoAcks`].
    pub fn serves(&self) -> Result<(), Unfit> {
        if self.features & VIRTIO_F_PROTOCOL_FEATURES == 0 || !self.has(protocol_feature::REPLY_ACK) {
            return Err(Unfit::NoAcks);
        }
        Ok(())
    }

    /// Whether a DPU that offers this can take the place of one that offered `before`.
    ///
    /// # Errors
    /// See [`Unfit`].
    pub fn replaces(&self, before: &Self, relied: Relied) -> Result<(), Unfit> {
        let missing = relied.features & !self.features;
        if missing != 0 {
            return Err(Unfit::Features(missing));
        }
        let missing = relied.protocol & !self.protocol_told();
        if missing != 0 {
            return Err(Unfit::Protocol(missing));
        }
        if self.queues < before.queues {
            return Err(Unfit::Queues(self.queues, before.queues));
        }
        if self.mem_slots < before.mem_slots {
            return Err(Unfit::Slots(self.mem_slots, before.mem_slots));
        }
        if self.config.len() != before.config.len() {
            return Err(Unfit::Config(self.config.len(), before.config.len()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer() -> Offer {
        Offer {
            features: VIRTIO_F_PROTOCOL_FEATURES | 7,
            protocol: protocol_feature::REPLY_ACK | protocol_feature::CONFIG,
            queues: 4,
            mem_slots: 32,
            config: vec![0; 60],
        }
    }

    #[test]
    fn a_dpu_that_offers_less_than_is_relied_on_is_unfit() {
        let relied = Relied {
            features: 3,
            protocol: protocol_feature::CONFIG,
        };
        type Case = (fn(&mut Offer), Result<(), Unfit>);
        let cases: [Case; 11] = [
            (|_| (), Ok(())),
            // Less of what nobody uses, and more of anything, is well.
            (|o| o.features &= !4, Ok(())),
            (|o| o.features |= 8, Ok(())),
            (|o| o.queues = 8, Ok(())),
            (|o| o.config[3] = 1, Ok(())),
            (|o| o.features &= !2, Err(Unfit::Features(2))),
            (
                |o| o.protocol = protocol_feature::REPLY_ACK,
                Err(Unfit::Protocol(protocol_feature::CONFIG)),
            ),
            (|o| o.queues = 3, Err(Unfit::Queues(3, 4))),
            (|o| o.mem_slots = 31, Err(Unfit::Slots(31, 32))),
            (|o| o.config.truncate(59), Err(Unfit::Config(59, 60))),
            (|o| o.config.push(0), Err(Unfit::Config(61, 60))),
        ];
        for (change, expected) in cases {
            let mut now = offer();
            change(&mut now);
            assert_eq!(now.replaces(&offer(), relied), expected);
        }
    }

    #[test]
    fn a_dpu_without_acknowledgements_serves_nobody() {
        assert_eq!(offer().serves(), Ok(()));
        let mut silent = offer();
        silent.protocol = protocol_feature::CONFIG;
        assert_eq!(silent.serves(), Err(Unfit::NoAcks));
        let mut old = offer();
        old.features = 7;
        assert_eq!(old.serves(), Err(Unfit::NoAcks));
    }
}
