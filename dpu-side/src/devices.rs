//! The devices that sessions serve: ports and volumes, reached through the worker.

use std::sync::mpsc::{self, SyncSender};

use outboard_engine::{WorkerGone, WorkerHandle};
use outboard_protocol::{
    card_side::{Input, SessionId},
    id::{ObjectKind, ObjectRef},
};
use outboard_ring::{CallFd, RingLog};
use outboard_vhost_user::{BackendChannel, Device, DeviceError, QueueResources};

use crate::{datapath::Datapath, message::Message};

/// The device of one session. It reports when its rings run and when they stopped.
pub struct SessionDevice {
    object: ObjectRef,
    session: SessionId,
    worker: WorkerHandle<Datapath>,
    events: SyncSender<Message>,
    features: u64,
    config: Vec<u8>,
    running: Vec<u16>,
}

impl SessionDevice {
    /// The device of `object`, which was set up before.
    pub fn new(
        object: ObjectRef,
        session: SessionId,
        worker: WorkerHandle<Datapath>,
        events: SyncSender<Message>,
    ) -> Result<Self, DeviceError> {
        let (features, config) = match object.kind {
            ObjectKind::Port => (vhost_net_dpu::features::FEATURES, Vec::new()),
            ObjectKind::Volume => {
                let name = object.name.clone();
                let found = worker
                    .call(move |datapath, _| datapath.volume_features(&name))
                    .map_err(gone)?;
                found.ok_or_else(|| DeviceError::NotGranted {
                    object: object.to_string(),
                })?
            }
        };
        Ok(Self {
            object,
            session,
            worker,
            events,
            features,
            config,
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
        self.config.clone()
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<(), DeviceError> {
        // Neither device has a field that a driver writes: virtio-blk's `writeback` comes with a feature not offered.
        Err(DeviceError::ConfigNotWritable {
            offset,
            len: data.len(),
        })
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

    fn stop_queue(&mut self, index: u16) -> Result<Option<u16>, DeviceError> {
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

    fn inflight(&self) -> bool {
        !self.is_port()
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        // All that a driver can change is in its queues, and those were stopped.
        Ok(())
    }

    fn takes_mtu(&self) -> bool {
        false
    }

    fn set_mtu(&mut self, _mtu: u16) -> Result<(), DeviceError> {
        Ok(())
    }

    fn set_backend_channel(&mut self, _channel: Option<BackendChannel>) {
        // The size of a volume does not change while it is attached.
    }

    fn closed(&mut self) {}
}
