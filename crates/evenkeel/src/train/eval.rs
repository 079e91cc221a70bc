//! Mean token loss over text, in blocks of the training length.

use crate::data::{Batch, DataError, ValidationBlocks};
use crate::error::Result;
use crate::model::Transformer;
use crate::tap::{NoTap, Tap};
use crate::tape::Tape;
use serde::{Deserialize, Serialize};

/// What an evaluation found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Tokens whose prediction was scored.
    pub tokens: u64,
    /// Mean cross-entropy in nats per token.
    pub loss: f64,
}

impl Evaluation {
    /// exp(loss).
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// Mean loss over `blocks`, `tap` seeing every forward pass (give [`NoTap`] for none).
///
/// # Errors
/// If the blocks cannot be read or do not fit the model.
pub fn evaluate(
    model: &Transformer,
    blocks: ValidationBlocks,
    tap: Option<&mut dyn Tap>,
) -> Result<Evaluation> {
    let mut none = NoTap;
    let tap = tap.unwrap_or(&mut none);
    mean_loss(blocks, |batch| {
        let loss = model.loss(&Tape::off(), tap, &batch.inputs, &batch.targets, batch.sequences)?;
        Ok(loss.tensor().to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()?)
    })
}

/// Mean over the tokens of `batches` of what `loss` gives as the mean of each batch.
///
/// # Errors
/// If a batch cannot be read, or what `loss` returns.
pub fn mean_loss(
    batches: impl Iterator<Item = std::result::Result<Batch, DataError>>,
    mut loss: impl FnMut(&Batch) -> Result<f64>,
) -> Result<Evaluation> {
    let (mut sum, mut tokens) = (0.0, 0u64);
    for batch in batches {
        let batch = batch?;
        sum += loss(&batch)? * batch.tokens() as f64;
        tokens += batch.tokens() as u64;
    }
    Ok(Evaluation { tokens, loss: sum / tokens.max(1) as f64 })
}
