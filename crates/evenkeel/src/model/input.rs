//! What a model is run on.

use super::ModelError;
use super::config::{ModelConfig, Positions};
use crate::data::Batch;
use candle_core::Tensor;

/// A batch of inputs, all of one length.
#[derive(Clone, Debug)]
pub enum Input {
    /// Token ids, sequence after sequence.
    Tokens {
        /// sequences · tokens ids.
        ids: Vec<u32>,
        /// Number of sequences.
        sequences: usize,
    },
    /// Images as the model's image processor makes them: (images, colours, height, width), float32.
    Images {
        /// The pixels.
        pixels: Tensor,
    },
}

impl From<Batch> for Input {
    fn from(batch: Batch) -> Self {
        Input::Tokens { ids: batch.inputs, sequences: batch.sequences }
    }
}

impl Input {
    /// Sequences, or images.
    pub fn sequences(&self) -> usize {
        match self {
            Input::Tokens { sequences, .. } => *sequences,
            Input::Images { pixels } => pixels.dims().first().copied().unwrap_or(0),
        }
    }

    /// Positions of the stream in all: tokens, or patches and the token before them.
    pub fn tokens(&self, config: &ModelConfig) -> usize {
        match self {
            Input::Tokens { ids, .. } => ids.len(),
            Input::Images { .. } => self.sequences() * config.context,
        }
    }

    /// Checks the input before anything is computed.
    ///
    /// # Errors
    /// Ids beyond the vocabulary, a sequence longer than the context, images of another size, the wrong kind, or nothing at
    /// all.
    pub fn check(&self, config: &ModelConfig) -> Result<(), ModelError> {
        match self {
            Input::Tokens { .. } if config.reads_images() => Err(ModelError::WrongInput { wants: "images" }),
            Input::Tokens { ids, sequences } => check_ids(config, ids, *sequences),
            Input::Images { .. } if !config.reads_images() => {
                Err(ModelError::WrongInput { wants: "token ids" })
            }
            Input::Images { pixels } => {
                let [height, width, colours] = config.image;
                match *pixels.dims() {
                    [images, c, h, w] if images > 0 && [h, w, c] == [height, width, colours] => Ok(()),
                    _ => Err(ModelError::ImageSize {
                        found: pixels.dims().to_vec(),
                        expected: [colours, height, width],
                    }),
                }
            }
        }
    }
}

/// Checks ids and lengths.
pub(crate) fn check_ids(config: &ModelConfig, ids: &[u32], sequences: usize) -> Result<(), ModelError> {
    let tokens = ids.len() / sequences.max(1);
    if ids.is_empty() || ids.len() != sequences * tokens {
        return Err(ModelError::Empty);
    }
    if tokens > config.context && config.positions == Positions::Learned {
        return Err(ModelError::TooLong { tokens, context: config.context });
    }
    if let Some(id) = config.padding_id.filter(|id| ids.contains(id)) {
        return Err(ModelError::Padding { id });
    }
    match ids.iter().find(|&&id| id as usize >= config.vocab) {
        Some(&id) => Err(ModelError::IdBeyondVocabulary { id, vocab: config.vocab }),
        None => Ok(()),
    }
}
