//! IP subnets in CIDR notation.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::schema::text_schema;

/// A subnet: an address whose host bits are zero, and the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    address: IpAddr,
    prefix_len: u8,
}

/// Why a text is no subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// Not an address, a slash and a prefix length.
    #[error("'{0}' is not a subnet; write it as 10.0.0.0/24 or fd00:1::/64")]
    Form(String),
    /// Bits beyond the prefix are set.
    #[error("subnet '{text}' has bits set beyond its prefix; write {wanted}")]
    HostBits {
        /// As written.
        text: String,
        /// With those bits cleared.
        wanted: Subnet,
    },
}

impl Subnet {
    /// The subnet of an address; `None` if the prefix is longer than the address.
    pub fn of(address: IpAddr, prefix_len: u8) -> Option<Self> {
        let host_bits = width(address).checked_sub(prefix_len)?;
        let address = match address {
            IpAddr::V4(v4) => {
                IpAddr::V4((v4.to_bits() & u32::MAX.checked_shl(u32::from(host_bits)).unwrap_or(0)).into())
            }
            IpAddr::V6(v6) => {
                IpAddr::V6((v6.to_bits() & u128::MAX.checked_shl(u32::from(host_bits)).unwrap_or(0)).into())
            }
        };
        Some(Self { address, prefix_len })
    }

    /// The subnet of one address alone.
    pub fn of_one(address: IpAddr) -> Self {
        Self {
            address,
            prefix_len: width(address),
        }
    }

    /// Its lowest address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits that all its addresses have in common.
    pub fn prefix_len(&self) -> u8 {
        self.prefix_len
    }

    /// Does the address lie in it?
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && Self::of(address, self.prefix_len) == Some(*self)
    }

    /// Have the two an address in common?
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    /// May a port have this address? Not the IPv4 network and broadcast addresses (RFC 1122 §3.2.1.3), which a
    /// subnet of 31 or 32 bits does not have (RFC 3021).
    pub fn usable(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) if self.prefix_len < 31 => {
                let host_mask = u32::MAX.checked_shr(u32::from(self.prefix_len)).unwrap_or(0);
                let host = v4.to_bits() & host_mask;
                self.contains(address) && host != 0 && host != host_mask
            }
            _ => self.contains(address),
        }
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl FromStr for Subnet {
    type Err = SubnetError;
    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let form = || SubnetError::Form(text.to_owned());
        let (address, prefix_len) = text.split_once('/').ok_or_else(form)?;
        if prefix_len.is_empty() || prefix_len.len() > 3 || !prefix_len.bytes().all(|b| b.is_ascii_digit()) {
            return Err(form());
        }
        let address: IpAddr = address.parse().map_err(|_| form())?;
        let subnet = Self::of(address, prefix_len.parse().map_err(|_| form())?).ok_or_else(form)?;
        if subnet.address == address {
            Ok(subnet)
        } else {
            Err(SubnetError::HostBits {
                text: text.to_owned(),
                wanted: subnet,
            })
        }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

impl TryFrom<String> for Subnet {
    type Error = SubnetError;
    fn try_from(text: String) -> Result<Self, SubnetError> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

text_schema!(Subnet, "A subnet in CIDR notation, its host bits zero.", "10.0.0.0/24");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().expect("a subnet")
    }

    #[test]
    fn membership() {
        assert!(subnet("10.0.0.0/24").contains("10.0.0.255".parse().expect("address")));
        assert!(!subnet("10.0.0.0/24").contains("10.0.1.0".parse().expect("address")));
        assert!(subnet("0.0.0.0/0").contains("255.255.255.255".parse().expect("address")));
        assert!(!subnet("0.0.0.0/0").contains("::1".parse().expect("address")));
        assert!(subnet("fd00:1::/64").contains("fd00:1::ffff".parse().expect("address")));
        assert!(!subnet("fd00:1::/64").contains("fd00:1:0:1::".parse().expect("address")));
    }

    #[test]
    fn network_and_broadcast_addresses_are_not_for_ports() {
        let usable = |s: &str, a: &str| subnet(s).usable(a.parse().expect("address"));
        assert!(!usable("10.0.0.0/24", "10.0.0.0") && !usable("10.0.0.0/24", "10.0.0.255"));
        assert!(usable("10.0.0.0/24", "10.0.0.1") && usable("10.0.0.0/31", "10.0.0.0"));
        assert!(usable("10.0.0.7/32", "10.0.0.7") && usable("fd00::/64", "fd00::"));
    }

    #[test]
    fn host_bits_are_refused_with_the_subnet_meant() {
        let error = "10.0.0.5/24".parse::<Subnet>().expect_err("host bits");
        assert!(error.to_string().ends_with("write 10.0.0.0/24"), "{error}");
    }

    #[test]
    fn overlap_is_symmetric() {
        let (wide, narrow) = (subnet("10.0.0.0/8"), subnet("10.1.0.0/16"));
        assert!(wide.overlaps(&narrow) && narrow.overlaps(&wide) && !narrow.overlaps(&subnet("10.2.0.0/16")));
    }

    #[test]
    fn what_is_no_subnet_is_refused() {
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/33",
            "fd00::/129",
            "10.0.0.0/+8",
            "10.0.0.0/0008",
            "/8",
            "x/8",
        ] {
            assert!(matches!(text.parse::<Subnet>(), Err(SubnetError::Form(_))), "{text}");
        }
    }

    proptest! {
        #[test]
        fn printing_and_parsing_agree(address: IpAddr, prefix_len in 0u8..=128) {
            if let Some(subnet) = Subnet::of(address, prefix_len) {
                prop_assert_eq!(subnet.to_string().parse(), Ok(subnet));
                prop_assert!(subnet.contains(address));
            }
        }

        #[test]
        fn any_text_is_read_without_panic(text: String) {
            let _ = text.parse::<Subnet>();
        }
    }
}
