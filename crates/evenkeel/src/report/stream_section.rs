//! The residual stream from the embedding to the last block: outliers, sizes, correlations, and its channels.

use super::chart::{Draw, LineChart, Point, Series};
use super::figures::at_width;
use super::findings;
use super::html::{Block, Figure, Section};
use super::scale::{Scale, Tick};
use super::strips::strip_figure;
use super::table::{Align, Table, cell};
use crate::inspect::{InspectReport, SiteReport};

/// The sites that the paper plots: what enters each block, and what leaves the last.
pub(super) fn stream(report: &InspectReport) -> impl Iterator<Item = &SiteReport> {
    report.sites.iter().filter(|s| s.site == "embed" || s.site.ends_with(".resid"))
}

/// Where a site stands on an axis of blocks: -1 is the embedding, before block 0.
pub(super) fn place(layer: Option<usize>) -> f64 {
    layer.map_or(-1.0, |layer| layer as f64)
}

/// Labels of such an axis for a network whose blocks are numbered up to `last`.
pub(super) fn place_ticks(last: Option<usize>) -> Vec<Tick> {
    let blocks = (0..last.map_or(0, |last| last + 1)).map(|i| Tick { value: i as f64, label: i.to_string() });
    std::iter::once(Tick { value: -1.0, label: "embed".into() }).chain(blocks).collect()
}

/// Logarithmic where all values are positive and they span more than a factor of ten.
pub(super) fn scale_of(values: impl IntoIterator<Item = f64>) -> Scale {
    let known = values.into_iter().filter(|v| v.is_finite());
    let (lo, hi) = known.fold((f64::INFINITY, 0.0f64), |(lo, hi), v| (lo.min(v), hi.max(v)));
    if lo > 0.0 && hi > 10.0 * lo { Scale::Log } else { Scale::Linear }
}

/// A figure of some metrics against blocks.
struct Profile {
    /// Name in [`crate::metrics::Metrics`] and in the legend.
    metrics: &'static [(&'static str, &'static str)],
    y_label: &'static str,
    /// A value that the axis must reach.
    reach: f64,
    /// Whether the axis may be logarithmic.
    spans: bool,
    caption: &'static str,
    write: fn(f64) -> String,
}

const PROFILES: [Profile; 4] = [
    Profile {
        metrics: &[("kurtosis", "kurtosis"), ("kurtosis_mean_removed", "without each channel's mean")],
        y_label: "kurtosis",
        reach: 1.0,
        spans: true,
        caption: "Kurtosis of the residual stream after each block: 1 if all channels are of one size, as \
                  many as there are channels if one holds everything. Where the line without each channel's \
                  mean over tokens lies far below, the outliers are a constant vector.",
        write: findings::kurtosis,
    },
    Profile {
        metrics: &[("mmr", "max-median ratio")],
        y_label: "max-median ratio",
        reach: 1.0,
        spans: true,
        caption: "The largest entry of a token over the median of its entries, by magnitude, averaged over \
                  tokens: what one range per token costs.",
        write: findings::perplexity,
    },
    Profile {
        metrics: &[("max_abs", "largest"), ("inf_norm", "largest, mean over sequences"), ("rms", "RMS")],
        y_label: "size of entries",
        reach: f64::NAN,
        spans: true,
        caption: "RMS and largest magnitude of the entries.",
        write: findings::figure,
    },
    Profile {
        metrics: &[
            ("input_cos_mean", "mean cosine"),
            ("input_corr_mean", "mean correlation"),
            ("input_corr_rms", "RMS correlation"),
        ],
        y_label: "correlation between tokens",
        reach: 0.0,
        spans: false,
        caption: "How alike tokens are: at 1 all are the same, which is rank collapse.",
        write: |v| format!("{v:.3}"),
    },
];

/// The section; `None` if the stream was not measured and there are no strips.
pub(super) fn stream_section(report: &InspectReport) -> Option<Section> {
    let sites: Vec<&SiteReport> = stream(report).collect();
    let mut blocks: Vec<Block> = PROFILES.iter().filter_map(|profile| profile.figure(&sites)).collect();
    blocks.extend(strip_figure(&report.strips));
    (!blocks.is_empty()).then(|| Section { title: "Residual stream".into(), blocks })
}

impl Profile {
    /// `None` if no site has any of the metrics.
    fn figure(&self, sites: &[&SiteReport]) -> Option<Block> {
        let get = |site: &SiteReport, metric: &str| findings::finite(site.metrics.get(metric));
        let known: Vec<&(&str, &str)> =
            self.metrics.iter().filter(|m| sites.iter().any(|s| get(s, m.0).is_some())).collect();
        if known.is_empty() {
            return None;
        }
        let points = |metric: &str| -> Vec<Point> {
            sites.iter().map(|s| (place(s.layer), get(s, metric).unwrap_or(f64::NAN))).collect()
        };
        let series: Vec<Series> = known
            .iter()
            .enumerate()
            .map(|(i, (metric, name))| {
                // A line by itself is named by the axis.
                let name = if known.len() > 1 { *name } else { "" };
                Series { draw: Draw::MarkedLine, ..Series::new(name, i, points(metric)) }
            })
            .collect();
        let values = series.iter().flat_map(|s| &s.points).map(|p| p.1);
        let chart = LineChart {
            x_label: "block".into(),
            x_ticks: place_ticks(sites.iter().filter_map(|s| s.layer).max()),
            y_label: self.y_label.into(),
            y_scale: if self.spans { scale_of(values) } else { Scale::Linear },
            y_reach: vec![self.reach],
            series,
            plot_height: 200.0,
            ..LineChart::default()
        };
        let mut header = vec![("site", Align::Left)];
        header.extend(known.iter().map(|m| (m.1, Align::Right)));
        let mut table = Table::new(&header);
        for site in sites {
            let cells = known.iter().map(|m| cell(get(site, m.0), self.write));
            table.push(std::iter::once(site.site.clone()).chain(cells));
        }
        Some(Block::Figure(Figure::new(self.caption, |width| at_width(&chart, width)).with_table(table)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn an_axis_is_logarithmic_only_where_it_spans() {
        assert_eq!(scale_of([1.0, 9.0]), Scale::Linear);
        assert_eq!(scale_of([1.0, 11.0, f64::NAN]), Scale::Log);
        assert_eq!(scale_of([0.0, 11.0]), Scale::Linear);
        assert_eq!(scale_of([]), Scale::Linear);
    }

    #[test]
    fn every_metric_of_a_profile_exists() {
        for profile in &PROFILES {
            assert!(profile.metrics.iter().all(|m| Metrics::is_known(m.0)));
        }
    }

    #[test]
    fn undefined_metrics_have_no_line_and_no_column() {
        let mut site = SiteReport { site: "embed".into(), layer: None, metrics: Metrics::default() };
        assert!(PROFILES.iter().all(|p| p.figure(&[&site]).is_none()));
        site.metrics.kurtosis = Some(3.0);
        let Some(Block::Figure(figure)) = PROFILES[0].figure(&[&site]) else { panic!("no figure") };
        assert_eq!(figure.table.unwrap().header, ["site", "kurtosis"]);
        assert!(figure.wide.contains(">embed</text>") && !figure.wide.contains("NaN"));
    }
}
