//! A device that answers each chain with "pong" when the test says so.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use outboard_ring::{CallFd, Chain, RingError, RingLog};
use outboard_vhost_user::{BackendChannel, Device, DeviceError, QueueResources};

pub const QUEUE_COUNT: u16 = 4;
pub const QUEUE_SIZE_MAX: u16 = 256;
/// VERSION_1, INDIRECT_DESC and a bit of the device's own.
pub const FEATURES: u64 = 1 << 32 | 1 << 28 | 1;
/// Packed rings, which are offered too.
pub const PACKED: u64 = 1 << 34;
pub const CONFIG: &[u8] = b"config space";

/// What a test sees of its device.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
pub struct Seen {
    pub running: BTreeMap<u16, QueueResources>,
    /// Each start, stop and change of a call, in order.
    pub events: Vec<String>,
    pub written_config: Vec<(u32, Vec<u8>)>,
    pub channel: Option<BackendChannel>,
    pub closed: bool,
}

impl Log {
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap()
    }

    pub fn events(&self) -> Vec<String> {
        std::mem::take(&mut self.seen().events)
    }

    /// Answer all that is available on a queue. Returns how many chains there were.
    pub fn answer(&self, index: u16) -> Result<usize, RingError> {
        assert!(self.seen().running.contains_key(&index), "the queue runs");
        self.answer_if_running(index)
    }

    /// The same for a queue that may be stopped at the moment.
    pub fn answer_if_running(&self, index: u16) -> Result<usize, RingError> {
        let mut seen = self.seen();
        let Some(queue) = seen.running.get_mut(&index) else {
            return Ok(0);
        };
        let mut chain = Chain::new();
        let mut count = 0;
        while queue.ring.pop(&mut chain)? {
            chain.write_at(queue.ring.memory(), 0, b"pong").unwrap();
            queue.ring.push_used(&chain, 4)?;
            count += 1;
        }
        queue.ring.publish()?;
        Ok(count)
    }
}

pub struct Echo {
    pub log: Log,
    pub has_config: bool,
}

impl Device for Echo {
    fn features(&self) -> u64 {
        FEATURES | PACKED
    }

    fn has_config(&self) -> bool {
        self.has_config
    }

    fn queue_count(&self) -> u16 {
        QUEUE_COUNT
    }

    fn queue_size_max(&self) -> u16 {
        QUEUE_SIZE_MAX
    }

    fn config(&self) -> Vec<u8> {
        CONFIG.to_vec()
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<(), DeviceError> {
        if offset == 0 {
            return Err(DeviceError::ConfigNotWritable {
                offset,
                len: data.len(),
            });
        }
        self.log.seen().written_config.push((offset, data.to_vec()));
        Ok(())
    }

    fn start_queue(&mut self, index: u16, queue: QueueResources) -> Result<(), DeviceError> {
        let mut seen = self.log.seen();
        seen.events.push(format!("start {index} at {}", queue.ring.base()));
        match seen.running.insert(index, queue) {
            None => Ok(()),
            Some(_) => Err(DeviceError::QueueRuns { index }),
        }
    }

    fn stop_queue(&mut self, index: u16) -> Result<Option<u32>, DeviceError> {
        let mut seen = self.log.seen();
        let base = seen.running.remove(&index).map(|queue| queue.ring.base());
        if let Some(base) = base {
            seen.events.push(format!("stop {index} at {base}"));
        }
        Ok(base)
    }

    fn set_call(&mut self, index: u16, call: Option<CallFd>) -> Result<(), DeviceError> {
        let mut seen = self.log.seen();
        seen.events.push(format!("call {index}"));
        let queue = seen
            .running
            .get_mut(&index)
            .ok_or(DeviceError::QueueStopped { index })?;
        queue.call = call;
        Ok(())
    }

    fn set_log(&mut self, index: u16, log: Option<RingLog>) -> Result<(), DeviceError> {
        let mut seen = self.log.seen();
        let event = if log.is_some() { "log" } else { "no log" };
        seen.events.push(format!("{event} {index}"));
        let queue = seen
            .running
            .get_mut(&index)
            .ok_or(DeviceError::QueueStopped { index })?;
        queue.ring.set_log(log);
        Ok(())
    }

    fn finishes_out_of_order(&self) -> bool {
        self.has_config
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        let mut seen = self.log.seen();
        assert!(seen.running.is_empty(), "all queues are stopped before");
        seen.events.push("reset".to_owned());
        Ok(())
    }

    fn takes_mtu(&self) -> bool {
        true
    }

    fn set_mtu(&mut self, mtu: u16) -> Result<(), DeviceError> {
        if mtu < 68 {
            return Err(DeviceError::ConfigNotWritable { offset: 0, len: 2 });
        }
        self.log.seen().events.push(format!("mtu {mtu}"));
        Ok(())
    }

    fn set_backend_channel(&mut self, channel: Option<BackendChannel>) {
        self.log.seen().channel = channel;
    }

    fn closed(&mut self) {
        let mut seen = self.log.seen();
        assert!(seen.running.is_empty(), "all queues are stopped before");
        seen.closed = true;
    }
}
