//! The DPU's process is killed again and again, at random moments, under guests that read, write, flush and talk. No
//! guest sees an error: every request is acknowledged once, what a flush acknowledged was synced before the kill, and
//! frames pass again soon after the next process is there.
//!
//! The guests here are scripted, so that hundreds of rounds take seconds; `tests/kill_guests.rs` does the same to real
//! ones. `OUTBOARD_ROUNDS` sets the number of rounds.

use std::{
    env,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::Signal,
};
use outboard_integration::{
    frontend::{
        BlkLoad, F_BLK_MQ, F_EVENT_IDX, F_INDIRECT_DESC, LockIt, NetGuest, PROTOCOL_F_INFLIGHT_SHMFD, PROTOCOL_F_MQ,
        Wanted, echo_frame,
    },
    ledger::BLOCK_LEN,
    random::Random,
    record::Record,
    site::{LIMIT, Outcome, Site},
    spread::Spread,
    wait,
};
use tempfile::TempPath;

const BLOCKS: usize = 256;
const DEPTH: usize = 16;
/// Rounds unless `OUTBOARD_ROUNDS` says otherwise.
const ROUNDS: u32 = 25;
/// How long frames may stay away after the next process was started.
const BACK_LIMIT: Duration = Duration::from_secs(1);

/// A site with two ports and a recorded volume.
struct Scene {
    site: Site,
    disk: TempPath,
}

impl Scene {
    fn new(off: &str) -> Outcome<Self> {
        let file = tempfile::Builder::new().prefix("outboard-disk.").tempfile()?;
        file.as_file().set_len((BLOCKS * BLOCK_LEN) as u64)?;
        let disk = file.into_temp_path();
        let mut topology = format!(
            "[[network]]\nname = \"blue\"\nsubnets = [\"10.0.0.0/24\"]\n\
             [[volume]]\nname = \"disk1\"\nsize = \"1MiB\"\nbackend = {{ file = \"{}\" }}\ncard = \"local\"\n",
            disk.display()
        );
        for number in 1..=2 {
            topology += &format!(
                "[[port]]\nname = \"vm{number}\"\nnetwork = \"blue\"\nmac = \"52:54:00:00:00:0{number}\"\n\
                 addresses = [\"10.0.0.{number}\"]\ncard = \"local\"\n"
            );
        }
        Ok(Self {
            site: Site::recorded(&topology, off)?,
            disk,
        })
    }

    fn port(&self, number: u8) -> Outcome<NetGuest> {
        let socket = self.site.run_path(&format!("ports/vm{number}.sock"));
        Ok(wait::until(LIMIT, || NetGuest::start(&socket).ok()).ok_or("a port does not start")?)
    }

    fn load(&self, wanted: Wanted, seed: u64) -> Outcome<BlkLoad> {
        let socket = self.site.run_path("volumes/disk1.sock");
        let load = wait::until(LIMIT, || BlkLoad::start(&socket, wanted, BLOCKS, DEPTH, seed).ok());
        Ok(load.ok_or_else(|| {
            format!(
                "disk1 does not start: {:?}",
                BlkLoad::start(&socket, wanted, BLOCKS, DEPTH, seed).err()
            )
        })?)
    }

    fn record(&self) -> Record {
        let name = self.disk.file_name().unwrap_or_default().to_string_lossy();
        Record::new(&self.site.folder().join("record"), &name, BLOCKS * BLOCK_LEN)
    }

    /// Waits until the file's lock is free: until the last write of whoever was killed has landed.
    fn wait_unlocked(&self) -> Outcome<Duration> {
        let began = Instant::now();
        let free = wait::until(LIMIT, || {
            let file = std::fs::File::open(&self.disk).ok()?;
            Flock::lock(file, FlockArg::LockExclusiveNonblock).ok().map(drop)
        });
        free.ok_or("the killed process still has its file locked")?;
        Ok(began.elapsed())
    }
}

fn rounds() -> u32 {
    let said = env::var("OUTBOARD_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    said.unwrap_or(ROUNDS)
}

/// Frames from one guest to the other, all the time.
#[derive(Default)]
struct Talk {
    received: AtomicU64,
}

impl Talk {
    /// Sends a frame every millisecond and takes what comes; sequence numbers never come twice in one life of the DPU.
    fn run(&self, one: &mut NetGuest, two: &mut NetGuest, stop: &AtomicBool) -> Outcome {
        let mut sent = 0u16;
        while !stop.load(Ordering::Relaxed) {
            // a full ring is a DPU that is away
            if one.send(&echo_frame(1, 2, sent)) {
                sent = sent.wrapping_add(1);
            }
            let until = Instant::now() + Duration::from_millis(1);
            while let Some(left) = until.checked_duration_since(Instant::now()) {
                let Some(frame) = two.receive(left) else { break };
                let number = u16::from_be_bytes([frame[40], frame[41]]);
                assert_eq!(frame, echo_frame(1, 2, number), "a frame arrives as it was sent");
                assert!(
                    sent.wrapping_sub(number) <= 1024,
                    "frame {number} is not one of those just sent, up to {sent}"
                );
                self.received.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// What one kind of guest driver sees of many kills.
fn killed_often(name: &str, wanted: Wanted, rounds: u32, how: Signal) -> Outcome {
    let scene = &mut Scene::new("")?;
    let (mut one, mut two) = (scene.port(1)?, scene.port(2)?);
    let mut load = scene.load(wanted, 7)?;
    let mut record = scene.record();
    let (ledger, progress) = (load.ledger(), load.progress());
    let talk = Talk::default();
    let stop = AtomicBool::new(false);
    let mut random = Random(u64::from(rounds));
    let (mut frames_back, mut blocks_back, mut unlocked) = (Spread::default(), Spread::default(), Spread::default());
    thread::scope(|scope| -> Outcome {
        let talking = scope.spawn(|| talk.run(&mut one, &mut two, &stop).map_err(|error| error.to_string()));
        let loading = scope.spawn(|| load.run(&stop));
        let went = (|| -> Outcome {
            for round in 0..rounds {
                thread::sleep(Duration::from_micros(random.next_u64() % 60_000));
                if how == Signal::SIGKILL {
                    scene.site.kill("dpu")?;
                } else {
                    // a process that hangs first, and is killed in the end
                    scene.site.signal("dpu", how)?;
                    thread::sleep(Duration::from_millis(300));
                    scene.site.kill("dpu")?;
                }
                let promised = ledger.lock_it().clone();
                promised.check_survivors(&record.take()?.image, &ledger.lock_it())?;
                unlocked.add(scene.wait_unlocked()?);
                let before = (
                    talk.received.load(Ordering::Relaxed),
                    progress.requests.load(Ordering::Relaxed),
                );
                let began = Instant::now();
                scene.site.launch("dpu")?;
                let (mut frames, mut blocks) = (None, None);
                while (frames.is_none() || blocks.is_none()) && began.elapsed() < LIMIT {
                    thread::sleep(Duration::from_millis(1));
                    if talk.received.load(Ordering::Relaxed) > before.0 {
                        frames.get_or_insert(began.elapsed());
                    }
                    if progress.requests.load(Ordering::Relaxed) > before.1 {
                        blocks.get_or_insert(began.elapsed());
                    }
                }
                let told = || {
                    format!(
                        "round {round}: nothing passes, frames {frames:?}, blocks {blocks:?}\n{}\n{:?}",
                        scene.site.log("dpu"),
                        scene.site.shim(&["list"])
                    )
                };
                frames_back.add(frames.ok_or_else(told)?);
                blocks_back.add(blocks.ok_or_else(told)?);
            }
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        talking.join().map_err(|_| "the talk panicked")??;
        let loaded = loading.join().map_err(|_| "the load panicked")?;
        went?;
        Ok(loaded?)
    })?;
    load.check_everything()?;
    scene.site.stop("dpu")?;
    let survivors = record.take()?;
    let promised = ledger.lock_it().clone();
    promised.check_survivors(&survivors.image, &promised)?;
    assert!(survivors.openings > u64::from(rounds), "each process opened the volume");
    println!(
        "{name}: {rounds} kills, {} requests acknowledged once each, {} flushes, {} frames; back after the start: \
         frames {frames_back}, blocks {blocks_back}; wait for the old process's lock, apart: {unlocked}",
        progress.requests.load(Ordering::Relaxed),
        progress.flushes.load(Ordering::Relaxed),
        talk.received.load(Ordering::Relaxed),
    );
    let limit = wait::on_this_machine(BACK_LIMIT);
    assert!(
        frames_back.median() <= BACK_LIMIT,
        "frames are back within {BACK_LIMIT:?}: {frames_back}"
    );
    assert!(
        frames_back.max() <= 3 * limit,
        "frames are back within {limit:?}: {frames_back}"
    );
    Ok(())
}

#[test]
fn the_dpu_is_killed_under_a_guest_that_knows_no_in_flight_log() -> Outcome {
    killed_often("plain driver", Wanted::default(), rounds(), Signal::SIGKILL)
}

#[test]
fn the_dpu_is_killed_under_many_queues() -> Outcome {
    let wanted = Wanted {
        features: F_EVENT_IDX | F_INDIRECT_DESC | F_BLK_MQ,
        protocol: PROTOCOL_F_INFLIGHT_SHMFD | PROTOCOL_F_MQ,
        queues: 4,
        ..Wanted::default()
    };
    killed_often(
        "4 queues, in-flight log, EVENT_IDX, indirect",
        wanted,
        rounds(),
        Signal::SIGKILL,
    )
}

#[test]
fn the_dpu_hangs_and_is_killed() -> Outcome {
    killed_often("hung first", Wanted::default(), rounds().div_ceil(10), Signal::SIGSTOP)
}

/// What the killed process has still under way may land later than what its successor writes: the successor waits.
#[test]
fn the_old_process_s_lock_is_waited_for() -> Outcome {
    const HELD: Duration = Duration::from_millis(1500);
    let scene = &mut Scene::new("")?;
    let (mut one, mut two) = (scene.port(1)?, scene.port(2)?);
    let mut load = scene.load(Wanted::default(), 3)?;
    let progress = load.progress();
    let talk = Talk::default();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| -> Outcome {
        let talking = scope.spawn(|| talk.run(&mut one, &mut two, &stop).map_err(|error| error.to_string()));
        let loading = scope.spawn(|| load.run(&stop));
        let went = (|| -> Outcome {
            wait::until(LIMIT, || {
                (progress.requests.load(Ordering::Relaxed) > 100).then_some(())
            })
            .ok_or("no load")?;
            scene.site.kill("dpu")?;
            scene.wait_unlocked()?;
            // as the kernel holds it for a process that is gone while its writes land
            let file = std::fs::File::open(&scene.disk)?;
            let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
            let before = (
                talk.received.load(Ordering::Relaxed),
                progress.requests.load(Ordering::Relaxed),
            );
            scene.site.launch("dpu")?;
            let frames = wait::until(LIMIT, || {
                (talk.received.load(Ordering::Relaxed) > before.0).then_some(())
            });
            thread::sleep(HELD);
            assert_eq!(
                progress.requests.load(Ordering::Relaxed),
                before.1,
                "nothing is submitted while the lock is held"
            );
            frames.ok_or("frames do not wait for a volume's lock")?;
            drop(lock);
            wait::until(LIMIT, || {
                (progress.requests.load(Ordering::Relaxed) > before.1).then_some(())
            })
            .ok_or("blocks do not come back")?;
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        talking.join().map_err(|_| "the talk panicked")??;
        let loaded = loading.join().map_err(|_| "the load panicked")?;
        went?;
        Ok(loaded?)
    })?;
    load.check_everything()?;
    Ok(())
}
