//! Mean loss over text, in blocks of the training length, or over images, whose classes it also counts.

use super::InOrder;
use crate::error::Result;
use crate::model::{Examples, Input, ModelError, Transformer};
use crate::ops;
use crate::tap::{NoTap, Tap};
use crate::tape::Tape;
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// What an evaluation found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Predictions that were scored: of a next token each, or of an image's class.
    pub tokens: u64,
    /// Mean cross-entropy in nats per prediction.
    pub loss: f64,
    /// Share of the images whose class had the largest logit, between 0 and 1; `None` for text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
}

impl Evaluation {
    /// exp(loss).
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// Loss, and for images accuracy, over `examples`, `tap` seeing every forward pass (give [`NoTap`] for none).
///
/// # Errors
/// If the examples cannot be read or do not fit the model.
pub fn evaluate(
    model: &Transformer,
    examples: impl Into<InOrder>,
    tap: Option<&mut dyn Tap>,
) -> Result<Evaluation> {
    let mut none = NoTap;
    let tap = tap.unwrap_or(&mut none);
    let number = |loss: &Tensor| Ok::<f64, crate::Error>(loss.to_dtype(DType::F64)?.to_scalar::<f64>()?);
    mean_loss(examples.into(), |batch| {
        let tape = Tape::off();
        if let Input::Tokens { .. } = batch.input {
            let loss = model.loss_of(&tape, tap, batch)?;
            return Ok(Score { loss: number(loss.tensor())?, correct: None });
        }
        let logits = model.class_logits(&tape, tap, batch)?;
        let loss = ops::cross_entropy(&tape, &logits, &batch.targets)?;
        Ok(Score { loss: number(loss.tensor())?, correct: Some(correct(logits.tensor(), &batch.targets)?) })
    })
}

/// What one batch gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Mean cross-entropy of its predictions.
    pub loss: f64,
    /// Images whose class had the largest logit; `None` for text.
    pub correct: Option<u64>,
}

impl From<f64> for Score {
    fn from(loss: f64) -> Self {
        Self { loss, correct: None }
    }
}

/// Mean over the predictions of `batches` of what `score` gives for each batch.
///
/// # Errors
/// If a batch cannot be read, or what `score` returns.
pub fn mean_loss<S: Into<Score>>(
    batches: impl Iterator<Item = Result<Examples>>,
    mut score: impl FnMut(&Examples) -> Result<S>,
) -> Result<Evaluation> {
    let (mut sum, mut tokens, mut correct) = (0.0, 0u64, None);
    for batch in batches {
        let batch = batch?;
        let score: Score = score(&batch)?.into();
        let here = batch.targets.len() as u64;
        sum += score.loss * here as f64;
        tokens += here;
        if let Some(more) = score.correct {
            *correct.get_or_insert(0) += more;
        }
    }
    let all = tokens.max(1) as f64;
    Ok(Evaluation { tokens, loss: sum / all, accuracy: correct.map(|n| n as f64 / all) })
}

/// How many rows of logits (..., classes) are largest at their target; of equal ones the first counts, and a row that holds
/// NaN is wrong.
pub(crate) fn correct(logits: &Tensor, targets: &[u32]) -> std::result::Result<u64, ModelError> {
    let rows = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let classes = (rows.len() / targets.len().max(1)).max(1);
    let is_right = |row: &[f32], target: u32| {
        let best = row.iter().enumerate().rev().max_by(|a, b| a.1.total_cmp(b.1));
        !row.iter().any(|v| v.is_nan()) && best.is_some_and(|(class, _)| class == target as usize)
    };
    let right = rows.chunks(classes).zip(targets).filter(|(row, target)| is_right(row, **target));
    Ok(right.count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_largest_logit_decides_the_first_of_equals_and_nan_is_wrong() {
        let nan = f32::NAN;
        let rows = [[0.0, 2.0, 1.0], [3.0, 3.0, 1.0], [3.0, 3.0, 1.0], [nan, 1.0, 0.0], [-1.0, -2.0, -0.5]];
        let logits = Tensor::new(&rows, &Device::Cpu).unwrap().unsqueeze(1).unwrap();
        assert_eq!(correct(&logits, &[1, 0, 1, 1, 2]).unwrap(), 3);
    }
}
