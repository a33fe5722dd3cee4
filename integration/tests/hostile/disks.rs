//! Attacks on a volume.

use std::{io, os::fd::AsFd, thread, time::Duration};

use outboard_integration::{
    frontend::{
        F_INDIRECT_DESC, F_LOG_ALL, Frontend, PROTOCOL_F_INFLIGHT_SHMFD, PROTOCOL_F_LOG_SHMFD, Request, Rings, Wanted,
    },
    wait,
};
use outboard_ring::driver::{GuestRam, RAM_START};

use crate::scene::{LIMIT, Outcome, Scene, usage};

/// Request types (virtio 1.3 §5.2.6).
const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const OK: u8 = 0;
const UNWRITTEN: u8 = 0xff;
const BLOCK_LEN: u32 = 4096;

fn disk(scene: &Scene, wanted: Wanted) -> Outcome<Rings> {
    let socket = scene.stack.volume_socket("disk1");
    let rings = wait::until(LIMIT, || Rings::start(&socket, wanted).ok());
    Ok(rings.ok_or_else(|| format!("disk1 does not start: {:?}", Rings::start(&socket, wanted).err()))?)
}

/// Memory of one request.
struct Slot {
    header: u64,
    data: u64,
    status: u64,
}

impl Slot {
    fn new(ram: &GuestRam) -> Self {
        Self {
            header: ram.alloc(16, 16),
            data: ram.alloc(u64::from(BLOCK_LEN), 4096),
            status: ram.alloc(1, 1),
        }
    }
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

/// How long a request may wait for an answer that it should not get.
const SILENCE: Duration = Duration::from_millis(500);

/// Makes a request available out of any buffers and waits for an answer: its status, and how much was written.
fn request(
    rings: &mut Rings,
    slot: &Slot,
    head: &[u8],
    [readable, writable]: [&[(u64, u32)]; 2],
    patience: Duration,
) -> io::Result<(u8, Option<u32>)> {
    let ring = &mut rings.queues[0];
    ring.driver.write(slot.header, head);
    ring.driver.write(slot.status, &[UNWRITTEN]);
    ring.driver.add(readable, writable);
    ring.driver.publish();
    ring.kick.write(1)?;
    let used = wait::until(patience, || ring.driver.used());
    Ok((ring.driver.read(slot.status, 1)[0], used.map(|(_, len)| len)))
}

/// An honest read, which shows that the volume works.
fn reads(rings: &mut Rings, slot: &Slot) -> io::Result<bool> {
    reads_within(rings, slot, LIMIT)
}

fn reads_within(rings: &mut Rings, slot: &Slot, patience: Duration) -> io::Result<bool> {
    let parts: [&[_]; 2] = [&[(slot.header, 16)], &[(slot.data, BLOCK_LEN), (slot.status, 1)]];
    let used = request(rings, slot, &header(T_IN, 0), parts, patience)?;
    Ok(used == (OK, Some(BLOCK_LEN + 1)))
}

/// A request's readable and writable buffers.
type Parts = fn(&Slot) -> [Vec<(u64, u32)>; 2];

/// A block request whose parts have the wrong lengths or directions never succeeds and harms nobody; a good one does.
#[test]
fn h26_h33_requests_whose_parts_do_not_fit() -> Outcome {
    let mut scene = Scene::new("")?;
    let attacks: [(&str, u32, Parts); 7] = [
        ("a read of 513 bytes", T_IN, |slot| {
            [vec![(slot.header, 16)], vec![(slot.data, 513), (slot.status, 1)]]
        }),
        ("a write of 511 bytes", T_OUT, |slot| {
            [vec![(slot.header, 16), (slot.data, 511)], vec![(slot.status, 1)]]
        }),
        ("a header of 15 bytes", T_IN, |slot| {
            [vec![(slot.header, 15)], vec![(slot.data, 512), (slot.status, 1)]]
        }),
        ("no status", T_OUT, |slot| {
            [vec![(slot.header, 16), (slot.data, 512)], vec![]]
        }),
        ("a status that is read-only", T_OUT, |slot| {
            [vec![(slot.header, 16), (slot.data, 512), (slot.status, 1)], vec![]]
        }),
        ("a write into memory that is written", T_OUT, |slot| {
            [vec![(slot.header, 16)], vec![(slot.data, 512), (slot.status, 1)]]
        }),
        ("a read out of memory that is read", T_IN, |slot| {
            [vec![(slot.header, 16), (slot.data, 512)], vec![(slot.status, 1)]]
        }),
    ];
    for (what, kind, parts) in attacks {
        let mut rings = disk(&scene, Wanted::default())?;
        let (good, bad) = (Slot::new(&rings.ram), Slot::new(&rings.ram));
        assert!(reads(&mut rings, &good)?, "{what}: an honest read before");
        let mark = [0x77; 512];
        rings.queues[0].driver.write(bad.data, &mark);
        let [readable, writable] = parts(&bad);
        let (status, _) = request(&mut rings, &bad, &header(kind, 0), [&readable, &writable], SILENCE)?;
        assert_ne!(status, OK, "{what} does not succeed");
        if kind == T_OUT {
            // nothing of it reached the volume
            drop(rings);
            let mut rings = disk(&scene, Wanted::default())?;
            let slot = Slot::new(&rings.ram);
            assert!(reads(&mut rings, &slot)?, "{what}: an honest read after");
            let block = rings.queues[0].driver.read(slot.data, 512);
            assert_eq!(block, [0; 512], "{what}: the volume is as it was");
        }
    }
    scene.assert_unharmed()?;
    scene.stack.stop()?;
    Ok(())
}

/// A queue is stopped with a thousand reads in flight: once that is answered, nothing is written to the guest any more.
#[test]
fn h29_stopped_with_a_thousand_in_flight() -> Outcome {
    const REQUESTS: u16 = 1000;
    const MARK: u8 = 0x5c;
    let mut scene = Scene::new("")?;
    for round in 0..4 {
        let wanted = Wanted {
            features: F_INDIRECT_DESC,
            queue_size: 1024,
            ram_len: 64 << 20,
            ..Wanted::default()
        };
        let mut rings = disk(&scene, wanted)?;
        let slots: Vec<Slot> = (0..REQUESTS).map(|_| Slot::new(&rings.ram)).collect();
        let ring = &mut rings.queues[0];
        for slot in &slots {
            ring.driver.write(slot.header, &header(T_IN, 0));
            let added = ring
                .driver
                .add_indirect(&[(slot.header, 16)], &[(slot.data, BLOCK_LEN), (slot.status, 1)]);
            added.ok_or("the ring is full")?;
        }
        ring.driver.publish();
        ring.kick.write(1)?;
        thread::sleep(Duration::from_micros(200 * round));
        let base = rings.stop_queue(0)?;
        let driver = &rings.queues[0].driver;
        assert_eq!(
            base,
            driver.published_used(),
            "what was taken is done, the rest was not taken"
        );
        for slot in &slots {
            driver.write(slot.data, &[MARK; BLOCK_LEN as usize]);
            driver.write(slot.status, &[MARK]);
        }
        thread::sleep(Duration::from_millis(300));
        for slot in &slots {
            assert_eq!(driver.read(slot.status, 1), [MARK], "a status written late");
            let data = driver.read(slot.data, BLOCK_LEN as usize);
            assert!(data.iter().all(|byte| *byte == MARK), "data written late");
        }
        assert_eq!(base, driver.published_used(), "a used entry written late");
    }
    scene.assert_unharmed()?;
    scene.stack.stop()?;
    Ok(())
}

/// Resident memory and descriptors of a process.
fn held(pid: u32) -> io::Result<(u64, usize)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    Ok((kib.unwrap_or(0), usage(pid)?.0))
}

#[test]
fn h07_dirty_logs_that_do_not_fit() -> Outcome {
    let mut scene = Scene::new("")?;
    let wanted = Wanted {
        protocol: PROTOCOL_F_LOG_SHMFD,
        ..Wanted::default()
    };
    let log = GuestRam::new(8192);
    for (what, size, offset) in [
        ("size and offset that wrap", u64::MAX - 4095, 8192),
        ("an offset that wraps", 4096, u64::MAX - 4095),
        ("a log larger than its file", 1 << 30, 0),
        ("a log beyond its file", 4096, 1 << 30),
        ("no bytes at all", 0, 0),
        ("fewer bits than the memory has pages", 8, 0),
    ] {
        let mut rings = disk(&scene, wanted)?;
        let slot = Slot::new(&rings.ram);
        assert!(reads(&mut rings, &slot)?, "{what}: an honest read before");
        let payload = [u64::to_ne_bytes(size), u64::to_ne_bytes(offset)].concat();
        let frontend = &rings.frontend;
        frontend.send(Request::SetLogBase, &payload, &[log.file().as_fd()])?;
        // refused at once, or when logging is to begin: in no case is anything logged there
        let features = (rings.features | F_LOG_ALL).to_ne_bytes();
        let taken = frontend
            .reply(Request::SetLogBase)
            .and_then(|_| frontend.send_acked(Request::SetFeatures, &features, &[]));
        // The shim may take it on its own account while no DPU is there: then none that comes takes the session, and
        // nothing is served any more.
        let refused = taken.is_err() || !reads_within(&mut rings, &slot, SILENCE)?;
        assert!(refused, "{what} is refused");
        let mut logged = [0; 8192];
        log.memory().read(RAM_START, &mut logged)?;
        assert_eq!(logged, [0; 8192], "{what}: nothing is logged");
    }
    scene.assert_unharmed()?;
    scene.stack.stop()?;
    Ok(())
}

#[test]
fn h08_h11_in_flight_regions_that_do_not_fit_and_floods_of_them() -> Outcome {
    const FLOOD: usize = 5000;
    let mut scene = Scene::new("")?;
    let wanted = Wanted {
        protocol: PROTOCOL_F_INFLIGHT_SHMFD,
        ..Wanted::default()
    };
    let socket = scene.stack.volume_socket("disk1");
    let negotiated = || {
        wait::until(LIMIT, || {
            Rings::negotiated(Frontend::connect(&socket).ok()?, wanted).ok()
        })
    };
    let shape = |count: u16, size: u16| [count.to_ne_bytes(), size.to_ne_bytes()].concat();
    for (what, len, offset, count, size) in [
        ("more queues than the device has", 1u64 << 20, 0u64, 65_535u16, 64u16),
        ("no queue", 1 << 20, 0, 0, 64),
        ("descriptors that no queue has", 1 << 20, 0, 1, 65_535),
        ("no descriptors", 1 << 20, 0, 1, 0),
        ("a region shorter than its queues", 64, 0, 1, 1024),
        ("a region beyond its file", 1 << 40, 0, 1, 64),
        ("an offset that wraps", 1 << 20, u64::MAX - 4095, 1, 64),
    ] {
        let rings = negotiated().ok_or("disk1 does not start")?;
        let region = GuestRam::new(1 << 20);
        let payload = [
            &len.to_ne_bytes()[..],
            &offset.to_ne_bytes(),
            &shape(count, size),
            &[0; 4],
        ]
        .concat();
        let frontend = &rings.frontend;
        let mut taken = frontend.send_acked(Request::SetInflightFd, &payload, &[region.file().as_fd()]);
        if taken.is_ok() {
            // at the latest when a queue is to use it
            taken = rings.send_memory().and_then(|()| rings.start_queue(0));
        }
        assert!(taken.is_err(), "{what} is refused");
    }

    let rings = negotiated().ok_or("disk1 does not start")?;
    let ask = || -> io::Result<()> {
        let payload = [&[0; 16], &shape(1, 1024)[..], &[0; 4]].concat();
        rings.frontend.send(Request::GetInflightFd, &payload, &[])?;
        rings.frontend.reply_with_fd(Request::GetInflightFd)?;
        Ok(())
    };
    (0..100).try_for_each(|_| ask())?;
    let pids = [scene.stack.pid("shim").ok_or("no shim")?, scene.dpu];
    let before = [held(pids[0])?, held(pids[1])?];
    (0..FLOOD).try_for_each(|_| ask())?;
    for (pid, before) in pids.into_iter().zip(before) {
        let after = held(pid)?;
        // each region would be 16 KiB
        assert!(
            after.0 < before.0 + 4096 && after.1 <= before.1 + 8,
            "KiB and descriptors: {before:?}, after {FLOOD} requests {after:?}"
        );
    }
    drop(rings);
    scene.assert_unharmed()?;
    scene.stack.stop()?;
    Ok(())
}
