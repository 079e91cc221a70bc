//! A corpus becomes a data folder.
//!
//! The text is read at least twice and never held in memory as a whole: the first time counts
//! documents, which the split needs, and finds what is wrong with the files before anything is
//! written; then the BPE is trained, if one is asked for, on the training side only; the last time
//! encodes. The separator follows each document. Everything is written into a hidden folder first,
//! which is renamed when it is complete, so that there is never half a data folder.
//!
//! [`tokenize`] reads files, [`tokenize_documents`] takes documents that are in memory.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use super::corpus::{Corpus, CorpusSettings, DEFAULT_TEXT_KEY, Document, Found, SkipReason, Skipped};
use super::dataset::{DATA_JSON, DataJson, SCHEMA, SourceCounts, Split};
use super::error::DataError;
use super::inspect::{DatasetSummary, inspect};
use super::output::{Staging, Writers};
use super::shards::{MAX_SHARD_TOKENS, TokenDtype};
use super::split::{SplitOutcome, cut_point, split_documents};
use super::tokenizer::{Tokenizer, TokenizerKind};
use crate::files;

/// Text is encoded in batches of about this many bytes, enough for all threads.
const BATCH_BYTES: usize = 8 << 20;
/// While text is read, progress is told about this often.
const PROGRESS_BYTES: u64 = 1 << 20;
/// Tokens shown in the summary.
const SAMPLE_TOKENS: usize = 64;

/// Which tokenizer makes the ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizerChoice {
    /// A `tokenizer.json`, or a folder that holds one.
    File(PathBuf),
    /// A byte-level BPE with at most this vocabulary, special tokens included, trained on the
    /// training side of the corpus.
    TrainBpe(usize),
    /// The bytes of the text.
    Bytes,
}

/// What is kept for validation.
#[derive(Debug, Clone, PartialEq)]
pub enum ValSplit {
    /// These files and folders; they are taken out of the inputs where they are among them.
    Files(Vec<PathBuf>),
    /// This share of the documents, from 0 up to, not including, 1.
    Fraction(f64),
    /// The validation splits of the datasets among the inputs, and if there are none this share of the documents.
    Named(f64),
}

/// What to tokenize, how, and where to.
#[derive(Debug, Clone)]
pub struct TokenizeSettings {
    /// Files and folders. [`tokenize_documents`] does not look at them.
    pub inputs: Vec<PathBuf>,
    /// What to take from folders; empty takes all.
    pub globs: Vec<String>,
    /// The key of the text in a `.jsonl` line, or its column in a table; "text" by default.
    pub text_key: String,
    /// What makes the ids; a BPE of 4096 by default.
    pub tokenizer: TokenizerChoice,
    /// What is kept for validation; what datasets name so, or 0.05 of the documents, by default.
    pub val: ValSplit,
    /// Tokens in a shard, from 1 to 2147483647; 100 million by default.
    pub shard_tokens: u64,
    /// The seed of the split.
    pub seed: u64,
    /// The folder to write.
    pub out: PathBuf,
    /// Whether data in that folder may be replaced. Other files in it are left alone.
    pub force: bool,
}

impl TokenizeSettings {
    /// The defaults, for these inputs and this folder.
    pub fn new(inputs: impl IntoIterator<Item = impl Into<PathBuf>>, out: impl Into<PathBuf>) -> Self {
        Self {
            inputs: inputs.into_iter().map(Into::into).collect(),
            globs: Vec::new(),
            text_key: DEFAULT_TEXT_KEY.to_owned(),
            tokenizer: TokenizerChoice::TrainBpe(4096),
            val: ValSplit::Named(0.05),
            shard_tokens: 100_000_000,
            seed: 0,
            out: out.into(),
            force: false,
        }
    }
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenizeStage {
    /// Reading for the first time, to count.
    Reading,
    /// Counting words for the BPE; its merges come after the last report of this stage.
    TrainingBpe,
    /// Encoding and writing.
    Encoding,
}

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenizeProgress {
    /// What is being done.
    pub stage: TokenizeStage,
    /// Bytes of text done in this stage.
    pub bytes: u64,
    /// Bytes of text to do; unknown while reading.
    pub total_bytes: Option<u64>,
    /// Tokens written so far.
    pub tokens: u64,
}

/// Told of progress, about once for each megabyte. It may be called from another thread than the
/// one that asked, though never from two at once.
pub type Progress<'a> = dyn FnMut(TokenizeProgress) + Send + 'a;

/// What was done.
#[derive(Debug, Clone)]
pub struct TokenizeReport {
    /// The folder as it now is.
    pub summary: DatasetSummary,
    /// How validation was set apart.
    pub split: SplitOutcome,
    /// Files that were found in folders and not read.
    pub skipped: Vec<Skipped>,
    /// Inputs that were taken out because they are validation files too.
    pub held_out: Vec<PathBuf>,
    /// Files of datasets that are for neither side: test splits, and validation splits where the settings ask for
    /// another validation text.
    pub other_splits: Vec<PathBuf>,
    /// Documents without text, which were left out.
    pub empty_documents: u64,
    /// Rows of tables that have no text (null), which were left out.
    pub null_rows: u64,
}

/// Reads a corpus and writes a data folder.
///
/// # Errors
/// Those of [`Corpus`] and [`Tokenizer`]; [`DataError::ValFraction`], [`DataError::ShardTokens`];
/// [`DataError::OutputExists`], [`DataError::OutputIsFile`]; [`DataError::AllValidation`].
pub fn tokenize(
    settings: &TokenizeSettings,
    progress: &mut Progress<'_>,
) -> Result<TokenizeReport, DataError> {
    check(settings)?;
    let mut corpus = Corpus::find(&corpus_settings(settings, &settings.inputs))?;
    // A data folder inside an input folder is no part of the corpus.
    if let Ok(out) = fs::canonicalize(&settings.out) {
        let within = |path: &Path| fs::canonicalize(path).is_ok_and(|path| path.starts_with(&out));
        corpus.retain(|path, outright| outright || !within(path));
    }
    let mut validation = find_validation(settings)?;
    let mut other_splits = corpus.test_files().to_vec();
    match corpus.take_validation() {
        Some(named) if matches!(settings.val, ValSplit::Named(_)) => validation = Some(named),
        Some(other) => other_splits.extend(other.files().map(Path::to_path_buf)),
        None => {}
    }
    let mut held_out = Vec::new();
    if let Some(validation) = &validation {
        let real: Vec<PathBuf> = validation.files().flat_map(fs::canonicalize).collect();
        corpus.retain(|path, _| {
            let keep = fs::canonicalize(path).map_or(true, |path| !real.contains(&path));
            if !keep {
                held_out.push(path.to_path_buf());
            }
            keep
        });
        if corpus.files().len() == 0 {
            return Err(DataError::AllValidation);
        }
    }
    let source = Source::Files(&corpus);
    let mut report = run(source, validation.as_ref(), settings, progress)?;
    report.held_out = held_out;
    other_splits
        .retain(|path| validation.as_ref().is_none_or(|corpus| corpus.files().all(|file| file != path)));
    report.other_splits = other_splits;
    Ok(report)
}

/// Writes a data folder from documents in memory.
///
/// # Errors
/// As [`tokenize`].
pub fn tokenize_documents(
    documents: &[Document],
    settings: &TokenizeSettings,
    progress: &mut Progress<'_>,
) -> Result<TokenizeReport, DataError> {
    check(settings)?;
    let validation = find_validation(settings)?;
    let source = Source::Memory(documents);
    run(source, validation.as_ref(), settings, progress)
}

fn corpus_settings(settings: &TokenizeSettings, inputs: &[PathBuf]) -> CorpusSettings {
    CorpusSettings {
        inputs: inputs.to_vec(),
        globs: settings.globs.clone(),
        text_key: settings.text_key.clone(),
    }
}

fn find_validation(settings: &TokenizeSettings) -> Result<Option<Corpus>, DataError> {
    match &settings.val {
        ValSplit::Files(files) => {
            let mut corpus = Corpus::find(&corpus_settings(settings, files))?;
            // Of a dataset that has a split for it, that split.
            Ok(Some(corpus.take_validation().unwrap_or(corpus)))
        }
        ValSplit::Fraction(_) | ValSplit::Named(_) => Ok(None),
    }
}

fn check(settings: &TokenizeSettings) -> Result<(), DataError> {
    if let ValSplit::Fraction(fraction) | ValSplit::Named(fraction) = settings.val
        && !(0.0..1.0).contains(&fraction)
    {
        return Err(DataError::ValFraction { fraction });
    }
    if !(1..=MAX_SHARD_TOKENS).contains(&settings.shard_tokens) {
        return Err(DataError::ShardTokens { tokens: settings.shard_tokens });
    }
    let out = &settings.out;
    let in_use = fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    if in_use && !settings.force {
        return Err(DataError::OutputExists { path: out.clone() });
    }
    if out.exists() && !out.is_dir() {
        return Err(DataError::OutputIsFile { path: out.clone() });
    }
    Ok(())
}

/// Where documents come from, as often as they are asked for.
#[derive(Clone, Copy)]
enum Source<'a> {
    Files(&'a Corpus),
    Memory(&'a [Document]),
}

impl<'a> Source<'a> {
    fn found(self) -> Box<dyn Iterator<Item = Result<FoundText<'a>, DataError>> + Send + 'a> {
        match self {
            Source::Files(corpus) => Box::new(corpus.documents().map(|found| {
                found.map(|found| match found {
                    Found::Document(document) => {
                        FoundText::Text(Cow::Owned(document.name), Cow::Owned(document.text))
                    }
                    Found::Skipped(file) => FoundText::Skipped(file),
                    Found::Nulls(rows) => FoundText::Nulls(rows),
                })
            })),
            Source::Memory(documents) => Box::new(documents.iter().map(|document| {
                Ok(FoundText::Text(
                    Cow::Borrowed(document.name.as_str()),
                    Cow::Borrowed(document.text.as_str()),
                ))
            })),
        }
    }

    fn files(self) -> usize {
        match self {
            Source::Files(corpus) => corpus.files().len(),
            Source::Memory(documents) => documents.len(),
        }
    }

    fn no_text(self, skipped: usize) -> DataError {
        match self {
            Source::Files(corpus) => corpus.no_text(skipped),
            Source::Memory(_) => DataError::AllEmpty { inputs: "the corpus".into() },
        }
    }
}

enum FoundText<'a> {
    Text(Cow<'a, str>, Cow<'a, str>),
    Skipped(Skipped),
    Nulls(u64),
}

/// What the first reading found.
#[derive(Default)]
struct Counted {
    /// Bytes of each document that has text.
    sizes: Vec<u64>,
    files: u64,
    empty: u64,
    nulls: u64,
    skipped: Vec<Skipped>,
}

impl Counted {
    fn bytes(&self) -> u64 {
        self.sizes.iter().sum()
    }
}

fn count(source: Source<'_>, progress: &mut Progress<'_>) -> Result<Counted, DataError> {
    let mut counted = Counted::default();
    let (mut bytes, mut told) = (0, 0);
    for found in source.found() {
        match found? {
            FoundText::Skipped(file) => counted.skipped.push(file),
            FoundText::Nulls(rows) => counted.nulls = counted.nulls.saturating_add(rows),
            FoundText::Text(_, text) if text.is_empty() => counted.empty += 1,
            FoundText::Text(_, text) => {
                counted.sizes.push(text.len() as u64);
                bytes += text.len() as u64;
                if bytes - told >= PROGRESS_BYTES {
                    told = bytes;
                    progress(TokenizeProgress {
                        stage: TokenizeStage::Reading,
                        bytes,
                        total_bytes: None,
                        tokens: 0,
                    });
                }
            }
        }
    }
    if counted.sizes.is_empty() {
        return Err(source.no_text(counted.skipped.len()));
    }
    // A broken link was never among the files.
    let unread = |file: &&Skipped| file.reason != SkipReason::BrokenLink;
    let unread = counted.skipped.iter().filter(unread).count();
    counted.files = (source.files() - unread) as u64;
    Ok(counted)
}

/// A source with the side of each document.
struct Planned<'a> {
    source: Source<'a>,
    counted: Counted,
    sides: Vec<Split>,
    /// The fraction by which the only document is cut.
    cut: Option<f64>,
}

/// A document, or the part of it that is on one side.
struct Piece<'a> {
    split: Split,
    text: Cow<'a, str>,
}

impl<'a> Planned<'a> {
    /// Reads the source again.
    fn pieces(&self) -> impl Iterator<Item = Result<Piece<'a>, DataError>> + Send + '_ {
        let mut next = 0;
        self.source.found().flat_map(move |found| {
            let (name, text) = match found {
                Ok(FoundText::Text(name, text)) if !text.is_empty() => (name, text),
                Ok(_) => return Vec::new(),
                Err(error) => return vec![Err(error)],
            };
            let at = next;
            next += 1;
            if self.counted.sizes.get(at) != Some(&(text.len() as u64)) {
                let name = name.into_owned();
                return vec![Err(DataError::CorpusChanged { name })];
            }
            match self.cut.and_then(|fraction| cut_point(&text, fraction)) {
                Some(cut) => {
                    let (train, val) = text.split_at(cut);
                    [(Split::Train, train), (Split::Val, val)]
                        .map(|(split, text)| {
                            let text = Cow::Owned(text.to_owned());
                            Ok(Piece { split, text })
                        })
                        .into()
                }
                None => vec![Ok(Piece { split: self.sides[at], text })],
            }
        })
    }
}

fn run(
    source: Source<'_>,
    validation: Option<&Corpus>,
    settings: &TokenizeSettings,
    progress: &mut Progress<'_>,
) -> Result<TokenizeReport, DataError> {
    // A wrong tokenizer file is better found before hours of reading.
    let given = match &settings.tokenizer {
        TokenizerChoice::File(path) => Some(Tokenizer::load(path)?),
        TokenizerChoice::Bytes => Some(Tokenizer::bytes()),
        TokenizerChoice::TrainBpe(vocab) if *vocab < 257 => {
            return Err(DataError::VocabTooSmall { vocab: *vocab });
        }
        TokenizerChoice::TrainBpe(_) => None,
    };

    let counted = count(source, progress)?;
    let fraction = match settings.val {
        ValSplit::Fraction(fraction) | ValSplit::Named(fraction) if validation.is_none() => Some(fraction),
        _ => None,
    };
    let (sides, mut outcome, cut) = match fraction {
        None => {
            let sides = vec![Split::Train; counted.sizes.len()];
            (sides, SplitOutcome::Files, None)
        }
        Some(fraction) if fraction <= 0.0 || counted.sizes.len() == 1 => {
            let sides = vec![Split::Train; counted.sizes.len()];
            let cut = (fraction > 0.0).then_some(fraction);
            (sides, SplitOutcome::None, cut)
        }
        Some(fraction) => {
            let (sides, moved) = split_documents(&counted.sizes, settings.seed, fraction);
            (sides, SplitOutcome::ByDocument { moved }, None)
        }
    };
    let mut planned = vec![Planned { source, counted, sides, cut }];
    if let Some(corpus) = validation {
        let source = Source::Files(corpus);
        let counted = count(source, progress)?;
        planned.push(Planned { source, sides: vec![Split::Val; counted.sizes.len()], counted, cut: None });
    }
    let total: u64 = planned.iter().map(|plan| plan.counted.bytes()).sum();

    let tokenizer = match (given, &settings.tokenizer) {
        (None, TokenizerChoice::TrainBpe(vocab)) => {
            let pieces = planned[0].pieces().filter_map(|piece| match piece {
                Ok(piece) if piece.split == Split::Val => None,
                other => Some(other.map(|piece| piece.text)),
            });
            let sides = planned[0].counted.sizes.iter().zip(&planned[0].sides);
            let to_count = match planned[0].cut {
                Some(fraction) => (planned[0].counted.bytes() as f64 * (1.0 - fraction)) as u64,
                None => sides.filter(|(_, side)| **side == Split::Train).map(|(size, _)| size).sum(),
            };
            let mut told = 0;
            Tokenizer::train_bpe(pieces, *vocab, &mut |bytes| {
                if bytes - told >= PROGRESS_BYTES || bytes >= to_count {
                    told = bytes;
                    progress(TokenizeProgress {
                        stage: TokenizeStage::TrainingBpe,
                        bytes,
                        // A single document is cut at a line, not exactly at the fraction.
                        total_bytes: Some(to_count.max(bytes)),
                        tokens: 0,
                    });
                }
            })?
        }
        (Some(tokenizer), _) => tokenizer,
        // `given` is `None` for a BPE alone.
        (None, _) => Tokenizer::bytes(),
    };

    let staging = Staging::create(&settings.out)?;
    let mut writers = Writers::new(staging.path(), &tokenizer, settings.shard_tokens);
    let mut done = 0;
    let mut batch: Vec<Piece<'_>> = Vec::new();
    let mut batch_bytes = 0;
    for plan in &planned {
        let mut documents = 0;
        for piece in plan.pieces() {
            let piece = piece?;
            documents += 1;
            if plan.cut.is_some() && piece.split == Split::Train {
                let at_byte = piece.text.len();
                outcome = SplitOutcome::WithinDocument { at_byte };
            }
            batch_bytes += piece.text.len();
            batch.push(piece);
            if batch_bytes >= BATCH_BYTES {
                encode(&mut writers, &tokenizer, &mut batch)?;
                done += std::mem::take(&mut batch_bytes) as u64;
                progress(encoding(done, total, writers.tokens()));
            }
        }
        if documents < plan.counted.sizes.len() {
            let name = "the list of documents".to_owned();
            return Err(DataError::CorpusChanged { name });
        }
    }
    encode(&mut writers, &tokenizer, &mut batch)?;
    progress(encoding(done + batch_bytes as u64, total, writers.tokens()));
    let (train, val) = writers.finish()?;
    if val.documents == 0 {
        // The one document was too short to be cut.
        outcome = SplitOutcome::None;
    }

    let kind = match &settings.tokenizer {
        TokenizerChoice::TrainBpe(_) => TokenizerKind::Bpe,
        TokenizerChoice::File(_) | TokenizerChoice::Bytes => tokenizer.kind(),
    };
    let json = DataJson {
        schema: SCHEMA,
        vocab: tokenizer.vocab_size(),
        dtype: TokenDtype::for_vocab(tokenizer.vocab_size()),
        separator: tokenizer.separator(),
        train,
        val,
        tokenizer: kind,
        source: SourceCounts { files: planned.iter().map(|plan| plan.counted.files).sum(), bytes: total },
        bytes_per_token: total as f64 / (train.tokens + val.tokens).max(1) as f64,
    };
    tokenizer.save(staging.path())?;
    let text = serde_json::to_string_pretty(&json).map_err(|error| DataError::DataJson {
        path: settings.out.join(DATA_JSON),
        reason: error.to_string(),
    })?;
    let path = staging.path().join(DATA_JSON);
    files::write(&path, (text + "\n").as_bytes()).map_err(DataError::io("write", &path))?;
    staging.install()?;
    Ok(TokenizeReport {
        summary: inspect(&settings.out, SAMPLE_TOKENS)?,
        split: outcome,
        null_rows: planned.iter().map(|plan| plan.counted.nulls).fold(0, u64::saturating_add),
        other_splits: Vec::new(),
        empty_documents: planned.iter().map(|plan| plan.counted.empty).sum(),
        skipped: planned.into_iter().flat_map(|plan| plan.counted.skipped).collect(),
        held_out: Vec::new(),
    })
}

/// Encodes and writes `batch`, and empties it.
fn encode(writers: &mut Writers, tokenizer: &Tokenizer, batch: &mut Vec<Piece<'_>>) -> Result<(), DataError> {
    let texts: Vec<&str> = batch.iter().map(|piece| piece.text.as_ref()).collect();
    let encoded = tokenizer.encode_batch(&texts)?;
    for (piece, ids) in batch.drain(..).zip(encoded) {
        writers.append(piece.split, &ids)?;
    }
    Ok(())
}

fn encoding(bytes: u64, total: u64, tokens: u64) -> TokenizeProgress {
    TokenizeProgress { stage: TokenizeStage::Encoding, bytes, total_bytes: Some(total), tokens }
}

#[cfg(test)]
mod tests;
