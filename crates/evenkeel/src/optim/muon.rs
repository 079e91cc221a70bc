//! Muon (Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024): orthogonalised momentum.
//!
//! For a matrix G:
//!
//! ```text
//! M ← β1 M + (1-β1) G         U = (1-β1) G + β1 M with `nesterov`, else M
//! O = `newton_schulz_steps` (five) Newton-Schulz steps on U / max(‖U‖, ε), which takes its singular values to about 1
//! p ← p (1 - lr·wd) - lr · scale · O
//! ```
//!
//! `scale = "original"` is max(1, rows / columns)^½; `"match_rms_adamw"` is 0.2 √max(rows, columns), which gives updates the
//! RMS of Adam's, so that its learning rates carry over (Liu et al., arXiv 2502.16982). Vectors, and the parameters that
//! `adamw_match` names (embeddings and head), take AdamW with `adamw_beta1`, `adamw_beta2`, `adamw_eps` and the
//! learning rate times `adamw_lr_factor`.
//!
//! Defaults: β1 = 0.95, Nesterov, scale "original", learning rate 0.02, for AdamW 3e-4, β = (0.9, 0.95), ε = 1e-10: those of
//! the author's implementation. State: one number for each of a matrix, two otherwise.
//!
//! ```
//! use evenkeel::optim::{Muon, Optimizer, Slot, State};
//! use candle_core::{Device, Tensor};
//! # fn main() -> candle_core::Result<()> {
//! let p = Tensor::new(&[[1.0f32, 2.0], [3.0, 4.0]], &Device::Cpu)?;
//! let g = Tensor::new(&[[0.5f32, 0.0], [0.0, 2.0]], &Device::Cpu)?;
//! let mut state = State::default();
//! let slot = Slot { parameter: &p, gradient: &g, state: &mut state, lr: 0.1, weight_decay: 0.0, phase: 0 };
//! Muon::default().step(&mut [slot])?;
//! let moved = p.to_vec2::<f32>()?; // both directions by about the same, though one gradient is four times the other
//! assert!((1.0 - moved[0][0]) > 0.07 && (4.0 - moved[1][1]) < 0.12);
//! # Ok(())
//! # }
//! ```

use super::arith::{blend, decay_then_step};
use super::linalg::newton_schulz;
use super::{AdamW, Optimizer, Slot, each};
use candle_core::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How long an update is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MuonScale {
    /// max(1, rows / columns)^½.
    Original,
    /// 0.2 √max(rows, columns).
    MatchRmsAdamw,
}

impl MuonScale {
    fn of(self, rows: usize, columns: usize) -> f64 {
        let (rows, columns) = (rows as f64, columns as f64);
        match self {
            MuonScale::Original => (rows / columns).max(1.0).sqrt(),
            MuonScale::MatchRmsAdamw => 0.2 * rows.max(columns).sqrt(),
        }
    }
}

/// Muon's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Muon {
    /// Decay of the momentum.
    pub beta1: f64,
    /// Whether the momentum looks ahead.
    pub nesterov: bool,
    /// Length of an update.
    pub scale: MuonScale,
    /// Least norm that a momentum is divided by.
    pub eps: f64,
    /// Newton-Schulz steps.
    pub newton_schulz_steps: usize,
    /// Globs over the names of matrices that take AdamW.
    pub adamw_match: Vec<String>,
    /// AdamW's learning rate over Muon's.
    pub adamw_lr_factor: f64,
    /// AdamW's β1.
    pub adamw_beta1: f64,
    /// AdamW's β2.
    pub adamw_beta2: f64,
    /// AdamW's ε.
    pub adamw_eps: f64,
}

impl Default for Muon {
    fn default() -> Self {
        Self {
            beta1: 0.95,
            nesterov: true,
            scale: MuonScale::Original,
            eps: 1e-7,
            newton_schulz_steps: 5,
            adamw_match: ["embed.token.*", "embed.position.*", "head.weight"].map(String::from).to_vec(),
            adamw_lr_factor: 0.015,
            adamw_beta1: 0.9,
            adamw_beta2: 0.95,
            adamw_eps: 1e-10,
        }
    }
}

/// Muon's AdamW, for what `adamw_match` names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Others {
    rule: AdamW,
    lr_factor: f64,
}

impl Muon {
    /// The rule for parameters that are no hidden matrices.
    pub(super) fn others(&self) -> Others {
        let rule = AdamW { beta1: self.adamw_beta1, beta2: self.adamw_beta2, eps: self.adamw_eps };
        Others { rule, lr_factor: self.adamw_lr_factor }
    }

    fn step_one(&self, slot: &mut Slot) -> Result<()> {
        let p = slot.parameter;
        let Ok((rows, columns)) = p.dims2() else { return self.others().step_one(slot) };
        slot.state.begin(&self.state(p.dims()), p)?;
        slot.state.steps += 1;
        let m = slot.state.get("m")?;
        blend(m, slot.gradient, self.beta1, 1.0 - self.beta1)?;
        let direction = if self.nesterov {
            let ahead = m.copy()?;
            blend(&ahead, slot.gradient, self.beta1, 1.0 - self.beta1)?;
            ahead
        } else {
            m.clone()
        };
        let orthogonal = newton_schulz(&direction, self.newton_schulz_steps, self.eps)?;
        decay_then_step(p, &orthogonal, slot.lr * self.scale.of(rows, columns), slot.keep())
    }
}

impl Optimizer for Muon {
    fn name(&self) -> &'static str {
        "muon"
    }

    fn step(&self, slots: &mut [Slot]) -> Result<()> {
        // One after the other: each is products, which take all threads.
        slots.iter_mut().try_for_each(|slot| self.step_one(slot))
    }

    fn state(&self, shape: &[usize]) -> Vec<(&'static str, Vec<usize>)> {
        match shape.len() {
            2 => vec![("m", shape.to_vec())],
            _ => self.others().state(shape),
        }
    }
}

impl Others {
    fn step_one(&self, slot: &mut Slot) -> Result<()> {
        let lr = slot.lr;
        slot.lr = lr * self.lr_factor;
        let done = self.rule.step_one(slot);
        slot.lr = lr;
        done
    }
}

impl Optimizer for Others {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn step(&self, slots: &mut [Slot]) -> Result<()> {
        each(slots, |slot| self.step_one(slot))
    }

    fn state(&self, shape: &[usize]) -> Vec<(&'static str, Vec<usize>)> {
        self.rule.state(shape)
    }
}
