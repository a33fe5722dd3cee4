//! Any message survives the wire, and any bytes are either a message in its one spelling or refused without a panic.

#[path = "../fuzz/decode_any.rs"]
mod decode_any;
mod messages;

use outboard_protocol::{
    card::FromCard,
    codec::{FrameDecoder, decode, encode, encode_frame},
};
use proptest::{prelude::*, sample::Index};

const LEN_MAX: usize = 1 << 20;

/// A message of any kind, as the fuzz target takes it: the decoder's number, then the bytes.
fn any_message() -> impl Strategy<Value = Vec<u8>> {
    let with = |decoder: u8, bytes: Vec<u8>| [&[decoder][..], &bytes].concat();
    prop_oneof![
        messages::numbered_request().prop_map(move |m| with(0, encode(&m))),
        messages::from_dpu().prop_map(move |m| with(1, encode(&m))),
        messages::from_card().prop_map(move |m| with(2, encode(&m))),
        messages::from_broker().prop_map(move |m| with(3, encode(&m))),
    ]
}

proptest! {
    #[test]
    fn requests_survive_the_wire(message in messages::numbered_request()) {
        prop_assert_eq!(decode(&encode(&message), LEN_MAX), Ok(message));
    }

    #[test]
    fn answers_survive_the_wire(message in messages::from_dpu()) {
        prop_assert_eq!(decode(&encode(&message), LEN_MAX), Ok(message));
    }

    #[test]
    fn messages_of_cards_survive_the_wire(message in messages::from_card()) {
        prop_assert_eq!(decode(&encode(&message), LEN_MAX), Ok(message));
    }

    #[test]
    fn messages_of_the_broker_survive_the_wire(message in messages::from_broker()) {
        prop_assert_eq!(decode(&encode(&message), LEN_MAX), Ok(message));
    }

    #[test]
    fn every_message_is_accepted_and_every_cut_of_it_is_refused(bytes in any_message(), cut in any::<Index>()) {
        prop_assert!(decode_any::decode_any(&bytes));
        prop_assert!(!decode_any::decode_any(&bytes[..cut.index(bytes.len())]));
    }

    /// The check that each spelling is the only one sits in `decode_any`.
    #[test]
    fn changed_messages_never_panic(mut bytes in any_message(), changes in prop::collection::vec(any::<(Index, u8)>(), 1..4)) {
        for (at, byte) in changes {
            let at = 1 + at.index(bytes.len() - 1);
            bytes[at] = byte;
        }
        decode_any::decode_any(&bytes);
    }

    #[test]
    fn arbitrary_bytes_never_panic(decoder in 0..7_u8, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        decode_any::decode_any(&[&[decoder][..], &bytes].concat());
    }

    #[test]
    fn frames_survive_any_cut(messages in prop::collection::vec(messages::from_card(), 0..5), piece_len in 1..40_usize) {
        let stream: Vec<u8> = messages.iter().flat_map(encode_frame).collect();
        let mut decoder = FrameDecoder::new(LEN_MAX);
        let mut seen: Vec<FromCard> = Vec::new();
        for piece in stream.chunks(piece_len) {
            decoder.push(piece);
            while let Some(message) = decoder.next_message().map_err(|e| TestCaseError::fail(e.to_string()))? {
                seen.push(message);
            }
        }
        prop_assert_eq!(seen, messages);
        prop_assert!(!decoder.is_mid_frame());
    }
}
