//! QEMU: the chardevs are clients, the shim listens.

use std::{process::Stdio, time::Duration};

use tokio::process::Command;

use super::{Disk, MEMORY_MIB, Nic, words};

/// How long QEMU may take to tell its version.
const VERSION_TIMEOUT: Duration = Duration::from_secs(5);

/// First version whose socket chardevs take `reconnect-ms`, which replaces `reconnect`.
const RECONNECT_MS_SINCE: QemuVersion = QemuVersion { major: 9, minor: 2 };

/// A version of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct QemuVersion {
    major: u32,
    minor: u32,
}

impl QemuVersion {
    /// From what `qemu-system-x86_64 --version` prints.
    fn parse(text: &str) -> Option<Self> {
        let version = text.lines().next()?.strip_prefix("QEMU emulator version ")?;
        let mut numbers = version.split(|c: char| !c.is_ascii_digit());
        Some(Self {
            major: numbers.next()?.parse().ok()?,
            minor: numbers.next()?.parse().ok()?,
        })
    }
}

/// Version of the QEMU on this machine; none if there is none, or it does not tell.
pub async fn installed() -> Option<QemuVersion> {
    let mut command = Command::new("qemu-system-x86_64");
    command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(VERSION_TIMEOUT, command.output())
        .await
        .ok()?
        .ok()?;
    QemuVersion::parse(&String::from_utf8_lossy(&output.stdout))
}

/// What has to be said about the arguments, in parentheses.
pub fn note(version: Option<QemuVersion>) -> &'static str {
    match version {
        Some(_) => "",
        None => " (before 9.2, write reconnect=1 for reconnect-ms=1000)",
    }
}

/// The machine: memory that can be shared, and KVM where there is one.
pub fn machine() -> Vec<String> {
    words(&format!(
        "-machine q35,memory-backend=mem0 -accel kvm -accel tcg -m {MEMORY_MIB} \
         -object memory-backend-memfd,id=mem0,size={MEMORY_MIB}M,share=on"
    ))
}

/// The devices, as this version of QEMU takes them; as the present ones do if none is installed.
pub fn devices(nic: Option<&Nic>, disk: Option<&Disk>, version: Option<QemuVersion>) -> Vec<String> {
    let reconnect = match version {
        Some(version) if version < RECONNECT_MS_SINCE => "reconnect=1",
        _ => "reconnect-ms=1000",
    };
    let nic = nic.map(|Nic { socket, mac }| {
        format!(
            "-chardev socket,id=cn,path={socket},{reconnect} \
             -netdev type=vhost-user,id=n0,chardev=cn,queues=1 \
             -device virtio-net-pci,id=net0,netdev=n0,mac={mac}"
        )
    });
    let disk = disk.map(|Disk { socket }| {
        format!(
            "-chardev socket,id=cb,path={socket},{reconnect} \
             -device vhost-user-blk-pci,id=blk0,chardev=cb,num-queues=1"
        )
    });
    nic.iter().chain(&disk).flat_map(|text| words(text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(major: u32, minor: u32) -> QemuVersion {
        QemuVersion { major, minor }
    }

    #[test]
    fn the_version_is_read_from_what_distributions_print() {
        for (text, expected) in [
            (
                "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright (c)",
                Some(version(10, 0)),
            ),
            (
                "QEMU emulator version 7.2.17 (Debian 1:7.2+dfsg-7+deb12u13)\n",
                Some(version(7, 2)),
            ),
            ("QEMU emulator version 9.2.50 (v9.2.0-1-gabc)", Some(version(9, 2))),
            ("QEMU emulator version 9", None),
            ("QEMU emulator version 99999999999.0", None),
            ("", None),
            ("another program 10.0", None),
        ] {
            assert_eq!(QemuVersion::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn the_option_to_reconnect_fits_the_version() {
        let disk = Disk {
            socket: "/s".to_owned(),
        };
        for (installed, option, noted) in [
            (Some(version(7, 2)), "path=/s,reconnect=1", false),
            (Some(version(9, 1)), "path=/s,reconnect=1", false),
            (Some(version(9, 2)), "path=/s,reconnect-ms=1000", false),
            (Some(version(10, 0)), "path=/s,reconnect-ms=1000", false),
            (None, "path=/s,reconnect-ms=1000", true),
        ] {
            let devices = devices(None, Some(&disk), installed);
            assert!(devices[1].ends_with(option), "{installed:?}: {devices:?}");
            assert_eq!(note(installed).contains("reconnect=1"), noted, "{installed:?}");
        }
    }
}
