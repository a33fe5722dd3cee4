//! A shim in this process, a DPU that the test plays, and what both need.

use std::{
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use host_shim::{
    api::{Allowed, Api},
    client::Client,
    config::Config,
    daemon::Daemon,
};
use outboard_shim_api::{DeviceKind, DeviceSpec, DeviceState, DeviceView, Role};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::{
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures},
};
use vmm_sys_util::eventfd::EventFd;

use crate::fake_dpu::FakeDpu;

/// Longest wait for anything. Far more than is needed; the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `ready` gives something.
pub fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < until, "{what}: still not so after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A shim with its API, in a folder of its own.
pub struct TestShim {
    pub folder: tempfile::TempDir,
    pub client: Client,
    runtime: tokio::runtime::Runtime,
    daemon: Option<Daemon>,
}

impl TestShim {
    pub fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), None)
    }

    /// Starts in a folder that may hold an earlier shim's state.
    pub fn start_in(folder: tempfile::TempDir, allowed: Option<Allowed>) -> Self {
        let root = folder.path();
        let text = format!(
            "link_socket = '{0}/link.sock'\napi_socket = '{0}/api.sock'\nsocket_dir = '{0}'\n",
            root.display()
        );
        let config = Config::parse(&text, Path::new("shim.toml")).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let daemon = Daemon::start(&config).unwrap();
        let mut api = Api::bind(&config.api_socket, &[]).unwrap();
        if let Some(allowed) = allowed {
            api = api.with_allowed(allowed);
        }
        runtime.spawn(api.serve(daemon.shim(), std::future::pending()));
        let client = Client::new(&config.api_socket);
        Self {
            folder,
            client,
            runtime,
            daemon: Some(daemon),
        }
    }

    /// Ends it and leaves the folder.
    pub fn stop(mut self) -> tempfile::TempDir {
        self.daemon.take().unwrap().stop();
        // Its end of the API socket has to be closed before another shim binds it.
        self.runtime.shutdown_timeout(PATIENCE);
        self.folder
    }

    pub fn link_path(&self) -> PathBuf {
        self.folder.path().join("link.sock")
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("ports/{name}.sock"))
    }

    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    pub fn attach(&self, name: &str) -> DeviceView {
        self.attach_spec(DeviceSpec {
            kind: DeviceKind::Port,
            name: name.to_owned(),
            socket: None,
            role: Role::Listen,
            uid: None,
        })
    }

    pub fn attach_spec(&self, spec: DeviceSpec) -> DeviceView {
        self.block_on(self.client.attach(&spec)).unwrap()
    }

    pub fn view(&self, name: &str) -> DeviceView {
        let devices = self.block_on(self.client.list()).unwrap().devices;
        devices.into_iter().find(|device| device.name == name).unwrap()
    }

    /// Waits for a state.
    pub fn until(&self, name: &str, state: DeviceState) -> DeviceView {
        wait_for(&format!("{name} {state}"), || {
            Some(self.view(name)).filter(|view| view.state == state)
        })
    }

    /// Waits until the device is in its state and its socket listens: it has its name an instant before that.
    pub fn until_open(&self, name: &str) {
        self.until(name, DeviceState::WaitingForVmm);
        let path = self.socket(name).display().to_string();
        wait_for("socket", || is_listening(&path).then_some(()));
    }
}

/// Does a socket of that name listen? `/proc/net/unix` has __SO_ACCEPTCON among its flags then (unix(7), linux/net.h).
fn is_listening(path: &str) -> bool {
    const ACCEPTS: u32 = 1 << 16;
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    sockets.lines().any(|line| {
        let flags = line
            .split_whitespace()
            .nth(3)
            .and_then(|flags| u32::from_str_radix(flags, 16).ok());
        line.ends_with(path) && flags.is_some_and(|flags| flags & ACCEPTS != 0)
    })
}

/// A shim and a DPU with `vm1` granted and attached, its socket open.
pub fn shim_with_vm1() -> (TestShim, FakeDpu) {
    let shim = TestShim::start();
    let dpu = FakeDpu::start(&shim.link_path());
    dpu.grant("vm1");
    shim.attach("vm1");
    shim.until_open("vm1");
    (shim, dpu)
}

/// What a VMM does until its guest's driver is ready, by the `vhost` crate; the memory's file is returned.
pub fn bring_up(frontend: &mut Frontend, reply_ack: bool) -> std::fs::File {
    frontend.set_owner().unwrap();
    let features = frontend.get_features().unwrap();
    let mut protocol = frontend.get_protocol_features().unwrap();
    if !reply_ack {
        protocol.remove(VhostUserProtocolFeatures::REPLY_ACK);
    }
    frontend.set_protocol_features(protocol).unwrap();
    if reply_ack {
        frontend.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
    }
    frontend.set_features(features).unwrap();
    let memory = std::fs::File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
    ftruncate(&memory, 1 << 20).unwrap();
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: 1 << 20,
        userspace_addr: 0x10_0000,
        mmap_offset: 0,
        mmap_handle: memory.as_raw_fd(),
    };
    frontend.set_mem_table(&[region]).unwrap();
    frontend.set_vring_num(0, 256).unwrap();
    let ring = VringConfigData {
        queue_max_size: 256,
        queue_size: 256,
        flags: 0,
        desc_table_addr: 0x10_0000,
        used_ring_addr: 0x10_2000,
        avail_ring_addr: 0x10_4000,
        log_addr: None,
    };
    frontend.set_vring_addr(0, &ring).unwrap();
    frontend.set_vring_base(0, 0).unwrap();
    let event = EventFd::new(0).unwrap();
    frontend.set_vring_call(0, &event).unwrap();
    frontend.set_vring_kick(0, &event).unwrap();
    frontend.set_vring_enable(0, true).unwrap();
    memory
}

/// A VMM that connects to a listening shim.
pub fn connect(shim: &TestShim, name: &str) -> Frontend {
    Frontend::from_stream(UnixStream::connect(shim.socket(name)).unwrap(), 2)
}
