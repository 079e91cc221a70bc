//! W8A8 as in the OPT-125m table: where the quantisers stand, calibration, evaluation.
//!
//! Weights per tensor (embeddings, projections, norm gains; not the head, attention gates, biases, β, α or the gains of shaped
//! attention and identity projections). Activations per
//! tensor and static, thirteen places per block and two outside. A block without norms has no norm outputs to
//! quantise; QK-norm outputs get quantisers of their own; where β is not 1, `β f` is quantised (`branch`) and
//! the raw branch output is not. Calibration is one joint pass with all quantisers on: each updates its range
//! with what it sees and quantises with it at once.

use super::QuantError;
use super::grid::Quantiser;
use super::ranges::{RunningRange, mse_symmetric};
use crate::data::{Batch, ValidationBlocks};
use crate::error::Result;
use crate::model::Transformer;
use crate::model::config::{ModelConfig, Norm, NormPosition, QkNorm};
use crate::slices::{slice, tensor, with_slice_mut};
use crate::tap::{NoTap, Place, Site, Tap};
use crate::tape::Tape;
use candle_core::Tensor;
use evenkeel_kernels::quant::fake_quantise;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A named recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Simulated int8 weights and activations, per tensor, static; float head.
    W8a8,
}

impl Scheme {
    /// By name.
    ///
    /// # Errors
    /// If there is none.
    pub fn parse(name: &str) -> std::result::Result<Self, QuantError> {
        match name {
            "w8a8" => Ok(Scheme::W8a8),
            _ => Err(QuantError::UnknownScheme { name: name.into(), known: "w8a8".into() }),
        }
    }

    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Scheme::W8a8 => "w8a8",
        }
    }
}

/// Whether this model has an activation quantiser at `site`.
pub fn has_quantiser(config: &ModelConfig, site: Site) -> bool {
    // Without a skip there is no β, and the branch's output is what goes on.
    let scaled = config.has_beta()
        && match site.place {
            Place::AttnOut | Place::AttnBranch => config.attn_skip().is_some(),
            _ => config.mlp_skip().is_some(),
        };
    let attn_norm = site.layer.is_some_and(|l| config.attn_norm(l) != Norm::None);
    match site.place {
        Place::Embed
        | Place::AttnQ
        | Place::AttnK
        | Place::AttnV
        | Place::AttnScores
        | Place::AttnProbs
        | Place::AttnContext
        | Place::ResidMid
        | Place::MlpHidden
        | Place::Resid => true,
        Place::AttnIn => attn_norm,
        Place::MlpIn => config.norm != Norm::None,
        Place::AttnQNorm | Place::AttnKNorm => config.qk_norm != QkNorm::None,
        Place::AttnOut | Place::MlpOut => !scaled,
        Place::AttnBranch | Place::MlpBranch => scaled,
        Place::FinalNorm => config.final_norm != Norm::None,
        // Gates stay in float.
        Place::AttnGate | Place::Logits => false,
    }
}

/// Whether a parameter is quantised as a weight: matrices and norm gains; not head, attention gates, biases, and scalars
/// such as β and α.
pub fn is_quantised_weight(name: &str) -> bool {
    let matrix = name.ends_with(".weight") && name != "head.weight" && !name.contains(".attn.gate.");
    matrix || name.ends_with("norm.gain")
}

/// A copy of the model with its weights rounded to their grids, and the grids by name. A tied head stays float.
///
/// # Errors
/// If a weight is not finite.
pub fn quantise_weights(model: &Transformer) -> Result<(Transformer, BTreeMap<String, Quantiser>)> {
    let mut config = model.config().clone();
    let mut quantisers = BTreeMap::new();
    let mut tensors = BTreeMap::new();
    for p in model.parameters() {
        let mut data = slice(&p.tensor)?.to_vec();
        if is_quantised_weight(&p.name) {
            let quantiser = mse_symmetric(&p.name, &data)?;
            fake_quantise(&mut data, quantiser.grid());
            quantisers.insert(p.name.clone(), quantiser);
        }
        if config.tie_head && p.name == "embed.token.weight" {
            tensors.insert("head.weight".to_string(), p.tensor.clone());
        }
        tensors.insert(p.name.clone(), tensor(data, p.tensor.shape())?);
    }
    config.tie_head = false;
    Ok((Transformer::from_tensors(config, &mut tensors)?, quantisers))
}

/// One activation quantiser: its running range, its grid once fixed, and the error it made.
#[derive(Clone, Debug, Default)]
struct Activation {
    range: RunningRange,
    fixed: Option<Quantiser>,
    error: f64,
    energy: f64,
}

/// A transforming tap that calibrates or applies the activation quantisers.
pub struct QuantTap {
    config: ModelConfig,
    calibrating: bool,
    sites: BTreeMap<Site, Activation>,
    failure: Option<QuantError>,
}

impl QuantTap {
    /// Starts calibrating.
    pub fn new(config: &ModelConfig) -> Self {
        Self { config: config.clone(), calibrating: true, sites: BTreeMap::new(), failure: None }
    }

    /// Ends calibration: every range is fixed.
    pub fn fix(&mut self) {
        self.calibrating = false;
        for site in self.sites.values_mut() {
            site.fixed = site.range.range().map(|(lo, hi)| Quantiser::asymmetric(lo, hi));
        }
    }

    /// Range and grid of each site.
    pub fn quantisers(&self) -> impl Iterator<Item = (Site, (f64, f64), Quantiser)> + '_ {
        self.sites.iter().filter_map(|(site, a)| Some((*site, a.range.range()?, a.fixed?)))
    }

    fn quantise(&mut self, site: Site, x: &mut [f32]) -> std::result::Result<(), QuantError> {
        let entry = self.sites.entry(site).or_default();
        if self.calibrating {
            entry.range.update(&site.to_string(), x)?;
        }
        let quantiser = match (entry.fixed, entry.range.range()) {
            (Some(fixed), _) => fixed,
            (None, Some((lo, hi))) if self.calibrating => Quantiser::asymmetric(lo, hi),
            _ => return Err(QuantError::Uncalibrated { site: site.to_string() }),
        };
        let before = x.to_vec();
        fake_quantise(x, quantiser.grid());
        if !self.calibrating {
            let (error, energy) = errors(&before, x);
            entry.error += error;
            entry.energy += energy;
        }
        Ok(())
    }
}

/// Σ (x - x̂)² and Σ x², pieces added in order.
fn errors(x: &[f32], rounded: &[f32]) -> (f64, f64) {
    let parts: Vec<(f64, f64)> = x
        .par_chunks(1 << 16)
        .zip(rounded.par_chunks(1 << 16))
        .map(|(x, y)| {
            x.iter().zip(y).fold((0.0, 0.0), |(e, s), (&x, &y)| {
                let (x, y) = (x as f64, y as f64);
                (e + (x - y) * (x - y), s + x * x)
            })
        })
        .collect();
    parts.into_iter().fold((0.0, 0.0), |(a, b), (c, d)| (a + c, b + d))
}

impl Tap for QuantTap {
    fn wants(&self, site: Site) -> bool {
        has_quantiser(&self.config, site)
    }

    fn transforms(&self) -> bool {
        true
    }

    fn visit(&mut self, site: Site, x: Tensor) -> candle_core::Result<Tensor> {
        // A copy: the tensor may be shared with the residual stream.
        let y = x.contiguous()?.copy()?;
        let outcome = with_slice_mut(&y, |data| Ok(self.quantise(site, data)))?;
        if let Err(failure) = outcome {
            let message = failure.to_string();
            self.failure = Some(failure);
            candle_core::bail!("{message}");
        }
        Ok(y)
    }
}

/// One quantiser in a report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct QuantSite {
    /// Site, or parameter name.
    pub site: String,
    /// Bits.
    pub bits: u32,
    /// Step.
    pub scale: f64,
    /// Integer that stands for 0.
    pub zero_point: i32,
    /// Lower end of the calibrated range (weights: smallest value represented).
    pub lo: f64,
    /// Upper end.
    pub hi: f64,
    /// Relative RMS error √(Σ (x - x̂)² / Σ x²): of activations over the evaluation, of weights over the tensor.
    pub error: Option<f64>,
}

/// A model's perplexity and size.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct FloatSide {
    /// On the evaluation text.
    pub perplexity: f64,
    /// Bytes of all parameters.
    pub bytes: u64,
}

/// The same after quantisation, and how far it moved.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct QuantSide {
    /// On the evaluation text.
    pub perplexity: f64,
    /// Bytes with quantised weights as int8 and the rest as float32.
    pub bytes: u64,
    /// Mean over tokens of KL(float ‖ quantised), nats.
    pub kl: f64,
    /// Share of tokens whose most likely next token stays the same.
    pub top1_agreement: f64,
}

/// Counts and the headline.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct QuantSummary {
    /// Calibration batches and tokens.
    pub calib_batches: usize,
    /// Tokens they held.
    pub calib_tokens: u64,
    /// Tokens evaluated.
    pub eval_tokens: u64,
    /// Weight quantisers.
    pub weight_quantisers: usize,
    /// Activation quantisers.
    pub activation_quantisers: usize,
    /// (quantised / float perplexity - 1) · 100.
    pub perplexity_increase_percent: f64,
    /// Activation site with the largest relative error.
    pub worst_site: Option<String>,
}

/// What `quantize --json` prints, with `schema` first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct QuantReport {
    /// Layout version.
    pub schema: u32,
    /// The recipe.
    pub scheme: String,
    /// Before.
    pub float: FloatSide,
    /// After.
    pub quantized: QuantSide,
    /// Every quantiser.
    pub sites: Vec<QuantSite>,
    /// Totals.
    pub summary: QuantSummary,
}

/// Quantises, calibrates on `calibration`, evaluates on `blocks`. `progress(done, total)` counts batches.
///
/// # Errors
/// If there is no calibration batch, or a value is not finite.
pub fn quantize(
    model: &Transformer,
    scheme: Scheme,
    calibration: &[Batch],
    blocks: ValidationBlocks,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<QuantReport> {
    if calibration.is_empty() {
        return Err(QuantError::NoCalibration.into());
    }
    if model.config().norm_position != NormPosition::Pre {
        return Err(QuantError::PostNorm.into());
    }
    let total = calibration.len() as u64 + blocks.blocks();
    let mut done = 0;
    let (rounded, weights) = quantise_weights(model)?;
    let mut tap = QuantTap::new(rounded.config());
    for batch in calibration {
        forward(&rounded, &mut tap, &batch.inputs, batch.sequences)?;
        done += 1;
        progress(done, total);
    }
    tap.fix();

    let mut sums = Comparison::default();
    for batch in blocks {
        let batch = batch?;
        let float = forward(model, &mut NoTap, &batch.inputs, batch.sequences)?;
        let quantised = forward(&rounded, &mut tap, &batch.inputs, batch.sequences)?;
        sums.add(&slice(&float)?, &slice(&quantised)?, &batch.targets, model.config().vocab);
        done += batch.sequences as u64;
        progress(done, total);
    }
    let n = sums.tokens.max(1) as f64;
    let (float_ppl, quant_ppl) = ((sums.float_loss / n).exp(), (sums.quantised_loss / n).exp());

    let mut sites = Vec::new();
    let mut bytes = 0;
    // Of the rounded model, which holds a float copy of a tied head.
    for after in rounded.parameters() {
        let elements = after.tensor.elem_count() as u64;
        let before = model.parameters().iter().find(|p| p.name == after.name);
        let (Some(q), Some(before)) = (weights.get(&after.name), before) else {
            bytes += 4 * elements;
            continue;
        };
        // The step is a float32 beside the integers.
        bytes += elements + 4;
        let (lo, hi) = q.limits();
        let (error, energy) = errors(&slice(&before.tensor)?, &slice(&after.tensor)?);
        sites.push(site_line(after.name.clone(), q, lo, hi, error, energy));
    }
    let mut worst: Option<(f64, String)> = None;
    for (site, (lo, hi), q) in tap.quantisers() {
        let a = &tap.sites[&site];
        let line = site_line(site.to_string(), &q, lo.min(0.0), hi.max(0.0), a.error, a.energy);
        if let Some(error) = line.error
            && worst.as_ref().is_none_or(|w| error > w.0)
        {
            worst = Some((error, line.site.clone()));
        }
        sites.push(line);
    }
    Ok(QuantReport {
        schema: 1,
        scheme: scheme.name().into(),
        float: FloatSide { perplexity: float_ppl, bytes: 4 * model.parameter_count() as u64 },
        quantized: QuantSide {
            perplexity: quant_ppl,
            bytes,
            kl: sums.kl / n,
            top1_agreement: sums.agreements as f64 / n,
        },
        summary: QuantSummary {
            calib_batches: calibration.len(),
            calib_tokens: calibration.iter().map(|b| b.tokens() as u64).sum(),
            eval_tokens: sums.tokens,
            weight_quantisers: weights.len(),
            activation_quantisers: sites.len() - weights.len(),
            perplexity_increase_percent: (quant_ppl / float_ppl - 1.0) * 100.0,
            worst_site: worst.map(|w| w.1),
        },
        sites,
    })
}

fn site_line(site: String, q: &Quantiser, lo: f64, hi: f64, error: f64, energy: f64) -> QuantSite {
    QuantSite {
        site,
        bits: q.bits,
        scale: q.scale,
        zero_point: q.zero_point,
        lo,
        hi,
        error: (energy > 0.0).then(|| (error / energy).sqrt()),
    }
}

/// Logits with a tap on; a quantiser's own error instead of the tensor library's.
fn forward(
    model: &Transformer,
    tap: &mut impl QuantFailure,
    ids: &[u32],
    sequences: usize,
) -> Result<Tensor> {
    match model.logits(&Tape::off(), tap, ids, sequences) {
        Ok(logits) => Ok(logits.tensor().clone()),
        Err(e) => Err(match tap.failure() {
            Some(failure) => failure.into(),
            None => e.into(),
        }),
    }
}

trait QuantFailure: Tap {
    fn failure(&mut self) -> Option<QuantError>;
}

impl QuantFailure for QuantTap {
    fn failure(&mut self) -> Option<QuantError> {
        self.failure.take()
    }
}

impl QuantFailure for NoTap {
    fn failure(&mut self) -> Option<QuantError> {
        None
    }
}

#[derive(Default)]
struct Comparison {
    tokens: u64,
    float_loss: f64,
    quantised_loss: f64,
    kl: f64,
    agreements: u64,
}

impl Comparison {
    fn add(&mut self, float: &[f32], quantised: &[f32], targets: &[u32], vocab: usize) {
        let rows: Vec<(f64, f64, f64, bool)> = float
            .par_chunks(vocab)
            .zip(quantised.par_chunks(vocab))
            .zip(targets)
            .map(|((f, q), &target)| compare_row(f, q, target as usize))
            .collect();
        for (f, q, kl, same) in rows {
            self.tokens += 1;
            self.float_loss += f;
            self.quantised_loss += q;
            self.kl += kl;
            self.agreements += same as u64;
        }
    }
}

/// Losses of both, KL(float ‖ quantised), and whether the most likely token is the same.
fn compare_row(f: &[f32], q: &[f32], target: usize) -> (f64, f64, f64, bool) {
    let log_sum = |x: &[f32]| {
        let (best, peak) = x
            .iter()
            .enumerate()
            .fold((0, f32::NEG_INFINITY), |(i, m), (j, &v)| if v > m { (j, v) } else { (i, m) });
        let sum: f64 = x.iter().map(|&v| ((v - peak) as f64).exp()).sum();
        (best, peak as f64 + sum.ln())
    };
    let ((best_f, lse_f), (best_q, lse_q)) = (log_sum(f), log_sum(q));
    let kl = f
        .iter()
        .zip(q)
        .map(|(&a, &b)| {
            let (a, b) = (a as f64 - lse_f, b as f64 - lse_q);
            a.exp() * (a - b)
        })
        .sum::<f64>();
    (lse_f - f[target] as f64, lse_q - q[target] as f64, kl, best_f == best_q)
}
