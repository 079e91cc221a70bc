//! Rotary position embedding (Su et al., arXiv 2104.09864): the angles, and the rotation as an expression.
//!
//! Of each head's channels the first `rotated` are turned in pairs (c, c + rotated/2) by t · base^(-2c/rotated) at position
//! t: the "rotate half" layout of Hugging Face checkpoints. The kernel turns rows where attention reads them.

use candle_core::{Device, Result, Tensor};
use evenkeel_kernels::attention as kernel;

/// Cosines and sines of a model's angles.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    half: usize,
    positions: usize,
    base: f64,
    angles: Vec<f64>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// For positions below `positions`; `rotated` channels, an even number.
    pub fn new(base: f64, rotated: usize, positions: usize) -> Self {
        let half = rotated / 2;
        let angle = |t: usize, c: usize| t as f64 * base.powf(-2.0 * c as f64 / rotated as f64);
        let angles: Vec<f64> = (0..positions).flat_map(|t| (0..half).map(move |c| angle(t, c))).collect();
        let cos = angles.iter().map(|a| a.cos() as f32).collect();
        let sin = angles.iter().map(|a| a.sin() as f32).collect();
        Self { half, positions, base, angles, cos, sin }
    }

    /// This table, or one with as many more positions as a longer sequence needs.
    pub(super) fn at_least(&self, tokens: usize) -> std::borrow::Cow<'_, Self> {
        if tokens <= self.positions {
            std::borrow::Cow::Borrowed(self)
        } else {
            std::borrow::Cow::Owned(Self::new(self.base, 2 * self.half, tokens))
        }
    }

    pub(super) fn kernel(&self) -> kernel::Rope<'_> {
        kernel::Rope { cos: &self.cos, sin: &self.sin, half: self.half }
    }

    /// x (sequences, tokens, heads, d_head), turned.
    pub(super) fn composed(&self, x: &Tensor) -> Result<Tensor> {
        let (_, tokens, _, d_head) = x.dims4()?;
        let table = self.at_least(tokens);
        let make = |f: fn(f64) -> f64| {
            let values: Vec<f64> = table.angles[..tokens * self.half].iter().map(|&a| f(a)).collect();
            Tensor::from_vec(values, (tokens, 1, self.half), &Device::Cpu)?.to_dtype(x.dtype())
        };
        let (cos, sin) = (make(f64::cos)?, make(f64::sin)?);
        let (a, b) = (x.narrow(3, 0, self.half)?, x.narrow(3, self.half, self.half)?);
        let low = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let high = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        let rest = d_head - 2 * self.half;
        let mut parts = vec![low, high];
        if rest > 0 {
            parts.push(x.narrow(3, 2 * self.half, rest)?);
        }
        Tensor::cat(&parts, 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_keeps_lengths_and_depends_on_the_distance_alone() -> Result<()> {
        let rope = Rope::new(100.0, 6, 4);
        let row: Vec<f64> = (0..8).map(|i| (i as f64 * 1.3).sin()).collect();
        let x = Tensor::from_vec(row.repeat(6), (1, 6, 1, 8), &Device::Cpu)?;
        // Longer than the table.
        let y = rope.composed(&x)?.reshape((6, 8))?.to_vec2::<f64>()?;
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        for t in 0..6 {
            assert!((dot(&y[t], &y[t]) - dot(&row, &row)).abs() < 1e-12);
            assert_eq!(y[t][6..], row[6..], "channels beyond the rotated ones stay");
        }
        assert!((dot(&y[0], &y[2]) - dot(&y[3], &y[5])).abs() < 1e-12);
        assert!((dot(&y[0], &y[2]) - dot(&y[0], &y[3])).abs() > 1e-3);
        Ok(())
    }
}
