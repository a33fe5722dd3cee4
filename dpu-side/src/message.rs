//! What happens to the DPU, on its way to the one thread that decides.

use std::{
    os::unix::net::UnixStream,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
};

use outboard_protocol::{card_side::Input, id::ObjectRef, link::Reply};

use crate::{inquiry::ObjectInquiry, opener::Done};

/// Messages that may wait; a sender beyond that waits itself.
pub const MESSAGES_MAX: usize = 1024;

/// What happens to the DPU.
pub enum Message {
    /// From the broker's channel.
    Broker(Input),
    /// A host's request, with the socket that came along, and where the answer goes.
    Host {
        /// The request.
        input: Input,
        /// For [`Input::Connect`].
        stream: Option<UnixStream>,
        /// Gets exactly one answer.
        reply: SyncSender<Reply>,
    },
    /// From a session.
    Datapath(Input),
    /// A volume was opened, or was not, or closed.
    Volume(Box<Done>),
    /// A host made a guest's call descriptor block.
    CallBroken {
        /// The device.
        object: ObjectRef,
        /// Its queue.
        queue: u16,
    },
    /// An operator asks about an object.
    Inquiry(Box<ObjectInquiry>),
    /// Close all sessions and end.
    Stop,
}

/// The channel to the enforcement.
pub fn channel() -> (SyncSender<Message>, Receiver<Message>) {
    sync_channel(MESSAGES_MAX)
}
