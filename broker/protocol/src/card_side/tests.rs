use super::*;
use crate::{
    card::BindingReport,
    desired::{Grant, Volume, VolumeBackend},
    id::{BrokerEpoch, ObjectKind, Revision},
};

mod resize;

const T0: Now = Now {
    monotonic_ms: 1_000,
    unix_s: 1_000_000,
};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn disk() -> ObjectRef {
    ObjectRef {
        kind: ObjectKind::Volume,
        name: name("disk1"),
    }
}

fn operation(n: u128) -> OperationId {
    OperationId(uuid::Uuid::from_u128(n))
}

fn desired(revision: u64, generation: Option<u64>) -> DesiredState {
    let volume = Volume {
        name: name("disk1"),
        size_bytes: 4096,
        backend: VolumeBackend::Null,
        read_only: false,
    };
    let grant = |generation| Grant {
        object: disk(),
        host: name("h1"),
        generation: Generation(generation),
        incarnation: Incarnation(9),
        expires_unix_s: None,
    };
    DesiredState {
        broker_epoch: BrokerEpoch(1),
        revision: Revision(revision),
        ports: vec![],
        volumes: vec![volume],
        grants: generation.map(grant).into_iter().collect(),
        ..DesiredState::default()
    }
}

fn report(generation: u64, state: State) -> BindingReport {
    let (generation, incarnation) = (Generation(generation), Incarnation(9));
    BindingReport {
        object: disk(),
        generation,
        incarnation,
        state,
        error: None,
    }
}

fn redeem(core: &mut CardCore, host: &str, op: u128) -> Vec<Effect> {
    core.handle(
        Input::Redeem {
            host: name(host),
            operation: operation(op),
            object: disk(),
        },
        T0,
    )
}

fn connect(core: &mut CardCore, generation: u64) -> Vec<Effect> {
    let (generation, incarnation) = (Generation(generation), Incarnation(9));
    core.handle(
        Input::Connect {
            host: name("h1"),
            object: disk(),
            generation,
            incarnation,
        },
        T0,
    )
}

fn refusal(effects: &[Effect]) -> Code {
    match effects {
        [Effect::Reply(Reply::Refused { refusal })] => refusal.code,
        other => panic!("not only a refusal: {other:?}"),
    }
}

/// The effects with the record left out, and the record.
fn split(effects: Vec<Effect>) -> (Vec<Effect>, Option<CardRecord>) {
    let mut record = None;
    let keep = |effect: Effect| match effect {
        Effect::Persist(bytes) => {
            record = Some(CardRecord::decode(&bytes).unwrap());
            Some(Effect::Persist(vec![]))
        }
        other => Some(other),
    };
    (effects.into_iter().filter_map(keep).collect(), record)
}

fn persisted() -> Effect {
    Effect::Persist(vec![])
}

fn started() -> CardCore {
    CardCore::start(name("c1"), None, T0).0
}

/// A core with generation 1 of the disk prepared.
fn prepared() -> CardCore {
    let mut core = started();
    core.handle(Input::Desired(desired(1, Some(1))), T0);
    core.handle(
        Input::Prepared {
            object: disk(),
            generation: Generation(1),
        },
        T0,
    );
    core
}

/// A core with a session on generation 1 of the disk.
fn connected() -> CardCore {
    let mut core = prepared();
    redeem(&mut core, "h1", 1);
    connect(&mut core, 1);
    core
}

#[test]
fn the_whole_life_of_a_binding_effect_by_effect() {
    let mut core = started();
    let inventory = |seq, reports: Vec<BindingReport>| Effect::SendInventory { seq, bindings: reports };
    let applied = |n| Effect::SendApplied { revision: Revision(n) };
    let generation = Generation(1);

    let (effects, record) = split(core.handle(Input::Desired(desired(1, Some(1))), T0));
    let prepare = Effect::Prepare {
        object: disk(),
        generation,
    };
    let reserved = inventory(1, vec![report(1, State::Reserved)]);
    assert_eq!(effects, [persisted(), Effect::Configure, prepare, applied(1), reserved]);
    assert_eq!(record.unwrap().desired, desired(1, Some(1)));

    let (effects, _) = split(core.handle(
        Input::Prepared {
            object: disk(),
            generation,
        },
        T0,
    ));
    assert_eq!(effects, [persisted(), inventory(2, vec![report(1, State::Prepared)])]);

    let (effects, record) = split(redeem(&mut core, "h1", 1));
    let redeemed = Effect::Reply(Reply::Redeemed {
        generation,
        incarnation: Incarnation(9),
    });
    let attached = inventory(3, vec![report(1, State::Attached)]);
    assert_eq!(
        effects,
        [persisted(), Effect::Open { object: disk() }, redeemed, attached]
    );
    assert_eq!(record.unwrap().bindings[0].state, State::Attached);

    let session = SessionId(1);
    let open_session = Effect::OpenSession {
        object: disk(),
        session,
    };
    assert_eq!(connect(&mut core, 1), [open_session, Effect::Reply(Reply::Connected)]);
    let active = inventory(4, vec![report(1, State::Active)]);
    assert_eq!(core.handle(Input::RingsLive { session }, T0), [active]);

    let (effects, record) = split(core.handle(Input::Desired(desired(2, None)), T0));
    let notice = Effect::SendRevoked {
        host: name("h1"),
        object: disk(),
        generation,
    };
    let draining = inventory(5, vec![report(1, State::Draining)]);
    let close = Effect::CloseSession {
        object: disk(),
        session,
    };
    let shut = Effect::Shut { object: disk() };
    assert_eq!(
        effects,
        [
            shut,
            close,
            persisted(),
            Effect::Configure,
            notice,
            applied(2),
            draining
        ]
    );
    assert_eq!(record.unwrap().bindings[0].state, State::Draining);

    let (effects, _) = split(core.handle(Input::SessionClosed { session }, T0));
    let released = inventory(6, vec![report(1, State::Released)]);
    assert_eq!(effects, [persisted(), Effect::Teardown { object: disk() }, released]);
    assert_eq!(core.handle(Input::InventoryAcked { seq: 5 }, T0), []);
    assert!(
        core.binding(&disk()).is_some(),
        "the broker has not heard of the end yet"
    );
    assert_eq!(core.handle(Input::InventoryAcked { seq: 6 }, T0), []);
    assert!(core.binding(&disk()).is_none());
}

#[test]
fn p06_every_reason_not_to_give_an_object_gives_the_same_answer() {
    let mut answers = vec![redeem(&mut started(), "h1", 1)];
    answers.push(redeem(&mut prepared(), "h2", 1));
    let mut revoked = connected();
    revoked.handle(Input::Desired(desired(2, None)), T0);
    answers.push(redeem(&mut revoked, "h1", 2));
    let mut over = prepared();
    over.handle(Input::Desired(desired(2, None)), T0);
    answers.push(redeem(&mut over, "h1", 1));
    let mut expired = started();
    let mut state = desired(1, Some(1));
    state.grants[0].expires_unix_s = Some(T0.unix_s);
    expired.handle(Input::Desired(state), T0);
    answers.push(redeem(&mut expired, "h1", 1));
    for answer in &answers {
        assert_eq!(
            answer,
            &[Effect::Reply(Reply::Refused {
                refusal: not_granted(&disk())
            })]
        );
    }
}

#[test]
fn an_expired_grant_ends_and_is_not_bound_again() {
    let mut core = started();
    let mut state = desired(1, Some(1));
    state.grants[0].expires_unix_s = Some(T0.unix_s + 10);
    core.handle(Input::Desired(state), T0);
    core.handle(
        Input::Prepared {
            object: disk(),
            generation: Generation(1),
        },
        T0,
    );
    let at = |s| Now {
        unix_s: T0.unix_s + s,
        ..T0
    };
    assert_eq!(core.handle(Input::Tick, at(9)), []);
    core.handle(Input::Tick, at(10));
    assert_eq!(core.binding(&disk()).unwrap().state, State::Released);
    assert_eq!(core.handle(Input::Tick, at(11)), []);
}

#[test]
fn one_session_at_a_time_and_only_while_the_device_is_there() {
    let mut core = connected();
    assert_eq!(refusal(&connect(&mut core, 1)), Code::Busy);
    core.handle(Input::SessionClosed { session: SessionId(1) }, T0);
    let effects = connect(&mut core, 1);
    assert!(effects.contains(&Effect::OpenSession {
        object: disk(),
        session: SessionId(2)
    }));
    // A notice about a session that is over says nothing about the one that is not.
    assert_eq!(core.handle(Input::RingsLive { session: SessionId(1) }, T0), []);
    assert_eq!(core.handle(Input::SessionClosed { session: SessionId(1) }, T0), []);
    assert_eq!(core.session_object(SessionId(2)), Some(&disk()));

    let error = Refusal::new(Code::Unavailable, "gone");
    let fault = Input::Fault {
        object: disk(),
        generation: Generation(1),
        error,
    };
    let effects = core.handle(fault.clone(), T0);
    assert_eq!(effects[0], Effect::Shut { object: disk() });
    assert!(effects.contains(&Effect::CloseSession {
        object: disk(),
        session: SessionId(2)
    }));
    assert_eq!(core.handle(fault, T0), [], "the same error twice is one report");
    core.handle(Input::SessionClosed { session: SessionId(2) }, T0);
    assert_eq!(refusal(&connect(&mut core, 1)), Code::Unavailable);

    // It is tried again until it works, and then opens by itself.
    let later = Now {
        monotonic_ms: T0.monotonic_ms + PREPARE_RETRY_MS,
        ..T0
    };
    let prepare = Effect::Prepare {
        object: disk(),
        generation: Generation(1),
    };
    assert_eq!(core.handle(Input::Tick, T0), []);
    assert_eq!(core.handle(Input::Tick, later), [prepare]);
    let effects = core.handle(
        Input::Prepared {
            object: disk(),
            generation: Generation(1),
        },
        later,
    );
    assert_eq!(effects[0], Effect::Open { object: disk() });
    assert!(connect(&mut core, 1).contains(&Effect::Reply(Reply::Connected)));
}

#[test]
fn a_restart_keeps_what_was_attached_and_ends_what_was_draining() {
    let mut core = connected();
    core.handle(Input::RingsLive { session: SessionId(1) }, T0);
    let (mut again, effects) = CardCore::start(name("c1"), Some(core.record()), T0);
    assert!(again.dpu_epoch() > core.dpu_epoch());
    let (effects, record) = split(effects);
    let prepare = Effect::Prepare {
        object: disk(),
        generation: Generation(1),
    };
    assert_eq!(effects, [persisted(), Effect::Configure, prepare]);
    assert_eq!(record.unwrap().dpu_epoch, again.dpu_epoch());
    assert_eq!(refusal(&connect(&mut again, 1)), Code::Busy, "a moment only");
    for (found, told) in [(Code::Busy, Code::Busy), (Code::Unavailable, Code::Unavailable)] {
        again.handle(
            Input::Fault {
                object: disk(),
                generation: Generation(1),
                error: Refusal::new(found, "its file is locked"),
            },
            T0,
        );
        assert_eq!(refusal(&connect(&mut again, 1)), told);
    }
    let effects = again.handle(
        Input::Prepared {
            object: disk(),
            generation: Generation(1),
        },
        T0,
    );
    assert_eq!(effects[0], Effect::Open { object: disk() });
    assert!(connect(&mut again, 1).contains(&Effect::Reply(Reply::Connected)));

    core.handle(Input::Desired(desired(2, None)), T0);
    assert_eq!(core.binding(&disk()).unwrap().state, State::Draining);
    let (after, _) = CardCore::start(name("c1"), Some(core.record()), T0);
    assert_eq!(after.binding(&disk()).unwrap().state, State::Released);
}

#[test]
fn a_new_generation_waits_until_the_former_one_is_drained() {
    let mut core = connected();
    let (effects, _) = split(core.handle(Input::Desired(desired(2, Some(2))), T0));
    assert_eq!(effects[0], Effect::Shut { object: disk() });
    assert!(!effects.iter().any(|e| matches!(e, Effect::Prepare { .. })));
    let (effects, _) = split(core.handle(Input::SessionClosed { session: SessionId(1) }, T0));
    let prepare = Effect::Prepare {
        object: disk(),
        generation: Generation(2),
    };
    assert_eq!(
        effects[..3],
        [persisted(), Effect::Teardown { object: disk() }, prepare]
    );
    assert_eq!(core.binding(&disk()).unwrap().generation, Generation(2));
}

#[test]
fn p07_a_broker_that_was_set_back_is_told_the_highest_generation() {
    let mut core = started();
    core.handle(Input::Desired(desired(7, Some(5))), T0);
    // Same epoch: refused. Higher epoch: its state counts, its old generation does not.
    let effects = core.handle(Input::Desired(desired(3, Some(2))), T0);
    assert!(matches!(&effects[..], [Effect::RefuseDesired(refusal)] if refusal.code == Code::Stale));
    let restored = DesiredState {
        broker_epoch: BrokerEpoch(2),
        ..desired(3, Some(2))
    };
    let effects = core.handle(Input::Desired(restored), T0);
    let told = |effects: &[Effect]| match effects.last() {
        Some(Effect::SendInventory { bindings, .. }) => bindings.clone(),
        other => panic!("no inventory: {other:?}"),
    };
    assert_eq!(told(&effects), [report(5, State::Released)]);
    core.handle(Input::InventoryAcked { seq: 2 }, T0);
    assert_eq!(
        told(&core.handle(Input::BrokerConnected, T0)),
        [report(5, State::Released)]
    );
}

#[test]
fn a_desired_state_that_contradicts_itself_leaves_the_old_one_in_force() {
    let mut core = connected();
    let mut bad = desired(2, Some(1));
    bad.volumes.clear();
    let effects = core.handle(Input::Desired(bad), T0);
    assert!(matches!(&effects[..], [Effect::RefuseDesired(refusal)] if refusal.code == Code::Malformed));
    assert_eq!(core.desired(), &desired(1, Some(1)));
    // The same state again is acknowledged again, and nothing else.
    let effects = core.handle(Input::Desired(desired(1, Some(1))), T0);
    assert!(
        matches!(&effects[..], [Effect::SendApplied { .. }, Effect::SendInventory { .. }]),
        "{effects:?}"
    );
}

#[test]
fn a_volume_that_changed_under_its_binding_is_an_error_that_is_told() {
    let mut core = connected();
    let mut shrunk = desired(2, Some(1));
    shrunk.volumes[0].size_bytes /= 2;
    core.handle(Input::Desired(shrunk), T0);
    let binding = core.binding(&disk()).unwrap();
    assert_eq!(binding.state, State::Attached);
    assert!(binding.error.as_ref().is_some_and(|e| e.text.contains("volume disk1")));
}

#[test]
fn a_host_that_booted_again_loses_its_sessions_and_its_past_is_refused() {
    let mut core = connected();
    let hello = |epoch| Input::HostHello {
        host: name("h1"),
        host_epoch: BootEpoch(epoch),
        version: 1,
    };
    let (effects, _) = split(core.handle(hello(5), T0));
    let welcome = Effect::Reply(Reply::Welcome {
        version: 1,
        card: name("c1"),
        dpu_epoch: BootEpoch(T0.unix_s),
    });
    let close = Effect::CloseSession {
        object: disk(),
        session: SessionId(1),
    };
    assert_eq!(effects, [close, persisted(), welcome.clone()]);
    assert_eq!(core.handle(hello(5), T0), [welcome]);
    assert_eq!(refusal(&core.handle(hello(4), T0)), Code::Stale);
}

#[test]
fn a_repeated_mutation_gets_its_first_answer_even_after_the_binding_is_over() {
    let mut core = prepared();
    let first = redeem(&mut core, "h1", 1);
    let release = Input::Release {
        host: name("h1"),
        operation: operation(2),
        object: disk(),
        generation: Generation(1),
    };
    core.handle(release.clone(), T0);
    core.handle(Input::Desired(desired(2, Some(2))), T0);
    core.handle(
        Input::Prepared {
            object: disk(),
            generation: Generation(2),
        },
        T0,
    );
    let reply = first.into_iter().find(|e| matches!(e, Effect::Reply(_))).unwrap();
    assert_eq!(redeem(&mut core, "h1", 1), [reply]);
    assert_eq!(core.handle(release, T0), [Effect::Reply(Reply::Released)]);
    assert_eq!(core.binding(&disk()).unwrap().state, State::Prepared);
    assert_eq!(refusal(&redeem(&mut core, "h1", 2)), Code::OperationConflict);
}
