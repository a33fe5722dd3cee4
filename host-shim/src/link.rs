//! The link to the DPU.
//!
//! One kind so far: [`direct`], to a DPU on the same kernel, which is given the descriptors of guest memory and rings.

pub mod direct;
