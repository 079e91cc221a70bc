//! `inspect MODEL`.

use super::text::{Source, blocks};
use crate::args::{Gram, Inspect};
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Settings;
use evenkeel::checkpoint;
use evenkeel::data::Batch;
use evenkeel::inspect::{self, InspectReport, Options, SiteReport};
use evenkeel::metrics::{GramMode, Metrics, WeightReport};
use evenkeel::report::table::{Align, Table, cell};

pub(crate) fn run(args: Inspect, settings: &Settings) -> Result<Exit, Failure> {
    let limits = args.fail_above.iter().map(|t| Limit::parse(t)).collect::<Result<Vec<_>, _>>()?;
    let mode = match args.gram {
        Gram::Batch => GramMode::Batch,
        Gram::Sequence => GramMode::Sequence,
    };
    let model = checkpoint::load_model(&args.model)?;
    let with = |options: Options| Options { top_k: args.top_k, ..options }.with_gram(mode);
    let (report, first) = match Source::open(&args.text, &args.model, &model)? {
        Source::Ids(batch) => {
            let context = batch.ids.len() / batch.sequences;
            let one =
                Batch { inputs: batch.ids.clone(), targets: batch.ids, sequences: batch.sequences, context };
            let report = inspect::inspect(&model, std::iter::once(Ok(one.clone())), &with(Options::exact()))?;
            (report, Some(one))
        }
        Source::Stream(dataset) => {
            let batches = blocks(&dataset, &model, Some(args.tokens))?;
            let first = batches.clone().next().transpose()?;
            let batches = batches.map(|b| b.map_err(evenkeel::Error::from));
            (inspect::inspect(&model, batches, &with(Options::stream()))?, first)
        }
    };
    if let (Some(path), Some(batch)) = (&args.dump, first)
        && !settings.dry_run
    {
        inspect::dump(&model, &batch.inputs, batch.sequences, path)?;
    }
    if settings.json {
        output::json(&report);
    } else {
        print(&report);
    }
    let mut verdict = Exit::Done;
    for limit in &limits {
        for site in report.sites.iter().filter(|s| limit.broken_by(s)) {
            let value = limit.of(site).map_or("undefined".to_string(), |v| format!("{v:.4}"));
            output::note(&format!("{} of {} is {value}, above {}", limit.metric, site.site, limit.value));
            verdict = Exit::No;
        }
    }
    Ok(verdict)
}

struct Limit {
    metric: String,
    value: f64,
}

impl Limit {
    fn parse(text: &str) -> Result<Self, Failure> {
        let parsed = text.split_once('=').and_then(|(m, v)| Some((m.trim(), v.trim().parse::<f64>().ok()?)));
        match parsed {
            Some((metric, value)) if Metrics::is_known(metric) && !value.is_nan() => {
                Ok(Self { metric: metric.into(), value })
            }
            _ => Err(Failure::input(
                format!(
                    "--fail-above {text} is not of the form METRIC=VALUE with METRIC one of {}",
                    Metrics::NAMES.join(", ")
                ),
                "write for example --fail-above kurtosis=10",
            )),
        }
    }

    fn of(&self, site: &SiteReport) -> Option<f64> {
        site.metrics.get(&self.metric)
    }

    fn broken_by(&self, site: &SiteReport) -> bool {
        let value = self.of(site);
        // A site whose size is undefined holds values that are not finite: above every limit. Other figures may be
        // undefined where all is well, such as the kurtosis of zeros.
        site.metrics.rms.is_none() || value.is_some_and(|v| v > self.value)
    }
}

fn print(report: &InspectReport) {
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
    print_massive(report);
    print_weights(report);
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
