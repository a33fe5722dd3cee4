use outboard_controls::Off;
use proptest::prelude::*;

use super::*;

const T0: Now = Now {
    monotonic_ms: 1_000,
    unix_s: 1_000_000,
};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn fence(generation: u64) -> Fence {
    Fence {
        generation: Generation(generation),
        incarnation: Incarnation(7),
    }
}

fn binding(state: State) -> Binding {
    let object = ObjectRef {
        kind: crate::id::ObjectKind::Volume,
        name: name("disk1"),
    };
    let mut binding = Binding::reserve(object, name("h1"), fence(5), None, T0);
    binding.state = state;
    binding
}

fn fault() -> Refusal {
    Refusal::new(Code::Unavailable, "disk1.raw is not there")
}

/// One of each event, as it may come to the binding with that fence.
fn events(fence: Fence, host: &str) -> Vec<Event> {
    let host = || name(host);
    let mut events = vec![
        Event::Prepared(fence),
        Event::Fault(fence, fault()),
        Event::Redeem { host: host() },
        Event::Connect { host: host(), fence },
        Event::RingsLive(fence),
        Event::RingsStopped(fence),
        Event::Release {
            host: host(),
            generation: fence.generation,
        },
        Event::Revoke,
        Event::Drained(fence),
        Event::GrantExpired,
        Event::DrainTimeout,
        Event::Missing,
        Event::CardRemoved,
    ];
    events.extend(State::ALL.map(|state| Event::Reported {
        fence,
        state,
        error: None,
    }));
    events
}

#[test]
fn a_binding_lives_as_documented() {
    let mut binding = binding(State::Reserved);
    let life = [
        (Event::Prepared(fence(5)), State::Prepared),
        (Event::Redeem { host: name("h1") }, State::Attached),
        (
            Event::Connect {
                host: name("h1"),
                fence: fence(5),
            },
            State::Attached,
        ),
        (Event::RingsLive(fence(5)), State::Active),
        (Event::RingsStopped(fence(5)), State::Attached),
        (
            Event::Release {
                host: name("h1"),
                generation: Generation(5),
            },
            State::Draining,
        ),
        (Event::Drained(fence(5)), State::Released),
    ];
    for (event, state) in life {
        binding = step(&binding, &event, T0).unwrap().0;
        assert_eq!(binding.state, state, "{event:?}");
    }
}

#[test]
fn p06_a_host_without_the_grant_gets_one_answer_in_every_state() {
    for state in State::ALL {
        for event in events(fence(5), "h2")
            .iter()
            .filter(|e| e.initiator() == Initiator::Host)
        {
            let refusal = step(&binding(state), event, T0).unwrap_err();
            assert_eq!(refusal, not_granted(&binding(state).object), "{event:?} in {state:?}");
            let _off = Off::here(Check::GrantRequired);
            assert_ne!(
                step(&binding(State::Attached), event, T0).map_err(|r| r.code),
                Err(Code::NotGranted)
            );
        }
    }
}

#[test]
fn p08_the_entitled_host_gets_the_same_answer_once_its_binding_has_ended_or_its_grant_expired() {
    let redeem = Event::Redeem { host: name("h1") };
    let connect = Event::Connect {
        host: name("h1"),
        fence: fence(5),
    };
    for state in [State::Draining, State::Released, State::Quarantined] {
        for event in [&redeem, &connect] {
            assert_eq!(
                step(&binding(state), event, T0),
                Err(not_granted(&binding(state).object))
            );
        }
    }
    let mut expiring = binding(State::Prepared);
    expiring.expires_unix_s = Some(T0.unix_s + 1);
    assert!(step(&expiring, &redeem, T0).is_ok());
    let later = Now {
        unix_s: T0.unix_s + 1,
        ..T0
    };
    assert_eq!(step(&expiring, &redeem, later), Err(not_granted(&expiring.object)));
    let _off = Off::here(Check::GrantRequired);
    assert!(step(&expiring, &redeem, later).is_ok());
}

#[test]
fn p07_whatever_names_another_binding_is_stale_in_every_state() {
    let others = [
        fence(4),
        fence(6),
        Fence {
            incarnation: Incarnation(6),
            ..fence(5)
        },
    ];
    for (state, other) in State::ALL.into_iter().flat_map(|s| others.map(|o| (s, o))) {
        for event in events(other, "h1").iter().filter(|e| e.fence().is_some()) {
            assert_eq!(
                step(&binding(state), event, T0).map_err(|r| r.code),
                Err(Code::Stale),
                "{event:?}"
            );
            let _off = Off::here(Check::GenerationFence);
            let legal = step(&binding(state), event, T0).map_err(|r| r.code);
            assert!(
                !matches!(legal, Err(Code::Stale)) || state == State::Released,
                "{event:?} in {state:?}"
            );
        }
    }
}

#[test]
fn releasing_an_old_generation_changes_nothing_and_a_future_one_is_refused() {
    for state in State::ALL {
        let release = |n| Event::Release {
            host: name("h1"),
            generation: Generation(n),
        };
        assert_eq!(step(&binding(state), &release(4), T0), Ok((binding(state), vec![])));
        assert_eq!(
            step(&binding(state), &release(6), T0).map_err(|r| r.code),
            Err(Code::Stale)
        );
    }
}

#[test]
fn silence_comes_before_the_disk_and_the_disk_before_every_word() {
    for (state, event) in State::ALL
        .into_iter()
        .flat_map(|s| events(fence(5), "h1").into_iter().map(move |e| (s, e)))
    {
        let Ok((_, effects)) = step(&binding(state), &event, T0) else {
            continue;
        };
        let at = |wanted: Effect| effects.iter().position(|e| *e == wanted);
        let persisted = at(Effect::Persist);
        for said in [Effect::Open, Effect::OpenSession, Effect::NotifyHost, Effect::Report]
            .map(at)
            .into_iter()
            .flatten()
        {
            assert!(
                persisted.is_none_or(|p| p < said),
                "{event:?} in {state:?}: {effects:?}"
            );
        }
        assert!(
            at(Effect::Shut).is_none_or(|shut| shut == 0),
            "{event:?} in {state:?}: {effects:?}"
        );
    }
}

#[test]
fn every_change_that_must_outlive_the_process_is_persisted() {
    // Whether rings run is found out again; every other state is durable.
    let durable = |state| if state == State::Active { State::Attached } else { state };
    for (state, event) in State::ALL
        .into_iter()
        .flat_map(|s| events(fence(5), "h1").into_iter().map(move |e| (s, e)))
    {
        let Ok((next, effects)) = step(&binding(state), &event, T0) else {
            continue;
        };
        let changed = durable(next.state) != durable(state);
        assert!(!changed || effects.contains(&Effect::Persist), "{event:?} in {state:?}");
    }
}

#[test]
fn a_drain_that_hangs_is_quarantined_and_ends_when_the_card_knows() {
    let draining = binding(State::Draining);
    let after = |ms| Now {
        monotonic_ms: T0.monotonic_ms + ms,
        unix_s: T0.unix_s,
    };
    let early = step(&draining, &Event::DrainTimeout, after(DRAIN_TIMEOUT_MS - 1));
    assert_eq!(early, Ok((draining.clone(), vec![])));
    let (hung, _) = step(&draining, &Event::DrainTimeout, after(DRAIN_TIMEOUT_MS)).unwrap();
    assert_eq!(hung.state, State::Quarantined);
    assert!(
        hung.error
            .as_ref()
            .is_some_and(|e| e.text.contains("volume disk1") && e.text.contains("30 s"))
    );
    let (ended, _) = step(&hung, &Event::Drained(fence(5)), T0).unwrap();
    assert_eq!((ended.state, ended.error), (State::Released, None));
}

#[test]
fn a_fault_is_told_until_the_device_is_set_up() {
    let (faulty, effects) = step(&binding(State::Reserved), &Event::Fault(fence(5), fault()), T0).unwrap();
    assert_eq!((faulty.state, &faulty.error), (State::Reserved, &Some(fault())));
    assert_eq!(effects, [Effect::Report]);
    let redeem = Event::Redeem { host: name("h1") };
    // The host is told that it has to wait, not what is wrong.
    assert_eq!(step(&faulty, &redeem, T0), Err(unavailable(&faulty.object)));
    let (well, _) = step(&faulty, &Event::Prepared(fence(5)), T0).unwrap();
    assert_eq!((well.state, well.error), (State::Prepared, None));
}

fn any_event() -> impl Strategy<Value = Event> {
    let host = prop_oneof![3 => Just("h1"), 1 => Just("h2")];
    (4..7_u64, host, any::<prop::sample::Index>()).prop_map(|(generation, host, index)| {
        let all = events(fence(generation), host);
        index.get(&all).clone()
    })
}

proptest! {
    /// Whatever happens: a repeat of a host's or the broker's event changes nothing more, an ended binding stays ended
    /// and its identity never changes.
    #[test]
    fn repeats_are_idempotent_and_the_end_is_final(events in prop::collection::vec(any_event(), 1..30)) {
        let mut now = binding(State::Reserved);
        for event in events {
            let Ok((next, _)) = step(&now, &event, T0) else { continue };
            prop_assert_eq!(next.fence(), now.fence());
            prop_assert!(now.state != State::Released || next.state == State::Released);
            if matches!(event.initiator(), Initiator::Host | Initiator::Broker | Initiator::Operator) {
                match step(&next, &event, T0) {
                    Ok((again, _)) => prop_assert_eq!(&again, &next),
                    Err(refusal) => prop_assert!(false, "{:?} twice: {}", event, refusal),
                }
            }
            now = next;
        }
    }

    /// From any state, a revocation and the end of what is in flight lead to `Released`.
    #[test]
    fn every_release_completes(events in prop::collection::vec(any_event(), 0..30)) {
        let mut now = binding(State::Reserved);
        for event in events {
            now = step(&now, &event, T0).map_or(now, |(next, _)| next);
        }
        let (revoked, _) = step(&now, &Event::Revoke, T0).unwrap();
        let (ended, _) = step(&revoked, &Event::Drained(fence(5)), T0).unwrap();
        prop_assert_eq!(ended.state, State::Released);
    }
}
