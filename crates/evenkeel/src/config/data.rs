//! The table `[data]`: text as token shards, or labelled images.

use super::ConfigError;
use crate::data::ImagesError;
use crate::data::images::{COLOURS, Crop, ImageData, ImageFolder, ImageSettings, ImageSource, Shapes};
use crate::model::ModelConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What a run is trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DataKind {
    /// Token shards.
    #[default]
    Tokens,
    /// Images of ten classes that are drawn, without any files.
    Shapes,
    /// A folder of images in the layout of ImageNet.
    Images,
}

impl DataKind {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Shapes => "shapes",
            Self::Images => "images",
        }
    }
}

/// The table `[data]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DataConfig {
    /// Text or images; presets of images start with shapes.
    #[serde(default)]
    pub kind: DataKind,
    /// A folder that `evenkeel data tokenize` made, or one training shard; for images a folder with `train` and `val`.
    pub path: String,
    /// A validation shard, if `path` names a shard.
    pub val_path: String,
    /// Training pictures of shapes.
    #[serde(default = "train_images")]
    pub train_images: u64,
    /// Validation pictures of shapes.
    #[serde(default = "val_images")]
    pub val_images: u64,
    /// Which part of a training image is seen.
    #[serde(default)]
    pub augment_crop: Crop,
    /// Whether half of the training images are mirrored.
    #[serde(default)]
    pub augment_flip: bool,
    /// Taken from red, green and blue, of values between 0 and 1.
    #[serde(default = "halves")]
    pub image_mean: [f64; COLOURS],
    /// What is left of red, green and blue is divided by it.
    #[serde(default = "halves")]
    pub image_std: [f64; COLOURS],
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            kind: DataKind::Tokens,
            path: String::new(),
            val_path: String::new(),
            train_images: train_images(),
            val_images: val_images(),
            augment_crop: Crop::None,
            augment_flip: false,
            image_mean: halves(),
            image_std: halves(),
        }
    }
}

fn train_images() -> u64 {
    20_000
}

fn val_images() -> u64 {
    2_000
}

/// As the image processor of ViT has them.
fn halves() -> [f64; COLOURS] {
    [0.5; COLOURS]
}

impl DataConfig {
    /// What a preset starts from: text, or for a model of images the ones that need no files.
    pub(super) fn default_for(model: &ModelConfig) -> Self {
        let kind = if model.reads_images() { DataKind::Shapes } else { DataKind::Tokens };
        Self { kind, ..Self::default() }
    }

    /// Ranges that types do not express, and keys that mean nothing for this kind of data.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |problem: String| Err(ConfigError::Value { problem });
        let (kind, plain) = (self.kind, Self::default());
        let (text, shapes, images) =
            (kind == DataKind::Tokens, kind == DataKind::Shapes, kind == DataKind::Images);
        for (key, differs, used) in [
            ("path", self.path != plain.path, !shapes),
            ("val_path", self.val_path != plain.val_path, text),
            ("train_images", self.train_images != plain.train_images, shapes),
            ("val_images", self.val_images != plain.val_images, shapes),
            ("augment_crop", self.augment_crop != plain.augment_crop, !text),
            ("augment_flip", self.augment_flip != plain.augment_flip, !text),
            ("image_mean", self.image_mean != plain.image_mean, !text),
            ("image_std", self.image_std != plain.image_std, !text),
        ] {
            if differs && !used {
                let kind = kind.name();
                return refuse(format!("data.{key} is set, and means nothing with data.kind = \"{kind}\""));
            }
        }
        if self.augment_crop == Crop::Resized && !images {
            return refuse("data.augment_crop = \"resized\" needs data.kind = \"images\"".into());
        }
        // The upper end is far above any run and keeps products of counts below 2^63.
        if !(1..=1 << 32).contains(&self.train_images) || self.val_images > 1 << 32 {
            return refuse(
                "data.train_images must lie between 1 and 2^32, data.val_images between 0 and 2^32".into(),
            );
        }
        if self.image_mean.iter().any(|mean| !mean.is_finite()) {
            return refuse("data.image_mean must be three numbers".into());
        }
        if self.image_std.iter().any(|std| !(std.is_finite() && *std >= 1e-3)) {
            return refuse("data.image_std must be three numbers of at least 0.001".into());
        }
        Ok(())
    }

    /// Refuses a model that reads something else, or makes something else of it.
    pub(super) fn validate_for(&self, model: &ModelConfig) -> Result<(), ConfigError> {
        let refuse = |problem: String| Err(ConfigError::Mismatch { problem });
        let kind = self.kind.name();
        if self.kind == DataKind::Tokens {
            if model.reads_images() {
                return refuse(format!(
                    "model.patch_size makes a model of images, and data.kind is \"{kind}\""
                ));
            }
            if !model.predicts_next_token() {
                return refuse(
                    "a model of text is trained to predict the next token, which needs model.causal = true and model.readout = \"tokens\""
                        .into(),
                );
            }
            return Ok(());
        }
        if !model.reads_images() {
            return refuse(format!(
                "data.kind is \"{kind}\", and the model reads text: model.patch_size is 0"
            ));
        }
        if !model.classifies_images() {
            return refuse(
                "a model of images is trained to classify them, which needs model.readout = \"first\" or \"mean\"".into(),
            );
        }
        if model.image[2] != COLOURS {
            return refuse(format!(
                "data.kind = \"{kind}\" gives images of {COLOURS} colours, and model.image names {}",
                model.image[2]
            ));
        }
        Ok(())
    }

    /// How images are treated for a model; the height and width are its own.
    pub fn image_settings(&self, model: &ModelConfig) -> ImageSettings {
        let [height, width, _] = model.image;
        ImageSettings {
            size: [height, width],
            mean: self.image_mean,
            std: self.image_std,
            crop: self.augment_crop,
            flip: self.augment_flip,
        }
    }

    /// The images, for a configuration that has some.
    ///
    /// # Errors
    /// If the folder cannot be read or is no folder of images.
    pub fn images(&self, model: &ModelConfig) -> Result<ImageData, ImagesError> {
        let source = match self.kind {
            DataKind::Shapes => ImageSource::Shapes(Shapes {
                seed: 0,
                train_images: self.train_images,
                val_images: self.val_images,
            }),
            DataKind::Images | DataKind::Tokens => {
                ImageSource::Folder(ImageFolder::open(Path::new(&self.path))?)
            }
        };
        Ok(ImageData::new(source, self.image_settings(model)))
    }
}
