//! Sessions over real sockets, from front-ends that keep the protocol and from those that do not.

mod device;
mod frontend;
mod hostile;
mod hostile_regions;
mod interop;
mod migration;
mod packed;
mod recovery;
mod resources;
