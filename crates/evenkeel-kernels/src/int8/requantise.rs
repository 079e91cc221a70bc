//! From sums to numbers and to bytes, and between numbers and bytes.
//!
//! For bytes x on a grid of step s_x and zero point z_x and weights w of step s_w (one, or one for each output), a layer's
//! output is `y = s_x s_w (Σ x w - z_x Σ w) + b`. With the column's integer offset `-z_x Σ w` that is [`Terms`]:
//! `y = act((sum + offset) · scale + bias)`, rounded at every step as float32 is.
//!
//! Bytes are those of [`crate::quant`]: `q = clamp(round_half_even(y / s) + z, low, high)` with a true division; NaN, which
//! has no integer, becomes 0. The functions on rows and pieces run on the calling thread, and say so where they do not.

use crate::activation::{self, Activation};
use crate::isa::multiversion;
use crate::quant::Grid;
use crate::threads::PIECE;
use rayon::prelude::*;

/// Steps of the sums.
#[derive(Clone, Copy, Debug)]
pub enum Scale<'a> {
    /// One for all columns.
    One(f32),
    /// One for each column.
    Columns(&'a [f32]),
}

/// What turns the sums of some columns into numbers, a slice entry for each column.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// Added to the sums: -z_x Σ w, and an integer bias if there is one.
    pub offset: &'a [i32],
    /// Multiplied with the result: s_x s_w.
    pub scale: Scale<'a>,
    /// Added after scaling.
    pub bias: Option<&'a [f32]>,
    /// Applied last.
    pub activation: Option<Activation>,
}

impl<'a> Terms<'a> {
    /// The terms of `count` columns from `first` on, such as those of a piece that an epilogue gets.
    ///
    /// # Panics
    /// If there are fewer columns.
    pub fn columns(&self, first: usize, count: usize) -> Terms<'a> {
        let scale = match self.scale {
            Scale::One(scale) => Scale::One(scale),
            Scale::Columns(scales) => Scale::Columns(&scales[first..first + count]),
        };
        let offset = &self.offset[first..first + count];
        Terms { offset, scale, bias: self.bias.map(|bias| &bias[first..first + count]), ..*self }
    }
}

/// Columns that [`requantise_into`] holds as numbers at a time, where an activation wants them in memory.
const CHUNK: usize = 256;
/// And where they stay in registers.
pub(super) const LANES: usize = 64;

/// out ← act((sum + offset) · scale + bias).
///
/// # Panics
/// If sums, terms and output are not of one length.
pub fn dequantise_into(sums: &[i32], terms: Terms, out: &mut [f32]) {
    assert!(sums.len() == out.len() && terms.offset.len() == out.len());
    match terms.scale {
        Scale::One(scale) => by_one_scale(sums, terms.offset, scale, out),
        Scale::Columns(scales) => by_scales(sums, terms.offset, scales, out),
    }
    if let Some(bias) = terms.bias {
        add(bias, out);
    }
    if let Some(activation) = terms.activation {
        activation::forward(activation, out);
    }
}

/// The bytes on `grid` of what [`dequantise_into`] gives. The division takes no longer than a product with the reciprocal
/// would: it hides behind the rest.
///
/// # Panics
/// As [`dequantise_into`], and if the grid's integers are not bytes.
pub fn requantise_into(sums: &[i32], terms: Terms, grid: Grid, out: &mut [u8]) {
    check(grid);
    assert!(sums.len() == out.len() && terms.offset.len() == out.len());
    match terms.activation {
        None => levels_of_sums(sums, terms, f32::NEG_INFINITY, grid, out),
        Some(Activation::Relu) => levels_of_sums(sums, terms, 0.0, grid, out),
        Some(_) => {
            let mut numbers = [0.0; CHUNK];
            for (i, (sums, out)) in sums.chunks(CHUNK).zip(out.chunks_mut(CHUNK)).enumerate() {
                let numbers = &mut numbers[..sums.len()];
                dequantise_into(sums, terms.columns(i * CHUNK, sums.len()), numbers);
                levels(numbers, grid, out);
            }
        }
    }
}

multiversion! {
    /// [`requantise_into`] without leaving the registers, for y no less than `floor`.
    fn levels_of_sums(sums: &[i32], terms: Terms, floor: f32, grid: Grid, out: &mut [u8]) {
        let (sums, sums_rest) = sums.as_chunks::<LANES>();
        let (out, out_rest) = out.as_chunks_mut::<LANES>();
        let rest = sums.len() * LANES;
        for (i, (out, sums)) in out.iter_mut().zip(sums).enumerate() {
            *out = levels_of_lanes(sums, terms, i * LANES, floor, grid);
        }
        for (i, (out, &sum)) in out_rest.iter_mut().zip(sums_rest).enumerate() {
            [*out] = levels_of_lanes(&[sum], terms, rest + i, floor, grid);
        }
    }
}

/// `N` columns from `first` on.
#[inline(always)]
fn levels_of_lanes<const N: usize>(
    sums: &[i32; N],
    terms: Terms,
    first: usize,
    floor: f32,
    grid: Grid,
) -> [u8; N] {
    let y = numbers_of_lanes(sums, terms, first);
    // Written so that NaN stays NaN.
    y.map(|y| byte((if y < floor { floor } else { y } / grid.scale).round_ties_even(), grid))
}

/// (sum + offset) · scale + bias of `N` columns from `first` on, before any activation.
#[inline(always)]
pub(super) fn numbers_of_lanes<const N: usize>(sums: &[i32; N], terms: Terms, first: usize) -> [f32; N] {
    let offset = &terms.offset[first..first + N];
    let mut y = [0.0; N];
    match terms.scale {
        Scale::One(scale) => (0..N).for_each(|l| y[l] = sums[l].wrapping_add(offset[l]) as f32 * scale),
        Scale::Columns(scales) => {
            let scales = &scales[first..first + N];
            (0..N).for_each(|l| y[l] = sums[l].wrapping_add(offset[l]) as f32 * scales[l]);
        }
    }
    if let Some(bias) = terms.bias {
        let bias = &bias[first..first + N];
        (0..N).for_each(|l| y[l] += bias[l]);
    }
    y
}

multiversion! {
    fn by_one_scale(sums: &[i32], offset: &[i32], scale: f32, out: &mut [f32]) {
        for ((out, &sum), &offset) in out.iter_mut().zip(sums).zip(offset) {
            *out = sum.wrapping_add(offset) as f32 * scale;
        }
    }
}

multiversion! {
    fn by_scales(sums: &[i32], offset: &[i32], scales: &[f32], out: &mut [f32]) {
        assert_eq!(scales.len(), out.len());
        for (((out, &sum), &offset), &scale) in out.iter_mut().zip(sums).zip(offset).zip(scales) {
            *out = sum.wrapping_add(offset) as f32 * scale;
        }
    }
}

multiversion! {
    fn add(bias: &[f32], out: &mut [f32]) {
        assert_eq!(bias.len(), out.len());
        for (out, &bias) in out.iter_mut().zip(bias) {
            *out += bias;
        }
    }
}

/// The bytes of numbers, on all threads.
///
/// # Panics
/// If the lengths differ or the grid's integers are not bytes.
pub fn quantise_u8(x: &[f32], grid: Grid, out: &mut [u8]) {
    assert_eq!(x.len(), out.len());
    let pieces = out.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE));
    pieces.for_each(|(out, x)| quantise_u8_serial(x, grid, out));
}

/// As [`quantise_u8`], on the calling thread.
///
/// # Panics
/// As [`quantise_u8`].
pub fn quantise_u8_serial(x: &[f32], grid: Grid, out: &mut [u8]) {
    check(grid);
    assert_eq!(x.len(), out.len());
    levels(x, grid, out);
}

/// The numbers of bytes, s (q - z), on all threads.
///
/// # Panics
/// If the lengths differ.
pub fn dequantise_u8(x: &[u8], grid: Grid, out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    let pieces = out.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE));
    pieces.for_each(|(out, x)| dequantise_u8_serial(x, grid, out));
}

/// As [`dequantise_u8`], on the calling thread.
///
/// # Panics
/// As [`dequantise_u8`].
pub fn dequantise_u8_serial(x: &[u8], grid: Grid, out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    numbers(x, grid, out);
}

/// # Panics
/// If the grid's integers are not bytes.
pub(super) fn check(grid: Grid) {
    assert!(grid.low >= 0.0 && grid.high <= 255.0, "the integers of {grid:?} are not bytes");
}

multiversion! {
    fn levels(x: &[f32], grid: Grid, out: &mut [u8]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = byte((x / grid.scale).round_ties_even(), grid);
        }
    }
}

/// The byte of a rounded quotient.
#[inline(always)]
pub(super) fn byte(rounded: f32, grid: Grid) -> u8 {
    // Beside 2²³ the last bits of a float32 are an integer: cheaper than a conversion that minds what does not fit.
    const INTEGERS: f32 = 8_388_608.0;
    let level = (rounded + grid.zero_point).clamp(grid.low, grid.high);
    (level + INTEGERS).to_bits() as u8
}

/// Bytes less 128, as attention takes keys and values.
///
/// # Panics
/// If the lengths differ.
pub fn less_128(x: &[u8], out: &mut [i8]) {
    assert_eq!(x.len(), out.len());
    shifted(x, out);
}

multiversion! {
    fn shifted(x: &[u8], out: &mut [i8]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x.wrapping_sub(128) as i8;
        }
    }
}

multiversion! {
    fn numbers(x: &[u8], grid: Grid, out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = grid.scale * (f32::from(x) - grid.zero_point);
        }
    }
}

/// The asymmetric grid of 0..=255 for a row: lo = min(x, 0), hi = max(x, 10⁻⁸), Δ = (hi - lo) / 255, s = max(Δ, 10⁻⁸),
/// z = clamp(round_half_even(-lo / Δ), 0, 255), in float64, the step then rounded to float32. NaN is passed over.
pub fn row_grid(x: &[f32]) -> Grid {
    const SMALLEST: f64 = 1e-8;
    let (lo, hi) = range(x);
    let (lo, hi) = (f64::from(lo).min(0.0), f64::from(hi).max(SMALLEST));
    let delta = (hi - lo) / 255.0;
    let zero = (-lo / delta).round_ties_even().clamp(0.0, 255.0);
    Grid { scale: delta.max(SMALLEST) as f32, zero_point: zero as f32, low: 0.0, high: 255.0 }
}

multiversion! {
    /// The smallest and the largest number, and 0.
    fn range(x: &[f32]) -> (f32, f32) {
        let (mut lo, mut hi) = ([0.0f32; LANES], [0.0f32; LANES]);
        let (chunks, rest) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for l in 0..LANES {
                // A comparison with NaN is false.
                lo[l] = if chunk[l] < lo[l] { chunk[l] } else { lo[l] };
                hi[l] = if chunk[l] > hi[l] { chunk[l] } else { hi[l] };
            }
        }
        for &v in rest {
            lo[0] = if v < lo[0] { v } else { lo[0] };
            hi[0] = if v > hi[0] { v } else { hi[0] };
        }
        let mut width = LANES / 2;
        while width > 0 {
            for l in 0..width {
                lo[l] = lo[l].min(lo[l + width]);
                hi[l] = hi[l].max(hi[l + width]);
            }
            width /= 2;
        }
        (lo[0], hi[0])
    }
}
