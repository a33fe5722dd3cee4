//! What VMMs need to open a port and a volume, ready to paste.
//!
//! All three share the guest's memory with the DPU, which is what vhost-user works on, and reconnect when the shim
//! comes back.

mod cloud_hypervisor;
mod libvirt;
mod qemu;

use std::path::PathBuf;

use outboard_api::{port::PortSpec, volume::VolumeSpec};
use outboard_protocol::id::MacAddr;
use outboard_shim_api::DeviceKind;
pub use qemu::{QemuVersion, installed as installed_qemu};
use serde::Serialize;

/// Memory of a guest in what is printed, in MiB.
const MEMORY_MIB: u32 = 512;

/// A port and a volume for one VM (or only one of them), and what VMMs need for it.
#[derive(Debug, Serialize)]
pub struct Guest {
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    volume: Option<String>,
    qemu: Qemu,
    cloud_hypervisor: Vec<String>,
    libvirt: String,
}

/// QEMU's arguments, those of the machine apart from those of the devices.
#[derive(Debug, Serialize)]
struct Qemu {
    machine: Vec<String>,
    devices: Vec<String>,
    #[serde(skip)]
    note: &'static str,
}

/// What a VMM must be told of a port.
struct Nic {
    socket: String,
    mac: MacAddr,
}

/// What a VMM must be told of a volume.
struct Disk {
    socket: String,
}

impl Guest {
    /// The guest with these devices, for the QEMU of this version if one is installed; `socket` tells where a device's
    /// socket is.
    pub fn new(
        port: Option<&PortSpec>,
        volume: Option<&VolumeSpec>,
        version: Option<QemuVersion>,
        socket: impl Fn(DeviceKind, &str) -> PathBuf,
    ) -> Self {
        let path = |kind, name: &str| socket(kind, name).display().to_string();
        let nic = port.map(|p| Nic {
            socket: path(DeviceKind::Port, p.name.as_str()),
            mac: p.mac,
        });
        let disk = volume.map(|v| Disk {
            socket: path(DeviceKind::Volume, v.name.as_str()),
        });
        Self {
            port: port.map(|p| p.name.to_string()),
            volume: volume.map(|v| v.name.to_string()),
            qemu: Qemu {
                machine: qemu::machine(),
                devices: qemu::devices(nic.as_ref(), disk.as_ref(), version),
                note: qemu::note(version),
            },
            cloud_hypervisor: cloud_hypervisor::arguments(nic.as_ref(), disk.as_ref()),
            libvirt: libvirt::xml(nic.as_ref(), disk.as_ref()),
        }
    }

    /// For people: a heading, and the three ways.
    pub fn text(&self) -> String {
        let named = |kind: &str, name: &Option<String>| name.as_ref().map(|name| format!("{kind} {name}"));
        let objects = [named("port", &self.port), named("volume", &self.volume)];
        let heading = objects.into_iter().flatten().collect::<Vec<_>>().join(" and ");
        let qemu: Vec<String> = self.qemu.machine.iter().chain(&self.qemu.devices).cloned().collect();
        format!(
            "── VM with {heading} ──\n\n\
             QEMU{}:\n{}\n\n\
             cloud-hypervisor:\n{}\n\n\
             libvirt:\n{}",
            self.qemu.note,
            command("qemu-system-x86_64", &qemu),
            command("cloud-hypervisor", &self.cloud_hypervisor),
            self.libvirt
        )
    }
}

/// A program and its arguments, an option and its value a line. No argument needs quoting: names and run directories
/// with characters that would are refused before.
fn command(program: &str, arguments: &[String]) -> String {
    let mut text = program.to_owned();
    for argument in arguments {
        let separator = if argument.starts_with('-') { " \\\n  " } else { " " };
        text += separator;
        text += argument;
    }
    text
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(ToOwned::to_owned).collect()
}

#[cfg(test)]
mod tests;
