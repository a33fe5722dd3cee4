//! The devices that sessions serve: ports and volumes, reached through the workers.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    mpsc::{self, SyncSender},
};

use outboard_protocol::{
    card_side::{Input, SessionId},
    id::{ObjectKind, ObjectRef},
};
use outboard_ring::{CallFd, RingLog};
use outboard_vhost_user::{BackendChannel, Device, DeviceError, QueueResources};

use crate::{message::Message, workers::Workers};

/// Where a session's device leaves the channel on which its front-end hears of changes, for others to use.
#[derive(Debug, Clone, Default)]
pub struct Announcer(Arc<Mutex<Option<BackendChannel>>>);

impl Announcer {
    /// Tells the front-end that the device's config space changed. Never waits; a front-end without a channel finds out
    /// when it reads it again.
    pub fn config_changed(&self) {
        if let Some(channel) = &*self.lock() {
            channel.config_changed();
        }
    }

    fn set(&self, channel: Option<BackendChannel>) {
        *self.lock() = channel;
    }

    fn lock(&self) -> MutexGuard<'_, Option<BackendChannel>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The device of one session. It reports when its rings run and when they stopped.
pub struct SessionDevice {
    object: ObjectRef,
    session: SessionId,
    workers: Workers,
    events: SyncSender<Message>,
    announcer: Announcer,
    features: u64,
    running: Vec<u16>,
}

impl SessionDevice {
    /// The device of `object`, which was set up before, as it is when a session begins.
    pub fn new(
        object: ObjectRef,
        session: SessionId,
        workers: Workers,
        events: SyncSender<Message>,
        announcer: Announcer,
    ) -> Result<Self, DeviceError> {
        let asked = object.clone();
        let features = workers.on_device(&object, move |datapath| {
            datapath.reset(&asked)?;
            datapath.features(&asked)
        })?;
        Ok(Self {
            object,
            session,
            workers,
            events,
            announcer,
            features,
            running: Vec::new(),
        })
    }

    fn is_port(&self) -> bool {
        self.object.kind == ObjectKind::Port
    }

    fn report(&self, input: Input) {
        // The enforcement ends only with the process.
        let _ = self.events.send(Message::Datapath(input));
    }
}

impl Device for SessionDevice {
    fn features(&self) -> u64 {
        self.features
    }

    fn has_config(&self) -> bool {
        !self.is_port()
    }

    fn queue_count(&self) -> u16 {
        if self.is_port() {
            vhost_net_dpu::QUEUE_COUNT
        } else {
            vhost_blk_dpu::QUEUE_COUNT
        }
    }

    fn queue_size_max(&self) -> u16 {
        if self.is_port() {
            vhost_net_dpu::QUEUE_SIZE_MAX
        } else {
            vhost_blk_dpu::QUEUE_SIZE_MAX
        }
    }

    fn config(&self) -> Vec<u8> {
        let object = self.object.clone();
        let config = self
            .workers
            .on_device(&self.object, move |datapath| Ok(datapath.config_space(&object)));
        // What is gone reads as zeros, and its session is about to end.
        config.unwrap_or_default()
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<(), DeviceError> {
        let (object, data) = (self.object.clone(), data.to_vec());
        self.workers.on_device(&self.object, move |datapath| {
            datapath.write_config(&object, offset, &data)
        })
    }

    fn start_queue(&mut self, index: u16, queue: QueueResources) -> Result<(), DeviceError> {
        self.workers.start_queue(&self.object, index, queue)?;
        self.running.push(index);
        if self.running.len() == 1 {
            self.report(Input::RingsLive { session: self.session });
        }
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Result<Option<u32>, DeviceError> {
        let (done, stopped) = mpsc::sync_channel(1);
        // This thread waits for it below.
        let done = Box::new(move |next| {
            let _ = done.send(next);
        });
        self.workers
            .stop_queue(&self.object, index, done)
            .map_err(|_| DeviceError::WorkerGone)?;
        // As long as it takes: answering earlier would let the host unmap memory that the kernel still writes to.
        let next = stopped.recv().map_err(|_| DeviceError::WorkerGone)?;
        let was_running = !self.running.is_empty();
        self.running.retain(|i| *i != index);
        if was_running && self.running.is_empty() {
            self.report(Input::RingsStopped { session: self.session });
        }
        Ok(next)
    }

    fn set_call(&mut self, index: u16, call: Option<CallFd>) -> Result<(), DeviceError> {
        self.workers.set_call(&self.object, index, call)
    }

    fn set_log(&mut self, index: u16, log: Option<RingLog>) -> Result<(), DeviceError> {
        self.workers.set_log(&self.object, index, log)
    }

    fn finishes_out_of_order(&self) -> bool {
        !self.is_port()
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        let object = self.object.clone();
        self.workers
            .on_device(&self.object, move |datapath| datapath.reset(&object))
    }

    fn takes_mtu(&self) -> bool {
        self.is_port()
    }

    fn set_mtu(&mut self, mtu: u16) -> Result<(), DeviceError> {
        let object = self.object.clone();
        self.workers
            .on_device(&self.object, move |datapath| datapath.set_mtu(&object, mtu))
    }

    fn set_backend_channel(&mut self, channel: Option<BackendChannel>) {
        self.announcer.set(channel);
    }

    fn closed(&mut self) {
        // Its descriptor must not outlive the session.
        self.announcer.set(None);
    }
}
