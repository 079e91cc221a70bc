//! Norms between bytes: a row is made numbers, normalised in float32 and put on its next grid, while it is in L1.

use super::requantise::{dequantise_u8_serial, quantise_u8_serial};
use crate::isa::multiversion;
use crate::math;
use crate::norm::{Centre, forward_row};
use crate::quant::Grid;
use crate::threads::{PIECE, rows_per_piece};
use rayon::prelude::*;

/// A norm over channels; formulas in [`crate::norm`].
#[derive(Clone, Copy, Debug)]
pub struct RowNorm<'a> {
    /// What is subtracted.
    pub centre: Centre,
    /// Added to the variance, inside the root.
    pub eps: f32,
    /// One for each channel.
    pub gain: Option<&'a [f32]>,
    /// One for each channel.
    pub bias: Option<&'a [f32]>,
}

impl RowNorm<'_> {
    /// y ← norm(x) of one row.
    ///
    /// # Panics
    /// If lengths differ.
    pub fn apply(&self, x: &[f32], y: &mut [f32]) {
        let n = x.len();
        assert!(
            y.len() == n && self.gain.is_none_or(|g| g.len() == n) && self.bias.is_none_or(|b| b.len() == n)
        );
        forward_row(x, self.gain, self.bias, self.centre, self.eps, y);
    }
}

/// The bytes on `to` of the norm of each row of `width` bytes on `from`, on all threads.
///
/// # Panics
/// If sizes disagree or `to` is no grid of bytes.
pub fn norm_u8(x: &[u8], width: usize, from: Grid, norm: RowNorm, to: Grid, out: &mut [u8]) {
    assert!(width > 0 && x.len() == out.len() && x.len().is_multiple_of(width));
    let piece = rows_per_piece(width, PIECE / 4) * width;
    x.par_chunks(piece).zip(out.par_chunks_mut(piece)).for_each(|(x, out)| {
        let (mut numbers, mut normed) = (vec![0.0; width], vec![0.0; width]);
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            dequantise_u8_serial(x, from, &mut numbers);
            norm.apply(&numbers, &mut normed);
            quantise_u8_serial(&normed, to, out);
        }
    });
}

/// QK-norm: `x / rms · gain` over the channels of each head, rms = √(mean x²) + ε, or √(mean x² + ε).
#[derive(Clone, Copy, Debug)]
pub struct HeadNorm<'a> {
    /// One for each channel of a head.
    pub gain: &'a [f32],
    /// ε.
    pub eps: f32,
    /// Whether ε stands inside the root.
    pub eps_inside: bool,
}

/// Each head's bytes on `from` become those of its norm on `to`, in place and on all threads.
///
/// # Panics
/// If `x` is not of whole heads or `to` is no grid of bytes.
pub fn head_norm_u8(x: &mut [u8], from: Grid, norm: HeadNorm, to: Grid) {
    let width = norm.gain.len();
    assert!(width > 0 && x.len().is_multiple_of(width));
    let piece = rows_per_piece(width, PIECE / 4) * width;
    x.par_chunks_mut(piece).for_each(|x| {
        let mut numbers = vec![0.0; width];
        for x in x.chunks_exact_mut(width) {
            dequantise_u8_serial(x, from, &mut numbers);
            head_row(&mut numbers, norm);
            quantise_u8_serial(&numbers, to, x);
        }
    });
}

multiversion! {
    fn head_row(row: &mut [f32], norm: HeadNorm) {
        let mean_square = math::sum_by(row, |v| v * v) / row.len() as f32;
        let rms = match norm.eps_inside {
            true => (mean_square + norm.eps).sqrt(),
            false => mean_square.sqrt() + norm.eps,
        };
        for (v, g) in row.iter_mut().zip(norm.gain) {
            *v = *v / rms * g;
        }
    }
}
