//! A VMM's message, parsed and checked against the table: the seam behind which sessions think in requests.

use outboard_controls::{Check, on};

use super::{
    fault::Fault,
    framing::{Descriptor, Message},
    vhost_user_wire::{
        Code, Descriptors, FLAG_NEED_REPLY, FLAG_REPLY, Layout, Rule, VRING_INDEX_MASK, VRING_NO_DESCRIPTOR, rule,
    },
};

/// Length of a memory region in a payload, in bytes.
const REGION_LEN: usize = 32;
/// Length of what precedes the region or regions.
const REGIONS_HEAD_LEN: usize = 8;
/// Length of what precedes configuration bytes.
pub const CONFIG_HEAD_LEN: usize = 12;

/// A region of guest memory, as the VMM describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Where the guest sees it.
    pub guest_phys_addr: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Where the VMM has mapped it.
    pub user_addr: u64,
    /// Where it begins in its file.
    pub mmap_offset: u64,
}

/// What a request says. Lengths and counts are checked; addresses and indices are the DPU's to judge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// Nothing.
    Empty,
    /// A number: features, a status, an MTU, a MAC.
    U64(u64),
    /// A ring's eventfd.
    VringDescriptor {
        /// The ring.
        index: u8,
        /// One came along.
        present: bool,
    },
    /// A ring and a number: its size, its base, or whether it is enabled.
    VringState {
        /// The ring.
        index: u32,
        /// The number.
        num: u32,
    },
    /// Where a ring is.
    VringAddress {
        /// The ring.
        index: u32,
        /// Bit 0: log writes to the used ring.
        flags: u32,
        /// Descriptor table, in the VMM's address space.
        descriptor: u64,
        /// Used ring, in the VMM's address space.
        used: u64,
        /// Available ring, in the VMM's address space.
        available: u64,
        /// Where the used ring is logged, guest-physical.
        log: u64,
    },
    /// Memory, whole or one region of it.
    Regions(Vec<Region>),
    /// A piece of configuration space.
    Config {
        /// First byte.
        offset: u32,
        /// Length in bytes.
        len: u32,
        /// Who writes: 0 the driver, 1 a migration.
        flags: u32,
    },
    /// A region that tracks requests in flight.
    Inflight {
        /// Its length in bytes.
        mmap_size: u64,
        /// Where it begins in its file.
        mmap_offset: u64,
        /// Rings it tracks.
        queue_count: u16,
        /// Entries per ring.
        queue_size: u16,
    },
    /// The dirty log: its length in bytes, and where it begins in its file if it comes as one.
    Log {
        /// Length in bytes.
        mmap_size: u64,
        /// Offset in the file that came along.
        mmap_offset: Option<u64>,
    },
}

/// A checked request.
#[derive(Debug)]
pub struct Request {
    /// Its row of the table.
    pub rule: &'static Rule,
    /// The VMM asks for an answer even if there is none of its own.
    pub need_reply: bool,
    /// What it says.
    pub payload: Payload,
    /// The same, as it came.
    pub bytes: Vec<u8>,
    /// What came along.
    pub descriptors: Vec<Descriptor>,
}

impl Request {
    /// Parses and checks a VMM's message.
    ///
    /// # Errors
    /// A fault of the VMM's; the session must end.
    pub fn parse(message: Message) -> Result<Self, Fault> {
        let rule = rule(message.request).ok_or(Fault::UnknownRequest(message.request))?;
        if message.flags & FLAG_REPLY != 0 {
            return Err(Fault::UnaskedReply(rule.code));
        }
        let len = message.payload.len();
        let payload = parse_payload(rule.layout, &message.payload).ok_or(Fault::PayloadLength(rule.code, len))?;
        check_descriptors(rule, &payload, message.descriptors.len())?;
        let descriptors = match rule.descriptors {
            Descriptors::Ignored => Vec::new(),
            _ => message.descriptors,
        };
        let need_reply = message.flags & FLAG_NEED_REPLY != 0;
        Ok(Self {
            rule,
            need_reply,
            payload,
            bytes: message.payload,
            descriptors,
        })
    }

    /// Which request.
    pub fn code(&self) -> Code {
        self.rule.code
    }
}

fn check_descriptors(rule: &Rule, payload: &Payload, got: usize) -> Result<(), Fault> {
    let (least, most) = match (rule.descriptors, payload) {
        (Descriptors::UnlessFlagged, Payload::VringDescriptor { present: true, .. }) | (Descriptors::One, _) => (1, 1),
        (Descriptors::PerRegion, Payload::Regions(regions)) => {
            if (got < regions.len() || regions.is_empty()) && on(Check::SharedMemory) {
                return Err(Fault::MemoryWithoutDescriptors {
                    code: rule.code,
                    regions: regions.len(),
                    got,
                });
            }
            (if on(Check::SharedMemory) { regions.len() } else { 0 }, regions.len())
        }
        (
            Descriptors::WithLongForm,
            Payload::Log {
                mmap_offset: Some(_), ..
            },
        ) => (1, 1),
        (Descriptors::Ignored, _) => (0, 1),
        _ => (0, 0),
    };
    if (least..=most).contains(&got) || !on(Check::MessageDescriptors) {
        Ok(())
    } else {
        Err(Fault::Descriptors {
            code: rule.code,
            want: most,
            got,
        })
    }
}

/// Reads little-endian words off the front.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (word, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*word)
    }
    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
    fn region(&mut self) -> Option<Region> {
        Some(Region {
            guest_phys_addr: self.u64()?,
            len: self.u64()?,
            user_addr: self.u64()?,
            mmap_offset: self.u64()?,
        })
    }
}

/// None if the length is not one that the layout can have.
fn parse_payload(layout: Layout, bytes: &[u8]) -> Option<Payload> {
    let mut words = Words(bytes);
    let payload = match layout {
        Layout::Empty => Payload::Empty,
        Layout::U64 => Payload::U64(words.u64()?),
        Layout::VringDescriptor => {
            let value = words.u64()?;
            Payload::VringDescriptor {
                index: u8::try_from(value & VRING_INDEX_MASK).ok()?,
                present: value & VRING_NO_DESCRIPTOR == 0,
            }
        }
        Layout::VringState => Payload::VringState {
            index: words.u32()?,
            num: words.u32()?,
        },
        Layout::VringAddress => Payload::VringAddress {
            index: words.u32()?,
            flags: words.u32()?,
            descriptor: words.u64()?,
            used: words.u64()?,
            available: words.u64()?,
            log: words.u64()?,
        },
        Layout::Regions => {
            let count = usize::try_from(words.u32()?).ok()?;
            if bytes.len() != REGION_LEN.checked_mul(count)?.checked_add(REGIONS_HEAD_LEN)? {
                return None;
            }
            words.u32()?;
            Payload::Regions((0..count).map(|_| words.region()).collect::<Option<_>>()?)
        }
        Layout::Region => {
            words.u64()?;
            Payload::Regions(vec![words.region()?])
        }
        Layout::Config => {
            let (offset, len, flags) = (words.u32()?, words.u32()?, words.u32()?);
            let total = usize::try_from(len).ok()?.checked_add(CONFIG_HEAD_LEN)?;
            return (bytes.len() == total).then_some(Payload::Config { offset, len, flags });
        }
        Layout::Inflight => {
            let payload = Payload::Inflight {
                mmap_size: words.u64()?,
                mmap_offset: words.u64()?,
                queue_count: words.u16()?,
                queue_size: words.u16()?,
            };
            // The C structure ends in padding, which some senders leave out.
            if words.0.len() == 4 {
                words.u32()?;
            }
            payload
        }
        Layout::Log => {
            let mmap_size = words.u64()?;
            Payload::Log {
                mmap_size,
                mmap_offset: words.u64(),
            }
        }
    };
    words.0.is_empty().then_some(payload)
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
