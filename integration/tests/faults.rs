//! Daemons that are killed, and files that are damaged while nobody looks: no state is lost, nothing is granted from a
//! damaged file, and traffic goes on as soon as it can.

use std::{fs, net::Shutdown, os::unix::net::UnixListener, path::Path, thread, time::Duration};

use outboard_integration::{
    frontend::{BlkGuest, Frontend, NetGuest, echo_frame},
    site::{LIMIT, Outcome, Site},
    wait,
};
use tempfile::TempPath;

/// Frames each way that show that two guests reach each other.
const FRAMES: u16 = 100;
const BLOCK: usize = 512;
/// Long enough for a retry of the shim (3 s at most) that should not succeed.
const SETTLE: Duration = Duration::from_secs(4);

/// A site with two guests on ports 1 and 2, a volume, and port 3 revoked.
struct Scene {
    site: Site,
    guests: [NetGuest; 2],
    disk: BlkGuest,
    disk_file: TempPath,
    generations: [u64; 4],
    identity: Vec<u8>,
}

/// What has a binding.
const OBJECTS: [(&str, &str); 4] = [("port", "vm1"), ("port", "vm2"), ("port", "vm3"), ("volume", "disk1")];

impl Scene {
    fn new() -> Outcome<Self> {
        let mut topology = String::from("[[network]]\nname = \"blue\"\nsubnets = [\"10.0.0.0/24\"]\n");
        for number in 1..=3 {
            topology += &format!(
                "[[port]]\nname = \"vm{number}\"\nnetwork = \"blue\"\nmac = \"52:54:00:00:00:0{number}\"\n\
                 addresses = [\"10.0.0.{number}\"]\ncard = \"local\"\n"
            );
        }
        // a path of its own, since the folder is not known yet; the file is deleted with the scene
        let file = tempfile::Builder::new().prefix("outboard-disk.").tempfile()?;
        file.as_file().set_len(1 << 20)?;
        let path = file.into_temp_path();
        topology += &format!(
            "[[volume]]\nname = \"disk1\"\nsize = \"1MiB\"\nbackend = {{ file = \"{}\" }}\ncard = \"local\"\n",
            path.display()
        );
        let site = Site::new(&topology)?;
        site.outboard(&["grant", "revoke", "port", "vm3"])??;
        site.wait_device("port vm3", "revoked")?;
        let guests = [connected(&site, 1)?, connected(&site, 2)?];
        let disk = disk(&site)?;
        let mut scene = Self {
            identity: fs::read(site.run_path("state/dpu/identity.toml"))?,
            site,
            guests,
            disk,
            disk_file: path,
            generations: [0; 4],
        };
        scene.generations = scene.generations_now()?;
        scene.exchange()?;
        Ok(scene)
    }

    fn generations_now(&self) -> Outcome<[u64; 4]> {
        let mut now = [0; 4];
        for (place, (kind, name)) in now.iter_mut().zip(OBJECTS) {
            *place = self.site.generation(kind, name)?;
        }
        Ok(now)
    }

    /// Guests exchange frames both ways; each arrives, once and in order.
    fn exchange(&mut self) -> Outcome {
        let [one, two] = &mut self.guests;
        flow(one, two, 1, 2)?;
        flow(two, one, 2, 1)
    }

    fn reconnect(&mut self) -> Outcome {
        self.guests = [connected(&self.site, 1)?, connected(&self.site, 2)?];
        self.disk = disk(&self.site)?;
        Ok(())
    }

    /// What has to hold after every fault.
    fn assert_nothing_lost(&mut self) -> Outcome {
        self.exchange()?;
        let now = self.generations_now()?;
        for ((before, after), object) in self.generations.iter().zip(now).zip(OBJECTS) {
            assert!(
                after >= *before,
                "generation of {object:?} fell from {before} to {after}"
            );
        }
        assert_eq!(
            fs::read(self.site.run_path("state/dpu/identity.toml"))?,
            self.identity,
            "the card was not enrolled anew"
        );
        assert!(
            NetGuest::connect(&self.site.run_path("ports/vm3.sock")).is_err(),
            "what was revoked stays revoked"
        );
        // and it is the revocation that keeps it shut
        self.site.outboard(&["grant", "create", "port", "vm3"])??;
        let mut third = connected(&self.site, 3)?;
        flow(&mut third, &mut self.guests[0], 3, 1)
    }
}

fn connected(site: &Site, number: u8) -> Outcome<NetGuest> {
    let port = format!("vm{number}");
    let socket = site.run_path(&format!("ports/{port}.sock"));
    let guest = wait::until(LIMIT, || NetGuest::start(&socket).ok()).ok_or_else(|| {
        format!(
            "{port} does not start: {:?}\nshim: {}\nDPU: {}\nbroker: {}",
            NetGuest::start(&socket).err(),
            site.shim(&["list"])
                .map_or_else(|e| e.to_string(), |said| said.unwrap_or_else(|e| e)),
            site.log("dpu"),
            site.log("broker"),
        )
    })?;
    site.wait_binding("port", &port, "active")?;
    Ok(guest)
}

/// Waits until a DPU has taken over the sessions of vm1 and vm2, for the `replays`th time.
fn taken_over(site: &Site, replays: u64) -> Outcome {
    let look = || {
        let list: serde_json::Value = serde_json::from_str(&site.shim(&["list", "--json"]).ok()?.ok()?).ok()?;
        let told = |device: &&serde_json::Value| {
            matches!(device["name"].as_str(), Some("vm1" | "vm2")) && device["replays"].as_u64() == Some(replays)
        };
        let devices = list["devices"].as_array()?;
        (devices.iter().filter(told).count() == 2).then_some(())
    };
    wait::until(LIMIT, look).ok_or_else(|| format!("no DPU takes the sessions over: {:?}", site.shim(&["list"])).into())
}

fn disk(site: &Site) -> Outcome<BlkGuest> {
    let socket = site.run_path("volumes/disk1.sock");
    Ok(wait::until(LIMIT, || BlkGuest::start(&socket).ok()).ok_or("disk1 does not start")?)
}

fn flow(from: &mut NetGuest, to: &mut NetGuest, source: u8, destination: u8) -> Outcome {
    for sequence in 0..FRAMES {
        let frame = echo_frame(source, destination, sequence);
        assert!(
            from.send(&frame),
            "frame {sequence} of {source} → {destination} could not be sent"
        );
        let came = to
            .receive(LIMIT)
            .ok_or_else(|| format!("frame {sequence} of {source} → {destination} is lost"))?;
        assert_eq!(came, frame);
    }
    Ok(())
}

/// Writes and flushes, then goes on writing without a flush until the volume is gone.
fn write_until_gone(mut disk: BlkGuest) -> thread::JoinHandle<u64> {
    thread::spawn(move || {
        let mut flushed = 0;
        for sector in 0..1024 {
            let written = disk.write(sector, &block(sector)).and_then(|()| disk.flush());
            if written.is_err() {
                break;
            }
            flushed = sector + 1;
        }
        flushed
    })
}

fn block(sector: u64) -> Vec<u8> {
    sector.to_le_bytes().iter().copied().cycle().take(BLOCK).collect()
}

/// Kills `daemon` while frames and writes are under way, starts it again and checks everything.
fn killed_in_full_run(daemon: &str) -> Outcome {
    let Scene {
        mut site,
        guests: [mut one, mut two],
        disk: first_disk,
        disk_file,
        generations,
        identity,
    } = Scene::new()?;
    let writer = write_until_gone(first_disk);
    let traffic = thread::spawn(move || {
        let mut passed = 0u32;
        while one.send(&echo_frame(1, 2, 9)) && two.receive(Duration::from_secs(2)).is_some() && passed < 20_000 {
            passed += 1;
        }
        passed
    });
    thread::sleep(Duration::from_millis(300));
    site.kill(daemon)?;
    site.start(daemon)?;
    let passed = traffic.join().map_err(|_| "the traffic panicked")?;
    let flushed = writer.join().map_err(|_| "the writer panicked")?;
    assert!(
        passed > 0 && flushed > 0,
        "{passed} frames and {flushed} blocks before the kill"
    );

    let guests = [connected(&site, 1)?, connected(&site, 2)?];
    let mut disk = disk(&site)?;
    for sector in 0..flushed {
        assert!(
            disk.read(sector, 512)? == block(sector),
            "block {sector} of {flushed} that were flushed is lost"
        );
    }
    let mut scene = Scene {
        site,
        guests,
        disk,
        disk_file,
        generations,
        identity,
    };
    scene.assert_nothing_lost()
}

#[test]
fn the_dpu_is_killed() -> Outcome {
    killed_in_full_run("dpu")
}

#[test]
fn the_shim_is_killed() -> Outcome {
    killed_in_full_run("shim")
}

#[test]
fn the_broker_is_killed() -> Outcome {
    let mut scene = Scene::new()?;
    scene.disk.write(0, &block(77))?;
    scene.site.kill("broker")?;
    // sessions go on as if nothing were, with the very same connections
    scene.exchange()?;
    scene.disk.flush()?;
    scene.site.start("broker")?;
    scene.site.wait_binding("port", "vm1", "active")?;
    assert_eq!(scene.generations_now()?, scene.generations);
    assert_eq!(scene.disk.read(0, 512)?, block(77));
    scene.assert_nothing_lost()
}

fn cut(path: &Path) -> Outcome {
    let file = fs::File::options().write(true).open(path)?;
    file.set_len(file.metadata()?.len() - 3)?;
    Ok(())
}

#[test]
fn a_damaged_state_file_of_the_dpu() -> Outcome {
    let mut scene = Scene::new()?;
    scene.site.kill("dpu")?;
    scene.site.stop("broker")?;
    cut(&scene.site.run_path("state/dpu/state"))?;
    scene.site.start("dpu")?;
    let said = scene.site.wait_log("dpu", "is not used")?;
    for part in [
        scene.site.run_path("state/dpu/state").to_string_lossy().as_ref(),
        "truncated or its checksum is wrong",
        "nothing is granted until the broker is connected",
        "fix: ",
    ] {
        assert!(said.contains(part), "'{part}' is missing in: {said}");
    }
    thread::sleep(SETTLE);
    for port in ["vm1", "vm2", "vm3"] {
        let socket = scene.site.run_path(&format!("ports/{port}.sock"));
        assert!(
            NetGuest::connect(&socket).is_err(),
            "{port} is granted from a damaged file"
        );
    }
    // people are told of both reasons that there may be, and what to do
    let told = scene.site.wait_device("port vm1", "problem:")?;
    let told = told.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "waiting-for-grant",
        "has no grant of port vm1",
        "has lost its state and not yet heard from the broker",
        "fix: see `outboard grant list`",
    ] {
        assert!(told.contains(part), "'{part}' is missing in: {told}");
    }
    // the control: with the broker's desired state everything is back
    scene.site.start("broker")?;
    scene.reconnect()?;
    scene.assert_nothing_lost()
}

#[test]
fn the_dpu_starts_without_a_broker() -> Outcome {
    let mut scene = Scene::new()?;
    scene.site.stop("broker")?;
    scene.site.kill("dpu")?;
    scene.site.start("dpu")?;
    // the whole state file alone grants what the damaged one must not, so that the shim's sessions go on; states are only
    // told by the broker
    taken_over(&scene.site, 1)?;
    let arrives = wait::until(LIMIT, || {
        scene.guests[0].send(&echo_frame(1, 2, 0)).then_some(())?;
        scene.guests[1].receive(Duration::from_millis(200))
    });
    assert!(arrives.is_some(), "frames pass without a broker");
    while scene.guests[1].receive(Duration::from_millis(200)).is_some() {}
    scene.site.start("broker")?;
    scene.site.wait_binding("port", "vm1", "active")?;
    scene.assert_nothing_lost()
}

#[test]
fn a_damaged_store_of_the_broker() -> Outcome {
    let mut scene = Scene::new()?;
    scene.site.stop("broker")?;
    let store = scene.site.run_path("state/broker/broker.redb");
    let whole = fs::read(&store)?;
    let half = whole.get(..whole.len() / 2).unwrap_or_default();
    fs::write(&store, half)?;
    let said = scene.site.refused("broker")?;
    for part in ["error: ", store.to_string_lossy().as_ref(), "  fix: "] {
        assert!(said.contains(part), "'{part}' is missing in: {said}");
    }
    scene.exchange()?;
    fs::write(&store, whole)?;
    scene.site.start("broker")?;
    scene.site.wait_binding("port", "vm1", "active")?;
    scene.assert_nothing_lost()
}

/// QEMU's `server=on`: the VMM listens, and the shim connects.
#[test]
fn a_vmm_that_listens() -> Outcome {
    let mut scene = Scene::new()?;
    scene.site.shim(&["detach", "port", "vm1"])??;
    let path = scene.site.run_path("listening-vmm.sock");
    scene.site.shim(&[
        "attach",
        "port",
        "vm1",
        "--role",
        "connect",
        "--socket",
        &path.to_string_lossy(),
    ])??;
    for round in 1..=2 {
        // the first time the shim has been waiting for the VMM; the second time the VMM was started again
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        let (stream, _) = wait::until(LIMIT, || listener.accept().ok()).ok_or_else(|| {
            format!(
                "round {round}: the shim does not connect: {:?}",
                scene.site.shim(&["list"])
            )
        })?;
        // nobody listens between the rounds, or the shim would connect to a listener that never accepts again
        drop(listener);
        fs::remove_file(&path)?;
        stream.set_nonblocking(false)?;
        let hang_up = stream.try_clone()?;
        scene.guests[0] = NetGuest::negotiate(Frontend::over(stream)?)?.run()?;
        scene.site.wait_binding("port", "vm1", "active")?;
        scene.exchange()?;
        scene.site.kill("dpu")?;
        scene.site.start("dpu")?;
        // no guest sees anything of it
        taken_over(&scene.site, round)?;
        scene.exchange()?;
        hang_up.shutdown(Shutdown::Both)?;
    }
    Ok(())
}
