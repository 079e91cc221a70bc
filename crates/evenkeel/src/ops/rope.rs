//! Rotary position embedding (Su et al., arXiv 2104.09864): the angles, and the rotation as an expression.
//!
//! Of each head's channels the first `rotated` are turned in pairs (c, c + rotated/2) by t · base^(-2c/rotated) at position
//! t: the "rotate half" layout of Hugging Face checkpoints. The kernel turns rows where attention reads them.

use candle_core::{Device, Result, Tensor};
use evenkeel_kernels::attention as kernel;
use std::sync::Arc;

/// Cosines and sines of a model's angles.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    half: usize,
    positions: usize,
    base: f64,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// For positions below `positions`; `rotated` channels, an even number.
    pub fn new(base: f64, rotated: usize, positions: usize) -> Self {
        let half = rotated / 2;
        let frequencies = frequencies(base, half);
        let table = |f: fn(f64) -> f64| {
            let row = |t: usize| frequencies.iter().map(move |&w| f(t as f64 * w) as f32);
            (0..positions).flat_map(row).collect()
        };
        Self { half, positions, base, cos: table(f64::cos), sin: table(f64::sin) }
    }

    /// This table, or one with as many more positions as a longer sequence needs.
    pub(super) fn at_least(self: &Arc<Self>, tokens: usize) -> Arc<Self> {
        match tokens <= self.positions {
            true => self.clone(),
            false => Arc::new(Self::new(self.base, 2 * self.half, tokens)),
        }
    }

    pub(super) fn kernel(&self) -> kernel::Rope<'_> {
        kernel::Rope { cos: &self.cos, sin: &self.sin, half: self.half }
    }

    /// x (sequences, tokens, heads, d_head), turned by angles in float64.
    pub(super) fn composed(&self, x: &Tensor) -> Result<Tensor> {
        let (_, tokens, _, d_head) = x.dims4()?;
        let frequencies = frequencies(self.base, self.half);
        let make = |f: fn(f64) -> f64| {
            let row = |t: usize| frequencies.iter().map(move |&w| f(t as f64 * w));
            let values: Vec<f64> = (0..tokens).flat_map(row).collect();
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

/// Angle of each pair per position.
fn frequencies(base: f64, half: usize) -> Vec<f64> {
    (0..half).map(|c| base.powf(-(c as f64) / half as f64)).collect()
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
        for turned in &y {
            assert!((dot(turned, turned) - dot(&row, &row)).abs() < 1e-12);
            assert_eq!(turned[6..], row[6..], "channels beyond the rotated ones stay");
        }
        assert!((dot(&y[0], &y[2]) - dot(&y[3], &y[5])).abs() < 1e-12);
        assert!((dot(&y[0], &y[2]) - dot(&y[0], &y[3])).abs() > 1e-3);
        Ok(())
    }
}
