use outboard_controls::Off;

use super::*;
use crate::link::{NumberedRequest, Request};

const LEN_MAX: usize = 4096;

fn ping(seq: u64) -> NumberedRequest {
    NumberedRequest {
        seq,
        request: Request::Ping,
    }
}

#[test]
fn a_message_survives_the_wire() {
    let message = ping(7);
    assert_eq!(decode::<NumberedRequest>(&encode(&message), LEN_MAX), Ok(message));
}

#[test]
fn a_second_spelling_of_a_message_is_refused() {
    let canonical = encode(&ping(7));
    assert_eq!(canonical, [0x82, 0x07, 0x82, 0x04, 0x80]);
    let long_integer = [0x82, 0x18, 0x07, 0x82, 0x04, 0x80];
    assert_eq!(
        decode::<NumberedRequest>(&long_integer, LEN_MAX),
        Err(DecodeError::NotCanonical)
    );
}

#[test]
fn an_unknown_field_is_refused() {
    let extra_field = [0x83, 0x07, 0x82, 0x04, 0x80, 0x01];
    assert_eq!(
        decode::<NumberedRequest>(&extra_field, LEN_MAX),
        Err(DecodeError::NotCanonical)
    );
    let extra_field_of_variant = [0x82, 0x07, 0x82, 0x04, 0x81, 0x01];
    assert_eq!(
        decode::<NumberedRequest>(&extra_field_of_variant, LEN_MAX),
        Err(DecodeError::NotCanonical)
    );
}

#[test]
fn an_unknown_message_is_refused() {
    let unknown = [0x82, 0x07, 0x82, 0x18, 0x63, 0x80];
    assert!(matches!(
        decode::<NumberedRequest>(&unknown, LEN_MAX),
        Err(DecodeError::NotUnderstood(_))
    ));
}

#[test]
fn what_the_protocol_does_not_use_is_refused() {
    let canonical = encode(&ping(7));
    let trailing = [&canonical[..], &[0]].concat();
    assert_eq!(
        decode::<NumberedRequest>(&trailing, LEN_MAX),
        Err(DecodeError::Trailing(1))
    );
    assert_eq!(
        decode::<NumberedRequest>(&canonical[..4], LEN_MAX),
        Err(DecodeError::Truncated)
    );
    assert_eq!(decode::<NumberedRequest>(&[], LEN_MAX), Err(DecodeError::Truncated));
    let long = DecodeError::TooLong { len: 5, max: 4 };
    assert_eq!(decode::<NumberedRequest>(&canonical, 4), Err(long));
    // Indefinite array and text, map, tag, negative integer, float, undefined, break.
    for initial in [0x9f, 0x7f, 0xa0, 0xc0, 0x20, 0xfb, 0xf7, 0xff] {
        assert_eq!(
            decode::<NumberedRequest>(&[0x82, 0x07, initial], LEN_MAX),
            Err(DecodeError::Unused(initial))
        );
    }
}

#[test]
fn depth_counts_and_lengths_are_bounded() {
    let depth = |n: usize| check_shape(&[&vec![0x81; n][..], &[0x00]].concat());
    assert_eq!(depth(NESTING_DEPTH_MAX), Ok(()));
    assert_eq!(depth(NESTING_DEPTH_MAX + 1), Err(DecodeError::TooDeep));

    let array_of = |n: usize| minicbor::to_vec(vec![0_u8; n]).unwrap();
    assert_eq!(check_shape(&array_of(65_536)), Ok(()));
    assert_eq!(check_shape(&array_of(65_537)), Err(DecodeError::TooLarge(65_537)));
    // A count that the message cannot hold, however large, costs nothing.
    assert_eq!(check_shape(&[0x99, 0xff, 0xff, 0x00]), Err(DecodeError::Truncated));
    let lie = [0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    assert_eq!(check_shape(&lie), Err(DecodeError::TooLarge(u64::MAX)));

    assert_eq!(check_shape(&minicbor::to_vec("x".repeat(4096)).unwrap()), Ok(()));
    assert_eq!(
        check_shape(&minicbor::to_vec("x".repeat(4097)).unwrap()),
        Err(DecodeError::TooLarge(4097))
    );
    let bytes = |n: usize| minicbor::to_vec(minicbor::bytes::ByteVec::from(vec![0; n])).unwrap();
    assert_eq!(check_shape(&bytes(16_384)), Ok(()));
    assert_eq!(check_shape(&bytes(16_385)), Err(DecodeError::TooLarge(16_385)));
}

#[test]
fn frames_are_cut_wherever_the_stream_was() {
    let stream = [encode_frame(&ping(1)), encode_frame(&ping(2))].concat();
    for cut in 0..=stream.len() {
        let mut decoder = FrameDecoder::new(LEN_MAX);
        let mut seen = Vec::new();
        for part in [&stream[..cut], &stream[cut..]] {
            decoder.push(part);
            while let Some(message) = decoder.next_message::<NumberedRequest>().unwrap() {
                seen.push(message);
            }
        }
        assert_eq!(seen, [ping(1), ping(2)]);
        assert!(!decoder.is_mid_frame());
    }
}

#[test]
fn an_announced_length_beyond_the_bound_is_an_error_for_good() {
    let mut decoder = FrameDecoder::new(16);
    decoder.push(&16_u32.to_be_bytes());
    assert_eq!(decoder.next_frame(), Ok(None));
    assert!(decoder.is_mid_frame());

    let mut decoder = FrameDecoder::new(16);
    decoder.push(&17_u32.to_be_bytes());
    let error = Err(DecodeError::TooLong { len: 17, max: 16 });
    assert_eq!(decoder.next_frame(), error);
    decoder.push(&encode_frame(&ping(1)));
    assert_eq!(decoder.next_frame(), error);
}

#[test]
fn the_highest_common_version_wins() {
    assert_eq!(negotiate((1, 3), (2, 5)), Ok(3));
    assert_eq!(negotiate((1, 1), (1, 1)), Ok(1));
    for (theirs, ours) in [((1, 1), (2, 3)), ((4, 9), (2, 3)), ((3, 2), (2, 3))] {
        assert_eq!(negotiate(theirs, ours).map_err(|r| r.code), Err(Code::Version));
    }
}

#[test]
fn control_without_the_canonical_check_a_second_spelling_and_an_unknown_field_pass() {
    let _off = Off::here(Check::CanonicalOnly);
    let long_integer = [0x82, 0x18, 0x07, 0x82, 0x04, 0x80];
    assert_eq!(decode::<NumberedRequest>(&long_integer, LEN_MAX), Ok(ping(7)));
    let extra_field = [0x83, 0x07, 0x82, 0x04, 0x80, 0x01];
    assert_eq!(decode::<NumberedRequest>(&extra_field, LEN_MAX), Ok(ping(7)));
}

#[test]
fn control_without_the_size_check_a_long_message_passes() {
    let _off = Off::here(Check::MessageSize);
    assert_eq!(decode::<NumberedRequest>(&encode(&ping(7)), 4), Ok(ping(7)));
    let mut decoder = FrameDecoder::new(4);
    decoder.push(&encode_frame(&ping(7)));
    assert_eq!(decoder.next_message(), Ok(Some(ping(7))));
}
