//! How a sweep, or a record of it, can be unusable.

use crate::config::ConfigError;
use crate::error::Hint;
use std::path::PathBuf;
use thiserror::Error;

/// A sweep that cannot be run, or whose records cannot be used.
#[derive(Debug, Error)]
pub enum SweepError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no TOML, or has keys that mean nothing there.
    #[error("{path}: {problem}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, in words.
        problem: String,
    },
    /// One of the runs has no valid configuration.
    #[error("{run}: {source}")]
    Run {
        /// The run by its name.
        run: String,
        /// What is wrong.
        source: Box<ConfigError>,
    },
    /// Two runs are the same.
    #[error("{first} and {second} are one run: nothing in their configurations differs")]
    Twice {
        /// A run by its name.
        first: String,
        /// Another.
        second: String,
    },
    /// A record is no record.
    #[error("{path} is no record of a run: {problem}")]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A figure that no record has.
    #[error("there is no figure named \"{name}\"")]
    Figure {
        /// As given.
        name: String,
    },
}

impl Hint for SweepError {
    fn hint(&self) -> String {
        match self {
            SweepError::Read { .. } => "give the path of a TOML file; docs/sweeps.md shows one".into(),
            SweepError::File { .. } => {
                "a sweep has title, base, seeds, measure, jobs, [run], [grid] and [[variant]]; docs/sweeps.md shows one".into()
            }
            SweepError::Run { source, .. } => source.hint(),
            SweepError::Twice { .. } => "take one of them out, or give them something that differs".into(),
            SweepError::Record { .. } => "remove the file, and its run is made again".into(),
            SweepError::Figure { .. } => super::figure::NAMES_HINT.into(),
        }
    }
}
