//! Outlier metrics: pure functions of activations.
//!
//! Every statistic is over all tokens seen, as if they were one batch: [`ChannelStats`] gathers the sums in
//! float64 and [`ChannelStats::metrics`] makes the figures of them. Definitions are those of He et al.,
//! arXiv 2405.19279: kurtosis is Eq 1, the max-median ratio Eq 2.

pub mod moments;

use crate::names::NameFilter;
use crate::slices::{is_fast, slice};
use crate::tap::{Site, Tap};
use candle_core::{DType, Result, Tensor};
use evenkeel_kernels::stats;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Sums over the rows of activations X (n tokens × d channels) at one site.
#[derive(Clone, Debug, Default)]
pub struct ChannelStats {
    tokens: u64,
    squares: Vec<f64>,
    max_abs: f32,
    ratio_sum: f64,
    ratio_tokens: u64,
    ratio_skipped: u64,
}

/// The figures of one site. What is undefined is `None` and becomes null in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Eq 1: mean s⁴ / (mean s²)² over channels, s_j = RMS of channel j. Between 1 and d; `None` if all is 0.
    pub kurtosis: Option<f64>,
    /// Eq 2: mean over tokens of max |x| / lower median |x|.
    pub mmr: Option<f64>,
    /// Tokens left out of `mmr` because their median is 0.
    pub mmr_skipped: u64,
    /// RMS over all entries.
    pub rms: Option<f64>,
    /// Largest |x|.
    pub max_abs: Option<f64>,
}

impl Metrics {
    /// Names that [`Self::get`] answers to.
    pub const NAMES: &[&str] = &["kurtosis", "mmr", "rms", "max_abs"];

    /// Whether `name` is a metric's.
    pub fn is_known(name: &str) -> bool {
        Self::NAMES.contains(&name)
    }

    /// The figure of that name; `None` if it is undefined or there is no such name.
    pub fn get(&self, name: &str) -> Option<f64> {
        match name {
            "kurtosis" => self.kurtosis,
            "mmr" => self.mmr,
            "rms" => self.rms,
            "max_abs" => self.max_abs,
            _ => None,
        }
    }
}

impl ChannelStats {
    /// Adds the rows of `x`, each of `width` channels.
    pub fn add(&mut self, x: &[f32], width: usize) {
        if width == 0 || x.is_empty() {
            return;
        }
        let sums = stats::channel_sums(x, width);
        let (ratio_sum, ratio_tokens, skipped) = stats::max_median_sums(x, width);
        self.squares.resize(width, 0.0);
        for (total, s) in self.squares.iter_mut().zip(&sums.squares) {
            *total += s;
        }
        self.tokens += (x.len() / width) as u64;
        if sums.max_abs > self.max_abs || sums.max_abs.is_nan() {
            self.max_abs = sums.max_abs;
        }
        self.ratio_sum += ratio_sum;
        self.ratio_tokens += ratio_tokens;
        self.ratio_skipped += skipped;
    }

    /// Tokens seen.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The figures.
    pub fn metrics(&self) -> Metrics {
        let finite = |v: f64| v.is_finite().then_some(v);
        let entries = self.tokens as f64 * self.squares.len() as f64;
        let mean_square = self.squares.iter().sum::<f64>() / entries;
        Metrics {
            kurtosis: kurtosis(&self.squares),
            mmr: finite(self.ratio_sum / self.ratio_tokens as f64),
            mmr_skipped: self.ratio_skipped,
            rms: finite(mean_square.sqrt()),
            max_abs: (self.tokens > 0).then_some(self.max_abs as f64).and_then(finite),
        }
    }
}

/// Eq 1 from the channels' Σ x² (or mean x²: it is scale-free). `None` if they are all 0 or not finite.
pub fn kurtosis(squares: &[f64]) -> Option<f64> {
    let peak = squares.iter().copied().fold(0.0, f64::max);
    if peak <= 0.0 || !squares.iter().all(|s| s.is_finite()) {
        return None;
    }
    // Divided by the largest first, so that squares of tiny or huge values neither vanish nor overflow.
    let d = squares.len() as f64;
    let second = squares.iter().map(|s| s / peak).sum::<f64>() / d;
    let fourth = squares.iter().map(|s| (s / peak).powi(2)).sum::<f64>() / d;
    Some(fourth / (second * second))
}

/// Gathers [`ChannelStats`] at the sites it wants; changes nothing.
pub struct MetricsTap {
    filter: Option<NameFilter>,
    /// What was gathered, by site.
    pub stats: BTreeMap<Site, ChannelStats>,
}

impl MetricsTap {
    /// At the sites that `filter` matches; at every site that has channels if there is none.
    pub fn new(filter: Option<NameFilter>) -> Self {
        Self { filter, stats: BTreeMap::new() }
    }
}

impl Tap for MetricsTap {
    fn wants(&self, site: Site) -> bool {
        site.place.has_channels() && self.filter.as_ref().is_none_or(|f| f.matches(&site.to_string()))
    }

    fn visit(&mut self, site: Site, x: Tensor) -> Result<Tensor> {
        let width = x.dim(candle_core::D::Minus1)?;
        let plain = if is_fast(&x) && x.is_contiguous() {
            x.clone()
        } else {
            x.to_dtype(DType::F32)?.contiguous()?
        };
        self.stats.entry(site).or_default().add(&slice(&plain)?, width);
        Ok(x)
    }
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
    use proptest::prelude::*;

    fn of(x: &[f32], width: usize) -> Metrics {
        let mut stats = ChannelStats::default();
        stats.add(x, width);
        stats.metrics()
    }

    #[test]
    fn undefined_is_none() {
        let m = of(&[0.0; 12], 4);
        assert_eq!((m.kurtosis, m.mmr, m.mmr_skipped, m.rms), (None, None, 3, Some(0.0)));
        assert_eq!(ChannelStats::default().metrics().rms, None);
    }

    proptest! {
        #[test]
        fn kurtosis_is_bounded_scale_free_and_streams(
            x in proptest::collection::vec(-1e3f32..1e3, 24), scale in 1e-3f32..1e3) {
            let whole = of(&x, 6);
            if let Some(k) = whole.kurtosis {
                prop_assert!((1.0 - 1e-6..=6.0 + 1e-6).contains(&k));
                let scaled: Vec<f32> = x.iter().map(|v| v * scale).collect();
                prop_assert!((of(&scaled, 6).kurtosis.unwrap() - k).abs() < 1e-4 * k);
            }
            let mut parts = ChannelStats::default();
            parts.add(&x[..6], 6);
            parts.add(&x[6..], 6);
            let streamed = parts.metrics();
            prop_assert!((streamed.rms.unwrap() - whole.rms.unwrap()).abs() <= 1e-6 * whole.rms.unwrap());
            prop_assert_eq!(streamed.max_abs, whole.max_abs);
        }
    }

    #[test]
    fn one_neuron_that_holds_everything_has_kurtosis_d() {
        let mut x = vec![0.0f32; 40];
        for row in x.chunks_mut(8) {
            row[3] = 2.0;
        }
        assert_eq!(of(&x, 8).kurtosis, Some(8.0));
    }
}
