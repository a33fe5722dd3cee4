//! What this machine has for measuring.

use std::{collections::BTreeSet, fs};

use crate::error::Failure;

/// How much of huge pages all DPDK programs of a case need together. With less all use ordinary pages.
const HUGE_BYTES_MIN: u64 = 1 << 30;

/// Cores and memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Core of the backend.
    pub backend_core: usize,
    /// Core of the generator.
    pub generator_core: usize,
    /// Enough huge pages are free for DPDK's own buffers.
    pub huge_pages: bool,
    /// Name of the processor.
    pub processor: String,
    /// Processors in use.
    pub cores: usize,
    /// Memory, in GiB.
    pub memory_gib: u64,
}

impl Machine {
    /// This one.
    pub fn new() -> Result<Self, Failure> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cores = parse_cores(&read("/proc/self/status"));
        let (backend_core, generator_core) = two_cores(&cores).ok_or_else(|| {
            let what = format!(
                "{} core usable; the backend and the generator need one each",
                cores.len()
            );
            Failure::new(
                "bench-peers",
                what,
                "run it on a machine with two cores, without taskset",
            )
        })?;
        let memory = read("/proc/meminfo");
        let huge = meminfo(&memory, "HugePages_Free").unwrap_or(0) * meminfo(&memory, "Hugepagesize").unwrap_or(0);
        let processors = read("/proc/cpuinfo");
        let name = processors.lines().find_map(|line| line.strip_prefix("model name"));
        Ok(Self {
            backend_core,
            generator_core,
            huge_pages: huge << 10 >= HUGE_BYTES_MIN,
            processor: name
                .map_or("unknown", |name| name.trim_start_matches([' ', '\t', ':']))
                .to_owned(),
            cores: cores.len(),
            memory_gib: (meminfo(&memory, "MemTotal").unwrap_or(0) + (1 << 19)) >> 20,
        })
    }

    /// In one line.
    pub fn described(&self) -> String {
        let huge = if self.huge_pages { "huge pages" } else { "no huge pages" };
        let (processor, cores, memory) = (&self.processor, self.cores, self.memory_gib);
        let (backend, generator) = (self.backend_core, self.generator_core);
        format!(
            "{processor}, {cores} cores, {memory} GiB, {huge}; backend on core {backend}, generator on core {generator}"
        )
    }
}

/// The last two cores: the first ones have most of the interrupts. Two threads of one physical core would share it.
fn two_cores(cores: &BTreeSet<usize>) -> Option<(usize, usize)> {
    let generator = *cores.last()?;
    let twins = parse_list(
        &fs::read_to_string(format!(
            "/sys/devices/system/cpu/cpu{generator}/topology/thread_siblings_list"
        ))
        .unwrap_or_default(),
    );
    let apart = cores.iter().rev().find(|core| !twins.contains(core));
    let backend = apart.or_else(|| cores.iter().rev().nth(1))?;
    Some((*backend, generator))
}

fn parse_cores(status: &str) -> BTreeSet<usize> {
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    parse_list(list.unwrap_or_default())
}

/// A list as the kernel writes it: `0-3,8`.
fn parse_list(text: &str) -> BTreeSet<usize> {
    let ranges = text.trim().split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    });
    ranges.flatten().collect()
}

/// A number of `/proc/meminfo`, without its unit.
fn meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lists_are_read() {
        assert_eq!(parse_list("0-2,8\n"), BTreeSet::from([0, 1, 2, 8]));
        assert_eq!(parse_list("\n"), BTreeSet::new());
        let status = "Name:\tx\nCpus_allowed:\t3\nCpus_allowed_list:\t0-1\n";
        assert_eq!(parse_cores(status), BTreeSet::from([0, 1]));
        assert_eq!(
            meminfo("MemTotal:  49368192 kB\nHugePages_Free:  12\n", "HugePages_Free"),
            Some(12)
        );
    }

    #[test]
    fn one_core_is_too_few() {
        assert_eq!(two_cores(&BTreeSet::from([0])), None);
        assert!(two_cores(&BTreeSet::from([0, 1])).is_some_and(|(backend, generator)| backend != generator));
    }
}
