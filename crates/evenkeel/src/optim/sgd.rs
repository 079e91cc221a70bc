//! Stochastic gradient descent with momentum, as PyTorch's `SGD` defines it.
//!
//! ```text
//! g ← g + wd p                          unless `decoupled_decay`, where p ← p (1 - lr·wd) before the step
//! b ← β1 b + (1 - dampening) g          the first time b ← g
//! p ← p - lr b,  or with `nesterov` p ← p - lr (g + β1 b)
//! ```
//!
//! `beta1` is the momentum; with 0 there is no buffer. Defaults: β1 = 0.9, no dampening, no Nesterov, decay as an L2 penalty.
//!
//! ```
//! use evenkeel::optim::{Optimizer, Sgd, Slot, State};
//! use candle_core::{Device, Tensor};
//! # fn main() -> candle_core::Result<()> {
//! let p = Tensor::new(&[1.0f32, -2.0], &Device::Cpu)?;
//! let g = Tensor::new(&[0.5f32, 0.0], &Device::Cpu)?;
//! let mut state = State::default();
//! let slot = Slot { parameter: &p, gradient: &g, state: &mut state, lr: 0.1, weight_decay: 0.0, phase: 0 };
//! Sgd::default().step(&mut [slot])?;
//! assert_eq!(p.to_vec1::<f32>()?, [0.95, -2.0]);
//! # Ok(())
//! # }
//! ```

use super::{Optimizer, Slot, arith, each};
use candle_core::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// SGD's settings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sgd {
    /// Momentum; 0 keeps no buffer.
    pub beta1: f64,
    /// What the buffer leaves out of each gradient but the first.
    pub dampening: f64,
    /// Whether the momentum looks ahead.
    pub nesterov: bool,
    /// Decay acts on the parameter instead of the gradient.
    pub decoupled_decay: bool,
}

impl Default for Sgd {
    fn default() -> Self {
        Self { beta1: 0.9, dampening: 0.0, nesterov: false, decoupled_decay: false }
    }
}

impl Sgd {
    fn step_one(&self, slot: &mut Slot) -> Result<()> {
        let p = slot.parameter;
        slot.state.begin(&self.state(p.dims()), p)?;
        slot.state.steps += 1;
        let (penalty, keep) =
            if self.decoupled_decay { (0.0, slot.keep()) } else { (slot.weight_decay, 1.0) };
        let Some(buffer) = slot.state.tensors.get("buffer") else {
            return arith::decay_then_step(p, slot.gradient, slot.lr, keep - slot.lr * penalty);
        };
        let first = slot.state.steps == 1;
        let c = arith::Sgd {
            momentum: if first { 0.0 } else { self.beta1 },
            take: if first { 1.0 } else { 1.0 - self.dampening },
            nesterov: self.nesterov.then_some(self.beta1),
            penalty,
            lr: slot.lr,
            keep,
        };
        arith::sgd(p, slot.gradient, buffer, c)
    }
}

impl Optimizer for Sgd {
    fn name(&self) -> &'static str {
        "sgd"
    }

    fn step(&self, slots: &mut [Slot]) -> Result<()> {
        each(slots, |slot| self.step_one(slot))
    }

    fn state(&self, shape: &[usize]) -> Vec<(&'static str, Vec<usize>)> {
        match self.beta1 {
            0.0 => Vec::new(),
            _ => vec![("buffer", shape.to_vec())],
        }
    }
}
