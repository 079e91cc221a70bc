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
    x.par_chunks_mut(PIECE).for_each(|x| fake_piece(x, grid));
}

multiversion! {
    fn fake_piece(x: &mut [f32], grid: Grid) {
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

#[inline(always)]
fn error_of(v: f32, grid: Grid) -> f64 {
    let q = ((v / grid.scale).round_ties_even() + grid.zero_point).clamp(grid.low, grid.high);
    (v - grid.scale * (q - grid.zero_point)) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

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
