//! A real guest: Linux under QEMU, driven through a shell on its second serial port.

use std::{
    fs, io,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crate::{process::Process, setup::GuestImage, wait};

/// How long a guest may take to boot; without KVM and beside other work it takes its time.
pub const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// How long something may take that takes no time in a guest that runs. Generous: the machine may be busy.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// What went wrong with a guest.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// QEMU could not be started, or its sockets failed.
    #[error("guest {guest}: {source}")]
    Io {
        /// The guest.
        guest: String,
        /// Why.
        source: io::Error,
    },
    /// QEMU ended.
    #[error("guest {guest}: QEMU ended ({status}): {text}")]
    Ended {
        /// The guest.
        guest: String,
        /// How.
        status: std::process::ExitStatus,
        /// What it said.
        text: String,
    },
    /// The guest did not do something in time.
    #[error("guest {guest}: '{what}' was not done within {limit:?}; so far it said: {text}")]
    TimedOut {
        /// The guest.
        guest: String,
        /// What was waited for.
        what: String,
        /// For how long.
        limit: Duration,
        /// What it said meanwhile.
        text: String,
    },
    /// A command in the guest ended with an error.
    #[error("guest {guest}: '{command}' ended with status {status}: {text}")]
    Failed {
        /// The guest.
        guest: String,
        /// The command.
        command: String,
        /// Its exit status.
        status: i32,
        /// What it said.
        text: String,
    },
}

/// What a guest is made of. The default has no device, one CPU, one queue per device and shared memory.
#[derive(Debug, Clone)]
pub struct GuestSpec {
    /// Its name; files in the run folder begin with it.
    pub name: String,
    /// Socket of its network port, and its MAC.
    pub port: Option<(PathBuf, String)>,
    /// Socket of its volume.
    pub volume: Option<PathBuf>,
    /// Its address with prefix length, for example `10.0.0.1/24`.
    pub address: Option<String>,
    /// MiB of memory.
    pub memory_mib: u32,
    /// Whether its memory is shared with the device; without that vhost-user cannot work.
    pub shared_memory: bool,
    /// How many CPUs. A guest uses no more queue pairs of a NIC than it has CPUs.
    pub cpus: u16,
    /// Queue pairs of its NIC and request queues of its disk.
    pub queues: u16,
    /// Properties of the NIC for QEMU beside the usual, for example `host_mtu=1400`.
    pub nic_properties: String,
    /// Properties of the disk for QEMU beside the usual, for example `config-wce=on`.
    pub disk_properties: String,
    /// Whether it has fio.
    pub fio: bool,
    /// More arguments for QEMU.
    pub arguments: Vec<String>,
}

impl Default for GuestSpec {
    fn default() -> Self {
        Self {
            name: "guest".into(),
            port: None,
            volume: None,
            address: None,
            memory_mib: 256,
            shared_memory: true,
            cpus: 1,
            queues: 1,
            nic_properties: String::new(),
            disk_properties: String::new(),
            fio: false,
            arguments: Vec::new(),
        }
    }
}

/// A running guest.
#[derive(Debug)]
pub struct Guest {
    name: String,
    process: Process,
    errors: PathBuf,
    shell: UnixStream,
}

/// The option that makes a vhost-user client socket try again when the other side went away: QEMU 9.2 renamed it,
/// and 11 dropped the old name.
fn reconnect_option() -> io::Result<&'static str> {
    let output = Command::new("qemu-system-x86_64").arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text
        .split_whitespace()
        .skip_while(|word| *word != "version")
        .nth(1)
        .unwrap_or_default();
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    Ok(if version >= (9, 2) {
        "reconnect-ms=1000"
    } else {
        "reconnect=1"
    })
}

impl Guest {
    /// Starts QEMU for `spec`; its files go to `folder`. Returns before the guest has booted.
    pub fn start(spec: &GuestSpec, image: &GuestImage, folder: &Path) -> Result<Self, GuestError> {
        let failed = |source| GuestError::Io {
            guest: spec.name.clone(),
            source,
        };
        let shell_path = folder.join(format!("{}.shell", spec.name));
        let errors = folder.join(format!("{}.err", spec.name));
        let reconnect = reconnect_option().map_err(failed)?;
        let mut process = Process::start(
            &spec.name,
            Path::new("qemu-system-x86_64"),
            |qemu| {
                qemu.args(arguments(spec, image, reconnect));
                qemu.arg("-serial").arg(format!(
                    "file:{}",
                    folder.join(format!("{}.console", spec.name)).display()
                ));
                qemu.arg("-chardev").arg(format!(
                    "socket,id=shell,path={},server=on,wait=off",
                    shell_path.display()
                ));
                qemu.args(["-serial", "chardev:shell"]);
            },
            &errors,
        )
        .map_err(failed)?;
        let shell = wait::until(ANSWER_LIMIT, || {
            process
                .ended()
                .map(Err)
                .or_else(|| UnixStream::connect(&shell_path).ok().map(Ok))
        });
        match shell {
            Some(Ok(shell)) => Ok(Self {
                name: spec.name.clone(),
                process,
                errors,
                shell,
            }),
            Some(Err(status)) => {
                let text = fs::read_to_string(&errors).unwrap_or_default();
                Err(GuestError::Ended {
                    guest: spec.name.clone(),
                    status,
                    text,
                })
            }
            None => Err(failed(io::Error::other("QEMU did not open its shell socket"))),
        }
    }

    /// Waits until the guest's shell is there.
    pub fn wait_booted(&mut self) -> Result<(), GuestError> {
        self.read_until("boot", "@@READY", BOOT_LIMIT).map(|_| ())
    }

    /// Runs one line of shell in the guest; its output, or the error if it ends with another status than 0.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<String, GuestError> {
        match self.try_run(command, limit)? {
            (0, text) => Ok(text),
            (status, text) => Err(GuestError::Failed {
                guest: self.name.clone(),
                command: command.to_owned(),
                status,
                text,
            }),
        }
    }

    /// Runs one line of shell in the guest: its exit status and its output.
    pub fn try_run(&mut self, command: &str, limit: Duration) -> Result<(i32, String), GuestError> {
        let failed = |source| GuestError::Io {
            guest: self.name.clone(),
            source,
        };
        // A mark before the output, so that what an earlier, abandoned command still prints is not taken for it.
        let mark = format!("@@BEGIN{}", std::process::id() ^ self.process.pid());
        self.shell
            .write_all(format!("echo {mark}; {command}\n").as_bytes())
            .map_err(failed)?;
        self.read_until(command, &mark, limit)?;
        let text = self.read_until(command, "@@STATUS ", limit)?;
        let status = self.read_until(command, "\n", limit)?;
        let status = status.trim().parse().map_err(|_| GuestError::Io {
            guest: self.name.clone(),
            source: io::Error::other(format!("the guest's shell answered with status '{status}'")),
        })?;
        Ok((status, text.trim_matches(['\r', '\n']).to_owned()))
    }

    /// Runs one line of shell in the guest beside what comes after it; its output goes to `file` there, and after it
    /// `@@ENDED` with its status.
    pub fn start_in_background(&mut self, command: &str, file: &str) -> Result<(), GuestError> {
        let line = format!("( {{ {command} ; }} >{file} 2>&1; echo @@ENDED $? >>{file} ) &");
        self.run(&line, ANSWER_LIMIT).map(|_| ())
    }

    /// Waits for what [`Guest::start_in_background`] started: its exit status and its output.
    pub fn finish_background(&mut self, file: &str, limit: Duration) -> Result<(i32, String), GuestError> {
        let deadline = Instant::now() + limit;
        loop {
            let text = self.run(&format!("cat {file}"), ANSWER_LIMIT)?;
            if let Some((output, status)) = text.rsplit_once("@@ENDED ")
                && let Ok(status) = status.trim().parse()
            {
                return Ok((status, output.to_owned()));
            }
            if Instant::now() >= deadline {
                return Err(GuestError::TimedOut {
                    guest: self.name.clone(),
                    what: format!("the command that writes to {file}"),
                    limit,
                    text,
                });
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The process id of its QEMU.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What the shell sends up to `mark`, which is taken too.
    fn read_until(&mut self, what: &str, mark: &str, limit: Duration) -> Result<String, GuestError> {
        let deadline = Instant::now() + limit;
        let mut text = Vec::new();
        loop {
            let Some(left) = deadline
                .checked_duration_since(Instant::now())
                .filter(|left| !left.is_zero())
            else {
                return Err(GuestError::TimedOut {
                    guest: self.name.clone(),
                    what: what.to_owned(),
                    limit,
                    text: String::from_utf8_lossy(&text).into_owned(),
                });
            };
            let mut byte = [0];
            let read = self
                .shell
                .set_read_timeout(Some(left))
                .and_then(|()| self.shell.read(&mut byte));
            match read {
                Ok(1) if byte[0] != b'\r' => text.push(byte[0]),
                Ok(1) => {}
                Ok(_) => return Err(self.ended()),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(source) => {
                    return Err(GuestError::Io {
                        guest: self.name.clone(),
                        source,
                    });
                }
            }
            if text.ends_with(mark.as_bytes()) {
                text.truncate(text.len() - mark.len());
                return Ok(String::from_utf8_lossy(&text).into_owned());
            }
        }
    }

    fn ended(&mut self) -> GuestError {
        let text = fs::read_to_string(&self.errors).unwrap_or_default();
        match wait::until(Duration::from_secs(5), || self.process.ended()) {
            Some(status) => GuestError::Ended {
                guest: self.name.clone(),
                status,
                text,
            },
            None => GuestError::Io {
                guest: self.name.clone(),
                source: io::Error::other("QEMU closed its shell"),
            },
        }
    }
}

/// QEMU's arguments. TCG, because a stock kernel cannot be relied on to boot under nested KVM; the oldest CPU model
/// that the kernel likes and no mitigations, because both cost emulation time.
fn arguments(spec: &GuestSpec, image: &GuestImage, reconnect: &str) -> Vec<String> {
    let memory = spec.memory_mib;
    let initramfs = if spec.fio {
        &image.initramfs_fio
    } else {
        &image.initramfs
    };
    let more = |properties: &str| match properties {
        "" => String::new(),
        some => format!(",{some}"),
    };
    let share = if spec.shared_memory { "on" } else { "off" };
    let address = spec
        .address
        .as_ref()
        .map(|address| format!(" outboard.ip={address}"))
        .unwrap_or_default();
    let mut all: Vec<String> = [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-machine",
        "q35,memory-backend=mem0",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "Nehalem-v1",
    ]
    .map(String::from)
    .into();
    all.extend(["-smp".into(), spec.cpus.to_string()]);
    all.extend(["-name".into(), spec.name.clone(), "-m".into(), memory.to_string()]);
    all.extend([
        "-object".into(),
        format!("memory-backend-memfd,id=mem0,size={memory}M,share={share}"),
    ]);
    all.extend(["-kernel".into(), image.kernel.display().to_string()]);
    all.extend(["-initrd".into(), initramfs.display().to_string()]);
    all.extend([
        "-append".into(),
        format!("console=ttyS0 quiet mitigations=off{address}"),
    ]);
    if let Some((socket, mac)) = &spec.port {
        all.extend([
            "-chardev".into(),
            format!("socket,id=port0,path={},{reconnect}", socket.display()),
        ]);
        let (pairs, nic) = (spec.queues, more(&spec.nic_properties));
        all.extend([
            "-netdev".into(),
            format!("vhost-user,id=net0,chardev=port0,queues={pairs}"),
        ]);
        let multi = match pairs {
            1 => String::new(),
            // a vector for each queue, the control queue and changes of the configuration
            pairs => format!(",mq=on,vectors={}", 2 * pairs + 2),
        };
        all.extend([
            "-device".into(),
            format!("virtio-net-pci,netdev=net0,mac={mac}{multi}{nic}"),
        ]);
    }
    if let Some(socket) = &spec.volume {
        all.extend([
            "-chardev".into(),
            format!("socket,id=volume0,path={},{reconnect}", socket.display()),
        ]);
        all.extend([
            "-device".into(),
            format!(
                "vhost-user-blk-pci,chardev=volume0,num-queues={}{}",
                spec.queues,
                more(&spec.disk_properties)
            ),
        ]);
    }
    all.extend(spec.arguments.iter().cloned());
    all
}
