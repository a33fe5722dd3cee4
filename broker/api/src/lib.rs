//! The broker's northbound API, as types: what the broker serves, what the CLI sends, and the topology file.
//!
//! | module | subject |
//! |---|---|
//! | [`card`], [`network`], [`group`], [`address_set`], [`port`], [`volume`] | one resource each: what is declared (`…Spec`) and what is (`…View`) |
//! | [`binding`], [`grant`] | who has what, and who may |
//! | [`topology`] | the declarative file: parsing, checking, and the difference between two of them |
//! | [`explain`], [`trace`] | why an object is as it is; what would become of a packet |
//! | [`capture`], [`flow`] | frames at a port; connections |
//! | [`error`] | the body of every 4xx and 5xx answer |
//! | [`size`], [`subnet`] | values that people write |
//!
//! Inputs refuse unknown keys; views may grow keys in later versions.
#![forbid(unsafe_code)]

pub mod address_set;
pub mod binding;
pub mod capture;
pub mod card;
pub mod error;
pub mod explain;
pub mod flow;
pub mod grant;
pub mod group;
pub mod health;
pub mod network;
pub mod operator;
pub mod port;
mod schema;
pub mod size;
pub mod subnet;
pub mod topology;
pub mod trace;
pub mod volume;

/// Request header that names a mutation: a UUID. The same id with the same body gets the stored result.
pub const OPERATION_ID_HEADER: &str = "outboard-operation-id";

/// How long the broker keeps the result of an operation id, in seconds.
pub const OPERATION_RESULT_TTL_S: u64 = 7 * 24 * 3600;

/// Largest request or answer body, in bytes.
pub const BODY_LEN_MAX: usize = 4 << 20;
