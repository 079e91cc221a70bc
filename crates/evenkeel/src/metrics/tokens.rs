//! What is taken token by token, or sequence by sequence: the max-median ratio of Eq 2, two kurtoses of other
//! projects, the mean largest entry, and the mean cosine between tokens.
//!
//! Each is a mean over tokens or sequences, hence a sum and a count, and streams exactly.

use super::finite;
use evenkeel_kernels::stats::{self, SequenceMoments, TokenSums};

/// Eq 2: mean over tokens of max |x| / lower median |x|.
#[derive(Clone, Copy, Debug, Default)]
pub struct MaxMedian {
    sum: f64,
    counted: u64,
    skipped: u64,
}

impl MaxMedian {
    /// Adds the rows of `x`, each of `width` channels.
    pub fn add(&mut self, x: &[f32], width: usize) {
        let (sum, counted, skipped) = stats::max_median_sums(x, width);
        self.sum += sum;
        self.counted += counted;
        self.skipped += skipped;
    }

    /// The mean over the tokens whose median is not 0. `None` if there are none.
    pub fn mmr(&self) -> Option<f64> {
        finite(self.sum / self.counted as f64)
    }

    /// Tokens whose median is 0.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Tokens seen, these included.
    pub fn tokens(&self) -> u64 {
        self.counted + self.skipped
    }
}

/// The other metrics of tokens and sequences.
#[derive(Clone, Debug, Default)]
pub struct TokenStats {
    tokens: TokenSums,
    sequences: u64,
    elementwise: f64,
    inf_norm: f64,
}

impl TokenStats {
    /// Adds sequences of `tokens` rows of `width` channels.
    pub fn add(&mut self, x: &[f32], tokens: usize, width: usize) {
        if x.is_empty() || width == 0 || tokens == 0 {
            return;
        }
        self.tokens.merge(&stats::token_sums(x, width));
        let entries = tokens * width;
        for moments in stats::sequence_moments(x, entries) {
            self.elementwise += elementwise(moments, entries);
            self.inf_norm += f64::from(moments.max_abs);
            self.sequences += 1;
        }
    }

    /// Mean over sequences of mean((x - μ)⁴) / (s⁴ + 1e-6), all entries of a sequence pooled, s² unbiased: 3
    /// for a Gaussian, 0 for a constant sequence. What Qualcomm's validation script reports (Bondarenko et
    /// al. 2023).
    ///
    /// At least 0. The 1e-6 is theirs; it makes the figure of activations below 0.1 depend on their scale.
    /// `None` for sequences of one entry.
    pub fn kurtosis_elementwise(&self) -> Option<f64> {
        finite(self.elementwise / self.sequences as f64)
    }

    /// Mean over tokens of max(0, mean(x⁴) / std⁴ - 3) over channels, std centred and unbiased. What OSP's
    /// script reports (Park et al. 2025).
    ///
    /// At least 0. Tokens with std 0 are left out. `None` if none remain, as for a single channel.
    pub fn kurtosis_excess_token(&self) -> Option<f64> {
        finite(self.tokens.excess / self.tokens.excess_rows as f64)
    }

    /// Mean over sequences of max |x|. `None` without sequences.
    pub fn inf_norm(&self) -> Option<f64> {
        finite(self.inf_norm / self.sequences as f64)
    }

    /// Mean cosine between two different tokens: each scaled to unit norm, then as `input_corr_mean`.
    ///
    /// From -1 / (n - 1) to 1. Tokens of norm 0 are left out. `None` if fewer than two remain.
    pub fn input_cos_mean(&self) -> Option<f64> {
        let n = self.tokens.direction_rows as f64;
        let norm: f64 = self.tokens.directions.iter().map(|v| v * v).sum();
        if self.tokens.direction_rows < 2 { None } else { finite((norm - n) / (n * (n - 1.0))) }
    }
}

fn elementwise(moments: SequenceMoments, entries: usize) -> f64 {
    // 0 / 0 for one entry: undefined, and so is the mean.
    let variance = moments.second / (entries as f64 - 1.0);
    moments.fourth / entries as f64 / (variance * variance + 1e-6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(x: &[f32], tokens: usize, width: usize) -> TokenStats {
        let mut stats = TokenStats::default();
        stats.add(x, tokens, width);
        stats
    }

    #[test]
    fn edge_cases() {
        let constant = of(&[5.0; 12], 2, 3);
        assert_eq!((constant.kurtosis_elementwise(), constant.kurtosis_excess_token()), (Some(0.0), None));
        assert_eq!(constant.inf_norm(), Some(5.0));
        assert!((constant.input_cos_mean().unwrap() - 1.0).abs() < 1e-15);
        assert_eq!(of(&[-2.0], 1, 1).kurtosis_elementwise(), None);
        let one_direction = of(&[0.0, 0.0, 1.0, 2.0], 1, 2);
        assert_eq!(one_direction.input_cos_mean(), None);
        let none = TokenStats::default();
        assert_eq!((none.inf_norm(), none.input_cos_mean(), none.kurtosis_elementwise()), (None, None, None));
    }

    proptest! {
        #[test]
        fn batches_add_up_and_order_does_not_matter(
            x in proptest::collection::vec(-1e2f32..1e2, 60), cut in 0usize..=5) {
            // 5 sequences of 3 tokens of 4 channels.
            let whole = of(&x, 3, 4);
            let mut parts = of(&x[..cut * 12], 3, 4);
            parts.add(&x[cut * 12..], 3, 4);
            let mut moved = x.clone();
            moved.rotate_left(12 * (cut % 5));
            moved.chunks_mut(4).for_each(|row| row.rotate_left(1));
            for other in [parts, of(&moved, 3, 4)] {
                for (a, b) in [
                    (whole.kurtosis_elementwise(), other.kurtosis_elementwise()),
                    (whole.kurtosis_excess_token(), other.kurtosis_excess_token()),
                    (whole.inf_norm(), other.inf_norm()),
                    (whole.input_cos_mean(), other.input_cos_mean()),
                ] {
                    let (a, b) = (a.unwrap(), b.unwrap());
                    prop_assert!((a - b).abs() <= 1e-11 * a.abs().max(1.0), "{a} {b}");
                }
            }
        }

        #[test]
        fn a_cosine_ignores_the_length_of_tokens(
            x in proptest::collection::vec(0.1f32..1e2, 12), power in -30i32..30) {
            let mut longer = x.clone();
            longer[..4].iter_mut().for_each(|v| *v *= (power as f32).exp2());
            let (a, b) = (of(&x, 3, 4).input_cos_mean().unwrap(), of(&longer, 3, 4).input_cos_mean().unwrap());
            prop_assert!((a - b).abs() < 1e-12 && a <= 1.0 + 1e-12);
        }
    }
}
