//! libvirt: parts of a domain. `<disk type='vhostuser'>` takes no serial, cache or iotune: the device serves its own
//! serial.

use super::{Disk, Nic};

/// `<memoryBacking>`, and the devices.
pub fn xml(nic: Option<&Nic>, disk: Option<&Disk>) -> String {
    let nic = nic.map_or_else(String::new, |Nic { socket, mac }| {
        format!(
            "  <interface type='vhostuser'>
    <mac address='{mac}'/>
    <source type='unix' path='{socket}' mode='client'><reconnect enabled='yes' timeout='1'/></source>
    <model type='virtio'/>
  </interface>
"
        )
    });
    let disk = disk.map_or_else(String::new, |Disk { socket }| {
        format!(
            "  <disk type='vhostuser' device='disk'>
    <driver name='qemu' type='raw'/>
    <source type='unix' path='{socket}'><reconnect enabled='yes' timeout='1'/></source>
    <target dev='vda' bus='virtio'/>
  </disk>
"
        )
    });
    format!(
        "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>\n<devices>\n{nic}{disk}</devices>"
    )
}
