//! Every decoder of the protocol behind one entry, shared by the fuzz target and by the test that replays its corpus.
//! The first byte chooses the decoder.

use std::fmt::Debug;

use minicbor::{Decode, Encode};
use outboard_protocol::{
    binding::Now,
    card::{CARD_MESSAGE_LEN_MAX, FromBroker, FromCard},
    card_side::{CardCore, CardRecord, Input, RECORD_LEN_MAX},
    codec::{FrameDecoder, decode, encode},
    link::{FromDpu, LINK_MESSAGE_LEN_MAX, NumberedRequest},
    token::EnrolToken,
};

/// Decodes, and if the bytes are a message checks what must hold for every message. Returns whether they are.
///
/// # Panics
/// Only if a decoder has a fault.
pub fn decode_any(data: &[u8]) -> bool {
    let Some((decoder, bytes)) = data.split_first() else {
        return false;
    };
    match decoder {
        0 => message::<NumberedRequest>(bytes, LINK_MESSAGE_LEN_MAX),
        1 => message::<FromDpu>(bytes, LINK_MESSAGE_LEN_MAX),
        2 => message::<FromCard>(bytes, CARD_MESSAGE_LEN_MAX),
        3 => message::<FromBroker>(bytes, CARD_MESSAGE_LEN_MAX) && desired(bytes),
        4 => token(bytes),
        5 => record(bytes),
        6 => frames(bytes),
        _ => false,
    }
}

fn message<T>(bytes: &[u8], len_max: usize) -> bool
where
    T: Encode<()> + for<'b> Decode<'b, ()> + Debug,
{
    let Ok(message) = decode::<T>(bytes, len_max) else {
        return false;
    };
    assert_eq!(encode(&message), bytes, "another spelling of {message:?} was accepted");
    true
}

/// A desired state that decodes is given to a card.
fn desired(bytes: &[u8]) -> bool {
    if let Ok(FromBroker::Desired { state }) = decode(bytes, CARD_MESSAGE_LEN_MAX) {
        let mut core = CardCore::start("card".parse().expect("a name"), None, Now::default()).0;
        core.handle(Input::Desired(state), Now::default());
    }
    true
}

fn token(bytes: &[u8]) -> bool {
    let Some(token) = std::str::from_utf8(bytes)
        .ok()
        .and_then(|text| text.parse::<EnrolToken>().ok())
    else {
        return false;
    };
    assert_eq!(token.print().parse().as_ref(), Ok(&token));
    true
}

/// A card starts from every record that decodes.
fn record(bytes: &[u8]) -> bool {
    if !message::<CardRecord>(bytes, RECORD_LEN_MAX) {
        return false;
    }
    let record = CardRecord::decode(bytes).expect("it decoded just now");
    let mut core = CardCore::start("card".parse().expect("a name"), Some(record), Now::default()).0;
    core.handle(
        Input::Tick,
        Now {
            monotonic_ms: u64::MAX,
            unix_s: u64::MAX,
        },
    );
    core.handle(Input::BrokerConnected, Now::default());
    true
}

/// A stream cut into pieces of a size that the first byte tells gives the same frames as the whole stream.
fn frames(bytes: &[u8]) -> bool {
    let Some((&piece_len, stream)) = bytes.split_first() else {
        return false;
    };
    let read = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut decoder = FrameDecoder::new(CARD_MESSAGE_LEN_MAX);
        let mut frames = Vec::new();
        for piece in pieces {
            decoder.push(piece);
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => frames.push(frame.to_vec()),
                    Ok(None) => break,
                    Err(error) => return (frames, Some(error)),
                }
            }
        }
        (frames, None)
    };
    let whole = read(&mut std::iter::once(stream));
    let cut = read(&mut stream.chunks(usize::from(piece_len).max(1)));
    assert_eq!(whole, cut);
    !whole.0.is_empty()
}
