//! What can be wrong with a Parquet file.

use crate::error::Hint;

/// A Parquet file, or a column of it, that cannot be read. Messages go behind the path of the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParquetFault {
    /// The operating system refused to read.
    #[error("cannot be read: {0}")]
    Io(std::io::Error),
    /// What is there contradicts itself or the format.
    #[error("is a damaged Parquet file: {0}")]
    Damaged(String),
    /// A sound file with something that is not read here.
    #[error("is a Parquet file that cannot be read: {0}")]
    Unsupported(String),
    /// There is no column of that name.
    #[error("has no column `{key}`: its columns are {columns}")]
    NoColumn {
        /// The name asked for.
        key: String,
        /// Those that are there, the first few of many.
        columns: String,
    },
    /// The column holds no texts.
    #[error("holds {found} in its column `{key}`: expected strings")]
    Type {
        /// The column.
        key: String,
        /// What it holds.
        found: String,
    },
    /// A value is not UTF-8.
    #[error("holds a value that is not UTF-8 in its column `{key}`, row {row}")]
    NotUtf8 {
        /// The column.
        key: String,
        /// The row, counted from 0.
        row: u64,
    },
}

impl From<std::io::Error> for ParquetFault {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => ParquetFault::Damaged("it ends early".into()),
            _ => ParquetFault::Io(error),
        }
    }
}

impl Hint for ParquetFault {
    fn hint(&self) -> String {
        match self {
            ParquetFault::Io(_) => "check that the file may be read and the disk is sound".into(),
            ParquetFault::Damaged(_) => {
                "copy or download the file again: the transfer was not complete".into()
            }
            ParquetFault::Unsupported(_) => {
                "write it again with Python: pyarrow.parquet.write_table(table, path, compression=\"zstd\")"
                    .into()
            }
            ParquetFault::NoColumn { .. } | ParquetFault::Type { .. } => {
                "name the column that holds the text with --text-key".into()
            }
            ParquetFault::NotUtf8 { .. } => {
                "name a column of strings with --text-key, or decode the texts to UTF-8 first".into()
            }
        }
    }
}

pub(super) fn damaged<T>(problem: impl Into<String>) -> Result<T, ParquetFault> {
    Err(ParquetFault::Damaged(problem.into()))
}

pub(super) fn unsupported<T>(problem: impl Into<String>) -> Result<T, ParquetFault> {
    Err(ParquetFault::Unsupported(problem.into()))
}
