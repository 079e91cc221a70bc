//! What `quantize` reports.

use super::attribution::Attribution;
use super::grid::Cell;
use super::spec::{Scale, Spec};
use super::tap::{Calibrated, errors};
use super::weights::WeightRounding;
use serde::{Deserialize, Serialize};

/// One quantiser in a report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct QuantSite {
    /// Site, or parameter name.
    pub site: String,
    /// Its data, as words.
    pub quantiser: String,
    /// Bits of a value.
    pub bits: u32,
    /// How many scales it has; null where each tensor brings its own.
    pub scales: Option<usize>,
    /// Step, where there is one for all.
    pub scale: Option<f64>,
    /// Integer that stands for 0, where there is one for all.
    pub zero_point: Option<i32>,
    /// Lower end of the calibrated range, the lowest of all (weights: smallest value represented).
    pub lo: Option<f64>,
    /// Upper end, the highest of all.
    pub hi: Option<f64>,
    /// Relative RMS error √(Σ (x - x̂)² / Σ x²): of activations over the evaluation, of weights over the tensor.
    pub error: Option<f64>,
}

impl QuantSite {
    fn new(site: String, spec: Spec, cells: Option<&[Cell]>, error: Option<f64>) -> Self {
        let only = match cells {
            Some([only]) => Some(only),
            _ => None,
        };
        Self {
            site,
            quantiser: spec.to_string(),
            bits: spec.format.bits(),
            scales: cells.map(<[Cell]>::len),
            scale: only.map(Cell::scale),
            zero_point: only.and_then(|cell| match cell {
                Cell::Int(q) => Some(q.zero_point),
                Cell::Float { .. } => None,
            }),
            lo: None,
            hi: None,
            error,
        }
    }

    fn within(mut self, ranges: impl Iterator<Item = (f64, f64)>) -> Self {
        for (lo, hi) in ranges {
            self.lo = Some(self.lo.map_or(lo, |old| old.min(lo)));
            self.hi = Some(self.hi.map_or(hi, |old| old.max(hi)));
        }
        self
    }

    /// Of a weight with values `before` and `after`.
    pub(super) fn of_weight(name: &str, w: &WeightRounding, before: &[f32], after: &[f32]) -> Self {
        let (error, energy) = errors(before, after);
        let error = (energy > 0.0).then(|| (error / energy).sqrt());
        Self::new(name.to_string(), w.spec, Some(&w.rounding.cells), error)
            .within(w.rounding.cells.iter().map(Cell::limits))
    }

    /// Of an activation.
    pub(super) fn of_activation(a: &Calibrated) -> Self {
        let cells = a.rounding.map(|r| r.cells.as_slice());
        Self::new(a.site.to_string(), a.spec, cells, a.error)
            .within(a.ranges.iter().map(|&(lo, hi)| (lo.min(0.0), hi.max(0.0))))
    }
}

/// Bytes of a weight of so many elements: its integers packed, and its scales.
pub(super) fn stored_bytes(elements: u64, w: &WeightRounding) -> u64 {
    let cells = w.rounding.cells.len() as u64;
    let scales = match w.spec.scale {
        Scale::Float => 4 * cells,
        Scale::PowerOfTwo => cells,
        // One for each group, and the tensor's.
        Scale::E4m3 => cells + 4,
    };
    (elements * u64::from(w.spec.format.bits())).div_ceil(8) + scales
}

/// A model's perplexity and size.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct FloatSide {
    /// On the evaluation text.
    pub perplexity: f64,
    /// Bytes of all parameters in float32.
    pub bytes: u64,
}

/// The same after quantisation, and how far it moved.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct QuantSide {
    /// On the evaluation text.
    pub perplexity: f64,
    /// Bytes with quantised weights packed, their scales, and the rest as float32.
    pub bytes: u64,
    /// Mean over tokens of KL(float ‖ quantised), nats.
    pub kl: f64,
    /// Share of tokens whose most likely next token stays the same.
    pub top1_agreement: f64,
}

/// Counts and the headline.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct QuantSummary {
    /// Calibration batches.
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
    /// The scheme.
    pub scheme: String,
    /// What was done to the model before it, in order.
    #[serde(default)]
    pub repairs: Vec<String>,
    /// Before.
    pub float: FloatSide,
    /// After.
    pub quantized: QuantSide,
    /// Every quantiser.
    pub sites: Vec<QuantSite>,
    /// Totals.
    pub summary: QuantSummary,
    /// What each quantiser costs, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attribution: Option<Attribution>,
}
