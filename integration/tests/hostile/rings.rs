//! Attacks by what is in the rings.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use outboard_integration::{
    frontend::{NetGuest, Request, echo_frame, vring_state},
    wait,
};
use outboard_ring::{
    DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor,
    driver::{Driver, GuestRam},
};

use crate::scene::{LIMIT, Outcome, Scene, connected, flow};

#[test]
fn h19_h24_malformed_chains() -> Outcome {
    let mut scene = Scene::new("")?;
    let ram_start = outboard_ring::driver::RAM_START;
    let good = Descriptor {
        addr: ram_start,
        len: 64,
        flags: 0,
        next: 0,
    };
    let tables: [(&str, &[Descriptor]); 7] = [
        (
            "a loop",
            &[Descriptor {
                flags: DESC_F_NEXT,
                next: 0,
                ..good
            }],
        ),
        (
            "a next outside the table",
            &[Descriptor {
                flags: DESC_F_NEXT,
                next: 64,
                ..good
            }],
        ),
        (
            "nested indirect",
            &[
                Descriptor {
                    flags: DESC_F_INDIRECT | DESC_F_NEXT,
                    next: 1,
                    len: 32,
                    ..good
                },
                good,
            ],
        ),
        (
            "an indirect table of 65,535 entries",
            &[Descriptor {
                flags: DESC_F_INDIRECT,
                len: 65_535 * 16,
                ..good
            }],
        ),
        (
            "more than 4 GiB",
            &[
                Descriptor {
                    flags: DESC_F_NEXT,
                    next: 1,
                    len: u32::MAX,
                    ..good
                },
                Descriptor {
                    flags: DESC_F_NEXT,
                    next: 2,
                    len: u32::MAX,
                    ..good
                },
                good,
            ],
        ),
        (
            "length 0, unmapped",
            &[Descriptor {
                addr: 8,
                len: 0,
                ..good
            }],
        ),
        (
            "address and length that wrap",
            &[Descriptor {
                addr: u64::MAX - 8,
                len: 64,
                ..good
            }],
        ),
    ];
    for (what, descriptors) in tables {
        let mut attacker = connected(&scene.stack, "vm3")?;
        for (index, descriptor) in descriptors.iter().enumerate() {
            attacker.tx.set_descriptor(u16::try_from(index)?, *descriptor);
        }
        attacker.tx.offer(0);
        attacker.tx.publish();
        attacker.kick_tx();
        scene.exchange()?;
        assert_eq!(attacker.tx.published_used(), 0, "{what}: nothing of the chain is used");
        assert!(
            !attacker_frame_passes(&mut attacker, &mut scene.neighbours[0]),
            "{what}: the ring stays broken"
        );
    }
    scene.assert_unharmed()?;
    scene.stack.stop()?;
    Ok(())
}

fn attacker_frame_passes(attacker: &mut NetGuest, neighbour: &mut NetGuest) -> bool {
    attacker.send(&echo_frame(3, 1, 7));
    neighbour.receive(Duration::from_millis(300)).is_some()
}

/// Sends a frame whose chain has a descriptor in the wrong place; what becomes of the ring.
fn offered(attacker: &mut NetGuest, descriptors: &[Descriptor], heads: &[u16]) {
    for (index, descriptor) in (0u16..).zip(descriptors) {
        attacker.tx.set_descriptor(index, *descriptor);
    }
    for head in heads {
        attacker.tx.offer(*head);
    }
    attacker.tx.publish();
    attacker.kick_tx();
}

/// A good frame in the buffer of descriptor 0, in one readable descriptor.
fn good_frame(attacker: &NetGuest) -> Descriptor {
    let frame = [&[0; 12][..], &echo_frame(3, 1, 0)].concat();
    let addr = attacker.tx.buffer(0);
    attacker.tx.write(addr, &frame);
    Descriptor {
        addr,
        len: u32::try_from(frame.len()).unwrap_or(0),
        flags: 0,
        next: 0,
    }
}

#[test]
fn h20_a_head_made_available_twice() -> Outcome {
    // How many buffers of its rx ring are used when a neighbour sends to it.
    let used = |scene: &mut Scene, twice: bool| -> Outcome<u16> {
        let mut attacker = connected(&scene.stack, "vm3")?;
        // buffers stay in flight there until a frame comes
        let head = attacker.rx.add_bytes(&[], &[64]);
        assert!(head.is_none(), "every descriptor is in flight");
        if twice {
            attacker.rx.offer(5);
            attacker.rx.publish();
            attacker.kicks[0].write(1)?;
        }
        scene.neighbours[0].send(&echo_frame(1, 3, 0));
        // these come after it
        scene.exchange()?;
        Ok(attacker.rx.published_used())
    };
    let mut scene = Scene::new("")?;
    assert_eq!(used(&mut scene, false)?, 1, "control: an honest ring gets the frame");
    assert_eq!(
        used(&mut scene, true)?,
        0,
        "nothing is received into a buffer that is in flight twice"
    );
    scene.assert_unharmed()?;
    scene.stack.stop()?;
    Ok(())
}

#[test]
fn h22_h23_indices_that_jump_and_heads_beyond_the_queue() -> Outcome {
    let mut scene = Scene::new("")?;
    for jump in [65u16, 1000, 0x8000, 0xffff] {
        let mut attacker = connected(&scene.stack, "vm3")?;
        attacker.tx.set_avail_idx(jump);
        attacker.kick_tx();
        scene.exchange()?;
        assert_eq!(
            attacker.tx.published_used(),
            0,
            "avail.idx jumps by {jump}: nothing is used"
        );
    }
    for head in [64u16, 65, 0x7fff, 0xffff] {
        let mut attacker = connected(&scene.stack, "vm3")?;
        let frame = good_frame(&attacker);
        offered(&mut attacker, &[frame], &[head]);
        scene.exchange()?;
        assert_eq!(attacker.tx.published_used(), 0, "head {head}: nothing is used");
        assert!(
            !attacker_frame_passes(&mut attacker, &mut scene.neighbours[0]),
            "head {head}: the ring is latched"
        );
    }
    // indices that pass 65,535 honestly work
    let mut attacker = scene.attacker()?;
    attacker.tx = wrapping(&attacker.ram);
    attacker.rx = wrapping(&attacker.ram);
    attacker.send_memory()?;
    attacker.start_queue(0)?;
    attacker.start_queue(1)?;
    attacker.fill_rx();
    flow(&mut attacker, &mut scene.neighbours[0], 3, 1)?;
    flow(&mut scene.neighbours[0], &mut attacker, 1, 3)?;
    drop(attacker);
    scene.assert_unharmed()?;
    scene.stack.stop()?;
    Ok(())
}

fn wrapping(ram: &GuestRam) -> Driver {
    Driver::new(ram, 64, 1 << 32).starting_at(65_500)
}

/// A thread of the guest rewrites frames while they are switched: what was checked is what is sent.
#[test]
fn h25_a_frame_that_changes_while_it_is_read() -> Outcome {
    let mut scene = Scene::new("")?;
    assert_eq!(
        spoofed_by_race(&mut scene, Duration::from_secs(1))?,
        0,
        "no frame has another source than the port's own"
    );
    scene.assert_unharmed()?;
    scene.stack.stop()?;

    let mut scene = Scene::new("source-guard")?;
    assert!(
        spoofed_by_race(&mut scene, LIMIT)? > 0,
        "the race makes spoofed frames, which the source guard stops"
    );
    Ok(())
}

/// How many frames with a foreign source a neighbour gets while the attacker's memory flips between two sources, and its
/// descriptors between a good length and none, within `time` or until one came.
fn spoofed_by_race(scene: &mut Scene, time: Duration) -> Outcome<usize> {
    let mut attacker = connected(&scene.stack, "vm3")?;
    let frame = good_frame(&attacker);
    attacker.tx.set_descriptor(0, frame);
    let stop = AtomicBool::new(false);
    let memory = attacker.ram.memory().clone();
    let source = frame.addr + 12 + 6;
    let address = frame.addr + 12 + 26;
    let mut spoofed = 0;
    thread::scope(|scope| -> Outcome {
        scope.spawn(|| {
            let (mine, other) = ([0x52, 0x54, 0, 0, 0, 3], [0x52, 0x54, 0, 0, 0, 2]);
            while !stop.load(Ordering::Relaxed) {
                for (mac, ip) in [(mine, [10, 0, 0, 3]), (other, [10, 0, 0, 2])] {
                    let _ = memory.write(source, &mac);
                    let _ = memory.write(address, &ip);
                }
            }
        });
        let until = Instant::now() + time;
        let mut offered = 0u16;
        while Instant::now() < until && spoofed == 0 {
            if attacker.tx.published_used() == offered {
                attacker.tx.offer(0);
                attacker.tx.publish();
                attacker.kick_tx();
                offered = offered.wrapping_add(1);
            }
            while let Some(frame) = scene.neighbours[0].receive(Duration::from_micros(50)) {
                if frame[6..12] != [0x52, 0x54, 0, 0, 0, 3] || frame[26..30] != [10, 0, 0, 3] {
                    spoofed += 1;
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        Ok(())
    })?;
    while scene.neighbours[0].receive(Duration::from_millis(200)).is_some() {}
    Ok(spoofed)
}

#[test]
fn h26_directions_out_of_order() -> Outcome {
    let mut scene = Scene::new("")?;
    let mut attacker = connected(&scene.stack, "vm3")?;
    let good = good_frame(&attacker);
    let first = Descriptor {
        flags: DESC_F_NEXT | DESC_F_WRITE,
        next: 1,
        ..good
    };
    offered(&mut attacker, &[first, good], &[0]);
    scene.exchange()?;
    assert_eq!(
        attacker.tx.published_used(),
        0,
        "readable after writable: nothing of it is used"
    );
    assert!(
        !attacker_frame_passes(&mut attacker, &mut scene.neighbours[0]),
        "the ring is latched"
    );
    drop(attacker);
    scene.assert_unharmed()?;
    scene.stack.stop()?;
    Ok(())
}

#[test]
fn h27_h28_rings_and_buffers_over_one_another() -> Outcome {
    // a queue whose used ring lies over its descriptors
    let overlapping = |scene: &Scene| -> Outcome<bool> {
        let mut attacker = scene.attacker()?;
        attacker.send_memory()?;
        let mut addr = attacker.vring_addr(1);
        let desc: [u8; 8] = addr[8..16].try_into()?;
        addr[16..24].copy_from_slice(&desc);
        let frontend = &attacker.frontend;
        let set = frontend
            .send_acked(Request::SetVringNum, &vring_state(1, 64), &[])
            .and_then(|()| frontend.send_acked(Request::SetVringAddr, &addr, &[]));
        Ok(set.and_then(|()| attacker.start_queue_as_it_is(1)).is_ok())
    };
    // an rx buffer that lies over the rx ring itself: a frame would write descriptors
    let buffer_over_ring = |scene: &mut Scene| -> Outcome<bool> {
        let mut attacker = scene.attacker()?;
        attacker.send_memory()?;
        attacker.start_queue(0)?;
        attacker.start_queue(1)?;
        let desc = attacker.rx.config().desc;
        let before = attacker.rx.read(desc, 256);
        let over = Descriptor {
            addr: desc + 64,
            len: 2048,
            flags: DESC_F_WRITE,
            next: 0,
        };
        attacker.rx.set_descriptor(0, over);
        let before = [&over.to_bytes()[..], before.get(16..).unwrap_or_default()].concat();
        attacker.rx.offer(0);
        attacker.rx.publish();
        attacker.kicks[0].write(1)?;
        for sequence in 0..4 {
            scene.neighbours[0].send(&echo_frame(1, 3, sequence));
        }
        thread::sleep(Duration::from_millis(300));
        Ok(attacker.rx.read(desc, 256) != before)
    };
    let mut scene = Scene::new("")?;
    assert!(!overlapping(&scene)?, "rings that overlap are refused");
    assert!(!buffer_over_ring(&mut scene)?, "no frame is written over a ring");
    scene.assert_unharmed()?;
    scene.stack.stop()?;

    let mut scene = Scene::new("ring-overlap")?;
    assert!(
        buffer_over_ring(&mut scene)?,
        "without the check a frame rewrites the ring"
    );
    assert!(overlapping(&scene)?, "without the check they are taken");
    Ok(())
}

/// No more is written than is reported, and no bytes of others come along.
#[test]
fn h30_used_lengths_and_what_lies_behind_them() -> Outcome {
    const MARK: u8 = 0xee;
    let mut scene = Scene::new("")?;
    let mut attacker = scene.attacker()?;
    attacker.send_memory()?;
    attacker.start_queue(0)?;
    attacker.start_queue(1)?;
    for buffer in 0..64 {
        attacker.rx.write(attacker.rx.buffer(buffer), &[MARK; 2048]);
    }
    attacker.fill_rx();
    for sequence in 0..32 {
        let frame = echo_frame(1, 3, sequence);
        scene.neighbours[0].send(&frame);
        let (head, len) = wait::until(LIMIT, || attacker.rx.used()).ok_or("no frame")?;
        let bytes = attacker.rx.read(attacker.rx.buffer(head), 2048);
        assert_eq!(
            usize::try_from(len)?,
            12 + frame.len(),
            "as long as header and frame are"
        );
        assert_eq!(bytes.get(12..12 + frame.len()), Some(&frame[..]));
        let rest = &bytes[12 + frame.len()..];
        assert!(
            rest.iter().all(|byte| *byte == MARK),
            "nothing is written behind the frame"
        );
    }
    drop(attacker);
    scene.assert_unharmed()?;
    scene.stack.stop()?;
    Ok(())
}
