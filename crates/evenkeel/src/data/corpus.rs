//! Documents from files and folders.
//!
//! A text file is one document; a `.jsonl` file has one for each line and a `.parquet` file one for each row, under a
//! key or in a column ("text" unless told otherwise); gzip and zstd are unpacked on the way. [`Corpus::find`] lists the
//! files: inputs in the order given, the files of a folder sorted by path, each file once. In folders hidden names are
//! left out and globs apply; a glob without `/` is held against the file name at any depth, one with `/` against the
//! path below the folder, as in ripgrep. Files named outright are taken as they are. In a folder that is a dataset of
//! Hugging Face only its data is read, and the splits that its names say are kept apart ([`Corpus::take_validation`]).
//!
//! [`Corpus::documents`] then reads one file after the other, so that a corpus is never in memory
//! as a whole. What is not UTF-8 text is an error in a file named outright and is skipped, and
//! reported as [`Skipped`], in a file that was merely found. A byte order mark is dropped: as a
//! token it would teach nothing.

mod documents;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use walkdir::WalkDir;

use super::error::DataError;
use super::splits;
pub use documents::Documents;

/// The key of a `.jsonl` line, or the column of a table, that holds the text, unless told otherwise.
pub const DEFAULT_TEXT_KEY: &str = "text";

/// A text and where it is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The path of the file, with the line for a `.jsonl` file, counted from 1 ("a.jsonl:3"), and the row for a `.parquet`
    /// file, counted from 0.
    pub name: String,
    /// The text, UTF-8 without a byte order mark. May be empty.
    pub text: String,
}

/// Which files make a corpus.
#[derive(Debug, Clone)]
pub struct CorpusSettings {
    /// Files and folders.
    pub inputs: Vec<PathBuf>,
    /// What to take from folders; empty takes all.
    pub globs: Vec<String>,
    /// The key of the text in a `.jsonl` line, or its column in a table.
    pub text_key: String,
}

impl CorpusSettings {
    /// All of `inputs`, with no glob and the default text key.
    pub fn new(inputs: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        Self {
            inputs: inputs.into_iter().map(Into::into).collect(),
            globs: Vec::new(),
            text_key: DEFAULT_TEXT_KEY.to_owned(),
        }
    }
}

/// Why a file that was found in a folder is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SkipReason {
    /// It holds a NUL byte.
    Binary,
    /// It is not UTF-8.
    NotUtf8,
    /// It is a symbolic link to nothing, or to a folder that contains it.
    BrokenLink,
}

/// A file that was found in a folder and not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub reason: SkipReason,
}

/// What reading meets next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A document.
    Document(Document),
    /// A file that is left out.
    Skipped(Skipped),
    /// So many rows of a table that have no text (null), not even an empty one.
    Nulls(u64),
}

#[derive(Debug, Clone)]
struct CorpusFile {
    path: PathBuf,
    /// Named by the user rather than found in a folder.
    outright: bool,
}

/// The files of a corpus, found and not yet read.
#[derive(Debug, Clone)]
pub struct Corpus {
    files: Vec<CorpusFile>,
    /// Validation splits of datasets.
    validation: Vec<CorpusFile>,
    /// Test splits of datasets.
    test: Vec<PathBuf>,
    broken: Vec<Skipped>,
    text_key: String,
    inputs: String,
}

impl Corpus {
    /// Lists the files that `settings` ask for.
    ///
    /// # Errors
    /// [`DataError::NoInputs`], [`DataError::PathMissing`], [`DataError::BadGlob`],
    /// [`DataError::NothingFound`], [`DataError::Io`] for a folder that cannot be listed.
    pub fn find(settings: &CorpusSettings) -> Result<Self, DataError> {
        if settings.inputs.is_empty() {
            return Err(DataError::NoInputs);
        }
        let globs = build_globs(&settings.globs)?;
        let mut corpus = Corpus {
            files: Vec::new(),
            validation: Vec::new(),
            test: Vec::new(),
            broken: Vec::new(),
            text_key: settings.text_key.clone(),
            inputs: join_paths(&settings.inputs),
        };
        for input in &settings.inputs {
            let metadata = fs::metadata(input).map_err(|reason| match reason.kind() {
                std::io::ErrorKind::NotFound => DataError::PathMissing { path: input.clone() },
                _ => DataError::io("read", input)(reason),
            })?;
            if metadata.is_dir() {
                corpus.walk(input, globs.as_ref())?;
            } else {
                corpus.files.push(CorpusFile { path: input.clone(), outright: true });
            }
        }
        corpus.drop_repeats();
        if corpus.files.is_empty() {
            return Err(DataError::NothingFound { inputs: corpus.inputs, globs: settings.globs.clone() });
        }
        Ok(corpus)
    }

    fn walk(&mut self, folder: &Path, globs: Option<&GlobSet>) -> Result<(), DataError> {
        let mut found = Vec::new();
        let walk = WalkDir::new(folder).follow_links(true).into_iter();
        // Depth 0 is the folder itself, which may be called `.` or `.cache`: it was asked for.
        for entry in walk.filter_entry(|entry| entry.depth() == 0 || !is_hidden(entry.file_name())) {
            match entry {
                Ok(entry) if entry.file_type().is_file() => found.push(entry.into_path()),
                Ok(_) => {}
                Err(error) => {
                    let path = error.path().unwrap_or(folder).to_path_buf();
                    let dangling = path.symlink_metadata().is_ok_and(|m| m.is_symlink());
                    if error.loop_ancestor().is_some() || dangling {
                        self.broken.push(Skipped { path, reason: SkipReason::BrokenLink });
                    } else {
                        let reason = error
                            .into_io_error()
                            .unwrap_or_else(|| std::io::Error::other("the folder cannot be listed"));
                        return Err(DataError::io("read", &path)(reason));
                    }
                }
            }
        }
        found.retain(|path| {
            let below = path.strip_prefix(folder).unwrap_or(path);
            globs.is_none_or(|globs| globs.is_match(below))
        });
        // `Path` compares component by component, the same way on every platform.
        found.sort();
        let file = |path| CorpusFile { path, outright: false };
        let Some(splits) = splits::sort(folder, &found) else {
            self.files.extend(found.into_iter().map(file));
            return Ok(());
        };
        if let Some(path) = splits.train.iter().find(|path| splits::is_arrow(path)) {
            return Err(DataError::Arrow { path: path.clone() });
        }
        self.files.extend(splits.train.into_iter().map(file));
        self.validation.extend(splits.validation.into_iter().map(file));
        self.test.extend(splits.test);
        Ok(())
    }

    /// A file that is named twice, or named and found, is read once: a document that is in the
    /// corpus twice could be on both sides of the validation split.
    fn drop_repeats(&mut self) {
        let mut first: HashMap<PathBuf, usize> = HashMap::new();
        let mut kept: Vec<CorpusFile> = Vec::with_capacity(self.files.len());
        let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        for file in self.files.drain(..) {
            match first.entry(real(&file.path)) {
                Entry::Occupied(at) => kept[*at.get()].outright |= file.outright,
                Entry::Vacant(new) => {
                    new.insert(kept.len());
                    kept.push(file);
                }
            }
        }
        self.files = kept;
        self.validation.retain(|file| first.insert(real(&file.path), usize::MAX).is_none());
        self.test.retain(|path| !first.contains_key(&real(path)));
    }

    /// Takes the validation splits of the datasets among the inputs out of the corpus; `None` if there are none.
    pub fn take_validation(&mut self) -> Option<Corpus> {
        let files = std::mem::take(&mut self.validation);
        (!files.is_empty()).then(|| Corpus {
            files,
            validation: Vec::new(),
            test: Vec::new(),
            broken: Vec::new(),
            text_key: self.text_key.clone(),
            inputs: self.inputs.clone(),
        })
    }

    /// Files of test splits, which are no part of the corpus.
    pub fn test_files(&self) -> &[PathBuf] {
        &self.test
    }

    /// The files, in the order in which they are read.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// The inputs as given, joined by commas, for messages.
    pub fn inputs(&self) -> &str {
        &self.inputs
    }

    /// Leaves out the files for which `keep` is false. It is given the path as found, and whether
    /// the file was named outright.
    pub fn retain(&mut self, mut keep: impl FnMut(&Path, bool) -> bool) {
        self.files.retain(|file| keep(&file.path, file.outright));
    }

    /// Reads the files one after the other. Empty documents are among the results; blank lines of
    /// `.jsonl` files are not.
    ///
    /// # Errors
    /// Each item may be [`DataError::Io`], [`DataError::Binary`], [`DataError::NotUtf8`],
    /// [`DataError::JsonlLine`], [`DataError::JsonlText`], [`DataError::Packed`], [`DataError::TextTooLong`],
    /// [`DataError::Parquet`] or [`DataError::Arrow`]; after an error the iterator ends.
    pub fn documents(&self) -> Documents<'_> {
        Documents::new(self)
    }

    /// Reads everything into memory: the documents that hold text, and what was skipped.
    ///
    /// # Errors
    /// As [`Corpus::documents`]; [`DataError::AllSkipped`] or [`DataError::AllEmpty`] if there is
    /// no text at all.
    pub fn read_all(&self) -> Result<(Vec<Document>, Vec<Skipped>), DataError> {
        self.collect(self.documents(), u64::MAX)
    }

    fn collect(
        &self,
        found: impl Iterator<Item = Result<Found, DataError>>,
        max_bytes: u64,
    ) -> Result<(Vec<Document>, Vec<Skipped>), DataError> {
        let mut documents = Vec::new();
        let mut skipped = Vec::new();
        let mut left = max_bytes;
        for found in found {
            match found? {
                Found::Skipped(file) => skipped.push(file),
                Found::Nulls(_) => {}
                Found::Document(document) if document.text.is_empty() => {}
                Found::Document(mut document) => {
                    let bytes = document.text.len() as u64;
                    if bytes > left {
                        if documents.is_empty() {
                            cut_at_line(&mut document.text, left as usize);
                            documents.push(document);
                        }
                        break;
                    }
                    left -= bytes;
                    documents.push(document);
                }
            }
        }
        documents.retain(|document| !document.text.is_empty());
        if documents.is_empty() {
            return Err(self.no_text(skipped.len()));
        }
        Ok((documents, skipped))
    }

    /// The error for a corpus without text, `skipped` of whose files were skipped.
    pub(super) fn no_text(&self, skipped: usize) -> DataError {
        let inputs = self.inputs.clone();
        if skipped > 0 && skipped >= self.files.len() + self.broken.len() {
            DataError::AllSkipped { inputs, skipped }
        } else {
            DataError::AllEmpty { inputs }
        }
    }
}

/// Documents of `corpus` in order, up to `max_bytes` of text, and what was skipped on the way. It
/// stops before the document that would pass the cap; if that is the first one, its beginning is
/// taken, up to the end of a line. No file is read much beyond the cap.
///
/// # Errors
/// As [`Corpus::read_all`].
pub fn read_capped(corpus: &Corpus, max_bytes: u64) -> Result<(Vec<Document>, Vec<Skipped>), DataError> {
    // The first file may be larger than memory; of the others only the length counts, so that a
    // limit on each does no harm.
    let found = corpus.documents();
    let limited = Limited {
        inner: found,
        // More than the cap by a byte order mark and a cut character, so that a text that was cut
        // is still seen to pass it.
        limit: max_bytes.saturating_add(8),
    };
    corpus.collect(limited, max_bytes)
}

struct Limited<'a> {
    inner: Documents<'a>,
    limit: u64,
}

impl Iterator for Limited<'_> {
    type Item = Result<Found, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.inner.next_limited(self.limit)
    }
}

/// Shortens `text` to at most `max_bytes`, at the end of a line if there is one.
fn cut_at_line(text: &mut String, max_bytes: usize) {
    let end = text.floor_char_boundary(max_bytes.min(text.len()));
    let end = text[..end].rfind('\n').map_or(end, |newline| newline + 1);
    text.truncate(end);
}

fn build_globs(globs: &[String]) -> Result<Option<GlobSet>, DataError> {
    if globs.is_empty() {
        return Ok(None);
    }
    let bad = |glob: &str, error: globset::Error| DataError::BadGlob {
        glob: glob.to_owned(),
        reason: error.kind().to_string(),
    };
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        let anywhere = if glob.contains('/') { glob.clone() } else { format!("**/{glob}") };
        let built =
            GlobBuilder::new(&anywhere).literal_separator(true).build().map_err(|error| bad(glob, error))?;
        set.add(built);
    }
    set.build().map(Some).map_err(|error| bad(&globs.join(", "), error))
}

fn is_hidden(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

pub(super) fn join_paths(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
    paths.join(", ")
}

#[cfg(test)]
mod tests;
