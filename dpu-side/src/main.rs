//! `outboard-dpu`, see [`dpu_side::program`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    dpu_side::program::run_program()
}
