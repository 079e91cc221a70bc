//! Post-training quantisation, simulated: the W8A8 recipe of the paper's OPT-125m table.
//!
//! [`grid`] rounds a tensor to a grid and back, [`ranges`] chooses the grid, [`w8a8`] says where quantisers
//! stand and runs calibration and evaluation. After Bondarenko et al., "Quantizable Transformers" (NeurIPS
//! 2023), whose setting He et al. use; every constant is that of the documentation (docs/quantisation.md).

pub mod grid;
pub mod ranges;
pub mod w8a8;

pub use grid::Quantiser;
pub use w8a8::{QuantReport, QuantSite, QuantSummary, QuantTap, Scheme, quantise_weights, quantize};

use crate::error::Hint;
use thiserror::Error;

/// Quantisation that cannot be done.
#[derive(Debug, Error)]
pub enum QuantError {
    /// No scheme of that name.
    #[error("there is no quantisation scheme named \"{name}\"; known are {known}")]
    UnknownScheme {
        /// As given.
        name: String,
        /// All names.
        known: String,
    },
    /// A block whose quantiser places are not settled.
    #[error(
        "quantising a model whose norms stand on the stream (norm_position = \"post\" or \"post_stream\") is not supported yet"
    )]
    PostNorm,
    /// No calibration batch.
    #[error("calibration needs at least one batch")]
    NoCalibration,
    /// A tensor with NaN or infinities.
    #[error("{site} holds values that are not finite, so it has no quantisation range")]
    NonFinite {
        /// Site or parameter.
        site: String,
    },
    /// A quantiser that saw nothing in calibration.
    #[error("{site} was not reached in calibration, so it has no quantisation range")]
    Uncalibrated {
        /// The site.
        site: String,
    },
}

impl Hint for QuantError {
    fn hint(&self) -> String {
        match self {
            QuantError::UnknownScheme { .. } => "use --scheme w8a8".into(),
            QuantError::PostNorm => "quantise a pre-norm or OP model".into(),
            QuantError::NoCalibration => "give --calib-batches 4, the recipe's number".into(),
            QuantError::NonFinite { .. } => {
                "the model has diverged; quantise an earlier checkpoint of the run".into()
            }
            QuantError::Uncalibrated { .. } => "calibrate and evaluate the same model".into(),
        }
    }
}
