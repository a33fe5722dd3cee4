//! A scripted host on the link: it can say anything.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use outboard_protocol::{
    codec::{decode, encode},
    id::{BootEpoch, Generation, Incarnation, ObjectRef, OperationId},
    link::{FromDpu, LINK_MESSAGE_LEN_MAX, NumberedRequest, Reply, Request},
    refusal::{Code, Refusal},
};
use rustix::{
    cmsg_space,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg, socket_with, sockopt,
    },
};

use crate::fixture::PATIENCE;

pub struct Host {
    socket: OwnedFd,
    seq: u64,
    /// Notices that came between answers.
    pub notices: Vec<FromDpu>,
}

/// As told by `Redeemed`.
pub type Binding = (Generation, Incarnation);

impl Host {
    pub fn connect(path: &Path) -> Self {
        Self::try_connect(path).expect("the link listens")
    }

    pub fn try_connect(path: &Path) -> Option<Self> {
        let kind = SocketType::SEQPACKET;
        let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).expect("a socket");
        connect(&socket, &SocketAddrUnix::new(path).expect("a path")).ok()?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE)).expect("a timeout");
        Some(Self {
            socket,
            seq: 0,
            notices: vec![],
        })
    }

    pub fn greeted(path: &Path) -> Self {
        let mut host = Self::connect(path);
        let reply = host.ask(hello(1), &[]);
        assert!(matches!(reply, Some(Reply::Welcome { version: 1, .. })), "{reply:?}");
        host
    }

    /// Sends any bytes with any descriptors.
    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> rustix::io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(32))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        sendmsg(
            &self.socket,
            &[IoSlice::new(bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
    }

    /// The next packet; none if the DPU closed the connection.
    pub fn receive(&self) -> Option<FromDpu> {
        let mut bytes = [0; LINK_MESSAGE_LEN_MAX];
        let mut ancillary = RecvAncillaryBuffer::new(&mut []);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags);
        match received.map(|r| r.bytes) {
            Ok(0) | Err(rustix::io::Errno::CONNRESET) => None,
            Ok(len) => Some(decode(&bytes[..len], LINK_MESSAGE_LEN_MAX).expect("the DPU speaks the protocol")),
            Err(e) => panic!("the DPU does not answer: {e}"),
        }
    }

    /// Asks and waits for the answer; none if the DPU closed the connection.
    pub fn ask(&mut self, request: Request, descriptors: &[BorrowedFd<'_>]) -> Option<Reply> {
        self.seq += 1;
        self.send(&encode(&NumberedRequest { seq: self.seq, request }), descriptors)
            .ok()?;
        loop {
            match self.receive()? {
                FromDpu::Reply { seq, reply } => {
                    assert_eq!(seq, self.seq, "answers come in order");
                    return Some(reply);
                }
                notice => self.notices.push(notice),
            }
        }
    }

    pub fn redeem(&mut self, object: &ObjectRef) -> Result<Binding, Refusal> {
        let operation = OperationId(uuid::Uuid::new_v4());
        match self.ask(
            Request::Redeem {
                operation,
                object: object.clone(),
            },
            &[],
        ) {
            Some(Reply::Redeemed {
                generation,
                incarnation,
            }) => Ok((generation, incarnation)),
            Some(Reply::Refused { refusal }) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    /// Redeems an object that is granted, as soon as it is prepared.
    pub fn attach(&mut self, object: &ObjectRef) -> Binding {
        crate::fixture::eventually("the object is prepared", || match self.redeem(object) {
            Ok(binding) => Some(binding),
            Err(refusal) => {
                assert!(
                    matches!(refusal.code, Code::Unavailable | Code::NotGranted | Code::Busy),
                    "{refusal}"
                );
                None
            }
        })
    }

    pub fn connect_device(&mut self, object: &ObjectRef, binding: Binding) -> Result<UnixStream, Refusal> {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let (generation, incarnation) = binding;
        let request = Request::Connect {
            object: object.clone(),
            generation,
            incarnation,
        };
        match self.ask(request, &[theirs.as_fd()]) {
            Some(Reply::Connected) => Ok(ours),
            Some(Reply::Refused { refusal }) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    /// Attaches an object and opens its device, once it is set up: after a restart it is attached before that.
    pub fn open(&mut self, object: &ObjectRef) -> UnixStream {
        let binding = self.attach(object);
        crate::fixture::eventually("the device is set up", || match self.connect_device(object, binding) {
            Ok(device) => Some(device),
            Err(refusal) => {
                assert_eq!(refusal.code, Code::Busy, "{refusal}");
                None
            }
        })
    }

    pub fn release(&mut self, object: &ObjectRef, generation: Generation) -> Option<Reply> {
        let operation = OperationId(uuid::Uuid::new_v4());
        self.ask(
            Request::Release {
                operation,
                object: object.clone(),
                generation,
            },
            &[],
        )
    }
}

pub fn hello(epoch: u64) -> Request {
    Request::Hello {
        version_min: 1,
        version_max: 1,
        host_epoch: BootEpoch(epoch),
    }
}
