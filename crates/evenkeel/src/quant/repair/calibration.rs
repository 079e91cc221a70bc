//! What calibration needs to know of the inputs of the matrices: maxima, sums and Gram matrix.
//!
//! For each channel two numbers; on request the Gram matrix Σ x xᵀ too, which is large: at width 768 the four of a block
//! hold 3 · 768² + 3072² float32, 45 MB. [`super::gptq`] therefore has those of one block at a time.

use super::RepairError;
use super::weights::name_of;
use crate::model::config::{Gate, ModelConfig, Projection, Readout};
use crate::model::{Input, Transformer};
use crate::ops::gate_by;
use crate::slices::slice;
use crate::tap::{Place, Site, Tap};
use crate::tape::Tape;
use candle_core::{D, Result as CandleResult, Tensor};
use evenkeel_kernels::gemm::{Compute, View, blend_gram, mirror};
use std::collections::BTreeMap;

/// Statistics of what enters a matrix, over all tokens of the calibration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InputStatistics {
    /// Tokens seen.
    pub tokens: u64,
    /// Largest magnitude of each channel.
    pub maxima: Vec<f32>,
    /// Σ x of each channel.
    pub sums: Vec<f64>,
    /// Σ x xᵀ, (channels, channels) row by row. Empty if it was not wanted.
    pub gram: Vec<f32>,
}

impl InputStatistics {
    fn add(&mut self, x: &[f32], width: usize, gram: bool) {
        self.maxima.resize(width, 0.0);
        self.sums.resize(width, 0.0);
        for row in x.chunks_exact(width) {
            for ((most, sum), &v) in self.maxima.iter_mut().zip(&mut self.sums).zip(row) {
                *most = most.max(v.abs());
                *sum += f64::from(v);
            }
        }
        let tokens = x.len() / width;
        if gram {
            self.gram.resize(width * width, 0.0);
            blend_gram(Compute::F32, View::new(x, tokens, width).t(), &mut self.gram, 1.0, 1.0);
        }
        self.tokens += tokens as u64;
    }

    /// E\[x\] of each channel.
    pub fn means(&self) -> impl Iterator<Item = f64> + '_ {
        self.sums.iter().map(|sum| sum / self.tokens.max(1) as f64)
    }
}

/// Statistics of the inputs of every matrix of the blocks, and of the first after the final norm.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calibration {
    sites: BTreeMap<Site, InputStatistics>,
}

impl Calibration {
    /// Runs the model on `inputs`: maxima and sums, and with `gram` the Gram matrices, of all sites at once.
    ///
    /// # Errors
    /// If there are no inputs, the model cannot run on them, or an activation is not finite.
    pub fn of(model: &Transformer, inputs: &[Input], gram: bool) -> Result<Self, RepairError> {
        if inputs.is_empty() {
            return Err(RepairError::NoCalibration);
        }
        let mut tap = InputTap::new(model.config(), gram);
        for input in inputs {
            model.run(&Tape::off(), &mut tap, input)?;
        }
        tap.finish()
    }

    /// What was seen at a site.
    ///
    /// # Errors
    /// If nothing was.
    pub fn at(&self, site: Site) -> Result<&InputStatistics, RepairError> {
        self.sites.get(&site).ok_or_else(|| RepairError::Uncalibrated { site: site.to_string() })
    }
}

/// The sites that matrices read, in the order of the forward pass.
pub(super) fn input_sites(c: &ModelConfig) -> Vec<Site> {
    let blocks = (0..c.depth).flat_map(block_sites);
    let head = (c.readout != Readout::None).then_some(Site::outside(Place::FinalNorm));
    blocks.chain(head).collect()
}

/// Those of one block.
pub(super) fn block_sites(layer: usize) -> [Site; 4] {
    [Place::AttnIn, Place::AttnContext, Place::MlpIn, Place::MlpHidden].map(|place| Site::block(layer, place))
}

/// The matrices that read a site. Gates of attention are not among them: they stay in float.
pub(super) fn readers(c: &ModelConfig, site: Site) -> Vec<String> {
    let projections: &[Projection] = match site.place {
        Place::AttnIn => &[Projection::Q, Projection::K, Projection::V],
        Place::AttnContext => &[Projection::Out],
        Place::MlpIn if c.activation.is_gated() => &[Projection::Gate, Projection::Up],
        Place::MlpIn => &[Projection::Up],
        Place::MlpHidden => &[Projection::Down],
        Place::FinalNorm => return vec![head_reader(c).into()],
        _ => &[],
    };
    let block = site.layer.map_or_else(String::new, |layer| format!("blocks.{layer}."));
    projections.iter().map(|&p| format!("{block}{}", name_of(p))).collect()
}

/// The first matrix after the final norm.
pub(super) fn head_reader(c: &ModelConfig) -> &'static str {
    match (c.has_embed_proj(), c.head_transform) {
        (true, _) => "head.proj",
        (false, true) => "head.transform",
        (false, false) => "head",
    }
}

/// Observes the inputs of the matrices.
pub(super) struct InputTap {
    gram: bool,
    gated: bool,
    /// What the gate that comes next multiplies.
    context: Option<Tensor>,
    sites: BTreeMap<Site, InputStatistics>,
}

impl InputTap {
    pub(super) fn new(c: &ModelConfig, gram: bool) -> Self {
        Self { gram, gated: c.gate != Gate::None, context: None, sites: BTreeMap::new() }
    }

    /// What was seen.
    ///
    /// # Errors
    /// If an activation was not finite.
    pub(super) fn finish(mut self) -> Result<Calibration, RepairError> {
        for statistics in self.sites.values_mut().filter(|s| !s.gram.is_empty()) {
            // Below the diagonal alone so far.
            mirror(&mut statistics.gram, statistics.maxima.len());
        }
        let bad = self.sites.iter().find(|(_, s)| s.sums.iter().any(|sum| !sum.is_finite()));
        match bad {
            Some((site, _)) => Err(RepairError::NonFinite { name: site.to_string() }),
            None => Ok(Calibration { sites: self.sites }),
        }
    }

    fn add(&mut self, site: Site, x: &Tensor) -> CandleResult<()> {
        let x = x.contiguous()?;
        let width = x.dim(D::Minus1)?;
        self.sites.entry(site).or_default().add(&slice(&x)?, width, self.gram);
        Ok(())
    }
}

impl Tap for InputTap {
    fn wants(&self, site: Site) -> bool {
        match site.place {
            Place::AttnIn | Place::AttnContext | Place::MlpIn | Place::MlpHidden | Place::FinalNorm => true,
            Place::AttnGate => self.gated,
            _ => false,
        }
    }

    fn visit(&mut self, site: Site, x: Tensor) -> CandleResult<Tensor> {
        match site.place {
            // The output matrix reads the context after the gate.
            Place::AttnContext if self.gated => self.context = Some(x.clone()),
            Place::AttnGate => {
                if let (Some(context), Some(layer)) = (self.context.take(), site.layer) {
                    let gated = gate_by(&context, &x)?;
                    self.add(Site::block(layer, Place::AttnContext), &gated)?;
                }
            }
            _ => self.add(site, &x)?,
        }
        Ok(x)
    }
}
