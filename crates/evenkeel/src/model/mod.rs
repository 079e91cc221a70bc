//! The transformer: configuration, presets, parameters, forward pass.

mod attention;
mod choices;
pub mod config;
mod layers;
mod mlp;
pub mod params;
pub mod presets;
mod transformer;

#[cfg(test)]
mod tests;

pub use config::ModelConfig;
pub use params::Parameter;
pub use presets::{preset, presets};
pub use transformer::Transformer;

use crate::error::Hint;
use thiserror::Error;

/// A model that cannot be built, or an input that it cannot run on.
#[derive(Debug, Error)]
pub enum ModelError {
    /// A key of `[model]` has a value that makes no network.
    #[error("model.{key} {problem}")]
    Config {
        /// The key below `[model]`.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The tensors given are not those of the configuration.
    #[error("the weights do not fit the configuration: {}", list(problems))]
    Weights {
        /// Every discrepancy.
        problems: Vec<String>,
    },
    /// A token id outside the vocabulary.
    #[error("token id {id} is beyond the model's vocabulary of {vocab}")]
    IdBeyondVocabulary {
        /// The id.
        id: u32,
        /// Vocabulary size.
        vocab: usize,
    },
    /// More tokens than learned positions.
    #[error("a sequence of {tokens} tokens is longer than the model's context of {context}")]
    TooLong {
        /// Tokens given.
        tokens: usize,
        /// Longest sequence.
        context: usize,
    },
    /// No tokens, or a ragged batch.
    #[error("the batch holds no tokens, or its sequences differ in length")]
    Empty,
    /// A transforming tap in a training step.
    #[error("a tap that changes activations cannot be used while gradients are recorded")]
    TransformWhileRecording,
    /// The tensor library refused.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

/// At most three entries, then a count.
pub(crate) fn list(problems: &[String]) -> String {
    let shown = problems.iter().take(3).cloned().collect::<Vec<_>>().join("; ");
    match problems.len() {
        n if n > 3 => format!("{shown}; and {} more", n - 3),
        _ => shown,
    }
}

impl Hint for ModelError {
    fn hint(&self) -> String {
        match self {
            ModelError::Config { .. } => {
                "`evenkeel config show pre_ln` prints every key of [model] with a value that works".into()
            }
            ModelError::Weights { .. } => {
                "config.json and model.safetensors must come from the same checkpoint".into()
            }
            ModelError::IdBeyondVocabulary { .. } => {
                "use the tokenizer that the model was trained with, or a model made for this data".into()
            }
            ModelError::TooLong { context, .. } => format!("give sequences of at most {context} tokens"),
            ModelError::Empty => "give at least one sequence, all of one length".into(),
            ModelError::TransformWhileRecording => "run the forward pass with `Tape::off()`".into(),
            ModelError::Tensor(_) => "run again with RUST_BACKTRACE=1 and report what it prints".into(),
        }
    }
}
