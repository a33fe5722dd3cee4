//! The API's unix socket: never open to others, not even for the instant between bind and chmod.

use std::{
    fs,
    io::ErrorKind,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use tokio::net::UnixListener;

/// Longest path that a client can connect to, in bytes: `sun_path` has 108 with the closing zero (unix(7)).
const SOCKET_PATH_LEN_MAX: usize = 107;

use crate::error::StartError;

/// A bound socket. Dropping it removes the file, unless another process has put its own there.
#[derive(Debug)]
pub struct ApiSocket {
    /// Accepts connections.
    pub listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

/// Binds `path` with mode 0600. A socket that nobody listens on any more is replaced; a live one is not.
///
/// # Errors
/// If another broker answers there, something else than a socket is there, or the directory refuses.
pub fn bind_unix(path: &Path) -> Result<ApiSocket, StartError> {
    let fix = "give api_socket a path in a directory that the broker's user may write";
    let failed = |doing: &str, at: &Path, e: &std::io::Error| StartError::io(doing, at, e, fix);
    let len = path.as_os_str().len();
    if len > SOCKET_PATH_LEN_MAX {
        let what = format!(
            "api_socket {} has {len} bytes, and no unix socket's path has more than {SOCKET_PATH_LEN_MAX}",
            path.display()
        );
        return Err(StartError::new(what, "give a shorter path"));
    }
    refuse_live(path)?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&parent)
        .map_err(|e| failed("make", &parent, &e))?;
    // Bound inside a directory of our own, closed, and only then put in its place.
    let private = parent.join(format!(".ob{}", std::process::id()));
    let _ = fs::remove_dir_all(&private);
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&private)
        .map_err(|e| failed("make", &private, &e))?;
    let bound = bind_in(&private, path);
    let _ = fs::remove_dir_all(&private);
    bound.map_err(|e| failed("bind api_socket", path, &e))
}

fn bind_in(private: &Path, path: &Path) -> std::io::Result<ApiSocket> {
    let inside = private.join("s");
    let listener = UnixListener::bind(&inside)?;
    fs::set_permissions(&inside, fs::Permissions::from_mode(0o600))?;
    let inode = fs::metadata(&inside)?.ino();
    fs::rename(&inside, path)?;
    Ok(ApiSocket {
        listener,
        path: path.to_owned(),
        inode,
    })
}

fn refuse_live(path: &Path) -> Result<(), StartError> {
    let shown = path.display();
    match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(found) if !found.file_type().is_socket() => {
            let what = format!("api_socket {shown} is there and is not a socket");
            return Err(StartError::new(what, "give another path, or move away what is there"));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(e) if matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Ok(()),
        Err(e) => Err(StartError::io(
            "try api_socket",
            path,
            &e,
            "give another path, or correct its owner",
        )),
        Ok(_) => Err(StartError::new(
            format!("api_socket {shown} is in use: another process answers on it"),
            "stop the other broker, or give this one another api_socket",
        )),
    }
}

impl Drop for ApiSocket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/api.sock");
        (directory, path)
    }

    #[tokio::test]
    async fn the_socket_is_private_and_goes_with_the_broker() {
        let (_directory, path) = place();
        let socket = bind_unix(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert!(UnixStream::connect(&path).is_ok());
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_refused() {
        let (_directory, path) = place();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let live = bind_unix(&path).unwrap();
        let error = bind_unix(&path).unwrap_err();
        assert!(
            error.what.contains("in use") && error.fix.contains("stop the other broker"),
            "{error}"
        );
        assert!(UnixStream::connect(&path).is_ok());
        drop(live);
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let (directory, _) = place();
        let path = directory.path().join("precious");
        fs::write(&path, "text").unwrap();
        let error = bind_unix(&path).unwrap_err();
        assert!(error.what.contains("not a socket"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
    }

    #[tokio::test]
    async fn a_path_that_is_too_long_is_an_error() {
        let (directory, _) = place();
        let error = bind_unix(&directory.path().join("x".repeat(120))).unwrap_err();
        assert!(error.fix.contains("shorter"), "{error}");
    }
}
