//! The daemon as its neighbours see it: a scripted host on the link, guests behind vhost-user, and a scripted broker.
#![forbid(unsafe_code)]

mod broker;
mod channel;
mod enrolment;
mod fixture;
mod groups;
mod guest;
mod host;
mod inquiry;
mod link;
mod locked;
mod process;
mod resize;
mod restart;
mod revocation;
mod traffic;
mod trunk;

/// Workers of the daemon; `daemon_fleet` has more.
const WORKERS: usize = 1;
