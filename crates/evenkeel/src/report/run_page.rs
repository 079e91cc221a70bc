//! A page about one training run: loss, learning rate, gradient norm, kurtosis by site, what moved
//! the fourth moment, and the alarms that fired.

use super::chart::{Draw, LineChart, Series};
use super::figures::{at_width, running_mean, sampled, site_name};
use super::findings;
use super::html::{Block, Figure, Page, Section};
use super::palette::Style;
use super::run::{Curve, MomentLine, RunCurves, StatLine};
use super::scale::{Scale, scientific};
use super::table::{Align, Table, cell};

/// The page of a run from its logs alone, finished or not.
pub fn run_page(curves: &RunCurves) -> String {
    let mut sections = vec![Section { title: "Training".into(), blocks: vec![loss(curves)] }];
    // A figure of nothing says less than no figure.
    let pace = [
        log_figure(curves, "learning rate", "Learning rate.", |m| m.lr),
        log_figure(curves, "gradient norm", "Norm of the whole gradient before clipping.", |m| m.grad_norm),
    ];
    sections[0].blocks.extend(pace.into_iter().flatten());
    if !curves.stats.is_empty() {
        sections.push(Section {
            title: "Outlier features".into(),
            blocks: vec![kurtosis(curves), last_stats(curves)],
        });
    }
    if let Some(blocks) = moments(curves) {
        sections.push(Section { title: "Moment control".into(), blocks });
    }
    if !curves.alarms.is_empty() {
        sections.push(Section { title: "Alarms".into(), blocks: vec![alarms(curves)] });
    }
    Page { title: format!("Run {}", curves.name), lead: vec![lead(curves)], sections }.render()
}

fn lead(curves: &RunCurves) -> String {
    let Some(last) = curves.metrics.last() else {
        return "This run has logged nothing yet.".into();
    };
    let mut text = format!("The log ends at step {}", findings::count(last.step));
    if let Some(tokens) = last.tokens {
        text.push_str(&format!(", after {} tokens", findings::count(tokens)));
    }
    let losses = [
        ("training", curves.train_loss().last().map(|p| p.1)),
        ("validation", curves.val_loss().last().map(|p| p.1)),
    ];
    let losses: Vec<String> = losses
        .iter()
        .filter_map(|(name, loss)| Some(format!("{name} loss {:.3}", findings::finite(*loss)?)))
        .collect();
    if !losses.is_empty() {
        text.push_str(&format!(", at {}", losses.join(" and ")));
    }
    text.push('.');
    let ends = curves.residual_kurtosis();
    let worst = ends
        .iter()
        .filter_map(|(site, points)| Some((site, points.last()?.1)))
        .filter(|(_, kurtosis)| kurtosis.is_finite())
        .max_by(|a, b| a.1.total_cmp(&b.1));
    if let Some((site, worst)) = worst {
        text.push_str(&format!(
            " The largest kurtosis on the residual stream is then {}, at `{site}`.",
            findings::kurtosis(worst)
        ));
    }
    text
}

fn loss(curves: &RunCurves) -> Block {
    let train = curves.train_loss();
    let smooth = running_mean(&train, train.len() / 40);
    let columns =
        [("training loss".to_string(), smooth.clone()), ("validation loss".to_string(), curves.val_loss())];
    let mut validation = Series::new("validation", 1, curves.val_loss());
    validation.draw = Draw::MarkedLine;
    let chart = LineChart {
        x_label: "training tokens".into(),
        x_reach: vec![0.0],
        y_label: "loss, nats per token".into(),
        series: vec![Series::new("training", 0, smooth), validation],
        ..LineChart::default()
    };
    let caption = "Loss against training tokens; the training loss is averaged over a fortieth \
                   of the run around each step.";
    Block::Figure(Figure::new(caption, |width| at_width(&chart, width)).with_table(sampled(
        "tokens",
        &columns,
        |v| format!("{v:.3}"),
    )))
}

fn log_figure(
    curves: &RunCurves,
    name: &str,
    caption: &str,
    value: impl Fn(&super::run::MetricLine) -> Option<f64>,
) -> Option<Block> {
    let points = curves.by_step(value);
    if points.is_empty() {
        return None;
    }
    let columns = [(name.to_string(), points.clone())];
    let chart = LineChart {
        x_label: "step".into(),
        x_reach: vec![0.0],
        y_label: name.into(),
        series: vec![Series::new("", 0, points)],
        plot_height: 150.0,
        ..LineChart::default()
    };
    Some(Block::Figure(Figure::new(caption, |width| at_width(&chart, width)).with_table(sampled(
        "step",
        &columns,
        |v| scientific(v, 3),
    ))))
}

fn kurtosis(curves: &RunCurves) -> Block {
    let sites = curves.residual_kurtosis();
    let count = sites.len();
    let columns: Vec<_> = sites.clone();
    let chart = LineChart {
        x_label: "step".into(),
        x_reach: vec![0.0],
        y_label: "kurtosis − 1".into(),
        y_scale: Scale::Log,
        series: sites
            .into_iter()
            .enumerate()
            .map(|(i, (site, points))| Series {
                name: site_name(&site),
                points: points.into_iter().map(|p| (p.0, p.1 - 1.0)).collect(),
                style: Style::ordered(i, count),
                draw: Draw::MarkedLine,
            })
            .collect(),
        plot_height: 320.0,
        ..LineChart::default()
    };
    let caption = "Kurtosis above its floor of 1 at each site of the residual stream, on a \
                   logarithmic axis. Where it is undefined or exactly 1 there is no point. The \
                   table has the kurtosis itself.";
    Block::Figure(Figure::new(caption, |width| at_width(&chart, width)).with_table(sampled(
        "step",
        &columns,
        findings::kurtosis,
    )))
}

/// Every site at the last step that has statistics.
fn last_stats(curves: &RunCurves) -> Block {
    let last = curves.stats.iter().map(|s| s.step).max().unwrap_or(0);
    let mut lines: Vec<&StatLine> = curves.stats.iter().filter(|s| s.step == last).collect();
    // `embed` has no layer and comes first; within a layer the log has the network's order.
    lines.sort_by_key(|s| s.layer);
    let mut table = Table::new(&[
        ("site", Align::Left),
        ("kurtosis", Align::Right),
        ("max-median ratio", Align::Right),
        ("RMS", Align::Right),
        ("largest", Align::Right),
    ]);
    for line in lines {
        table.push([
            line.site.clone(),
            cell(line.metrics.kurtosis, findings::kurtosis),
            cell(line.metrics.mmr, findings::perplexity),
            cell(line.metrics.rms, findings::figure),
            cell(line.metrics.max_abs, findings::figure),
        ]);
    }
    let step = findings::count(last);
    Block::Table(table, format!("Every measured site at step {step}."))
}

/// The parts of a step's change of m4, by their degree in the step.
const DEGREES: [&str; 4] = ["linear, u41", "quadratic, u42", "cubic, u43", "quartic, u44"];

/// The sums of the terms of moment control in a run.
pub(super) struct Moments<'a> {
    /// The last line of each site, in the order of the network.
    last: Vec<&'a MomentLine>,
    /// The site whose sums are largest. A sum over sites would say the same less clearly: the site with the largest
    /// activations drowns the others.
    site: &'a str,
    /// The sums there, by degree.
    columns: Vec<Curve>,
}

impl<'a> Moments<'a> {
    /// `None` if the run did not measure them.
    pub(super) fn of(curves: &'a RunCurves) -> Option<Self> {
        let mut last: Vec<&MomentLine> = Vec::new();
        for line in &curves.moments {
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
        let lines: Vec<&MomentLine> = curves.moments.iter().filter(|l| l.site == site).collect();
        let columns = (0..DEGREES.len())
            .map(|i| (DEGREES[i].to_string(), lines.iter().map(|l| (l.step as f64, l.sums()[i])).collect()))
            .collect();
        Some(Self { last, site, columns })
    }

    /// The sums at the site that moved most.
    pub(super) fn chart(&self) -> LineChart {
        LineChart {
            x_label: "step".into(),
            x_reach: vec![0.0],
            y_label: format!("change of the fourth moment at {} so far, by term", self.site),
            y_reach: vec![0.0],
            series: self
                .columns
                .iter()
                .enumerate()
                .map(|(i, (name, points))| Series::new(name.as_str(), i, Vec::clone(points)))
                .collect(),
            plot_height: 260.0,
            ..LineChart::default()
        }
    }
}

/// The chart of moment control, and where its sums ended at every site.
pub(super) fn moments(curves: &RunCurves) -> Option<Vec<Block>> {
    let moments = Moments::of(curves)?;
    let chart = moments.chart();
    let Moments { last, site, columns } = moments;
    let caption = format!(
        "What the measured steps have done to the fourth moment m4 of a fixed probe batch, at `{}`, the \
         site whose sums are largest: each step's change is the sum of a linear, a quadratic, a cubic and \
         a quartic term in the change of the activations, and each term is summed over the steps.",
        site
    );
    let figure = Figure::new(caption, |width| at_width(&chart, width)).with_table(sampled(
        "step",
        &columns,
        findings::figure,
    ));
    let mut header = vec![("site", Align::Left)];
    header.extend(DEGREES.map(|degree| (degree, Align::Right)));
    let mut table = Table::new(&header);
    for line in last {
        let sums = line.sums().map(|sum| cell(Some(sum), findings::figure));
        table.push(std::iter::once(line.site.clone()).chain(sums));
    }
    let caption = "The sums of the terms at every site, at the last measured step.".to_string();
    Some(vec![Block::Figure(figure), Block::Table(table, caption)])
}

/// How many alarms a page lists.
const LISTED: usize = 20;

fn alarms(curves: &RunCurves) -> Block {
    let item = |a: &super::run::Firing| {
        let value = match findings::finite(a.value) {
            Some(value) => format!("{}, above {}", findings::figure(value), findings::figure(a.above)),
            None => "not finite".into(),
        };
        let action = match a.action.as_str() {
            "checkpoint" => "; a checkpoint was written",
            "stop" => "; the run was stopped",
            _ => "",
        };
        format!("Step {}: {} at `{}` was {value}{action}.", findings::count(a.step), a.metric, a.site)
    };
    let mut items: Vec<String> = curves.alarms.iter().take(LISTED).map(item).collect();
    if curves.alarms.len() > LISTED {
        let more = (curves.alarms.len() - LISTED) as u64;
        items.push(format!("And {} more, in `alarms.jsonl`.", findings::count(more)));
    }
    Block::List(items)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::run::{Firing, MetricLine};

    #[test]
    fn a_run_that_logged_nothing_has_a_page() {
        let html = run_page(&RunCurves::default());
        assert!(html.contains("logged nothing yet") && html.contains("no data"));
    }

    #[test]
    fn moments_are_shown_where_they_moved_most_and_alarms_are_listed() {
        let line = |step, site: &str, layer, u42| MomentLine {
            step,
            site: site.into(),
            layer,
            m4: Some(1.0),
            cum_u41: Some(-0.25),
            cum_u42: u42,
            ..MomentLine::default()
        };
        let alarm = |step| Firing {
            step,
            metric: "kurtosis".into(),
            site: "blocks.1.resid".into(),
            value: (step > 1).then_some(12.5),
            above: 10.0,
            action: "stop".into(),
        };
        let run = RunCurves {
            moments: vec![
                line(1, "embed", None, Some(0.5)),
                line(1, "blocks.1.resid", Some(1), Some(3.5)),
                line(2, "embed", None, Some(0.75)),
                line(2, "blocks.1.resid", Some(1), Some(4.5)),
            ],
            alarms: (1..=25).map(alarm).collect(),
            ..RunCurves::default()
        };
        let html = run_page(&run);
        assert!(html.contains("Moment control") && html.contains("at <code>blocks.1.resid</code>, the site"));
        assert!(html.contains("4.5000") && html.contains("0.7500") && !html.contains("NaN"));
        assert!(html.contains("Step 1: kurtosis at <code>blocks.1.resid</code> was not finite"));
        assert!(
            html.contains("Step 20: kurtosis at <code>blocks.1.resid</code> was 12.50, above 10.00; the run")
        );
        assert!(html.contains("And 5 more") && !html.contains("Step 21"));
        let plain = run_page(&RunCurves::default());
        assert!(!plain.contains("Moment control") && !plain.contains("Alarms"));
    }

    #[test]
    fn the_page_tells_the_end_of_the_run() {
        let stat = |site: &str, layer, kurtosis| StatLine {
            step: 10,
            site: site.into(),
            layer,
            metrics: crate::metrics::Metrics { kurtosis, ..Default::default() },
        };
        let run = RunCurves {
            name: "a<b".into(),
            metrics: vec![MetricLine {
                step: 1000,
                tokens: Some(4_096_000),
                train_loss: Some(2.5),
                lr: Some(1e-3),
                ..MetricLine::default()
            }],
            stats: vec![
                stat("blocks.0.resid", Some(0), Some(7.25)),
                stat("blocks.1.resid", Some(1), None),
                stat("embed", None, Some(1.0)),
            ],
            ..RunCurves::default()
        };
        let html = run_page(&run);
        assert!(html.contains("step 1,000, after 4,096,000 tokens, at training loss 2.500."));
        assert!(html.contains("is then 7.250, at <code>blocks.0.resid</code>"));
        assert!(html.contains("Run a&lt;b") && !html.contains("Run a<b"));
        assert!(!html.contains("NaN"));
        assert!(!html.contains("gradient norm"), "there is none to show");
    }
}
