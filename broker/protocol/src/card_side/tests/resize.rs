use super::*;

fn sized(revision: u64, size_bytes: u64) -> DesiredState {
    let mut state = desired(revision, Some(1));
    state.volumes[0].size_bytes = size_bytes;
    state
}

fn resized(core: &mut CardCore, size_bytes: u64, error: Option<&str>, now: Now) -> Vec<Effect> {
    core.handle(
        Input::Resized {
            object: disk(),
            generation: Generation(1),
            size_bytes,
            error: error.map(|text| Refusal::new(Code::Unavailable, text)),
        },
        now,
    )
}

fn resize() -> Effect {
    Effect::Resize {
        object: disk(),
        generation: Generation(1),
    }
}

fn error(core: &CardCore) -> Option<String> {
    core.binding(&disk()).unwrap().error.as_ref().map(|e| e.text.clone())
}

#[test]
fn a_volume_grows_under_its_session() {
    let mut core = connected();
    assert_eq!(core.binding(&disk()).unwrap().served_bytes, Some(4096));
    let (effects, _) = split(core.handle(Input::Desired(sized(2, 8192)), T0));
    assert_eq!(effects[..3], [persisted(), Effect::Configure, resize()]);
    assert!(
        !effects
            .iter()
            .any(|e| matches!(e, Effect::Shut { .. } | Effect::CloseSession { .. }))
    );
    let (effects, record) = split(resized(&mut core, 8192, None, T0));
    assert_eq!(
        effects[0],
        persisted(),
        "what the guest was told is not taken back by a restart"
    );
    assert_eq!(record.unwrap().bindings[0].served_bytes, Some(8192));
    assert_eq!(error(&core), None);
    assert_eq!(core.session_object(SessionId(1)), Some(&disk()));
}

#[test]
fn a_file_that_did_not_grow_is_told_and_tried_again() {
    let mut core = connected();
    core.handle(Input::Desired(sized(2, 8192)), T0);
    let effects = resized(&mut core, 4096, Some("the file is short"), T0);
    assert!(matches!(&effects[..], [Effect::SendInventory { bindings, .. }] if bindings[0].error.is_some()));
    assert_eq!(error(&core).as_deref(), Some("the file is short"));
    assert_eq!(core.handle(Input::Tick, T0), [], "not at once");
    let later = Now {
        monotonic_ms: T0.monotonic_ms + PREPARE_RETRY_MS,
        ..T0
    };
    assert_eq!(core.handle(Input::Tick, later), [resize()]);
    assert_eq!(
        resized(&mut core, 4096, Some("the file is short"), later),
        [],
        "nothing new"
    );
    resized(&mut core, 8192, None, later);
    assert_eq!(error(&core), None);
    let much_later = Now {
        monotonic_ms: later.monotonic_ms + PREPARE_RETRY_MS,
        ..T0
    };
    assert_eq!(core.handle(Input::Tick, much_later), []);
}

#[test]
fn a_volume_that_grows_twice_is_resized_to_the_newest() {
    let mut core = connected();
    core.handle(Input::Desired(sized(2, 8192)), T0);
    core.handle(Input::Desired(sized(3, 16384)), T0);
    assert!(resized(&mut core, 8192, None, T0).contains(&resize()));
    assert!(!resized(&mut core, 16384, None, T0).contains(&resize()));
}

#[test]
fn what_is_no_growth_does_not_reach_the_device() {
    for change in [
        (|s| s.volumes[0].size_bytes = 512) as fn(&mut DesiredState),
        |s| s.volumes[0].read_only = true,
        |s| {
            s.volumes[0].backend = VolumeBackend::Memory;
            s.volumes[0].size_bytes *= 2;
        },
    ] {
        let mut core = connected();
        let mut state = desired(2, Some(1));
        change(&mut state);
        let effects = core.handle(Input::Desired(state), T0);
        assert!(!effects.contains(&resize()));
        assert!(error(&core).unwrap().contains("revoke it and grant it again"));
    }
}

#[test]
fn a_restart_gives_the_guest_at_least_what_it_had() {
    let mut core = connected();
    core.handle(Input::Desired(sized(2, 8192)), T0);
    let (mut again, _) = CardCore::start(name("c1"), Some(core.record()), T0);
    assert_eq!(again.binding(&disk()).unwrap().served_bytes, Some(4096));
    // The file has not grown: the device is set up with what it had.
    resized(&mut again, 4096, Some("the file is short"), T0);
    let prepared = Input::Prepared {
        object: disk(),
        generation: Generation(1),
    };
    again.handle(prepared.clone(), T0);
    assert_eq!(error(&again).as_deref(), Some("the file is short"));
    assert!(connect(&mut again, 1).contains(&Effect::Reply(Reply::Connected)));
    let later = Now {
        monotonic_ms: T0.monotonic_ms + PREPARE_RETRY_MS,
        ..T0
    };
    assert_eq!(again.handle(Input::Tick, later), [resize()]);

    // It has grown: there is nothing to tell but the new size.
    let (mut again, _) = CardCore::start(name("c1"), Some(again.record()), T0);
    let (_, record) = split(again.handle(prepared, T0));
    assert_eq!(record.unwrap().bindings[0].served_bytes, Some(8192));
    assert_eq!(error(&again), None);
}

#[test]
fn an_answer_about_a_former_binding_changes_nothing() {
    let mut core = connected();
    core.handle(Input::Desired(desired(2, None)), T0);
    assert_eq!(resized(&mut core, 8192, None, T0), []);
    assert_eq!(core.binding(&disk()).unwrap().served_bytes, Some(4096));
}
