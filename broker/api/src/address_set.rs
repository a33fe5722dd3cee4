//! Address sets: named lists of addresses and subnets that rules of security groups share.

use std::{fmt, net::IpAddr, str::FromStr};

use outboard_protocol::{
    desired::{self, Cidr},
    id::Name,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    schema::text_schema,
    subnet::{Subnet, SubnetError},
};

/// What an operator declares. `PUT /v1/address-sets/{name}` takes it; its name must be the one in the path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddressSetSpec {
    /// The set's name.
    #[schema(value_type = String, example = "partners")]
    pub name: Name,
    /// Its addresses and subnets.
    #[serde(default)]
    pub addresses: Vec<Prefix>,
}

/// An address set, and who names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AddressSetView {
    /// As declared.
    pub spec: AddressSetSpec,
    /// Names of the groups whose rules name it.
    #[schema(value_type = Vec<String>)]
    pub named_by: Vec<Name>,
}

/// An address, or a subnet in CIDR notation whose host bits are zero. An address is the subnet of it alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix(Subnet);

impl Prefix {
    /// The lowest address.
    pub fn address(self) -> IpAddr {
        self.0.address()
    }
}

impl FromStr for Prefix {
    type Err = SubnetError;
    fn from_str(text: &str) -> Result<Self, SubnetError> {
        match text.parse::<IpAddr>() {
            Ok(address) => Ok(Self(Subnet::of_one(address))),
            Err(_) => text.parse().map(Self),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == Subnet::of_one(self.address()) {
            self.address().fmt(f)
        } else {
            self.0.fmt(f)
        }
    }
}

impl TryFrom<String> for Prefix {
    type Error = SubnetError;
    fn try_from(text: String) -> Result<Self, SubnetError> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

impl From<Prefix> for Cidr {
    fn from(prefix: Prefix) -> Self {
        Self {
            address: prefix.address(),
            prefix_len: prefix.0.prefix_len(),
        }
    }
}

impl From<&AddressSetSpec> for desired::AddressSet {
    fn from(spec: &AddressSetSpec) -> Self {
        Self {
            name: spec.name.clone(),
            entries: spec.addresses.iter().map(|prefix| Cidr::from(*prefix)).collect(),
        }
    }
}

text_schema!(
    Prefix,
    "An IP address, or a subnet in CIDR notation, its host bits zero.",
    "192.0.2.0/24"
);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_is_a_subnet_of_one() {
        let prefix = |text: &str| text.parse::<Prefix>();
        assert_eq!(prefix("10.0.0.1"), prefix("10.0.0.1/32"));
        assert_eq!(prefix("fd00::1/128").expect("an address").to_string(), "fd00::1");
        assert_eq!(prefix("10.0.0.0/8").expect("a subnet").to_string(), "10.0.0.0/8");
        let error = prefix("10.0.0.1/24").expect_err("host bits");
        assert!(error.to_string().contains("write 10.0.0.0/24"), "{error}");
        assert!(prefix("ten").is_err() && prefix("10.0.0.1/33").is_err() && prefix("").is_err());
    }

    proptest! {
        #[test]
        fn what_a_card_is_told_is_a_subnet(address: IpAddr, prefix_len in 0_u8..=128) {
            let Some(subnet) = Subnet::of(address, prefix_len) else { return Ok(()) };
            let prefix: Prefix = subnet.to_string().parse().expect("a subnet");
            prop_assert!(Cidr::from(prefix).is_canonical());
            prop_assert_eq!(prefix.to_string().parse(), Ok(prefix));
        }
    }
}
