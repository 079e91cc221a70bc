//! Attention of new tokens to themselves and to all that are cached.

use super::cache::HeadCache;
use super::rows::{Prepare, Rows};
use super::{QUERIES, Shape, head};
use crate::gemm::{Packed, View};
use crate::threads::Shared;
use rayon::prelude::*;

/// Up to this many new tokens, keys and values are read where they lie; from more on, packing them for matrix products pays.
const FEW: usize = 4;

/// Cached rows that stay in L1 while the queries that share them pass.
const BLOCK: usize = 64;

/// Causal attention of `shape.tokens` new tokens to themselves and to the tokens before them, whose keys and values stand in
/// `caches`, one for each (sequence, key head). The new keys and values are added there first, and read as they are stored.
/// Shapes are those of [`super::forward`]; row 0 of `prepare`'s angles belongs to the first new token. A few tokens are
/// multiplied in float32, whatever `shape.compute` says.
///
/// # Panics
/// If sizes disagree or attention is not causal.
pub fn forward_cached(
    shape: Shape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    prepare: Prepare,
    caches: &mut [HeadCache],
    out: &mut [f32],
) {
    shape.check(q, k, v, prepare);
    assert_eq!(out.len(), q.len());
    assert_eq!(caches.len(), shape.sequences * shape.kv_heads, "a cache for each key head");
    assert!(shape.causal, "only causal attention goes on");
    if q.is_empty() {
        return;
    }
    let shared = Shared::new(out);
    caches.par_iter_mut().enumerate().for_each(|(task, cache)| {
        let (b, g) = shape.task(task);
        let rows = shape.key_rows(b, g);
        let past = cache.tokens();
        let keys = prepare.keys(rows, k).unwrap_or_else(|| rows.gathered(k));
        cache.append(&keys, &rows.gathered(v));
        let of_head = |h: usize| {
            let rows = shape.query_rows(b, g * shape.group() + h);
            (rows, prepare.queries(rows, q).unwrap_or_else(|| rows.gathered(q)))
        };
        let queries: Vec<(Rows, Vec<f32>)> = (0..shape.group()).map(of_head).collect();
        if shape.tokens <= FEW {
            few(&shape, past, &queries, cache, &shared);
        } else {
            many(&shape, past, &queries, cache, &shared);
        }
    });
}

/// By matrix products of packed keys and values.
fn many(shape: &Shape, past: usize, queries: &[(Rows, Vec<f32>)], cache: &HeadCache, out: &Shared<f32>) {
    let (t, d, total) = (shape.tokens, shape.d_head, cache.tokens());
    let (keys, values) = (cache.keys(), cache.values());
    let k_t = Packed::new_serial(shape.compute, View::new(&keys, total, d).t());
    let v = Packed::new_serial(shape.compute, View::new(&values, total, d));
    let mut scores = vec![0.0; QUERIES.min(t) * total];
    for (rows, q) in queries {
        // SAFETY: the rows are this task's own heads, inside the buffer.
        unsafe { head(shape, past, View::new(q, t, d), [&k_t, &v], &mut scores, (*rows, out), |_, _| {}) };
    }
}

/// By products of single rows, a block of keys at a time for all queries that share them.
fn few(shape: &Shape, past: usize, queries: &[(Rows, Vec<f32>)], cache: &HeadCache, out: &Shared<f32>) {
    let (t, d, total) = (shape.tokens, shape.d_head, cache.tokens());
    // Rows of all heads, with the range of keys that each sees.
    let all: Vec<&[f32]> = queries.iter().flat_map(|(_, q)| q.chunks_exact(d)).collect();
    let seen = |row: usize| shape.first_key(past + row % t)..past + row % t + 1;
    let part = |row: usize, first: usize| {
        let seen = seen(row);
        seen.start.max(first)..seen.end.min(first + BLOCK)
    };
    let blocks = || (seen(0).start..total).step_by(BLOCK);
    let mut scores = vec![0.0; all.len() * total];
    for first in blocks() {
        for (row, (q, scores)) in all.iter().zip(scores.chunks_exact_mut(total)).enumerate() {
            let part = part(row, first);
            if !part.is_empty() {
                cache.keys.dots(q, part.start, &mut scores[part]);
            }
        }
    }
    for (row, scores) in scores.chunks_exact_mut(total).enumerate() {
        let seen = seen(row);
        let visible = seen.len();
        shape.score_row().forward(&mut scores[seen], visible);
    }
    let mut context = vec![0.0; all.len() * d];
    for first in blocks() {
        let rows = context.chunks_exact_mut(d).zip(scores.chunks_exact(total));
        for (row, (context, probs)) in rows.enumerate() {
            let part = part(row, first);
            if !part.is_empty() {
                cache.values.add_weighted(&probs[part.clone()], part.start, context);
            }
        }
    }
    for ((rows, _), context) in queries.iter().zip(context.chunks_exact(t * d)) {
        // SAFETY: the rows are this task's own heads, inside the buffer.
        unsafe { rows.scatter(context, out) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CacheKind, QkNorm, Rope, Softmax, forward};
    use super::*;
    use crate::gemm::Compute;

    fn noise(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    const SHAPE: Shape = Shape {
        sequences: 2,
        tokens: 150,
        heads: 6,
        kv_heads: 2,
        d_head: 10,
        causal: true,
        window: 0,
        scale: 0.4,
        softcap: 0.0,
        softmax: Softmax::Standard,
        compute: Compute::F32,
    };

    /// Positions `tokens` of every sequence of x.
    fn part(x: &[f32], width: usize, tokens: std::ops::Range<usize>) -> Vec<f32> {
        let of = |sequence: &[f32]| sequence[tokens.start * width..tokens.end * width].to_vec();
        x.chunks(SHAPE.tokens * width).flat_map(of).collect()
    }

    /// Outputs of SHAPE's tokens, run in pieces, against those of all at once.
    fn difference(shape: Shape, kind: CacheKind, pieces: &[usize]) -> f32 {
        let (d, t, half) = (shape.d_head, shape.tokens, 3);
        let (width, kv_width) = (shape.heads * d, shape.kv_heads * d);
        let q = noise(shape.sequences * t * width, 1);
        let [k, v] = [2, 3].map(|seed| noise(shape.sequences * t * kv_width, seed));
        let (gain, angles) = (noise(d, 4), noise(t * half, 5));
        let norm = Some(QkNorm { q_gain: &gain, k_gain: &gain, biases: None, eps: 1e-6, eps_inside: true });
        let prepare = |first: usize| {
            let rest = &angles[first * half..];
            Prepare { norm, rope: Some(Rope { cos: rest, sin: rest, half }) }
        };
        let mut whole = vec![0.0; q.len()];
        forward(shape, &q, &k, &v, prepare(0), &mut whole);
        let mut caches = vec![HeadCache::new(kind, d); shape.sequences * shape.kv_heads];
        let (mut first, mut worst) = (0, 0.0f32);
        for &tokens in pieces {
            let range = first..first + tokens;
            let [k, v] = [&k, &v].map(|x| part(x, kv_width, range.clone()));
            let q = part(&q, width, range.clone());
            let mut out = vec![0.0; q.len()];
            forward_cached(Shape { tokens, ..shape }, &q, &k, &v, prepare(first), &mut caches, &mut out);
            for (a, b) in out.iter().zip(part(&whole, width, range)) {
                worst = worst.max((a - b).abs());
            }
            first += tokens;
        }
        assert_eq!(first, t);
        worst
    }

    #[test]
    fn pieces_give_what_all_at_once_gives() {
        let softmaxes = [Softmax::Standard, Softmax::NullSlot, Softmax::Clipped { gamma: -0.05, eta: 1.05 }];
        let pieces: [&[usize]; 3] = [&[150], &[1, 2, 70, 4, 1, 65, 7], &[1; 150]];
        for pieces in pieces {
            for softmax in softmaxes {
                for (window, softcap) in [(0, 0.0), (3, 0.0), (80, 1.5)] {
                    let shape = Shape { softmax, window, softcap, ..SHAPE };
                    let worst = difference(shape, CacheKind::F32, pieces);
                    assert!(worst < 1e-5, "{worst} of {shape:?}");
                }
            }
        }
    }

    #[test]
    fn a_short_cache_costs_little_accuracy() {
        for pieces in [&[120, 30][..], &[140, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]] {
            let [bf16, int8] = [CacheKind::Bf16, CacheKind::Int8].map(|kind| difference(SHAPE, kind, pieces));
            // Values up to 1, rounded by up to 1/512 of them or half of 2/255; scores within a few hundredths.
            assert!(bf16 > 0.0 && bf16 < 0.02, "{bf16}");
            assert!(int8 > 0.0 && int8 < 0.04, "{int8}");
        }
    }
}
