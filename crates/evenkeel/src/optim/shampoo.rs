//! Shampoo (Gupta et al., arXiv 1802.09568; with exponential averages and grafting, Anil et al., arXiv 2002.09018).
//!
//! For a matrix G, t = 1, 2, ...:
//!
//! ```text
//! M ← β1 M + (1-β1) G         V ← β2 V + (1-β2) G²
//! L ← β L + (1-β) G Gᵀ        R ← β R + (1-β) Gᵀ G
//! U = (L + ε_L I)^-p M (R + ε_R I)^-p,  ε = `ridge` · the largest eigenvalue
//! graft: U ← U ‖A‖ / ‖U‖ with Adam's update A = (M / (1-β1ᵗ)) / (√(V / (1-β2ᵗ)) + eps)
//! p ← p (1 - lr·wd) - lr U
//! ```
//!
//! The roots are made at the first step and at every `precondition_frequency`-th, after L and R took the gradient. A side
//! longer than `max_precond_dim` keeps the identity; what has no factor at all (vectors) is AdamW. Eigenvalues below zero
//! are rounding and count as zero; no direction is raised by more than 1e15 above another, and with `ridge` = 0 one whose
//! eigenvalue is zero is left out of the update.
//!
//! Defaults: p = `exponent` = 1/4 (1/2 is the other published choice), β = (0.95, 0.95), `shampoo_beta` = β2, grafting on.
//! State of an m × n matrix: 2mn + 2m² + 2n² + m + n numbers (one mn less without grafting).
//!
//! ```
//! use evenkeel::optim::{Optimizer, Shampoo, Slot, State};
//! use candle_core::{Device, Tensor};
//! # fn main() -> candle_core::Result<()> {
//! let p = Tensor::new(&[[1.0f32, 2.0], [3.0, 4.0]], &Device::Cpu)?;
//! let g = Tensor::new(&[[0.5f32, -1.0], [2.0, 0.1]], &Device::Cpu)?;
//! let mut state = State::default();
//! let slot = Slot { parameter: &p, gradient: &g, state: &mut state, lr: 0.1, weight_decay: 0.0, phase: 0 };
//! Shampoo::default().step(&mut [slot])?;
//! assert!(p.to_vec2::<f32>()?[0][1] > 2.0);
//! # Ok(())
//! # }
//! ```

use super::arith::{Factor, adam_direction, blend, blend_outer, decay_then_step, matmul, sum_squares};
use super::eigenbasis::VALUES;
use super::linalg::{Root, inverse_root};
use super::{AdamW, Optimizer, Periodic, Side, Slot, State};
use candle_core::Result;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Shampoo's settings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Shampoo {
    /// Decay of the momentum.
    pub beta1: f64,
    /// Decay of the second moment that grafting uses.
    pub beta2: f64,
    /// Decay of L and R; negative means β2.
    pub shampoo_beta: f64,
    /// Added to the corrected root of the second moment that grafting uses.
    pub eps: f64,
    /// p: 0.25 or 0.5, or any number between 0 and 0.5.
    pub exponent: f64,
    /// ε over the largest eigenvalue.
    pub ridge: f64,
    /// Whether updates have the norm of Adam's.
    pub graft: bool,
    /// Steps between roots; 0 means that the first ones are kept.
    pub precondition_frequency: u64,
    /// A side longer than this keeps the identity. A run's default is 2048.
    pub max_precond_dim: usize,
    /// Roots of different parameters fall on different steps, evenly, so that no single step is slow.
    pub spread_refresh: bool,
}

impl Default for Shampoo {
    fn default() -> Self {
        Self {
            beta1: 0.95,
            beta2: 0.95,
            shampoo_beta: -1.0,
            eps: 1e-8,
            exponent: 0.25,
            ridge: 1e-12,
            graft: true,
            precondition_frequency: 10,
            max_precond_dim: 10_000,
            spread_refresh: false,
        }
    }
}

/// Side, factor, root, eigenvalues.
const SIDES: [(Side, &str, &str, &str); 2] =
    [(Side::Left, "gg_left", "root_left", VALUES[0]), (Side::Right, "gg_right", "root_right", VALUES[1])];

impl Shampoo {
    fn adam(&self) -> AdamW {
        AdamW { beta1: self.beta1, beta2: self.beta2, eps: self.eps }
    }

    /// The length of each side that has a factor.
    fn sides(&self, shape: &[usize]) -> [Option<usize>; 2] {
        let short = |d: usize| Some(d).filter(|&d| d <= self.max_precond_dim);
        match *shape {
            [rows, columns] => [short(rows), short(columns)],
            _ => [None, None],
        }
    }

    /// Moments and factors: what a step adds the gradient to.
    fn sums(&self, shape: &[usize]) -> Vec<(&'static str, Vec<usize>)> {
        let mut all = vec![("m", shape.to_vec())];
        if self.graft || self.sides(shape) == [None, None] {
            all.push(("v", shape.to_vec()));
        }
        for (names, d) in SIDES.iter().zip(self.sides(shape)) {
            all.extend(d.map(|d| (names.1, vec![d, d])));
        }
        all
    }

    /// Lets factors take the gradient.
    fn take_gradient(&self, slot: &mut Slot) -> Result<()> {
        let p = slot.parameter;
        slot.state.begin(&self.sums(p.dims()), p)?;
        slot.state.steps += 1;
        let beta = if self.shampoo_beta < 0.0 { self.beta2 } else { self.shampoo_beta };
        for (side, factor, ..) in SIDES {
            if let Some(factor) = slot.state.tensors.get(factor) {
                blend_outer(factor, slot.gradient, side, beta, 1.0 - beta)?;
            }
        }
        Ok(())
    }

    /// The inverse roots whose turn it is, a task each.
    fn renew_roots(&self, slots: &mut [&mut Slot]) -> Result<()> {
        let every = self.precondition_frequency;
        let turn = |state: &State, phase: u64| {
            state.steps == 1 || (every > 0 && (state.steps + phase).is_multiple_of(every))
        };
        let due: Vec<(usize, usize)> = (0..slots.len())
            .filter(|&i| turn(slots[i].state, slots[i].phase))
            .flat_map(|i| [(i, 0), (i, 1)])
            .collect();
        let states: Vec<&State> = slots.iter().map(|slot| &*slot.state).collect();
        let make = |&(i, side): &(usize, usize)| {
            let factor = states[i].tensors.get(SIDES[side].1);
            factor.map(|f| inverse_root(f, self.exponent, self.ridge)).transpose()
        };
        let roots = due.par_iter().with_max_len(1).map(make).collect::<Result<Vec<Option<Root>>>>()?;
        drop(states);
        for ((i, side), root) in due.into_iter().zip(roots) {
            if let Some(root) = root {
                slots[i].state.tensors.insert(SIDES[side].2.into(), root.matrix);
                slots[i].state.tensors.insert(SIDES[side].3.into(), root.values);
            }
        }
        Ok(())
    }

    fn move_parameter(&self, slot: &mut Slot) -> Result<()> {
        let state = &*slot.state;
        let m = state.get("m")?;
        let adam = match state.tensors.get("v") {
            Some(v) => Some(adam_direction(slot.gradient, (m, v), self.adam().corrected(state.steps))?),
            None => {
                blend(m, slot.gradient, self.beta1, 1.0 - self.beta1)?;
                None
            }
        };
        let mut update = m.clone();
        if let Some(root) = state.tensors.get("root_left") {
            update = matmul(Factor::As(root), Factor::As(&update))?;
        }
        if let Some(root) = state.tensors.get("root_right") {
            update = matmul(Factor::As(&update), Factor::As(root))?;
        }
        let mut step = slot.lr;
        if let Some(adam) = adam {
            let corrected = 1.0 / (1.0 - self.beta1.powf(state.steps as f64));
            let (own, adams) = (sum_squares(&update)?.sqrt(), corrected * sum_squares(&adam)?.sqrt());
            step *= if own > 0.0 { adams / own } else { 0.0 };
        }
        decay_then_step(slot.parameter, &update, step, slot.keep())
    }
}

impl Optimizer for Shampoo {
    fn name(&self) -> &'static str {
        "shampoo"
    }

    fn step(&self, slots: &mut [Slot]) -> Result<()> {
        let (mut factored, mut plain): (Vec<&mut Slot>, Vec<&mut Slot>) =
            slots.iter_mut().partition(|slot| self.sides(slot.parameter.dims()) != [None, None]);
        plain.par_iter_mut().try_for_each(|slot| self.adam().step_one(slot))?;
        for slot in &mut factored {
            self.take_gradient(slot)?;
        }
        self.renew_roots(&mut factored)?;
        for slot in &mut factored {
            self.move_parameter(slot)?;
        }
        Ok(())
    }

    fn state(&self, shape: &[usize]) -> Vec<(&'static str, Vec<usize>)> {
        let mut all = self.sums(shape);
        for (names, d) in SIDES.iter().zip(self.sides(shape)) {
            all.extend(d.into_iter().flat_map(|d| [(names.2, vec![d, d]), (names.3, vec![d])]));
        }
        all
    }

    fn periodic(&self, shape: &[usize]) -> Option<Periodic> {
        Periodic::of(self.sides(shape), self.precondition_frequency).filter(|_| self.spread_refresh)
    }
}
