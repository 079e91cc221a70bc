//! What a data folder holds, in a form to print.
//!
//! [`inspect`] opens a folder (or a shard file) and [`summarise`] describes one that is open. The
//! summary serialises to the `--json` form of `data inspect`.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::dataset::{Dataset, SCHEMA, SourceCounts, Split};
use super::error::DataError;
use super::shards::TokenDtype;
use super::tokenizer::TokenizerKind;

/// A description of a data folder. What cannot be known without `data.json` or `tokenizer.json`
/// is `None`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DatasetSummary {
    /// The version of this form.
    pub schema: u32,
    /// The folder or shard file.
    pub path: PathBuf,
    /// The vocabulary size.
    pub vocab: Option<usize>,
    /// The type of the ids.
    pub dtype: Option<TokenDtype>,
    /// The id after each document.
    pub separator: Option<u32>,
    /// What made the ids.
    pub tokenizer: Option<TokenizerKind>,
    /// What there is to train on.
    pub train: SplitSummary,
    /// What is kept for validation.
    pub val: SplitSummary,
    /// What the text was read from.
    pub source: Option<SourceCounts>,
    /// Bytes of text for each token.
    pub bytes_per_token: Option<f64>,
    /// The first ids of the training split, or of the validation split if there are no others.
    pub sample_ids: Vec<u32>,
    /// The same as text.
    pub sample: Option<String>,
}

/// The size of a split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SplitSummary {
    /// Tokens, separators included.
    pub tokens: u64,
    /// Documents.
    pub documents: Option<u64>,
    /// Shard files.
    pub shards: usize,
}

/// Opens and describes a data folder, with up to `sample_tokens` of its first tokens.
///
/// # Errors
/// Those of [`Dataset::open`], [`Dataset::tokenizer`] and [`Dataset::read`].
pub fn inspect(path: &Path, sample_tokens: usize) -> Result<DatasetSummary, DataError> {
    summarise(&Dataset::open(path)?, sample_tokens)
}

/// Describes a dataset, with up to `sample_tokens` of its first tokens.
///
/// # Errors
/// Those of [`Dataset::tokenizer`] and [`Dataset::read`].
pub fn summarise(dataset: &Dataset, sample_tokens: usize) -> Result<DatasetSummary, DataError> {
    let json = dataset.data_json();
    let split = |split: Split| SplitSummary {
        tokens: dataset.len(split),
        documents: json.map(|json| match split {
            Split::Train => json.train.documents,
            Split::Val => json.val.documents,
        }),
        shards: dataset.shards(split),
    };
    let from = if dataset.is_empty(Split::Train) { Split::Val } else { Split::Train };
    let length = dataset.len(from).min(sample_tokens as u64);
    let mut sample_ids = vec![0; length as usize];
    dataset.read(from, 0, &mut sample_ids)?;
    let tokenizer = dataset.tokenizer()?;
    Ok(DatasetSummary {
        schema: SCHEMA,
        path: dataset.path().to_path_buf(),
        vocab: dataset.vocab(),
        dtype: dataset.dtype(),
        separator: match json {
            Some(json) => json.separator,
            None => tokenizer.as_ref().and_then(|t| t.separator()),
        },
        tokenizer: json.map(|json| json.tokenizer),
        train: split(Split::Train),
        val: split(Split::Val),
        source: json.map(|json| json.source),
        bytes_per_token: json.map(|json| json.bytes_per_token),
        sample: tokenizer.map(|tokenizer| tokenizer.decode(&sample_ids)),
        sample_ids,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unknown_is_null() {
        let dataset = Dataset::from_memory(vec![], vec![4, 5, 6], 7);
        let summary = summarise(&dataset, 2).unwrap();
        assert_eq!(summary.sample_ids, [4, 5]);
        assert_eq!((summary.train.tokens, summary.val.tokens), (0, 3));
        let json = serde_json::to_value(&summary).unwrap();
        assert_eq!(json["schema"], 1);
        assert_eq!(json["vocab"], 7);
        assert!(json["source"].is_null() && json["sample"].is_null());
    }
}
