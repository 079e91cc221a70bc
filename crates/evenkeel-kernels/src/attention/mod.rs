//! Softmax attention by blocks of queries, forward and backward, with what its variants need: QK-norm, rotary positions,
//! grouped queries, a soft cap on the scores, a null slot, clipping.
//!
//! `out_h = P_h v_h` with `P_h = softmax(scale · q_h k_hᵀ)` for each head h, heads side by side in rows of
//! `heads · d_head`. A task is the query heads of one sequence that share a key head; it walks blocks of `QUERIES` rows so
//! that the scores of a block stay in L2, and a causal task never computes keys after its block. The scores are not kept:
//! the backward recomputes them from the saved row statistic log Σ exp (as in FlashAttention, arXiv 2205.14135).
//!
//! `rows` prepares queries and keys (norm, rotation), `softmax` has the variants of a row of scores, `cache` keeps keys and
//! values for later queries, and `cached` lets these meet them.

mod cache;
mod cached;
mod rows;
mod softmax;

pub use cache::{CacheKind, HeadCache};
pub use cached::forward_cached;
pub use rows::{Prepare, QkNorm, Rope};
pub use softmax::Softmax;

use rows::{Gradient, Rows};
use softmax::ScoreRow;

use crate::gemm::{
    Compute, Packed, View, Write, gemm_serial, gemm_serial_packed, gemm_shared, gemm_shared_packed,
};
use crate::math;
use crate::threads::Shared;
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
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads, which divides `heads`: query head h uses key head h / (heads / kv_heads).
    pub kv_heads: usize,
    /// Channels per head.
    pub d_head: usize,
    /// Whether token i sees only tokens 0..=i.
    pub causal: bool,
    /// How many of these a token sees, itself included: the latest. 0 means all; only causal attention has a window.
    pub window: usize,
    /// Factor on the scores, usually 1/√d_head.
    pub scale: f32,
    /// C of the cap C tanh(score / C) on scaled scores; 0 means none.
    pub softcap: f32,
    /// How scores become probabilities.
    pub softmax: Softmax,
    /// What the products round their factors to; the softmax is float32.
    pub compute: Compute,
}

impl Shape {
    fn group(&self) -> usize {
        self.heads / self.kv_heads.max(1)
    }
    fn keys(&self, end: usize) -> usize {
        if self.causal { end } else { self.tokens }
    }
    /// First key that query `token` sees.
    fn first_key(&self, token: usize) -> usize {
        if self.window == 0 { 0 } else { (token + 1).saturating_sub(self.window) }
    }
    /// Where the rows of query head `h` of sequence `b` are.
    fn query_rows(&self, b: usize, h: usize) -> Rows {
        Rows::new(self.tokens, self.heads, self.d_head, b, h)
    }
    /// Where the rows of key and value head `g` of sequence `b` are.
    fn key_rows(&self, b: usize, g: usize) -> Rows {
        Rows::new(self.tokens, self.kv_heads, self.d_head, b, g)
    }
    /// The sequence and the key head of a task.
    fn task(&self, task: usize) -> (usize, usize) {
        (task / self.kv_heads, task % self.kv_heads)
    }
    fn score_row(&self) -> ScoreRow {
        ScoreRow { scale: self.scale, softcap: self.softcap, softmax: self.softmax }
    }
    fn check(&self, q: &[f32], k: &[f32], v: &[f32], prepare: Prepare) {
        let tokens = self.sequences * self.tokens;
        assert!(self.heads == self.group() * self.kv_heads, "kv_heads must divide heads");
        assert!(self.causal || self.window == 0, "a window belongs to causal attention");
        assert_eq!(q.len(), tokens * self.heads * self.d_head);
        assert!(k.len() == tokens * self.kv_heads * self.d_head && v.len() == k.len());
        prepare.check(self.tokens, self.d_head);
    }
}

/// Attention of `q`, (sequences, tokens, heads · d_head), to `k` and `v`, (sequences, tokens, kv_heads · d_head), into
/// `out` of the shape of `q`. Returns log Σ exp of every row of scores, (sequences, heads, tokens).
///
/// # Panics
/// If sizes disagree.
pub fn forward(shape: Shape, q: &[f32], k: &[f32], v: &[f32], prepare: Prepare, out: &mut [f32]) -> Vec<f32> {
    shape.check(q, k, v, prepare);
    assert_eq!(out.len(), q.len());
    let (t, d, group) = (shape.tokens, shape.d_head, shape.group());
    let mut lse = vec![0.0; shape.sequences * shape.heads * t];
    if q.is_empty() {
        return lse;
    }
    let shared = Shared::new(out);
    lse.par_chunks_mut(group * t).enumerate().for_each_init(
        || vec![0.0; QUERIES.min(t) * t],
        |scores, (task, lse)| {
            let (b, g) = shape.task(task);
            let keys = shape.key_rows(b, g);
            let prepared = prepare.keys(keys, k);
            let k_all = prepared.as_deref().map_or(keys.view(k, 0, t), |k| View::new(k, t, d));
            // Packed once for all blocks, each of which uses a beginning.
            let k_t = Packed::new_serial(shape.compute, k_all.t());
            let v = Packed::new_serial(shape.compute, keys.view(v, 0, t));
            for (h, lse) in lse.chunks_exact_mut(t).enumerate() {
                let queries = shape.query_rows(b, g * group + h);
                let prepared = prepare.queries(queries, q);
                let q_all = prepared.as_deref().map_or(queries.view(q, 0, t), |q| View::new(q, t, d));
                let keep = |row: usize, value| lse[row] = value;
                // SAFETY: the rows are this task's own head, inside `out`.
                unsafe { head(&shape, 0, q_all, [&k_t, &v], scores, (queries, &shared), keep) };
            }
        },
    );
    lse
}

/// One query head: prepared queries `q`, the first at position `past`, against the packed keys and values of all positions so
/// far, into its `rows` of `out`. `scores` has room for `QUERIES` rows of keys; `keep` gets log Σ exp of every row.
///
/// # Safety
/// The rows must lie inside the buffer, and nobody else may touch them meanwhile.
unsafe fn head(
    shape: &Shape,
    past: usize,
    q: View,
    [k_t, v]: [&Packed; 2],
    scores: &mut [f32],
    (rows, out): (Rows, &Shared<f32>),
    mut keep: impl FnMut(usize, f32),
) {
    for first in (0..shape.tokens).step_by(QUERIES) {
        let count = QUERIES.min(shape.tokens - first);
        let keys = shape.keys(past + first + count);
        let scores = &mut scores[..count * keys];
        gemm_serial_packed(q.take(first, count), k_t, keys, scores, keys, Write::Replace);
        for (i, row) in scores.chunks_exact_mut(keys).enumerate() {
            let token = past + first + i;
            let (hidden, row) = row.split_at_mut(shape.first_key(token));
            hidden.fill(0.0);
            let visible = shape.keys(token + 1) - hidden.len();
            keep(first + i, shape.score_row().forward(row, visible));
        }
        // SAFETY: the window is rows first.. of the caller's.
        unsafe {
            let scores = View::new(scores, count, keys);
            gemm_shared_packed(scores, v, shape.d_head, out, rows.at(first), rows.stride(), Write::Replace);
        }
    }
}

/// The matrices that [`forward`] never holds, both (sequences, heads, tokens, tokens): the scaled and capped scores before the
/// mask, and the probabilities, 0 where a token does not look. For those who look inside.
///
/// # Panics
/// If sizes disagree.
pub fn matrices(shape: Shape, q: &[f32], k: &[f32], prepare: Prepare) -> (Vec<f32>, Vec<f32>) {
    shape.check(q, k, k, prepare);
    let (t, d, group) = (shape.tokens, shape.d_head, shape.group());
    let size = shape.sequences * shape.heads * t * t;
    let (mut scores, mut probs) = (vec![0.0; size], vec![0.0; size]);
    if q.is_empty() {
        return (scores, probs);
    }
    let of_task = group * t * t;
    let both = scores.par_chunks_mut(of_task).zip(probs.par_chunks_mut(of_task));
    both.enumerate().for_each(|(task, (scores, probs))| {
        let (b, g) = shape.task(task);
        let keys = shape.key_rows(b, g);
        let prepared = prepare.keys(keys, k);
        let k_all = prepared.as_deref().map_or(keys.view(k, 0, t), |k| View::new(k, t, d));
        let k_t = Packed::new_serial(shape.compute, k_all.t());
        let heads = scores.chunks_exact_mut(t * t).zip(probs.chunks_exact_mut(t * t));
        for (h, (scores, probs)) in heads.enumerate() {
            let queries = shape.query_rows(b, g * group + h);
            let prepared = prepare.queries(queries, q);
            let q_all = prepared.as_deref().map_or(queries.view(q, 0, t), |q| View::new(q, t, d));
            gemm_serial_packed(q_all, &k_t, t, scores, t, Write::Replace);
            for (i, (scores, probs)) in scores.chunks_exact_mut(t).zip(probs.chunks_exact_mut(t)).enumerate()
            {
                probs.copy_from_slice(scores);
                let (hidden, row) = probs.split_at_mut(shape.first_key(i));
                hidden.fill(0.0);
                let visible = shape.keys(i + 1) - hidden.len();
                shape.score_row().forward(row, visible);
                shape.score_row().scaled(scores);
            }
        }
    });
    (scores, probs)
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
    /// With respect to the query and key biases, if QK-norm has them.
    pub biases: Option<(Vec<f64>, Vec<f64>)>,
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
    prepare: Prepare,
    out: &[f32],
    lse: &[f32],
    d_out: &[f32],
) -> Gradients {
    shape.check(q, k, v, prepare);
    assert!(out.len() == q.len() && d_out.len() == q.len());
    assert_eq!(lse.len(), shape.sequences * shape.heads * shape.tokens);
    let (t, d, group) = (shape.tokens, shape.d_head, shape.group());
    let tasks = if q.is_empty() { 0 } else { shape.sequences * shape.kv_heads };
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    let (shared_q, shared_k, shared_v) = (Shared::new(&mut dq), Shared::new(&mut dk), Shared::new(&mut dv));
    let parts: Vec<(Gradient, Gradient)> = (0..tasks)
        .into_par_iter()
        .map_init(
            || (vec![0.0; QUERIES.min(t) * t], vec![0.0; QUERIES.min(t) * t]),
            |(probs, d_scores), task| {
                let (b, g) = shape.task(task);
                let keys_at = shape.key_rows(b, g);
                let kn = prepare.keys(keys_at, k).unwrap_or_else(|| keys_at.gathered(k));
                let mut dkn = vec![0.0; t * d];
                let k_view = View::new(&kn, t, d);
                let k_packed = Packed::new_serial(shape.compute, k_view);
                let k_t = Packed::new_serial(shape.compute, k_view.t());
                let v_t = Packed::new_serial(shape.compute, keys_at.view(v, 0, t).t());
                let mut q_sums = Gradient::zero(prepare, d);
                for h in g * group..(g + 1) * group {
                    let queries = shape.query_rows(b, h);
                    let qn = prepare.queries(queries, q).unwrap_or_else(|| queries.gathered(q));
                    let mut dqn = vec![0.0; t * d];
                    let lse = &lse[(b * shape.heads + h) * t..][..t];
                    for first in (0..t).step_by(QUERIES) {
                        let rows = QUERIES.min(t - first);
                        let keys = shape.keys(first + rows);
                        let probs = &mut probs[..rows * keys];
                        let d_scores = &mut d_scores[..rows * keys];
                        let q_block = View::new(&qn[first * d..(first + rows) * d], rows, d);
                        let d_out_block = queries.view(d_out, first, rows);
                        gemm_serial_packed(q_block, &k_t, keys, probs, keys, Write::Replace);
                        gemm_serial_packed(d_out_block, &v_t, keys, d_scores, keys, Write::Replace);
                        for i in 0..rows {
                            let at = queries.at(first + i);
                            let dot = math::sum_by2(&d_out[at..at + d], &out[at..at + d], |a, b| a * b);
                            let hidden = shape.first_key(first + i);
                            let (before, probs) = probs[i * keys..(i + 1) * keys].split_at_mut(hidden);
                            let (d_before, d_scores) =
                                d_scores[i * keys..(i + 1) * keys].split_at_mut(hidden);
                            before.fill(0.0);
                            d_before.fill(0.0);
                            shape.score_row().backward(
                                probs,
                                d_scores,
                                shape.keys(first + i + 1) - hidden,
                                lse[first + i],
                                dot,
                            );
                        }
                        let d_scores = View::new(d_scores, rows, keys);
                        let probs = View::new(probs, rows, keys);
                        let dq_block = &mut dqn[first * d..(first + rows) * d];
                        gemm_serial_packed(d_scores, &k_packed, d, dq_block, d, Write::Replace);
                        gemm_serial(
                            shape.compute,
                            d_scores.t(),
                            q_block,
                            &mut dkn[..keys * d],
                            d,
                            Write::Add,
                        );
                        // SAFETY: the window is rows 0..keys of this task's own key head.
                        unsafe {
                            gemm_shared(
                                shape.compute,
                                probs.t(),
                                d_out_block,
                                &shared_v,
                                keys_at.at(0),
                                keys_at.stride(),
                                Write::Add,
                            );
                        }
                    }
                    prepare.queries_backward(queries, q, &mut dqn, &mut q_sums);
                    // SAFETY: the rows are this task's own query head, inside the buffer.
                    unsafe { queries.scatter(&dqn, &shared_q) };
                }
                let mut k_sums = Gradient::zero(prepare, d);
                prepare.keys_backward(keys_at, k, &mut dkn, &mut k_sums);
                // SAFETY: the rows are this task's own key head, inside the buffer.
                unsafe { keys_at.scatter(&dkn, &shared_k) };
                (q_sums, k_sums)
            },
        )
        .collect();
    let (q_parts, k_parts): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    let (q_sums, k_sums) = (Gradient::sum(q_parts, d), Gradient::sum(k_parts, d));
    Gradients {
        q: dq,
        k: dk,
        v: dv,
        gains: prepare.norm.map(|_| (q_sums.gain, k_sums.gain)),
        biases: prepare.norm.and_then(|n| n.biases).map(|_| (q_sums.bias, k_sums.bias)),
    }
}
