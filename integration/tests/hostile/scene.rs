//! The daemons with two neighbours, an attacker's port and a volume.

use std::{error::Error, fs, io, path::Path, time::Duration};

use outboard_integration::{
    binaries::Binaries,
    frontend::{NetGuest, echo_frame},
    stack::Stack,
    wait,
};
use tempfile::TempDir;

pub type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Frames that the neighbours exchange each way to show that they are unharmed.
const NEIGHBOUR_FRAMES: u16 = 200;
pub const LIMIT: Duration = Duration::from_secs(60);
/// How long a wedged worker is waited for before the attack counts as a success.
const WEDGED_LIMIT: Duration = Duration::from_secs(2);

/// The daemons, two neighbours, and what the DPU holds with nobody else there.
pub struct Scene {
    _folder: TempDir,
    pub stack: Stack,
    pub dpu: u32,
    pub neighbours: [NetGuest; 2],
    /// Descriptors and threads of the DPU with the neighbours connected and nobody else.
    baseline: (usize, usize),
}

impl Scene {
    /// Three ports: the neighbours on 1 and 2, the attacker on 3. `off` names checks to switch off.
    pub fn new(off: &str) -> Result<Self, Box<dyn Error>> {
        let folder = tempfile::Builder::new().prefix("outboard.").tempdir()?;
        let mut topology = String::from("[[network]]\nname = \"blue\"\nsubnets = [\"10.0.0.0/24\"]\n");
        for number in 1..=3 {
            topology += &format!(
                "[[port]]\nname = \"vm{number}\"\nnetwork = \"blue\"\nmac = \"52:54:00:00:00:0{number}\"\n\
                 addresses = [\"10.0.0.{number}\"]\ncard = \"local\"\n"
            );
        }
        topology += "[[volume]]\nname = \"disk1\"\nsize = \"1MiB\"\nbackend = { memory = true }\ncard = \"local\"\n";
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

    pub fn attacker(&self) -> Result<NetGuest, Box<dyn Error>> {
        let socket = self.stack.port_socket("vm3");
        // a session that ended a moment ago frees its port a moment later
        Ok(wait::until(LIMIT, || NetGuest::connect(&socket).ok()).ok_or("the attacker's port does not open")?)
    }

    /// How many sessions the DPU has ended because of what came over them.
    pub fn refusals(&self) -> usize {
        let log = fs::read_to_string(self.stack.run_dir().join("log/dpu.log")).unwrap_or_default();
        log.matches("the session was ended").count()
    }

    /// Was what gave `result` refused, when `before` sessions had been ended? Either the VMM is told, or the DPU has ended its
    /// session: the shim, which holds the VMM's, acknowledges what is told to no DPU, and tells it to the next one, which
    /// ends its session too.
    pub fn refused<T>(&self, result: &io::Result<T>, before: usize) -> bool {
        result.is_err() || wait::until(LIMIT, || (self.refusals() > before).then_some(())).is_some()
    }

    /// Neighbours exchange frames both ways; each must arrive, once and in order.
    pub fn exchange(&mut self) -> Outcome {
        let [one, two] = &mut self.neighbours;
        flow(one, two, 1, 2)?;
        flow(two, one, 2, 1)
    }

    /// All that has to hold after an attack that failed.
    pub fn assert_unharmed(&mut self) -> Outcome {
        assert_eq!(self.stack.pid("dpu"), Some(self.dpu));
        assert!(Path::new(&format!("/proc/{}", self.dpu)).exists(), "the DPU lives");
        self.exchange()?;
        // the attacked port starts afresh, and legitimate traffic passes
        let mut again = connected(&self.stack, "vm3")?;
        flow(&mut again, &mut self.neighbours[0], 3, 1)?;
        flow(&mut self.neighbours[0], &mut again, 1, 3)?;
        drop(again);
        let (dpu, baseline) = (self.dpu, self.baseline);
        // threads that wait for more to open or to close end a while after
        let back = wait::until(LIMIT, || {
            usage(dpu).ok().filter(|now| now.0 <= baseline.0 && now.1 <= baseline.1)
        });
        assert!(
            back.is_some(),
            "descriptors and threads return to {baseline:?}, they are {:?}: {:?}",
            usage(dpu)?,
            threads(dpu)?
        );
        Ok(())
    }

    /// The attack took the DPU down, or stopped it from switching.
    pub fn is_harmed(&mut self) -> bool {
        let dead = wait::until(WEDGED_LIMIT, || (!alive(self.dpu)).then_some(())).is_some();
        dead || {
            let [one, two] = &mut self.neighbours;
            !one.send(&echo_frame(1, 2, 0)) || two.receive(WEDGED_LIMIT).is_none()
        }
    }
}

pub fn connected(stack: &Stack, port: &str) -> Result<NetGuest, Box<dyn Error>> {
    let socket = stack.port_socket(port);
    let guest = wait::until(LIMIT, || NetGuest::start(&socket).ok()).ok_or_else(|| format!("{port} does not start"))?;
    if stack.wait_binding("port", port, "active", LIMIT) {
        Ok(guest)
    } else {
        Err(format!("{port} not active").into())
    }
}

pub fn flow(from: &mut NetGuest, to: &mut NetGuest, source: u8, destination: u8) -> Outcome {
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

pub fn alive(pid: u32) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // "pid (name) state …": a process that died and was not waited for yet is a zombie
    state
        .rsplit(") ")
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// Descriptors and threads of a process.
pub fn usage(pid: u32) -> io::Result<(usize, usize)> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    Ok((descriptors, threads(pid)?.len()))
}

/// Names of a process' threads. The kernel's own workers for its io_uring are not counted: they come and go as the kernel
/// likes, within its bound.
fn threads(pid: u32) -> io::Result<Vec<String>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?.filter_map(Result::ok);
    let names = tasks.map(|task| fs::read_to_string(task.path().join("comm")).unwrap_or_default());
    let own = names.filter(|name| !name.starts_with("iou-"));
    Ok(own.map(|name| name.trim_end().to_owned()).collect())
}
