//! The back-end's side of vhost-user sessions whose front-end is hostile.
//!
//! [`serve`] runs one session of one [`Device`] over a stream. The front-end, and whatever passes its messages on, may
//! send anything: every message is bounded and parsed before it does anything, every index and state is checked, and
//! whatever breaks the protocol ends this one session with a [`SessionError`] that says what it was. A front-end that
//! stalls holds up its own thread only, and a shutdown of a clone of the stream ends it.
//!
//! Queues start when features, memory, size, addresses and a kick descriptor are there and they are enabled. A changed
//! memory table stops the queues that run, and they go on where they were over the new one. Dirty logging is turned on
//! and off, and moved to another log, under queues that run.
//!
//! A device that finishes requests out of order has its front-end keep a region in which each ring notes what is in
//! flight. A ring that starts with such notes goes on where they say, whatever SET_VRING_BASE said;
//! unless that follows on GET_VRING_BASE and names another index, as after a reset of the driver: then nothing is in
//! flight.
//!
//! The `vhost` crate supplies the protocol's numbers. Its request handler is not used: it retries without end when
//! the peer, which may share our end of the stream, sets O_NONBLOCK on it; it cannot take a message that comes in
//! pieces; and it refuses SET_VRING_ENABLE before SET_FEATURES, which QEMU sends for network devices.
//!
//! # What it doesn't implement
//!
//! Post-copy, device state transfer, RARP and STATUS messages, logs without a descriptor: none is offered, and each ends
//! the session. The back-end's own channel says only that config space changed. Queues cannot be polled in place of a
//! kick descriptor.
#![forbid(unsafe_code)]

mod backend;
mod device;
mod error;
mod frame;
mod queue;
mod request;
mod session;

use std::os::{fd::AsFd, unix::net::UnixStream};

pub use backend::{BackendChannel, NoChannel};
pub use device::{Device, DeviceError, QueueResources};
pub use error::{SessionEnd, SessionError};

use frame::{Connection, Frame};
use request::Request;
use session::{Reply, Session};
use vhost::vhost_user::message::FrontendReq;

/// Serve a session. Blocks until the peer closes the stream or breaks the protocol; all queues are stopped when it
/// returns. To end it from another thread, keep a clone of the stream and shut that down.
pub fn serve(stream: UnixStream, device: &mut dyn Device) -> SessionEnd {
    let connection = Connection::new(stream);
    let mut session = Session::new(device);
    let end = loop {
        match step(&connection, &mut session) {
            Ok(true) => {}
            Ok(false) => break SessionEnd::Closed,
            Err(error) => break SessionEnd::Failed(error),
        }
    };
    session.close();
    end
}

/// One request and its reply. False when the stream was closed.
fn step(connection: &Connection, session: &mut Session) -> Result<bool, SessionError> {
    let Some(frame) = connection.receive()? else {
        return Ok(false);
    };
    let (request, need_reply) = (frame.request, frame.need_reply);
    let result = handle(session, frame);
    match &result {
        Ok(Reply::Payload(payload)) => connection.reply(request, payload)?,
        Ok(Reply::WithFile(payload, file)) => connection.reply_with(request, payload, Some(file.as_fd()))?,
        _ if !(need_reply && session.reply_ack()) => {}
        Ok(Reply::Ack) => connection.reply(request, &0u64.to_ne_bytes())?,
        Ok(Reply::Refused) => connection.reply(request, &1u64.to_ne_bytes())?,
        Err(_) => {
            // The session ends for a better reason than that this could not be said.
            let _unsaid = connection.reply(request, &1u64.to_ne_bytes());
        }
    }
    result.map(|_| true)
}

fn handle(session: &mut Session, frame: Frame) -> Result<Reply, SessionError> {
    let kind = FrontendReq::try_from(frame.request).map_err(|()| SessionError::Unknown { request: frame.request })?;
    tracing::trace!(request = ?kind, "vhost-user request");
    session.handle(kind, Request::parse(kind, frame)?)
}
