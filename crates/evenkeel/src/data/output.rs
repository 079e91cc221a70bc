//! The writing side of a data folder.
//!
//! [`Writers`] spreads the ids of both splits over shards of a given size. [`Staging`] is a hidden
//! folder beside or inside the one that is to appear; it is renamed when everything is in it, and
//! removed if that never happens. Into a folder that is there already the files are moved one by
//! one, `data.json` last.

use std::fs;
use std::path::{Path, PathBuf};

use super::dataset::{DATA_JSON, Split, SplitCounts, shard_paths};
use super::error::DataError;
use super::shards::{ShardWriter, TokenDtype};
use super::tokenizer::Tokenizer;
use crate::files;

/// The shards of both splits, each begun when the one before is full.
pub(super) struct Writers {
    dir: PathBuf,
    dtype: TokenDtype,
    separator: Option<u32>,
    shard_tokens: u64,
    train: SplitWriter,
    val: SplitWriter,
}

#[derive(Default)]
struct SplitWriter {
    open: Option<ShardWriter>,
    counts: SplitCounts,
}

impl Writers {
    /// Nothing is created before the first token.
    pub(super) fn new(dir: &Path, tokenizer: &Tokenizer, shard_tokens: u64) -> Self {
        Self {
            dir: dir.to_path_buf(),
            dtype: TokenDtype::for_vocab(tokenizer.vocab_size()),
            separator: tokenizer.separator(),
            shard_tokens,
            train: SplitWriter::default(),
            val: SplitWriter::default(),
        }
    }

    /// Appends a document and the separator to a split.
    ///
    /// # Errors
    /// Those of [`ShardWriter`].
    pub(super) fn append(&mut self, split: Split, ids: &[u32]) -> Result<(), DataError> {
        self.write(split, ids)?;
        if let Some(separator) = self.separator {
            self.write(split, &[separator])?;
        }
        self.writer(split).counts.documents += 1;
        Ok(())
    }

    fn write(&mut self, split: Split, mut ids: &[u32]) -> Result<(), DataError> {
        let (dtype, shard_tokens, dir) = (self.dtype, self.shard_tokens, self.dir.clone());
        let writer = self.writer(split);
        while !ids.is_empty() {
            let mut shard = match writer.open.take() {
                Some(shard) => shard,
                None => {
                    let name = format!("{}_{:06}.bin", split.name(), writer.counts.shards);
                    writer.counts.shards += 1;
                    ShardWriter::create(&dir.join(name), dtype)?
                }
            };
            let room = (shard_tokens - shard.tokens()).min(ids.len() as u64) as usize;
            let (now, later) = ids.split_at(room);
            shard.write(now)?;
            writer.counts.tokens += room as u64;
            ids = later;
            if shard.tokens() == shard_tokens {
                shard.finish()?;
            } else {
                writer.open = Some(shard);
            }
        }
        Ok(())
    }

    fn writer(&mut self, split: Split) -> &mut SplitWriter {
        match split {
            Split::Train => &mut self.train,
            Split::Val => &mut self.val,
        }
    }

    /// Tokens written so far, separators included.
    pub(super) fn tokens(&self) -> u64 {
        self.train.counts.tokens + self.val.counts.tokens
    }

    /// Completes the last shards. Returns what was written for training and for validation.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub(super) fn finish(self) -> Result<(SplitCounts, SplitCounts), DataError> {
        let counts = (self.train.counts, self.val.counts);
        for shard in [self.train.open, self.val.open].into_iter().flatten() {
            shard.finish()?;
        }
        Ok(counts)
    }
}

/// The folder in the making; removed when dropped.
pub(super) struct Staging {
    path: PathBuf,
    out: PathBuf,
    /// `out` exists, and the new files have to be moved into it one by one.
    into_existing: bool,
}

impl Staging {
    /// Creates the hidden folder.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub(super) fn create(out: &Path) -> Result<Self, DataError> {
        let into_existing = out.is_dir();
        // Inside a folder that exists, since that may be a mount point of its own.
        let path = if into_existing {
            files::partial_name(&out.join("data"))
        } else {
            if let Some(parent) = out.parent() {
                fs::create_dir_all(parent).map_err(DataError::io("create", parent))?;
            }
            files::partial_name(out)
        };
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).map_err(DataError::io("create", &path))?;
        Ok(Self { path, out: out.to_path_buf(), into_existing })
    }

    /// Where to write.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the new files appear in the place of the old ones.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub(super) fn install(self) -> Result<(), DataError> {
        let out = &self.out;
        if !self.into_existing {
            fs::rename(&self.path, out).map_err(DataError::io("write", out))?;
            files::sync_folder_of(out);
            return Ok(());
        }
        // The description goes first and comes last, so that it never describes other shards.
        let mut old = vec![out.join(DATA_JSON), out.join("tokenizer.json")];
        old.extend(shard_paths(out, Split::Train, true)?);
        old.extend(shard_paths(out, Split::Val, true)?);
        for path in old {
            match fs::remove_file(&path) {
                Err(reason) if reason.kind() != std::io::ErrorKind::NotFound => {
                    return Err(DataError::io("replace", &path)(reason));
                }
                _ => {}
            }
        }
        let mut new = shard_paths(&self.path, Split::Train, true)?;
        new.extend(shard_paths(&self.path, Split::Val, true)?);
        new.push(self.path.join("tokenizer.json"));
        new.push(self.path.join(DATA_JSON));
        for from in new {
            let to = out.join(from.file_name().unwrap_or_default());
            fs::rename(&from, &to).map_err(DataError::io("write", &to))?;
        }
        files::sync_folder_of(&out.join(DATA_JSON));
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_may_lie_across_shards() {
        let dir = tempfile::tempdir().unwrap();
        let mut writers = Writers::new(dir.path(), &Tokenizer::bytes(), 3);
        writers.append(Split::Train, &[1, 2, 3, 4]).unwrap();
        writers.append(Split::Val, &[5]).unwrap();
        writers.append(Split::Train, &[]).unwrap();
        assert_eq!(writers.tokens(), 8);
        let (train, val) = writers.finish().unwrap();
        // Six tokens fill two shards exactly, and no third one is begun.
        assert_eq!((train.tokens, train.documents, train.shards), (6, 2, 2));
        assert_eq!((val.tokens, val.documents, val.shards), (2, 1, 1));
        let paths = shard_paths(dir.path(), Split::Train, true).unwrap();
        assert_eq!(paths.len(), 2);
    }

    #[test]
    fn only_our_own_files_are_replaced() {
        let out = tempfile::tempdir().unwrap();
        for name in ["data.json", "train_000009.bin", "fineweb_train_000001.bin", "a.txt"] {
            fs::write(out.path().join(name), "old").unwrap();
        }
        let staging = Staging::create(out.path()).unwrap();
        for name in ["data.json", "tokenizer.json", "train_000000.bin"] {
            fs::write(staging.path().join(name), "new").unwrap();
        }
        staging.install().unwrap();
        let mut names: Vec<String> = fs::read_dir(out.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(
            names,
            ["a.txt", "data.json", "fineweb_train_000001.bin", "tokenizer.json", "train_000000.bin"]
        );
        assert_eq!(fs::read(out.path().join("data.json")).unwrap(), b"new");
    }

    #[test]
    fn what_is_not_installed_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::create(&dir.path().join("out")).unwrap();
        fs::write(staging.path().join("x"), "x").unwrap();
        drop(staging);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
