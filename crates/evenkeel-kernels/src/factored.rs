//! AdaFactor's second moment of a matrix: a number for each row and one for each column (Shazeer and Stern,
//! arXiv 1804.04235, section 3).

use crate::isa::multiversion;
use crate::threads::{PIECE, map_row_pieces, rows_per_piece, sum_in_order};
use rayon::prelude::*;

/// Means of g² over each row and over each column of a row-major rows × columns matrix, sums in float64. The mean of
/// nothing is NaN.
///
/// # Panics
/// If `g` is not rows · columns long.
pub fn mean_squares(g: &[f32], rows: usize, columns: usize) -> (Vec<f64>, Vec<f64>) {
    assert_eq!(g.len(), rows * columns);
    let parts = map_row_pieces(rows, columns, PIECE, |first, count| {
        let mut by_column = vec![0.0; columns];
        let row = |r: usize| &g[r * columns..][..columns];
        let by_row: Vec<f64> = (first..first + count).map(|r| square_row(row(r), &mut by_column)).collect();
        (by_row, by_column)
    });
    let (by_row, by_column): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    let row_means = by_row.concat().into_iter().map(|s| s / columns as f64).collect();
    let column_means = sum_in_order(by_column, columns).into_iter().map(|s| s / rows as f64).collect();
    (row_means, column_means)
}

multiversion! {
    /// Adds the squares of a row to the columns' sums and returns their sum.
    fn square_row(row: &[f32], columns: &mut [f64]) -> f64 {
        let n = row.len();
        let columns = &mut columns[..n];
        let mut lanes = [0.0f64; 8];
        for i in 0..n / 8 {
            for l in 0..8 {
                let square = row[i * 8 + l] as f64 * row[i * 8 + l] as f64;
                lanes[l] += square;
                columns[i * 8 + l] += square;
            }
        }
        let mut sum = lanes.iter().sum::<f64>();
        for i in n / 8 * 8..n {
            let square = row[i] as f64 * row[i] as f64;
            sum += square;
            columns[i] += square;
        }
        sum
    }
}

/// `u = x / (max(row · column, floor) + ε)` for every entry, 0 where that divisor is 0. A NaN in `rows` or `columns`
/// is larger than the floor.
///
/// # Panics
/// If `x` and `u` are not rows.len() · columns.len() long.
pub fn divide(x: &[f32], rows: &[f32], columns: &[f32], floor: f32, eps: f32, u: &mut [f32]) {
    let n = columns.len();
    assert!(x.len() == rows.len() * n && u.len() == x.len());
    if n == 0 {
        return;
    }
    let some = rows_per_piece(n, PIECE);
    u.par_chunks_mut(some * n).zip(x.par_chunks(some * n)).zip(rows.par_chunks(some)).for_each(
        |((u, x), rows)| {
            for ((u, x), &row) in u.chunks_exact_mut(n).zip(x.chunks_exact(n)).zip(rows) {
                divide_row(x, row, columns, floor, eps, u);
            }
        },
    );
}

multiversion! {
    fn divide_row(x: &[f32], row: f32, columns: &[f32], floor: f32, eps: f32, u: &mut [f32]) {
        let n = x.len();
        let (columns, u) = (&columns[..n], &mut u[..n]);
        for i in 0..n {
            // Not `f32::max`, which would put the floor in the place of a NaN.
            let product = row * columns[i];
            let at_least = if product < floor { floor } else { product };
            let divisor = at_least + eps;
            let q = x[i] / divisor;
            u[i] = if divisor == 0.0 { 0.0 } else { q };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_quotients_of_a_small_matrix() {
        let g = [1.0, 2.0, 0.0, 3.0, 0.0, 0.0];
        let (rows, columns) = mean_squares(&g, 2, 3);
        assert_eq!((rows, columns), (vec![5.0 / 3.0, 3.0], vec![5.0, 2.0, 0.0]));
        let mut u = [9.0; 6];
        divide(&g, &[2.0, 4.0], &[0.5, 1.0, 0.0], 0.0, 0.0, &mut u);
        assert_eq!(u, [1.0, 1.0, 0.0, 1.5, 0.0, 0.0]);
    }

    #[test]
    fn many_rows_and_odd_widths_agree_with_plain_sums() {
        let (rows, columns) = (301, 517);
        let g: Vec<f32> = (0..rows * columns).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
        let (by_row, by_column) = mean_squares(&g, rows, columns);
        for r in [0, 126, 300] {
            let want: f64 = g[r * columns..][..columns].iter().map(|v| (v * v) as f64).sum();
            assert!((by_row[r] - want / columns as f64).abs() < 1e-9);
        }
        for c in [0, 511, 516] {
            let want: f64 = (0..rows).map(|r| (g[r * columns + c] as f64).powi(2)).sum();
            assert!((by_column[c] - want / rows as f64).abs() < 1e-9);
        }
    }
}
