//! A guest's port: its session, its memory, and its two queues.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    args::{Mode, NetArgs, Notify},
    error::Error,
    features::{
        EVENT_IDX, IN_ORDER, INDIRECT_DESC, NET_CSUM, NET_GUEST_CSUM, NET_GUEST_TSO4, NET_HOST_TSO4, NET_MRG_RXBUF,
        PROTOCOL_MQ, VERSION_1,
    },
    net::{
        frames::Frames,
        queue::{FRAME_LEN_MAX, HEADER_LEN, Rx, Tx, memory_len, rx_room},
    },
    raw::Memory,
    ring::{Ring, RingFault, Space, wait},
    session::{Session, Wanted},
};

/// Index of the receive queue.
pub const RX_QUEUE: u16 = 0;
/// Index of the transmit queue.
pub const TX_QUEUE: u16 = 1;
/// Transmit buffers of 64 KiB each.
const TSO_TX_COUNT: u16 = 64;

/// A port.
#[derive(Debug)]
pub struct Port {
    /// None if the other side is in this process.
    session: Option<Session>,
    path: PathBuf,
    features: u64,
    protocol_features: u64,
    /// Its receive queue.
    pub rx: Rx,
    /// Its transmit queue.
    pub tx: Tx,
}

impl Port {
    /// Negotiates and starts both queues. `sends`: the frames it will send.
    ///
    /// # Errors
    /// The back-end refuses.
    pub fn start(mut session: Session, args: &NetArgs, sends: &Frames) -> Result<Self, Error> {
        session.negotiate(wanted(args))?;
        let (space, rx, tx) = queues(args, session.features(), sends)?;
        session.set_memory(space.memory())?;
        session.start_queue(RX_QUEUE, &rx.ring)?;
        session.start_queue(TX_QUEUE, &tx.ring)?;
        session.settle()?;
        // What was made available before the device ran.
        rx.ring.notify(args.queue_size);
        Ok(Self {
            path: session.path().to_owned(),
            features: session.features(),
            protocol_features: session.protocol_features(),
            session: Some(session),
            rx,
            tx,
        })
    }

    /// A port whose other side is in this process.
    ///
    /// # Errors
    /// No memory, or no eventfds.
    pub fn inside(args: &NetArgs, features: u64, sends: &Frames) -> Result<Self, Error> {
        let (_, rx, tx) = queues(args, features, sends)?;
        Ok(Self {
            session: None,
            path: "this process".into(),
            features,
            protocol_features: 0,
            rx,
            tx,
        })
    }

    /// Its socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Virtio features and protocol features negotiated.
    pub fn features(&self) -> (u64, u64) {
        (self.features, self.protocol_features)
    }

    /// What the device did to a queue, as an error.
    #[cold]
    pub fn fault(&self, queue: u16, fault: RingFault) -> Error {
        Error::Ring {
            path: self.path.clone(),
            queue,
            what: fault.to_string(),
        }
    }

    /// Stops both queues, as a guest that shuts down does.
    ///
    /// # Errors
    /// The back-end does not answer.
    pub fn close(self) -> Result<(), Error> {
        if let Some(session) = &self.session {
            session.stop_queue(TX_QUEUE)?;
            session.stop_queue(RX_QUEUE)?;
        }
        Ok(())
    }
}

/// Both queues in a memory of their own.
fn queues(args: &NetArgs, negotiated: u64, sends: &Frames) -> Result<(Space, Rx, Tx), Error> {
    let tso = args.mode == Mode::Tso;
    let frame_len = if tso { FRAME_LEN_MAX } else { sends.len.max(60) };
    let rx = (args.queue_size, rx_room(negotiated, frame_len));
    let tx = (
        if tso {
            TSO_TX_COUNT.min(args.queue_size)
        } else {
            args.queue_size
        },
        HEADER_LEN + frame_len,
    );
    let memory = guest_memory(memory_len(rx, tx), args.common.hugepages)?;
    let mut space = Space::new(memory);
    let eventfds = |source| Error::system("making eventfds", source);
    let rx = Rx::new(&mut space, rx, negotiated, sends).map_err(eventfds)?;
    let tx = Tx::new(&mut space, tx, negotiated, sends).map_err(eventfds)?;
    Ok((space, rx, tx))
}

/// Memory for a guest.
pub(crate) fn guest_memory(len: usize, huge: bool) -> Result<std::sync::Arc<Memory>, Error> {
    let remedy = if huge {
        "raise vm.nr_hugepages, or leave --hugepages out"
    } else {
        "free some"
    };
    Memory::new(len, huge).map_err(|source| Error::Memory { len, source, remedy })
}

fn wanted(args: &NetArgs) -> Wanted {
    let (mut needed, mut remedy) = (VERSION_1, "this driver is none of before virtio 1.0");
    if args.mode == Mode::Tso {
        needed |= NET_CSUM | NET_GUEST_CSUM | NET_HOST_TSO4 | NET_GUEST_TSO4;
        remedy = "let the back-end offer segmentation (net_vhost: tso=1), or choose another mode";
    }
    let sleeps = if args.notify == Notify::Eventfd { EVENT_IDX } else { 0 };
    Wanted {
        needed,
        liked: NET_MRG_RXBUF | INDIRECT_DESC | IN_ORDER | sleeps,
        protocol: PROTOCOL_MQ,
        remedy,
    }
}

/// Sleeps until a device calls, at most `limit`. Not at all if anything is waiting.
///
/// # Errors
/// A device broke its ring.
pub fn sleep(ports: &[Port; 2], limit: Duration) -> Result<(), Error> {
    let mut idle = true;
    for port in ports {
        idle &= port.rx.ring.arm().map_err(|fault| port.fault(RX_QUEUE, fault))?;
        idle &= port.tx.ring.arm().map_err(|fault| port.fault(TX_QUEUE, fault))?;
    }
    if idle {
        let [a, b] = ports;
        wait(
            [&a.rx.ring, &a.tx.ring, &b.rx.ring, &b.tx.ring].map(Ring::call_fd),
            limit,
        );
    }
    for port in ports {
        port.rx.ring.disarm();
        port.tx.ring.disarm();
    }
    Ok(())
}
