//! What a model is inspected on.

use crate::args::Inspect;
use crate::commands::text::{Source, blocks};
use crate::failure::Failure;
use evenkeel::checkpoint::{self, OnDisk};
use evenkeel::data::{Dataset, Split, Tokenizer};
use evenkeel::model::{Input, ModelError};
use std::sync::Arc;

/// What is run.
pub(super) enum Inputs {
    /// All at once, exactly.
    Batch(Input),
    /// Batch after batch.
    Stream(Framed),
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
        let asked = tokens * inside as u64 / self.context as u64;
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
    pub(super) fn open(args: &Inspect, on_disk: &OnDisk) -> Result<Self, Failure> {
        let config = on_disk.config();
        if let Some(path) = &args.pixels {
            return Ok(Inputs::Batch(checkpoint::read_images(path)?));
        }
        if config.reads_images() {
            return Err(ModelError::WrongInput { wants: "images" }.into());
        }
        match Source::open(&args.text, on_disk.folder(), config)? {
            Source::Ids(_) if args.cut.context.is_some() => Err(Failure::input(
                "--context cuts running text, and --ids are run as they are given",
                "leave --context out",
            )),
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
                // A short text is one short sequence.
                let context = context.min((dataset.len(Split::Val) as usize).saturating_sub(1) + framed);
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

    /// The first batch, which is dumped.
    pub(super) fn first(&self, tokens: u64) -> Result<Option<Input>, Failure> {
        match self {
            Inputs::Batch(input) => Ok(Some(input.clone())),
            Inputs::Stream(stream) => Ok(stream.batches(tokens)?.next().transpose()?),
        }
    }
}

/// Longest sequences by default: the matrices of attention grow with their square.
const MOST_INSPECTED: usize = 1024;
