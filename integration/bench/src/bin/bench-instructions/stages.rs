//! Samples of time, by what the device was at.
//!
//! A sample is a stack of functions, inlined ones too, each with its source file. What a function is for often only shows
//! in who called it (a copy may be of headers or of payload), so the innermost function counts that belongs to a stage.

use outboard_bench::error::Failure;
use serde::Serialize;

use crate::WHO;

/// A part of the walk, and its share of an operation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stage {
    /// What it is.
    pub name: &'static str,
    /// Its time, in nanoseconds of an operation.
    pub nanoseconds: f64,
    /// Its time, of all that the device spent.
    pub percent: f64,
}

/// Samples that were split.
#[derive(Debug)]
pub struct Timed {
    /// Of the device: time in which it ran, not in which it waited for a core.
    pub nanoseconds_per_operation: f64,
    /// Samples in the device.
    pub samples: u64,
    /// Those that were seen, most first.
    pub stages: Vec<Stage>,
}

const OTHER: &str = "loop, counters, calls between the parts";

/// Source file (its end), functions in it (all if none is named), and what they are for; the first that matches counts.
const RULES: &[(&str, &[&str], &str)] = &[
    ("ring/src/walk.rs", &[], "descriptors: read and check the chain"),
    (
        "ring/src/split.rs",
        &["take", "pop", "look_ahead", "read_avail_idx"],
        "descriptors: read and check the chain",
    ),
    (
        "ring/src/split.rs",
        &["push_used", "stage_unwritten", "end_batch", "check_order", "publish"],
        "used entries: stage and publish",
    ),
    (
        "vhost-net-dpu/src/queue.rs",
        &["pop"],
        "descriptors: read and check the chain",
    ),
    (
        "vhost-net-dpu/src/queue.rs",
        &["push", "flush"],
        "used entries: stage and publish",
    ),
    (
        "vhost-net-dpu/src/rx.rs",
        &["reserve", "unfit"],
        "descriptors: read and check the chain",
    ),
    (
        "vhost-net-dpu/src/rx.rs",
        &["give_plain", "write", "scatter"],
        "write the frame: header, head and payload",
    ),
    (
        "ring/src/split.rs",
        &["next_room", "take_filled"],
        "write the frame: header, head and payload",
    ),
    ("ring/src/chain.rs", &["read_at"], "copy the head to private memory"),
    ("vhost-net-dpu/src/packet/", &[], "parse the headers"),
    ("vhost-net-dpu/src/offload.rs", &[], "check the offloads"),
    ("vhost-net-dpu/src/header.rs", &[], "check the offloads"),
    ("vhost-net-dpu/src/segment.rs", &[], "cut and sum"),
    ("vhost-net-dpu/src/checksum.rs", &[], "cut and sum"),
    ("vswitch/src/layers/source_guard", &[], "source guard"),
    ("vswitch/src/layers/l2.rs", &[], "look the station up"),
    ("vswitch/src/flow.rs", &[], "choose the queue"),
    ("vhost-net-dpu/src/record.rs", &[], "parse the headers"),
    ("vhost-net-dpu/src/tx.rs", &["inspect"], "parse the headers"),
    ("vhost-net-dpu/src/tx.rs", &["fetch"], "copy the head to private memory"),
    ("vhost-blk-dpu/src/request.rs", &[], "parse the request"),
    (
        "storage/src/buffer.rs",
        &["fill", "clear"],
        "make and give up the command's buffer",
    ),
    ("storage/src/", &[], "backend, its copy included"),
    ("nvme/src/", &[], "NVMe command and completion"),
    ("vhost-blk-dpu/src/slot.rs", &[], "NVMe command and completion"),
    ("vhost-blk-dpu/src/answer.rs", &[], "answer: status and used entry"),
];

/// Files of the device in which nothing is told apart.
const DEVICE: &[&str] = &[
    "vswitch/src/",
    "vhost-net-dpu/src/",
    "vhost-net-dpu/ring/src/",
    "vhost-blk-dpu/src/",
];

/// Splits what `perf script` printed of a run that did so many operations, with a sample each `period_ns`.
///
/// # Errors
/// There is no sample of the device.
pub fn split(script: &str, period_ns: u64, operations: u64) -> Result<Timed, Failure> {
    let mut counts: Vec<(&'static str, u64)> = Vec::new();
    for sample in script.split("\n\n") {
        let Some(stage) = stage(sample) else { continue };
        match counts.iter_mut().find(|(name, _)| *name == stage) {
            Some((_, count)) => *count += 1,
            None => counts.push((stage, 1)),
        }
    }
    let samples: u64 = counts.iter().map(|(_, count)| count).sum();
    if samples == 0 {
        let remedy = "let perf take samples (kernel.perf_event_paranoid), and have the program not stripped";
        return Err(Failure::new(WHO, "no sample is of the device", remedy));
    }
    let nanoseconds_per_operation = real(samples) * real(period_ns) / real(operations.max(1));
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let stages = counts.into_iter().map(|(name, count)| {
        let share = real(count) / real(samples);
        Stage {
            name,
            nanoseconds: (share * nanoseconds_per_operation * 10.0).round() / 10.0,
            percent: (share * 1000.0).round() / 10.0,
        }
    });
    Ok(Timed {
        nanoseconds_per_operation,
        samples,
        stages: stages.collect(),
    })
}

/// What a sample belongs to; `None` if it is not the device's. Each frame is two lines: function, then file and line.
fn stage(sample: &str) -> Option<&'static str> {
    let mut lines = sample.lines().filter(|line| !line.trim().is_empty()).peekable();
    let mut in_device = false;
    while let Some(line) = lines.next() {
        let Some(place) = lines.next_if(|next| next.starts_with("  ") && next.contains(':')) else {
            continue;
        };
        let file = place.trim().split(':').next().unwrap_or_default();
        let function = base_name(line);
        let found = RULES
            .iter()
            .find(|(end, names, _)| file.contains(end) && (names.is_empty() || names.contains(&function)));
        if let Some((.., stage)) = found {
            return Some(stage);
        }
        in_device |= DEVICE.iter().any(|end| file.contains(end));
    }
    in_device.then_some(OTHER)
}

/// The last part of a function's name, without its generic arguments.
fn base_name(line: &str) -> &str {
    let symbol = line.trim().split_once(' ').map_or("", |(_, symbol)| symbol);
    let plain = symbol.split('<').next().unwrap_or(symbol);
    plain.rsplit("::").next().unwrap_or(plain)
}

#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn real(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const COPY_OF_HEAD: &str = "\t           8a1 __memmove_avx_unaligned_erms\n  /libc/memmove.S:262\n\
        \t           8a0 read_at\n  /p/vhost-net-dpu/ring/src/chain.rs:94 (inlined)\n\
        \t           847 vhost_net_dpu::tx::TxQueue::take\n  /p/vhost-net-dpu/src/tx.rs:82\n";
    const WRITE: &str = "\t           8a1 __memmove_avx_unaligned_erms\n  /libc/memmove.S:262\n\
        \t           8a0 scatter<vhost_net_dpu::rx::{impl#1}::write>\n  /p/vhost-net-dpu/src/rx.rs:94 (inlined)\n";
    const LOOP: &str = "\t           798e5 burst\n  /p/dpu-side/vswitch/src/switch.rs:226 (inlined)\n";
    const DRIVER: &str = "\t           6 send\n  /p/integration/generator/src/ring.rs:1\n";

    #[test]
    fn a_copy_belongs_to_whoever_asked_for_it() {
        assert_eq!(stage(COPY_OF_HEAD), Some("copy the head to private memory"));
        assert_eq!(stage(WRITE), Some("write the frame: header, head and payload"));
        assert_eq!(stage(LOOP), Some(OTHER));
        assert_eq!(stage(DRIVER), None);
    }

    #[test]
    fn the_time_is_split_by_samples_of_the_device_alone() {
        let timed = split(&[WRITE, DRIVER, WRITE, LOOP, WRITE].join("\n"), 1000, 20).expect("samples");
        assert_eq!(timed.samples, 4);
        assert!((timed.stages[0].nanoseconds - 150.0).abs() < 1e-9);
        assert!(split(DRIVER, 1000, 20).is_err());
    }
}
