//! What 8 bits would do to a tensor: the error of rounding it to integers, with one step for all of it, one per token, or one
//! per channel. From these follow where int8 breaks, and what would mend it.
//!
//! Activations are rounded asymmetrically, weights symmetrically, the step set by the extremes. `quantize --scheme w8a8` cuts
//! activations at percentiles, searches the weights' range, and calibrates all places together: its errors are a little
//! smaller, in nearly the same order.
//!
//! Two figures say how bad it is. `int8_error` is √(Σ (x - x̂)² / Σ x²), and -20 log10 of it the signal-to-quantisation-noise
//! ratio in decibels; Gaussian entries lie near 1.2%, 38 dB. One outlier that holds all of the energy looks fine by it, since
//! it survives. So `int8_error_median` is the same error within a channel, and within a token, of the ordinary ones: the larger of
//! the medians over channels and over tokens.

mod rounding;

use super::finite;
use super::site::{plain, rows_and_width};
use crate::model::config::{ModelConfig, Nonlinearity};
use crate::ops::Activation;
use crate::slices::slice;
use crate::tap::{Place, Site};
use candle_core::{Result, Tensor};
use rounding::{By, Loss, Rows, asymmetric, asymmetric_columns, symmetric, symmetric_columns};
use serde::{Deserialize, Serialize};

/// Above this error of the whole (30 dB) a place is said to suffer: noise of a thousandth of the signal's power.
pub const TOLERABLE: f64 = 0.031_622_776_601_683_79;
/// Above this error of the median channel or token (20 dB) it suffers too.
pub const TOLERABLE_MEDIAN: f64 = 0.1;

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
    /// A step for each token, found while running; for a table of embeddings, one for each row.
    PerToken,
    /// A step for each channel; for a matrix, each output channel.
    PerChannel,
    /// Channels scaled so that the next matrix takes the outliers over (SmoothQuant, arXiv 2211.10438). A step for each
    /// channel is the best that it can come to.
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
            Remedy::KeepInFloat => "float",
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
    /// Relative error with one step for all; null if the place is not finite.
    pub int8_error: Option<f64>,
    /// The larger of two medians: over channels of the relative error within a channel, and over tokens of that within a
    /// token; of weights over columns and rows. Those that are all zero are left out.
    #[serde(default)]
    pub int8_error_median: Option<f64>,
    /// Signal-to-quantisation-noise ratio: -20 log10 of `int8_error`, in decibels; null where nothing is lost.
    pub sqnr_db: Option<f64>,
    /// Relative error with a step per token; null for weights, but for tables of embeddings, whose rows are tokens.
    pub int8_error_token: Option<f64>,
    /// Relative error with a step per channel: of activations and tables of embeddings each channel, of other weights each
    /// output channel.
    pub int8_error_channel: Option<f64>,
    /// The entry that sets the step.
    pub culprit: Option<Culprit>,
    /// What would help.
    pub remedy: Remedy,
}

impl Int8Verdict {
    /// How many times the tolerable: above 1 the place suffers. What is not finite is worst of all.
    pub fn severity(&self) -> f64 {
        match self.int8_error {
            Some(error) => severity(error, self.int8_error_median.unwrap_or(0.0)),
            None => f64::INFINITY,
        }
    }

    /// Whether one step for all is too coarse.
    pub fn suffers(&self) -> bool {
        self.severity() > 1.0
    }
}

fn severity(error: f64, median: f64) -> f64 {
    (error / TOLERABLE).max(median / TOLERABLE_MEDIAN)
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
pub fn of_activations(site: Site, x: &Tensor, ids: &[u32], config: &ModelConfig) -> Result<Int8Verdict> {
    let (tokens, width) = rows_and_width(x)?;
    let plain = plain(x)?;
    let x = Rows { values: &slice(&plain)?, width };
    let all = x.rounded(&By::All(asymmetric(x.values)));
    let per_token = x.rounded(&By::Row(asymmetric));
    let per_channel = x.rounded(&By::Column(asymmetric_columns));
    let choices = [(Remedy::PerToken, &per_token), (remedy_by_channel(site.place, config), &per_channel)];
    let helps = remedy(&all, &choices);
    let culprit = x.peak().map(|at| {
        let row = at / width;
        Culprit {
            channel: at % width,
            sequence: Some((row / tokens.max(1)) as u64),
            position: row % tokens.max(1),
            token: ids.get(row).copied(),
            text: None,
            value: f64::from(x.values[at]),
        }
    });
    Ok(Int8Verdict {
        site: site.to_string(),
        layer: site.layer,
        kind: Rounded::Activation,
        int8_error: all.error,
        int8_error_median: all.median,
        sqnr_db: decibels(all.error),
        int8_error_token: per_token.error,
        int8_error_channel: per_channel.error,
        culprit: culprit.filter(|_| all.error.is_some()),
        remedy: helps,
    })
}

/// What a step for each channel is called where a matrix reads the place, if its scales can go into what comes before; or
/// nothing, where channels are summed over before anything could take them back.
fn remedy_by_channel(place: Place, config: &ModelConfig) -> Remedy {
    let scales_pass = match config.activation {
        // The first matrix that is not gated takes the scales, and so does one before a ReLU.
        Nonlinearity::Gated(_) => true,
        Nonlinearity::Plain(act) => matches!(act, Activation::Relu | Activation::LeakyRelu(_)),
    };
    match place {
        Place::AttnIn | Place::MlpIn | Place::AttnContext => Remedy::SmoothQuant,
        Place::MlpHidden if scales_pass => Remedy::SmoothQuant,
        // Added to the stream or read by a norm, channel by channel.
        Place::Embed
        | Place::AttnOut
        | Place::AttnBranch
        | Place::ResidMid
        | Place::MlpOut
        | Place::MlpBranch
        | Place::Resid
        | Place::FinalNorm => Remedy::PerChannel,
        _ => Remedy::KeepInFloat,
    }
}

/// The verdict on the matrix `w` (out, in), or a table of embeddings (tokens or positions, channels).
///
/// # Errors
/// If the tensor cannot be read as float32.
pub fn of_weight(name: &str, w: &Tensor) -> Result<Int8Verdict> {
    let (_, width) = rows_and_width(w)?;
    let plain = plain(w)?;
    let w = Rows { values: &slice(&plain)?, width };
    let all = w.rounded(&By::All(symmetric(w.values)));
    let per_row = w.rounded(&By::Row(symmetric));
    let is_table = name.starts_with("embed.") && name != "embed.patch.weight" && name != "embed.proj.weight";
    let per_column = is_table.then(|| w.rounded(&By::Column(symmetric_columns)));
    let (helps, per_token, per_channel) = match &per_column {
        Some(per_column) => {
            let choices = [(Remedy::PerToken, &per_row), (Remedy::PerChannel, per_column)];
            (remedy(&all, &choices), per_row.error, per_column.error)
        }
        None => (remedy(&all, &[(Remedy::PerChannel, &per_row)]), None, per_row.error),
    };
    let layer = name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.'));
    let culprit = w.peak().map(|at| Culprit {
        channel: at % width,
        sequence: None,
        position: at / width,
        token: None,
        text: None,
        value: f64::from(w.values[at]),
    });
    Ok(Int8Verdict {
        site: name.to_string(),
        layer: layer.and_then(|(layer, _)| layer.parse().ok()),
        kind: Rounded::Weight,
        int8_error: all.error,
        int8_error_median: all.median,
        sqnr_db: decibels(all.error),
        int8_error_token: per_token,
        int8_error_channel: per_channel,
        culprit: culprit.filter(|_| all.error.is_some()),
        remedy: helps,
    })
}

/// What makes the place tolerable: of several, the one that makes it most so.
fn remedy(all: &Loss, choices: &[(Remedy, &Loss)]) -> Remedy {
    // What is not finite is mended by nothing.
    let Some(error) = all.severity() else { return Remedy::KeepInFloat };
    if error <= 1.0 {
        return Remedy::None;
    }
    let real = choices.iter().filter(|(remedy, _)| *remedy != Remedy::KeepInFloat);
    let helpful = real.filter_map(|(remedy, loss)| Some((*remedy, loss.severity().filter(|&s| s <= 1.0)?)));
    helpful.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(Remedy::KeepInFloat, |best| best.0)
}

/// -20 log10; `None` for no error at all.
fn decibels(error: Option<f64>) -> Option<f64> {
    finite(-20.0 * error?.log10())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::preset;
    use crate::slices::tensor;

    fn at(place: Place, x: Vec<f32>, tokens: usize, width: usize) -> Int8Verdict {
        let ids: Vec<u32> = (0..tokens as u32).map(|i| 100 + i).collect();
        let x = tensor(x, (1, tokens, width)).unwrap();
        of_activations(Site::block(1, place), &x, &ids, &preset("pre_ln").unwrap()).unwrap()
    }

    /// Entries of ordinary size between -1 and 1.
    fn noise(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 % 1000) as f32 / 500.0) - 1.0).collect()
    }

    #[test]
    fn even_activations_are_fine() {
        let v = at(Place::Resid, noise(64 * 32), 64, 32);
        assert_eq!(v.remedy, Remedy::None);
        // A uniform distribution over 255 steps: noise of a 255th of the signal.
        assert!((v.sqnr_db.unwrap() - 48.1).abs() < 0.3, "{v:?}");
        assert!(!v.suffers() && v.int8_error_median.unwrap() < 0.01);
    }

    /// The outlier holds all the energy and survives; what it ruins is seen in the other channels.
    #[test]
    fn a_channel_that_sticks_out_ruins_the_others_and_is_named() {
        let mut x = noise(64 * 32);
        x.chunks_mut(32).for_each(|row| row[5] = 300.0);
        for (place, remedy) in [
            (Place::MlpIn, Remedy::SmoothQuant),
            (Place::Resid, Remedy::PerChannel),
            (Place::AttnQ, Remedy::KeepInFloat),
        ] {
            let v = at(place, x.clone(), 64, 32);
            assert!(v.int8_error.unwrap() < TOLERABLE, "the outlier itself is there: {v:?}");
            assert!(v.int8_error_median.unwrap() > 0.5 && v.suffers(), "{v:?}");
            assert_eq!((v.culprit.unwrap().channel, v.remedy), (5, remedy));
        }
    }

    #[test]
    fn one_token_that_sticks_out_wants_a_step_of_its_own() {
        let mut x = noise(64 * 32);
        x[17 * 32..18 * 32].iter_mut().for_each(|v| *v *= 400.0);
        x[17 * 32 + 3] = -500.0;
        let v = at(Place::AttnQ, x, 64, 32);
        assert_eq!(v.remedy, Remedy::PerToken, "{v:?}");
        let culprit = v.culprit.unwrap();
        assert_eq!((culprit.channel, culprit.position, culprit.token), (3, 17, Some(117)));
        assert_eq!(culprit.value, -500.0);
    }

    #[test]
    fn zeros_have_no_error_and_infinities_no_remedy() {
        let v = at(Place::Resid, vec![0.0; 8], 2, 4);
        assert_eq!((v.int8_error, v.sqnr_db, v.remedy), (Some(0.0), None, Remedy::None));
        assert!(v.culprit.is_none() && !v.suffers());
        for bad in [f32::INFINITY, f32::NAN] {
            let v = at(Place::Resid, vec![1.0, bad, 0.0, 2.0], 2, 2);
            assert_eq!((v.int8_error, v.remedy, v.severity()), (None, Remedy::KeepInFloat, f64::INFINITY));
            assert!(v.culprit.is_none(), "an innocent entry would be named");
        }
    }

    #[test]
    fn rows_of_a_matrix_and_columns_of_a_table_get_steps_of_their_own() {
        let mut w = noise(8 * 64);
        w[..64].iter_mut().for_each(|v| *v *= 100.0);
        let v = of_weight("blocks.3.mlp.up.weight", &tensor(w.clone(), (8, 64)).unwrap()).unwrap();
        assert_eq!((v.layer, v.kind, v.remedy), (Some(3), Rounded::Weight, Remedy::PerChannel));
        assert_eq!((v.culprit.unwrap().position, v.int8_error_token), (0, None));
        let v = of_weight("embed.token.weight", &tensor(w, (8, 64)).unwrap()).unwrap();
        assert_eq!(v.remedy, Remedy::PerToken, "{v:?}");
        let mut w = noise(8 * 64);
        w.chunks_mut(64).for_each(|row| row[9] *= 300.0);
        let v = of_weight("embed.token.weight", &tensor(w, (8, 64)).unwrap()).unwrap();
        assert_eq!(v.remedy, Remedy::PerChannel, "{v:?}");
    }
}
