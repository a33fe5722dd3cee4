//! DPDK's testpmd between two vhost ports, forwarding whatever comes without looking at it: the least that a switch can do.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{Backend, Context, READY_LIMIT, dpdk_memory, listens, package_version};
use crate::{
    error::Failure,
    generator::{Role, Target},
    launch::{Launch, Running},
};

/// For its buffers: 16,384 of 2 KiB, and rings.
const MEMORY_MB: u32 = 256;

/// A running testpmd.
pub struct DpdkIo {
    process: Running,
    a: PathBuf,
    b: PathBuf,
}

impl DpdkIo {
    /// Starts it and waits for its sockets.
    pub fn start(context: &Context, folder: &Path) -> Result<Self, Failure> {
        let (a, b) = (folder.join("a.sock"), folder.join("b.sock"));
        let core = context.machine.backend_core;
        let launch = Launch::new("dpdk-io", "dpdk-testpmd", core)
            // not the folder that all DPDK programs of a machine share
            .env("RUNTIME_DIRECTORY", folder)
            // the main thread only waits; the second forwards; both on the one core
            .args(["--lcores".into(), format!("0@{core},1@{core}")])
            .args(dpdk_memory(&context.machine, MEMORY_MB))
            .args(["--vdev".into(), format!("net_vhost0,iface={},queues=1", a.display())])
            .args(["--vdev".into(), format!("net_vhost1,iface={},queues=1", b.display())])
            // a period for statistics makes it run without a terminal
            .args([
                "--",
                "--nb-cores=1",
                "--forward-mode=io",
                "--auto-start",
                "--stats-period=3600",
            ])
            .args(["--total-num-mbufs=16384", "--txd=1024", "--rxd=1024"]);
        let mut process = launch.start(&folder.join("testpmd.log"))?;
        process.wait_until("its two sockets", READY_LIMIT, || listens(&a) && listens(&b))?;
        Ok(Self { process, a, b })
    }
}

impl Backend for DpdkIo {
    fn target(&self) -> Target {
        Target::Net {
            role: Role::Connect,
            a: self.a.clone(),
            b: self.b.clone(),
            victim: None,
        }
    }

    fn processes(&self) -> BTreeSet<u32> {
        [self.process.pid()].into()
    }

    fn pollers(&self) -> BTreeSet<u32> {
        self.processes()
    }

    fn check(&mut self) -> Result<(), Failure> {
        match self.process.ended() {
            None => Ok(()),
            Some(status) => Err(self.process.failure(format!("ended with {status}"), "see what it said")),
        }
    }

    fn version(&self) -> String {
        format!("DPDK {} testpmd", package_version("dpdk-dev"))
    }
}
