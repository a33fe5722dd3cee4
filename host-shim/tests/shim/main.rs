//! The shim between real `vhost` front ends and a DPU that the tests play.

mod binary;
mod devices;
mod fake_dpu;
mod replay;
mod sessions;
mod world;
