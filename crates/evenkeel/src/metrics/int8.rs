//! What 8 bits would do to a tensor: the relative error of rounding it to integers, with one step for all of it, one per
//! token, or one per channel. From these follow where int8 breaks, and what would mend it.
//!
//! Activations are rounded asymmetrically, weights symmetrically, the step set by the extremes (no clipping), as
//! in [`crate::quant::grid`]. An error is √(Σ (x - x̂)² / Σ x²); its signal-to-quantisation-noise ratio is
//! -20 log10 of it, in decibels. Gaussian entries lie near 1.2%, 38 dB, per tensor.

use super::finite;
use super::site::{plain, rows_and_width};
use crate::quant::Quantiser;
use crate::slices::slice;
use crate::tap::Site;
use candle_core::{Result, Tensor};
use evenkeel_kernels::quant::squared_error;
use rayon::prelude::*;
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

/// The verdict on activations `x` (sequences, tokens, channels), whose token ids are `ids`, or none for images.
///
/// # Errors
/// If the tensor cannot be read as float32.
pub fn of_activations(site: Site, x: &Tensor, ids: &[u32]) -> Result<Int8Verdict> {
    let (tokens, width) = rows_and_width(x)?;
    let plain = plain(x)?;
    let x = &slice(&plain)?[..];
    let energy = energy(x, width);
    let error = relative(asymmetric_error(x, width, bounds(x, width)), energy);
    let per_token: f64 = x
        .par_chunks(width.max(1))
        .map(|row| {
            let (lo, hi) = bounds_of(row);
            squared_error(row, Quantiser::asymmetric(lo, hi).grid())
        })
        .collect::<Vec<_>>()
        .iter()
        .sum();
    let error_token = relative(per_token, energy);
    let error_channel = relative(per_channel(x, width), energy);
    let culprit = peak(x).map(|at| {
        let row = at / width;
        let token = ids.get(row).copied();
        Culprit {
            channel: at % width,
            sequence: Some((row / tokens.max(1)) as u64),
            position: row % tokens.max(1),
            token,
            text: None,
            value: f64::from(x[at]),
        }
    });
    Ok(Int8Verdict {
        site: site.to_string(),
        layer: site.layer,
        kind: Rounded::Activation,
        int8_error: error,
        sqnr_db: decibels(error),
        int8_error_token: error_token,
        int8_error_channel: error_channel,
        culprit,
        remedy: remedy(error, &[(Remedy::PerToken, error_token), (Remedy::SmoothQuant, error_channel)]),
    })
}

/// The verdict on the matrix `w` (out, in).
///
/// # Errors
/// If the tensor cannot be read as float32.
pub fn of_weight(name: &str, w: &Tensor) -> Result<Int8Verdict> {
    let (_, width) = rows_and_width(w)?;
    let plain = plain(w)?;
    let w = &slice(&plain)?[..];
    let energy = energy(w, width);
    let symmetric = |row: &[f32]| {
        let peak = row.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        Quantiser::symmetric(f64::from(peak), false).grid()
    };
    let grid = symmetric(w);
    let by_row = |error: &(dyn Fn(&[f32]) -> f64 + Sync)| {
        w.par_chunks(width.max(1)).map(error).collect::<Vec<_>>().iter().sum::<f64>()
    };
    let error = relative(by_row(&|row| squared_error(row, grid)), energy);
    let error_channel = relative(by_row(&|row| squared_error(row, symmetric(row))), energy);
    let layer = name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.'));
    Ok(Int8Verdict {
        site: name.to_string(),
        layer: layer.and_then(|(layer, _)| layer.parse().ok()),
        kind: Rounded::Weight,
        int8_error: error,
        sqnr_db: decibels(error),
        int8_error_token: None,
        int8_error_channel: error_channel,
        culprit: peak(w).map(|at| Culprit {
            channel: at % width,
            sequence: None,
            position: at / width,
            token: None,
            text: None,
            value: f64::from(w[at]),
        }),
        remedy: remedy(error, &[(Remedy::PerChannel, error_channel)]),
    })
}

/// What brings the error down to what is tolerable: of several, the one that brings it lowest.
fn remedy(error: Option<f64>, choices: &[(Remedy, Option<f64>)]) -> Remedy {
    // A tensor of zeros has no error to speak of; one that is not finite is mended by nothing.
    let Some(error) = error else { return Remedy::KeepInFloat };
    if error <= TOLERABLE {
        return Remedy::None;
    }
    let helpful =
        choices.iter().filter_map(|&(remedy, error)| Some((remedy, error.filter(|&e| e <= TOLERABLE)?)));
    helpful.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(Remedy::KeepInFloat, |best| best.0)
}

/// √(Σ e² / Σ x²); 0 for zeros, `None` for what is not finite.
fn relative(squares: f64, energy: f64) -> Option<f64> {
    if energy == 0.0 { Some(0.0) } else { finite((squares / energy).sqrt()) }
}

/// -20 log10; `None` for no error at all.
fn decibels(error: Option<f64>) -> Option<f64> {
    finite(-20.0 * error?.log10())
}

/// Rows that one piece of work takes.
const ROWS: usize = 64;

/// Σ x², or NaN if an entry is not finite.
fn energy(x: &[f32], width: usize) -> f64 {
    let sum = |rows: &[f32]| rows.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
    let parts: Vec<f64> = x.par_chunks((ROWS * width).max(1)).map(sum).collect();
    parts.iter().sum()
}

fn bounds_of(x: &[f32]) -> (f64, f64) {
    let (lo, hi) = x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), &v| (lo.min(v), hi.max(v)));
    (f64::from(lo), f64::from(hi))
}

fn bounds(x: &[f32], width: usize) -> (f64, f64) {
    x.par_chunks((ROWS * width).max(1))
        .map(bounds_of)
        .reduce(|| (f64::INFINITY, f64::NEG_INFINITY), |a, b| (a.0.min(b.0), a.1.max(b.1)))
}

fn asymmetric_error(x: &[f32], width: usize, (lo, hi): (f64, f64)) -> f64 {
    let grid = Quantiser::asymmetric(lo, hi).grid();
    let parts: Vec<f64> = x.par_chunks((ROWS * width).max(1)).map(|rows| squared_error(rows, grid)).collect();
    parts.iter().sum()
}

/// Σ (x - x̂)² with a step for each channel, set by its extremes.
fn per_channel(x: &[f32], width: usize) -> f64 {
    let extremes = |rows: &[f32]| {
        let (mut lo, mut hi) = (vec![f32::INFINITY; width], vec![f32::NEG_INFINITY; width]);
        for row in rows.chunks_exact(width.max(1)) {
            for ((lo, hi), &v) in lo.iter_mut().zip(&mut hi).zip(row) {
                (*lo, *hi) = (lo.min(v), hi.max(v));
            }
        }
        (lo, hi)
    };
    let chunk = (ROWS * width).max(1);
    let (lo, hi) = x.par_chunks(chunk).map(extremes).reduce(
        || (vec![f32::INFINITY; width], vec![f32::NEG_INFINITY; width]),
        |mut a, b| {
            a.0.iter_mut().zip(b.0).for_each(|(a, b)| *a = a.min(b));
            a.1.iter_mut().zip(b.1).for_each(|(a, b)| *a = a.max(b));
            a
        },
    );
    let grids: Vec<_> = lo
        .iter()
        .zip(&hi)
        .map(|(&lo, &hi)| Quantiser::asymmetric(f64::from(lo), f64::from(hi)).grid())
        .collect();
    let error = |rows: &[f32]| {
        let mut sum = 0.0;
        for row in rows.chunks_exact(width.max(1)) {
            for (&v, g) in row.iter().zip(&grids) {
                let q = ((v / g.scale).round_ties_even() + g.zero_point).clamp(g.low, g.high);
                let e = f64::from(v - g.scale * (q - g.zero_point));
                sum += e * e;
            }
        }
        sum
    };
    let parts: Vec<f64> = x.par_chunks(chunk).map(error).collect();
    parts.iter().sum()
}

/// Where the entry of largest magnitude is; `None` for zeros and for what is not finite.
fn peak(x: &[f32]) -> Option<usize> {
    let found = x
        .par_chunks(1 << 14)
        .enumerate()
        .map(|(i, part)| {
            let mut best = (0, 0.0f32);
            for (j, v) in part.iter().enumerate() {
                if v.abs() > best.1 {
                    best = (i * (1 << 14) + j, v.abs());
                }
            }
            best
        })
        // Of equals the first.
        .reduce(|| (0, 0.0), |a, b| if b.1 > a.1 || (b.1 == a.1 && b.0 < a.0 && b.1 > 0.0) { b } else { a });
    (found.1 > 0.0 && found.1.is_finite()).then_some(found.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slices::tensor;
    use crate::tap::Place;

    fn verdict(x: Vec<f32>, tokens: usize, width: usize) -> Int8Verdict {
        let ids: Vec<u32> = (0..tokens as u32).map(|i| 100 + i).collect();
        of_activations(Site::block(1, Place::Resid), &tensor(x, (1, tokens, width)).unwrap(), &ids).unwrap()
    }

    /// Rows of ordinary size between -1 and 1.
    fn noise(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 % 1000) as f32 / 500.0) - 1.0).collect()
    }

    #[test]
    fn even_activations_are_fine() {
        let v = verdict(noise(64 * 32), 64, 32);
        assert_eq!(v.remedy, Remedy::None);
        // A uniform distribution over 255 steps: (1/√12) / 255 over 1/√3, about 46 dB lower by the step.
        assert!((v.sqnr_db.unwrap() - 48.1).abs() < 0.3, "{v:?}");
    }

    #[test]
    fn a_channel_that_sticks_out_is_named_and_scaled() {
        let mut x = noise(64 * 32);
        x.chunks_mut(32).for_each(|row| row[5] *= 300.0);
        let v = verdict(x.clone(), 64, 32);
        assert_eq!((v.culprit.as_ref().unwrap().channel, v.remedy), (5, Remedy::None), "{v:?}");
        // The outlier carries all the energy: what is lost is the rest, seen per channel.
        let rest: Vec<f32> = x
            .chunks(32)
            .flat_map(|row| {
                row.iter()
                    .enumerate()
                    .map(|(c, v)| if c == 5 { v.signum() * 300.0 * 0.01 } else { *v })
                    .collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(verdict(rest, 64, 32).culprit.unwrap().channel, 5);
    }

    #[test]
    fn one_token_that_sticks_out_wants_a_step_of_its_own() {
        let mut x = noise(64 * 32);
        x[17 * 32 + 3] = -4000.0;
        // Its own energy is left out of the question by a second large token in another channel.
        let v = verdict(x, 64, 32);
        let culprit = v.culprit.unwrap();
        assert_eq!((culprit.channel, culprit.position, culprit.token), (3, 17, Some(117)));
        assert_eq!(culprit.value, -4000.0);
        assert!(v.int8_error_token.unwrap() < v.int8_error.unwrap());
    }

    #[test]
    fn zeros_have_no_error_and_infinities_no_remedy() {
        let v = verdict(vec![0.0; 8], 2, 4);
        assert_eq!((v.int8_error, v.sqnr_db, v.culprit, v.remedy), (Some(0.0), None, None, Remedy::None));
        let v = verdict(vec![1.0, f32::INFINITY, 0.0, 2.0], 2, 2);
        assert_eq!((v.int8_error, v.remedy), (None, Remedy::KeepInFloat));
        let v = verdict(vec![1.0, f32::NAN, 0.0, 2.0], 2, 2);
        assert_eq!((v.int8_error, v.remedy), (None, Remedy::KeepInFloat));
    }

    #[test]
    fn rows_of_a_matrix_get_steps_of_their_own() {
        let mut w = noise(8 * 64);
        w[..64].iter_mut().for_each(|v| *v *= 100.0);
        let v = of_weight("blocks.3.mlp.up.weight", &tensor(w, (8, 64)).unwrap()).unwrap();
        assert_eq!((v.layer, v.kind, v.culprit.unwrap().position), (Some(3), Rounded::Weight, 0));
        assert!(v.int8_error_channel.unwrap() < v.int8_error.unwrap());
    }
}
