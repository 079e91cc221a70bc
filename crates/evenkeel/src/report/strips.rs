//! The figure of the channels of the residual stream: which stick out, and in which blocks.

use super::figures::site_name;
use super::findings;
use super::heat::{Columns, HeatMap, HeatRow, pooled};
use super::html::{Block, Figure, WIDE};
use super::scale::Scale;
use super::svg::Target;
use super::table::{Align, Table, cell};
use crate::metrics::ChannelStrip;

/// What is below this share of the median is drawn as this much: silent channels are not what is looked for,
/// and would take the colours from those that are.
const FLOOR: f64 = 0.1;
/// Colours reach at least this many times the median, so that a stream without outliers looks even.
const REACH: f64 = 10.0;
/// Channels listed for each site.
const LISTED: usize = 5;

/// The size of each channel over the median channel of its site, at every site. The median and not the RMS
/// over all channels, which a single large channel raises: ordinary channels then have the same colour at
/// every site. `None` without strips.
pub(super) fn strip_figure(strips: &[ChannelStrip]) -> Option<Block> {
    let channels = strips.iter().map(|s| s.rms.len()).max().filter(|&channels| channels > 0)?;
    let ratios: Vec<(Option<f64>, Vec<Option<f64>>)> = strips.iter().map(ratios).collect();
    let map = HeatMap {
        rows: strips
            .iter()
            .zip(&ratios)
            .map(|(strip, (_, ratios))| HeatRow {
                label: site_name(&strip.site),
                number: strip.layer,
                values: ratios.iter().map(|r| r.map(|r| r.max(FLOOR))).collect(),
            })
            .collect(),
        columns: Columns::Numbered,
        x_label: "channel".into(),
        value_label: "RMS of the channel over the median channel's, at the same site".into(),
        scale: Scale::Log,
        reach: vec![FLOOR, REACH],
        width: WIDE,
    };
    let mut caption = String::from(
        "Size of every channel at every site of the residual stream: its RMS over all tokens, divided by the \
         median of its site over channels that are not 0, on a logarithmic scale; below a tenth it is drawn \
         as a tenth. A streak down the figure is an outlier channel that lives on through the blocks.",
    );
    let group = pooled(channels, strips.len(), WIDE);
    if group > 1 {
        caption.push_str(&format!(
            " Each column stands for {group} neighbouring channels, on narrow screens for more, and shows the \
             largest of them."
        ));
    }
    let mut table = Table::new(&[
        ("site", Align::Left),
        ("median RMS", Align::Right),
        ("largest channels, and how many times the median", Align::Left),
    ]);
    for (strip, (median, ratios)) in strips.iter().zip(&ratios) {
        table.push([strip.site.clone(), cell(*median, findings::figure), largest(ratios)]);
    }
    let draw = |width| HeatMap { width, ..map.clone() }.render(Target::Page);
    Some(Block::Figure(Figure::new(caption, draw).with_table(table)))
}

/// The lower median over channels that are not 0, and every channel over it. What is not finite is undefined.
fn ratios(strip: &ChannelStrip) -> (Option<f64>, Vec<Option<f64>>) {
    let mut known: Vec<f64> = strip.rms.iter().copied().filter(|r| r.is_finite() && *r > 0.0).collect();
    known.sort_by(f64::total_cmp);
    let median = known.get(known.len().saturating_sub(1) / 2).copied();
    let over = |rms: &f64| median.map(|median| rms / median).filter(|ratio| ratio.is_finite());
    (median, strip.rms.iter().map(over).collect())
}

fn largest(ratios: &[Option<f64>]) -> String {
    let mut known: Vec<(usize, f64)> =
        ratios.iter().enumerate().filter_map(|(i, r)| Some((i, (*r)?))).collect();
    known.sort_by(|a, b| b.1.total_cmp(&a.1));
    let listed =
        known.iter().take(LISTED).map(|(i, ratio)| format!("{i} (×{})", findings::perplexity(*ratio)));
    match listed.collect::<Vec<_>>() {
        none if none.is_empty() => "–".into(),
        listed => listed.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_told_by_the_median_of_those_that_live() {
        let strip = |rms: Vec<f64>| ChannelStrip { site: "embed".into(), layer: None, rms };
        let (median, over) = ratios(&strip(vec![0.0, 0.0, 0.0, 2.0, 4.0, 100.0, f64::NAN]));
        assert_eq!(median, Some(4.0));
        assert_eq!(over, [Some(0.0), Some(0.0), Some(0.0), Some(0.5), Some(1.0), Some(25.0), None]);
        assert_eq!(largest(&over[4..]), "1 (×25.00), 0 (×1.00)");
        assert_eq!(ratios(&strip(vec![0.0, f64::NAN])), (None, vec![None, None]));
        assert_eq!(largest(&[None]), "–");
        assert!(strip_figure(&[]).is_none() && strip_figure(&[strip(vec![])]).is_none());
    }

    #[test]
    fn the_caption_says_what_is_pooled() {
        let strip = |width| ChannelStrip { site: "embed".into(), layer: None, rms: vec![1.0; width] };
        let caption = |width| match strip_figure(&[strip(width)]) {
            Some(Block::Figure(figure)) => figure.caption,
            _ => panic!("no figure"),
        };
        assert!(!caption(512).contains("neighbouring"));
        assert!(caption(768).contains("stands for 2 neighbouring channels"));
    }
}
