//! Our own programs: the daemons and the generator, built in the profile that this one was built in.

use std::{
    env,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    process::Command,
};

use crate::error::Failure;

/// Package of the generator.
const GENERATOR: &str = "outboard-generator";
/// Packages of the daemons and the command line.
const DAEMONS: [&str; 4] = ["outboard-broker", "outboard-cli", "dpu-side", "host-shim"];

/// The folder that they are in.
#[derive(Debug, Clone)]
pub struct Programs(PathBuf);

impl Programs {
    /// Builds the generator, and with `daemons` all of them; what is up to date takes no time.
    pub fn build(daemons: bool) -> Result<Self, Failure> {
        let failed = |source: &io::Error| Failure::io("build", "cargo build", source, "run 'cargo build --release'");
        let folder = own_folder().map_err(|e| failed(&e))?;
        let target = folder.parent().unwrap_or(&folder);
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
        command.args(["build", "--target-dir"]).arg(target);
        // a person sees cargo's progress; a log is spared it
        command.args((!io::stderr().is_terminal()).then_some("--quiet"));
        command.args(["-p", GENERATOR]);
        if daemons {
            command.args(DAEMONS.iter().flat_map(|package| ["-p", package]));
        }
        if folder.ends_with("release") {
            command.arg("--release");
        }
        let status = command.status().map_err(|e| failed(&e))?;
        if status.success() {
            return Ok(Self(folder));
        }
        let failure = Failure::new("build", format!("ended with {status}"), "correct what cargo says above");
        Err(failure.command(format!("{command:?}")))
    }

    /// One of them.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Where results are written: `bench` in the target folder.
    pub fn results(&self) -> PathBuf {
        self.0.with_file_name("bench")
    }

    /// They are not optimised: their figures say nothing.
    pub fn unoptimised(&self) -> bool {
        !self.0.ends_with("release")
    }
}

/// The folder `<target>/<profile>` that this very program was built into (tests are in `deps` below it).
fn own_folder() -> io::Result<PathBuf> {
    let own = env::current_exe()?;
    let folder = own.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
    folder
        .map(Path::to_owned)
        .ok_or_else(|| io::Error::other("this program is in no folder"))
}
