//! What a model is run on.

use super::ModelError;
use super::config::{ModelConfig, Positions};
use crate::data::Batch;
use crate::data::images::ImageBatch;
use crate::slices::tensor;
use candle_core::{Result as CandleResult, Tensor};

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

/// Inputs and what a model should make of them: what a training step is made of.
#[derive(Clone, Debug)]
pub struct Examples {
    /// What is seen.
    pub input: Input,
    /// The next token of every token, sequence after sequence; or the class of every image.
    pub targets: Vec<u32>,
}

impl From<Batch> for Examples {
    fn from(batch: Batch) -> Self {
        let input = Input::Tokens { ids: batch.inputs, sequences: batch.sequences };
        Examples { input, targets: batch.targets }
    }
}

impl From<Examples> for Input {
    fn from(examples: Examples) -> Self {
        examples.input
    }
}

impl Examples {
    /// Images and their classes.
    ///
    /// # Errors
    /// If the tensor library refuses.
    pub fn of_images(batch: ImageBatch) -> CandleResult<Self> {
        let [colours, height, width] = batch.shape;
        let pixels = tensor(batch.pixels, (batch.labels.len(), colours, height, width))?;
        Ok(Examples { input: Input::Images { pixels }, targets: batch.labels })
    }

    /// Sequences, or images.
    pub fn sequences(&self) -> usize {
        self.input.sequences()
    }

    /// The examples in groups of `sequences` (the last may be smaller), for gradient accumulation; 0 stands for all of them.
    ///
    /// # Errors
    /// If the tensor library refuses.
    pub fn micro(&self, sequences: usize) -> CandleResult<Vec<Examples>> {
        let all = self.sequences();
        if sequences == 0 || sequences >= all {
            return Ok(vec![self.clone()]);
        }
        let targets = self.targets.len() / all.max(1);
        let part = |first: usize| {
            let count = sequences.min(all - first);
            let input = match &self.input {
                Input::Tokens { ids, .. } => {
                    let tokens = ids.len() / all;
                    let ids = ids[first * tokens..(first + count) * tokens].to_vec();
                    Input::Tokens { ids, sequences: count }
                }
                Input::Images { pixels } => {
                    Input::Images { pixels: pixels.narrow(0, first, count)?.contiguous()? }
                }
            };
            let targets = self.targets[first * targets..(first + count) * targets].to_vec();
            Ok(Examples { input, targets })
        };
        (0..all).step_by(sequences).map(part).collect()
    }

    /// Refuses labels that are not one class for each image.
    pub(super) fn check_classes(&self, config: &ModelConfig) -> Result<(), ModelError> {
        let (labels, images) = (self.targets.len(), self.sequences());
        if labels != images {
            return Err(ModelError::Labels { labels, images });
        }
        match self.targets.iter().find(|&&class| class as usize >= config.vocab) {
            Some(&class) => Err(ModelError::ClassBeyond { class, classes: config.vocab }),
            None => Ok(()),
        }
    }
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
