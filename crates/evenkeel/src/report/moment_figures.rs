//! What the steps of a run did to the second and the fourth moment of its probe, from `moments.jsonl`: the moments themselves,
//! and the sums of the terms of each degree.

use super::chart::{LineChart, Series};
use super::figures::sampled;
use super::findings;
use super::html::Block;
use super::plate::{Item, Part, Plate, file_part};
use super::run::{Curve, MomentLine, RunCurves};
use super::scale::Scale;
use super::table::{Align, Table, cell};

/// With more runs that follow moments, each has the figure of the fourth moment alone.
const IN_FULL: usize = 4;

/// The parts of a step's change of m4, by their degree in the step.
const DEGREES: [&str; 4] = ["linear, u41", "quadratic, u42", "cubic, u43", "quartic, u44"];
/// Those of m2.
const DEGREES_OF_M2: [&str; 2] = ["linear, u21", "quadratic, u22"];

/// A part for each run that followed its moments.
pub(super) fn moment_parts(runs: &[RunCurves]) -> Vec<Part> {
    let known: Vec<Moments> = runs.iter().filter_map(Moments::of).collect();
    let full = known.len() <= IN_FULL;
    known.iter().map(|moments| moments.part(full)).collect()
}

/// The sums of the terms of moment control in a run.
struct Moments<'a> {
    run: &'a RunCurves,
    /// The last line of each site, in the order of the network.
    last: Vec<&'a MomentLine>,
    /// The site whose sums are largest. A sum over sites would say the same less clearly: the site with the largest
    /// activations drowns the others.
    site: &'a str,
    /// All lines there.
    lines: Vec<&'a MomentLine>,
}

impl<'a> Moments<'a> {
    /// `None` if the run did not measure them.
    fn of(run: &'a RunCurves) -> Option<Self> {
        let mut last: Vec<&MomentLine> = Vec::new();
        for line in &run.moments {
            match last.iter_mut().find(|l| l.site == line.site) {
                Some(known) => *known = line,
                None => last.push(line),
            }
        }
        // `embed` has no layer and comes first; within a layer the log has the network's order.
        last.sort_by_key(|line| line.layer);
        let reach = |line: &&&MomentLine| {
            let sizes = line.sums().map(f64::abs);
            sizes.into_iter().filter(|size| size.is_finite()).fold(0.0, f64::max)
        };
        let site = last.iter().max_by(|a, b| reach(a).total_cmp(&reach(b)))?.site.as_str();
        let lines = run.moments.iter().filter(|l| l.site == site).collect();
        Some(Self { run, last, site, lines })
    }

    fn part(&self, full: bool) -> Part {
        let mut items = vec![self.terms_of_m4()];
        if full {
            items.extend(self.terms_of_m2());
            items.extend(self.values());
            items.push(self.table().into());
        }
        Part { title: format!("Moment control of {}", self.run.name), items }
    }

    fn curve(&self, value: impl Fn(&MomentLine) -> f64) -> Vec<(f64, f64)> {
        self.lines.iter().map(|line| (line.step as f64, value(line))).collect()
    }

    fn terms_of_m4(&self) -> Item {
        let columns: Vec<Curve> =
            (0..DEGREES.len()).map(|i| (DEGREES[i].to_string(), self.curve(|line| line.sums()[i]))).collect();
        let label = format!("change of the fourth moment at {} so far, by term", self.site);
        let caption = format!(
            "What the measured steps have done to the fourth moment m4 of a fixed probe batch, at `{}`, the site whose sums are \
             largest: each step's change is the sum of a linear, a quadratic, a cubic and a quartic term in the change of the \
             activations, and each term is summed over the steps.",
            self.site
        );
        self.plate("moments", &caption, columns, label, Scale::Linear, vec![0.0])
    }

    fn terms_of_m2(&self) -> Option<Item> {
        let columns: Vec<Curve> = (0..DEGREES_OF_M2.len())
            .map(|i| (DEGREES_OF_M2[i].to_string(), self.curve(|line| line.sums_of_m2()[i])))
            .collect();
        let label = format!("change of the second moment at {} so far, by term", self.site);
        let caption = format!("The same of the second moment m2, at `{}`.", self.site);
        let known = columns.iter().flat_map(|c| &c.1).any(|p| p.1.is_finite());
        known.then(|| self.plate("moments_m2", &caption, columns, label, Scale::Linear, vec![0.0]))
    }

    fn values(&self) -> Option<Item> {
        let columns: Vec<Curve> = vec![
            ("m2".into(), self.curve(|line| line.m2.unwrap_or(f64::NAN))),
            ("m4".into(), self.curve(|line| line.m4.unwrap_or(f64::NAN))),
        ];
        let label = format!("moments at {}", self.site);
        let caption = format!(
            "The second and the fourth moment of the probe at `{}`, before each measured step, on a logarithmic axis. Kurtosis \
             is m4 over the square of m2.",
            self.site
        );
        let known = columns.iter().flat_map(|c| &c.1).any(|p| p.1.is_finite());
        known.then(|| self.plate("moments_values", &caption, columns, label, Scale::Log, Vec::new()))
    }

    fn plate(
        &self,
        file: &str,
        caption: &str,
        columns: Vec<Curve>,
        y_label: String,
        y_scale: Scale,
        y_reach: Vec<f64>,
    ) -> Item {
        let table = sampled("step", &columns, findings::figure);
        let series = columns.into_iter().enumerate().map(|(i, (name, points))| Series::new(name, i, points));
        let chart = LineChart {
            x_label: "step".into(),
            x_reach: vec![0.0],
            y_label,
            y_scale,
            y_reach,
            series: series.collect(),
            plot_height: 220.0,
            ..LineChart::default()
        };
        Plate::lines(&format!("{file}-{}", file_part(&self.run.name)), caption, &chart, table).into()
    }

    /// Where the sums ended at every site.
    fn table(&self) -> Block {
        let mut header = vec![("site", Align::Left)];
        header.extend(DEGREES.into_iter().chain(DEGREES_OF_M2).map(|degree| (degree, Align::Right)));
        let mut table = Table::new(&header);
        for line in &self.last {
            let sums = line.sums().into_iter().chain(line.sums_of_m2());
            let sums = sums.map(|sum| cell(Some(sum), findings::figure));
            table.push(std::iter::once(line.site.clone()).chain(sums));
        }
        let caption = "The sums of the terms at every site, at the last measured step.".to_string();
        Block::Table(table, caption)
    }
}
