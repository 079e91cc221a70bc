//! Texts from Parquet files, row group by row group and page by page.
//!
//! Datasets come as Parquet, and of all the format only one thing is needed: a column of strings that has a value, or
//! none, for each row. That is what this reads, after the format's own description (apache/parquet-format): encodings
//! plain, dictionary and the two for strings by differences, data pages of version 1 and 2, packed by snappy, gzip or
//! zstd or not at all. Other columns are passed over, whatever they hold.
//!
//! Files come from anywhere, so nothing in them is believed: sizes are held against the file before memory is taken,
//! memory grows with what a page really unpacks to, and what contradicts itself is a [`ParquetFault`]. One page and one
//! dictionary are in memory at a time.

mod codec;
mod delta;
mod error;
mod footer;
mod hybrid;
mod page;
mod thrift;

use std::io::{BufReader, Read, Seek, SeekFrom};

pub use error::ParquetFault;
use error::damaged;
use footer::{Chunk, Column};
use page::{DataPage, Dictionary, Next, Page};

/// What comes next in a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// A text.
    Text {
        /// Its row in the file, counted from 0.
        row: u64,
        /// The text.
        text: String,
    },
    /// So many rows that have none.
    Nulls(u64),
}

/// The texts of one column, in the order of the rows.
#[derive(Debug)]
pub struct ParquetTexts<R> {
    source: BufReader<R>,
    key: String,
    column: Column,
    /// The row group being read, its dictionary, and its page.
    group: Option<Group>,
    next_group: usize,
    row: u64,
}

#[derive(Debug)]
struct Group {
    chunk: Chunk,
    /// Bytes and rows that no page was read for.
    bytes: u64,
    rows: u64,
    dictionary: Option<Dictionary>,
    page: Option<DataPage>,
}

impl<R: Read + Seek> ParquetTexts<R> {
    /// Reads the footer and finds the column `key`.
    ///
    /// # Errors
    /// If the file is not sound, or has no such column of strings.
    pub fn open(mut source: R, key: &str) -> Result<Self, ParquetFault> {
        let column = footer::read(&mut source, key)?;
        let source = BufReader::with_capacity(1 << 16, source);
        Ok(Self { source, key: key.into(), column, group: None, next_group: 0, row: 0 })
    }

    /// Rows of the whole file.
    pub fn rows(&self) -> u64 {
        self.column.chunks.iter().fold(0, |sum, chunk| sum.saturating_add(chunk.rows))
    }

    /// The next text, or how many rows without one come next; `None` at the end.
    ///
    /// # Errors
    /// If a page is damaged, or a value is not UTF-8.
    pub fn next_row(&mut self) -> Result<Option<Row>, ParquetFault> {
        loop {
            let Some(group) = &mut self.group else {
                let Some(&chunk) = self.column.chunks.get(self.next_group) else { return Ok(None) };
                self.next_group += 1;
                self.source.seek(SeekFrom::Start(chunk.start))?;
                let (bytes, rows) = (chunk.length, chunk.rows);
                self.group = Some(Group { chunk, bytes, rows, dictionary: None, page: None });
                continue;
            };
            if let Some(page) = group.page.as_mut().filter(|page| page.rows > 0) {
                let row = self.row;
                return match page.next(group.dictionary.as_ref())? {
                    Next::Nulls(count) => {
                        self.row = row.saturating_add(count);
                        Ok(Some(Row::Nulls(count)))
                    }
                    Next::Value(bytes) => {
                        self.row = row.saturating_add(1);
                        match str::from_utf8(bytes) {
                            Ok(text) => Ok(Some(Row::Text { row, text: text.into() })),
                            Err(_) => Err(ParquetFault::NotUtf8 { key: self.key.clone(), row }),
                        }
                    }
                };
            }
            if group.rows == 0 {
                self.group = None;
                continue;
            }
            group.page = None;
            if group.bytes == 0 {
                return damaged(format!("{} rows of a row group are missing", group.rows));
            }
            let (page, length) =
                page::read(&mut self.source, group.bytes, group.chunk.codec, self.column.optional)?;
            group.bytes -= length;
            match page {
                Page::Dictionary(_) if group.dictionary.is_some() => {
                    return damaged("a row group has two dictionaries for its column");
                }
                Page::Dictionary(dictionary) => group.dictionary = Some(dictionary),
                Page::Data(page) => match group.rows.checked_sub(page.rows) {
                    Some(rows) => {
                        group.rows = rows;
                        group.page = Some(*page);
                    }
                    None => return damaged("the pages of a row group have more rows than itself"),
                },
                Page::Other => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
