//! Security groups, compiled to a classifier.
//!
//! A [`Spec`] says what was declared: groups with their rules, address sets, and ports with their groups.
//! [`Policy::compile`] makes of it what [`Policy::judge`] asks about the first packet of a connection; a [`Policy`] is never
//! changed, [`Policy::update`] and [`Policy::follow`] make the next one and share with it whatever is the same. What
//! rules mean, corner by corner, is in `SEMANTICS.md` beside this crate.
//!
//! # How it is put to use
//!
//! A port's number is asked for by name once ([`Policy::port`]) and then stays. A connection is judged twice: for the
//! sender's port as [`Direction::Egress`] and for the receiver's as [`Direction::Ingress`], both by the tuple of its
//! first packet. Who keeps a judgement keeps [`Policy::epoch`] of the port with it, and asks again once that differs:
//! the epoch of a port rises only when something changed that its judgements depend on.
//!
//! # What it costs
//!
//! A group is compiled once for all ports that have it, and the addresses of a group's members are kept apart from the
//! rules that name it. So a change of a group costs as much as that group is large, a member that comes or goes as
//! much as there are members and ports, both on the thread that makes the change. A lookup takes at most
//! [`limits::LOOKUP_STEPS_MAX`] steps, whatever the packet and whatever rules somebody may have written.
//!
//! ```
//! use std::sync::Arc;
//! use outboard_firewall::{Action, Direction, EgressDefault, Flow, Group, Policy, Port, PortSpec, Protocol, Rule, Spec};
//!
//! let http = Rule {
//!     protocol: Protocol::TCP,
//!     ports: PortSpec::Range(80, 81),
//!     ..Rule::allow(Direction::Ingress)
//! };
//! let web = Group { name: "web".into(), egress: EgressDefault::Allow, rules: vec![http] };
//! let vm = Port {
//!     name: "vm1".into(),
//!     network: "blue".into(),
//!     addresses: vec![[10, 0, 0, 1].into()],
//!     groups: Some(vec!["web".into()]),
//! };
//! let policy = Policy::compile(&Spec {
//!     groups: vec![Arc::new(web)],
//!     ports: vec![Arc::new(vm)],
//!     ..Spec::default()
//! })?;
//! let vm = policy.port("vm1").expect("the port is there");
//! let judge = |port| {
//!     let flow = Flow::between([10, 0, 0, 9].into(), [10, 0, 0, 1].into(), 6, port).expect("one family");
//!     policy.judge(vm, Direction::Ingress, &flow)
//! };
//! assert_eq!((judge(80).action, judge(22).action), (Action::Allow, Action::Deny));
//! assert_eq!(policy.reason(&judge(80)), "web/ingress/1");
//! # Ok::<(), outboard_firewall::PolicyError>(())
//! ```
//!
//! # What it doesn't implement
//!
//! Connections, fragments and errors: whoever asks tracks them. Source ports. Domain names as peers. Members of a group are found by
//! their declared addresses; what a port may use beside them (its link-local address) is not among them.
#![forbid(unsafe_code)]

mod change;
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

pub use change::Change;
pub use cidr::{Cidr, CidrError};
pub use error::{PolicyError, RuleFault, RuleName};
pub use explain::{ExplainedRule, Explanation};
pub use flow::{Addresses, Flow, Judgement, PortId, RuleId};
pub use policy::Policy;
pub use spec::{
    Action, AddressSet, DEFAULT_PRIORITY, Direction, EgressDefault, Ethertype, Group, GroupMembers, Name, Peer, Port,
    PortSpec, Protocol, Rule, Spec,
};
