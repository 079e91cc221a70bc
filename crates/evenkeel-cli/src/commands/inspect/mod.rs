//! `inspect MODEL...`.

mod inputs;
mod limits;
mod print;

use super::{images, model};
use crate::args::{Gram, Inspect};
use crate::failure::{Exit, Failure};
use crate::output;
use crate::progress;
use crate::settings::Settings;
use evenkeel::checkpoint::{self, OnDisk};
use evenkeel::data::Tokenizer;
use evenkeel::inspect::{self, InspectReport, Options};
use evenkeel::metrics::GramMode;
use evenkeel::report::{
    self, Page, ReportError, Revision, Target, inspect_page, revisions_chart, revisions_page,
};
use evenkeel::train::{InOrder, peak_rss_bytes};
use inputs::Inputs;
use limits::{Limit, verdict};
use serde::Serialize;
use serde_json::json;
use std::path::Path;

pub(crate) fn run(args: Inspect, settings: &Settings) -> Result<Exit, Failure> {
    let limits = args.fail_above.iter().map(|t| Limit::parse(t)).collect::<Result<Vec<_>, _>>()?;
    if args.dump.is_some() && args.models.len() > 1 {
        return Err(Failure::input("--dump is of one model", "name a single MODEL with --dump"));
    }
    // All that can be wrong with models, inputs and places is found before any of them is run.
    let opened = args.models.iter().map(|path| Opened::new(&args, path, settings));
    let opened = opened.collect::<Result<Vec<_>, Failure>>()?;
    check_places(&args)?;
    if settings.dry_run {
        return dry_run(&args, &opened, settings);
    }
    if let [model] = &opened[..] {
        let report = model.inspect(&args, settings)?;
        if settings.json {
            output::json(&report);
        } else {
            print::report(&report);
        }
        if let Some(dir) = &args.report {
            write_page(dir, &inspect_page(&report, &model.name), &report, None, settings)?;
        }
        return Ok(verdict(&limits, &report, ""));
    }
    let mut revisions = Vec::new();
    for model in &opened {
        let mut report = model.inspect(&args, settings)?;
        // That of the process, which holds one model after the other.
        report.peak_memory_bytes = None;
        let digest = format!("{:016x}", model.on_disk.digest()?);
        revisions.push(Revision { name: model.name.clone(), step: model.step, report, digest });
    }
    let peak = peak_rss_bytes();
    let warnings = warnings(&revisions);
    for warning in warnings.iter().filter(|_| !settings.quiet) {
        output::note(&format!("warning: {warning}"));
    }
    let models = revisions
        .iter()
        .map(|r| json!({"name": r.name, "step": r.step, "digest": r.digest, "report": r.report}));
    let summary = json!({
        "schema": 1,
        "models": models.collect::<Vec<_>>(),
        "warnings": warnings,
        "peak_memory_bytes": peak,
    });
    if settings.json {
        output::json(&summary);
    } else {
        print::revisions(&revisions);
        print::memory(peak);
    }
    if let Some(dir) = &args.report {
        let figure = revisions_chart(&revisions, Target::File);
        write_page(dir, &revisions_page(&revisions, &warnings), &summary, Some(&figure), settings)?;
    }
    let exits = revisions.iter().map(|r| verdict(&limits, &r.report, &format!(" of {}", r.name)));
    Ok(if exits.collect::<Vec<_>>().contains(&Exit::No) { Exit::No } else { Exit::Done })
}

/// A model about to be inspected.
struct Opened {
    name: String,
    step: Option<u64>,
    on_disk: OnDisk,
    inputs: Inputs,
}

impl Opened {
    fn new(args: &Inspect, path: &Path, settings: &Settings) -> Result<Self, Failure> {
        let on_disk = model::open(path, settings)?;
        let inputs = Inputs::open(args, &on_disk, settings)?;
        inputs.check(&on_disk)?;
        let known = checkpoint::step_of(on_disk.folder());
        let step = known.or_else(|| step_in(path)).or_else(|| step_in(on_disk.folder()));
        Ok(Self { name: path.display().to_string(), step, on_disk, inputs })
    }

    fn inspect(&self, args: &Inspect, settings: &Settings) -> Result<InspectReport, Failure> {
        let mode = match args.gram {
            Gram::Batch => GramMode::Batch,
            Gram::Sequence => GramMode::Sequence,
        };
        let with = |options: Options| Options { top_k: args.top_k, ..options }.with_gram(mode);
        let bar = progress::bar(settings, 0, "{prefix} {bar:24} {pos}/{len} · {eta} left");
        bar.set_prefix(format!("inspecting {}", self.name));
        let mut told = |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        };
        let mut report = self.on_disk.with_parts(|parts| {
            let report = match &self.inputs {
                Inputs::Batch(input) => {
                    let one = std::iter::once(Ok(input.clone()));
                    inspect::inspect(parts, one, &with(Options::exact()), &mut told)?
                }
                Inputs::Stream(stream) => {
                    let batches = stream.batches(args.tokens)?;
                    inspect::inspect(parts, batches, &with(Options::stream()), &mut told)?
                }
                Inputs::Images(data, config) => {
                    let batches = InOrder::from(images::blocks(data, config, Some(args.tokens))?);
                    inspect::inspect(parts, batches, &with(Options::stream()), &mut told)?
                }
            };
            if let (Some(path), Some(first)) = (&args.dump, self.inputs.first(args.tokens)?) {
                inspect::dump(parts, &first, path)?;
            }
            Ok::<_, Failure>(report)
        })??;
        bar.finish_and_clear();
        if let Ok(Some(tokenizer)) = Tokenizer::load_folder(self.on_disk.folder()) {
            for culprit in report.int8.iter_mut().filter_map(|v| v.culprit.as_mut()) {
                culprit.text = culprit.token.map(|token| tokenizer.decode(&[token]));
            }
        }
        Ok(report)
    }
}

/// Refuses places that cannot be written, before there is anything to lose.
fn check_places(args: &Inspect) -> Result<(), Failure> {
    if let Some(dir) = args.report.as_ref().filter(|dir| dir.exists() && !dir.is_dir()) {
        return Err(Failure::input(
            format!("--report {} is a file, and a folder was expected", dir.display()),
            "name a folder; it is made if it is not there",
        ));
    }
    let folder = args.dump.as_ref().and_then(|path| path.parent()).filter(|p| !p.as_os_str().is_empty());
    match folder.filter(|folder| !folder.is_dir()) {
        Some(folder) => Err(Failure::input(
            format!("--dump cannot be written: there is no folder {}", folder.display()),
            "make the folder first",
        )),
        None => Ok(()),
    }
}

/// What would be run and written.
fn dry_run(args: &Inspect, opened: &[Opened], settings: &Settings) -> Result<Exit, Failure> {
    let writes: Vec<String> = args
        .report
        .iter()
        .map(|dir| dir.join("index.html").display().to_string())
        .chain(args.dump.iter().map(|path| path.display().to_string()))
        .collect();
    if settings.json {
        let names: Vec<&str> = opened.iter().map(|o| o.name.as_str()).collect();
        output::json(&json!({"schema": 1, "dry_run": true, "models": names, "writes": writes}));
        return Ok(Exit::Done);
    }
    for model in opened {
        output::line(&format!("would inspect {} ({})", model.name, model.on_disk.config().preset));
    }
    for path in writes {
        output::line(&format!("would write {path}"));
    }
    Ok(Exit::Done)
}

/// The training step in a name: `step-000500`, `model@step1000`, `checkpoint-500`.
fn step_in(path: &Path) -> Option<u64> {
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
    let tokens = |r: &Revision| r.report.tokens;
    if let Some(first) = revisions.first()
        && let Some(other) = revisions.iter().find(|r| tokens(r) != tokens(first))
    {
        let (a, b) = (tokens(first), tokens(other));
        warnings.push(format!("{} was run on {a} tokens and {} on {b}.", first.name, other.name));
    }
    for broken in revisions.iter().filter(|r| r.report.summary.kurtosis_mean.is_none()) {
        warnings.push(format!("{} holds activations that are not finite.", broken.name));
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
    let write = |source| ReportError::Write { path: dir.to_path_buf(), source };
    std::fs::create_dir_all(dir).map_err(write)?;
    report::write_file(&place, &page.render())?;
    checkpoint::files::write_json(&dir.join("summary.json"), summary)?;
    if let Some(figure) = figure {
        report::write_file(&dir.join("kurtosis.svg"), figure)?;
    }
    if !settings.quiet {
        output::note(&format!("page: {}", place.display()));
    }
    Ok(())
}
