//! The broker: registry of cards, networks, security groups, ports, volumes and grants, and their allocator.
#![forbid(unsafe_code)]

pub mod api;
pub mod broker;
pub mod cards;
pub mod clock;
pub mod config;
pub mod core;
pub mod error;
pub mod explain;
pub mod identity;
pub mod inventory;
pub mod limits;
pub mod metrics;
pub mod store;
pub mod views;
