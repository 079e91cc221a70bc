//! Grids: what a quantiser does to the values that share a scale.
//!
//! Integers of b bits, asymmetric: with lo ≤ 0 ≤ hi, Δ = (hi - lo)/(2ᵇ - 1), s = max(Δ, 1e-8),
//! z = clamp(round(-lo/Δ), 0, 2ᵇ - 1), q = clamp(round_half_even(x/s) + z, 0, 2ᵇ - 1), x̂ = s (q - z).
//! Symmetric: s = max|·|/(2ᵇ⁻¹ - 1), q in -2ᵇ⁻¹..2ᵇ⁻¹ - 1, z = 0; weights without negative entries get 0..2ᵇ - 1 and
//! s = max/(2ᵇ - 1). Floating point: s = max|·|/largest, x̂ = s · round(x/s).
//!
//! Every x̂ of finite values is finite. Near the largest float32, where the outermost s (q - z) would be infinite, those integers
//! are left out; an infinite product of floating point becomes the largest float32.

use super::spec::{Float, Format};
use evenkeel_kernels::minifloat;
use evenkeel_kernels::quant::{self, Grid};
use serde::{Deserialize, Serialize};

/// Smallest step: keeps the division defined for constant zero tensors.
const SMALLEST_SCALE: f64 = 1e-8;
/// The same for floating point, whose values near zero are as exact as others.
const SMALLEST_FLOAT_SCALE: f64 = 1e-30;

/// A calibrated quantiser to integers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantiser {
    /// Bits of an integer.
    pub bits: u32,
    /// Step.
    pub scale: f64,
    /// Integer that stands for 0.
    pub zero_point: i32,
    /// Smallest integer.
    pub low: i32,
    /// Largest integer.
    pub high: i32,
}

impl Quantiser {
    /// Asymmetric, 0 to 2ᵇ - 1, for values between `lo` and `hi`. The range is widened to contain 0.
    pub fn asymmetric(bits: u32, lo: f64, hi: f64) -> Self {
        let levels = (1 << bits) - 1;
        // The upper floor is that of the research code; it keeps Δ above 0 for tensors that are all 0.
        let (lo, hi) = (lo.min(0.0), hi.max(SMALLEST_SCALE));
        let delta = (hi - lo) / levels as f64;
        let zero = (-lo / delta).round_ties_even().clamp(0.0, levels as f64);
        Self::finite(bits, delta.max(SMALLEST_SCALE), zero as i32, (0, levels))
    }

    /// Symmetric for magnitudes up to `peak`; from 0 up if nothing is negative.
    pub fn symmetric(bits: u32, peak: f64, unsigned: bool) -> Self {
        let half = 1 << (bits - 1);
        let (low, high) = if unsigned { (0, 2 * half - 1) } else { (-half, half - 1) };
        let scale = (peak / high as f64).max(SMALLEST_SCALE);
        Self::finite(bits, scale, 0, (low, high))
    }

    /// With those integers of `low` to `high` whose value float32 can hold.
    fn finite(bits: u32, scale: f64, zero_point: i32, (low, high): (i32, i32)) -> Self {
        let largest = f64::from(f32::MAX);
        let scale = scale.min(largest);
        // A quotient may lie a rounding below its integer.
        let most = (largest / scale + 1e-9).min(f64::from(1 << bits)) as i32;
        // The step's own rounding must not carry the outermost value beyond.
        let step = scale as f32;
        let scale = if (step * most as f32).is_finite() { scale } else { f64::from(step.next_down()) };
        Self { bits, scale, zero_point, low: low.max(zero_point - most), high: high.min(zero_point + most) }
    }

    /// As the kernels take it: the step rounded to float32.
    pub fn grid(&self) -> Grid {
        Grid {
            scale: self.scale as f32,
            zero_point: self.zero_point as f32,
            low: self.low as f32,
            high: self.high as f32,
        }
    }

    /// Smallest and largest value that is represented.
    pub fn limits(&self) -> (f64, f64) {
        let at = |q: i32| self.scale * (q - self.zero_point) as f64;
        (at(self.low), at(self.high))
    }
}

/// How the values that share a scale are rounded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell {
    /// To integers.
    Int(Quantiser),
    /// To floating-point numbers times a scale.
    Float {
        /// The format.
        format: Float,
        /// The scale; 0 makes every value 0.
        scale: f32,
    },
}

impl Cell {
    /// For values between `lo` and `hi`; a symmetric format takes the larger magnitude. `unsigned`: a symmetric integer format
    /// spends no integer on negative values.
    pub fn of_range(format: Format, (lo, hi): (f64, f64), unsigned: bool) -> Self {
        let peak = hi.max(-lo);
        match format {
            Format::Int { bits, symmetric: false } => Cell::Int(Quantiser::asymmetric(bits, lo, hi)),
            Format::Int { bits, symmetric: true } => Cell::Int(Quantiser::symmetric(bits, peak, unsigned)),
            Format::Float(format) => {
                let scale = (peak / f64::from(format.kernel().largest)).max(SMALLEST_FLOAT_SCALE);
                Cell::Float { format, scale: (scale as f32).min(f32::MAX) }
            }
        }
    }

    /// A Microscaling group whose largest magnitude is `peak`: a shared power of two.
    pub fn of_shared_exponent(format: Float, peak: f32) -> Self {
        let exponent = match peak > 0.0 {
            true => minifloat::exponent(peak) - format.kernel().largest_exponent,
            false => -127,
        };
        Cell::Float { format, scale: minifloat::shared_scale(exponent) }
    }

    /// An NVFP4 group whose largest magnitude is `peak`, in a tensor of scale `tensor_scale`.
    pub fn of_two_scales(format: Float, peak: f32, tensor_scale: f32) -> Self {
        let group = minifloat::round(peak / format.kernel().largest / tensor_scale, minifloat::E4M3);
        Cell::Float { format, scale: group * tensor_scale }
    }

    /// The float32 scale of a tensor of NVFP4 whose largest magnitude is `peak`.
    pub fn tensor_scale(format: Float, peak: f64) -> f32 {
        let largest = f64::from(format.kernel().largest) * f64::from(minifloat::E4M3.largest);
        (peak / largest).max(SMALLEST_FLOAT_SCALE) as f32
    }

    /// The step or scale.
    pub fn scale(&self) -> f64 {
        match self {
            Cell::Int(q) => q.scale,
            Cell::Float { scale, .. } => f64::from(*scale),
        }
    }

    /// Smallest and largest value that is represented.
    pub fn limits(&self) -> (f64, f64) {
        match self {
            Cell::Int(q) => q.limits(),
            Cell::Float { format, scale } => {
                let peak = f64::from(format.kernel().largest) * f64::from(*scale);
                (-peak, peak)
            }
        }
    }

    /// x ← x̂, on all threads.
    pub fn round(&self, x: &mut [f32]) {
        match self {
            Cell::Int(q) => quant::fake_quantise(x, q.grid()),
            Cell::Float { scale: 0.0, .. } => x.fill(0.0),
            Cell::Float { format, scale } => {
                minifloat::fake_round(x, format.kernel(), *scale);
                saturate(x, *format, *scale);
            }
        }
    }

    /// x ← x̂, on the calling thread.
    pub fn round_serial(&self, x: &mut [f32]) {
        match self {
            Cell::Int(q) => quant::fake_quantise_serial(x, q.grid()),
            Cell::Float { scale: 0.0, .. } => x.fill(0.0),
            Cell::Float { format, scale } => {
                minifloat::fake_round_serial(x, format.kernel(), *scale);
                saturate(x, *format, *scale);
            }
        }
    }

    /// What stands for each value: its integer, or its floating-point number before the scale multiplies it.
    pub fn levels(&self, x: &[f32]) -> Vec<f32> {
        match self {
            Cell::Int(q) => quant::quantise(x, q.grid()).into_iter().map(|q| q as f32).collect(),
            Cell::Float { scale: 0.0, .. } => vec![0.0; x.len()],
            Cell::Float { format, scale } => {
                x.iter().map(|v| minifloat::round(v / scale, format.kernel())).collect()
            }
        }
    }

    /// Σ (x - x̂)².
    pub fn squared_error(&self, x: &[f32]) -> f64 {
        match self {
            Cell::Int(q) => quant::squared_error(x, q.grid()),
            Cell::Float { .. } => {
                let mut rounded = x.to_vec();
                self.round_serial(&mut rounded);
                let square = |(&x, &y): (&f32, &f32)| f64::from(x - y) * f64::from(x - y);
                x.iter().zip(&rounded).map(square).sum()
            }
        }
    }
}

/// Makes the largest float32 of what rounding to `format` made infinite.
fn saturate(x: &mut [f32], format: Float, scale: f32) {
    if (format.kernel().largest * scale).is_infinite() {
        x.iter_mut().for_each(|v| *v = v.clamp(f32::MIN, f32::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_always_contain_zero() {
        let q = Quantiser::asymmetric(8, 2.0, 5.1);
        assert_eq!((q.zero_point, q.scale), (0, 5.1 / 255.0));
        let q = Quantiser::asymmetric(8, -1.0, -0.5);
        assert_eq!(q.zero_point, 255);
        let q = Quantiser::asymmetric(8, 0.0, 0.0);
        assert_eq!((q.zero_point, q.scale), (0, 1e-8));
        assert_eq!(Quantiser::symmetric(8, 0.0, false).scale, 1e-8);
        assert_eq!(Quantiser::symmetric(8, 127.0, false).limits(), (-128.0, 127.0));
        assert_eq!(Quantiser::symmetric(4, 7.0, false).limits(), (-8.0, 7.0));
    }

    #[test]
    fn shared_exponents_are_powers_of_two() {
        let cell = |peak| Cell::of_shared_exponent(Float::E2m1, peak).scale();
        assert_eq!((cell(6.0), cell(3.9), cell(8.0)), (1.0, 0.5, 2.0));
        assert_eq!(cell(0.0), 2f64.powi(-127));
    }

    #[test]
    fn a_group_far_below_its_tensor_becomes_zero() {
        let cell = Cell::of_two_scales(Float::E2m1, 1e-9, Cell::tensor_scale(Float::E2m1, 1.0));
        let mut x = [1e-9, -1e-9];
        cell.round(&mut x);
        assert_eq!(x, [0.0, 0.0]);
    }
}
