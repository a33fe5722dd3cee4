//! The firewall against Linux, and what the comparison itself is worth.
#![forbid(unsafe_code)]

mod linux;
mod mutants;
