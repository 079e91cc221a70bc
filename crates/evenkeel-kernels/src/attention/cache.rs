//! Keys and values that are kept for later queries: of one head of one sequence, token after token, ready to be met.
//!
//! bfloat16 is rounded to nearest, ties to even. int8 has a grid of its own for every row: with lo = min(0, x) and
//! hi = max(0, x) over the row, s = max((hi - lo) / 255, 1e-8), z = round(-lo / s), level = clamp(round(x / s) + z, 0, 255),
//! halves to even; x̂ = s (level - z) is within s / 2 of x.

use crate::gemm::bf16_bits;
use crate::isa::multiversion;
use crate::math::{self, LANES};
use std::borrow::Cow;

/// How cached keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheKind {
    /// float32.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
    /// 8 bits, and a float32 scale and an 8-bit zero point for each row.
    Int8,
}

/// Keys and values of one head of one sequence.
#[derive(Clone, Debug)]
pub struct HeadCache {
    pub(super) keys: CachedRows,
    pub(super) values: CachedRows,
}

impl HeadCache {
    /// An empty one, for rows of `d_head` channels.
    pub fn new(kind: CacheKind, d_head: usize) -> Self {
        Self { keys: CachedRows::new(kind, d_head), values: CachedRows::new(kind, d_head) }
    }

    /// Tokens held.
    pub fn tokens(&self) -> usize {
        self.keys.tokens
    }

    /// Bytes of what is held.
    pub fn bytes(&self) -> usize {
        self.keys.bytes() + self.values.bytes()
    }

    /// Forgets all tokens from `tokens` on.
    pub fn truncate(&mut self, tokens: usize) {
        self.keys.truncate(tokens);
        self.values.truncate(tokens);
    }

    /// Adds rows of d_head keys, normed and turned, and as many of values.
    ///
    /// # Panics
    /// If the two differ in length, or the last row is not whole.
    pub fn append(&mut self, keys: &[f32], values: &[f32]) {
        assert_eq!(keys.len(), values.len(), "a value for every key");
        self.keys.append(keys);
        self.values.append(values);
    }

    /// All keys as they are read, (tokens, d_head).
    pub fn keys(&self) -> Cow<'_, [f32]> {
        self.keys.read()
    }

    /// All values as they are read.
    pub fn values(&self) -> Cow<'_, [f32]> {
        self.values.read()
    }
}

/// Rows of d_head channels, one for each token.
#[derive(Clone, Debug)]
pub(super) struct CachedRows {
    d_head: usize,
    tokens: usize,
    data: Data,
}

#[derive(Clone, Debug)]
enum Data {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
    Int8 { levels: Vec<u8>, scales: Vec<f32>, zeros: Vec<u8> },
}

impl CachedRows {
    fn new(kind: CacheKind, d_head: usize) -> Self {
        let data = match kind {
            CacheKind::F32 => Data::F32(Vec::new()),
            CacheKind::Bf16 => Data::Bf16(Vec::new()),
            CacheKind::Int8 => Data::Int8 { levels: Vec::new(), scales: Vec::new(), zeros: Vec::new() },
        };
        Self { d_head, tokens: 0, data }
    }

    fn bytes(&self) -> usize {
        let rows = self.tokens * self.d_head;
        match self.data {
            Data::F32(_) => 4 * rows,
            Data::Bf16(_) => 2 * rows,
            Data::Int8 { .. } => rows + 5 * self.tokens,
        }
    }

    fn truncate(&mut self, tokens: usize) {
        self.tokens = self.tokens.min(tokens);
        let rows = self.tokens * self.d_head;
        match &mut self.data {
            Data::F32(data) => data.truncate(rows),
            Data::Bf16(data) => data.truncate(rows),
            Data::Int8 { levels, scales, zeros } => {
                levels.truncate(rows);
                scales.truncate(self.tokens);
                zeros.truncate(self.tokens);
            }
        }
    }

    fn append(&mut self, rows: &[f32]) {
        assert!(rows.len().is_multiple_of(self.d_head), "rows must be whole");
        self.tokens += rows.len() / self.d_head;
        match &mut self.data {
            Data::F32(data) => data.extend_from_slice(rows),
            Data::Bf16(data) => data.extend(rows.iter().map(|&x| bf16_bits(x) as u16)),
            Data::Int8 { levels, scales, zeros } => {
                for row in rows.chunks_exact(self.d_head) {
                    let (scale, zero) = grid(row);
                    let level = |x: f32| ((x / scale).round_ties_even() + f32::from(zero)).clamp(0.0, 255.0);
                    levels.extend(row.iter().map(|&x| level(x) as u8));
                    scales.push(scale);
                    zeros.push(zero);
                }
            }
        }
    }

    /// All rows in float32.
    pub(super) fn read(&self) -> Cow<'_, [f32]> {
        match &self.data {
            Data::F32(data) => Cow::Borrowed(data),
            Data::Bf16(data) => data.iter().map(|&x| bf16(x)).collect(),
            Data::Int8 { levels, scales, zeros } => {
                let rows = levels.chunks_exact(self.d_head).zip(scales.iter().zip(zeros));
                rows.flat_map(|(row, (s, z))| row.iter().map(move |&l| s * (f32::from(l) - f32::from(*z))))
                    .collect()
            }
        }
    }

    /// `out[j] = q · row(first + j)`.
    pub(super) fn dots(&self, q: &[f32], first: usize, out: &mut [f32]) {
        let (d, end) = (self.d_head, first + out.len());
        match &self.data {
            Data::F32(data) => dots_f32(q, &data[first * d..end * d], out),
            Data::Bf16(data) => dots_bf16(q, &data[first * d..end * d], out),
            Data::Int8 { levels, scales, zeros } => {
                dots_int8(q, &levels[first * d..end * d], &scales[first..end], &zeros[first..end], out);
            }
        }
    }

    /// `out += Σ weights[j] · row(first + j)`.
    pub(super) fn add_weighted(&self, weights: &[f32], first: usize, out: &mut [f32]) {
        let (d, end) = (self.d_head, first + weights.len());
        match &self.data {
            Data::F32(data) => weighted_f32(weights, &data[first * d..end * d], out),
            Data::Bf16(data) => weighted_bf16(weights, &data[first * d..end * d], out),
            Data::Int8 { levels, scales, zeros } => {
                weighted_int8(
                    weights,
                    &levels[first * d..end * d],
                    &scales[first..end],
                    &zeros[first..end],
                    out,
                );
            }
        }
    }
}

/// Scale and zero point of a row.
fn grid(row: &[f32]) -> (f32, u8) {
    let lo = row.iter().fold(0.0f32, |m, &x| m.min(x));
    let hi = row.iter().fold(0.0f32, |m, &x| m.max(x));
    let scale = ((hi - lo) / 255.0).max(1e-8);
    let zero = (-lo / scale).round_ties_even().clamp(0.0, 255.0) as u8;
    // Levels cannot say NaN, the scale can.
    let scale = if row.iter().any(|x| x.is_nan()) { f32::NAN } else { scale };
    (scale, zero)
}

#[inline(always)]
fn bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// Σ q[c] f(row[c]) in the order of [`math::sum_by2`].
#[inline(always)]
fn dot<T: Copy>(q: &[f32], row: &[T], f: impl Fn(T) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (q_chunks, row_chunks) = (q.chunks_exact(LANES), row.chunks_exact(LANES));
    let rest = q_chunks.remainder().iter().zip(row_chunks.remainder());
    for (a, b) in q_chunks.zip(row_chunks) {
        for l in 0..LANES {
            lanes[l] += a[l] * f(b[l]);
        }
    }
    let tail: f32 = rest.map(|(&a, &b)| a * f(b)).sum();
    math::fold(lanes) + tail
}

multiversion! {
    fn dots_f32(q: &[f32], rows: &[f32], out: &mut [f32]) {
        for (o, row) in out.iter_mut().zip(rows.chunks_exact(q.len())) {
            *o = dot(q, row, |x| x);
        }
    }
}

multiversion! {
    fn dots_bf16(q: &[f32], rows: &[u16], out: &mut [f32]) {
        for (o, row) in out.iter_mut().zip(rows.chunks_exact(q.len())) {
            *o = dot(q, row, bf16);
        }
    }
}

multiversion! {
    fn dots_int8(q: &[f32], levels: &[u8], scales: &[f32], zeros: &[u8], out: &mut [f32]) {
        let sum = math::sum_by(q, |x| x);
        let grids = scales.iter().zip(zeros);
        for ((o, row), (s, z)) in out.iter_mut().zip(levels.chunks_exact(q.len())).zip(grids) {
            // The zero point leaves the sum: Σ q (l - z) = Σ q l - z Σ q.
            *o = s * (dot(q, row, f32::from) - f32::from(*z) * sum);
        }
    }
}

multiversion! {
    fn weighted_f32(weights: &[f32], rows: &[f32], out: &mut [f32]) {
        for (w, row) in weights.iter().zip(rows.chunks_exact(out.len())) {
            for (o, v) in out.iter_mut().zip(row) {
                *o += w * v;
            }
        }
    }
}

multiversion! {
    fn weighted_bf16(weights: &[f32], rows: &[u16], out: &mut [f32]) {
        for (w, row) in weights.iter().zip(rows.chunks_exact(out.len())) {
            for (o, v) in out.iter_mut().zip(row) {
                *o += w * bf16(*v);
            }
        }
    }
}

multiversion! {
    fn weighted_int8(weights: &[f32], levels: &[u8], scales: &[f32], zeros: &[u8], out: &mut [f32]) {
        let grids = scales.iter().zip(zeros);
        for ((w, row), (s, z)) in weights.iter().zip(levels.chunks_exact(out.len())).zip(grids) {
            let (w, z) = (w * s, f32::from(*z));
            for (o, l) in out.iter_mut().zip(row) {
                *o += w * (f32::from(*l) - z);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.7).sin() * (1.0 + (i % 5) as f32)).collect()
    }

    fn held(kind: CacheKind, x: &[f32], d_head: usize) -> CachedRows {
        let mut cached = CachedRows::new(kind, d_head);
        cached.append(x);
        cached
    }

    #[test]
    fn what_is_read_is_within_the_stated_bounds() {
        let x = rows(7 * 19);
        assert_eq!(*held(CacheKind::F32, &x, 19).read(), x[..]);
        for (x, y) in x.iter().zip(held(CacheKind::Bf16, &x, 19).read().iter()) {
            assert!((x - y).abs() <= x.abs() / 256.0, "{x} and {y}");
        }
        for (row, read) in x.chunks(19).zip(held(CacheKind::Int8, &x, 19).read().chunks(19)) {
            let (scale, _) = grid(row);
            for (x, y) in row.iter().zip(read) {
                assert!((x - y).abs() <= 0.5001 * scale, "{x} and {y}");
            }
        }
    }

    #[test]
    fn grids_hold_zero_and_follow_the_formula() {
        let levels = |x: &[f32]| match held(CacheKind::Int8, x, x.len()).data {
            Data::Int8 { levels, scales, zeros } => (levels, scales[0], zeros[0]),
            _ => unreachable!(),
        };
        assert_eq!(levels(&[0.0, 255.0, 0.5, 1.5]), (vec![0, 255, 0, 2], 1.0, 0));
        assert_eq!(levels(&[-51.0, 204.0, 0.0]), (vec![0, 255, 51], 1.0, 51));
        assert_eq!(levels(&[2.0, 510.0]), (vec![1, 255], 2.0, 0), "0 is on the grid");
        assert_eq!(levels(&[0.0, 0.0]), (vec![0, 0], 1e-8, 0));
        assert!(held(CacheKind::Int8, &[f32::NAN, 1.0], 2).read()[1].is_nan());
    }

    #[test]
    fn products_are_those_of_what_is_read() {
        for kind in [CacheKind::F32, CacheKind::Bf16, CacheKind::Int8] {
            for d in [1, 16, 19, 64] {
                let cached = held(kind, &rows(9 * d), d);
                let (q, read) = (rows(d), cached.read());
                let mut dots = [0.0; 5];
                cached.dots(&q, 3, &mut dots);
                let mut sum = vec![1.0; d];
                cached.add_weighted(&dots, 3, &mut sum);
                let mut want = vec![1.0f32; d];
                for (j, row) in read.chunks(d).skip(3).take(5).enumerate() {
                    let product: f32 = q.iter().zip(row).map(|(a, b)| a * b).sum();
                    let size: f32 = q.iter().zip(row).map(|(a, b)| (a * b).abs()).sum();
                    assert!((dots[j] - product).abs() <= 1e-5 * size + 1e-4 * d as f32, "{kind:?} {d}");
                    want.iter_mut().zip(row).for_each(|(w, v)| *w += dots[j] * v);
                }
                for (a, b) in sum.iter().zip(&want) {
                    assert!((a - b).abs() <= 1e-4 * (1.0 + b.abs()), "{kind:?} {d}: {a} and {b}");
                }
            }
        }
    }

    #[test]
    fn bytes_and_truncation() {
        for (kind, row) in [(CacheKind::F32, 40), (CacheKind::Bf16, 20), (CacheKind::Int8, 15)] {
            let mut cache = HeadCache::new(kind, 10);
            cache.append(&rows(30), &rows(30));
            assert_eq!((cache.tokens(), cache.bytes()), (3, 6 * row));
            cache.truncate(1);
            assert_eq!((cache.tokens(), cache.bytes(), cache.keys().len()), (1, 2 * row, 10));
        }
    }
}
