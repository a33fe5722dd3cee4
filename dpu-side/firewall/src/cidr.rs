//! Address ranges in prefix notation.

use std::{fmt, net::IpAddr, ops::RangeInclusive, str::FromStr};

use thiserror::Error;

/// A range of addresses: those that share the first bits of one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    network: IpAddr,
    len: u8,
}

impl Cidr {
    /// The addresses whose first `len` bits are those of `address`; its other bits do not matter.
    ///
    /// # Errors
    /// [`CidrError::Length`] if there are no `len` bits.
    pub fn new(address: IpAddr, len: u8) -> Result<Self, CidrError> {
        let network = match address {
            IpAddr::V4(a) if len <= 32 => IpAddr::V4((a.to_bits() & mask_v4(len)).into()),
            IpAddr::V6(a) if len <= 128 => IpAddr::V6((a.to_bits() & mask_v6(len)).into()),
            _ => return Err(CidrError::Length { address, len }),
        };
        Ok(Self { network, len })
    }

    /// The first address.
    pub fn network(&self) -> IpAddr {
        self.network
    }

    /// How many bits its addresses share.
    pub fn prefix_len(&self) -> u8 {
        self.len
    }

    /// Its addresses as numbers, if they are IPv4.
    pub(crate) fn v4(&self) -> Option<RangeInclusive<u32>> {
        match self.network {
            IpAddr::V4(a) => Some(a.to_bits()..=a.to_bits() | !mask_v4(self.len)),
            IpAddr::V6(_) => None,
        }
    }

    /// Its addresses as numbers, if they are IPv6.
    pub(crate) fn v6(&self) -> Option<RangeInclusive<u128>> {
        match self.network {
            IpAddr::V4(_) => None,
            IpAddr::V6(a) => Some(a.to_bits()..=a.to_bits() | !mask_v6(self.len)),
        }
    }
}

fn mask_v4(len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)
}

fn mask_v6(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

impl From<IpAddr> for Cidr {
    fn from(address: IpAddr) -> Self {
        let len = if address.is_ipv4() { 32 } else { 128 };
        Self { network: address, len }
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    /// `10.0.0.0/8`, `fd00::/8`, or one address.
    fn from_str(text: &str) -> Result<Self, CidrError> {
        let not_one = || CidrError::Syntax { text: text.into() };
        let Some((address, len)) = text.split_once('/') else {
            return text.parse::<IpAddr>().map(Self::from).map_err(|_| not_one());
        };
        let address = address.parse().map_err(|_| not_one())?;
        Self::new(address, len.parse().map_err(|_| not_one())?)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.len)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Why something is no address range.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CidrError {
    /// A prefix longer than the address.
    #[error("{address}/{len} is no address range: the prefix is longer than the address")]
    Length {
        /// The address.
        address: IpAddr,
        /// The prefix length that was given with it.
        len: u8,
    },
    /// Neither an address nor an address with a prefix length.
    #[error("'{text}' is no address range: write it like 10.0.0.0/8, fd00::/8 or 10.0.0.1")]
    Syntax {
        /// What was given.
        text: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_with_its_spare_bits_cleared() {
        for (text, shown) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("10.0.0.1", "10.0.0.1/32"),
            ("fd00:1::9/64", "fd00:1::/64"),
            ("::/0", "::/0"),
            ("fd00::1", "fd00::1/128"),
        ] {
            let cidr: Cidr = text.parse().expect(text);
            assert_eq!(cidr.to_string(), shown);
        }
        for text in ["10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/", "x", ""] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_range_has_its_first_and_last_address() {
        let of = |text: &str| text.parse::<Cidr>().expect(text);
        assert_eq!(of("10.0.0.0/24").v4(), Some(0x0a00_0000..=0x0a00_00ff));
        assert_eq!(of("0.0.0.0/0").v4(), Some(0..=u32::MAX));
        assert_eq!(of("::/0").v6(), Some(0..=u128::MAX));
        assert_eq!(of("::1").v6(), Some(1..=1));
        assert_eq!((of("::/0").v4(), of("0.0.0.0/0").v6()), (None, None));
    }
}
