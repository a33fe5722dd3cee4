//! What the demo, the test command and the end-to-end tests have in common: setting the machine up, starting our own
//! processes, and booting real guests beside them.
#![forbid(unsafe_code)]

pub mod binaries;
pub mod frontend;
pub mod guest;
pub mod process;
pub mod setup;
pub mod site;
pub mod stack;
pub mod wait;
