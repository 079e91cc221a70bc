//! Rotated AdaFactor: AdaFactor in the eigenbasis of Shampoo's factors, He et al.'s stand-in for Shampoo (Section 5).
//!
//! Shampoo with exponent 1/2 is AdaFactor in that basis up to a scalar (Vyas et al., arXiv 2409.11321, Claim 1). Here the
//! bases are kept and refreshed by SOAP's rules ([`Eigenbasis`]); inside them [`AdaFactor`] acts on the rotated
//! gradient, its momentum on the clipped update kept in the rotated space. As in SOAP the first call takes the bases and
//! moves nothing, and decay follows the step.
//!
//! Defaults: β = (0.95, 0.95), ε = 1e-30, d = 1, and those of [`Eigenbasis`]. State of an m × n matrix: mn + 2m² + 2n² +
//! 2m + 2n numbers.
//!
//! ```
//! use evenkeel::optim::{Optimizer, RotatedAdaFactor, Slot, State};
//! use candle_core::{Device, Tensor};
//! # fn main() -> candle_core::Result<()> {
//! let p = Tensor::new(&[[1.0f32, 2.0], [3.0, 4.0]], &Device::Cpu)?;
//! let g = Tensor::new(&[[0.5f32, -1.0], [2.0, 0.1]], &Device::Cpu)?;
//! let mut state = State::default();
//! for _ in 0..2 {
//!     let slot = Slot { parameter: &p, gradient: &g, state: &mut state, lr: 0.1, weight_decay: 0.0, phase: 0 };
//!     RotatedAdaFactor::default().step(&mut [slot])?;
//! }
//! assert!(p.to_vec2::<f32>()?[0][1] > 2.0);
//! # Ok(())
//! # }
//! ```

use super::eigenbasis::Inside;
use super::{AdaFactor, Eigenbasis, Slot};
use crate::optim::arith::blend;
use candle_core::{Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Rotated AdaFactor's settings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RotatedAdaFactor {
    /// What happens in the basis.
    #[serde(flatten)]
    pub inside: AdaFactor,
    /// How the bases are made and kept.
    #[serde(flatten)]
    pub basis: Eigenbasis,
}

impl Default for RotatedAdaFactor {
    fn default() -> Self {
        Self {
            inside: AdaFactor { beta1: 0.95, beta2: 0.95, ..AdaFactor::default() },
            basis: Eigenbasis::default(),
        }
    }
}

impl Inside for RotatedAdaFactor {
    const NAME: &'static str = "rotated_adafactor";

    fn basis(&self) -> &Eigenbasis {
        &self.basis
    }

    fn moments(&self, shape: &[usize]) -> Vec<(&'static str, Vec<usize>)> {
        self.inside.moments(shape)
    }

    fn direction(&self, gradient: &Tensor, slot: &mut Slot) -> Result<(Tensor, f64)> {
        let (update, clip) = self.inside.update(gradient, slot.state)?;
        let step = self.inside.step_size(slot)?;
        match slot.state.tensors.get("m") {
            Some(m) => {
                let beta1 = self.inside.beta1;
                blend(m, &update, beta1, (1.0 - beta1) * clip)?;
                Ok((m.clone(), step))
            }
            None => Ok((update, step * clip)),
        }
    }

    fn beta2(&self) -> f64 {
        self.inside.beta2
    }
}
