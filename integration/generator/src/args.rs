//! The command line.

use std::{net::Ipv4Addr, path::PathBuf, str::FromStr};

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Plays a guest's network or block driver over vhost-user against any back-end, loads it, and checks what comes back.
///
/// One process is one thread: pin it with --core to a core of its own. The result is one line for people, or with
/// --json one JSON object; what was counted is in it also when the run fails. The exit status is 0 only if counts,
/// order and compared content are right.
#[derive(Debug, Parser)]
#[command(name = "outboard-generator", version, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Sends frames into one port and takes them out of another.
    Net(NetArgs),
    /// Sends requests to a disk.
    Blk(BlkArgs),
    /// Measures the generator alone: the frames per second that it sends and receives while a thread on another core
    /// only copies frames from one ring to the other. A back-end's result near this is the generator's, not its own.
    Ceiling(CeilingArgs),
}

/// Who opens the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// The back-end listens, as testpmd's net_vhost, qemu-storage-daemon and Outboard's shim do.
    Connect,
    /// The back-end connects, as OVS' dpdkvhostuserclient and Outboard's shim in that mode do.
    Listen,
}

/// How rings are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Notify {
    /// The driver polls and asks for no calls, as DPDK's does. EVENT_IDX is not negotiated.
    Poll,
    /// The driver sleeps on its call eventfds when there is nothing to do, as Linux' does. EVENT_IDX is negotiated if
    /// offered.
    Eventfd,
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Frames from A to B as fast as A's ring takes them.
    Oneway,
    /// Both ways at once; what arrives at both ends is summed up.
    Bidir,
    /// One frame at a time, from A to B and back; latency is that of a round trip.
    Pingpong,
    /// New connections as fast as they come through. TCP: SYN, SYN-ACK, ACK; UDP: one datagram each way.
    Newconn,
    /// Round trips at a fixed --rate, whatever happens to those before; the longest gap between two answers is reported.
    Paced,
    /// TCP segments of about 64 KiB, left to the back-end to cut or to hand on whole.
    Tso,
    /// Nothing, once a frame has come through both ways: queues that run and rest.
    Idle,
    /// A second pair of ports (--victim-a, --victim-b) beside the first: both send as fast as they can; then the first
    /// pair sends the same number of frames a second as an --attack. Told is what is left of the second pair's rate.
    Victim,
}

/// What the first pair sends in `victim`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Attack {
    /// Datagrams from any port to any port: no cache has seen them.
    Tuples,
    /// Datagrams that differ from what is allowed in one bit of the address and one of the port, and at random behind
    /// those: each makes a cache of masked flows keep another mask.
    Masks,
    /// Datagrams that are allowed, each of a connection of its own.
    Connections,
}

/// Transport protocol of the frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum L4 {
    /// UDP.
    Udp,
    /// TCP, as data of connections that stand.
    Tcp,
}

/// A MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Option<Vec<u8>> = text
            .split(':')
            .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2))
            .collect();
        let mac = parts.and_then(|parts| <[u8; 6]>::try_from(parts).ok());
        mac.map(Self).ok_or_else(|| "write a MAC as 52:54:00:00:00:0a".into())
    }
}

/// Arguments of `net`.
#[derive(Debug, Clone, Parser)]
pub struct NetArgs {
    /// Socket of the port that sends (and starts).
    #[arg(long, value_name = "PATH")]
    pub a: PathBuf,
    /// Socket of the port that receives (and answers).
    #[arg(long, value_name = "PATH")]
    pub b: PathBuf,
    /// Who opens the sockets.
    #[arg(long, value_enum, default_value_t = Role::Connect)]
    pub role: Role,
    /// What is sent.
    #[arg(long, value_enum, default_value_t = Mode::Oneway)]
    pub mode: Mode,
    /// Bytes of a frame on a wire, with the 4 of its frame check sequence: 64 are 60 in the ring.
    #[arg(long, value_name = "BYTES", default_value_t = 64)]
    pub frame: u16,
    /// Number of flows, 1 to 10,000,000: their source port varies first, then their destination port. Each is sent once
    /// each way before anything is measured.
    #[arg(long, default_value_t = 1)]
    pub flows: u32,
    /// Seconds to measure.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Seconds to run before that.
    #[arg(long, default_value_t = 1.0)]
    pub warmup: f64,
    /// Frames per second for `paced` (1000 by default), or a limit of each direction for `oneway` and `bidir`.
    #[arg(long, value_name = "PPS")]
    pub rate: Option<f64>,
    /// Transport protocol.
    #[arg(long, value_enum, default_value_t = L4::Udp)]
    pub l4: L4,
    /// Share of frames in `oneway` and `bidir` that go to --deny-port, which the back-end must drop. One that arrives
    /// fails the run.
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    pub deny_percent: f64,
    /// Destination port of frames that must be dropped.
    #[arg(long, value_name = "PORT", default_value_t = 7)]
    pub deny_port: u16,
    /// First destination port of the flows. Allow 1024 ports from here on for many flows (5120 is 0x1400/0xfc00).
    #[arg(long, value_name = "PORT", default_value_t = 5120)]
    pub port: u16,
    /// MAC of A.
    #[arg(long, value_name = "MAC", default_value = "52:54:00:00:00:0a")]
    pub mac_a: Mac,
    /// MAC of B.
    #[arg(long, value_name = "MAC", default_value = "52:54:00:00:00:0b")]
    pub mac_b: Mac,
    /// IPv4 address of A.
    #[arg(long, value_name = "ADDRESS", default_value = "10.0.0.10")]
    pub ip_a: Ipv4Addr,
    /// IPv4 address of B.
    #[arg(long, value_name = "ADDRESS", default_value = "10.0.0.11")]
    pub ip_b: Ipv4Addr,
    /// What A sends in `victim`.
    #[arg(long, value_enum, default_value_t = Attack::Tuples)]
    pub attack: Attack,
    /// Socket of the port that sends beside A; of `victim` only.
    #[arg(long, value_name = "PATH")]
    pub victim_a: Option<PathBuf>,
    /// Socket of the port that receives beside B; of `victim` only.
    #[arg(long, value_name = "PATH")]
    pub victim_b: Option<PathBuf>,
    /// MAC of the port beside A.
    #[arg(long, value_name = "MAC", default_value = "52:54:00:00:00:0c")]
    pub victim_mac_a: Mac,
    /// MAC of the port beside B.
    #[arg(long, value_name = "MAC", default_value = "52:54:00:00:00:0d")]
    pub victim_mac_b: Mac,
    /// IPv4 address of the port beside A.
    #[arg(long, value_name = "ADDRESS", default_value = "10.0.0.12")]
    pub victim_ip_a: Ipv4Addr,
    /// IPv4 address of the port beside B.
    #[arg(long, value_name = "ADDRESS", default_value = "10.0.0.13")]
    pub victim_ip_b: Ipv4Addr,
    /// Poll, or sleep on eventfds.
    #[arg(long, value_enum, default_value_t = Notify::Poll)]
    pub notify: Notify,
    /// Descriptors of each queue, a power of two.
    #[arg(long, value_name = "COUNT", default_value_t = 1024)]
    pub queue_size: u16,
    /// Frames sent and taken at a time.
    #[arg(long, value_name = "FRAMES", default_value_t = 32)]
    pub burst: u16,
    /// Frames on their way at most in `oneway` and `bidir` (each way), handshakes in `newconn`; 0 is no limit. With one
    /// below --queue-size no back-end need drop, and any loss is a fault.
    #[arg(long, value_name = "FRAMES")]
    pub window: Option<u32>,
    /// Fail if more frames are lost than this share of those sent. By default `pingpong` and `paced` lose none, and the
    /// other modes, which overload, any number.
    #[arg(long, value_name = "PERCENT")]
    pub max_loss_percent: Option<f64>,
    /// Each frame of which the sequence number is a multiple of this is filled anew and compared as a whole; a power of
    /// two.
    #[arg(long, value_name = "FRAMES", default_value_t = 64)]
    pub sample: u32,
    /// Payload of each packet that a TSO frame may be cut into.
    #[arg(long, value_name = "BYTES", default_value_t = 1448)]
    pub mss: u16,
    /// How it runs.
    #[command(flatten)]
    pub common: Common,
}

/// Operations on blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Op {
    /// Reads at random places.
    Randread,
    /// Writes at random places.
    Randwrite,
    /// Reads from the beginning on.
    Read,
    /// Writes from the beginning on.
    Write,
}

impl Op {
    /// Does it write?
    pub fn writes(self) -> bool {
        matches!(self, Self::Randwrite | Self::Write)
    }

    /// Random places?
    pub fn random(self) -> bool {
        matches!(self, Self::Randread | Self::Randwrite)
    }

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Randread => "randread",
            Self::Randwrite => "randwrite",
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// Arguments of `blk`.
#[derive(Debug, Clone, Parser)]
pub struct BlkArgs {
    /// Socket of the disk.
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Who opens the socket.
    #[arg(long, value_enum, default_value_t = Role::Connect)]
    pub role: Role,
    /// What to do. Writing destroys what is on the disk.
    #[arg(long, value_enum, default_value_t = Op::Randread)]
    pub op: Op,
    /// Bytes of a request, a multiple of 512.
    #[arg(long, value_name = "BYTES", default_value_t = 4096)]
    pub block: u32,
    /// Requests in flight.
    #[arg(long, value_name = "REQUESTS", default_value_t = 32)]
    pub depth: u16,
    /// Seconds to measure.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Seconds to run before that.
    #[arg(long, default_value_t = 1.0)]
    pub warmup: f64,
    /// A flush after each so many writes; 0 is never.
    #[arg(long, value_name = "WRITES", default_value_t = 0)]
    pub flush_every: u32,
    /// Bytes from the beginning of the disk on that are used; all of it by default, 64 MiB with --verify.
    #[arg(long, value_name = "BYTES")]
    pub span: Option<u64>,
    /// Check content: each block written bears its number, how often it was written, and a checksum; reads compare them.
    /// Reads are preceded, and writes followed, by a pass over the whole span. Destroys what is on the disk, also with
    /// reads.
    #[arg(long)]
    pub verify: bool,
    /// Poll, or sleep on eventfds.
    #[arg(long, value_enum, default_value_t = Notify::Poll)]
    pub notify: Notify,
    /// Descriptors of the queue, a power of two.
    #[arg(long, value_name = "COUNT", default_value_t = 256)]
    pub queue_size: u16,
    /// Use three descriptors a request also where INDIRECT_DESC is offered.
    #[arg(long)]
    pub no_indirect: bool,
    /// How it runs.
    #[command(flatten)]
    pub common: Common,
}

/// What the generator's ceiling is measured with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CeilingMode {
    /// Frames, as `net --mode oneway` sends them.
    Oneway,
    /// Segments of about 64 KiB, as `net --mode tso` sends them: what one thread's memcpy carries from the buffers of one
    /// guest to those of another.
    Tso,
}

/// Arguments of `ceiling`.
#[derive(Debug, Clone, Parser)]
pub struct CeilingArgs {
    /// What is sent.
    #[arg(long, value_enum, default_value_t = CeilingMode::Oneway)]
    pub mode: CeilingMode,
    /// Bytes of a frame, as for `net`.
    #[arg(long, value_name = "BYTES", default_value_t = 64)]
    pub frame: u16,
    /// Number of flows, as for `net`.
    #[arg(long, default_value_t = 1)]
    pub flows: u32,
    /// Seconds to measure.
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// Seconds to run before that.
    #[arg(long, default_value_t = 0.5)]
    pub warmup: f64,
    /// Core of the thread that moves frames.
    #[arg(long, value_name = "CORE")]
    pub peer_core: Option<usize>,
    /// Descriptors of each queue, a power of two.
    #[arg(long, value_name = "COUNT", default_value_t = 1024)]
    pub queue_size: u16,
    /// Frames sent and taken at a time.
    #[arg(long, value_name = "FRAMES", default_value_t = 32)]
    pub burst: u16,
    /// How it runs.
    #[command(flatten)]
    pub common: Common,
}

/// Arguments of all commands.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Core to pin the thread to.
    #[arg(long, value_name = "CORE")]
    pub core: Option<usize>,
    /// Take the guest's memory from the kernel's pool of 2 MiB pages (vm.nr_hugepages).
    #[arg(long)]
    pub hugepages: bool,
    /// Seconds to wait for the back-end, and for the first frame to come through.
    #[arg(long, value_name = "SECONDS", default_value_t = 15)]
    pub patience: u64,
    /// Print the result as one JSON object.
    #[arg(long)]
    pub json: bool,
}
