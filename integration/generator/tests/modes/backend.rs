//! Back-ends: a device per socket, served as Outboard serves them, all moved by one thread.

use std::{
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use outboard_generator::args::Role;
use outboard_ring::{CallFd, Chain, RingLog, Signals};
use outboard_storage::MemoryBackend;
use outboard_vhost_user::{BackendChannel, Device, DeviceError, QueueResources, serve};
use outboard_vswitch::{PortPolicy, Switch};
use vhost_blk_dpu::{BlkConfig, BlkUnit};

/// What serves queues: each is of a port (0 for A and the disk, 1 for B).
pub trait Engine: Send + 'static {
    fn features(&self) -> u64;
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }
    fn start(&mut self, port: usize, index: u16, queue: QueueResources) -> Result<(), DeviceError>;
    /// Stops a queue; `done` is told where it goes on.
    fn stop(&mut self, port: usize, index: u16, done: mpsc::Sender<Option<u32>>);
    fn set_call(&mut self, port: usize, index: u16, call: Option<CallFd>) -> Result<(), DeviceError>;
    fn breathe(&mut self) -> bool;
}

/// Calls by writing.
pub struct Calls;

impl Signals for Calls {
    fn signal(&mut self, call: &CallFd) {
        rustix::io::write(call, &1u64.to_ne_bytes()).expect("an eventfd that is not full");
    }
}

struct Served<E> {
    engine: Arc<Mutex<E>>,
    port: usize,
}

impl<E: Engine> Device for Served<E> {
    fn features(&self) -> u64 {
        self.engine.lock().unwrap().features()
    }

    fn has_config(&self) -> bool {
        !self.config().is_empty()
    }

    fn queue_count(&self) -> u16 {
        2
    }

    fn queue_size_max(&self) -> u16 {
        1024
    }

    fn config(&self) -> Vec<u8> {
        self.engine.lock().unwrap().config()
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<(), DeviceError> {
        let len = data.len();
        Err(DeviceError::ConfigNotWritable { offset, len })
    }

    fn start_queue(&mut self, index: u16, queue: QueueResources) -> Result<(), DeviceError> {
        self.engine.lock().unwrap().start(self.port, index, queue)
    }

    fn stop_queue(&mut self, index: u16) -> Result<Option<u32>, DeviceError> {
        let (done, stopped) = mpsc::channel();
        self.engine.lock().unwrap().stop(self.port, index, done);
        stopped.recv().map_err(|_| DeviceError::WorkerGone)
    }

    fn set_call(&mut self, index: u16, call: Option<CallFd>) -> Result<(), DeviceError> {
        self.engine.lock().unwrap().set_call(self.port, index, call)
    }

    fn set_log(&mut self, index: u16, _log: Option<RingLog>) -> Result<(), DeviceError> {
        // Nothing here migrates.
        Err(DeviceError::QueueStopped { index })
    }

    fn finishes_out_of_order(&self) -> bool {
        false
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn takes_mtu(&self) -> bool {
        false
    }

    fn set_mtu(&mut self, _mtu: u16) -> Result<(), DeviceError> {
        Ok(())
    }

    fn set_backend_channel(&mut self, _channel: Option<BackendChannel>) {}

    fn closed(&mut self) {}
}

/// An engine that runs, behind `sockets.len()` sockets.
pub struct Backend {
    dir: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Backend {
    /// Runs `engine` with `count` sockets. `role` is the generator's.
    pub fn start(engine: impl Engine, count: usize, role: Role) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = Arc::new(Mutex::new(engine));
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for port in 0..count {
            let path = socket(dir.path(), port);
            let listener = (role == Role::Connect).then(|| UnixListener::bind(&path).unwrap());
            let (engine, stop) = (engine.clone(), stop.clone());
            threads.push(thread::spawn(move || {
                let stream = match listener {
                    Some(listener) => Some(listener.accept().unwrap().0),
                    None => connect(&path, &stop),
                };
                if let Some(stream) = stream {
                    serve(stream, &mut Served { engine, port });
                }
            }));
        }
        let (engine, stopped) = (engine.clone(), stop.clone());
        threads.push(thread::spawn(move || {
            while !stopped.load(Relaxed) {
                if !engine.lock().unwrap().breathe() {
                    // Many of these share few cores.
                    thread::sleep(Duration::from_micros(10));
                }
            }
        }));
        Self { dir, stop, threads }
    }

    /// The path of a socket.
    pub fn socket(&self, port: usize) -> PathBuf {
        socket(self.dir.path(), port)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        // Sessions that the generator never opened.
        for port in 0..self.threads.len() - 1 {
            let _session = UnixStream::connect(self.socket(port));
        }
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(
                ended.is_ok() || thread::panicking(),
                "a thread of the back-end panicked"
            );
        }
    }
}

fn socket(dir: &Path, port: usize) -> PathBuf {
    dir.join(format!("{port}.sock"))
}

fn connect(path: &Path, stop: &AtomicBool) -> Option<UnixStream> {
    while !stop.load(Relaxed) {
        match UnixStream::connect(path) {
            Ok(stream) => return Some(stream),
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    }
    None
}

/// Outboard's own switch with two pairs of ports.
pub struct Ports(Switch);

const NAMES: [&str; 4] = ["a", "b", "victim-a", "victim-b"];

impl Ports {
    /// Ports at the addresses that the generator has unless said otherwise.
    pub fn new() -> Self {
        let mut switch = Switch::new();
        let policies = (10..).zip(NAMES).map(|(last, name)| PortPolicy {
            name: name.into(),
            network: "blue".into(),
            mac: [0x52, 0x54, 0, 0, 0, last],
            addresses: vec![[10, 0, 0, last].into()],
            trunk: None,
        });
        switch.set_ports(policies.collect());
        NAMES.iter().for_each(|name| switch.open(name));
        Self(switch)
    }
}

impl Engine for Ports {
    fn features(&self) -> u64 {
        vhost_net_dpu::features::FEATURES
    }

    fn start(&mut self, port: usize, index: u16, queue: QueueResources) -> Result<(), DeviceError> {
        self.0.start_queue(NAMES[port], index, queue)
    }

    fn stop(&mut self, port: usize, index: u16, done: mpsc::Sender<Option<u32>>) {
        done.send(self.0.stop_queue(NAMES[port], index)).unwrap();
    }

    fn set_call(&mut self, port: usize, index: u16, call: Option<CallFd>) -> Result<(), DeviceError> {
        self.0.set_call(NAMES[port], index, call)
    }

    fn breathe(&mut self) -> bool {
        self.0.breathe(&mut Calls)
    }
}

/// What a wire does to a frame that passes: the frames that come out instead.
pub type Tamper = Box<dyn FnMut(Vec<u8>) -> Vec<Vec<u8>> + Send>;

/// A wire between two ports.
pub struct Wire {
    features: u64,
    /// Of each port, rx and tx.
    queues: [[Option<QueueResources>; 2]; 2],
    tamper: Tamper,
    waiting: [Vec<Vec<u8>>; 2],
}

const VIRTIO_F_VERSION_1: u64 = 1 << 32;
const RX: usize = 0;
const TX: usize = 1;

impl Wire {
    /// A wire that offers `features` beside VERSION_1, and does `tamper` to each frame.
    pub fn new(features: u64, tamper: impl FnMut(Vec<u8>) -> Vec<Vec<u8>> + Send + 'static) -> Self {
        Self {
            features: features | VIRTIO_F_VERSION_1,
            queues: Default::default(),
            tamper: Box::new(tamper),
            waiting: Default::default(),
        }
    }

    /// Takes a port's frames.
    fn take(&mut self, port: usize) -> bool {
        let Some(tx) = &mut self.queues[port][TX] else {
            return false;
        };
        let mut chain = Chain::new();
        let mut any = false;
        while self.waiting[1 - port].len() < 64 && tx.ring.pop(&mut chain).unwrap() {
            let mut bytes = vec![0; usize::try_from(chain.readable_len()).unwrap()];
            chain.read_at(tx.ring.memory(), 0, &mut bytes).unwrap();
            tx.ring.push_used(&chain, 0).unwrap();
            self.waiting[1 - port].extend((self.tamper)(bytes));
            any = true;
        }
        publish(tx);
        any
    }

    /// Gives a port what waits for it.
    fn give(&mut self, port: usize) -> bool {
        let Some(rx) = &mut self.queues[port][RX] else {
            return false;
        };
        let mut chain = Chain::new();
        let mut given = 0;
        for bytes in &mut self.waiting[port] {
            if !rx.ring.pop(&mut chain).unwrap() {
                break;
            }
            bytes[10..12].copy_from_slice(&1u16.to_le_bytes());
            chain.write_at(rx.ring.memory(), 0, bytes).unwrap();
            rx.ring.push_used(&chain, u32::try_from(bytes.len()).unwrap()).unwrap();
            given += 1;
        }
        self.waiting[port].drain(..given);
        publish(rx);
        given > 0
    }
}

fn publish(queue: &mut QueueResources) {
    if queue.ring.publish().unwrap()
        && let Some(call) = &queue.call
    {
        Calls.signal(call);
    }
}

impl Engine for Wire {
    fn features(&self) -> u64 {
        self.features
    }

    fn start(&mut self, port: usize, index: u16, queue: QueueResources) -> Result<(), DeviceError> {
        self.queues[port][usize::from(index)] = Some(queue);
        Ok(())
    }

    fn stop(&mut self, port: usize, index: u16, done: mpsc::Sender<Option<u32>>) {
        let queue = self.queues[port][usize::from(index)].take();
        done.send(queue.map(|queue| queue.ring.base())).unwrap();
    }

    fn set_call(&mut self, port: usize, index: u16, call: Option<CallFd>) -> Result<(), DeviceError> {
        if let Some(queue) = &mut self.queues[port][usize::from(index)] {
            queue.call = call;
        }
        Ok(())
    }

    fn breathe(&mut self) -> bool {
        let mut worked = false;
        for port in [0, 1] {
            worked |= self.take(port);
            worked |= self.give(port);
        }
        worked
    }
}

/// Outboard's own volume in memory.
pub struct Volume(BlkUnit);

impl Volume {
    /// A volume of so many bytes.
    pub fn new(size_bytes: u64) -> Self {
        let config = BlkConfig {
            name: "disk".into(),
            read_only: false,
            size_bytes,
        };
        Self(BlkUnit::new(config, Box::new(MemoryBackend::new(size_bytes, false))))
    }
}

impl Engine for Volume {
    fn features(&self) -> u64 {
        self.0.features()
    }

    fn config(&self) -> Vec<u8> {
        self.0.config_space().to_vec()
    }

    fn start(&mut self, _port: usize, index: u16, queue: QueueResources) -> Result<(), DeviceError> {
        self.0.start_queue(index, queue)
    }

    fn stop(&mut self, _port: usize, index: u16, done: mpsc::Sender<Option<u32>>) {
        self.0.stop_queue(index, Box::new(move |next| done.send(next).unwrap()));
    }

    fn set_call(&mut self, _port: usize, index: u16, call: Option<CallFd>) -> Result<(), DeviceError> {
        self.0.set_call(index, call)
    }

    fn breathe(&mut self) -> bool {
        self.0.breathe(&mut Calls)
    }
}
