//! Volumes: virtio-blk devices.

use std::borrow::Cow;

use outboard_protocol::{card, desired, id::Name};
use serde::{Deserialize, Serialize};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, Schema},
};

use crate::{binding::BindingView, grant::GrantView, size::Size};

/// Unit of a volume's size, in bytes: a sector as virtio-blk counts (virtio 1.3 §5.2.4).
pub const SECTOR_LEN_BYTES: u64 = 512;

/// What an operator declares. `PUT /v1/volumes/{name}` takes it; its name must be the one in the path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeSpec {
    /// The volume's name.
    #[schema(value_type = String, example = "disk1")]
    pub name: Name,
    /// Its size: a multiple of 512 bytes. It may grow while a guest uses the volume, once its file has been enlarged; it
    /// may not shrink then.
    pub size: Size,
    /// Where its blocks are.
    pub backend: Backend,
    /// The device refuses writes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// The card that serves it. If left out: the only one that the topology names, or else the only one there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "local")]
    pub card: Option<Name>,
}

impl VolumeSpec {
    /// Whether it is `former` with more room and nothing else changed: a guest may go on using it meanwhile.
    pub fn grows_from(&self, former: &Self) -> bool {
        self.size.bytes() > former.size.bytes() && self.with_size(former.size) == *former
    }

    /// Whether it is `former` with less room and nothing else changed.
    pub fn shrinks_from(&self, former: &Self) -> bool {
        former.grows_from(self)
    }

    fn with_size(&self, size: Size) -> Self {
        Self { size, ..self.clone() }
    }
}

/// Where a volume's blocks are: exactly one of the keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BackendKeys", into = "BackendKeys")]
pub enum Backend {
    /// A raw file, by path on the DPU: absolute, or relative to the DPU's volume directory.
    File(String),
    /// The DPU's memory: lost when the DPU process ends.
    Memory,
    /// Reads zeros, forgets writes: for measuring.
    Null,
}

/// Where the blocks of a volume are; exactly one of the keys.
#[derive(Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Backend)]
struct BackendKeys {
    /// A raw file, by path on the DPU: absolute, or relative to the DPU's volume directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    /// True: the DPU's memory, lost when the DPU process ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory: Option<bool>,
    /// True: reads zeros, forgets writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    null: Option<bool>,
}

/// Keys that name no backend, or more than one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a backend is exactly one of {{ file = \"disk1.raw\" }}, {{ memory = true }} and {{ null = true }}")]
pub struct BackendError;

impl TryFrom<BackendKeys> for Backend {
    type Error = BackendError;
    fn try_from(keys: BackendKeys) -> Result<Self, BackendError> {
        match (keys.file, keys.memory, keys.null) {
            (Some(path), None, None) if !path.is_empty() && !path.contains('\0') => Ok(Self::File(path)),
            (None, Some(true), None) => Ok(Self::Memory),
            (None, None, Some(true)) => Ok(Self::Null),
            _ => Err(BackendError),
        }
    }
}

impl From<Backend> for BackendKeys {
    fn from(backend: Backend) -> Self {
        match backend {
            Backend::File(path) => Self {
                file: Some(path),
                ..Self::default()
            },
            Backend::Memory => Self {
                memory: Some(true),
                ..Self::default()
            },
            Backend::Null => Self {
                null: Some(true),
                ..Self::default()
            },
        }
    }
}

impl PartialSchema for Backend {
    fn schema() -> RefOr<Schema> {
        BackendKeys::schema()
    }
}

impl ToSchema for Backend {
    fn name() -> Cow<'static, str> {
        BackendKeys::name()
    }
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {path}"),
            Self::Memory => f.write_str("memory"),
            Self::Null => f.write_str("null"),
        }
    }
}

impl From<&Backend> for desired::VolumeBackend {
    fn from(backend: &Backend) -> Self {
        match backend {
            Backend::File(path) => Self::File { path: path.clone() },
            Backend::Memory => Self::Memory,
            Backend::Null => Self::Null,
        }
    }
}

/// A volume: what was declared and what is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeView {
    /// As declared, with its card filled in.
    pub spec: VolumeSpec,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Who may have it; absent before it was first granted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<GrantView>,
    /// Its live binding, or the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<BindingView>,
    /// As the card last told; absent before it first did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<VolumeCounters>,
}

/// Counters of a volume since its card started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeCounters {
    /// Read requests completed well.
    pub read_requests: u64,
    /// Bytes of those.
    pub read_bytes: u64,
    /// Write requests completed well.
    pub write_requests: u64,
    /// Bytes of those.
    pub write_bytes: u64,
    /// Flush requests completed well.
    pub flush_requests: u64,
    /// Requests that ended in an error status.
    pub failed_requests: u64,
}

impl From<&card::VolumeCounters> for VolumeCounters {
    fn from(told: &card::VolumeCounters) -> Self {
        Self {
            read_requests: told.read_requests,
            read_bytes: told.read_bytes,
            write_requests: told.write_requests,
            write_bytes: told.write_bytes,
            flush_requests: told.flush_requests,
            failed_requests: told.failed_requests,
        }
    }
}
