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
        let bad = self.sites.iter().filter(|(_, s)| s.sums.iter().any(|sum| !sum.is_finite()));
        // The first in the order of the forward pass, which is where it began.
        let bad = bad.min_by_key(|(site, _)| (site.layer.is_none(), **site));
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

#[cfg(test)]
mod tests {
    use super::super::testing::{inputs, inputs_of, perturbed, variants};
    use super::super::weights::Weights;
    use super::*;

    /// Σ y of each channel and Σ |y|² over all tokens, where matrices end.
    #[derive(Default)]
    struct Outputs(BTreeMap<Site, (Vec<f64>, f64)>);

    impl Tap for Outputs {
        fn wants(&self, site: Site) -> bool {
            matches!(site.place, Place::AttnQ | Place::AttnOut | Place::MlpOut)
        }
        fn visit(&mut self, site: Site, x: Tensor) -> CandleResult<Tensor> {
            let width = x.dim(D::Minus1)?;
            let (sums, square) = self.0.entry(site).or_insert((vec![0.0; width], 0.0));
            for row in slice(&x)?.chunks(width) {
                sums.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v));
                *square += row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
            }
            Ok(x)
        }
    }

    #[test]
    fn what_matrices_give_follows_from_what_they_read() {
        let read = [
            (Place::AttnIn, "attn.q", Place::AttnQ),
            (Place::AttnContext, "attn.out", Place::AttnOut),
            (Place::MlpHidden, "mlp.down", Place::MlpOut),
        ];
        for (name, config) in variants() {
            if config.value_init != crate::model::config::ValueInit::Random {
                continue;
            }
            let mut model = Weights::of(&perturbed(&config)).unwrap();
            for (layer, (_, matrix, _)) in (0..config.depth).flat_map(|l| read.map(|r| (l, r))) {
                model.fill(&format!("blocks.{layer}.{matrix}.bias"), 0.0);
            }
            let model = model.into_model().unwrap();
            let calibration = Calibration::of(&model, &inputs_of(&config), true).unwrap();
            let mut outputs = Outputs::default();
            for input in &inputs_of(&config) {
                model.run(&Tape::off(), &mut outputs, input).unwrap();
            }
            let weights = Weights::of(&model).unwrap();
            for (layer, (from, matrix, to)) in (0..config.depth).flat_map(|l| read.map(|r| (l, r))) {
                let matrix = format!("blocks.{layer}.{matrix}");
                let inputs = calibration.at(Site::block(layer, from)).unwrap();
                let (sums, square) = &outputs.0[&Site::block(layer, to)];
                let scale = (square / sums.len() as f64).sqrt() * (inputs.tokens as f64).sqrt();
                for (sum, want) in weights.times(&matrix, &inputs.sums).iter().zip(sums) {
                    assert!((sum - want).abs() < 1e-5 * scale, "{name} {matrix}: {sum} {want}");
                }
                let width = inputs.maxima.len();
                let gram: Vec<f64> = inputs.gram.iter().map(|&v| f64::from(v)).collect();
                let rows = weights.data(&format!("{matrix}.weight")).chunks(width);
                let energy: f64 = rows
                    .map(|w| {
                        let product = gram
                            .chunks(width)
                            .map(|g| g.iter().zip(w).map(|(g, &w)| g * f64::from(w)).sum::<f64>());
                        product.zip(w).map(|(p, &w)| p * f64::from(w)).sum::<f64>()
                    })
                    .sum();
                assert!((energy / square - 1.0).abs() < 1e-4, "{name} {matrix}: {energy} {square}");
                let diagonal = gram.iter().step_by(width + 1).zip(&inputs.maxima);
                assert!(diagonal.into_iter().all(|(g, &m)| f64::from(m).powi(2) <= g * 1.00001), "{name}");
            }
        }
    }

    #[test]
    fn no_data_and_activations_that_are_not_finite_are_refused() {
        let model = perturbed(&variants()[0].1);
        assert!(matches!(Calibration::of(&model, &[], false), Err(RepairError::NoCalibration)));
        let mut broken = Weights::of(&model).unwrap();
        broken.fill("blocks.1.mlp.norm.gain", f32::INFINITY);
        let broken = Calibration::of(&broken.into_model().unwrap(), &inputs(), false);
        assert!(matches!(broken, Err(RepairError::NonFinite { name }) if name.starts_with("blocks.1.mlp.")));
        let at = Site::block(9, Place::AttnIn);
        let unseen = Calibration::of(&model, &inputs(), false).unwrap().at(at).map(|_| ());
        assert!(matches!(unseen, Err(RepairError::Uncalibrated { .. })));
    }
}
