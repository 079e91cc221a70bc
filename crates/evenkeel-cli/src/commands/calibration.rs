//! The texts of `quantize`: one to calibrate on, one to evaluate on.

use super::text::{Ids, MOST_CONTEXT, Source, blocks};
use crate::args::{Quantize, TextArgs};
use crate::failure::Failure;
use crate::settings::Settings;
use evenkeel::data::{Batch, DataError, Dataset, SamplerSettings, TrainSampler, ValidationBlocks};
use evenkeel::model::ModelConfig;
use std::path::Path;
use std::sync::Arc;

/// More batches than any calibration needs; all are held in memory.
const MAX_BATCHES: usize = 10_000;
/// Sequences per calibration batch, as in the published recipe.
const SEQUENCES: usize = 8;

/// What a model is calibrated and evaluated on.
pub(crate) struct Texts {
    pub(crate) calibration: Vec<Batch>,
    evaluation: Evaluated,
    /// Whether both are the same text.
    pub(crate) are_one: bool,
}

enum Evaluated {
    /// The validation part of a stream, in blocks of so many tokens, of so many tokens at most.
    Stream(Arc<Dataset>, usize, Option<u64>),
    Batch(Batch),
}

impl Texts {
    /// Those that the options name. A data folder calibrates on its training part and evaluates on its validation part.
    pub(crate) fn open(
        args: &Quantize,
        folder: &Path,
        config: &ModelConfig,
        settings: &Settings,
    ) -> Result<Self, Failure> {
        if args.text.ids.is_some() && args.cut.context.is_some() {
            return Err(Failure::input(
                "--context cuts running text, and --ids are run as they are given",
                "leave --context out",
            ));
        }
        let context = args.cut.context(config, MOST_CONTEXT)?;
        let seed = settings.seed.unwrap_or(0);
        let source = Source::open(&args.text, folder, config)?;
        let calibration = match &args.calib {
            Some(path) => {
                batches(&Source::open(&named(path), folder, config)?, context, args.calib_batches, seed)?
            }
            None => batches(&source, context, args.calib_batches, seed)?,
        };
        let are_one = args.calib.is_none() && args.text.data.is_none();
        let evaluation = match source {
            Source::Stream(dataset) => Evaluated::Stream(dataset, context, args.tokens),
            Source::Ids(ids) => Evaluated::Batch(predicted(&ids)?),
        };
        Ok(Self { calibration, evaluation, are_one })
    }

    /// Of a data folder that is open, evaluated on so many tokens at most.
    pub(crate) fn of_dataset(
        dataset: &Arc<Dataset>,
        context: usize,
        count: usize,
        seed: u64,
        tokens: Option<u64>,
    ) -> Result<Self, Failure> {
        let calibration = batches(&Source::Stream(dataset.clone()), context, count, seed)?;
        Ok(Self {
            calibration,
            evaluation: Evaluated::Stream(dataset.clone(), context, tokens),
            are_one: false,
        })
    }

    /// The evaluation text, from its beginning.
    pub(crate) fn evaluation(&self) -> Result<Evaluation, Failure> {
        self.evaluation_of(None)
    }

    /// The same, of a stream so many tokens at most; ids are one batch.
    pub(crate) fn evaluation_of(&self, most: Option<u64>) -> Result<Evaluation, Failure> {
        Ok(match &self.evaluation {
            Evaluated::Stream(dataset, context, tokens) => {
                let tokens = &most.or(*tokens);
                Evaluation::Blocks(Box::new(blocks(dataset, *context, *tokens)?))
            }
            Evaluated::Batch(batch) => Evaluation::Batch(Some(batch.clone())),
        })
    }
}

/// Batches with the token that follows each.
pub(crate) enum Evaluation {
    Blocks(Box<ValidationBlocks>),
    Batch(Option<Batch>),
}

impl Evaluation {
    /// Sequences in all.
    pub(crate) fn sequences(&self) -> u64 {
        match self {
            Self::Blocks(blocks) => blocks.blocks(),
            Self::Batch(batch) => batch.as_ref().map_or(0, |b| b.sequences as u64),
        }
    }
}

impl Iterator for Evaluation {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Blocks(blocks) => blocks.next(),
            Self::Batch(batch) => batch.take().map(Ok),
        }
    }
}

/// The option that a path of --calib stands for: a data folder, a file of ids, or text.
fn named(path: &Path) -> TextArgs {
    let mut text = TextArgs { data: None, text: None, ids: None, images: None };
    let place = match path.extension() {
        _ if path.is_dir() => &mut text.data,
        Some(extension) if extension == "json" => &mut text.ids,
        _ => &mut text.text,
    };
    *place = Some(path.to_path_buf());
    text
}

fn batches(source: &Source, context: usize, count: usize, seed: u64) -> Result<Vec<Batch>, Failure> {
    if count > MAX_BATCHES {
        return Err(Failure::input(
            format!("--calib-batches must be at most {MAX_BATCHES}, not {count}"),
            "the recipe's number is 4; more than a few dozen change nothing",
        ));
    }
    match source {
        Source::Ids(ids) => Ok(vec![predicted(ids)?]),
        Source::Stream(dataset) => {
            let settings = SamplerSettings { context, batch_sequences: SEQUENCES, seed: 0 };
            let sampler = TrainSampler::new(dataset.clone(), settings)?;
            Ok(sampler.calibration(seed, count, SEQUENCES).collect::<Result<Vec<_>, _>>()?)
        }
    }
}

/// Each sequence's tokens but the last are seen, all but the first are predicted.
pub(crate) fn predicted(ids: &Ids) -> Result<Batch, Failure> {
    let tokens = ids.ids.len() / ids.sequences;
    if tokens < 2 {
        return Err(Failure::input(
            "sequences of one token predict nothing",
            "give sequences of at least two token ids",
        ));
    }
    Ok(Batch {
        inputs: ids.ids.chunks(tokens).flat_map(|r| r[..tokens - 1].to_vec()).collect(),
        targets: ids.ids.chunks(tokens).flat_map(|r| r[1..].to_vec()).collect(),
        sequences: ids.sequences,
        context: tokens - 1,
    })
}
