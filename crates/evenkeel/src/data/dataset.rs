//! A folder of token shards, read as two long sequences of ids.
//!
//! The folder holds `train_*.bin`, `val_*.bin`, `tokenizer.json` and `data.json`, which
//! [`mod@super::tokenize`] writes. [`Dataset::open`] also takes one shard file, and a folder of shards
//! without `data.json` whose names contain `_train_` or `_val_`, as the FineWeb shards for llm.c
//! do; the vocabulary is then unknown until [`Dataset::limit_vocab`] says what the model has.
//! [`Dataset::read`] reads across shard boundaries as if there were none.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::DataError;
use super::shards::{Shard, TokenDtype};
use super::tokenizer::{Tokenizer, TokenizerKind};

/// The name of the file that describes a folder.
pub const DATA_JSON: &str = "data.json";
/// The version of `data.json` that is written and read.
pub const SCHEMA: u32 = 1;

/// Which tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// Those to train on.
    Train,
    /// Those kept for validation.
    Val,
}

impl Split {
    /// "train" or "val", as in file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
        }
    }
}

/// The content of `data.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataJson {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The vocabulary size: every id is below it.
    pub vocab: usize,
    /// The type of the ids in the shards.
    pub dtype: TokenDtype,
    /// The id after each document; `None` if the tokenizer has none.
    pub separator: Option<u32>,
    /// What there is to train on.
    pub train: SplitCounts,
    /// What is kept for validation.
    pub val: SplitCounts,
    /// What made the ids.
    pub tokenizer: TokenizerKind,
    /// What the text was read from.
    pub source: SourceCounts,
    /// Bytes of text for each token, separators counted as tokens.
    pub bytes_per_token: f64,
}

/// The size of a split.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitCounts {
    /// Tokens, separators included.
    pub tokens: u64,
    /// Documents.
    pub documents: u64,
    /// Shard files.
    pub shards: usize,
}

/// The size of the text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceCounts {
    /// Files that were read.
    pub files: u64,
    /// Bytes of text in them.
    pub bytes: u64,
}

/// Tokens of both splits, opened and checked.
#[derive(Debug)]
pub struct Dataset {
    path: PathBuf,
    train: Tokens,
    val: Tokens,
    vocab: Option<usize>,
    json: Option<DataJson>,
}

/// Stores one after the other, each with the position of its first token.
#[derive(Debug, Default)]
struct Tokens {
    stores: Vec<(u64, Store)>,
    len: u64,
}

#[derive(Debug)]
enum Store {
    Shard(Shard),
    Memory(Vec<u32>),
}

impl Dataset {
    /// Opens a data folder, or one shard file as training data.
    ///
    /// # Errors
    /// [`DataError::DatasetMissing`], [`DataError::NoShards`], [`DataError::DataJson`],
    /// [`DataError::DataJsonCounts`] if shards are missing, the errors of [`Shard::open`].
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let metadata = fs::metadata(path).map_err(|reason| match reason.kind() {
            std::io::ErrorKind::NotFound => DataError::DatasetMissing { path: path.to_path_buf() },
            _ => DataError::io("read", path)(reason),
        })?;
        if !metadata.is_dir() {
            return Self::from_shards(vec![path.to_path_buf()], Vec::new());
        }
        let json = read_data_json(path)?;
        let train = shard_paths(path, Split::Train, json.is_some())?;
        let val = shard_paths(path, Split::Val, json.is_some())?;
        if train.is_empty() {
            return Err(DataError::NoShards { path: path.to_path_buf() });
        }
        let mut dataset = Self::from_shards(train, val)?;
        dataset.path = path.to_path_buf();
        if let Some(json) = json {
            let splits = [(Split::Train, json.train), (Split::Val, json.val)];
            for (split, counts) in splits {
                let found = dataset.tokens(split);
                if (found.len, found.stores.len()) != (counts.tokens, counts.shards) {
                    return Err(DataError::DataJsonCounts {
                        path: path.join(DATA_JSON),
                        split: split.name(),
                        expected_tokens: counts.tokens,
                        expected_shards: counts.shards,
                        found_tokens: found.len,
                        found_shards: found.stores.len(),
                    });
                }
            }
            dataset.vocab = Some(json.vocab);
            dataset.json = Some(json);
        }
        Ok(dataset)
    }

    /// Opens shard files in the order given. The vocabulary is unknown.
    ///
    /// # Errors
    /// Those of [`Shard::open`]; [`DataError::NoInputs`] if `train` and `val` are empty.
    pub fn from_shards(train: Vec<PathBuf>, val: Vec<PathBuf>) -> Result<Self, DataError> {
        let path = train.first().or(val.first()).ok_or(DataError::NoInputs)?;
        Ok(Self {
            path: path.clone(),
            train: Tokens::open(&train)?,
            val: Tokens::open(&val)?,
            vocab: None,
            json: None,
        })
    }

    /// Tokens that are in memory already, such as those of one text. Ids are checked as they are
    /// read.
    pub fn from_memory(train: Vec<u32>, val: Vec<u32>, vocab: usize) -> Self {
        let tokens = |ids: Vec<u32>| Tokens { len: ids.len() as u64, stores: vec![(0, Store::Memory(ids))] };
        Self {
            path: PathBuf::from("memory"),
            train: tokens(train),
            val: tokens(val),
            vocab: Some(vocab),
            json: None,
        }
    }

    /// The folder, or the first shard.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `data.json`, where there is one.
    pub fn data_json(&self) -> Option<&DataJson> {
        self.json.as_ref()
    }

    /// The vocabulary size, where it is known: every id that [`Dataset::read`] gives is below it.
    pub fn vocab(&self) -> Option<usize> {
        self.vocab
    }

    /// The type of the ids in the first shard; `None` in memory.
    pub fn dtype(&self) -> Option<TokenDtype> {
        let stores = self.train.stores.iter().chain(&self.val.stores);
        stores
            .filter_map(|(_, store)| match store {
                Store::Shard(shard) => Some(shard.dtype()),
                Store::Memory(_) => None,
            })
            .next()
    }

    /// The number of shard files of a split.
    pub fn shards(&self, split: Split) -> usize {
        let stores = self.tokens(split).stores.iter();
        stores.filter(|(_, store)| matches!(store, Store::Shard(_))).count()
    }

    /// Says which vocabulary is to read the tokens, `limit` ids from 0 on. Where that of the data
    /// is known, the two are compared; where it is not, each id is checked as it is read.
    ///
    /// # Errors
    /// [`DataError::VocabBeyond`] if the data have a larger vocabulary.
    pub fn limit_vocab(&mut self, limit: usize) -> Result<(), DataError> {
        match self.vocab {
            Some(data) if data > limit => {
                Err(DataError::VocabBeyond { path: self.path.clone(), data, limit })
            }
            Some(_) => Ok(()),
            None => {
                self.vocab = Some(limit);
                Ok(())
            }
        }
    }

    /// The tokenizer that is stored with the shards, if there is one.
    ///
    /// # Errors
    /// [`DataError::TokenizerParse`], [`DataError::Io`]; [`DataError::TokenizerVocab`] if it is
    /// not the one that wrote the shards.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>, DataError> {
        let path = self.path.join("tokenizer.json");
        if !path.is_file() {
            return Ok(None);
        }
        let tokenizer = Tokenizer::load(&path)?;
        let found = tokenizer.vocab_size();
        match &self.json {
            Some(json) if json.vocab != found => {
                Err(DataError::TokenizerVocab { path, found, expected: json.vocab })
            }
            _ => Ok(Some(tokenizer)),
        }
    }

    /// The number of tokens of a split.
    pub fn len(&self, split: Split) -> u64 {
        self.tokens(split).len
    }

    /// Whether a split has no tokens.
    pub fn is_empty(&self, split: Split) -> bool {
        self.len(split) == 0
    }

    /// Reads `out.len()` tokens of a split from position `start` on, across shards.
    ///
    /// # Errors
    /// [`DataError::OutOfRange`], [`DataError::IdBeyondVocab`], [`DataError::Io`].
    pub fn read(&self, split: Split, start: u64, out: &mut [u32]) -> Result<(), DataError> {
        let tokens = self.tokens(split);
        let end = start.saturating_add(out.len() as u64);
        if end > tokens.len {
            return Err(DataError::OutOfRange { split: split.name(), start, end, len: tokens.len });
        }
        // The last store that begins at or before `start`; empty ones before it are passed over.
        let mut at = tokens.stores.partition_point(|(first, _)| *first <= start).saturating_sub(1);
        let (mut start, mut out) = (start, out);
        while !out.is_empty() {
            let (first, store) = &tokens.stores[at];
            let within = start - first;
            let here = (store.len() - within).min(out.len() as u64) as usize;
            let (now, later) = out.split_at_mut(here);
            self.read_store(store, within, now)?;
            out = later;
            start += here as u64;
            at += 1;
        }
        Ok(())
    }

    fn read_store(&self, store: &Store, start: u64, out: &mut [u32]) -> Result<(), DataError> {
        match store {
            Store::Shard(shard) => shard.read(start, out, self.vocab),
            Store::Memory(ids) => {
                let from = start as usize;
                out.copy_from_slice(&ids[from..from + out.len()]);
                let vocab = self.vocab.unwrap_or(usize::MAX);
                match out.iter().position(|&id| id as usize >= vocab) {
                    Some(at) => Err(DataError::IdBeyondVocab {
                        path: self.path.clone(),
                        position: start + at as u64,
                        id: out[at],
                        vocab,
                    }),
                    None => Ok(()),
                }
            }
        }
    }

    fn tokens(&self, split: Split) -> &Tokens {
        match split {
            Split::Train => &self.train,
            Split::Val => &self.val,
        }
    }
}

impl Tokens {
    fn open(paths: &[PathBuf]) -> Result<Self, DataError> {
        let mut tokens = Tokens::default();
        for path in paths {
            let shard = Shard::open(path)?;
            let first = tokens.len;
            tokens.len += shard.len();
            tokens.stores.push((first, Store::Shard(shard)));
        }
        Ok(tokens)
    }
}

impl Store {
    fn len(&self) -> u64 {
        match self {
            Store::Shard(shard) => shard.len(),
            Store::Memory(ids) => ids.len() as u64,
        }
    }
}

/// The shards of a split in `dir`, sorted by name: `train_*.bin`, and unless they are `ours` alone
/// also `*_train_*.bin`.
pub(super) fn shard_paths(dir: &Path, split: Split, ours: bool) -> Result<Vec<PathBuf>, DataError> {
    let mut paths = Vec::new();
    let prefix = format!("{}_", split.name());
    for entry in fs::read_dir(dir).map_err(DataError::io("read", dir))? {
        let path = entry.map_err(DataError::io("read", dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let of_split = name.starts_with(&prefix) || (!ours && name.contains(&format!("_{prefix}")));
        if of_split && name.ends_with(".bin") && !name.starts_with('.') {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read_data_json(dir: &Path) -> Result<Option<DataJson>, DataError> {
    let path = dir.join(DATA_JSON);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(reason) if reason.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(reason) => return Err(DataError::io("read", &path)(reason)),
    };
    let wrong = |reason: String| DataError::DataJson { path: path.clone(), reason };
    let value: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    // Before the rest, of which another schema may have other keys.
    match value.get("schema").and_then(serde_json::Value::as_u64) {
        Some(schema) if schema == u64::from(SCHEMA) => {}
        Some(schema) => {
            return Err(wrong(format!("expected schema {SCHEMA}, found schema {schema}")));
        }
        None => return Err(wrong(format!("expected the key `schema` with {SCHEMA}"))),
    }
    let json: DataJson = serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?;
    if json.separator.is_some_and(|id| id as usize >= json.vocab) {
        return Err(wrong("the separator is outside the vocabulary".into()));
    }
    Ok(Some(json))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::shards::ShardWriter;
    use proptest::prelude::*;

    fn write_shard(path: &Path, ids: &[u32]) {
        let mut writer = ShardWriter::create(path, TokenDtype::Uint16).unwrap();
        writer.write(ids).unwrap();
        writer.finish().unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn shard_boundaries_do_not_show(
            sizes in proptest::collection::vec(0_u32..6, 1..8),
            from in 0_usize..40,
            to in 0_usize..40,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut next = 0;
            for (at, size) in sizes.iter().enumerate() {
                let ids: Vec<u32> = (next..next + size).collect();
                next += size;
                write_shard(&dir.path().join(format!("train_{at:06}.bin")), &ids);
            }
            let dataset = Dataset::open(dir.path()).unwrap();
            prop_assert_eq!(dataset.len(Split::Train), u64::from(next));
            let (from, to) = (from.min(to) as u32, from.max(to) as u32);
            let mut out = vec![0; (to - from) as usize];
            let result = dataset.read(Split::Train, u64::from(from), &mut out);
            if to <= next {
                prop_assert_eq!(out, (from..to).collect::<Vec<u32>>());
            } else {
                prop_assert!(matches!(result, Err(DataError::OutOfRange { .. })), "{:?}", result);
            }
        }
    }

    #[test]
    fn folders_without_data_json_and_single_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        write_shard(&dir.path().join("fineweb_train_000002.bin"), &[3, 4]);
        write_shard(&dir.path().join("fineweb_train_000001.bin"), &[1, 2]);
        write_shard(&dir.path().join("fineweb_val_000000.bin"), &[9]);
        let mut dataset = Dataset::open(dir.path()).unwrap();
        let mut out = [0; 4];
        dataset.read(Split::Train, 0, &mut out).unwrap();
        assert_eq!(out, [1, 2, 3, 4]);
        assert_eq!((dataset.len(Split::Val), dataset.vocab()), (1, None));
        assert!(dataset.tokenizer().unwrap().is_none());
        dataset.limit_vocab(9).unwrap();
        let beyond = dataset.read(Split::Val, 0, &mut out[..1]);
        assert!(matches!(beyond, Err(DataError::IdBeyondVocab { id: 9, .. })));
        let one = Dataset::open(&dir.path().join("fineweb_val_000000.bin")).unwrap();
        assert_eq!((one.len(Split::Train), one.len(Split::Val)), (1, 0));
    }

    #[test]
    fn memory_is_read_like_shards() {
        let mut dataset = Dataset::from_memory(vec![1, 2, 3], vec![], 3);
        let mut out = [0; 2];
        dataset.read(Split::Train, 0, &mut out).unwrap();
        assert_eq!(out, [1, 2]);
        assert!(matches!(
            dataset.read(Split::Train, 1, &mut out),
            Err(DataError::IdBeyondVocab { position: 2, .. })
        ));
        dataset.limit_vocab(5).unwrap();
        assert!(matches!(dataset.limit_vocab(2), Err(DataError::VocabBeyond { data: 3, limit: 2, .. })));
    }

    #[test]
    fn what_is_no_dataset_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let open = |path: &Path| Dataset::open(path).unwrap_err();
        assert!(matches!(open(&dir.path().join("none")), DataError::DatasetMissing { .. }));
        assert!(matches!(open(dir.path()), DataError::NoShards { .. }));
        write_shard(&dir.path().join("train_000000.bin"), &[1]);
        for wrong in ["{", "{}", "{\"schema\": 2}", "{\"schema\": 1, \"vocab\": -1}"] {
            fs::write(dir.path().join(DATA_JSON), wrong).unwrap();
            assert!(matches!(open(dir.path()), DataError::DataJson { .. }), "{wrong}");
        }
    }
}
