//! Reading and writing the files of runs and checkpoints, with errors that name them.

use super::{CheckpointError, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;

fn io(path: &Path) -> impl Fn(std::io::Error) -> CheckpointError + '_ {
    move |source| CheckpointError::Io { path: path.to_path_buf(), source }
}

/// Writes `bytes` to `path`, atomically.
///
/// # Errors
/// If the disk refuses.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    crate::files::write(path, bytes).map_err(io(path))
}

/// Writes `value` as indented JSON, atomically.
///
/// # Errors
/// If the disk refuses.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|e| CheckpointError::Damaged { path: path.to_path_buf(), problem: e.to_string() })?;
    text.push('\n');
    write(path, text.as_bytes())
}

/// A file's bytes.
///
/// # Errors
/// If it cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(io(path))
}

/// A JSON file.
///
/// # Errors
/// If it cannot be read or is not what is expected.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_slice(&read(path)?)
        .map_err(|e| CheckpointError::Damaged { path: path.to_path_buf(), problem: e.to_string() })
}

/// Makes the names in a folder durable. Does nothing where folders cannot be opened.
///
/// # Errors
/// If syncing fails.
pub fn sync_dir(path: &Path) -> Result<()> {
    match std::fs::File::open(path) {
        Ok(dir) if cfg!(unix) => dir.sync_all().map_err(io(path)),
        _ => Ok(()),
    }
}
