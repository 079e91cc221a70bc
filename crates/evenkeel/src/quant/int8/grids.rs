//! Grids of activations in an integer model, and which of them a matrix reads.

use super::super::grid::{Cell, Quantiser};
use super::super::places::input_of;
use super::super::rounding::Layout;
use super::super::spec::{Format, Scale, Spec};
use super::super::tap::Calibrated;
use crate::model::InputGrid;
use crate::model::config::{Branches, Gate, ModelConfig, Norm};
use crate::tap::{Place, Site};
use std::collections::BTreeMap;

/// How the values at a site become bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ActivationGrid {
    /// On a grid that calibration found.
    Static(Quantiser),
    /// On a grid of each token's own.
    Token,
}

impl ActivationGrid {
    /// That of a calibrated quantiser; `None` if its values are no bytes.
    pub(super) fn of(a: &Calibrated) -> Option<Self> {
        match (a.rounding.map(|r| (r.layout, &r.cells[..])), a.spec) {
            (Some((Layout::Tensor, [Cell::Int(q)])), _) if q.low == 0 && q.high == 255 => {
                Some(Self::Static(*q))
            }
            (None, spec) if is_token(spec) => Some(Self::Token),
            _ => None,
        }
    }
}

/// Whether a quantiser is int8 with a grid for each token.
pub(super) fn is_token(spec: Spec) -> bool {
    spec.dynamic
        && spec.scale == Scale::Float
        && spec.format == Format::Int { bits: 8, symmetric: false }
        && Layout::of_activation(spec.granularity) == Layout::Row
}

/// Whether a quantiser's values are bytes on a grid of the tensor's or of the token's.
pub(super) fn is_bytes(spec: Spec) -> bool {
    let whole = !spec.dynamic
        && spec.scale == Scale::Float
        && spec.format == Format::Int { bits: 8, symmetric: false }
        && Layout::of_activation(spec.granularity) == Layout::Tensor;
    whole || is_token(spec)
}

/// The grid of what the matrix `weight` multiplies: of the site before it, or of the stream where no norm stands between. A
/// grid for each token where that is not known.
pub(super) fn input_grid(
    config: &ModelConfig,
    grids: &BTreeMap<Site, ActivationGrid>,
    weight: &str,
) -> InputGrid {
    let site = match weight == "embed.token.weight" && config.tie_head {
        true => Some(Site::outside(Place::FinalNorm)),
        false => input_of(weight),
    };
    let stream = |site: Site| {
        let entering = match site.layer {
            Some(0) => Some(Site::outside(Place::Embed)),
            Some(layer) => Some(Site::block(layer - 1, Place::Resid)),
            None => config.depth.checked_sub(1).map(|last| Site::block(last, Place::Resid)),
        };
        match site.place {
            Place::AttnIn if site.layer.is_some_and(|l| config.attn_norm(l) == Norm::None) => entering,
            Place::MlpIn if config.norm == Norm::None && config.alpha == 1.0 && !config.alpha_trainable => {
                match config.branches {
                    Branches::Sequential => site.layer.map(|l| Site::block(l, Place::ResidMid)),
                    Branches::Parallel | Branches::ParallelTwoNorms => entering,
                }
            }
            Place::FinalNorm if config.final_norm == Norm::None && !config.has_embed_proj() => entering,
            _ => None,
        }
    };
    // What a gate lets through of the context lies on no grid, nor what a matrix makes of the final norm.
    let changed = |site: Site| match site.place {
        Place::AttnContext => config.gate != Gate::None,
        Place::FinalNorm => config.has_embed_proj() || config.head_transform,
        _ => false,
    };
    let grid = site
        .filter(|&site| !changed(site))
        .and_then(|site| grids.get(&site).or_else(|| grids.get(&stream(site)?)));
    match grid {
        Some(ActivationGrid::Static(q)) => InputGrid::Static(q.grid()),
        Some(ActivationGrid::Token) | None => InputGrid::Token,
    }
}
