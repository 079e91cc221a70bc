//! What attention heads do: entropy and the share of the first token by block, and the heads that look there
//! most.

use super::chart::{LineChart, Point, Series};
use super::figures::at_width;
use super::findings;
use super::html::{Block, Figure, Section};
use super::palette::{Colour, Dash, Style};
use super::scale::Tick;
use super::table::{Align, Table, cell};
use crate::metrics::HeadReport;

/// Heads that the table lists.
const LISTED: usize = 15;

/// One of the figures of a [`Spread`].
type Part = fn(Spread) -> f64;

/// Least, mean and largest over the heads of a block that are defined.
#[derive(Clone, Copy)]
struct Spread {
    least: f64,
    mean: f64,
    largest: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = Option<f64>>) -> Option<Self> {
        let known: Vec<f64> = values.filter_map(findings::finite).collect();
        Some(Self {
            least: known.iter().copied().reduce(f64::min)?,
            mean: known.iter().sum::<f64>() / known.len() as f64,
            largest: known.iter().copied().reduce(f64::max)?,
        })
    }
}

/// The section; `None` if attention was not looked at.
pub(super) fn attention_section(heads: &[HeadReport]) -> Option<Section> {
    if heads.is_empty() {
        return None;
    }
    let blocks = vec![
        head_figure(
            heads,
            |h| h.entropy,
            "entropy, nats",
            "Entropy of the heads' attention by block: 0 if a query looks at one token only. Mean over the \
             heads of a block, and the heads that lie lowest and highest.",
        ),
        head_figure(
            heads,
            |h| h.mass_first,
            "share of the first token",
            "Share of their attention that heads give to the first token, by block. A head near 1 attends to \
             next to nothing else.",
        ),
        sinks(heads),
    ];
    Some(Section { title: "Attention".into(), blocks })
}

fn head_figure(
    heads: &[HeadReport],
    get: fn(&HeadReport) -> Option<f64>,
    y_label: &str,
    caption: &str,
) -> Block {
    let last = heads.iter().map(|h| h.layer).max().unwrap_or(0);
    let by_block: Vec<(usize, Option<Spread>)> = (0..=last)
        .map(|layer| (layer, Spread::of(heads.iter().filter(|h| h.layer == layer).map(get))))
        .collect();
    let parts: [(&str, Dash, Part); 3] = [
        ("highest head", Dash::Dashed, |s| s.largest),
        ("mean over heads", Dash::Solid, |s| s.mean),
        ("lowest head", Dash::Dotted, |s| s.least),
    ];
    let series = parts.map(|(name, dash, part)| {
        let point = |(layer, spread): &(usize, Option<Spread>)| -> Point {
            (*layer as f64, spread.map_or(f64::NAN, part))
        };
        let style = Style { colour: Colour::Hue(0), dash, ..Style::nth(0) };
        Series { style, ..Series::new(name, 0, by_block.iter().map(point).collect()) }
    });
    let chart = LineChart {
        x_label: "block".into(),
        x_ticks: (0..=last).map(|i| Tick { value: i as f64, label: i.to_string() }).collect(),
        y_label: y_label.into(),
        y_reach: vec![0.0],
        series: series.into(),
        plot_height: 170.0,
        ..LineChart::default()
    };
    let mut table = Table::new(&[
        ("block", Align::Right),
        ("lowest", Align::Right),
        ("mean", Align::Right),
        ("highest", Align::Right),
    ]);
    for (layer, spread) in &by_block {
        let part = |part: Part| cell(spread.map(part), |v| format!("{v:.3}"));
        table.push([layer.to_string(), part(|s| s.least), part(|s| s.mean), part(|s| s.largest)]);
    }
    Block::Figure(Figure::new(caption, |width| at_width(&chart, width)).with_table(table))
}

/// The heads that give most to the first token.
fn sinks(heads: &[HeadReport]) -> Block {
    let mut order: Vec<&HeadReport> = heads.iter().collect();
    let size = |h: &HeadReport| findings::finite(h.mass_first).unwrap_or(f64::NEG_INFINITY);
    order.sort_by(|a, b| size(b).total_cmp(&size(a)));
    let mut table = Table::new(&[
        ("head", Align::Left),
        ("first token", Align::Right),
        ("entropy", Align::Right),
        ("largest logit", Align::Right),
    ]);
    for head in order.into_iter().take(LISTED) {
        table.push([
            format!("block {}, head {}", head.layer, head.head),
            cell(head.mass_first, |v| format!("{v:.3}")),
            cell(head.entropy, |v| format!("{v:.3}")),
            cell(head.max_logit, findings::figure),
        ]);
    }
    Block::Table(table, "The heads that give the largest share of their attention to the first token.".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_told_by_its_heads_that_are_defined() {
        let head =
            |layer, head, mass_first| HeadReport { layer, head, entropy: None, max_logit: None, mass_first };
        // Block 1 was not seen.
        let heads = [head(0, 0, Some(0.25)), head(0, 1, None), head(0, 2, Some(0.75)), head(2, 0, Some(0.5))];
        let Block::Figure(figure) = head_figure(&heads, |h| h.mass_first, "share", "") else {
            panic!("no figure")
        };
        let rows = figure.table.unwrap().rows;
        assert_eq!(rows[0], ["0", "0.250", "0.500", "0.750"]);
        assert_eq!(rows[1], ["1", "–", "–", "–"]);
        let Block::Table(table, _) = sinks(&heads) else { panic!("no table") };
        assert_eq!(table.rows[0], ["block 0, head 2", "0.750", "–", "–"]);
        assert_eq!(table.rows[3][0], "block 0, head 1");
        assert!(attention_section(&[]).is_none());
    }
}
