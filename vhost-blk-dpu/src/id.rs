//! The id by which a guest tells volumes apart.

use virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;

/// Length of an id in bytes.
pub(crate) const ID_LEN: usize = VIRTIO_BLK_ID_BYTES as usize;
/// How much of a long name is kept; the rest is a dash and its fingerprint.
const PREFIX_LEN: usize = ID_LEN - 1 - FINGERPRINT_LEN;
const FINGERPRINT_LEN: usize = 12;

/// The id of a volume (virtio 1.3 §5.2.6, VIRTIO_BLK_T_GET_ID): its name, padded with zeros. A name that is too long is
/// cut and ends in a fingerprint of all of it, so that names that begin alike give different ids.
pub fn device_id(volume: &str) -> [u8; ID_LEN] {
    let mut id = [0; ID_LEN];
    let name = volume.as_bytes();
    if name.len() <= ID_LEN {
        id[..name.len()].copy_from_slice(name);
        return id;
    }
    id[..PREFIX_LEN].copy_from_slice(&name[..PREFIX_LEN]);
    id[PREFIX_LEN] = b'-';
    let fingerprint = format!("{:016x}", fnv1a(name));
    id[PREFIX_LEN + 1..].copy_from_slice(&fingerprint.as_bytes()[..FINGERPRINT_LEN]);
    id
}

/// FNV-1a. The names come from the operator, who has no reason to make them collide.
fn fnv1a(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_name_is_the_id() {
        assert_eq!(&device_id("disk1"), b"disk1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(&device_id("exactly-twenty-bytes"), b"exactly-twenty-bytes");
    }

    #[test]
    fn long_names_that_begin_alike_have_different_ids() {
        let names = [
            "database-of-customers-a",
            "database-of-customers-b",
            "database-of-customers-aa",
        ];
        let ids = names.map(device_id);
        assert!(ids.iter().all(|id| id.starts_with(b"databas-")));
        assert!(ids[0] != ids[1] && ids[0] != ids[2] && ids[1] != ids[2]);
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
