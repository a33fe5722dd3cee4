//! The DPU's process, the shim and VMMs are killed under real guests: `fio` writes, flushes and verifies, guests ping each
//! other, and no guest sees an error.
//!
//! `OUTBOARD_ROUNDS` sets how often the DPU's process is killed; the shim is killed half as often, VMMs a quarter.
//! `tests/kill_loops.rs` has the same with scripted guests and many more rounds.

use std::{
    env, fs, thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use outboard_integration::{
    frontend::{NetGuest, echo_frame},
    guest::{Guest, GuestSpec},
    random::Random,
    record,
    setup::{self, GuestImage},
    site::{LIMIT, Outcome, Site},
    spread::Spread,
    wait,
};
use tempfile::TempPath;

const VOLUME_LEN: usize = 16 << 20;
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// Kills of the DPU's process unless `OUTBOARD_ROUNDS` says otherwise.
const ROUNDS: u32 = 8;
/// How long a process that hangs does.
const HANG: Duration = Duration::from_secs(10);
/// How long the guests' ping may pause over a restart: 1 s, and what an emulated guest on a busy machine adds.
const GAP_LIMIT: Duration = Duration::from_millis(1500);
/// A guest's complaints about its devices, its disks and itself.
const COMPLAINTS: &str =
    "I/O error|critical|is not a head|virtio.*(fail|broken|reset)|hung task|blocked for more|BUG|Oops";

struct Scene {
    site: Site,
    disk: TempPath,
    image: GuestImage,
}

impl Scene {
    fn new() -> Outcome<Self> {
        let file = tempfile::Builder::new().prefix("outboard-disk.").tempfile()?;
        file.as_file().set_len(VOLUME_LEN as u64)?;
        let disk = file.into_temp_path();
        let mut topology = format!(
            "[[network]]\nname = \"blue\"\nsubnets = [\"10.0.0.0/24\"]\n\
             [[volume]]\nname = \"disk1\"\nsize = \"16MiB\"\nbackend = {{ file = \"{}\" }}\ncard = \"local\"\n",
            disk.display()
        );
        for number in 1..=4 {
            topology += &format!(
                "[[port]]\nname = \"vm{number}\"\nnetwork = \"blue\"\nmac = \"52:54:00:00:00:0{number}\"\n\
                 addresses = [\"10.0.0.{number}\"]\ncard = \"local\"\n"
            );
        }
        Ok(Self {
            image: setup::guest_image()?,
            site: Site::recorded(&topology, "")?,
            disk,
        })
    }

    /// `rings` are properties of each device: which kind of ring it may have.
    fn boot(&self, number: u8, disk: bool, rings: &str) -> Outcome<Guest> {
        let name = format!("vm{number}");
        let socket = |kind: &str, name: &str| self.site.run_path(&format!("{kind}/{name}.sock"));
        let spec = GuestSpec {
            port: Some((socket("ports", &name), format!("52:54:00:00:00:0{number}"))),
            volume: disk.then(|| socket("volumes", "disk1")),
            address: Some(format!("10.0.0.{number}/24")),
            memory_mib: if disk { 512 } else { 256 },
            fio: disk,
            nic_properties: rings.into(),
            disk_properties: rings.into(),
            name,
            ..GuestSpec::default()
        };
        Ok(Guest::start(&spec, &self.image, self.site.folder())?)
    }

    /// vm1 with the disk, and vm2, which reach each other.
    fn pair(&self, rings: &str) -> Outcome<[Guest; 2]> {
        let (mut vm1, mut vm2) = (self.boot(1, true, rings)?, self.boot(2, false, rings)?);
        vm1.wait_booted()?;
        vm2.wait_booted()?;
        let reached = wait::until(COMMAND_LIMIT, || vm1.run("ping -c 1 -W 1 10.0.0.2", COMMAND_LIMIT).ok());
        reached.ok_or("vm1 does not reach vm2")?;
        Ok([vm1, vm2])
    }

    /// What a power cut would leave of the volume is all that is in it, once the guest has flushed everything.
    fn assert_all_synced(&self) -> Outcome {
        let name = self.disk.file_name().unwrap_or_default().to_string_lossy();
        let survivors = record::survivors(&self.site.folder().join("record"), &name, VOLUME_LEN)?;
        let volume = fs::read(&self.disk)?;
        let differs = survivors
            .image
            .iter()
            .zip(&volume)
            .position(|(one, other)| one != other);
        assert_eq!(
            differs,
            None,
            "a byte that the guest wrote and flushed is not covered by a sync ({} writes, {} syncs)\n{}",
            survivors.writes,
            survivors.syncs,
            self.site.log("dpu")
        );
        assert!(survivors.syncs > 0 && survivors.writes > 1000, "fio wrote and flushed");
        Ok(())
    }
}

/// Writes at depth 16 with a flush after every 32, verifies as it goes, and flushes at its end.
fn fio(guest: &mut Guest, seconds: u64) -> Outcome {
    guest.start_in_background(
        &format!(
            "fio --name=verify --filename=/dev/vda --rw=randwrite --bs=4k --iodepth=16 --ioengine=libaio --direct=1 \
             --size={VOLUME_LEN} --time_based --runtime={seconds} --fsync=32 --end_fsync=1 --verify=crc32c \
             --verify_backlog=512 --verify_fatal=1"
        ),
        "/tmp/fio",
    )?;
    Ok(())
}

fn fio_ends_well(guest: &mut Guest, limit: Duration) -> Outcome<String> {
    let (status, text) = guest.finish_background("/tmp/fio", limit)?;
    assert_eq!(status, 0, "fio saw no error: {text}");
    let line = text
        .lines()
        .find(|line| line.contains("issued rwts"))
        .unwrap_or_default();
    Ok(line.trim().to_owned())
}

/// Pings from the guest 20 times a second and notes when each answer came.
fn ping(guest: &mut Guest) -> Outcome {
    guest.start_in_background(
        "ping -i 0.05 10.0.0.2 | while read -r line; do read -r now rest </proc/uptime; echo \"$now $line\"; done",
        "/tmp/ping",
    )?;
    Ok(())
}

/// Ends the pings; when each answer came, by the guest's clock.
fn answers(guest: &mut Guest) -> Outcome<Vec<Duration>> {
    guest.try_run("killall -INT ping", COMMAND_LIMIT)?;
    let (_, text) = guest.finish_background("/tmp/ping", COMMAND_LIMIT)?;
    let times = text.lines().filter(|line| line.contains("seq="));
    let seconds = times.filter_map(|line| line.split(' ').next()?.parse().ok());
    Ok(seconds.map(Duration::from_secs_f64).collect())
}

fn gaps(answers: &[Duration]) -> Spread {
    let mut spread = Spread::default();
    for pair in answers.windows(2) {
        spread.add(pair[1].saturating_sub(pair[0]));
    }
    spread
}

fn assert_no_complaints(guests: &mut [Guest]) -> Outcome {
    for guest in guests {
        let (_, text) = guest.try_run(&format!("dmesg | grep -E '{COMPLAINTS}'"), COMMAND_LIMIT)?;
        assert_eq!(text, "", "the guest's kernel complains");
    }
    Ok(())
}

fn rounds() -> u32 {
    let said = env::var("OUTBOARD_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    said.unwrap_or(ROUNDS)
}

/// Kills `daemon` so many times while fio and ping run, with pauses of `pause` and up to as much again.
fn killed_often(daemon: &str, rings: &str, rounds: u32, pause: Duration) -> Outcome {
    let scene = &mut Scene::new()?;
    let mut guests = scene.pair(rings)?;
    let whole = pause * 3 / 2 * rounds + Duration::from_secs(2);
    ping(&mut guests[0])?;
    fio(&mut guests[0], whole.as_secs())?;
    let mut random = Random(u64::from(rounds));
    let mut away = Spread::default();
    for _ in 0..rounds {
        thread::sleep(pause + Duration::from_micros(random.next_u64() % 1_000_000).min(pause));
        let began = Instant::now();
        scene.site.kill(daemon)?;
        scene.site.start(daemon)?;
        away.add(began.elapsed());
    }
    let issued = fio_ends_well(&mut guests[0], whole + 2 * COMMAND_LIMIT)?;
    let answers = answers(&mut guests[0])?;
    let gaps = gaps(&answers);
    println!(
        "{daemon} killed {rounds} times ({rings}): fio without an error ({issued}); {} answers to pings, 50 ms apart, gaps {gaps}; \
         the daemon was away {away}",
        answers.len()
    );
    assert_no_complaints(&mut guests)?;
    scene.assert_all_synced()?;
    // QEMU looks once a second whether the shim is back
    let reconnect = if daemon == "shim" {
        Duration::from_secs(1)
    } else {
        Duration::ZERO
    };
    assert!(
        gaps.max() <= wait::on_this_machine(GAP_LIMIT) + reconnect + away.max(),
        "traffic is back soon: gaps {gaps}, away {away}"
    );
    Ok(())
}

#[test]
fn the_dpu_is_killed_under_fio_and_ping() -> Outcome {
    killed_often("dpu", "", rounds(), Duration::from_millis(800))
}

/// A packed ring holds no position that the next process could read: what it needs is in the shim's in-flight region.
#[test]
fn the_dpu_is_killed_under_fio_and_ping_over_packed_rings() -> Outcome {
    killed_often("dpu", "packed=on", rounds(), Duration::from_millis(800))
}

#[test]
fn the_shim_is_killed_under_fio_and_ping() -> Outcome {
    killed_often("shim", "", rounds().div_ceil(2), Duration::from_millis(2000))
}

#[test]
fn the_dpu_hangs_under_fio() -> Outcome {
    let scene = &mut Scene::new()?;
    let mut guests = scene.pair("")?;
    fio(&mut guests[0], 16)?;
    thread::sleep(Duration::from_secs(1));
    // it hangs and comes to itself
    scene.site.signal("dpu", Signal::SIGSTOP)?;
    thread::sleep(HANG);
    scene.site.signal("dpu", Signal::SIGCONT)?;
    thread::sleep(Duration::from_secs(1));
    // it hangs and somebody kills it
    scene.site.signal("dpu", Signal::SIGSTOP)?;
    thread::sleep(Duration::from_secs(1));
    scene.site.kill("dpu")?;
    scene.site.start("dpu")?;
    fio_ends_well(&mut guests[0], 3 * COMMAND_LIMIT)?;
    guests[0].run("ping -c 1 -W 5 10.0.0.2", COMMAND_LIMIT)?;
    assert_no_complaints(&mut guests)?;
    scene.assert_all_synced()
}

/// A VMM is killed in mid-flight and started again on the same sockets; its neighbours lose nothing.
#[test]
fn vmms_are_killed_beside_neighbours() -> Outcome {
    let scene = Scene::new()?;
    let neighbour = |number: u8| -> Outcome<NetGuest> {
        let socket = scene.site.run_path(&format!("ports/vm{number}.sock"));
        Ok(wait::until(LIMIT, || NetGuest::start(&socket).ok()).ok_or("a neighbour does not start")?)
    };
    let (mut three, mut four) = (neighbour(3)?, neighbour(4)?);
    let mut sequence = 0u16;
    let mut exchange = |frames: u32| {
        for _ in 0..frames {
            let frame = echo_frame(3, 4, sequence);
            assert!(three.send(&frame), "the neighbour's ring is full");
            // the guests' own multicasts come here too
            let came = std::iter::from_fn(|| four.receive(LIMIT)).find(|came| came.get(6..12) == frame.get(6..12));
            assert_eq!(came, Some(frame), "frame {sequence} of the neighbours is lost");
            sequence = sequence.wrapping_add(1);
        }
    };
    for round in 0..rounds().div_ceil(4) {
        let [mut vm1, vm2] = scene.pair("")?;
        if round > 0 {
            vm1.run(
                &format!("mount -t ext4 /dev/vda /mnt && test $(cat /mnt/round) = {}", round - 1),
                COMMAND_LIMIT,
            )?;
        } else {
            vm1.run("mkfs.ext4 -q -F /dev/vda && mount -t ext4 /dev/vda /mnt", COMMAND_LIMIT)?;
        }
        vm1.run(&format!("echo {round} >/mnt/round && sync"), COMMAND_LIMIT)?;
        vm1.start_in_background(
            "while true; do dd if=/dev/urandom of=/mnt/x bs=64k count=16; done",
            "/tmp/dd",
        )?;
        exchange(200);
        drop(vm1);
        exchange(500);
        drop(vm2);
        exchange(500);
    }
    Ok(())
}
