//! Reading the files of a corpus, one document at a time.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use super::{Corpus, CorpusFile, Document, Found, SkipReason, Skipped};
use crate::data::error::DataError;
use crate::data::format::{self, Layout};
use crate::data::packing::{self, Packing};
#[cfg(feature = "parquet")]
use crate::data::parquet::{ParquetTexts, Row};

/// The longest text, and the longest line, of a packed file: some kilobytes can unpack to any size.
const LONGEST_PACKED: u64 = 2 << 30;

/// The documents of a [`Corpus`], read as they are asked for.
pub struct Documents<'a> {
    corpus: &'a Corpus,
    next_broken: usize,
    next_file: usize,
    /// The file being read, if it holds several documents.
    open: Option<Open<'a>>,
    ended: bool,
}

enum Open<'a> {
    Lines(Lines<'a>),
    #[cfg(feature = "parquet")]
    Table(&'a CorpusFile, Box<ParquetTexts<File>>),
}

struct Lines<'a> {
    file: &'a CorpusFile,
    packing: Packing,
    reader: BufReader<Box<dyn Read + Send>>,
    /// Lines and bytes read so far.
    line: u64,
    offset: u64,
}

impl<'a> Documents<'a> {
    pub(super) fn new(corpus: &'a Corpus) -> Self {
        Self { corpus, next_broken: 0, next_file: 0, open: None, ended: false }
    }

    /// The next document, of which no more than `limit` bytes are read if it is a whole file.
    pub(super) fn next_limited(&mut self, limit: u64) -> Option<Result<Found, DataError>> {
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
            if let Some(open) = &mut self.open {
                match open.next_document(&self.corpus.text_key)? {
                    Some(found) => {
                        if matches!(found, Found::Skipped(_)) {
                            self.open = None;
                        }
                        return Ok(Some(found));
                    }
                    None => self.open = None,
                }
            }
            let Some(file) = self.corpus.files.get(self.next_file) else {
                return Ok(None);
            };
            self.next_file += 1;
            if let Some(found) = self.start(file, limit)? {
                return Ok(Some(found));
            }
        }
    }

    /// Opens a file of several documents, or reads one that is a document.
    fn start(&mut self, file: &'a CorpusFile, limit: u64) -> Result<Option<Found>, DataError> {
        let path = &file.path;
        let (layout, packing) = format::of(path);
        let source = File::open(path).map_err(DataError::io("read", path))?;
        match layout {
            Layout::Lines => {
                let reader = BufReader::with_capacity(1 << 16, packing::unpack(source, packing));
                self.open = Some(Open::Lines(Lines { file, packing, reader, line: 0, offset: 0 }));
                Ok(None)
            }
            Layout::Parquet => {
                #[cfg(feature = "parquet")]
                {
                    let table = ParquetTexts::open(source, &self.corpus.text_key)
                        .map_err(|fault| DataError::Parquet { path: path.clone(), fault })?;
                    self.open = Some(Open::Table(file, Box::new(table)));
                    Ok(None)
                }
                #[cfg(not(feature = "parquet"))]
                Err(DataError::NoParquet { path: path.clone() })
            }
            Layout::Arrow if file.outright => Err(DataError::Arrow { path: path.clone() }),
            Layout::Text | Layout::Arrow => {
                let most = if packing == Packing::None { limit } else { limit.min(LONGEST_PACKED + 1) };
                let bytes = read_text(packing::unpack(source, packing), most)
                    .map_err(|reason| unreadable(path, packing, reason))?;
                let read = bytes.len() as u64;
                if packing != Packing::None && read > LONGEST_PACKED {
                    return Err(DataError::TextTooLong { name: path.display().to_string() });
                }
                match text_of(bytes, 0, read == limit, path) {
                    Ok(text) => {
                        Ok(Some(Found::Document(Document { name: path.display().to_string(), text })))
                    }
                    Err(error) => skip_or_fail(file, error).map(Some),
                }
            }
        }
    }
}

impl Iterator for Documents<'_> {
    type Item = Result<Found, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_limited(u64::MAX)
    }
}

impl Open<'_> {
    fn next_document(&mut self, key: &str) -> Result<Option<Found>, DataError> {
        match self {
            Open::Lines(lines) => lines.next_document(key),
            #[cfg(feature = "parquet")]
            Open::Table(file, table) => match table.next_row() {
                Ok(Some(Row::Text { row, text })) => {
                    let name = format!("{}:{row}", file.path.display());
                    Ok(Some(Found::Document(Document { name, text })))
                }
                Ok(Some(Row::Nulls(rows))) => Ok(Some(Found::Nulls(rows))),
                Ok(None) => Ok(None),
                Err(fault) => Err(DataError::Parquet { path: file.path.clone(), fault }),
            },
        }
    }
}

/// The bytes of a text, up to `most` of them. Reading stops soon after a NUL byte: there is no text then, and a packed
/// archive may be long.
fn read_text(mut reader: impl Read, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let from = bytes.len();
        let next = (most - from as u64).min(1 << 20);
        let read = (&mut reader).take(next).read_to_end(&mut bytes)?;
        if (read as u64) < next || next == 0 || bytes[from..].contains(&0) {
            return Ok(bytes);
        }
    }
}

/// The error for a file that cannot be read through, or not be unpacked.
fn unreadable(path: &Path, packing: Packing, reason: io::Error) -> DataError {
    use io::ErrorKind as K;
    let unpacking =
        matches!(reason.kind(), K::InvalidData | K::InvalidInput | K::UnexpectedEof | K::Unsupported);
    let path = path.to_path_buf();
    match unpacking && packing != Packing::None {
        true => DataError::Packed {
            path,
            format: if packing == Packing::Gzip { "gzip" } else { "zstd" },
            window: reason.kind() == K::Unsupported,
            reason: if reason.kind() == K::UnexpectedEof {
                "it ends early".into()
            } else {
                reason.to_string()
            },
        },
        false => DataError::Io { action: "read", path, reason },
    }
}

impl Lines<'_> {
    fn next_document(&mut self, key: &str) -> Result<Option<Found>, DataError> {
        let path = &self.file.path;
        loop {
            let mut bytes = Vec::new();
            let most = if self.packing == Packing::None { u64::MAX } else { LONGEST_PACKED + 1 };
            let read = (&mut self.reader).take(most).read_until(b'\n', &mut bytes);
            let read = read.map_err(|reason| unreadable(path, self.packing, reason))?;
            if read == 0 {
                return Ok(None);
            }
            if self.packing != Packing::None && read as u64 > LONGEST_PACKED {
                return Err(DataError::TextTooLong { name: format!("{}:{}", path.display(), self.line + 1) });
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
