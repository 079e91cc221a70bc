//! The text that `inspect` prints.

use crate::output;
use evenkeel::inspect::InspectReport;
use evenkeel::metrics::int8::{TOLERABLE, TOLERABLE_MEDIAN};
use evenkeel::metrics::{Culprit, Rounded, WeightReport};
use evenkeel::report::Revision;
use evenkeel::report::table::{Align, Table, cell};

/// A line for each revision.
pub(super) fn revisions(revisions: &[Revision]) {
    let mut table = Table::new(&[
        ("model", Align::Left),
        ("step", Align::Right),
        ("mean kurtosis", Align::Right),
        ("worst", Align::Right),
        ("at", Align::Left),
        ("int8 suffers most at", Align::Left),
        ("error", Align::Right),
    ]);
    for r in revisions {
        let s = &r.report.summary;
        let worst = r.report.int8.first();
        table.push([
            r.name.clone(),
            r.step.map_or("-".into(), |step| step.to_string()),
            cell(s.kurtosis_mean, |v| format!("{v:.3}")),
            cell(s.kurtosis_max, |v| format!("{v:.3}")),
            s.kurtosis_max_site.clone().unwrap_or_else(|| "-".into()),
            worst.map_or("-".into(), |w| w.site.clone()),
            cell(worst.and_then(|w| w.int8_error), |v| format!("{:.2}%", 100.0 * v)),
        ]);
    }
    output::result(&table.to_text());
}

/// Everything about one model, shortened.
pub(super) fn report(report: &InspectReport) {
    let mut table = Table::new(&[
        ("site", Align::Left),
        ("kurtosis", Align::Right),
        ("mmr", Align::Right),
        ("rms", Align::Right),
        ("max |x|", Align::Right),
    ]);
    for site in &report.sites {
        let m = &site.metrics;
        table.push(vec![
            site.site.clone(),
            cell(m.kurtosis, |v| format!("{v:.3}")),
            cell(m.mmr, |v| format!("{v:.2}")),
            cell(m.rms, |v| format!("{v:.4}")),
            cell(m.max_abs, |v| format!("{v:.3}")),
        ]);
    }
    output::result(&table.to_text());
    let s = &report.summary;
    let show = |v: Option<f64>| v.map_or("-".to_string(), |v| format!("{v:.3}"));
    output::line(&format!(
        "residual stream: mean kurtosis {}, largest {} at {} ({} tokens, {} channels)",
        show(s.kurtosis_mean),
        show(s.kurtosis_max),
        s.kurtosis_max_site.as_deref().unwrap_or("-"),
        report.tokens,
        report.model.width
    ));
    memory(report.peak_memory_bytes);
    print_int8(report);
    print_massive(report);
    print_weights(report);
}

/// The largest resident set of the process.
pub(super) fn memory(peak: Option<u64>) {
    if let Some(bytes) = peak {
        output::line(&format!("peak memory {:.0} MiB", bytes as f64 / f64::from(1 << 20)));
    }
}

/// Where 8 bits would hurt most, who is responsible, and what would help.
fn print_int8(report: &InspectReport) {
    let percent = |v: Option<f64>| cell(v, |v| format!("{:.2}%", 100.0 * v));
    let mut table = Table::new(&[
        ("int8, worst places", Align::Left),
        ("error", Align::Right),
        ("median", Align::Right),
        ("/token", Align::Right),
        ("/channel", Align::Right),
        ("channel", Align::Right),
        ("at", Align::Left),
        ("helps", Align::Left),
    ]);
    for v in report.int8.iter().take(SHOWN) {
        let at = |c: &Culprit| match (v.kind, c.sequence) {
            (Rounded::Weight, _) => format!("row {}", c.position),
            (_, sequence) => format!("{}:{}", sequence.unwrap_or(0), c.position),
        };
        table.push([
            v.site.clone(),
            percent(v.int8_error),
            percent(v.int8_error_median),
            percent(v.int8_error_token),
            percent(v.int8_error_channel),
            v.culprit.as_ref().map_or("-".into(), |c| c.channel.to_string()),
            v.culprit.as_ref().map_or("-".into(), at),
            v.remedy.label().into(),
        ]);
    }
    let suffering = report.int8.iter().filter(|v| v.suffers()).count();
    let broken = report.int8.iter().filter(|v| v.int8_error.is_none()).count();
    output::result(&format!("\n{}", table.to_text()));
    output::line(&format!(
        "{suffering} of {} places suffer: above {:.2}% (30 dB), or {:.0}% in the median ({} tokens)",
        report.int8.len(),
        100.0 * TOLERABLE,
        100.0 * TOLERABLE_MEDIAN,
        report.int8_tokens
    ));
    if broken > 0 {
        output::line(&format!("{broken} of them hold entries that are not finite"));
    }
}

/// Lines of the short lists.
const SHOWN: usize = 5;

fn print_massive(report: &InspectReport) {
    let mut table = Table::new(&[
        ("largest activations", Align::Left),
        ("sequence", Align::Right),
        ("position", Align::Right),
        ("channel", Align::Right),
        ("value", Align::Right),
        ("/ median |x|", Align::Right),
    ]);
    for m in report.massive.iter().take(SHOWN) {
        table.push([
            m.site.clone(),
            m.sequence.to_string(),
            m.position.to_string(),
            m.channel.to_string(),
            format!("{:.3}", m.value),
            cell(m.ratio_to_median, |v| format!("{v:.1}")),
        ]);
    }
    if !report.massive.is_empty() {
        output::result(&format!("\n{}", table.to_text()));
    }
}

/// The matrices whose largest entry stands out most; those that are not finite first.
fn print_weights(report: &InspectReport) {
    let peak = |w: &WeightReport| match w.figures.rms {
        Some(_) => w.figures.max_over_rms.unwrap_or(0.0),
        None => f64::INFINITY,
    };
    let mut worst: Vec<&WeightReport> = report.weights.iter().collect();
    // Stable: of equals the first in the model's order.
    worst.sort_by(|a, b| peak(b).total_cmp(&peak(a)));
    let mut table = Table::new(&[
        ("weights that stand out", Align::Left),
        ("shape", Align::Right),
        ("max / rms", Align::Right),
        ("entry kurtosis", Align::Right),
    ]);
    for w in worst.into_iter().take(SHOWN) {
        let shape: Vec<String> = w.shape.iter().map(usize::to_string).collect();
        table.push([
            w.name.clone(),
            shape.join(" × "),
            cell(w.figures.max_over_rms, |v| format!("{v:.2}")),
            cell(w.figures.kurtosis_entries, |v| format!("{v:.3}")),
        ]);
    }
    output::result(&format!("\n{}", table.to_text()));
}
