//! The one error type a caller has to know, made of one enum per module.
//!
//! Every message is one sentence that names the file or key and what was expected; every error also
//! answers [`Hint::hint`] with what to try next, which the command line prints below it.

use thiserror::Error;

/// What to try next.
pub trait Hint {
    /// One line of advice, without the word "hint".
    fn hint(&self) -> String;
}

/// Any error of the library.
#[derive(Debug, Error)]
pub enum Error {
    /// Reading text, tokenising, shards, sampling.
    #[error(transparent)]
    Data(#[from] crate::data::DataError),
    /// Images that cannot be read.
    #[error(transparent)]
    Images(#[from] crate::data::ImagesError),
    /// A configuration that cannot be run.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// A model that cannot be built or run on this input.
    #[error(transparent)]
    Model(#[from] crate::model::ModelError),
    /// A checkpoint or run directory that cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::CheckpointError),
    /// Quantisation that cannot be done.
    #[error(transparent)]
    Quant(#[from] crate::quant::QuantError),
    /// A repair that cannot be made.
    #[error(transparent)]
    Repair(#[from] crate::quant::repair::RepairError),
    /// A model that cannot be exported.
    #[error(transparent)]
    Export(#[from] crate::export::ExportError),
    /// Training that cannot start or go on.
    #[error(transparent)]
    Train(#[from] crate::train::TrainError),
    /// Making a report.
    #[error(transparent)]
    Report(#[from] crate::report::ReportError),
    /// A sweep that cannot be run.
    #[error(transparent)]
    Sweep(#[from] crate::sweep::SweepError),
    /// An experiment that cannot be judged.
    #[error(transparent)]
    Experiment(#[from] crate::experiment::ExperimentError),
    /// The tensor library refused; a defect of ours unless memory ran out.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl Hint for Error {
    fn hint(&self) -> String {
        match self {
            Error::Data(e) => e.hint(),
            Error::Images(e) => e.hint(),
            Error::Config(e) => e.hint(),
            Error::Model(e) => e.hint(),
            Error::Checkpoint(e) => e.hint(),
            Error::Quant(e) => e.hint(),
            Error::Repair(e) => e.hint(),
            Error::Export(e) => e.hint(),
            Error::Train(e) => e.hint(),
            Error::Report(e) => e.hint(),
            Error::Sweep(e) => e.hint(),
            Error::Experiment(e) => e.hint(),
            Error::Tensor(_) => {
                "run again with --threads 1 and RUST_BACKTRACE=1 and report what it prints".into()
            }
        }
    }
}

/// Shorthand for results of the library.
pub type Result<T> = std::result::Result<T, Error>;
