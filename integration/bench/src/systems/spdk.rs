//! SPDK's vhost target, where the program is given: no distribution packs it.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    Backend, Context, READY_LIMIT, listens,
    spdk_rpc::Rpc,
    store::{self, VOLUME_LEN_BYTES},
};
use crate::{
    cases::Store,
    error::Failure,
    generator::Target,
    launch::{Launch, Running},
};

const WHO: &str = "spdk";
const BLOCK_LEN_BYTES: u64 = 512;
/// For its own buffers and for the volume that is in memory.
const MEMORY_MB: u64 = 512 + (VOLUME_LEN_BYTES >> 20);
/// Keys of XTS-AES-256 as hexadecimal; there is nothing to protect.
const KEYS: [&str; 2] = [
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
    "1f1e1d1c1b1a191817161514131211100f0e0d0c0b0a09080706050403020100",
];

/// A running vhost target.
pub struct Spdk {
    process: Running,
    socket: PathBuf,
    version: String,
}

impl Spdk {
    /// Starts it, makes one bdev and its vhost-user-blk controller.
    pub fn start(context: &Context, store: Store, folder: &Path) -> Result<Self, Failure> {
        let program = context.spdk.as_ref().ok_or_else(|| {
            Failure::new(
                WHO,
                "no program given",
                "give --spdk PATH, the path of SPDK's build/bin/vhost",
            )
        })?;
        let core = context.machine.backend_core;
        let mask = format!("{:#x}", 1u128 << core);
        let control = folder.join("rpc.sock");
        let mut process = Launch::new(WHO, program, core)
            .args(["-m", &mask, "-s", &MEMORY_MB.to_string(), "--no-pci", "-S"])
            .arg(folder)
            .arg("-r")
            .arg(&control)
            .args((!context.machine.huge_pages).then_some("--no-huge"))
            .start(&folder.join("vhost.log"))?;
        process.wait_until("its control socket", READY_LIMIT, || listens(&control))?;
        let calls = calls(context, store, &mask)?;
        let version = configure(&control, &calls).map_err(|e| {
            process.failure(
                format!("refused {e}"),
                "use SPDK 22.09 or later, built with its vhost target",
            )
        })?;
        let socket = folder.join("disk");
        process.wait_until("the disk's socket", READY_LIMIT, || listens(&socket))?;
        Ok(Self {
            process,
            socket,
            version,
        })
    }
}

/// It listens before it answers: a call that comes too early is refused with "not allowed in this state".
fn configure(control: &Path, calls: &[(&str, Value)]) -> io::Result<String> {
    let mut rpc = Rpc::connect(control)?;
    let deadline = Instant::now() + READY_LIMIT;
    let version = loop {
        match rpc.call("framework_wait_init", &Value::Null) {
            Ok(_) => break rpc.call("spdk_get_version", &Value::Null)?,
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    };
    for (method, parameters) in calls {
        rpc.call(method, parameters)?;
    }
    Ok(version["version"].as_str().unwrap_or("SPDK").to_owned())
}

/// The calls that make the volume.
fn calls(context: &Context, store: Store, mask: &str) -> Result<Vec<(&'static str, Value)>, Failure> {
    let blocks = VOLUME_LEN_BYTES / BLOCK_LEN_BYTES;
    let memory = |name: &str| {
        let parameters = json!({ "name": name, "num_blocks": blocks, "block_size": BLOCK_LEN_BYTES });
        ("bdev_malloc_create", parameters)
    };
    let mut calls = match store {
        Store::Null => vec![(
            "bdev_null_create",
            json!({ "name": "d0", "num_blocks": blocks, "block_size": BLOCK_LEN_BYTES }),
        )],
        Store::Memory => vec![memory("d0")],
        Store::File | Store::Disk => {
            let path = store::file(WHO, context, store)?;
            vec![(
                "bdev_aio_create",
                json!({ "name": "d0", "filename": path, "block_size": BLOCK_LEN_BYTES }),
            )]
        }
        Store::Encrypted => vec![
            (
                "accel_crypto_key_create",
                json!({ "cipher": "AES_XTS", "key": KEYS[0], "key2": KEYS[1], "name": "key0" }),
            ),
            memory("m0"),
            (
                "bdev_crypto_create",
                json!({ "base_bdev_name": "m0", "name": "d0", "key_name": "key0" }),
            ),
        ],
    };
    let controller = json!({ "ctrlr": "disk", "dev_name": "d0", "cpumask": mask });
    calls.push(("vhost_create_blk_controller", controller));
    Ok(calls)
}

impl Backend for Spdk {
    fn target(&self) -> Target {
        Target::Blk(self.socket.clone())
    }

    fn processes(&self) -> BTreeSet<u32> {
        [self.process.pid()].into()
    }

    fn pollers(&self) -> BTreeSet<u32> {
        self.processes()
    }

    fn check(&mut self) -> Result<(), Failure> {
        match self.process.ended() {
            None => Ok(()),
            Some(status) => Err(self.process.failure(format!("ended with {status}"), "see what it said")),
        }
    }

    fn version(&self) -> String {
        self.version.clone()
    }
}
