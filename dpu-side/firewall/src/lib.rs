//! Security groups, compiled to a classifier.
//!
//! A [`Spec`] says what was declared: groups with their rules, address sets, and ports with their groups.
//! [`Policy::compile`] makes of it what [`Policy::judge`] asks about the first packet of a connection; a [`Policy`] is never
//! changed, [`Policy::update`] and [`Policy::follow`] make the next one and share with it whatever is the same.
//!
//!
//! # How it is put to use
//!
//! A port's number is asked for by name once ([`Policy::port`]) and then stays. A connection is judged twice: for the
//! sender's port as [`Direction::Egress`] and for the receiver's as [`Direction::Ingress`], both by the tuple of its
//! first packet. Who keeps a judgement keeps [`Policy::epoch`] of the port with it, and asks again once that differs:
//! the epoch of a port rises only when something changed that its judgements depend on.
#![forbid(unsafe_code)]

mod cidr;
mod error;
mod explain;
mod flow;
mod group;
pub mod limits;
mod members;
mod policy;
mod search;
mod slots;
mod spec;
mod table;
mod update;

pub use cidr::{Cidr, CidrError};
pub use error::{PolicyError, RuleFault, RuleName};
pub use explain::{ExplainedRule, Explanation};
pub use flow::{Addresses, Flow, Judgement, PortId, RuleId};
pub use policy::Policy;
pub use spec::{
    Action, AddressSet, DEFAULT_PRIORITY, Direction, EgressDefault, Ethertype, Group, GroupMembers, Name, Peer, Port,
    PortSpec, Protocol, Rule, Spec,
};
pub use update::Change;
