//! Files that volumes need: there, long enough, and open to this user.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Seek, SeekFrom},
    os::unix::fs::FileTypeExt,
    path::Path,
};

use outboard_api::{size::Size, volume::VolumeSpec};

use super::plan::Plan;
use crate::error::CliError;

/// Checks every volume's file, before anything is started.
///
/// # Errors
/// The first file that cannot serve, with the command that helps.
pub fn check(plan: &Plan) -> Result<(), CliError> {
    for volume in &plan.topology.volumes {
        if let Some(path) = plan.file_of(volume) {
            check_file(volume, &path).map_err(|e| e.about(format!("volume {}", volume.name)))?;
        }
    }
    Ok(())
}

fn check_file(volume: &VolumeSpec, path: &Path) -> Result<(), CliError> {
    let (name, shown) = (&volume.name, path.display());
    let truncate = || format!("truncate -s {} {}", truncate_size(volume.size), quote(path));
    let kind = match std::fs::metadata(path) {
        Ok(found) => found.file_type(),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let what = format!("volume {name}: there is no file {shown}");
            return Err(CliError::coded(
                "volume_file_missing",
                what,
                format!("make it: {}", truncate()),
            ));
        }
        Err(e) => return Err(unusable(volume, path, &e)),
    };
    if !kind.is_file() && !kind.is_block_device() {
        let what = format!("volume {name}: {shown} is neither a regular file nor a block device");
        return Err(CliError::coded(
            "volume_file_kind",
            what,
            "name a raw image file or a block device",
        ));
    }
    let opened = OpenOptions::new().read(true).write(!volume.read_only).open(path);
    let len = opened
        .and_then(|file| len_of(&file))
        .map_err(|e| unusable(volume, path, &e))?;
    if len < volume.size.bytes() {
        let what = format!(
            "volume {name}: {shown} has {len} bytes, fewer than its size of {}",
            volume.size
        );
        let grow = if kind.is_file() {
            format!("lengthen it: {}; or ", truncate())
        } else {
            String::new()
        };
        let remedy = format!("{grow}declare size = {}", len / 512 * 512);
        return Err(CliError::coded("volume_file_too_small", what, remedy));
    }
    Ok(())
}

/// Length of a file or block device, whose metadata says 0.
fn len_of(mut file: &File) -> std::io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

fn unusable(volume: &VolumeSpec, path: &Path, error: &std::io::Error) -> CliError {
    let mode = if volume.read_only {
        "reading"
    } else {
        "reading and writing"
    };
    CliError::coded(
        "volume_file_unusable",
        format!(
            "volume {}: cannot open {} for {mode}: {error}",
            volume.name,
            path.display()
        ),
        "check its owner and mode and those of its directories",
    )
}

/// A size as truncate(1) of any make takes it.
fn truncate_size(size: Size) -> String {
    size.to_string().trim_end_matches("iB").to_owned()
}

/// A path as one word of a shell.
fn quote(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:,=".contains(c);
    if text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
#[path = "volumes_tests.rs"]
mod tests;
