//! Types of the host shim's local HTTP API, JSON over a unix socket.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/health` | | [`Health`] |
//! | `GET /v1/devices` | | [`DeviceList`] |
//! | `POST /v1/devices` | [`DeviceSpec`] | [`DeviceView`], 201 |
//! | `DELETE /v1/devices/{kind}/{name}` | | [`Detached`] |
//!
//! Whatever goes wrong is answered by a 4xx or 5xx status and an [`ErrorBody`].
#![forbid(unsafe_code)]

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// What a device is to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// A virtio-net device: a port of a network.
    Port,
    /// A virtio-blk device: a volume.
    Volume,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Port => "port",
            Self::Volume => "volume",
        })
    }
}

/// Which side of a VMM socket the shim takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The shim listens and the VMM connects (QEMU chardev without `server=on`; libvirt `mode='client'`; cloud-hypervisor).
    #[default]
    Listen,
    /// The VMM listens and the shim connects, trying for ever (QEMU chardev with `server=on`; libvirt `mode='server'`).
    Connect,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Listen => "listen",
            Self::Connect => "connect",
        })
    }
}

/// A device to attach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceSpec {
    /// Port or volume.
    pub kind: DeviceKind,
    /// Its name at the broker.
    pub name: String,
    /// The VMM's socket; by default [`default_socket`] under the shim's `socket_dir`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// Who listens on it.
    #[serde(default)]
    pub role: Role,
    /// The uid that the VM's process runs as: it owns the socket, and only it and root are served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
}

/// Where a device stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// Not redeemed yet: there is no grant, or the DPU is away. The shim keeps trying.
    WaitingForGrant,
    /// Redeemed; the socket is there (or is being connected to) and no VMM has come.
    WaitingForVmm,
    /// A VMM's session is running; with a problem if the DPU is away, for which the VM waits.
    Connected,
    /// The grant was taken back. The shim asks again from time to time, in case it is given anew.
    Revoked,
    /// Something stands in the way; see the problem. The shim keeps trying.
    Failed,
}

impl fmt::Display for DeviceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::WaitingForGrant => "waiting-for-grant",
            Self::WaitingForVmm => "waiting-for-vmm",
            Self::Connected => "connected",
            Self::Revoked => "revoked",
            Self::Failed => "failed",
        })
    }
}

/// What went wrong and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What went wrong, with which object.
    pub error: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.error, self.remedy)
    }
}

/// A device as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceView {
    /// Port or volume.
    pub kind: DeviceKind,
    /// Its name.
    pub name: String,
    /// The VMM's socket.
    pub socket: PathBuf,
    /// Who listens on it.
    pub role: Role,
    /// The VM's uid, if one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Where it stands.
    pub state: DeviceState,
    /// What stands in the way, or went wrong last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
    /// Generation of the binding that was redeemed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// VMM sessions opened since the device was attached.
    pub sessions: u64,
    /// How often a DPU was told what a session remembers, to take it over from the one before.
    #[serde(default)]
    pub replays: u64,
}

/// All devices, by kind and name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceList {
    /// The devices.
    pub devices: Vec<DeviceView>,
}

/// The link to the DPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkView {
    /// The DPU answers.
    pub connected: bool,
    /// The card's name, once it has told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<String>,
    /// Why it is not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// How the shim is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The shim's version.
    pub version: String,
    /// The link is connected and no device has a problem.
    pub healthy: bool,
    /// The link to the DPU.
    pub link: LinkView,
    /// The devices.
    pub devices: Vec<DeviceView>,
}

/// Whether the DPU has taken a detached object back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Release {
    /// It has, or there was nothing to give back.
    Done,
    /// The DPU is away; the object is given back as soon as it answers.
    Pending,
}

/// Answer to a detach. The VMM's session and the socket are gone by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detached {
    /// Whether the object has been given back.
    pub release: Release,
}

/// Body of every answer with an error status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// An error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// For programs, `snake_case`.
    pub code: String,
    /// What it is about, as in `port vm1`.
    pub object: String,
    /// What went wrong.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// `<socket_dir>/ports/<name>.sock` or `<socket_dir>/volumes/<name>.sock`.
pub fn default_socket(socket_dir: &Path, kind: DeviceKind, name: &str) -> PathBuf {
    let folder = match kind {
        DeviceKind::Port => "ports",
        DeviceKind::Volume => "volumes",
    };
    socket_dir.join(folder).join(format!("{name}.sock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_needs_only_kind_and_name_and_refuses_unknown_keys() {
        let spec: DeviceSpec = serde_json::from_str(r#"{"kind":"port","name":"vm1"}"#).unwrap();
        assert_eq!((spec.role, spec.socket, spec.uid), (Role::Listen, None, None));
        let error = serde_json::from_str::<DeviceSpec>(r#"{"kind":"port","name":"vm1","sockt":"/x"}"#).unwrap_err();
        assert!(error.to_string().contains("sockt"), "{error}");
    }

    #[test]
    fn states_are_spelt_alike_in_json_and_in_text() {
        for state in [
            DeviceState::WaitingForGrant,
            DeviceState::WaitingForVmm,
            DeviceState::Connected,
            DeviceState::Revoked,
            DeviceState::Failed,
        ] {
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{state}\""));
            assert_eq!(format!("{state:<20}|").len(), 21);
        }
    }

    #[test]
    fn sockets_are_at_predictable_paths() {
        let dir = Path::new("/run/outboard");
        assert_eq!(
            default_socket(dir, DeviceKind::Port, "vm1"),
            Path::new("/run/outboard/ports/vm1.sock")
        );
        assert_eq!(
            default_socket(dir, DeviceKind::Volume, "d1"),
            Path::new("/run/outboard/volumes/d1.sock")
        );
    }
}
