use std::os::unix::fs::PermissionsExt;

use outboard_api::topology::parse;

use super::*;

fn plan(run_dir: PathBuf) -> Plan {
    let topology = parse(
        "[[network]]\nname = \"blue\"\n[[port]]\nname = \"vm1\"\nnetwork = \"blue\"\nmac = \"52:54:00:00:00:01\"\n",
    );
    let card = "local".parse().expect("a name");
    Plan {
        topology: topology.expect("good"),
        card,
        run_dir,
        volume_dir: "/".into(),
        workers: 1,
        cores: vec![],
        tracked_connections: None,
    }
}

#[test]
fn it_is_made_once_and_then_used_again() {
    let base = tempfile::tempdir().expect("a directory");
    let root = base.path().join("run");
    let dir = RunDir::open(&plan(root.clone())).expect("made");
    let card = dir.card("local").expect("made up");
    assert!(card.serial.starts_with("soft-") && card.serial.len() <= 64);
    let again = RunDir::open(&plan(root)).expect("there");
    assert_eq!(again.card("local"), Ok(card));
    let mode = |path: PathBuf| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(dir.state_dir()), 0o700);
}

#[test]
fn the_state_of_another_card_is_not_taken_over() {
    let base = tempfile::tempdir().expect("a directory");
    let dir = RunDir::open(&plan(base.path().join("run"))).expect("made");
    dir.card("local").expect("made up");
    let error = dir.card("other").expect_err("refused");
    assert_eq!(error.code(), "other_card");
    std::fs::write(dir.state_dir().join("card.toml"), "name = ").expect("written");
    assert_eq!(dir.card("local").expect_err("refused").code(), "damaged");
}

#[test]
fn a_directory_that_others_can_write_is_refused() {
    let base = tempfile::tempdir().expect("a directory");
    let root = base.path().join("run");
    RunDir::open(&plan(root.clone())).expect("control: nobody else can write it");
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o777)).expect("changed");
    let error = RunDir::open(&plan(root)).expect_err("refused");
    assert_eq!(error.code(), "run_dir_not_own");
    assert!(error.to_string().contains("777"), "{error}");
}

#[test]
fn a_path_too_long_for_sockets_is_refused_before_anything_is_made() {
    let base = tempfile::tempdir().expect("a directory");
    let root = base.path().join("x".repeat(100));
    let error = RunDir::open(&plan(root.clone())).expect_err("refused");
    assert_eq!(error.code(), "socket_path_too_long");
    assert!(error.to_string().contains("--run-dir") && !root.exists(), "{error}");
}
