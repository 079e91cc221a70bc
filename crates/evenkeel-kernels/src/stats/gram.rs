//! Gram matrices of activations X (n tokens × d channels): XᵀX over channels, X Xᵀ over tokens.
//!
//! Their Frobenius norms are equal, so that the smaller one serves both sides. Correlations of one side are
//! then a difference, ‖·‖² less the squared diagonal, which may be a millionth of ‖·‖² where one channel
//! dwarfs the rest: float32 products would leave no digit of it. Hence float64, and only the lower triangle,
//! which halves the cost.
//!
//! The output is cut into stripes of `STRIPE` rows, each computed by one thread that packs what it needs;
//! the inner dimension is walked in blocks of `BLOCK`, in order.

use super::rows_of;
use crate::isa::multiversion;
use rayon::prelude::*;

/// Rows of the output in a stripe: a packed stripe of `BLOCK` is 64 KiB.
const STRIPE: usize = 64;
/// Inner steps between additions to the output.
const BLOCK: usize = 128;
/// A tile of the output: accumulators stay in registers.
const TILE: (usize, usize) = (4, 8);

/// What the Gram matrix is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// XᵀX, d × d.
    Channels,
    /// X Xᵀ, n × n.
    Tokens,
}

/// Sums over the entries of a Gram matrix G. ‖G‖² is `diagonal + off_diagonal`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GramSums {
    /// Σ G_ii, the same on both sides.
    pub trace: f64,
    /// Σ G_ii².
    pub diagonal: f64,
    /// Σ over i ≠ j of G_ij².
    pub off_diagonal: f64,
}

impl GramSums {
    /// The sums over the lower triangle of `rows` whole rows of length `m`, from row `first` on.
    fn of(stripe: &[f64], m: usize, first: usize) -> Self {
        let mut sums = Self::default();
        for (i, row) in (first..).zip(stripe.chunks_exact(m)) {
            sums.trace += row[i];
            sums.diagonal += row[i] * row[i];
            sums.off_diagonal += 2.0 * row[..i].iter().map(|g| g * g).sum::<f64>();
        }
        sums
    }

    fn plus(self, other: Self) -> Self {
        Self {
            trace: self.trace + other.trace,
            diagonal: self.diagonal + other.diagonal,
            off_diagonal: self.off_diagonal + other.off_diagonal,
        }
    }

    /// The sums over a symmetric matrix of which the lower triangle is given, m × m.
    ///
    /// # Panics
    /// If the slice is not m * m long.
    pub fn of_lower(gram: &[f64], m: usize) -> Self {
        assert_eq!(gram.len(), m * m, "a Gram matrix is square");
        if m == 0 {
            return Self::default();
        }
        let parts: Vec<Self> = gram
            .par_chunks(STRIPE * m)
            .enumerate()
            .map(|(i, stripe)| Self::of(stripe, m, i * STRIPE))
            .collect();
        parts.into_iter().fold(Self::default(), Self::plus)
    }
}

/// Adds XᵀX or X Xᵀ of `x`, rows of `width`, to `gram`, m × m. Only entries (i, j) with j ≤ i are meant: what
/// stands above the diagonal is left undefined.
///
/// # Panics
/// If `width` is 0 or does not divide the length, or `gram` has another size.
pub fn gram_add(x: &[f32], width: usize, side: Side, gram: &mut [f64]) {
    let view = Inner::new(x, width, side);
    assert_eq!(gram.len(), view.m * view.m, "a Gram matrix is square");
    if view.m > 0 {
        let stripes = gram.par_chunks_mut(STRIPE * view.m).enumerate();
        stripes.for_each(|(i, stripe)| view.add_stripe(i * STRIPE, stripe));
    }
}

/// The sums over XᵀX or X Xᵀ without keeping the matrix.
///
/// # Panics
/// If `width` is 0 or does not divide the length.
pub fn gram_sums(x: &[f32], width: usize, side: Side) -> GramSums {
    let view = Inner::new(x, width, side);
    let parts: Vec<GramSums> = (0..view.m.div_ceil(STRIPE))
        .into_par_iter()
        .map(|i| {
            let first = i * STRIPE;
            let mut stripe = vec![0.0; STRIPE.min(view.m - first) * view.m];
            view.add_stripe(first, &mut stripe);
            GramSums::of(&stripe, view.m, first)
        })
        .collect();
    parts.into_iter().fold(GramSums::default(), GramSums::plus)
}

/// Vectors whose inner products are wanted: entry k of vector i is at `k * inner_stride + i * outer_stride`.
struct Inner<'a> {
    data: &'a [f32],
    m: usize,
    length: usize,
    inner_stride: usize,
    outer_stride: usize,
}

impl<'a> Inner<'a> {
    fn new(data: &'a [f32], width: usize, side: Side) -> Self {
        let rows = rows_of(data, width);
        match side {
            Side::Channels => Self { data, m: width, length: rows, inner_stride: width, outer_stride: 1 },
            Side::Tokens => Self { data, m: rows, length: width, inner_stride: 1, outer_stride: width },
        }
    }

    /// Entries `from..from + out.len() / lanes` of vectors `first..first + lanes`, vectors side by side; 0
    /// past the last.
    fn pack(&self, first: usize, lanes: usize, from: usize, out: &mut [f64]) {
        let steps = out.len() / lanes;
        for l in 0..lanes {
            if first + l < self.m {
                let at = (first + l) * self.outer_stride + from * self.inner_stride;
                let source = self.data[at..].iter().step_by(self.inner_stride);
                for (k, &v) in source.take(steps).enumerate() {
                    out[k * lanes + l] = f64::from(v);
                }
            } else {
                (0..steps).for_each(|k| out[k * lanes + l] = 0.0);
            }
        }
    }

    /// Adds rows `first..` of the Gram matrix to `stripe`, up to the diagonal and a little beyond.
    fn add_stripe(&self, first: usize, stripe: &mut [f64]) {
        let rows = stripe.len() / self.m;
        let mut left = [0.0f64; STRIPE * BLOCK];
        let mut right = [0.0f64; TILE.1 * BLOCK];
        for from in (0..self.length).step_by(BLOCK) {
            let steps = BLOCK.min(self.length - from);
            for (t, tile) in left.chunks_exact_mut(TILE.0 * BLOCK).enumerate() {
                self.pack(first + t * TILE.0, TILE.0, from, &mut tile[..TILE.0 * steps]);
            }
            for column in (0..first + rows).step_by(TILE.1) {
                let right = &mut right[..TILE.1 * steps];
                self.pack(column, TILE.1, from, right);
                let columns = TILE.1.min(self.m - column);
                for row in (0..rows).step_by(TILE.0) {
                    let at = row * BLOCK;
                    let sums = tile(&left[at..at + TILE.0 * steps], right);
                    for (i, sums) in sums.iter().enumerate().take(rows - row) {
                        let out = &mut stripe[(row + i) * self.m + column..][..columns];
                        out.iter_mut().zip(sums).for_each(|(o, s)| *o += s);
                    }
                }
            }
        }
    }
}

multiversion! {
    fn tile(left: &[f64], right: &[f64]) -> [[f64; TILE.1]; TILE.0] {
        let mut sums = [[0.0f64; TILE.1]; TILE.0];
        for (a, b) in left.chunks_exact(TILE.0).zip(right.chunks_exact(TILE.1)) {
            for i in 0..TILE.0 {
                for j in 0..TILE.1 {
                    sums[i][j] += a[i] * b[j];
                }
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_of_a_small_matrix() {
        // X = [[1, 2], [3, 4], [5, 6]].
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let mut gram = vec![0.0; 4];
        gram_add(&x, 2, Side::Channels, &mut gram);
        assert_eq!((gram[0], gram[2], gram[3]), (35.0, 44.0, 56.0));
        let channels = gram_sums(&x, 2, Side::Channels);
        assert_eq!(channels, GramSums { trace: 91.0, diagonal: 4361.0, off_diagonal: 3872.0 });
        assert_eq!(channels, GramSums::of_lower(&gram, 2));
        // Rows: 5, 25, 61 and products 11, 17, 39.
        let tokens = gram_sums(&x, 2, Side::Tokens);
        assert_eq!(tokens, GramSums { trace: 91.0, diagonal: 4371.0, off_diagonal: 3862.0 });
        assert_eq!(gram_sums(&[], 3, Side::Tokens), GramSums::default());
    }
}
