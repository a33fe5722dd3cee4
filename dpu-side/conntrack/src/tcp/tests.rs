use proptest::prelude::*;

use super::{
    ACK, FIN, Kind, Laxness, Outcome, RST, SYN, Segment, Tracked, nothing_new,
    window::{End, Flag},
};
use crate::{
    state::{Life, State},
    time::{TimeoutTicks, Timeouts},
    tuple::Direction,
};

/// Around a number where sequence numbers wrap, so that near ones meet.
fn near() -> impl Strategy<Value = u32> {
    (0..6_u32).prop_map(|n| (n * 300).wrapping_sub(700))
}

fn end() -> impl Strategy<Value = End> {
    let numbers = (
        near(),
        near(),
        prop_oneof![Just(0), Just(1200), Just(100_000_u32)],
        near(),
    );
    let bits = (0..3_u16, 0..64_u16).prop_map(|(scale, flags)| scale | flags << 4);
    (numbers, bits).prop_map(|((end, end_max, window_max, acknowledged), bits)| {
        let pair = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        End::from_words(pair(end, end_max), pair(window_max, acknowledged), bits)
    })
}

fn tracked() -> impl Strategy<Value = Tracked> {
    (end(), end(), any::<u64>()).prop_map(|(a, b, rest)| Tracked {
        ends: [a, b],
        ..Tracked::from_words([0, 0, 0, 0, rest], [0; 2])
    })
}

fn segment() -> impl Strategy<Value = Segment<'static>> {
    let flags = prop_oneof![8 => Just(ACK), 1 => Just(FIN | ACK), 1 => Just(RST), 1 => Just(SYN), 1 => Just(SYN | ACK)];
    let options: [&[u8]; 3] = [
        &[],
        &[1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0],
        &[5, 10, 0, 0, 0, 0, 255, 255, 255, 200],
    ];
    let window = prop_oneof![Just(0_u16), Just(300), Just(600)];
    let options = prop::sample::select(options.to_vec());
    (flags, near(), near(), window, 0..700_u32, options).prop_map(
        |(flags, sequence, acknowledgement, window, data_len, options)| Segment {
            flags,
            sequence,
            acknowledgement,
            window,
            data_len,
            options,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    /// What is passed without looking further would have changed nothing.
    #[test]
    fn nothing_new_is_nothing_new(tracked in tracked(), segment in segment(), is_reply in any::<bool>()) {
        let timeouts = TimeoutTicks::from(&Timeouts::default());
        let direction = if is_reply { Direction::Reply } else { Direction::Original };
        if let Some(timeout) = nothing_new(&tracked.to_words().0, direction, &segment, &timeouts) {
            let before = Life { state: State::Established, replied: true, assured: true, deadline: 0 };
            let (mut life, mut after) = (before, tracked);
            let (outcome, full) = after.step(&mut life, direction, &segment, Laxness::default(), &timeouts);
            prop_assert_eq!(outcome, Outcome::Ok);
            prop_assert_eq!(full, Some(timeout));
            prop_assert_eq!(life, before);
            prop_assert_eq!(after, tracked);
        }
    }

    /// What is packed into an entry comes out again.
    #[test]
    fn packing_loses_nothing(tracked in tracked()) {
        let (words, last) = tracked.to_words();
        prop_assert_eq!(Tracked::from_words(words, last), tracked);
    }
}

#[test]
fn a_repeated_acknowledgement_is_nothing_new() {
    let mut known = End::from_words(1000 << 32 | 2000, 500 << 32 | 1000, 0);
    known.set(Flag::HasAcknowledged);
    let rest = Tracked::from_words([0, 0, 0, 0, (Kind::Ack as u64) << 32], [0; 2]);
    let tracked = Tracked {
        ends: [known; 2],
        ..rest
    };
    let timeouts = TimeoutTicks::from(&Timeouts::default());
    let repeated = Segment {
        flags: ACK,
        sequence: 900,
        acknowledgement: 1000,
        window: 500,
        data_len: 100,
        options: &[],
    };
    assert_eq!(
        nothing_new(&tracked.to_words().0, Direction::Reply, &repeated, &timeouts),
        Some(timeouts.established)
    );
    for segment in [
        Segment {
            data_len: 101,
            ..repeated
        },
        Segment {
            acknowledgement: 1001,
            ..repeated
        },
        Segment {
            window: 501,
            ..repeated
        },
        Segment {
            flags: ACK | FIN,
            ..repeated
        },
    ] {
        assert_eq!(
            nothing_new(&tracked.to_words().0, Direction::Reply, &segment, &timeouts),
            None,
            "{segment:?}"
        );
    }
}
