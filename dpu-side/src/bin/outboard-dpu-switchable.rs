//! `outboard-dpu` for tests: its checks can be turned off. A program of another name, so that it is never mistaken for
//! the real one, built from the same libraries beside it.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    dpu_side::program::run_program()
}
