//! The devices that sessions serve: ports and volumes, reached through the worker.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    mpsc::{self, SyncSender},
};

use outboard_engine::{WorkerGone, WorkerHandle};
use outboard_protocol::{
    card_side::{Input, SessionId},
    id::{ObjectKind, ObjectRef},
};
use outboard_ring::{CallFd, RingLog};
use outboard_vhost_user::{BackendChannel, Device, DeviceError, QueueResources};

use crate::{datapath::Datapath, message::Message};

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
    worker: WorkerHandle<Datapath>,
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
        worker: WorkerHandle<Datapath>,
        events: SyncSender<Message>,
        announcer: Announcer,
    ) -> Result<Self, DeviceError> {
        let asked = object.clone();
        let features = worker
            .call(move |datapath, _| {
                datapath.reset(&asked)?;
                datapath.features(&asked)
            })
            .map_err(gone)??;
        Ok(Self {
            object,
            session,
            worker,
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

fn gone(_: WorkerGone) -> DeviceError {
    DeviceError::WorkerGone
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
        let config = self.worker.call(move |datapath, _| datapath.config_space(&object));
        // What is gone reads as zeros, and its session is about to end.
        config.unwrap_or_default()
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<(), DeviceError> {
        let (object, data) = (self.object.clone(), data.to_vec());
        self.worker
            .call(move |datapath, _| datapath.write_config(&object, offset, &data))
            .map_err(gone)?
    }

    fn start_queue(&mut self, index: u16, queue: QueueResources) -> Result<(), DeviceError> {
        let object = self.object.clone();
        self.worker
            .call(move |datapath, io| datapath.start_queue(&object, index, queue, io))
            .map_err(gone)??;
        self.running.push(index);
        if self.running.len() == 1 {
            self.report(Input::RingsLive { session: self.session });
        }
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Result<Option<u32>, DeviceError> {
        let object = self.object.clone();
        let (done, stopped) = mpsc::sync_channel(1);
        // This thread waits for it below.
        let done = Box::new(move |next| {
            let _ = done.send(next);
        });
        self.worker
            .call(move |datapath, io| datapath.stop_queue(&object, index, done, io))
            .map_err(gone)?;
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
        let object = self.object.clone();
        self.worker
            .call(move |datapath, _| datapath.set_call(&object, index, call))
            .map_err(gone)?
    }

    fn set_log(&mut self, index: u16, log: Option<RingLog>) -> Result<(), DeviceError> {
        let object = self.object.clone();
        self.worker
            .call(move |datapath, _| datapath.set_log(&object, index, log))
            .map_err(gone)?
    }

    fn finishes_out_of_order(&self) -> bool {
        !self.is_port()
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        let object = self.object.clone();
        self.worker
            .call(move |datapath, _| datapath.reset(&object))
            .map_err(gone)?
    }

    fn takes_mtu(&self) -> bool {
        self.is_port()
    }

    fn set_mtu(&mut self, mtu: u16) -> Result<(), DeviceError> {
        let object = self.object.clone();
        self.worker
            .call(move |datapath, _| datapath.set_mtu(&object, mtu))
            .map_err(gone)?
    }

    fn set_backend_channel(&mut self, channel: Option<BackendChannel>) {
        self.announcer.set(channel);
    }

    fn closed(&mut self) {
        // Its descriptor must not outlive the session.
        self.announcer.set(None);
    }
}
