//! The logs of a run: one JSON object per line, appended and flushed as they come.
//!
//! Resuming drops the lines past the checkpoint's step, and a last line that a killed process left incomplete.

use crate::checkpoint::{CheckpointError, files};
use crate::metrics::Metrics;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// A line of metrics.jsonl.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepLine {
    /// Steps finished.
    pub step: u64,
    /// Training tokens seen; of images the positions of the stream: patches and class token.
    pub tokens: u64,
    /// Loss of this step's batch, before the update.
    #[serde(rename = "train/loss")]
    pub train_loss: Option<f64>,
    /// Loss on the validation text or images, on the steps that evaluate.
    #[serde(rename = "val/loss", default, skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
    /// Share of the validation images whose class was found, between 0 and 1; runs on text have none.
    #[serde(rename = "val/accuracy", default, skip_serializing_if = "Option::is_none")]
    pub val_accuracy: Option<f64>,
    /// Learning rate of this step.
    pub lr: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: Option<f64>,
    /// Training tokens per second since the last line.
    pub tokens_per_sec: Option<f64>,
    /// Largest resident memory of the process so far, bytes; null where the system does not tell.
    #[serde(rename = "mem/peak")]
    pub mem_peak: Option<u64>,
    /// ‖p' - p‖ / ‖p‖ over all parameters in this step, p before it and p' after; null if it was left out.
    #[serde(rename = "optim/update_ratio", default)]
    pub update_ratio: Option<f64>,
    /// Worst condition number of all factors, as last estimated; null for optimisers without factors.
    #[serde(rename = "optim/condition", default)]
    pub condition: Option<f64>,
    /// Share of the time since the last line that gradient norm, clipping and optimiser took.
    #[serde(rename = "optim/time_share", default)]
    pub optimizer_share: Option<f64>,
    /// Steps left out so far.
    #[serde(rename = "optim/skipped", default)]
    pub skipped: u64,
}

/// A line of stats.jsonl.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatsLine {
    /// Steps finished.
    pub step: u64,
    /// Site's name.
    pub site: String,
    /// Block index; null outside blocks.
    pub layer: Option<usize>,
    /// Tokens that `mmr` was taken over.
    #[serde(default)]
    pub mmr_tokens: u64,
    /// Tokens that the Gram metrics were taken over; null at a step without them.
    #[serde(default)]
    pub gram_tokens: Option<u64>,
    /// The figures, over the whole batch but for those two.
    #[serde(flatten)]
    pub metrics: Metrics,
}

/// Appends JSON lines to a file.
#[derive(Debug)]
pub(super) struct LineLog {
    path: PathBuf,
    file: File,
}

/// The lines of a log that was opened, and so cut, before.
pub(crate) fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, CheckpointError> {
    let damaged = |e: serde_json::Error| CheckpointError::Damaged {
        path: path.to_path_buf(),
        problem: format!("a line is not as expected: {e}"),
    };
    let bytes = files::read(path)?;
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).map_err(damaged)).collect()
}

impl LineLog {
    /// The same for a log that not every run has: none if it is neither `wanted` nor left from before. One that
    /// is left is cut all the same.
    pub(super) fn open_if(wanted: bool, path: &Path, keep_to: u64) -> Result<Option<Self>, CheckpointError> {
        let log = if wanted || path.exists() { Some(Self::open(path, keep_to)?) } else { None };
        Ok(log.filter(|_| wanted))
    }

    /// Opens for appending, keeping the lines whose `step` is at most `keep_to`.
    pub(super) fn open(path: &Path, keep_to: u64) -> Result<Self, CheckpointError> {
        let io = |source| CheckpointError::Io { path: path.to_path_buf(), source };
        #[derive(Deserialize)]
        struct Step {
            step: u64,
        }
        let mut kept = Vec::new();
        if path.exists() {
            for line in BufReader::new(File::open(path).map_err(io)?).lines() {
                let line = line.map_err(io)?;
                if serde_json::from_str::<Step>(&line).is_ok_and(|s| s.step <= keep_to) {
                    kept.extend_from_slice(line.as_bytes());
                    kept.push(b'\n');
                }
            }
        }
        files::write(path, &kept)?;
        let file = File::options().append(true).open(path).map_err(io)?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    pub(super) fn append(&mut self, line: &impl Serialize) -> Result<(), CheckpointError> {
        let io = |source| CheckpointError::Io { path: self.path.clone(), source };
        let mut text = serde_json::to_string(line)
            .map_err(|e| CheckpointError::Damaged { path: self.path.clone(), problem: e.to_string() })?;
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(io)
    }
}
