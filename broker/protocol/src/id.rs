//! Identities and fencing counters.
//!
//! Everything that can be reused carries a counter that only rises; a message with an older counter is refused for good.

use std::{fmt, str::FromStr};

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Longest object name, in bytes.
pub const NAME_LEN_MAX: usize = 63;

/// Why a string is not a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty or longer than [`NAME_LEN_MAX`].
    #[error("a name has 1 to {NAME_LEN_MAX} characters, this one has {0}")]
    Length(usize),
    /// A character outside `[A-Za-z0-9._-]`, or a first character that is not a letter or digit.
    #[error(
        "a name is made of letters, digits, '.', '_' and '-' and begins with a letter or digit; '{0}' is not allowed there"
    )]
    Character(char),
}

/// The operator's name for a card, host, network, port or volume: 1–63 characters of `[A-Za-z0-9._-]`,
/// the first a letter or digit, so that it is safe in a file name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() || text.len() > NAME_LEN_MAX {
            return Err(NameError::Length(text.chars().count()));
        }
        let allowed = |(i, c): (usize, char)| c.is_ascii_alphanumeric() || (i > 0 && matches!(c, '.' | '_' | '-'));
        match text.chars().enumerate().find(|&at| !allowed(at)) {
            Some((_, c)) => Err(NameError::Character(c)),
            None => Ok(Self(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<C> Encode<C> for Name {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.str(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Name {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        d.str()?.parse().map_err(minicbor::decode::Error::custom)
    }
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, Encode, Decode)]
        #[serde(transparent)]
        #[cbor(transparent)]
        pub struct $name(#[n(0)] pub u64);

        impl $name {
            /// The value after this one; a counter that cannot rise any more stays, and is then refused as stale.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter!(
    /// How often a port or volume has been bound; every new binding of it raises this.
    Generation
);
counter!(
    /// How often a function of a card has been handed out; reuse of the same slot raises this.
    Incarnation
);
counter!(
    /// Raised by a host or DPU each time it boots (its process starts, for a software DPU).
    BootEpoch
);
counter!(
    /// Raised by the broker each time it is restored from a backup.
    BrokerEpoch
);
counter!(
    /// Version of the desired state that the broker holds for one card.
    Revision
);

/// What a grant is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "lowercase")]
#[cbor(index_only)]
pub enum ObjectKind {
    /// A virtio-net device: a port of a network.
    #[n(0)]
    Port,
    /// A virtio-blk device: a volume.
    #[n(1)]
    Volume,
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Port => "port",
            Self::Volume => "volume",
        })
    }
}

/// A port or volume, by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Encode, Decode)]
pub struct ObjectRef {
    /// Port or volume.
    #[n(0)]
    pub kind: ObjectKind,
    /// The operator's name for it.
    #[n(1)]
    pub name: Name,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// How a function reaches the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "kebab-case")]
#[cbor(index_only)]
pub enum FunctionKind {
    /// A vhost-user device behind the shim (the direct link).
    #[n(0)]
    VhostUser,
    /// Tagged frames on the device of another port: a subport of a trunk.
    #[n(1)]
    Subport,
}

/// A function of a card: the thing a port or volume is bound to. Never a MAC, a PCI address or a netdev name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Encode, Decode)]
pub struct FunctionId {
    /// The card that has it.
    #[n(0)]
    pub card: Name,
    /// Controller on that card.
    #[n(1)]
    pub controller: u16,
    /// Physical function of that controller.
    #[n(2)]
    pub pf: u16,
    /// Number within the physical function.
    #[n(3)]
    pub function: u16,
    /// How it reaches the guest.
    #[n(4)]
    pub kind: FunctionKind,
    /// Which use of this slot.
    #[n(5)]
    pub incarnation: Incarnation,
}

/// Names one mutation, so that a repeated request has one effect and one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Encode, Decode)]
#[serde(transparent)]
#[cbor(transparent)]
pub struct OperationId(#[cbor(n(0), with = "crate::id::uuid_bytes")] pub uuid::Uuid);

/// A MAC address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Encode, Decode)]
#[serde(try_from = "String", into = "String")]
#[cbor(transparent)]
pub struct MacAddr(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 6]);

impl MacAddr {
    /// Multicast and broadcast addresses have the lowest bit of the first byte set (IEEE 802, group address).
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A string that is no MAC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a MAC address; write it as 52:54:00:00:00:01")]
pub struct MacError(String);

impl FromStr for MacAddr {
    type Err = MacError;
    fn from_str(text: &str) -> Result<Self, MacError> {
        let bad = || MacError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
                .ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            Err(bad())
        } else {
            Ok(Self(bytes))
        }
    }
}

impl TryFrom<String> for MacAddr {
    type Error = MacError;
    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

/// A UUID as 16 bytes of CBOR.
pub(crate) mod uuid_bytes {
    use minicbor::{Decoder, Encoder};

    pub fn encode<C, W: minicbor::encode::Write>(
        id: &uuid::Uuid,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(id.as_bytes())?.ok()
    }

    pub fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<uuid::Uuid, minicbor::decode::Error> {
        let wrong = |_| minicbor::decode::Error::message("an operation id has 16 bytes");
        uuid::Uuid::from_slice(d.bytes()?).map_err(wrong)
    }
}
