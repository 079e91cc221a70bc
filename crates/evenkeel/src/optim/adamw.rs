//! AdamW (Loshchilov and Hutter, arXiv 1711.05101): Adam with decoupled weight decay.
//!
//! ```text
//! m ← β1 m + (1-β1) g        v ← β2 v + (1-β2) g²
//! p ← p (1 - lr·wd) - lr · (m / (1-β1ⁿ)) / (√(v / (1-β2ⁿ)) + ε)
//! ```
//!
//! Defaults: β = (0.9, 0.999), ε = 1e-8. ε stands outside the square root and is added to the corrected √v.
//! Raising it from 1e-6 to 3e-4 lowers outlier features monotonically (He et al., section 5).
//!
//! ```
//! use evenkeel::optim::{AdamW, Optimizer, Slot, State};
//! use candle_core::{Device, Tensor};
//! # fn main() -> candle_core::Result<()> {
//! let p = Tensor::new(&[1.0f32, -2.0], &Device::Cpu)?;
//! let g = Tensor::new(&[0.5f32, 0.0], &Device::Cpu)?;
//! let mut state = State::default();
//! let rule = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
//! rule.step(&mut [Slot { parameter: &p, gradient: &g, state: &mut state, lr: 0.1, weight_decay: 0.0, phase: 0 }])?;
//! let moved = p.to_vec1::<f32>()?;
//! assert!((moved[0] - 0.9).abs() < 1e-6 && moved[1] == -2.0);
//! # Ok(())
//! # }
//! ```

use super::arith::{Adam, adamw};
use super::{Optimizer, Slot, each};
use candle_core::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// AdamW's settings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the corrected root of the second moment.
    pub eps: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8 }
    }
}

impl AdamW {
    /// One step on one parameter, for the rules that treat some parameters so.
    pub(super) fn step_one(&self, slot: &mut Slot) -> Result<()> {
        let p = slot.parameter;
        slot.state.begin(&self.state(p.dims()), p)?;
        slot.state.steps += 1;
        let step = slot.lr / (1.0 - self.beta1.powf(slot.state.steps as f64));
        let moments = (slot.state.get("m")?, slot.state.get("v")?);
        adamw(p, slot.gradient, moments, self.corrected(slot.state.steps), step, slot.keep())
    }

    /// Coefficients of the n-th step.
    pub(super) fn corrected(&self, n: u64) -> Adam {
        Adam {
            beta1: self.beta1,
            beta2: self.beta2,
            inv_sqrt_correction: 1.0 / (1.0 - self.beta2.powf(n as f64)).sqrt(),
            eps: self.eps,
        }
    }
}

impl Optimizer for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn step(&self, slots: &mut [Slot]) -> Result<()> {
        each(slots, |slot| self.step_one(slot))
    }

    fn state(&self, shape: &[usize]) -> Vec<(&'static str, Vec<usize>)> {
        vec![("m", shape.to_vec()), ("v", shape.to_vec())]
    }
}
