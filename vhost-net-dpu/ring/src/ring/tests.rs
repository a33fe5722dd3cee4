//! The same tests of both kinds.

mod split {
    const FORMAT: u64 = 0;
    include!("suite.rs");
}

mod packed {
    const FORMAT: u64 = 1 << virtio_bindings::bindings::virtio_config::VIRTIO_F_RING_PACKED;
    include!("suite.rs");
}
