//! SOAP (Vyas et al., arXiv 2409.11321): Adam in the eigenbasis of Shampoo's factors.
//!
//! In the bases that [`Eigenbasis`] keeps, for the n-th step that moves:
//!
//! ```text
//! m ← β1 m + (1-β1) g'    v ← β2 v + (1-β2) g'²      g' the rotated gradient
//! u' = m / (√v + ε)       step = lr √(1-β2ⁿ) / (1-β1ⁿ)
//! factorised:             v_ij = R_i C_j / mean(R), with R and C the EMAs of g'² over rows and columns
//! normalised_update:      the direction, rotated back, is divided by its RMS
//! ```
//!
//! ε is added to √v before bias correction. Vectors are Adam with the same ε placement; their first call is skipped and
//! their decay follows the step as well. All of this follows the published reference implementation.
//!
//! Defaults: β = (0.95, 0.95), ε = 1e-8, and those of [`Eigenbasis`]. State of an m × n matrix: 2mn + 2m² + 2n² + m + n
//! numbers, 10.5 times the weight at 768 × 3072 where both sides have a basis; with `factorised` one mn less, with `one_sided` without the longer side's
//! square.
//!
//! ```
//! use evenkeel::optim::{Optimizer, Slot, Soap, State};
//! use candle_core::{Device, Tensor};
//! # fn main() -> candle_core::Result<()> {
//! let p = Tensor::new(&[[1.0f32, 2.0], [3.0, 4.0]], &Device::Cpu)?;
//! let g = Tensor::new(&[[0.5f32, -1.0], [2.0, 0.1]], &Device::Cpu)?;
//! let rule = Soap::default();
//! let mut state = State::default();
//! for _ in 0..2 {
//!     let slot = Slot { parameter: &p, gradient: &g, state: &mut state, lr: 0.1, weight_decay: 0.0, phase: 0 };
//!     rule.step(&mut [slot])?;
//! }
//! assert_eq!(state.steps, 1); // the first call only takes the bases
//! # Ok(())
//! # }
//! ```

use super::arith::{Adam, adam_direction, blend, divide_factored, rms};
use super::eigenbasis::Inside;
use super::{Eigenbasis, Slot, adafactor};
use candle_core::{Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// SOAP's settings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Soap {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to √v.
    pub eps: f64,
    /// Matrices keep their second moment as a number for each row and each column.
    pub factorised: bool,
    /// Directions are divided by their RMS.
    pub normalised_update: bool,
    /// How the bases are made and kept.
    #[serde(flatten)]
    pub basis: Eigenbasis,
}

impl Default for Soap {
    fn default() -> Self {
        Self {
            beta1: 0.95,
            beta2: 0.95,
            eps: 1e-8,
            factorised: false,
            normalised_update: false,
            basis: Eigenbasis::default(),
        }
    }
}

impl Inside for Soap {
    const NAME: &'static str = "soap";

    fn basis(&self) -> &Eigenbasis {
        &self.basis
    }

    fn moments(&self, shape: &[usize]) -> Vec<(&'static str, Vec<usize>)> {
        let mut all = vec![("m", shape.to_vec())];
        match *shape {
            [rows, columns] if self.factorised => {
                all.extend([("row", vec![rows]), ("column", vec![columns])])
            }
            _ => all.push(("v", shape.to_vec())),
        }
        all
    }

    fn direction(&self, gradient: &Tensor, slot: &mut Slot) -> Result<(Tensor, f64)> {
        let n = slot.state.steps as f64;
        let step = slot.lr * (1.0 - self.beta2.powf(n)).sqrt() / (1.0 - self.beta1.powf(n));
        let m = slot.state.get("m")?;
        let direction = if self.factorised && gradient.rank() == 2 {
            blend(m, gradient, self.beta1, 1.0 - self.beta1)?;
            let (rows, columns) = adafactor::factored_roots(gradient, slot.state, self.beta2, 0.0, 0.0)?;
            divide_factored(m, &rows, &columns, 0.0, self.eps)?
        } else {
            let adam = Adam { beta1: self.beta1, beta2: self.beta2, inv_sqrt_correction: 1.0, eps: self.eps };
            adam_direction(gradient, (m, slot.state.get("v")?), adam)?
        };
        Ok((direction, step))
    }

    fn finish(&self, direction: Tensor) -> Result<Tensor> {
        if self.normalised_update { &direction / (1e-30 + rms(&direction)?) } else { Ok(direction) }
    }

    fn beta2(&self) -> f64 {
        self.beta2
    }
}
