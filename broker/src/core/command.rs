//! What can be asked of the core.

use outboard_api::{
    address_set::AddressSetSpec,
    group::{GroupSpec, RuleSpec},
    network::NetworkSpec,
    port::PortSpec,
    topology::{Change, Topology},
    volume::VolumeSpec,
};
use outboard_protocol::id::{Name, ObjectRef};
use uuid::Uuid;

use crate::inventory::CertificateRecord;

/// A change that an operator asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Declare a network.
    PutNetwork(NetworkSpec),
    /// Remove a network.
    DeleteNetwork(Name),
    /// Declare a security group.
    PutGroup(GroupSpec),
    /// Remove a security group.
    DeleteGroup(Name),
    /// Add a rule to a group, unless it has that rule.
    AddRule {
        /// The group.
        group: Name,
        /// The rule.
        rule: RuleSpec,
    },
    /// Remove a rule from a group.
    RemoveRule {
        /// The group.
        group: Name,
        /// What the rule is called within the group: its name, or such as `ingress/1`.
        rule: String,
    },
    /// Declare an address set.
    PutAddressSet(AddressSetSpec),
    /// Remove an address set.
    DeleteAddressSet(Name),
    /// Declare a port.
    PutPort(PortSpec),
    /// Declare a volume.
    PutVolume(VolumeSpec),
    /// Remove a port or volume.
    Delete(ObjectRef),
    /// Let a host have an object.
    Grant {
        /// The object.
        object: ObjectRef,
        /// The host; the one of the object's card if none is named.
        host: Option<Name>,
    },
    /// Take an object from the host that has it.
    Revoke(ObjectRef),
    /// Print a token for a card, and make the card if it is new.
    EnrolCard {
        /// The card.
        card: Name,
        /// Its serial.
        serial: String,
        /// Lifetime of the token, in seconds.
        ttl_s: u64,
        /// The token's secret.
        secret: Vec<u8>,
    },
    /// Remove a card: its certificate is worth nothing from then on.
    DeleteCard(Name),
    /// Make what a topology declares be there, and what an earlier one declared beside it be gone.
    ApplyTopology(Topology),
    /// Note the certificate that was issued for an operator.
    RecordOperator {
        /// The operator.
        operator: Name,
        /// The certificate; an earlier one is not let in any more.
        certificate: CertificateRecord,
    },
}

/// What a command is answered with, to be rendered from the state after it.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The network.
    Network(Name),
    /// The security group.
    Group(Name),
    /// The address set.
    AddressSet(Name),
    /// The port.
    Port(Name),
    /// The volume.
    Volume(Name),
    /// The grant of an object.
    Grant(ObjectRef),
    /// What a topology changed.
    Changes(Vec<Change>),
    /// Nothing but success.
    Done,
    /// Success whose answer the caller makes itself, and which is not kept: it holds a secret.
    Secret,
}

/// Names a mutation, so that a repeated request has one effect and one answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// The client's id for it.
    pub id: Uuid,
    /// SHA-256 of method, path and body, in hex.
    pub request_sha256: String,
}
