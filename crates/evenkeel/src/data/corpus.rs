//! Documents from files and folders.
//!
//! A text file is one document; a `.jsonl` file has one for each line, under a key ("text" unless
//! told otherwise). [`Corpus::find`] lists the files: inputs in the order given, the files of a
//! folder sorted by path, each file once. In folders hidden names are left out and globs apply;
//! a glob without `/` is held against the file name at any depth, one with `/` against the path
//! below the folder, as in ripgrep. Files named outright are taken as they are.
//!
//! [`Corpus::documents`] then reads one file after the other, so that a corpus is never in memory
//! as a whole. What is not UTF-8 text is an error in a file named outright and is skipped, and
//! reported as [`Skipped`], in a file that was merely found. A byte order mark is dropped: as a
//! token it would teach nothing.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use walkdir::WalkDir;

use super::error::DataError;

/// The key of a `.jsonl` line that holds the text, unless told otherwise.
pub const DEFAULT_TEXT_KEY: &str = "text";

/// A text and where it is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The path of the file, with the line number for a `.jsonl` file ("a.jsonl:3").
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
    /// The key of the text in a `.jsonl` line.
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
        self.files.extend(found.into_iter().map(|path| CorpusFile { path, outright: false }));
        Ok(())
    }

    /// A file that is named twice, or named and found, is read once: a document that is in the
    /// corpus twice could be on both sides of the validation split.
    fn drop_repeats(&mut self) {
        let mut first: HashMap<PathBuf, usize> = HashMap::new();
        let mut kept: Vec<CorpusFile> = Vec::with_capacity(self.files.len());
        for file in self.files.drain(..) {
            let real = fs::canonicalize(&file.path).unwrap_or_else(|_| file.path.clone());
            match first.get(&real) {
                Some(&at) => kept[at].outright |= file.outright,
                None => {
                    first.insert(real, kept.len());
                    kept.push(file);
                }
            }
        }
        self.files = kept;
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
    /// [`DataError::JsonlLine`] or [`DataError::JsonlText`]; after an error the iterator ends.
    pub fn documents(&self) -> Documents<'_> {
        Documents { corpus: self, next_broken: 0, next_file: 0, lines: None, ended: false }
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

/// The documents of a [`Corpus`], read as they are asked for.
#[derive(Debug)]
pub struct Documents<'a> {
    corpus: &'a Corpus,
    next_broken: usize,
    next_file: usize,
    /// The `.jsonl` file being read.
    lines: Option<Lines<'a>>,
    ended: bool,
}

#[derive(Debug)]
struct Lines<'a> {
    file: &'a CorpusFile,
    reader: BufReader<File>,
    /// Lines and bytes read so far.
    line: u64,
    offset: u64,
}

impl Documents<'_> {
    fn next_limited(&mut self, limit: u64) -> Option<Result<Found, DataError>> {
        if self.ended {
            return None;
        }
        let next = self.try_next(limit);
        self.ended = !matches!(next, Ok(Some(_)));
        next.transpose()
    }

    fn try_next(&mut self, limit: u64) -> Result<Option<Found>, DataError> {
        if let Some(broken) = self.corpus.broken.get(self.next_broken) {
            self.next_broken += 1;
            return Ok(Some(Found::Skipped(broken.clone())));
        }
        loop {
            if let Some(lines) = &mut self.lines {
                match lines.next_document(&self.corpus.text_key)? {
                    Some(found) => {
                        if matches!(found, Found::Skipped(_)) {
                            self.lines = None;
                        }
                        return Ok(Some(found));
                    }
                    None => self.lines = None,
                }
            }
            let Some(file) = self.corpus.files.get(self.next_file) else {
                return Ok(None);
            };
            self.next_file += 1;
            let open = File::open(&file.path).map_err(DataError::io("read", &file.path))?;
            let jsonl =
                file.path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("jsonl"));
            if jsonl {
                self.lines =
                    Some(Lines { file, reader: BufReader::with_capacity(1 << 16, open), line: 0, offset: 0 });
                continue;
            }
            let mut bytes = Vec::new();
            open.take(limit).read_to_end(&mut bytes).map_err(DataError::io("read", &file.path))?;
            let cut = bytes.len() as u64 == limit;
            return match text_of(bytes, 0, cut, &file.path) {
                Ok(text) => {
                    Ok(Some(Found::Document(Document { name: file.path.display().to_string(), text })))
                }
                Err(error) => skip_or_fail(file, error).map(Some),
            };
        }
    }
}

impl Iterator for Documents<'_> {
    type Item = Result<Found, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_limited(u64::MAX)
    }
}

impl Lines<'_> {
    fn next_document(&mut self, key: &str) -> Result<Option<Found>, DataError> {
        let path = &self.file.path;
        loop {
            let mut bytes = Vec::new();
            let read = self.reader.read_until(b'\n', &mut bytes).map_err(DataError::io("read", path))?;
            if read == 0 {
                return Ok(None);
            }
            let start = self.offset;
            self.offset += read as u64;
            self.line += 1;
            let line = match text_of(bytes, start, false, path) {
                Ok(line) => line,
                Err(error) => return skip_or_fail(self.file, error).map(Some),
            };
            if line.trim().is_empty() {
                continue;
            }
            let value: serde_json::Value =
                serde_json::from_str(&line).map_err(|reason| DataError::JsonlLine {
                    path: path.clone(),
                    line: self.line,
                    reason: without_position(&reason),
                })?;
            let found = match &value {
                serde_json::Value::Object(object) => match object.get(key) {
                    Some(serde_json::Value::String(text)) => {
                        return Ok(Some(Found::Document(Document {
                            name: format!("{}:{}", path.display(), self.line),
                            text: text.clone(),
                        })));
                    }
                    Some(other) => type_name(other).to_owned(),
                    None if object.is_empty() => "an empty object".to_owned(),
                    None => {
                        let mut keys: Vec<&str> = object.keys().map(String::as_str).collect();
                        keys.sort_unstable();
                        format!("the keys {}", keys.join(", "))
                    }
                },
                other => type_name(other).to_owned(),
            };
            return Err(DataError::JsonlText {
                path: path.clone(),
                line: self.line,
                key: key.to_owned(),
                found,
            });
        }
    }
}

/// The bytes of a file, or of one line of it that starts at `start`, as text. `cut`: the bytes
/// end where reading stopped, perhaps within a character, which is then dropped.
fn text_of(mut bytes: Vec<u8>, start: u64, cut: bool, path: &Path) -> Result<String, DataError> {
    let not_utf8 =
        |offset: usize| DataError::NotUtf8 { path: path.to_path_buf(), offset: start + offset as u64 };
    // UTF-16 is full of NUL bytes, and is better called by its name.
    if start == 0 && (bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF])) {
        return Err(not_utf8(0));
    }
    if let Some(offset) = bytes.iter().position(|&byte| byte == 0) {
        return Err(DataError::Binary { path: path.to_path_buf(), offset: start + offset as u64 });
    }
    if start == 0 && bytes.starts_with("\u{FEFF}".as_bytes()) {
        bytes.drain(..3);
    }
    String::from_utf8(bytes).or_else(|error| {
        let wrong = error.utf8_error();
        if cut && wrong.error_len().is_none() {
            let mut bytes = error.into_bytes();
            bytes.truncate(wrong.valid_up_to());
            // The bytes up to `valid_up_to` are valid, which is what it means.
            String::from_utf8(bytes).map_err(|_| not_utf8(wrong.valid_up_to()))
        } else {
            Err(not_utf8(wrong.valid_up_to()))
        }
    })
}

fn skip_or_fail(file: &CorpusFile, error: DataError) -> Result<Found, DataError> {
    let reason = match &error {
        _ if file.outright => return Err(error),
        DataError::Binary { .. } => SkipReason::Binary,
        DataError::NotUtf8 { .. } => SkipReason::NotUtf8,
        _ => return Err(error),
    };
    Ok(Found::Skipped(Skipped { path: file.path.clone(), reason }))
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

/// The message of serde_json without its "at line 1 column 5": the line is always 1 here.
fn without_position(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.rfind(" at line ") {
        Some(at) => format!("{} at column {}", &message[..at], error.column()),
        None => message,
    }
}

fn type_name(value: &serde_json::Value) -> &'static str {
    use serde_json::Value as V;
    match value {
        V::Null => "null",
        V::Bool(_) => "a boolean",
        V::Number(_) => "a number",
        V::String(_) => "a string",
        V::Array(_) => "an array",
        V::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests;
