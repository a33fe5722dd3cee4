//! What `up` tells once everything is ready.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use outboard_api::topology::Change;
use outboard_shim_api::{DeviceKind, DeviceState, DeviceView};
use serde::Serialize;

use super::{
    layout::RunDir,
    plan::Plan,
    snippets::{Guest, QemuVersion},
};
use crate::{
    commands::apply,
    error::CliError,
    output::{self, list, print, print_json_line, table},
};

/// Everything that somebody who starts VMs needs. With `--json`, one line of it is printed.
#[derive(Debug, Serialize)]
pub struct Ready {
    /// Directory of sockets, state and logs.
    run_dir: PathBuf,
    /// The broker's API.
    broker_socket: PathBuf,
    /// The shim's API.
    shim_socket: PathBuf,
    /// The link between shim and DPU.
    link_socket: PathBuf,
    /// The card, which is the host's name too.
    card: String,
    /// Process ids: `up`, `broker`, `dpu`, `shim`.
    pids: BTreeMap<&'static str, u32>,
    /// Logs: `broker`, `dpu`, `shim`.
    logs: BTreeMap<&'static str, PathBuf>,
    /// What applying the file changed.
    changes: Vec<Change>,
    /// Ports and volumes, as the shim has them.
    devices: Vec<DeviceView>,
    /// A port and a volume each, with what VMMs need.
    guests: Vec<Guest>,
}

impl Ready {
    /// Puts it together.
    pub fn new(
        plan: &Plan,
        dir: &RunDir,
        daemons: BTreeMap<&'static str, u32>,
        changes: Vec<Change>,
        devices: Vec<DeviceView>,
        qemu: Option<QemuVersion>,
    ) -> Self {
        let logs = daemons.keys().map(|name| (*name, dir.log(name))).collect();
        let mut pids = daemons;
        pids.insert("up", std::process::id());
        Self {
            run_dir: dir.root().to_owned(),
            broker_socket: dir.broker_socket(),
            shim_socket: dir.shim_socket(),
            link_socket: dir.link_socket(),
            card: plan.card.to_string(),
            pids,
            logs,
            changes,
            devices,
            guests: guests(plan, qemu, |kind, name| dir.device_socket(kind, name)),
        }
    }

    /// Prints it.
    ///
    /// # Errors
    /// Standard output is closed.
    pub fn print(&self, json: bool) -> Result<(), CliError> {
        if json {
            print_json_line(self)
        } else {
            print(&self.text())
        }
    }

    fn text(&self) -> String {
        let row = |d: &DeviceView| {
            [
                d.kind.to_string(),
                d.name.clone(),
                d.state.to_string(),
                d.socket.display().to_string(),
            ]
        };
        let devices = table(
            ["DEVICE", "NAME", "STATE", "SOCKET"],
            self.devices.iter().map(row).collect(),
            "The file declares no ports and no volumes.",
        );
        let socket = self.broker_socket.display();
        let mut parts = vec![
            apply::describe(&self.changes, "The topology was in place already."),
            devices,
        ];
        parts.extend(self.devices.iter().filter(|d| !is_ready(d)).map(|DeviceView { kind, name, .. }| {
            format!("{kind} {name} was revoked; to grant it again: outboard --socket {socket} grant create {kind} {name}")
        }));
        parts.extend(self.guests.iter().map(Guest::text));
        parts.push(output::details(vec![
            (
                "processes",
                list(self.pids.iter().map(|(name, pid)| format!("{name} {pid}"))),
            ),
            ("logs", self.log_dir()),
            ("look at it", format!("outboard --socket {socket} status")),
            ("stop it", "Ctrl-C".to_owned()),
        ]));
        parts.join("\n\n")
    }

    fn log_dir(&self) -> String {
        let parent = self.logs.values().next().and_then(|path| path.parent());
        parent.map_or_else(String::new, |path: &Path| path.display().to_string())
    }
}

/// Does the device await its VMM, or have one? All others that [`sequence::start`](super::sequence::start) lets pass
/// were revoked by an operator.
pub fn is_ready(device: &DeviceView) -> bool {
    matches!(device.state, DeviceState::WaitingForVmm | DeviceState::Connected)
}

/// The first port with the first volume, the second with the second, and so on; what is left over stands alone.
fn guests(plan: &Plan, qemu: Option<QemuVersion>, socket: impl Fn(DeviceKind, &str) -> PathBuf) -> Vec<Guest> {
    let (ports, volumes) = (&plan.topology.ports, &plan.topology.volumes);
    // Subports come with their parents' devices.
    let ports: Vec<_> = ports.iter().filter(|port| port.trunk.is_none()).collect();
    let pair = |i: usize| Guest::new(ports.get(i).copied(), volumes.get(i), qemu, &socket);
    (0..ports.len().max(volumes.len())).map(pair).collect()
}
