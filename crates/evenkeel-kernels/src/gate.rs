//! Sigmoid gates on groups of channels, and logits for them that are linear in each head's own channels.
//!
//! `y = x σ(g)`, each logit g gating a group of neighbouring channels of its row (a head, or a single channel).
//! Backward: dx = dy σ(g), dg = σ(g) (1 - σ(g)) Σ dy x over the group.
//!
//! [`gate_logits`] makes `g_h = w_h · x_h + b_h` from the slice x_h of a row that belongs to head h.

use crate::math;
use crate::threads::{PIECE, map_row_pieces, rows_per_piece, sum_in_order};
use rayon::prelude::*;

/// x ← x · σ(g) in place: `x` in groups of `channels`, one logit for each.
///
/// # Panics
/// If sizes disagree.
pub fn sigmoid_gate(x: &mut [f32], logits: &[f32], channels: usize) {
    assert!(channels > 0 && x.len() == logits.len() * channels);
    let step = rows_per_piece(channels, PIECE);
    x.par_chunks_mut(step * channels).zip(logits.par_chunks(step)).for_each(|(x, logits)| {
        for (x, &logit) in x.chunks_exact_mut(channels).zip(logits) {
            let open = math::sigmoid(logit);
            for v in x {
                *v *= open;
            }
        }
    });
}

/// The gradients of [`sigmoid_gate`] with input `x`: `dy` becomes that of x; returns that of the logits.
///
/// # Panics
/// If sizes disagree.
pub fn sigmoid_gate_backward(x: &[f32], logits: &[f32], channels: usize, dy: &mut [f32]) -> Vec<f32> {
    assert!(channels > 0 && x.len() == dy.len() && x.len() == logits.len() * channels);
    let mut d_logits = logits.to_vec();
    let step = rows_per_piece(channels, PIECE);
    dy.par_chunks_mut(step * channels)
        .zip(x.par_chunks(step * channels))
        .zip(d_logits.par_chunks_mut(step))
        .for_each(|((dy, x), d_logits)| {
            let rows = dy.chunks_exact_mut(channels).zip(x.chunks_exact(channels));
            for ((dy, x), logit) in rows.zip(d_logits) {
                let open = math::sigmoid(*logit);
                *logit = math::sum_by2(dy, x, |d, x| d * x) * open * (1.0 - open);
                for d in dy {
                    *d *= open;
                }
            }
        });
    d_logits
}

/// `g[r, h] = Σ_c x[r, h, c] w[h, c] + b[h]` for rows of `heads · d_head` channels; (rows, heads).
///
/// # Panics
/// If sizes disagree.
pub fn gate_logits(x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let (heads, width) = (bias.len(), weight.len());
    assert!(heads > 0 && width.is_multiple_of(heads) && width > 0 && x.len().is_multiple_of(width));
    let d_head = width / heads;
    let mut logits = vec![0.0; x.len() / d_head];
    let step = rows_per_piece(width, PIECE);
    logits.par_chunks_mut(step * heads).zip(x.par_chunks(step * width)).for_each(|(logits, x)| {
        for (logits, x) in logits.chunks_exact_mut(heads).zip(x.chunks_exact(width)) {
            let slices = x.chunks_exact(d_head).zip(weight.chunks_exact(d_head));
            for ((logit, (x, w)), b) in logits.iter_mut().zip(slices).zip(bias) {
                *logit = math::sum_by2(x, w, |x, w| x * w) + b;
            }
        }
    });
    logits
}

/// The gradients of [`gate_logits`].
pub struct GateLogitsGradients {
    /// With respect to x.
    pub x: Vec<f32>,
    /// With respect to the weight.
    pub weight: Vec<f64>,
    /// With respect to the bias.
    pub bias: Vec<f64>,
}

/// From the gradient of the logits to those of x, weight and bias; pieces of rows are added in their order.
///
/// # Panics
/// If sizes disagree.
pub fn gate_logits_backward(
    x: &[f32],
    weight: &[f32],
    d_logits: &[f32],
    heads: usize,
) -> GateLogitsGradients {
    let width = weight.len();
    assert!(heads > 0 && width > 0 && width.is_multiple_of(heads) && x.len().is_multiple_of(width));
    let (d_head, rows) = (width / heads, x.len() / width);
    assert_eq!(d_logits.len(), rows * heads);
    let mut dx = vec![0.0; x.len()];
    let step = rows_per_piece(width, PIECE);
    dx.par_chunks_mut(step * width).zip(d_logits.par_chunks(step * heads)).for_each(|(dx, d_logits)| {
        for (dx, d_logits) in dx.chunks_exact_mut(width).zip(d_logits.chunks_exact(heads)) {
            let slices = dx.chunks_exact_mut(d_head).zip(weight.chunks_exact(d_head));
            for ((dx, w), &d) in slices.zip(d_logits) {
                for (dx, w) in dx.iter_mut().zip(w) {
                    *dx = d * w;
                }
            }
        }
    });
    let parts = map_row_pieces(rows, width, PIECE, |first, count| {
        let (mut dw, mut db) = (vec![0.0f64; width], vec![0.0f64; heads]);
        for row in first..first + count {
            let (x, d_logits) = (&x[row * width..][..width], &d_logits[row * heads..][..heads]);
            for (h, &d) in d_logits.iter().enumerate() {
                db[h] += d as f64;
                let at = h * d_head..(h + 1) * d_head;
                for (dw, x) in dw[at.clone()].iter_mut().zip(&x[at]) {
                    *dw += (d * x) as f64;
                }
            }
        }
        (dw, db)
    });
    let (dw, db): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    GateLogitsGradients { x: dx, weight: sum_in_order(dw, width), bias: sum_in_order(db, heads) }
}
