//! Where int8 breaks: the worst places in a table, and the signal that is left by block and kind of place.

use super::chart::{Draw, LineChart, Series};
use super::findings;
use super::html::{Block, Figure, NARROW, Section};
use super::multiples::SmallMultiples;
use super::palette::{Colour, Dash, Marker, Style};
use super::scale::Tick;
use super::svg::Target;
use super::table::{Align, Table, cell};
use crate::inspect::InspectReport;
use crate::metrics::int8::{TOLERABLE, TOLERABLE_MEDIAN};
use crate::metrics::{Culprit, Int8Verdict, Rounded};

/// Places that the table lists.
const LISTED: usize = 20;
/// Kinds of place that one panel shows; the worst ones, if there are more.
const KINDS: usize = 9;

/// The section; `None` if rounding was not measured.
pub(super) fn int8_section(report: &InspectReport) -> Option<Section> {
    if report.int8.is_empty() {
        return None;
    }
    let mut blocks = vec![Block::Text(format!(
        "Each place is rounded by itself to 8 bits, with one step for the whole tensor that its extremes set. The error \
         is relative: RMS of what rounding changes over RMS of the tensor; and, since an outlier that holds most of \
         the energy hides what it does to the rest, the same within each channel and within each token, of \
         which the larger median is given. Above \
         {} ({:.0} dB), or {:.0}% in the median, a place is said to suffer. The culprit is the entry of largest \
         magnitude, which sets the step for all others. Activations are those of {} tokens, the first batch; scores, \
         probabilities and norm gains are left out.",
        percent(TOLERABLE),
        decibels(TOLERABLE),
        100.0 * TOLERABLE_MEDIAN,
        findings::count(report.int8_tokens)
    ))];
    blocks.push(worst(&report.int8));
    blocks.extend(by_block(&report.int8));
    Some(Section { title: "Where int8 breaks".into(), blocks })
}

/// The error with one step for all, where it is defined.
fn error(verdict: &Int8Verdict) -> Option<f64> {
    findings::finite(verdict.int8_error)
}

/// Whether one step for all is too coarse; what is not finite is.
pub(super) fn suffers(verdict: &Int8Verdict) -> bool {
    severity(verdict) > 1.0
}

/// The place that suffers most.
pub(super) fn worst_place(int8: &[Int8Verdict]) -> Option<&Int8Verdict> {
    by_error(int8).into_iter().next()
}

/// By how much they suffer, what is not finite first, otherwise in the order given.
pub(super) fn by_error(int8: &[Int8Verdict]) -> Vec<&Int8Verdict> {
    let mut all: Vec<&Int8Verdict> = int8.iter().collect();
    all.sort_by(|a, b| severity(b).total_cmp(&severity(a)));
    all
}

fn severity(verdict: &Int8Verdict) -> f64 {
    if error(verdict).is_some() { verdict.severity() } else { f64::INFINITY }
}

/// A relative error: 0.0316 is `3.16%`.
pub(super) fn percent(share: f64) -> String {
    match share * 100.0 {
        value if value < 10.0 => format!("{value:.2}%"),
        value if value < 100.0 => format!("{value:.1}%"),
        value => format!("{value:.0}%"),
    }
}

fn decibels(error: f64) -> f64 {
    -20.0 * error.log10()
}

/// Text of a token between quotation marks, its line breaks and other controls made visible, cut where it is
/// long.
pub(super) fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(24).flat_map(char::escape_debug).collect();
    if text.chars().nth(24).is_some() {
        shown.push('…');
    }
    // A backtick would set what follows as code.
    format!("“{}”", shown.replace('`', "ˋ").replace("\\\"", "\"").replace("\\'", "'"))
}

/// Where in the tensor an entry is: a token of activations, an output channel of weights.
pub(super) fn culprit_place(culprit: &Culprit, kind: Rounded) -> String {
    if kind == Rounded::Weight {
        return format!("row {}", culprit.position);
    }
    let mut place = format!("token {}", culprit.position);
    if let Some(sequence) = culprit.sequence.filter(|&sequence| sequence > 0) {
        place.push_str(&format!(" of sequence {sequence}"));
    }
    match (&culprit.text, culprit.token) {
        (Some(text), _) => format!("{place}, {}", quoted(text)),
        (None, Some(id)) => format!("{place}, id {id}"),
        (None, None) => place,
    }
}

/// The same in few characters: sequence, position and text.
fn short_place(culprit: &Culprit, kind: Rounded) -> String {
    if kind == Rounded::Weight {
        return format!("row {}", culprit.position);
    }
    let text = culprit.text.as_ref().map_or(String::new(), |text| format!(" {}", quoted(text)));
    format!("{}:{}{text}", culprit.sequence.unwrap_or(0), culprit.position)
}

fn worst(int8: &[Int8Verdict]) -> Block {
    let mut table = Table::new(&[
        ("place", Align::Left),
        ("error", Align::Right),
        ("median", Align::Right),
        ("/token", Align::Right),
        ("/channel", Align::Right),
        ("remedy", Align::Left),
        ("channel", Align::Right),
        ("at", Align::Left),
    ]);
    for verdict in by_error(int8).into_iter().take(LISTED) {
        let culprit = verdict.culprit.as_ref();
        table.push([
            verdict.site.clone(),
            cell(verdict.int8_error, percent),
            cell(verdict.int8_error_median, percent),
            cell(verdict.int8_error_token, percent),
            cell(verdict.int8_error_channel, percent),
            verdict.remedy.label().into(),
            culprit.map_or("–".into(), |c| c.channel.to_string()),
            culprit.map_or("–".into(), |c| short_place(c, verdict.kind)),
        ]);
    }
    let all = findings::count(int8.len() as u64);
    let which = if int8.len() > LISTED {
        format!("The {LISTED} of {all} rounded places that lose most")
    } else {
        "All rounded places, by what they lose".to_string()
    };
    let caption = format!(
        "{which} with one step for the tensor, and what they lose with a step per token or per channel \
         instead; a place without figures is not finite. The entry that sets the step is given by its channel and its \
         token (sequence:position, text); of a weight by column and row: input and output channel of a matrix, channel \
         and token or position of a table of embeddings. \
         SmoothQuant is at best as good as a step per channel."
    );
    Block::Table(table, caption)
}

/// Kinds of place that share a panel.
struct Panel<'a> {
    title: &'static str,
    /// Name of each kind, and its places in the order of the blocks.
    kinds: Vec<(&'a str, Vec<&'a Int8Verdict>)>,
}

/// The name of a place without its block.
fn kind(verdict: &Int8Verdict) -> &str {
    let inner = verdict.site.strip_prefix("blocks.").and_then(|rest| rest.split_once('.'));
    inner.map_or(verdict.site.as_str(), |(_, kind)| kind)
}

fn panels(int8: &[Int8Verdict]) -> Vec<Panel<'_>> {
    let panel_of = |v: &Int8Verdict| match (v.kind, kind(v)) {
        (Rounded::Weight, _) => 3,
        (_, kind) if kind.starts_with("attn") => 1,
        (_, kind) if kind.starts_with("mlp") => 2,
        _ => 0,
    };
    let titles = ["residual stream", "attention", "MLP", "weights"];
    let mut panels: Vec<Panel> = titles.iter().map(|title| Panel { title, kinds: Vec::new() }).collect();
    // By error, so that the first kinds of a panel are the worst.
    for verdict in by_error(int8).into_iter().filter(|v| v.layer.is_some() && v.sqnr_db.is_some()) {
        let kinds = &mut panels[panel_of(verdict)].kinds;
        match kinds.iter_mut().find(|(name, _)| *name == kind(verdict)) {
            Some((_, places)) => places.push(verdict),
            None => kinds.push((kind(verdict), vec![verdict])),
        }
    }
    for (_, places) in panels.iter_mut().flat_map(|p| {
        p.kinds.truncate(KINDS);
        &mut p.kinds
    }) {
        places.sort_by_key(|v| v.layer);
    }
    panels.retain(|p| !p.kinds.is_empty());
    panels
}

/// The signal over the noise against blocks, a line per kind; `None` if nothing lies in a block.
fn by_block(int8: &[Int8Verdict]) -> Option<Block> {
    let panels = panels(int8);
    let last = panels.iter().flat_map(|p| &p.kinds).flat_map(|k| &k.1).filter_map(|v| v.layer).max()?;
    let bound = decibels(TOLERABLE);
    let mut number = 0;
    let mut chart = |panel: &Panel| {
        let line = Style { colour: Colour::Hue(5), dash: Dash::Dashed, marker: Marker::Circle };
        // A single block has its tick in the middle of an axis one block long.
        let (from, to) = if last == 0 { (-0.5, 0.5) } else { (0.0, last as f64) };
        let ends = vec![(from, bound), (to, bound)];
        let mut series = vec![Series {
            name: format!("tolerable, {bound:.0} dB"),
            points: ends,
            style: line,
            draw: Draw::Line,
        }];
        for (name, places) in &panel.kinds {
            let point = |v: &&Int8Verdict| Some((v.layer? as f64, v.sqnr_db?));
            let points = places.iter().filter_map(point).collect();
            series.push(Series { draw: Draw::MarkedLine, ..Series::new(*name, number, points) });
            number += 1;
        }
        LineChart {
            title: panel.title.into(),
            x_label: "block".into(),
            y_label: "signal over int8 noise, dB".into(),
            x_ticks: (0..=last).map(|i| Tick { value: i as f64, label: i.to_string() }).collect(),
            series,
            plot_height: 180.0,
            ..LineChart::default()
        }
    };
    let charts: Vec<LineChart> = panels.iter().map(&mut chart).collect();
    let draw = |width| {
        let columns = if width <= NARROW { 1 } else { 2 };
        SmallMultiples { panels: charts.clone(), columns, width }.render(Target::Page)
    };
    let caption = "What is left of the signal when a place is rounded to 8 bits with one step for the \
                   tensor, by block and kind of place. Higher is better: 6 dB are a bit. Gaussian entries \
                   lie near 38 dB, and places below the dashed line suffer; places above it may, by their median. Places outside the blocks are in \
                   the table above only.";
    Some(Block::Figure(Figure::new(caption, draw).with_table(by_kind(&panels))))
}

fn by_kind(panels: &[Panel]) -> Table {
    let mut table = Table::new(&[
        ("kind of place", Align::Left),
        ("worst, dB", Align::Right),
        ("in block", Align::Right),
        ("median, dB", Align::Right),
        ("suffer", Align::Right),
    ]);
    for (name, places) in panels.iter().flat_map(|p| &p.kinds) {
        let mut sizes: Vec<(f64, Option<usize>)> =
            places.iter().filter_map(|v| Some((findings::finite(v.sqnr_db)?, v.layer))).collect();
        sizes.sort_by(|a, b| a.0.total_cmp(&b.0));
        let suffer = places.iter().filter(|v| suffers(v)).count();
        let median = sizes.get(sizes.len().saturating_sub(1) / 2).map(|s| s.0);
        let lowest = sizes.first();
        table.push([
            name.to_string(),
            cell(lowest.map(|s| s.0), |v| format!("{v:.1}")),
            lowest.and_then(|s| s.1).map_or("–".into(), |layer| layer.to_string()),
            cell(median, |v| format!("{v:.1}")),
            format!("{suffer} of {}", places.len()),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Remedy;

    fn verdict(site: &str, layer: Option<usize>, error: Option<f64>) -> Int8Verdict {
        Int8Verdict {
            site: site.into(),
            layer,
            kind: if site.ends_with("weight") { Rounded::Weight } else { Rounded::Activation },
            int8_error: error,
            int8_error_median: None,
            sqnr_db: error.map(decibels),
            int8_error_token: None,
            int8_error_channel: None,
            culprit: None,
            remedy: Remedy::None,
        }
    }

    #[test]
    fn what_is_not_finite_comes_first_and_suffers() {
        let int8 = [
            verdict("a", None, None),
            verdict("b", None, Some(0.01)),
            verdict("c", None, Some(f64::NAN)),
            verdict("d", None, Some(0.5)),
        ];
        let order: String = by_error(&int8).iter().map(|v| v.site.as_str()).collect();
        assert_eq!(order, "acdb");
        assert_eq!(worst_place(&int8).map(|v| v.site.as_str()), Some("a"));
        assert_eq!(int8.iter().filter(|v| suffers(v)).count(), 3);
        assert!(worst_place(&[]).is_none());
    }

    #[test]
    fn places_share_a_panel_by_what_they_are() {
        let int8 = [
            verdict("embed", None, Some(0.9)),
            verdict("blocks.10.resid", Some(10), Some(0.1)),
            verdict("blocks.2.resid", Some(2), Some(0.2)),
            verdict("blocks.2.attn.in", Some(2), Some(0.01)),
            verdict("blocks.2.attn.q.weight", Some(2), Some(0.01)),
            verdict("strange", Some(3), Some(0.01)),
        ];
        let found = panels(&int8);
        let kinds: Vec<Vec<&str>> = found.iter().map(|p| p.kinds.iter().map(|k| k.0).collect()).collect();
        assert_eq!(kinds, [vec!["resid", "strange"], vec!["attn.in"], vec!["attn.q.weight"]]);
        let table = by_kind(&found);
        assert_eq!(table.rows[0], ["resid", "14.0", "2", "14.0", "2 of 2"]);
        assert!(by_block(&int8[..1]).is_none());
    }

    #[test]
    fn tokens_are_shown_in_one_line_and_cannot_set_code() {
        assert_eq!(quoted("a\n`b\""), "“a\\nˋb\"”");
        assert_eq!(quoted(&"x".repeat(30)).chars().count(), 27);
        assert_eq!([percent(0.0316), percent(0.5), percent(2.0)], ["3.16%", "50.0%", "200%"]);
    }
}
