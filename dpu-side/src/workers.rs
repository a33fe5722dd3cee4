//! The datapath's workers, as everybody else reaches them.
//!
//! Each queue and each volume is one worker's; policy, grants and MTUs are told to all. What changes where something is
//! happens under one lock: starting, stopping and moving a queue, and putting a policy in force. Shutting does not wait for
//! it: whatever else goes on, what is revoked is silent on every worker within a few breaths.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver},
    },
    time::{Duration, Instant},
};

use outboard_conntrack::Table;
use outboard_engine::{Io, WorkerGone, WorkerHandle};
use outboard_firewall::Policy;
use outboard_protocol::id::{Name, ObjectKind, ObjectRef};
use outboard_ring::{CallFd, RingLog};
use outboard_vhost_user::{DeviceError, QueueResources};
use outboard_vswitch::{Crossed, PortPolicy};
use vhost_net_dpu::QueueKind;

use crate::{datapath::Datapath, placement::Placement};

/// How long frames that were taken earlier may be under way between workers; it takes some microseconds, and no promise
/// rests on it.
const CROSSING_TIME_MAX: Duration = Duration::from_millis(100);

/// All workers.
#[derive(Clone)]
pub struct Workers {
    handles: Arc<[WorkerHandle<Datapath>]>,
    placement: Arc<Mutex<Placement>>,
}

/// What a worker did to take a policy over.
pub struct TakenOver {
    /// For so long it did nothing else.
    pub spent: Duration,
    /// The firewall's former policy, to be dropped where that may take its time.
    _former: Arc<Policy>,
}

impl Workers {
    /// These, by their numbers in the switch.
    pub fn new(handles: Vec<WorkerHandle<Datapath>>) -> Self {
        let placement = Placement::new(handles.len());
        Self {
            handles: handles.into(),
            placement: Arc::new(Mutex::new(placement)),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.handles.len()
    }

    fn at(&self, worker: usize) -> Result<&WorkerHandle<Datapath>, WorkerGone> {
        self.handles.get(worker).ok_or(WorkerGone)
    }

    fn placement(&self) -> MutexGuard<'_, Placement> {
        self.placement.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Posts the same to all: what each of them answers, in their order.
    fn post_all<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Datapath, &mut Io) -> R + Clone + Send + 'static,
    ) -> Result<Vec<Receiver<R>>, WorkerGone> {
        let post = |worker: &WorkerHandle<Datapath>| {
            let (reply, answer) = mpsc::sync_channel(1);
            let f = f.clone();
            worker.post(move |datapath, io| {
                // Nobody is left to hear it only if the caller's thread died.
                let _ = reply.send(f(datapath, io));
            })?;
            Ok(answer)
        };
        self.handles.iter().map(post).collect()
    }

    /// Runs the same on all, at the same time, and waits for all of them.
    pub fn all<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Datapath, &mut Io) -> R + Clone + Send + 'static,
    ) -> Result<Vec<R>, WorkerGone> {
        let answers = self.post_all(f)?;
        answers
            .into_iter()
            .map(|answer| answer.recv().map_err(|_| WorkerGone))
            .collect()
    }

    /// A worker that can be asked about a port as its guest's frames meet it.
    pub fn of_port(&self, port: &Name) -> Result<&WorkerHandle<Datapath>, WorkerGone> {
        self.at(self.placement().of_port(port))
    }

    /// One of them, for what all of them know.
    pub fn any(&self) -> Result<&WorkerHandle<Datapath>, WorkerGone> {
        self.at(0)
    }

    /// All of them.
    pub fn handles(&self) -> &[WorkerHandle<Datapath>] {
        &self.handles
    }

    /// The worker that a volume is set up in, or is to be.
    pub fn for_volume(&self, volume: &Name) -> Result<&WorkerHandle<Datapath>, WorkerGone> {
        self.at(self.placement().for_volume(volume))
    }

    /// The worker that has a volume, if it is set up at all.
    pub fn of_volume(&self, volume: &Name) -> Result<&WorkerHandle<Datapath>, WorkerGone> {
        self.at(self.placement().of_volume(volume))
    }

    /// Ends all of them.
    pub fn stop(&self) {
        self.handles.iter().for_each(WorkerHandle::stop);
    }

    /// Puts the policy of all ports, and what their groups allow, in force. Afterwards nothing that was decided under the
    /// former one is under way. What each worker took over comes back.
    pub fn set_policy(
        &self,
        policies: Vec<PortPolicy>,
        firewall: &Arc<Policy>,
        connections: Option<(Arc<Table>, u32)>,
        volumes: Vec<Name>,
    ) -> Result<Vec<TakenOver>, WorkerGone> {
        let mut placement = self.placement();
        placement.keep_volumes(&volumes);
        let firewall = firewall.clone();
        let taken_over = self.all(move |datapath, _| {
            let begun = Instant::now();
            datapath.set_volumes(&volumes);
            if let Some((table, capacity)) = connections {
                datapath.set_connections(table, capacity);
            }
            let former = datapath.set_policy(policies, firewall);
            let spent = begun.elapsed();
            TakenOver { spent, _former: former }
        })?;
        self.wait_for_crossings()?;
        Ok(taken_over)
    }

    /// Waits until what workers handed to each other before this has arrived.
    fn wait_for_crossings(&self) -> Result<(), WorkerGone> {
        if self.count() == 1 {
            return Ok(());
        }
        let crossed = || self.all(|datapath, _| datapath.switch().crossed());
        let before = crossed()?;
        let end = Instant::now() + CROSSING_TIME_MAX;
        while !arrived(&before, &crossed()?) {
            if Instant::now() >= end {
                tracing::warn!("frames take more than {CROSSING_TIME_MAX:?} from one worker to another");
                break;
            }
        }
        Ok(())
    }

    /// Serves a queue of the object's device.
    ///
    /// # Errors
    /// It cannot be served.
    pub fn start_queue(&self, object: &ObjectRef, index: u16, queue: QueueResources) -> Result<(), DeviceError> {
        let mut placement = self.placement();
        let kind = port_queue(object, index);
        let worker = match kind {
            Some(QueueKind::Rx { pair } | QueueKind::Tx { pair }) => placement.for_queue(&object.name, pair),
            None => placement.of_volume(&object.name),
        };
        let of = object.clone();
        self.at(worker)
            .and_then(|worker| worker.call(move |datapath, io| datapath.start_queue(&of, index, queue, io)))
            .map_err(gone)??;
        if let Some(kind) = kind {
            placement.started(&object.name, kind, worker);
            self.tell(&placement, &object.name).map_err(gone)?;
        }
        Ok(())
    }

    /// Stops a queue. `done` is called with the index at which its available ring goes on once nothing of it is in flight.
    ///
    /// # Errors
    /// The worker has ended.
    pub fn stop_queue(
        &self,
        object: &ObjectRef,
        index: u16,
        done: Box<dyn FnOnce(Option<u32>) + Send>,
    ) -> Result<(), WorkerGone> {
        let mut placement = self.placement();
        let worker = match port_queue(object, index) {
            Some(kind) => {
                let worker = placement.of_queue(&object.name, kind).unwrap_or(0);
                placement.stopped(&object.name, kind);
                // First the others give it nothing more.
                self.tell(&placement, &object.name)?;
                worker
            }
            None => placement.of_volume(&object.name),
        };
        let object = object.clone();
        self.at(worker)?
            .call(move |datapath, io| datapath.stop_queue(&object, index, done, io))
    }

    /// Runs something on the worker that has a queue, which is not moved meanwhile.
    fn on_queue<R: Send + 'static>(
        &self,
        object: &ObjectRef,
        index: u16,
        f: impl FnOnce(&mut Datapath) -> Result<R, DeviceError> + Send + 'static,
    ) -> Result<R, DeviceError> {
        let placement = self.placement();
        let worker = match port_queue(object, index) {
            Some(kind) => placement.of_queue(&object.name, kind).unwrap_or(0),
            None => placement.of_volume(&object.name),
        };
        let run = |worker: &WorkerHandle<Datapath>| worker.call(move |datapath, _| f(datapath));
        self.at(worker).and_then(run).map_err(gone)?
    }

    /// Calls the driver of a running queue by another descriptor from now on.
    ///
    /// # Errors
    /// It does not run.
    pub fn set_call(&self, object: &ObjectRef, index: u16, call: Option<CallFd>) -> Result<(), DeviceError> {
        let of = object.clone();
        self.on_queue(object, index, move |datapath| datapath.set_call(&of, index, call))
    }

    /// Logs the writes of a running queue in this way from now on, or not at all.
    ///
    /// # Errors
    /// It does not run.
    pub fn set_log(&self, object: &ObjectRef, index: u16, log: Option<RingLog>) -> Result<(), DeviceError> {
        let of = object.clone();
        self.on_queue(object, index, move |datapath| datapath.set_log(&of, index, log))
    }

    /// Runs something about a device as a whole: of a port on every worker, of a volume on its own. The first answer, or the
    /// first error.
    ///
    /// # Errors
    /// What it says.
    pub fn on_device<R: Send + 'static>(
        &self,
        object: &ObjectRef,
        f: impl FnOnce(&mut Datapath) -> Result<R, DeviceError> + Clone + Send + 'static,
    ) -> Result<R, DeviceError> {
        match object.kind {
            ObjectKind::Volume => self
                .of_volume(&object.name)
                .and_then(|worker| worker.call(move |datapath, _| f(datapath)))
                .map_err(gone)?,
            ObjectKind::Port => {
                let answers = self.all(move |datapath, _| f(datapath)).map_err(gone)?;
                let mut answers = answers.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter();
                answers.next().ok_or(DeviceError::WorkerGone)
            }
        }
    }

    /// Has a pair of a port's queues go on in another worker, without losing a frame: guests' frames wait in their rings until
    /// it is there. True if it is; false if it does not run, or is there already.
    ///
    /// # Errors
    /// A worker has ended.
    pub fn relocate(&self, port: &Name, pair: u16, to: usize) -> Result<bool, WorkerGone> {
        let mut placement = self.placement();
        let from = placement
            .of_pair(port, pair)
            .filter(|from| *from != to && to < self.count());
        let Some(from) = from else { return Ok(false) };
        self.all(|datapath, _| datapath.switch().hold(true))?;
        let moved = self.relocate_held(&mut placement, (port, pair), (from, to));
        // Whatever came of it.
        self.all(|datapath, _| datapath.switch().hold(false))?;
        moved
    }

    fn relocate_held(
        &self,
        placement: &mut Placement,
        (port, pair): (&Name, u16),
        (from, to): (usize, usize),
    ) -> Result<bool, WorkerGone> {
        let end = Instant::now() + CROSSING_TIME_MAX;
        while !self
            .all(|datapath, _| datapath.switch().is_quiet())?
            .into_iter()
            .all(|quiet| quiet)
        {
            if Instant::now() >= end {
                return Ok(false);
            }
        }
        let name = port.clone();
        let take = move |datapath: &mut Datapath, io: &mut Io| datapath.take_pair(&name, pair, io);
        let Some(taken) = self.at(from)?.call(take)? else {
            return Ok(false);
        };
        let put = |worker: usize, taken| {
            let name = port.clone();
            self.at(worker)?
                .call(move |datapath, io| datapath.put_pair(&name, taken, io))
        };
        match put(to, taken)? {
            Ok(()) => {
                placement.moved(port, pair, to);
                self.tell(placement, port)?;
                Ok(true)
            }
            // There is no room for its descriptors; where it was there is.
            Err(taken) => {
                if put(from, taken)?.is_err() {
                    tracing::error!("port {port}: its queue pair {pair} is lost until its session ends; report this");
                }
                Ok(false)
            }
        }
    }

    /// Tells all workers which receive queues of a port the others have.
    fn tell(&self, placement: &Placement, port: &Name) -> Result<(), WorkerGone> {
        if self.count() == 1 {
            return Ok(());
        }
        let tell = |(me, worker): (usize, &WorkerHandle<Datapath>)| {
            let (name, elsewhere) = (port.clone(), placement.elsewhere(port, me));
            let (reply, told) = mpsc::sync_channel(1);
            worker.post(move |datapath, _| {
                datapath.switch().set_elsewhere(name.as_str(), elsewhere);
                // Nobody is left to hear it only if the caller's thread died.
                let _ = reply.send(());
            })?;
            Ok(told)
        };
        let told: Vec<_> = self.handles.iter().enumerate().map(tell).collect::<Result<_, _>>()?;
        told.into_iter()
            .try_for_each(|told| told.recv().map_err(|_| WorkerGone))
    }
}

/// Has what was sent at one time been taken at another?
fn arrived(before: &[Crossed], after: &[Crossed]) -> bool {
    let from = before.iter().enumerate();
    from.flat_map(|(from, crossed)| crossed.sent.iter().enumerate().map(move |(to, sent)| (from, to, *sent)))
        .all(|(from, to, sent)| {
            after
                .get(to)
                .and_then(|to| to.taken.get(from))
                .is_some_and(|taken| *taken >= sent)
        })
}

/// Which queue of a port it is; none for a volume's.
fn port_queue(object: &ObjectRef, index: u16) -> Option<QueueKind> {
    match object.kind {
        ObjectKind::Port => QueueKind::of(index),
        ObjectKind::Volume => None,
    }
}

fn gone(_: WorkerGone) -> DeviceError {
    DeviceError::WorkerGone
}
