//! What the quickstart trains on: the sources of this project's own dependencies, or a path.

use crate::failure::Failure;
use evenkeel::data::{
    Corpus as Files, CorpusSettings, Dataset, Document, TokenizeSettings, TokenizerChoice, ValSplit,
    cargo_registry_corpus, default_cargo_home, read_capped, tokenize_documents,
};
use evenkeel::random::{FNV_OFFSET, fnv1a};
use std::path::Path;

/// Text at most: enough for half an hour of training, read and tokenised in seconds.
const MAX_BYTES: u64 = 16 << 20;
/// Ids of the tokenizer, small because the model is.
const VOCAB: usize = 2048;
/// Kept for validation, by document.
const VAL_FRACTION: f64 = 0.02;

/// The lock file of the build that this binary came from.
const LOCK: &str = include_str!("../../../../../Cargo.lock");
/// Crates that a build fetches on every platform; scripts/quickstart_crates.sh writes the list.
const CRATES: &str = include_str!("crates.txt");

/// Text, and what it is.
pub(crate) struct Corpus {
    pub(crate) documents: Vec<Document>,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    pub(crate) hash: u64,
    pub(crate) what: String,
}

/// Reads the default corpus, or the one at `path`.
pub(crate) fn read(path: Option<&Path>) -> Result<Corpus, Failure> {
    let Some(path) = path else {
        let names: Vec<&str> = CRATES.lines().collect();
        let home = default_cargo_home().ok_or_else(|| {
            Failure::input(
                "no Cargo home was found, so the default corpus cannot be read",
                "give text of your own: quickstart --corpus PATH",
            )
        })?;
        let found = cargo_registry_corpus(LOCK, &names, &home, MAX_BYTES)?;
        return Ok(Corpus {
            files: found.files as u64,
            bytes: found.bytes,
            hash: found.hash,
            documents: found.documents,
            what: "Rust, the sources of this project's dependencies".into(),
        });
    };
    let files = Files::find(&CorpusSettings::new(vec![path.to_path_buf()]))?;
    let (documents, _) = read_capped(&files, MAX_BYTES)?;
    let bytes: u64 = documents.iter().map(|d| d.text.len() as u64).sum();
    let hash = documents.iter().fold(FNV_OFFSET, |hash, d| fnv1a(hash, d.text.as_bytes()));
    let what = format!("text from {}", path.display());
    Ok(Corpus { files: documents.len() as u64, bytes, hash, documents, what })
}

/// Token shards of the corpus in `dir`, made unless an earlier command made them.
pub(crate) fn tokenised(corpus: &Corpus, dir: &Path) -> Result<Dataset, Failure> {
    if !dir.join("data.json").is_file() {
        let mut s = TokenizeSettings::new(Vec::<std::path::PathBuf>::new(), dir.to_path_buf());
        s.tokenizer = TokenizerChoice::TrainBpe(VOCAB);
        s.val = ValSplit::Fraction(VAL_FRACTION);
        s.force = true;
        tokenize_documents(&corpus.documents, &s, &mut |_| {})?;
    }
    Ok(Dataset::open(dir)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_crate_is_in_the_lock_file() {
        assert!(CRATES.lines().count() > 100);
        for name in CRATES.lines() {
            let package = match name.split_once('@') {
                Some((name, version)) => format!("\nname = \"{name}\"\nversion = \"{version}\"\n"),
                None => format!("\nname = \"{name}\"\n"),
            };
            assert!(LOCK.contains(&package), "{name} is not in Cargo.lock: run scripts/quickstart_crates.sh");
        }
    }

    #[test]
    fn the_default_corpus_is_there_after_a_build() {
        let corpus = read(None).unwrap_or_else(|e| panic!("{e:?}"));
        assert!(corpus.bytes > MAX_BYTES - (1 << 20) && corpus.bytes <= MAX_BYTES);
        assert_eq!(corpus.documents.len() as u64, corpus.files);
    }
}
