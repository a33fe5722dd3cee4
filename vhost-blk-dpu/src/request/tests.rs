use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits {
    block_count: 1000,
    read_only: false,
    features: 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
};

fn header(kind: u32, sector: u64) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

fn parsed(kind: u32, sector: u64, readable_data: u64, writable_data: u64) -> Result<Request, RequestError> {
    let shape = Shape {
        readable_len: 16 + readable_data,
        writable_len: writable_data + 1,
    };
    parse(shape, &header(kind, sector), LIMITS)
}

#[test]
fn each_type_with_its_lengths_is_a_request() {
    assert_eq!(
        parsed(VIRTIO_BLK_T_IN, 999, 0, 512),
        Ok(Request::Read { sector: 999, len: 512 })
    );
    assert_eq!(
        parsed(VIRTIO_BLK_T_OUT, 0, 512_000, 0),
        Ok(Request::Write {
            sector: 0,
            len: 512_000
        })
    );
    assert_eq!(
        parsed(VIRTIO_BLK_T_FLUSH, 77, 0, 0),
        Ok(Request::Flush),
        "a flush has no sector"
    );
    assert_eq!(parsed(VIRTIO_BLK_T_GET_ID, 77, 0, 20), Ok(Request::GetId));
    for (kind, of) in [
        (VIRTIO_BLK_T_DISCARD, RangeKind::Discard),
        (VIRTIO_BLK_T_WRITE_ZEROES, RangeKind::WriteZeroes),
    ] {
        for count in [1, 16] {
            let ranges = Request::Ranges { kind: of, count };
            assert_eq!(parsed(kind, 77, 16 * count as u64, 0), Ok(ranges));
        }
    }
}

#[test]
fn ranges_are_counted_and_only_where_they_were_negotiated() {
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        for (readable_data, writable_data) in [(0, 0), (15, 0), (17, 0), (16, 1), (16, 512), (0, 16)] {
            let refused = parsed(kind, 0, readable_data, writable_data);
            assert!(matches!(refused, Err(RequestError::Length { .. })), "{refused:?}");
        }
        for count in [17, 65_535, u64::MAX / 16 - 1] {
            assert_eq!(
                parsed(kind, 0, 16 * count, 0),
                Err(RequestError::TooManyRanges { count })
            );
        }
        let shape = Shape {
            readable_len: 32,
            writable_len: 1,
        };
        let without = Limits { features: 0, ..LIMITS };
        assert_eq!(
            parse(shape, &header(kind, 0), without),
            Err(RequestError::Unsupported { kind })
        );
        let read_only = Limits {
            read_only: true,
            ..LIMITS
        };
        assert_eq!(parse(shape, &header(kind, 0), read_only), Err(RequestError::ReadOnly));
    }
}

#[test]
fn the_reserved_field_means_nothing() {
    let mut bytes = header(VIRTIO_BLK_T_FLUSH, 0);
    bytes[4..8].fill(0xff);
    assert_eq!(
        parse(
            Shape {
                readable_len: 16,
                writable_len: 1
            },
            &bytes,
            LIMITS
        ),
        Ok(Request::Flush)
    );
}

#[test]
fn the_smallest_and_largest_lengths_do_not_overflow() {
    for (readable_len, writable_len) in [
        (u64::MAX, u64::MAX),
        (16, u64::MAX),
        (u64::MAX, 1),
        (0, 0),
        (u64::MAX, 0),
    ] {
        for kind in [
            VIRTIO_BLK_T_IN,
            VIRTIO_BLK_T_OUT,
            VIRTIO_BLK_T_FLUSH,
            VIRTIO_BLK_T_GET_ID,
            VIRTIO_BLK_T_DISCARD,
            VIRTIO_BLK_T_WRITE_ZEROES,
        ] {
            for sector in [0, u64::MAX] {
                let shape = Shape {
                    readable_len,
                    writable_len,
                };
                assert!(parse(shape, &header(kind, sector), LIMITS).is_err());
            }
        }
    }
}

#[test]
fn refusals_say_who_did_what() {
    let said = parsed(VIRTIO_BLK_T_IN, 999, 0, 1024)
        .expect_err("it is beyond the end")
        .to_string();
    assert_eq!(
        said,
        "guest gave a request for 1024 bytes at block 999 of a volume of 1000 blocks"
    );
    let error = parsed(2, 0, 0, 0).expect_err("SCSI was not offered");
    assert_eq!((error.status(), error), (2, RequestError::Unsupported { kind: 2 }));
}

proptest! {
    /// Whatever comes, the parser says something, and what it lets through is inside the volume and of whole blocks.
    #[test]
    fn what_is_let_through_is_in_order(
        readable_len in prop_oneof![0u64..3000, any::<u64>()],
        writable_len in prop_oneof![0u64..3000, any::<u64>()],
        kind in prop_oneof![0u32..16, any::<u32>()],
        sector in prop_oneof![0u64..1002, any::<u64>()],
        header_len in 0usize..=HEADER_LEN,
        block_count in prop_oneof![0u64..1001, any::<u64>()],
        read_only: bool,
        features: u64,
    ) {
        let shape = Shape { readable_len, writable_len };
        let limits = Limits { block_count, read_only, features };
        match parse(shape, &header(kind, sector)[..header_len], limits) {
            Ok(Request::Read { sector, len }) => {
                prop_assert!(len > 0 && len % 512 == 0 && len == writable_len - 1);
                prop_assert!(u128::from(sector) + u128::from(len / 512) <= u128::from(block_count));
            }
            Ok(Request::Write { sector, len }) => {
                prop_assert!(!read_only && len > 0 && len % 512 == 0 && len == readable_len - 16);
                prop_assert!(u128::from(sector) + u128::from(len / 512) <= u128::from(block_count));
            }
            Ok(Request::Flush) => prop_assert_eq!((readable_len, writable_len), (16, 1)),
            Ok(Request::GetId) => prop_assert_eq!((readable_len, writable_len), (16, 21)),
            Ok(Request::Ranges { count, .. }) => {
                prop_assert!(!read_only && (1..=16).contains(&count) && writable_len == 1);
                prop_assert_eq!(readable_len, 16 + 16 * count as u64);
            }
            Err(error) => prop_assert!((1..=2).contains(&error.status())),
        }
    }
}
