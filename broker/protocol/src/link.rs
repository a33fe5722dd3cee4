//! Messages between host shim and DPU over the direct link: a unix `SOCK_SEQPACKET`, one message per packet.
//!
//! Everything here is written by an untrusted host: the DPU accepts nothing else from it but these messages and the
//! vhost-user messages on the stream sockets that [`Request::Connect`] brings along.

use minicbor::{Decode, Encode};

use crate::{
    id::{BootEpoch, Generation, Incarnation, Name, ObjectRef, OperationId},
    refusal::Refusal,
};

/// Largest packet on the link, in bytes.
pub const LINK_MESSAGE_LEN_MAX: usize = 4096;

/// Versions of the link protocol that this code speaks: lowest and highest.
pub const LINK_VERSIONS: (u16, u16) = (1, 1);

/// From the shim. Each is answered by exactly one [`Reply`] with the same `seq`, in order.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Request {
    /// First message of a connection.
    #[n(0)]
    Hello {
        /// Lowest version spoken.
        #[n(0)]
        version_min: u16,
        /// Highest version spoken.
        #[n(1)]
        version_max: u16,
        /// The host's boot epoch; a lower one than seen before is refused.
        #[n(2)]
        host_epoch: BootEpoch,
    },
    /// Redeem the grant of an object: `Prepared → Attached`. Repeating it with the same operation id returns the same answer.
    #[n(1)]
    Redeem {
        /// Names this mutation.
        #[n(0)]
        operation: OperationId,
        /// What to redeem.
        #[n(1)]
        object: ObjectRef,
    },
    /// Open the device of an attached object. Carries one descriptor: a unix stream socket on which the DPU serves
    /// vhost-user until the peer closes it.
    #[n(2)]
    Connect {
        /// The attached object.
        #[n(0)]
        object: ObjectRef,
        /// As told by [`Reply::Redeemed`].
        #[n(1)]
        generation: Generation,
        /// As told by [`Reply::Redeemed`].
        #[n(2)]
        incarnation: Incarnation,
    },
    /// Give an object back: the binding drains and is released.
    #[n(3)]
    Release {
        /// Names this mutation.
        #[n(0)]
        operation: OperationId,
        /// What to give back.
        #[n(1)]
        object: ObjectRef,
        /// Which binding of it; releasing an old one changes nothing.
        #[n(2)]
        generation: Generation,
    },
    /// Is the DPU there?
    #[n(4)]
    Ping,
}

/// From the DPU, in answer.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Reply {
    /// To [`Request::Hello`].
    #[n(0)]
    Welcome {
        /// The version spoken from here on.
        #[n(0)]
        version: u16,
        /// The card's name.
        #[n(1)]
        card: Name,
        /// The DPU's boot epoch.
        #[n(2)]
        dpu_epoch: BootEpoch,
    },
    /// To [`Request::Redeem`].
    #[n(1)]
    Redeemed {
        /// The binding's generation.
        #[n(0)]
        generation: Generation,
        /// The function's incarnation.
        #[n(1)]
        incarnation: Incarnation,
    },
    /// To [`Request::Connect`].
    #[n(2)]
    Connected,
    /// To [`Request::Release`].
    #[n(3)]
    Released,
    /// To [`Request::Ping`].
    #[n(4)]
    Pong,
    /// To any request.
    #[n(5)]
    Refused {
        /// Why.
        #[n(0)]
        refusal: Refusal,
    },
}

/// A request with its number.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct NumberedRequest {
    /// Chosen by the shim, rising.
    #[n(0)]
    pub seq: u64,
    /// The request.
    #[n(1)]
    pub request: Request,
}

/// What the DPU sends: answers, and notices that nobody asked for.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum FromDpu {
    /// An answer.
    #[n(0)]
    Reply {
        /// Number of the request it answers.
        #[n(0)]
        seq: u64,
        /// The answer.
        #[n(1)]
        reply: Reply,
    },
    /// The binding was revoked; its device is silent already.
    #[n(1)]
    Revoked {
        /// The object.
        #[n(0)]
        object: ObjectRef,
        /// The binding that ended.
        #[n(1)]
        generation: Generation,
    },
}
