//! `quickstart`: the paper's headline on this machine.
//!
//! Trains Pre-LN + AdamW and OP + SOAP on the same text with the same size, tokens, seed and initialisation, each at
//! its own best learning rate and at a larger one, quantises all four, and compares. Everything is kept below
//! `--out`; the same command goes on where an earlier one was stopped.

pub(crate) mod corpus;
mod plan;

use super::calibration::Texts;
use super::quantize::{Recipe, quantise};
use super::text::blocks;
use super::train::{Run, execute, host};
use crate::args::Quickstart;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Settings;
use crate::signals;
use evenkeel::checkpoint::files;
use evenkeel::data::Dataset;
use evenkeel::inspect;
use evenkeel::metrics::KurtosisSummary;
use evenkeel::quant::{QuantReport, Scheme};
use evenkeel::report::quickstart::{
    Corpus as CorpusCounts, QuickstartContext, QuickstartRun, QuickstartSummary, quickstart_page,
};
use evenkeel::report::run::read_run;
use evenkeel::report::write_file;
use evenkeel::train::{Control, Outcome, Prepared, RunDir};
use plan::{Plan, Side};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

/// Validation tokens on which kurtosis is measured at the end of a run.
const INSPECT_TOKENS: u64 = 32_768;
/// Calibration batches of the W8A8 recipe.
const CALIBRATION_BATCHES: usize = 4;

pub(crate) fn run(args: Quickstart, settings: &Settings) -> Result<Exit, Failure> {
    if !(args.minutes.is_finite() && args.minutes > 0.0) {
        return Err(Failure::input("--minutes must be a positive number", "give for example --minutes 9"));
    }
    let begun = Instant::now();
    let corpus = corpus::read(args.corpus.as_deref())?;
    if settings.dry_run {
        if settings.json {
            output::json(&json!({
                "schema": 1,
                "dry_run": true,
                "corpus": {"files": corpus.files, "bytes": corpus.bytes},
                "minutes": args.minutes,
                "out": args.out,
            }));
        } else {
            output::line(&format!(
                "would train four models for {} minutes on {} files ({} bytes) and write {}",
                args.minutes,
                corpus.files,
                corpus.bytes,
                args.out.display()
            ));
        }
        return Ok(Exit::Done);
    }
    let request = plan::Request {
        minutes: args.minutes,
        seed: settings.seed.unwrap_or(0),
        corpus_bytes: corpus.bytes,
        corpus_hash: format!("{:016x}", corpus.hash),
    };
    let control = signals::listen(settings.quiet, signals::TRAINING)?;
    let mut plan = plan::open(&args.out, request, settings.force)?;
    let say = |text: &str| {
        if !settings.quiet {
            output::note(text);
        }
    };
    say(&format!("corpus: {} files, {:.1} MB of {}", corpus.files, corpus.bytes as f64 / 1e6, corpus.what));
    let data = args.out.join("data");
    let dataset = Arc::new(corpus::tokenised(&corpus, &data)?);
    let steps = match plan.steps {
        Some(steps) => {
            say(&format!("going on in {}: {steps} steps for each of four runs", args.out.display()));
            steps
        }
        None => {
            say("timing a few steps of both sides");
            let Some(made) = plan::make(plan, &data, &args.out, &control)? else {
                return Ok(Exit::Interrupted);
            };
            plan = made;
            let steps = plan.steps.unwrap_or_default();
            say(&format!("{steps} steps for each of four runs, about {} minutes in all", args.minutes));
            steps
        }
    };

    let mut runs = Vec::new();
    for (side, lr) in plan::RUNS {
        match one_run(side, lr, steps, &plan, &data, &dataset, &args.out, settings, &control)? {
            Some(run) => runs.push(run),
            None => return Ok(Exit::Interrupted),
        }
    }
    let summary = QuickstartSummary {
        schema: QuickstartSummary::SCHEMA,
        corpus: CorpusCounts { files: corpus.files, bytes: corpus.bytes },
        runs,
    };
    files::write_json(&args.out.join("summary.json"), &summary)?;
    let curves =
        summary.runs.iter().map(|r| read_run(&args.out.join(&r.dir))).collect::<Result<Vec<_>, _>>()?;
    let context = context(&plan, &corpus, settings, begun);
    let page = args.out.join("index.html");
    write_file(&page, &quickstart_page(&summary, &curves, &context))?;
    if settings.json {
        output::json(&summary);
    } else {
        print(&summary, &page);
    }
    Ok(Exit::Done)
}

/// Trains (or finishes) one run, measures and quantises it; `None` if it was interrupted.
#[allow(clippy::too_many_arguments)]
fn one_run(
    side: Side,
    lr: f64,
    steps: u64,
    plan: &Plan,
    data: &Path,
    dataset: &Arc<Dataset>,
    out: &Path,
    settings: &Settings,
    control: &Control,
) -> Result<Option<QuickstartRun>, Failure> {
    let name = format!("{}-{}-lr{lr}", side.block(), side.optimizer());
    let relative = format!("runs/{name}");
    let config = plan::config(side, lr, steps, plan.request.seed, data)?;
    let dir = RunDir::create(&out.join(&relative), true)?;
    dir.write("config.toml", &config.to_toml()?)?;
    let resume = dir.checkpoints().is_dir();
    let run = execute(Prepared::new(config)?, dir, resume, &name, settings, control)?;
    let mut result = QuickstartRun {
        name,
        block: side.block().into(),
        optimizer: side.optimizer().into(),
        lr_peak: lr,
        steps: run.trainer.step(),
        parameters: run.trainer.model().parameter_count() as u64,
        tokens_per_sec: logged_speed(&run).or(run.tokens_per_sec),
        val_loss: None,
        kurtosis_mean: None,
        kurtosis_max: None,
        kurtosis_max_site: None,
        float_perplexity: None,
        w8a8_perplexity: None,
        dir: relative,
    };
    match &run.outcome {
        Outcome::Interrupted => return Ok(None),
        // The figures stay empty; the page says that the run did not finish.
        Outcome::Diverged(reason) => {
            output::note(&format!("{}: {reason}", result.name));
            return Ok(Some(result));
        }
        Outcome::Alarmed(alarm) => {
            output::note(&format!("{}: {alarm}", result.name));
            return Ok(Some(result));
        }
        Outcome::Finished => {}
    }
    let model = run.trainer.model();
    let scheme = Scheme::preset("w8a8")?;
    let seed = settings.seed.unwrap_or(0);
    let texts = Texts::of_dataset(dataset, model.config().context, CALIBRATION_BATCHES, seed, None)?;
    let recipe = Recipe { scheme: &scheme, repairs: &[] };
    let quantised: QuantReport = quantise(model, &recipe, &texts, settings)?.1;
    files::write_json(&run.root.join("w8a8.json"), &quantised)?;
    let kurtosis = kurtosis(&run, dataset)?;
    result.val_loss = Some(quantised.float.perplexity.ln());
    result.float_perplexity = Some(quantised.float.perplexity);
    result.w8a8_perplexity = Some(quantised.quantized.perplexity);
    result.kurtosis_mean = kurtosis.kurtosis_mean;
    result.kurtosis_max = kurtosis.kurtosis_max;
    result.kurtosis_max_site = kurtosis.kurtosis_max_site;
    Ok(Some(result))
}

fn kurtosis(run: &Run, dataset: &Arc<Dataset>) -> Result<KurtosisSummary, Failure> {
    let model = run.trainer.model();
    let batches = blocks(dataset, model.config().context, Some(INSPECT_TOKENS))?;
    let batches = batches.map(|b| b.map_err(evenkeel::Error::from));
    Ok(inspect::inspect(model, batches, &inspect::Options::summary(), &mut |_, _| {})?.summary)
}

/// Median speed over the whole log, also of a run that an earlier command began.
fn logged_speed(run: &Run) -> Option<f64> {
    let lines = read_run(&run.root).ok()?.metrics;
    let mut rates: Vec<f64> = lines.iter().skip(1).filter_map(|l| l.tokens_per_sec).collect();
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied()
}

fn context(plan: &Plan, corpus: &corpus::Corpus, settings: &Settings, begun: Instant) -> QuickstartContext {
    let revision = option_env!("EVENKEEL_REVISION").map(|r| format!(" ({r})")).unwrap_or_default();
    QuickstartContext {
        version: format!("evenkeel {}{revision}", env!("CARGO_PKG_VERSION")),
        command: std::iter::once("evenkeel".to_string())
            .chain(std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()))
            .collect::<Vec<_>>()
            .join(" "),
        host: format!("{}, {} threads, {}", host(), settings.threads, evenkeel_kernels::isa::active().name()),
        seed: plan.request.seed.to_string(),
        model: plan::describe(),
        corpus: format!("{}, FNV-1a hash {}", corpus.what, plan.request.corpus_hash),
        minutes: format!(
            "{} asked for; {:.1} in this command",
            plan.request.minutes,
            begun.elapsed().as_secs_f64() / 60.0
        ),
        date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string()[..10].to_string(),
    }
}

fn print(summary: &QuickstartSummary, page: &Path) {
    output::result(&summary.table().to_text());
    for sentence in evenkeel::report::findings::headline(summary) {
        output::line(&sentence);
    }
    output::line(&format!("\nreport: {}", page.display()));
}
