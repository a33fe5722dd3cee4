//! The firewall against Linux, and what the comparison itself is worth.
#![forbid(unsafe_code)]

mod compared;
mod linux;
mod mutants;
