//! The DPU's end of the link, as far as a shim can tell: written against the protocol crate and the vhost-user text, not
//! against the shim's own code.

use std::{
    collections::BTreeMap,
    io::{IoSlice, IoSliceMut, Write},
    mem::MaybeUninit,
    net::Shutdown,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

use outboard_protocol::{
    codec,
    id::{BootEpoch, Generation, Incarnation, ObjectRef, OperationId},
    link::{FromDpu, LINK_MESSAGE_LEN_MAX, NumberedRequest, Reply, Request},
    refusal::{Code, Refusal},
};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept, bind, listen, recvmsg, send, sendmsg, shutdown,
    socket_with,
};

pub const VIRTIO_FEATURES: u64 = 1 << 32 | 1 << 30;
/// MQ, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD, CONFIGURE_MEM_SLOTS; and PAGEFAULT, which the shim has to take out.
pub const PROTOCOL_FEATURES: u64 = 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 12 | 1 << 15 | 1 << 8;
/// What the shim asks and says before the VMM has a part in it.
pub const GREETING: [u32; 8] = [1, 15, 16, 3, 17, 36, 24, 21];

/// A vhost-user message that the DPU got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub request: u32,
    pub need_reply: bool,
    pub payload: Vec<u8>,
    pub descriptors: usize,
}

#[derive(Default)]
struct State {
    grants: BTreeMap<String, u64>,
    redeemed: BTreeMap<OperationId, u64>,
    bindings: BTreeMap<String, u64>,
    link: Option<OwnedFd>,
    /// Streams of sessions, by object.
    sessions: BTreeMap<String, UnixStream>,
    sessions_begun: u64,
    seen: Vec<Seen>,
    /// Do not answer this request number.
    mute: Option<u32>,
    /// Answer this request number with an error.
    refuse: Option<u32>,
    /// Close a session's stream instead of answering, after so many more messages.
    close_after: Option<usize>,
    /// Answer nothing on the link.
    link_hangs: bool,
    /// Virtio features that are not offered any more.
    lacks: u64,
    /// The channel on which changes of configuration are told.
    channel: Option<UnixStream>,
    released: Vec<(String, u64)>,
    stopping: bool,
}

pub struct FakeDpu {
    state: Arc<Mutex<State>>,
    listener: Arc<OwnedFd>,
    path: PathBuf,
    threads: Vec<thread::JoinHandle<()>>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap()
}

impl FakeDpu {
    pub fn start(path: &Path) -> Self {
        Self::with_state(path, Arc::default())
    }

    fn with_state(path: &Path, state: Arc<Mutex<State>>) -> Self {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        listen(&socket, 8).unwrap();
        let listener = Arc::new(socket);
        let (inner, sockets) = (state.clone(), listener.clone());
        let accepting = thread::spawn(move || {
            while let Ok(link) = accept(&*sockets) {
                lock(&inner).link = Some(link.try_clone().unwrap());
                serve_link(&inner, &link);
            }
        });
        Self {
            state,
            listener,
            path: path.to_owned(),
            threads: vec![accepting],
        }
    }

    /// Dies, with all streams, and comes back with what it keeps on its disk.
    pub fn restart(mut self, pause: impl FnOnce()) -> Self {
        self.end();
        pause();
        let kept = lock(&self.state);
        let fresh = State {
            grants: kept.grants.clone(),
            redeemed: kept.redeemed.clone(),
            bindings: kept.bindings.clone(),
            ..State::default()
        };
        drop(kept);
        Self::with_state(&self.path, Arc::new(Mutex::new(fresh)))
    }

    /// Comes back without the grant of one port.
    pub fn restart_without(self, name: &str) -> Self {
        lock(&self.state).grants.remove(name);
        self.restart(|| ())
    }

    fn end(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        let mut state = lock(&self.state);
        state.stopping = true;
        if let Some(link) = state.link.take() {
            let _ = shutdown(&link, rustix::net::Shutdown::Both);
        }
        for stream in std::mem::take(&mut state.sessions).into_values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(state);
        let _ = shutdown(&*self.listener, rustix::net::Shutdown::Both);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }

    pub fn grant(&self, name: &str) {
        let mut state = lock(&self.state);
        let generation = state
            .grants
            .get(name)
            .copied()
            .unwrap_or(0)
            .max(state.bindings.get(name).copied().unwrap_or(0));
        state.grants.insert(name.to_owned(), generation + 1);
    }

    /// Takes the grant back: ends the session, then says so, as the DPU does.
    pub fn revoke(&self, name: &str) {
        let mut state = lock(&self.state);
        state.grants.remove(name);
        state.redeemed.clear();
        if let Some(stream) = state.sessions.remove(name) {
            stream.shutdown(Shutdown::Both).unwrap();
        }
        let generation = Generation(state.bindings.get(name).copied().unwrap_or(0));
        let message = FromDpu::Revoked {
            object: port(name),
            generation,
        };
        send(
            state.link.as_ref().unwrap(),
            &codec::encode(&message),
            SendFlags::NOSIGNAL,
        )
        .unwrap();
    }

    /// Ends a session from the DPU's side.
    pub fn close_session(&self, name: &str) {
        let stream = lock(&self.state).sessions.remove(name).unwrap();
        stream.shutdown(Shutdown::Both).unwrap();
    }

    /// Says something unasked on a session's stream.
    pub fn blurt(&self, name: &str, bytes: &[u8]) {
        (&lock(&self.state).sessions[name]).write_all(bytes).unwrap();
    }

    pub fn mute(&self, request: u32) {
        lock(&self.state).mute = Some(request);
    }

    pub fn unmute(&self) {
        lock(&self.state).mute = None;
    }

    /// Goes on taking requests on the link and on sessions, and answers none.
    pub fn hang(&self) {
        lock(&self.state).link_hangs = true;
    }

    /// Closes a session's stream in place of an answer, after this many more.
    pub fn close_after(&self, messages: usize) {
        lock(&self.state).close_after = Some(messages);
    }

    /// Offers less from the next session on.
    pub fn lack(&self, features: u64) {
        lock(&self.state).lacks = features;
    }

    /// Says that the configuration has changed.
    pub fn say_config_changed(&self) {
        let channel = lock(&self.state).channel.as_ref().unwrap().try_clone().unwrap();
        let message: Vec<u8> = [2_u32, 1, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
        (&channel).write_all(&message).unwrap();
    }

    pub fn refuse(&self, request: u32) {
        lock(&self.state).refuse = Some(request);
    }

    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.state).seen.clone()
    }

    pub fn sessions(&self) -> usize {
        lock(&self.state).sessions.len()
    }

    pub fn sessions_begun(&self) -> u64 {
        lock(&self.state).sessions_begun
    }

    pub fn released(&self) -> Vec<(String, u64)> {
        lock(&self.state).released.clone()
    }
}

impl Drop for FakeDpu {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.end();
        }
    }
}

fn port(name: &str) -> ObjectRef {
    ObjectRef {
        kind: outboard_protocol::id::ObjectKind::Port,
        name: name.parse().unwrap(),
    }
}

/// One packet or part of a stream, with descriptors; none at the end.
fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Option<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(buffer)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .ok()?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    (received.bytes > 0).then_some((received.bytes, descriptors))
}

fn serve_link(state: &Arc<Mutex<State>>, link: &OwnedFd) {
    let mut packet = [0; LINK_MESSAGE_LEN_MAX];
    while let Some((len, descriptors)) = receive(link, &mut packet) {
        let NumberedRequest { seq, request } = codec::decode(&packet[..len], LINK_MESSAGE_LEN_MAX).unwrap();
        let reply = answer(state, request, descriptors);
        if lock(state).link_hangs {
            continue;
        }
        let message = codec::encode(&FromDpu::Reply { seq, reply });
        if send(link, &message, SendFlags::NOSIGNAL).is_err() {
            return;
        }
    }
}

fn refused(code: Code) -> Reply {
    Reply::Refused {
        refusal: Refusal {
            code,
            text: format!("refused: {code:?}"),
        },
    }
}

fn answer(state: &Arc<Mutex<State>>, request: Request, mut descriptors: Vec<OwnedFd>) -> Reply {
    let mut held = lock(state);
    assert_eq!(
        descriptors.len(),
        usize::from(matches!(request, Request::Connect { .. }))
    );
    match request {
        Request::Hello { .. } => Reply::Welcome {
            version: 1,
            card: "local".parse().unwrap(),
            dpu_epoch: BootEpoch(1),
        },
        Request::Ping => Reply::Pong,
        Request::Redeem { operation, object } => {
            let name = object.name.as_str().to_owned();
            let redeemed = |generation| Reply::Redeemed {
                generation: Generation(generation),
                incarnation: Incarnation(1),
            };
            if let Some(generation) = held.redeemed.get(&operation) {
                return redeemed(*generation);
            }
            match held.grants.get(&name).copied() {
                None => refused(Code::NotGranted),
                Some(generation) => {
                    held.redeemed.insert(operation, generation);
                    held.bindings.insert(name, generation);
                    redeemed(generation)
                }
            }
        }
        Request::Connect { object, generation, .. } => {
            let name = object.name.as_str().to_owned();
            if held.grants.get(&name) != Some(&generation.0) {
                return refused(Code::NotGranted);
            }
            if held.sessions.contains_key(&name) {
                return refused(Code::Busy);
            }
            let stream = UnixStream::from(descriptors.remove(0));
            held.sessions.insert(name.clone(), stream.try_clone().unwrap());
            held.sessions_begun += 1;
            let state = state.clone();
            thread::spawn(move || {
                serve_device(&state, &stream);
                lock(&state).sessions.remove(&name);
            });
            Reply::Connected
        }
        Request::Release { object, generation, .. } => {
            let name = object.name.as_str().to_owned();
            held.released.push((name.clone(), generation.0));
            held.redeemed.retain(|_, redeemed| *redeemed != generation.0);
            drop(held);
            FakeDpu::regrant(state, &name);
            Reply::Released
        }
    }
}

impl FakeDpu {
    /// While the grant stands, a released object may be redeemed again, under the next generation.
    fn regrant(state: &Mutex<State>, name: &str) {
        if let Some(generation) = lock(state).grants.get_mut(name) {
            *generation += 1;
        }
    }
}

fn serve_device(state: &Mutex<State>, stream: &UnixStream) {
    let mut acks = false;
    while let Some((header, mut descriptors)) = receive_exact(stream, 12) {
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let (request, flags, size) = (word(0), word(4), word(8) as usize);
        let payload = match size {
            0 => Vec::new(),
            _ => match receive_exact(stream, size) {
                Some((payload, _)) => payload,
                None => return,
            },
        };
        let need_reply = flags & 8 != 0;
        let (muted, refuse, lacks) = {
            let mut held = lock(state);
            match held.close_after {
                Some(0) => {
                    held.close_after = None;
                    return drop(stream.shutdown(Shutdown::Both));
                }
                Some(left) => held.close_after = Some(left - 1),
                None => {}
            }
            let seen = Seen {
                request,
                need_reply,
                payload: payload.clone(),
                descriptors: descriptors.len(),
            };
            held.seen.push(seen);
            if request == 21 {
                held.channel = descriptors.pop().map(UnixStream::from);
            }
            let muted = held.mute == Some(request) || held.link_hangs;
            (muted, held.refuse == Some(request), held.lacks)
        };
        if muted {
            continue;
        }
        let (answer, descriptor) = match request {
            1 => (Some((VIRTIO_FEATURES & !lacks).to_le_bytes().to_vec()), None),
            15 => (Some(PROTOCOL_FEATURES.to_le_bytes().to_vec()), None),
            17 | 36 => (Some(2_u64.to_le_bytes().to_vec()), None),
            11 | 24 => (Some(payload.clone()), None),
            16 => {
                acks = payload[0] & 8 != 0;
                (None, None)
            }
            _ if need_reply && acks => (Some(u64::from(refuse).to_le_bytes().to_vec()), None),
            _ => (None, None),
        };
        if let Some(answer) = answer
            && !send_answer(stream, request, &answer, descriptor)
        {
            return;
        }
    }
}

fn send_answer(stream: &UnixStream, request: u32, payload: &[u8], descriptor: Option<OwnedFd>) -> bool {
    let size = u32::try_from(payload.len()).unwrap();
    let head: Vec<u8> = [request, 5, size].iter().flat_map(|word| word.to_le_bytes()).collect();
    let borrowed: Vec<_> = descriptor.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(borrowed.is_empty() || control.push(SendAncillaryMessage::ScmRights(&borrowed)));
    sendmsg(
        stream,
        &[IoSlice::new(&head), IoSlice::new(payload)],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .is_ok()
}

fn receive_exact(stream: &UnixStream, len: usize) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; len];
    let (mut have, mut descriptors) = (0, Vec::new());
    while have < len {
        let (got, more) = receive(stream, &mut bytes[have..])?;
        have += got;
        descriptors.extend(more);
    }
    Some((bytes, descriptors))
}
