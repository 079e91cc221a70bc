//! What steps did to each parameter, from `optim.jsonl`: how far it moved over its size, and how ill-conditioned its factors are.
//! A run or two have a panel for each kind of parameter (`blocks.*.attn.q.weight`) with a line per block; more runs a panel
//! each, with a line per kind, the mean over blocks.

use super::chart::{Draw, LineChart, Point, Series};
use super::findings;
use super::palette::Style;
use super::plate::{Item, Plate, file_part};
use super::run::{RunCurves, UpdateLine};
use super::scale::{Scale, scientific};
use super::table::{Align, Table, cell};
use std::collections::BTreeMap;

/// With more runs, a panel is a run and not a kind.
const BY_KIND: usize = 2;

/// A figure of a column of the log.
struct Column {
    file: &'static str,
    label: &'static str,
    what: &'static str,
    value: fn(&UpdateLine) -> Option<f64>,
}

const COLUMNS: [Column; 2] = [
    Column {
        file: "updates",
        label: "RMS of the update over RMS of the parameter",
        what: "How far a step moved each parameter, over its size",
        value: |line| line.update_ratio,
    },
    Column {
        file: "conditions",
        label: "condition number",
        what: "Condition number of each parameter's worse factor, as estimated at the last refresh",
        value: |line| line.condition,
    },
];

/// The figures and tables of all runs that followed their parameters.
pub(super) fn update_items(runs: &[RunCurves]) -> Vec<Item> {
    let known: Vec<&RunCurves> = runs.iter().filter(|run| !run.updates.is_empty()).collect();
    let mut items = Vec::new();
    if known.len() > BY_KIND {
        items.extend(COLUMNS.iter().filter_map(|column| column.by_run(&known)));
        return items;
    }
    for run in &known {
        items.extend(COLUMNS.iter().filter_map(|column| column.by_kind(run, runs.len() > 1)));
    }
    items
}

/// The kind of a parameter, and its block: `blocks.3.mlp.up.weight` is `blocks.*.mlp.up.weight` of block 3.
fn kind(parameter: &str) -> (String, Option<u64>) {
    let inner = parameter.strip_prefix("blocks.").and_then(|rest| rest.split_once('.'));
    match inner.and_then(|(block, rest)| Some((block.parse().ok()?, rest))) {
        Some((block, rest)) => (format!("blocks.*.{rest}"), Some(block)),
        None => (parameter.to_string(), None),
    }
}

/// A kind, its blocks, and their points.
type Kind = (String, BTreeMap<Option<u64>, Vec<Point>>);

impl Column {
    /// The kinds that have a value, in the order of the log.
    fn kinds(&self, run: &RunCurves) -> Vec<Kind> {
        let mut kinds: Vec<Kind> = Vec::new();
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        for line in &run.updates {
            let Some(value) = (self.value)(line) else { continue };
            let (name, block) = kind(&line.parameter);
            let place = *places.entry(name.clone()).or_insert_with(|| {
                kinds.push((name, BTreeMap::new()));
                kinds.len() - 1
            });
            kinds[place].1.entry(block).or_default().push((line.step as f64, value));
        }
        kinds
    }

    fn by_kind(&self, run: &RunCurves, named: bool) -> Option<Item> {
        let kinds = self.kinds(run);
        if kinds.is_empty() {
            return None;
        }
        let depth =
            kinds.iter().flat_map(|k| k.1.keys().flatten()).max().map_or(1, |last| *last as usize + 1);
        let line = |(block, points): (&Option<u64>, &Vec<Point>)| Series {
            name: block.map_or("no block".into(), |block| format!("block {block}")),
            points: points.clone(),
            style: block.map_or(Style::nth(5), |block| Style::ordered(block as usize, depth)),
            draw: Draw::MarkedLine,
        };
        let panels = kinds.iter().map(|(name, blocks)| LineChart {
            title: name.replace("blocks.*.", ""),
            series: blocks.iter().map(line).collect(),
            ..self.panel()
        });
        let of = if named { format!(" in {}", run.name) } else { String::new() };
        let (table, step) = last_updates(run);
        let caption = format!(
            "{}{of}: a panel per kind of parameter, a line per block, on a logarithmic axis. The table has every parameter at step {}.",
            self.what,
            findings::count(step)
        );
        let file = format!("{}-{}", self.file, file_part(&run.name));
        Some(Plate::multiples(&file, &caption, panels.collect(), table).into())
    }

    fn by_run(&self, runs: &[&RunCurves]) -> Option<Item> {
        let all = runs.iter().map(|run| (*run, self.kinds(run))).filter(|(_, kinds)| !kinds.is_empty());
        let (runs, mut all): (Vec<&RunCurves>, Vec<Vec<Kind>>) = all.unzip();
        let is_matrix = |kind: &Kind| kind.0.ends_with(".weight");
        // Gains and biases would bury the matrices.
        if all.iter().flatten().any(is_matrix) {
            all.iter_mut().for_each(|kinds| kinds.retain(is_matrix));
        }
        let mut names: Vec<&str> = Vec::new();
        for (name, _) in all.iter().flatten() {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        if names.is_empty() {
            return None;
        }
        let mean = |blocks: &BTreeMap<Option<u64>, Vec<Point>>| {
            let curves: Vec<_> = blocks.values().map(|points| (String::new(), points.clone())).collect();
            super::curve_figures::over_sites(&curves)
        };
        let mut header = vec![("kind of parameter", Align::Left)];
        header.extend(runs.iter().map(|run| (run.name.as_str(), Align::Right)));
        let mut table = Table::new(&header);
        for name in &names {
            let last = |kinds: &Vec<Kind>| {
                let (_, blocks) = kinds.iter().find(|k| k.0 == *name)?;
                mean(blocks).last().map(|p| p.1)
            };
            table.push(std::iter::once(name.to_string()).chain(all.iter().map(|k| cell(last(k), short))));
        }
        let panels = runs.iter().zip(&all).map(|(run, kinds)| LineChart {
            title: run.name.clone(),
            series: kinds
                .iter()
                .map(|(name, blocks)| Series {
                    name: name.clone(),
                    points: mean(blocks),
                    style: Style::nth(names.iter().position(|n| n == name).unwrap_or(0)),
                    draw: Draw::Line,
                })
                .collect(),
            ..self.panel()
        });
        let caption = format!(
            "{}: a panel per run, a line per kind of matrix, the mean over blocks, on a logarithmic axis. The table has the last step \
             that was logged.",
            self.what
        );
        Some(Plate::multiples(self.file, &caption, panels.collect(), table).into())
    }

    fn panel(&self) -> LineChart {
        LineChart {
            x_label: "step".into(),
            x_reach: vec![0.0],
            y_label: self.label.into(),
            y_scale: Scale::Log,
            plot_height: 110.0,
            ..LineChart::default()
        }
    }
}

/// Every parameter at the last step that was logged, and the step.
fn last_updates(run: &RunCurves) -> (Table, u64) {
    let last = run.updates.iter().map(|u| u.step).max().unwrap_or(0);
    let mut table = Table::new(&[
        ("parameter", Align::Left),
        ("optimiser", Align::Left),
        ("RMS", Align::Right),
        ("of its gradient", Align::Right),
        ("of the update", Align::Right),
        ("update over RMS", Align::Right),
        ("condition", Align::Right),
    ]);
    for line in run.updates.iter().filter(|u| u.step == last) {
        table.push([
            line.parameter.clone(),
            line.optimizer.clone(),
            cell(line.weight_rms, findings::figure),
            cell(line.gradient_rms, findings::figure),
            cell(line.update_rms, findings::figure),
            cell(line.update_ratio, findings::figure),
            cell(line.condition, short),
        ]);
    }
    (table, last)
}

fn short(value: f64) -> String {
    scientific(value, 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str) -> RunCurves {
        let line = |step, parameter: &str, ratio, condition| UpdateLine {
            step,
            parameter: parameter.into(),
            update_ratio: ratio,
            condition,
            ..UpdateLine::default()
        };
        RunCurves {
            name: name.into(),
            updates: vec![
                line(10, "embed.token.weight", Some(1e-3), None),
                line(10, "blocks.0.attn.q.weight", Some(1e-2), Some(10.0)),
                line(10, "blocks.1.attn.q.weight", Some(3e-2), Some(20.0)),
                line(20, "blocks.0.attn.q.weight", Some(2e-2), None),
                line(20, "blocks.1.attn.q.weight", Some(4e-2), None),
                line(20, "blocks.1.attn.gain", None, None),
            ],
            ..RunCurves::default()
        }
    }

    #[test]
    fn a_kind_gathers_the_blocks() {
        assert_eq!(kind("blocks.12.mlp.up.weight"), ("blocks.*.mlp.up.weight".into(), Some(12)));
        assert_eq!(kind("embed.token.weight"), ("embed.token.weight".into(), None));
        assert_eq!(kind("blocks.x.y").1, None);
        let kinds = COLUMNS[0].kinds(&run("a"));
        assert_eq!(kinds.len(), 2, "the gain has no ratio");
        assert_eq!(kinds[1].1[&Some(1)], [(10.0, 3e-2), (20.0, 4e-2)]);
    }

    #[test]
    fn few_runs_have_panels_by_kind_and_many_one_each() {
        let count = |runs: &[RunCurves]| update_items(runs).len();
        assert_eq!(count(&[RunCurves::default()]), 0);
        assert_eq!(count(&[run("a")]), 2, "updates and conditions");
        assert_eq!(count(&[run("a"), run("b"), run("c")]), 2);
    }
}
