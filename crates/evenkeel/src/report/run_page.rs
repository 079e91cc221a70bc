//! A page about one training run, and what pages about several have of each: how it ended, its sites at the end, the alarms
//! that fired.

use super::compare::Comparison;
use super::findings;
use super::html::Block;
use super::run::{RunCurves, StatLine};
use super::table::{Align, Table, cell};

/// The page of a run from its logs alone, finished or not: that of a [`Comparison`] of one.
pub fn run_page(curves: &RunCurves) -> String {
    Comparison { runs: vec![curves.clone()] }.page()
}

/// How far the run came, in a few sentences.
pub(super) fn lead(curves: &RunCurves) -> String {
    let Some(last) = curves.metrics.last() else {
        return "This run has logged nothing yet.".into();
    };
    let mut text = format!("The log ends at step {}", findings::count(last.step));
    if let Some(steps) = curves.steps() {
        text.push_str(&format!(" of {}", findings::count(steps)));
    }
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
    text.push_str(&ending(curves));
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

/// What became of a run that did not finish; nothing for one that did.
fn ending(curves: &RunCurves) -> String {
    let Some(info) = &curves.info else { return String::new() };
    let reason =
        info.reason.as_ref().map_or(String::new(), |reason| format!(": {}", reason.trim_end_matches('.')));
    match info.status.as_str() {
        "finished" => String::new(),
        "running" => " The run goes on, or was killed.".into(),
        "alarmed" => format!(" An alarm stopped the run{reason}."),
        "interrupted" => " The run was interrupted, and can be resumed.".into(),
        status => format!(" The run {status}{reason}."),
    }
}

/// Every site at the last step that has statistics.
pub(super) fn last_stats(curves: &RunCurves) -> Block {
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

/// How many alarms a page lists.
const LISTED: usize = 20;

pub(super) fn alarms(curves: &RunCurves) -> Block {
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
    use crate::report::run::{Firing, MetricLine, MomentLine};

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
