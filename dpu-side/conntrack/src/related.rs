//! ICMP errors: they belong to the connection of the packet that they carry.

use outboard_controls::{Check, on};

use crate::{
    entry::EntryRef,
    state::State,
    table::{TCP, Table},
    tcp::Tracked,
    tuple::{Address, Direction, Tuple},
};

/// What an ICMP error says: about which packet, and to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Embedded {
    /// The packet that the error carries, in the error's zone.
    pub tuple: Tuple,
    /// Its sequence number, if it is TCP: the first 8 bytes of its header have it.
    pub sequence: Option<u32>,
    /// Whom the error itself is addressed to.
    pub error_to: Address,
}

/// The connection that an ICMP error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Related {
    /// Which connection.
    pub entry: EntryRef,
    /// Which way the *error* goes: against the packet that it is about.
    pub direction: Direction,
    /// Where the connection stands.
    pub state: State,
    /// The caller's words, as last published.
    pub words: [u64; 3],
}

impl Table {
    /// The connection that an ICMP error is about: one whose packet it carries, addressed to that packet's sender, and
    /// for TCP with a sequence number that its sender has in flight (RFC 5927 §4). The error changes nothing of it.
    ///
    /// `None`: no such connection, drop the error as invalid.
    pub fn related(&self, embedded: &Embedded, now_ns: u64) -> Option<Related> {
        let found = self.lookup(&self.key(&embedded.tuple), now_ns)?;
        if embedded.tuple.source != embedded.error_to && on(Check::RelatedError) {
            return None;
        }
        if embedded.tuple.protocol == TCP && on(Check::RelatedError) {
            // Fewer bytes than the sequence number needs is less than RFC 792 has errors carry.
            let sequence = embedded.sequence?;
            let (_, image) = self.entries[found.entry.index as usize].image_of(found.entry)?;
            if !Tracked::from_words(image.protocol, [0; 2]).is_in_flight(found.direction, sequence) {
                return None;
            }
        } else if found.direction == Direction::Reply && !found.replied && on(Check::RelatedError) {
            return None; // about a packet that was never let through
        }
        Some(Related {
            entry: found.entry,
            direction: found.direction.reverse(),
            state: found.state,
            words: found.words,
        })
    }
}
