//! What optimiser steps do to the parameters: figures for metrics.jsonl, and optim.jsonl with a line per parameter.
//!
//! On a step that a line will tell of, the parameters are copied before it and compared after it: by then the activations are
//! gone, so this does not raise the peak of memory. Nothing here changes what is trained.

use super::log::LineLog;
use super::{RunDir, due};
use crate::config::RunConfig;
use crate::error::Result;
use crate::model::Transformer;
use crate::optim::{self, Groups, State};
use crate::tape::Gradients;
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// A line of optim.jsonl. What is not finite or undefined is null.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptimLine {
    /// Steps finished, the one that is described included.
    pub step: u64,
    /// The parameter's name.
    pub parameter: String,
    /// The optimiser that it belongs to.
    pub optimizer: String,
    /// RMS of the parameter before the step.
    pub weight_rms: Option<f64>,
    /// RMS of its gradient, clipped.
    pub gradient_rms: Option<f64>,
    /// RMS of what the step added, decay included.
    pub update_rms: Option<f64>,
    /// `update_rms` over `weight_rms`.
    pub update_ratio: Option<f64>,
    /// Largest over smallest eigenvalue of its worse factor, as estimated at the last refresh.
    pub condition: Option<f64>,
}

/// The same over all parameters.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UpdateSummary {
    pub(super) ratio: Option<f64>,
    pub(super) condition: Option<f64>,
}

/// Watches the optimiser.
pub(super) struct UpdateTracker {
    log: Option<LineLog>,
    every: u64,
    steps: u64,
    spent: Duration,
}

fn finite(v: f64) -> Option<f64> {
    Some(v).filter(|v| v.is_finite())
}

fn rms(x: &Tensor) -> Result<f64> {
    Ok(optim::global_norm(std::slice::from_ref(x))? / (x.elem_count().max(1) as f64).sqrt())
}

impl UpdateTracker {
    pub(super) fn open(config: &RunConfig, dir: &RunDir, step: u64) -> Result<Self> {
        let every = config.telemetry.optim_every_steps;
        let log = LineLog::open_if(every > 0, &dir.optim(), step)?;
        Ok(Self { log, every, steps: config.train.steps, spent: Duration::ZERO })
    }

    /// Seconds in the optimiser since this was last asked.
    pub(super) fn take_seconds(&mut self) -> f64 {
        std::mem::take(&mut self.spent).as_secs_f64()
    }

    /// Adds to the time in the optimiser.
    pub(super) fn spend(&mut self, time: Duration) {
        self.spent += time;
    }

    /// Runs `update`, the work that finishes step `step`, and measures it: time always, the rest if `logged` or a line of
    /// optim.jsonl is due.
    pub(super) fn watch(
        &mut self,
        step: u64,
        logged: bool,
        (model, gradients, groups): (&Transformer, &Gradients, &Groups),
        states: &mut [State],
        update: impl FnOnce(&mut [State]) -> Result<()>,
    ) -> Result<UpdateSummary> {
        let lines = self.log.is_some() && due(step, self.every, self.steps);
        let parameters = || model.parameters().iter().map(|p| &p.tensor);
        let before = if logged || lines {
            parameters().map(Tensor::copy).collect::<candle_core::Result<Vec<_>>>()?
        } else {
            Vec::new()
        };
        let begun = Instant::now();
        update(states)?;
        self.spent += begun.elapsed();
        if before.is_empty() {
            return Ok(UpdateSummary::default());
        }
        if let Some(log) = self.log.as_mut().filter(|_| lines) {
            for (i, (p, old)) in model.parameters().iter().zip(&before).enumerate() {
                let ratio = optim::update_ratio([&p.tensor], std::slice::from_ref(old))?;
                let weight = rms(old)?;
                let moved = match ratio {
                    Some(ratio) => ratio * weight,
                    None => rms(&p.tensor)?,
                };
                log.append(&OptimLine {
                    step,
                    parameter: p.name.clone(),
                    optimizer: groups.name_of(i).into(),
                    weight_rms: finite(weight),
                    gradient_rms: finite(rms(gradients.get(p.index))?),
                    update_rms: finite(moved),
                    update_ratio: ratio.and_then(finite),
                    condition: optim::condition(&states[i])?,
                })?;
            }
        }
        Ok(UpdateSummary {
            ratio: optim::update_ratio(parameters(), &before)?.and_then(finite),
            condition: optim::worst_condition(states)?,
        })
    }
}
