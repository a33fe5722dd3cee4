//! How much of each kind one broker holds.

/// Most cards.
pub const CARDS_MAX: usize = 1024;
/// Most networks.
pub const NETWORKS_MAX: usize = 1024;
/// Most subnets of one network.
pub const SUBNETS_PER_NETWORK_MAX: usize = 64;
/// Most security groups.
pub const GROUPS_MAX: usize = 4096;
/// Most rules of all groups together.
pub const RULES_MAX: usize = 131_072;
/// Most address sets.
pub const ADDRESS_SETS_MAX: usize = 4096;
/// Most addresses and subnets of all address sets together.
pub const SET_ENTRIES_MAX: usize = 131_072;
/// Most ports.
pub const PORTS_MAX: usize = 8192;
/// Most addresses of one port.
pub const ADDRESSES_PER_PORT_MAX: usize = 64;
/// Most volumes.
pub const VOLUMES_MAX: usize = 8192;
/// Most operators.
pub const OPERATORS_MAX: usize = 256;
/// Most functions of one card, and so most live bindings on it.
pub const FUNCTIONS_PER_CARD_MAX: usize = 4096;
/// Results of operations that are kept; beyond that the oldest go before their time.
pub const OPERATIONS_MAX: usize = 16_384;
/// Longest result that is kept for a repeated operation, in bytes.
pub const OPERATION_RESULT_LEN_MAX: usize = 16 << 10;
/// Longest path of a volume's file, in bytes: the card protocol's bound for texts.
pub const VOLUME_PATH_LEN_MAX: usize = 4096;
