//! Moment control: what one optimiser step does to the second and fourth moment of activations, term by term.
//!
//! Let a fixed probe batch have activations X (n tokens × d channels) at some site before the step and X' = X + Δ
//! after it. The moments are polynomials in Δ, so their change is an exact sum: u2k and u4k are the parts of degree
//! k in Δ (He et al., arXiv 2405.19279, Section 5). Kurtosis is m4/m2², and the paper's finding is that the
//! quadratic part u42 drives it up where outlier features emerge.
//!
//! [`MomentKind::Neuron`] expands the moments that Eq 1 is made of. With, per channel j and means over tokens α,
//! s_j² = E\[X²\], a_j = E\[XΔ\] and b_j = E\[Δ²\], the step moves s_j² by 2a_j + b_j, hence
//!
//! ```text
//! m2 = mean s²    m2' - m2 = u21 + u22                u21 = 2 mean a        u22 = mean b
//! m4 = mean s⁴    m4' - m4 = u41 + u42 + u43 + u44    u41 = 4 mean(s² a)    u42 = mean(2 s² b + 4 a²)
//!                                                     u43 = 4 mean(a b)     u44 = mean(b²)
//! ```
//!
//! [`MomentKind::Element`] pools single entries x with changes δ: m2 = E\[x²\], m4 = E\[x⁴\], u21 = 2E\[xδ\],
//! u22 = E\[δ²\], u41 = 4E\[x³δ\], u42 = 6E\[x²δ²\], u43 = 4E\[xδ³\], u44 = E\[δ⁴\].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which moments are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MomentKind {
    /// Of the channels' mean squares: m4/m2² is the kurtosis of Eq 1.
    Neuron,
    /// Of single entries, pooled over tokens and channels.
    Element,
}

/// Moments before a step and the terms of their change, in float64. Not finite where an activation is not, and
/// NaN for no activations at all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MomentTerms {
    /// Second moment before the step.
    pub m2: f64,
    /// Fourth moment before the step.
    pub m4: f64,
    /// Part of the change of `m2` that is linear in Δ.
    pub u21: f64,
    /// Quadratic part; at least 0.
    pub u22: f64,
    /// Part of the change of `m4` that is linear in Δ.
    pub u41: f64,
    /// Quadratic part; at least 0.
    pub u42: f64,
    /// Cubic part.
    pub u43: f64,
    /// Quartic part; at least 0.
    pub u44: f64,
}

impl MomentTerms {
    /// m2' - m2.
    pub fn m2_change(&self) -> f64 {
        self.u21 + self.u22
    }

    /// m4' - m4.
    pub fn m4_change(&self) -> f64 {
        self.u41 + self.u42 + self.u43 + self.u44
    }

    /// m4/m2² before the step; for [`MomentKind::Neuron`] this is Eq 1. `None` if all is 0 or not finite.
    pub fn ratio(&self) -> Option<f64> {
        let ratio = self.m4 / (self.m2 * self.m2);
        ratio.is_finite().then_some(ratio)
    }
}

/// The terms at one site: `before` and `after` are X and X', row-major (tokens, `width`), of equal length.
/// Rows are those that both have whole.
pub fn moment_terms(kind: MomentKind, before: &[f32], after: &[f32], width: usize) -> MomentTerms {
    match kind {
        MomentKind::Neuron => neuron(before, after, width.max(1)),
        MomentKind::Element => element(before, after, width.max(1)),
    }
}

fn neuron(before: &[f32], after: &[f32], width: usize) -> MomentTerms {
    // Per channel: Σ X², Σ XΔ, Σ Δ².
    let mut sums = vec![[0.0f64; 3]; width];
    let mut tokens = 0.0;
    for (row, moved) in before.chunks_exact(width).zip(after.chunks_exact(width)) {
        for ((&x, &y), sum) in row.iter().zip(moved).zip(&mut sums) {
            let (x, delta) = (f64::from(x), f64::from(y) - f64::from(x));
            sum[0] += x * x;
            sum[1] += x * delta;
            sum[2] += delta * delta;
        }
        tokens += 1.0;
    }
    let mean = |term: fn(f64, f64, f64) -> f64| {
        let total: f64 = sums.iter().map(|s| term(s[0] / tokens, s[1] / tokens, s[2] / tokens)).sum();
        total / width as f64
    };
    MomentTerms {
        m2: mean(|s2, _, _| s2),
        m4: mean(|s2, _, _| s2 * s2),
        u21: 2.0 * mean(|_, a, _| a),
        u22: mean(|_, _, b| b),
        u41: 4.0 * mean(|s2, a, _| s2 * a),
        u42: mean(|s2, a, b| 2.0 * s2 * b + 4.0 * a * a),
        u43: 4.0 * mean(|_, a, b| a * b),
        u44: mean(|_, _, b| b * b),
    }
}

fn element(before: &[f32], after: &[f32], width: usize) -> MomentTerms {
    let mut total = [0.0f64; 8];
    let mut tokens = 0.0;
    for (row, moved) in before.chunks_exact(width).zip(after.chunks_exact(width)) {
        // A sum for each row first: fewer roundings meet the large total.
        let mut sum = [0.0f64; 8];
        for (&x, &y) in row.iter().zip(moved) {
            let (x, delta) = (f64::from(x), f64::from(y) - f64::from(x));
            let (x2, cross, delta2) = (x * x, x * delta, delta * delta);
            let powers =
                [x2, x2 * x2, cross, delta2, x2 * cross, x2 * delta2, cross * delta2, delta2 * delta2];
            for (s, p) in sum.iter_mut().zip(powers) {
                *s += p;
            }
        }
        for (t, s) in total.iter_mut().zip(sum) {
            *t += s;
        }
        tokens += 1.0;
    }
    let [m2, m4, cross, delta2, cubic, square, delta3, delta4] = total.map(|t| t / (tokens * width as f64));
    MomentTerms {
        m2,
        m4,
        u21: 2.0 * cross,
        u22: delta2,
        u41: 4.0 * cubic,
        u42: 6.0 * square,
        u43: 4.0 * delta3,
        u44: delta4,
    }
}
