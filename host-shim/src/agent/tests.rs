//! The agent by scenarios.

use outboard_protocol::{
    id::ObjectKind,
    refusal::{Code, Refusal},
};
use outboard_shim_api::{DeviceState, Role};

use super::*;

fn new_operation() -> OperationId {
    OperationId(uuid::Uuid::new_v4())
}

fn port(name: &str) -> ObjectRef {
    ObjectRef {
        kind: ObjectKind::Port,
        name: name.parse().unwrap(),
    }
}

fn settings(name: &str) -> DeviceSettings {
    DeviceSettings {
        socket: format!("/run/{name}.sock").into(),
        role: Role::Listen,
        uid: None,
    }
}

fn link_up() -> Input {
    Input::LinkUp {
        card: "local".parse().unwrap(),
        dpu_epoch: BootEpoch(1),
    }
}

fn link_down() -> Input {
    Input::LinkDown {
        problem: Problem {
            error: "gone".to_owned(),
            remedy: "wait".to_owned(),
        },
        hung: false,
    }
}

fn hung() -> Input {
    let problem = Problem {
        error: "silent".to_owned(),
        remedy: "restart it".to_owned(),
    };
    Input::LinkDown { problem, hung: true }
}

fn redeemed(generation: u64) -> Reply {
    Reply::Redeemed {
        generation: Generation(generation),
        incarnation: Incarnation(1),
    }
}

fn refusal(code: Code) -> Reply {
    Reply::Refused {
        refusal: Refusal {
            code,
            text: format!("{code:?}"),
        },
    }
}

/// An agent and its clock.
struct World {
    agent: Agent,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            agent: Agent::new(Vec::new(), new_operation, now),
            now,
        }
    }

    /// One port, `vm1`, attached and redeemed under generation 1.
    fn attached() -> Self {
        let mut world = Self::new();
        world.agent.attach(&port("vm1"), settings("vm1"), world.now).unwrap();
        let (ticket, _) = sent(&world.tell(link_up()));
        let actions = world.tell(Input::Answer(ticket, redeemed(1)));
        assert!(actions.contains(&Action::OpenSocket(port("vm1"))), "{actions:?}");
        world
    }

    /// The same, with a VMM in session as connection 7.
    fn served() -> Self {
        let mut world = Self::attached();
        let actions = world.tell(Input::VmmConnected(port("vm1"), Connection(7)));
        world.serve(&actions, false);
        world
    }

    /// The DPU grants the session that was asked for, and knows all of it then; its ticket.
    fn serve(&mut self, actions: &[Action], replay: bool) -> Ticket {
        let ticket = asked(actions);
        let connection = match actions {
            [Action::Connect(_, _, _, connection)] => *connection,
            _ => panic!("{actions:?}"),
        };
        let actions = self.tell(Input::Answer(ticket, Reply::Connected));
        assert_eq!(actions, [Action::Serve(port("vm1"), connection, ticket)]);
        self.tell(Input::Offered(port("vm1"), connection));
        self.tell(Input::Ready(port("vm1"), connection, replay));
        assert_eq!((self.state(), self.view().problem), (DeviceState::Connected, None));
        ticket
    }

    /// The DPU's end of connection 7's stream is gone.
    fn stream_ends(&mut self, ticket: Ticket, problem: Option<Problem>) -> Vec<Action> {
        self.tell(Input::DpuLost(port("vm1"), Connection(7), Some(3)));
        self.tell(Input::StreamEnded(port("vm1"), Connection(7), ticket, problem))
    }

    fn tell(&mut self, input: Input) -> Vec<Action> {
        self.agent.handle(input, self.now)
    }

    fn after(&mut self, passed: Duration) -> Vec<Action> {
        self.now += passed;
        self.tell(Input::Tick)
    }

    fn view(&self) -> DeviceView {
        self.agent.view(&port("vm1"), self.now).unwrap()
    }

    fn state(&self) -> DeviceState {
        self.view().state
    }
}

/// The only request among the actions.
fn sent(actions: &[Action]) -> (Ticket, Request) {
    let mut requests = actions.iter().filter_map(|action| match action {
        Action::Send(ticket, request) => Some((*ticket, request.clone())),
        _ => None,
    });
    let request = requests.next().unwrap_or_else(|| panic!("nothing sent: {actions:?}"));
    assert!(requests.next().is_none(), "{actions:?}");
    request
}

/// The ticket of the only session asked for.
fn asked(actions: &[Action]) -> Ticket {
    match actions {
        [Action::Connect(ticket, ..)] => *ticket,
        _ => panic!("no session asked for: {actions:?}"),
    }
}

fn operation(request: &Request) -> OperationId {
    match request {
        Request::Redeem { operation, .. } | Request::Release { operation, .. } => *operation,
        _ => panic!("no mutation: {request:?}"),
    }
}

#[test]
fn a_grant_is_asked_for_until_it_is_there() {
    let mut world = World::new();
    world.agent.attach(&port("vm1"), settings("vm1"), world.now).unwrap();
    let (mut ticket, mut request) = sent(&world.tell(link_up()));
    for _ in 0..10 {
        assert!(world.tell(Input::Answer(ticket, refusal(Code::NotGranted))).is_empty());
        assert_eq!(world.state(), DeviceState::WaitingForGrant);
        assert!(
            world
                .view()
                .problem
                .unwrap()
                .remedy
                .contains("outboard grant create port vm1")
        );
        assert!(world.after(Duration::from_millis(99)).is_empty());
        let (next_ticket, next) = sent(&world.after(REDEEM_RETRY_LONGEST));
        // A refused operation may be stored as refused: the next try is another one.
        assert_ne!(operation(&next), operation(&request));
        (ticket, request) = (next_ticket, next);
    }
    world.tell(Input::Answer(ticket, redeemed(3)));
    assert_eq!(
        (world.state(), world.view().generation),
        (DeviceState::WaitingForVmm, Some(3))
    );
    assert_eq!(world.view().problem, None);
}

#[test]
fn a_lost_answer_is_asked_for_again_under_the_same_operation() {
    let mut world = World::new();
    world.agent.attach(&port("vm1"), settings("vm1"), world.now).unwrap();
    let (first_ticket, first) = sent(&world.tell(link_up()));
    assert!(world.tell(link_down()).is_empty());
    let (_, second) = sent(&world.tell(link_up()));
    assert_eq!(operation(&first), operation(&second));
    // The answer that belonged to the former connection counts for nothing.
    world.tell(Input::Answer(first_ticket, redeemed(1)));
    assert_eq!(world.state(), DeviceState::WaitingForGrant);
}

#[test]
fn what_was_answered_is_asked_for_under_another_operation() {
    let mut world = World::new();
    world.agent.attach(&port("vm1"), settings("vm1"), world.now).unwrap();
    let (ticket, first) = sent(&world.tell(link_up()));
    world.tell(Input::Answer(ticket, redeemed(1)));
    world.tell(link_down());
    let (_, second) = sent(&world.tell(link_up()));
    // The stored answer to the first would hide a revocation.
    assert_ne!(operation(&first), operation(&second));
}

#[test]
fn a_dpu_that_cannot_now_does_not_end_a_binding() {
    let mut world = World::served();
    world.tell(link_down());
    let (ticket, _) = sent(&world.tell(link_up()));
    assert!(world.tell(Input::Answer(ticket, refusal(Code::Unavailable))).is_empty());
    assert_eq!(world.state(), DeviceState::Connected);
    let (ticket, _) = sent(&world.after(REDEEM_RETRY_FIRST));
    world.tell(Input::Answer(ticket, redeemed(1)));
    let (ticket, first) = sent(&world.agent.detach(&port("vm1"), world.now).unwrap());
    world.tell(Input::Answer(ticket, refusal(Code::Unavailable)));
    assert_eq!(world.agent.release_of(&port("vm1")), Release::Pending);
    let (_, again) = sent(&world.after(REDEEM_RETRY_LONGEST));
    assert_eq!(first, again);
}

#[test]
fn sockets_stand_open_only_while_the_dpu_is_there() {
    let mut world = World::attached();
    assert!(world.tell(link_down()).is_empty());
    assert!(world.after(LINK_GRACE / 2).is_empty());
    // Failing to connect again does not begin the grace anew.
    assert!(world.tell(link_down()).is_empty());
    assert_eq!(world.after(LINK_GRACE / 2), [Action::CloseSocket(port("vm1"))]);
    let (ticket, _) = sent(&world.tell(link_up()));
    assert_eq!(
        world.tell(Input::Answer(ticket, redeemed(1))),
        [Action::OpenSocket(port("vm1"))]
    );
}

#[test]
fn a_session_outlives_the_link_if_its_binding_does() {
    let mut world = World::served();
    world.tell(link_down());
    // Its socket stays: VMMs are answered from what is remembered.
    assert!(world.after(LINK_GRACE).is_empty());
    assert_eq!(world.state(), DeviceState::Connected);
    let (ticket, _) = sent(&world.tell(link_up()));
    assert!(world.tell(Input::Answer(ticket, redeemed(1))).is_empty());
    // Under another generation it was another binding's session.
    world.tell(link_down());
    let (ticket, _) = sent(&world.tell(link_up()));
    let actions = world.tell(Input::Answer(ticket, redeemed(2)));
    assert!(
        actions.contains(&Action::CloseVmm(port("vm1"), Connection(7))),
        "{actions:?}"
    );
    assert_eq!(world.state(), DeviceState::WaitingForVmm);
}

#[test]
fn a_session_whose_stream_ended_gets_another_one_and_its_vmm_stays() {
    let mut world = World::attached();
    let actions = world.tell(Input::VmmConnected(port("vm1"), Connection(7)));
    let mut ticket = world.serve(&actions, false);
    for round in 1..=12 {
        assert!(world.stream_ends(ticket, None).is_empty());
        assert_eq!((world.state(), world.view().problem), (DeviceState::Connected, None));
        // The end of an older stream is no news.
        assert!(
            world
                .tell(Input::StreamEnded(port("vm1"), Connection(7), Ticket(999), None))
                .is_empty()
        );
        // One that always ends is asked for less and less often.
        let least = SESSION_RETRY_FIRST * 2_u32.pow(round - 1);
        let delay = least.min(SESSION_RETRY_LONGEST);
        assert!(world.after(delay - Duration::from_millis(1)).is_empty());
        let actions = world.after(Duration::from_millis(1));
        ticket = world.serve(&actions, true);
        assert_eq!(world.view().replays, u64::from(round));
    }
    // One that lasted is asked for at once again.
    world.after(SESSION_STEADY_AFTER);
    world.stream_ends(ticket, None);
    let actions = world.after(SESSION_RETRY_FIRST);
    world.serve(&actions, true);
    assert_eq!(world.view().sessions, 1);
}

#[test]
fn a_dpu_that_is_away_shows_with_what_waits_for_it() {
    let mut world = World::attached();
    let actions = world.tell(Input::VmmConnected(port("vm1"), Connection(7)));
    let ticket = world.serve(&actions, false);
    world.stream_ends(ticket, None);
    world.tell(link_down());
    assert_eq!(world.view().problem, None, "not for a moment's absence");
    world.after(Duration::from_secs(12));
    let problem = world.view().problem.unwrap();
    assert_eq!(
        problem.error,
        "port vm1: the DPU has been away for 12 s; 3 requests are in flight; the VM waits"
    );
    world.tell(Input::Held(port("vm1"), Connection(7), true));
    assert!(world.view().problem.unwrap().error.contains("GET_VRING_BASE"));
    world.tell(Input::Held(port("vm1"), Connection(7), false));
    let (ticket, _) = sent(&world.tell(link_up()));
    let actions = world.tell(Input::Answer(ticket, redeemed(1)));
    let ticket = world.serve(&actions, true);
    // A DPU that will not do is named for what it lacks, at once, and asked for again.
    let unfit = Problem {
        error: "offers less".to_owned(),
        remedy: "start the old one".to_owned(),
    };
    world.stream_ends(ticket, Some(unfit.clone()));
    assert_eq!(
        (world.state(), world.view().problem),
        (DeviceState::Connected, Some(unfit))
    );
    let actions = world.after(SESSION_RETRY_LONGEST);
    world.serve(&actions, true);
}

#[test]
fn a_hung_dpus_streams_are_closed_and_a_lost_links_are_not() {
    let mut world = World::served();
    assert!(world.tell(link_down()).is_empty());
    let (ticket, _) = sent(&world.tell(link_up()));
    assert!(world.tell(Input::Answer(ticket, redeemed(1))).is_empty());
    assert_eq!(world.tell(hung()), [Action::DropDpu(port("vm1"), Connection(7))]);
    let (ticket, _) = sent(&world.tell(link_up()));
    let actions = world.tell(Input::Answer(ticket, redeemed(1)));
    let served = world.serve(&actions, true);
    // What the session says of the stream that was closed for it comes late.
    assert!(
        world
            .tell(Input::StreamEnded(port("vm1"), Connection(7), Ticket(1), None))
            .is_empty()
    );
    assert_ne!(served, Ticket(1));
}

#[test]
fn a_vmm_that_comes_while_the_dpu_is_away_stays_if_the_device_was_served_before() {
    let mut world = World::served();
    world.tell(Input::VmmGone(port("vm1"), Connection(7), VmmEnd::Closed));
    world.tell(link_down());
    world.after(LINK_GRACE * 10);
    assert_eq!(world.state(), DeviceState::WaitingForVmm);
    assert!(world.tell(Input::VmmConnected(port("vm1"), Connection(8))).is_empty());
    assert!(world.after(VMM_HOLD_MAX * 10).is_empty());
    assert_eq!(world.state(), DeviceState::Connected);
    assert!(world.view().problem.unwrap().error.contains("has been away"));
    let (ticket, _) = sent(&world.tell(link_up()));
    let actions = world.tell(Input::Answer(ticket, redeemed(1)));
    // The DPU may still be ending the session before for a while.
    let ticket = asked(&actions);
    assert!(world.tell(Input::Answer(ticket, refusal(Code::Busy))).is_empty());
    let actions = world.after(SESSION_RETRY_LONGEST);
    world.serve(&actions, false);
    // A revocation ends what is known: the next binding may be to something else.
    world.tell(Input::Revoked(port("vm1"), Generation(1)));
    let (ticket, _) = sent(&world.after(REDEEM_RETRY_LONGEST));
    world.tell(Input::Answer(ticket, redeemed(2)));
    world.tell(link_down());
    assert_eq!(world.after(LINK_GRACE), [Action::CloseSocket(port("vm1"))]);
}

#[test]
fn a_notice_that_comes_after_the_refusal_says_why() {
    let mut world = World::attached();
    let actions = world.tell(Input::VmmConnected(port("vm1"), Connection(7)));
    let ticket = world.serve(&actions, false);
    world.stream_ends(ticket, None);
    let ticket = asked(&world.after(SESSION_RETRY_FIRST));
    world.tell(Input::Answer(ticket, refusal(Code::NotGranted)));
    let problem = world.view().problem.unwrap();
    assert!(problem.error.contains("or the DPU has lost its state"), "{problem}");
    assert_eq!(world.state(), DeviceState::WaitingForGrant);
    world.tell(Input::Revoked(port("vm1"), Generation(1)));
    assert_eq!(world.state(), DeviceState::Revoked);
    assert_eq!(world.view().problem.unwrap().error, "the grant of port vm1 was revoked");
}

#[test]
fn revocation_closes_session_and_socket_and_a_new_grant_opens_them() {
    let mut world = World::served();
    // An older generation's end is no news.
    assert!(world.tell(Input::Revoked(port("vm1"), Generation(0))).is_empty());
    let actions = world.tell(Input::Revoked(port("vm1"), Generation(1)));
    let expected = [
        Action::CloseVmm(port("vm1"), Connection(7)),
        Action::CloseSocket(port("vm1")),
    ];
    assert_eq!(actions, expected);
    assert_eq!(world.state(), DeviceState::Revoked);
    for _ in 0..3 {
        let (ticket, _) = sent(&world.after(REDEEM_RETRY_LONGEST));
        world.tell(Input::Answer(ticket, refusal(Code::NotGranted)));
        assert_eq!(world.state(), DeviceState::Revoked);
        assert!(world.view().problem.unwrap().error.contains("revoked"));
    }
    let (ticket, _) = sent(&world.after(REDEEM_RETRY_LONGEST));
    assert_eq!(
        world.tell(Input::Answer(ticket, redeemed(2))),
        [Action::OpenSocket(port("vm1"))]
    );
    assert_eq!(
        (world.state(), world.view().problem),
        (DeviceState::WaitingForVmm, None)
    );
}

#[test]
fn a_revocation_during_a_redeem_awaits_its_answer() {
    let mut world = World::attached();
    world.tell(link_down());
    let (ticket, _) = sent(&world.tell(link_up()));
    world.tell(Input::Revoked(port("vm1"), Generation(1)));
    assert!(world.after(REDEEM_RETRY_LONGEST).is_empty());
    world.tell(Input::Answer(ticket, refusal(Code::NotGranted)));
    sent(&world.after(REDEEM_RETRY_LONGEST));
}

#[test]
fn a_grant_that_is_gone_when_the_link_is_up_again_ends_the_session_and_is_not_called_revoked() {
    let mut world = World::served();
    world.tell(link_down());
    let (ticket, _) = sent(&world.tell(link_up()));
    let actions = world.tell(Input::Answer(ticket, refusal(Code::NotGranted)));
    let expected = [
        Action::CloseVmm(port("vm1"), Connection(7)),
        Action::CloseSocket(port("vm1")),
    ];
    assert_eq!(actions, expected);
    assert_eq!(world.state(), DeviceState::WaitingForGrant);
    let problem = world.view().problem.unwrap();
    assert!(
        problem.error.contains("revoked while the link was down, or the DPU"),
        "{problem}"
    );
    // Nor is it later a device that never was granted.
    let (ticket, _) = sent(&world.after(REDEEM_RETRY_LONGEST));
    world.tell(Input::Answer(ticket, refusal(Code::NotGranted)));
    assert_eq!(world.view().problem, Some(problem));
    let (ticket, _) = sent(&world.after(REDEEM_RETRY_LONGEST));
    world.tell(Input::Answer(ticket, redeemed(2)));
    assert_eq!(world.view().problem, None);
}

#[test]
fn a_vmm_waits_a_moment_for_the_dpu_and_is_sent_away() {
    let mut world = World::attached();
    world.tell(link_down());
    assert!(world.tell(Input::VmmConnected(port("vm1"), Connection(1))).is_empty());
    let actions = world.after(VMM_HOLD_MAX);
    assert!(
        actions.contains(&Action::CloseVmm(port("vm1"), Connection(1))),
        "{actions:?}"
    );
    // In time, it is served.
    let mut world = World::attached();
    world.tell(link_down());
    world.tell(Input::VmmConnected(port("vm1"), Connection(1)));
    let (ticket, _) = sent(&world.tell(link_up()));
    asked(&world.tell(Input::Answer(ticket, redeemed(1))));
}

#[test]
fn a_dpu_that_still_ends_the_last_session_is_asked_again() {
    let mut world = World::attached();
    let mut ticket = asked(&world.tell(Input::VmmConnected(port("vm1"), Connection(1))));
    for _ in 0..5 {
        assert!(world.tell(Input::Answer(ticket, refusal(Code::Busy))).is_empty());
        ticket = asked(&world.after(BUSY_RETRY));
    }
    world.now += VMM_HOLD_MAX;
    let actions = world.tell(Input::Answer(ticket, refusal(Code::Busy)));
    assert_eq!(actions, [Action::CloseVmm(port("vm1"), Connection(1))]);
    assert!(world.view().problem.unwrap().remedy.contains("one VMM at a time"));
    assert_eq!(world.state(), DeviceState::Failed);
}

#[test]
fn a_session_refused_as_stale_redeems_anew() {
    let mut world = World::attached();
    let ticket = asked(&world.tell(Input::VmmConnected(port("vm1"), Connection(1))));
    let actions = world.tell(Input::Answer(ticket, refusal(Code::Stale)));
    let expected = [
        Action::CloseVmm(port("vm1"), Connection(1)),
        Action::CloseSocket(port("vm1")),
    ];
    assert_eq!(actions, expected);
    let (ticket, _) = sent(&world.after(REDEEM_RETRY_FIRST));
    world.tell(Input::Answer(ticket, redeemed(2)));
    assert_eq!(world.state(), DeviceState::WaitingForVmm);
}

#[test]
fn a_vmm_that_left_early_gets_no_session() {
    let mut world = World::attached();
    let ticket = asked(&world.tell(Input::VmmConnected(port("vm1"), Connection(1))));
    world.tell(Input::VmmGone(port("vm1"), Connection(1), VmmEnd::Closed));
    assert!(world.tell(Input::Answer(ticket, Reply::Connected)).is_empty());
    assert_eq!(world.state(), DeviceState::WaitingForVmm);
}

#[test]
fn a_fault_shows_until_a_session_has_memory() {
    let mut world = World::served();
    let problem = Problem {
        error: "no shared memory".to_owned(),
        remedy: "share=on".to_owned(),
    };
    world.tell(Input::VmmGone(
        port("vm1"),
        Connection(7),
        VmmEnd::Fault(problem.clone()),
    ));
    assert_eq!(
        (world.state(), world.view().problem),
        (DeviceState::Failed, Some(problem.clone()))
    );
    let ticket = asked(&world.tell(Input::VmmConnected(port("vm1"), Connection(8))));
    world.tell(Input::Answer(ticket, Reply::Connected));
    assert_eq!(world.view().problem, Some(problem));
    // What an older session says is no news.
    world.tell(Input::MemoryAccepted(port("vm1"), Connection(7)));
    assert!(world.view().problem.is_some());
    world.tell(Input::MemoryAccepted(port("vm1"), Connection(8)));
    assert_eq!((world.state(), world.view().problem), (DeviceState::Connected, None));
    assert_eq!(world.view().sessions, 2);
}

#[test]
fn detaching_gives_back() {
    let mut world = World::served();
    let actions = world.agent.detach(&port("vm1"), world.now).unwrap();
    let (ticket, request) = sent(&actions);
    assert!(matches!(
        request,
        Request::Release {
            generation: Generation(1),
            ..
        }
    ));
    assert!(actions.contains(&Action::CloseVmm(port("vm1"), Connection(7))));
    assert!(actions.contains(&Action::Remove(port("vm1"))));
    assert_eq!(
        (world.agent.release_of(&port("vm1")), world.agent.views(world.now)),
        (Release::Pending, vec![])
    );
    assert!(matches!(
        world.agent.attach(&port("vm1"), settings("vm1"), world.now),
        Err(AttachError::Leaving(_))
    ));
    world.tell(Input::Answer(ticket, Reply::Released));
    assert_eq!(
        (world.agent.release_of(&port("vm1")), world.agent.leaving()),
        (Release::Done, vec![])
    );
    assert!(matches!(
        world.agent.detach(&port("vm1"), world.now),
        Err(AttachError::Unknown(_))
    ));
}

#[test]
fn detaching_while_the_dpu_is_away_gives_back_later_even_after_a_restart() {
    let mut world = World::attached();
    world.tell(link_down());
    world.agent.detach(&port("vm1"), world.now).unwrap();
    assert_eq!(world.agent.release_of(&port("vm1")), Release::Pending);
    let leaving = world.agent.leaving();
    assert_eq!(leaving[0].binding.unwrap().generation, Generation(1));
    let (ticket, request) = sent(&world.tell(link_up()));
    assert!(matches!(request, Request::Release { .. }));
    world.tell(Input::Answer(ticket, Reply::Released));
    assert_eq!(world.agent.release_of(&port("vm1")), Release::Done);

    // So does a process that has only the file.
    let mut world = World {
        agent: Agent::new(leaving, new_operation, world.now),
        now: world.now,
    };
    let (ticket, request) = sent(&world.tell(link_up()));
    let Request::Release { generation, .. } = request else {
        panic!("{request:?}")
    };
    assert_eq!(generation, Generation(1));
    world.tell(Input::Answer(ticket, refusal(Code::Stale)));
    assert_eq!(world.agent.release_of(&port("vm1")), Release::Done);

    // One that does not know the generation asks for it first.
    let leaving = vec![Leaving {
        object: port("vm1"),
        binding: None,
    }];
    let mut world = World {
        agent: Agent::new(leaving, new_operation, world.now),
        now: world.now,
    };
    let (ticket, _) = sent(&world.tell(link_up()));
    let (_, request) = sent(&world.tell(Input::Answer(ticket, redeemed(4))));
    let Request::Release { generation, .. } = request else {
        panic!("{request:?}")
    };
    assert_eq!(generation, Generation(4));
}

#[test]
fn detaching_what_was_never_redeemed_is_done_at_once() {
    let mut world = World::new();
    world.agent.attach(&port("vm1"), settings("vm1"), world.now).unwrap();
    world.agent.detach(&port("vm1"), world.now).unwrap();
    assert_eq!(world.agent.release_of(&port("vm1")), Release::Done);
    // While a redeem is under way, its answer is awaited, and what it gave is given back.
    world.tell(link_up());
    let (ticket, _) = sent(&world.agent.attach(&port("vm1"), settings("vm1"), world.now).unwrap());
    world.agent.detach(&port("vm1"), world.now).unwrap();
    let (_, request) = sent(&world.tell(Input::Answer(ticket, redeemed(5))));
    assert!(matches!(
        request,
        Request::Release {
            generation: Generation(5),
            ..
        }
    ));
}

#[test]
fn attaching_twice_is_the_same_or_a_conflict() {
    let mut world = World::attached();
    assert!(
        world
            .agent
            .attach(&port("vm1"), settings("vm1"), world.now)
            .unwrap()
            .is_empty()
    );
    let clash = world.agent.attach(&port("vm1"), settings("other"), world.now);
    assert!(matches!(clash, Err(AttachError::Exists(_))));
    let clash = world
        .agent
        .attach(&port("vm2"), settings("vm1"), world.now)
        .unwrap_err();
    assert_eq!(clash.to_string(), "the socket of port vm2 is used by port vm1 already");
    assert!(world.agent.attach(&port("vm2"), settings("vm2"), world.now).is_ok());
}

#[test]
fn devices_are_bounded() {
    let mut world = World::new();
    for index in 0..DEVICES_MAX {
        let name = format!("vm{index}");
        world.agent.attach(&port(&name), settings(&name), world.now).unwrap();
    }
    let one_more = world.agent.attach(&port("more"), settings("more"), world.now);
    assert!(matches!(one_more, Err(AttachError::TooMany(_))));
    // What is there may be repeated.
    assert!(world.agent.attach(&port("vm0"), settings("vm0"), world.now).is_ok());
}

#[test]
fn a_socket_problem_shows_until_the_socket_is_open() {
    let mut world = World::attached();
    let problem = Problem {
        error: "in use".to_owned(),
        remedy: "stop it".to_owned(),
    };
    world.tell(Input::SocketProblem(port("vm1"), problem.clone()));
    assert_eq!(
        (world.state(), world.view().problem),
        (DeviceState::Failed, Some(problem))
    );
    world.tell(Input::SocketOpen(port("vm1")));
    assert_eq!(
        (world.state(), world.view().problem),
        (DeviceState::WaitingForVmm, None)
    );
}

mod random;
