//! All that the daemon is tried with on one worker, on two: each guest's queues are another worker's.
#![forbid(unsafe_code)]

#[path = "../daemon/broker.rs"]
mod broker;
#[path = "../daemon/channel.rs"]
mod channel;
#[path = "../daemon/enrolment.rs"]
mod enrolment;
#[path = "../daemon/fixture.rs"]
mod fixture;
#[path = "../daemon/groups.rs"]
mod groups;
#[path = "../daemon/guest.rs"]
mod guest;
#[path = "../daemon/host.rs"]
mod host;
#[path = "../daemon/inquiry.rs"]
mod inquiry;
#[path = "../daemon/link.rs"]
mod link;
#[path = "../daemon/locked.rs"]
mod locked;
#[path = "../daemon/process.rs"]
mod process;
#[path = "../daemon/resize.rs"]
mod resize;
#[path = "../daemon/restart.rs"]
mod restart;
#[path = "../daemon/revocation.rs"]
mod revocation;
mod spread;
#[path = "../daemon/traffic.rs"]
mod traffic;
#[path = "../daemon/trunk.rs"]
mod trunk;

/// Workers of the daemon.
const WORKERS: usize = 2;
