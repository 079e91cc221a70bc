//! A run directory: configuration as given and as used, logs, checkpoints, status.

use super::TrainError;
use crate::checkpoint::{CheckpointError, files};
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Paths inside a run directory.
#[derive(Clone, Debug)]
pub struct RunDir {
    root: PathBuf,
}

/// run.json: who made this run, and how it ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Layout of this file.
    pub schema: u32,
    /// Version of evenkeel.
    pub version: String,
    /// Git revision it was built from, if known.
    pub revision: Option<String>,
    /// Operating system and architecture.
    pub host: String,
    /// Device and instruction set.
    pub device: String,
    /// Threads of the pool.
    pub threads: usize,
    /// The command line.
    pub argv: Vec<String>,
    /// "running", "finished", "interrupted", "diverged", "alarmed" or "failed".
    pub status: String,
    /// Steps finished.
    pub step: u64,
    /// What the guard or an alarm said, if one stopped the run.
    pub reason: Option<String>,
}

impl RunDir {
    /// Uses `root`, creating it; an existing one that is not empty only with `reuse`.
    ///
    /// # Errors
    /// If it exists and may not be reused, or the disk refuses.
    pub fn create(root: &Path, reuse: bool) -> Result<Self> {
        let io = |source| CheckpointError::Io { path: root.to_path_buf(), source };
        let occupied = root.exists() && std::fs::read_dir(root).map_err(io)?.next().is_some();
        if occupied && !reuse {
            return Err(TrainError::Exists { path: root.to_path_buf() }.into());
        }
        std::fs::create_dir_all(root).map_err(io)?;
        Ok(Self { root: root.to_path_buf() })
    }

    /// Removes the files of an earlier run in it, and nothing else.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn clear(&self) -> Result<()> {
        let logs = ["metrics.jsonl", "stats.jsonl", "moments.jsonl", "optim.jsonl", "alarms.jsonl"];
        for name in ["config.toml", "resolved.toml", "run.json"].into_iter().chain(logs) {
            let path = self.root.join(name);
            if path.exists() {
                std::fs::remove_file(&path).map_err(|source| CheckpointError::Io { path, source })?;
            }
        }
        for name in ["checkpoints", "report", "tb"] {
            let path = self.root.join(name);
            if path.exists() {
                std::fs::remove_dir_all(&path).map_err(|source| CheckpointError::Io { path, source })?;
            }
        }
        Ok(())
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// checkpoints/
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// metrics.jsonl
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// stats.jsonl
    pub fn stats(&self) -> PathBuf {
        self.root.join("stats.jsonl")
    }

    /// moments.jsonl
    pub fn moments(&self) -> PathBuf {
        self.root.join("moments.jsonl")
    }

    /// optim.jsonl
    pub fn optim(&self) -> PathBuf {
        self.root.join("optim.jsonl")
    }

    /// alarms.jsonl
    pub fn alarms(&self) -> PathBuf {
        self.root.join("alarms.jsonl")
    }

    /// tb/
    pub fn tensorboard(&self) -> PathBuf {
        self.root.join("tb")
    }

    /// resolved.toml
    pub fn resolved(&self) -> PathBuf {
        self.root.join("resolved.toml")
    }

    /// Writes a text file of the run.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        Ok(files::write(&self.root.join(name), text.as_bytes())?)
    }

    /// Writes run.json.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn write_info(&self, info: &RunInfo) -> Result<()> {
        Ok(files::write_json(&self.root.join("run.json"), info)?)
    }
}
