//! What a model is inspected on.

use crate::args::Inspect;
use crate::commands::images;
use crate::commands::text::{Source, blocks};
use crate::failure::Failure;
use crate::settings::Settings;
use evenkeel::checkpoint::{self, OnDisk};
use evenkeel::data::{Dataset, ImageData, Split, Tokenizer};
use evenkeel::model::{Input, ModelConfig, ModelError};
use evenkeel::train::InOrder;
use std::sync::Arc;

/// What is run.
pub(super) enum Inputs {
    /// All at once, exactly.
    Batch(Input),
    /// Batch after batch.
    Stream(Framed),
    /// Images, batch after batch.
    Images(Arc<ImageData>, Box<ModelConfig>),
}

/// Running text in sequences that begin and end as the model's tokenizer wants them to.
pub(super) struct Framed {
    dataset: Arc<Dataset>,
    context: usize,
    frame: (Vec<u32>, Vec<u32>),
}

impl Framed {
    pub(super) fn batches(
        &self,
        tokens: u64,
    ) -> Result<impl Iterator<Item = evenkeel::Result<Input>> + '_, Failure> {
        let (before, after) = &self.frame;
        let framed = before.len() + after.len();
        let inside = self.context - framed;
        // A frame adds to the tokens of every sequence.
        let asked = u128::from(tokens) * inside as u128 / self.context as u128;
        let asked = u64::try_from(asked).unwrap_or(u64::MAX);
        let blocks = blocks(&self.dataset, inside, Some(asked.max(1)))?;
        Ok(blocks.map(move |batch| {
            let batch = batch?;
            if framed == 0 {
                return Ok(Input::from(batch));
            }
            let rows = batch.inputs.chunks(batch.context);
            let ids = rows.flat_map(|row| [before, row, after].concat()).collect();
            Ok(Input::Tokens { ids, sequences: batch.sequences })
        }))
    }
}

impl Inputs {
    pub(super) fn open(args: &Inspect, on_disk: &OnDisk, settings: &Settings) -> Result<Self, Failure> {
        let config = on_disk.config();
        if args.tokens == 0 {
            return Err(Failure::input(
                "--tokens 0 leaves nothing to run",
                "leave it out, or give at least 1",
            ));
        }
        if args.cut.context.is_some() && (args.pixels.is_some() || args.text.ids.is_some()) {
            return Err(Failure::input(
                "--context cuts running text, and --ids and --pixels are run as they are given",
                "leave --context out",
            ));
        }
        if let Some(path) = &args.pixels {
            return Ok(Inputs::Batch(checkpoint::read_images(path)?));
        }
        if let Some(what) = &args.text.images {
            args.cut.refuse_for_images()?;
            let data = images::open(what, on_disk.folder(), config, settings)?;
            images::blocks(&data, config, Some(args.tokens))?;
            return Ok(Inputs::Images(data, Box::new(config.clone())));
        }
        if config.reads_images() {
            return Err(ModelError::WrongInput { wants: "images" }.into());
        }
        match Source::open(&args.text, on_disk.folder(), config)? {
            Source::Ids(batch) => {
                Ok(Inputs::Batch(Input::Tokens { ids: batch.ids, sequences: batch.sequences }))
            }
            Source::Stream(dataset) => {
                // Shards hold what they hold; text is framed as the tokenizer frames it.
                let frame = match (&args.text.text, Tokenizer::load_folder(on_disk.folder())) {
                    (Some(_), Ok(Some(tokenizer))) => tokenizer.frame(),
                    _ => Default::default(),
                };
                let framed = frame.0.len() + frame.1.len();
                let context = args.cut.context(config, MOST_INSPECTED)?;
                let have = dataset.len(Split::Val) as usize;
                if have < 2 {
                    return Err(Failure::input(
                        format!("the text is {have} tokens long, and inspect wants at least 2"),
                        "give more text",
                    ));
                }
                // A short text is one short sequence, and so are few tokens.
                let few = usize::try_from(args.tokens).unwrap_or(usize::MAX);
                let context = context.min(have - 1 + framed).min(few.max(framed + 1));
                if context <= framed {
                    return Err(Failure::input(
                        format!(
                            "sequences of {context} tokens leave no room beside the tokenizer's own {framed}"
                        ),
                        "give more text, or a larger --context",
                    ));
                }
                Ok(Inputs::Stream(Framed { dataset, context, frame }))
            }
        }
    }

    /// Refuses what the model cannot run, before it is read.
    pub(super) fn check(&self, on_disk: &OnDisk) -> Result<(), Failure> {
        match self {
            Inputs::Batch(input) => Ok(input.check(on_disk.config())?),
            Inputs::Stream(_) | Inputs::Images(..) => Ok(()),
        }
    }

    /// The first batch, which is dumped.
    pub(super) fn first(&self, tokens: u64) -> Result<Option<Input>, Failure> {
        match self {
            Inputs::Batch(input) => Ok(Some(input.clone())),
            Inputs::Stream(stream) => Ok(stream.batches(tokens)?.next().transpose()?),
            Inputs::Images(data, config) => {
                let mut batches = InOrder::from(images::blocks(data, config, Some(tokens))?);
                Ok(batches.next().transpose()?.map(Input::from))
            }
        }
    }
}

/// Longest sequences by default: the matrices of attention grow with their square.
const MOST_INSPECTED: usize = 1024;
