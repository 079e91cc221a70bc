//! Products of a few rows: memory-bound, since every weight is read for a handful of multiply-adds. Packing would read and write
//! all of them first, so here they are read where they lie, once.

use super::View;
use crate::isa::multiversion;
use crate::math::{self, LANES};
use rayon::prelude::*;

/// Up to this many rows of `a`, [`few_rows`] is the faster product.
pub const FEW_ROWS: usize = 2;

/// Weights of a piece of work: 256 KiB.
const PIECE: usize = 64 * 1024;

/// Columns whose sums are taken at once, so that additions need not wait for each other.
const AT_ONCE: usize = 4;

/// `a bᵀ` in float32 for row-major factors, on all threads, as a new buffer; then `epilogue(row, first_column, piece)` on every
/// piece of a row, once. A row's result depends neither on the other rows nor on the number of threads.
///
/// # Panics
/// If the inner dimensions differ or a factor is transposed.
pub fn few_rows(a: View, b: View, epilogue: impl Fn(usize, usize, &mut [f32]) + Sync) -> Vec<f32> {
    assert_eq!(a.columns, b.columns, "inner dimensions must agree");
    assert!(a.column_stride == 1 && b.column_stride == 1, "rows must lie side by side");
    let inner = a.columns;
    let step = (PIECE / inner.max(1)).next_multiple_of(AT_ONCE).max(AT_ONCE);
    let rows: Vec<&[f32]> = (0..a.rows).map(|i| &a.data[i * a.row_stride..][..inner]).collect();
    let piece = |piece: usize| {
        let columns = piece * step..b.rows.min((piece + 1) * step);
        let weights: Vec<&[f32]> = columns.clone().map(|j| &b.data[j * b.row_stride..][..inner]).collect();
        let mut part = vec![0.0; rows.len() * columns.len()];
        products(&rows, &weights, &mut part);
        for (row, part) in part.chunks_exact_mut(columns.len()).enumerate() {
            epilogue(row, columns.start, part);
        }
        part
    };
    let parts: Vec<Vec<f32>> = (0..b.rows.div_ceil(step)).into_par_iter().map(piece).collect();
    let mut c = Vec::with_capacity(a.rows * b.rows);
    for row in 0..a.rows {
        for part in &parts {
            let columns = part.len() / a.rows;
            c.extend_from_slice(&part[row * columns..(row + 1) * columns]);
        }
    }
    c
}

multiversion! {
    /// `out[i][j] = rows[i] · weights[j]`.
    fn products(rows: &[&[f32]], weights: &[&[f32]], out: &mut [f32]) {
        for (group, four) in weights.chunks(AT_ONCE).enumerate() {
            for (i, row) in rows.iter().enumerate() {
                let out = &mut out[i * weights.len() + group * AT_ONCE..][..four.len()];
                match four {
                    [a, b, c, d] => out.copy_from_slice(&four_dots(row, [a, b, c, d])),
                    fewer => fewer.iter().zip(out).for_each(|(w, o)| *o = math::sum_by2(row, w, |x, w| x * w)),
                }
            }
        }
    }
}

/// The products of one row with four others, each in the order of [`math::sum_by2`]. Written out, since the sums of a loop over
/// them would not stay in registers.
#[inline(always)]
fn four_dots(x: &[f32], [a, b, c, d]: [&[f32]; AT_ONCE]) -> [f32; AT_ONCE] {
    let [x_lines, a_lines, b_lines, c_lines, d_lines] = [x, a, b, c, d].map(|row| row.chunks_exact(LANES));
    let [mut sum_a, mut sum_b, mut sum_c, mut sum_d] = [[0.0f32; LANES]; AT_ONCE];
    for ((((x, a), b), c), d) in x_lines.zip(a_lines).zip(b_lines).zip(c_lines).zip(d_lines) {
        for l in 0..LANES {
            sum_a[l] += x[l] * a[l];
        }
        for l in 0..LANES {
            sum_b[l] += x[l] * b[l];
        }
        for l in 0..LANES {
            sum_c[l] += x[l] * c[l];
        }
        for l in 0..LANES {
            sum_d[l] += x[l] * d[l];
        }
    }
    let whole = x.len() / LANES * LANES;
    let rest = |w: &[f32]| {
        let mut tail = 0.0;
        for (x, w) in x[whole..].iter().zip(&w[whole..]) {
            tail += x * w;
        }
        tail
    };
    [
        math::fold(sum_a) + rest(a),
        math::fold(sum_b) + rest(b),
        math::fold(sum_c) + rest(c),
        math::fold(sum_d) + rest(d),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::{Compute, gemm_new};
    use super::*;

    #[test]
    fn agrees_with_the_packed_product() {
        for (m, n, k) in [(1, 1, 1), (1, 7, 16), (3, 4, 33), (8, 1030, 70), (2, 5, 0), (1, 0, 4), (0, 3, 5)] {
            let noise = |n: usize, by: usize| -> Vec<f32> {
                (0..n).map(|i| ((i * by) % 201) as f32 / 100.0 - 1.0).collect()
            };
            let (x, w) = (noise(m * k, 77), noise(n * k, 59));
            let (a, b) = (View::new(&x, m, k), View::new(&w, n, k));
            let epilogue = |row: usize, first: usize, piece: &mut [f32]| {
                for (j, v) in piece.iter_mut().enumerate() {
                    *v += (10 * row + first + j) as f32;
                }
            };
            let (found, want) = (few_rows(a, b, epilogue), gemm_new(Compute::F32, a, b.t(), epilogue));
            assert_eq!(found.len(), want.len());
            for (f, w) in found.iter().zip(&want) {
                assert!((f - w).abs() <= 1e-5 * (k as f32 + w.abs()), "{m} {n} {k}: {f} and {w}");
            }
            if m > 1 {
                let alone = few_rows(a.take(1, 1), b, |_, first, piece| epilogue(1, first, piece));
                assert_eq!(alone, found[n..2 * n]);
            }
        }
    }
}
