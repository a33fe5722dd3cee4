use outboard_api::topology::parse;
use outboard_shim_api::default_socket;

use super::*;

const TOPOLOGY: &str = r#"
[[network]]
name = "blue"
[[volume]]
name = "disk1"
size = "4GiB"
backend = { memory = true }
[[port]]
name = "vm1"
network = "blue"
mac = "52:54:00:00:00:01"
"#;

fn guest(with_port: bool, with_volume: bool) -> Guest {
    let topology = parse(TOPOLOGY).expect("good");
    let socket = |kind, name: &str| default_socket("/run/ob".as_ref(), kind, name);
    let port = topology.ports.first().filter(|_| with_port);
    Guest::new(port, topology.volumes.first().filter(|_| with_volume), None, socket)
}

#[test]
fn what_is_printed_for_a_pair() {
    let expected = "\
── VM with port vm1 and volume disk1 ──

QEMU (before 9.2, write reconnect=1 for reconnect-ms=1000):
qemu-system-x86_64 \\
  -machine q35,memory-backend=mem0 \\
  -accel kvm \\
  -accel tcg \\
  -m 512 \\
  -object memory-backend-memfd,id=mem0,size=512M,share=on \\
  -chardev socket,id=cn,path=/run/ob/ports/vm1.sock,reconnect-ms=1000 \\
  -netdev type=vhost-user,id=n0,chardev=cn,queues=1 \\
  -device virtio-net-pci,id=net0,netdev=n0,mac=52:54:00:00:00:01 \\
  -chardev socket,id=cb,path=/run/ob/volumes/disk1.sock,reconnect-ms=1000 \\
  -device vhost-user-blk-pci,id=blk0,chardev=cb,num-queues=1

cloud-hypervisor:
cloud-hypervisor \\
  --memory size=512M,shared=on \\
  --net mac=52:54:00:00:00:01,vhost_user=true,socket=/run/ob/ports/vm1.sock,num_queues=2 \\
  --disk vhost_user=true,socket=/run/ob/volumes/disk1.sock,num_queues=1

libvirt:
<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
<devices>
  <interface type='vhostuser'>
    <mac address='52:54:00:00:00:01'/>
    <source type='unix' path='/run/ob/ports/vm1.sock' mode='client'><reconnect enabled='yes' timeout='1'/></source>
    <model type='virtio'/>
  </interface>
  <disk type='vhostuser' device='disk'>
    <driver name='qemu' type='raw'/>
    <source type='unix' path='/run/ob/volumes/disk1.sock'><reconnect enabled='yes' timeout='1'/></source>
    <target dev='vda' bus='virtio'/>
  </disk>
</devices>";
    assert_eq!(guest(true, true).text(), expected);
}

#[test]
fn a_port_alone_has_no_disk_and_a_volume_alone_no_nic() {
    let (nic, disk) = (guest(true, false).text(), guest(false, true).text());
    assert!(nic.contains("VM with port vm1 ──") && nic.contains("virtio-net-pci") && nic.contains("--net"));
    assert!(!nic.contains("vhost-user-blk") && !nic.contains("--disk") && !nic.contains("<disk"));
    assert!(disk.contains("VM with volume disk1 ──") && disk.contains("vhost-user-blk") && disk.contains("<disk"));
    assert!(!disk.contains("virtio-net") && !disk.contains("--net") && !disk.contains("<interface"));
}

#[test]
fn json_has_arguments_one_by_one() {
    let json = serde_json::to_value(guest(true, true)).expect("JSON");
    assert_eq!((&json["port"], &json["volume"]), (&"vm1".into(), &"disk1".into()));
    let devices = json["qemu"]["devices"].as_array().expect("a list");
    assert_eq!(devices.len(), 10);
    assert_eq!(devices[0], "-chardev");
    assert_eq!(json["cloud_hypervisor"][0], "--memory");
}
