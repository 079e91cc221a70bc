//! Outlier metrics: pure functions of activations X, n tokens × d channels ("neurons") at one site.
//!
//! Definitions are those of He et al., arXiv 2405.19279: `kurtosis` is Eq 1, `mmr` Eq 2, the correlations
//! those of Section 4. What other projects call kurtosis has names of its own. Every figure is over all
//! tokens seen, as if they were one batch: each file here gathers sums in float64 that add up over batches.
//!
//! | file | figures |
//! | --- | --- |
//! | [`channel`] | those from each channel's moments: kurtoses of Eq 1, sizes, `input_corr_mean` |
//! | [`tokens`] | those taken token by token or sequence by sequence |
//! | [`gram`] | correlations and effective rank, from a Gram matrix |
//! | [`site`] | all of these at one site, what of them is wanted, and the tap that gathers them |
//! | [`int8`] | what rounding to 8 bits would cost, and what would mend it |
//! | [`massive`] | the largest activations, one by one |
//! | [`attention`] | entropy, largest logit and mass on the first token of every head |
//! | [`moments`] | how m2 and m4 move in an optimiser step, term by term |
//! | [`weights`] | the same questions of the parameters |

pub mod attention;
pub mod channel;
pub mod gram;
pub mod int8;
pub mod massive;
pub mod moments;
pub mod site;
pub mod tokens;
pub mod weights;

pub use attention::{AttentionTap, HeadReport};
pub use channel::{ChannelStats, kurtosis};
pub use gram::{GramMetrics, GramMode, GramSpec, GramStats};
pub use int8::{ChannelStrip, Culprit, Int8Verdict, Remedy, Rounded};
pub use massive::{MassiveActivation, MassiveTap};
pub use site::{MetricsTap, Selection, SiteStats};
pub use tokens::{MaxMedian, TokenStats};
pub use weights::{GainReport, WeightFigures, WeightReport};

use crate::tap::Site;
use serde::{Deserialize, Serialize};

/// The figures of one site. What is undefined or was not asked for is `None` and null in JSON; no figure is
/// ever NaN or infinite. A key that is missing when read is undefined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metrics {
    /// Eq 1: mean s⁴ / (mean s²)² over channels, s_j = RMS of channel j. Between 1 and d; `None` if all is 0.
    pub kurtosis: Option<f64>,
    /// Eq 1 after subtracting each token's mean over channels.
    pub kurtosis_centred: Option<f64>,
    /// Eq 1 after subtracting each channel's mean over tokens.
    pub kurtosis_mean_removed: Option<f64>,
    /// Per sequence, entries pooled: mean((x - μ)⁴) / (s⁴ + 1e-6); mean over sequences. Gaussian = 3.
    pub kurtosis_elementwise: Option<f64>,
    /// Per token: max(0, mean(x⁴) / std⁴ - 3); mean over tokens. Gaussian = 0.
    pub kurtosis_excess_token: Option<f64>,
    /// Eq 2: mean over tokens of max |x| / lower median |x|. At least 1.
    pub mmr: Option<f64>,
    /// Tokens left out of `mmr` because their median is 0.
    pub mmr_skipped: u64,
    /// RMS over all entries.
    pub rms: Option<f64>,
    /// Largest |x|.
    pub max_abs: Option<f64>,
    /// Mean over sequences of the largest |x|.
    pub inf_norm: Option<f64>,
    /// Mean off-diagonal entry of X Xᵀ / d, X scaled to unit RMS. At most 1, which is rank collapse.
    pub input_corr_mean: Option<f64>,
    /// The same with every token scaled to unit norm: the mean cosine between tokens.
    pub input_cos_mean: Option<f64>,
    /// RMS off-diagonal entry of X Xᵀ / d.
    pub input_corr_rms: Option<f64>,
    /// RMS off-diagonal entry of Xᵀ X / n.
    pub feature_corr_rms: Option<f64>,
    /// (Σλ)² / Σλ² over the eigenvalues of Xᵀ X / n. From 1 to min(n, d).
    pub effective_rank: Option<f64>,
}

impl Metrics {
    /// Every name, in the order of the fields and of `inspect --json`.
    pub const NAMES: &[&str] = &[
        "kurtosis",
        "kurtosis_centred",
        "kurtosis_mean_removed",
        "kurtosis_elementwise",
        "kurtosis_excess_token",
        "mmr",
        "mmr_skipped",
        "rms",
        "max_abs",
        "inf_norm",
        "input_corr_mean",
        "input_cos_mean",
        "input_corr_rms",
        "feature_corr_rms",
        "effective_rank",
    ];

    /// Whether there is a metric of that name.
    pub fn is_known(name: &str) -> bool {
        Self::NAMES.contains(&name)
    }

    /// The figure of that name; `None` if it is undefined, or [unknown](Self::is_known).
    pub fn get(&self, name: &str) -> Option<f64> {
        match name {
            "kurtosis" => self.kurtosis,
            "kurtosis_centred" => self.kurtosis_centred,
            "kurtosis_mean_removed" => self.kurtosis_mean_removed,
            "kurtosis_elementwise" => self.kurtosis_elementwise,
            "kurtosis_excess_token" => self.kurtosis_excess_token,
            "mmr" => self.mmr,
            "mmr_skipped" => Some(self.mmr_skipped as f64),
            "rms" => self.rms,
            "max_abs" => self.max_abs,
            "inf_norm" => self.inf_norm,
            "input_corr_mean" => self.input_corr_mean,
            "input_cos_mean" => self.input_cos_mean,
            "input_corr_rms" => self.input_corr_rms,
            "feature_corr_rms" => self.feature_corr_rms,
            "effective_rank" => self.effective_rank,
            _ => None,
        }
    }
}

/// What is not finite is undefined.
fn finite(v: f64) -> Option<f64> {
    v.is_finite().then_some(v)
}

/// Mean and maximum of the kurtosis over the residual stream: what enters each block, and what leaves the last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KurtosisSummary {
    /// Mean over `embed` and every `.resid`.
    pub kurtosis_mean: Option<f64>,
    /// The largest of them.
    pub kurtosis_max: Option<f64>,
    /// Where.
    pub kurtosis_max_site: Option<String>,
}

/// Summary over the residual stream's sites; other sites are ignored. Undefined if one of them is.
pub fn summarise<'a>(sites: impl IntoIterator<Item = (Site, &'a Metrics)>) -> KurtosisSummary {
    let all: Option<Vec<(Site, f64)>> = sites
        .into_iter()
        .filter(|(site, _)| site.is_residual_stream())
        .map(|(site, m)| m.kurtosis.map(|k| (site, k)))
        .collect();
    // A mean over the sites that happen to be defined would hide the one that broke.
    let stream = all.unwrap_or_default();
    let worst = stream.iter().max_by(|a, b| a.1.total_cmp(&b.1));
    KurtosisSummary {
        kurtosis_mean: (!stream.is_empty())
            .then(|| stream.iter().map(|s| s.1).sum::<f64>() / stream.len() as f64),
        kurtosis_max: worst.map(|w| w.1),
        kurtosis_max_site: worst.map(|w| w.0.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_keys_of_json_and_reach_every_figure() {
        let json = serde_json::to_string(&Metrics::default()).unwrap();
        let mut at = 0;
        for name in Metrics::NAMES {
            at += json[at..].find(&format!("\"{name}\"")).unwrap_or_else(|| panic!("{name} is out of order"));
            let one: Metrics = serde_json::from_str(&format!("{{\"{name}\":3}}")).unwrap();
            assert_eq!(one.get(name), Some(3.0));
            assert!(Metrics::is_known(name));
            assert!(Metrics::NAMES.iter().all(|n| n == name || one.get(n) == Metrics::default().get(n)));
        }
        assert_eq!(json.matches(':').count(), Metrics::NAMES.len());
        assert!(!Metrics::is_known("shape") && Metrics::default().get("shape").is_none());
    }

    #[test]
    fn lines_of_an_older_log_are_read() {
        let old = r#"{"kurtosis":1.5,"mmr":null,"mmr_skipped":2,"rms":1.0,"max_abs":3.0}"#;
        let metrics: Metrics = serde_json::from_str(old).unwrap();
        assert_eq!((metrics.kurtosis, metrics.mmr_skipped, metrics.effective_rank), (Some(1.5), 2, None));
    }

    #[test]
    fn an_undefined_site_leaves_the_summary_undefined() {
        use crate::tap::Place;
        let of = |kurtosis| Metrics { kurtosis, ..Default::default() };
        let sites =
            [Site::outside(Place::Embed), Site::block(0, Place::Resid), Site::block(0, Place::MlpOut)];
        let values = [of(Some(1.0)), of(Some(3.0)), of(None)];
        let summary = summarise(sites.into_iter().zip(&values));
        assert_eq!((summary.kurtosis_mean, summary.kurtosis_max), (Some(2.0), Some(3.0)));
        let values = [of(Some(1.0)), of(None), of(None)];
        assert_eq!(summarise(sites.into_iter().zip(&values)).kurtosis_mean, None);
    }
}
