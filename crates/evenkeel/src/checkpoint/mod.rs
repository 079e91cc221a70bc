//! Checkpoints and run directories on disk.
//!
//! A checkpoint is a folder `step-000500` with `model.safetensors` (metadata format "pt"), `config.json`,
//! `tokenizer.json` (for images `preprocessor_config.json`), and for resuming `optim.safetensors` and `state.json`. It is written beside its place,
//! synced and renamed, so that a folder of that name is always whole; `checkpoints/latest` names the newest.
//! A run directory, or one of its checkpoints, can be used wherever a MODEL is asked for.

mod companion;
pub mod files;
pub mod hf;
pub mod hub;
mod on_disk;
mod tensors;
pub mod weights;

pub use companion::{Companion, image_settings};
pub use on_disk::OnDisk;
pub(crate) use tensors::{Raw, raw_file, write_raw};
pub use tensors::{read_images, read_tensors, write_tensors};
pub use weights::WeightsError;

use crate::error::Hint;
use crate::model::{ModelConfig, ModelError, Transformer};
use crate::optim::State;
use crate::optim::skip::SkipState;
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// A checkpoint or run directory that cannot be read or written.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// There is nothing at that path.
    #[error("there is no model at {path}")]
    NotFound {
        /// As given.
        path: PathBuf,
    },
    /// A folder without checkpoints or config.json.
    #[error("{path} is neither a run directory with a checkpoint nor a checkpoint folder")]
    NotAModel {
        /// As given.
        path: PathBuf,
    },
    /// A file that cannot be read or written.
    #[error("cannot access {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that is not what its name says.
    #[error("{path} is damaged: {problem}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A folder of another architecture.
    #[error(transparent)]
    Hf(Box<hf::HfError>),
    /// A model that the format asked for cannot hold.
    #[error("the model cannot be exported as {target}: {why}")]
    NotExpressible {
        /// The format.
        target: &'static str,
        /// What stands in the way.
        why: String,
    },
    /// A model of integers where a float one is needed.
    #[error("{path} is a quantised model, and this needs the float model that it was made from")]
    Integers {
        /// The folder.
        path: PathBuf,
    },
    /// The weights do not fit.
    #[error("{path}: {source}")]
    Model {
        /// The checkpoint folder.
        path: PathBuf,
        /// What does not fit.
        source: ModelError,
    },
    /// Files of weights that cannot be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A model of the Hugging Face Hub.
    #[error(transparent)]
    Hub(#[from] hub::HubError),
    /// A tensor that cannot be written.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl From<hf::HfError> for CheckpointError {
    fn from(e: hf::HfError) -> Self {
        Self::Hf(Box::new(e))
    }
}

impl Hint for CheckpointError {
    fn hint(&self) -> String {
        match self {
            CheckpointError::NotFound { .. } | CheckpointError::NotAModel { .. } => {
                "give a run directory, one of its checkpoints/step-* folders, a Hugging Face folder, or owner/name on the Hub"
                    .into()
            }
            CheckpointError::Io { .. } => {
                "check that the path exists, that you may use it, and that the disk is not full".into()
            }
            CheckpointError::Damaged { .. } => {
                "the file was cut short or is of another kind: fetch or make it again".into()
            }
            CheckpointError::Hf(e) => e.hint(),
            CheckpointError::NotExpressible { .. } => {
                "--to evenkeel exports every causal language model, with a modelling file of its own".into()
            }
            CheckpointError::Integers { .. } => {
                "eval, inspect, sample, bench int8, and export --to onnx or compressed-tensors take it as it is".into()
            }
            CheckpointError::Model { source, .. } => source.hint(),
            CheckpointError::Weights(e) => e.hint(),
            CheckpointError::Hub(error) => error.hint(),
            CheckpointError::Tensor(_) => "run again with RUST_BACKTRACE=1 and report what it prints".into(),
        }
    }
}

/// Shorthand.
pub(crate) type Result<T> = std::result::Result<T, CheckpointError>;

/// config.json: what a Hugging Face folder has, and our `[model]` table.
#[derive(Serialize, Deserialize)]
struct ConfigFile {
    model_type: String,
    architectures: Vec<String>,
    #[serde(default)]
    dtype: String,
    model: serde_json::Value,
    /// What transformers wants to find there, in exported folders.
    #[serde(flatten)]
    more: serde_json::Value,
}

const MODEL_TYPE: &str = "evenkeel";

/// Where a run stands, beside the optimiser's tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Layout of this file.
    pub schema: u32,
    /// Steps finished.
    pub step: u64,
    /// Training tokens seen.
    pub tokens: u64,
    /// Loss of the very first step, to which the divergence guard compares.
    pub first_loss: Option<f64>,
    /// Steps in a row above the guard's limit.
    pub guard_count: u64,
    /// Gradient norms so far, and the steps left out for them.
    #[serde(default)]
    pub skip: SkipState,
    /// Where alarms stand; those that were not above their bound at the last measurement are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alarms: Vec<AlarmCount>,
}

/// How often in a row one alarm was above its bound at one site. An alarm is known by what it compares, so that
/// one that was changed between two parts of a run begins anew.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlarmCount {
    /// The metric.
    pub metric: String,
    /// The bound.
    pub above: f64,
    /// Measurements in a row above it before it fires.
    pub patience: u64,
    /// The site.
    pub site: String,
    /// Measurements in a row above it so far; from `patience` on it has fired.
    pub count: u64,
}

/// Writes a checkpoint folder `step-NNNNNN` below `checkpoints`, points `latest` at it and removes the oldest
/// beyond `keep`.
///
/// # Errors
/// If the disk refuses.
#[allow(clippy::too_many_arguments)]
pub fn save(
    checkpoints: &Path,
    model: &Transformer,
    states: &[State],
    companion: Option<&Companion>,
    state: &RunState,
    keep: usize,
) -> Result<PathBuf> {
    let name = format!("step-{:06}", state.step);
    let target = checkpoints.join(&name);
    let beside = checkpoints.join(format!(".{name}.tmp"));
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| CheckpointError::Io { path, source }
    };
    std::fs::create_dir_all(checkpoints).map_err(io(checkpoints))?;
    if target.join("state.json").is_file() {
        // The state of a run is a function of its step: what is there is what would be written.
        files::write(&checkpoints.join("latest"), name.as_bytes())?;
        return Ok(target);
    }
    remove_unfinished(checkpoints)?;
    std::fs::create_dir(&beside).map_err(io(&beside))?;
    write_model(&beside, model, companion)?;
    let mut tensors = BTreeMap::new();
    for (parameter, state) in model.parameters().iter().zip(states) {
        for (key, tensor) in &state.tensors {
            tensors.insert(format!("{}/{key}", parameter.name), tensor.clone());
        }
        let steps = Tensor::new(&[state.steps as i64], &candle_core::Device::Cpu)?;
        tensors.insert(format!("{}/steps", parameter.name), steps);
    }
    write_tensors(&beside.join("optim.safetensors"), &tensors)?;
    files::write_json(&beside.join("state.json"), state)?;
    files::sync_dir(&beside)?;
    std::fs::rename(&beside, &target).map_err(io(&target))?;
    files::sync_dir(checkpoints)?;
    files::write(&checkpoints.join("latest"), name.as_bytes())?;
    let mut all = complete(checkpoints)?;
    while all.len() > keep {
        let oldest = all.remove(0);
        std::fs::remove_dir_all(&oldest).map_err(io(&oldest))?;
    }
    Ok(target)
}

/// Removes what a killed process left half written.
fn remove_unfinished(checkpoints: &Path) -> Result<()> {
    let io = |source| CheckpointError::Io { path: checkpoints.to_path_buf(), source };
    for entry in std::fs::read_dir(checkpoints).map_err(io)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(".step-") && name.ends_with(".tmp") {
            std::fs::remove_dir_all(entry.path()).map_err(io)?;
        }
    }
    Ok(())
}

/// Writes model.safetensors, config.json and what goes with them into an existing folder.
///
/// # Errors
/// If the disk refuses.
pub fn write_model(dir: &Path, model: &Transformer, companion: Option<&Companion>) -> Result<()> {
    let tensors: BTreeMap<String, Tensor> =
        model.parameters().iter().map(|p| (p.name.clone(), p.tensor.clone())).collect();
    write_tensors(&dir.join("model.safetensors"), &tensors)?;
    write_config(dir, model.config(), serde_json::Value::Null)?;
    companion.map_or(Ok(()), |companion| companion.write(dir))
}

/// Writes config.json of a model of ours, with the keys of the object `more` beside its own.
fn write_config(dir: &Path, config: &ModelConfig, more: serde_json::Value) -> Result<()> {
    let path = dir.join("config.json");
    let damaged =
        |e: serde_json::Error| CheckpointError::Damaged { path: path.clone(), problem: e.to_string() };
    let file = ConfigFile {
        model_type: MODEL_TYPE.into(),
        architectures: vec![
            if config.reads_images() { "EvenkeelForImageClassification" } else { "EvenkeelForCausalLM" }
                .into(),
        ],
        dtype: "float32".into(),
        model: serde_json::to_value(config).map_err(damaged)?,
        more,
    };
    files::write_json(&path, &file)
}

/// Complete checkpoint folders, oldest first.
///
/// # Errors
/// If the folder cannot be listed.
pub fn complete(checkpoints: &Path) -> Result<Vec<PathBuf>> {
    if !checkpoints.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    let entries = std::fs::read_dir(checkpoints)
        .map_err(|source| CheckpointError::Io { path: checkpoints.to_path_buf(), source })?;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(Ok(step)) = name.strip_prefix("step-").map(str::parse::<u64>)
            && entry.path().join("state.json").is_file()
        {
            found.push((step, entry.path()));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// The checkpoint folder that a MODEL argument means: itself, or the newest one of a run directory.
///
/// # Errors
/// If there is none.
pub fn resolve(model: &Path) -> Result<PathBuf> {
    if !model.exists() {
        return Err(CheckpointError::NotFound { path: model.to_path_buf() });
    }
    if model.join("config.json").is_file() {
        return Ok(model.to_path_buf());
    }
    complete(&model.join("checkpoints"))?
        .pop()
        .ok_or_else(|| CheckpointError::NotAModel { path: model.to_path_buf() })
}

/// The model in a checkpoint folder, a run directory, or a Hugging Face folder.
///
/// # Errors
/// If it is not there, damaged, of an unknown architecture, or its weights do not fit its configuration.
pub fn load_model(path: &Path) -> Result<Transformer> {
    OnDisk::open(path)?.load()
}

/// The `[model]` table in a config.json of ours.
fn own_config(path: &Path, value: serde_json::Value) -> Result<ModelConfig> {
    let damaged =
        |e: serde_json::Error| CheckpointError::Damaged { path: path.to_path_buf(), problem: e.to_string() };
    let file: ConfigFile = serde_json::from_value(value).map_err(damaged)?;
    serde_json::from_value(file.model).map_err(damaged)
}

/// The training step of a checkpoint folder of ours; `None` where nothing tells.
pub fn step_of(folder: &Path) -> Option<u64> {
    files::read_json::<RunState>(&folder.join("state.json")).ok().map(|state| state.step)
}

/// The optimiser's state and the run's state in a checkpoint folder.
///
/// # Errors
/// If a file is missing or damaged.
pub fn load_state(dir: &Path, model: &Transformer) -> Result<(Vec<State>, RunState)> {
    let path = dir.join("optim.safetensors");
    let mut by_name: BTreeMap<String, State> = BTreeMap::new();
    for (name, tensor) in read_tensors(&path)? {
        let damaged = |problem: String| CheckpointError::Damaged { path: path.clone(), problem };
        let Some((parameter, key)) = name.rsplit_once('/') else {
            return Err(damaged(format!("tensor {name} belongs to no parameter")));
        };
        let state = by_name.entry(parameter.to_string()).or_default();
        if key == "steps" {
            state.steps = tensor.to_vec1::<i64>()?.first().copied().unwrap_or(0) as u64;
        } else {
            let moments = ["m", "v"].contains(&key);
            let of = model.parameters().iter().find(|p| p.name == parameter);
            if of.is_none_or(|p| moments && p.tensor.dims() != tensor.dims()) {
                return Err(damaged(format!("tensor {name} fits no parameter of the model")));
            }
            state.tensors.insert(key.to_string(), tensor);
        }
    }
    let states = model
        .parameters()
        .iter()
        .map(|p| {
            by_name.remove(&p.name).ok_or_else(|| CheckpointError::Damaged {
                path: path.clone(),
                problem: format!("it holds no state for {}", p.name),
            })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok((states, files::read_json(&dir.join("state.json"))?))
}
