use std::process::Command;

use outboard_api::volume::Backend;

use super::*;

fn volume(size: &str, read_only: bool) -> VolumeSpec {
    VolumeSpec {
        name: "disk1".parse().expect("a name"),
        size: size.parse().expect("a size"),
        backend: Backend::File("disk 1.raw".to_owned()),
        read_only,
        card: None,
    }
}

/// Runs the command that the error's remedy tells.
fn follow(error: &CliError) {
    let text = error.to_string();
    let command = &text[text.find("truncate -s").expect("a command")..];
    let command = command.split("; or").next().unwrap_or(command);
    assert!(
        Command::new("sh")
            .arg("-c")
            .arg(command)
            .status()
            .expect("a shell")
            .success(),
        "{command}"
    );
}

#[test]
fn the_command_that_is_told_makes_the_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("it's a disk.raw");
    let error = check_file(&volume("4MiB", false), &path).expect_err("missing");
    assert_eq!(error.code(), "volume_file_missing");
    follow(&error);
    assert_eq!(check_file(&volume("4MiB", false), &path), Ok(()));
    assert_eq!(std::fs::metadata(&path).expect("there").len(), 4 << 20);
}

#[test]
fn a_file_too_small_can_be_lengthened_as_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("d.raw");
    std::fs::write(&path, [0; 1000]).expect("written");
    let error = check_file(&volume("1KiB", false), &path).expect_err("too small");
    assert_eq!(error.code(), "volume_file_too_small");
    assert!(
        error.to_string().contains("has 1000 bytes") && error.to_string().contains("size = 512"),
        "{error}"
    );
    follow(&error);
    assert_eq!(check_file(&volume("1KiB", false), &path), Ok(()));
    assert_eq!(
        check_file(&volume("512", true), &path),
        Ok(()),
        "longer than needed is good"
    );
}

#[test]
fn a_directory_is_no_volume() {
    let dir = tempfile::tempdir().expect("a directory");
    assert_eq!(
        check_file(&volume("512", true), dir.path())
            .expect_err("refused")
            .code(),
        "volume_file_kind"
    );
}

#[test]
fn sizes_are_spelt_for_truncate() {
    for (size, spelt) in [("4GiB", "4G"), ("1536", "1536"), ("3KiB", "3K"), ("2TiB", "2T")] {
        assert_eq!(truncate_size(size.parse().expect("a size")), spelt);
    }
}
