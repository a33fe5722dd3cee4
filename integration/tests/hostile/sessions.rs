//! Attacks by vhost-user messages and descriptors.

use std::{
    error::Error,
    io,
    os::fd::{AsFd, OwnedFd},
    thread,
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::pipe,
};
use outboard_integration::{
    frontend::{
        Frontend, NetGuest, PROTOCOL_F_CONFIGURE_MEM_SLOTS, Request, Rings, Wanted, echo_frame, mem_table, vring_state,
    },
    wait,
};

use crate::scene::{LIMIT, Outcome, Scene, connected, usage};

/// A region that claims more than its file has, with the tx ring beyond the end of the file.
fn region_beyond_file(attacker: &mut NetGuest) -> io::Result<()> {
    let spec = attacker.ram.spec();
    let short = spec.len / 2;
    attacker.ram.file().set_len(short)?;
    let table = mem_table(&[[spec.guest_phys_addr, spec.len, spec.user_addr, 0]]);
    attacker
        .frontend
        .send_acked(Request::SetMemTable, &table, &[attacker.ram.file().as_fd()])?;
    let beyond = spec.user_addr + short + 0x1000;
    let words = [beyond, beyond + 0x2000, beyond + 0x1000, 0]
        .map(u64::to_ne_bytes)
        .concat();
    let addr = [vring_state(1, 0), words].concat();
    attacker
        .frontend
        .send_acked(Request::SetVringNum, &vring_state(1, 64), &[])?;
    attacker.frontend.send_acked(Request::SetVringAddr, &addr, &[])?;
    attacker
        .frontend
        .send_acked(Request::SetVringKick, &1u64.to_ne_bytes(), &[attacker.kicks[1].as_fd()])?;
    attacker
        .frontend
        .send_acked(Request::SetVringEnable, &vring_state(1, 1), &[])?;
    attacker.kick_tx();
    Ok(())
}

#[test]
fn h01_region_larger_than_its_file() -> Outcome {
    let mut scene = Scene::new("")?;
    let refused = region_beyond_file(&mut scene.attacker()?);
    assert!(refused.is_err(), "the memory table is refused");
    scene.assert_unharmed()?;
    scene.stack.stop()?;

    let mut scene = Scene::new("region-inside-file,sigbus-guard")?;
    // whether the last message is still answered is a race with the crash
    let _ = region_beyond_file(&mut scene.attacker()?);
    assert!(scene.is_harmed(), "without the checks the attack succeeds");
    Ok(())
}

/// Memory that vanishes under running rings.
fn truncate_live(scene: &Scene) -> Result<NetGuest, Box<dyn Error>> {
    let mut attacker = connected(&scene.stack, "vm3")?;
    attacker.send(&echo_frame(3, 1, 0));
    attacker.ram.file().set_len(0)?;
    attacker.kick_tx();
    Ok(attacker)
}

#[test]
fn h02_memory_truncated_under_running_rings() -> Outcome {
    let mut scene = Scene::new("")?;
    let attacker = truncate_live(&scene)?;
    // the frame before the truncation may have come through
    scene.neighbours[0].receive(Duration::from_millis(500));
    // its own mapping is gone too, so that touching its rings would kill this test: only its socket is closed
    drop(attacker.frontend);
    scene.assert_unharmed()?;
    scene.stack.stop()?;

    let mut scene = Scene::new("sigbus-guard")?;
    let _attacker = truncate_live(&scene)?;
    assert!(scene.is_harmed(), "without the guard the attack succeeds");
    Ok(())
}

/// Fills the rx call's counter and makes it blocking; then has the DPU signal it.
fn saturate_call(scene: &mut Scene) -> Result<NetGuest, Box<dyn Error>> {
    let attacker = connected(&scene.stack, "vm3")?;
    let call = &attacker.calls[0];
    fcntl(call, FcntlArg::F_SETFL(OFlag::empty()))?;
    // An eventfd's counter holds at most 2⁶⁴−2. What is there already is taken first, for a write that would pass the
    // limit would block this test.
    fcntl(call, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let _ = call.read();
    call.write(u64::MAX - 1)?;
    fcntl(call, FcntlArg::F_SETFL(OFlag::empty()))?;
    scene.neighbours[0].send(&echo_frame(1, 3, 0));
    Ok(attacker)
}

#[test]
fn h03_saturated_blocking_call() -> Outcome {
    let mut scene = Scene::new("")?;
    let attacker = saturate_call(&mut scene)?;
    scene.exchange()?;
    drop(attacker);
    scene.assert_unharmed()?;
    scene.stack.stop()?;

    let mut scene = Scene::new("non-blocking-call")?;
    let attacker = saturate_call(&mut scene)?;
    assert!(scene.is_harmed(), "a plain write stops the worker");
    // let it go on, so that it can be stopped
    attacker.calls[0].read()?;
    Ok(())
}

#[test]
fn h04_descriptors_that_are_no_eventfds() -> Outcome {
    let mut scene = Scene::new("")?;
    let (reader, writer) = pipe()?;
    let file = OwnedFd::from(tempfile::tempfile()?);
    for request in [Request::SetVringKick, Request::SetVringCall, Request::SetVringErr] {
        for fd in [&reader, &writer, &file] {
            let attacker = scene.attacker()?;
            attacker.send_memory()?;
            let before = scene.refusals();
            let sent = attacker
                .frontend
                .send_acked(request, &1u64.to_ne_bytes(), &[fd.as_fd()]);
            assert!(scene.refused(&sent, before), "{request:?} with {fd:?} is refused");
        }
    }
    scene.assert_unharmed()?;
    scene.stack.stop()?;

    let scene = Scene::new("eventfd-only")?;
    let attacker = scene.attacker()?;
    attacker.send_memory()?;
    let taken = attacker
        .frontend
        .send_acked(Request::SetVringKick, &1u64.to_ne_bytes(), &[reader.as_fd()]);
    assert!(taken.is_ok(), "without the check a pipe is taken for a kick: {taken:?}");
    Ok(())
}

#[test]
fn h06_queue_index_out_of_range() -> Outcome {
    let mut scene = Scene::new("")?;
    // a port has 16 pairs of queues
    for index in [32u32, 33, 255, 256, 0x8000_0000, u32::MAX] {
        for request in [
            Request::SetVringNum,
            Request::SetVringBase,
            Request::GetVringBase,
            Request::SetVringEnable,
            Request::SetVringAddr,
            Request::SetVringKick,
            Request::SetVringCall,
            Request::SetVringErr,
        ] {
            let attacker = scene.attacker()?;
            attacker.send_memory()?;
            let before = scene.refusals();
            let refused = match request {
                Request::SetVringAddr => {
                    let mut payload = attacker.vring_addr(1);
                    payload[..4].copy_from_slice(&index.to_ne_bytes());
                    attacker.frontend.send_acked(request, &payload, &[])
                }
                Request::SetVringKick | Request::SetVringCall | Request::SetVringErr => {
                    // the index is the lowest byte; bit 8 would say that no descriptor comes along
                    let payload = u64::from(index & 0xff).to_ne_bytes();
                    if index & 0xff < 32 {
                        continue;
                    }
                    attacker
                        .frontend
                        .send_acked(request, &payload, &[attacker.kicks[0].as_fd()])
                }
                Request::GetVringBase => {
                    attacker.frontend.send(request, &vring_state(index, 1), &[])?;
                    attacker.frontend.reply(request).map(|_| ())
                }
                _ => attacker.frontend.send_acked(request, &vring_state(index, 1), &[]),
            };
            assert!(
                scene.refused(&refused, before),
                "{request:?} for queue {index} is refused"
            );
        }
    }
    scene.assert_unharmed()?;
    scene.stack.stop()?;
    Ok(())
}

#[test]
fn h15_kick_and_enable_before_a_memory_table() -> Outcome {
    let mut scene = Scene::new("")?;
    let mut attacker = scene.attacker()?;
    assert!(attacker.start_queue(1).is_err(), "a queue without memory is refused");
    attacker.kick_tx();
    scene.assert_unharmed()?;
    scene.stack.stop()?;
    Ok(())
}

#[test]
fn h16_sizes_drips_and_stalls() -> Outcome {
    let mut scene = Scene::new("")?;
    let socket = scene.stack.port_socket("vm3");
    let connect = || wait::until(LIMIT, || Frontend::connect(&socket).ok()).ok_or("no connection");
    for claimed in [4097u32, 0x7fff_ffff, u32::MAX] {
        let frontend = connect()?;
        let mut bytes = Frontend::message(Request::SetFeatures as u32, 0, &[0; 8]);
        bytes[8..12].copy_from_slice(&claimed.to_ne_bytes());
        // the other side may close while this is being written
        let _ = frontend.send_raw(&bytes, &[]);
        assert!(
            frontend.closed_within(LIMIT),
            "a message that claims {claimed} bytes ends the session"
        );
    }
    let short = connect()?;
    let _ = short.send_raw(&Frontend::message(Request::SetFeatures as u32, 0, &[]), &[]);
    assert!(
        short.closed_within(LIMIT),
        "a payload of 0 bytes where 8 are due ends the session"
    );

    // byte by byte, while the neighbours go on
    let drip = connect()?;
    for byte in Frontend::message(Request::GetFeatures as u32, 0, &[]) {
        drip.send_raw(&[byte], &[])?;
        thread::sleep(Duration::from_millis(5));
    }
    scene.exchange()?;
    drop(drip);

    // stalled in mid-message: it holds its own port and nothing else
    let stalled = connect()?;
    stalled.send_raw(&Frontend::message(Request::SetFeatures as u32, 0, &[0; 8])[..10], &[])?;
    scene.exchange()?;
    drop(stalled);
    scene.assert_unharmed()?;
    scene.stack.stop()?;
    Ok(())
}

/// A memory descriptor on a file system that may never give a page (here: a disk's; FUSE is of the same kind).
#[test]
fn h05_memory_on_a_file_system_that_may_stall() -> Outcome {
    let attack = |scene: &Scene| -> Result<io::Result<()>, Box<dyn Error>> {
        let attacker = scene.attacker()?;
        let spec = attacker.ram.spec();
        // the target folder is on a disk, where /tmp may be tmpfs, which is memory
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR"))?;
        file.set_len(spec.len)?;
        let table = mem_table(&[[spec.guest_phys_addr, spec.len, spec.user_addr, 0]]);
        Ok(attacker
            .frontend
            .send_acked(Request::SetMemTable, &table, &[file.as_fd()]))
    };
    let mut scene = Scene::new("")?;
    assert!(attack(&scene)?.is_err(), "memory on a disk is refused");
    scene.assert_unharmed()?;
    scene.stack.stop()?;

    let scene = Scene::new("memory-file-only")?;
    attack(&scene)?.map_err(|error| format!("without the check it is taken: {error}"))?;
    Ok(())
}

#[test]
fn h09_everything_changed_under_traffic() -> Outcome {
    let mut scene = Scene::new("")?;
    for attack in 0..6 {
        let mut attacker = connected(&scene.stack, "vm3")?;
        for sequence in 0..64 {
            attacker.send(&echo_frame(3, 1, sequence));
        }
        let frontend = &attacker.frontend;
        let spec = attacker.ram.spec();
        // Taken or refused: what it must not do is touch what was there before, or harm anybody.
        let _ = match attack {
            0 => frontend.send_acked(Request::SetVringNum, &vring_state(1, 32), &[]),
            1 => frontend.send_acked(Request::SetVringBase, &vring_state(1, 777), &[]),
            2 => {
                let mut elsewhere = attacker.vring_addr(1);
                elsewhere[8..16].copy_from_slice(&(spec.user_addr + 0x40_0000).to_ne_bytes());
                frontend.send_acked(Request::SetVringAddr, &elsewhere, &[])
            }
            3 => {
                let table = mem_table(&[[0x4000_0000, spec.len, spec.user_addr, spec.mmap_offset]]);
                frontend.send_acked(Request::SetMemTable, &table, &[attacker.ram.file().as_fd()])
            }
            4 => frontend.send_acked(Request::SetMemTable, &mem_table(&[]), &[]),
            _ => frontend.send_acked(Request::SetFeatures, &0u64.to_ne_bytes(), &[]),
        };
        for sequence in 0..64 {
            attacker.send(&echo_frame(3, 1, sequence));
        }
        while let Some(frame) = scene.neighbours[0].receive(Duration::from_millis(100)) {
            assert_eq!(frame.get(6..12), Some(&[0x52, 0x54, 0, 0, 0, 3][..]), "attack {attack}");
        }
        scene.exchange()?;
    }
    scene.assert_unharmed()?;
    scene.stack.stop()?;
    Ok(())
}

#[test]
fn h10_regions_that_wrap_or_overlap() -> Outcome {
    let mut scene = Scene::new("")?;
    let len = 0x10_0000;
    let at = 0x10_0000;
    let user = 0x7f00_0000_0000;
    let tables: [(&str, &[[u64; 4]]); 6] = [
        ("guest-physical wrap", &[[u64::MAX - 0xfff, len, user, 0]]),
        ("user address wrap", &[[at, len, u64::MAX - 0xfff, 0]]),
        ("offset wrap", &[[at, len, user, u64::MAX - 0xfff]]),
        ("empty", &[[at, 0, user, 0]]),
        (
            "guest-physical overlap",
            &[[at, len, user, 0], [at + len / 2, len, user + 2 * len, 0]],
        ),
        (
            "user address overlap",
            &[[at, len, user, 0], [at + 2 * len, len, user + len / 2, 0]],
        ),
    ];
    for (what, regions) in tables {
        let attacker = scene.attacker()?;
        let fds = vec![attacker.ram.file().as_fd(); regions.len()];
        let before = scene.refusals();
        let sent = attacker
            .frontend
            .send_acked(Request::SetMemTable, &mem_table(regions), &fds);
        assert!(scene.refused(&sent, before), "{what} is refused");
    }
    scene.assert_unharmed()?;
    scene.stack.stop()?;
    Ok(())
}

#[test]
fn h12_stray_descriptors_with_any_message() -> Outcome {
    let mut scene = Scene::new("")?;
    let (reader, _writer) = pipe()?;
    let shim = scene.stack.pid("shim").ok_or("no pid of the shim")?;
    let before = usage(shim)?;
    for request in [
        Request::GetFeatures,
        Request::SetFeatures,
        Request::SetOwner,
        Request::SetVringNum,
        Request::SetVringEnable,
        Request::GetVringBase,
        Request::SetMemTable,
        Request::SetVringKick,
    ] {
        // the kernel lets at most 253 pass in one message; the control data of the receiver is full long before
        for count in [1, 2, 8, 64, 253] {
            let attacker = scene.attacker()?;
            let fds = vec![reader.as_fd(); count];
            let payload: &[u8] = if request == Request::GetFeatures { &[] } else { &[0; 8] };
            let message = Frontend::message(request as u32, 0, payload);
            // the other side may close while this is being written
            let _ = attacker.frontend.send_raw(&message, &fds);
            assert!(
                attacker.frontend.closed_within(LIMIT),
                "{request:?} with {count} descriptors ends the session"
            );
        }
    }
    let back = wait::until(LIMIT, || usage(shim).ok().filter(|now| now.0 <= before.0));
    assert!(
        back.is_some(),
        "no descriptor stays: {before:?}, now {:?}",
        usage(shim)?
    );
    scene.assert_unharmed()?;
    scene.stack.stop()?;
    Ok(())
}

#[test]
fn h13_more_regions_than_slots() -> Outcome {
    let mut scene = Scene::new("")?;
    let wanted = Wanted {
        protocol: PROTOCOL_F_CONFIGURE_MEM_SLOTS,
        queues: 2,
        ..Wanted::default()
    };
    let rings = Rings::negotiated(Frontend::connect(&scene.stack.port_socket("vm3"))?, wanted)?;
    let slots = rings.frontend.ask(Request::GetMaxMemSlots)?;
    assert!((8..=4096).contains(&slots), "{slots} slots");
    let mut taken = 0;
    while taken <= slots {
        let (at, len) = (0x10_0000 * (taken + 1), 4096u64);
        let words = [at, len, 0x7f00_0000_0000 + at, 0].map(u64::to_ne_bytes).concat();
        let payload = [&[0; 8], &words[..]].concat();
        let added = rings
            .frontend
            .send_acked(Request::AddMemReg, &payload, &[rings.ram.file().as_fd()]);
        if added.is_err() {
            break;
        }
        taken += 1;
    }
    assert_eq!(taken, slots, "as many regions as there are slots, and not one more");
    drop(rings);
    scene.assert_unharmed()?;
    scene.stack.stop()?;
    Ok(())
}

#[test]
fn h14_queue_sizes() -> Outcome {
    let mut scene = Scene::new("")?;
    for size in [0u32, 3, 65_535, 65_536, u32::MAX] {
        let mut attacker = scene.attacker()?;
        attacker.send_memory()?;
        let frontend = &attacker.frontend;
        let refused = frontend
            .send_acked(Request::SetVringNum, &vring_state(1, size), &[])
            .and_then(|()| {
                let addr = attacker.vring_addr(1);
                attacker.frontend.send_acked(Request::SetVringAddr, &addr, &[])
            });
        let started = refused.and_then(|()| attacker.start_queue_as_it_is(1));
        assert!(started.is_err(), "a queue of {size} descriptors is refused");
    }
    // a storm of good ones
    let attacker = scene.attacker()?;
    attacker.send_memory()?;
    for round in 0..2000u32 {
        let size = 1 << (round % 9 + 1);
        attacker
            .frontend
            .send_acked(Request::SetVringNum, &vring_state(1, size), &[])?;
    }
    drop(attacker);
    scene.assert_unharmed()?;
    scene.stack.stop()?;
    Ok(())
}

#[test]
fn h17_sessions_by_the_hundred() -> Outcome {
    const SESSIONS: usize = 300;
    let mut scene = Scene::new("")?;
    let shim = scene.stack.pid("shim").ok_or("no pid of the shim")?;
    // the first one makes whatever is made once
    drop(connected(&scene.stack, "vm3")?);
    let before = wait::until(LIMIT, || usage(shim).ok()).ok_or("no shim")?;
    for round in 0..SESSIONS {
        let attacker = scene.attacker()?;
        if round % 3 > 0 {
            attacker.send_memory()?;
        }
        if round % 3 > 1 {
            drop(attacker.run()?);
        }
    }
    let back = wait::until(LIMIT, || {
        usage(shim).ok().filter(|now| now.0 <= before.0 && now.1 <= before.1)
    });
    assert!(back.is_some(), "the shim had {before:?}, has {:?}", usage(shim)?);
    scene.assert_unharmed()?;
    scene.stack.stop()?;
    Ok(())
}

#[test]
fn h18_lengths_inside_a_message_beyond_it() -> Outcome {
    let mut scene = Scene::new("")?;
    let word = |n: u32| n.to_ne_bytes();
    let attacks: [(&str, Request, Vec<u8>); 5] = [
        (
            "a table of 8 regions with room for one",
            Request::SetMemTable,
            [&word(8)[..], &word(0), &[0; 32]].concat(),
        ),
        (
            "a table of 2³²−1 regions",
            Request::SetMemTable,
            [&word(u32::MAX)[..], &word(0), &[0; 32]].concat(),
        ),
        (
            "a configuration of 4096 bytes in a message of 20",
            Request::SetConfig,
            [&word(0)[..], &word(4096), &word(0), &[0; 8]].concat(),
        ),
        (
            "configuration at 2³²−1",
            Request::GetConfig,
            [&word(u32::MAX)[..], &word(8), &word(0), &[0; 8]].concat(),
        ),
        ("half a ring address", Request::SetVringAddr, vec![0; 20]),
    ];
    for (what, request, payload) in attacks {
        let attacker = scene.attacker()?;
        let message = Frontend::message(request as u32, 0, &payload);
        let fds = [attacker.ram.file().as_fd()];
        let fds = if request == Request::SetMemTable { &fds[..] } else { &[] };
        // the other side may close while this is being written
        let _ = attacker.frontend.send_raw(&message, fds);
        assert!(attacker.frontend.closed_within(LIMIT), "{what} ends the session");
    }
    scene.assert_unharmed()?;
    scene.stack.stop()?;
    Ok(())
}
