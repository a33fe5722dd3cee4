//! DPDK's virtio-user driver as a client: it negotiates what a VMM does not (IN_ORDER, memory in one go), in both roles of
//! the socket. It sends back whatever it receives, with addresses swapped.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use outboard_integration::{
    frontend::{NetGuest, echo_frame},
    process::Process,
    site::{LIMIT, Outcome, Site},
    wait,
};

const FRAMES: u16 = 500;
/// How long DPDK may take to start on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(120);

fn topology() -> String {
    let mut topology = String::from("[[network]]\nname = \"blue\"\nsubnets = [\"10.0.0.0/24\"]\n");
    for number in 1..=2 {
        topology += &format!(
            "[[port]]\nname = \"vm{number}\"\nnetwork = \"blue\"\nmac = \"52:54:00:00:00:0{number}\"\n\
             addresses = [\"10.0.0.{number}\"]\ncard = \"local\"\n"
        );
    }
    topology
}

struct Testpmd {
    process: Process,
    log: PathBuf,
}

impl Testpmd {
    /// One port of virtio-user at `socket` with the MAC of vm2, which reflects frames. `options` are of the device.
    fn start(site: &Site, socket: &Path, queues: u16, options: &str) -> Outcome<Self> {
        let log = site.run_path("log/testpmd.log");
        let process = Process::start(
            "dpdk-testpmd",
            Path::new("dpdk-testpmd"),
            |command| {
                command.args(["--no-huge", "-m", "256", "--no-pci", "--no-shconf", "--no-telemetry"]);
                command.args(["-l", "0,1", "--vdev"]).arg(format!(
                    "net_virtio_user0,path={},mac=52:54:00:00:00:02,queues={queues}{options}",
                    socket.display()
                ));
                command.args(["--", "--no-mlockall", "--total-num-mbufs=4096", "--nb-cores=1"]);
                command.args(["--forward-mode=5tswap", "--port-topology=loop", "--auto-start"]);
                command.args([format!("--rxq={queues}"), format!("--txq={queues}")]);
                // it ends on anything that comes from its standard input, the end of that too
                command.stdin(Stdio::piped());
            },
            &log,
        )?;
        Ok(Self { process, log })
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// The frame as it comes back: MAC and IP addresses swapped.
fn swapped(frame: &[u8]) -> Vec<u8> {
    let mut back = frame.to_vec();
    back[..6].copy_from_slice(&frame[6..12]);
    back[6..12].copy_from_slice(&frame[..6]);
    back[26..30].copy_from_slice(&frame[30..34]);
    back[30..34].copy_from_slice(&frame[26..30]);
    back
}

fn reflects(site: &Site, testpmd: &mut Testpmd, what: &str) -> Outcome {
    let guest = wait::until(LIMIT, || NetGuest::start(&site.run_path("ports/vm1.sock")).ok());
    let mut guest = guest.ok_or("vm1 does not start")?;
    let first = wait::until(START_LIMIT, || {
        if testpmd.process.ended().is_some() {
            return Some(false);
        }
        guest.send(&echo_frame(1, 2, u16::MAX));
        guest.receive(Duration::from_millis(200)).map(|_| true)
    });
    if first != Some(true) {
        return Err(format!(
            "{what}: testpmd reflects nothing\n{}\n{}\n{:?}",
            testpmd.said(),
            site.log("dpu"),
            site.shim(&["list"])
        )
        .into());
    }
    while guest.receive(Duration::from_millis(500)).is_some() {}
    for sequence in 0..FRAMES {
        let frame = echo_frame(1, 2, sequence);
        assert!(guest.send(&frame), "{what}: frame {sequence} could not be sent");
        let came = guest.receive(LIMIT);
        assert_eq!(came, Some(swapped(&frame)), "{what}: frame {sequence} comes back");
    }
    site.wait_binding("port", "vm2", "active")?;
    Ok(())
}

#[test]
fn virtio_user_connects() -> Outcome {
    let site = Site::new(&topology())?;
    let socket = site.run_path("ports/vm2.sock");
    for (queues, options) in [
        (1, ""),
        (1, ",mrg_rxbuf=0"),
        (1, ",in_order=1,mrg_rxbuf=0,vectorized=1"),
        (2, ",in_order=1,cq=1"),
        (1, ",packed_vq=1"),
        (1, ",packed_vq=1,mrg_rxbuf=0"),
        (2, ",packed_vq=1,in_order=1"),
        (1, ",packed_vq=1,in_order=1,mrg_rxbuf=0,vectorized=1"),
    ] {
        let mut testpmd = Testpmd::start(&site, &socket, queues, options)?;
        reflects(&site, &mut testpmd, options)?;
    }
    Ok(())
}

#[test]
fn virtio_user_listens() -> Outcome {
    let site = Site::new(&topology())?;
    let path = site.run_path("testpmd.sock");
    site.shim(&["detach", "port", "vm2"])??;
    let text = path.to_string_lossy();
    site.shim(&["attach", "port", "vm2", "--role", "connect", "--socket", &text])??;
    let mut testpmd = Testpmd::start(&site, &path, 1, ",server=1")?;
    reflects(&site, &mut testpmd, "server")
}
