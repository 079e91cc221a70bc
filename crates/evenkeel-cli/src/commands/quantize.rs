//! `quantize MODEL --scheme NAME`.

mod print;

use super::calibration::Texts;
use super::model;
use super::place::{self, Place};
use crate::args::Quantize;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::progress;
use crate::settings::Settings;
use crate::signals;
use evenkeel::model::Transformer;
use evenkeel::quant::repair::Repair;
use evenkeel::quant::{Attribution, QuantReport, Scheme, Simulation, int8};
use evenkeel::report::{ReportError, write_quantize_report};
use serde_json::json;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::Ordering;

pub(crate) fn run(args: Quantize, settings: &Settings) -> Result<Exit, Failure> {
    check(&args)?;
    let scheme = scheme(&args)?;
    let (model, folder) = model::load(&args.model, settings)?;
    let repairs = repairs(&args.repair)?;
    let texts = Texts::open(&args, &folder, model.config(), settings)?;
    // What cannot be is said before the work.
    let plan = scheme.plan(model.config(), model.parameters().iter().map(|p| p.name.as_str()))?;
    if let Some(out) = &args.out {
        int8::check(&plan)?;
        place::check(out, &folder, &WRITTEN, settings)?;
    }
    if settings.dry_run {
        let (parameters, scheme) = (model.parameter_count(), &scheme.name);
        if settings.json {
            output::json(&json!({"schema": 1, "dry_run": true, "scheme": scheme, "parameters": parameters}));
        } else {
            output::line(&format!("would quantise {parameters} parameters with {scheme}"));
        }
        return Ok(Exit::Done);
    }
    if texts.are_one && !settings.quiet {
        output::note("calibrated and evaluated on the same text; --calib names another to calibrate on");
    }
    let recipe = Recipe { scheme: &scheme, repairs: &repairs };
    let (simulation, mut report) = quantise(&model, &recipe, &texts, settings)?;
    let mut exit = Exit::Done;
    if args.attribution {
        (report.attribution, exit) = attribute(&simulation, &args, &texts, settings)?;
    }
    if let Some(out) = &args.out {
        let tokenizer = Some(folder.join("tokenizer.json")).filter(|path| path.is_file());
        let place = Place::new(out, false)?;
        int8::write(&simulation, tokenizer.as_deref(), place.beside())?;
        place.finish(out)?;
    }
    if let Some(dir) = &args.report {
        write_page(dir, &report, &args.model, settings)?;
    }
    if settings.json {
        output::json(&report);
    } else {
        print::report(&report);
        if let Some(out) = &args.out {
            output::line(&format!("wrote the integer model to {}", out.display()));
        }
    }
    Ok(exit)
}

/// What `--out` writes; a folder that holds anything else is nobody's to remove.
const WRITTEN: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];

/// What is done to a model.
pub(crate) struct Recipe<'a> {
    pub(crate) scheme: &'a Scheme,
    pub(crate) repairs: &'a [Repair],
}

/// Refuses what `--report` and `--attribution-tokens` cannot mean, before there is anything to lose.
fn check(args: &Quantize) -> Result<(), Failure> {
    if args.tokens == Some(0) {
        return Err(Failure::input(
            "--tokens 0 leaves nothing to evaluate",
            "leave it out, or give at least 1",
        ));
    }
    if args.attribution_tokens == 0 {
        return Err(Failure::input(
            "--attribution-tokens 0 leaves nothing to evaluate",
            "leave it out, or give at least 1",
        ));
    }
    if args.text.images.is_some() {
        return Err(Failure::input(
            "quantize calibrates on text, and cannot take --images yet",
            "`evenkeel inspect MODEL --images ...` says what 8 bits would cost a model of images, site by site",
        ));
    }
    match args.report.as_ref().filter(|dir| dir.exists() && !dir.is_dir()) {
        Some(file) => Err(Failure::input(
            format!("--report {} is a file, and a folder was expected", file.display()),
            "name a folder; it is made if it is not there",
        )),
        None => Ok(()),
    }
}

/// Writes the page with its numbers and figures; the folder is made if it is not there.
fn write_page(dir: &Path, report: &QuantReport, model: &Path, settings: &Settings) -> Result<(), Failure> {
    std::fs::create_dir_all(dir).map_err(|source| ReportError::Write { path: dir.into(), source })?;
    write_quantize_report(report, &model.display().to_string(), dir)?;
    if !settings.quiet {
        output::note(&format!("page: {}", dir.join("index.html").display()));
    }
    Ok(())
}

/// What each quantiser costs; after Ctrl-C what whole batches gave, and `Interrupted`.
fn attribute(
    simulation: &Simulation,
    args: &Quantize,
    texts: &Texts,
    settings: &Settings,
) -> Result<(Option<Attribution>, Exit), Failure> {
    let control = signals::listen(settings.quiet, "stopping; what is measured so far is kept")?;
    let stopped = || control.stop.load(Ordering::SeqCst);
    let bar = progress::bar(settings, 0, "attributing {bar:24} {percent}% · {eta} left");
    let batches = texts.evaluation_of(Some(args.attribution_tokens))?;
    let sequences = batches.sequences();
    let attribution = simulation.attribute(batches, sequences, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        if stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    bar.finish_and_clear();
    Ok((attribution, if stopped() { Exit::Interrupted } else { Exit::Done }))
}

/// The repairs by their names, each once.
fn repairs(texts: &[String]) -> Result<Vec<Repair>, Failure> {
    let repairs = texts.iter().map(|text| text.parse()).collect::<Result<Vec<Repair>, _>>()?;
    for (i, repair) in repairs.iter().enumerate() {
        if repairs[..i].iter().any(|earlier| earlier.name() == repair.name()) {
            return Err(Failure::input(
                format!("--repair {} is given twice", repair.name()),
                "a repair is made once: leave one out",
            ));
        }
    }
    Ok(repairs)
}

/// The scheme that the options describe, what they change in its name.
fn scheme(args: &Quantize) -> Result<Scheme, Failure> {
    let path = Path::new(&args.scheme);
    let is_file =
        path.extension().is_some_and(|e| e == "toml") || path.components().count() > 1 || path.is_file();
    let mut scheme = match is_file {
        true => {
            let text = std::fs::read_to_string(path).map_err(|e| {
                Failure::input(format!("cannot read {}: {e}", path.display()), "check the path of --scheme")
            })?;
            Scheme::from_toml(&args.scheme, &text)?
        }
        false => Scheme::preset(&args.scheme)?,
    };
    let mut changes = String::new();
    if let Some(head) = args.head {
        scheme.head = head.into();
        changes += &format!(", {} head", head.name());
    }
    if let Some(residual) = args.residual {
        scheme.residual = residual.into();
        changes += &format!(", {} stream", residual.name());
    }
    for text in &args.site {
        let Some((pattern, words)) = text.split_once('=') else {
            return Err(Failure::input(
                format!("--site takes GLOB=WORDS, not \"{text}\""),
                "such as --site 'blocks.0.*=float' or --site 'blocks.*.mlp.down.weight=channel mse'",
            ));
        };
        scheme.set(pattern, words)?;
        changes += &format!(", {text}");
    }
    scheme.name += &changes;
    Ok(scheme)
}

/// Calibrates and evaluates.
pub(crate) fn quantise(
    model: &Transformer,
    recipe: &Recipe,
    texts: &Texts,
    settings: &Settings,
) -> Result<(Simulation, QuantReport), Failure> {
    let calibration = &texts.calibration;
    let bar =
        progress::bar(settings, calibration.len() as u64, "calibrating {bar:24} {pos}/{len} · {eta} left");
    let mut simulation =
        Simulation::new(model, recipe.scheme, recipe.repairs, calibration, &mut || bar.inc(1))?;
    bar.finish_and_clear();
    let evaluation = texts.evaluation()?;
    let bar = progress::bar(settings, evaluation.sequences(), "evaluating {bar:24} {pos}/{len} · {eta} left");
    let report = simulation.evaluate(model, evaluation, &mut |done| bar.set_position(done))?;
    bar.finish_and_clear();
    Ok((simulation, report))
}
