//! The command line: see the library of this package.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    outboard_cli::main()
}
