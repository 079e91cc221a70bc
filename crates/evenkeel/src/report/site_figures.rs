//! Figures of the sites of the residual stream in runs: each metric against steps, a panel per run and a line per site; the
//! kurtosis as a heat map of sites and steps; and signal propagation, what correlates and how many directions are used, from
//! block to block.

use super::chart::{Draw, LineChart, Point, Series};
use super::curve_figures::{Overlay, over_sites};
use super::figures::{sampled, site_name};
use super::findings;
use super::heat::{Columns, HeatMap, HeatRow};
use super::heat_grid::HeatGrid;
use super::html::WIDE;
use super::palette::Style;
use super::plate::{Item, Plate};
use super::run::{Curve, RunCurves};
use super::scale::Scale;
use super::settings::Setting;
use super::stream_section::{place, place_ticks};
use super::table::{Align, Table, cell};
use std::collections::{BTreeMap, BTreeSet};

/// With more runs, only the kurtosis has a panel for each; other metrics are averaged over sites, a line per run.
const PANELS: usize = 8;
/// Rows of a table of a heat map.
const STEPS: usize = 8;

/// How a metric is drawn: its axis, and what is subtracted so that its floor is 0.
pub(super) struct Drawn {
    pub(super) metric: &'static str,
    label: &'static str,
    scale: Scale,
    floor: f64,
}

const fn drawn(metric: &'static str, label: &'static str, scale: Scale, floor: f64) -> Drawn {
    Drawn { metric, label, scale, floor }
}

/// The metrics of outliers and sizes in the order of the page. A kurtosis is shown above its floor of 1, on a logarithmic
/// axis.
pub(super) const OUTLIERS: &[Drawn] = &[
    drawn("kurtosis", "kurtosis − 1", Scale::Log, 1.0),
    drawn("kurtosis_centred", "centred kurtosis − 1", Scale::Log, 1.0),
    drawn("kurtosis_mean_removed", "mean-removed kurtosis − 1", Scale::Log, 1.0),
    drawn("kurtosis_elementwise", "element-wise kurtosis", Scale::Linear, 0.0),
    drawn("kurtosis_excess_token", "excess kurtosis per token", Scale::Linear, 0.0),
    drawn("mmr", "max-median ratio", Scale::Log, 0.0),
    drawn("rms", "RMS", Scale::Log, 0.0),
    drawn("max_abs", "largest |x|", Scale::Log, 0.0),
    drawn("inf_norm", "largest |x| of a sequence, mean", Scale::Log, 0.0),
];

/// Those of signal propagation.
pub(super) const SIGNAL: &[Drawn] = &[
    drawn("input_corr_mean", "mean correlation of tokens", Scale::Linear, 0.0),
    drawn("input_cos_mean", "mean cosine of tokens", Scale::Linear, 0.0),
    drawn("input_corr_rms", "RMS correlation of tokens", Scale::Linear, 0.0),
    drawn("feature_corr_rms", "RMS correlation of channels", Scale::Linear, 0.0),
    drawn("effective_rank", "effective rank", Scale::Linear, 0.0),
];

/// A metric at each site against steps; `None` if no run has it.
pub(super) fn by_step(overlay: &Overlay, figure: &Drawn) -> Option<Item> {
    let runs = overlay.runs;
    if runs.len() > PANELS && figure.metric != "kurtosis" {
        return overlay.site_mean(figure.metric, figure.label, figure.scale, figure.floor);
    }
    let curves: Vec<Vec<Curve>> = runs.iter().map(|run| run.residual(figure.metric, false)).collect();
    if curves.iter().flatten().all(|c| c.1.is_empty()) {
        return None;
    }
    let means: Vec<Curve> =
        runs.iter().zip(&curves).map(|(run, sites)| (run.name.clone(), over_sites(sites))).collect();
    // Of a single run the table has every site.
    let (columns, what) = match &curves[..] {
        [sites] => (sites, "at each of them"),
        _ => (&means, "averaged over them"),
    };
    let table = sampled("step", columns, findings::figure);
    let panel = |(run, sites): (&RunCurves, &Vec<Curve>)| LineChart {
        title: if runs.len() > 1 { run.name.clone() } else { String::new() },
        x_label: "step".into(),
        x_reach: vec![0.0],
        y_label: figure.label.into(),
        y_scale: figure.scale,
        series: sites.iter().enumerate().map(|(i, site)| line(i, sites.len(), site, figure.floor)).collect(),
        plot_height: if runs.len() > 1 { 140.0 } else { 240.0 },
        ..LineChart::default()
    };
    let panels: Vec<LineChart> = runs.iter().zip(&curves).map(panel).collect();
    let each = if runs.len() > 1 { ", a panel per run" } else { "" };
    let caption = format!(
        "`{}` at each site of the residual stream{each}. Where it is undefined there is no point. The table has it {what}.",
        figure.metric
    );
    Some(match <[LineChart; 1]>::try_from(panels) {
        Ok([only]) => Plate::lines(figure.metric, &caption, &only, table).into(),
        Err(panels) => Plate::multiples(figure.metric, &caption, panels, table).into(),
    })
}

fn line(i: usize, count: usize, (site, points): &Curve, floor: f64) -> Series {
    Series {
        name: site_name(site),
        points: points.iter().map(|p| (p.0, p.1 - floor)).collect(),
        style: Style::ordered(i, count),
        draw: Draw::MarkedLine,
    }
}

/// Kurtosis − 1 as colours, sites × steps, a map per run; `None` if it was not measured.
pub(super) fn heat(runs: &[RunCurves]) -> Option<Item> {
    let mut table = Table::new(&[("run", Align::Left), ("step", Align::Right)]);
    let mut panels = Vec::new();
    let mut sites: Vec<String> = Vec::new();
    for run in runs {
        for (site, _) in run.residual_kurtosis() {
            if !sites.contains(&site) {
                sites.push(site);
            }
        }
    }
    table.header.extend(sites.iter().map(|s| site_name(s)));
    table.align.extend(sites.iter().map(|_| Align::Right));
    for run in runs {
        let curves = run.residual_kurtosis();
        let steps: BTreeSet<u64> =
            curves.iter().flat_map(|(_, points)| points.iter().map(|p| p.0 as u64)).collect();
        let rows: Vec<(&str, BTreeMap<u64, f64>)> = curves
            .iter()
            .map(|(site, points)| (site.as_str(), points.iter().map(|p| (p.0 as u64, p.1)).collect()))
            .collect();
        let row = |(i, (site, values)): (usize, &(&str, BTreeMap<u64, f64>))| HeatRow {
            label: site_name(site),
            number: (*site != "embed").then(|| i.saturating_sub(1)),
            values: steps.iter().map(|step| values.get(step).map(|k| k - 1.0)).collect(),
        };
        let map = HeatMap {
            rows: rows.iter().enumerate().map(row).collect(),
            columns: Columns::At(steps.iter().map(|step| *step as f64).collect()),
            x_label: "step".into(),
            value_label: "kurtosis − 1".into(),
            scale: Scale::Log,
            reach: Vec::new(),
            width: WIDE,
        };
        panels.push((if runs.len() > 1 { run.name.clone() } else { String::new() }, map));
        let shown: Vec<u64> = steps.iter().copied().collect();
        for step in spread(&shown, if runs.len() > 3 { 1 } else { STEPS }) {
            let value = |site: &String| rows.iter().find(|(name, _)| name == site)?.1.get(&step).copied();
            let cells = sites.iter().map(|site| cell(value(site), findings::kurtosis));
            table.push([run.name.clone(), findings::count(step)].into_iter().chain(cells));
        }
    }
    if table.rows.is_empty() {
        return None;
    }
    let caption = "Kurtosis above its floor of 1: sites of the residual stream from the top, steps from the left, colours on a \
                   logarithmic scale that all maps share. Blank is undefined, or exactly 1. The table has the kurtosis itself.";
    let grid = HeatGrid { panels, columns: 1, width: WIDE };
    Some(Plate::heat("kurtosis_heat", caption, &grid, table).into())
}

/// About `count` of ascending steps, the first and the last among them; of one the last.
fn spread(steps: &[u64], count: usize) -> Vec<u64> {
    let last = steps.len().saturating_sub(1);
    let place = |k: usize| if count > 1 { k * last / (count - 1) } else { last };
    let mut places: Vec<usize> = (0..count).map(place).filter(|i| *i < steps.len()).collect();
    places.dedup();
    places.into_iter().map(|i| steps[i]).collect()
}

/// A metric from block to block at the last step that has it, a line per setting; of a single run at several steps. `None` if
/// no run has it.
pub(super) fn by_layer(runs: &[RunCurves], settings: &[Setting], figure: &Drawn) -> Option<Item> {
    let profiles: Vec<Vec<(u64, Vec<Point>)>> = runs.iter().map(|run| profiles(run, figure.metric)).collect();
    let deepest = runs.iter().flat_map(|run| run.stats.iter().filter_map(|s| s.layer)).max();
    let mut series = Vec::new();
    // A name of a column and its profile.
    let mut columns: Vec<(String, &[Point])> = Vec::new();
    if let [of_steps] = &profiles[..] {
        let known: Vec<u64> = of_steps.iter().map(|p| p.0).collect();
        let shown = spread(&known, 5);
        for (i, step) in shown.iter().enumerate() {
            let Some((_, points)) = of_steps.iter().find(|p| p.0 == *step) else { continue };
            let name = format!("step {}", findings::count(*step));
            let style = Style::ordered(i, shown.len());
            columns.push((name.clone(), points));
            series.push(Series { name, points: points.clone(), style, draw: Draw::MarkedLine });
        }
    } else {
        for (i, setting) in settings.iter().enumerate() {
            let known = setting.runs.iter().filter_map(|&run| Some((run, profiles[run].last()?)));
            for (k, (run, (_, points))) in known.enumerate() {
                columns.push((runs[run].name.clone(), points));
                let name = if k == 0 { setting.name.clone() } else { String::new() };
                series.push(Series {
                    name,
                    points: points.clone(),
                    style: Style::nth(i),
                    draw: Draw::MarkedLine,
                });
            }
        }
    }
    if columns.is_empty() {
        return None;
    }
    let chart = LineChart {
        x_label: "block".into(),
        x_ticks: place_ticks(deepest.map(|layer| layer as usize)),
        y_label: figure.label.into(),
        series,
        plot_height: 170.0,
        ..LineChart::default()
    };
    let mut header = vec![("block", Align::Left)];
    header.extend(columns.iter().map(|c| (c.0.as_str(), Align::Right)));
    let mut table = Table::new(&header);
    for tick in &chart.x_ticks {
        let at = |points: &[Point]| points.iter().find(|p| p.0 == tick.value).map(|p| p.1);
        let cells = columns.iter().map(|c| cell(at(c.1), findings::figure));
        table.push(std::iter::once(tick.label.clone()).chain(cells));
    }
    let when = if runs.len() > 1 { "at the last step that has it" } else { "at several steps" };
    let caption = format!("`{}` of what each block passes on, {when}.", figure.metric);
    Some(Plate::lines(&format!("{}_by_block", figure.metric), &caption, &chart, table).into())
}

/// The metric by block at every step that has it.
fn profiles(run: &RunCurves, metric: &str) -> Vec<(u64, Vec<Point>)> {
    let mut steps: BTreeMap<u64, Vec<Point>> = BTreeMap::new();
    for line in run.stats.iter().filter(|s| super::run::is_residual(&s.site)) {
        if let Some(value) = line.metrics.get(metric) {
            let at = place(line.layer.map(|layer| layer as usize));
            steps.entry(line.step).or_default().push((at, value));
        }
    }
    for points in steps.values_mut() {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    steps.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn every_metric_has_a_figure() {
        let figures = || OUTLIERS.iter().chain(SIGNAL);
        assert!(figures().all(|f| Metrics::is_known(f.metric)));
        let left_out: Vec<_> = Metrics::NAMES.iter().filter(|n| figures().all(|f| f.metric != **n)).collect();
        assert_eq!(left_out, [&"mmr_skipped"]);
    }

    #[test]
    fn a_mean_over_sites_takes_those_that_have_a_point() {
        let curve = |points: &[(f64, f64)]| ("site".to_string(), points.to_vec());
        let sites = [curve(&[(10.0, 1.0), (20.0, 2.0)]), curve(&[(20.0, 4.0)])];
        assert_eq!(over_sites(&sites), [(10.0, 1.0), (20.0, 3.0)]);
        assert_eq!(over_sites(&[]), []);
    }

    #[test]
    fn steps_are_spread_from_the_first_to_the_last() {
        assert_eq!(spread(&[1, 2, 3, 4, 5, 6, 7, 8, 9], 5), [1, 3, 5, 7, 9]);
        assert_eq!(spread(&[1, 2, 3], 1), [3]);
        assert_eq!(spread(&[7], 4), [7]);
        assert!(spread(&[], 4).is_empty());
    }
}
