//! Images that cannot be read.

use crate::error::Hint;
use std::path::PathBuf;
use thiserror::Error;

/// Images that cannot be read.
#[derive(Debug, Error)]
pub enum ImagesError {
    /// A folder that is no set of images.
    #[error("{path} has no folder train with a folder of images for each class")]
    Layout {
        /// As given.
        path: PathBuf,
    },
    /// A class without an image.
    #[error("{path} holds no .png, .jpg or .jpeg file")]
    EmptyClass {
        /// The folder of the class.
        path: PathBuf,
    },
    /// A validation class that there is no training class of.
    #[error("{path} is a class that train does not have")]
    UnknownClass {
        /// The folder of the class.
        path: PathBuf,
    },
    /// A split without images.
    #[error("there are no images in the split {split}")]
    NoImages {
        /// "train" or "val".
        split: &'static str,
    },
    /// Batches of nothing.
    #[error("a batch must hold at least one image")]
    EmptyBatch,
    /// A file that is not the image that its name says.
    #[error("{path} cannot be decoded: {problem}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        problem: String,
    },
    /// A build without decoders.
    #[error("{path} cannot be decoded: this build reads no image files")]
    NoDecoder {
        /// The file.
        path: PathBuf,
    },
    /// A file or folder that cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Hint for ImagesError {
    fn hint(&self) -> String {
        match self {
            Self::Layout { .. } | Self::UnknownClass { .. } => {
                "the layout is DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg, with the same classes".into()
            }
            Self::EmptyClass { .. } => "remove the folder, or put images into it".into(),
            Self::NoImages { .. } => {
                "the layout is DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg; shapes need data.train_images and data.val_images"
                    .into()
            }
            Self::EmptyBatch => "set train.batch_sequences to at least 1".into(),
            Self::Unreadable { .. } => "replace the file by a whole PNG or JPEG image; a run goes on with --resume".into(),
            Self::NoDecoder { .. } => {
                "build it with `cargo build --release --features image`, or train on data.kind = \"shapes\"".into()
            }
            Self::Io { .. } => "check that the path exists and that you may read it".into(),
        }
    }
}
