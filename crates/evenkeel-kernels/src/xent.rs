//! The output head and the cross-entropy loss as one operation: the logits matrix is never held.
//!
//! Rows are taken `ROWS` at a time: logits, loss, and, while the chunk is still in cache, the gradient
//! `(softmax - onehot) / rows` and its two products. A chunk is 512 × vocabulary floats.

use crate::gemm::{Compute, Packed, View, Write, gemm, gemm_packed};
use crate::isa::multiversion;
use crate::math;
use crate::threads::for_row_pieces;
use rayon::prelude::*;

/// Tokens per chunk of logits.
const ROWS: usize = 512;

/// Gradients of the mean loss.
pub struct HeadGradients {
    /// With respect to the input rows, (rows, width).
    pub x: Vec<f32>,
    /// With respect to the head matrix, (vocab, width).
    pub weight: Vec<f32>,
}

/// Mean over rows of -log softmax(x Wᵀ) at the target, with gradients if `want_gradients`.
/// `x` is (rows, width), `weight` (vocab, width).
///
/// # Panics
/// If a target lies outside the vocabulary or sizes disagree.
pub fn head_cross_entropy(
    compute: Compute,
    x: &[f32],
    weight: &[f32],
    targets: &[u32],
    width: usize,
    want_gradients: bool,
) -> (f64, Option<HeadGradients>) {
    let rows = targets.len();
    let vocab = weight.len() / width;
    assert!(rows > 0 && x.len() == rows * width && weight.len() == vocab * width);
    assert!(targets.iter().all(|&t| (t as usize) < vocab), "target outside the vocabulary");
    let weight_view = View::new(weight, vocab, width);
    // Packed once for all chunks.
    let forward = Packed::new(compute, weight_view.t());
    let backward = want_gradients.then(|| Packed::new(compute, weight_view));
    let mut logits = vec![0.0; ROWS.min(rows) * vocab];
    let mut losses = vec![0.0f32; rows];
    let mut gradients =
        want_gradients.then(|| HeadGradients { x: vec![0.0; x.len()], weight: vec![0.0; weight.len()] });
    let inv_rows = 1.0 / rows as f32;
    for (chunk, losses) in losses.chunks_mut(ROWS).enumerate() {
        let first = chunk * ROWS;
        let count = losses.len();
        let logits = &mut logits[..count * vocab];
        let x_view = View::new(&x[first * width..(first + count) * width], count, width);
        gemm_packed(x_view, &forward, logits, Write::Replace, |_, _, _| {});
        let targets = &targets[first..first + count];
        logits.par_chunks_mut(vocab).zip(losses.par_iter_mut()).zip(targets).for_each(
            |((row, loss), &target)| {
                *loss = loss_row(row, target as usize, inv_rows, want_gradients);
            },
        );
        if let (Some(g), Some(backward)) = (&mut gradients, &backward) {
            let dlogits = View::new(logits, count, vocab);
            let dx = &mut g.x[first * width..(first + count) * width];
            gemm_packed(dlogits, backward, dx, Write::Replace, |_, _, _| {});
            let write = if chunk == 0 { Write::Replace } else { Write::Add };
            gemm(compute, dlogits.t(), x_view, &mut g.weight, write);
        }
    }
    let total: f64 = losses.iter().map(|&l| l as f64).sum();
    (total / rows as f64, gradients)
}

/// Mean over rows of -log softmax(row) at the target, of logits (rows, vocab), which are used up.
///
/// # Panics
/// If a target lies outside the vocabulary or sizes disagree.
pub fn logits_cross_entropy(logits: &mut [f32], targets: &[u32]) -> f64 {
    let (rows, vocab) = (targets.len(), logits.len() / targets.len().max(1));
    assert!(rows > 0 && logits.len() == rows * vocab, "as many rows of logits as targets");
    assert!(targets.iter().all(|&t| (t as usize) < vocab), "target outside the vocabulary");
    let rows_of = logits.par_chunks_mut(vocab).zip(targets);
    let losses: Vec<f32> = rows_of.map(|(row, &target)| loss_row(row, target as usize, 0.0, false)).collect();
    losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / rows as f64
}

multiversion! {
    /// The row's loss; the row becomes its scaled gradient if asked for.
    fn loss_row(row: &mut [f32], target: usize, scale: f32, gradient: bool) -> f32 {
        let peak = math::max(row);
        let at_target = row[target];
        if !gradient {
            return peak + math::sum_by(row, |v| math::exp(v - peak)).ln() - at_target;
        }
        for v in row.iter_mut() {
            *v = math::exp(*v - peak);
        }
        let sum = math::sum_by(row, |v| v);
        let factor = scale / sum;
        for v in row.iter_mut() {
            *v *= factor;
        }
        row[target] -= scale;
        peak + sum.ln() - at_target
    }
}

/// `x *= factor`, in parallel.
pub fn scale_in_place(x: &mut [f32], factor: f32) {
    for_row_pieces(x, 1, crate::threads::PIECE, |_, x| {
        for v in x {
            *v *= factor;
        }
    });
}
