//! AdaFactor (Shazeer and Stern, arXiv 1804.04235): a second moment of a number for each row and each column.
//!
//! For a matrix G, t = 1, 2, ...:
//!
//! ```text
//! R_i ← β2 R_i + (1-β2) mean_j(G_ij² + ε)      C_j ← β2 C_j + (1-β2) mean_i(G_ij² + ε)
//! V_ij = R_i C_j / mean(R)                     a vector keeps V itself
//! u = G / √V,  u ← u / max(1, RMS(u) / d)      m ← β1 m + (1-β1) u
//! p ← p (1 - lr·wd) - α m
//! ```
//!
//! β2 is fixed, or 1 - t^-c where `beta2_power` is c > 0 (0.8 in the paper). α = lr; with `relative_step` min(lr, 1/√t);
//! with `scale_parameter` times max(`scale_floor`, RMS(p)). Nothing is corrected for bias.
//!
//! Defaults (`adafactor`): β = (0.9, 0.999), ε = 1e-30, d = 1, no relative step, no parameter scaling: AdaFactor as
//! comparisons with Adam need it. `adafactor_torch` has the settings of PyTorch's `Adafactor`: no momentum, c = 0.8, relative
//! step, scaled by RMS(p), and ε = 2⁻²³ as a floor of √V and of mean(R). State: m + n numbers for an m × n matrix, and mn more with
//! momentum.
//!
//! ```
//! use evenkeel::optim::{AdaFactor, Optimizer, Slot, State};
//! use candle_core::{Device, Tensor};
//! # fn main() -> candle_core::Result<()> {
//! let p = Tensor::new(&[[1.0f32, 2.0], [3.0, 4.0]], &Device::Cpu)?;
//! let g = Tensor::new(&[[0.5f32, -1.0], [2.0, 0.1]], &Device::Cpu)?;
//! let mut state = State::default();
//! let slot = Slot { parameter: &p, gradient: &g, state: &mut state, lr: 0.1, weight_decay: 0.0, phase: 0 };
//! AdaFactor::default().step(&mut [slot])?;
//! assert!(p.to_vec2::<f32>()?[0][0] < 1.0);
//! # Ok(())
//! # }
//! ```

use super::arith::{blend, decay_then_step, divide_factored, divide_root, mean_squares, momentum_step, rms};
use super::{Optimizer, Slot, State, each};
use candle_core::{Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where ε enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EpsPlacement {
    /// Added to every squared gradient (the paper).
    Squares,
    /// A floor of √V and of mean(R) (PyTorch).
    Floor,
}

/// AdaFactor's settings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AdaFactor {
    /// Decay of the momentum on clipped updates; 0 keeps none.
    pub beta1: f64,
    /// Decay of the second moment, unless `beta2_power` is positive.
    pub beta2: f64,
    /// c in β2 = 1 - t^-c; 0 keeps β2 fixed.
    pub beta2_power: f64,
    /// Keeps the division finite.
    pub eps: f64,
    /// Where ε enters.
    pub eps_placement: EpsPlacement,
    /// Largest RMS of an update, d; 0 turns clipping off.
    pub clip_threshold: f64,
    /// The step is at most 1/√t.
    pub relative_step: bool,
    /// The step is relative to the parameter's RMS.
    pub scale_parameter: bool,
    /// Least RMS that a parameter counts as having.
    pub scale_floor: f64,
}

impl Default for AdaFactor {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            beta2_power: 0.0,
            eps: 1e-30,
            eps_placement: EpsPlacement::Squares,
            clip_threshold: 1.0,
            relative_step: false,
            scale_parameter: false,
            scale_floor: 1e-3,
        }
    }
}

impl AdaFactor {
    /// As PyTorch's `Adafactor` by default.
    pub fn torch() -> Self {
        Self {
            beta1: 0.0,
            beta2_power: 0.8,
            eps: f64::from(f32::EPSILON),
            eps_placement: EpsPlacement::Floor,
            relative_step: true,
            scale_parameter: true,
            ..Self::default()
        }
    }

    /// The moments of a parameter.
    pub(super) fn moments(&self, shape: &[usize]) -> Vec<(&'static str, Vec<usize>)> {
        let mut all = match *shape {
            [rows, columns] => vec![("row", vec![rows]), ("column", vec![columns])],
            _ => vec![("v", shape.to_vec())],
        };
        if self.beta1 > 0.0 {
            all.push(("m", shape.to_vec()));
        }
        all
    }

    /// G / √V, after V took the gradient, and the factor that clips it.
    pub(super) fn update(&self, gradient: &Tensor, state: &State) -> Result<(Tensor, f64)> {
        let beta2 = match self.beta2_power {
            0.0 => self.beta2,
            power => 1.0 - (state.steps as f64).powf(-power),
        };
        let (added, floor) = match self.eps_placement {
            EpsPlacement::Squares => (self.eps, 0.0),
            EpsPlacement::Floor => (0.0, self.eps),
        };
        let update = if gradient.rank() == 2 {
            let (rows, columns) = factored_roots(gradient, state, beta2, added, floor)?;
            divide_factored(gradient, &rows, &columns, floor, 0.0)?
        } else {
            let v = state.get("v")?;
            blend(v, &(gradient.sqr()? + added)?, beta2, 1.0 - beta2)?;
            divide_root(gradient, v, floor)?
        };
        let clip = match self.clip_threshold {
            0.0 => 1.0,
            most => 1.0 / (rms(&update)? / most).max(1.0),
        };
        Ok((update, clip))
    }

    /// α.
    pub(super) fn step_size(&self, slot: &Slot) -> Result<f64> {
        let t = slot.state.steps as f64;
        let relative = if self.relative_step { slot.lr.min(1.0 / t.sqrt()) } else { slot.lr };
        let scale = if self.scale_parameter { rms(slot.parameter)?.max(self.scale_floor) } else { 1.0 };
        Ok(relative * scale)
    }

    fn step_one(&self, slot: &mut Slot) -> Result<()> {
        let p = slot.parameter;
        slot.state.begin(&self.moments(p.dims()), p)?;
        slot.state.steps += 1;
        let (update, clip) = self.update(slot.gradient, slot.state)?;
        let step = self.step_size(slot)?;
        match slot.state.tensors.get("m") {
            Some(m) => momentum_step(p, &update, m, self.beta1, (1.0 - self.beta1) * clip, step, slot.keep()),
            None => decay_then_step(p, &update, step * clip, slot.keep()),
        }
    }
}

/// Lets the rows' and columns' means take the gradient, and returns √(R / mean R) and √C, whose products are √V. `least` is a
/// floor of mean R.
pub(super) fn factored_roots(
    gradient: &Tensor,
    state: &State,
    beta2: f64,
    added: f64,
    least: f64,
) -> Result<(Tensor, Tensor)> {
    let (rows, columns) = mean_squares(gradient)?;
    let (r, c) = (state.get("row")?, state.get("column")?);
    blend(r, &(rows + added)?, beta2, 1.0 - beta2)?;
    blend(c, &(columns + added)?, beta2, 1.0 - beta2)?;
    let mean = r.mean_all()?.maximum(least)?;
    let zero = mean.eq(0.0)?;
    // Of all zeros the mean is zero too, and what is divided by it is zero.
    let mean = zero.where_cond(&mean.ones_like()?, &mean)?;
    Ok((r.broadcast_div(&mean)?.sqrt()?, c.sqrt()?))
}

impl Optimizer for AdaFactor {
    fn name(&self) -> &'static str {
        "adafactor"
    }

    fn step(&self, slots: &mut [Slot]) -> Result<()> {
        each(slots, |slot| self.step_one(slot))
    }

    fn state(&self, shape: &[usize]) -> Vec<(&'static str, Vec<usize>)> {
        self.moments(shape)
    }
}
