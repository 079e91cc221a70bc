//! Softmax attention by blocks of queries, with optional QK-RMSNorm, forward and backward.
//!
//! `out_h = softmax(scale · q_h k_hᵀ) v_h` for each head h, heads side by side in rows of `heads · d_head`.
//! A task is one head of one sequence; it walks blocks of `QUERIES` rows so that the scores of a block stay
//! in L2, and a causal task never computes keys after its block. The scores are not kept: the backward
//! recomputes them from the saved row statistic log Σ exp (as in FlashAttention, arXiv 2205.14135).
//!
//! QK-RMSNorm divides each head's query and key by their RMS over d_head, `x / (rms(x) + ε) · gain`, with one
//! gain vector shared by all heads and ε outside the root.

use crate::gemm::{
    Compute, Packed, View, Write, gemm_serial, gemm_serial_packed, gemm_shared, gemm_shared_packed,
};
use crate::isa::multiversion;
use crate::math;
use crate::threads::{Shared, sum_in_order};
use rayon::prelude::*;

/// Query rows per block.
const QUERIES: usize = 64;
// A block uses a beginning of the packed keys and values, which must end with a kernel's group of rows.
const _: () = assert!(QUERIES.is_multiple_of(32));

/// Sizes and switches of one attention call.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Number of sequences.
    pub sequences: usize,
    /// Tokens per sequence.
    pub tokens: usize,
    /// Number of heads.
    pub heads: usize,
    /// Channels per head.
    pub d_head: usize,
    /// Whether token i sees only tokens 0..=i.
    pub causal: bool,
    /// Factor on the scores, usually 1/√d_head.
    pub scale: f32,
    /// What the products round their factors to; the softmax is float32.
    pub compute: Compute,
}

impl Shape {
    fn width(&self) -> usize {
        self.heads * self.d_head
    }
    fn elements(&self) -> usize {
        self.sequences * self.tokens * self.width()
    }
    /// Where head `task % heads` of sequence `task / heads` begins.
    fn offset(&self, task: usize) -> usize {
        let (b, h) = (task / self.heads, task % self.heads);
        b * self.tokens * self.width() + h * self.d_head
    }
    fn keys(&self, end: usize) -> usize {
        if self.causal { end } else { self.tokens }
    }
    fn view<'a>(&self, x: &'a [f32], task: usize, first: usize, count: usize) -> View<'a> {
        let start = self.offset(task) + first * self.width();
        View::strided(&x[start..], count, self.d_head, self.width())
    }
}

/// QK-RMSNorm: the two gains of d_head and ε.
#[derive(Clone, Copy, Debug)]
pub struct QkNorm<'a> {
    /// Gain of the queries.
    pub q_gain: &'a [f32],
    /// Gain of the keys.
    pub k_gain: &'a [f32],
    /// Added to the RMS.
    pub eps: f32,
}

/// Attention of `q`, `k`, `v`, each (sequences, tokens, heads · d_head), into `out` of the same shape.
/// Returns log Σ exp of every row of scores, (sequences, heads, tokens).
///
/// # Panics
/// If sizes disagree.
pub fn forward(
    shape: Shape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    qk_norm: Option<QkNorm>,
    out: &mut [f32],
) -> Vec<f32> {
    let n = shape.elements();
    assert!(q.len() == n && k.len() == n && v.len() == n && out.len() == n);
    check_gains(shape, qk_norm);
    let (t, d) = (shape.tokens, shape.d_head);
    let mut lse = vec![0.0; shape.sequences * shape.heads * t];
    if n == 0 {
        return lse;
    }
    let shared = Shared::new(out);
    lse.par_chunks_mut(t).enumerate().for_each_init(
        || vec![0.0; QUERIES.min(t) * t],
        |scores, (task, lse)| {
            let normed = qk_norm.map(|norm| {
                (
                    normalised(shape, q, task, norm.q_gain, norm.eps),
                    normalised(shape, k, task, norm.k_gain, norm.eps),
                )
            });
            let (q_all, k_all) = match &normed {
                Some((q, k)) => (View::new(q, t, d), View::new(k, t, d)),
                None => (shape.view(q, task, 0, t), shape.view(k, task, 0, t)),
            };
            // Packed once for all blocks, each of which uses a beginning.
            let k_t = Packed::new_serial(shape.compute, k_all.t());
            let v = Packed::new_serial(shape.compute, shape.view(v, task, 0, t));
            for first in (0..t).step_by(QUERIES) {
                let rows = QUERIES.min(t - first);
                let keys = shape.keys(first + rows);
                let scores = &mut scores[..rows * keys];
                gemm_serial_packed(q_all.take(first, rows), &k_t, keys, scores, keys, Write::Replace);
                for (i, row) in scores.chunks_exact_mut(keys).enumerate() {
                    let visible = shape.keys(first + i + 1);
                    lse[first + i] = softmax_row(row, visible, shape.scale);
                }
                let offset = shape.offset(task) + first * shape.width();
                // SAFETY: the window is rows first.. of this task's own head, inside `out`.
                unsafe {
                    let scores = View::new(scores, rows, keys);
                    gemm_shared_packed(scores, &v, d, &shared, offset, shape.width(), Write::Replace);
                }
            }
        },
    );
    lse
}

/// What flows back out of [`backward`].
pub struct Gradients {
    /// With respect to q, same shape.
    pub q: Vec<f32>,
    /// With respect to k.
    pub k: Vec<f32>,
    /// With respect to v.
    pub v: Vec<f32>,
    /// With respect to the query and key gains, if there is QK-norm.
    pub gains: Option<(Vec<f64>, Vec<f64>)>,
}

/// The gradients of [`forward`] from `d_out`, its output `out` and its row statistic `lse`.
///
/// # Panics
/// If sizes disagree.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    shape: Shape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    qk_norm: Option<QkNorm>,
    out: &[f32],
    lse: &[f32],
    d_out: &[f32],
) -> Gradients {
    let n = shape.elements();
    assert!(q.len() == n && k.len() == n && v.len() == n && out.len() == n && d_out.len() == n);
    check_gains(shape, qk_norm);
    assert_eq!(lse.len(), shape.sequences * shape.heads * shape.tokens);
    if n == 0 {
        let empty = || vec![0.0; shape.d_head];
        let gains = qk_norm.map(|_| (empty(), empty()));
        return Gradients { q: Vec::new(), k: Vec::new(), v: Vec::new(), gains };
    }
    let (t, d, w) = (shape.tokens, shape.d_head, shape.width());
    let tasks = shape.sequences * shape.heads;
    let (mut dq, mut dk, mut dv) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
    let (shared_q, shared_k, shared_v) = (Shared::new(&mut dq), Shared::new(&mut dk), Shared::new(&mut dv));
    let parts: Vec<(Vec<f64>, Vec<f64>)> = (0..tasks)
        .into_par_iter()
        .map_init(
            || (vec![0.0; QUERIES.min(t) * t], vec![0.0; QUERIES.min(t) * t]),
            |(probs, d_scores), task| {
                let own = |x: &[f32], norm: Option<(&[f32], f32)>| match norm {
                    Some((gain, eps)) => normalised(shape, x, task, gain, eps),
                    None => gathered(shape, x, task),
                };
                let qn = own(q, qk_norm.map(|n| (n.q_gain, n.eps)));
                let kn = own(k, qk_norm.map(|n| (n.k_gain, n.eps)));
                let (mut dqn, mut dkn) = (vec![0.0; t * d], vec![0.0; t * d]);
                let k_view = View::new(&kn, t, d);
                let k_packed = Packed::new_serial(shape.compute, k_view);
                let k_t = Packed::new_serial(shape.compute, k_view.t());
                let v_t = Packed::new_serial(shape.compute, shape.view(v, task, 0, t).t());
                let lse = &lse[task * t..(task + 1) * t];
                for first in (0..t).step_by(QUERIES) {
                    let rows = QUERIES.min(t - first);
                    let keys = shape.keys(first + rows);
                    let probs = &mut probs[..rows * keys];
                    let d_scores = &mut d_scores[..rows * keys];
                    let q_block = View::new(&qn[first * d..(first + rows) * d], rows, d);
                    let d_out_block = shape.view(d_out, task, first, rows);
                    gemm_serial_packed(q_block, &k_t, keys, probs, keys, Write::Replace);
                    gemm_serial_packed(d_out_block, &v_t, keys, d_scores, keys, Write::Replace);
                    for i in 0..rows {
                        let at = shape.offset(task) + (first + i) * w;
                        let dot = math::sum_by2(&d_out[at..at + d], &out[at..at + d], |a, b| a * b);
                        scores_backward_row(
                            &mut probs[i * keys..(i + 1) * keys],
                            &mut d_scores[i * keys..(i + 1) * keys],
                            shape.keys(first + i + 1),
                            shape.scale,
                            lse[first + i],
                            dot,
                        );
                    }
                    let d_scores = View::new(d_scores, rows, keys);
                    let probs = View::new(probs, rows, keys);
                    let dq_block = &mut dqn[first * d..(first + rows) * d];
                    gemm_serial_packed(d_scores, &k_packed, d, dq_block, d, Write::Replace);
                    gemm_serial(shape.compute, d_scores.t(), q_block, &mut dkn[..keys * d], d, Write::Add);
                    // SAFETY: the window is rows 0..keys of this task's own head.
                    unsafe {
                        gemm_shared(
                            shape.compute,
                            probs.t(),
                            d_out_block,
                            &shared_v,
                            shape.offset(task),
                            w,
                            Write::Add,
                        );
                    }
                }
                let mut gains = (Vec::new(), Vec::new());
                if let Some(norm) = qk_norm {
                    gains.0 = normalised_backward(shape, q, task, norm.q_gain, norm.eps, &mut dqn);
                    gains.1 = normalised_backward(shape, k, task, norm.k_gain, norm.eps, &mut dkn);
                }
                for (own, shared) in [(&dqn, &shared_q), (&dkn, &shared_k)] {
                    for (i, row) in own.chunks_exact(d).enumerate() {
                        let at = shape.offset(task) + i * w;
                        // SAFETY: d elements of this task's own head, inside the buffer.
                        unsafe {
                            std::ptr::copy_nonoverlapping(row.as_ptr(), shared.at(at), d);
                        }
                    }
                }
                gains
            },
        )
        .collect();
    let gains = qk_norm.map(|_| {
        let (q_parts, k_parts): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        (sum_in_order(q_parts, d), sum_in_order(k_parts, d))
    });
    Gradients { q: dq, k: dk, v: dv, gains }
}

fn check_gains(shape: Shape, qk_norm: Option<QkNorm>) {
    let fits = |gain: &[f32]| gain.len() == shape.d_head;
    assert!(qk_norm.is_none_or(|n| fits(n.q_gain) && fits(n.k_gain)), "gains must be d_head long");
}

/// One head's rows side by side, (tokens, d_head).
fn gathered(shape: Shape, x: &[f32], task: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(shape.tokens * shape.d_head);
    for i in 0..shape.tokens {
        let at = shape.offset(task) + i * shape.width();
        out.extend_from_slice(&x[at..at + shape.d_head]);
    }
    out
}

/// One head's rows, each divided by its RMS + ε and multiplied by the gain.
fn normalised(shape: Shape, x: &[f32], task: usize, gain: &[f32], eps: f32) -> Vec<f32> {
    let mut out = gathered(shape, x, task);
    for row in out.chunks_exact_mut(shape.d_head) {
        rms_row(row, gain, eps);
    }
    out
}

multiversion! {
    fn rms_row(row: &mut [f32], gain: &[f32], eps: f32) {
        let rms = (math::sum_by(row, |v| v * v) / row.len() as f32).sqrt();
        let r = 1.0 / (rms + eps);
        for (v, g) in row.iter_mut().zip(gain) {
            *v = *v * r * g;
        }
    }
}

/// Turns the gradient of the normalised rows into that of the raw rows, in place; returns the gain's gradient.
/// With y = x r g, r = 1/(rms + ε): dx = r (dy g) - x r² (Σ dy g x) / (d rms).
fn normalised_backward(
    shape: Shape,
    x: &[f32],
    task: usize,
    gain: &[f32],
    eps: f32,
    dy: &mut [f32],
) -> Vec<f64> {
    let d = shape.d_head;
    let mut d_gain = vec![0.0f64; d];
    for (i, dy) in dy.chunks_exact_mut(d).enumerate() {
        let at = shape.offset(task) + i * shape.width();
        let x = &x[at..at + d];
        let rms = (math::sum_by(x, |v| v * v) / d as f32).sqrt();
        let r = 1.0 / (rms + eps);
        for c in 0..d {
            d_gain[c] += (dy[c] * x[c] * r) as f64;
            dy[c] *= gain[c];
        }
        let dot = math::sum_by2(dy, x, |a, b| a * b);
        // At rms = 0 the norm has no derivative; the limit of its first term is used.
        let pull = if rms > 0.0 { dot * r * r / (d as f32 * rms) } else { 0.0 };
        for c in 0..d {
            dy[c] = dy[c] * r - x[c] * pull;
        }
    }
    d_gain
}

multiversion! {
    /// Scores to probabilities in place; entries from `visible` on become 0. Returns log Σ exp.
    fn softmax_row(row: &mut [f32], visible: usize, scale: f32) -> f32 {
        let (seen, hidden) = row.split_at_mut(visible);
        let peak = math::max(seen) * scale;
        for v in seen.iter_mut() {
            *v = math::exp(*v * scale - peak);
        }
        let sum = math::sum_by(seen, |v| v);
        let inv = 1.0 / sum;
        for v in seen.iter_mut() {
            *v *= inv;
        }
        hidden.fill(0.0);
        peak + sum.ln()
    }
}

multiversion! {
    /// `scores` becomes probabilities, `d_probs` becomes the gradient of the unscaled scores.
    fn scores_backward_row(
        scores: &mut [f32],
        d_probs: &mut [f32],
        visible: usize,
        scale: f32,
        lse: f32,
        dot: f32,
    ) {
        let n = scores.len();
        let (seen, hidden) = scores.split_at_mut(visible);
        let (d_seen, d_hidden) = d_probs[..n].split_at_mut(visible);
        for (s, d) in seen.iter_mut().zip(d_seen) {
            let p = math::exp(*s * scale - lse);
            *s = p;
            *d = p * (*d - dot) * scale;
        }
        hidden.fill(0.0);
        d_hidden.fill(0.0);
    }
}
