//! `--data`, `--text`, `--ids`: the text that a model is run on.

use crate::args::TextArgs;
use crate::failure::Failure;
use evenkeel::checkpoint::{self, CheckpointError};
use evenkeel::data::{Dataset, Split, Tokenizer, ValidationBlocks};
use evenkeel::model::Transformer;
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
    pub(crate) fn open(args: &TextArgs, model_path: &Path, model: &Transformer) -> Result<Self, Failure> {
        if let Some(path) = &args.ids {
            return read_ids(path).map(Source::Ids);
        }
        let mut dataset = match (&args.data, &args.text) {
            (Some(path), _) => Dataset::open(path)?,
            (None, Some(file)) => text_dataset(file, model_path, model)?,
            // clap's group requires one of the three.
            (None, None) => return Err(Failure::input("no text was given", "add --data, --text or --ids")),
        };
        dataset.limit_vocab(model.config().vocab)?;
        Ok(Source::Stream(Arc::new(dataset)))
    }

    /// The stream, for commands that need targets or calibration text.
    pub(crate) fn stream(self, command: &str) -> Result<Arc<Dataset>, Failure> {
        match self {
            Source::Stream(dataset) => Ok(dataset),
            Source::Ids(_) => Err(Failure::input(
                format!("{command} needs running text, and --ids gives one batch"),
                "use --data or --text",
            )),
        }
    }
}

/// The validation part in blocks of the model's context, batched to about 4096 tokens.
pub(crate) fn blocks(
    dataset: &Arc<Dataset>,
    model: &Transformer,
    max_tokens: Option<u64>,
) -> Result<ValidationBlocks, Failure> {
    let context = model.config().context;
    let sequences = (4096 / context).max(1);
    Ok(ValidationBlocks::new(dataset.clone(), Split::Val, context, sequences, max_tokens)?)
}

/// A text file tokenised by the model's own tokenizer, all of it both training (calibration) and validation.
fn text_dataset(file: &Path, model_path: &Path, model: &Transformer) -> Result<Dataset, Failure> {
    let tokenizer = tokenizer(model_path)?;
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
    Ok(Dataset::from_memory(ids.clone(), ids, model.config().vocab))
}

/// The tokenizer beside a model.
pub(crate) fn tokenizer(model_path: &Path) -> Result<Tokenizer, Failure> {
    let path = checkpoint::resolve(model_path)?.join("tokenizer.json");
    if !path.is_file() {
        return Err(Failure::input(
            format!("{} holds no tokenizer.json, so text cannot be turned into tokens", model_path.display()),
            "give token ids with --ids, or a data folder with --data",
        ));
    }
    Ok(Tokenizer::load(&path)?)
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
