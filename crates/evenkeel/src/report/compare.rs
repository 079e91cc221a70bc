//! A page about several training runs side by side, from their logs alone: loss, and a figure for each metric of the
//! residual stream, one panel per run with shared axes.
//!
//! ```no_run
//! # use evenkeel::report::{compare::Comparison, run::read_run};
//! # fn main() -> Result<(), evenkeel::report::ReportError> {
//! let comparison = Comparison::new(vec![read_run("runs/a".as_ref())?, read_run("runs/b".as_ref())?]);
//! comparison.write("comparison".as_ref())?;
//! # Ok(())
//! # }
//! ```

use super::chart::{Draw, LineChart, Series};
use super::figures::{at_width, running_mean, sampled, site_name};
use super::html::{Block, Figure, NARROW, Page, Section};
use super::multiples::SmallMultiples;
use super::palette::Style;
use super::run::{Curve, RunCurves};
use super::run_page::{Moments, moments};
use super::scale::Scale;
use super::svg::Target;
use super::table::{Align, Table, cell};
use super::{ReportError, findings, write_file};
use serde::Serialize;
use std::path::Path;

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
    /// Last logged step.
    pub step: u64,
    /// Training loss, averaged over the last fortieth of the run.
    pub train_loss: Option<f64>,
    /// Last validation loss.
    pub val_loss: Option<f64>,
    /// Mean kurtosis of the residual stream at the last measured step.
    pub kurtosis_mean: Option<f64>,
    /// The largest of it at any measured step.
    pub kurtosis_mean_peak: Option<f64>,
}

/// How a metric is drawn: its axis, and what is subtracted so that its floor is 0.
struct Drawn {
    metric: &'static str,
    label: &'static str,
    scale: Scale,
    floor: f64,
}

const fn drawn(metric: &'static str, label: &'static str, scale: Scale, floor: f64) -> Drawn {
    Drawn { metric, label, scale, floor }
}

/// The metrics in the order of the page. A kurtosis is shown above its floor of 1, on a logarithmic axis.
const FIGURES: &[Drawn] = &[
    drawn("kurtosis", "kurtosis − 1", Scale::Log, 1.0),
    drawn("kurtosis_centred", "centred kurtosis − 1", Scale::Log, 1.0),
    drawn("kurtosis_mean_removed", "mean-removed kurtosis − 1", Scale::Log, 1.0),
    drawn("kurtosis_elementwise", "element-wise kurtosis", Scale::Linear, 0.0),
    drawn("kurtosis_excess_token", "excess kurtosis per token", Scale::Linear, 0.0),
    drawn("mmr", "max-median ratio", Scale::Log, 0.0),
    drawn("rms", "RMS", Scale::Log, 0.0),
    drawn("max_abs", "largest |x|", Scale::Log, 0.0),
    drawn("inf_norm", "largest |x| of a sequence, mean", Scale::Log, 0.0),
    drawn("input_corr_mean", "mean correlation of tokens", Scale::Linear, 0.0),
    drawn("input_cos_mean", "mean cosine of tokens", Scale::Linear, 0.0),
    drawn("input_corr_rms", "RMS correlation of tokens", Scale::Linear, 0.0),
    drawn("feature_corr_rms", "RMS correlation of channels", Scale::Linear, 0.0),
    drawn("effective_rank", "effective rank", Scale::Linear, 0.0),
];

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
        let end = |run: &RunCurves| {
            let kurtosis = run.mean_kurtosis();
            let peak = kurtosis.iter().map(|p| p.1).filter(|k| k.is_finite()).max_by(f64::total_cmp);
            RunSummary {
                name: run.name.clone(),
                step: run.metrics.last().map_or(0, |m| m.step),
                train_loss: findings::finite(end_of(&run.train_loss())),
                val_loss: findings::finite(run.val_loss().last().map(|p| p.1)),
                kurtosis_mean: findings::finite(kurtosis.last().map(|p| p.1)),
                kurtosis_mean_peak: peak,
            }
        };
        self.runs.iter().map(end).collect()
    }

    /// The summary as a table.
    pub fn table(&self) -> Table {
        let mut table = Table::new(&[
            ("run", Align::Left),
            ("step", Align::Right),
            ("training loss", Align::Right),
            ("val. loss", Align::Right),
            ("mean kurtosis", Align::Right),
            ("at its peak", Align::Right),
        ]);
        let loss = |v: f64| format!("{v:.3}");
        for run in self.summary() {
            table.push([
                run.name,
                findings::count(run.step),
                cell(run.train_loss, loss),
                cell(run.val_loss, loss),
                cell(run.kurtosis_mean, findings::kurtosis),
                cell(run.kurtosis_mean_peak, findings::kurtosis),
            ]);
        }
        table
    }

    /// The page.
    pub fn page(&self) -> String {
        let about =
            "Kurtosis is over the residual stream: `embed` and what leaves each block; 1 is its floor.";
        let mut sections = vec![
            Section {
                title: "How they ended".into(),
                blocks: vec![Block::Table(self.table(), about.into())],
            },
            Section { title: "Loss".into(), blocks: vec![self.loss()] },
        ];
        let figures: Vec<Block> = FIGURES.iter().filter_map(|d| self.block(d)).collect();
        sections.push(Section { title: "The residual stream".into(), blocks: figures });
        for run in &self.runs {
            if let Some(blocks) = moments(run) {
                sections.push(Section { title: format!("Moment control of {}", run.name), blocks });
            }
        }
        let title = match &self.runs[..] {
            [one] => format!("Run {}", one.name),
            several => format!("{} runs", several.len()),
        };
        Page { title, lead: Vec::new(), sections }.render()
    }

    /// Figures as SVG files: `loss.svg`, one named after each metric that was taken, and `moments-RUN.svg` of each run with
    /// moment control.
    pub fn figures(&self) -> Vec<(String, String)> {
        let loss = LineChart { width: 880.0, ..self.loss_chart() };
        let mut files = vec![("loss.svg".to_string(), loss.render(Target::File))];
        for figure in FIGURES {
            if let Some(chart) = self.multiples(figure) {
                files.push((format!("{}.svg", figure.metric), chart.render(Target::File)));
            }
        }
        for run in &self.runs {
            if let Some(moments) = Moments::of(run) {
                files.push((format!("moments-{}.svg", run.name), moments.chart().render(Target::File)));
            }
        }
        files
    }

    /// Writes `index.html`, `summary.json`, `summary.md` and the figures into a folder that exists.
    ///
    /// # Errors
    /// [`ReportError::Write`] if the folder is not there or cannot be written to.
    pub fn write(&self, folder: &Path) -> Result<(), ReportError> {
        for (name, figure) in self.figures() {
            write_file(&folder.join(name), &figure)?;
        }
        let json = serde_json::json!({"schema": 1, "runs": self.summary()});
        write_file(&folder.join("summary.json"), &format!("{json:#}\n"))?;
        write_file(&folder.join("summary.md"), &self.table().to_markdown())?;
        write_file(&folder.join("index.html"), &self.page())
    }

    fn loss_chart(&self) -> LineChart {
        let line = |(i, run): (usize, &RunCurves)| Series {
            name: run.name.clone(),
            points: smooth(&run.train_loss()),
            style: Style::nth(i),
            draw: Draw::Line,
        };
        LineChart {
            x_label: "training tokens".into(),
            x_reach: vec![0.0],
            y_label: "training loss, nats per token".into(),
            series: self.runs.iter().enumerate().map(line).collect(),
            plot_height: 300.0,
            ..LineChart::default()
        }
    }

    fn loss(&self) -> Block {
        let chart = self.loss_chart();
        let columns: Vec<Curve> =
            self.runs.iter().map(|run| (run.name.clone(), smooth(&run.train_loss()))).collect();
        let caption = "Training loss, averaged over a fortieth of the run around each step.";
        let figure = Figure::new(caption, |width| at_width(&chart, width));
        Block::Figure(figure.with_table(sampled("tokens", &columns, |v| format!("{v:.3}"))))
    }

    /// A panel per run, a line per site; `None` if no run has the metric.
    fn multiples(&self, figure: &Drawn) -> Option<SmallMultiples> {
        let curves: Vec<Vec<Curve>> =
            self.runs.iter().map(|run| run.residual(figure.metric, false)).collect();
        if curves.iter().flatten().all(|c| c.1.is_empty()) {
            return None;
        }
        let panel = |(run, sites): (&RunCurves, Vec<Curve>)| {
            let count = sites.len();
            let line = |(i, (site, points)): (usize, Curve)| Series {
                name: site_name(&site),
                points: points.into_iter().map(|p| (p.0, p.1 - figure.floor)).collect(),
                style: Style::ordered(i, count),
                draw: Draw::Line,
            };
            LineChart {
                title: run.name.clone(),
                x_label: "step".into(),
                x_reach: vec![0.0],
                y_label: figure.label.into(),
                y_scale: figure.scale,
                series: sites.into_iter().enumerate().map(line).collect(),
                plot_height: 130.0,
                ..LineChart::default()
            }
        };
        let panels: Vec<LineChart> = self.runs.iter().zip(curves).map(panel).collect();
        // As square a grid as four columns allow.
        let columns = (1..=4).find(|c| c * c >= panels.len()).unwrap_or(4);
        Some(SmallMultiples { panels, columns, width: 880.0 })
    }

    fn block(&self, figure: &Drawn) -> Option<Block> {
        let multiples = self.multiples(figure)?;
        let caption = format!(
            "`{}` at each site of the residual stream, a panel per run. Where it is undefined there is no point.",
            figure.metric
        );
        let draw = |width: f64| {
            let columns = if width <= NARROW { multiples.columns.min(2) } else { multiples.columns };
            SmallMultiples { width, columns, ..multiples.clone() }.render(Target::Page)
        };
        let means: Vec<Curve> = self
            .runs
            .iter()
            .map(|run| (run.name.clone(), over_sites(&run.residual(figure.metric, false))))
            .collect();
        let table = sampled("step", &means, findings::figure);
        Some(Block::Figure(Figure::new(caption, draw).with_table(table)))
    }
}

fn smooth(points: &[super::chart::Point]) -> Vec<super::chart::Point> {
    running_mean(points, points.len() / 40)
}

/// Mean of the last fortieth, and at least of the last point; NaN if one of these is.
fn end_of(points: &[super::chart::Point]) -> Option<f64> {
    let count = (points.len() / 40).max(1).min(points.len());
    let last = &points[points.len() - count..];
    (count > 0).then(|| last.iter().map(|p| p.1).sum::<f64>() / count as f64)
}

/// Mean over sites, at the steps that the first of them has.
fn over_sites(sites: &[Curve]) -> Vec<super::chart::Point> {
    let Some((_, first)) = sites.first() else { return Vec::new() };
    let mean = |&(step, _): &super::chart::Point| {
        let at = sites.iter().filter_map(|(_, points)| points.iter().find(|p| p.0 == step));
        let (sum, count) = at.fold((0.0, 0), |(sum, count), p| (sum + p.1, count + 1));
        (step, sum / count as f64)
    };
    first.iter().map(mean).collect()
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
        assert_eq!(names, ["loss.svg", "kurtosis.svg", "effective_rank.svg"]);
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
        // Taken at the second of two measured steps only: a point all the same.
        assert_eq!(over_sites(&both.runs[0].residual("effective_rank", false)), [(20.0, 4.0)]);
    }

    #[test]
    fn metrics_are_known_and_runs_may_be_empty() {
        assert!(FIGURES.iter().all(|f| Metrics::is_known(f.metric)));
        let left_out: Vec<_> =
            Metrics::NAMES.iter().filter(|n| FIGURES.iter().all(|f| f.metric != **n)).collect();
        assert_eq!(left_out, [&"mmr_skipped"]);
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
}
