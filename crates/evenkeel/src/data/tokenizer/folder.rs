//! The tokenizer of a checkpoint folder, from whichever files describe it there.
//!
//! A folder without `tokenizer.json` may hold what such a file is made from: `vocab.json` and `merges.txt`
//! (byte-level BPE as in GPT-2, OPT and RoBERTa) or `vocab.txt` (WordPiece as in BERT). From them a
//! `tokenizer.json` is written in memory, so that a tokenizer from parts is a given file like any other. The
//! parts do not say how text is cut into words; the name of the tokenizer's class, or else the model's type,
//! does. A name that is not known here is refused: a guess would give wrong ids without a word.

use std::path::Path;

use super::parts;
use super::settings::Settings;
use super::{Library, Tokenizer, TokenizerKind};
use crate::data::error::DataError;

impl Tokenizer {
    /// The tokenizer in the folder `dir`: `tokenizer.json` as [`Tokenizer::load`] reads it, else one made from
    /// `vocab.json` and `merges.txt`, else one made from `vocab.txt`; `None` if the folder holds none of these.
    /// One made from parts is of the kind *File*, and [`Tokenizer::save`] writes it as a `tokenizer.json`.
    ///
    /// `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json` and `config.json` are read for
    /// what they say of the tokenizer where they are there.
    ///
    /// # Errors
    /// [`DataError::TokenizerParse`] for a `tokenizer.json`, [`DataError::TokenizerPart`] for any other file
    /// that cannot be understood or is missing beside its companion, [`DataError::TokenizerClass`] if the folder
    /// names a tokenizer that follows other rules, [`DataError::SentencePiece`] if `tokenizer.model` is all
    /// there is, [`DataError::Io`].
    pub fn load_folder(dir: &Path) -> Result<Option<Self>, DataError> {
        let has = |name: &str| dir.join(name).is_file();
        if has("tokenizer.json") {
            return Self::load(dir).map(Some);
        }
        let json = match (has("vocab.json"), has("merges.txt"), has("vocab.txt")) {
            (true, true, _) => parts::byte_level(dir, &Settings::read(dir)?)?,
            (_, _, true) => parts::word_piece(dir, &Settings::read(dir)?)?,
            (true, false, _) => return Err(alone(dir, "vocab.json", "merges.txt")),
            (false, true, _) => return Err(alone(dir, "merges.txt", "vocab.json")),
            _ if has("tokenizer.model") => {
                return Err(DataError::SentencePiece { path: dir.join("tokenizer.model") });
            }
            _ => return Ok(None),
        };
        Library::parse(format!("{json:#}\n"), TokenizerKind::File)
            .map(|library| Some(Self::from_library(library)))
            .map_err(|reason| DataError::TokenizerPart { path: dir.to_path_buf(), line: None, reason })
    }
}

fn alone(dir: &Path, found: &str, missing: &str) -> DataError {
    DataError::TokenizerPart {
        path: dir.join(found),
        line: None,
        reason: format!("expected {missing} beside it"),
    }
}

#[cfg(test)]
mod tests;
