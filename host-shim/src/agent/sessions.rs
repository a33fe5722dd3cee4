//! VMMs and their sessions: who is let in, and which of them has a DPU.

use std::time::Instant;

use outboard_protocol::{
    id::ObjectRef,
    link::{Reply, Request},
    refusal::Code,
};

use super::{
    Action, Agent, BUSY_RETRY, Connection, Input, Ticket, VmmEnd,
    binding::ends_binding,
    device::{Device, DpuSide, Guest, Phase},
    text,
};

impl Agent {
    pub(super) fn session_input(&mut self, input: Input, now: Instant) {
        match input {
            Input::VmmConnected(object, connection) => match self.devices.get_mut(&object) {
                Some(device) if device.guest.is_none() && device.settings.is_some() => {
                    device.guest = Some(Guest::new(connection, now));
                }
                _ => self.actions.push(Action::CloseVmm(object, connection)),
            },
            Input::VmmGone(object, connection, end) => {
                if let Some(device) = self.in_session(&object, connection) {
                    device.guest = None;
                    if let VmmEnd::Fault(problem) = end {
                        device.problem = Some(problem);
                    }
                }
            }
            Input::Offered(object, connection) => {
                if let Some(device) = self.in_session(&object, connection) {
                    device.known = true;
                }
            }
            Input::Ready(object, connection, replay) => {
                if let Some(device) = self.in_session(&object, connection) {
                    device.replays += u64::from(replay);
                    if let Some(guest) = &mut device.guest {
                        guest.ready = true;
                        guest.problem = None;
                    }
                }
            }
            Input::DpuLost(object, connection, in_flight) => {
                if let Some(guest) = self.guest(&object, connection) {
                    guest.in_flight = in_flight;
                    if std::mem::take(&mut guest.ready) {
                        guest.away_since = now;
                    }
                }
            }
            Input::StreamEnded(object, connection, ticket, problem) => {
                if let Some(device) = self.in_session(&object, connection) {
                    device.stream_ended(ticket, problem, now);
                }
            }
            Input::Held(object, connection, held) => {
                if let Some(guest) = self.guest(&object, connection) {
                    guest.held = held;
                }
            }
            Input::MemoryAccepted(object, connection) => {
                if let Some(device) = self.in_session(&object, connection) {
                    device.problem = None;
                }
            }
            Input::SessionProblem(object, connection, problem) => {
                if let Some(device) = self.in_session(&object, connection) {
                    device.problem = Some(problem);
                }
            }
            Input::SocketOpen(object) => {
                if let Some(device) = self.devices.get_mut(&object) {
                    device.socket_problem = None;
                }
            }
            Input::SocketProblem(object, problem) => {
                if let Some(device) = self.devices.get_mut(&object) {
                    device.socket_problem = Some(problem);
                }
            }
            _ => {}
        }
    }

    /// The device, if this connection is in.
    fn in_session(&mut self, object: &ObjectRef, connection: Connection) -> Option<&mut Device> {
        let device = self.devices.get_mut(object)?;
        let is_in = device
            .guest
            .as_ref()
            .is_some_and(|guest| guest.connection == connection);
        is_in.then_some(device)
    }

    fn guest(&mut self, object: &ObjectRef, connection: Connection) -> Option<&mut Guest> {
        self.in_session(object, connection)?.guest.as_mut()
    }

    /// The DPU has answered the request for a session.
    pub(super) fn session_answer(&mut self, object: &ObjectRef, ticket: Ticket, reply: &Reply, now: Instant) {
        let Some(device) = self.devices.get_mut(object) else {
            return;
        };
        let known = device.known;
        let Some(guest) = &mut device.guest else { return };
        if guest.dpu != (DpuSide::Asked { ticket }) {
            return;
        }
        match reply {
            Reply::Connected => {
                guest.dpu = DpuSide::Serving { ticket, since: now };
                let (connection, first) = (guest.connection, !std::mem::replace(&mut guest.counted, true));
                device.sessions += u64::from(first);
                self.actions.push(Action::Serve(object.clone(), connection, ticket));
            }
            Reply::Refused { refusal } if ends_binding(refusal.code) => {
                device.problem = Some(match refusal.code {
                    Code::NotGranted => text::not_granted_any_more(object),
                    _ => text::refused(object, refusal),
                });
                Self::unbind(device, object, &mut self.actions);
                device.phase = Phase::Idle {
                    retry_at: device.retry.failed(now),
                };
            }
            Reply::Refused { refusal } if refusal.code == Code::Busy && (now < guest.until) => {
                guest.dpu = DpuSide::Away {
                    retry_at: now + BUSY_RETRY,
                };
            }
            Reply::Refused { refusal } if known => {
                // The session before may still be ending.
                if refusal.code != Code::Busy {
                    guest.problem = Some(text::refused(object, refusal));
                }
                guest.dpu = DpuSide::Away {
                    retry_at: device.session_retry.failed(now),
                };
            }
            reply => {
                if let Reply::Refused { refusal } = reply {
                    device.problem = Some(text::refused(object, refusal));
                }
                Self::close_vmm(device, object, &mut self.actions);
            }
        }
    }

    /// Asks for a session, if one is wanted and it is time.
    pub(super) fn advance_guest(&mut self, object: &ObjectRef, up: bool, now: Instant) {
        let Some(device) = self.devices.get_mut(object) else {
            return;
        };
        let attached = device.binding.filter(|_| up && device.phase == Phase::Attached);
        let Some(guest) = &device.guest else { return };
        let DpuSide::Away { retry_at } = guest.dpu else { return };
        let (connection, until) = (guest.connection, guest.until);
        match attached {
            Some(binding) if retry_at <= now => {
                let ticket = self.ticket(object);
                if let Some(guest) = self.guest(object, connection) {
                    guest.dpu = DpuSide::Asked { ticket };
                }
                let request = Request::Connect {
                    object: object.clone(),
                    generation: binding.generation,
                    incarnation: binding.incarnation,
                };
                self.actions
                    .push(Action::Connect(ticket, request, object.clone(), connection));
            }
            _ if until <= now && !device.known => {
                tracing::warn!(%object, "a VMM was sent away: no DPU has served this device yet");
                Self::close_vmm(device, object, &mut self.actions);
            }
            _ => {}
        }
    }
}
