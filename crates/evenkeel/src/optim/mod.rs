//! Optimisers: one file each, one interface, state as named tensors.
//!
//! An [`Optimizer`] is a pure rule over (parameters, gradients, state, learning rate and decay of this step);
//! what belongs to a run — parameter groups, schedule, clipping — stands in [`groups`], [`schedule`] and here.

pub mod adamw;
pub mod groups;
pub mod schedule;
pub mod soap;

pub use adamw::AdamW;
pub use schedule::{Schedule, ScheduleKind};
pub use soap::Soap;

use crate::slices::{slice, with_slice_mut};
use candle_core::{Result, Tensor};
use evenkeel_kernels::{optimizer::sum_squares, xent::scale_in_place};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The state of one parameter: named tensors and the number of steps taken.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Steps n that entered the bias correction.
    pub steps: u64,
    /// Moments, factors, bases. Empty before the first call.
    pub tensors: BTreeMap<String, Tensor>,
}

/// One parameter's share of a step.
pub struct Slot<'a> {
    /// Changed in place.
    pub parameter: &'a Tensor,
    /// Of the same shape.
    pub gradient: &'a Tensor,
    /// Changed in place.
    pub state: &'a mut State,
    /// Learning rate of this step and parameter.
    pub lr: f64,
    /// Decoupled weight decay of this parameter.
    pub weight_decay: f64,
}

/// A rule that turns gradients into steps.
pub trait Optimizer: Send + Sync {
    /// The name used in configurations.
    fn name(&self) -> &'static str;

    /// Takes one step on every slot.
    ///
    /// # Errors
    /// If a tensor is not contiguous float32 on the CPU, or a decomposition fails.
    fn step(&self, slots: &mut [Slot]) -> Result<()>;

    /// Scalars of state kept for a parameter of this shape, for the memory table of a dry run.
    fn state_elements(&self, shape: &[usize]) -> usize;
}

/// Which optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerName {
    /// Adam with decoupled weight decay.
    Adamw,
    /// Adam in Shampoo's eigenbasis.
    Soap,
}

/// The table `[optim]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptimConfig {
    /// Which optimiser.
    pub name: OptimizerName,
    /// Learning rate after the warm-up.
    pub lr_peak: f64,
    /// Shape of the schedule after the warm-up.
    pub schedule: ScheduleKind,
    /// Share of all steps that warm up, if `warmup_steps` is 0.
    pub warmup_fraction: f64,
    /// Steps that warm up; 0 means use the fraction.
    pub warmup_steps: u64,
    /// Learning rate at the end over its peak.
    pub final_fraction: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of matrices and embeddings.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 turns clipping off.
    pub clip_norm: f64,
    /// SOAP: steps between refreshes of the bases; 0 means never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precondition_frequency: Option<u64>,
    /// SOAP: a side longer than this keeps the identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_precond_dim: Option<usize>,
    /// SOAP: decay of the factors L and R; negative means β2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shampoo_beta: Option<f64>,
    /// Exceptions by parameter name.
    #[serde(default)]
    pub group: Vec<groups::GroupConfig>,
}

impl OptimConfig {
    /// The defaults of an optimiser.
    pub fn defaults(name: OptimizerName) -> Self {
        let soap = name == OptimizerName::Soap;
        Self {
            name,
            lr_peak: if soap { 3e-3 } else { 1e-3 },
            schedule: ScheduleKind::Linear,
            warmup_fraction: 0.05,
            warmup_steps: 0,
            final_fraction: 0.0,
            beta1: if soap { 0.95 } else { 0.9 },
            beta2: if soap { 0.95 } else { 0.999 },
            eps: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
            precondition_frequency: soap.then_some(10),
            // 2048 leaves the vocabulary side of embedding and head alone, as the published reference's
            // default of 10000 does for vocabularies above it.
            max_precond_dim: soap.then_some(2048),
            shampoo_beta: soap.then_some(-1.0),
            group: Vec::new(),
        }
    }

    /// The optimiser that this describes.
    pub fn build(&self) -> Box<dyn Optimizer> {
        match self.name {
            OptimizerName::Adamw => Box::new(AdamW { beta1: self.beta1, beta2: self.beta2, eps: self.eps }),
            OptimizerName::Soap => Box::new(Soap {
                beta1: self.beta1,
                beta2: self.beta2,
                shampoo_beta: self.shampoo_beta.filter(|b| *b >= 0.0).unwrap_or(self.beta2),
                eps: self.eps,
                precondition_frequency: self.precondition_frequency.unwrap_or(10),
                max_precond_dim: self.max_precond_dim.unwrap_or(2048),
            }),
        }
    }

    /// The schedule over a run of `steps`.
    pub fn schedule(&self, steps: u64) -> Schedule {
        Schedule {
            kind: self.schedule,
            peak: self.lr_peak,
            warmup: match self.warmup_steps {
                0 => (self.warmup_fraction * steps as f64).ceil() as u64,
                n => n,
            },
            steps,
            final_fraction: self.final_fraction,
        }
    }
}

/// √ Σ g² over all gradients; NaN or infinite if any entry is.
///
/// # Errors
/// If a gradient is not contiguous float32 on the CPU.
pub fn global_norm(gradients: &[Tensor]) -> Result<f64> {
    let mut sum = 0.0;
    for g in gradients {
        sum += sum_squares(&slice(g)?);
    }
    Ok(sum.sqrt())
}

/// Scales all gradients by min(1, limit / (norm + 1e-6)), as PyTorch's `clip_grad_norm_` does.
///
/// # Errors
/// If a gradient is not contiguous float32 on the CPU.
pub fn clip(gradients: &[Tensor], norm: f64, limit: f64) -> Result<()> {
    let factor = limit / (norm + 1e-6);
    if limit > 0.0 && factor < 1.0 {
        for g in gradients {
            with_slice_mut(g, |g| {
                scale_in_place(g, factor as f32);
                Ok(())
            })?;
        }
    }
    Ok(())
}
