//! Text to token ids and back.
//!
//! Three kinds. *Bytes*: the ids are the bytes of the UTF-8 text, 0 to 255. *Bpe*: byte-level
//! byte-pair encoding in the manner of GPT-2 (Sennrich et al. 2016; Radford et al. 2019), trained
//! here on the corpus: text is cut into words by GPT-2's pattern, and the most frequent pair of
//! neighbouring symbols becomes a new symbol until the vocabulary is full. *File*: any
//! `tokenizer.json` of the Hugging Face library, which also does the work for *Bpe*.
//!
//! Documents are separated by [`SEPARATOR_TOKEN`]. Text that happens to spell a special token is
//! encoded as ordinary text, so that no document can fake a boundary.
//!
//! Every kind is saved as a `tokenizer.json` that other programs read. For *Bytes* it describes a
//! byte-level BPE without merges whose ids are the byte values; [`Tokenizer::load`] recognises it.

mod folder;
mod frame;
mod parts;
mod settings;

use std::fs;
use std::path::Path;
use std::sync::Mutex;

use rayon::prelude::*;
use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl,
};

use super::error::DataError;
use crate::files;

/// The token between documents.
pub const SEPARATOR_TOKEN: &str = "<|endoftext|>";

/// The separator of the bytes kind: the first id that is no byte.
const BYTES_SEPARATOR: u32 = 256;

/// Texts are encoded and counted in pieces of about this many bytes: enough to keep every thread
/// busy with one large file, little enough that a piece's offsets and strings stay in the cache.
const PIECE_BYTES: usize = 1 << 18;

/// What makes the ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenizerKind {
    /// A byte-level BPE trained by [`Tokenizer::train_bpe`].
    Bpe,
    /// A `tokenizer.json` that was given.
    File,
    /// The bytes of the text.
    Bytes,
}

impl TokenizerKind {
    /// The name in `data.json`: "bpe", "file" or "bytes".
    pub fn name(self) -> &'static str {
        match self {
            Self::Bpe => "bpe",
            Self::File => "file",
            Self::Bytes => "bytes",
        }
    }
}

/// Turns text into ids below [`Tokenizer::vocab_size`], and back.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    engine: Engine,
}

#[derive(Debug, Clone)]
enum Engine {
    Bytes,
    Library(Box<Library>),
}

#[derive(Debug, Clone)]
struct Library {
    kind: TokenizerKind,
    inner: tokenizers::Tokenizer,
    /// The file as it is saved: a given one is passed on to the byte.
    json: String,
    vocab: usize,
    separator: Option<u32>,
    /// Cutting a text where [`pieces`] does leaves its ids as they are.
    divisible: bool,
}

/// A tokenizer whose model is known to be BPE, which is what the library wants for training.
type BpeInTraining =
    TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

impl Tokenizer {
    /// The ids are the bytes; the separator is 256, the vocabulary 257.
    pub fn bytes() -> Self {
        Self { engine: Engine::Bytes }
    }

    /// Trains a byte-level BPE on `documents`. All ids are below `vocab_size`, which counts the
    /// 256 bytes and the separator; a text with too few pairs gives a smaller vocabulary. The same
    /// documents give the same tokenizer, to the byte. `progress` is told the bytes read so far;
    /// counting is the longer part, merging comes after it.
    ///
    /// # Errors
    /// [`DataError::VocabTooSmall`] below 257; the first error among the documents;
    /// [`DataError::TokenizerTrain`].
    pub fn train_bpe<S: AsRef<str>>(
        documents: impl Iterator<Item = Result<S, DataError>> + Send,
        vocab_size: usize,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<Self, DataError> {
        if vocab_size < 257 {
            return Err(DataError::VocabTooSmall { vocab: vocab_size });
        }
        let failed = |error: tokenizers::Error| DataError::TokenizerTrain { reason: error.to_string() };
        let byte_level = ByteLevel::new(false, false, true);
        let mut training = BpeInTraining::new(BPE::default());
        training.with_pre_tokenizer(Some(byte_level)).with_decoder(Some(byte_level));
        let mut trainer = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(vocab_size)
            .special_tokens(vec![separator_token()])
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();

        // The library pulls from an iterator of strings; an error ends it and is kept aside.
        let error: Mutex<Option<DataError>> = Mutex::new(None);
        let mut read = 0_u64;
        let texts = documents
            .map_while(|document| match document {
                Ok(document) => Some(document),
                Err(reason) => {
                    // A poisoned lock would mean that this very closure panicked before.
                    *error.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(reason);
                    None
                }
            })
            .flat_map(|document| {
                let text = document.as_ref();
                read += text.len() as u64;
                progress(read);
                let pieces: Vec<String> = pieces(text, PIECE_BYTES).map(str::to_owned).collect();
                pieces
            });
        training.train(&mut trainer, texts).map_err(failed)?;
        if let Some(error) = error.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            return Err(error);
        }
        let mut json = training.to_string(true).map_err(failed)?;
        json.push('\n');
        // Read back from what is saved, so that training and loading cannot differ.
        Library::parse(json, TokenizerKind::Bpe)
            .map(Self::from_library)
            .map_err(|reason| DataError::TokenizerTrain { reason })
    }

    /// Reads a `tokenizer.json`, or the one in the folder `path`. Truncation, padding and BPE
    /// dropout, which some files ask for, are switched off: they would lose text, add tokens, or
    /// give other ids each time. The kind is *Bytes* for what [`Tokenizer::save`] wrote for it, else *File*.
    ///
    /// # Errors
    /// [`DataError::Io`], [`DataError::TokenizerParse`].
    pub fn load(path: &Path) -> Result<Self, DataError> {
        let path = if path.is_dir() { path.join("tokenizer.json") } else { path.to_path_buf() };
        let bytes = fs::read(&path).map_err(DataError::io("read", &path))?;
        let parse = |reason: String| DataError::TokenizerParse { path: path.clone(), reason };
        let json = String::from_utf8(bytes).map_err(|_| parse("it is not UTF-8".into()))?;
        let value: Value = serde_json::from_str(&json).map_err(|e| parse(e.to_string()))?;
        if value.get("model").is_none_or(|model| !model.is_object()) {
            return Err(parse("it has no object `model`".into()));
        }
        if value == bytes_json() {
            return Ok(Self::bytes());
        }
        Library::parse(json, TokenizerKind::File).map(Self::from_library).map_err(parse)
    }

    fn from_library(library: Library) -> Self {
        Self { engine: Engine::Library(Box::new(library)) }
    }

    /// What makes the ids. A BPE that was saved and loaded again is of the kind *File*.
    pub fn kind(&self) -> TokenizerKind {
        match &self.engine {
            Engine::Bytes => TokenizerKind::Bytes,
            Engine::Library(library) => library.kind,
        }
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        match &self.engine {
            Engine::Bytes => BYTES_SEPARATOR as usize + 1,
            Engine::Library(library) => library.vocab,
        }
    }

    /// The id between documents: that of [`SEPARATOR_TOKEN`], else of `</s>`; `None` if the
    /// tokenizer has neither.
    pub fn separator(&self) -> Option<u32> {
        match &self.engine {
            Engine::Bytes => Some(BYTES_SEPARATOR),
            Engine::Library(library) => library.separator,
        }
    }

    /// The ids of `text`; no special tokens are added.
    ///
    /// # Errors
    /// [`DataError::Encode`] if a given tokenizer has no way to express the text. *Bpe* and
    /// *Bytes* express every text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let mut ids = self.encode_batch(&[text])?;
        Ok(ids.pop().unwrap_or_default())
    }

    /// The ids of each text, computed in parallel; the result does not depend on the number of
    /// threads.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], for the first text that fails.
    pub fn encode_batch<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Vec<u32>>, DataError> {
        let library = match &self.engine {
            Engine::Bytes => {
                let bytes = |text: &S| text.as_ref().bytes().map(u32::from).collect();
                return Ok(texts.iter().map(bytes).collect());
            }
            Engine::Library(library) => library,
        };
        let mut jobs: Vec<(usize, &str)> = Vec::new();
        for (at, text) in texts.iter().enumerate() {
            let text = text.as_ref();
            let size = if library.divisible { PIECE_BYTES } else { text.len() };
            jobs.extend(pieces(text, size).map(|piece| (at, piece)));
        }
        // Collected before looking for errors, so that it is always the first one that is reported.
        let encoded: Vec<Result<Vec<u32>, DataError>> =
            jobs.par_iter().map(|(_, piece)| library.encode_piece(piece)).collect();
        let mut ids: Vec<Vec<u32>> = vec![Vec::new(); texts.len()];
        for ((at, _), piece) in jobs.iter().zip(encoded) {
            let piece = piece?;
            if ids[*at].is_empty() {
                ids[*at] = piece;
            } else {
                ids[*at].extend_from_slice(&piece);
            }
        }
        Ok(ids)
    }

    /// The text of `ids`, special tokens included. Bytes that are not UTF-8, as at a cut through
    /// a character, and ids outside the vocabulary become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        match &self.engine {
            Engine::Bytes => {
                let mut bytes = Vec::with_capacity(ids.len());
                for &id in ids {
                    match u8::try_from(id) {
                        Ok(byte) => bytes.push(byte),
                        Err(_) if id == BYTES_SEPARATOR => {
                            bytes.extend_from_slice(SEPARATOR_TOKEN.as_bytes());
                        }
                        Err(_) => bytes.extend_from_slice("\u{FFFD}".as_bytes()),
                    }
                }
                String::from_utf8_lossy(&bytes).into_owned()
            }
            Engine::Library(library) => library.decode(ids),
        }
    }

    /// The `tokenizer.json`. A file that was given is passed on unchanged.
    pub fn to_json(&self) -> String {
        match &self.engine {
            Engine::Bytes => format!("{:#}\n", bytes_json()),
            Engine::Library(library) => library.json.clone(),
        }
    }

    /// Writes `tokenizer.json` into the folder `dir`.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn save(&self, dir: &Path) -> Result<(), DataError> {
        let path = dir.join("tokenizer.json");
        files::write(&path, self.to_json().as_bytes()).map_err(DataError::io("write", &path))
    }
}

impl Library {
    fn parse(json: String, kind: TokenizerKind) -> Result<Self, String> {
        let mut value: Value = serde_json::from_str(&json).map_err(|e| e.to_string())?;
        let divisible = is_divisible(&value);
        let dropout = value.get("model").and_then(|model| model.get("dropout"));
        let mut inner: tokenizers::Tokenizer = if dropout.is_some_and(|d| !d.is_null()) {
            value["model"]["dropout"] = Value::Null;
            value.to_string().parse()
        } else {
            json.parse()
        }
        .map_err(|error: tokenizers::Error| error.to_string())?;
        inner.with_truncation(None).map_err(|error| error.to_string())?;
        inner.with_padding(None);
        inner.set_encode_special_tokens(true);
        // Ids may have gaps, so that their number says less than the largest.
        let vocab = inner.get_vocab(true).into_values().max();
        let vocab = vocab.ok_or("its vocabulary is empty")? as usize + 1;
        let separator = inner.token_to_id(SEPARATOR_TOKEN).or_else(|| inner.token_to_id("</s>"));
        Ok(Self { kind, inner, json, vocab, separator, divisible })
    }

    fn encode_piece(&self, piece: &str) -> Result<Vec<u32>, DataError> {
        let encoding = self.inner.encode_fast(piece, false).map_err(|error| DataError::Encode {
            text: piece.chars().take(24).collect(),
            reason: error.to_string(),
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    fn decode(&self, ids: &[u32]) -> String {
        // The library drops ids it does not know; they are shown instead.
        let known = |id: &u32| self.inner.id_to_token(*id).is_some();
        let mut text = String::new();
        for run in ids.chunk_by(|a, b| known(a) == known(b)) {
            if known(&run[0]) {
                text.push_str(&self.inner.decode(run, false).unwrap_or_default());
            } else {
                text.extend(run.iter().map(|_| '\u{FFFD}'));
            }
        }
        text
    }
}

fn separator_token() -> AddedToken {
    AddedToken::from(SEPARATOR_TOKEN, true)
}

/// Cuts `text` into pieces of about `size` bytes, at places where GPT-2's pattern always ends a
/// word: between a single newline and the characters around it, neither of them white space. A
/// text without such a place stays whole. At any other newline the pattern looks across it
/// (`\s+(?!\S)`), and the ids could change.
fn pieces(text: &str, size: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let from = rest.floor_char_boundary(size);
        let cut = rest[from..]
            .match_indices('\n')
            .map(|(at, _)| from + at)
            .find(|&at| {
                let before = rest[..at].chars().next_back();
                let after = rest[at + 1..].chars().next();
                let is_word = |c: Option<char>| c.is_some_and(|c| !c.is_whitespace());
                is_word(before) && is_word(after)
            })
            .map_or(rest.len(), |at| at + 1);
        let (piece, tail) = rest.split_at(cut);
        rest = tail;
        Some(piece)
    })
}

/// Whether a `tokenizer.json` works on words by GPT-2's pattern alone, so that [`pieces`] holds:
/// no normaliser, no space put in front, no added token that ordinary text is searched for.
fn is_divisible(value: &Value) -> bool {
    let pre = &value["pre_tokenizer"];
    let all_special = value["added_tokens"]
        .as_array()
        .is_none_or(|tokens| tokens.iter().all(|token| token["special"] == json!(true)));
    value["normalizer"].is_null()
        && pre["type"] == json!("ByteLevel")
        && pre["add_prefix_space"] == json!(false)
        && pre["use_regex"] != json!(false)
        && all_special
}

/// The model of a byte-level BPE in the terms of the library.
fn bpe_json(vocab: Value, merges: Value) -> Value {
    json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": null,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": false,
        "byte_fallback": false,
        "ignore_merges": false,
        "vocab": vocab,
        "merges": merges,
    })
}

/// The bytes kind in the terms of the library: one symbol for each byte, no merges.
fn bytes_json() -> Value {
    let vocab: serde_json::Map<String, Value> =
        (0..=255_u8).map(|byte| (byte_symbol(byte).to_string(), json!(byte))).collect();
    let byte_level = json!({
        "type": "ByteLevel",
        "add_prefix_space": false,
        "trim_offsets": false,
        "use_regex": false,
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{
            "id": BYTES_SEPARATOR,
            "content": SEPARATOR_TOKEN,
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": false,
            "special": true,
        }],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": bpe_json(json!(vocab), json!([])),
    })
}

/// GPT-2's printable stand-in for a byte: the byte's own Latin-1 character where that can be
/// seen, else the next free one from U+0100 on.
fn byte_symbol(byte: u8) -> char {
    let visible = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if visible(byte) {
        char::from(byte)
    } else {
        let before = (0..byte).filter(|&b| !visible(b)).count() as u32;
        // U+0100 to U+0143 are all characters.
        char::from_u32(0x100 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
    }
}

#[cfg(test)]
mod tests;
