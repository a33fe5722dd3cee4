//! The switch from outside: guests over rings, and every counter of every step.

mod allocations;
mod capture;
mod dirty_log;
mod firewall;
mod fleet;
mod forwarding;
mod frames;
mod hostile;
mod lifecycle;
mod mtu;
mod multiqueue;
mod negotiated;
mod observe;
mod offload;
mod random;
mod reasons;
mod rig;
mod spoofing;
mod trace;
mod trunk;
mod trunk_offload;
mod trunk_workers;
mod victims;
mod workers;
mod workers_threads;
