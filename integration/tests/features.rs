//! Real guests with every feature that their kernel knows: several queues, event indices, a host's MTU, discards, zeroing,
//! a cache mode that changes, a disk that grows.

use std::{fs, os::unix::fs::MetadataExt, time::Duration};

use outboard_integration::{
    guest::{Guest, GuestSpec},
    record, setup,
    site::{Outcome, Site},
    wait,
};
use tempfile::TempPath;

const COMMAND_LIMIT: Duration = Duration::from_secs(90);
const VOLUME_LEN: u64 = 64 << 20;
const GROWN_LEN: u64 = 96 << 20;

/// Feature bits (virtio 1.3 §5.1.3, §5.2.3, §6) by their names.
const NIC_FEATURES: [(usize, &str); 10] = [
    (0, "CSUM"),
    (1, "GUEST_CSUM"),
    (3, "MTU"),
    (7, "GUEST_TSO4"),
    (11, "HOST_TSO4"),
    (15, "MRG_RXBUF"),
    (22, "MQ"),
    (28, "INDIRECT_DESC"),
    (29, "EVENT_IDX"),
    (32, "VERSION_1"),
];
const DISK_FEATURES: [(usize, &str); 10] = [
    (2, "SEG_MAX"),
    (6, "BLK_SIZE"),
    (9, "FLUSH"),
    (10, "TOPOLOGY"),
    (11, "CONFIG_WCE"),
    (12, "MQ"),
    (13, "DISCARD"),
    (14, "WRITE_ZEROES"),
    (28, "INDIRECT_DESC"),
    (29, "EVENT_IDX"),
];

struct Scene {
    site: Site,
    disk: TempPath,
}

impl Scene {
    fn new() -> Outcome<Self> {
        let file = tempfile::Builder::new().prefix("outboard-disk.").tempfile()?;
        file.as_file().set_len(VOLUME_LEN)?;
        let disk = file.into_temp_path();
        let site = Site::recorded(&topology(&disk, "64MiB"), "")?;
        Ok(Self { site, disk })
    }

    fn boot(&self, number: u8, spec: GuestSpec) -> Outcome<Guest> {
        let name = format!("vm{number}");
        let socket = self.site.run_path(&format!("ports/{name}.sock"));
        let spec = GuestSpec {
            port: Some((socket, format!("52:54:00:00:00:0{number}"))),
            address: Some(format!("10.0.0.{number}/24")),
            name,
            ..spec
        };
        Ok(Guest::start(&spec, &setup::guest_image()?, self.site.folder())?)
    }

    /// Bytes that the volume's file takes up.
    fn allocated(&self) -> Outcome<u64> {
        Ok(fs::metadata(&self.disk)?.blocks() * 512)
    }
}

fn topology(disk: &TempPath, size: &str) -> String {
    let mut topology = format!(
        "[[network]]\nname = \"blue\"\nsubnets = [\"10.0.0.0/24\"]\n\
         [[volume]]\nname = \"disk1\"\nsize = \"{size}\"\nbackend = {{ file = \"{}\" }}\ncard = \"local\"\n",
        disk.display()
    );
    for number in 1..=2 {
        topology += &format!(
            "[[port]]\nname = \"vm{number}\"\nnetwork = \"blue\"\nmac = \"52:54:00:00:00:0{number}\"\n\
             addresses = [\"10.0.0.{number}\"]\ncard = \"local\"\n"
        );
    }
    topology
}

fn assert_negotiated(guest: &mut Guest, device: &str, wanted: &[(usize, &str)]) -> Outcome {
    let bits = guest.run(&format!("cat {device}/device/features"), COMMAND_LIMIT)?;
    for (bit, name) in wanted {
        assert_eq!(bits.as_bytes().get(*bit), Some(&b'1'), "{device}: {name} of {bits}");
    }
    Ok(())
}

#[test]
fn guests_with_everything_on() -> Outcome {
    everything(false)
}

#[test]
fn guests_with_everything_on_over_packed_rings() -> Outcome {
    everything(true)
}

fn everything(packed: bool) -> Outcome {
    let rings = if packed { ",packed=on" } else { "" };
    let scene = Scene::new()?;
    let mut vm1 = scene.boot(
        1,
        GuestSpec {
            volume: Some(scene.site.run_path("volumes/disk1.sock")),
            cpus: 4,
            queues: 4,
            memory_mib: 512,
            nic_properties: format!("host_mtu=1400{rings}"),
            disk_properties: format!("config-wce=on,discard=on,write-zeroes=on{rings}"),
            fio: true,
            ..GuestSpec::default()
        },
    )?;
    let mut vm2 = scene.boot(
        2,
        GuestSpec {
            cpus: 2,
            queues: 2,
            nic_properties: rings.trim_start_matches(',').into(),
            ..GuestSpec::default()
        },
    )?;
    vm1.wait_booted()?;
    vm2.wait_booted()?;
    if packed {
        let bit = [(34, "RING_PACKED")];
        assert_negotiated(&mut vm1, "/sys/class/net/eth0", &bit)?;
        assert_negotiated(&mut vm2, "/sys/class/net/eth0", &bit)?;
        assert_negotiated(&mut vm1, "/sys/block/vda", &bit)?;
    }
    network(&mut vm1, &mut vm2)?;
    disk(&scene, &mut vm1)?;
    write_through(&scene, &mut vm1)?;
    grow(&scene, &mut vm1)
}

fn network(vm1: &mut Guest, vm2: &mut Guest) -> Outcome {
    assert_negotiated(vm1, "/sys/class/net/eth0", &NIC_FEATURES)?;
    assert_eq!(vm1.run("cat /sys/class/net/eth0/mtu", COMMAND_LIMIT)?, "1400");
    assert_eq!(
        vm1.run("ls -d /sys/class/net/eth0/queues/tx-* | wc -l", COMMAND_LIMIT)?
            .trim(),
        "4"
    );
    let reached = wait::until(COMMAND_LIMIT, || vm1.run("ping -c 1 -W 1 10.0.0.2", COMMAND_LIMIT).ok());
    reached.ok_or("vm1 does not reach vm2")?;
    // several streams both ways, which the guests spread over their queues
    vm2.run("iperf3 -s -D", COMMAND_LIMIT)?;
    for direction in ["", "-R"] {
        vm1.run(
            &format!("iperf3 -c 10.0.0.2 -P 8 -t 2 {direction} >/tmp/iperf"),
            COMMAND_LIMIT,
        )?;
    }
    // whole frames of the host's MTU and not more pass between them
    vm1.run("ping -c 3 -i 0.2 -s 1372 10.0.0.2", COMMAND_LIMIT)?;
    vm1.run(
        "dd if=/dev/urandom of=/tmp/big bs=1M count=8 2>/dev/null && httpd -p 7000 -h /tmp",
        COMMAND_LIMIT,
    )?;
    vm2.run("wget -q -O /tmp/big http://10.0.0.1:7000/big", COMMAND_LIMIT)?;
    let sum = "sha256sum </tmp/big";
    assert_eq!(
        vm2.run(sum, COMMAND_LIMIT)?,
        vm1.run(sum, COMMAND_LIMIT)?,
        "8 MiB over TCP"
    );
    let queues = vm1.run("grep virtio.*put /proc/interrupts", COMMAND_LIMIT)?;
    let used = queues.lines().filter(|line| {
        let counts = line.split_whitespace().skip(1).take(4);
        line.contains("output") && counts.filter_map(|count| count.parse::<u64>().ok()).sum::<u64>() > 0
    });
    assert!(used.count() >= 2, "more than one tx queue was used: {queues}");
    Ok(())
}

fn disk(scene: &Scene, vm1: &mut Guest) -> Outcome {
    assert_negotiated(vm1, "/sys/block/vda", &DISK_FEATURES)?;
    assert_eq!(vm1.run("ls /sys/block/vda/mq | wc -l", COMMAND_LIMIT)?.trim(), "4");
    vm1.run(
        "fio --name=many --filename=/dev/vda --rw=randwrite --bs=4k --iodepth=16 --ioengine=libaio --direct=1 \
         --size=8m --numjobs=4 --offset_increment=8m --fsync=64 --verify=crc32c --verify_fatal=1 >/tmp/fio 2>&1",
        COMMAND_LIMIT,
    )?;
    let full = scene.allocated()?;
    assert!(full >= 32 << 20, "32 MiB were written");
    vm1.run("blkdiscard -o 0 -l 16777216 /dev/vda", COMMAND_LIMIT)?;
    let after = scene.allocated()?;
    assert!(
        after + (16 << 20) <= full + (1 << 20),
        "discarded blocks are given back: {full} → {after}"
    );
    // a filesystem zeroes its tables by WRITE_ZEROES, and trims what is free
    vm1.run(
        "mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 /dev/vda && mount -t ext4 /dev/vda /mnt",
        COMMAND_LIMIT,
    )?;
    vm1.run(
        "dd if=/dev/urandom of=/mnt/x bs=1M count=8 2>/dev/null && sync && rm /mnt/x && sync",
        COMMAND_LIMIT,
    )?;
    let before = scene.allocated()?;
    vm1.run("fstrim /mnt && umount /mnt", COMMAND_LIMIT)?;
    let trimmed = scene.allocated()?;
    assert!(trimmed + (7 << 20) <= before, "fstrim gives back: {before} → {trimmed}");
    vm1.run("mount -t ext4 /dev/vda /mnt && umount /mnt", COMMAND_LIMIT)?;
    Ok(())
}

/// With its cache off, the disk makes each write durable before it acknowledges it, with no flush from the guest.
fn write_through(scene: &Scene, vm1: &mut Guest) -> Outcome {
    assert_eq!(vm1.run("cat /sys/block/vda/cache_type", COMMAND_LIMIT)?, "write back");
    vm1.run("echo 'write through' >/sys/block/vda/cache_type", COMMAND_LIMIT)?;
    vm1.run(
        "printf %-4096d 4711 | dd of=/dev/vda bs=4096 count=1 seek=100 oflag=direct conv=notrunc 2>/dev/null",
        COMMAND_LIMIT,
    )?;
    let name = scene.disk.file_name().unwrap_or_default().to_string_lossy();
    let survivors = record::survivors(&scene.site.folder().join("record"), &name, usize::try_from(VOLUME_LEN)?)?;
    let block = survivors.image.get(100 * 4096..100 * 4096 + 4);
    assert_eq!(
        block,
        Some(&b"4711"[..]),
        "a write-through write is durable when it is acknowledged"
    );
    vm1.run("echo 'write back' >/sys/block/vda/cache_type", COMMAND_LIMIT)?;
    vm1.run(
        "printf %-4096d 4712 | dd of=/dev/vda bs=4096 count=1 seek=100 oflag=direct conv=notrunc,fsync 2>/dev/null",
        COMMAND_LIMIT,
    )?;
    Ok(())
}

/// The operator makes the volume larger under the running guest.
fn grow(scene: &Scene, vm1: &mut Guest) -> Outcome {
    let size = |vm1: &mut Guest| vm1.run("blockdev --getsize64 /dev/vda", COMMAND_LIMIT);
    assert_eq!(size(vm1)?, VOLUME_LEN.to_string());
    fs::File::options().write(true).open(&scene.disk)?.set_len(GROWN_LEN)?;
    let file = scene.site.file("grown.toml", &topology(&scene.disk, "96MiB"))?;
    scene.site.outboard(&["apply", "--file", &file.to_string_lossy()])??;
    let seen = wait::until(COMMAND_LIMIT, || {
        size(vm1).ok().filter(|size| *size == GROWN_LEN.to_string())
    });
    seen.ok_or_else(|| format!("the guest still sees {:?}\n{}", size(vm1), scene.site.log("dpu")))?;
    vm1.run(
        "printf %-4096d 4713 | dd of=/dev/vda bs=4096 count=1 seek=24575 oflag=direct conv=notrunc,fsync 2>/dev/null",
        COMMAND_LIMIT,
    )?;
    Ok(())
}
