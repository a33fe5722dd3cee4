//! libblkio, the library by which QEMU and others drive a vhost-user-blk device without a guest: the library itself, by
//! its Rust crate, reads and writes a volume through the real shim and DPU, and sees nothing of a DPU that is killed.

use std::{
    fs::File,
    mem::MaybeUninit,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};
use outboard_integration::site::{LIMIT, Outcome, Site};
use tempfile::TempPath;

const VOLUME_LEN: u64 = 1 << 20;
const BLOCK_LEN: usize = 4096;
/// Requests that a queue has in flight.
const DEPTH: usize = 16;

/// How the client uses its queues.
#[derive(Debug, Clone, Copy)]
struct Mode {
    queues: i32,
    /// It looks at the used ring all the time, and wants no calls.
    polls: bool,
    queue_size: i32,
}

const MODES: [Mode; 4] = [
    Mode {
        queues: 1,
        polls: false,
        queue_size: 256,
    },
    Mode {
        queues: 4,
        polls: false,
        queue_size: 64,
    },
    Mode {
        queues: 1,
        polls: true,
        queue_size: 128,
    },
    Mode {
        queues: 2,
        polls: true,
        queue_size: 256,
    },
];

/// A site with a volume in a file.
fn site() -> Outcome<(Site, TempPath)> {
    let file = tempfile::Builder::new().prefix("outboard-disk.").tempfile()?;
    file.as_file().set_len(VOLUME_LEN)?;
    let disk = file.into_temp_path();
    let site = Site::new(&format!(
        "[[network]]\nname = \"blue\"\nsubnets = [\"10.0.0.0/24\"]\n\
         [[volume]]\nname = \"disk1\"\nsize = \"1MiB\"\nbackend = {{ file = \"{}\" }}\ncard = \"local\"\n",
        disk.display()
    ))?;
    Ok((site, disk))
}

/// A started device, and a buffer of [`DEPTH`] blocks that it may use.
struct Client {
    queues: Vec<Blkioq>,
    region: MemoryRegion,
    /// The same memory.
    memory: File,
    // dropped last: it owns the region
    device: Blkio,
}

impl Client {
    fn start(site: &Site, mode: Mode) -> Outcome<Self> {
        let socket = site.run_path("volumes/disk1.sock");
        // a session that ended a moment ago frees the device a moment later
        let begun = Instant::now();
        loop {
            match Self::try_start(&socket.to_string_lossy(), mode) {
                Ok(client) => return Ok(client),
                Err(error) if begun.elapsed() > LIMIT => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn try_start(socket: &str, mode: Mode) -> Outcome<Self> {
        let mut device = Blkio::new("virtio-blk-vhost-user")?;
        device.set_str("path", socket)?;
        device.connect()?;
        assert_eq!(device.get_u64("capacity")?, VOLUME_LEN);
        assert_eq!(device.get_i32("max-queues")?, 16);
        assert!(device.get_bool("flush-needed")? && !device.get_bool("read-only")?);
        let kind = if mode.polls { "num-poll-queues" } else { "num-queues" };
        device.set_i32("num-queues", 0)?;
        device.set_i32(kind, mode.queues)?;
        device.set_i32("queue-size", mode.queue_size)?;
        let started = device.start()?;
        let queues = if mode.polls {
            started.poll_queues
        } else {
            started.queues
        };
        let region = device.alloc_mem_region(DEPTH * BLOCK_LEN)?;
        device.map_mem_region(&region)?;
        let memory = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/self/fd/{}", region.fd))?;
        Ok(Self {
            queues,
            region,
            memory,
            device,
        })
    }

    /// Where block `slot` of the buffer is.
    fn at(&self, slot: usize) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.region.addr + slot * BLOCK_LEN)
    }

    /// Waits for `count` requests of a queue, each of which has to succeed, and be of `0..count`, once.
    fn complete(&mut self, queue: usize, count: usize, polls: bool) -> Outcome {
        let mut done = vec![false; count];
        let until = Instant::now() + LIMIT;
        while done.contains(&false) {
            if Instant::now() > until {
                return Err(format!("queue {queue}: not all of {count} requests are answered: {done:?}").into());
            }
            let mut room: [MaybeUninit<Completion>; DEPTH] = [const { MaybeUninit::uninit() }; DEPTH];
            let (least, mut patience) = (usize::from(!polls), LIMIT);
            let given = self.queues[queue].do_io(&mut room, least, Some(&mut patience), None)?;
            for completion in completions(&room, given) {
                let (data, result) = completion;
                assert_eq!(result, 0, "request {data} of queue {queue} succeeds");
                assert!(
                    !std::mem::replace(&mut done[data], true),
                    "request {data} is answered once"
                );
            }
        }
        Ok(())
    }

    /// Writes `DEPTH` blocks from block `first` on, in one go, each filled with its number and `stamp`.
    fn write(&mut self, queue: usize, first: usize, stamp: u8) -> Outcome {
        for slot in 0..DEPTH {
            self.memory
                .write_all_at(&block(first + slot, stamp), (slot * BLOCK_LEN) as u64)?;
            let from = self.at(slot);
            let start = ((first + slot) * BLOCK_LEN) as u64;
            self.queues[queue].write(start, from, BLOCK_LEN, slot, ReqFlags::empty());
        }
        Ok(())
    }

    /// Reads `DEPTH` blocks from block `first` on.
    fn read(&mut self, queue: usize, first: usize, polls: bool) -> Outcome<Vec<u8>> {
        self.memory.write_all_at(&[0xee; DEPTH * BLOCK_LEN], 0)?;
        for slot in 0..DEPTH {
            let to = self.at(slot);
            let start = ((first + slot) * BLOCK_LEN) as u64;
            self.queues[queue].read(start, to, BLOCK_LEN, slot, ReqFlags::empty());
        }
        self.complete(queue, DEPTH, polls)?;
        let mut bytes = vec![0; DEPTH * BLOCK_LEN];
        self.memory.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

fn block(number: usize, stamp: u8) -> Vec<u8> {
    let number = u32::try_from(number).unwrap_or_default().to_le_bytes();
    let unit = [number[0], number[1], number[2], stamp];
    unit.iter().copied().cycle().take(BLOCK_LEN).collect()
}

fn blocks(first: usize, stamp: u8) -> Vec<u8> {
    (first..first + DEPTH).flat_map(|number| block(number, stamp)).collect()
}

/// Request and result of each of the first `given` completions.
fn completions(room: &[MaybeUninit<Completion>], given: usize) -> Vec<(usize, i32)> {
    let told = room.iter().take(given);
    told.map(|completion| {
        // SAFETY: libblkio has filled as many as it says.
        let completion = unsafe { completion.assume_init_ref() };
        (completion.user_data, completion.ret)
    })
    .collect()
}

/// One client of `mode`: what it writes on one queue it reads on another, zeroes, discards and flushes.
fn serves(site: &Site, mode: Mode, stamp: u8) -> Outcome {
    let mut client = Client::start(site, mode)?;
    let (queues, polls) = (client.queues.len(), mode.polls);
    let firsts: Vec<usize> = (0..VOLUME_LEN.try_into().unwrap_or(usize::MAX) / BLOCK_LEN)
        .step_by(DEPTH)
        .collect();
    for (turn, first) in firsts.iter().enumerate() {
        let queue = turn % queues;
        client.write(queue, *first, stamp)?;
        client.complete(queue, DEPTH, polls)?;
    }
    client.queues[0].flush(0, ReqFlags::empty());
    client.complete(0, 1, polls)?;
    for (turn, first) in firsts.iter().enumerate() {
        let read = client.read((turn + 1) % queues, *first, polls)?;
        assert_eq!(read, blocks(*first, stamp), "{mode:?}: blocks from {first} on");
    }

    let zeroed = (2 * DEPTH * BLOCK_LEN) as u64;
    let len = (DEPTH * BLOCK_LEN) as u64;
    assert!(client.device.get_u64("max-write-zeroes-len")? >= len && client.device.get_u64("max-discard-len")? >= len);
    client.queues[0].write_zeroes(zeroed, len, 0, ReqFlags::NO_UNMAP);
    client.complete(0, 1, polls)?;
    assert_eq!(
        client.read(0, 2 * DEPTH, polls)?,
        vec![0; DEPTH * BLOCK_LEN],
        "{mode:?}"
    );
    // what is read after a discard nobody promises; its neighbours stay
    client.queues[0].discard(zeroed, len, 0, ReqFlags::empty());
    client.complete(0, 1, polls)?;
    for first in [DEPTH, 3 * DEPTH] {
        assert_eq!(client.read(0, first, polls)?, blocks(first, stamp), "{mode:?}");
    }
    Ok(())
}

#[test]
fn libblkio_is_served() -> Outcome {
    let (site, disk) = site()?;
    for (mode, stamp) in MODES.into_iter().zip(1..) {
        serves(&site, mode, stamp).map_err(|error| format!("{mode:?}: {error}\n{}", site.log("dpu")))?;
    }
    // and it is in the file
    let mut stored = vec![0; DEPTH * BLOCK_LEN];
    File::open(&disk)?.read_exact_at(&mut stored, 0)?;
    assert_eq!(stored, blocks(0, u8::try_from(MODES.len())?));
    Ok(())
}

/// It negotiates no region for what is in flight: the shim has one all the same.
#[test]
fn libblkio_sees_nothing_of_a_dpu_that_is_killed() -> Outcome {
    const ROUNDS: u8 = 10;
    let (mut site, _disk) = site()?;
    let mode = Mode {
        queues: 2,
        polls: false,
        queue_size: 64,
    };
    let mut client = Client::start(&site, mode)?;
    for round in 1..=ROUNDS {
        client.write(0, 0, round)?;
        // nothing is told to the device before this
        let mut room = [const { MaybeUninit::uninit() }; 1];
        assert_eq!(client.queues[0].do_io(&mut room[..0], 0, None, None)?, 0);
        site.kill("dpu")?;
        site.start("dpu")?;
        client.complete(0, DEPTH, false)?;
        client.queues[1].flush(0, ReqFlags::empty());
        client.complete(1, 1, false)?;
        assert_eq!(client.read(1, 0, false)?, blocks(0, round), "round {round}");
    }
    Ok(())
}
