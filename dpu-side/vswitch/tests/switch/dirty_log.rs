//! Live migration: every page of guest memory that changes is marked, whatever changes it.

use std::{fs::File, os::unix::fs::FileExt, sync::Arc};

use crate::FEATURES;
use outboard_ring::{DirtyLog, RingLog, driver::RAM_START};
use rustix::fs::{MemfdFlags, memfd_create};
use vhost_net_dpu::{
    QueueKind,
    header::{GSO_TCPV4, NEEDS_CSUM, NetHeader},
};
use virtio_bindings::{
    virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4},
    virtio_ring::VIRTIO_RING_F_EVENT_IDX,
};

use crate::{
    frames::{ping, tcp, udp},
    rig::{Rig, mac},
};

const RAM_LEN: usize = 64 << 20;
const PAGE_LEN: usize = 4096;
const LOG_LEN: u64 = (RAM_START + RAM_LEN as u64) / (8 * PAGE_LEN as u64);

/// A guest's log, as its VMM sees it.
struct Log {
    file: File,
    log: Arc<DirtyLog>,
}

impl Log {
    fn new() -> Self {
        let file = File::from(memfd_create("log", MemfdFlags::CLOEXEC).expect("memfd_create"));
        file.set_len(LOG_LEN).expect("ftruncate");
        let log = Arc::new(DirtyLog::map(&file, 0, LOG_LEN).expect("a plain memfd"));
        Self { file, log }
    }

    /// The marked pages of the guest's memory; the marks are taken off.
    fn take(&self) -> Vec<usize> {
        let len = usize::try_from(LOG_LEN).expect("short");
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, 0).expect("the log");
        self.file.write_all_at(&vec![0; len], 0).expect("the log");
        let first = usize::try_from(RAM_START).expect("small") / PAGE_LEN;
        (0..8 * len)
            .filter(|page| bytes[page / 8] & 1 << (page % 8) != 0)
            .map(|page| page - first)
            .collect()
    }
}

fn ram(rig: &Rig, n: usize) -> Vec<u8> {
    let in_use = rig.guests[n].ram.alloc(1, 1) - RAM_START;
    let mut bytes = vec![
        0;
        usize::try_from(in_use)
            .expect("it is mapped")
            .next_multiple_of(PAGE_LEN)
    ];
    rig.guests[n]
        .ram
        .file()
        .read_exact_at(&mut bytes, 0)
        .expect("guest memory");
    bytes
}

/// Has the switch log what it writes to guest `n`.
fn log_on(rig: &mut Rig, n: usize, log: &Log) {
    for pair in 0..u16::try_from(rig.guests[n].pairs.len()).expect("few") {
        let drivers = &rig.guests[n].pairs[usize::from(pair)];
        let used = [drivers.rx.config().used, drivers.tx.config().used];
        for (kind, used) in [QueueKind::Rx { pair }, QueueKind::Tx { pair }].into_iter().zip(used) {
            let log = RingLog {
                log: log.log.clone(),
                used_addr: Some(used),
            };
            rig.switch
                .set_log(rig.guests[n].name, kind.index(), Some(log))
                .expect("it runs");
        }
    }
}

/// The pages of a guest's memory that `step` changed, and those it marked.
fn changed(rig: &mut Rig, n: usize, log: &Log, step: impl FnOnce(&mut Rig)) -> (Vec<usize>, Vec<usize>) {
    log.take();
    let before = ram(rig, n);
    step(rig);
    let after = ram(rig, n);
    let pages = before.chunks(PAGE_LEN).zip(after.chunks(PAGE_LEN)).enumerate();
    let changed = pages.filter(|(_, (a, b))| a != b).map(|(page, _)| page).collect();
    (changed, log.take())
}

#[test]
fn every_page_that_is_written_is_marked() {
    let poor = FEATURES & !(1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_RING_F_EVENT_IDX);
    let cutting = FEATURES & !(1 << VIRTIO_NET_F_GUEST_TSO4);
    let large = NetHeader {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        gso_size: 1400,
        hdr_len: 54,
        csum_start: 34,
        csum_offset: 16,
        ..NetHeader::default()
    };
    for features in [FEATURES, poor, cutting] {
        let mut rig = Rig::with_pairs(&[FEATURES, features], 2);
        let log = Log::new();
        // Before it is on, nothing is marked.
        let (pages, marked) = changed(&mut rig, 1, &log, |rig| rig.send_plain(0, &ping(mac(1), mac(2))));
        assert!(!pages.is_empty() && marked.is_empty());
        log_on(&mut rig, 1, &log);
        let frames = [
            (NetHeader::default(), ping(mac(1), mac(2))),
            (large, tcp(false, mac(1), mac(2), &[7; 30_000])),
            (large, tcp(false, mac(1), mac(2), &[9; 5_000])),
        ];
        for (header, frame) in &frames {
            // The driver's own writes are the VMM's to know of: they come before.
            rig.guests[0].queue(*header, frame);
            rig.guests[0].tx.publish();
            let (pages, marked) = changed(&mut rig, 1, &log, Rig::breathe);
            assert!(
                pages.len() > 1 && pages.iter().all(|page| marked.contains(page)),
                "{pages:?} of {marked:?}"
            );
            // Not much more than that: whole buffers would be a waste of the VM's downtime.
            assert!(marked.len() <= pages.len() + 2, "{pages:?} of {marked:?}");
        }
        // What it sends: the used entries.
        rig.guests[1].queue_on(1, NetHeader::default(), &ping(mac(2), mac(1)));
        rig.guests[1].pairs[1].tx.publish();
        let (pages, marked) = changed(&mut rig, 1, &log, Rig::breathe);
        assert!(!pages.is_empty() && pages.iter().all(|page| marked.contains(page)));
        // Going to sleep and waking writes to the ring as well.
        let (pages, marked) = changed(&mut rig, 1, &log, |rig| {
            rig.switch.before_sleep();
        });
        assert!(!pages.is_empty() && pages.iter().all(|page| marked.contains(page)));
        let (pages, marked) = changed(&mut rig, 1, &log, |rig| rig.switch.after_sleep());
        assert!(pages.iter().all(|page| marked.contains(page)));
        for index in 0..4 {
            rig.switch.set_log("b", index, None).expect("it runs");
        }
        let (pages, marked) = changed(&mut rig, 1, &log, |rig| rig.send_plain(0, &ping(mac(1), mac(2))));
        assert!(
            !pages.is_empty() && marked.is_empty(),
            "a cancelled migration costs nothing more"
        );
    }
}

#[test]
fn a_frame_that_could_not_be_finished_is_marked_all_the_same() {
    let mut rig = Rig::new(&[FEATURES; 3]);
    let log = Log::new();
    log_on(&mut rig, 1, &log);
    let frame = udp((mac(1), mac(2)), ([10, 0, 0, 1], [10, 0, 0, 2]), (1, 2), &[3; 1358]);
    let guest = &mut rig.guests[0];
    // The rest of the frame is in pages that go.
    let at = guest.ram.alloc(4096, 4096);
    let far = RAM_LEN as u64 - 4096;
    guest.tx.write(at, &[&[0; 12][..], &frame[..300]].concat());
    guest
        .tx
        .add(&[(at, 312), (RAM_START + far, 1100)], &[])
        .expect("there is room");
    guest.tx.publish();
    guest.ram.file().set_len(far).expect("ftruncate");
    let (pages, marked) = changed(&mut rig, 1, &log, Rig::breathe);
    assert_eq!(rig.guests[1].received(), []);
    assert!(
        !pages.is_empty() && pages.iter().all(|page| marked.contains(page)),
        "{pages:?} of {marked:?}"
    );
}
