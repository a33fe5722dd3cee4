//! Device sessions: one thread each, bounded in number.

use std::{
    collections::BTreeMap,
    io,
    net::Shutdown,
    os::unix::net::UnixStream,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::SyncSender,
};

use outboard_protocol::{
    card_side::{Input, SessionId},
    id::ObjectRef,
};
use outboard_vhost_user::{Device, SessionEnd, serve};

use crate::{
    devices::{Announcer, SessionDevice},
    message::Message,
    workers::Workers,
};

/// An open session, as it is reached from outside its thread.
struct Session {
    object: ObjectRef,
    stream: UnixStream,
    announcer: Announcer,
}

impl Session {
    fn close(&self) {
        // It may be closed by the host already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// The sessions that are open.
pub struct Sessions {
    open: BTreeMap<SessionId, Session>,
    count_max: usize,
    workers: Workers,
    events: SyncSender<Message>,
}

impl Sessions {
    /// No sessions, and at most `count_max` at a time.
    pub fn new(count_max: usize, workers: Workers, events: SyncSender<Message>) -> Self {
        Self {
            open: BTreeMap::new(),
            count_max,
            workers,
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
        let session_of = Session {
            object: object.clone(),
            stream: stream.try_clone()?,
            announcer: Announcer::default(),
        };
        let (workers, events, announcer) = (self.workers.clone(), self.events.clone(), session_of.announcer.clone());
        // Names of threads are cut at 15 bytes.
        let thread = std::thread::Builder::new().name(format!("vhost-{}", session.0));
        thread.spawn(move || {
            if run(&object, session, stream, workers, &events, announcer) {
                let _ = events.send(Message::Datapath(Input::SessionClosed { session }));
            }
        })?;
        self.open.insert(session, session_of);
        Ok(())
    }

    /// Makes a session end; it reports itself once nothing of it is in flight.
    pub fn close(&mut self, session: SessionId) {
        if let Some(session) = self.open.get(&session) {
            session.close();
        }
    }

    /// Makes the session of an object end.
    pub fn close_of(&mut self, object: &ObjectRef) {
        self.of(object).for_each(Session::close);
    }

    /// Makes all sessions end.
    pub fn close_all(&mut self) {
        self.open.values().for_each(Session::close);
    }

    /// Tells whoever has a session of this object that its device's config space changed. Never waits.
    pub fn config_changed(&self, object: &ObjectRef) {
        self.of(object).for_each(|session| session.announcer.config_changed());
    }

    /// Has an object a session?
    pub fn has(&self, object: &ObjectRef) -> bool {
        self.of(object).next().is_some()
    }

    fn of(&self, object: &ObjectRef) -> impl Iterator<Item = &Session> {
        self.open.values().filter(move |session| session.object == *object)
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
    workers: Workers,
    events: &SyncSender<Message>,
    announcer: Announcer,
) -> bool {
    let mut device = match SessionDevice::new(object.clone(), session, workers, events.clone(), announcer) {
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
