//! `--data`, `--text`, `--ids`: the text that a model is run on.

use crate::args::{CutArgs, TextArgs};
use crate::failure::Failure;
use evenkeel::checkpoint::CheckpointError;
use evenkeel::data::{Dataset, Split, Tokenizer, ValidationBlocks};
use evenkeel::model::ModelConfig;
use std::path::Path;
use std::sync::Arc;

/// Ids given outright: one batch, all sequences of one length.
pub(crate) struct Ids {
    pub(crate) ids: Vec<u32>,
    pub(crate) sequences: usize,
}

/// Where tokens come from.
pub(crate) enum Source {
    /// Token streams with a validation part.
    Stream(Arc<Dataset>),
    /// One batch.
    Ids(Ids),
}

impl Source {
    /// Opens what the options name, for this model.
    pub(crate) fn open(args: &TextArgs, folder: &Path, config: &ModelConfig) -> Result<Self, Failure> {
        if let Some(path) = &args.ids {
            return read_ids(path).map(Source::Ids);
        }
        let mut dataset = match (&args.data, &args.text) {
            (Some(path), _) => Dataset::open(path)?,
            (None, Some(file)) => text_dataset(file, folder, config.vocab)?,
            // clap's group requires one of the three.
            (None, None) => return Err(Failure::input("no text was given", "add --data, --text or --ids")),
        };
        dataset.limit_vocab(config.vocab)?;
        Ok(Source::Stream(Arc::new(dataset)))
    }
}

/// Longest sequences by default: models claim contexts of a hundred thousand tokens.
pub(crate) const MOST_CONTEXT: usize = 2048;

impl CutArgs {
    /// Refuses a length for what has one.
    pub(crate) fn refuse_for_images(&self) -> Result<(), Failure> {
        match self.context {
            Some(_) => Err(Failure::input(
                "--context cuts running text, and an image is run whole",
                "leave --context out",
            )),
            None => Ok(()),
        }
    }

    /// Tokens per sequence: as asked for, else the model's context, and at most `most`.
    pub(crate) fn context(&self, config: &ModelConfig, most: usize) -> Result<usize, Failure> {
        let Some(context) = self.context else { return Ok(config.context.min(most)) };
        if context == 0 || context > config.context {
            return Err(Failure::input(
                format!("--context must lie between 1 and the model's {}, not {context}", config.context),
                "leave it out for the model's own context",
            ));
        }
        Ok(context)
    }
}

/// The validation part in blocks of `context` tokens, batched to about 4096 tokens.
pub(crate) fn blocks(
    dataset: &Arc<Dataset>,
    context: usize,
    max_tokens: Option<u64>,
) -> Result<ValidationBlocks, Failure> {
    let sequences = (4096 / context).max(1);
    Ok(ValidationBlocks::new(dataset.clone(), Split::Val, context, sequences, max_tokens)?)
}

/// A text file tokenised by the model's own tokenizer, all of it both training (calibration) and validation.
fn text_dataset(file: &Path, folder: &Path, vocab: usize) -> Result<Dataset, Failure> {
    let tokenizer = tokenizer(folder)?;
    let bytes = std::fs::read(file)
        .map_err(|e| Failure::input(format!("cannot read {}: {e}", file.display()), "check the path"))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Failure::input(
            format!("{} is not UTF-8 text: byte {at} begins no character", file.display()),
            "convert it first, for example with iconv -t UTF-8",
        )
    })?;
    let ids = tokenizer.encode(&text)?;
    Ok(Dataset::from_memory(ids.clone(), ids, vocab))
}

/// The tokenizer in a model's folder.
pub(crate) fn tokenizer(folder: &Path) -> Result<Tokenizer, Failure> {
    Tokenizer::load_folder(folder)?.ok_or_else(|| {
        Failure::input(
            format!("{} holds no tokenizer.json, so text cannot be turned into tokens", folder.display()),
            "put the model's tokenizer.json into the folder; inspect and eval also take token ids with --ids",
        )
    })
}

fn read_ids(path: &Path) -> Result<Ids, Failure> {
    let hint = "write a JSON array of arrays of token ids, all of one length, such as [[1,2,3],[4,5,6]]";
    let bytes =
        std::fs::read(path).map_err(|source| CheckpointError::Io { path: path.to_path_buf(), source })?;
    let rows: Vec<Vec<u32>> = serde_json::from_slice(&bytes).map_err(|e| {
        Failure::input(format!("{} is not an array of arrays of token ids: {e}", path.display()), hint)
    })?;
    let tokens = rows.first().map_or(0, Vec::len);
    if tokens == 0 {
        return Err(Failure::input(format!("{} holds no token ids", path.display()), hint));
    }
    if let Some((i, row)) = rows.iter().enumerate().find(|(_, r)| r.len() != tokens) {
        return Err(Failure::input(
            format!(
                "the sequences in {} differ in length: sequence {i} has {} tokens and the first has {tokens}",
                path.display(),
                row.len()
            ),
            hint,
        ));
    }
    Ok(Ids { sequences: rows.len(), ids: rows.into_iter().flatten().collect() })
}
