//! How an experiment can be unusable.

use crate::error::Hint;
use crate::sweep::SweepError;
use thiserror::Error;

/// An experiment that cannot be read or judged.
#[derive(Debug, Error)]
pub enum ExperimentError {
    /// No experiment of that name.
    #[error("there is no experiment named \"{name}\"{}", nearest.as_ref().map(|n| format!("; the nearest is \"{n}\"")).unwrap_or_default())]
    Unknown {
        /// As given.
        name: String,
        /// The most similar known one.
        nearest: Option<String>,
    },
    /// The file does not say an experiment.
    #[error("{file}: {problem}")]
    File {
        /// The file.
        file: String,
        /// What is wrong, in words.
        problem: String,
    },
    /// Its runs cannot be made.
    #[error(transparent)]
    Sweep(#[from] SweepError),
}

impl Hint for ExperimentError {
    fn hint(&self) -> String {
        match self {
            ExperimentError::Unknown { .. } => {
                "`evenkeel experiment --list` names them; a file of your own is given by its path".into()
            }
            ExperimentError::File { .. } => {
                "docs/experiments.md describes the file; those in experiments/ are examples".into()
            }
            ExperimentError::Sweep(e) => e.hint(),
        }
    }
}
