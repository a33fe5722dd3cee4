//! A hostile VMM against the real daemons: after each attack the DPU is the same process, its neighbours still exchange
//! every frame, its descriptors and threads are back at baseline, and the attacked port can be used again. With the
//! check that stops it switched off, the attack succeeds.

mod disks;
mod rings;
mod scene;
mod sessions;
