//! A fingerprint of bytes, fast and the same on every machine. Not cryptographic: it tells files apart that differ by
//! chance, not by intent.
//!
//! Bytes are cut into blocks of 1 MiB, and a block into little-endian words of 8 bytes, the last filled up with zeros.
//! Word i goes into lane i mod 8 by a multiplication with an odd number and a shift, both of which can be undone, so
//! that one changed word always changes its lane. Lanes and lengths are then scrambled together.

use crate::random::key;
use rayon::prelude::*;

const BLOCK: usize = 1 << 20;
const LANES: usize = 8;
/// The golden ratio in 64 bits: odd, and no bit pattern that repeats.
const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;

/// The fingerprint of bytes.
pub(super) fn bytes(bytes: &[u8]) -> u64 {
    if bytes.len() <= BLOCK {
        return block(bytes);
    }
    key(&bytes.par_chunks(BLOCK).map(block).collect::<Vec<_>>())
}

fn block(bytes: &[u8]) -> u64 {
    let mut lanes = [0u64; LANES];
    let (words, rest) = bytes.as_chunks::<8>();
    let (groups, single) = words.as_chunks::<LANES>();
    for group in groups {
        for (lane, word) in lanes.iter_mut().zip(group) {
            absorb(lane, *word);
        }
    }
    let mut last = [0; 8];
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    for (lane, word) in lanes.iter_mut().zip(single.iter().chain([&last])) {
        absorb(lane, *word);
    }
    key(&[key(&lanes), bytes.len() as u64])
}

fn absorb(lane: &mut u64, word: [u8; 8]) {
    let mixed = (*lane ^ u64::from_le_bytes(word)).wrapping_mul(FACTOR);
    *lane = mixed ^ (mixed >> 32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_bit_and_the_length_count() {
        let mut data: Vec<u8> = (0..200u32).map(|i| (i * 7) as u8).collect();
        let mut seen = HashSet::from([bytes(&data)]);
        for bit in 0..data.len() * 8 {
            data[bit / 8] ^= 1 << (bit % 8);
            assert!(seen.insert(bytes(&data)), "bit {bit}");
            data[bit / 8] ^= 1 << (bit % 8);
        }
        let zeros = vec![0; 3 * BLOCK];
        for len in (0..100).chain([BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK]) {
            assert!(seen.insert(bytes(&zeros[..len])), "length {len}");
        }
    }

    #[test]
    fn it_stays_what_it_is() {
        assert_eq!(bytes(&[]), 0xe371_a85f_403a_5a37);
        assert_eq!(
            bytes(b"even keel, even keel, even keel, even keel, even keel, even keel, even keel"),
            0xb748_97e3_2fe7_06b2
        );
    }
}
