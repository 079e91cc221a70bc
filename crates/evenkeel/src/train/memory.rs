//! Memory: what a run will need, for `--dry-run`, and what the process has taken.

use super::prepare::groups_of;
use crate::config::RunConfig;
use crate::error::Result;
use crate::model::Transformer;
use crate::model::config::{AttentionMatrix, Gate, ModelConfig, Nonlinearity, Norm, ValueInit};
use crate::ops::Activation;
use crate::tape::Recompute;
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
    let groups = groups_of(config)?;
    let elements = |shape: &[usize]| shape.iter().product::<usize>() as u64;
    let parameters: u64 = shapes.iter().map(|(_, s)| elements(s)).sum();
    let sequences = match config.train.micro_batch_sequences {
        0 => config.train.batch_sequences,
        n => n,
    };
    let tokens = (sequences * c.context) as u64;
    let (inside_attention, inside_mlp) = kept_per_token(c);
    let blocks = match config.train.recompute {
        Recompute::None => c.depth * (2 * c.width + inside_attention + inside_mlp),
        // What is computed again is kept while one block's backward runs.
        Recompute::Mlp => c.depth * (2 * c.width + inside_attention) + inside_mlp,
        Recompute::Block => c.depth * c.width + c.width + inside_attention + inside_mlp,
    };
    // Embedding, final norm, the loss's gradient and that of the stream; a chunk of logits and the head's gradient.
    let per_token = blocks + 4 * c.width;
    let logits = (512.min(tokens) + c.width as u64) * c.vocab as u64;
    Ok(MemoryPlan {
        parameters,
        weights_bytes: 4 * parameters,
        gradients_bytes: 4 * parameters,
        optimizer_bytes: 4 * groups.state_elements(),
        activations_bytes: 4 * (tokens * per_token as u64 + logits),
        steps: config.train.steps,
        tokens: config.train.steps * (config.train.batch_sequences * c.context) as u64,
    })
}

/// Scalars kept for the backward per token inside an attention branch and an MLP branch, the stream not counted.
fn kept_per_token(c: &ModelConfig) -> (usize, usize) {
    let d = c.width;
    let when = |condition: bool, scalars: usize| if condition { scalars } else { 0 };
    let (attn_norm, mlp_norm) = (when(c.norm != Norm::None, d), when(c.mlp_norm() != Norm::None, d));
    // A learned β needs what it multiplies for its gradient; with a fixed one the branch joins the stream at once.
    // Dropout keeps what goes in and what comes out.
    let branch = when(c.beta_trainable, d) + when(c.dropout_residual > 0.0, 2 * d);
    let alpha = when(c.alpha != 1.0 || c.alpha_trainable, d);
    // ReLU's gradient is told from its output; the others need their input too, and a gated unit both of its inputs.
    let hidden = c.hidden()
        * match c.activation {
            Nonlinearity::Gated(_) => 3,
            Nonlinearity::Plain(Activation::Relu | Activation::LeakyRelu(_)) => 1,
            Nonlinearity::Plain(_) => 2,
        };
    // q, their weighted values, k and v, and log Σ exp of each head.
    let kernel = 2 * c.d_attention() + 2 * c.kv_heads() * c.d_head() + c.heads;
    // Composed: the context before the gate or the other terms, and with dropout a handful of T × T matrices per head.
    let gate = when(c.gate != Gate::None, d + c.heads);
    let shaped = when(c.attention_matrix == AttentionMatrix::Shaped, 3 * d);
    let identity = when(c.value_init == ValueInit::Identity, 4 * d);
    let dropped = when(c.dropout_attention > 0.0, 6 * c.heads * c.context);
    (attn_norm + kernel + gate + shaped + identity + dropped + branch, mlp_norm + alpha + hidden + branch)
}

/// Largest resident set of this process so far, in bytes, where the system tells (Linux).
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}
