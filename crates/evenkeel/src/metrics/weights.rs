//! Outliers among parameters: the size, peak and tail of every matrix, and the learned gains on branches.

use super::finite;
use crate::model::Parameter;
use crate::slices::slice;
use candle_core::Result;
use evenkeel_kernels::stats::{row_squares, sequence_moments};
use serde::{Deserialize, Serialize};

/// Figures of one matrix; undefined if it is empty or not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WeightFigures {
    /// Root mean square of the entries.
    pub rms: Option<f64>,
    /// Largest |w|.
    pub max_abs: Option<f64>,
    /// `max_abs` / `rms`, at least 1: what a quantiser with one range for the matrix suffers from. `None` for zeros.
    pub max_over_rms: Option<f64>,
    /// mean((w - μ)⁴) / mean((w - μ)²)² over entries: 3 for a Gaussian, at least 1. Not Eq 1, which is over
    /// channels. `None` for a constant matrix.
    pub kurtosis_entries: Option<f64>,
}

impl WeightFigures {
    /// Of the entries of `w`.
    pub fn of(w: &[f32]) -> Self {
        if w.is_empty() {
            return Self::default();
        }
        let n = w.len() as f64;
        let moments = sequence_moments(w, w.len())[0];
        let rms = (row_squares(w, w.len())[0] / n).sqrt();
        let max_abs = f64::from(moments.max_abs);
        Self {
            rms: finite(rms),
            max_abs: finite(max_abs),
            max_over_rms: finite(max_abs / rms),
            kurtosis_entries: finite(moments.fourth / moments.second * n / moments.second),
        }
    }
}

/// One matrix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightReport {
    /// The parameter's name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its figures.
    #[serde(flatten)]
    pub figures: WeightFigures,
}

/// A learned gain on a branch (β) or before a nonlinearity (α), a scalar or one per channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GainReport {
    /// The parameter's name.
    pub name: String,
    /// Mean of its entries: the value itself for a scalar.
    pub mean: Option<f64>,
    /// Smallest entry.
    pub min: Option<f64>,
    /// Largest entry.
    pub max: Option<f64>,
}

/// Figures of every matrix, in the model's order.
///
/// # Errors
/// If a parameter is not readable as float32.
pub fn weights(parameters: &[Parameter]) -> Result<Vec<WeightReport>> {
    let matrices = parameters.iter().filter(|p| p.tensor.rank() >= 2);
    matrices
        .map(|p| {
            let plain = super::site::plain(&p.tensor)?;
            let figures = WeightFigures::of(&slice(&plain)?);
            Ok(WeightReport { name: p.name.clone(), shape: p.tensor.dims().to_vec(), figures })
        })
        .collect()
}

/// Last parts of the names of learned gains, besides those of norms: on branches, on the MLP's input, and on the terms of shaped
/// attention and of identity projections.
const GAINS: [&str; 6] = ["beta", "alpha", "skip", "identity", "attention", "centre"];

/// Every learned gain that is no norm's, in the model's order. Gains that are fixed are no parameters.
///
/// # Errors
/// If a parameter is not readable as float32.
pub fn gains(parameters: &[Parameter]) -> Result<Vec<GainReport>> {
    let is_gain = |p: &&Parameter| {
        let last = p.name.rsplit('.').next().unwrap_or_default();
        let norms = ["norm.gain", "norm.alpha"].iter().any(|end| p.name.ends_with(end));
        (GAINS.contains(&last) || last == "gain") && !norms
    };
    let report = |p: &Parameter| {
        let plain = super::site::plain(&p.tensor)?;
        let values = slice(&plain)?;
        let wide = || values.iter().map(|&v| f64::from(v));
        // f64::min and max would pass over NaN.
        let known = values.iter().all(|v| v.is_finite());
        let of = |v: f64| if known { finite(v) } else { None };
        Ok(GainReport {
            name: p.name.clone(),
            mean: of(wide().sum::<f64>() / values.len() as f64),
            min: of(wide().fold(f64::INFINITY, f64::min)),
            max: of(wide().fold(f64::NEG_INFINITY, f64::max)),
        })
    };
    parameters.iter().filter(is_gain).map(report).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slices::tensor;

    #[test]
    fn figures_by_hand() {
        let f = WeightFigures::of(&[1.0, -1.0, 1.0, -1.0]);
        let one = Some(1.0);
        assert_eq!((f.rms, f.max_abs, f.max_over_rms, f.kurtosis_entries), (one, one, one, one));
        let mut w = vec![0.0f32; 100];
        w[7] = 1e30;
        let f = WeightFigures::of(&w);
        assert!((f.max_over_rms.unwrap() - 10.0).abs() < 1e-6);
        assert!((f.kurtosis_entries.unwrap() - 98.0101).abs() < 1e-3);
        assert_eq!(WeightFigures::of(&[0.0; 4]).max_over_rms, None);
        assert_eq!(WeightFigures::of(&[2.0; 4]).kurtosis_entries, None);
        assert_eq!(WeightFigures::of(&[1.0, f32::NAN]), WeightFigures::default());
        assert_eq!(WeightFigures::of(&[]), WeightFigures::default());
    }

    #[test]
    fn matrices_and_gains_are_told_apart() {
        let parameter = |name: &str, values: Vec<f32>, shape: &[usize]| Parameter {
            name: name.into(),
            index: 0,
            tensor: tensor(values, shape).unwrap(),
        };
        let all = [
            parameter("blocks.0.attn.q.weight", vec![1.0; 4], &[2, 2]),
            parameter("blocks.0.attn.q.bias", vec![1.0; 2], &[2]),
            parameter("blocks.0.attn.beta", vec![0.25], &[1]),
            parameter("blocks.0.mlp.alpha", vec![1.0, 3.0], &[2]),
            parameter("blocks.1.attn.shaped.centre", vec![1.0], &[1]),
            parameter("blocks.1.attn.v.gain", vec![1.0], &[1]),
            parameter("blocks.1.attn.norm.gain", vec![1.0], &[1]),
            parameter("blocks.1.mlp.norm.alpha", vec![0.5], &[1]),
            parameter("blocks.1.mlp.beta", vec![1.0, f32::NAN], &[2]),
        ];
        assert_eq!(
            weights(&all).unwrap().iter().map(|w| &w.name).collect::<Vec<_>>(),
            ["blocks.0.attn.q.weight"]
        );
        let gains = gains(&all).unwrap();
        assert_eq!((gains[0].mean, gains[0].min), (Some(0.25), Some(0.25)));
        assert_eq!((gains[1].mean, gains[1].max), (Some(2.0), Some(3.0)));
        assert_eq!(gains[2..4].iter().map(|g| g.mean).collect::<Vec<_>>(), [Some(1.0); 2]);
        assert_eq!((gains[4].mean, gains[4].min, gains.len()), (None, None, 5));
    }
}
