//! What a run is fed with: batches of text or of images, in the one form that a training step takes.

use crate::checkpoint::Companion;
use crate::config::{DataKind, RunConfig};
use crate::data::images::{ImageBlocks, ImageSampler};
use crate::data::{Dataset, SamplerSettings, Split, TrainSampler, ValidationBlocks};
use crate::error::Result;
use crate::model::{Examples, ModelConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::TrainError;

/// The training and validation examples of a run.
#[derive(Clone, Debug)]
pub enum Feed {
    /// Token shards.
    Text(TrainSampler),
    /// Labelled images.
    Images(ImageSampler),
}

impl Feed {
    /// Opens what a configuration names, and takes the vocabulary, or the number of classes, from it where the configuration
    /// leaves it open.
    ///
    /// # Errors
    /// If no data is named, it cannot be read or does not fit the model.
    pub(super) fn open(config: &mut RunConfig) -> Result<Self> {
        if config.data.kind == DataKind::Tokens {
            return Self::open_text(config);
        }
        if config.data.kind == DataKind::Images && config.data.path.is_empty() {
            return Err(TrainError::NoImages.into());
        }
        let images = Arc::new(config.data.images(&config.model)?);
        match (config.model.vocab, images.source().classes()) {
            (0, classes) => config.model.vocab = classes,
            (model, data) if data > model => return Err(TrainError::Classes { data, model }.into()),
            _ => {}
        }
        config.model.validate()?;
        for split in [Split::Train, Split::Val] {
            if split == Split::Train || !images.source().is_empty(split) {
                // Found now rather than at the first step: a folder of something else, or a build without decoders.
                ImageBlocks::new(images.clone(), split, 1, Some(1))?.next().transpose()?;
            }
        }
        Ok(Self::Images(ImageSampler::new(images, config.train.batch_sequences, config.train.seed)?))
    }

    fn open_text(config: &mut RunConfig) -> Result<Self> {
        let mut dataset = open_text(config)?;
        match (config.model.vocab, dataset.vocab()) {
            (0, Some(data)) => config.model.vocab = data,
            (0, None) => return Err(TrainError::NoVocabulary { path: config.data.path.clone() }.into()),
            (model, Some(data)) if data > model => return Err(TrainError::Vocabulary { data, model }.into()),
            _ => {}
        }
        config.model.validate()?;
        dataset.limit_vocab(config.model.vocab)?;
        let sampler = TrainSampler::new(
            Arc::new(dataset),
            SamplerSettings {
                context: config.model.context,
                batch_sequences: config.train.batch_sequences,
                seed: config.train.seed,
            },
        )?;
        if !sampler.dataset().is_empty(Split::Val) {
            // Found now rather than at the first evaluation.
            ValidationBlocks::new(sampler.dataset().clone(), Split::Val, config.model.context, 1, None)?;
        }
        Ok(Self::Text(sampler))
    }

    /// What a checkpoint needs beside the weights: the tokenizer of a folder of text, how images are treated.
    pub(super) fn companion(&self) -> Option<Companion> {
        match self {
            Self::Text(sampler) => {
                let path = sampler.dataset().path();
                let file = path.join("tokenizer.json");
                (path.is_dir() && file.is_file()).then_some(Companion::Tokenizer(file))
            }
            Self::Images(sampler) => Some(Companion::Images(*sampler.data().settings())),
        }
    }

    /// The batch of a step, counted from 0.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn batch(&self, step: u64) -> Result<Examples> {
        match self {
            Self::Text(sampler) => Ok(sampler.batch(step)?.into()),
            Self::Images(sampler) => Ok(Examples::of_images(sampler.batch(step)?)?),
        }
    }

    /// Whether there is nothing of a split.
    pub fn is_empty(&self, split: Split) -> bool {
        match self {
            Self::Text(sampler) => sampler.dataset().is_empty(split),
            Self::Images(sampler) => sampler.data().source().is_empty(split),
        }
    }

    /// A split in order, without chance: batches of `sequences`, and no more of them than have `most` positions of the
    /// stream together (but one at least). `model` says how many a sequence has: its context.
    ///
    /// # Errors
    /// If the split has not even one sequence.
    pub fn in_order(
        &self,
        model: &ModelConfig,
        split: Split,
        sequences: usize,
        most: Option<u64>,
    ) -> Result<InOrder> {
        Ok(match self {
            Self::Text(sampler) => InOrder::Text(ValidationBlocks::new(
                sampler.dataset().clone(),
                split,
                model.context,
                sequences,
                most,
            )?),
            Self::Images(sampler) => {
                let images = most.map(|most| most / model.context as u64);
                InOrder::Images(ImageBlocks::new(sampler.data().clone(), split, sequences, images)?)
            }
        })
    }
}

/// Examples in order: an iterator over batches, of which the last may be smaller. [`crate::inspect::inspect`] takes it as it
/// is, and so does [`super::evaluate`].
#[derive(Clone, Debug)]
pub enum InOrder {
    /// Of text.
    Text(ValidationBlocks),
    /// Of images.
    Images(ImageBlocks),
}

impl From<ValidationBlocks> for InOrder {
    fn from(blocks: ValidationBlocks) -> Self {
        Self::Text(blocks)
    }
}

impl From<ImageBlocks> for InOrder {
    fn from(blocks: ImageBlocks) -> Self {
        Self::Images(blocks)
    }
}

impl InOrder {
    /// Sequences, or images, in all.
    pub fn sequences(&self) -> u64 {
        match self {
            Self::Text(blocks) => blocks.blocks(),
            Self::Images(blocks) => blocks.images(),
        }
    }
}

impl Iterator for InOrder {
    type Item = Result<Examples>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Text(blocks) => blocks.next().map(|batch| Ok(batch?.into())),
            Self::Images(blocks) => blocks.next().map(|batch| Ok(Examples::of_images(batch?)?)),
        }
    }
}

fn open_text(config: &RunConfig) -> Result<Dataset> {
    let (path, val) = (&config.data.path, &config.data.val_path);
    if path.is_empty() {
        return Err(TrainError::NoData.into());
    }
    Ok(if val.is_empty() {
        Dataset::open(Path::new(path))?
    } else {
        Dataset::from_shards(vec![PathBuf::from(path)], vec![PathBuf::from(val)])?
    })
}
