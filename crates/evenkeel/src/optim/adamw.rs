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
//! rule.step(&mut [Slot { parameter: &p, gradient: &g, state: &mut state, lr: 0.1, weight_decay: 0.0 }])?;
//! let moved = p.to_vec1::<f32>()?;
//! assert!((moved[0] - 0.9).abs() < 1e-6 && moved[1] == -2.0);
//! # Ok(())
//! # }
//! ```

use super::{Optimizer, Slot};
use crate::slices::{slice, with_slices_mut};
use candle_core::Result;
use evenkeel_kernels::optimizer as kernel;

/// AdamW's settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the corrected root of the second moment.
    pub eps: f64,
}

impl Optimizer for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn step(&self, slots: &mut [Slot]) -> Result<()> {
        for slot in slots {
            let (p, state) = (slot.parameter, &mut *slot.state);
            for name in ["m", "v"] {
                if !state.tensors.contains_key(name) {
                    state.tensors.insert(name.into(), p.zeros_like()?);
                }
            }
            state.steps += 1;
            let n = state.steps as i32;
            let coefficients = kernel::AdamW {
                betas: kernel::Betas::new(self.beta1, self.beta2),
                step_size: (slot.lr / (1.0 - self.beta1.powi(n))) as f32,
                inv_sqrt_correction: (1.0 / (1.0 - self.beta2.powi(n)).sqrt()) as f32,
                eps: self.eps as f32,
                keep: (1.0 - slot.lr * slot.weight_decay) as f32,
            };
            let g = slice(slot.gradient)?;
            with_slices_mut(&[p, &state.tensors["m"], &state.tensors["v"]], |s| {
                if let [p, m, v] = s {
                    kernel::adamw(p, &g, m, v, coefficients);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn state_elements(&self, shape: &[usize]) -> usize {
        2 * shape.iter().product::<usize>()
    }
}
