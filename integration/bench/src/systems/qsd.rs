//! qemu-storage-daemon with its vhost-user-blk export.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    Backend, Context, READY_LIMIT, listens,
    store::{self, VOLUME_LEN_BYTES},
};
use crate::{
    cases::Store,
    error::Failure,
    generator::Target,
    launch::{Launch, Running, run},
};

const WHO: &str = "qsd";
const PROGRAM: &str = "qemu-storage-daemon";
/// Only there so that the image can be opened; it keeps nothing secret.
const PASSPHRASE: &str = "secret,id=key0,data=measuring";

/// A running qemu-storage-daemon.
pub struct Qsd {
    process: Running,
    socket: PathBuf,
}

impl Qsd {
    /// Starts it with one volume and waits for its socket.
    pub fn start(context: &Context, store: Store, folder: &Path) -> Result<Self, Failure> {
        let socket = folder.join("disk.sock");
        let nodes = nodes(context, store)?;
        let export = format!(
            "type=vhost-user-blk,id=e0,node-name=d0,addr.type=unix,addr.path={},writable=on,num-queues=1",
            socket.display()
        );
        let mut process = Launch::new(WHO, PROGRAM, context.machine.backend_core)
            .args(nodes)
            .args(["--export", &export])
            .start(&folder.join("qsd.log"))?;
        process.wait_until("its socket", READY_LIMIT, || listens(&socket))?;
        Ok(Self { process, socket })
    }
}

/// Arguments that make the node `d0`.
fn nodes(context: &Context, store: Store) -> Result<Vec<String>, Failure> {
    let words = match store {
        // Memory is what null-co is not: it is left out of the matrix.
        Store::Null | Store::Memory => vec![
            "--blockdev".into(),
            format!("driver=null-co,node-name=d0,size={VOLUME_LEN_BYTES},read-zeroes=on"),
        ],
        Store::File | Store::Disk => {
            let path = store::file(WHO, context, store)?;
            let direct = if store == Store::Disk { "on" } else { "off" };
            let file = format!(
                "driver=file,node-name=d0,filename={},aio=io_uring,cache.direct={direct}",
                path.display()
            );
            vec!["--blockdev".into(), file]
        }
        Store::Encrypted => {
            let image = luks_image(context)?;
            let file = format!("driver=file,node-name=f0,filename={},aio=io_uring", image.display());
            vec![
                "--object".into(),
                PASSPHRASE.into(),
                "--blockdev".into(),
                file,
                "--blockdev".into(),
                "driver=luks,node-name=d0,file=f0,key-secret=key0".into(),
            ]
        }
    };
    Ok(words)
}

/// An image on tmpfs whose whole content has been written through the cipher.
fn luks_image(context: &Context) -> Result<PathBuf, Failure> {
    let image = context.memory_folder.join("volume.luks");
    if image.exists() {
        return Ok(image);
    }
    let plain = store::file(WHO, context, Store::Encrypted)?;
    let options = "key-secret=key0,cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64,iter-time=10";
    let mut command = Command::new("qemu-img");
    command.args([
        "convert", "--object", PASSPHRASE, "-f", "raw", "-O", "luks", "-o", options,
    ]);
    run(WHO, command.arg(plain).arg(&image))?;
    Ok(image)
}

impl Backend for Qsd {
    fn target(&self) -> Target {
        Target::Blk(self.socket.clone())
    }

    fn processes(&self) -> BTreeSet<u32> {
        [self.process.pid()].into()
    }

    fn pollers(&self) -> BTreeSet<u32> {
        // it sleeps on its descriptors
        BTreeSet::new()
    }

    fn check(&mut self) -> Result<(), Failure> {
        match self.process.ended() {
            None => Ok(()),
            Some(status) => Err(self.process.failure(format!("ended with {status}"), "see what it said")),
        }
    }

    fn version(&self) -> String {
        let said = run(WHO, Command::new(PROGRAM).arg("--version")).unwrap_or_default();
        said.lines().next().unwrap_or_default().to_owned()
    }
}
