//! How much each quantiser rounds away: the worst in a table, and maps of place against block.

use super::findings;
use super::heat::{Columns, HeatMap, HeatRow};
use super::html::{Block, Figure, Section};
use super::int8_section::percent;
use super::stream_section::scale_of;
use super::svg::Target;
use super::table::{Align, Table, cell};
use crate::quant::{QuantReport, QuantSite};
use crate::tap::Place;

/// Quantisers that the table lists.
const LISTED: usize = 30;

/// A map of relative errors, with what stands below it.
pub(super) struct ErrorMap {
    /// Name of its file.
    pub(super) file: &'static str,
    map: HeatMap,
    caption: &'static str,
    table: Table,
}

impl ErrorMap {
    /// The map by itself.
    pub(super) fn render(&self, width: f64, target: Target) -> String {
        HeatMap { width, ..self.map.clone() }.render(target)
    }
}

/// The section; `None` if there are no quantisers.
pub(super) fn error_section(report: &QuantReport) -> Option<Section> {
    if report.sites.is_empty() {
        return None;
    }
    let figure = |map: ErrorMap| {
        let draw = |width| map.render(width, Target::Page);
        Block::Figure(Figure::new(map.caption, draw).with_table(map.table.clone()))
    };
    let maps = error_maps(&report.sites).into_iter().map(figure);
    let blocks = maps.chain([worst(&report.sites)]).collect();
    Some(Section { title: "What rounding takes away".into(), blocks })
}

/// One map of the sites in blocks and one of the weights; of what there is none, no map.
pub(super) fn error_maps(sites: &[QuantSite]) -> Vec<ErrorMap> {
    let (activations, weights): (Vec<&QuantSite>, Vec<&QuantSite>) =
        sites.iter().partition(|site| position(kind(&site.site)).is_some());
    [
        (
            "activation_errors.svg",
            activations,
            "Relative error of the activation quantisers by place and block: RMS of what rounding changes over RMS of the \
             values, on the evaluation text. Places outside the blocks are in the table of quantisers only.",
        ),
        (
            "weight_errors.svg",
            weights,
            "The same for the weights: RMS of what rounding changes over RMS of the weight.",
        ),
    ]
    .into_iter()
    .filter_map(|(file, sites, caption)| {
        let rows = rows(&sites);
        let map = HeatMap {
            scale: scale_of(rows.iter().flat_map(|row| row.values.iter().flatten().copied())),
            columns: columns(&rows),
            rows,
            x_label: "block".into(),
            value_label: "relative error, %".into(),
            reach: Vec::new(),
            width: 880.0,
        };
        let table = by_row(&map.rows);
        (!map.rows.is_empty()).then_some(ErrorMap { file, map, caption, table })
    })
    .collect()
}

/// Block and the rest of a name inside a block.
fn inside(name: &str) -> Option<(usize, &str)> {
    let (block, rest) = name.strip_prefix("blocks.")?.split_once('.')?;
    Some((block.parse().ok()?, rest))
}

/// A name without its block.
fn kind(name: &str) -> &str {
    inside(name).map_or(name, |(_, kind)| kind)
}

/// Where a site stands in a forward pass; `None` if the name is a parameter's.
fn position(kind: &str) -> Option<usize> {
    let outside = [Place::Embed, Place::FinalNorm, Place::Logits];
    Place::IN_BLOCKS.iter().chain(&outside).position(|place| place.name() == kind)
}

/// A row for each kind of place in the blocks, of errors in per cent: sites in the order of a pass, weights as they come.
fn rows(sites: &[&QuantSite]) -> Vec<HeatRow> {
    let known = || sites.iter().filter_map(|site| Some((inside(&site.site)?, findings::finite(site.error))));
    let blocks = known().map(|((block, _), _)| block + 1).max().unwrap_or(0);
    let mut rows: Vec<HeatRow> = Vec::new();
    for ((block, kind), error) in known() {
        let error = error.map(|error| 100.0 * error);
        let row = match rows.iter().position(|row| row.label == kind) {
            Some(row) => row,
            None => {
                rows.push(HeatRow { label: kind.into(), number: None, values: vec![None; blocks] });
                rows.len() - 1
            }
        };
        if let Some(value) = rows.get_mut(row).and_then(|row| row.values.get_mut(block)) {
            *value = error;
        }
    }
    rows.sort_by_key(|row| position(&row.label));
    rows
}

/// The blocks by number, as many as the rows have.
fn columns(rows: &[HeatRow]) -> Columns {
    let blocks = rows.first().map_or(0, |row| row.values.len());
    Columns::Named((0..blocks).map(|block| block.to_string()).collect())
}

/// The numbers of a map: of each row the largest, its block, and the lower median.
fn by_row(rows: &[HeatRow]) -> Table {
    let mut table = Table::new(&[
        ("place", Align::Left),
        ("largest error", Align::Right),
        ("in block", Align::Right),
        ("median", Align::Right),
    ]);
    for row in rows {
        let known = row.values.iter().enumerate().filter_map(|(block, value)| Some(((*value)?, block)));
        let mut sizes: Vec<(f64, usize)> = known.collect();
        sizes.sort_by(|a, b| a.0.total_cmp(&b.0));
        let median = sizes.get(sizes.len().saturating_sub(1) / 2);
        let percent = |value: f64| percent(value / 100.0);
        table.push([
            row.label.clone(),
            cell(sizes.last().map(|s| s.0), percent),
            sizes.last().map_or("–".into(), |s| s.1.to_string()),
            cell(median.map(|s| s.0), percent),
        ]);
    }
    table
}

fn worst(sites: &[QuantSite]) -> Block {
    let mut order: Vec<&QuantSite> = sites.iter().collect();
    let size = |site: &QuantSite| findings::finite(site.error).unwrap_or(f64::NEG_INFINITY);
    order.sort_by(|a, b| size(b).total_cmp(&size(a)));
    let mut table = Table::new(&[
        ("quantiser", Align::Left),
        ("error", Align::Right),
        ("lowest", Align::Right),
        ("highest", Align::Right),
        ("format", Align::Left),
    ]);
    for site in order.into_iter().take(LISTED) {
        table.push([
            site.site.clone(),
            cell(site.error, percent),
            cell(site.lo, findings::figure),
            cell(site.hi, findings::figure),
            site.quantiser.clone(),
        ]);
    }
    let which = match sites.len() > LISTED {
        true => {
            format!("The {LISTED} of {} quantisers that round most away", findings::count(sites.len() as u64))
        }
        false => "All quantisers, by what they round away".to_string(),
    };
    let caption = format!(
        "{which}. Lowest and highest are the ends of the calibrated range, of a weight those of its grid; where each tensor \
         or token brings its own scale there are none. All of them are in `summary.json`."
    );
    Block::Table(table, caption)
}

#[cfg(test)]
mod tests {
    use super::super::quantize_page::tests::site;
    use super::*;

    #[test]
    fn sites_and_weights_have_a_map_each() {
        let sites = [
            site("embed", Some(0.5)),
            site("blocks.0.resid", Some(0.2)),
            site("blocks.0.attn.in", Some(0.1)),
            site("blocks.2.attn.in", Some(0.3)),
            site("blocks.1.attn.in", None),
            site("blocks.2.attn.q.weight", Some(0.01)),
            site("blocks.2.mlp.up.bias", Some(0.01)),
        ];
        let maps = error_maps(&sites);
        let labels = |map: &ErrorMap| map.map.rows.iter().map(|row| row.label.clone()).collect::<Vec<_>>();
        assert_eq!(
            maps.iter().map(labels).collect::<Vec<_>>(),
            [["attn.in", "resid"], ["attn.q.weight", "mlp.up.bias"]]
        );
        assert_eq!(maps[0].map.rows[0].values, [Some(10.0), None, Some(30.0)]);
        assert_eq!(maps[0].table.rows[0], ["attn.in", "30.0%", "2", "10.0%"]);
        assert!(error_maps(&sites[..1]).is_empty());
    }

    #[test]
    fn the_worst_come_first_and_what_has_no_error_last() {
        let sites = [site("a", Some(0.1)), site("b", None), site("c", Some(f64::NAN)), site("d", Some(0.2))];
        let Block::Table(table, caption) = worst(&sites) else { panic!("no table") };
        let order: String = table.rows.iter().map(|row| row[0].as_str()).collect();
        assert_eq!((order.as_str(), table.rows[2][1].as_str()), ("dabc", "–"));
        assert!(caption.starts_with("All quantisers"));
    }
}
