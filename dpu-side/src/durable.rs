//! Files that are whole or absent, whatever moment the power goes.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Mode of every file written here: only the daemon's user.
const MODE: u32 = 0o600;

/// The steps of replacing a file; their order is what makes it atomic, see [`replace`].
pub trait Steps {
    /// Create the temporary file with this content.
    fn write_temp(&mut self, content: &[u8]) -> io::Result<()>;
    /// Make its content durable.
    fn sync_temp(&mut self) -> io::Result<()>;
    /// Give it the final name, in place of the old file.
    fn rename(&mut self) -> io::Result<()>;
    /// Make the name durable.
    fn sync_directory(&mut self) -> io::Result<()>;
}

/// Replaces a file: after a crash at any point there is the old one or the new one, and after `Ok` the new one.
pub fn replace(steps: &mut impl Steps, content: &[u8]) -> io::Result<()> {
    steps.write_temp(content)?;
    // Before the rename: a file system may make the name durable first, and then the file would be there but empty.
    steps.sync_temp()?;
    steps.rename()?;
    steps.sync_directory()
}

/// Replaces the file at `path`.
pub fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    replace(&mut OnDisk::new(path)?, content)
}

/// The steps, on a real file.
pub(crate) struct OnDisk<'a> {
    path: &'a Path,
    directory: PathBuf,
    temp_path: PathBuf,
    temp: Option<File>,
}

impl<'a> OnDisk<'a> {
    pub(crate) fn new(path: &'a Path) -> io::Result<Self> {
        let name = path
            .file_name()
            .ok_or_else(|| io::Error::other("the path names no file"))?;
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let mut temp_name = name.to_owned();
        temp_name.push(".new");
        Ok(Self {
            path,
            temp_path: directory.join(temp_name),
            directory,
            temp: None,
        })
    }
}

impl Steps for OnDisk<'_> {
    fn write_temp(&mut self, content: &[u8]) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut temp = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(MODE)
            .open(&self.temp_path)?;
        // A temporary file that a crash left behind keeps the mode it was made with.
        temp.set_permissions(Permissions::from_mode(MODE))?;
        temp.write_all(content)?;
        self.temp = Some(temp);
        Ok(())
    }

    fn sync_temp(&mut self) -> io::Result<()> {
        self.temp.take().map_or(Ok(()), |temp| temp.sync_all())
    }

    fn rename(&mut self) -> io::Result<()> {
        std::fs::rename(&self.temp_path, self.path)
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }
}
