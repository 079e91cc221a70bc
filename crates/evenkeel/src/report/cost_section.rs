//! Which quantiser costs what: bars for the costliest, the loss as the network is quantised from its first stage on, and how
//! far the stream has moved by then.

use super::bars::{Bar, BarChart, BarGroup};
use super::chart::{Draw, Legend, LineChart, Point, Series};
use super::figures::at_width;
use super::findings;
use super::html::{Block, Figure, Section};
use super::int8_section::percent;
use super::palette::Colour;
use super::scale::Tick;
use super::stream_section::scale_of;
use super::svg::Target;
use super::table::{Align, Table, cell};
use crate::quant::{Attribution, QuantiserCost, QuantiserKind};

/// Quantisers that have bars.
const LISTED: usize = 14;

/// A quantiser with both its costs.
pub(super) struct Cost<'a> {
    pub(super) name: &'a str,
    kind: QuantiserKind,
    /// Loss that it adds to the float model, nats per token.
    pub(super) alone: f64,
    /// Loss that the quantised model has less without it.
    pub(super) gain: f64,
    /// Standard errors of the two.
    pub(super) errors: [f64; 2],
}

impl Cost<'_> {
    fn larger(&self) -> f64 {
        let known = [self.alone, self.gain].into_iter().filter(|v| v.is_finite());
        known.fold(f64::NEG_INFINITY, f64::max)
    }
}

/// All quantisers, the costliest by either measure first.
pub(super) fn costs<'a>(attribution: &'a Attribution) -> Vec<Cost<'a>> {
    let full = attribution.full_increase();
    let cost = |(alone, without): (&'a QuantiserCost, &QuantiserCost)| Cost {
        name: &alone.quantiser,
        kind: alone.kind,
        alone: alone.loss_increase,
        gain: full - without.loss_increase,
        errors: [alone.standard_error, without.standard_error],
    };
    let mut all: Vec<Cost> = attribution.alone.iter().zip(&attribution.without).map(cost).collect();
    all.sort_by(|a, b| b.larger().total_cmp(&a.larger()));
    all
}

/// The section.
pub(super) fn cost_section(attribution: &Attribution) -> Section {
    let text = format!(
        "Measured on {} tokens, where the float model has a loss of {:.4} nats per token and all quantisers together add \
         {}. Errors in a row can add up, hide each other or cancel, so each quantiser is looked at twice: by itself in the \
         float model, and left out of the quantised one. After ± is the standard error over tokens: what is below two of \
         them may be chance, and more tokens would tell.",
        findings::count(attribution.tokens),
        attribution.float_loss,
        nats(attribution.full_increase(), attribution.full_error()),
    );
    let costs = costs(attribution);
    let bars = bar_chart(&costs);
    let draw = |width| BarChart { width, ..bars.clone() }.render(Target::Page);
    let bars = Figure::new(bars_caption(costs.len()), draw).with_table(cost_table(&costs));
    let cumulative = cumulative_chart(attribution);
    let cumulative = Figure::new(
        "The loss as the network is quantised from its start: everything up to a block in integers, the rest in float. \
         A step up is what a block adds; the last point is everything.",
        |width| at_width(&cumulative, width),
    );
    let deviation = deviation_chart(attribution);
    let deviation = Figure::new(
        "How far the output of each block is from that of the float model with everything quantised: RMS of the difference \
         over RMS of the values. Unlike the loss it takes in all channels alike.",
        |width| at_width(&deviation, width),
    );
    Section {
        title: "Which quantiser costs what".into(),
        blocks: vec![
            Block::Text(text),
            Block::Figure(bars),
            Block::Figure(cumulative.with_table(cumulative_table(attribution))),
            Block::Figure(deviation.with_table(deviation_table(attribution))),
        ],
    }
}

fn bars_caption(quantisers: usize) -> String {
    let which = match quantisers > LISTED {
        true => format!("The {LISTED} costliest of {} quantisers", findings::count(quantisers as u64)),
        false => "All quantisers, the costliest first".into(),
    };
    format!(
        "{which}: what one adds to the loss with all others off, and what the loss falls by when it alone is taken out. \
         Names that end in `.weight` or `.gain` are weights, the others activations. A negative cost has no bar."
    )
}

/// A difference in loss with its standard error, and what it does to perplexity.
pub(super) fn nats(value: f64, error: f64) -> String {
    cell(Some(value), |v| {
        let (size, perplexity) = (with_error(v, error), findings::percent(v.exp_m1()));
        format!("{size} nats (perplexity {perplexity})")
    })
}

/// A difference with its standard error.
fn with_error(value: f64, error: f64) -> String {
    cell(Some(value), |v| format!("{} ± {}", small(v), cell(Some(error), small)))
}

/// A difference in loss, with decimals that the smallest of interest needs.
fn small(value: f64) -> String {
    let text = format!("{value:.4}");
    if text == "-0.0000" { "0.0000".into() } else { text.replace('-', "−") }
}

/// Bars of the costliest.
pub(super) fn bar_chart(costs: &[Cost]) -> BarChart {
    // A negative value would move the foot of all bars away from 0.
    let bar = |name: &str, value: f64, error: f64| Bar {
        name: name.into(),
        value: Some(value).filter(|v| *v >= 0.0),
        label: with_error(value, error),
    };
    let group = |cost: &Cost| BarGroup {
        name: cost.name.into(),
        colour: Colour::Hue(if cost.kind == QuantiserKind::Weight { 1 } else { 0 }),
        bars: vec![
            bar("with it alone", cost.alone, cost.errors[0]),
            bar("gained by leaving it out", cost.gain, cost.errors[1]),
        ],
    };
    BarChart {
        x_label: "loss, nats per token".into(),
        groups: costs.iter().take(LISTED).map(group).collect(),
        width: 880.0,
    }
}

fn cost_table(costs: &[Cost]) -> Table {
    let mut table = Table::new(&[
        ("quantiser", Align::Left),
        ("alone, nats", Align::Right),
        ("perplexity", Align::Right),
        ("left out, nats gained", Align::Right),
        ("perplexity", Align::Right),
    ]);
    for cost in costs.iter().take(LISTED) {
        let both = [cost.alone, cost.gain].into_iter().zip(cost.errors);
        let both = both.map(|(value, error)| {
            [with_error(value, error), cell(Some(value), |v| findings::percent(v.exp_m1()))]
        });
        table.push(std::iter::once(cost.name.to_string()).chain(both.flatten()));
    }
    table
}

/// The loss against the last quantised stage.
pub(super) fn cumulative_chart(attribution: &Attribution) -> LineChart {
    let steps = &attribution.cumulative;
    let names = steps.iter().map(|step| step.through.as_str());
    stages(names, steps.iter().map(|s| Some(s.loss_increase)), "loss above float, nats per token")
}

/// The deviation against the stage.
pub(super) fn deviation_chart(attribution: &Attribution) -> LineChart {
    let sites = &attribution.deviation;
    let values = || sites.iter().map(|s| s.relative.map(|v| 100.0 * v));
    let chart = stages(sites.iter().map(|s| s.site.as_str()), values(), "relative deviation, %");
    LineChart { y_scale: scale_of(values().flatten()), ..chart }
}

/// A line through all stages.
fn stages<'a>(
    names: impl Iterator<Item = &'a str>,
    values: impl Iterator<Item = Option<f64>>,
    y_label: &str,
) -> LineChart {
    let tick = |(i, name): (usize, &str)| Tick { value: i as f64, label: short(name) };
    let points: Vec<Point> = values.enumerate().map(|(i, v)| (i as f64, v.unwrap_or(f64::NAN))).collect();
    LineChart {
        x_label: "block".into(),
        x_ticks: names.enumerate().map(tick).collect(),
        y_label: y_label.into(),
        y_reach: vec![0.0],
        series: vec![Series { draw: Draw::MarkedLine, ..Series::new(y_label, 0, points) }],
        plot_height: 200.0,
        legend: Legend::Hidden,
        ..LineChart::default()
    }
}

/// A stage on an axis of blocks.
fn short(name: &str) -> String {
    let block = name.strip_prefix("blocks.").and_then(|rest| rest.split('.').next());
    block.unwrap_or(name).replace('_', " ")
}

fn cumulative_table(attribution: &Attribution) -> Table {
    let mut table = Table::new(&[
        ("quantised through", Align::Left),
        ("loss above float, nats", Align::Right),
        ("perplexity", Align::Right),
    ]);
    for step in &attribution.cumulative {
        let increase = Some(step.loss_increase);
        table.push([
            step.through.clone(),
            with_error(step.loss_increase, step.standard_error),
            cell(increase, |v| findings::percent(v.exp_m1())),
        ]);
    }
    table
}

fn deviation_table(attribution: &Attribution) -> Table {
    let mut table = Table::new(&[("site", Align::Left), ("relative deviation", Align::Right)]);
    for site in &attribution.deviation {
        table.push([site.site.clone(), cell(site.relative, percent)]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::quantize_page::tests::attribution;
    use super::*;

    #[test]
    fn the_costliest_by_either_measure_come_first() {
        let attribution = attribution(4);
        let costs = costs(&attribution);
        assert!(costs.windows(2).all(|pair| pair[0].larger() >= pair[1].larger()));
        let full = attribution.full_increase();
        for cost in &costs {
            let without = attribution.without.iter().find(|c| c.quantiser == cost.name).unwrap();
            assert_eq!(cost.gain, full - without.loss_increase);
        }
        assert_eq!(bar_chart(&costs).groups.len(), LISTED.min(costs.len()));
        assert_eq!(cost_table(&costs).rows[0][0], costs[0].name);
    }

    #[test]
    fn stages_stand_on_an_axis_of_blocks() {
        let ticks = |chart: &LineChart| chart.x_ticks.iter().map(|t| t.label.clone()).collect::<Vec<_>>();
        let attribution = attribution(2);
        assert_eq!(ticks(&cumulative_chart(&attribution)), ["embed", "0", "1", "head"]);
        assert_eq!(ticks(&deviation_chart(&attribution)), ["embed", "0", "1", "final norm", "logits"]);
    }

    #[test]
    fn differences_are_written_with_a_sign_that_can_be_seen() {
        assert_eq!([small(-0.0012), small(-1e-9), small(0.5)], ["−0.0012", "0.0000", "0.5000"]);
        assert_eq!(nats(0.1, 0.02), "0.1000 ± 0.0200 nats (perplexity +10.52%)");
        assert_eq!((nats(f64::NAN, 0.0).as_str(), with_error(0.1, f64::NAN).as_str()), ("–", "0.1000 ± –"));
    }
}
