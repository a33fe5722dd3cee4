//! The back-end's side of vhost-user sessions whose front-end is hostile.
#![forbid(unsafe_code)]

mod device;

pub use device::{Device, DeviceError, QueueResources};
