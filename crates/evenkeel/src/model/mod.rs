//! The transformer: configuration, presets, sizes, parameters, forward pass.

mod attention;
mod block;
mod choices;
pub mod config;
mod embedding;
mod head;
mod input;
mod layers;
mod matrix;
mod mlp;
pub mod params;
pub mod presets;
pub mod sizes;
mod transformer;
mod validate;

#[cfg(test)]
pub(crate) mod tests;

pub use block::Block;
pub use config::ModelConfig;
pub use embedding::Embedding;
pub use head::Head;
pub(crate) use input::check_ids;
pub use input::{Examples, Input};
pub use matrix::{Bf16Matrix, InputGrid, IntBias, IntMatrix, StoredMatrix};
pub use params::Parameter;
pub use presets::{preset, presets};
pub use sizes::{Size, size, sizes};
pub use transformer::{Parts, Reader, Streamed, Transformer};

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
    /// A padding token among the input.
    #[error("token id {id} is the model's padding, which has no position among the others")]
    Padding {
        /// The id.
        id: u32,
    },
    /// More tokens than learned positions.
    #[error("a sequence of {tokens} tokens is longer than the model's context of {context}")]
    TooLong {
        /// Tokens given.
        tokens: usize,
        /// Longest sequence.
        context: usize,
    },
    /// Images for a model of tokens, or the other way round.
    #[error("the model reads {wants}, and was given something else")]
    WrongInput {
        /// What it reads.
        wants: &'static str,
    },
    /// Images that the model was not made for.
    #[error(
        "the model reads images of (colours, height, width) {expected:?}, and was given pixels of shape {found:?}"
    )]
    ImageSize {
        /// Shape given.
        found: Vec<usize>,
        /// Colours, height and width of the model.
        expected: [usize; 3],
    },
    /// Logits of a bare encoder.
    #[error("the model has no head, so there are no logits")]
    NoHead,
    /// The loss of a model that is no language model read from left to right.
    #[error("the model does not predict the next token")]
    NoNextToken,
    /// The class of an image from a model that has no classifier.
    #[error("the model does not classify images")]
    NoClasses,
    /// A label that is no class of the model.
    #[error("class {class} is beyond the model's {classes} classes")]
    ClassBeyond {
        /// The label.
        class: u32,
        /// Classes of the model.
        classes: usize,
    },
    /// Labels that are not one for each image.
    #[error("{labels} labels were given for {images} images")]
    Labels {
        /// Labels given.
        labels: usize,
        /// Images given.
        images: usize,
    },
    /// A parameter that its file no longer gives.
    #[error("parameter {name} cannot be read: {problem}")]
    Unreadable {
        /// Name in the model.
        name: String,
        /// Why.
        problem: String,
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
            ModelError::Padding { .. } => "give sequences of one length without padding".into(),
            ModelError::TooLong { context, .. } => format!("give sequences of at most {context} tokens"),
            ModelError::WrongInput { .. } => {
                "give --ids, --text or --data to a model of text, --images or --pixels to one of images".into()
            }
            ModelError::ImageSize { .. } => "prepare the images with the model's own image processor".into(),
            ModelError::NoHead | ModelError::NoNextToken => {
                "`evenkeel inspect` looks into models of every kind, `evenkeel eval --images` takes classifiers of images; other commands want a causal language model"
                    .into()
            }
            ModelError::NoClasses => {
                "only a model with patch_size and with readout \"first\" or \"mean\" has classes of images".into()
            }
            ModelError::ClassBeyond { class, .. } => {
                format!("use the images that the model was trained on, or set model.vocab to at least {}", class + 1)
            }
            ModelError::Labels { .. } => "give one label for each image".into(),
            ModelError::Unreadable { .. } => "check that the file is whole and was not changed meanwhile".into(),
            ModelError::Empty => "give at least one sequence, all of one length".into(),
            ModelError::TransformWhileRecording => "run the forward pass with `Tape::off()`".into(),
            ModelError::Tensor(_) => "run again with RUST_BACKTRACE=1 and report what it prints".into(),
        }
    }
}
