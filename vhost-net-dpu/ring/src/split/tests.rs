use super::*;

#[test]
fn an_event_is_passed_by_a_batch_and_across_the_wrap() {
    assert!(passes(65_535, 65_534, 2) && passes(0, 65_534, 2) && !passes(2, 65_534, 2) && !passes(5, 0, 5));
}

/// vring_need_event as it is counted: is the entry of the event among those that were written? (virtio 1.3 §2.7.10)
#[test]
#[cfg_attr(miri, ignore = "exhaustive, of numbers only")]
fn an_event_is_passed_where_its_entry_was_written() {
    for old in [0, 1, 7, 32_767, 65_530, 65_535_u16] {
        for count in 0..20 {
            let written: Vec<u16> = (0..count).map(|n| old.wrapping_add(n)).collect();
            for event in 0..=u16::MAX {
                let expected = written.contains(&event);
                assert_eq!(
                    passes(event, old, old.wrapping_add(count)),
                    expected,
                    "{event} {old} {count}"
                );
            }
        }
    }
}

#[test]
fn h23_indices_wrap_from_65535_to_0() {
    let ram = crate::driver::GuestRam::new(1 << 20);
    let mut driver = crate::driver::Driver::new(&ram, 8, 0).starting_at(u16::MAX - 2);
    let mut ring = SplitRing::new(driver.config(), ram.memory().clone()).unwrap();
    for _ in 0..5 {
        driver.add_bytes(&[b"x"], &[]).unwrap();
        driver.publish();
        let mut chain = Chain::new();
        assert_eq!(ring.pop(&mut chain), Ok(true));
        ring.push_used(&chain, 0).unwrap();
        ring.publish().unwrap();
        assert!(driver.used().is_some());
    }
    assert_eq!((ring.next_avail(), driver.published_used()), (2, 2));
}

#[test]
fn a_base_that_is_no_index_is_refused() {
    let ram = crate::driver::GuestRam::new(1 << 20);
    let config = RingConfig {
        base: 1 << 16,
        ..crate::driver::Driver::new(&ram, 8, 0).config()
    };
    let fault = ConfigFault::Base { base: 1 << 16, size: 8 };
    assert_eq!(
        SplitRing::new(config, ram.memory().clone()).map(|_| ()),
        Err(RingError::Config(fault))
    );
}

#[test]
#[cfg_attr(miri, ignore = "miri maps no files")]
fn h02_a_chain_found_when_other_memory_vanished_is_not_held() {
    let file = |len: u64| {
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, len).unwrap();
        std::fs::File::from(file)
    };
    let region = |guest_phys_addr: u64, file: &std::fs::File| crate::RegionSpec {
        guest_phys_addr,
        len: 4096,
        user_addr: guest_phys_addr,
        mmap_offset: 0,
        file: file.try_clone().unwrap(),
    };
    let (ring_file, data_file) = (file(4096), file(4096));
    let regions = vec![region(0, &ring_file), region(4096, &data_file)];
    let mem = Arc::new(GuestMemory::map(regions).unwrap());
    let config = RingConfig {
        size: 2,
        desc: 0,
        avail: 64,
        used: 128,
        base: 0,
        features: 0,
    };
    for head in 0..2u16 {
        let descriptor = Descriptor {
            addr: 4096,
            len: 8,
            flags: 0,
            next: 0,
        };
        mem.write(u64::from(head) * 16, &descriptor.to_bytes()).unwrap();
        mem.write(68 + u64::from(head) * 2, &head.to_le_bytes()).unwrap();
    }
    mem.write(66, &2u16.to_le_bytes()).unwrap();
    let mut ring = SplitRing::new(config, mem.clone()).unwrap();
    assert_eq!(ring.pop(&mut Chain::new()), Ok(true));
    data_file.set_len(0).unwrap();
    assert!(mem.read(4096, &mut [0]).is_err());
    assert_eq!(ring.pop(&mut Chain::new()), Err(RingError::MemoryVanished));
    assert_eq!(
        (ring.in_flight(), ring.next_avail()),
        (1, 1),
        "only what was handed out"
    );
    ring.unpop(1);
    assert_eq!((ring.in_flight(), ring.next_avail()), (0, 0));
}
