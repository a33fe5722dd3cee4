//! What the broker keeps on disk, and how it gets there.
//!
//! The store knows tables, keys and bytes; what a record means is [`crate::inventory`]'s business. Every change that
//! one operation makes is one [`Write`] list and one durable transaction, and nothing is acknowledged before it.

#[cfg(test)]
pub(crate) mod crash_disk;
mod embedded;
mod record;

pub use embedded::{Store, StoreError, store_path};
pub use record::{RECORD_FORMAT, RecordError, decode_record, encode_record};

/// A table of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Schema version, epochs and counters of the broker itself.
    Meta,
    /// Cards, by name.
    Cards,
    /// Networks, by name.
    Networks,
    /// Security groups, by name.
    Groups,
    /// Address sets, by name.
    AddressSets,
    /// Ports, by name.
    Ports,
    /// Volumes, by name.
    Volumes,
    /// Bindings and high-water marks, by object.
    Bindings,
    /// Results of operations, by operation id.
    Operations,
    /// Operators' certificates, by name.
    Operators,
}

impl Table {
    /// All tables.
    pub const ALL: [Self; 10] = [
        Self::Meta,
        Self::Cards,
        Self::Networks,
        Self::Groups,
        Self::AddressSets,
        Self::Ports,
        Self::Volumes,
        Self::Bindings,
        Self::Operations,
        Self::Operators,
    ];

    /// Its name in the file; never changes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Cards => "cards",
            Self::Networks => "networks",
            Self::Groups => "groups",
            Self::AddressSets => "address_sets",
            Self::Ports => "ports",
            Self::Volumes => "volumes",
            Self::Bindings => "bindings",
            Self::Operations => "operations",
            Self::Operators => "operators",
        }
    }
}

/// One change of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Where.
    pub table: Table,
    /// Which record.
    pub key: String,
    /// Its new bytes; none deletes it.
    pub value: Option<Vec<u8>>,
}

/// A stored record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Where it is.
    pub table: Table,
    /// Which record it is.
    pub key: String,
    /// Its bytes.
    pub value: Vec<u8>,
}
