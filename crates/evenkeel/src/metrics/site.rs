//! All metrics of one site, the choice among them, and the tap that gathers them in a forward pass.

use super::{ChannelStats, GramSpec, GramStats, MaxMedian, Metrics, TokenStats};
use crate::names::NameFilter;
use crate::slices::{is_fast, slice};
use crate::tap::{Site, Tap};
use candle_core::{DType, Result, Tensor};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Which metrics are gathered. Those of [`ChannelStats`] always are: one pass over memory. What is not
/// gathered is undefined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// `mmr` over the first so many tokens seen at a site: all if `None`, none of them if `Some(0)`.
    pub mmr_tokens: Option<usize>,
    /// The metrics of [`TokenStats`]: `kurtosis_elementwise`, `kurtosis_excess_token`, `inf_norm`,
    /// `input_cos_mean`.
    pub token_metrics: bool,
    /// The metrics of [`GramStats`], at most over these tokens.
    pub gram: Option<GramSpec>,
    /// Whether these are taken at every site, the logits included, and not on the residual stream alone.
    pub gram_everywhere: bool,
}

impl Selection {
    /// Every metric at every site over all tokens.
    pub fn everything() -> Self {
        Self { mmr_tokens: None, token_metrics: true, gram: Some(GramSpec::default()), gram_everywhere: true }
    }

    /// What costs one pass over memory, and `mmr` of 256 tokens: a selection is many times dearer than a sum.
    pub fn cheap() -> Self {
        Self { mmr_tokens: Some(256), token_metrics: false, gram: None, gram_everywhere: false }
    }

    /// The selection with its Gram metrics only if `site` is one where they are wanted.
    pub fn at(self, site: Site) -> Self {
        Self { gram: self.gram.filter(|_| self.gram_everywhere || site.is_residual_stream()), ..self }
    }
}

/// Gathers at one site what [`Metrics`] are made of. Batches add up: the figures are over all tokens seen.
#[derive(Clone, Debug)]
pub struct SiteStats {
    selection: Selection,
    channels: ChannelStats,
    max_median: MaxMedian,
    tokens: TokenStats,
    gram: Option<GramStats>,
}

impl Default for SiteStats {
    fn default() -> Self {
        Self::new(Selection::default())
    }
}

impl SiteStats {
    /// Nothing gathered yet. The selection holds as it is, wherever the site.
    pub fn new(selection: Selection) -> Self {
        Self {
            selection,
            channels: ChannelStats::default(),
            max_median: MaxMedian::default(),
            tokens: TokenStats::default(),
            gram: selection.gram.map(GramStats::new),
        }
    }

    /// Adds `x` of shape (sequences, `tokens`, `width`).
    pub fn add(&mut self, x: &[f32], tokens: usize, width: usize) {
        if x.is_empty() || width == 0 || tokens == 0 {
            return;
        }
        self.channels.add(x, width);
        let rows = x.len() / width;
        let left =
            self.selection.mmr_tokens.map_or(rows, |t| t.saturating_sub(self.max_median.tokens() as usize));
        self.max_median.add(&x[..rows.min(left) * width], width);
        if self.selection.token_metrics {
            self.tokens.add(x, tokens, width);
        }
        if let Some(gram) = &mut self.gram {
            gram.add(x, tokens, width);
        }
    }

    /// Tokens seen.
    pub fn tokens(&self) -> u64 {
        self.channels.tokens()
    }

    /// Tokens that the Gram metrics are of; `None` if there are no such metrics.
    pub fn gram_tokens(&self) -> Option<u64> {
        self.gram.as_ref().map(GramStats::tokens)
    }

    /// Gives back the memory of what has seen all that it wants, or of everything if no more comes.
    pub fn settle(&mut self, last: bool) {
        if let Some(gram) = &mut self.gram {
            gram.settle(last);
        }
    }

    /// RMS of each channel over all tokens seen.
    pub fn channel_rms(&self) -> Vec<f64> {
        self.channels.channel_rms()
    }

    /// Tokens that `mmr` was taken over, those left out included.
    pub fn mmr_tokens(&self) -> u64 {
        self.max_median.tokens()
    }

    /// The figures.
    pub fn metrics(&self) -> Metrics {
        let gram = self.gram.as_ref().map(GramStats::metrics).unwrap_or_default();
        Metrics {
            kurtosis: self.channels.kurtosis(),
            kurtosis_centred: self.channels.kurtosis_centred(),
            kurtosis_mean_removed: self.channels.kurtosis_mean_removed(),
            kurtosis_elementwise: self.tokens.kurtosis_elementwise(),
            kurtosis_excess_token: self.tokens.kurtosis_excess_token(),
            mmr: self.max_median.mmr(),
            mmr_skipped: self.max_median.skipped(),
            rms: self.channels.rms(),
            max_abs: self.channels.max_abs(),
            inf_norm: self.tokens.inf_norm(),
            input_corr_mean: self.channels.input_corr_mean(),
            input_cos_mean: self.tokens.input_cos_mean(),
            input_corr_rms: gram.input_corr_rms,
            feature_corr_rms: gram.feature_corr_rms,
            effective_rank: gram.effective_rank,
        }
    }
}

/// A tensor's elements as contiguous float32 on the CPU, without copying where they are.
pub(super) fn plain(x: &Tensor) -> Result<Tensor> {
    if is_fast(x) && x.is_contiguous() {
        return Ok(x.clone());
    }
    x.to_device(&candle_core::Device::Cpu)?.to_dtype(DType::F32)?.contiguous()
}

/// (tokens of a sequence, channels) of a tensor of shape (sequences, ..., channels).
pub(super) fn rows_and_width(x: &Tensor) -> Result<(usize, usize)> {
    let width = x.dim(candle_core::D::Minus1)?;
    let sequences = if x.rank() > 2 { x.dim(0)? } else { 1 };
    Ok((x.elem_count() / (sequences * width).max(1), width))
}

/// Gathers [`SiteStats`] at the sites it wants; changes nothing.
pub struct MetricsTap {
    filter: Option<NameFilter>,
    selection: Selection,
    /// What was gathered, by site.
    pub stats: BTreeMap<Site, SiteStats>,
    /// How long that took.
    pub spent: Duration,
}

impl MetricsTap {
    /// The metrics of channels and `mmr`, over all tokens, at the sites that `filter` matches; at every site
    /// that has channels if there is none.
    pub fn new(filter: Option<NameFilter>) -> Self {
        Self::with(filter, Selection::default())
    }

    /// The metrics of `selection` at the same sites.
    pub fn with(filter: Option<NameFilter>, selection: Selection) -> Self {
        Self { filter, selection, stats: BTreeMap::new(), spent: Duration::ZERO }
    }
}

impl Tap for MetricsTap {
    fn wants(&self, site: Site) -> bool {
        site.place.has_channels() && self.filter.as_ref().is_none_or(|f| f.matches(&site.to_string()))
    }

    fn visit(&mut self, site: Site, x: Tensor) -> Result<Tensor> {
        let begun = Instant::now();
        let (tokens, width) = rows_and_width(&x)?;
        let plain = plain(&x)?;
        let selection = self.selection.at(site);
        let stats = self.stats.entry(site).or_insert_with(|| SiteStats::new(selection));
        stats.add(&slice(&plain)?, tokens, width);
        self.spent += begun.elapsed();
        Ok(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tap::Place;
    use proptest::prelude::*;

    fn of(x: &[f32], tokens: usize, width: usize) -> Metrics {
        let mut stats = SiteStats::new(Selection::everything());
        stats.add(x, tokens, width);
        stats.metrics()
    }

    /// Every float32 there is, the awkward ones often.
    fn any_value() -> impl Strategy<Value = f32> {
        prop_oneof![
            4 => -1e3f32..1e3,
            2 => any::<u32>().prop_map(f32::from_bits),
            1 => prop_oneof![
                Just(0.0f32), Just(-0.0), Just(1e38), Just(-1e38), Just(f32::MAX), Just(1e-38), Just(1e-45),
            ],
        ]
    }

    #[test]
    fn undefined_is_none() {
        let m = of(&[0.0; 12], 3, 4);
        let defined = Metrics {
            mmr_skipped: 3,
            rms: Some(0.0),
            max_abs: Some(0.0),
            inf_norm: Some(0.0),
            kurtosis_elementwise: Some(0.0),
            ..Default::default()
        };
        assert_eq!(m, defined);
        assert_eq!(SiteStats::default().metrics(), Metrics::default());
    }

    #[test]
    fn only_what_is_selected_is_gathered() {
        let x: Vec<f32> = (0..48).map(|i| (i * 7 % 11) as f32 - 4.5).collect();
        let of = |selection: Selection| {
            let mut stats = SiteStats::new(selection);
            stats.add(&x, 4, 3);
            stats.metrics()
        };
        let all = of(Selection::everything());
        assert!(Metrics::NAMES.iter().all(|n| all.get(n).is_some()), "{all:?}");
        let today = of(Selection::default());
        let reduced = |m: Metrics| Metrics {
            kurtosis_elementwise: None,
            kurtosis_excess_token: None,
            inf_norm: None,
            input_cos_mean: None,
            input_corr_rms: None,
            feature_corr_rms: None,
            effective_rank: None,
            ..m
        };
        assert_eq!(today, reduced(all));
        assert_eq!(of(Selection::cheap()), reduced(all), "256 tokens are more than there are");
        assert_eq!(of(Selection { mmr_tokens: Some(0), ..Default::default() }).mmr, None);
        let mut first = MaxMedian::default();
        first.add(&x[..15], 3);
        assert_eq!(of(Selection { mmr_tokens: Some(5), ..Default::default() }).mmr, first.mmr());
    }

    #[test]
    fn gram_metrics_stay_on_the_residual_stream_unless_asked_for() {
        let some = Selection { gram_everywhere: false, ..Selection::everything() };
        let gram = |selection: Selection, place| selection.at(Site::outside(place)).gram.is_some();
        assert!(gram(some, Place::Embed) && !gram(some, Place::Logits) && !gram(some, Place::FinalNorm));
        assert!(gram(Selection::everything(), Place::Logits));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn never_nan(x in proptest::collection::vec(any_value(), 24), width in 0usize..5) {
            let width = [1, 2, 4, 6, 12][width];
            for tokens in [1, 24 / width] {
                let m = of(&x, tokens, width);
                let json = serde_json::to_value(m).unwrap();
                for name in Metrics::NAMES {
                    prop_assert!(m.get(name).is_none_or(f64::is_finite), "{name}");
                    // serde_json writes NaN as null: what is some must be a number.
                    prop_assert_eq!(m.get(name), json[name].as_f64(), "{}", name);
                }
                // A broken entry shows in the size, which --fail-above relies on.
                prop_assert_eq!(m.rms.is_some(), x.iter().all(|v| v.is_finite()));
                prop_assert_eq!(m.rms.is_some(), m.max_abs.is_some());
                if m.rms.is_none() {
                    let broken = [m.kurtosis, m.kurtosis_centred, m.kurtosis_mean_removed, m.inf_norm,
                        m.input_corr_mean, m.input_corr_rms, m.effective_rank];
                    prop_assert!(broken.iter().all(Option::is_none), "{m:?}");
                }
            }
        }

        #[test]
        fn a_huge_or_tiny_scale_changes_no_ratio(
            x in proptest::collection::vec(-8.0f32..8.0, 24), up in any::<bool>()) {
            let scale = if up { 2.0f32.powi(100) } else { 2.0f32.powi(-60) };
            let scaled: Vec<f32> = x.iter().map(|v| v * scale).collect();
            let (a, b) = (of(&x, 2, 4), of(&scaled, 2, 4));
            for name in Metrics::NAMES {
                // Sizes scale; the elementwise kurtosis has 1e-6 in its denominator.
                if !["rms", "max_abs", "inf_norm", "kurtosis_elementwise"].contains(name) {
                    match (a.get(name), b.get(name)) {
                        (Some(a), Some(b)) => prop_assert!((a - b).abs() <= 1e-9 * a.abs().max(1e-3), "{name}"),
                        (a, b) => prop_assert_eq!(a, b, "{}", name),
                    }
                }
            }
        }
    }
}
