//! A keyed pseudo-random permutation of 0..n in constant memory.
//!
//! A balanced Feistel network (Luby and Rackoff 1988) permutes the numbers of 2h bits, whatever
//! its round function is; 4^h is chosen to be the first such power that holds n. Where it leads
//! outside 0..n it is applied again (cycle walking, Black and Rogaway 2002), which keeps it a
//! permutation of 0..n and takes at most four applications on average. So the order of an epoch
//! need not be stored or shuffled: the k-th window is computed, from any point on.
//!
//! [`mix`] is the finaliser of SplitMix64 (Steele, Lea and Flood 2014), and the source of all
//! randomness in this module. Nothing here is meant to keep secrets.

use crate::random::mix;

/// More than the four that theory asks for, since with few windows a half has only a few bits.
const ROUNDS: u64 = 8;

/// A permutation of 0..n given by a key.
#[derive(Debug, Clone, Copy)]
pub struct Permutation {
    n: u64,
    half_bits: u32,
    key: u64,
}

impl Permutation {
    /// The permutation of 0..`n` with this key. `n` may be up to 2^62.
    pub fn new(n: u64, key: u64) -> Self {
        let bits = u64::BITS - n.saturating_sub(1).leading_zeros();
        Self { n, half_bits: bits.div_ceil(2).clamp(1, 31), key }
    }

    /// Where `index` goes; `None` if it is not below n.
    pub fn get(&self, index: u64) -> Option<u64> {
        if index >= self.n {
            return None;
        }
        // It ends: the walk follows a cycle of the network's permutation, which comes back to
        // `index` at the latest, and `index` is below n.
        let mut at = self.network(index);
        while at >= self.n {
            at = self.network(at);
        }
        Some(at)
    }

    fn network(&self, value: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round in 0..ROUNDS {
            let scrambled = mix(mix(self.key ^ round) ^ right) & mask;
            (left, right) = (right, left ^ scrambled);
        }
        (left << self.half_bits) | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn it_is_a_bijection(n in 1_u64..3000, key: u64) {
            let permutation = Permutation::new(n, key);
            let mut seen = vec![false; n as usize];
            for index in 0..n {
                let at = permutation.get(index).unwrap() as usize;
                prop_assert!(!std::mem::replace(&mut seen[at], true));
            }
            prop_assert_eq!(permutation.get(n), None);
        }

        #[test]
        fn large_domains_stay_in_bounds(n in 1_u64..=1 << 62, key: u64, index: u64) {
            let index = index % n;
            prop_assert!(Permutation::new(n, key).get(index).unwrap() < n);
        }
    }

    #[test]
    fn every_small_order_occurs_about_equally_often() {
        let mut counts = std::collections::BTreeMap::new();
        for key in 0..6000 {
            let permutation = Permutation::new(3, key);
            let order: Vec<u64> = (0..3).filter_map(|i| permutation.get(i)).collect();
            *counts.entry(order).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        // 1000 each is expected, with a standard deviation of about 29.
        assert!(counts.values().all(|&count| (800..1200).contains(&count)), "{counts:?}");
    }

    #[test]
    fn neighbours_are_torn_apart() {
        let permutation = Permutation::new(10_000, 7);
        let at = |i| permutation.get(i).unwrap() as f64;
        let gap = (0..9_999).map(|i| (at(i + 1) - at(i)).abs()).sum::<f64>() / 9_999.0;
        // Two independent uniform places are n/3 apart.
        assert!((3_000.0..3_700.0).contains(&gap), "{gap}");
    }
}
