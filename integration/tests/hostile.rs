//! A hostile VMM against the real daemons: after each attack the DPU is the same process, its neighbours still exchange
//! every frame, its descriptors and threads are back at baseline, and the attacked port can be used again. With the
//! check that stops it switched off, the attack succeeds.

use std::{
    error::Error,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    thread,
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::pipe,
};
use outboard_integration::{
    binaries::Binaries,
    frontend::{Frontend, NetGuest, Request, echo_frame, mem_table, vring_state},
    stack::Stack,
    wait,
};
use outboard_ring::{DESC_F_INDIRECT, DESC_F_NEXT, Descriptor};
use tempfile::TempDir;

type Outcome = Result<(), Box<dyn Error>>;

/// Frames that the neighbours exchange each way to show that they are unharmed.
const NEIGHBOUR_FRAMES: u16 = 200;
const LIMIT: Duration = Duration::from_secs(10);
/// How long a wedged worker is waited for before the attack counts as a success.
const WEDGED_LIMIT: Duration = Duration::from_secs(2);

struct Scene {
    _folder: TempDir,
    stack: Stack,
    dpu: u32,
    neighbours: [NetGuest; 2],
    /// Descriptors and threads of the DPU with the neighbours connected and nobody else.
    baseline: (usize, usize),
}

impl Scene {
    /// Three ports: the neighbours on 1 and 2, the attacker on 3. `off` names checks to switch off.
    fn new(off: &str) -> Result<Self, Box<dyn Error>> {
        let folder = tempfile::Builder::new().prefix("outboard.").tempdir()?;
        let mut topology = String::from("[[network]]\nname = \"blue\"\nsubnets = [\"10.0.0.0/24\"]\n");
        for number in 1..=3 {
            topology += &format!(
                "[[port]]\nname = \"vm{number}\"\nnetwork = \"blue\"\nmac = \"52:54:00:00:00:0{number}\"\n\
                 addresses = [\"10.0.0.{number}\"]\ncard = \"local\"\n"
            );
        }
        let file = folder.path().join("topology.toml");
        fs::write(&file, topology)?;
        let binaries = if off.is_empty() {
            Binaries::build()?
        } else {
            Binaries::build_switchable()?
        };
        let stack = Stack::up(&binaries, &file, folder.path(), |up| {
            up.env("OUTBOARD_CHECKS_OFF", off);
        })?;
        let dpu = stack.pid("dpu").ok_or("no pid of the DPU")?;
        let neighbours = [connected(&stack, "vm1")?, connected(&stack, "vm2")?];
        let mut scene = Self {
            _folder: folder,
            stack,
            dpu,
            neighbours,
            baseline: (0, 0),
        };
        scene.exchange()?;
        scene.baseline = usage(scene.dpu)?;
        Ok(scene)
    }

    fn attacker(&self) -> Result<NetGuest, Box<dyn Error>> {
        let socket = self.stack.port_socket("vm3");
        // a session that ended a moment ago frees its port a moment later
        Ok(wait::until(LIMIT, || NetGuest::connect(&socket).ok()).ok_or("the attacker's port does not open")?)
    }

    /// Neighbours exchange frames both ways; each must arrive, once and in order.
    fn exchange(&mut self) -> Outcome {
        let [one, two] = &mut self.neighbours;
        flow(one, two, 1, 2)?;
        flow(two, one, 2, 1)
    }

    /// All that has to hold after an attack that failed.
    fn assert_unharmed(&mut self) -> Outcome {
        assert_eq!(self.stack.pid("dpu"), Some(self.dpu));
        assert!(Path::new(&format!("/proc/{}", self.dpu)).exists(), "the DPU lives");
        self.exchange()?;
        // the attacked port starts afresh, and legitimate traffic passes
        let mut again = connected(&self.stack, "vm3")?;
        flow(&mut again, &mut self.neighbours[0], 3, 1)?;
        flow(&mut self.neighbours[0], &mut again, 1, 3)?;
        drop(again);
        let (dpu, baseline) = (self.dpu, self.baseline);
        let back = wait::until(LIMIT, || {
            usage(dpu).ok().filter(|now| now.0 <= baseline.0 && now.1 <= baseline.1)
        });
        assert!(
            back.is_some(),
            "descriptors and threads return to {baseline:?}, they are {:?}",
            usage(dpu)?
        );
        Ok(())
    }

    /// The attack took the DPU down, or stopped it from switching.
    fn is_harmed(&mut self) -> bool {
        let dead = wait::until(WEDGED_LIMIT, || (!alive(self.dpu)).then_some(())).is_some();
        dead || {
            let [one, two] = &mut self.neighbours;
            !one.send(&echo_frame(1, 2, 0)) || two.receive(WEDGED_LIMIT).is_none()
        }
    }
}

fn connected(stack: &Stack, port: &str) -> Result<NetGuest, Box<dyn Error>> {
    let socket = stack.port_socket(port);
    let guest = wait::until(LIMIT, || NetGuest::start(&socket).ok()).ok_or_else(|| format!("{port} does not start"))?;
    if stack.wait_binding("port", port, "active", LIMIT) {
        Ok(guest)
    } else {
        Err(format!("{port} not active").into())
    }
}

fn flow(from: &mut NetGuest, to: &mut NetGuest, source: u8, destination: u8) -> Outcome {
    for sequence in 0..NEIGHBOUR_FRAMES {
        let frame = echo_frame(source, destination, sequence);
        if !from.send(&frame) {
            return Err(format!("frame {sequence} of {source} → {destination} could not be sent").into());
        }
        let came = to
            .receive(LIMIT)
            .ok_or_else(|| format!("frame {sequence} of {source} → {destination} is lost"))?;
        assert_eq!(came, frame);
    }
    Ok(())
}

fn alive(pid: u32) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // "pid (name) state …": a process that died and was not waited for yet is a zombie
    state
        .rsplit(") ")
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

fn usage(pid: u32) -> io::Result<(usize, usize)> {
    let count = |folder: &str| fs::read_dir(format!("/proc/{pid}/{folder}")).map(Iterator::count);
    Ok((count("fd")?, count("task")?))
}

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
            let refused = attacker
                .frontend
                .send_acked(request, &1u64.to_ne_bytes(), &[fd.as_fd()]);
            assert!(refused.is_err(), "{request:?} with {fd:?} is refused");
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
    for index in [2u32, 3, 255, 256, 0x8000_0000, u32::MAX] {
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
            let refused = match request {
                Request::SetVringAddr => {
                    let mut payload = attacker.vring_addr(1);
                    payload[..4].copy_from_slice(&index.to_ne_bytes());
                    attacker.frontend.send_acked(request, &payload, &[])
                }
                Request::SetVringKick | Request::SetVringCall | Request::SetVringErr => {
                    // the index is the lowest byte; bit 8 would say that no descriptor comes along
                    let payload = u64::from(index & 0xff).to_ne_bytes();
                    if index & 0xff < 2 {
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
            assert!(refused.is_err(), "{request:?} for queue {index} is refused");
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
