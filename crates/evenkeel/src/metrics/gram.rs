//! Signal propagation (Section 4 of the paper): how correlated tokens are, how correlated channels are.
//!
//! With X (n tokens × d channels) scaled to unit RMS over all its entries, Σ_I = X Xᵀ / d is the input-wise
//! Gram matrix and Σ_F = Xᵀ X / n the feature-wise one. As ‖X Xᵀ‖_F = ‖Xᵀ X‖_F, one of them serves both
//! sides: its own off-diagonal entries are summed directly, those of the other side are ‖·‖² less that side's
//! squared diagonal, which are Σ_α ‖x_α‖⁴ for Σ_I and Σ_j (Σ_α x_αj²)² for Σ_F. That identity is the paper's
//! link between bad signal propagation and feature kurtosis: if tokens are correlated, ‖·‖ is large, and
//! either channels are correlated or the diagonal of Σ_F, the channels' mean squares, is uneven.
//!
//! Tokens are kept as they are until there are more of them than channels; from then on the d × d matrix is,
//! in float64, so that batches add up exactly and no more than min(n, d) · d numbers are held.

use super::finite;
use evenkeel_kernels::stats::{GramSums, Side, channel_moments, gram_add, gram_sums, row_squares};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Over which tokens a Gram matrix is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum GramMode {
    /// All tokens together, as in the authors' code.
    #[default]
    Batch,
    /// One per sequence; figures are means over sequences.
    Sequence,
}

/// Which tokens the Gram metrics are taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GramSpec {
    /// The first so many tokens seen at a site; all if `None`. With [`GramMode::Sequence`] as many whole
    /// sequences as fit, and at least one.
    pub tokens: Option<usize>,
    /// Together or per sequence.
    pub mode: GramMode,
}

/// The figures that need a Gram matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GramMetrics {
    /// RMS off-diagonal entry of Σ_I: 0 if tokens are orthogonal, 1 if they are all the same. May exceed 1 if
    /// their norms differ. `None` for a single token.
    pub input_corr_rms: Option<f64>,
    /// RMS off-diagonal entry of Σ_F. `None` for a single channel.
    pub feature_corr_rms: Option<f64>,
    /// (Σλ)² / Σλ² over the eigenvalues λ of Σ_F, which is tr² / ‖·‖_F²: from 1 to min(n, d).
    pub effective_rank: Option<f64>,
}

/// Gathers what [`GramMetrics`] are made of at one site.
#[derive(Clone, Debug)]
pub struct GramStats {
    spec: GramSpec,
    width: usize,
    tokens: u64,
    full: bool,
    kept: Kept,
    /// Σ over tokens of ‖x‖⁴.
    token_fourths: f64,
    /// Figures of each sequence, if taken per sequence.
    sequences: Vec<GramMetrics>,
}

#[derive(Clone, Debug)]
enum Kept {
    Tokens(Vec<f32>),
    /// Lower triangle of Xᵀ X.
    Channels(Vec<f64>),
    /// Nothing but what came of it.
    Figures(GramMetrics),
}

impl GramStats {
    /// Nothing gathered yet.
    pub fn new(spec: GramSpec) -> Self {
        Self {
            spec,
            width: 0,
            tokens: 0,
            full: false,
            kept: Kept::Tokens(Vec::new()),
            token_fourths: 0.0,
            sequences: Vec::new(),
        }
    }

    /// Tokens that the figures are of.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Adds sequences of `tokens` rows of `width` channels, as far as the specification goes.
    pub fn add(&mut self, x: &[f32], tokens: usize, width: usize) {
        if x.is_empty() || width == 0 || tokens == 0 || self.full {
            return;
        }
        self.width = width;
        let limit = self.spec.tokens.map_or(u64::MAX, |t| t as u64);
        match self.spec.mode {
            GramMode::Batch => {
                let rows = ((x.len() / width) as u64).min(limit - self.tokens);
                // Fits: no more than the slice has.
                self.add_rows(&x[..rows as usize * width], width);
                self.tokens += rows;
                self.full = self.tokens == limit;
            }
            GramMode::Sequence => {
                for sequence in x.chunks_exact(tokens * width) {
                    self.full = self.tokens > 0 && self.tokens + tokens as u64 > limit;
                    if self.full {
                        break;
                    }
                    self.sequences.push(gram_metrics(sequence, width));
                    self.tokens += tokens as u64;
                }
            }
        }
    }

    fn add_rows(&mut self, x: &[f32], width: usize) {
        self.token_fourths += row_squares(x, width).iter().map(|s| s * s).sum::<f64>();
        if let Kept::Tokens(tokens) = &mut self.kept {
            if (tokens.len() + x.len()) / width <= width {
                tokens.extend_from_slice(x);
                return;
            }
            let mut gram = vec![0.0; width * width];
            gram_add(tokens, width, Side::Channels, &mut gram);
            self.kept = Kept::Channels(gram);
        }
        if let Kept::Channels(gram) = &mut self.kept {
            gram_add(x, width, Side::Channels, gram);
        }
    }

    /// Takes the figures and gives back the memory, which is that of the tokens or of a Gram matrix. Until all tokens that the
    /// specification asks for are there, only if these are the `last`; what is added afterwards is passed over.
    pub fn settle(&mut self, last: bool) {
        if (last || self.full) && !matches!(self.kept, Kept::Figures(_)) {
            self.kept = Kept::Figures(self.metrics());
            (self.full, self.sequences) = (true, Vec::new());
        }
    }

    /// The figures.
    pub fn metrics(&self) -> GramMetrics {
        if let Kept::Figures(figures) = self.kept {
            return figures;
        }
        if self.spec.mode == GramMode::Sequence {
            return mean(&self.sequences);
        }
        match &self.kept {
            Kept::Tokens(x) if x.is_empty() => GramMetrics::default(),
            Kept::Tokens(x) => gram_metrics(x, self.width),
            Kept::Channels(gram) => from_channels(
                self.tokens as f64,
                self.width as f64,
                GramSums::of_lower(gram, self.width),
                self.token_fourths,
            ),
            Kept::Figures(figures) => *figures,
        }
    }
}

/// The figures of `x`, rows of `width`, from whichever Gram matrix is smaller.
fn gram_metrics(x: &[f32], width: usize) -> GramMetrics {
    let (n, d) = (x.len() / width, width);
    if n > d {
        let fourths = row_squares(x, width).iter().map(|s| s * s).sum();
        return from_channels(n as f64, d as f64, gram_sums(x, width, Side::Channels), fourths);
    }
    let sums = gram_sums(x, width, Side::Tokens);
    let fourths: f64 = channel_moments(x, width).squares().iter().map(|s| s * s).sum();
    figures(n as f64, d as f64, sums, sums.off_diagonal, other_side(sums, fourths))
}

fn from_channels(n: f64, d: f64, sums: GramSums, token_fourths: f64) -> GramMetrics {
    figures(n, d, sums, other_side(sums, token_fourths), sums.off_diagonal)
}

/// Σ of squared off-diagonal entries on the side whose squared diagonal is given. A difference within
/// rounding of zero is zero.
fn other_side(sums: GramSums, diagonal: f64) -> f64 {
    let total = sums.diagonal + sums.off_diagonal;
    let rest = total - diagonal;
    if rest <= 1e-13 * total { 0.0 } else { rest }
}

fn figures(n: f64, d: f64, sums: GramSums, input: f64, feature: f64) -> GramMetrics {
    if sums.trace <= 0.0 {
        return GramMetrics::default();
    }
    // With q = trace / (n d) the mean square, Σ_I is X Xᵀ / (d q) and Σ_F is Xᵀ X / (n q).
    let rms = |squares: f64, m: f64| finite((squares / (m * (m - 1.0))).sqrt() * m / sums.trace);
    let rank = sums.trace * sums.trace / (sums.diagonal + sums.off_diagonal);
    GramMetrics {
        input_corr_rms: rms(input, n),
        feature_corr_rms: rms(feature, d),
        effective_rank: finite(rank).map(|r| r.clamp(1.0, n.min(d))),
    }
}

/// Undefined if it is for any sequence: a mean over the others would hide that.
fn mean(all: &[GramMetrics]) -> GramMetrics {
    let mean = |of: fn(&GramMetrics) -> Option<f64>| {
        let sum: Option<f64> = all.iter().map(of).sum();
        finite(sum? / all.len() as f64)
    };
    GramMetrics {
        input_corr_rms: mean(|m| m.input_corr_rms),
        feature_corr_rms: mean(|m| m.feature_corr_rms),
        effective_rank: mean(|m| m.effective_rank),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_settled_stays() {
        let x: Vec<f32> = (0..12).map(|i| (i * i % 7) as f32 - 3.0).collect();
        for mode in [GramMode::Batch, GramMode::Sequence] {
            let mut stats = GramStats::new(GramSpec { tokens: Some(4), mode });
            stats.add(&x[..6], 2, 3);
            stats.settle(false);
            stats.add(&x[6..], 2, 3);
            let before = stats.metrics();
            stats.settle(true);
            stats.add(&x[..6], 2, 3);
            assert_eq!((stats.metrics(), stats.tokens()), (before, 4));
        }
    }

    fn close(a: GramMetrics, b: GramMetrics) -> Result<(), TestCaseError> {
        for (a, b) in [
            (a.input_corr_rms, b.input_corr_rms),
            (a.feature_corr_rms, b.feature_corr_rms),
            (a.effective_rank, b.effective_rank),
        ] {
            match (a, b) {
                (Some(a), Some(b)) => prop_assert!((a - b).abs() <= 1e-9 * b.max(1e-3), "{a} {b}"),
                (a, b) => prop_assert_eq!(a, b),
            }
        }
        Ok(())
    }

    fn streamed(x: &[f32], spec: GramSpec, tokens: usize, width: usize, cuts: &[usize]) -> GramStats {
        let mut stats = GramStats::new(spec);
        let mut from = 0;
        for &cut in cuts.iter().chain(&[x.len()]) {
            stats.add(&x[from..cut], tokens, width);
            from = cut;
        }
        stats
    }

    #[test]
    fn the_same_token_everywhere_has_correlation_and_rank_one() {
        let x = [1.0f32, -2.0, 3.0].repeat(5);
        let m = gram_metrics(&x, 3);
        assert!((m.input_corr_rms.unwrap() - 1.0).abs() < 1e-12);
        assert!((m.effective_rank.unwrap() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn orthogonal_tokens_have_none_and_full_rank() {
        for width in [4, 7] {
            let mut x = vec![0.0f32; 4 * width];
            (0..4).for_each(|i| x[i * width + i] = 2.0);
            let m = gram_metrics(&x, width);
            assert_eq!(
                (m.input_corr_rms, m.feature_corr_rms, m.effective_rank),
                (Some(0.0), Some(0.0), Some(4.0))
            );
        }
    }

    #[test]
    fn undefined_cases() {
        let single = gram_metrics(&[1.0, 2.0], 2);
        assert!(single.input_corr_rms.is_none() && single.feature_corr_rms.is_some());
        let column = gram_metrics(&[1.0, 2.0], 1);
        assert!(column.feature_corr_rms.is_none() && column.input_corr_rms.is_some());
        assert_eq!(gram_metrics(&[0.0; 6], 2), GramMetrics::default());
        assert_eq!(GramStats::new(GramSpec::default()).metrics(), GramMetrics::default());
    }

    #[test]
    fn the_limit_is_kept() {
        let x: Vec<f32> = (0..60).map(|i| (i * i % 17) as f32 - 8.0).collect();
        let spec = |tokens, mode| GramSpec { tokens: Some(tokens), mode };
        // 5 sequences of 4 tokens of 3 channels; 7 tokens are one whole sequence and a part.
        let batch = streamed(&x, spec(7, GramMode::Batch), 4, 3, &[12, 24]);
        assert_eq!((batch.tokens(), batch.metrics()), (7, gram_metrics(&x[..21], 3)));
        let sequence = streamed(&x, spec(7, GramMode::Sequence), 4, 3, &[12, 24]);
        assert_eq!((sequence.tokens(), sequence.metrics()), (4, gram_metrics(&x[..12], 3)));
        assert_eq!(streamed(&x, spec(2, GramMode::Sequence), 4, 3, &[]).tokens(), 4);
    }

    proptest! {
        #[test]
        fn batches_add_up_to_the_whole(
            x in proptest::collection::vec(-1e2f32..1e2, 60), cut in 0usize..=5, width in 1usize..=3) {
            // Widths 4, 6 and 12: more tokens than channels, and fewer.
            let width = [4, 6, 12][width - 1];
            let cut = cut * 12;
            let stats = streamed(&x, GramSpec::default(), 12 / width, width, &[cut]);
            close(stats.metrics(), gram_metrics(&x, width))?;
            let spec = GramSpec { mode: GramMode::Sequence, tokens: None };
            close(
                streamed(&x, spec, 12 / width, width, &[cut]).metrics(),
                streamed(&x, spec, 12 / width, width, &[]).metrics(),
            )?;
        }

        #[test]
        fn both_sides_give_the_same(x in proptest::collection::vec(-1e2f32..1e2, 30), scale in -60i32..60) {
            let x: Vec<f32> = x.iter().map(|v| v * (scale as f32).exp2()).collect();
            for width in [2, 5, 6, 15] {
                let (n, d) = ((30 / width) as f64, width as f64);
                let channels = gram_sums(&x, width, Side::Channels);
                let tokens = gram_sums(&x, width, Side::Tokens);
                let (a, b) = (channels.diagonal + channels.off_diagonal, tokens.diagonal + tokens.off_diagonal);
                prop_assert!((a - b).abs() <= 1e-12 * a, "‖X Xᵀ‖² {b} and ‖Xᵀ X‖² {a}");
                // Each side directly, against one that is a difference.
                let direct = figures(n, d, channels, tokens.off_diagonal, channels.off_diagonal);
                close(gram_metrics(&x, width), direct)?;
                let rank = direct.effective_rank.unwrap_or(1.0);
                prop_assert!((1.0..=n.min(d)).contains(&rank));
                let unclamped = a.recip() * channels.trace * channels.trace;
                prop_assert!(a == 0.0 || (unclamped - rank).abs() < 1e-9 * rank);
            }
        }
    }
}
