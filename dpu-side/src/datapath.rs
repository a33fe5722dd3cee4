//! What the worker polls: the switch and the volumes.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{Arc, mpsc::SyncSender},
};

use outboard_conntrack::Table;
use outboard_engine::{Io, Workload};
use outboard_firewall::Policy;
use outboard_protocol::id::{Name, ObjectKind, ObjectRef};
use outboard_ring::{CallFd, RingLog};
use outboard_storage::ResizeError;
use outboard_vhost_user::{DeviceError, QueueResources};
use outboard_vswitch::{MovedPair, PortCounters, PortPolicy, Switch};
use vhost_blk_dpu::BlkUnit;
use vhost_net_dpu::QueueKind;

use crate::{message::Message, volume_totals::VolumeTotals};

mod report;

pub use report::DeviceReport;

/// The descriptors of a running queue.
struct Wire {
    object: ObjectRef,
    queue: u16,
    /// Our own copy of the kick, so that it can be unwatched whoever closes the other one first.
    kick: Option<OwnedFd>,
    call: Option<CallFd>,
    /// What its driver accepted.
    features: u64,
}

impl Wire {
    fn unwatch(&self, io: &mut Io) {
        if let Some(kick) = &self.kick {
            io.unwatch(kick.as_fd());
        }
    }
}

/// A volume that is set up.
struct Volume {
    unit: Box<BlkUnit>,
    /// Its binding may exchange data. Once shut, a unit stays shut: its binding has ended.
    open: bool,
}

/// Counters of everything that is set up.
#[derive(Debug, Default)]
pub struct Counters {
    /// Ports.
    pub ports: Vec<PortCounters>,
    /// Volumes.
    pub volumes: Vec<(Name, VolumeTotals)>,
}

/// A pair of a port's queues, on its way from one worker to another.
pub struct TakenPair {
    moved: Box<MovedPair>,
    wires: Vec<Wire>,
}

/// The datapath of one worker. Its methods run on the worker.
pub struct Datapath {
    switch: Switch,
    volumes: BTreeMap<Name, Volume>,
    /// What volumes counted in units that were taken down: counters do not fall while the process runs.
    former: BTreeMap<Name, VolumeTotals>,
    wires: Vec<Wire>,
    /// Where it is reported that a host broke its own call.
    events: SyncSender<Message>,
}

impl Datapath {
    /// The only worker's, without ports and volumes.
    pub fn new(events: SyncSender<Message>) -> Self {
        Self::of(Switch::new(), events)
    }

    /// Those of so many workers.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn fleet(count: usize, events: &SyncSender<Message>) -> io::Result<Vec<Self>> {
        let switches = Switch::fleet(count)?;
        Ok(switches
            .into_iter()
            .map(|switch| Self::of(switch, events.clone()))
            .collect())
    }

    fn of(switch: Switch, events: SyncSender<Message>) -> Self {
        Self {
            switch,
            volumes: BTreeMap::new(),
            former: BTreeMap::new(),
            wires: Vec::new(),
            events,
        }
    }

    /// Has other workers wake this one; before anything is handed to it.
    ///
    /// # Errors
    /// The kernel takes no more descriptors to wait for.
    pub fn watch_bell(&self, io: &mut Io) -> io::Result<()> {
        self.switch.bell().map_or(Ok(()), |bell| io.watch(bell.fd()))
    }

    /// Puts the policy of all ports and what their groups allow in force, in one step. The firewall's former policy comes
    /// back: dropping it may take longer than a worker has.
    pub fn set_policy(&mut self, policies: Vec<PortPolicy>, firewall: Arc<Policy>) -> Arc<Policy> {
        self.switch.set_policy(policies, firewall)
    }

    /// Keeps connections in this table from now on, made for so many.
    pub fn set_connections(&mut self, table: Arc<Table>, capacity: u32) {
        self.switch.set_connections(table, capacity);
    }

    /// Forgets what other volumes than these counted: they are gone.
    pub fn set_volumes(&mut self, names: &[Name]) {
        self.former.retain(|name, _| names.contains(name));
    }

    /// Nothing goes in or out of the object's device from now on.
    pub fn shut(&mut self, object: &ObjectRef) {
        match object.kind {
            ObjectKind::Port => self.switch.shut(object.name.as_str()),
            ObjectKind::Volume => {
                if let Some(volume) = self.volumes.get_mut(&object.name) {
                    volume.open = false;
                    volume.unit.shut();
                }
            }
        }
    }

    /// The object's device may exchange data.
    pub fn open(&mut self, object: &ObjectRef) {
        match object.kind {
            ObjectKind::Port => self.switch.open(object.name.as_str()),
            ObjectKind::Volume => {
                if let Some(volume) = self.volumes.get_mut(&object.name) {
                    volume.open = true;
                }
            }
        }
    }

    /// Is the volume set up?
    pub fn has_volume(&self, name: &Name) -> bool {
        self.volumes.contains_key(name)
    }

    /// Sets a volume up; until it is opened, no queue of it starts.
    ///
    /// # Errors
    /// The kernel takes no more descriptors to wait for. The unit comes back, to be dropped elsewhere.
    pub fn add_volume(&mut self, name: Name, unit: Box<BlkUnit>, io: &mut Io) -> Result<(), (io::Error, Box<BlkUnit>)> {
        let watched = unit.wake_fds().into_iter().try_for_each(|fd| io.watch(fd));
        if let Err(e) = watched {
            unit.wake_fds().into_iter().for_each(|fd| io.unwatch(fd));
            return Err((e, unit));
        }
        self.volumes.insert(name, Volume { unit, open: false });
        Ok(())
    }

    /// Takes a volume down; the caller drops it elsewhere, since closing a file may take long.
    pub fn remove_volume(&mut self, name: &Name, io: &mut Io) -> Option<Box<BlkUnit>> {
        let unit = self.volumes.remove(name)?.unit;
        unit.wake_fds().into_iter().for_each(|fd| io.unwatch(fd));
        self.former.entry(name.clone()).or_default().add(&unit.counters());
        Some(unit)
    }

    /// Gives a volume another size while it serves. Whether its config space changed, or why it keeps its size; none if it
    /// is not set up.
    pub fn resize_volume(&mut self, name: &Name, size_bytes: u64) -> Option<Result<bool, ResizeError>> {
        Some(self.volumes.get_mut(name)?.unit.resize(size_bytes))
    }

    /// The virtio features that an object's device offers.
    ///
    /// # Errors
    /// It is not set up.
    pub fn features(&self, object: &ObjectRef) -> Result<u64, DeviceError> {
        match object.kind {
            ObjectKind::Port => Ok(vhost_net_dpu::features::FEATURES),
            ObjectKind::Volume => match self.volumes.get(&object.name) {
                Some(volume) => Ok(volume.unit.features()),
                None => Err(not_granted(object)),
            },
        }
    }

    /// The config space of an object's device; empty if it has none or is not set up.
    pub fn config_space(&self, object: &ObjectRef) -> Vec<u8> {
        match object.kind {
            ObjectKind::Port => Vec::new(),
            ObjectKind::Volume => {
                let volume = self.volumes.get(&object.name);
                volume.map_or_else(Vec::new, |volume| volume.unit.config_space().to_vec())
            }
        }
    }

    /// The guest wrote config space.
    ///
    /// # Errors
    /// It may not write there, or the device is not open.
    pub fn write_config(&mut self, object: &ObjectRef, offset: u32, data: &[u8]) -> Result<(), DeviceError> {
        match object.kind {
            ObjectKind::Port => Err(DeviceError::ConfigNotWritable {
                offset,
                len: data.len(),
            }),
            ObjectKind::Volume => self.open_volume(object)?.write_config(offset, data),
        }
    }

    /// Puts an object's device back to how it is before a driver comes. Its queues were stopped.
    ///
    /// # Errors
    /// It is not open.
    pub fn reset(&mut self, object: &ObjectRef) -> Result<(), DeviceError> {
        match object.kind {
            ObjectKind::Port => self.switch.set_mtu(object.name.as_str(), None),
            ObjectKind::Volume => {
                self.open_volume(object)?.reset();
                Ok(())
            }
        }
    }

    /// The VMM told the guest of a port this MTU.
    ///
    /// # Errors
    /// No port may have it, or the object is none.
    pub fn set_mtu(&mut self, object: &ObjectRef, mtu: u16) -> Result<(), DeviceError> {
        match object.kind {
            ObjectKind::Port => self.switch.set_mtu(object.name.as_str(), Some(mtu)),
            ObjectKind::Volume => Err(not_granted(object)),
        }
    }

    /// Serves a queue of the object's device.
    pub fn start_queue(
        &mut self,
        object: &ObjectRef,
        index: u16,
        queue: QueueResources,
        io: &mut Io,
    ) -> Result<(), DeviceError> {
        let other = |e: io::Error| DeviceError::Other(Box::new(e));
        let kick = queue
            .kick
            .as_ref()
            .map(|kick| kick.as_fd().try_clone_to_owned())
            .transpose()
            .map_err(other)?;
        let wire = Wire {
            object: object.clone(),
            queue: index,
            kick,
            call: queue.call.clone(),
            features: queue.features,
        };
        // Before the queue runs: one that ran and failed all the same would have nobody to stop it.
        if let Some(kick) = &wire.kick {
            io.watch(kick.as_fd()).map_err(other)?;
        }
        let started = match object.kind {
            ObjectKind::Port => self.switch.start_queue(object.name.as_str(), index, queue),
            ObjectKind::Volume => self.open_volume(object).and_then(|unit| unit.start_queue(index, queue)),
        };
        match (&started, &wire.kick) {
            (Ok(()), _) => self.wires.push(wire),
            // The host holds the same file, so closing our copy would not end the watch.
            (Err(_), Some(kick)) => io.unwatch(kick.as_fd()),
            (Err(_), None) => {}
        }
        started
    }

    /// Stops a queue. `done` is called with the index at which its available ring goes on once nothing of it is in
    /// flight, which for a volume may be much later.
    pub fn stop_queue(
        &mut self,
        object: &ObjectRef,
        index: u16,
        done: Box<dyn FnOnce(Option<u32>) + Send>,
        io: &mut Io,
    ) {
        if let Some(at) = self.wires.iter().position(|w| w.object == *object && w.queue == index)
            && let Some(kick) = self.wires.swap_remove(at).kick
        {
            io.unwatch(kick.as_fd());
        }
        match object.kind {
            ObjectKind::Port => self.switch.stop_queue_then(object.name.as_str(), index, done),
            ObjectKind::Volume => match self.volumes.get_mut(&object.name) {
                Some(volume) => volume.unit.stop_queue(index, done),
                None => done(None),
            },
        }
    }

    /// Takes the queues of a pair out, to go on in another worker. None if there are none, or they have to stay.
    pub fn take_pair(&mut self, port: &Name, pair: u16, io: &mut Io) -> Option<TakenPair> {
        let moved = self.switch.take_pair(port.as_str(), pair)?;
        let of_pair = |wire: &mut Wire| {
            let (QueueKind::Rx { pair: of } | QueueKind::Tx { pair: of }) = QueueKind::of(wire.queue)?;
            (wire.object.kind == ObjectKind::Port && wire.object.name == *port && of == pair).then_some(())
        };
        let wires: Vec<_> = self.wires.extract_if(.., |wire| of_pair(wire).is_some()).collect();
        wires.iter().for_each(|wire| wire.unwatch(io));
        Some(TakenPair { moved, wires })
    }

    /// Goes on with queues that were another worker's.
    ///
    /// # Errors
    /// The kernel takes no more descriptors to wait for, or the port is not there: they come back.
    pub fn put_pair(&mut self, port: &Name, taken: TakenPair, io: &mut Io) -> Result<(), TakenPair> {
        let TakenPair { moved, wires } = taken;
        let kicks = || wires.iter().filter_map(|wire| wire.kick.as_ref());
        let watched = kicks().try_for_each(|kick| io.watch(kick.as_fd()));
        let put = match watched {
            Ok(()) => self.switch.put_pair(port.as_str(), moved),
            Err(_) => Err(moved),
        };
        match put {
            Ok(()) => {
                self.wires.extend(wires);
                Ok(())
            }
            Err(moved) => {
                wires.iter().for_each(|wire| wire.unwatch(io));
                Err(TakenPair { moved, wires })
            }
        }
    }

    /// Frames that passed the queue pairs of its ports, since those were started.
    pub fn pair_totals(&self) -> Vec<(Name, u16, u64)> {
        let mut totals: BTreeMap<(Name, u16), u64> = BTreeMap::new();
        for wire in self.wires.iter().filter(|wire| wire.object.kind == ObjectKind::Port) {
            let name = &wire.object.name;
            if totals.keys().any(|(known, _)| known == name) {
                continue;
            }
            for counted in self.switch.queue_counters(name.as_str()) {
                let (QueueKind::Rx { pair } | QueueKind::Tx { pair }) = counted.kind;
                *totals.entry((name.clone(), pair)).or_default() += counted.frames;
            }
        }
        totals
            .into_iter()
            .map(|((name, pair), frames)| (name, pair, frames))
            .collect()
    }

    /// Logs the writes of a running queue in this way from now on, or not at all.
    pub fn set_log(&mut self, object: &ObjectRef, index: u16, log: Option<RingLog>) -> Result<(), DeviceError> {
        match object.kind {
            ObjectKind::Port => self.switch.set_log(object.name.as_str(), index, log),
            ObjectKind::Volume => self.open_volume(object)?.set_log(index, log),
        }
    }

    /// Calls the driver of a running queue by another descriptor from now on.
    pub fn set_call(&mut self, object: &ObjectRef, index: u16, call: Option<CallFd>) -> Result<(), DeviceError> {
        match object.kind {
            ObjectKind::Port => self.switch.set_call(object.name.as_str(), index, call.clone())?,
            ObjectKind::Volume => self.open_volume(object)?.set_call(index, call.clone())?,
        }
        if let Some(wire) = self.wires.iter_mut().find(|w| w.object == *object && w.queue == index) {
            wire.call = call;
        }
        Ok(())
    }

    /// Writes the counters of everything that is set up over those of an earlier time. Allocates only where a port or
    /// volume has come or gone since.
    pub fn count(&self, counters: &mut Counters) {
        self.switch.counters_into(&mut counters.ports);
        let volumes = &mut counters.volumes;
        volumes.truncate(self.volumes.len());
        for (at, (name, volume)) in self.volumes.iter().enumerate() {
            let mut totals = self.former.get(name).copied().unwrap_or_default();
            totals.add(&volume.unit.counters());
            match volumes.get_mut(at) {
                Some((former, counted)) => {
                    if former != name {
                        former.clone_from(name);
                    }
                    *counted = totals;
                }
                None => volumes.push((name.clone(), totals)),
            }
        }
    }

    fn open_volume(&mut self, object: &ObjectRef) -> Result<&mut BlkUnit, DeviceError> {
        match self.volumes.get_mut(&object.name) {
            Some(Volume { unit, open: true }) => Ok(unit),
            _ => Err(not_granted(object)),
        }
    }
}

fn not_granted(object: &ObjectRef) -> DeviceError {
    DeviceError::NotGranted {
        object: object.to_string(),
    }
}

impl Workload for Datapath {
    fn breathe(&mut self, io: &mut Io) -> bool {
        let mut worked = self.switch.breathe(io);
        for volume in self.volumes.values_mut() {
            worked |= volume.unit.breathe(io);
        }
        worked
    }

    fn before_sleep(&mut self, _: &mut Io) -> bool {
        let mut waiting = self.switch.before_sleep();
        for volume in self.volumes.values_mut() {
            waiting |= volume.unit.before_sleep();
        }
        waiting
    }

    fn after_sleep(&mut self, _: &mut Io) {
        self.switch.after_sleep();
        self.volumes.values_mut().for_each(|volume| volume.unit.after_sleep());
    }

    fn call_broken(&mut self, call: &CallFd, _: &mut Io) {
        let number = call.as_fd().as_raw_fd();
        let is_it = |w: &&Wire| w.call.as_ref().is_some_and(|c| c.as_fd().as_raw_fd() == number);
        let Some((object, queue)) = self.wires.iter().find(is_it).map(|w| (w.object.clone(), w.queue)) else {
            return;
        };
        // Not called any more, so that it costs nothing until its session is closed. A shut device calls nobody.
        let _ = self.set_call(&object, queue, None);
        // If the enforcement has that much to do already, the queue stays without calls until its session ends.
        let _ = self.events.try_send(Message::CallBroken { object, queue });
    }
}
