//! The one way to look into, or reach into, a forward pass.
//!
//! A [`Tap`] says which sites it wants and is called there with the tensor; it returns the tensor to go on
//! with. Observing taps (telemetry, inspection, dumps) return it unchanged; transforming taps (fake
//! quantisation, ablation) change it and are refused while a tape records. Looking changes no bit of what is
//! computed; with [`NoTap`] nothing is computed that would not be computed anyway.

use candle_core::{Result, Tensor};
use std::fmt;

/// What is tapped, without the layer number. Names are those of the documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// What enters block 0: after embedding norm and positions.
    Embed,
    /// What enters the query, key and value projections.
    AttnIn,
    /// Query projection.
    AttnQ,
    /// Key projection.
    AttnK,
    /// Value projection.
    AttnV,
    /// Queries after QK-norm.
    AttnQNorm,
    /// Keys after QK-norm.
    AttnKNorm,
    /// Scaled scores before the mask, (sequences, heads, tokens, tokens).
    AttnScores,
    /// Probabilities, (sequences, heads, tokens, tokens).
    AttnProbs,
    /// Weighted values of all heads, merged, before any gate and the output projection.
    AttnContext,
    /// The gate on them, between 0 and 1: (sequences, tokens, heads), or a value per channel.
    AttnGate,
    /// Output projection.
    AttnOut,
    /// Output projection times β.
    AttnBranch,
    /// Residual stream between attention and MLP.
    ResidMid,
    /// What enters the first MLP matrix.
    MlpIn,
    /// After the nonlinearity.
    MlpHidden,
    /// Second MLP matrix.
    MlpOut,
    /// Second MLP matrix times β.
    MlpBranch,
    /// Residual stream leaving the block.
    Resid,
    /// After the final norm.
    FinalNorm,
    /// Output of the head.
    Logits,
}

impl Place {
    /// Those inside a block.
    pub const IN_BLOCKS: [Place; 18] = [
        Place::AttnIn,
        Place::AttnQ,
        Place::AttnK,
        Place::AttnV,
        Place::AttnQNorm,
        Place::AttnKNorm,
        Place::AttnScores,
        Place::AttnProbs,
        Place::AttnContext,
        Place::AttnGate,
        Place::AttnOut,
        Place::AttnBranch,
        Place::ResidMid,
        Place::MlpIn,
        Place::MlpHidden,
        Place::MlpOut,
        Place::MlpBranch,
        Place::Resid,
    ];

    /// The part of the site's name after `blocks.{i}.`, or the whole name outside blocks.
    pub fn name(self) -> &'static str {
        match self {
            Place::Embed => "embed",
            Place::AttnIn => "attn.in",
            Place::AttnQ => "attn.q",
            Place::AttnK => "attn.k",
            Place::AttnV => "attn.v",
            Place::AttnQNorm => "attn.q_norm",
            Place::AttnKNorm => "attn.k_norm",
            Place::AttnScores => "attn.scores",
            Place::AttnProbs => "attn.probs",
            Place::AttnContext => "attn.context",
            Place::AttnGate => "attn.gate",
            Place::AttnOut => "attn.out",
            Place::AttnBranch => "attn.branch",
            Place::ResidMid => "resid_mid",
            Place::MlpIn => "mlp.in",
            Place::MlpHidden => "mlp.hidden",
            Place::MlpOut => "mlp.out",
            Place::MlpBranch => "mlp.branch",
            Place::Resid => "resid",
            Place::FinalNorm => "final_norm",
            Place::Logits => "logits",
        }
    }

    /// Whether tensors here are (sequences, tokens, channels) and so carry the channel metrics.
    pub fn has_channels(self) -> bool {
        !matches!(self, Place::AttnScores | Place::AttnProbs)
    }
}

/// A named place in a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    /// Block index, if inside a block.
    pub layer: Option<usize>,
    /// Which place.
    pub place: Place,
}

impl Site {
    /// A place outside the blocks.
    pub fn outside(place: Place) -> Self {
        Self { layer: None, place }
    }

    /// A place in block `layer`.
    pub fn block(layer: usize, place: Place) -> Self {
        Self { layer: Some(layer), place }
    }

    /// Whether this is the residual stream entering a block, or leaving the last: the sites that the paper plots.
    pub fn is_residual_stream(&self) -> bool {
        matches!(self.place, Place::Embed | Place::Resid)
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "blocks.{layer}.{}", self.place.name()),
            None => f.write_str(self.place.name()),
        }
    }
}

/// Looks into, or reaches into, a forward pass.
pub trait Tap {
    /// Whether the tap wants to be called at `site`.
    fn wants(&self, site: Site) -> bool;

    /// Called with the tensor at `site`; returns the tensor to go on with.
    ///
    /// # Errors
    /// Whatever stops the forward pass.
    fn visit(&mut self, site: Site, x: Tensor) -> Result<Tensor>;

    /// Whether `visit` may return something else than it was given.
    fn transforms(&self) -> bool {
        false
    }
}

/// No tap: wants nothing.
pub struct NoTap;

impl Tap for NoTap {
    fn wants(&self, _: Site) -> bool {
        false
    }
    fn visit(&mut self, _: Site, x: Tensor) -> Result<Tensor> {
        Ok(x)
    }
}
