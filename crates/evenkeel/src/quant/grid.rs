//! 8-bit grids: what an affine quantiser does to one tensor.
//!
//! Asymmetric (activations): with lo ≤ 0 ≤ hi, Δ = (hi - lo)/255, s = max(Δ, 1e-8),
//! z = clamp(round(-lo/Δ), 0, 255), q = clamp(round_half_even(x/s) + z, 0, 255), x̂ = s (q - z).
//! Symmetric (weights): s = max|·|/127, q in -128..=127, z = 0; tensors without negative entries get the
//! unsigned grid s = max/255, q in 0..=255.

use evenkeel_kernels::quant::Grid;
use serde::{Deserialize, Serialize};

/// Smallest step: keeps the division defined for constant zero tensors.
const SMALLEST_SCALE: f64 = 1e-8;

/// A calibrated quantiser.
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
    /// Asymmetric, 0..=255, for values between `lo` and `hi`. The range is widened to contain 0.
    pub fn asymmetric(lo: f64, hi: f64) -> Self {
        // The upper floor is that of the research code; it keeps Δ above 0 for tensors that are all 0.
        let (lo, hi) = (lo.min(0.0), hi.max(SMALLEST_SCALE));
        let delta = (hi - lo) / 255.0;
        let zero = (-lo / delta).round_ties_even().clamp(0.0, 255.0);
        Self { bits: 8, scale: delta.max(SMALLEST_SCALE), zero_point: zero as i32, low: 0, high: 255 }
    }

    /// Symmetric for magnitudes up to `peak`; unsigned 0..=255 if nothing is negative.
    pub fn symmetric(peak: f64, unsigned: bool) -> Self {
        let (low, high) = if unsigned { (0, 255) } else { (-128, 127) };
        let scale = (peak / high as f64).max(SMALLEST_SCALE);
        Self { bits: 8, scale, zero_point: 0, low, high }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_always_contain_zero() {
        let q = Quantiser::asymmetric(2.0, 5.1);
        assert_eq!((q.zero_point, q.scale), (0, 5.1 / 255.0));
        let q = Quantiser::asymmetric(-1.0, -0.5);
        assert_eq!(q.zero_point, 255);
        let q = Quantiser::asymmetric(0.0, 0.0);
        assert_eq!((q.zero_point, q.scale), (0, 1e-8));
        assert_eq!(Quantiser::symmetric(0.0, false).scale, 1e-8);
        assert_eq!(Quantiser::symmetric(127.0, false).limits(), (-128.0, 127.0));
    }
}
