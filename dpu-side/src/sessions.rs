//! Device sessions: one thread each, bounded in number.

use std::{
    collections::BTreeMap,
    io,
    net::Shutdown,
    os::unix::net::UnixStream,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::SyncSender,
};

use outboard_engine::WorkerHandle;
use outboard_protocol::{
    card_side::{Input, SessionId},
    id::ObjectRef,
};
use outboard_vhost_user::{Device, SessionEnd, serve};

use crate::{datapath::Datapath, devices::SessionDevice, message::Message};

/// The sessions that are open.
pub struct Sessions {
    open: BTreeMap<SessionId, (ObjectRef, UnixStream)>,
    count_max: usize,
    worker: WorkerHandle<Datapath>,
    events: SyncSender<Message>,
}

impl Sessions {
    /// No sessions, and at most `count_max` at a time.
    pub fn new(count_max: usize, worker: WorkerHandle<Datapath>, events: SyncSender<Message>) -> Self {
        Self {
            open: BTreeMap::new(),
            count_max,
            worker,
            events,
        }
    }

    /// Is there no room for another one?
    pub fn is_full(&self) -> bool {
        self.open.len() >= self.count_max
    }

    /// Are all sessions over?
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Serves vhost-user for `object` on `stream`, on a thread of its own that reports when the session is over.
    pub fn open(&mut self, object: ObjectRef, session: SessionId, stream: UnixStream) -> io::Result<()> {
        let ours = stream.try_clone()?;
        let (worker, events) = (self.worker.clone(), self.events.clone());
        let served = object.clone();
        // Names of threads are cut at 15 bytes.
        let thread = std::thread::Builder::new().name(format!("vhost-{}", session.0));
        thread.spawn(move || {
            if run(&served, session, stream, worker, &events) {
                let _ = events.send(Message::Datapath(Input::SessionClosed { session }));
            }
        })?;
        self.open.insert(session, (object, ours));
        Ok(())
    }

    /// Makes a session end; it reports itself once nothing of it is in flight.
    pub fn close(&mut self, session: SessionId) {
        if let Some((_, stream)) = self.open.get(&session) {
            // It may be closed by the host already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Makes the session of an object end.
    pub fn close_of(&mut self, object: &ObjectRef) {
        let of_object = self.open.values().filter(|(o, _)| o == object);
        of_object.for_each(|(_, stream)| drop(stream.shutdown(Shutdown::Both)));
    }

    /// Makes all sessions end.
    pub fn close_all(&mut self) {
        self.open
            .values()
            .for_each(|(_, stream)| drop(stream.shutdown(Shutdown::Both)));
    }

    /// A session has reported its end.
    pub fn closed(&mut self, session: SessionId) {
        self.open.remove(&session);
    }
}

/// True when nothing of the session is in flight any more.
fn run(
    object: &ObjectRef,
    session: SessionId,
    stream: UnixStream,
    worker: WorkerHandle<Datapath>,
    events: &SyncSender<Message>,
) -> bool {
    let mut device = match SessionDevice::new(object.clone(), session, worker, events.clone()) {
        Ok(device) => device,
        Err(e) => {
            tracing::warn!("{object}: no session: {e}");
            return true;
        }
    };
    match catch_unwind(AssertUnwindSafe(|| serve(stream, &mut device))) {
        Ok(SessionEnd::Closed) => tracing::info!("{object}: the session was closed"),
        Ok(SessionEnd::Failed(e)) => tracing::warn!("{object}: the session was ended: {e}"),
        Err(_) => {
            tracing::error!("{object}: the session's thread failed; report this");
            // Its queues may still run. If they cannot be stopped, the binding is not drained, and is quarantined.
            return (0..device.queue_count()).all(|index| device.stop_queue(index).is_ok());
        }
    }
    true
}
