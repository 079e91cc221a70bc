//! Optimisers: one file each, one interface, state as named tensors.
//!
//! An [`Optimizer`] is a pure rule over (parameters, gradients, state, learning rate and decay of this step). What
//! belongs to a run stands beside it: the table `[optim]` in [`config`], parameter groups in [`groups`], the learning
//! rate over time in [`schedule`], clipping here, the decision to leave a step out in [`skip`].
//!
//! The rules are written once. Their passes over memory run as kernels for float32 on the CPU and as tensor
//! operations for everything else (`arith`), float64 included; eigendecompositions and QR run on the CPU (`linalg`).

pub mod adafactor;
pub mod adamw;
mod arith;
pub mod config;
pub mod eigenbasis;
pub mod groups;
mod linalg;
pub mod muon;
pub mod rotated_adafactor;
pub mod schedule;
pub mod sgd;
pub mod shampoo;
pub mod skip;
pub mod soap;
#[cfg(test)]
mod tests;

pub use adafactor::AdaFactor;
pub use adamw::AdamW;
pub use config::{OptimConfig, OptimizerName, Rule};
pub use eigenbasis::Eigenbasis;
pub use groups::Groups;
pub use muon::Muon;
pub use rotated_adafactor::RotatedAdaFactor;
pub use schedule::{Schedule, ScheduleKind};
pub use sgd::Sgd;
pub use shampoo::Shampoo;
pub use soap::Soap;

use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// The state of one parameter: named tensors and the number of steps taken.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Steps n that entered the bias correction.
    pub steps: u64,
    /// Moments, factors, bases. Empty before the first call.
    pub tensors: BTreeMap<String, Tensor>,
}

impl State {
    fn get(&self, name: &str) -> Result<&Tensor> {
        match self.tensors.get(name) {
            Some(tensor) => Ok(tensor),
            None => candle_core::bail!("the optimiser's state has no tensor \"{name}\""),
        }
    }

    /// Fills in zeros for what is missing.
    fn begin(&mut self, tensors: &[(&'static str, Vec<usize>)], like: &Tensor) -> Result<()> {
        for (name, shape) in tensors {
            if !self.tensors.contains_key(*name) {
                let zeros = Tensor::zeros(shape.as_slice(), like.dtype(), like.device())?;
                self.tensors.insert((*name).into(), zeros);
            }
        }
        Ok(())
    }
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
    /// Weight decay of this parameter.
    pub weight_decay: f64,
    /// Steps by which periodic work on this parameter is shifted, so that it does not fall due everywhere at once.
    pub phase: u64,
}

impl Slot<'_> {
    /// 1 - lr · wd, what decoupled decay leaves of a parameter.
    fn keep(&self) -> f64 {
        1.0 - self.lr * self.weight_decay
    }
}

/// Work that a rule does on a parameter every so many steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Periodic {
    /// Steps between.
    pub every: u64,
    /// Multiplications, roughly.
    pub cost: f64,
}

impl Periodic {
    /// Decompositions of square factors of these sizes, every so many steps; none if there are no factors or 0 steps.
    fn of(sides: [Option<usize>; 2], every: u64) -> Option<Self> {
        let cost: f64 = sides.into_iter().flatten().map(|d| (d as f64).powi(3)).sum();
        (every > 0 && cost > 0.0).then_some(Self { every, cost })
    }
}

/// A rule that turns gradients into steps.
pub trait Optimizer: Send + Sync {
    /// The rule's name.
    fn name(&self) -> &'static str;

    /// Takes one step on every slot. What happens to a slot depends on nothing but that slot.
    ///
    /// # Errors
    /// If a tensor is not contiguous, or a decomposition fails.
    fn step(&self, slots: &mut [Slot]) -> Result<()>;

    /// Names and shapes of the state's tensors for a parameter of this shape: for the memory table of a dry run, and to
    /// check a checkpoint. Those that come into being later than at the first call are included.
    fn state(&self, shape: &[usize]) -> Vec<(&'static str, Vec<usize>)>;

    /// Work that could be spread over steps, if this rule is set to spread it.
    fn periodic(&self, _shape: &[usize]) -> Option<Periodic> {
        None
    }
}

/// Runs a rule's step on every slot, side by side: small tensors do not wait for each other.
fn each(slots: &mut [Slot], step: impl Fn(&mut Slot) -> Result<()> + Send + Sync) -> Result<()> {
    slots.par_iter_mut().try_for_each(step)
}

/// A side of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Rows.
    Left,
    /// Columns.
    Right,
}

/// √ Σ g² over all gradients; NaN or infinite if any entry is.
///
/// # Errors
/// If a gradient is not contiguous.
pub fn global_norm(gradients: &[Tensor]) -> Result<f64> {
    // Each tensor's sum first and these in order, so that the number of threads changes nothing.
    let sums = gradients.par_iter().map(arith::sum_squares).collect::<Result<Vec<f64>>>()?;
    Ok(sums.iter().sum::<f64>().sqrt())
}

/// Scales all gradients by min(1, limit / (norm + 1e-6)), as PyTorch's `clip_grad_norm_` does. A limit of 0 does nothing.
///
/// # Errors
/// If a gradient is not contiguous.
pub fn clip(gradients: &[Tensor], norm: f64, limit: f64) -> Result<()> {
    let factor = limit / (norm + 1e-6);
    if limit > 0.0 && factor < 1.0 {
        gradients.par_iter().try_for_each(|g| arith::scale(g, factor))?;
    }
    Ok(())
}

/// Takes every entry of the gradients into [-limit, limit], as PyTorch's `clip_grad_value_` does. A limit of 0 does
/// nothing.
///
/// # Errors
/// If a gradient is not contiguous.
pub fn clip_value(gradients: &[Tensor], limit: f64) -> Result<()> {
    match limit > 0.0 {
        true => gradients.par_iter().try_for_each(|g| arith::clamp(g, limit)),
        false => Ok(()),
    }
}

/// ‖p - before‖ / ‖before‖: how far a step moved the parameters, over their size. `None` if they were all zero.
///
/// # Errors
/// If a tensor is not contiguous.
pub fn update_ratio<'a>(
    parameters: impl IntoIterator<Item = &'a Tensor>,
    before: &[Tensor],
) -> Result<Option<f64>> {
    let (mut moved, mut size) = (0.0, 0.0);
    for (p, old) in parameters.into_iter().zip(before) {
        moved += arith::sum_squared_differences(p, old)?;
        size += arith::sum_squares(old)?;
    }
    Ok((size > 0.0).then(|| (moved / size).sqrt()))
}

/// The largest over the smallest eigenvalue of the parameter's worse factor, as last estimated; the smallest counts as no
/// less than rounding, 2⁻²³ of the largest. `None` for rules without factors, and before there is an estimate.
///
/// # Errors
/// If the state is not as the rule left it.
pub fn condition(state: &State) -> Result<Option<f64>> {
    let mut worst: Option<f64> = None;
    for name in eigenbasis::VALUES {
        let Some(values) = state.tensors.get(name) else { continue };
        let values: Vec<f64> = values.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec1()?;
        let most = values.iter().copied().fold(0.0, f64::max);
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        if most > 0.0 {
            let ratio = most / least.max(most * f64::from(f32::EPSILON));
            worst = Some(worst.map_or(ratio, |w| w.max(ratio)));
        }
    }
    Ok(worst)
}

/// The worst [`condition`] of all parameters.
///
/// # Errors
/// As there.
pub fn worst_condition(states: &[State]) -> Result<Option<f64>> {
    let each = states.iter().map(condition).collect::<Result<Vec<_>>>()?;
    Ok(each.into_iter().flatten().reduce(f64::max))
}
