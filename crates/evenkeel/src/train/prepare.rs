//! What has to hold before a run may start, or go on: nothing of an older run is touched until it does.

use super::{Feed, RunDir, TrainError};
use crate::checkpoint::{self, CheckpointError};
use crate::config::{ConfigError, RunConfig};
use crate::error::{Error, Result};
use crate::model::{ModelError, Transformer, list};
use crate::optim::groups::GroupsError;
use crate::optim::{Groups, State};
use std::path::Path;

/// A configuration whose data, sizes and starting weights have been found usable. Nothing is written yet.
pub struct Prepared {
    pub(super) config: RunConfig,
    pub(super) feed: Feed,
    pub(super) start: Option<Transformer>,
}

impl Prepared {
    /// Opens the data, takes the vocabulary or the classes from it where the configuration leaves them open, and checks everything
    /// that could refuse the run.
    ///
    /// # Errors
    /// If no data is named, it cannot be read or does not fit, the model makes no network, or the weights that it
    /// starts from do not fit.
    pub fn new(mut config: RunConfig) -> Result<Self> {
        let feed = Feed::open(&mut config)?;
        groups_of(&config)?;
        let start = match config.init_from.as_str() {
            "" => None,
            path => Some(weights_of(Path::new(path), &config)?),
        };
        Ok(Self { config, feed, start })
    }

    /// The configuration, its vocabulary known.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// What the run will be fed with.
    pub fn feed(&self) -> &Feed {
        &self.feed
    }
}

/// The parameter groups of a run whose vocabulary is known.
///
/// # Errors
/// If the model cannot be built, or a group is unusable.
pub(super) fn groups_of(config: &RunConfig) -> Result<Groups> {
    let shapes = Transformer::shapes(config.model.clone())?;
    let named = shapes.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()));
    let unusable = |e: GroupsError| ConfigError::Value { problem: e.to_string() };
    Ok(Groups::new(&config.optim, named).map_err(unusable)?)
}

/// The weights of the MODEL at `path`, in this configuration's network.
fn weights_of(path: &Path, config: &RunConfig) -> Result<Transformer> {
    let source = checkpoint::load_model(path)?;
    let mut tensors = source.parameters().iter().map(|p| (p.name.clone(), p.tensor.clone())).collect();
    Transformer::from_tensors(config.model.clone(), &mut tensors).map_err(|e| match e {
        ModelError::Weights { problems } => {
            Error::from(TrainError::InitFrom { path: path.to_path_buf(), problem: list(&problems) })
        }
        other => other.into(),
    })
}

/// Refuses to go on with another network, data order or schedule than the run was started with.
pub(super) fn check_same(dir: &RunDir, config: &RunConfig, model: &Transformer) -> Result<()> {
    let other = |difference: String| TrainError::OtherConfig { path: dir.root().to_path_buf(), difference };
    let same_model = || match model.config() == &config.model {
        true => Ok(()),
        false => Err(other("[model] is not that of its checkpoint".into()).into()),
    };
    let Ok(text) = std::fs::read_to_string(dir.resolved()) else { return same_model() };
    // Read as a configuration, so that a key which did not exist when the run began has its default.
    let unreadable = |why: String| other(format!("its resolved.toml cannot be read: {why}"));
    let old = text.parse::<toml::Table>().map_err(|e| unreadable(e.message().to_string()))?;
    let old = RunConfig::from_table(old, &[]).map_err(|e| unreadable(e.to_string()))?.to_toml()?;
    let (Ok(old), Ok(new)) = (old.parse::<toml::Table>(), config.to_toml()?.parse::<toml::Table>()) else {
        return same_model();
    };
    for section in ["model", "data", "optim", "train"] {
        let keys = |t: &toml::Table| t.get(section).and_then(|s| s.as_table()).cloned().unwrap_or_default();
        let (old, new) = (keys(&old), keys(&new));
        for key in old.keys().chain(new.keys()) {
            // These change nothing that a later step computes.
            let free = ["eval_every_steps", "eval_tokens", "log_every_steps", "checkpoint_every_steps"];
            if free.contains(&key.as_str()) || key == "checkpoint_keep" || old.get(key) == new.get(key) {
                continue;
            }
            let show = |t: &toml::Table| t.get(key).map_or("absent".to_string(), |v| v.to_string());
            return Err(other(format!("{section}.{key} was {} and is now {}", show(&old), show(&new))).into());
        }
    }
    same_model()
}

/// Refuses a checkpoint whose optimiser state is not of this optimiser.
pub(super) fn check_states(
    checkpoint: &Path,
    groups: &Groups,
    model: &Transformer,
    states: &[State],
) -> Result<()> {
    for (i, (p, state)) in model.parameters().iter().zip(states).enumerate() {
        if let Some(problem) = groups.misfit(i, state) {
            return Err(CheckpointError::Damaged {
                path: checkpoint.join("optim.safetensors"),
                problem: format!("the state of {}: {problem}", p.name),
            }
            .into());
        }
    }
    Ok(())
}
