//! What follows from each channel's moments: the kurtoses of Eq 1, sizes, and the mean correlation of tokens.
//!
//! Sums stream: adding batch by batch gives what adding all at once gives, to float64 rounding, because
//! channel means are joined by a stable update (see [`evenkeel_kernels::stats::channels`]). That matters
//! where a channel is nearly constant, which outlier features often are.

use super::finite;
use evenkeel_kernels::stats::{ChannelMoments, channel_moments};

/// Moments of the channels of one site over all tokens seen, X being n tokens × d channels.
#[derive(Clone, Debug, Default)]
pub struct ChannelStats(ChannelMoments);

impl ChannelStats {
    /// Adds the rows of `x`, each of `width` channels.
    pub fn add(&mut self, x: &[f32], width: usize) {
        if width > 0 && !x.is_empty() {
            self.0.merge(&channel_moments(x, width));
        }
    }

    /// Adds what was gathered elsewhere about other tokens at the same site.
    pub fn merge(&mut self, other: &Self) {
        self.0.merge(&other.0);
    }

    /// Tokens seen, n.
    pub fn tokens(&self) -> u64 {
        self.0.rows
    }

    /// Channels, d; 0 before the first token.
    pub fn width(&self) -> usize {
        self.0.mean.len()
    }

    /// The moments themselves.
    pub fn moments(&self) -> &ChannelMoments {
        &self.0
    }

    /// Eq 1. `None` if all is 0.
    pub fn kurtosis(&self) -> Option<f64> {
        kurtosis(&self.0.squares())
    }

    /// Eq 1 after subtracting each token's mean over channels. `None` if every token is constant.
    pub fn kurtosis_centred(&self) -> Option<f64> {
        kurtosis(&self.0.centred)
    }

    /// Eq 1 after subtracting each channel's mean over tokens. `None` if all tokens are the same.
    pub fn kurtosis_mean_removed(&self) -> Option<f64> {
        kurtosis(&self.0.deviations)
    }

    /// Root mean square of each channel.
    pub fn channel_rms(&self) -> Vec<f64> {
        let tokens = self.0.rows.max(1) as f64;
        self.0.squares().iter().map(|sum| (sum / tokens).sqrt()).collect()
    }

    /// Root mean square of all entries. `None` without tokens.
    pub fn rms(&self) -> Option<f64> {
        let entries = self.0.rows as f64 * self.width() as f64;
        finite((self.0.squares().iter().sum::<f64>() / entries).sqrt())
    }

    /// Largest |x|. `None` without tokens.
    pub fn max_abs(&self) -> Option<f64> {
        (self.0.rows > 0).then_some(f64::from(self.0.max_abs)).and_then(finite)
    }

    /// Mean off-diagonal entry of X Xᵀ / d with X scaled to unit RMS: (‖Σ_α x_α‖² - Σ_α ‖x_α‖²) / (d n (n -
    /// 1)).
    ///
    /// From -1 / (n - 1) to 1, and 1 exactly if all tokens are the same (rank collapse). `None` for fewer
    /// than two tokens and for zeros.
    pub fn input_corr_mean(&self) -> Option<f64> {
        let n = self.0.rows as f64;
        let norms = self.0.squares().iter().sum::<f64>();
        let sum = self.0.mean.iter().map(|m| (n * m) * (n * m)).sum::<f64>();
        // Mean square q = norms / (n d) divides what is above: d and one n cancel.
        if self.0.rows < 2 || norms == 0.0 { None } else { finite((sum - norms) / norms / (n - 1.0)) }
    }
}

/// Eq 1, mean s⁴ / (mean s²)², from the channels' Σ x² (or mean x²: it is scale-free). Between 1 and d.
/// `None` if they are all 0, or one is not finite.
pub fn kurtosis(squares: &[f64]) -> Option<f64> {
    let peak = squares.iter().copied().fold(0.0, f64::max);
    if peak <= 0.0 || !squares.iter().all(|s| s.is_finite()) {
        return None;
    }
    // Divided by the largest first, so that squares of tiny or huge values neither vanish nor overflow.
    let d = squares.len() as f64;
    let second = squares.iter().map(|s| s / peak).sum::<f64>() / d;
    let fourth = squares.iter().map(|s| (s / peak).powi(2)).sum::<f64>() / d;
    Some(fourth / (second * second))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(x: &[f32], width: usize) -> ChannelStats {
        let mut stats = ChannelStats::default();
        stats.add(x, width);
        stats
    }

    /// All figures; the name says which differ.
    fn figures(s: &ChannelStats) -> [(&'static str, Option<f64>); 6] {
        [
            ("kurtosis", s.kurtosis()),
            ("centred", s.kurtosis_centred()),
            ("mean removed", s.kurtosis_mean_removed()),
            ("rms", s.rms()),
            ("max_abs", s.max_abs()),
            ("input_corr_mean", s.input_corr_mean()),
        ]
    }

    fn same(a: &ChannelStats, b: &ChannelStats, tolerance: f64) -> Result<(), TestCaseError> {
        for ((name, a), (_, b)) in figures(a).into_iter().zip(figures(b)) {
            match (a, b) {
                // Correlations are at most 1 and may be anywhere near 0.
                (Some(a), Some(b)) => {
                    prop_assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{name}: {a} {b}")
                }
                (a, b) => prop_assert_eq!(a, b, "{}", name),
            }
        }
        Ok(())
    }

    #[test]
    fn one_neuron_that_holds_everything_has_kurtosis_d() {
        let mut x = vec![0.0f32; 40];
        for row in x.chunks_mut(8) {
            row[3] = 2.0;
        }
        assert_eq!(of(&x, 8).kurtosis(), Some(8.0));
    }

    #[test]
    fn a_constant_vector_is_removed_to_the_last_digit() {
        // 300 ± 1 in one channel, ± 1 in all: the same spread everywhere.
        let signs = |i: usize| if i.is_multiple_of(2) { 1.0f32 } else { -1.0 };
        let x: Vec<f32> = (0..4000).map(|i| signs(i / 4) + if i % 4 == 2 { 300.0 } else { 0.0 }).collect();
        assert!(of(&x, 4).kurtosis().unwrap() > 3.99);
        assert!((of(&x, 4).kurtosis_mean_removed().unwrap() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn without_tokens_nothing_is_defined() {
        assert!(figures(&ChannelStats::default()).iter().all(|f| f.1.is_none()));
    }

    proptest! {
        #[test]
        fn kurtosis_lies_between_1_and_d(x in proptest::collection::vec(-1e3f32..1e3, 24)) {
            let s = of(&x, 6);
            for k in [s.kurtosis(), s.kurtosis_centred(), s.kurtosis_mean_removed()].into_iter().flatten() {
                prop_assert!((1.0 - 1e-12..=6.0 + 1e-12).contains(&k));
            }
            if let Some(c) = s.input_corr_mean() {
                prop_assert!((-1.0 / 3.0 - 1e-12..=1.0 + 1e-12).contains(&c));
            }
        }

        #[test]
        fn scale_changes_sizes_only(x in proptest::collection::vec(-1e3f32..1e3, 24), power in -90i32..90) {
            // A power of two, so that float32 itself rounds nothing; 2⁹⁰ is 1e27.
            let scale = (power as f32).exp2();
            let scaled: Vec<f32> = x.iter().map(|v| v * scale).collect();
            let (a, b) = (of(&x, 6), of(&scaled, 6));
            for ((name, a), (_, b)) in figures(&a).into_iter().zip(figures(&b)) {
                let factor = if ["rms", "max_abs"].contains(&name) { f64::from(scale) } else { 1.0 };
                match (a, b) {
                    (Some(a), Some(b)) => prop_assert!((b / factor - a).abs() <= 1e-12 * a.abs(), "{name}"),
                    (a, b) => prop_assert_eq!(a, b),
                }
            }
        }

        #[test]
        fn the_order_of_channels_and_tokens_does_not_matter(
            x in proptest::collection::vec(-1e3f32..1e3, 24), shift in 1usize..6) {
            let mut tokens = x.clone();
            tokens.rotate_left(6 * (shift % 4));
            same(&of(&tokens, 6), &of(&x, 6), 1e-11)?;
            let mut channels = x.clone();
            channels.chunks_mut(6).for_each(|row| row.rotate_left(shift));
            same(&of(&channels, 6), &of(&x, 6), 1e-11)?;
        }

        #[test]
        fn batches_add_up_to_the_whole(
            x in proptest::collection::vec(-1e3f32..1e3, 60), offset in -1e4f32..1e4, cut in 0usize..=10) {
            let moved = |(i, v): (usize, &f32)| if i % 6 == 1 { v + offset } else { *v };
            let x: Vec<f32> = x.iter().enumerate().map(moved).collect();
            let (mut parts, mut rest) = (of(&x[..cut * 6], 6), ChannelStats::default());
            rest.add(&x[cut * 6..], 6);
            parts.merge(&rest);
            same(&parts, &of(&x, 6), 1e-10)?;
        }
    }
}
