//! A page about one or several training runs, from their logs alone: how they ended and what differs between them, loss, the
//! residual stream (outliers, a heat map, signal propagation), what the optimiser did, moment control, alarms, and what
//! quantisation cost.
//!
//! ```no_run
//! # use evenkeel::report::{compare::Comparison, run::read_run};
//! # fn main() -> Result<(), evenkeel::report::ReportError> {
//! let comparison = Comparison::new(vec![read_run("runs/a".as_ref())?, read_run("runs/b".as_ref())?]);
//! comparison.write("comparison".as_ref())?;
//! # Ok(())
//! # }
//! ```

use super::curve_figures::Overlay;
use super::html::{Block, Page, Section};
use super::moment_figures::moment_parts;
use super::plate::{Item, Part};
use super::quantised::quantised_table;
use super::run::RunCurves;
use super::run_page::{alarms, last_stats, lead};
use super::settings::{differences, settings};
use super::site_figures::{self, OUTLIERS, SIGNAL};
use super::table::{Align, Table, cell};
use super::update_figures::update_items;
use super::{ReportError, findings, write_file};
use serde::Serialize;
use std::path::Path;

/// Keys of the configuration that the table of differences has room for.
const KEYS: usize = 8;

/// Those of them that come first.
const FIRST: [&str; 8] = [
    "optim.name",
    "optim.lr_peak",
    "optim.weight_decay",
    "train.seed",
    "train.steps",
    "model.depth",
    "model.width",
    "data.path",
];

/// Runs to be compared.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Their logs, in the order of the page.
    pub runs: Vec<RunCurves>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunSummary {
    /// Name of the run directory.
    pub name: String,
    /// What run.json says: "finished", "running", "interrupted", "diverged", "alarmed" or "failed".
    pub status: Option<String>,
    /// Last logged step.
    pub step: u64,
    /// Training loss, averaged over the last fortieth of the run.
    pub train_loss: Option<f64>,
    /// Last validation loss.
    pub val_loss: Option<f64>,
    /// The lowest validation loss.
    pub val_loss_best: Option<f64>,
    /// Last validation accuracy.
    pub val_accuracy: Option<f64>,
    /// Mean kurtosis of the residual stream at the last measured step.
    pub kurtosis_mean: Option<f64>,
    /// The largest of it at any measured step.
    pub kurtosis_mean_peak: Option<f64>,
}

impl RunSummary {
    /// Of one run.
    pub fn of(run: &RunCurves) -> Self {
        let kurtosis = run.mean_kurtosis();
        let values = || run.val_loss().into_iter().map(|p| p.1).filter(|loss| loss.is_finite());
        Self {
            name: run.name.clone(),
            status: run.info.as_ref().map(|info| info.status.clone()),
            step: run.metrics.last().map_or(0, |m| m.step),
            train_loss: findings::finite(end_of(&run.train_loss())),
            val_loss: findings::finite(run.val_loss().last().map(|p| p.1)),
            val_loss_best: values().min_by(f64::total_cmp),
            val_accuracy: findings::finite(run.val_accuracy().last().map(|p| p.1)),
            kurtosis_mean: findings::finite(kurtosis.last().map(|p| p.1)),
            kurtosis_mean_peak: kurtosis.iter().map(|p| p.1).filter(|k| k.is_finite()).max_by(f64::total_cmp),
        }
    }
}

impl Comparison {
    /// These runs; where several have one name, each is called by its folder and the one above it, or else numbered.
    pub fn new(mut runs: Vec<RunCurves>) -> Self {
        let repeated = |runs: &[RunCurves]| -> Vec<usize> {
            let same = |run: &RunCurves| runs.iter().filter(|r| r.name == run.name).count() > 1;
            (0..runs.len()).filter(|&i| same(&runs[i])).collect()
        };
        for i in repeated(&runs) {
            if let Some(above) = runs[i].dir.parent().and_then(|p| p.file_name()) {
                runs[i].name = format!("{}-{}", above.to_string_lossy(), runs[i].name);
            }
        }
        for (number, i) in repeated(&runs).into_iter().enumerate() {
            runs[i].name = format!("{}-{}", runs[i].name, number + 1);
        }
        Self { runs }
    }

    /// How each run ended.
    pub fn summary(&self) -> Vec<RunSummary> {
        self.runs.iter().map(RunSummary::of).collect()
    }

    /// The summary as a table.
    pub fn table(&self) -> Table {
        let ends = self.summary();
        let classes = ends.iter().any(|end| end.val_accuracy.is_some());
        let mut header = vec![
            ("run", Align::Left),
            ("step", Align::Right),
            ("training loss", Align::Right),
            ("val. loss", Align::Right),
            ("mean kurtosis", Align::Right),
            ("at its peak", Align::Right),
            ("status", Align::Left),
        ];
        if classes {
            header.insert(4, ("val. accuracy", Align::Right));
        }
        let mut table = Table::new(&header);
        let loss = |v: f64| format!("{v:.3}");
        for run in ends {
            let mut row = vec![
                run.name,
                findings::count(run.step),
                cell(run.train_loss, loss),
                cell(run.val_loss, loss),
                cell(run.kurtosis_mean, findings::kurtosis),
                cell(run.kurtosis_mean_peak, findings::kurtosis),
                run.status.unwrap_or_else(|| "–".into()),
            ];
            if classes {
                row.insert(4, cell(run.val_accuracy, |v| format!("{v:.4}")));
            }
            table.push(row);
        }
        table
    }

    /// The page.
    pub fn page(&self) -> String {
        self.render(self.parts())
    }

    /// Figures as SVG files: `loss.svg`, one named after each metric that was taken, `moments-RUN.svg` of each run with
    /// moment control, and what else the page has.
    pub fn figures(&self) -> Vec<(String, String)> {
        self.parts().iter_mut().flat_map(|part| part.take_files().collect::<Vec<_>>()).collect()
    }

    /// Writes `index.html`, `summary.json`, `summary.md` and the figures into a folder that exists.
    ///
    /// # Errors
    /// [`ReportError::Write`] if the folder is not there or cannot be written to.
    pub fn write(&self, folder: &Path) -> Result<(), ReportError> {
        let mut parts = self.parts();
        for (name, figure) in parts.iter_mut().flat_map(Part::take_files) {
            write_file(&folder.join(name), &figure)?;
        }
        let json = serde_json::json!({"schema": 1, "runs": self.summary()});
        write_file(&folder.join("summary.json"), &format!("{json:#}\n"))?;
        write_file(&folder.join("summary.md"), &self.table().to_markdown())?;
        write_file(&folder.join("index.html"), &self.render(parts))
    }

    fn render(&self, parts: Vec<Part>) -> String {
        let (title, lead) = match &self.runs[..] {
            [one] => (format!("Run {}", one.name), vec![lead(one)]),
            several => (format!("{} runs", several.len()), Vec::new()),
        };
        let sections: Vec<Section> = parts.into_iter().map(Part::into_section).collect();
        Page { title, lead, sections }.render()
    }

    /// The page with its files; a part of nothing is left out.
    fn parts(&self) -> Vec<Part> {
        let runs = &self.runs[..];
        let settings = settings(runs);
        let overlay = Overlay { runs, settings: &settings };
        let about =
            "Kurtosis is over the residual stream: `embed` and what leaves each block; 1 is its floor.";
        let mut ends = vec![Item::from(Block::Table(self.table(), about.into()))];
        ends.extend(differing(runs).map(Item::from));
        let mut training = vec![overlay.loss()];
        training.extend(overlay.accuracy());
        training.extend(overlay.pace());
        let kurtosis = OUTLIERS.iter().take(1).filter_map(|figure| site_figures::by_step(&overlay, figure));
        let mut outliers: Vec<Item> = kurtosis.collect();
        outliers.extend(site_figures::heat(runs));
        outliers.extend(overlay.outliers());
        outliers.extend(OUTLIERS.iter().skip(1).filter_map(|figure| site_figures::by_step(&overlay, figure)));
        if let [one] = runs
            && !one.stats.is_empty()
        {
            outliers.push(last_stats(one).into());
        }
        let signal = SIGNAL.iter().flat_map(|figure| {
            [site_figures::by_layer(runs, &settings, figure), site_figures::by_step(&overlay, figure)]
        });
        let mut optimiser: Vec<Item> = overlay.steps().collect();
        optimiser.extend(update_items(runs));
        let part = |title: &str, items| Part { title: title.into(), items };
        let mut parts = vec![
            part(if runs.len() > 1 { "How they ended" } else { "How it ended" }, ends),
            part("Training", training),
            part("Outlier features", outliers),
            part("Signal propagation", signal.flatten().collect()),
            part("Optimiser", optimiser),
        ];
        parts.extend(moment_parts(runs));
        parts.push(part("Quantisation", quantised_table(runs).into_iter().map(Item::from).collect()));
        for run in runs.iter().filter(|run| !run.alarms.is_empty()) {
            let title = if runs.len() > 1 { format!("Alarms of {}", run.name) } else { "Alarms".into() };
            parts.push(Part { title, items: vec![alarms(run).into()] });
        }
        parts.retain(|part| !part.items.is_empty());
        parts
    }
}

/// The keys of the configuration in which runs differ, a row per run; `None` if there is none.
fn differing(runs: &[RunCurves]) -> Option<Block> {
    let configs: Vec<_> = runs.iter().map(|run| run.config.as_ref()).collect();
    let mut keys = differences(&configs);
    // What is most often varied first, the many keys of another preset last.
    let rank = |key: &str| FIRST.iter().position(|first| *first == key).unwrap_or(FIRST.len());
    keys.sort_by_key(|(key, _)| (rank(key), key.starts_with("model.")));
    if keys.is_empty() {
        return None;
    }
    let mut header = vec![("run", Align::Left)];
    header.extend(keys.iter().take(KEYS).map(|(key, _)| (key.as_str(), Align::Left)));
    let mut table = Table::new(&header);
    for (i, run) in runs.iter().enumerate() {
        let values = keys.iter().take(KEYS).map(|(_, values)| match &values[i] {
            Some(value) => super::svg::ellipsize(value.trim_matches('"'), 12.0, 240.0),
            None => "–".into(),
        });
        table.push(std::iter::once(run.name.clone()).chain(values));
    }
    let more = keys.len().saturating_sub(KEYS);
    let more = if more > 0 {
        format!(" {more} more differ: `evenkeel compare` lists them for two runs.")
    } else {
        String::new()
    };
    Some(Block::Table(table, format!("What differs between their configurations.{more}")))
}

/// Mean of the last fortieth, and at least of the last point; NaN if one of these is.
fn end_of(points: &[super::chart::Point]) -> Option<f64> {
    let count = (points.len() / 40).max(1).min(points.len());
    let last = &points[points.len() - count..];
    (count > 0).then(|| last.iter().map(|p| p.1).sum::<f64>() / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::report::run::{MetricLine, StatLine};

    fn run(name: &str, kurtosis: f64) -> RunCurves {
        let stat = |step, site: &str, layer, gram| StatLine {
            step,
            site: site.into(),
            layer,
            metrics: Metrics { kurtosis: Some(kurtosis), effective_rank: gram, ..Default::default() },
        };
        RunCurves {
            name: name.into(),
            metrics: vec![MetricLine {
                step: 20,
                tokens: Some(100),
                train_loss: Some(2.0),
                val_loss: Some(2.5),
                ..MetricLine::default()
            }],
            stats: vec![
                stat(10, "embed", None, None),
                stat(10, "blocks.0.resid", Some(0), None),
                stat(20, "embed", None, Some(3.0)),
                stat(20, "blocks.0.resid", Some(0), Some(5.0)),
            ],
            ..RunCurves::default()
        }
    }

    #[test]
    fn every_metric_that_was_taken_has_a_figure_and_no_other() {
        let both = Comparison { runs: vec![run("a<b", 4.0), run("c", 1.5)] };
        let names: Vec<String> = both.figures().into_iter().map(|f| f.0).collect();
        assert_eq!(
            names,
            [
                "loss.svg",
                "kurtosis.svg",
                "kurtosis_heat.svg",
                "kurtosis_mean.svg",
                "effective_rank_by_block.svg",
                "effective_rank.svg"
            ]
        );
        let page = both.page();
        assert!(
            page.contains("2 runs")
                && page.contains("a&lt;b")
                && !page.contains("a<b")
                && !page.contains("NaN")
        );
        let ends = both.summary();
        assert_eq!((ends[0].kurtosis_mean, ends[1].kurtosis_mean), (Some(4.0), Some(1.5)));
        let falling: Vec<_> = (0..120).map(|i| (f64::from(i), f64::from(120 - i))).collect();
        assert_eq!(end_of(&falling), Some(2.0), "the mean of 3, 2 and 1");
        assert_eq!((end_of(&falling[..1]), end_of(&[])), (Some(120.0), None));
        assert_eq!((ends[0].train_loss, ends[0].val_loss, ends[0].step), (Some(2.0), Some(2.5), 20));
    }

    #[test]
    fn runs_may_be_empty() {
        let empty = Comparison { runs: vec![RunCurves::default()] };
        assert!(empty.page().contains("Run") && empty.summary()[0].val_loss.is_none());
    }

    #[test]
    fn runs_of_one_name_are_told_apart() {
        let at = |dir: &str| RunCurves { dir: dir.into(), ..run("s0", 2.0) };
        let names = |dirs: &[&str]| -> Vec<String> {
            Comparison::new(dirs.iter().map(|d| at(d)).collect()).runs.into_iter().map(|r| r.name).collect()
        };
        assert_eq!(names(&["a/s0"]), ["s0"]);
        assert_eq!(names(&["a/s0", "b/s0"]), ["a-s0", "b-s0"]);
        assert_eq!(names(&["a/s0", "a/s0"]), ["a-s0-1", "a-s0-2"]);
    }

    #[test]
    fn a_folder_holds_everything() {
        let folder = tempfile::tempdir().unwrap();
        Comparison { runs: vec![run("a", 2.0)] }.write(folder.path()).unwrap();
        for name in ["index.html", "summary.json", "summary.md", "loss.svg", "kurtosis.svg"] {
            assert!(folder.path().join(name).is_file(), "{name}");
        }
    }

    #[test]
    fn every_figure_has_its_numbers_and_seeds_share_a_colour() {
        let of = |name: &str, seed: u32| RunCurves {
            config: Some(format!("[optim]\nlr_peak = 1\n[train]\nseed = {seed}\n").parse().unwrap()),
            updates: vec![super::super::run::UpdateLine {
                step: 20,
                parameter: "blocks.0.attn.q.weight".into(),
                update_ratio: Some(0.1),
                ..Default::default()
            }],
            moments: vec![super::super::run::MomentLine {
                step: 20,
                site: "embed".into(),
                cum_u41: Some(1.0),
                ..Default::default()
            }],
            ..run(name, 2.0)
        };
        let page = Comparison { runs: vec![of("a-s0", 0), of("a-s1", 1), of("b", 1)] }.page();
        assert!(page.contains("train.seed") && page.contains("a, mean of 2 seeds"));
        for figure in page.split("<figure>").skip(1) {
            let figure = figure.split("</figure>").next().unwrap();
            assert!(figure.contains("<table>"), "{figure}");
        }
        assert!(page.matches("<figure>").count() >= 8);
    }

    #[test]
    fn many_runs_make_a_page_of_bearable_size() {
        let stats = |k: f64| {
            let line = |step: u64, layer: u64| StatLine {
                step,
                site: format!("blocks.{layer}.resid"),
                layer: Some(layer),
                metrics: Metrics {
                    kurtosis: Some(1.0 + k * (step % 7 + layer + 1) as f64),
                    rms: Some(1.0),
                    input_corr_mean: Some(0.5),
                    ..Default::default()
                },
            };
            (1..=200)
                .flat_map(|i| (0..12).map(move |layer| (i * 5, layer)))
                .map(|(s, l)| line(s, l))
                .collect()
        };
        let of = |i: u64| RunCurves { stats: stats(i as f64), ..run(&format!("run-{i}"), 2.0) };
        let comparison = Comparison { runs: (1..=20).map(of).collect() };
        let page = comparison.page();
        assert!(page.len() < 6_000_000, "{} bytes", page.len());
        assert!((1..=20).all(|i| page.contains(&format!(">run-{i}</text>"))));
    }
}
