//! Hadamard matrices, scaled to be orthogonal, and the random rotations made of them.
//!
//! Sylvester's construction doubles an order; Paley's gives one for many multiples of four: q + 1 for a prime q ≡ 3 mod 4, and
//! 2 (q + 1) for a prime q ≡ 1 mod 4. Between them they have 2^k, 12 · 2^k, 20 · 2^k, 28 · 2^k and more.

use crate::random::{key, mix};
use rayon::prelude::*;

/// Paley matrices beyond this order are not made: they are multiplied out.
const LARGEST_BASE: usize = 1024;

/// H, or several H along the diagonal, with H Hᵀ = 1.
pub(super) struct Hadamard {
    /// A Hadamard matrix of entries ±1, row by row; of order 1 where powers of two are enough.
    base: Vec<f64>,
    base_order: usize,
    /// Order of the Sylvester matrix that it is multiplied by.
    power: usize,
}

impl Hadamard {
    /// For vectors of `n` channels: of order n if a construction is known, else of the largest power of two that divides n.
    pub(super) fn of(n: usize) -> Self {
        let doublings = if n == 0 { 0 } else { n.trailing_zeros() };
        let odd = n >> doublings;
        let orders = (2..=doublings).map(|k| odd << k).take_while(|&order| order <= LARGEST_BASE);
        let paley = if odd == 1 { None } else { orders.filter_map(|m| Some((paley(m)?, m))).next() };
        let (base, base_order) = paley.unwrap_or((vec![1.0], 1));
        let power = match base_order {
            1 => 1 << doublings,
            _ => n / base_order,
        };
        Self { base, base_order, power }
    }

    /// Order of a single H.
    pub(super) fn order(&self) -> usize {
        self.base_order * self.power
    }

    /// x ← x H, block by block.
    pub(super) fn apply(&self, x: &mut [f64]) {
        let scale = 1.0 / (self.order() as f64).sqrt();
        for block in x.chunks_exact_mut(self.order()) {
            block.chunks_exact_mut(self.power).for_each(sylvester);
            if self.base_order > 1 {
                self.mix_chunks(block);
            }
            block.iter_mut().for_each(|v| *v *= scale);
        }
    }

    /// The base matrix across chunks of `power` entries.
    fn mix_chunks(&self, block: &mut [f64]) {
        let old = block.to_vec();
        block.fill(0.0);
        for (from, row) in old.chunks_exact(self.power).zip(self.base.chunks_exact(self.base_order)) {
            for (to, sign) in block.chunks_exact_mut(self.power).zip(row) {
                to.iter_mut().zip(from).for_each(|(t, f)| *t += sign * f);
            }
        }
    }
}

/// x ← x S for the Sylvester matrix of x.len(), a power of two.
fn sylvester(x: &mut [f64]) {
    let mut half = 1;
    while half < x.len() {
        for pair in x.chunks_exact_mut(2 * half) {
            let (a, b) = pair.split_at_mut(half);
            a.iter_mut().zip(b).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
        }
        half *= 2;
    }
}

/// A Hadamard matrix of order `m` by one of Paley's constructions.
fn paley(m: usize) -> Option<Vec<f64>> {
    if m >= 4 && (m - 1) % 4 == 3 && is_prime(m - 1) {
        let border = |row: usize, column: usize| match (row, column) {
            (0, 0) => 0.0,
            (0, _) => 1.0,
            (_, 0) => -1.0,
            (r, c) => character(r + (m - 1) - c, m - 1),
        };
        let entry = |i: usize| border(i / m, i % m) + if i / m == i % m { 1.0 } else { 0.0 };
        return Some((0..m * m).map(entry).collect());
    }
    let half = m / 2;
    if m.is_multiple_of(4) && half >= 6 && (half - 1) % 4 == 1 && is_prime(half - 1) {
        let conference = |row: usize, column: usize| match (row, column) {
            (0, 0) => 0.0,
            (0, _) | (_, 0) => 1.0,
            (r, c) => character(r + (half - 1) - c, half - 1),
        };
        let entry = |i: usize| {
            let (row, column) = (i / m, i % m);
            let corner = match (row % 2, column % 2) {
                (1, 1) => -1.0,
                _ => 1.0,
            };
            match row / 2 == column / 2 {
                // Where the conference matrix is 0.
                true => [[1.0, -1.0], [-1.0, -1.0]][row % 2][column % 2],
                false => corner * conference(row / 2, column / 2),
            }
        };
        return Some((0..m * m).map(entry).collect());
    }
    None
}

fn is_prime(q: usize) -> bool {
    q > 1 && (2..).take_while(|d| d * d <= q).all(|d| !q.is_multiple_of(d))
}

/// Whether `a` is a square modulo the prime `q`: 1, or -1 if it is not, or 0 for 0.
fn character(a: usize, q: usize) -> f64 {
    match a % q {
        0 => 0.0,
        a if (1..q).any(|x| x * x % q == a) => 1.0,
        _ => -1.0,
    }
}

/// A random orthogonal matrix Q = D H D' R: Hadamard between random signs, and a reflection that brings (1, ..., 1) back to
/// where it was if a mean over channels has to stay what it is. The entries before R are ±n^-½, and R changes them by a few n^-1.
pub(super) struct Rotation {
    signs: [Vec<f64>; 2],
    hadamard: Hadamard,
    /// Unit normal of the reflection.
    mirror: Option<Vec<f64>>,
}

impl Rotation {
    /// For `n` channels, from a seed.
    pub(super) fn new(n: usize, seed: u64, keeps_mean: bool) -> Self {
        let sign = |side: u64, i: usize| match mix(key(&[seed, side, i as u64])) & 1 {
            0 => 1.0,
            _ => -1.0,
        };
        let signs = [0, 1].map(|side| (0..n).map(|i| sign(side, i)).collect());
        let mut rotation = Self { signs, hadamard: Hadamard::of(n), mirror: None };
        if keeps_mean {
            let even = 1.0 / (n as f64).sqrt();
            let mut normal = vec![even; n];
            rotation.apply(&mut normal);
            normal.iter_mut().for_each(|v| *v -= even);
            let length = normal.iter().map(|v| v * v).sum::<f64>().sqrt();
            normal.iter_mut().for_each(|v| *v /= length);
            rotation.mirror = (length > 1e-9).then_some(normal);
        }
        rotation
    }

    /// Order of the Hadamard matrix.
    pub(super) fn order(&self) -> usize {
        self.hadamard.order()
    }

    /// x ← x Q.
    fn apply(&self, x: &mut [f64]) {
        let [before, after] = &self.signs;
        x.iter_mut().zip(before).for_each(|(v, sign)| *v *= sign);
        self.hadamard.apply(x);
        x.iter_mut().zip(after).for_each(|(v, sign)| *v *= sign);
        if let Some(normal) = &self.mirror {
            let along: f64 = x.iter().zip(normal).map(|(v, n)| v * n).sum();
            x.iter_mut().zip(normal).for_each(|(v, n)| *v -= 2.0 * along * n);
        }
    }

    /// Each row of n entries times Q.
    pub(super) fn rows(&self, data: &mut [f32]) {
        data.par_chunks_mut(self.signs[0].len()).for_each_init(Vec::new, |x: &mut Vec<f64>, row| {
            x.clear();
            x.extend(row.iter().map(|&v| f64::from(v)));
            self.apply(x);
            row.iter_mut().zip(x).for_each(|(v, x)| *v = *x as f32);
        });
    }

    /// Each column of a matrix of n rows times Q: what it writes is rotated.
    pub(super) fn columns(&self, data: &mut [f32]) {
        let n = self.signs[0].len();
        let columns = data.len() / n;
        let mut transposed = vec![0.0; data.len()];
        for (r, row) in data.chunks_exact(columns.max(1)).enumerate() {
            transposed.iter_mut().skip(r).step_by(n).zip(row).for_each(|(t, &v)| *t = v);
        }
        self.rows(&mut transposed);
        for (r, row) in data.chunks_exact_mut(columns.max(1)).enumerate() {
            row.iter_mut().zip(transposed.iter().skip(r).step_by(n)).for_each(|(v, &t)| *v = t);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(n: usize, apply: impl Fn(&mut [f64])) -> Vec<f64> {
        let mut rows = vec![0.0; n * n];
        for (i, row) in rows.chunks_mut(n).enumerate() {
            row[i] = 1.0;
            apply(row);
        }
        rows
    }

    fn assert_orthogonal(q: &[f64], n: usize) {
        for (i, a) in q.chunks(n).enumerate() {
            for (j, b) in q.chunks(n).enumerate() {
                let dot: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                assert!((dot - f64::from(i == j)).abs() < 1e-12, "{n}: rows {i} and {j}");
            }
        }
    }

    #[test]
    fn hadamard_matrices_are_flat_and_orthogonal() {
        for (n, order) in [
            (1, 1),
            (2, 2),
            (8, 8),
            (64, 64),
            (12, 12),
            (20, 20),
            (28, 28),
            (36, 36),
            (24, 24),
            (56, 56),
            (80, 80),
            (768, 768),
            (96, 96),
            (60, 60),
            (6, 2),
            (7, 1),
            (92, 4),
            (0, 1),
        ] {
            let h = Hadamard::of(n);
            assert_eq!(h.order(), order, "{n}");
            let rows = matrix(n.max(1), |x| h.apply(x));
            assert_orthogonal(&rows, n.max(1));
            let flat = 1.0 / (order as f64).sqrt();
            assert!(rows.iter().all(|v| (v.abs() - flat).abs() < 1e-12 || (order < n && *v == 0.0)), "{n}");
        }
    }

    #[test]
    fn a_rotation_keeps_the_mean_where_it_has_to_and_is_nearly_flat_all_the_same() {
        for n in [16, 24, 40, 9, 768] {
            let q = Rotation::new(n, 3, true);
            let rows = matrix(n, |x| q.apply(x));
            assert_orthogonal(&rows, n);
            let mut ones = vec![1.0; n];
            q.apply(&mut ones);
            assert!(ones.iter().all(|v| (v - 1.0).abs() < 1e-12), "{n}");
        }
        let rows = matrix(768, |x| Rotation::new(768, 3, true).apply(x));
        let most = rows.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        assert!(most < 1.8 / 768f64.sqrt(), "{}", most * 768f64.sqrt());
    }

    #[test]
    fn columns_are_the_rows_of_the_transposed() {
        let q = Rotation::new(4, 1, false);
        let mut w: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let mut transposed: Vec<f32> = (0..3).flat_map(|c| (0..4).map(move |r| (r * 3 + c) as f32)).collect();
        q.columns(&mut w);
        q.rows(&mut transposed);
        for r in 0..4 {
            for c in 0..3 {
                assert_eq!(w[r * 3 + c], transposed[c * 4 + r]);
            }
        }
    }
}
