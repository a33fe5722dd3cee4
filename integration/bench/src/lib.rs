//! Outboard and its peers, measured in one run by the same load generator.
//!
//! A *case* is something that a backend has to do, a *system* is a backend in the way it is used in practice. The systems
//! of a case run at the same time and take turns ([`measure`]); backend and generator have one core each ([`launch`]),
//! and whether they really had it is measured ([`accounting`]).
//!
//! # What it doesn't implement
//! More than one worker of a backend; machines with several NUMA nodes; the cases of the suite `tunnel`.
#![forbid(unsafe_code)]

pub mod accounting;
pub mod args;
pub mod cases;
pub mod error;
pub mod folders;
pub mod generator;
pub mod huge_pages;
pub mod launch;
pub mod machine;
pub mod measure;
pub mod plot;
pub mod programs;
pub mod result;
pub mod stats;
pub mod storm;
pub mod systems;
pub mod table;
