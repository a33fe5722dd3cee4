//! Huge pages for the time of the runs: DPDK's figures without them are not those that its users know.

use std::fs;

/// The kernel's pool of pages of its default huge size.
const POOL: &str = "/proc/sys/vm/nr_hugepages";
/// What all programs of a case need together, for their buffers and for the memory of the guests.
const WANTED_BYTES: u64 = 2 << 30;
/// What has to be left to everybody else.
const SPARED_BYTES: u64 = 4 << 30;

/// The kernel's pool, and how large it was before.
#[derive(Debug, Clone, Default)]
pub struct HugePages {
    before: Option<u64>,
}

/// Numbers of `/proc/meminfo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pool {
    total: u64,
    free: u64,
    page_bytes: u64,
    available_bytes: u64,
}

impl HugePages {
    /// Raises the pool until [`HugePages::put_back`], if that is permitted (to root) and memory is plentiful. Otherwise it
    /// stays as it is, and without enough of them all programs use ordinary pages.
    pub fn reserve() -> Self {
        let Some(pool) = Pool::parse(&fs::read_to_string("/proc/meminfo").unwrap_or_default()) else {
            return Self::default();
        };
        let Some(total) = pool.to_reserve() else {
            return Self::default();
        };
        let raised = fs::write(POOL, total.to_string()).is_ok();
        Self {
            before: raised.then_some(pool.total),
        }
    }

    /// Makes the pool what it was.
    pub fn put_back(&self) {
        if let Some(before) = self.before {
            // the machine's owner sees it in /proc/meminfo should it fail, which it does for nobody who could raise it
            let _ = fs::write(POOL, before.to_string());
        }
    }
}

impl Pool {
    fn parse(meminfo: &str) -> Option<Self> {
        let number = |key: &str| -> Option<u64> {
            let line = meminfo
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Some(Self {
            total: number("HugePages_Total")?,
            free: number("HugePages_Free")?,
            page_bytes: number("Hugepagesize")? << 10,
            available_bytes: number("MemAvailable")? << 10,
        })
    }

    /// How large to make the pool; none if it is large enough, or memory is short.
    fn to_reserve(self) -> Option<u64> {
        let missing = WANTED_BYTES.checked_sub(self.free.checked_mul(self.page_bytes)?)?;
        let pages = missing.checked_div(self.page_bytes)?;
        let room = self.available_bytes.checked_sub(SPARED_BYTES)?;
        (pages > 0 && missing <= room).then_some(self.total + pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal: 24576000 kB\nMemAvailable: 20480000 kB\nHugePages_Total: 8\nHugePages_Free: 4\n\
        Hugepagesize: 2048 kB\n";

    #[test]
    fn what_is_missing_is_reserved() {
        let pool = Pool::parse(MEMINFO);
        assert_eq!(pool.and_then(Pool::to_reserve), Some(8 + 1024 - 4));
    }

    #[test]
    fn what_is_there_is_enough_and_what_others_need_is_theirs() {
        let pool = Pool {
            total: 2048,
            free: 2048,
            page_bytes: 2 << 20,
            available_bytes: 16 << 30,
        };
        assert_eq!(pool.to_reserve(), None);
        let short = Pool {
            free: 0,
            available_bytes: 5 << 30,
            ..pool
        };
        assert_eq!(short.to_reserve(), None);
        assert_eq!(Pool::parse("MemTotal: 1 kB\n"), None);
    }
}
