use virtio_bindings::bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED};

use super::*;
use crate::{
    DirtyLog,
    driver::{Driver, GuestRam},
};

const PACKED: u64 = 1 << VIRTIO_F_RING_PACKED;
const SIZE: u16 = 8;

fn pair(features: u64) -> (GuestRam, Driver, PackedRing) {
    let ram = GuestRam::new(1 << 20);
    let driver = Driver::new(&ram, SIZE, PACKED | features);
    let ring = PackedRing::new(driver.config(), ram.memory().clone()).unwrap();
    (ram, driver, ring)
}

#[test]
fn it_begins_where_it_is_told() {
    let (ram, driver, _) = pair(0);
    let base = |base| {
        let config = RingConfig {
            base,
            ..driver.config()
        };
        PackedRing::new(config, ram.memory().clone()).map(|ring| ring.base())
    };
    // A front-end that tells the available position only has nothing in flight.
    assert_eq!(base(0x8003), Ok(0x8003_8003));
    assert_eq!(base(0x0005), Ok(0x0005_0005));
    assert_eq!(base(0x8003_8003), Ok(0x8003_8003));
    // Three in flight, across the wrap; and all of them.
    assert_eq!(base(0x8006_0001), Ok(0x8006_0001));
    assert_eq!(base(0x8002_0002), Ok(0x8002_0002));
    for wrong in [0x8008, 0x7fff, 0x8008_8000, 0x8002_0003] {
        assert_eq!(base(wrong), Err(fault(wrong)));
    }
}

fn fault(base: u32) -> RingError {
    RingError::Config(ConfigFault::Base { base, size: SIZE })
}

#[test]
fn a_burst_of_an_in_order_driver_is_one_used_descriptor() {
    for (features, expected) in [(0, 4), (1 << VIRTIO_F_IN_ORDER, 1)] {
        let (_ram, mut driver, mut ring) = pair(features);
        for _ in 0..4 {
            driver.add_bytes(&[b"x", b"y"], &[]).unwrap();
        }
        driver.publish();
        let mut chains: Vec<_> = (0..4).map(|_| Chain::new()).collect();
        assert_eq!(ring.pop_burst(&mut chains), (4, None));
        ring.push_used_burst(&chains).unwrap();
        ring.publish().unwrap();
        let laps = Laps::new(SIZE);
        let used = (0..SIZE).filter(|slot| laps.is_used(*slot, ring.layout.view.flags(*slot)));
        assert_eq!(used.count(), expected);
        assert_eq!(ring.base(), 0x0000_0000, "a lap on");
        assert_eq!(std::iter::from_fn(|| driver.used()).count(), 4);
    }
}

#[test]
fn a_used_descriptor_says_whether_its_length_means_something() {
    let (_ram, mut driver, mut ring) = pair(0);
    for len in [0, 4] {
        driver.add_bytes(&[], &[4]).unwrap();
        driver.publish();
        let mut chain = Chain::new();
        assert_eq!(ring.pop(&mut chain), Ok(true));
        ring.push_used(&chain, len).unwrap();
        ring.publish().unwrap();
        let at = ring.next_used.wrapping_sub(1);
        assert_eq!(ring.layout.view.descriptor(at).is_write(), len > 0);
        assert_eq!(driver.used().map(|(_, told)| told), Some(len));
    }
}

#[test]
fn whatever_the_event_area_says_a_call_is_wanted_unless_it_clearly_is_not() {
    let one = |features, position, flags| {
        let (_ram, mut driver, mut ring) = pair(features);
        driver.set_driver_event(position, flags);
        driver.add_bytes(&[b"x"], &[]).unwrap();
        driver.publish();
        let mut chain = Chain::new();
        assert_eq!(ring.pop(&mut chain), Ok(true));
        ring.push_used(&chain, 0).unwrap();
        ring.publish().unwrap()
    };
    let event_idx = 1 << 29;
    for features in [0, event_idx] {
        // ENABLE, DISABLE, and a value that is reserved (virtio 1.3 §2.8.14).
        assert_eq!([0, 1, 3].map(|flags| one(features, 0, flags)), [true, false, true]);
        // The other bits are reserved.
        assert_eq!(
            [4, 5, 0xfffd].map(|flags| one(features, 0, flags)),
            [true, false, false]
        );
    }
    // A position counts only where that was negotiated, and one that is none calls.
    assert!(one(0, 1, 2));
    assert_eq!(
        [0x8000, 0x8001, 0x0000, 0x7fff].map(|position| one(event_idx, position, 2)),
        [true, false, false, true]
    );
}

#[test]
#[cfg_attr(miri, ignore = "miri maps no files")]
fn what_is_written_to_the_ring_is_logged_where_it_lies() {
    let ram = GuestRam::new(1 << 20);
    ram.alloc(4096 - 64, 64);
    let mut driver = Driver::new(&ram, SIZE, PACKED);
    let mut ring = PackedRing::new(driver.config(), ram.memory().clone()).unwrap();
    let pages = |file: &GuestRam| {
        let mut bytes = [0; 64];
        file.memory().read(crate::driver::RAM_START, &mut bytes).unwrap();
        file.memory().write(crate::driver::RAM_START, &[0; 64]).unwrap();
        (0..512u64)
            .filter(|page| bytes[(page / 8) as usize] >> (page % 8) & 1 != 0)
            .collect::<Vec<_>>()
    };
    let file = GuestRam::new(4096);
    let log = Arc::new(DirtyLog::map(file.file(), 0, 64).unwrap());
    // Wherever the front-end says that the used ring is: a packed ring has none.
    ring.set_log(Some(RingLog {
        log,
        used_addr: Some(0),
    }));
    let page = |addr: u64| addr / 4096;
    let config = driver.config();
    let whole = [page(config.desc), page(config.desc + 16 * u64::from(SIZE) - 1)];
    assert_eq!(pages(&file), whole);
    driver.add_bytes(&[b"x"], &[]).unwrap();
    driver.publish();
    let mut chain = Chain::new();
    assert_eq!(ring.pop(&mut chain), Ok(true));
    ring.push_used(&chain, 0).unwrap();
    assert!(pages(&file).is_empty());
    ring.publish().unwrap();
    assert_eq!(pages(&file), [page(config.desc)]);
    ring.disable_kicks();
    assert_eq!(pages(&file), [page(config.used)]);
}
