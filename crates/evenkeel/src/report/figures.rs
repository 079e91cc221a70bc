//! The figures of the pages about runs: loss, kurtosis by site, mean kurtosis, the cost of int8.
//!
//! Each is a chart with its caption and the numbers behind it. In figures with several runs a
//! colour stands for block and optimiser, a dash for the learning rate, a marker for the run.

use super::bars::{Bar, BarChart, BarGroup};
use super::chart::{Draw, LineChart, Point, Series};
use super::findings;
use super::html::{Block, Figure, NARROW};
use super::multiples::SmallMultiples;
use super::palette::{Colour, Dash, Marker, Style};
use super::quickstart::{QuickstartRun, QuickstartSummary};
use super::run::{Curve, RunCurves};
use super::scale::Scale;
use super::svg::Target;
use super::table::{Align, Table, cell};

/// A run, how it is drawn, and its curves if they were found.
pub(super) struct Shown<'a> {
    run: &'a QuickstartRun,
    style: Style,
    curves: Option<&'a RunCurves>,
}

/// The runs of a summary with their styles and, matched by name, their curves.
pub(super) fn shown<'a>(summary: &'a QuickstartSummary, curves: &'a [RunCurves]) -> Vec<Shown<'a>> {
    let runs = summary.runs.iter().zip(styles(summary));
    runs.map(|(run, style)| Shown { run, style, curves: run.curves(curves) }).collect()
}

/// A colour for each side, a dash for each of its rates, a marker for each run.
fn styles(summary: &QuickstartSummary) -> Vec<Style> {
    let mut sides: Vec<String> = Vec::new();
    for run in &summary.runs {
        if !sides.contains(&run.side()) {
            sides.push(run.side());
        }
    }
    let style = |(i, run): (usize, &QuickstartRun)| {
        let side = sides.iter().position(|s| *s == run.side()).unwrap_or(0);
        let smaller = summary.runs.iter().filter(|r| r.side() == run.side() && r.lr_peak < run.lr_peak);
        Style {
            // The first side is the baseline, in the warmer colour.
            colour: Colour::Hue([1, 0].get(side).copied().unwrap_or(side)),
            // The largest rate, on which the text dwells, is not known here to be last; the
            // smallest is drawn dashed and the next one solid.
            dash: match smaller.count() {
                0 => Dash::Dashed,
                1 => Dash::Solid,
                more => Dash::nth(more),
            },
            marker: Marker::nth(i),
        }
    };
    summary.runs.iter().enumerate().map(style).collect()
}

/// Training and validation loss against tokens.
pub(super) fn loss_figure(shown: &[Shown]) -> Block {
    let mut series = Vec::new();
    let mut columns = Vec::new();
    for one in shown {
        let train = one.curves.map(RunCurves::train_loss).unwrap_or_default();
        let smooth = running_mean(&train, train.len() / 40);
        columns.push((one.run.label(), smooth.clone()));
        series.push(Series { name: one.run.label(), points: smooth, style: one.style, draw: Draw::Line });
    }
    for one in shown {
        series.push(Series {
            name: String::new(),
            points: one.curves.map(RunCurves::val_loss).unwrap_or_default(),
            style: one.style,
            draw: Draw::Markers,
        });
    }
    let chart = LineChart {
        x_label: "training tokens".into(),
        x_reach: vec![0.0],
        y_label: "loss, nats per token".into(),
        series,
        plot_height: 300.0,
        ..LineChart::default()
    };
    Block::Figure(
        Figure::new(
            "Loss against training tokens. Lines: training loss, averaged over a fortieth of the \
             run around each step. Markers: validation loss.",
            |width| at_width(&chart, width),
        )
        .with_table(sampled("tokens", &columns, |v| format!("{v:.3}"))),
    )
}

/// Kurtosis - 1 at every site of the residual stream, a panel per run.
pub(super) fn site_figure(shown: &[Shown]) -> Block {
    let by_run: Vec<Vec<Curve>> =
        shown.iter().map(|s| s.curves.map(RunCurves::residual_kurtosis).unwrap_or_default()).collect();
    let mut sites: Vec<&str> = Vec::new();
    for (site, _) in by_run.iter().flatten() {
        if !sites.contains(&site.as_str()) {
            sites.push(site);
        }
    }
    let panels: Vec<LineChart> = shown
        .iter()
        .zip(&by_run)
        .map(|(one, found)| LineChart {
            // Where the title is broken, the rate stays whole.
            title: one.run.label().replace("lr ", "lr\u{a0}"),
            x_label: "step".into(),
            x_reach: vec![0.0],
            y_label: "kurtosis − 1".into(),
            y_scale: Scale::Log,
            plot_height: 210.0,
            series: found
                .iter()
                .map(|(site, points)| {
                    let place = sites.iter().position(|s| s == site).unwrap_or(0);
                    Series {
                        name: site_name(site),
                        points: points.iter().map(|p| (p.0, p.1 - 1.0)).collect(),
                        style: Style::ordered(place, sites.len()),
                        draw: Draw::Line,
                    }
                })
                .collect(),
            ..LineChart::default()
        })
        .collect();
    let mut columns = vec![("site", Align::Left)];
    let labels: Vec<String> = shown.iter().map(|s| s.run.label()).collect();
    columns.extend(labels.iter().map(|label| (label.as_str(), Align::Right)));
    let mut table = Table::new(&columns);
    for site in &sites {
        let last = |found: &[Curve]| {
            let points = &found.iter().find(|(name, _)| name == site)?.1;
            points.last().map(|p| p.1)
        };
        let cells = by_run.iter().map(|found| cell(last(found), findings::kurtosis));
        table.push(std::iter::once(site.to_string()).chain(cells));
    }
    Block::Figure(
        Figure::new(
            "Kurtosis above its floor of 1 at each site of the residual stream while training, \
             on a logarithmic axis that all panels share. Where the kurtosis is undefined or \
             exactly 1 there is no point. The table has the kurtosis itself at the last logged \
             step.",
            |width| {
                SmallMultiples { panels: panels.clone(), columns: if width <= NARROW { 2 } else { 4 }, width }
                    .render(Target::Page)
            },
        )
        .with_table(table),
    )
}

/// Mean kurtosis of the residual stream against steps.
pub(super) fn mean_figure(shown: &[Shown]) -> Block {
    let points = |s: &Shown| s.curves.map(RunCurves::mean_kurtosis).unwrap_or_default();
    let columns: Vec<_> = shown.iter().map(|s| (s.run.label(), points(s))).collect();
    let chart = LineChart {
        x_label: "step".into(),
        x_reach: vec![0.0],
        y_label: "mean kurtosis of the residual stream".into(),
        y_scale: Scale::Log,
        y_reach: vec![1.0],
        series: shown
            .iter()
            .map(|one| Series {
                name: one.run.label(),
                points: points(one),
                style: one.style,
                draw: Draw::MarkedLine,
            })
            .collect(),
        ..LineChart::default()
    };
    Block::Figure(
        Figure::new(
            "Kurtosis averaged over the sites of the residual stream, while training. 1 is the \
             floor.",
            |width| at_width(&chart, width),
        )
        .with_table(sampled("step", &columns, findings::kurtosis)),
    )
}

/// Perplexity in float and in int8, as bars.
pub(super) fn int8_figure(shown: &[Shown]) -> Block {
    let text = |value: Option<f64>| match findings::finite(value) {
        Some(value) => findings::perplexity(value),
        None => "undefined".into(),
    };
    let mut table = Table::new(&[
        ("run", Align::Left),
        ("float", Align::Right),
        ("W8A8", Align::Right),
        ("cost", Align::Right),
    ]);
    let mut groups = Vec::new();
    for one in shown {
        let (float, int8) = (one.run.float_perplexity, one.run.w8a8_perplexity);
        let cost = one.run.int8_cost();
        let label = match cost {
            Some(cost) => format!("{} ({})", text(int8), findings::percent(cost)),
            None => text(int8),
        };
        let bar = |name: &str, value, label| Bar { name: name.into(), value, label };
        groups.push(BarGroup {
            name: one.run.label(),
            colour: one.style.colour,
            bars: vec![bar("float", float, text(float)), bar("int8 (W8A8)", int8, label)],
        });
        table.push([
            one.run.label(),
            cell(float, findings::perplexity),
            cell(int8, findings::perplexity),
            cell(cost, findings::percent),
        ]);
    }
    Block::Figure(
        Figure::new(
            "Validation perplexity in float and with weights and activations in int8, and what \
             the step costs. Lower is better.",
            |width| {
                BarChart { x_label: "validation perplexity".into(), groups: groups.clone(), width }
                    .render(Target::Page)
            },
        )
        .with_table(table),
    )
}

/// `blocks.3.resid` as `block 3`; other names as they are.
pub(super) fn site_name(site: &str) -> String {
    let inner = site.strip_prefix("blocks.");
    match inner.and_then(|rest| rest.strip_suffix(".resid")) {
        Some(layer) => format!("block {layer}"),
        None => site.to_string(),
    }
}

/// A chart at a width, lower where it is narrow.
pub(super) fn at_width(chart: &LineChart, width: f64) -> String {
    let narrow = width <= NARROW;
    LineChart { width, plot_height: if narrow { 220.0 } else { chart.plot_height }, ..chart.clone() }
        .render(Target::Page)
}

/// Each point averaged with its neighbours, `window` points in all. Points that are not finite
/// stay so and do not enter their neighbours' means.
pub(super) fn running_mean(points: &[Point], window: usize) -> Vec<Point> {
    let half = window / 2;
    let mean = |(i, &(x, y)): (usize, &Point)| {
        if !y.is_finite() {
            return (x, y);
        }
        // The same reach on both sides, or a falling curve would be bent at its ends.
        let reach = half.min(i).min(points.len() - 1 - i);
        let near = points[i - reach..=i + reach].iter().map(|p| p.1);
        let (sum, count) = near.filter(|y| y.is_finite()).fold((0.0, 0.0), |(s, n), y| (s + y, n + 1.0));
        (x, sum / count)
    };
    points.iter().enumerate().map(mean).collect()
}

/// About ten rows of curves: at places along the first, the latest point of each up to there.
pub(super) fn sampled(name: &str, columns: &[Curve], write: impl Fn(f64) -> String) -> Table {
    let mut header = vec![(name, Align::Right)];
    header.extend(columns.iter().map(|c| (c.0.as_str(), Align::Right)));
    let mut table = Table::new(&header);
    let longest = columns.iter().max_by_key(|c| c.1.len());
    let places = longest.map_or(&[][..], |c| &c.1[..]);
    let mut rows: Vec<usize> =
        (0..=10).map(|k| k * places.len().saturating_sub(1) / 10).filter(|i| *i < places.len()).collect();
    rows.dedup();
    for row in rows {
        let x = places[row].0;
        let at = |points: &[Point]| points.iter().rev().find(|p| p.0 <= x).map(|p| p.1);
        let cells = columns.iter().map(|c| cell(at(&c.1), &write));
        table.push(std::iter::once(findings::count(x as u64)).chain(cells));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::quickstart::tests::summary;

    #[test]
    fn a_running_mean_keeps_lines_straight_and_gaps_open() {
        let line: Vec<(f64, f64)> = (0..9).map(|i| (f64::from(i), f64::from(2 * i))).collect();
        assert_eq!(running_mean(&line, 5), line);
        let gap = [(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0)];
        let mean = running_mean(&gap, 3);
        assert!(mean[1].1.is_nan() && mean[2].1 == 3.0);
        assert!(running_mean(&[], 5).is_empty());
    }

    #[test]
    fn a_colour_is_a_side_and_a_dash_a_rate() {
        let styles = styles(&summary());
        assert_eq!(styles[0].colour, styles[1].colour);
        assert_ne!(styles[1].colour, styles[3].colour);
        assert_ne!(styles[0].dash, styles[1].dash);
        assert_eq!(styles[1].dash, styles[3].dash);
        assert_ne!(styles[1].marker, styles[3].marker);
    }

    #[test]
    fn a_table_of_curves_takes_the_latest_point_so_far() {
        let columns = [
            ("a".to_string(), (0..50).map(|i| (f64::from(i), 1.0)).collect()),
            ("b".to_string(), vec![(20.0, 7.0)]),
            ("c".to_string(), Vec::new()),
        ];
        let table = sampled("step", &columns, |v| v.to_string());
        assert_eq!(table.rows[0], ["0", "1", "–", "–"]);
        assert_eq!(table.rows.last().unwrap(), &["49", "1", "7", "–"]);
        assert_eq!(table.rows.len(), 11);
    }
}
