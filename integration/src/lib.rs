//! What the demo, the test command and the end-to-end tests have in common: setting the machine up, starting our own
//! processes, and booting real guests beside them.
#![forbid(unsafe_code)]

pub mod binaries;
pub mod frontend;
pub mod guest;
pub mod ledger;
pub mod process;
pub mod qmp;
pub mod random;
pub mod record;
pub mod setup;
pub mod site;
pub mod spread;
pub mod stack;
pub mod wait;
