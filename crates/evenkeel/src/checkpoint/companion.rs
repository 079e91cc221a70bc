//! What turns raw data into a model's inputs, kept in the folder of its weights: a tokenizer, or how images are treated.
//!
//! For images it is `preprocessor_config.json` with the keys that transformers' `ViTImageProcessor` has, so that folders of
//! either origin are read. What is not in it, cropping and mirroring in training, no longer matters to a trained model.

use super::{CheckpointError, Result, files};
use crate::data::images::{COLOURS, Crop, ImageSettings};
use crate::model::ModelConfig;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A file beside the weights.
#[derive(Clone, Debug)]
pub enum Companion {
    /// A tokenizer.json, to be copied.
    Tokenizer(PathBuf),
    /// How images are treated.
    Images(ImageSettings),
}

/// Its name, for images.
const PREPROCESSOR: &str = "preprocessor_config.json";

impl Companion {
    /// Writes it into a folder.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        match self {
            Self::Tokenizer(path) => {
                let bytes = files::read(path)?;
                files::write(&dir.join("tokenizer.json"), &bytes)
            }
            Self::Images(ImageSettings { size: [height, width], mean, std, .. }) => files::write_json(
                &dir.join(PREPROCESSOR),
                &json!({
                    "image_processor_type": "ViTImageProcessor",
                    "do_resize": true,
                    "size": {"height": height, "width": width},
                    // Pillow's number of the bilinear filter.
                    "resample": 2,
                    "do_rescale": true,
                    "rescale_factor": 1.0 / 255.0,
                    "do_normalize": true,
                    "image_mean": mean,
                    "image_std": std,
                }),
            ),
        }
    }
}

/// How the model in a folder wants images to be treated; `None` where the folder does not tell.
///
/// # Errors
/// If preprocessor_config.json is there and cannot be read, or holds something else than three means and deviations.
pub fn image_settings(folder: &Path, config: &ModelConfig) -> Result<Option<ImageSettings>> {
    let path = folder.join(PREPROCESSOR);
    if !path.is_file() {
        return Ok(None);
    }
    let file: Value = files::read_json(&path)?;
    let three = |key: &str, default: f64| -> Result<[f64; COLOURS]> {
        let damaged = || CheckpointError::Damaged {
            path: path.clone(),
            problem: format!("{key} must be three numbers"),
        };
        if file["do_normalize"] == false {
            return Ok([default; COLOURS]);
        }
        let numbers = file[key].as_array().ok_or_else(damaged)?;
        let numbers: Vec<f64> = numbers.iter().filter_map(Value::as_f64).collect();
        numbers.try_into().map_err(|_| damaged())
    };
    let (mean, std) = (three("image_mean", 0.0)?, three("image_std", 1.0)?);
    if std.iter().any(|std| *std <= 0.0) {
        return Err(CheckpointError::Damaged { path, problem: "image_std must be above 0".into() });
    }
    let [height, width, _] = config.image;
    Ok(Some(ImageSettings { size: [height, width], mean, std, crop: Crop::None, flip: false }))
}
