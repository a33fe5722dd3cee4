//! Blocks that say what they are: number, version and checksum, and bytes that follow from these.

const HEADER_LEN: usize = 24;

/// Fills `data` as version `version` of block `number`.
pub fn fill(number: u64, version: u64, data: &mut [u8]) {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ version.wrapping_add(0x6a09_e667_f3bc_c909);
    for word in data[HEADER_LEN..].chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    data[..8].copy_from_slice(&number.to_le_bytes());
    data[8..16].copy_from_slice(&version.to_le_bytes());
    let checksum = checksum(data);
    data[16..24].copy_from_slice(&checksum.to_le_bytes());
}

/// What is wrong with `data`, which ought to be version `version` of block `number`.
pub fn fault(number: u64, version: u64, data: &[u8]) -> Option<String> {
    let word = |at: usize| {
        data.get(at..at + 8)
            .and_then(|b| b.try_into().ok())
            .map_or(0, u64::from_le_bytes)
    };
    if word(16) != checksum(data) {
        return Some(format!(
            "block {number} holds bytes that were never written there (checksum of its content)"
        ));
    }
    if word(0) != number {
        return Some(format!("block {number} holds what was written to block {}", word(0)));
    }
    (word(8) != version).then(|| format!("block {number} holds its version {} instead of {version}", word(8)))
}

/// FNV-1a by words, over all but the checksum itself. Any single changed word changes it.
fn checksum(data: &[u8]) -> u64 {
    let words = data[..16].chunks_exact(8).chain(data[HEADER_LEN..].chunks_exact(8));
    words.fold(0xcbf2_9ce4_8422_2325, |hash, word| {
        let word = word.try_into().map_or(0, u64::from_le_bytes);
        (hash ^ word).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_block_in_the_right_version_is_right() {
        let mut data = vec![0; 512];
        fill(7, 3, &mut data);
        assert_eq!(fault(7, 3, &data), None);
        assert!(fault(8, 3, &data).is_some_and(|text| text.contains("written to block 7")));
        assert!(fault(7, 4, &data).is_some_and(|text| text.contains("version 3 instead of 4")));
        assert!(fault(0, 0, &vec![0; 512]).is_some(), "zeros are no content");
        for at in 0..data.len() {
            let mut other = data.clone();
            other[at] ^= 1;
            assert!(fault(7, 3, &other).is_some(), "byte {at} does not count");
        }
    }
}
