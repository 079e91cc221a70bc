//! MODEL: a run directory, one of its checkpoints, a Hugging Face folder, or a name on the Hub.

use crate::failure::Failure;
use crate::output;
use crate::settings::Settings;
use evenkeel::checkpoint::{CheckpointError, OnDisk, hub};
use evenkeel::model::{Examples, Input, ModelConfig, ModelError, Transformer};
use evenkeel::quant::int8::IntegerModel;
use evenkeel::tap::NoTap;
use evenkeel::tape::Tape;
use std::path::{Path, PathBuf};

/// The folder that MODEL means, a name on the Hub looked up in the cache.
pub(crate) fn locate(model: &Path, settings: &Settings) -> Result<PathBuf, Failure> {
    match hub::parse(&model.to_string_lossy()) {
        Some(name) => {
            let mut told = |text: &str| {
                if !settings.quiet {
                    output::note(text);
                }
            };
            Ok(hub::locate(&name, &hub::cache_dir(), &mut told).map_err(CheckpointError::from)?)
        }
        None => Ok(model.to_path_buf()),
    }
}

/// Opens MODEL without reading its weights, unless it is a model of integers.
pub(crate) fn open(model: &Path, settings: &Settings) -> Result<OnDisk, Failure> {
    Ok(OnDisk::open(&locate(model, settings)?)?)
}

/// A MODEL that can be run: in float, or of integers.
pub(crate) enum Runnable {
    Float(Box<Transformer>),
    Integer(Box<IntegerModel>),
}

impl Runnable {
    /// Opens a MODEL that predicts the next token, and says where it lies.
    pub(crate) fn open(model: &Path, settings: &Settings) -> Result<(Self, PathBuf), Failure> {
        Self::open_if(model, settings, ModelConfig::predicts_next_token)
    }

    /// The same of a MODEL that predicts the next token or the class of an image.
    pub(crate) fn open_any(model: &Path, settings: &Settings) -> Result<(Self, PathBuf), Failure> {
        Self::open_if(model, settings, |config| config.predicts_next_token() || config.classifies_images())
    }

    fn open_if(
        model: &Path,
        settings: &Settings,
        fits: impl FnOnce(&ModelConfig) -> bool,
    ) -> Result<(Self, PathBuf), Failure> {
        let on_disk = open(model, settings)?;
        let folder = on_disk.folder().to_path_buf();
        if !fits(on_disk.config()) {
            return Err(ModelError::NoNextToken.into());
        }
        let runnable = match on_disk.into_integer() {
            Ok(integer) => Self::Integer(Box::new(integer)),
            Err(on_disk) => Self::Float(Box::new(on_disk.load()?)),
        };
        Ok((runnable, folder))
    }

    /// The network.
    pub(crate) fn model(&self) -> &Transformer {
        match self {
            Self::Float(model) => model,
            Self::Integer(integer) => integer.model(),
        }
    }

    /// How it runs, to follow a rate.
    pub(crate) fn path(&self) -> &'static str {
        match self {
            Self::Float(_) => "",
            Self::Integer(integer) if integer.fused().is_some() => ", on bytes between all operations",
            Self::Integer(_) => ", integer products between float32 tensors",
        }
    }

    /// Mean loss of a batch.
    pub(crate) fn loss(&self, batch: &Examples) -> evenkeel::Result<f64> {
        match (self, &batch.input) {
            (Self::Float(model), _) => {
                let loss = model.loss_of(&Tape::off(), &mut NoTap, batch)?;
                Ok(f64::from(loss.tensor().to_scalar::<f32>()?))
            }
            (Self::Integer(integer), Input::Tokens { ids, sequences }) => {
                integer.loss(ids, &batch.targets, *sequences)
            }
            (Self::Integer(_), Input::Images { .. }) => {
                Err(ModelError::WrongInput { wants: "token ids" }.into())
            }
        }
    }
}

/// Loads a float MODEL that predicts the next token, and says where it lies.
pub(crate) fn load(model: &Path, settings: &Settings) -> Result<(Transformer, PathBuf), Failure> {
    let on_disk = open(model, settings)?;
    if !on_disk.config().predicts_next_token() {
        return Err(ModelError::NoNextToken.into());
    }
    Ok((on_disk.load()?, on_disk.folder().to_path_buf()))
}
