//! A page about several revisions of a model, or several models: how the kurtosis of the residual stream
//! grows at each site, from revision to revision.

use super::chart::{Draw, LineChart, Point, Series};
use super::figures::{at_width, site_name};
use super::findings;
use super::heat::{Columns, HeatMap, HeatRow};
use super::html::{Block, Figure, Page, Section, WIDE};
use super::int8_section::{percent, suffers, worst_place};
use super::palette::Style;
use super::scale::{Scale, Tick};
use super::stream_section::{scale_of, stream};
use super::svg::Target;
use super::table::{Align, Table, cell};
use crate::inspect::InspectReport;

/// Sites that the legend names, besides the last.
const NAMED: usize = 17;
/// Steps are on a logarithmic axis where the largest is this many times the smallest.
const WIDE_RANGE: f64 = 50.0;
/// Characters of a digest that are shown.
const DIGEST: usize = 8;

/// One revision, inspected.
#[derive(Clone, Debug)]
pub struct Revision {
    /// What it is called: a folder, or a branch of a model hub.
    pub name: String,
    /// Training step, if it is known.
    pub step: Option<u64>,
    /// What was found in it.
    pub report: InspectReport,
    /// Digest of its weights: two revisions with the same are the same model.
    pub digest: String,
}

/// The page about `revisions`, in the order of their steps if all have one and in the order given otherwise.
/// `warnings` stand above everything else.
pub fn revisions_page(revisions: &[Revision], warnings: &[String]) -> Page {
    let shown = Shown::of(revisions);
    let mut lead: Vec<String> = warnings.iter().map(|warning| format!("Warning: {warning}")).collect();
    lead.push(shown.verdict());
    let mut blocks = vec![shown.figure()];
    blocks.extend(shown.map());
    Page {
        title: match revisions {
            [one] => format!("Inspection of {}", one.name),
            _ => format!("Inspection of {} revisions", revisions.len()),
        },
        lead,
        sections: vec![
            Section { title: "Kurtosis of the residual stream".into(), blocks },
            Section { title: "Revisions".into(), blocks: vec![shown.table()] },
        ],
    }
}

/// The kurtosis of every site of the residual stream against the training step (the place in the list, where
/// a step is unknown) as an SVG.
pub fn revisions_chart(revisions: &[Revision], target: Target) -> String {
    LineChart { width: WIDE, ..Shown::of(revisions).chart() }.render(target)
}

/// A site, its block, and its kurtosis at each revision.
struct Line<'a> {
    site: &'a str,
    layer: Option<usize>,
    kurtosis: Vec<Option<f64>>,
}

/// Revisions in the order they are shown.
struct Shown<'a> {
    revisions: Vec<&'a Revision>,
    /// Training steps, if all are known and no two the same.
    steps: Option<Vec<u64>>,
    /// Sites in the order of the network.
    lines: Vec<Line<'a>>,
}

impl<'a> Shown<'a> {
    fn of(revisions: &'a [Revision]) -> Self {
        let mut order: Vec<&Revision> = revisions.iter().collect();
        let mut steps: Option<Vec<u64>> = order.iter().map(|r| r.step).collect();
        if let Some(steps) = &mut steps {
            order.sort_by_key(|r| r.step);
            steps.sort_unstable();
        }
        let steps = steps.filter(|steps| steps.windows(2).all(|pair| pair[0] < pair[1]));
        let mut sites: Vec<(&str, Option<usize>)> = Vec::new();
        for site in order.iter().flat_map(|r| stream(&r.report)) {
            if !sites.iter().any(|(name, _)| *name == site.site) {
                sites.push((&site.site, site.layer));
            }
        }
        // `embed` has no layer and comes first.
        sites.sort_by_key(|site| site.1);
        let kurtosis = |revision: &Revision, name: &str| {
            let site = stream(&revision.report).find(|s| s.site == name)?;
            findings::finite(site.metrics.kurtosis)
        };
        let line = |(site, layer): (&'a str, Option<usize>)| Line {
            site,
            layer,
            kurtosis: order.iter().map(|r| kurtosis(r, site)).collect(),
        };
        let lines = sites.into_iter().map(line).collect();
        Self { revisions: order, steps, lines }
    }

    /// Whether steps are on a logarithmic axis: they begin close together and end far apart, as checkpoints
    /// do that are saved at powers of two.
    fn x_scale(&self) -> Scale {
        let positive = || self.steps.iter().flatten().filter(|step| **step > 0).map(|step| *step as f64);
        let ends = (positive().next(), positive().next_back());
        match ends {
            (Some(first), Some(last)) if last > WIDE_RANGE * first && positive().count() > 3 => Scale::Log,
            _ => Scale::Linear,
        }
    }

    fn chart(&self) -> LineChart {
        let count = self.lines.len();
        // A legend of a hundred sites would be longer than the figure.
        let steps = [1, 2, 5, 10, 20, 50, 100, 200, 500];
        let stride = steps.into_iter().find(|step| count <= NAMED * step).unwrap_or(1000);
        let x = |i: usize| self.steps.as_ref().and_then(|s| s.get(i)).map_or(i as f64, |step| *step as f64);
        let series = self.lines.iter().enumerate().map(|(i, line)| {
            let points: Vec<Point> =
                line.kurtosis.iter().enumerate().map(|(k, v)| (x(k), v.unwrap_or(f64::NAN))).collect();
            let named = line.layer.is_none_or(|layer| layer % stride == 0) || i + 1 == count;
            Series {
                name: if named { site_name(line.site) } else { String::new() },
                points,
                style: Style::ordered(i, count),
                draw: if count <= NAMED { Draw::MarkedLine } else { Draw::Line },
            }
        });
        let names = self.revisions.iter().enumerate();
        LineChart {
            x_label: if self.steps.is_some() { "training step" } else { "revision" }.into(),
            x_scale: self.x_scale(),
            x_ticks: match self.steps {
                Some(_) => Vec::new(),
                None => names.map(|(i, r)| Tick { value: i as f64, label: r.name.clone() }).collect(),
            },
            y_label: "kurtosis".into(),
            y_scale: Scale::Log,
            y_reach: vec![1.0],
            series: series.collect(),
            plot_height: 320.0,
            ..LineChart::default()
        }
    }

    fn figure(&self) -> Block {
        let chart = self.chart();
        let mut caption = String::from(
            "Kurtosis at each site of the residual stream, on a logarithmic axis; 1 is the floor. Where it \
             is undefined there is no point.",
        );
        if chart.x_scale == Scale::Log && self.steps.iter().flatten().any(|step| *step == 0) {
            caption
                .push_str(" Step 0 has no place on the logarithmic axis of steps and is in the table only.");
        }
        let labels: Vec<String> = (0..self.revisions.len()).map(|i| self.label(i)).collect();
        let mut header = vec![("site", Align::Left)];
        header.extend(labels.iter().map(|label| (label.as_str(), Align::Right)));
        let mut table = Table::new(&header);
        for line in &self.lines {
            let cells = line.kurtosis.iter().map(|k| cell(*k, findings::kurtosis));
            table.push(std::iter::once(line.site.to_string()).chain(cells));
        }
        Block::Figure(Figure::new(caption, |width| at_width(&chart, width)).with_table(table))
    }

    /// Sites against revisions, where there are enough for a map.
    fn map(&self) -> Option<Block> {
        if self.revisions.len() < 3 || self.lines.is_empty() {
            return None;
        }
        let values = self.lines.iter().flat_map(|l| l.kurtosis.iter().flatten().copied());
        let map = HeatMap {
            rows: self
                .lines
                .iter()
                .map(|line| HeatRow {
                    label: site_name(line.site),
                    number: line.layer,
                    values: line.kurtosis.clone(),
                })
                .collect(),
            columns: Columns::Named((0..self.revisions.len()).map(|i| self.label(i)).collect()),
            x_label: if self.steps.is_some() { "training step" } else { "revision" }.into(),
            value_label: "kurtosis".into(),
            scale: scale_of(values),
            reach: vec![1.0],
            width: WIDE,
        };
        let caption = "The same as a map: when outliers appear, and in which blocks. Revisions are evenly \
                       spaced. All numbers are in the table above.";
        let draw = |width| HeatMap { width, ..map.clone() }.render(Target::Page);
        let mut table = Table::new(&[
            ("site", Align::Left),
            ("first", Align::Right),
            ("largest", Align::Right),
            ("at", Align::Left),
            ("last", Align::Right),
        ]);
        for line in &self.lines {
            let known = line.kurtosis.iter().enumerate().filter_map(|(i, k)| Some((i, (*k)?)));
            let largest = known.max_by(|a, b| a.1.total_cmp(&b.1));
            let end = |k: Option<&Option<f64>>| cell(k.copied().flatten(), findings::kurtosis);
            table.push([
                line.site.to_string(),
                end(line.kurtosis.first()),
                cell(largest.map(|l| l.1), findings::kurtosis),
                largest.map_or("–".into(), |l| self.label(l.0)),
                end(line.kurtosis.last()),
            ]);
        }
        Some(Block::Figure(Figure::new(caption, draw).with_table(table)))
    }

    /// The step of the `i`-th revision, or its name.
    fn label(&self, i: usize) -> String {
        match self.steps.as_ref().and_then(|steps| steps.get(i)) {
            Some(step) => findings::count(*step),
            None => self.revisions.get(i).map_or(String::new(), |r| r.name.clone()),
        }
    }

    /// Where the mean kurtosis starts, ends and is highest.
    fn verdict(&self) -> String {
        let known: Vec<(&str, f64)> = self
            .revisions
            .iter()
            .filter_map(|r| Some((r.name.as_str(), findings::finite(r.report.summary.kurtosis_mean)?)))
            .collect();
        let (Some(first), Some(last)) = (known.first(), known.last()) else {
            return "The kurtosis of the residual stream is defined at none of the revisions.".into();
        };
        let mean = |one: &(&str, f64)| format!("{} at {}", findings::kurtosis(one.1), one.0);
        if known.len() == 1 {
            return format!("The mean kurtosis of the residual stream is {}.", mean(first));
        }
        let text =
            format!("The mean kurtosis of the residual stream goes from {} to {}", mean(first), mean(last));
        match known.iter().max_by(|a, b| a.1.total_cmp(&b.1)) {
            Some(peak) if peak.1 > first.1.max(last.1) => {
                format!("{text}, and is {} in between.", mean(peak))
            }
            _ => format!("{text}."),
        }
    }

    fn table(&self) -> Block {
        let mut table = Table::new(&[
            ("revision", Align::Left),
            ("step", Align::Right),
            ("kurtosis", Align::Right),
            ("largest", Align::Right),
            ("at", Align::Left),
            ("worst in int8", Align::Left),
            ("error", Align::Right),
            ("suffer", Align::Right),
            ("digest", Align::Left),
        ]);
        for revision in &self.revisions {
            let (summary, int8) = (&revision.report.summary, &revision.report.int8);
            let worst = worst_place(int8);
            let suffering = int8.iter().filter(|v| suffers(v)).count();
            table.push([
                revision.name.clone(),
                revision.step.map_or("–".into(), findings::count),
                cell(summary.kurtosis_mean, findings::kurtosis),
                cell(summary.kurtosis_max, findings::kurtosis),
                summary.kurtosis_max_site.as_deref().map_or("–".into(), site_name),
                worst.map_or("–".into(), |v| site_name(&v.site)),
                cell(worst.and_then(|v| v.int8_error), percent),
                if int8.is_empty() { "–".into() } else { suffering.to_string() },
                revision.digest.chars().take(DIGEST).collect(),
            ]);
        }
        let caption = "Kurtosis of the residual stream, its mean over the sites and the largest, and what \
                       int8 with one step per tensor would cost: the place of the largest error, and how \
                       many of the rounded places suffer. Revisions with the same digest of their weights \
                       are the same model.";
        Block::Table(table, caption.into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::inspect_page::tests::{empty, synthetic};
    use super::*;

    fn revision(step: Option<u64>, layers: usize, size: f64) -> Revision {
        let name = step.map_or("a name".into(), |step| format!("step{step}"));
        Revision { name, step, report: synthetic(layers, 64, 2, size), digest: "0123456789abcdef".into() }
    }

    #[test]
    fn revisions_are_in_the_order_of_their_steps() {
        let all = [revision(Some(2000), 4, 2.0), revision(Some(10), 4, 0.1), revision(Some(500), 4, 1.0)];
        let html = revisions_page(&all, &["step10 and step500 hold the same weights".into()]).render();
        assert!(html.contains("Warning: step10 and step500 hold the same weights"));
        assert!(html.contains("Inspection of 3 revisions") && html.contains("at step10 to"));
        let rows: Vec<usize> = ["10", "500", "2,000"]
            .iter()
            .map(|s| html.find(&format!("<td class=\"r\">{s}</td>")).unwrap())
            .collect();
        assert!(rows.is_sorted(), "{rows:?}");
        assert!(html.contains("Heat") && html.contains("01234567<") && !html.contains("NaN"));
        assert!(!revisions_page(&all[..2], &[]).render().contains("Heat"));
    }

    #[test]
    fn without_steps_there_are_names() {
        let all = [revision(Some(5), 2, 1.0), revision(None, 3, 1.0), revision(Some(5), 1, 1.0)];
        let svg = revisions_chart(&all, Target::File);
        assert!(svg.starts_with("<svg") && svg.contains(">a name</text>") && svg.contains(">step5</text>"));
        assert!(svg.contains(">revision</text>"));
        // Two models at the same step are two models.
        let svg = revisions_chart(&[revision(Some(5), 1, 1.0), revision(Some(5), 1, 1.0)], Target::File);
        assert!(svg.contains(">step5</text>"));
    }

    #[test]
    fn steps_at_powers_of_two_have_a_logarithmic_axis() {
        let at =
            |steps: &[u64]| -> Vec<Revision> { steps.iter().map(|s| revision(Some(*s), 2, 1.0)).collect() };
        let scale = |steps: &[u64]| Shown::of(&at(steps)).x_scale();
        assert_eq!(scale(&[0, 1, 8, 64, 512]), Scale::Log);
        assert_eq!(scale(&[0, 1000, 2000, 3000, 4000]), Scale::Linear);
        assert_eq!(scale(&[0, 1, 100]), Scale::Linear);
        let html = revisions_page(&at(&[0, 1, 8, 64, 512]), &[]).render();
        assert!(html.contains("Step 0 has no place"));
    }

    #[test]
    fn nothing_and_strange_names_do_no_harm() {
        assert!(revisions_page(&[], &[]).render().contains("no data"));
        assert!(revisions_chart(&[], Target::Page).contains("no data"));
        let evil = |step| Revision { name: "<script>`".into(), step, report: empty(), digest: "<b>".into() };
        let all = [evil(None), evil(Some(1)), evil(None)];
        let html = revisions_page(&all, &["<script>".into()]).render();
        assert!(!html.contains("<script") && !html.contains("<b>&") && !html.contains("NaN"));
        assert!(html.contains("defined at none"));
    }

    #[test]
    fn a_legend_names_some_of_many_sites() {
        let all = [revision(Some(1), 100, 0.5), revision(Some(2), 100, 1.0), revision(Some(3), 100, 2.0)];
        let chart = Shown::of(&all).chart();
        assert_eq!(chart.series.len(), 101);
        let named = chart.series.iter().filter(|s| !s.name.is_empty()).count();
        assert!((5..=NAMED + 1).contains(&named), "{named}");
        assert!(revisions_page(&all, &[]).render().len() < 400_000);
    }
}
