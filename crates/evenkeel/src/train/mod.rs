//! The training loop: batches → loss → gradients → step, with telemetry, evaluation, checkpoints and a guard.
//!
//! A run directory is the whole truth. Batches are a function of (seed, step) and the state is in the
//! checkpoint, so a run that was killed and resumed equals one that was not, bit for bit on the CPU.

mod alarms;
mod eval;
mod feed;
mod guard;
mod log;
mod memory;
mod moments;
mod prepare;
mod run_dir;
mod tensorboard;
mod trainer;
mod updates;

pub use alarms::AlarmLine;
pub use eval::{Evaluation, Score, evaluate, mean_loss};
pub use feed::{Feed, InOrder};
pub use guard::{Divergence, Guard};
pub(crate) use log::read_lines;
pub use log::{StatsLine, StepLine};
pub use memory::{MemoryPlan, peak_rss_bytes, plan_memory};
pub use moments::MomentsLine;
pub use prepare::Prepared;
pub use run_dir::{RunDir, RunInfo};
pub use trainer::{Control, Event, Outcome, Trainer};
pub use updates::OptimLine;

use crate::error::Hint;
use std::path::PathBuf;
use thiserror::Error;

/// Training that cannot start or go on.
#[derive(Debug, Error)]
pub enum TrainError {
    /// The run directory holds something already.
    #[error("the run directory {path} already exists and is not empty")]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// Resuming with another network or batch than the run was started with.
    #[error("{path} was started with another configuration: {difference}")]
    OtherConfig {
        /// The run directory.
        path: PathBuf,
        /// The first key that differs.
        difference: String,
    },
    /// No data named.
    #[error("the configuration names no data: data.path is empty")]
    NoData,
    /// Neither the data nor the configuration says how many ids there are.
    #[error("{path} is a bare shard and does not say its vocabulary")]
    NoVocabulary {
        /// The data.
        path: String,
    },
    /// The data's vocabulary does not fit the model's.
    #[error("the data has a vocabulary of {data}, which is more than model.vocab = {model}")]
    Vocabulary {
        /// Of the data.
        data: usize,
        /// Of the model.
        model: usize,
    },
    /// No folder of images named.
    #[error("the configuration names no images: data.path is empty")]
    NoImages,
    /// The data has more classes than the model.
    #[error("the data has {data} classes, which is more than model.vocab = {model}")]
    Classes {
        /// Of the data.
        data: usize,
        /// Of the model.
        model: usize,
    },
    /// An alarm that could never fire.
    #[error("the alarm on {metric} watches no site: none of this model's matches {sites}")]
    AlarmSites {
        /// Its metric.
        metric: String,
        /// Its globs.
        sites: String,
    },
    /// `init_from` names a model of another shape.
    #[error("the weights of {path} do not fit this model: {problem}")]
    InitFrom {
        /// The MODEL.
        path: PathBuf,
        /// What differs.
        problem: String,
    },
}

impl Hint for TrainError {
    fn hint(&self) -> String {
        match self {
            TrainError::Exists { .. } => {
                "add --resume to go on with a run, --force to replace it (only a run is replaced), or choose another --out".into()
            }
            TrainError::OtherConfig { .. } => {
                "resume with the configuration in the run directory's resolved.toml, or choose another --out"
                    .into()
            }
            TrainError::NoData => {
                "make a data folder with `evenkeel data tokenize` and name it: --set data.path=FOLDER".into()
            }
            TrainError::NoVocabulary { .. } => {
                "give the number of ids of its tokenizer: --set model.vocab=50257".into()
            }
            TrainError::Vocabulary { data, .. } => format!(
                "set model.vocab to at least {data}, or leave it out and the vocabulary of the data is taken"
            ),
            TrainError::NoImages => {
                "name a folder with train/CLASS/*.jpg and val/CLASS/*.jpg: --set data.path=FOLDER".into()
            }
            TrainError::Classes { data, .. } => {
                format!("set model.vocab to at least {data}, or leave it out and the number of classes is taken")
            }
            TrainError::AlarmSites { .. } => {
                "sites are named embed, blocks.0.resid, blocks.0.mlp.hidden, ...; `evenkeel inspect` lists those of a model"
                    .into()
            }
            TrainError::InitFrom { .. } => {
                "depth, width, heads and vocab of [model] must be those of the model that it starts from"
                    .into()
            }
        }
    }
}

/// Whether the step after `step` finished ones is measured: every `every`-th and the last of all; 0 means none.
fn measured(step: u64, every: u64, steps: u64) -> bool {
    every > 0 && step < steps && (step.is_multiple_of(every) || step + 1 == steps)
}

/// Whether something happens after `step` steps: every `every` steps, and at the last one.
fn due(step: u64, every: u64, steps: u64) -> bool {
    step == steps || (every > 0 && step.is_multiple_of(every))
}
