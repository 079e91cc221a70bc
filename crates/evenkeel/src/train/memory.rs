//! Memory: what a run will need, for `--dry-run`, and what the process has taken.

use crate::config::RunConfig;
use crate::error::Result;
use crate::model::Transformer;
use crate::model::config::QkNorm;
use serde::Serialize;

/// Bytes by part, float32, and what the run amounts to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MemoryPlan {
    /// Scalars in the parameters.
    pub parameters: u64,
    /// Bytes of parameters.
    pub weights_bytes: u64,
    /// Bytes of their gradients.
    pub gradients_bytes: u64,
    /// Bytes of optimiser state.
    pub optimizer_bytes: u64,
    /// Bytes of activations kept for the backward of one (micro-)batch; an estimate from the list of saved tensors.
    pub activations_bytes: u64,
    /// Optimiser steps.
    pub steps: u64,
    /// Training tokens.
    pub tokens: u64,
}

/// The plan of a run whose vocabulary is known.
///
/// # Errors
/// If the model cannot be built.
pub fn plan_memory(config: &RunConfig) -> Result<MemoryPlan> {
    let c = &config.model;
    let shapes = Transformer::shapes(c.clone())?;
    let optimizer = config.optim.build();
    let elements = |shape: &[usize]| shape.iter().product::<usize>() as u64;
    let parameters: u64 = shapes.iter().map(|(_, s)| elements(s)).sum();
    let state: u64 = shapes.iter().map(|(_, s)| optimizer.state_elements(s) as u64).sum();
    let sequences = match config.train.micro_batch_sequences {
        0 => config.train.batch_sequences,
        n => n,
    };
    let tokens = (sequences * c.context) as u64;
    // Kept per block and token: stream twice, norm outputs twice, q, k, v, context, attention and MLP outputs,
    // and the hidden layer; then embedding, final norm, their gradient, and a chunk of logits.
    let norms = if c.norm == crate::model::config::Norm::None { 0 } else { 2 };
    let qk = if c.qk_norm == QkNorm::None { 0 } else { 2 };
    let per_block = (8 + norms) * c.width + qk * c.heads + c.hidden();
    let per_token = c.depth * per_block + 4 * c.width;
    let logits = 256 * c.vocab as u64 + elements(&[c.vocab, c.width]);
    Ok(MemoryPlan {
        parameters,
        weights_bytes: 4 * parameters,
        gradients_bytes: 4 * parameters,
        optimizer_bytes: 4 * state,
        activations_bytes: 4 * (tokens * per_token as u64 + logits),
        steps: config.train.steps,
        tokens: config.train.steps * (config.train.batch_sequences * c.context) as u64,
    })
}

/// Largest resident set of this process so far, in bytes, where the system tells (Linux).
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}
