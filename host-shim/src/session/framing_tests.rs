//! Framing under hostile input. Each refusal has a control: the same with a legal message, and with the check off.

use std::{
    io::{Read, Write},
    os::fd::AsFd,
};

use outboard_controls::Off;
use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};

use super::*;

fn descriptor() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}

fn header(request: u32, flags: u32, size: u32) -> Vec<u8> {
    [request, flags, size]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

/// Feeds bytes in pieces of at most `piece`, as the socket would: never more than wanted.
fn feed(assembler: &mut Assembler, mut bytes: &[u8], piece: usize) -> Result<Vec<Message>, FrameError> {
    let mut whole = Vec::new();
    while !bytes.is_empty() {
        let (head, rest) = bytes.split_at(assembler.wanted().min(piece).min(bytes.len()));
        whole.extend(assembler.push(head, Vec::new(), false)?);
        bytes = rest;
    }
    Ok(whole)
}

fn send_raw(to: &UnixStream, bytes: &[u8], descriptors: &[OwnedFd]) {
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(borrowed.is_empty() || control.push(SendAncillaryMessage::ScmRights(&borrowed)));
    assert_eq!(
        sendmsg(to, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap(),
        bytes.len()
    );
}

fn frame_error(received: Result<Received, ReceiveError>) -> FrameError {
    match received {
        Err(ReceiveError::Frame(error)) => error,
        other => panic!("no frame error but {other:?}"),
    }
}

#[test]
fn the_longest_message_passes_and_longer_ones_are_refused_unread() {
    for size in [0, 1, 4096] {
        let mut bytes = header(2, 1, size);
        bytes.resize(HEADER_LEN + size as usize, 7);
        let whole = feed(&mut Assembler::default(), &bytes, 4096).unwrap();
        assert_eq!(whole[0].payload.len(), size as usize);
    }
    for size in [4097, u32::MAX] {
        let refused = feed(&mut Assembler::default(), &header(2, 1, size), 4096).unwrap_err();
        assert_eq!(refused, FrameError::TooLong(size));
    }
    // Control: without the check the long message goes through.
    let _off = Off::here(Check::MessageSize);
    let mut bytes = header(2, 1, 4097);
    bytes.resize(HEADER_LEN + 4097, 7);
    assert_eq!(
        feed(&mut Assembler::default(), &bytes, 4096).unwrap()[0].payload.len(),
        4097
    );
    // Even then memory is taken for what came, not for what was announced.
    let mut assembler = Assembler::default();
    assert!(feed(&mut assembler, &header(2, 1, u32::MAX), 4096).unwrap().is_empty());
    assert!(assembler.payload.capacity() <= READ_LEN_MAX);
}

#[test]
fn wrong_versions_and_flags_are_refused() {
    for flags in [0, 2, 3, 0x11, 0x8000_0001] {
        let refused = feed(&mut Assembler::default(), &header(1, flags, 0), 12).unwrap_err();
        assert_eq!(refused, FrameError::Flags(flags));
    }
    for flags in [1, 5, 9, 13] {
        assert_eq!(
            feed(&mut Assembler::default(), &header(1, flags, 0), 12).unwrap().len(),
            1
        );
    }
}

#[test]
fn descriptors_come_with_the_first_byte_or_not_at_all() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut channel = Channel::new(ours);
    let bytes = [header(12, 1, 8), vec![0; 8]].concat();
    // Control: with the first byte, though the message drips.
    send_raw(&theirs, &bytes[..1], &[descriptor()]);
    assert!(matches!(channel.receive().unwrap(), Received::Nothing));
    send_raw(&theirs, &bytes[1..], &[]);
    assert!(matches!(channel.receive().unwrap(), Received::Nothing));
    let Received::Message(message) = channel.receive().unwrap() else {
        panic!("no message")
    };
    assert_eq!((message.descriptors.len(), message.payload.len()), (1, 8));
    // Stray: in the middle of the next message.
    send_raw(&theirs, &bytes[..5], &[]);
    assert!(matches!(channel.receive().unwrap(), Received::Nothing));
    send_raw(&theirs, &bytes[5..], &[descriptor(), descriptor()]);
    assert_eq!(frame_error(channel.receive()), FrameError::StrayDescriptors(2));

    // With the check off, the stray descriptors would be taken for the message's own.
    let _off = Off::here(Check::MessageDescriptors);
    let mut assembler = Assembler::default();
    assembler.push(&bytes[..5], Vec::new(), false).unwrap();
    assembler
        .push(&bytes[5..12], vec![descriptor(), descriptor()], false)
        .unwrap();
    let message = assembler.push(&bytes[12..], Vec::new(), false).unwrap().unwrap();
    assert_eq!(message.descriptors.len(), 2);
}

/// A socket, and `count` handles on its other end: it reads an end once all handles are closed, wherever they are.
fn watched(count: usize) -> (UnixStream, Vec<OwnedFd>) {
    let (watch, end) = UnixStream::pair().unwrap();
    watch.set_nonblocking(true).unwrap();
    (watch, (0..count).map(|_| end.try_clone().unwrap().into()).collect())
}

#[test]
fn more_descriptors_than_fit_are_refused_and_closed() {
    let deliver = |count: usize| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (watch, handles) = watched(count);
        send_raw(&theirs, &header(3, 1, 0), &handles);
        (watch, Channel::new(ours).receive())
    };
    // Control: 32 pass, and are open.
    let (mut watch, received) = deliver(DESCRIPTORS_MAX);
    let Received::Message(message) = received.unwrap() else {
        panic!("no message")
    };
    assert_eq!(message.descriptors.len(), DESCRIPTORS_MAX);
    assert_eq!(watch.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    for count in [33, 34, 64] {
        let (mut watch, received) = deliver(count);
        assert_eq!(frame_error(received), FrameError::TooManyDescriptors);
        assert_eq!(watch.read(&mut [0]).unwrap(), 0, "a descriptor was left open");
    }
    // With the check off the truncated message would pass for a whole one.
    let _off = Off::here(Check::MessageDescriptors);
    assert!(matches!(deliver(64).1.unwrap(), Received::Message(_)));
}

#[test]
fn a_stream_that_ends_inside_a_message_was_cut_off() {
    for (len, cut) in [(0, false), (1, true), (12, true), (15, true)] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut channel = Channel::new(ours);
        let bytes = [header(2, 1, 8), vec![0; 8]].concat();
        theirs.write_all(&bytes[..len]).unwrap();
        drop(theirs);
        let end = loop {
            match channel.receive() {
                Ok(Received::Nothing) => {}
                end => break end,
            }
        };
        match cut {
            true => assert_eq!(frame_error(end), FrameError::CutOff),
            false => assert!(matches!(end.unwrap(), Received::Closed)),
        }
    }
}

#[test]
fn a_full_socket_takes_the_rest_later_and_the_descriptors_once() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (mut sender, mut receiver) = (Channel::new(ours), Channel::new(theirs));
    let mut sent = 0;
    let mut stuck = loop {
        let payload = vec![sent; 4096];
        let message = Message {
            request: 25,
            flags: 1,
            payload,
            descriptors: vec![descriptor().into()],
        };
        let mut outgoing = Outgoing::from(message);
        if !sender.send(&mut outgoing).unwrap() {
            break outgoing;
        }
        sent += 1;
    };
    let mut got = 0;
    while got <= sent {
        match receiver.receive().unwrap() {
            Received::Message(message) => {
                assert_eq!(
                    (message.payload[0], message.payload.len(), message.descriptors.len()),
                    (got, 4096, 1)
                );
                got += 1;
            }
            _ => {
                sender.send(&mut stuck).unwrap();
            }
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_give_messages_or_an_error(bytes: Vec<u8>, piece in 1_usize..64) {
        let mut assembler = Assembler::default();
        if let Ok(messages) = feed(&mut assembler, &bytes, piece) {
            let taken: usize = messages.iter().map(|m| HEADER_LEN + m.payload.len()).sum();
            prop_assert!(taken <= bytes.len());
            prop_assert!(assembler.payload.len() <= PAYLOAD_LEN_MAX);
        }
    }

    #[test]
    fn messages_survive_any_fragmentation(
        messages in prop::collection::vec((any::<u32>(), prop::collection::vec(any::<u8>(), 0..300)), 1..5),
        piece in 1_usize..40,
    ) {
        let bytes: Vec<u8> = messages
            .iter()
            .flat_map(|(request, payload)| {
                let message = Message { request: *request, flags: 1, payload: payload.clone(), descriptors: Vec::new() };
                Outgoing::from(message).bytes
            })
            .collect();
        let got = feed(&mut Assembler::default(), &bytes, piece).unwrap();
        let got: Vec<_> = got.into_iter().map(|m| (m.request, m.payload)).collect();
        prop_assert_eq!(got, messages);
    }
}
