//! The shim's executable.
fn main() {}
