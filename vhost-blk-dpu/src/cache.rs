//! Whether a write that was answered may be lost when the power fails (virtio 1.3 §5.2.6.2).

use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH};

/// The cache mode of a volume, which a driver may change at any time by writing `writeback` in config space.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cache {
    /// What the driver wrote last.
    written: Option<bool>,
    /// What was negotiated, once a queue was started with it.
    negotiated: Option<u64>,
}

impl Cache {
    /// A queue starts.
    pub(crate) fn negotiated(&mut self, features: u64) {
        self.negotiated = Some(features);
    }

    /// The driver writes `writeback`.
    pub(crate) fn write(&mut self, writeback: bool) {
        self.written = Some(writeback);
    }

    /// The field `writeback`: on, until a driver turns it off. A driver that can turn it off but not flush begins with it
    /// off (virtio 1.3 §5.2.5.2).
    pub(crate) fn writeback(&self) -> bool {
        let cannot_flush = |features: u64| has(features, VIRTIO_BLK_F_CONFIG_WCE) && !has(features, VIRTIO_BLK_F_FLUSH);
        self.written.unwrap_or(!self.negotiated.is_some_and(cannot_flush))
    }

    /// Must each write of a queue with these features be durable before it is answered? As the driver chose by
    /// `writeback`; one that did not negotiate the field gets a cache if it can flush it.
    pub(crate) fn is_write_through(&self, features: u64) -> bool {
        if has(features, VIRTIO_BLK_F_CONFIG_WCE) {
            !self.writeback()
        } else {
            !has(features, VIRTIO_BLK_F_FLUSH)
        }
    }
}

fn has(features: u64, bit: u32) -> bool {
    features & 1 << bit != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLUSH: u64 = 1 << 9;
    const CONFIG_WCE: u64 = 1 << 11;

    fn started(features: u64) -> Cache {
        let mut cache = Cache::default();
        cache.negotiated(features);
        cache
    }

    #[test]
    fn without_a_field_to_write_flush_decides() {
        for written in [None, Some(false), Some(true)] {
            let cache = Cache {
                written,
                ..started(FLUSH)
            };
            assert!(!cache.is_write_through(FLUSH) && cache.is_write_through(0));
        }
    }

    #[test]
    fn the_field_decides_where_it_was_negotiated() {
        let features = FLUSH | CONFIG_WCE;
        let mut cache = started(features);
        assert!(cache.writeback() && !cache.is_write_through(features));
        cache.write(false);
        assert!(!cache.writeback() && cache.is_write_through(features));
        cache.write(true);
        assert!(cache.writeback() && !cache.is_write_through(features));
    }

    #[test]
    fn a_driver_that_cannot_flush_begins_without_a_cache() {
        let cache = started(CONFIG_WCE);
        assert!(!cache.writeback() && cache.is_write_through(CONFIG_WCE));
        assert!(Cache::default().writeback());
    }
}
