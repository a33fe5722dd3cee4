//! Installs and makes what runs beside our own programs: QEMU, a guest kernel, an initramfs.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Why the machine could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A script of `integration/setup` could not be started.
    #[error("could not start {script}: {source}")]
    Start {
        /// The script.
        script: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A script ended with an error, which it has printed.
    #[error("{script} failed ({status}); what it printed above says why")]
    Failed {
        /// The script.
        script: PathBuf,
        /// How it ended.
        status: std::process::ExitStatus,
    },
}

/// Kernel and initramfs that test guests boot.
#[derive(Debug, Clone)]
pub struct GuestImage {
    /// ELF `vmlinux`, or a bzImage where the distribution's kernel could not be unpacked.
    pub kernel: PathBuf,
    /// An uncompressed cpio archive.
    pub initramfs: PathBuf,
    /// The same with fio.
    pub initramfs_fio: PathBuf,
}

/// Folder with the set-up scripts.
fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("setup")
}

fn run(script: &Path, arguments: &[&str]) -> Result<String, SetupError> {
    let start = |source| SetupError::Start {
        script: script.to_owned(),
        source,
    };
    let output = Command::new(script)
        .args(arguments)
        .stderr(Stdio::inherit())
        .stdin(Stdio::inherit())
        .output()
        .map_err(start)?;
    if !output.status.success() {
        return Err(SetupError::Failed {
            script: script.to_owned(),
            status: output.status,
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Installs missing packages. On a terminal it asks first, unless `yes`.
pub fn packages(yes: bool) -> Result<(), SetupError> {
    install(&[], yes)
}

/// Installs what the systems run that Outboard is compared with, by the names of `cargo bench-peers`.
pub fn peers(systems: &[&str], yes: bool) -> Result<(), SetupError> {
    if systems.is_empty() {
        return Ok(());
    }
    install(systems, yes)
}

/// Installs what the tests run: what the demo runs, DPDK as a client, libvirt's command line, which checks what is printed
/// for it, nftables as the firewall's oracle, and valgrind to count instructions.
pub fn test_packages(yes: bool) -> Result<(), SetupError> {
    install(&["demo", "dpdk-io", "libvirt", "oracle", "valgrind"], yes)
}

fn install(groups: &[&str], yes: bool) -> Result<(), SetupError> {
    let script = scripts().join("packages.sh");
    let status = Command::new(&script)
        .args(yes.then_some("--yes"))
        .args(groups.iter().flat_map(|group| ["--group", group]))
        .status()
        .map_err(|source| SetupError::Start {
            script: script.clone(),
            source,
        })?;
    if status.success() {
        Ok(())
    } else {
        Err(SetupError::Failed { script, status })
    }
}

/// Makes the guest image where it is not there yet.
pub fn guest_image() -> Result<GuestImage, SetupError> {
    let folder = PathBuf::from(run(&scripts().join("guest.sh"), &[])?.trim());
    let elf = folder.join("vmlinux");
    let kernel = if elf.exists() { elf } else { folder.join("vmlinuz") };
    Ok(GuestImage {
        kernel,
        initramfs: folder.join("initramfs.cpio"),
        initramfs_fio: folder.join("initramfs-fio.cpio"),
    })
}
