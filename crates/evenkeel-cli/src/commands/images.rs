//! `--images`: the labelled images that a model is run on.

use crate::failure::Failure;
use crate::output;
use crate::settings::Settings;
use evenkeel::checkpoint::image_settings;
use evenkeel::config::{DataConfig, DataKind};
use evenkeel::data::images::ImageBlocks;
use evenkeel::data::{ImageData, ImageFolder, ImageSource, Split};
use evenkeel::model::{ModelConfig, ModelError};
use std::path::Path;
use std::sync::Arc;

/// The word that stands for images which are drawn; a folder of that name is `./shapes`.
const SHAPES: &str = "shapes";

/// Opens what `--images` names, treated as the model in `folder` wants them.
pub(crate) fn open(
    what: &Path,
    folder: &Path,
    config: &ModelConfig,
    settings: &Settings,
) -> Result<Arc<ImageData>, Failure> {
    if !config.reads_images() {
        return Err(ModelError::WrongInput { wants: "token ids" }.into());
    }
    let plain = DataConfig { kind: DataKind::Shapes, ..DataConfig::default() };
    let treated = match image_settings(folder, config)? {
        Some(treated) => treated,
        None => {
            if !settings.quiet {
                output::note("the model has no preprocessor_config.json; images get mean and std 0.5");
            }
            plain.image_settings(config)
        }
    };
    let source = match what.to_str() {
        Some(SHAPES) => plain.images(config)?.source().clone(),
        _ => ImageSource::Folder(ImageFolder::open(what)?),
    };
    let (classes, known) = (source.classes(), config.vocab);
    if config.classifies_images() && classes > known {
        return Err(Failure::input(
            format!("{} has {classes} classes, and the model knows {known}", what.display()),
            "give the images that the model was trained on",
        ));
    }
    Ok(Arc::new(ImageData::new(source, treated)))
}

/// The validation images in batches of about 4096 positions, of so many positions at most.
pub(crate) fn blocks(
    images: &Arc<ImageData>,
    config: &ModelConfig,
    tokens: Option<u64>,
) -> Result<ImageBlocks, Failure> {
    let most = tokens.map(|tokens| tokens / config.context as u64);
    Ok(ImageBlocks::new(images.clone(), Split::Val, (4096 / config.context).max(1), most)?)
}
