//! QEMU: the chardevs are clients, the shim listens.

use super::{Disk, MEMORY_MIB, Nic, words};

/// The machine: memory that can be shared, and KVM where there is one.
pub fn machine() -> Vec<String> {
    words(&format!(
        "-machine q35,memory-backend=mem0 -accel kvm -accel tcg -m {MEMORY_MIB} \
         -object memory-backend-memfd,id=mem0,size={MEMORY_MIB}M,share=on"
    ))
}

/// The devices.
pub fn devices(nic: Option<&Nic>, disk: Option<&Disk>) -> Vec<String> {
    let nic = nic.map(|Nic { socket, mac }| {
        format!(
            "-chardev socket,id=cn,path={socket},reconnect-ms=1000 \
             -netdev type=vhost-user,id=n0,chardev=cn,queues=1 \
             -device virtio-net-pci,id=net0,netdev=n0,mac={mac}"
        )
    });
    let disk = disk.map(|Disk { socket }| {
        format!(
            "-chardev socket,id=cb,path={socket},reconnect-ms=1000 \
             -device vhost-user-blk-pci,id=blk0,chardev=cb,num-queues=1"
        )
    });
    nic.iter().chain(&disk).flat_map(|text| words(text)).collect()
}
