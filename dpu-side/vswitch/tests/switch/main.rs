//! The switch from outside: guests over rings, and every counter of every step.

mod allocations;
mod capture;
mod dirty_log;
mod firewall;
mod fleet;
mod flows;
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

/// All that is offered, with rings of the kind that this program tries.
pub const FEATURES: u64 = vhost_net_dpu::features::FEATURES & !PACKED | RINGS;
const PACKED: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;
/// Split ones.
const RINGS: u64 = 0;
