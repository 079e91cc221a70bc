//! Quantised attention against triple loops with integer sums in 64 bits and a softmax in float64.
//!
//! Scores are compared exactly: the reference rounds them as the formula says. A probability that lies within float32's
//! error of half a level may go either way, which widens the bound of the context by that key's share.

use crate::int8::{bytes, signed};
use crate::{common::Bits, refuses, same_on_any_threads};
use evenkeel_kernels::attention::Softmax;
use evenkeel_kernels::int8::attention::IntAttention;
use evenkeel_kernels::quant::{Grid, quantise};

fn grid(scale: f32, zero_point: f32) -> Grid {
    Grid { scale, zero_point, low: 0.0, high: 255.0 }
}

const CONTEXT: Grid = Grid { scale: 0.011, zero_point: 140.0, low: 0.0, high: 255.0 };

/// Sizes in the order of the fields: sequences, queries, keys, stride, heads, key heads, channels, window.
fn shape([sequences, queries, keys, kv_stride, heads, kv_heads, d_head, window]: [usize; 8]) -> IntAttention {
    IntAttention {
        sequences,
        queries,
        keys,
        kv_stride,
        heads,
        kv_heads,
        d_head,
        causal: true,
        window,
        scale: 1.0 / (d_head as f32).sqrt(),
        softmax: Softmax::Standard,
        q: grid(0.02, 131.0),
        k: grid(0.03, 99.0),
        v: grid(0.01, 120.0),
        scores: Some(grid(0.05, 117.0)),
        probs: Some(grid(1.0 / 255.0, 0.0)),
    }
}

/// Everything on or off, and zero points at and beside their ends.
fn variants(base: IntAttention) -> Vec<IntAttention> {
    let tight = Some(grid(0.001, 0.0));
    vec![
        base,
        IntAttention { causal: false, window: 0, ..base },
        IntAttention { scores: None, ..base },
        IntAttention { scores: None, probs: None, ..base },
        IntAttention { probs: None, ..base },
        IntAttention { probs: tight, ..base },
        IntAttention { probs: Some(grid(0.004, 3.0)), q: grid(0.02, 0.0), k: grid(0.03, 255.0), ..base },
        IntAttention { v: grid(0.01, 0.0), causal: false, window: 0, scores: None, probs: tight, ..base },
        IntAttention { softmax: Softmax::NullSlot, probs: tight, ..base },
        IntAttention { softmax: Softmax::Clipped { gamma: -0.02, eta: 1.01 }, ..base },
    ]
}

/// Each query's context and how far float32 may be from it.
fn reference(s: &IntAttention, q: &[u8], k: &[i8], v: &[i8]) -> Vec<(f64, f64)> {
    let (d, width, kv_width) = (s.d_head, s.heads * s.d_head, s.kv_heads * s.d_head);
    let centred = |x: i8, grid: Grid| i64::from(x) + 128 - grid.zero_point as i64;
    let mut out = Vec::new();
    for (b, i) in (0..s.sequences).flat_map(|b| (0..s.queries).map(move |i| (b, i))) {
        for h in 0..s.heads {
            let q = &q[(b * s.queries + i) * width + h * d..][..d];
            let at = |j: usize| (b * s.kv_stride + j) * kv_width + h / (s.heads / s.kv_heads) * d;
            let position = s.keys - s.queries + i;
            let sees = |j: &usize| !s.causal || *j <= position && (s.window == 0 || position < *j + s.window);
            let seen: Vec<usize> = (0..s.keys).filter(sees).collect();
            let score = |&j: &usize| {
                let pairs = q.iter().zip(&k[at(j)..][..d]);
                let sum: i64 =
                    pairs.map(|(&q, &k)| (i64::from(q) - s.q.zero_point as i64) * centred(k, s.k)).sum();
                let y = sum as f32 * (s.q.scale * s.k.scale * s.scale);
                f64::from(s.scores.map_or(y, |g| g.scale * (quantise(&[y], g)[0] as f32 - g.zero_point)))
            };
            let scores: Vec<f64> = seen.iter().map(score).collect();
            let null = s.softmax == Softmax::NullSlot;
            let peak = scores.iter().fold(if null { 0.0 } else { f64::NEG_INFINITY }, |m, &y| m.max(y));
            let total: f64 =
                scores.iter().map(|y| (y - peak).exp()).sum::<f64>() + if null { (-peak).exp() } else { 0.0 };
            let mut row = vec![(0.0, 1e-6); d];
            for (j, y) in seen.iter().zip(&scores) {
                let mut p = (y - peak).exp() / total;
                // Differences of scores carry their rounding into the exponential.
                let mut off = p * (2e-6 + 2.0 * f64::from(f32::EPSILON) * (y.abs() + peak.abs()));
                if let Softmax::Clipped { gamma, eta } = s.softmax {
                    p = (f64::from(eta - gamma) * p + f64::from(gamma)).clamp(0.0, 1.0);
                    off = off * 2.0 + 1e-7;
                }
                let (mut value, mut error) = (p, off);
                if let Some(g) = s.probs {
                    let level = |p: f64| {
                        let rounded = (p / f64::from(g.scale)).round_ties_even() + f64::from(g.zero_point);
                        f64::from(g.scale) * (rounded.clamp(0.0, 255.0) - f64::from(g.zero_point))
                    };
                    value = level(p);
                    error = (level(p + off) - value).max(value - level(p - off));
                }
                for (c, (sum, bound)) in row.iter_mut().enumerate() {
                    let v = f64::from(s.v.scale) * centred(v[at(*j) + c], s.v) as f64;
                    *sum += value * v;
                    *bound += (error + 4e-7 * value.abs()) * v.abs();
                }
            }
            out.extend(row);
        }
    }
    out
}

fn inputs(s: &IntAttention) -> (Vec<u8>, Vec<i8>, Vec<i8>) {
    let kv = s.sequences * s.kv_stride * s.kv_heads * s.d_head;
    (bytes(s.sequences * s.queries * s.heads * s.d_head, 1), signed(&bytes(kv, 2)), signed(&bytes(kv, 3)))
}

#[track_caller]
fn check(s: &IntAttention) -> (usize, usize) {
    let (q, k, v) = inputs(s);
    let (mut got, mut levels) = (vec![f32::NAN; q.len()], vec![7; q.len()]);
    s.forward(&q, &k, &v, &mut got);
    s.forward_u8(&q, &k, &v, CONTEXT, &mut levels);
    let want = reference(s, &q, &k, &v);
    assert_eq!(want.len(), got.len());
    let mut loose = 0;
    for (i, (&got, &(want, bound))) in got.iter().zip(&want).enumerate() {
        assert!((f64::from(got) - want).abs() <= bound, "{i}: {got} is not {want} ± {bound:e}, {s:?}");
        loose += usize::from(bound > 2e-3);
    }
    assert!(levels.iter().zip(quantise(&got, CONTEXT)).all(|(&a, b)| i32::from(a) == b));
    (loose, want.len())
}

#[test]
fn agrees_with_the_definition() {
    let sizes = [
        [1, 1, 1, 1, 1, 1, 1, 0],
        [2, 5, 5, 5, 2, 1, 3, 0],
        [2, 1, 70, 75, 4, 2, 16, 0],
        [1, 3, 130, 130, 3, 3, 5, 0],
        [1, 67, 67, 67, 2, 2, 33, 0],
        [1, 67, 90, 100, 2, 1, 64, 7],
        [2, 250, 250, 256, 2, 2, 20, 0],
        [1, 210, 300, 300, 1, 1, 64, 70],
    ];
    let (mut loose, mut all) = (0, 0);
    for size in sizes {
        for variant in variants(shape(size)) {
            let (some, n) = check(&variant);
            loose += some;
            all += n;
        }
    }
    assert!(loose * 100 < all, "the bound says something: {loose} of {all} are wide");
}

#[test]
fn nothing_to_do_is_no_error() {
    for size in [[0, 4, 4, 4, 2, 1, 8, 0], [2, 0, 4, 4, 2, 1, 8, 0], [1, 0, 0, 0, 1, 1, 8, 0]] {
        check(&shape(size));
    }
}

#[test]
fn the_last_sequence_needs_no_capacity() {
    let s = shape([2, 1, 9, 20, 2, 2, 4, 0]);
    let (q, k, v) = inputs(&s);
    let (mut full, mut short) = (vec![0.0; q.len()], vec![1.0; q.len()]);
    s.forward(&q, &k, &v, &mut full);
    let used = 29 * 8;
    s.forward(&q, &k[..used], &v[..used], &mut short);
    assert_eq!(full, short);
    refuses("too few keys", move || s.forward(&q, &k[..used - 1], &v, &mut [0.0; 16]));
}

#[test]
fn queries_one_at_a_time_give_what_all_at_once_do() {
    let all = shape([1, 130, 130, 130, 2, 1, 16, 0]);
    let (q, k, v) = inputs(&all);
    let mut together = vec![0; q.len()];
    all.forward_u8(&q, &k, &v, CONTEXT, &mut together);
    for i in 0..130 {
        let mut alone = vec![0; 32];
        let one = IntAttention { queries: 1, keys: i + 1, ..all };
        one.forward_u8(&q[i * 32..][..32], &k, &v, CONTEXT, &mut alone);
        let differ = alone.iter().zip(&together[i * 32..]).filter(|(a, b)| a != b);
        assert_eq!(differ.count(), 0, "query {i}");
    }
}

#[test]
fn threads_change_no_bit() {
    for s in variants(shape([2, 210, 230, 230, 4, 2, 24, 0])) {
        let (q, k, v) = inputs(&s);
        same_on_any_threads("quantised attention", || {
            let mut out = vec![0.0; q.len()];
            s.forward(&q, &k, &v, &mut out);
            Bits::default().and(&out)
        });
    }
}
