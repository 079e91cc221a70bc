//! One query's scores and probabilities in the quantised attention.
//!
//! Rows of attention are short and of every length, so that what a vector loop leaves over would take most of the time:
//! rows are of whole [`PAD`], with scores of -infinity where nothing is seen, which become probabilities of 0.

use crate::attention::Softmax;
use crate::isa::multiversion;
use crate::math;

/// A multiple of what the loops take at a time on any instruction set.
pub(super) const PAD: usize = 64;

multiversion! {
    /// out ← (sum - zero · column + constant) · factor. The integers may wrap on the way; what they come to fits.
    pub(super) fn corrected(
        sums: &[i32],
        columns: &[i32],
        zero: i32,
        constant: i32,
        factor: f32,
        out: &mut [f32],
    ) {
        for ((out, &sum), &column) in out.iter_mut().zip(sums).zip(columns) {
            let exact = sum.wrapping_sub(zero.wrapping_mul(column)).wrapping_add(constant);
            *out = exact as f32 * factor;
        }
    }
}

multiversion! {
    /// Scores to probabilities in place. The row is of whole [`PAD`].
    pub(super) fn probabilities(row: &mut [f32], softmax: Softmax) {
        let null = softmax == Softmax::NullSlot;
        let start = if null { 0.0 } else { f32::NEG_INFINITY };
        let peak = fold(row, start, |m, y| if y > m { y } else { m });
        for p in row.iter_mut() {
            *p = math::exp_negative(*p - peak);
        }
        let total = fold(row, 0.0, |t, p| t + p) + if null { math::exp(-peak) } else { 0.0 };
        let inverse = 1.0 / total;
        for p in row.iter_mut() {
            *p *= inverse;
        }
        if let Softmax::Clipped { gamma, eta } = softmax {
            for p in row.iter_mut() {
                *p = ((eta - gamma) * *p + gamma).clamp(0.0, 1.0);
            }
        }
    }
}

/// Everything in a row by `f`, in [`PAD`] lanes and then in a fixed tree.
#[inline(always)]
fn fold(row: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; PAD];
    for chunk in row.as_chunks::<PAD>().0 {
        for l in 0..PAD {
            lanes[l] = f(lanes[l], chunk[l]);
        }
    }
    let mut width = PAD / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] = f(lanes[l], lanes[l + width]);
        }
        width /= 2;
    }
    lanes[0]
}
