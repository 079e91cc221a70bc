//! `inspect MODEL...`.

use super::model;
use super::text::{Source, blocks};
use crate::args::{Gram, Inspect};
use crate::failure::{Exit, Failure};
use crate::output;
use crate::progress;
use crate::settings::Settings;
use evenkeel::checkpoint::{self, OnDisk};
use evenkeel::data::{Dataset, Split, Tokenizer};
use evenkeel::inspect::{self, InspectReport, Options, SiteReport};
use evenkeel::metrics::int8::TOLERABLE;
use evenkeel::metrics::{Culprit, GramMode, Int8Verdict, Metrics, Remedy, WeightReport};
use evenkeel::model::{Input, ModelError};
use evenkeel::report::revisions::{Revision, revisions_chart, revisions_page};
use evenkeel::report::table::{Align, Table, cell};
use evenkeel::report::{self, Page, ReportError, Target, inspect_page};
use serde::Serialize;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

pub(crate) fn run(args: Inspect, settings: &Settings) -> Result<Exit, Failure> {
    let limits = args.fail_above.iter().map(|t| Limit::parse(t)).collect::<Result<Vec<_>, _>>()?;
    if let [model] = &args.models[..] {
        let report = one(&args, model, settings)?.report;
        if settings.json {
            output::json(&report);
        } else {
            print(&report);
        }
        if let Some(dir) = &args.report {
            let name = model.display().to_string();
            write_page(dir, &inspect_page(&report, &name), &report, None, settings)?;
        }
        return Ok(verdict(&limits, &report, ""));
    }
    if args.dump.is_some() {
        return Err(Failure::input("--dump is of one model", "name a single MODEL with --dump"));
    }
    let revisions =
        args.models.iter().map(|m| one(&args, m, settings)).collect::<Result<Vec<_>, Failure>>()?;
    let warnings = warnings(&revisions);
    for warning in &warnings {
        output::note(&format!("warning: {warning}"));
    }
    let summary = json!({
        "schema": 1,
        "models": revisions.iter().map(|r| json!({
            "name": r.name, "step": r.step, "digest": r.digest, "report": r.report,
        })).collect::<Vec<_>>(),
        "warnings": warnings,
    });
    if settings.json {
        output::json(&summary);
    } else {
        print_revisions(&revisions);
    }
    if let Some(dir) = &args.report {
        let figure = revisions_chart(&revisions, Target::File);
        write_page(dir, &revisions_page(&revisions, &warnings), &summary, Some(&figure), settings)?;
    }
    let exits = revisions.iter().map(|r| verdict(&limits, &r.report, &format!(" of {}", r.name)));
    Ok(if exits.collect::<Vec<_>>().contains(&Exit::No) { Exit::No } else { Exit::Done })
}

/// Inspects one model.
fn one(args: &Inspect, path: &Path, settings: &Settings) -> Result<Revision, Failure> {
    let on_disk = model::open(path, settings)?;
    let config = on_disk.config();
    let mode = match args.gram {
        Gram::Batch => GramMode::Batch,
        Gram::Sequence => GramMode::Sequence,
    };
    let with = |options: Options| Options { top_k: args.top_k, ..options }.with_gram(mode);
    let inputs = Inputs::open(args, &on_disk)?;
    let dump = args.dump.as_ref().filter(|_| !settings.dry_run);
    let bar = progress::bar(settings, 0, "{prefix} {bar:24} {pos}/{len} · {eta} left");
    bar.set_prefix(format!("inspecting {}", path.display()));
    let mut told = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let mut report = on_disk.with_parts(|parts| {
        let report = match &inputs {
            Inputs::Batch(input) => inspect::inspect(
                parts,
                std::iter::once(Ok(input.clone())),
                &with(Options::exact()),
                &mut told,
            )?,
            Inputs::Stream(stream) => {
                inspect::inspect(parts, stream.batches(args.tokens)?, &with(Options::stream()), &mut told)?
            }
        };
        if let (Some(path), Some(first)) = (dump, inputs.first(args.tokens)?) {
            inspect::dump(parts, &first, path)?;
        }
        Ok::<_, Failure>(report)
    })??;
    bar.finish_and_clear();
    if !config.reads_images()
        && let Ok(Some(tokenizer)) = Tokenizer::load_folder(on_disk.folder())
    {
        for culprit in report.int8.iter_mut().filter_map(|v| v.culprit.as_mut()) {
            culprit.text = culprit.token.map(|token| tokenizer.decode(&[token]));
        }
    }
    Ok(Revision {
        name: path.display().to_string(),
        step: step_of(path).or_else(|| step_of(on_disk.folder())),
        digest: format!("{:016x}", on_disk.digest()),
        report,
    })
}

/// What is run.
enum Inputs {
    /// All at once, exactly.
    Batch(Input),
    /// Batch after batch.
    Stream(Framed),
}

/// Running text in sequences that begin and end as the model's tokenizer wants them to.
struct Framed {
    dataset: Arc<Dataset>,
    context: usize,
    frame: (Vec<u32>, Vec<u32>),
}

impl Framed {
    fn batches(&self, tokens: u64) -> Result<impl Iterator<Item = evenkeel::Result<Input>> + '_, Failure> {
        let (before, after) = &self.frame;
        let framed = before.len() + after.len();
        let inside = self.context - framed;
        // A frame adds to the tokens of every sequence.
        let asked = tokens * inside as u64 / self.context as u64;
        let blocks = blocks(&self.dataset, inside, Some(asked.max(1)))?;
        Ok(blocks.map(move |batch| {
            let batch = batch?;
            if framed == 0 {
                return Ok(Input::from(batch));
            }
            let rows = batch.inputs.chunks(batch.context);
            let ids = rows.flat_map(|row| [before, row, after].concat()).collect();
            Ok(Input::Tokens { ids, sequences: batch.sequences })
        }))
    }
}

impl Inputs {
    fn open(args: &Inspect, on_disk: &OnDisk) -> Result<Self, Failure> {
        let config = on_disk.config();
        if let Some(path) = &args.pixels {
            return Ok(Inputs::Batch(checkpoint::read_images(path)?));
        }
        if config.reads_images() {
            return Err(ModelError::WrongInput { wants: "images" }.into());
        }
        match Source::open(&args.text, on_disk.folder(), config)? {
            Source::Ids(_) if args.cut.context.is_some() => Err(Failure::input(
                "--context cuts running text, and --ids are run as they are given",
                "leave --context out",
            )),
            Source::Ids(batch) => {
                Ok(Inputs::Batch(Input::Tokens { ids: batch.ids, sequences: batch.sequences }))
            }
            Source::Stream(dataset) => {
                // Shards hold what they hold; text is framed as the tokenizer frames it.
                let frame = match (&args.text.text, Tokenizer::load_folder(on_disk.folder())) {
                    (Some(_), Ok(Some(tokenizer))) => tokenizer.frame(),
                    _ => Default::default(),
                };
                let framed = frame.0.len() + frame.1.len();
                let context = args.cut.context(config, MOST_INSPECTED)?;
                // A short text is one short sequence.
                let context = context.min((dataset.len(Split::Val) as usize).saturating_sub(1) + framed);
                if context <= framed {
                    return Err(Failure::input(
                        format!(
                            "sequences of {context} tokens leave no room beside the tokenizer's own {framed}"
                        ),
                        "give more text, or a larger --context",
                    ));
                }
                Ok(Inputs::Stream(Framed { dataset, context, frame }))
            }
        }
    }

    /// The first batch, which is dumped.
    fn first(&self, tokens: u64) -> Result<Option<Input>, Failure> {
        match self {
            Inputs::Batch(input) => Ok(Some(input.clone())),
            Inputs::Stream(stream) => Ok(stream.batches(tokens)?.next().transpose()?),
        }
    }
}

/// Longest sequences by default: the matrices of attention grow with their square.
const MOST_INSPECTED: usize = 1024;

/// The training step in a name: `step-000500`, `model@step1000`, `checkpoint-500`.
fn step_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_string_lossy().into_owned();
    let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let (before, digits) = name.split_at(name.len() - digits);
    let before = before.trim_end_matches(['-', '_']);
    let counted = before.ends_with("step") || before.ends_with("checkpoint");
    digits.parse().ok().filter(|_| counted)
}

/// What should make a reader of the curve stop: the same weights under two names, models of different shapes.
fn warnings(revisions: &[Revision]) -> Vec<String> {
    let mut warnings = Vec::new();
    for (i, b) in revisions.iter().enumerate() {
        if let Some(a) = revisions[..i].iter().find(|a| a.digest == b.digest) {
            warnings.push(format!("{} and {} have identical weights.", a.name, b.name));
        }
    }
    let shape = |r: &Revision| (r.report.model.depth, r.report.model.width);
    if let Some(first) = revisions.first()
        && let Some(other) = revisions.iter().find(|r| shape(r) != shape(first))
    {
        warnings.push(format!("{} and {} differ in depth or width.", first.name, other.name));
    }
    warnings
}

/// Writes a page, its numbers, and a figure of its own if there is one.
fn write_page(
    dir: &Path,
    page: &Page,
    summary: &impl Serialize,
    figure: Option<&str>,
    settings: &Settings,
) -> Result<(), Failure> {
    let place = dir.join("index.html");
    if settings.dry_run {
        output::note(&format!("would write {}", place.display()));
        return Ok(());
    }
    let write = |source| ReportError::Write { path: dir.to_path_buf(), source };
    std::fs::create_dir_all(dir).map_err(write)?;
    report::write_file(&place, &page.render())?;
    checkpoint::files::write_json(&dir.join("summary.json"), summary)?;
    if let Some(figure) = figure {
        report::write_file(&dir.join("kurtosis.svg"), figure)?;
    }
    output::note(&format!("page: {}", place.display()));
    Ok(())
}

/// Says which limits are broken.
fn verdict(limits: &[Limit], report: &InspectReport, of: &str) -> Exit {
    let mut verdict = Exit::Done;
    for limit in limits {
        for (site, value) in limit.broken(report) {
            let value = value.map_or("undefined".to_string(), |v| format!("{v:.4}"));
            output::note(&format!("{} of {site}{of} is {value}, above {}", limit.metric, limit.value));
            verdict = Exit::No;
        }
    }
    verdict
}

struct Limit {
    metric: String,
    value: f64,
}

/// Metrics of the verdict that can be limited.
const INT8: [&str; 3] = ["int8_error", "int8_error_token", "int8_error_channel"];

impl Limit {
    fn parse(text: &str) -> Result<Self, Failure> {
        let parsed = text.split_once('=').and_then(|(m, v)| Some((m.trim(), v.trim().parse::<f64>().ok()?)));
        match parsed {
            Some((metric, value))
                if (Metrics::is_known(metric) || INT8.contains(&metric)) && !value.is_nan() =>
            {
                Ok(Self { metric: metric.into(), value })
            }
            _ => Err(Failure::input(
                format!(
                    "--fail-above {text} is not of the form METRIC=VALUE with METRIC one of {}, {}",
                    Metrics::NAMES.join(", "),
                    INT8.join(", ")
                ),
                "write for example --fail-above kurtosis=10",
            )),
        }
    }

    /// The sites above it, with their values. One whose values are not finite is above every limit; other figures may be
    /// undefined where all is well, such as the kurtosis of zeros.
    fn broken<'a>(&self, report: &'a InspectReport) -> Vec<(&'a str, Option<f64>)> {
        let above = |value: Option<f64>, finite: bool| !finite || value.is_some_and(|v| v > self.value);
        if INT8.contains(&self.metric.as_str()) {
            let of = |v: &Int8Verdict| match self.metric.as_str() {
                "int8_error_token" => v.int8_error_token,
                "int8_error_channel" => v.int8_error_channel,
                _ => v.int8_error,
            };
            let broken = report.int8.iter().filter(|v| above(of(v), v.int8_error.is_some()));
            return broken.map(|v| (v.site.as_str(), of(v))).collect();
        }
        let of = |site: &SiteReport| site.metrics.get(&self.metric);
        let broken = report.sites.iter().filter(|s| above(of(s), s.metrics.rms.is_some()));
        broken.map(|s| (s.site.as_str(), of(s))).collect()
    }
}

/// A line for each revision.
fn print_revisions(revisions: &[Revision]) {
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
    if let Some(bytes) = report.peak_memory_bytes {
        output::line(&format!("peak memory {:.0} MiB", bytes as f64 / f64::from(1 << 20)));
    }
    print_int8(report);
    print_massive(report);
    print_weights(report);
}

/// Where 8 bits would hurt most, who is responsible, and what would help.
fn print_int8(report: &InspectReport) {
    let percent = |v: Option<f64>| cell(v, |v| format!("{:.2}%", 100.0 * v));
    let mut table = Table::new(&[
        ("int8 error, worst places", Align::Left),
        ("per tensor", Align::Right),
        ("dB", Align::Right),
        ("per token", Align::Right),
        ("per channel", Align::Right),
        ("channel", Align::Right),
        ("token", Align::Left),
        ("what helps", Align::Left),
    ]);
    for v in report.int8.iter().take(SHOWN) {
        let token = |c: &Culprit| {
            let text = c.text.as_ref().map_or(String::new(), |text| format!(" {text:?}"));
            c.sequence.map_or("-".to_string(), |s| format!("{s}:{}{text}", c.position))
        };
        table.push([
            v.site.clone(),
            percent(v.int8_error),
            cell(v.sqnr_db, |v| format!("{v:.1}")),
            percent(v.int8_error_token),
            percent(v.int8_error_channel),
            v.culprit.as_ref().map_or("-".into(), |c| c.channel.to_string()),
            v.culprit.as_ref().map_or("-".into(), token),
            v.remedy.label().into(),
        ]);
    }
    let suffering = report.int8.iter().filter(|v| v.remedy != Remedy::None).count();
    output::result(&format!("\n{}", table.to_text()));
    output::line(&format!(
        "{suffering} of {} rounded places lie above {:.1}% (below 30 dB); activations over {} tokens",
        report.int8.len(),
        100.0 * TOLERABLE,
        report.int8_tokens
    ));
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
