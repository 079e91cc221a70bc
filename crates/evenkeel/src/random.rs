//! Counter-based randomness: numbers that depend on a key and a position and on nothing else.
//!
//! The finaliser of splitmix64 (Steele, Lea and Flood, 2014) applied to a Weyl sequence. With it the batch of a step,
//! the start of a parameter and the draw for a token can be computed in any order, which makes resuming exact.

/// Scrambles 64 bits; a bijection in which every input bit reaches every output bit.
pub fn mix(value: u64) -> u64 {
    // The golden ratio in 64 bits, so that 0 does not stay 0.
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// One key from several numbers; their order matters.
pub fn key(parts: &[u64]) -> u64 {
    parts.iter().fold(0, |key, &part| mix(key ^ mix(part)))
}

/// A number in [0, 1) of 53 bits.
pub fn uniform(key: u64, counter: u64) -> f64 {
    (mix(key.wrapping_add(counter)) >> 11) as f64 / (1u64 << 53) as f64
}

/// One key from bytes: the 64-bit FNV-1a hash (Fowler, Noll and Vo), continued from `hash`.
pub fn fnv1a(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Where an FNV-1a hash begins.
pub const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mix_is_splitmix64() {
        // The first outputs of the published generator for seed 0.
        assert_eq!(mix(0), 0xE220_A839_7B1D_CDAF);
        assert_eq!(mix(0x9E37_79B9_7F4A_7C15), 0x6E78_9E6A_A1B9_65F4);
    }
}
