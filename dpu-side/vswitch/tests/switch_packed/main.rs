//! All that the switch is tried with over split rings, over packed ones.

#[path = "../switch/allocations.rs"]
mod allocations;
#[path = "../switch/capture.rs"]
mod capture;
#[path = "../switch/dirty_log.rs"]
mod dirty_log;
#[path = "../switch/firewall.rs"]
mod firewall;
#[path = "../switch/fleet.rs"]
mod fleet;
#[path = "../switch/forwarding.rs"]
mod forwarding;
#[path = "../switch/frames.rs"]
mod frames;
#[path = "../switch/hostile.rs"]
mod hostile;
#[path = "../switch/lifecycle.rs"]
mod lifecycle;
#[path = "../switch/mtu.rs"]
mod mtu;
#[path = "../switch/multiqueue.rs"]
mod multiqueue;
#[path = "../switch/negotiated.rs"]
mod negotiated;
#[path = "../switch/observe.rs"]
mod observe;
#[path = "../switch/offload.rs"]
mod offload;
#[path = "../switch/random.rs"]
mod random;
#[path = "../switch/reasons.rs"]
mod reasons;
#[path = "../switch/rig.rs"]
mod rig;
#[path = "../switch/spoofing.rs"]
mod spoofing;
#[path = "../switch/trace.rs"]
mod trace;
#[path = "../switch/trunk.rs"]
mod trunk;
#[path = "../switch/trunk_offload.rs"]
mod trunk_offload;
#[path = "../switch/trunk_workers.rs"]
mod trunk_workers;
#[path = "../switch/victims.rs"]
mod victims;
#[path = "../switch/workers.rs"]
mod workers;
#[path = "../switch/workers_threads.rs"]
mod workers_threads;

/// All that is offered, with rings of the kind that this program tries.
pub const FEATURES: u64 = vhost_net_dpu::features::FEATURES & !PACKED | RINGS;
const PACKED: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;
/// Packed ones.
const RINGS: u64 = PACKED;
