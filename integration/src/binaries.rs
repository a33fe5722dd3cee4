//! Our own programs, built once for the tests that start them.

use std::{
    env, fs,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// Package and program of each daemon and of the command line.
const PROGRAMS: [(&str, &str); 4] = [
    ("outboard-broker", "outboard-broker"),
    ("outboard-cli", "outboard"),
    ("dpu-side", "outboard-dpu"),
    ("host-shim", "outboard-shim"),
];

/// The DPU's program with checks that can be turned off.
const SWITCHABLE_DPU: &str = "outboard-dpu-switchable";

/// A folder with `outboard`, `outboard-broker`, `outboard-dpu` and `outboard-shim`.
#[derive(Debug, Clone)]
pub struct Binaries(PathBuf);

impl Binaries {
    /// Builds the programs in the profile that this code was built in. The build is cargo's own: where they are up to
    /// date it takes no time.
    pub fn build() -> io::Result<Self> {
        static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        once(&BUILT, || {
            let folder = profile_folder()?;
            cargo_build(&folder, &PROGRAMS.map(|(package, _)| package), &[])?;
            Ok(folder)
        })
    }

    /// The same with an `outboard-dpu` whose checks can be turned off by `OUTBOARD_CHECKS_OFF`: in a folder of its
    /// own, so that such a program is never mistaken for a real one.
    pub fn build_switchable() -> io::Result<Self> {
        static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        once(&BUILT, || {
            let normal = Self::build()?.0;
            let profile = normal.file_name().unwrap_or_default();
            let folder = normal.with_file_name("switchable").join(profile);
            let program = ["--features", "dpu-side/switchable", "--bin", SWITCHABLE_DPU];
            cargo_build(&normal, &["dpu-side"], &program)?;
            fs::create_dir_all(&folder)?;
            for (_, program) in PROGRAMS {
                let source = if program == "outboard-dpu" {
                    SWITCHABLE_DPU
                } else {
                    program
                };
                let link = folder.join(program);
                // left by an earlier run; the program may be a newer one now
                let _ = fs::remove_file(&link);
                fs::hard_link(normal.join(source), link)?;
            }
            Ok(folder)
        })
    }

    /// The load generator, built like the programs.
    pub fn build_generator() -> io::Result<PathBuf> {
        static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        let folder = once(&BUILT, || {
            let folder = profile_folder()?;
            cargo_build(&folder, &["outboard-generator"], &[])?;
            Ok(folder)
        })?;
        Ok(folder.path("outboard-generator"))
    }

    /// Copies of them in a folder, for a test that replaces some.
    pub fn copy_to(&self, folder: &Path) -> io::Result<Self> {
        for (_, program) in PROGRAMS {
            fs::copy(self.path(program), folder.join(program))?;
        }
        Ok(Self(folder.to_owned()))
    }

    /// Path of one program.
    pub fn path(&self, program: &str) -> PathBuf {
        self.0.join(program)
    }
}

fn once(cell: &OnceLock<Result<PathBuf, String>>, build: impl FnOnce() -> io::Result<PathBuf>) -> io::Result<Binaries> {
    let built = cell.get_or_init(|| build().map_err(|error| error.to_string()));
    built.clone().map(Binaries).map_err(io::Error::other)
}

/// The folder `<target>/<profile>` that this very program was built into (tests are in `deps` below it).
fn profile_folder() -> io::Result<PathBuf> {
    let own = env::current_exe()?;
    let folder = own.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
    folder
        .map(Path::to_owned)
        .ok_or_else(|| io::Error::other("this program is in no folder"))
}

/// `cargo build` of `packages` so that the programs are in `folder` (`<target>/<profile>`).
fn cargo_build(folder: &Path, packages: &[&str], extra: &[&str]) -> io::Result<()> {
    let target = folder.parent().ok_or_else(|| io::Error::other("no target folder"))?;
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    command.args(["build", "--target-dir"]).arg(target).args(extra);
    // a person sees cargo's progress; a log is spared it
    command.args((!io::stderr().is_terminal()).then_some("--quiet"));
    for package in packages {
        command.args(["-p", package]);
    }
    if folder.ends_with("release") {
        command.arg("--release");
    }
    let status = command.status()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("cargo build failed ({status})")))
    }
}
