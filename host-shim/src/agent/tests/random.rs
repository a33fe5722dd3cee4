//! The agent under random inputs.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Pass(u64),
    Up,
    Down,
    Attach(u8),
    Detach(u8),
    /// Answer the oldest request still open, in one of several ways.
    Answer(u8),
    Revoke(u8),
    VmmComes(u8),
    VmmGoes(u8),
    /// The stream of a served session ends.
    StreamEnds(u8),
    /// The link stays up and its DPU does not answer.
    Hang,
}

fn step() -> impl Strategy<Value = Step> {
    let device = 0_u8..3;
    prop_oneof![
        1 => (0_u64..4000).prop_map(Step::Pass),
        1 => Just(Step::Up),
        1 => Just(Step::Down),
        1 => device.clone().prop_map(Step::Attach),
        1 => device.clone().prop_map(Step::Detach),
        8 => (0_u8..8).prop_map(Step::Answer),
        1 => device.clone().prop_map(Step::Revoke),
        3 => device.clone().prop_map(Step::VmmComes),
        1 => device.clone().prop_map(Step::VmmGoes),
        2 => device.prop_map(Step::StreamEnds),
        1 => Just(Step::Hang),
    ]
}

/// What the outside of an agent looks like, kept in step with its actions.
#[derive(Default)]
struct Outside {
    open_requests: Vec<(Ticket, Option<Connection>, ObjectRef)>,
    sockets: BTreeSet<ObjectRef>,
    /// The VMM that is in, per device.
    vmms: BTreeMap<ObjectRef, Connection>,
    /// Streams that a DPU serves.
    served: BTreeMap<Connection, Ticket>,
    up: bool,
}

impl Outside {
    fn carry_out(&mut self, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Send(ticket, request) => {
                    assert!(self.up, "sent while the link is down: {request:?}");
                    let (Request::Redeem { object, .. } | Request::Release { object, .. }) = request else {
                        panic!("{request:?}")
                    };
                    let twice = self
                        .open_requests
                        .iter()
                        .any(|(_, vmm, o)| vmm.is_none() && o == object);
                    assert!(!twice, "two requests about {object} at a time");
                    self.open_requests.push((*ticket, None, object.clone()));
                }
                Action::Connect(ticket, _, object, connection) => {
                    assert!(self.up);
                    assert_eq!(
                        self.vmms.get(object),
                        Some(connection),
                        "a session for a VMM that is not there"
                    );
                    self.open_requests.push((*ticket, Some(*connection), object.clone()));
                }
                Action::Serve(object, connection, ticket) => {
                    assert_eq!(self.vmms.get(object), Some(connection));
                    assert_eq!(self.served.insert(*connection, *ticket), None, "served twice at a time");
                }
                Action::DropDpu(object, connection) => {
                    assert_eq!(self.vmms.get(object), Some(connection));
                    self.served.remove(connection);
                }
                Action::OpenSocket(object) => assert!(self.sockets.insert(object.clone()), "opened twice"),
                Action::CloseSocket(object) => assert!(self.sockets.remove(object), "closed twice"),
                Action::CloseVmm(object, connection) => {
                    assert_eq!(
                        self.vmms.remove(object),
                        Some(*connection),
                        "closed a VMM that is not there"
                    );
                }
                Action::Remove(object) => {
                    self.sockets.remove(object);
                    assert!(!self.vmms.contains_key(object));
                }
                Action::Remember => {}
            }
        }
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_outside_stays_consistent(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        let mut outside = Outside::default();
        let mut generation = 1;
        for (number, step) in (0_u64..).zip(steps) {
            let name = |n: u8| format!("vm{n}");
            let actions = match step {
                Step::Pass(ms) => world.after(Duration::from_millis(ms)),
                Step::Up if !outside.up => {
                    outside.up = true;
                    world.tell(link_up())
                }
                Step::Down => {
                    outside.up = false;
                    outside.open_requests.clear();
                    world.tell(link_down())
                }
                Step::Hang => {
                    outside.up = false;
                    outside.open_requests.clear();
                    world.tell(hung())
                }
                Step::StreamEnds(n) => {
                    let vmm = outside.vmms.get(&port(&name(n))).copied();
                    match vmm.and_then(|vmm| Some((vmm, outside.served.remove(&vmm)?))) {
                        Some((vmm, ticket)) => {
                            outside.carry_out(&world.tell(Input::DpuLost(port(&name(n)), vmm, None)));
                            world.tell(Input::StreamEnded(port(&name(n)), vmm, ticket, None))
                        }
                        None => Vec::new(),
                    }
                }
                Step::Attach(n) => {
                    world.agent.attach(&port(&name(n)), settings(&name(n)), world.now).unwrap_or_default()
                }
                Step::Detach(n) => world.agent.detach(&port(&name(n)), world.now).unwrap_or_default(),
                Step::Answer(kind) if !outside.open_requests.is_empty() => {
                    let (ticket, session, object) = outside.open_requests.remove(0);
                    generation += 1;
                    let reply = match (kind, session) {
                        (0, _) => refusal(Code::NotGranted),
                        (1, _) => refusal(Code::Stale),
                        (2, _) => refusal(Code::Busy),
                        (_, Some(_)) => Reply::Connected,
                        (3 | 4, None) => Reply::Released,
                        // The same binding again, or another one.
                        (5, None) => redeemed(generation),
                        (_, None) => redeemed(1),
                    };
                    let actions = world.tell(Input::Answer(ticket, reply.clone()));
                    if let (Some(vmm), Reply::Connected) = (session, reply) {
                        outside.carry_out(&actions);
                        let object = &object;
                        if outside.vmms.get(object) == Some(&vmm) {
                            outside.carry_out(&world.tell(Input::Offered(object.clone(), vmm)));
                            outside.carry_out(&world.tell(Input::Ready(object.clone(), vmm, false)));
                        }
                        Vec::new()
                    } else {
                        actions
                    }
                }
                Step::Revoke(n) => {
                    let view = world.agent.view(&port(&name(n)), world.now);
                    let bound = view.and_then(|v| v.generation).unwrap_or(0);
                    world.tell(Input::Revoked(port(&name(n)), Generation(bound)))
                }
                Step::VmmComes(n) if outside.sockets.contains(&port(&name(n))) && !outside.vmms.contains_key(&port(&name(n))) => {
                    outside.vmms.insert(port(&name(n)), Connection(number));
                    world.tell(Input::VmmConnected(port(&name(n)), Connection(number)))
                }
                Step::VmmGoes(n) => match outside.vmms.remove(&port(&name(n))) {
                    Some(connection) => world.tell(Input::VmmGone(port(&name(n)), connection, VmmEnd::Closed)),
                    None => Vec::new(),
                },
                _ => Vec::new(),
            };
            outside.carry_out(&actions);
            // Whatever is due is done: nobody would wake the agent for the past.
            if let Some(at) = world.agent.next_deadline() {
                prop_assert!(at > world.now, "a deadline in the past: the daemon would spin");
            }
        }
    }
}
