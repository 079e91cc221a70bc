//! What can be wrong with files of weights.

use crate::error::Hint;
use crate::model::list;
use std::ops::Range;
use std::path::PathBuf;
use thiserror::Error;

/// Weights that cannot be read.
#[derive(Debug, Error)]
pub enum WeightsError {
    /// A file that cannot be opened or mapped.
    #[error("cannot access {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A folder with none of the files that are looked for.
    #[error(
        "{dir} holds no weights: neither model.safetensors nor pytorch_model.bin, nor an index (.index.json) of either"
    )]
    None {
        /// The folder.
        dir: PathBuf,
    },
    /// A file that is not what its name says, or that is not safe to read.
    #[error("{path} {fault}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: Fault,
    },
    /// Files that an index names and that are not there.
    #[error("{path} names files that are missing: {}", list(missing))]
    MissingShards {
        /// The index.
        path: PathBuf,
        /// All of them.
        missing: Vec<String>,
    },
    /// Files that contradict each other.
    #[error("{path} and the files of weights beside it disagree: {}", list(problems))]
    Disagree {
        /// The index, or the first file where there is no index.
        path: PathBuf,
        /// Every contradiction.
        problems: Vec<String>,
    },
    /// A tensor that was asked for and is not there.
    #[error("the weights hold no tensor {name}")]
    NoTensor {
        /// Its name.
        name: String,
    },
    /// Rows that were asked for and are not there.
    #[error("rows {} to {} were asked of tensor {name}, which has {held} rows", rows.start, rows.end)]
    NoRows {
        /// Its name.
        name: String,
        /// As asked.
        rows: Range<usize>,
        /// How many it has; 0 if it is a scalar.
        held: usize,
    },
}

/// What is wrong with the bytes of one file: the end of a sentence that begins with its path.
#[derive(Debug, Error, PartialEq)]
pub enum Fault {
    /// Not a file of this kind, or one that was cut or changed.
    #[error("is damaged: {0}")]
    Damaged(String),
    /// A sound file with something in it that is not read.
    #[error("cannot be used: {0}")]
    Unsupported(String),
    /// A pickle that names something that is neither a tensor nor made of tensors.
    #[error("asks for {0}, which a file of tensors never needs")]
    Global(String),
    /// torch.save of before PyTorch 1.6.
    #[error("has the format that torch.save wrote before PyTorch 1.6, which is not read")]
    Legacy,
    /// Numbers of a kind that is not read.
    #[error("holds tensor {tensor} as {dtype}, which is not read")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// The kind, as the file has it.
        dtype: String,
    },
}

impl Hint for WeightsError {
    fn hint(&self) -> String {
        match self {
            WeightsError::Io { .. } => "check that the file exists and that you may read it".into(),
            WeightsError::None { .. } => {
                "download the model's weights into this folder, as safetensors if there is a choice".into()
            }
            WeightsError::File { fault, .. } => fault.hint(),
            WeightsError::MissingShards { .. } => "download the missing files into the same folder".into(),
            WeightsError::Disagree { .. } => {
                "download the folder again: its files seem to come from different versions of the model"
                    .into()
            }
            WeightsError::NoTensor { .. } | WeightsError::NoRows { .. } => {
                "check that config.json and the weights come from the same model".into()
            }
        }
    }
}

impl Hint for Fault {
    fn hint(&self) -> String {
        match self {
            Fault::Damaged(_) => "download or write the file again; it is not what it was when written".into(),
            Fault::Unsupported(_) => "load the model where it was made and save it as safetensors".into(),
            Fault::Global(_) => {
                "such a file can run programs when PyTorch loads it; use weights in safetensors instead".into()
            }
            Fault::Legacy => {
                "load it with a PyTorch that you trust it to and torch.save it again, or save it as safetensors"
                    .into()
            }
            Fault::Dtype { .. } => {
                "what is read: F32, F16, BF16, F64, I64, I32, I16, I8, U8 and BOOL; convert the tensor to one of them"
                    .into()
            }
        }
    }
}

/// Text out of a file, fit for a message: short, and nothing in it that a terminal would obey.
pub(in crate::checkpoint) fn shown(text: &str) -> String {
    const LONGEST: usize = 80;
    let mut out: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST).is_some() {
        out.push_str("...");
    }
    out
}

/// Shorthand for the readers.
pub(super) fn damaged<T>(problem: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Damaged(problem.into()))
}
