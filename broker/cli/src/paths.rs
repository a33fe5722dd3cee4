//! Where things are when nobody says.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use crate::error::CliError;

/// Environment variable that names the run directory.
pub const RUN_DIR_ENV: &str = "OUTBOARD_RUN_DIR";

/// The broker's API socket in a run directory.
pub const BROKER_SOCKET: &str = "broker.sock";

/// Longest path of a unix socket, in bytes: `sun_path` of `sockaddr_un` has 108, one of them the final zero (unix(7)).
pub const SOCKET_PATH_LEN_MAX: usize = 107;

/// The run directory: `$OUTBOARD_RUN_DIR`, or `/run/outboard` for root, or `$XDG_RUNTIME_DIR/outboard`.
///
/// # Errors
/// None of them is to be had.
pub fn run_dir() -> Result<PathBuf, CliError> {
    run_dir_of(&|name| std::env::var_os(name), nix::unistd::geteuid().is_root())
}

fn run_dir_of(env: &dyn Fn(&str) -> Option<OsString>, root: bool) -> Result<PathBuf, CliError> {
    let set = |name| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = set(RUN_DIR_ENV) {
        return Ok(dir);
    }
    if root {
        return Ok(PathBuf::from("/run/outboard"));
    }
    set("XDG_RUNTIME_DIR").map(|dir| dir.join("outboard")).ok_or_else(|| {
        CliError::coded(
            "no_run_dir",
            format!("no run directory: neither {RUN_DIR_ENV} nor XDG_RUNTIME_DIR is set"),
            format!("set {RUN_DIR_ENV} to a directory of yours, or name the path with --run-dir or --socket"),
        )
    })
}

/// Refuses paths that no unix socket can have.
///
/// # Errors
/// The path is too long; the text says by how much.
pub fn check_socket_path(path: &Path) -> Result<(), CliError> {
    let len = path.as_os_str().len();
    if len <= SOCKET_PATH_LEN_MAX {
        return Ok(());
    }
    Err(CliError::coded(
        "socket_path_too_long",
        format!(
            "{} has {len} bytes, and the path of a unix socket at most {SOCKET_PATH_LEN_MAX}",
            path.display()
        ),
        format!(
            "choose a directory whose path is at least {} bytes shorter",
            len - SOCKET_PATH_LEN_MAX
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_is_set_wins() {
        let env = |set: &'static [(&str, &str)]| {
            move |name: &str| {
                set.iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| OsString::from(value))
            }
        };
        let all = env(&[("OUTBOARD_RUN_DIR", "/o"), ("XDG_RUNTIME_DIR", "/x")]);
        let xdg = env(&[("OUTBOARD_RUN_DIR", ""), ("XDG_RUNTIME_DIR", "/x")]);
        assert_eq!(run_dir_of(&all, true), Ok("/o".into()));
        assert_eq!(run_dir_of(&xdg, true), Ok("/run/outboard".into()));
        assert_eq!(run_dir_of(&xdg, false), Ok("/x/outboard".into()));
        assert_eq!(
            run_dir_of(&env(&[]), false).expect_err("nothing set").code(),
            "no_run_dir"
        );
    }

    #[test]
    fn a_socket_path_has_at_most_107_bytes() {
        let path = |len: usize| PathBuf::from(format!("/{}", "x".repeat(len - 1)));
        assert_eq!(check_socket_path(&path(107)), Ok(()));
        let error = check_socket_path(&path(110)).expect_err("too long");
        assert!(error.to_string().contains("110 bytes") && error.to_string().contains("at least 3 bytes shorter"));
    }
}
