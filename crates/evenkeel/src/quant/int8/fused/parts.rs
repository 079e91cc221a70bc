//! What a fused model is made of, taken from an integer model piece by piece; `None` wherever a piece is of another kind.

use super::super::ActivationGrid;
use crate::model::config::{
    AttentionMatrix, Branches, Gate, ModelConfig, Nonlinearity, Norm, NormPosition, Positions, QkNorm,
    ValueInit,
};
use crate::model::{InputGrid, IntMatrix, StoredMatrix, Transformer};
use crate::slices::slice;
use crate::tap::Site;
use evenkeel_kernels::int8::PackedI8;
use evenkeel_kernels::int8::norm::RowNorm;
use evenkeel_kernels::int8::requantise::{Scale, Terms};
use evenkeel_kernels::norm::Centre;
use evenkeel_kernels::quant::Grid;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Whether blocks and embedding are of the kinds that run on bytes.
pub(super) fn is_plain(c: &ModelConfig) -> bool {
    let skips = c.attn_skip().is_some() && c.mlp_skip().is_some();
    let attention = c.gate == Gate::None
        && c.attention_matrix == AttentionMatrix::Softmax
        && c.value_init == ValueInit::Random
        && c.logit_softcap == 0.0
        && matches!(c.qk_norm, QkNorm::None | QkNorm::Rms | QkNorm::RmsInside);
    let mlp = c.alpha == 1.0 && !c.alpha_trainable && matches!(c.activation, Nonlinearity::Plain(_));
    c.predicts_next_token()
        && c.norm_position == NormPosition::Pre
        && c.branches == Branches::Sequential
        && c.positions != Positions::Rope
        && !c.has_embed_proj()
        && skips
        && attention
        && mlp
}

/// Hands out pieces, and remembers which grids it gave.
pub(super) struct Ingredients<'a> {
    model: &'a Transformer,
    grids: &'a BTreeMap<Site, ActivationGrid>,
    given: BTreeSet<Site>,
}

impl<'a> Ingredients<'a> {
    /// Nothing given so far.
    pub(super) fn new(model: &'a Transformer, grids: &'a BTreeMap<Site, ActivationGrid>) -> Self {
        Self { model, grids, given: BTreeSet::new() }
    }

    /// What the model is.
    pub(super) fn config(&self) -> &'a ModelConfig {
        self.model.config()
    }

    /// The static grid at a site.
    pub(super) fn grid(&mut self, site: Site) -> Option<Grid> {
        match self.grids.get(&site)? {
            ActivationGrid::Static(quantiser) => {
                self.given.insert(site);
                Some(quantiser.grid())
            }
            ActivationGrid::Token => None,
        }
    }

    /// Sites with a quantiser whose grid nobody asked for.
    pub(super) fn left_over(&self) -> impl Iterator<Item = Site> + '_ {
        self.grids.keys().filter(|site| !self.given.contains(site)).copied()
    }

    /// A parameter in float32.
    pub(super) fn vector(&self, name: &str) -> Option<Vec<f32>> {
        let parameter = self.model.parameters().iter().find(|p| p.name == name)?;
        Some(slice(&parameter.tensor).ok()?.to_vec())
    }

    /// A matrix of bytes.
    pub(super) fn matrix(&self, name: &str) -> Option<Arc<IntMatrix>> {
        match self.model.stored_matrix(name)? {
            StoredMatrix::Int8(matrix) => Some(matrix.clone()),
            StoredMatrix::Bf16(_) => None,
        }
    }

    /// A matrix of bytes that multiplies bytes on `input`.
    pub(super) fn product(&self, name: &str, input: Grid) -> Option<Product> {
        let matrix = self.matrix(name)?;
        let fits = matrix.is_plain() && matrix.input() == InputGrid::Static(input);
        fits.then_some(Product(matrix))
    }

    /// The norm `name`; `Some(None)` if there is none.
    pub(super) fn norm(&self, name: &str, norm: Norm) -> Option<Option<OwnedNorm>> {
        let vector = |part: &str| self.vector(&format!("{name}.{part}"));
        let (centre, gain, bias) = match norm {
            Norm::None => return Some(None),
            Norm::Layer => (Centre::Mean, Some(vector("gain")?), Some(vector("bias")?)),
            Norm::Rms => (Centre::Nothing, Some(vector("gain")?), None),
            Norm::Srms => (Centre::Nothing, None, None),
            Norm::Ss | Norm::Dyt => return None,
        };
        Some(Some(OwnedNorm { centre, eps: self.config().norm_eps as f32, gain, bias }))
    }
}

/// A matrix whose input lies on a known grid.
pub(super) struct Product(Arc<IntMatrix>);

impl Product {
    /// The weights as products take them.
    pub(super) fn weights(&self) -> &PackedI8 {
        self.0.packed()
    }

    /// What turns sums into outputs.
    pub(super) fn terms(&self) -> Terms<'_> {
        self.0.terms()
    }
}

/// A norm over channels with its parameters.
pub(super) struct OwnedNorm {
    centre: Centre,
    eps: f32,
    gain: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
}

impl OwnedNorm {
    /// As kernels take it.
    pub(super) fn kernel(&self) -> RowNorm<'_> {
        let (gain, bias) = (self.gain.as_deref(), self.bias.as_deref());
        RowNorm { centre: self.centre, eps: self.eps, gain, bias }
    }
}

/// Factors as kernels take them: one, or one for each column.
pub(super) fn factors(values: &[f32]) -> Scale<'_> {
    match values {
        [only] => Scale::One(*only),
        all => Scale::Columns(all),
    }
}
