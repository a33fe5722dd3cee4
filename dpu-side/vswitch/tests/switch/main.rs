//! The switch from outside: guests over rings, and every counter of every step.

mod forwarding;
mod frames;

mod offload;

mod rig;
