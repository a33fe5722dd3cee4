//! Descriptors of both kinds of ring (virtio 1.3 §2.7.5, §2.8.13).

/// Length of a descriptor in bytes.
pub(crate) const DESC_LEN: usize = 16;

/// The chain goes on at `next`.
pub const DESC_F_NEXT: u16 = 1;
/// The device writes this buffer; otherwise it reads it.
pub const DESC_F_WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const DESC_F_INDIRECT: u16 = 4;

/// One descriptor, as read from shared memory in one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Descriptor {
    /// Guest-physical address of the buffer.
    pub addr: u64,
    /// Length of the buffer in bytes.
    pub len: u32,
    /// `DESC_F_*`.
    pub flags: u16,
    /// Index of the next descriptor, with [`DESC_F_NEXT`]. In a packed ring, the id of the buffer.
    pub next: u16,
}

impl Descriptor {
    /// From its 16 bytes in memory, read as one number of the host.
    #[inline]
    pub(crate) fn from_raw(raw: u128) -> Self {
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = raw.to_ne_bytes();
        Self {
            addr: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }

    /// From its 16 bytes in a packed ring, where the id comes before the flags (virtio 1.3 §2.8.13).
    #[inline]
    pub(crate) fn from_packed(raw: u128) -> Self {
        let split = Self::from_raw(raw);
        Self {
            flags: split.next,
            next: split.flags,
            ..split
        }
    }

    /// Its 16 bytes in a packed ring.
    pub fn to_packed_bytes(self) -> [u8; DESC_LEN] {
        let (flags, next) = (self.next, self.flags);
        Self { flags, next, ..self }.to_bytes()
    }

    /// Its 16 bytes in memory.
    pub fn to_bytes(self) -> [u8; DESC_LEN] {
        let mut bytes = [0; DESC_LEN];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }

    /// It is the whole chain: one buffer.
    #[inline]
    pub(crate) fn is_alone(self) -> bool {
        self.flags & (DESC_F_NEXT | DESC_F_INDIRECT) == 0
    }

    pub(crate) fn has_next(self) -> bool {
        self.flags & DESC_F_NEXT != 0
    }

    pub(crate) fn is_write(self) -> bool {
        self.flags & DESC_F_WRITE != 0
    }

    pub(crate) fn is_indirect(self) -> bool {
        self.flags & DESC_F_INDIRECT != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_reads_back_as_written() {
        let descriptor = Descriptor {
            addr: 0x1122_3344_5566_7788,
            len: 0x99aa_bbcc,
            flags: 0x0102,
            next: 0xfffe,
        };
        assert_eq!(
            Descriptor::from_raw(u128::from_ne_bytes(descriptor.to_bytes())),
            descriptor
        );
        assert_eq!(descriptor.to_bytes()[0], 0x88);
        assert_eq!(descriptor.to_bytes()[14..], [0xfe, 0xff]);
    }

    #[test]
    fn in_a_packed_ring_the_id_comes_first() {
        let descriptor = Descriptor {
            addr: 1,
            len: 2,
            flags: 0x0304,
            next: 0x0506,
        };
        let bytes = descriptor.to_packed_bytes();
        assert_eq!(Descriptor::from_packed(u128::from_ne_bytes(bytes)), descriptor);
        assert_eq!(bytes[12..], [0x06, 0x05, 0x04, 0x03]);
    }
}
