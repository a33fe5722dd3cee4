//! How much of everything there may be. The bound on a lookup's cost follows from these.

/// Rules in one group.
pub const RULES_PER_GROUP_MAX: usize = 16_384;
/// Rules in all groups together.
pub const RULES_MAX: usize = 131_072;
/// Groups in a policy.
pub const GROUPS_MAX: usize = 4096;
/// Address sets in a policy.
pub const ADDRESS_SETS_MAX: usize = 4096;
/// Entries of one address set.
pub const ADDRESS_SET_ENTRIES_MAX: usize = 65_536;
/// Different groups and address sets that one group's rules may name as peers.
pub const PEERS_PER_GROUP_MAX: usize = 32;
/// The same, added up over the groups of one port.
pub const PEERS_PER_PORT_MAX: usize = 64;
/// Groups of one port.
pub const GROUPS_PER_PORT_MAX: usize = 32;
/// Addresses in one record of a group's members.
pub const MEMBER_ADDRESSES_MAX: usize = 65_536;
/// Records of groups' members.
pub const MEMBER_RECORDS_MAX: usize = 65_536;
/// Addresses of one port.
pub const ADDRESSES_PER_PORT_MAX: usize = 64;
/// Ports in a policy.
pub const PORTS_MAX: usize = 16_384;
/// Bytes in the name of a port, network, group, address set or rule.
pub const NAME_LEN_MAX: usize = 255;
