//! What 8 bits would do to a tensor: the relative error of rounding it to integers, with one step for all of it, one per
//! token, or one per channel. From these follow where int8 breaks, and what would mend it.
//!
//! Activations are rounded asymmetrically, weights symmetrically, the step set by the extremes (no clipping), as
//! in [`crate::quant::grid`]. An error is √(Σ (x - x̂)² / Σ x²); its signal-to-quantisation-noise ratio is
//! -20 log10 of it, in decibels. Gaussian entries lie near 1.2%, 38 dB, per tensor.

use serde::{Deserialize, Serialize};

/// Above this relative error (30 dB) a place is said to suffer: noise of a thousandth of the signal's power.
pub const TOLERABLE: f64 = 0.031_622_776_601_683_79;

/// What is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounded {
    /// Activations at a site.
    Activation,
    /// A weight matrix.
    Weight,
}

/// What would help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remedy {
    /// Nothing needed: one step for the whole tensor will do.
    None,
    /// A step for each token, found while running.
    PerToken,
    /// A step for each channel of a weight's output.
    PerChannel,
    /// Channels scaled so that the weights take the outliers over (SmoothQuant, arXiv 2211.10438).
    SmoothQuant,
    /// No 8-bit grid is fine enough.
    KeepInFloat,
}

impl Remedy {
    /// As it is printed: `ok`, `per token`, ...
    pub fn label(self) -> &'static str {
        match self {
            Remedy::None => "ok",
            Remedy::PerToken => "per token",
            Remedy::PerChannel => "per channel",
            Remedy::SmoothQuant => "SmoothQuant",
            Remedy::KeepInFloat => "keep in float",
        }
    }
}

/// An entry of the largest magnitude, which sets the step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Culprit {
    /// Channel, from 0; of a weight the input channel.
    pub channel: usize,
    /// Sequence, from 0; null for weights.
    pub sequence: Option<u64>,
    /// Token in the sequence, from 0; of a weight the output channel.
    pub position: usize,
    /// Id of that token; null for weights and images.
    pub token: Option<u32>,
    /// That token as text, if a tokenizer is at hand.
    pub text: Option<String>,
    /// The entry.
    pub value: f64,
}

/// One line of the verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Int8Verdict {
    /// Site or parameter.
    pub site: String,
    /// Block index; null outside blocks.
    pub layer: Option<usize>,
    /// What is rounded.
    pub kind: Rounded,
    /// Relative error with one step for all.
    pub int8_error: Option<f64>,
    /// The same in decibels.
    pub sqnr_db: Option<f64>,
    /// Relative error with a step per token; null for weights.
    pub int8_error_token: Option<f64>,
    /// Relative error with a step per channel: of activations each channel, of weights each output channel.
    pub int8_error_channel: Option<f64>,
    /// The entry that sets the step.
    pub culprit: Option<Culprit>,
    /// What would help.
    pub remedy: Remedy,
}

/// RMS of every channel at a site of the residual stream, for the heat strip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChannelStrip {
    /// Site.
    pub site: String,
    /// Block index; null for `embed`.
    pub layer: Option<usize>,
    /// RMS of each channel over all tokens.
    pub rms: Vec<f64>,
}
