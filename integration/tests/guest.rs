//! The guest harness itself: a guest with no device of ours boots and its shell answers.

use std::{error::Error, time::Duration};

use outboard_integration::{
    guest::{Guest, GuestError, GuestSpec},
    setup,
};

#[test]
fn a_guest_boots_and_its_shell_tells_output_and_status() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let spec = GuestSpec {
        name: "plain".into(),
        shared_memory: false,
        ..GuestSpec::default()
    };
    let mut guest = Guest::start(&spec, &setup::guest_image()?, folder.path())?;
    guest.wait_booted()?;
    let limit = Duration::from_secs(20);
    assert_eq!(guest.run("echo one; echo two", limit)?, "one\ntwo");
    assert_eq!(guest.try_run("echo three; exit 7", limit)?, (7, "three".to_owned()));
    assert!(matches!(
        guest.run("false", limit),
        Err(GuestError::Failed { status: 1, .. })
    ));
    assert!(matches!(
        guest.run("sleep 30", Duration::from_secs(1)),
        Err(GuestError::TimedOut { .. })
    ));
    Ok(())
}
