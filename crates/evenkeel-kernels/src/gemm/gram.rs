//! The symmetric product a aᵀ, of which only one triangle is multiplied.

use super::scratch::Scratch;
use super::{Compute, Packed, Shared, View, Write, gemm_shared_packed, size};
use rayon::prelude::*;

/// Up to this many rows blocks are 48 high, above it 96: low, so that little is multiplied above the diagonal, and as high as
/// makes a panel worth fetching. Neither 96 and 192 nor 192 alone was faster.
const NARROW: usize = 768;

/// Side of the squares in which a triangle is copied to the other: two of them stay in L1.
const SQUARE: usize = 32;

/// `c = decay · c + weight · a aᵀ` on and below the diagonal of a row-major `c` of a.rows × a.rows, on all threads. What lies
/// above is neither read nor written; [`mirror`] makes the matrix whole.
///
/// # Panics
/// If `c` has another size.
pub fn blend_gram(compute: Compute, a: View, c: &mut [f32], decay: f32, weight: f32) {
    let n = a.rows();
    assert_eq!(c.len(), size(n, n), "output must be rows * rows long");
    if n == 0 {
        return;
    }
    let packed = Packed::new(compute, a.t());
    // The longest first, so that threads end together.
    let high = if n <= NARROW { 48 } else { 96 };
    let blocks = n.div_ceil(high);
    let shared = Shared::new(c);
    (0..blocks).into_par_iter().rev().with_max_len(1).for_each(|block| {
        let first = block * high;
        let rows = high.min(n - first);
        let columns = first + rows;
        let mut scratch = Scratch::take(rows * columns);
        let start: *mut f32 = scratch.groups_mut().as_mut_ptr().cast();
        // SAFETY: the buffer is this block's own, at least rows × columns four-byte groups long, and all of that is
        // written before it is read.
        let product = unsafe {
            let target = Shared::from_raw(start, rows * columns);
            gemm_shared_packed(a.take(first, rows), &packed, columns, &target, 0, columns, Write::Replace);
            std::slice::from_raw_parts(start, rows * columns)
        };
        for (r, new) in product.chunks_exact(columns).enumerate() {
            let end = first + r + 1;
            // SAFETY: row first + r up to its diagonal is written by this block alone and read by none.
            let row = unsafe { std::slice::from_raw_parts_mut(shared.at((first + r) * n), end) };
            for (c, new) in row.iter_mut().zip(new) {
                *c = decay * *c + weight * new;
            }
        }
    });
}

/// Copies what lies below the diagonal of a row-major n × n matrix above it, on all threads.
///
/// # Panics
/// If `c` has another size.
pub fn mirror(c: &mut [f32], n: usize) {
    assert_eq!(c.len(), size(n, n), "the matrix must be n * n long");
    let shared = Shared::new(c);
    let squares = n.div_ceil(SQUARE);
    (0..squares).into_par_iter().rev().with_max_len(1).for_each(|below| mirror_squares(&shared, n, below));
}

/// As [`mirror`] on the calling thread, for callers that are already parallel.
///
/// # Panics
/// As [`mirror`].
pub fn mirror_serial(c: &mut [f32], n: usize) {
    assert_eq!(c.len(), size(n, n), "the matrix must be n * n long");
    let shared = Shared::new(c);
    (0..n.div_ceil(SQUARE)).for_each(|below| mirror_squares(&shared, n, below));
}

/// One row of squares below the diagonal, to its place above.
fn mirror_squares(c: &Shared<'_, f32>, n: usize, below: usize) {
    for beside in 0..=below {
        for row in below * SQUARE..n.min((below + 1) * SQUARE) {
            for column in beside * SQUARE..row.min((beside + 1) * SQUARE) {
                // SAFETY: reads lie below the diagonal, where nothing writes; the element above it has one mirror
                // image, so one writer.
                unsafe { *c.at(column * n + row) = *c.at(row * n + column) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_definition_and_is_symmetric() {
        for (n, k) in [(1, 3), (5, 0), (33, 7), (97, 64), (200, 31), (800, 5)] {
            let a: Vec<f32> = (0..n * k).map(|i| ((i * 31) % 17) as f32 - 8.0).collect();
            let start: Vec<f32> = (0..n * n).map(|i| ((i / n) * (i % n) % 5) as f32).collect();
            for view in [View::new(&a, n, k), View::new(&a, k, n).t()] {
                let mut c = start.clone();
                blend_gram(Compute::F32, view, &mut c, 0.5, 0.25);
                let above =
                    |c: &[f32]| (0..n).map(|i| c[i * n + i + 1..][..n - i - 1].to_vec()).collect::<Vec<_>>();
                assert_eq!(above(&c), above(&start));
                let mut again = c.clone();
                mirror_serial(&mut again, n);
                mirror(&mut c, n);
                assert_eq!(again, c);
                let entry =
                    |i: usize, l: usize| f64::from(view.data[i * view.row_stride + l * view.column_stride]);
                let at = |i: usize, j: usize| (0..k).map(|l| entry(i, l) * entry(j, l)).sum::<f64>();
                for i in 0..n {
                    for j in 0..n {
                        let want = 0.5 * f64::from(start[i * n + j]) + 0.25 * at(i, j);
                        let got = f64::from(c[i * n + j]);
                        assert!((got - want).abs() <= 1e-5 * (1.0 + want.abs()), "{n} {k} {i} {j}");
                        assert_eq!(c[i * n + j].to_bits(), c[j * n + i].to_bits());
                    }
                }
            }
        }
    }
}
