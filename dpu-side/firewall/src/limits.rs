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

/// The most steps of one lookup in one group, those for named peers not counted. A step is a comparison with one stored
/// value, or a look at one place.
///
/// The protocol is found among 256, the piece of ports among two for each rule; then nodes are visited, one for any
/// protocol and one in each level of the tree, in each of which the address is found among two pieces for each rule.
pub const GROUP_STEPS_MAX: u64 =
    1 + search(256) + search(2 * RULES_PER_GROUP_MAX) + NODES_MAX * (1 + search(2 * RULES_PER_GROUP_MAX + 1));

/// The most steps of one lookup, whatever the rules and whatever the packet: those of all groups of a port, and those for
/// the peers that its rules name. Each of these may be looked at in each node, and is asked once.
pub const LOOKUP_STEPS_MAX: u64 = 1
    + GROUPS_PER_PORT_MAX as u64 * GROUP_STEPS_MAX
    + PEERS_PER_PORT_MAX as u64 * (NODES_MAX + search(PORTS_MAX * ADDRESSES_PER_PORT_MAX + MEMBER_ADDRESSES_MAX));

/// Nodes that a lookup visits at most.
const NODES_MAX: u64 = 1 + levels(2 * RULES_PER_GROUP_MAX + 1);

/// Levels of a tree with so many leaves.
const fn levels(leaves: usize) -> u64 {
    let (mut count, mut levels) = (leaves, 1);
    while count > 1 {
        count = count.div_ceil(1 << crate::table::FAN_OUT_BITS);
        levels += 1;
    }
    levels
}

/// Steps of a search among so many.
const fn search(count: usize) -> u64 {
    1 + count.next_power_of_two().ilog2() as u64
}
