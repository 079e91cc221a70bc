//! Post-training quantisation.
//!
//! [`spec`] says what a quantiser is, [`scheme`] which quantisers a model gets; [`range`] finds ranges, [`grid`] and
//! [`rounding`] round to what they make. [`Simulation`] puts them together: the model as it would be in integers, computed in
//! float. The scheme `w8a8` is the recipe of the paper's OPT-125m table, after Bondarenko et al., "Quantizable Transformers"
//! (NeurIPS 2023), whose setting He et al. use; every constant is that of the documentation (docs/quantisation.md).

mod attribution;
mod comparison;
pub mod grid;
pub mod int8;
pub mod places;
pub mod range;
pub mod repair;
mod repaired;
mod report;
pub mod rounding;
pub mod scheme;
mod simulation;
pub mod spec;
mod stages;
mod tap;
mod weights;

pub use attribution::{Attribution, CumulativeCost, QuantiserCost, QuantiserKind, SiteDeviation};
pub use grid::Quantiser;
pub use report::{FloatSide, QuantReport, QuantSide, QuantSite, QuantSummary};
pub use scheme::{HeadFormat, PRESETS, Plan, Scheme};
pub use simulation::Simulation;
pub use spec::Spec;
pub use tap::{Calibrated, QuantTap};
pub use weights::{Rounded, WeightRounding, quantise_weights};

use crate::error::Hint;
use thiserror::Error;

/// Quantisation that cannot be done.
#[derive(Clone, Debug, Error)]
pub enum QuantError {
    /// No scheme of that name.
    #[error("there is no quantisation scheme named \"{name}\"; known are {known}")]
    UnknownScheme {
        /// As given.
        name: String,
        /// All names.
        known: String,
    },
    /// A scheme's text that cannot be read.
    #[error("the quantisation scheme {name} cannot be read: {problem}")]
    SchemeText {
        /// Of the scheme.
        name: String,
        /// Why.
        problem: String,
    },
    /// A word of a quantiser that means nothing.
    #[error("\"{word}\" says nothing of a quantiser; known are {known}")]
    UnknownWord {
        /// As given.
        word: String,
        /// All words.
        known: &'static str,
    },
    /// Words that do not go together.
    #[error("\"{words}\" is no quantiser: {problem}")]
    Words {
        /// As given.
        words: String,
        /// Why.
        problem: &'static str,
    },
    /// No quantiser at all.
    #[error("the scheme {scheme} quantises nothing of this model")]
    FitsNothing {
        /// Its name.
        scheme: String,
    },
    /// A quantiser that the integer model does not have.
    #[error(
        "{site} has the quantiser \"{words}\", and the integer model multiplies int8 alone: weights symmetric per tensor or channel, activations asymmetric, static per tensor or dynamic per token"
    )]
    NotInt8 {
        /// Site or parameter.
        site: String,
        /// Its quantiser.
        words: String,
    },
    /// A glob that matches nothing.
    #[error("\"{pattern}\" matches no site and no weight of this model")]
    PatternFitsNothing {
        /// The glob.
        pattern: String,
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
            QuantError::UnknownScheme { .. } => {
                "`evenkeel config list` describes them; a file's path is taken too".into()
            }
            QuantError::SchemeText { .. } => "`evenkeel config show w8a8` prints one to start from".into(),
            QuantError::UnknownWord { .. } | QuantError::Words { .. } => {
                "docs/quantisation.md explains the words; `evenkeel config show w8a8` shows them in use".into()
            }
            QuantError::NotInt8 { .. } => {
                "with --out use --scheme w8a8, w8a8_int8_head, w8a8_channel or w8a8_token, and no --site or repair that leaves int8".into()
            }
            QuantError::FitsNothing { .. } => "give it weights or activations that are not `float`".into(),
            QuantError::PatternFitsNothing { .. } => {
                "names are those of `evenkeel quantize --json`, such as blocks.0.attn.q or blocks.*.mlp.down.weight"
                    .into()
            }
            QuantError::PostNorm => "quantise a pre-norm or OP model".into(),
            QuantError::NoCalibration => "give --calib-batches 4, the recipe's number".into(),
            QuantError::NonFinite { .. } => {
                "the model has diverged; quantise an earlier checkpoint of the run".into()
            }
            QuantError::Uncalibrated { .. } => "calibrate and evaluate the same model".into(),
        }
    }
}
