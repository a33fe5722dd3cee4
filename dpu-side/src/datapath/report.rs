//! The state of one device in the datapath, for whoever asks why it is as it is.

use outboard_protocol::{
    id::{ObjectKind, ObjectRef},
    inquiry::{Dropped, QueueReport},
};
use outboard_vswitch::{Switch, Trace};
use vhost_net_dpu::QueueKind;

use super::Datapath;
use crate::inquiry::reason;

/// A device in the datapath.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceReport {
    /// It is set up.
    pub set_up: bool,
    /// It may exchange data.
    pub open: bool,
    /// Its queues that run.
    pub queues: Vec<QueueReport>,
    /// What was dropped at it.
    pub drops: Vec<Dropped>,
    /// What else there is to say.
    pub notes: Vec<String>,
}

impl DeviceReport {
    /// Adds what another worker has of the same device.
    pub fn add(&mut self, other: Self) {
        let Self {
            set_up,
            open,
            queues,
            drops,
            notes,
        } = other;
        if set_up && !self.set_up {
            (self.set_up, self.open) = (true, open);
        }
        self.open &= open || !set_up;
        self.queues.extend(queues);
        self.queues.sort_by_key(|queue| queue.index);
        for more in drops {
            match self.drops.iter_mut().find(|dropped| dropped.reason == more.reason) {
                Some(dropped) => dropped.frames += more.frames,
                None => self.drops.push(more),
            }
        }
        self.notes.extend(notes);
    }
}

impl Datapath {
    /// The state of an object's device.
    pub fn report(&self, object: &ObjectRef) -> DeviceReport {
        match object.kind {
            ObjectKind::Port => self.port_report(object),
            ObjectKind::Volume => self.volume_report(object),
        }
    }

    /// What would become of a frame that the guest of a port sent; none if the port is not declared.
    pub fn trace(&self, port: &str, frame: &[u8]) -> Option<Trace> {
        self.switch.trace(port, frame)
    }

    /// The switch, to be looked at.
    pub fn switch(&mut self) -> &mut Switch {
        &mut self.switch
    }

    fn port_report(&self, object: &ObjectRef) -> DeviceReport {
        let name = object.name.as_str();
        let Some(open) = self.switch.is_open(name) else {
            return DeviceReport::default();
        };
        let queue = |counted: outboard_vswitch::QueueCounters| {
            let index = counted.kind.index();
            QueueReport {
                index,
                role: match counted.kind {
                    QueueKind::Rx { .. } => "receive".to_owned(),
                    QueueKind::Tx { .. } => "transmit".to_owned(),
                },
                features: self.features_of(object, index),
                failed: counted.failed,
                frames: Some(counted.frames),
                bytes: Some(counted.bytes),
            }
        };
        let counters = self.switch.port_counters(name);
        let drops = counters.iter().flat_map(|counters| counters.dropped());
        DeviceReport {
            set_up: true,
            open,
            queues: self.switch.queue_counters(name).into_iter().map(queue).collect(),
            drops: drops
                .map(|(why, frames)| Dropped {
                    reason: reason(why),
                    frames,
                })
                .collect(),
            notes: vec![],
        }
    }

    fn volume_report(&self, object: &ObjectRef) -> DeviceReport {
        let Some(volume) = self.volumes.get(&object.name) else {
            return DeviceReport::default();
        };
        let queue = |state: vhost_blk_dpu::QueueState| QueueReport {
            index: state.index,
            role: "requests".to_owned(),
            features: self.features_of(object, state.index),
            failed: state.failed,
            frames: None,
            bytes: None,
        };
        DeviceReport {
            set_up: true,
            open: volume.open,
            queues: volume.unit.queue_states().into_iter().map(queue).collect(),
            drops: vec![],
            notes: vec![format!("{} requests are in flight", volume.unit.in_flight())],
        }
    }

    /// The features that a running queue's driver accepted.
    fn features_of(&self, object: &ObjectRef, index: u16) -> u64 {
        let is_it = |wire: &&super::Wire| wire.object == *object && wire.queue == index;
        self.wires.iter().find(is_it).map_or(0, |wire| wire.features)
    }
}
