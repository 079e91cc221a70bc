//! A model on disk: its configuration and where its parameters lie, known before any of them is read.
//!
//! Ours and those of other architectures are opened alike. Everything that does not fit, missing, misshapen or left over, is
//! found from the headers of the files and reported at once. Then the model is loaded whole, or its parts are read one at a
//! time.

use super::hf::{self, Found, Layout};
use super::weights::{Weights, shown};
use super::{CheckpointError, Result, files, own_config, resolve};
use crate::model::{ModelConfig, ModelError, Parts, Streamed, Transformer};
use crate::quant::int8::{self, IntegerModel};
use crate::slices::tensor;
use candle_core::Tensor;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A model whose parameters are still in their files.
pub struct OnDisk {
    folder: PathBuf,
    config: ModelConfig,
    contents: Contents,
}

enum Contents {
    /// Parameters in their files.
    Float(Files),
    /// A model of integers, which is small and read at once.
    Integer(Box<IntegerModel>),
}

/// Where parameters lie.
struct Files {
    weights: Weights,
    found: BTreeMap<String, Found>,
}

impl OnDisk {
    /// Opens a run directory, one of its checkpoints, a Hugging Face folder, or the name of a model on the Hub that is in the
    /// cache.
    ///
    /// # Errors
    /// If there is none, if it is of an architecture that is not known, or if files and configuration do not fit together.
    pub fn open(model: &Path) -> Result<Self> {
        let folder = resolve(model)?;
        let path = folder.join("config.json");
        if int8::is_integer(&folder) {
            let model = int8::read(&folder)?;
            let config = model.model().config().clone();
            return Ok(Self { folder, config, contents: Contents::Integer(Box::new(model)) });
        }
        let value: serde_json::Value = files::read_json(&path)?;
        let setup = hf::read_config(&path, &value)?;
        let (config, map) = match setup {
            Some(setup) => (setup.config, Some(setup.map)),
            None => (own_config(&path, value)?, None),
        };
        let fit = |source| CheckpointError::Model { path: folder.clone(), source };
        let shapes = Transformer::shapes(config.clone()).map_err(fit)?;
        let weights = Weights::open(&folder)?;
        let (mut found, mut problems) = (BTreeMap::new(), Vec::new());
        let mut misshapen = BTreeSet::new();
        for (parameter, shape) in shapes {
            let place = match &map {
                Some(map) => map.find(&weights, &parameter),
                None => Ok(Found { layout: Layout::Same, name: parameter.clone(), row_of: None }),
            };
            match place {
                Ok(place) => match weights.shape(&place.name) {
                    Some(stored) if !place.layout.fits(stored, &shape) => {
                        let expected = place.layout.expected(&shape);
                        problems.push(format!("{} has shape {stored:?}, not {expected}", shown(&place.name)));
                        misshapen.insert(place.name);
                    }
                    None if place.layout.is_stored() => problems.push(format!("{} is missing", place.name)),
                    _ => {
                        if let Some(name) = &place.row_of
                            && let Some(row) = weights.shape(name)
                            && (row.first().is_none_or(|&rows| rows == 0) || row.get(1..) != shape.get(1..))
                        {
                            problems.push(format!("{name} has shape {row:?}, not rows of {:?}", &shape[1..]));
                        }
                        found.insert(parameter, place);
                    }
                },
                Err(name) => problems.push(format!("{name} is missing")),
            }
        }
        let used: BTreeSet<&str> =
            found.values().flat_map(|f| [Some(f.name.as_str()), f.row_of.as_deref()]).flatten().collect();
        let spare = |name: &&str| !used.contains(name) && map.as_ref().is_none_or(|m| !m.ignores(name));
        // A tensor of the wrong shape was named already.
        let named = |name: &&str| !misshapen.contains(*name);
        let left: Vec<String> = weights
            .names()
            .filter(spare)
            .filter(named)
            .map(|name| format!("{} is not part of this model", shown(name)))
            .collect();
        problems.extend(left);
        if !problems.is_empty() {
            return Err(fit(ModelError::Weights { problems }));
        }
        if config.tie_head
            && let Some(twin) = map.as_ref().and_then(|map| map.twin(&weights))
            && let Some(table) = found.get("embed.token.weight")
            && weights.read(&twin)? != weights.read(&table.name)?
        {
            // Versions of transformers do not agree on which of the two is meant.
            let problem = format!("{twin} differs from {}, and the configuration ties them", table.name);
            return Err(fit(ModelError::Weights { problems: vec![problem] }));
        }
        Ok(Self { folder, config, contents: Contents::Float(Files { weights, found }) })
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The folder with its config.json.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A number that tells weights apart: of names, shapes and contents, whatever files hold them. Not cryptographic.
    ///
    /// # Errors
    /// If the files cannot be read again.
    pub fn digest(&self) -> Result<u64> {
        match &self.contents {
            Contents::Float(files) => Ok(files.weights.digest()),
            Contents::Integer(_) => Ok(Weights::open(&self.folder)?.digest()),
        }
    }

    /// The model of integers if it is one, else itself.
    ///
    /// # Errors
    /// Itself.
    #[allow(clippy::result_large_err)]
    pub fn into_integer(self) -> std::result::Result<IntegerModel, Self> {
        match self.contents {
            Contents::Integer(model) => Ok(*model),
            Contents::Float(_) => Err(self),
        }
    }

    /// The model, all of it in memory, in float.
    ///
    /// # Errors
    /// If a parameter cannot be read, or it is a model of integers.
    pub fn load(&self) -> Result<Transformer> {
        let Contents::Float(files) = &self.contents else {
            return Err(CheckpointError::Integers { path: self.folder.clone() });
        };
        Transformer::read(self.config.clone(), &|name, shape| files.parameter(&self.config, name, shape))
            .map_err(|source| CheckpointError::Model { path: self.folder.clone(), source })
    }

    /// Gives `f` the model's parts: those of a float model are read when they are asked for and dropped when they were used.
    ///
    /// # Errors
    /// If the configuration makes no network.
    pub fn with_parts<T>(&self, f: impl FnOnce(&dyn Parts) -> T) -> Result<T> {
        let files = match &self.contents {
            Contents::Float(files) => files,
            Contents::Integer(model) => return Ok(f(&**model)),
        };
        let reader = |name: &str, shape: &[usize]| files.parameter(&self.config, name, shape);
        let parts = Streamed::new(self.config.clone(), &reader)
            .map_err(|source| CheckpointError::Model { path: self.folder.clone(), source })?;
        Ok(f(&parts))
    }
}

impl Files {
    /// Reads one parameter.
    fn parameter(
        &self,
        config: &ModelConfig,
        name: &str,
        shape: &[usize],
    ) -> std::result::Result<Tensor, ModelError> {
        let unreadable = |problem: String| ModelError::Unreadable { name: name.to_string(), problem };
        let place = self.found.get(name).ok_or_else(|| unreadable("it is not stored".into()))?;
        let read = |stored: &str| self.weights.read(stored).map_err(|e| unreadable(e.to_string()));
        let stored = if place.layout.is_stored() { read(&place.name)? } else { Vec::new() };
        let row = match &place.row_of {
            Some(other) => self.weights.read_rows(other, 0..1).map_err(|e| unreadable(e.to_string()))?,
            None => Vec::new(),
        };
        Ok(tensor(place.layout.read(stored, shape, config, &row), shape)?)
    }
}
