//! Rounding to an 8-bit grid and back, on slices.
//!
//! `q = clamp(round_half_even(x / s) + z, low, high)`, `x̂ = s (q - z)`; the division is a division, not a
//! product with the reciprocal, so that integers agree with the published research code bit for bit.

use crate::isa::multiversion;
use crate::threads::PIECE;
use rayon::prelude::*;

/// An affine integer grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// Step, positive.
    pub scale: f32,
    /// The integer that stands for 0.
    pub zero_point: f32,
    /// Smallest integer.
    pub low: f32,
    /// Largest integer.
    pub high: f32,
}

/// x ← x̂ in place, in parallel.
pub fn fake_quantise(x: &mut [f32], grid: Grid) {
    x.par_chunks_mut(PIECE).for_each(|x| fake_quantise_serial(x, grid));
}

multiversion! {
    /// As [`fake_quantise`], on the calling thread.
    pub fn fake_quantise_serial(x: &mut [f32], grid: Grid) {
        for v in x {
            let q = ((*v / grid.scale).round_ties_even() + grid.zero_point).clamp(grid.low, grid.high);
            *v = grid.scale * (q - grid.zero_point);
        }
    }
}

/// The integers themselves.
pub fn quantise(x: &[f32], grid: Grid) -> Vec<i32> {
    x.iter()
        .map(|&v| {
            let q = (v / grid.scale).round_ties_even() + grid.zero_point;
            q.clamp(grid.low, grid.high) as i32
        })
        .collect()
}

/// Σ (x - x̂)² in float64, the cost that the range search minimises.
pub fn squared_error(x: &[f32], grid: Grid) -> f64 {
    x.chunks(1024).map(|x| error_piece(x, grid)).sum()
}

multiversion! {
    fn error_piece(x: &[f32], grid: Grid) -> f64 {
        let mut lanes = [0.0f64; 8];
        let mut chunks = x.chunks_exact(8);
        for chunk in &mut chunks {
            for l in 0..8 {
                let e = error_of(chunk[l], grid);
                lanes[l] += e * e;
            }
        }
        let mut sum = 0.0;
        for &v in chunks.remainder() {
            let e = error_of(v, grid);
            sum += e * e;
        }
        sum + lanes.iter().sum::<f64>()
    }
}

/// The integer grids of the columns of a matrix, all from `low` to `high`.
#[derive(Clone, Copy, Debug)]
pub struct ColumnGrids<'a> {
    /// Step of each column.
    pub scale: &'a [f32],
    /// The integer that stands for 0 in each.
    pub zero_point: &'a [f32],
    /// Smallest integer.
    pub low: f32,
    /// Largest integer.
    pub high: f32,
}

/// Adds to `sums`, for every column of the rows `x`, Σ (x - x̂)² and Σ x², on one thread.
///
/// # Panics
/// If the grids or the sums are not as many as there are columns.
pub fn add_column_errors(x: &[f32], grids: ColumnGrids, sums: (&mut [f64], &mut [f64])) {
    let width = grids.scale.len();
    assert!(grids.zero_point.len() == width && sums.0.len() == width && sums.1.len() == width);
    if width > 0 {
        column_errors_piece(x, grids, sums.0, sums.1);
    }
}

multiversion! {
    fn column_errors_piece(x: &[f32], grids: ColumnGrids, errors: &mut [f64], squares: &mut [f64]) {
        let columns = || grids.scale.iter().zip(grids.zero_point);
        for row in x.chunks_exact(grids.scale.len()) {
            for (((&v, (&scale, &zero_point)), error), square) in
                row.iter().zip(columns()).zip(errors.iter_mut()).zip(squares.iter_mut())
            {
                let e = error_of(v, Grid { scale, zero_point, low: grids.low, high: grids.high });
                *error += e * e;
                *square += f64::from(v) * f64::from(v);
            }
        }
    }
}

#[inline(always)]
fn error_of(v: f32, grid: Grid) -> f64 {
    let q = ((v / grid.scale).round_ties_even() + grid.zero_point).clamp(grid.low, grid.high);
    (v - grid.scale * (q - grid.zero_point)) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_columns_are_those_of_each_column() {
        let x: Vec<f32> = (0..7 * 19).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.1).collect();
        let scale: Vec<f32> = (0..19).map(|c| 0.01 + 0.02 * c as f32).collect();
        let zero_point: Vec<f32> = (0..19).map(|c| 100.0 + c as f32).collect();
        let grids = ColumnGrids { scale: &scale, zero_point: &zero_point, low: 0.0, high: 255.0 };
        let (mut errors, mut squares) = (vec![0.0; 19], vec![0.0; 19]);
        add_column_errors(&x, grids, (&mut errors, &mut squares));
        for c in 0..19 {
            let column: Vec<f32> = x.iter().skip(c).step_by(19).copied().collect();
            let grid = Grid { scale: scale[c], zero_point: zero_point[c], low: 0.0, high: 255.0 };
            assert!((errors[c] - squared_error(&column, grid)).abs() < 1e-9, "{c}");
            let square: f64 = column.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
            assert!((squares[c] - square).abs() < 1e-9);
        }
    }

    const GRID: Grid = Grid { scale: 0.5, zero_point: 3.0, low: 0.0, high: 255.0 };

    #[test]
    fn rounds_half_to_even_and_clamps() {
        let x = [0.25, 0.75, -0.25, -9.0, 1000.0];
        assert_eq!(quantise(&x, GRID), vec![3, 5, 3, 0, 255]);
        let mut y = x;
        fake_quantise(&mut y, GRID);
        assert_eq!(y, [0.0, 1.0, 0.0, -1.5, 126.0]);
        let want: f64 = x.iter().zip(&y).map(|(a, b)| ((a - b) as f64).powi(2)).sum();
        assert_eq!(squared_error(&x, GRID), want);
    }
}
