//! Figures of whole runs laid over one another: loss, accuracy, rate, gradient, mean kurtosis, and what the optimiser did.
//! A colour, a dash and a marker stand for a setting ([`super::settings`]).

use super::chart::{Draw, LEGEND_LINE, LineChart, Point, Series};
use super::figures::{running_mean, sampled};
use super::findings;
use super::plate::{Item, Plate};
use super::run::{Curve, RunCurves};
use super::scale::{Scale, scientific};
use super::settings::{Setting, overlay};

/// Runs and their settings.
pub(super) struct Overlay<'a> {
    pub(super) runs: &'a [RunCurves],
    pub(super) settings: &'a [Setting],
}

/// A quantity against steps.
struct Quantity {
    file: &'static str,
    label: &'static str,
    scale: Scale,
    height: f64,
    caption: &'static str,
    curve: fn(&RunCurves) -> Vec<Point>,
    write: fn(f64) -> String,
}

const PACE: [Quantity; 2] = [
    Quantity {
        file: "lr",
        label: "learning rate",
        scale: Scale::Linear,
        height: 150.0,
        caption: "Learning rate.",
        curve: |run| run.by_step(|m| m.lr),
        write: |v| scientific(v, 3),
    },
    Quantity {
        file: "grad_norm",
        label: "gradient norm",
        scale: Scale::Log,
        height: 150.0,
        caption: "Norm of the whole gradient before clipping.",
        curve: |run| run.by_step(|m| m.grad_norm),
        write: |v| scientific(v, 3),
    },
];

const OUTLIERS: Quantity = Quantity {
    file: "kurtosis_mean",
    label: "mean kurtosis of the residual stream",
    scale: Scale::Log,
    height: 260.0,
    caption: "Kurtosis averaged over the sites of the residual stream. 1 is the floor.",
    curve: RunCurves::mean_kurtosis,
    write: findings::kurtosis,
};

const STEPS: [Quantity; 2] = [
    Quantity {
        file: "update_ratio",
        label: "update over weight",
        scale: Scale::Log,
        height: 200.0,
        caption: "How far a step moved all parameters together, over their norm.",
        curve: |run| run.by_step(|m| m.update_ratio),
        write: |v| scientific(v, 3),
    },
    Quantity {
        file: "condition",
        label: "condition number of the worst factor",
        scale: Scale::Log,
        height: 200.0,
        caption: "Largest over smallest eigenvalue of the worst of all factors of the optimiser, as estimated at the last \
                  refresh. Optimisers without factors have no line.",
        curve: |run| run.by_step(|m| m.condition),
        write: |v| scientific(v, 3),
    },
];

impl Overlay<'_> {
    /// Loss against tokens.
    pub(super) fn loss(&self) -> Item {
        let train = |run: &RunCurves| {
            let points = run.train_loss();
            running_mean(&points, points.len() / 40)
        };
        let mut series = overlay(self.settings, self.runs, Draw::Line, train);
        let validation = overlay(self.settings, self.runs, Draw::Markers, RunCurves::val_loss);
        if let ([line], [one]) = (&mut series[..], &validation[..]) {
            line.name = "training".into();
            let one = Series { name: "validation".into(), draw: Draw::MarkedLine, ..one.clone() };
            series.push(Series { style: super::palette::Style::nth(1), ..one });
        } else {
            // The line has the entry in the legend; of several seeds the mean is marked.
            let own = validation.into_iter().filter(|s| s.draw == Draw::Markers);
            series.extend(own.map(|s| Series { name: String::new(), ..s }));
        }
        let mut columns = Vec::new();
        for run in self.runs {
            columns.push((self.column(run, "training loss"), train(run)));
            columns.push((self.column(run, "validation"), run.val_loss()));
        }
        let chart = LineChart {
            x_label: "training tokens".into(),
            x_reach: vec![0.0],
            y_label: "loss, nats per token".into(),
            series,
            plot_height: self.height(300.0),
            ..LineChart::default()
        };
        let caption = format!(
            "Loss against training tokens. Lines: training loss, averaged over a fortieth of the run around each step. Markers: \
             validation loss.{}",
            self.seeds()
        );
        Plate::lines("loss", &caption, &chart, sampled("tokens", &columns, |v| format!("{v:.3}"))).into()
    }

    /// Validation accuracy; `None` if no run has any.
    pub(super) fn accuracy(&self) -> Option<Item> {
        let columns = self.columns(RunCurves::val_accuracy)?;
        let chart = LineChart {
            x_label: "training examples".into(),
            x_reach: vec![0.0],
            y_label: "validation accuracy".into(),
            series: overlay(self.settings, self.runs, Draw::MarkedLine, RunCurves::val_accuracy),
            plot_height: self.height(260.0),
            ..LineChart::default()
        };
        let caption = format!("Share of validation examples whose class is found.{}", self.seeds());
        let table = sampled("examples", &columns, |v| format!("{v:.4}"));
        Some(Plate::lines("accuracy", &caption, &chart, table).into())
    }

    /// Learning rate and gradient norm.
    pub(super) fn pace(&self) -> impl Iterator<Item = Item> + '_ {
        PACE.iter().filter_map(|quantity| self.quantity(quantity))
    }

    /// Mean kurtosis.
    pub(super) fn outliers(&self) -> Option<Item> {
        self.quantity(&OUTLIERS)
    }

    /// Update ratio and condition number.
    pub(super) fn steps(&self) -> impl Iterator<Item = Item> + '_ {
        STEPS.iter().filter_map(|quantity| self.quantity(quantity))
    }

    /// The mean over sites of a metric of the residual stream, for runs so many that each can have no panel.
    pub(super) fn site_mean(&self, metric: &str, label: &str, scale: Scale, floor: f64) -> Option<Item> {
        let mean = |run: &RunCurves| over_sites(&run.residual(metric, false));
        let columns = self.columns(mean)?;
        let above = |run: &RunCurves| mean(run).into_iter().map(|p| (p.0, p.1 - floor)).collect();
        let caption = format!(
            "`{metric}`, averaged over the sites of the residual stream that have it.{}",
            self.seeds()
        );
        let chart = self.against_steps(
            label,
            scale,
            220.0,
            overlay(self.settings, self.runs, Draw::MarkedLine, above),
        );
        Some(Plate::lines(metric, &caption, &chart, sampled("step", &columns, findings::figure)).into())
    }

    /// `None` if no run has it.
    fn quantity(&self, quantity: &Quantity) -> Option<Item> {
        let columns = self.columns(quantity.curve)?;
        let mut series = overlay(self.settings, self.runs, Draw::MarkedLine, quantity.curve);
        // Not every optimiser has factors.
        series.retain(|series| !series.points.is_empty());
        if let ([only], 1) = (&mut series[..], self.runs.len()) {
            // Named by the axis.
            only.name.clear();
        }
        let chart = self.against_steps(quantity.label, quantity.scale, quantity.height, series);
        let caption = format!("{}{}", quantity.caption, self.seeds());
        Some(Plate::lines(quantity.file, &caption, &chart, sampled("step", &columns, quantity.write)).into())
    }

    fn against_steps(&self, label: &str, scale: Scale, height: f64, series: Vec<Series>) -> LineChart {
        LineChart {
            x_label: "step".into(),
            x_reach: vec![0.0],
            y_label: label.into(),
            y_scale: scale,
            series,
            plot_height: self.height(height),
            ..LineChart::default()
        }
    }

    /// Every run's curve with its name; `None` if none has a point.
    fn columns(&self, curve: impl Fn(&RunCurves) -> Vec<Point>) -> Option<Vec<Curve>> {
        let columns: Vec<Curve> = self.runs.iter().map(|run| (self.column(run, ""), curve(run))).collect();
        columns.iter().any(|c| !c.1.is_empty()).then_some(columns)
    }

    /// A run's name with what a column holds; the latter alone for a single run.
    fn column(&self, run: &RunCurves, what: &str) -> String {
        match (self.runs.len(), what) {
            (1, "") => "value".into(),
            (1, what) => what.into(),
            (_, "") => run.name.clone(),
            (_, what) => format!("{}, {what}", run.name),
        }
    }

    /// Room for a legend beside the lines.
    fn height(&self, least: f64) -> f64 {
        least.max((LEGEND_LINE * (self.settings.len() + 1) as f64).min(400.0))
    }

    /// How seeds are drawn, where there are several of a setting.
    fn seeds(&self) -> &'static str {
        match self.settings.iter().any(|s| s.runs.len() > 1) {
            true => {
                " Runs that differ only in their seed are thin lines of one colour, and their mean a full one."
            }
            false => "",
        }
    }
}

/// Mean over sites, at the steps that any of them has.
pub(super) fn over_sites(sites: &[Curve]) -> Vec<Point> {
    let mut sums: std::collections::BTreeMap<u64, (f64, f64)> = Default::default();
    for &(step, value) in sites.iter().flat_map(|(_, points)| points) {
        let sum = sums.entry(step as u64).or_default();
        *sum = (sum.0 + value, sum.1 + 1.0);
    }
    sums.into_iter().map(|(step, (sum, count))| (step as f64, sum / count)).collect()
}
