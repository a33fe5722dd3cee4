use std::{collections::BTreeMap, os::fd::OwnedFd};

use outboard_ring::RingLog;
use outboard_ring::driver::{GuestRam, RAM_START, USER_OFFSET};
use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};

use super::*;
use crate::{backend::BackendChannel, device::DeviceError, frame::Frame};

/// Holds its queues and checks that it is used as promised.
#[derive(Default)]
struct Strict {
    running: BTreeMap<u16, QueueResources>,
    closed: bool,
}

impl Device for Strict {
    fn features(&self) -> u64 {
        1 << 32 | 3 << 28
    }

    fn has_config(&self) -> bool {
        true
    }

    fn queue_count(&self) -> u16 {
        2
    }

    fn queue_size_max(&self) -> u16 {
        64
    }

    fn config(&self) -> Vec<u8> {
        vec![7; 20]
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<(), DeviceError> {
        Err(DeviceError::ConfigNotWritable {
            offset,
            len: data.len(),
        })
    }

    fn start_queue(&mut self, index: u16, queue: QueueResources) -> Result<(), DeviceError> {
        assert!(index < 2 && queue.kick.is_some() && queue.ring.size() <= 64);
        assert_eq!(queue.features & !(self.features() | F_PROTOCOL_FEATURES), 0);
        assert!(self.running.insert(index, queue).is_none(), "it did not run");
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Result<Option<u32>, DeviceError> {
        Ok(self.running.remove(&index).map(|queue| queue.ring.base()))
    }

    fn set_call(&mut self, index: u16, call: Option<CallFd>) -> Result<(), DeviceError> {
        self.running.get_mut(&index).expect("it runs").call = call;
        Ok(())
    }

    fn set_log(&mut self, index: u16, log: Option<RingLog>) -> Result<(), DeviceError> {
        self.running.get_mut(&index).expect("it runs").ring.set_log(log);
        Ok(())
    }

    fn finishes_out_of_order(&self) -> bool {
        true
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        assert!(self.running.is_empty());
        Ok(())
    }

    fn takes_mtu(&self) -> bool {
        true
    }

    fn set_mtu(&mut self, _mtu: u16) -> Result<(), DeviceError> {
        Ok(())
    }

    fn set_backend_channel(&mut self, _channel: Option<BackendChannel>) {}

    fn closed(&mut self) {
        assert!(self.running.is_empty());
        self.closed = true;
    }
}

fn handle(session: &mut Session<'_>, request: u32, body: Vec<u8>, descriptors: Vec<OwnedFd>) -> Result<Reply, ()> {
    let kind = FrontendReq::try_from(request)?;
    let frame = Frame {
        request,
        need_reply: false,
        body,
        descriptors,
    };
    Request::parse(kind, frame)
        .and_then(|request| session.handle(kind, request))
        .map_err(drop)
}

/// Words of a body: mostly such as mean something.
fn word() -> impl Strategy<Value = u64> {
    let ring = (0u64..8).prop_map(|n| RAM_START + USER_OFFSET + n * 1024);
    prop_oneof![
        4 => 0u64..3,
        2 => ring,
        1 => (0u64..3).prop_map(|index| index | 8 << 32),
        1 => Just(RAM_START),
        1 => Just(RAM_START + USER_OFFSET),
        1 => Just(1 << 16),
        1 => Just(1 << 32 | 1 << 30),
        1 => any::<u64>(),
    ]
}

/// A request, the words of its body, its length, and what descriptors come with it.
type Step = (u32, Vec<u64>, usize, Vec<bool>);

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![4 => Just(usize::MAX), 1 => 0usize..60];
    (
        1u32..46,
        prop::collection::vec(word(), 0..7),
        len,
        prop::collection::vec(any::<bool>(), 0..3),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Whatever is said before, in any order, the device is used as its trait promises.
    #[test]
    fn any_requests_leave_the_device_used_as_promised(steps in prop::collection::vec(step(), 0..60)) {
        let ram = GuestRam::new(1 << 16);
        let mut device = Strict::default();
        let mut session = Session::new(&mut device);
        session.memory = Some(ram.memory().clone());
        for (request, words, len, fds) in steps {
            let mut body: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            body.truncate(len);
            let fds = fds.iter().map(|&event| match event {
                true => eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
                false => OwnedFd::from(ram.file().try_clone().unwrap()),
            });
            // An error would end the session; here it goes on, which is harder.
            let _refused = handle(&mut session, request, body, fds.collect());
        }
        session.close();
        prop_assert!(device.closed);
    }
}

/// The same property is not empty: such words do start queues.
#[test]
fn the_words_of_the_property_start_a_queue() {
    let ram = GuestRam::new(1 << 16);
    let mut device = Strict::default();
    let mut session = Session::new(&mut device);
    session.memory = Some(ram.memory().clone());
    let mut send = |request: FrontendReq, words: &[u64], fds: Vec<OwnedFd>| {
        let body = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let reply = handle(&mut session, request.into(), body, fds);
        assert!(matches!(reply, Ok(Reply::Ack)), "{request:?}");
    };
    let ring = |n: u64| RAM_START + USER_OFFSET + n * 1024;
    send(FrontendReq::SET_FEATURES, &[1 << 32], vec![]);
    send(FrontendReq::SET_VRING_NUM, &[1 | 8 << 32], vec![]);
    send(FrontendReq::SET_VRING_ADDR, &[1, ring(0), ring(1), ring(2), 0], vec![]);
    send(
        FrontendReq::SET_VRING_KICK,
        &[1],
        vec![eventfd(0, EventfdFlags::CLOEXEC).unwrap()],
    );
    assert!(session.queues[1].running);
    session.close();
}
