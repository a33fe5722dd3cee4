//! cloud-hypervisor: a virtio-net device has two queues, one each way; a virtio-blk device one.

use super::{Disk, MEMORY_MIB, Nic, words};

/// Memory that is shared, and the devices.
pub fn arguments(nic: Option<&Nic>, disk: Option<&Disk>) -> Vec<String> {
    let memory = format!("--memory size={MEMORY_MIB}M,shared=on");
    let nic = nic.map(|Nic { socket, mac }| format!("--net mac={mac},vhost_user=true,socket={socket},num_queues=2"));
    let disk = disk.map(|Disk { socket }| format!("--disk vhost_user=true,socket={socket},num_queues=1"));
    std::iter::once(&memory)
        .chain(&nic)
        .chain(&disk)
        .flat_map(|text| words(text))
        .collect()
}
