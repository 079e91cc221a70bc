//! The simulated model: weights and activations on their grids, arithmetic in float32.

use super::QuantError;
use super::comparison::Comparison;
use super::repair::Repair;
use super::repaired::{Prepared, prepare};
use super::report::{FloatSide, QuantReport, QuantSide, QuantSite, QuantSummary, stored_bytes};
use super::scheme::{HeadFormat, Plan, Scheme};
use super::tap::{Calibrated, QuantTap};
use super::weights::Rounded;
use crate::data::{Batch, DataError};
use crate::error::Result;
use crate::model::{ModelError, Transformer};
use crate::slices::slice;
use crate::tap::{NoTap, Tap};
use crate::tape::Tape;
use candle_core::Tensor;

/// A model, calibrated for a scheme.
pub struct Simulation {
    plan: Plan,
    /// In float, after repairs.
    float: Transformer,
    rounded: Rounded,
    tap: QuantTap,
    repairs: Vec<String>,
    calib_batches: usize,
    calib_tokens: u64,
}

impl Simulation {
    /// Repairs the model, rounds the weights and calibrates the activations. `progress` is called after each batch.
    ///
    /// # Errors
    /// If there is no calibration batch, the scheme does not fit, a repair cannot be made, or a value is not finite.
    pub fn new(
        model: &Transformer,
        scheme: &Scheme,
        repairs: &[Repair],
        calibration: &[Batch],
        progress: &mut dyn FnMut(),
    ) -> Result<Self> {
        if calibration.is_empty() {
            return Err(QuantError::NoCalibration.into());
        }
        let Prepared { plan, float, rounded } = prepare(model, scheme, repairs, calibration)?;
        let mut tap = QuantTap::new(&plan);
        for batch in calibration {
            forward(&rounded.model, &mut tap, &batch.inputs, batch.sequences)?;
            progress();
        }
        tap.fix()?;
        Ok(Self {
            plan,
            float,
            rounded,
            tap,
            repairs: repairs.iter().map(Repair::to_string).collect(),
            calib_batches: calibration.len(),
            calib_tokens: calibration.iter().map(|b| b.tokens() as u64).sum(),
        })
    }

    /// Its scheme, settled.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The repaired model in float, with the parameters that the rounded one has.
    pub(super) fn float(&self) -> &Transformer {
        &self.float
    }

    /// The model with its weights rounded, and their grids.
    pub fn rounded(&self) -> &Rounded {
        &self.rounded
    }

    /// The activation quantisers, to look at or to copy.
    pub(super) fn activation_quantisers(&self) -> &QuantTap {
        &self.tap
    }

    /// The activation quantisers as calibrated.
    pub fn quantisers(&self) -> impl Iterator<Item = Calibrated<'_>> + '_ {
        self.tap.quantisers()
    }

    /// What was done to the model before, in order.
    pub fn repairs(&self) -> &[String] {
        &self.repairs
    }

    /// Tokens of calibration.
    pub fn calib_tokens(&self) -> u64 {
        self.calib_tokens
    }

    /// Logits (sequences, tokens, vocabulary).
    ///
    /// # Errors
    /// If the ids do not fit the model.
    pub fn logits(&mut self, ids: &[u32], sequences: usize) -> Result<Tensor> {
        forward(&self.rounded.model, &mut self.tap, ids, sequences)
    }

    /// Compares with the float model `before` on `batches`. `progress` is told how many sequences are done.
    ///
    /// # Errors
    /// If the batches cannot be read or do not fit the model.
    pub fn evaluate(
        &mut self,
        before: &Transformer,
        batches: impl Iterator<Item = std::result::Result<Batch, DataError>>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<QuantReport> {
        let mut done = 0;
        let mut sums = Comparison::default();
        for batch in batches {
            let batch = batch?;
            let float = forward(before, &mut NoTap, &batch.inputs, batch.sequences)?;
            let quantised = self.logits(&batch.inputs, batch.sequences)?;
            sums.add(&slice(&float)?, &slice(&quantised)?, &batch.targets, before.config().vocab);
            done += batch.sequences as u64;
            progress(done);
        }
        self.report(before, &sums)
    }

    fn report(&self, before: &Transformer, sums: &Comparison) -> Result<QuantReport> {
        let mut sites = Vec::new();
        let mut bytes = 0;
        let weights = &self.rounded.weights;
        // Of the rounded model, which holds a copy of a head that is stored in another way than the table it was tied to.
        for after in self.rounded.model.parameters() {
            let elements = after.tensor.elem_count() as u64;
            let unrounded = self.float.parameters().iter().find(|p| p.name == after.name);
            match (weights.get(&after.name), unrounded) {
                (Some(w), Some(unrounded)) => {
                    bytes += stored_bytes(elements, w);
                    let (x, y) = (slice(&unrounded.tensor)?, slice(&after.tensor)?);
                    sites.push(QuantSite::of_weight(&after.name, w, &x, &y));
                }
                _ if after.name == "head.weight" && self.plan.head == HeadFormat::Bf16 => {
                    bytes += 2 * elements
                }
                _ => bytes += 4 * elements,
            }
        }
        let activations: Vec<QuantSite> =
            self.tap.quantisers().map(|a| QuantSite::of_activation(&a)).collect();
        let errors = activations.iter().filter_map(|site| Some((site.error?, &site.site)));
        let worst = errors.max_by(|a, b| a.0.total_cmp(&b.0)).map(|worst| worst.1.clone());
        let (float, quantised) = (sums.float_loss().exp(), sums.quantised_loss().exp());
        let summary = QuantSummary {
            calib_batches: self.calib_batches,
            calib_tokens: self.calib_tokens,
            eval_tokens: sums.tokens,
            weight_quantisers: weights.len(),
            activation_quantisers: activations.len(),
            perplexity_increase_percent: (quantised / float - 1.0) * 100.0,
            worst_site: worst,
        };
        sites.extend(activations);
        Ok(QuantReport {
            schema: 1,
            scheme: self.plan.scheme.clone(),
            repairs: self.repairs.clone(),
            float: FloatSide { perplexity: float, bytes: 4 * before.parameter_count() as u64 },
            quantized: QuantSide {
                perplexity: quantised,
                bytes,
                kl: sums.kl(),
                top1_agreement: sums.agreement(),
            },
            sites,
            summary,
            attribution: None,
        })
    }
}

/// Logits with a tap on.
pub(super) fn forward(
    model: &Transformer,
    tap: &mut impl Quantises,
    ids: &[u32],
    sequences: usize,
) -> Result<Tensor> {
    let outcome = model.logits(&Tape::off(), tap, ids, sequences);
    Ok(explained(outcome, tap)?.tensor().clone())
}

/// What a pass gave; where the tap stopped it, the tap's own reason.
pub(super) fn explained<T>(
    outcome: std::result::Result<T, ModelError>,
    tap: &mut impl Quantises,
) -> Result<T> {
    outcome.map_err(|e| match tap.failure() {
        Some(failure) => failure.into(),
        None => e.into(),
    })
}

/// A tap that may have stopped a forward pass.
pub(super) trait Quantises: Tap {
    /// Why.
    fn failure(&mut self) -> Option<QuantError>;
}

impl Quantises for QuantTap {
    fn failure(&mut self) -> Option<QuantError> {
        self.take_failure()
    }
}

impl Quantises for NoTap {
    fn failure(&mut self) -> Option<QuantError> {
        None
    }
}
