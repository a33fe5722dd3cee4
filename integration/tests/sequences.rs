//! The message sequences and feature sets of the VMMs and drivers in the field, played by scripted front ends through the
//! real shim and DPU: what each negotiates is offered, and data goes both ways under it.

use std::{
    os::fd::AsFd,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use outboard_integration::{
    frontend::{
        BlkLoad, F_BLK_CONFIG_WCE, F_BLK_MQ, F_BLK_SHAPE, F_BLK_TRIM, F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC,
        F_LOG_ALL, NetGuest, PROTOCOL_F_CONFIG, PROTOCOL_F_CONFIGURE_MEM_SLOTS, PROTOCOL_F_INFLIGHT_SHMFD,
        PROTOCOL_F_LOG_SHMFD, PROTOCOL_F_MQ, Request, Rings, Wanted, echo_frame, vring_state,
    },
    ledger::BLOCK_LEN,
    site::{LIMIT, Outcome, Site},
    wait,
};
use outboard_ring::driver::{GuestRam, RAM_START};

const BLOCKS: usize = 256;
const DEPTH: usize = 12;
/// Requests that show that a session works.
const REQUESTS: u64 = 2000;
const FRAMES: u16 = 300;

/// `VIRTIO_NET_F_*` bits (virtio 1.3 §5.1.3).
const NET_CSUM: u64 = 1 << 0 | 1 << 1;
const NET_TSO: u64 = 1 << 7 | 1 << 8 | 1 << 11 | 1 << 12;
const NET_MRG_RXBUF: u64 = 1 << 15;
const NET_MTU: u64 = 1 << 3;
const NET_USO: u64 = 1 << 54 | 1 << 55 | 1 << 56;
const NET_HEADER_LEN: usize = 12;

fn site() -> Outcome<Site> {
    let mut topology = String::from(
        "[[network]]\nname = \"blue\"\nsubnets = [\"10.0.0.0/24\"]\n\
         [[volume]]\nname = \"disk1\"\nsize = \"1MiB\"\nbackend = { memory = true }\ncard = \"local\"\n",
    );
    for number in 1..=2 {
        topology += &format!(
            "[[port]]\nname = \"vm{number}\"\nnetwork = \"blue\"\nmac = \"52:54:00:00:00:0{number}\"\n\
             addresses = [\"10.0.0.{number}\"]\ncard = \"local\"\n"
        );
    }
    Site::new(&topology)
}

/// The disk's clients: who, and what they negotiate.
fn blk_clients() -> [(&'static str, Wanted); 5] {
    let wanted = Wanted {
        queue_size: 64,
        ..Wanted::default()
    };
    [
        (
            "QEMU",
            Wanted {
                features: F_EVENT_IDX | F_INDIRECT_DESC | F_BLK_SHAPE | F_BLK_CONFIG_WCE | F_BLK_TRIM | F_BLK_MQ,
                protocol: PROTOCOL_F_MQ
                    | PROTOCOL_F_LOG_SHMFD
                    | PROTOCOL_F_CONFIG
                    | PROTOCOL_F_INFLIGHT_SHMFD
                    | PROTOCOL_F_CONFIGURE_MEM_SLOTS,
                queues: 4,
                regions: 2,
                ..wanted
            },
        ),
        (
            "cloud-hypervisor",
            Wanted {
                features: F_EVENT_IDX | F_INDIRECT_DESC | F_BLK_SHAPE | F_BLK_CONFIG_WCE | F_BLK_TRIM | F_BLK_MQ,
                protocol: PROTOCOL_F_MQ
                    | PROTOCOL_F_CONFIG
                    | PROTOCOL_F_INFLIGHT_SHMFD
                    | PROTOCOL_F_CONFIGURE_MEM_SLOTS,
                queues: 2,
                queue_size: 128,
                regions: 4,
                ..wanted
            },
        ),
        (
            "libblkio",
            Wanted {
                features: F_BLK_SHAPE | F_BLK_TRIM | F_BLK_MQ,
                protocol: PROTOCOL_F_CONFIG | PROTOCOL_F_CONFIGURE_MEM_SLOTS | PROTOCOL_F_MQ,
                features_first: true,
                ..wanted
            },
        ),
        (
            "libblkio with EVENT_IDX",
            Wanted {
                features: F_EVENT_IDX | F_BLK_SHAPE | F_BLK_MQ,
                protocol: PROTOCOL_F_CONFIG | PROTOCOL_F_CONFIGURE_MEM_SLOTS | PROTOCOL_F_MQ,
                features_first: true,
                queues: 2,
                ..wanted
            },
        ),
        ("firmware", wanted),
    ]
}

#[test]
fn every_disk_client_is_served() -> Outcome {
    let site = site()?;
    let socket = site.run_path("volumes/disk1.sock");
    for (who, wanted) in blk_clients() {
        // libblkio connects once to look, and again to work
        if wanted.features_first {
            let look = wait::until(LIMIT, || {
                let frontend = outboard_integration::frontend::Frontend::connect(&socket).ok()?;
                frontend.ask(Request::GetFeatures).ok()
            });
            look.ok_or_else(|| format!("{who}: no connection to look at"))?;
        }
        let error = || format!("{who}: {:?}", Rings::start(&socket, wanted).err());
        let load = wait::until(LIMIT, || BlkLoad::start(&socket, wanted, BLOCKS, DEPTH, 5).ok());
        let mut load = load.ok_or_else(error)?;
        // blocks keep what the client before wrote: this one begins with zeros of its own
        zero(&mut load)?;
        let progress = load.progress();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| -> Outcome {
            let running = scope.spawn(|| load.run(&stop));
            let enough = wait::until(LIMIT, || {
                (progress.requests.load(Ordering::Relaxed) >= REQUESTS || running.is_finished()).then_some(())
            });
            stop.store(true, Ordering::Relaxed);
            let ran = running.join().map_err(|_| format!("{who}: the load panicked"))?;
            ran.map_err(|error| format!("{who}: {error}"))?;
            Ok(enough.ok_or_else(|| format!("{who}: too few requests"))?)
        })?;
        load.check_everything()?;
        for index in 0..load.rings.queues.len() {
            let (stopped, used) = (
                load.rings.stop_queue(index)?,
                load.rings.queues[index].driver.published_used(),
            );
            assert_eq!(stopped, used, "{who}: queue {index} stops where its used ring stands");
        }
    }
    Ok(())
}

/// Fills the volume with zeros.
fn zero(load: &mut BlkLoad) -> Outcome {
    load.overwrite_with_zeros()?;
    Ok(load.check_everything()?)
}

/// The NIC's clients. QEMU answers for configuration space and control queue itself, so those are not asked for here.
fn net_clients() -> [(&'static str, Wanted); 5] {
    let wanted = Wanted {
        queues: 2,
        queue_size: 64,
        ..Wanted::default()
    };
    [
        (
            "QEMU",
            Wanted {
                features: F_EVENT_IDX | F_INDIRECT_DESC | NET_CSUM | NET_TSO | NET_MRG_RXBUF | NET_USO | NET_MTU,
                protocol: PROTOCOL_F_MQ | PROTOCOL_F_LOG_SHMFD | PROTOCOL_F_CONFIGURE_MEM_SLOTS,
                queues: 8,
                regions: 2,
                ..wanted
            },
        ),
        (
            "cloud-hypervisor",
            Wanted {
                features: F_EVENT_IDX | NET_CSUM | NET_TSO | NET_MRG_RXBUF,
                protocol: PROTOCOL_F_MQ | PROTOCOL_F_CONFIGURE_MEM_SLOTS,
                queues: 4,
                regions: 4,
                ..wanted
            },
        ),
        (
            "virtio-user",
            Wanted {
                features: F_INDIRECT_DESC | NET_MRG_RXBUF | F_IN_ORDER,
                protocol: PROTOCOL_F_MQ,
                queues: 2,
                ..wanted
            },
        ),
        (
            "virtio-user without mergeable buffers",
            Wanted {
                features: F_IN_ORDER,
                ..wanted
            },
        ),
        ("firmware", wanted),
    ]
}

#[test]
fn every_nic_client_is_served() -> Outcome {
    let site = site()?;
    let mut peer = wait::until(LIMIT, || NetGuest::start(&site.run_path("ports/vm2.sock")).ok()).ok_or("vm2")?;
    for (who, wanted) in net_clients() {
        let socket = site.run_path("ports/vm1.sock");
        let rings = wait::until(LIMIT, || Rings::start(&socket, wanted).ok());
        let mut rings = rings.ok_or_else(|| format!("{who}: {:?}", Rings::start(&socket, wanted).err()))?;
        site.wait_binding("port", "vm1", "active")?;
        for pair in 0..rings.queues.len() / 2 {
            let ring = &mut rings.queues[2 * pair];
            while ring.driver.add_bytes(&[], &[2048]).is_some() {}
            ring.driver.publish();
            ring.kick.write(1)?;
        }
        for sequence in 0..FRAMES {
            // each pair sends in turn; frames to it come by whichever pair the device chooses
            let pairs = rings.queues.len() / 2;
            let ring = &mut rings.queues[2 * (usize::from(sequence) % pairs) + 1];
            let frame = echo_frame(1, 2, sequence);
            while ring.driver.used().is_some() {}
            let added = ring.driver.add_bytes(&[&[0; NET_HEADER_LEN], &frame], &[]);
            assert!(added.is_some(), "{who}: the tx ring is full");
            ring.driver.publish();
            if ring.driver.needs_kick() {
                ring.kick.write(1)?;
            }
            assert_eq!(peer.receive(LIMIT), Some(frame), "{who}: frame {sequence} arrives");

            let back = echo_frame(2, 1, sequence);
            assert!(peer.send(&back));
            assert_eq!(
                receive(&mut rings),
                Some(back),
                "{who}: frame {sequence} arrives at the client"
            );
        }
    }
    Ok(())
}

/// The next frame on any rx ring.
fn receive(rings: &mut Rings) -> Option<Vec<u8>> {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        for pair in 0..rings.queues.len() / 2 {
            let ring = &mut rings.queues[2 * pair];
            if let Some((head, len)) = ring.driver.used() {
                let bytes = ring.driver.read(ring.driver.buffer(head), usize::try_from(len).ok()?);
                while ring.driver.add_bytes(&[], &[2048]).is_some() {}
                ring.driver.publish();
                if ring.driver.needs_kick() {
                    ring.kick.write(1).ok()?;
                }
                return bytes.get(NET_HEADER_LEN..).map(<[u8]>::to_vec);
            }
        }
        thread::sleep(Duration::from_micros(200));
    }
    None
}

/// Which pages a dirty log names.
fn dirty_pages(log: &GuestRam) -> Vec<u64> {
    let bytes = {
        let mut bytes = vec![0; 8192];
        log.memory().read(RAM_START, &mut bytes).expect("the log is mapped");
        bytes
    };
    let bits = bytes.iter().enumerate().flat_map(|(at, byte)| {
        let page = at as u64 * 8;
        (0..8)
            .filter(move |bit| byte & 1 << bit != 0)
            .map(move |bit| page + bit)
    });
    bits.collect()
}

/// QEMU's migration: logging is switched on under running queues, everything that the device writes is named, and
/// logging is switched off again when the migration is called off.
#[test]
fn a_migration_s_dirty_log_names_what_was_written() -> Outcome {
    let site = site()?;
    let socket = site.run_path("volumes/disk1.sock");
    let wanted = Wanted {
        protocol: PROTOCOL_F_LOG_SHMFD,
        ..Wanted::default()
    };
    let load = wait::until(LIMIT, || BlkLoad::start(&socket, wanted, BLOCKS, DEPTH, 5).ok());
    let mut load = load.ok_or_else(|| format!("{:?}", Rings::start(&socket, wanted).err()))?;
    load.overwrite_with_zeros()?;

    let log = GuestRam::new(8192);
    let payload = [8192u64.to_ne_bytes(), 0u64.to_ne_bytes()].concat();
    let frontend = &load.rings.frontend;
    frontend.send(Request::SetLogBase, &payload, &[log.file().as_fd()])?;
    frontend.reply(Request::SetLogBase)?;
    let set_features = |rings: &Rings, more: u64| {
        rings
            .frontend
            .send_acked(Request::SetFeatures, &(rings.features | more).to_ne_bytes(), &[])
    };
    let used = load.rings.queues[0].driver.config().used;
    let mark = |rings: &Rings, flags: u32| {
        let addr = rings.vring_addr(0, flags, used);
        rings.frontend.send_acked(Request::SetVringAddr, &addr, &[])
    };
    set_features(&load.rings, F_LOG_ALL)?;
    mark(&load.rings, 1)?;
    // beginning to log may note the ring itself, and nothing else
    let page = |addr: u64| addr / 4096;
    assert!(
        dirty_pages(&log).iter().all(|dirty| *dirty == page(used)),
        "nothing was written yet"
    );

    load.check_everything()?;
    let dirty = dirty_pages(&log);
    for addr in load.written_addresses() {
        assert!(
            dirty.contains(&page(addr)),
            "what was read into page {} is not in the log: {dirty:?}",
            page(addr)
        );
    }
    assert!(dirty.contains(&page(used)), "the used ring is not in the log");
    let avail = page(load.rings.queues[0].driver.config().desc);
    assert!(
        avail == page(used) || !dirty.contains(&avail),
        "what only the driver writes is not in the log"
    );

    mark(&load.rings, 0)?;
    set_features(&load.rings, 0)?;
    log.memory().write(RAM_START, &[0; 8192]).map_err(|e| e.to_string())?;
    load.check_everything()?;
    assert_eq!(dirty_pages(&log), Vec::<u64>::new(), "logging is off");
    let frontend = &load.rings.frontend;
    frontend.send_acked(Request::SetVringEnable, &vring_state(0, 0), &[])?;
    assert_eq!(
        load.rings.stop_queue(0)?,
        load.rings.queues[0].driver.published_used(),
        "the queue stops where its used ring stands"
    );
    assert_eq!(BLOCK_LEN, 4096, "a block is a page here");
    Ok(())
}
