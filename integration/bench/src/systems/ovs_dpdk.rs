//! Open vSwitch with its userspace datapath: one polling thread, and all else of it on the same core.
//!
//! It has a database, sockets and a network namespace of its own, and does not touch an Open vSwitch of this machine.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use nix::sys::signal::Signal;

use super::{
    Backend, CONNECTIONS_ATTACKED, CONNECTIONS_MAX, Context, READY_LIMIT, Setting, dpdk_memory, package_version,
};
use crate::{
    error::Failure,
    generator::{ALLOWED_PORTS, Role, Target},
    launch::{Launch, Running, run},
    storm::{Policies, RULES, rule},
};

const WHO: &str = "ovs-dpdk";
/// The build with DPDK; the plain name may be the build without.
const DAEMON: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// For its buffers, which it makes for each port.
const MEMORY_MB: u32 = 512;

const PORTS: [&str; 2] = ["va", "vb"];
/// The second pair.
const VICTIMS: [&str; 2] = ["vc", "vd"];

/// A running Open vSwitch.
pub struct OvsDpdk {
    // dropped in this order
    switch: Running,
    database: Running,
    folder: PathBuf,
    setting: Setting,
}

impl OvsDpdk {
    /// Starts database and switch and makes one bridge with two ports, which connect to the generator.
    pub fn start(context: &Context, setting: Setting, folder: &Path) -> Result<Self, Failure> {
        let file = |name: &str| folder.join(name);
        let mut create = tool("ovsdb-tool", folder);
        run(WHO, create.arg("create").arg(file("conf.db")).arg(SCHEMA))?;
        let core = context.machine.backend_core;
        let mut database = environment(Launch::new(WHO, "ovsdb-server", core), folder)
            .arg(file("conf.db"))
            .arg(format!("--remote=punix:{}", file("db.sock").display()))
            .arg(format!("--unixctl={}", file("db.ctl").display()))
            .start(&file("ovsdb.log"))?;
        database.wait_until("its socket", READY_LIMIT, || file("db.sock").exists())?;
        let vsctl = |words: &[&str]| {
            let database = format!("--db=unix:{}", file("db.sock").display());
            let mut command = tool("ovs-vsctl", folder);
            run(WHO, command.args([&database, "--timeout=30"]).args(words))
        };
        vsctl(&["--no-wait", "init"])?;
        let mask = format!("{:#x}", 1u128 << core);
        let extra = dpdk_memory(&context.machine, MEMORY_MB).join(" ");
        let mut settings = vec![
            "other_config:dpdk-init=true".to_owned(),
            format!("other_config:dpdk-lcore-mask={mask}"),
            format!("other_config:pmd-cpu-mask={mask}"),
            "other_config:per-port-memory=true".into(),
            format!("other_config:dpdk-extra={extra}"),
        ];
        if setting == Setting::Segments {
            settings.push("other_config:userspace-tso-enable=true".into());
        }
        let words: Vec<&str> = ["--no-wait", "set", "Open_vSwitch", "."]
            .into_iter()
            .chain(settings.iter().map(String::as_str))
            .collect();
        vsctl(&words)?;
        let mut switch = environment(Launch::new(WHO, DAEMON, core), folder)
            .arg(format!("unix:{}", file("db.sock").display()))
            .arg(format!("--unixctl={}", file("vs.ctl").display()))
            .own_network()
            .start(&file("vswitchd.log"))?;
        switch.wait_until("its control socket", READY_LIMIT, || file("vs.ctl").exists())?;
        // Not waited for by the tool, which would not notice that the switch ended.
        let bridge = "--no-wait add-br br0 -- set bridge br0 datapath_type=netdev fail-mode=standalone";
        vsctl(&bridge.split(' ').collect::<Vec<_>>())?;
        let names = if setting == Setting::TwoPairs {
            &[PORTS, VICTIMS].concat()[..]
        } else {
            &PORTS[..]
        };
        vsctl(&ports(folder, names).iter().map(String::as_str).collect::<Vec<_>>())?;
        let number = || vsctl(&["--no-wait", "get", "Interface", names[names.len() - 1], "ofport"]).unwrap_or_default();
        let last = names.len().to_string();
        switch.wait_until("its ports", READY_LIMIT, || number().trim() == last)?;
        let started = Self {
            switch,
            database,
            folder: folder.to_owned(),
            setting,
        };
        match setting {
            Setting::Firewall | Setting::Connections => started.firewall(&firewall_flows(1), CONNECTIONS_MAX)?,
            Setting::TwoPairs => started.firewall(&firewall_flows(2), CONNECTIONS_ATTACKED)?,
            Setting::ManyRules => {
                started.write("other-flows", &(firewall_flows(1) + &more_flows(1)))?;
                started.firewall(&(firewall_flows(1) + &more_flows(0)), CONNECTIONS_MAX)?;
            }
            Setting::Switch | Setting::Segments | Setting::Volume(_) => {}
        }
        Ok(started)
    }

    fn write(&self, name: &str, flows: &str) -> Result<PathBuf, Failure> {
        let file = self.folder.join(name);
        fs::write(&file, flows).map_err(|e| Failure::io(WHO, file.display(), &e, "check the space left in /tmp"))?;
        Ok(file)
    }

    fn bridge(&self) -> String {
        format!("unix:{}", self.folder.join("br0.mgmt").display())
    }

    fn firewall(&self, flows: &str, connections: u32) -> Result<(), Failure> {
        let file = self.write("flows", flows)?;
        let mut command = tool("ovs-ofctl", &self.folder);
        run(
            WHO,
            command
                .args(["-O", "OpenFlow13", "replace-flows", &self.bridge()])
                .arg(&file),
        )?;
        let mut command = tool("ovs-appctl", &self.folder);
        let control = self.folder.join("vs.ctl");
        let command = command.arg("-t").arg(control);
        run(WHO, command.args(["dpctl/ct-set-maxconns", &connections.to_string()]))?;
        Ok(())
    }
}

/// Connections may be opened from the first port of each pair to the allowed destination ports; what belongs to one passes.
fn firewall_flows(pairs: u32) -> String {
    let allowed = ALLOWED_PORTS.1;
    let mut flows = vec![
        "table=0,priority=10,arp,actions=NORMAL".to_owned(),
        "table=0,priority=100,ip,ct_state=-trk,actions=ct(table=1)".into(),
        "table=1,priority=1,actions=drop".into(),
    ];
    for pair in 0..pairs {
        let (one, two) = (2 * pair + 1, 2 * pair + 2);
        for (from, to) in [(one, two), (two, one)] {
            flows.push(format!(
                "table=1,priority=100,ip,ct_state=+trk+est,in_port={from},actions=output:{to}"
            ));
        }
        for protocol in ["udp", "tcp"] {
            flows.push(format!(
                "table=1,priority=100,{protocol},ct_state=+trk+new,in_port={one},tp_dst={allowed},actions=ct(commit),output:{two}"
            ));
        }
    }
    flows.join("\n") + "\n"
}

/// Many more flows, none of which matters to the generator's frames. `policy`: one of two.
fn more_flows(policy: usize) -> String {
    let flow = |n| {
        let (from, port) = rule(policy, n);
        format!(
            "table=1,priority=50,udp,ct_state=+trk+new,in_port=1,nw_src={from},tp_dst={port},actions=ct(commit),output:2\n"
        )
    };
    (0..RULES).map(flow).collect()
}

/// Arguments that make ports, numbered from 1. The switch connects, and tries again each second.
fn ports(folder: &Path, names: &[&str]) -> Vec<String> {
    let port = |name: &str, number: usize| {
        let socket = folder.join(format!("{name}.sock"));
        [
            "add-port".to_owned(),
            "br0".into(),
            name.into(),
            "--".into(),
            "set".into(),
            "Interface".into(),
            name.into(),
            "type=dpdkvhostuserclient".into(),
            format!("options:vhost-server-path={}", socket.display()),
            format!("ofport_request={number}"),
        ]
    };
    let mut words = vec!["--no-wait".to_owned()];
    for (index, name) in names.iter().enumerate() {
        if index > 0 {
            words.push("--".into());
        }
        words.extend(port(name, index + 1));
    }
    words
}

/// Its own folders, and DPDK's.
fn variables(folder: &Path) -> [(&'static str, &Path); 5] {
    let names = [
        "OVS_RUNDIR",
        "OVS_LOGDIR",
        "OVS_DBDIR",
        "OVS_SYSCONFDIR",
        "RUNTIME_DIRECTORY",
    ];
    names.map(|name| (name, folder))
}

fn environment(launch: Launch, folder: &Path) -> Launch {
    variables(folder)
        .into_iter()
        .fold(launch, |launch, (name, value)| launch.env(name, value))
}

fn tool(name: &str, folder: &Path) -> Command {
    let mut command = Command::new(name);
    command.envs(variables(folder));
    command
}

impl Backend for OvsDpdk {
    fn target(&self) -> Target {
        Target::Net {
            role: Role::Listen,
            a: self.folder.join(format!("{}.sock", PORTS[0])),
            b: self.folder.join(format!("{}.sock", PORTS[1])),
            victim: (self.setting == Setting::TwoPairs)
                .then(|| VICTIMS.map(|name| self.folder.join(format!("{name}.sock")))),
        }
    }

    fn processes(&self) -> BTreeSet<u32> {
        [self.switch.pid(), self.database.pid()].into()
    }

    fn pollers(&self) -> BTreeSet<u32> {
        [self.switch.pid()].into()
    }

    fn check(&mut self) -> Result<(), Failure> {
        match self.switch.ended() {
            None => Ok(()),
            Some(status) => Err(self.switch.failure(format!("ended with {status}"), "see what it said")),
        }
    }

    fn policies(&self) -> Option<Policies> {
        let replace = |name: &str| {
            let file = self.folder.join(name).into_os_string();
            let mut words: Vec<OsString> = ["ovs-ofctl", "--bundle", "replace-flows", &self.bridge()]
                .map(OsString::from)
                .into();
            words.push(file);
            words
        };
        let variables = variables(&self.folder).map(|(name, value)| (name.into(), value.into()));
        (self.setting == Setting::ManyRules).then(|| Policies {
            commands: [replace("flows"), replace("other-flows")],
            environment: variables.into(),
        })
    }

    fn version(&self) -> String {
        format!("Open vSwitch {}", package_version("openvswitch-switch-dpdk"))
    }
}

impl Drop for OvsDpdk {
    fn drop(&mut self) {
        self.switch.stop(Signal::SIGTERM);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_firewall_lets_connections_begin_on_one_side_only() {
        let flows = firewall_flows(1);
        let opening: Vec<&str> = flows.lines().filter(|flow| flow.contains("+new")).collect();
        assert_eq!(opening.len(), 2);
        for flow in opening {
            assert!(
                flow.contains("in_port=1") && flow.contains("tp_dst=0x1400/0xfc00"),
                "{flow}"
            );
        }
        assert_eq!(0x1400, ALLOWED_PORTS.0);
        assert!(flows.contains("table=1,priority=1,actions=drop\n"));
    }
}
