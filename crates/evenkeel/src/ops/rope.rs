//! Rotary position embedding (Su et al., arXiv 2104.09864): the angles, and the rotation as an expression.
//!
//! Of each head's channels the first `rotated` are turned in pairs (c, c + rotated/2) by t · base^(-2c/rotated) at position
//! t: the "rotate half" layout of Hugging Face checkpoints. The kernel turns rows where attention reads them.

use candle_core::{Device, Result, Tensor};
use evenkeel_kernels::attention as kernel;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};

/// How angles are stretched so that a model goes beyond the length that it was trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    None,
    /// Every angle is divided by this factor (arXiv 2306.15595).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// "Dynamic NTK", as transformers computes it: sequences of T > `original` tokens have the base times (factor T / original - factor + 1)^(r / (r - 2)), r the
    /// number of rotated channels; shorter ones are not changed.
    Dynamic {
        /// The factor.
        factor: f64,
        /// Length that the model was trained on.
        original: f64,
    },
    /// Llama 3.1, as transformers computes it: waves longer than original / low are stretched by the factor, those shorter than original / high not
    /// at all, and those between by a share linear in their number per `original` tokens.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Waves per `original` tokens up to which the factor acts in full.
        low: f64,
        /// Waves per `original` tokens from which on it does not act.
        high: f64,
        /// Length that the model was trained on.
        original: f64,
    },
}

impl RopeScaling {
    /// Angle of each of `half` pairs per position, in a sequence of `tokens`.
    fn frequencies(self, base: f64, half: usize, tokens: usize) -> Vec<f64> {
        let powers = |base: f64| (0..half).map(move |c| base.powf(-(c as f64) / half as f64));
        match self {
            RopeScaling::Dynamic { factor, original } if tokens as f64 > original => {
                let stretch = factor * tokens as f64 / original - (factor - 1.0);
                // With a single pair there is no wave to stretch: its frequency is 1 at any base.
                let power = if half > 1 { half as f64 / (half as f64 - 1.0) } else { 0.0 };
                powers(base * stretch.powf(power)).collect()
            }
            RopeScaling::None | RopeScaling::Dynamic { .. } => powers(base).collect(),
            RopeScaling::Linear { factor } => powers(base).map(|w| w / factor).collect(),
            RopeScaling::Llama3 { factor, low, high, original } => {
                let share = |w: f64| {
                    let waves = original * w / std::f64::consts::TAU;
                    ((waves - low) / (high - low)).clamp(0.0, 1.0)
                };
                powers(base).map(|w| w / factor * (1.0 - share(w)) + w * share(w)).collect()
            }
        }
    }
}

/// Angles that a table holds from the start: 4096 positions of 128 channels. Few sequences are longer, and models claim up to a
/// million.
const MADE_AT_ONCE: usize = 4096 * 64;

/// Cosines and sines of a model's angles.
#[derive(Debug, PartialEq)]
pub struct Rope {
    half: usize,
    positions: usize,
    base: f64,
    scaling: RopeScaling,
    cos: Vec<f32>,
    sin: Vec<f32>,
    longer: Longer,
}

/// The table of the last sequence that was longer, which all blocks ask for in turn. It says nothing that the rest does not.
#[derive(Debug, Default)]
struct Longer(Mutex<Option<Arc<Rope>>>);

impl PartialEq for Longer {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Rope {
    /// For sequences of up to `positions` tokens; `rotated` channels, an even number.
    pub fn new(base: f64, rotated: usize, positions: usize, scaling: RopeScaling) -> Self {
        let half = rotated / 2;
        let frequencies = scaling.frequencies(base, half, positions);
        let table = |f: fn(f64) -> f64| {
            let row = |t: usize| frequencies.iter().map(move |&w| f(t as f64 * w) as f32);
            (0..positions).flat_map(row).collect()
        };
        Self {
            half,
            positions,
            base,
            scaling,
            cos: table(f64::cos),
            sin: table(f64::sin),
            longer: Longer::default(),
        }
    }

    /// For a model of `context` positions: what of the table is worth having at once. The angles of a dynamic scaling depend
    /// on the length beyond `original`, so that no table serves two of those.
    pub fn of_context(base: f64, rotated: usize, context: usize, scaling: RopeScaling) -> Self {
        let shared = match scaling {
            RopeScaling::Dynamic { original, .. } => original as usize,
            _ => context,
        };
        let few = (2 * MADE_AT_ONCE / rotated.max(2)).max(1);
        Self::new(base, rotated, context.min(shared).min(few), scaling)
    }

    /// This table, or that of a longer sequence.
    pub(super) fn at_least(self: &Arc<Self>, tokens: usize) -> Arc<Self> {
        // One that serves every length is made with room to grow, for sequences that go on token by token.
        let (shared, room) = match self.scaling {
            RopeScaling::Dynamic { .. } => (false, tokens),
            _ => (true, tokens.next_power_of_two()),
        };
        if tokens <= self.positions {
            return self.clone();
        }
        // A poisoned lock would mean that making a table panicked; it is made again.
        let mut longer = self.longer.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let serves = |table: &&Arc<Self>| table.positions == tokens || shared && table.positions > tokens;
        match longer.as_ref().filter(serves) {
            Some(table) => table.clone(),
            None => {
                let table = Arc::new(Self::new(self.base, 2 * self.half, room, self.scaling));
                *longer = Some(table.clone());
                table
            }
        }
    }

    /// Cosines and sines, a row of `rotated` / 2 for each position.
    pub fn tables(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }

    /// The angles from position `first` on, which the table must hold.
    pub(super) fn kernel(&self, first: usize) -> kernel::Rope<'_> {
        let past = (first * self.half).min(self.cos.len());
        kernel::Rope { cos: &self.cos[past..], sin: &self.sin[past..], half: self.half }
    }

    /// x (sequences, tokens, heads, d_head), the first token at position `first`, turned by angles in float64.
    pub(super) fn composed(&self, x: &Tensor, first: usize) -> Result<Tensor> {
        let (_, tokens, _, d_head) = x.dims4()?;
        let end = first + tokens;
        let frequencies = self.scaling.frequencies(self.base, self.half, end.max(self.positions));
        let make = |f: fn(f64) -> f64| {
            let row = |t: usize| frequencies.iter().map(move |&w| f(t as f64 * w));
            let values: Vec<f64> = (first..end).flat_map(row).collect();
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
        let rope = Rope::new(100.0, 6, 4, RopeScaling::None);
        let row: Vec<f64> = (0..8).map(|i| (i as f64 * 1.3).sin()).collect();
        let x = Tensor::from_vec(row.repeat(6), (1, 6, 1, 8), &Device::Cpu)?;
        // Longer than the table.
        let y = rope.composed(&x, 0)?.reshape((6, 8))?.to_vec2::<f64>()?;
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
